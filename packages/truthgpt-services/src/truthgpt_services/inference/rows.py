"""The rows of a batch: sequences that an engine holds for requests, and what they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from truthgpt_core.decoding import Engine, SequenceState
from truthgpt_services.inference.prefix_cache import PrefixCache, common_prefix
from truthgpt_services.inference.request import Request

LEAST_SHARED = 16
"""From how many common tokens on a sequence is copied: below that, reading them takes no longer."""


@dataclass(eq=False, slots=True)
class Row:
    """A request that has begun."""

    request: Request
    state: SequenceState
    tokens: list[int]
    computed: int = 0
    decoded: Iterator[Sequence[int]] | None = None

    @property
    def is_reading(self) -> bool:
        """Whether more than its last token is missing in the cache."""
        return self.decoded is None and len(self.tokens) - self.computed > 1

    @property
    def is_scoring(self) -> bool:
        """Whether log-probabilities of its prompt are missing."""
        request = self.request
        return request.params.prompt_logprobs is not None and self.computed < len(request.prompt)


class Rows:
    """Sequences of one engine.

    Args:
        engine: holds them.
        kept_tokens: how many tokens are kept of texts that ended, if it can copy sequences.

    Attributes:
        running: those of requests that have begun and not ended.
    """

    def __init__(self, engine: Engine, kept_tokens: int) -> None:
        self.running: list[Row] = []
        self._engine = engine
        self._forks = engine.capabilities.fork
        self._kept = PrefixCache(engine, kept_tokens if self._forks else 0)
        self._session: AbstractContextManager[None] | None = None

    @property
    def kept_tokens(self) -> int:
        """How many tokens of texts that ended are kept."""
        return self._kept.tokens

    def may_begin(self, request: Request, together: Sequence[Request]) -> bool:
        """Return whether a request can begin with others in the next pass."""
        if not self._forks:
            limit = self._engine.context_length
            return limit is None or not together or _positions([*together, request]) <= limit
        if _reads_all(request):
            return True
        # What others are reading is read once: it is copied as soon as it is there.
        _, common, has = self._nearest(request)
        _, held = self._kept.find(request.prompt)
        ahead = max((common_prefix(request.prompt, each.prompt) for each in together), default=0)
        return max(common, ahead) < max(has, held) + LEAST_SHARED

    def groups(self, together: Sequence[Request]) -> list[list[Request]]:
        """Return which requests are opened at once, to share a cache where that is needed."""
        if self._forks:
            return [[each] for each in together]
        # Passes of its own would widen the columns that it shares.
        alone = [[each] for each in together if _goes_alone(each)]
        shared = [each for each in together if not _goes_alone(each)]
        return [shared, *alone] if shared else alone

    def open(self, group: Sequence[Request]) -> list[SequenceState]:
        """Open sequences for a group, with what they have in common with others."""
        (request, *others) = group
        if self._forks and not others and not _reads_all(request):
            row, _, has = self._nearest(request)
            kept, held = self._kept.find(request.prompt)
            nearest = kept if kept is not None and held >= has else row
            # One token is read at least: the logits after it are needed.
            shared = min(max(has, held), len(request.prompt) - 1)
            if nearest is not None and shared >= LEAST_SHARED:
                request.reused = shared
                return [self._engine.fork(nearest.state, shared, request.positions)]
        return self._engine.open(_positions(group), len(group))

    def enter(self) -> None:
        """Begin the session of the engine, if none has begun."""
        if self._session is None:
            session = self._engine.session()
            session.__enter__()
            self._session = session

    def leave_when_idle(self) -> None:
        """End the session of the engine, if no request is running."""
        if not self.running and self._session is not None:
            session, self._session = self._session, None
            session.__exit__(None, None, None)

    def free(self, row: Row) -> None:
        """Take a row out whose text has ended, and keep what prompts may begin with."""
        self.running.remove(row)
        decoder = row.request.decoder
        if decoder is not None and not decoder.continues:
            self.close(row)
            return
        try:
            _end_decoding(row)
        except BaseException:
            self._engine.close([row.state])
            raise
        self._kept.keep(row.state, tuple(row.tokens[: row.computed]))

    def close(self, row: Row) -> None:
        """Close the sequence of a row, and its decoder."""
        try:
            _end_decoding(row)
        finally:
            self._engine.close([row.state])

    def forget(self) -> None:
        """Close what is kept of texts that ended."""
        self._kept.clear()

    def _nearest(self, request: Request) -> tuple[Row | None, int, int]:
        """Return the row that has most of the beginning of a prompt in its cache.

        Returns:
            It; how much of the prompt some row will have; and how much that one has now.
        """
        nearest, most, has = None, 0, 0
        for row in self.running:
            common = common_prefix(request.prompt, row.request.prompt)
            most = max(most, common)
            if (there := min(common, row.computed)) > has:
                nearest, has = row, there
        return nearest, most, has


def _end_decoding(row: Row) -> None:
    close = getattr(row.decoded, "close", lambda: None)
    close()


def _goes_alone(request: Request) -> bool:
    """Whether it takes passes of its own."""
    return request.decoder is not None or request.params.prompt_logprobs is not None


def _reads_all(request: Request) -> bool:
    """Whether all tokens of a prompt have to go through the model."""
    continues = request.decoder is None or request.decoder.continues
    return not continues or request.params.prompt_logprobs is not None


def _positions(requests: Sequence[Request]) -> int:
    """Return how many positions each sequence of a batch needs, if they share columns."""
    longest = max(len(each.prompt) for each in requests)
    return longest + max(each.params.max_new_tokens for each in requests)
