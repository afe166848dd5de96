"""Engines: what runs one model."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from truthgpt_core.decoding.errors import GenerationError
from truthgpt_core.decoding.sampling_params import SAMPLING_OPTIONS, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an engine can do. A feature that needs more is refused by name.

    Attributes:
        logits: it gives the scores of all tokens; without, it chooses tokens itself, and
            decoders, logits processors and measurements of quality cannot be used with it.
        prompt_logprobs: it gives them for every token of a prompt, and not only after the last.
        crop: the last tokens of a sequence can be removed.
        fork: a sequence can be begun as a copy of the beginning of another, so that what several
            have in common is computed once.
        continuous_batching: sequences that were opened at different times are computed in one
            pass; without, only those that were opened together.
        masks: tokens can be ruled out before one is chosen.
        rows: how many sequences it takes in one call; None for any number.
        hidden_cache: it keeps its key-value cache to itself, and the hook `make_cache` is not
            called for it.
    """

    logits: bool = True
    prompt_logprobs: bool = True
    crop: bool = True
    fork: bool = False
    continuous_batching: bool = False
    masks: bool = True
    rows: int | None = None
    hidden_cache: bool = False


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine is made.

    Attributes:
        device: in torch's notation, or "auto".
        dtype: of the weights, such as "float32"; None for that of the stored model.
        engine: the name of the one that the user wants; None for any. Where it is another's, an
            engine leaves the model to others.
        given: the options that the user gave by name and that are no `SamplingParams`; an engine
            takes those that it knows out of it.
        load: loads the model with PyTorch, with the optimizations that are stored with it. It
            takes seconds the first time, and returns the same model after that; an engine that
            loads the model itself does not call it.
        hooks: the hooks of the application.
    """

    device: str = "auto"
    dtype: str | None = None
    engine: str | None = None
    given: dict[str, Any] = field(default_factory=dict)
    load: Callable[[], Any] | None = None
    hooks: Any = None


class SequenceState:
    """One sequence that an engine holds; only the engine that opened it knows what is inside.

    Attributes:
        length: how many of its tokens are in the cache.
        positions: how many tokens it can have.
    """

    length: int = 0
    positions: int = 0


class Engine(ABC):
    """Runs one model.

    An engine that gives logits implements `open`, `forward`, `close` and, if it can, `crop`. One
    that does not implements `generate`.

    Attributes:
        name: what messages call it.
        capabilities: what it can do.
        context_length: how many tokens a sequence can have; None if it does not say.
        vocabulary_size: how many tokens the model knows; None if it does not say.
        end_tokens: those that end a text.
        options: names of the `SamplingParams` that it knows. An engine that gives logits knows
            all, since tokens are chosen outside of it; one that chooses them itself names those
            that its `generate` takes, and others are refused by name. `n` need not be among
            them: several texts are asked for one by one.
        defaults: what the model's authors suggest for `SamplingParams`, by name; used where the
            user does not say.
        tokenizer: with the interface of those of transformers; None to take the one that is
            stored with the model, or none if there is no such.
    """

    name: ClassVar[str]
    capabilities: Capabilities = Capabilities()
    context_length: int | None = None
    vocabulary_size: int | None = None
    end_tokens: frozenset[int] = frozenset()
    options: frozenset[str] = frozenset(SAMPLING_OPTIONS)
    defaults: Mapping[str, Any] = {}
    tokenizer: Any = None

    def open(self, positions: int, count: int = 1) -> list[SequenceState]:
        """Begin sequences, which are empty.

        Args:
            positions: how many tokens each will have at most.
            count: how many sequences.

        Raises:
            GenerationError: the model cannot hold that many tokens.
        """
        raise GenerationError(f"The engine {self.name} gives no logits")

    def forward(
        self,
        states: Sequence[SequenceState],
        tokens: Sequence[Sequence[int]],
        *,
        all_logits: bool = False,
    ) -> list[Any]:
        """Append tokens to sequences and return the logits after them.

        The sequences may be of different lengths, be appended different numbers of tokens, and be
        some of those that were opened together.

        Args:
            states: sequences of this engine, each once.
            tokens: the ids that each gets, at least one.
            all_logits: return logits after each token, and not only after the last.

        Returns:
            For each sequence a floating-point tensor of shape (1, vocabulary) or, with
            `all_logits`, (tokens, vocabulary).

        Raises:
            GenerationError: a token is unknown, or a sequence becomes too long.
        """
        raise GenerationError(f"The engine {self.name} gives no logits")

    def prompt_logits(self, tokens: Sequence[int]) -> Any:
        """Return the logits after each token of a text that is not continued.

        Args:
            tokens: the ids, at least one.

        Returns:
            A floating-point tensor of shape (tokens, vocabulary).

        Raises:
            GenerationError: as for `forward`.
        """
        states = self.open(len(tokens))
        try:
            (logits,) = self.forward(states, [tokens], all_logits=True)
        finally:
            self.close(states)
        return logits

    def crop(self, state: SequenceState, length: int) -> None:
        """Take back the last tokens of a sequence.

        Args:
            state: a sequence of this engine.
            length: how many tokens stay.

        Raises:
            GenerationError: this engine cannot.
        """
        raise GenerationError(f"The engine {self.name} cannot take tokens back")

    def fork(self, state: SequenceState, length: int, positions: int) -> SequenceState:
        """Begin a sequence with the first tokens of another.

        Args:
            state: a sequence of this engine, which stays as it is.
            length: how many of its tokens; at most `state.length`.
            positions: how many tokens the new one will have at most.

        Raises:
            GenerationError: this engine cannot, or the model cannot hold that many tokens.
        """
        raise GenerationError(f"The engine {self.name} cannot copy a sequence")

    def close(self, states: Sequence[SequenceState]) -> None:  # noqa: B027 - optional
        """Free what sequences hold. They are not used again."""

    def session(self) -> AbstractContextManager[None]:
        """Return a context that is entered while text is generated."""
        return nullcontext()

    def generate(self, prompt: Any, params: SamplingParams) -> Iterator[str]:
        """Generate text, for an engine that chooses tokens itself.

        Args:
            prompt: a string, which is continued as it is, or a list of messages with `role` and
                `content`.
            params: how, and how much.

        Yields:
            Pieces of text, up to and without a stop string.

        Returns:
            Why the text ended, where the engine knows: `eos_token`, `length` or `stop_sequence`.

        Raises:
            RefusedError: another request could be answered.
            OverloadedError: this one could be, later.
            UnavailableError: what runs the model cannot be reached, or has failed.
            GenerationError: anything else.
        """
        raise GenerationError(f"The engine {self.name} gives logits, and chooses no tokens")

    def fingerprint(self) -> str | None:
        """Return a text that stands for all that the engine's logits depend on.

        Answers are kept in the response cache under it, so two engines with the same text must give
        the same logits, and one engine as long as it lives. It is asked for each request.

        Returns:
            None if it cannot tell: answers are not cached then.
        """
        return None

    def describe(self) -> Mapping[str, Any]:
        """Return what reports say of the model.

        Returns:
            `parameters` (a count), `dtype` (a name), `weights_bytes` (in memory),
            `cache_bytes_per_token` (keys and values of one token, in memory), `kernel` (a text
            that tells code and processor from others which round differently: where it is the
            same, so are the logits, to 1e-5); an engine leaves out what it does not know.
        """
        return {}


class KVCache(Protocol):
    """What the engine of torch needs of a key-value cache; those of transformers have it.

    It is made by the hook `make_cache` and given to the model as `past_key_values`.
    """

    layers: list[Any]

    def update(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Add keys and values of one layer; return all of that layer."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many positions are filled."""


def refuse_unknown_tokens(
    tokens: Sequence[int], vocabulary: int | None, name: str = "The prompt"
) -> None:
    """Refuse tokens that a model has no embedding for.

    Args:
        tokens: their ids.
        vocabulary: how many tokens the model knows; None if it does not say.
        name: what has them, for the error.

    Raises:
        GenerationError: one is beyond the vocabulary: the tokenizer is that of another model.
    """
    if vocabulary is None:
        return
    beyond = [token for token in tokens if not 0 <= token < vocabulary]
    if beyond:
        raise GenerationError(
            f"{name} has the token {beyond[0]}, and the model knows {vocabulary}",
            hint="The tokenizer belongs to another model, or has tokens that were added to it.",
        )


def refuse_too_long(positions: int, limit: int | None) -> None:
    """Refuse a sequence that is longer than a model's context.

    Args:
        positions: of prompt and answer.
        limit: how many the model holds; None if it does not say.

    Raises:
        GenerationError: it holds fewer.
    """
    if limit is not None and positions > limit:
        raise GenerationError(
            f"Prompt and answer have {positions} tokens, and the model holds {limit}",
            hint="Shorten the prompt, or ask for fewer tokens.",
        )


def end_tokens_of(model: Any) -> frozenset[int]:
    """Return the tokens that end a text, as the generation config of a model declares them."""
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = declared if isinstance(declared, list) else [declared]
    return frozenset(each for each in listed if isinstance(each, int))


def generation_defaults(model: Any) -> dict[str, Any]:
    """Return what the generation config of a model suggests for `SamplingParams`.

    Where it does not sample (`do_sample`), the likeliest token is taken, and what it says of
    sampling does not count.

    Args:
        model: of transformers.
    """
    config = getattr(model, "generation_config", None)
    names = ["repetition_penalty"]
    if getattr(config, "do_sample", None):
        names += ["temperature", "top_k", "top_p", "min_p"]
    found = {name: getattr(config, name, None) for name in names}
    found = {name: value for name, value in found.items() if value is not None}
    if "temperature" in names:
        found.setdefault("temperature", 1.0)
    return found


def require(engine: Engine, capability: str, feature: str) -> None:
    """Refuse a feature that needs a capability which an engine lacks.

    Args:
        engine: the engine.
        capability: the name of a boolean field of `Capabilities`.
        feature: what needs it, as the beginning of a sentence.

    Raises:
        GenerationError: the engine lacks it; the error names both.
    """
    if not getattr(engine.capabilities, capability):
        needed = capability.replace("_", " ")
        raise GenerationError(
            f"{feature} needs {needed}, which the engine {engine.name} does not give"
        )
