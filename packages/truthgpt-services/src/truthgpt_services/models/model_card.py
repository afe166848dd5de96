"""The model card of a saved model: `README.md`, as the Hugging Face hub reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from truthgpt_services.models.recipe import Recipe
    from truthgpt_services.results.schema import Report

CARD = "README.md"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def write_model_card(directory: Path, recipe: Recipe, report: Report | None = None) -> None:
    """Write the model card of a saved model, in the place of an earlier one.

    Args:
        directory: of the saved model.
        recipe: how it was made.
        report: what was measured; its sentence is quoted. None where nothing was.

    Raises:
        OSError: it cannot be written.
    """
    (directory / CARD).write_text(_card(recipe, report), encoding="utf-8")


def _card(recipe: Recipe, report: Report | None) -> str:
    steps = [
        f"- {_code(step.name)}"
        + (f" of {_code(step.distribution)}" if step.distribution else "")
        + (f", with {_code(_settings(step.settings))}" if step.settings else "")
        for step in recipe.steps
    ]
    measurement = "It was not measured."
    if report is not None:
        measurement = f"{_plain(report.result.summary)}\n\n`report.html` has all figures."
    parts = [
        _front_matter(recipe),
        f"# {_plain(recipe.source)}, optimized by TruthGPT",
        f"Made from {_code(recipe.source)}; weights that no step changed are {recipe.dtype}.",
        "## Steps",
        "\n".join(steps) or "None: the weights are those of the source.",
        "## Figures",
        measurement,
        "## How to load it",
        _loading(recipe),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(recipe: Recipe) -> str:
    about: dict[str, object] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["truthgpt", *(_plain(step.name) for step in recipe.steps)],
    }
    # A path or a package is not a model of the hub, which would refuse the card.
    if _HUB_ID.fullmatch(recipe.source) and not Path(recipe.source).exists():
        about["base_model"] = recipe.source
        about["base_model_relation"] = "quantized" if recipe.changes_weights else "finetune"
    # JSON is YAML.
    lines = [f"{key}: {json.dumps(value)}" for key, value in sorted(about.items())]
    return "\n".join(["---", *lines, "---"])


def _loading(recipe: Recipe) -> str:
    first = "import truthgpt_services  # before the model is loaded\n" * recipe.changes_weights
    return (
        "    truthgpt generate DIRECTORY\n\nor, in Python,\n\n```python\n"
        f"{first}from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("DIRECTORY")\n'
        'tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")\n```'
    )


def _settings(settings: object) -> str:
    text = json.dumps(settings)
    return text if len(text) <= 500 else f"{text[:500]} ..."


def _plain(text: str) -> str:
    """Return a text in one line, without what Markdown, HTML or a terminal would act on."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", line)


def _code(text: str) -> str:
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return f"`{line.replace('`', chr(39))}`"
