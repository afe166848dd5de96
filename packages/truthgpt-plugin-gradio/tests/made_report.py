"""A report of a run, with the least that a report can have."""

from __future__ import annotations

from typing import Any

from truthgpt_services.results.schema import Report

_RATE = {"median": 10.0, "low": 9.0, "high": 11.0, "values": [9.0, 10.0, 11.0]}
_ONE = {"median": 1.0, "low": 0.9, "high": 1.1}
_QUALITY = {
    "perplexity": 10.0,
    "kl_mean": 0.0,
    "kl_mean_error": 0.0,
    "kl_p999": 0.0,
    "top1_agreement": 1.0,
    "decode_kl_mean": 0.0,
    "decode_top1_agreement": 1.0,
}


def made_report(**changes: Any) -> Report:
    """Return a report in which nothing was accepted.

    Args:
        changes: fields of the report that are other ones.
    """
    measured = {
        "load_seconds": 1.0,
        "warmup_seconds": 1.0,
        "decode_tokens_per_second": _RATE,
        "prefill_tokens_per_second": _RATE,
        "first_token_seconds": _RATE,
        "weights_bytes": 1000,
        "saved_bytes": 0,
        "peak_memory_bytes": 2000,
        "build_peak_memory_bytes": 0,
        "quality": _QUALITY,
        "sample": "Once upon a time",
    }
    gate = {"max_kl": 0.05, "max_perplexity_ratio": 1.02, "min_gain": 0.02}
    report = {
        "created": "2026-11-29T12:00:00+00:00",
        "command": ["truthgpt", "optimize"],
        "seed": 0,
        "sample_prompt": "Once",
        "machine": {
            "cpu": "A processor",
            "cores": 2,
            "threads": 2,
            "cpu_capability": "AVX2",
            "memory_bytes": 1000,
            "accelerators": [],
            "device": "cpu",
            "system": "Linux",
            "python": "3.11",
        },
        "versions": {"torch": "2.13.0"},
        "source": {
            "spec": "a/model",
            "kind": "directory",
            "file_bytes": 1000,
            "architecture": "LlamaForCausalLM",
            "parameters": 1000,
            "dtype": "float32",
            "dtype_is_native": True,
        },
        "text": {"name": "text", "sha256": "0", "tokens": 9, "window": 9, "decode_tokens": 9},
        "settings": {
            "rounds": 3,
            "prompt_tokens": 4,
            "new_tokens": 4,
            "confidence": 0.95,
            "gate": gate,
        },
        "variants": [
            {
                "name": "baseline",
                "steps": [],
                "measured": measured,
                "decode_ratio": _ONE,
                "prefill_ratio": _ONE,
            }
        ],
        "steps": [],
        "result": {"variant": "baseline", "steps": [], "summary": "Nothing was accepted."},
    }
    return Report.model_validate(report | changes)
