"""Contracts of generating text: engines, decoders, logits processors and sampling.

An `Engine` runs one model. A `Decoder` chooses which tokens come next, with as many passes
through the engine as it takes. A `LogitsProcessor` changes the scores that a token is chosen by.
Nothing here imports torch: tensors are `torch.Tensor` wherever one is named.
"""

from truthgpt_core.decoding.decoder import Choose, Decoder, LogitsProcessor
from truthgpt_core.decoding.engine import (
    Capabilities,
    Engine,
    EngineOptions,
    KVCache,
    SequenceState,
    end_tokens_of,
    generation_defaults,
    refuse_too_long,
    refuse_unknown_tokens,
    require,
)
from truthgpt_core.decoding.errors import (
    GenerationError,
    OverloadedError,
    RefusedError,
    UnavailableError,
)
from truthgpt_core.decoding.sampling_params import (
    DEFAULT_NEW_TOKENS,
    LONGEST_CONSTRAINT,
    SAMPLING_OPTIONS,
    SamplingParams,
    TokenLogprobs,
)
from truthgpt_core.decoding.text import AnswerText, StopStrings, overlap

__all__ = [
    "DEFAULT_NEW_TOKENS",
    "LONGEST_CONSTRAINT",
    "SAMPLING_OPTIONS",
    "AnswerText",
    "Capabilities",
    "Choose",
    "Decoder",
    "Engine",
    "EngineOptions",
    "GenerationError",
    "KVCache",
    "LogitsProcessor",
    "OverloadedError",
    "RefusedError",
    "SamplingParams",
    "SequenceState",
    "StopStrings",
    "TokenLogprobs",
    "UnavailableError",
    "end_tokens_of",
    "generation_defaults",
    "overlap",
    "refuse_too_long",
    "refuse_unknown_tokens",
    "require",
]
