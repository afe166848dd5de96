"""Contracts of generating text: engines, decoders, logits processors and sampling.

An `Engine` runs one model. A `Decoder` chooses which tokens come next, with as many passes
through the engine as it takes. A `LogitsProcessor` changes the scores that a token is chosen by.
Nothing here imports torch: tensors are `torch.Tensor` wherever one is named.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, ClassVar, Protocol

from truthgpt_core.errors import TruthGPTError

DEFAULT_NEW_TOKENS = 128


class GenerationError(TruthGPTError):
    """Text cannot be generated as asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen, and how many.

    Attributes:
        max_new_tokens: how many tokens are generated at most.
        temperature: 0 takes the likeliest token; higher is more random.
        top_k: choose among this many likeliest tokens; 0 for all.
        top_p: choose among the likeliest tokens that together have this probability.
        seed: of the random choice.
        stop: the text ends before the first of these strings.

    Raises:
        GenerationError: one of them is out of range or of another type.
    """

    max_new_tokens: int = DEFAULT_NEW_TOKENS
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            if not isinstance(getattr(self, name), Real):
                raise GenerationError(f"{name} is {getattr(self, name)!r}: it must be a number")
        for name in ("max_new_tokens", "top_k", "seed"):
            if not isinstance(getattr(self, name), Integral):
                raise GenerationError(f"{name} is {getattr(self, name)!r}: it must be an integer")
        if self.max_new_tokens < 1:
            raise GenerationError(f"max_new_tokens is {self.max_new_tokens}: it must be 1 or more")
        if not 0.0 <= self.temperature < float("inf"):
            raise GenerationError(f"temperature is {self.temperature}: it must be 0 or more")
        if self.top_k < 0:
            raise GenerationError(f"top_k is {self.top_k}: it must be 0 or more")
        if not 0.0 < self.top_p <= 1.0:
            raise GenerationError(f"top_p is {self.top_p}: it must be above 0 and at most 1")
        if not -(2**63) <= self.seed < 2**64:
            raise GenerationError(f"seed is {self.seed}: it must fit into 64 bits")
        object.__setattr__(self, "stop", _stop_strings(self.stop))


def _stop_strings(given: object) -> tuple[str, ...]:
    listed = (given,) if isinstance(given, str) else given
    if not isinstance(listed, list | tuple) or not all(isinstance(each, str) for each in listed):
        raise GenerationError(f"stop is {given!r:.80}: it must be a text or a list of texts")
    if "" in listed:
        raise GenerationError("stop has an empty text, which ends everything")
    return tuple(listed)


SAMPLING_OPTIONS = tuple(each.name for each in fields(SamplingParams))
"""The names of the generation options that every engine knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an engine can do. A feature that needs more is refused by name.

    Attributes:
        logits: it gives the scores of all tokens; without, it chooses tokens itself, and
            decoders, logits processors and measurements of quality cannot be used with it.
        prompt_logprobs: it gives them for every token of a prompt, and not only after the last.
        crop: the last tokens of a sequence can be removed.
        masks: tokens can be ruled out before one is chosen.
        rows: how many sequences it takes in one call; None for any number.
        hidden_cache: it keeps its key-value cache to itself, and the hook `make_cache` is not
            called for it.
    """

    logits: bool = True
    prompt_logprobs: bool = True
    crop: bool = True
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
    """

    length: int = 0


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
        tokenizer: with the interface of those of transformers; None to take the one that is
            stored with the model, or none if there is no such.
    """

    name: ClassVar[str]
    capabilities: Capabilities = Capabilities()
    context_length: int | None = None
    vocabulary_size: int | None = None
    end_tokens: frozenset[int] = frozenset()
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
        """
        raise GenerationError(f"The engine {self.name} gives logits, and chooses no tokens")

    def describe(self) -> Mapping[str, Any]:
        """Return what reports say of the model.

        Returns:
            `parameters` (a count), `dtype` (a name), `weights_bytes` (in memory); an engine
            leaves out what it does not know.
        """
        return {}


Choose = Callable[[Any, Sequence[int]], int]
"""`choose(logits, tokens)` returns the next token, from logits of shape (vocabulary,) and the
tokens so far, prompt included; it applies the logits processors and samples."""


class Decoder(ABC):
    """A strategy of decoding one sequence.

    Attributes:
        name: what messages call it.
        requires: the names of the `Capabilities` that it needs of an engine.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ("logits",)

    @abstractmethod
    def decode(
        self, engine: Engine, state: SequenceState, prompt: Sequence[int], choose: Choose
    ) -> Iterator[Sequence[int]]:
        """Generate tokens until the caller stops asking.

        Args:
            engine: has all that `requires` names.
            state: an empty sequence, with room for the prompt and all tokens that are asked for.
                Drafts may need no more.
            prompt: its tokens, at least one.
            choose: chooses a token.

        Yields:
            One or more tokens that come next.
        """


class LogitsProcessor(ABC):
    """Changes the scores that the next token is chosen by.

    It is registered in `factories["logits_processor_factory"]`, and made with the generation
    options that it declares. A request that gives none of them does not use it.

    Attributes:
        options: names of generation options and what they mean, for help and error messages.
    """

    options: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def __call__(self, logits: Any, tokens: Sequence[int]) -> Any:
        """Return changed logits.

        Args:
            logits: of the next token, float32 of shape (vocabulary,); not to be changed in place.
            tokens: the sequence so far, prompt included.

        Returns:
            Logits of the same shape; `-inf` rules a token out.
        """


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
