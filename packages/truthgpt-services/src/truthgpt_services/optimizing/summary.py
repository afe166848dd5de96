"""What a run came to, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from truthgpt_services.report.schema import Ratio, Step, Variant


def summary(variants: Sequence[Variant], steps: Sequence[Step], kept: str) -> str:
    """Say what became of the model.

    Args:
        variants: the baseline first.
        steps: that were asked for.
        kept: the name of the variant that is the result.
    """
    baseline = variants[0]
    result = next(variant for variant in variants if variant.name == kept)
    if not steps:
        return "The model was measured as it is: no step was asked for."
    if result is baseline:
        return "No step was kept: the output is the model as it was."
    quality = result.measured.quality
    if not quality.is_finite:
        return f"{kept} predicts what is no number, and was kept because all steps were to be."
    size = result.measured.weights_bytes / baseline.measured.weights_bytes
    speed: Ratio = result.decode_ratio
    decodes = (
        f"decodes {speed.median:.2f}× as fast as the baseline"
        if speed.differs
        else "decodes no faster or slower than the baseline"
    )
    return (
        f"{kept} {decodes}, with weights {size:.2f}× the size, "
        f"KL {quality.kl_mean:.4f} "
        f"and the same first choice for {quality.top1_agreement:.1%} of tokens."
    )
