"""What `report.json` holds, in version 1.

`docs/report.md` explains it, and `docs/report.schema.json` is it as a JSON Schema.

Within a version, fields are only ever added. One that was added has a default, which
is what an older report, that lacks it, is read with. Times are in seconds, sizes in
bytes, rates in tokens per second; a ratio is always candidate / reference.
"""

from __future__ import annotations

import enum
import math
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

    spec: str = Field(description="as the user typed it")
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
    gain: Literal["any", "speed", "size"] = Field("any", description="what counts as a gain")
    max_flips: float | None = Field(None, description="share of tokens; None: no bound")
    keep_all: bool = Field(False, description="steps are accepted whatever was measured")
    max_slowdown: float | None = Field(
        None,
        description="how much slower it may read prompts or decode, beyond noise; 0.05 is 5 %, "
        "None: no bound",
    )


class Settings(_Record):
    """How it was measured."""

    rounds: int = Field(description="times that the workers of one launch take turns")
    prompt_tokens: int
    new_tokens: int
    confidence: float = Field(
        description="of the intervals of ratios, over all metrics and looks together"
    )
    launches: int = Field(1, description="processes of each variant that are measured at least")
    max_launches: int = Field(1, description="the same at most, while the interval is undecided")
    closely: bool = Field(
        True, description="false if there were too few rounds or launches to claim a speed"
    )
    gate: Gate


class Samples(_Record):
    """One quantity, measured once in each round of each launch."""

    median: float
    low: float = Field(description="lower end of the interval of the median")
    high: float
    values: list[float]
    launches: list[int] = Field(
        [], description="how many of the values come from each process; empty: all from one"
    )


class Ratio(_Record):
    """Candidate / reference, from pairs measured in the same round of the same launch."""

    median: float
    low: float
    high: float
    launches: list[float] = Field(
        [], description="the median ratio in each launch, which the interval is made from"
    )

    @property
    def differs(self) -> bool:
        """False if the interval spans 1, or is none: no difference can be told."""
        return self.low > 1.0 or self.high < 1.0


class Quality(_Record):
    """How the model predicts the text, and how far from the baseline.

    The first block is measured in forward passes over whole windows, as a prompt
    is read; `decode_*` one token at a time against the cache, as text is
    generated, which can take other kernels. Each `_error` is a standard error that
    allows for neighboring tokens being alike.
    """

    perplexity: float
    kl_mean: float = Field(description="KL(baseline || this), nats per token; 0 for the baseline")
    kl_mean_error: float = Field(description="standard error of kl_mean")
    kl_p999: float = Field(description="99.9th percentile over tokens")
    top1_agreement: float = Field(description="share of tokens with the baseline's first choice")
    decode_kl_mean: float
    decode_top1_agreement: float
    perplexity_error: float | None = None
    perplexity_ratio: float | None = Field(None, description="this / baseline, on the same tokens")
    perplexity_ratio_error: float | None = None
    kl_p999_error: float | None = None
    top1_agreement_error: float | None = None
    flips: float | None = Field(
        None,
        description="share of tokens at which one of baseline and this has the true next "
        "token as its first choice and the other has not",
    )
    flips_error: float | None = None
    decode_perplexity: float | None = None
    decode_perplexity_error: float | None = None
    decode_perplexity_ratio: float | None = None
    decode_perplexity_ratio_error: float | None = None
    decode_kl_mean_error: float | None = None
    decode_kl_p999: float | None = None
    decode_kl_p999_error: float | None = None
    decode_top1_agreement_error: float | None = None
    decode_flips: float | None = None
    decode_flips_error: float | None = None

    @property
    def is_finite(self) -> bool:
        """False if the model predicts what is not finite, or rules out what is true."""
        return all(map(math.isfinite, (self.perplexity, self.kl_mean, self.decode_kl_mean)))


class MetricValue(_Record):
    """A number that a metric of a plugin measured."""

    metric: str = Field(description="the name of the metric")
    name: str
    value: float
    unit: str = ""
    error: float | None = Field(None, description="standard error, in the same unit")
    better: Literal["more", "less", ""] = ""
    note: str = Field("", description="how it is measured, in a sentence")


class Measurements(_Record):
    """Everything measured of one variant in its own process."""

    engine: str = Field("torch", description="what ran it")
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
    sample: str = Field(
        description="what the model answers to the sample prompt, or continues it with, greedily"
    )
    metrics: list[MetricValue] = Field([], description="of `--metric`")
    cache_bytes_per_token: int | None = Field(
        None, description="keys and values of one token in memory; None: the engine does not say"
    )


class LayerDivergence(_Record):
    """How far a variant is from the baseline after one decoder layer, by the logit lens."""

    layer: int = Field(description="1 is the first; the last one's are the real predictions")
    kl_mean: float = Field(description="KL(baseline || this), nats per token")
    kl_mean_error: float = Field(description="standard error of kl_mean")


class Variant(_Record):
    """A model that was measured: the baseline, or what some steps made of it."""

    name: str = Field(description='"baseline", or its steps joined by " + "')
    steps: list[str]
    measured: Measurements
    decode_ratio: Ratio = Field(description="decode speed against the baseline")
    prefill_ratio: Ratio = Field(description="prefill speed against the baseline")
    layers: list[LayerDivergence] | None = Field(
        None, description="after each decoder layer; None for the baseline, or if it cannot be told"
    )
    layers_missing: str = Field("", description="why there are no layers; empty if there are")


class Outcome(enum.StrEnum):
    """What became of a step."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    UNDECIDED = "cannot tell"
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


class Choice(_Record):
    """What a step chose for one layer after trying it."""

    name: str
    choice: str = Field(description="what it is made of, as the step's options write it")
    divergence: float = Field(
        description="mean KL in nats per token if this layer alone is changed as much as can be"
    )


class BreakEven(_Record):
    """When faster decoding has gained the seconds that a step costs at first."""

    extra_seconds: float = Field(
        description="applying it, and warming up beyond what it is judged against"
    )
    tokens: int | None = Field(description="decoded tokens that gain them; None: never")
    fewest: int | None = Field(description="the same at the upper end of the speed's interval")
    most: int | None = Field(description="the same at its lower end")


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
    break_even: BreakEven | None = Field(None, description="None if it was not measured")
    choices: list[Choice] = Field(
        [], description="what was chosen for each layer, in the model's order, if layers were tried"
    )
    overruled: bool = Field(
        False, description="accepted only because all were to be; the reason says why not"
    )
    reused: str = Field(
        "",
        description="when it was measured, ISO 8601, UTC, if that was in an earlier run, which was "
        "interrupted; empty: in this one",
    )
    costs: list[str] = Field(
        [], description="what got worse beyond noise, each a clause with its figure"
    )


class Control(_Record):
    """The baseline against itself, in two processes: what no difference looks like here."""

    decode_ratio: Ratio
    prefill_ratio: Ratio


class Load(_Record):
    """What other programs did on this machine, in CPU cores that they kept busy."""

    before: float | None = Field(description="before anything was loaded; None: unknown")
    median: float | None = Field(description="while speed was measured, over launches")
    highest: float | None
    cores: int
    warning: str = Field("", description="a sentence if it was too busy for small differences")


class Result(_Record):
    """What was left in the output directory."""

    variant: str
    steps: list[str]
    summary: str


class Replay(_Record):
    """What the result predicted, in `replay.json`, and on what, for a server to agree with."""

    tokens: int = Field(description="of the text that was predicted")
    engine: str = Field(description="what ran the model")
    kernel: str = Field(
        description="code and processor, as far as rounding depends on them; empty: the engine "
        "does not say"
    )
    distribution: str = Field(
        description="where the engine comes from, with its version; empty: unknown"
    )
    sha256: str = Field(description="of replay.json, in hexadecimal")


class Section(_Record):
    """A part of the report that a plugin added."""

    title: str
    text: str = ""
    rows: list[tuple[str, str]] = Field([], description="pairs of a label and a text")


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
    control: Control | None = Field(None, description="None if it was not measured")
    load: Load | None = None
    sections: list[Section] = Field([], description="of plugins")
    replay: Replay | None = Field(None, description="None if nothing was recorded")
    replay_missing: str = Field("", description="why nothing was recorded, if that went wrong")

    def variant(self, name: str) -> Variant:
        """Return the variant of this name."""
        return next(variant for variant in self.variants if variant.name == name)
