"""What a saved model predicted when it was measured: `replay.json`, which a server agrees with.

The file has the tokens of a text and, for each but the first, the log-probability of that token and
of the likeliest ones. `report.json` says what predicted them, and has the checksum of the file.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from truthgpt_core.paths import expanded, read_regular_bytes
from truthgpt_services.results.io import JSON_NAME, ReportError, read_report, write_text
from truthgpt_services.results.schema import Replay

NAME = "replay.json"

LEAST = -1e4
"""Log-probabilities below are recorded as this: JSON has no infinity, and their exponential is 0
all the same."""

_LARGEST = 1 << 22
_MOST_TOKENS = 4096
_MOST_TOP = 256
_ROUNDING = 1e-3
_HINT = (
    "Make the model again with `truthgpt optimize`, or remove its report to serve it unmeasured."
)

_Token = Annotated[int, Field(ge=0)]
_LogProbability = Annotated[float, Field(ge=LEAST, le=0.0)]


class Predictions(BaseModel):
    """What a model predicts of a text; what `replay.json` holds.

    Attributes:
        vocabulary: how many tokens the logits are of.
        ids: the tokens.
        logprobs: of each token but the first, given those before, its log-probability in nats.
        top_ids: for each token but the first the likeliest tokens in its place, the likeliest
            first, as many everywhere.
        top_logprobs: their log-probabilities.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    vocabulary: int = Field(ge=1, le=1 << 31)
    ids: list[_Token] = Field(min_length=2, max_length=_MOST_TOKENS)
    logprobs: list[_LogProbability]
    top_ids: list[Annotated[list[_Token], Field(min_length=1, max_length=_MOST_TOP)]]
    top_logprobs: list[list[_LogProbability]]

    @model_validator(mode="after")
    def _belong_together(self) -> Predictions:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        predicted = len(self.ids) - 1
        for name in ("logprobs", "top_ids", "top_logprobs"):
            if (found := len(getattr(self, name))) != predicted:
                yield f"{name} has {found} entries for {predicted} predicted tokens"
        if max(self.ids) >= self.vocabulary:
            yield f"ids has the token {max(self.ids)}, of {self.vocabulary}"
        count = len(self.top_ids[0])
        for place, (ids, logprobs) in enumerate(zip(self.top_ids, self.top_logprobs, strict=True)):
            if not len(ids) == len(logprobs) == len(set(ids)) == count:
                yield f"top_ids.{place} has not {count} different tokens, a log-probability each"
            if max(ids) >= self.vocabulary:
                yield f"top_ids.{place} has the token {max(ids)}, of {self.vocabulary}"
            if math.fsum(map(math.exp, logprobs)) > 1.0 + _ROUNDING:
                yield f"the probabilities of top_logprobs.{place} add up to more than 1"


@dataclass(frozen=True)
class Record:
    """What a saved model predicted, and what another engine may differ by.

    Attributes:
        predictions: of a text.
        made: what predicted them.
        kl_error: the standard error of the mean KL divergence in the model's report, in nats per
            token; 0 if it has none.
    """

    predictions: Predictions
    made: Replay
    kl_error: float


def write_record(
    directory: Path, predictions: Predictions, *, engine: str, kernel: str, distribution: str
) -> Replay:
    """Write `replay.json`; a reader never sees half of it.

    Args:
        directory: of the report.
        predictions: what it holds.
        engine: the name of what ran the model.
        kernel: what it says of code and processor.
        distribution: where it comes from, with its version.

    Returns:
        What the report says of it.

    Raises:
        ReportError: it cannot be written.
    """
    # Not indented: a line for each of so many numbers helps no one.
    content = predictions.model_dump_json() + "\n"
    write_text(directory / NAME, content)
    return Replay(
        tokens=len(predictions.ids),
        engine=engine,
        kernel=kernel,
        distribution=distribution,
        sha256=hashlib.sha256(content.encode()).hexdigest(),
    )


def read_record(directory: str | os.PathLike[str]) -> Record | None:
    """Read what a saved model predicted when it was measured.

    Args:
        directory: of the model and its report.

    Returns:
        It; None if the model was not measured: there is no report, or nothing was recorded.

    Raises:
        ReportError: the report or the record is damaged, or the record is missing.
    """
    folder = expanded(directory)
    if not os.path.lexists(folder / JSON_NAME):
        return None
    report = read_report(folder)
    if report.replay is None:
        return None
    path = folder / NAME
    try:
        content = read_regular_bytes(path, limit=_LARGEST)
    except FileNotFoundError:
        raise ReportError(f"There is no {path}, and the report names it", hint=_HINT) from None
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror}", hint=_HINT) from error
    if hashlib.sha256(content).hexdigest() != report.replay.sha256:
        raise ReportError(f"{path} is damaged: its checksum is not the report's", hint=_HINT)
    try:
        predictions = Predictions.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = "".join(f"{each}: " for each in [".".join(map(str, problem["loc"]))] if each)
        raise ReportError(f"{path} is damaged: {where}{problem['msg']}", hint=_HINT) from None
    measured = [each.measured for each in report.variants if each.name == report.result.variant]
    if not measured:
        raise ReportError(f"{folder / JSON_NAME} is damaged: it has no variant that is the result")
    kl_error = measured[0].quality.kl_mean_error
    # NaN of a text that is too short to tell.
    return Record(predictions, report.replay, kl_error if 0.0 < kl_error < math.inf else 0.0)
