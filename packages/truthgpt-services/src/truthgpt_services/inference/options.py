"""From the options of a request to what chooses its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from truthgpt_core.decoding import (
    SAMPLING_OPTIONS,
    Decoder,
    Engine,
    GenerationError,
    LogitsProcessor,
    SamplingParams,
    require,
)
from truthgpt_core.errors import did_you_mean
from truthgpt_core.plugin_system import PluginManager
from truthgpt_services.inference.constraints import make_constraint
from truthgpt_services.inference.decoder import TokenByToken
from truthgpt_services.inference.sampling import Sampler, refuse_unknown_bias
from truthgpt_services.inference.speculation import Speculative

_SEEDS = 2**64


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What is asked of a prompt.

    Attributes:
        engine: runs the model.
        params: how tokens are chosen, and how many.
        end: tokens that end the text.
        others: options of decoders and logits processors, by name.
        decoder: the strategy that they are for, to look at; each text gets one of its own.
        plugins: whose hooks and components are called.
    """

    engine: Engine
    params: SamplingParams
    end: frozenset[int]
    others: Mapping[str, Any]
    decoder: Decoder
    plugins: PluginManager

    def numbered(self, index: int) -> RequestOptions:
        """Return those of one of the texts of a prompt."""
        seed = self.params.seed + index
        params = replace(self.params, n=1, seed=seed - _SEEDS if seed >= _SEEDS else seed)
        return replace(self, params=params)

    def sampler(self, prompt: Sequence[int], tokenizer: Any) -> Sampler:
        """Return what chooses the tokens of one text.

        Args:
            prompt: its tokens.
            tokenizer: of the model, for constraints.

        Raises:
            GenerationError: the constraint cannot be followed; see `make_constraint`.
        """
        begin = make_constraint(self.params, tokenizer, self.end)
        return Sampler(
            self.params,
            prompt_length=len(prompt),
            end=self.end,
            constraint=begin() if begin else None,
            device=getattr(self.engine, "device", "cpu"),
            processors=_processors(self.plugins, dict(self.others))[0],
        )

    def own_decoder(self) -> Decoder | None:
        """Return a strategy for one text; None for token by token."""
        # A plugin's may be derived from it.
        if type(self.decoder) is TokenByToken:
            return None
        return _decoder(self.plugins, self.engine, dict(self.others))


def read_options(
    options: Mapping[str, Any] | None, engine: Engine, tokenizer: Any, plugins: PluginManager
) -> RequestOptions:
    """Read what a user wants of a prompt.

    Args:
        options: those of `SamplingParams`, and of the decoders and logits processors of plugins.
            What is left out is as the model's authors suggest (`Engine.defaults`), or else as
            `SamplingParams` has it.
        engine: runs the model.
        tokenizer: says which token ends a text, beside the engine.
        plugins: whose hooks and components are asked.

    Raises:
        GenerationError: an option is unknown or out of range, or the engine cannot do it.
    """
    if options is not None and not isinstance(options, Mapping):
        raise GenerationError(f"The options are {options!r}: they must be a mapping")
    given = {str(name): value for name, value in (options or {}).items()}
    chosen = {name: given.pop(name) for name in SAMPLING_OPTIONS if name in given}
    # Several texts are several requests, whatever the engine.
    if unknown := sorted(chosen.keys() - engine.options - {"n"}):
        raise GenerationError(
            f'The engine {engine.name} has no option "{unknown[0]}"',
            hint=f"It has: {', '.join(sorted(engine.options))}.",
        )
    params = SamplingParams(**{**engine.defaults, **chosen})
    if params.logit_bias and engine.vocabulary_size is not None:
        refuse_unknown_bias(max(params.logit_bias), engine.vocabulary_size)
    others = dict(given)
    decoder = _decoder(plugins, engine, given)
    processors, left = _processors(plugins, given)
    if left:
        _refuse(next(iter(left)), plugins)
    if engine.capabilities.logits:
        for capability in decoder.requires:
            require(engine, capability, f'The decoder "{decoder.name}"')
    elif others:
        require(engine, "logits", f'The option "{next(iter(others))}"')
    if processors:
        require(engine, "masks", f'The option "{next(iter(others))}"')
    if engine.capabilities.logits and params.is_constrained:
        require(engine, "masks", "A constraint")
    if params.prompt_logprobs is not None:
        require(engine, "prompt_logprobs", 'The option "prompt_logprobs"')
        # The prompt is scored in passes that no decoder takes. Guessing changes no text.
        if isinstance(decoder, Speculative):
            decoder = TokenByToken()
    end = engine.end_tokens
    eos = getattr(tokenizer, "eos_token_id", None)
    if isinstance(eos, int):
        end |= {eos}
    return RequestOptions(engine, params, end, others, decoder, plugins)


def _decoder(plugins: PluginManager, engine: Engine, given: dict[str, Any]) -> Decoder:
    """Make the strategy that some options are for, and take these out."""
    made: Decoder | None = plugins.hooks.make_decoder(engine=engine, options=given)
    return made or TokenByToken()


def _kinds(plugins: PluginManager) -> dict[str, type[LogitsProcessor]]:
    factory = plugins.factories["logits_processor_factory"]
    return {name: factory.get_class(name) for name in factory.names()}


def _processors(
    plugins: PluginManager, given: dict[str, Any]
) -> tuple[list[LogitsProcessor], dict[str, Any]]:
    """Return the logits processors that some options are for, and the other options."""
    factory = plugins.factories["logits_processor_factory"]
    made, left = [], dict(given)
    for name, kind in _kinds(plugins).items():
        own = {option: left.pop(option) for option in kind.options if option in left}
        if own:
            made.append(factory.create(name, **own))
    return made, left


def _refuse(option: str, plugins: PluginManager) -> None:
    kinds = _kinds(plugins).values()
    known = [*SAMPLING_OPTIONS, *(each for kind in kinds for each in kind.options)]
    raise GenerationError(
        f'There is no option "{option}" for generating',
        hint=did_you_mean(option, known) or f"Known: {', '.join(known)}.",
    )
