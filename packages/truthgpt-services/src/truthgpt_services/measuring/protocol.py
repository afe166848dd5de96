"""What worker processes can be asked, typed on both sides.

`client.WorkerProcess` has each method that is a `request` here and sends it to a worker process,
where `worker.Worker` and `bench.Bench` override it with what it does.
"""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model
from pydantic_core import to_jsonable_python

from truthgpt_core.errors import TruthGPTError, did_you_mean
from truthgpt_core.event_system import (
    EventPayload,
    ModelLoaded,
    ModelSaved,
    OptimizationApplied,
    OptimizationNoted,
    OptimizationStarted,
)
from truthgpt_core.sources import ResolvedModel
from truthgpt_services.results.record import Predictions
from truthgpt_services.results.schema import Choice, Machine, MetricValue, StepCoverage

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="Requests")


class RequestError(TruthGPTError):
    """A worker was asked something that it does not know, or that does not fit its types."""


@dataclass(frozen=True)
class Converted:
    """A model as a directory of transformers, and where it was converted."""

    directory: str
    architecture: str
    machine: Machine
    versions: dict[str, str]


@dataclass(frozen=True)
class StepToBuild:
    """A step that was asked for, in the types of JSON."""

    name: str
    options: dict[str, Any]
    distribution: str = ""


@dataclass(frozen=True)
class BuiltStep:
    """What became of a step.

    Attributes:
        changed: whether any tensor (by bytes, dtype and shape) or the type of any module differs
            after it; None for a step that only changes how the model is run.
        changed_note: what was compared and how much of it differs.
    """

    seconds: float
    settings: dict[str, Any]
    coverage: StepCoverage
    notes: list[str]
    choices: list[Choice]
    changed: bool | None
    changed_note: str


@dataclass(frozen=True)
class Built:
    """What became of all steps of a model."""

    steps: list[BuiltStep]
    peak_memory_bytes: int


@dataclass(frozen=True)
class Opened:
    """A model that was loaded.

    Attributes:
        cache_bytes_per_token: keys and values of one token; None if the engine does not say.
    """

    load_seconds: float
    parameters: int
    dtype: str
    weights_bytes: int
    engine: str = "torch"
    cache_bytes_per_token: int | None = None


@dataclass(frozen=True)
class Note:
    """What an optimization noted while the model ran."""

    optimization: str
    about: str
    text: str


@dataclass(frozen=True)
class Compared:
    """How a model predicts each token of a window, beside what a reference predicted.

    Attributes:
        nll: the negative log-likelihood in nats.
        kl: KL(reference || this) in nats.
        agrees: 1 if both have the same first choice, else 0.
        flips: 1 if the first choice of one of them is the true token and that of the other is
            not, else 0.
    """

    nll: list[float]
    kl: list[float]
    agrees: list[float]
    flips: list[float]


@dataclass(frozen=True)
class LayersCompared:
    """How far a candidate is from this model after each layer.

    Attributes:
        kl: for each layer KL(this || candidate) at each token, in nats.
        missing: why that cannot be had, as a clause; empty if it can.
    """

    kl: list[list[float]]
    missing: str = ""


@dataclass(frozen=True)
class Recorded:
    """What a model predicts of a text, and what ran it.

    Attributes:
        predictions: of each token after the first.
        engine: its name.
        kernel: what the engine says of it; see `Engine.describe`.
        distribution: where the engine comes from, as "NAME VERSION"; empty if that is unknown.
    """

    predictions: Predictions
    engine: str
    kernel: str
    distribution: str


FORWARDED: dict[str, type[EventPayload]] = {
    each.event_type.name: each
    for each in (
        *(OptimizationStarted, OptimizationApplied, OptimizationNoted),
        *(ModelLoaded, ModelSaved),
    )
}
"""Events of a worker that the process which asks it emits, too, by the name of the type."""


class Requests:
    """What sends requests."""

    def begin(
        self, request: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Callable[[], R]:
        """Send a request without waiting; calling what is returned waits for the answer.

        Args:
            request: a method of this object.
            args: for it.
            kwargs: for it.
        """
        raise NotImplementedError


_declared: dict[str, Callable[..., Any]] = {}


def request(declared: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Let a method send what it is called with, and return the answer."""
    _declared[declared.__name__] = declared

    def send(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = self.begin(getattr(self, declared.__name__), *args, **kwargs)()
        return result

    functools.update_wrapper(send, declared)
    return send


class ModelRequests(Requests):
    """What has to do with the files of models."""

    @request
    def convert(self, source: ResolvedModel, device: str) -> Converted:
        """Convert a model to a transformers directory, unless the cache has it."""

    @request
    def build(
        self,
        directory: str,
        source: str,
        steps: Sequence[StepToBuild],
        output: str,
        dtype: str | None,
        device: str,
        seed: int,
        tokens: Sequence[int] = (),
        max_kl: float | None = None,
    ) -> Built:
        """Load a model, apply steps to it and save the result."""

    @request
    def open(
        self, directory: str, dtype: str | None, device: str, engine: str | None = None
    ) -> Opened:
        """Load the model to be measured."""

    @request
    def sample(self, prompt: str, new_tokens: int) -> str:
        """What the model says to a prompt, greedily."""

    @request
    def measure(self, metric: str, windows: Sequence[list[int]], seed: int) -> list[MetricValue]:
        """Measure the model that was opened with a metric, by its name."""

    @request
    def write_card(self, directory: str, report: str) -> None:
        """Complete the model card of a saved model with what was measured."""

    @request
    def was_used(self, name: str, settings: dict[str, Any]) -> bool:
        """Whether tokens since `open` ran through what a step put in place."""

    @request
    def notes(self) -> list[Note]:
        """What optimizations have noted while the model ran."""


class BenchRequests(Requests):
    """What measures the model that was opened."""

    @request
    def tokenize(self, text: str, limit: int) -> list[int]:
        """The first tokens of a text, `limit` at most."""

    @request
    def warm_up(self, ids: list[int], new_tokens: int) -> float:
        """Seconds that the first prompt and tokens take, compiling included."""

    @request
    def read_prompt(self, ids: list[int], new_tokens: int) -> float:
        """Seconds from prompt in to first token out; `decode` goes on from there."""

    @request
    def decode(self, tokens: int) -> float:
        """Seconds that so many more tokens take."""

    @request
    def peak_memory(self) -> int:
        """Highest bytes since the model was loaded."""

    @request
    def available_memory(self) -> int | None:
        """Bytes that one more process can take; None: unknown."""

    @request
    def write_reference(self, ids: list[int], path: str | None, prompt: int = 0) -> list[float]:
        """Predict each next token of a window; write all log-probabilities to a file."""

    @request
    def compare(self, ids: list[int], path: str, prompt: int = 0) -> Compared:
        """Predict the same window and compare with what `write_reference` wrote."""

    @request
    def record(self, ids: list[int]) -> Recorded:
        """Predict each next token of a text, for what runs the model later to agree with."""

    @request
    def write_layers(self, ids: list[int], path: str) -> str:
        """Write what each layer makes of a window to a file; return why not, or nothing."""

    @request
    def compare_layers(self, ids: list[int], path: str) -> LayersCompared:
        """Read what `write_layers` of a candidate wrote for the same window, by the logit lens."""


def in_json_types(value: Any) -> Any:
    """Return arguments or a result in the types of JSON, where infinities and NaN are numbers."""
    return to_jsonable_python(value, inf_nan_mode="constants")


def result_of(name: str, value: Any) -> Any:
    """Return the result of a request from the types of JSON.

    Raises:
        ValidationError: it is none.
    """
    return _types(name)[1].validate_python(value)


def perform(owner: object, name: str, arguments: dict[str, Any]) -> Any:
    """Do what is asked, and return the result in the types of JSON.

    Args:
        owner: what overrides the method; None if that is not there yet.
        name: of the request.
        arguments: in the types of JSON.

    Raises:
        RequestError: there is no such request, or the arguments do not fit its types.
    """
    if name not in _declared:
        raise RequestError(f'A worker has no request "{name}"', hint=did_you_mean(name, _declared))
    if owner is None:
        raise RequestError(f"A worker has no model to {name}", hint="Open one first.")
    try:
        fitting = _types(name)[0].model_validate(arguments)
    except ValidationError as error:
        wrong = "; ".join(f"{each['loc'][0]}: {each['msg']}" for each in error.errors())
        raise RequestError(f'The request "{name}" does not fit its types: {wrong}') from None
    given = {each: getattr(fitting, each) for each in fitting.model_fields_set}
    return in_json_types(getattr(owner, name)(**given))


@functools.cache
def _types(name: str) -> tuple[type[BaseModel], TypeAdapter[Any]]:
    """Return what checks the arguments of a request, and what checks its result."""
    hints = get_type_hints(_declared[name])
    _, *parameters = inspect.signature(_declared[name]).parameters.values()
    fields: dict[str, Any] = {
        each.name: (hints[each.name], ... if each.default is each.empty else each.default)
        for each in parameters
    }
    arguments = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
    return arguments, TypeAdapter(hints["return"])
