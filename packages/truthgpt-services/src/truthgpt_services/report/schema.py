"""What `report.json` holds, in version 1.

`docs/report.md` explains it, and `docs/report.schema.json` is it as a JSON Schema.

Within a version, fields are only ever added. Times are in seconds, sizes in bytes,
rates in tokens per second; a ratio is always candidate / reference.
"""

from __future__ import annotations

import enum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Literal[1] = 1


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(_Record):
    """Where it was measured."""

    cpu: str
    cores: int = Field(description="logical cores that the process may use")
    threads: int = Field(description="threads that torch used")
    cpu_capability: str = Field(description="the instruction set torch chose, such as AVX2")
    memory_bytes: int
    accelerators: list[str] = Field(description="names of GPUs that torch sees")
    device: str = Field(description="where the model ran, in torch's notation")
    system: str
    python: str


class Source(_Record):
    """The model that everything is measured against."""

    spec: str = Field(description="as the person typed it")
    kind: str = Field(description="directory, gguf, package or hub")
    file_bytes: int = Field(description="size of the source's weight files")
    architecture: str
    parameters: int
    dtype: str = Field(description="dtype of the baseline's weights")
    dtype_is_native: bool = Field(description="false if --dtype asked for another one")


class Text(_Record):
    """The text that quality was measured on."""

    name: str
    sha256: str
    tokens: int = Field(description="tokens predicted in one forward pass per window")
    window: int = Field(description="tokens in a window")
    decode_tokens: int = Field(description="tokens predicted one at a time, as generation does")


class Gate(_Record):
    """The bounds that a step has to keep."""

    max_kl: float = Field(description="mean KL divergence to the baseline, nats per token")
    max_perplexity_ratio: float
    min_gain: float = Field(description="how much faster or smaller it must be, 0.02 is 2 %")


class Settings(_Record):
    """How it was measured."""

    rounds: int = Field(description="times that the workers took turns")
    prompt_tokens: int
    new_tokens: int
    confidence: float = Field(description="of the bootstrap intervals")
    gate: Gate


class Samples(_Record):
    """One quantity, measured once in each round."""

    median: float
    low: float = Field(description="lower end of the bootstrap interval of the median")
    high: float
    values: list[float]


class Ratio(_Record):
    """Candidate / reference, from pairs measured in the same round."""

    median: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """False if the interval spans 1, or is none: no difference can be told."""
        return self.low > 1.0 or self.high < 1.0


class Quality(_Record):
    """How the model predicts the text, and how far from the baseline.

    The first block is measured in forward passes over whole windows, as a prompt
    is read; `decode_*` one token at a time against the cache, as text is
    generated, which can take other kernels.
    """

    perplexity: float
    kl_mean: float = Field(description="KL(baseline || this), nats per token; 0 for the baseline")
    kl_mean_error: float = Field(description="standard error of kl_mean")
    kl_p999: float = Field(description="99.9th percentile over tokens")
    top1_agreement: float = Field(description="share of tokens with the baseline's first choice")
    decode_kl_mean: float
    decode_top1_agreement: float


class Measurements(_Record):
    """Everything measured of one variant in its own process."""

    load_seconds: float
    warmup_seconds: float = Field(description="first prompt and tokens, compiling included")
    decode_tokens_per_second: Samples
    prefill_tokens_per_second: Samples
    first_token_seconds: Samples = Field(description="prompt in to first token out, when warm")
    weights_bytes: int = Field(description="parameters and buffers in memory, shared ones once")
    saved_bytes: int = Field(description="weight files of the saved model; 0 for the baseline")
    peak_memory_bytes: int = Field(
        description="highest resident memory of the process while it ran the model, "
        "on a GPU the highest allocated"
    )
    build_peak_memory_bytes: int = Field(
        description="the same while it was made; 0 for the baseline"
    )
    quality: Quality
    sample: str = Field(description="greedy continuation of the sample prompt")


class Variant(_Record):
    """A model that was measured: the baseline, or what some steps made of it."""

    name: str = Field(description='"baseline", or its steps joined by " + "')
    steps: list[str]
    measured: Measurements
    decode_ratio: Ratio = Field(description="decode speed against the baseline")
    prefill_ratio: Ratio = Field(description="prefill speed against the baseline")


class Outcome(enum.StrEnum):
    """What became of a step."""

    KEPT = "kept"
    TAKEN_BACK = "taken back"
    NOT_APPLIED = "not applied"
    FAILED = "failed"


class Skipped(_Record):
    """A layer that a step left alone."""

    name: str
    reason: str


class StepCoverage(_Record):
    """What a step changed and what it did not."""

    unit: str
    covered: int
    total: int
    skipped: list[Skipped]


class Step(_Record):
    """One optimization that was asked for, and what became of it."""

    name: str
    distribution: str = Field(description="where it comes from, with its version")
    options: dict[str, Any]
    outcome: Outcome
    reason: str = Field(description="one sentence that says why")
    seconds: float = Field(
        description="applying it; what it does at first use is in warmup_seconds"
    )
    coverage: StepCoverage | None
    notes: list[str]
    variant: str | None = Field(description="the variant that shows it; None if there is none")
    against: str | None = Field(description="the variant it was judged against")
    decode_ratio: Ratio | None = Field(description="decode speed against that variant")
    prefill_ratio: Ratio | None


class Result(_Record):
    """What was left in the output directory."""

    variant: str
    steps: list[str]
    summary: str


class Report(_Record):
    """A whole run of `truthgpt optimize`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    created: str = Field(description="ISO 8601, UTC")
    command: list[str]
    seed: int
    sample_prompt: str
    machine: Machine
    versions: dict[str, str]
    source: Source
    text: Text
    settings: Settings
    variants: list[Variant] = Field(description="the baseline first, then in the order measured")
    steps: list[Step] = Field(description="in the order applied")
    result: Result

    def variant(self, name: str) -> Variant:
        """Return the variant of this name."""
        return next(variant for variant in self.variants if variant.name == name)
