"""Contracts of measuring: metrics, criteria of acceptance, and sections of a report.

A `Metric` measures a model beyond what every report has. A criterion, the hook `judge_step`,
objects to a step. A `ReportSection`, from the hook `report_sections`, is shown with the results.
Errors that an author raises derive from `TruthGPTError`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from truthgpt_core.decoding import Engine


@dataclass(frozen=True, slots=True)
class Quantity:
    """One number that was measured.

    Attributes:
        name: what it is, as a row of a table is called.
        value: the number.
        unit: its unit; empty if it has none.
        error: its standard error, in the same unit; None if it is not known.
        better: whether more or less of it is better; empty if neither is.
        note: how it is measured, in a sentence.
    """

    name: str
    value: float
    unit: str = ""
    error: float | None = None
    better: Literal["more", "less", ""] = ""
    note: str = ""


class Metric(ABC):
    """Measures a model, in the process that holds it.

    It is registered in `factories["metric_factory"]` and made without arguments, when a user asks
    for it by name: `truthgpt optimize --metric NAME`.

    Attributes:
        name: what the user types after `--metric`; also its name in the factory.
        requires: the names of the `Capabilities` that it needs of an engine.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ("logits",)

    @abstractmethod
    def measure(
        self, engine: Engine, tokenizer: Any, windows: Sequence[Sequence[int]], seed: int
    ) -> Iterable[Quantity]:
        """Measure the model.

        Args:
            engine: runs it; has all that `requires` names.
            tokenizer: of transformers.
            windows: the tokens of the text that quality is measured on, cut into windows.
            seed: for anything random.

        Returns:
            What was measured; each quantity has a name of its own.
        """


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one variant, as criteria are given it.

    Attributes:
        name: "baseline", or its steps joined by " + ".
        quantities: by name: `decode_tokens_per_second`, `prefill_tokens_per_second`,
            `first_token_seconds`, `load_seconds`, `warmup_seconds` (medians), `weights_bytes`,
            `saved_bytes`, `peak_memory_bytes`, `build_peak_memory_bytes`,
            `cache_bytes_per_token` if the engine says it, the fields of the report's `quality` that
            are known, and what metrics found as "METRIC.QUANTITY".
    """

    name: str
    quantities: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ReportSection:
    """A part of a report, below the tables that every report has.

    Attributes:
        title: its heading.
        rows: pairs of a label and a text.
        text: a paragraph above the rows; may be empty.
    """

    title: str
    rows: Sequence[tuple[str, str]] = field(default=())
    text: str = ""
