"""Optimized models on disk: weights as safetensors, and the recipe that made them.

A saved model is a directory with `config.json`, the tokenizer, the weights and
`truthgpt.json`. The last one says which steps were applied, with the settings
that were finally chosen: loading builds the model, lets each step put its modules
in place, fills in the weights, and applies again the steps that change only how a
model is run.

Where no step changed the weights they are `model.safetensors`, and transformers
loads the directory too. Otherwise they are `weights.safetensors` on purpose:
transformers would fill a model without these steps with them, and answer nonsense.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.initialization import no_init_weights

from truthgpt_core import optimization_calls
from truthgpt_core.optimization import (
    Optimization,
    OptimizationContext,
    OptimizationError,
    Stage,
)
from truthgpt_core.optimization_errors import described, distribution_of
from truthgpt_services.errors import ModelError
from truthgpt_services.models.loading import DTYPES, load_config, quiet
from truthgpt_services.output import MARKER, explain_write_error

logger = logging.getLogger(__name__)

FORMAT = 1
ORDINARY = "model.safetensors"
CHANGED = "weights.safetensors"
KIND = "optimized"

MakeOptimization = Callable[[str, dict[str, Any]], Optimization[Any]]
MakeContext = Callable[[str], OptimizationContext]


@dataclass(frozen=True)
class SavedStep:
    """An optimization as it was applied.

    Attributes:
        name: its canonical name.
        stage: the name of its stage, in lower case.
        settings: its options as finally chosen.
        distribution: where it came from, as "NAME VERSION"; for the error when it is missing.
    """

    name: str
    stage: str
    settings: dict[str, Any]
    distribution: str


@dataclass(frozen=True)
class Recipe:
    """What `truthgpt.json` of an optimized model holds.

    Attributes:
        source: the model it was made from, as typed.
        dtype: of the weights that no step changed.
        steps: in the order applied.
        weights_bytes: size of the weights file, which tells a truncated one.
        shared: names of tensors that are stored under another name.
    """

    source: str
    dtype: str
    steps: tuple[SavedStep, ...]
    weights_bytes: int = 0
    shared: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT
    kind: str = KIND

    @property
    def weights(self) -> str:
        """The name of the weights file."""
        changed = any(step.stage != Stage.EXECUTION.name.lower() for step in self.steps)
        return CHANGED if changed else ORDINARY


def is_saved(directory: Path) -> bool:
    """Whether a directory holds an optimized model."""
    try:
        return bool(json.loads((directory / MARKER).read_text(encoding="utf-8"))["kind"] == KIND)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_recipe(directory: Path) -> Recipe:
    """Read `truthgpt.json`.

    Raises:
        ModelError: it is missing, damaged or of a newer format.
    """
    path = directory / MARKER
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] > FORMAT:
            raise ModelError(
                f"{path} has format {raw['format']}, and this version reads up to {FORMAT}",
                hint="Update truthgpt-services.",
            )
        steps = tuple(SavedStep(**step) for step in raw.pop("steps"))
        if raw["dtype"] not in DTYPES:
            raise ValueError(f"there is no dtype {raw['dtype']}")
        return Recipe(**raw, steps=steps)
    except FileNotFoundError:
        raise ModelError(
            f"{directory} is not a model that TruthGPT saved: it has no {MARKER}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged: {error}") from error


def save(model: Any, tokenizer: Any, directory: Path, recipe: Recipe) -> None:
    """Save an optimized model; the recipe is written last.

    Args:
        model: after its steps were applied.
        tokenizer: to go with it.
        directory: exists, and is empty or being filled.
        recipe: its sizes and shared names are filled in here.

    Raises:
        OutputError: the disk is full.
    """
    tensors, shared = _unshared(model)
    try:
        with quiet():
            model.config.save_pretrained(directory)
            if getattr(model, "generation_config", None) is not None:
                model.generation_config.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
        weights = directory / recipe.weights
        save_file(tensors, weights, metadata={"format": "pt"})
        size = weights.stat().st_size
        raw = asdict(recipe) | {"weights_bytes": size, "shared": shared}
        (directory / MARKER).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise explain_write_error(error, directory) or error from error


def load(
    directory: Path,
    *,
    device: torch.device,
    make_optimization: MakeOptimization,
    make_context: MakeContext,
    run: bool = True,
) -> Any:
    """Load an optimized model.

    Args:
        directory: as `save` wrote it.
        device: where to put it.
        make_optimization: makes an optimization from its name and settings.
        make_context: makes the context for an optimization, from its name.
        run: apply the steps that only change how it is run. Not if more steps follow:
            those that change its weights come first.

    Raises:
        ModelError: something of it is missing or damaged.
        OptimizationError: an optimization that it needs is not installed.
    """
    recipe = read_recipe(directory)
    weights = directory / recipe.weights
    size = weights.stat().st_size if weights.is_file() else 0
    if size != recipe.weights_bytes:
        raise ModelError(
            f"{weights} has {size} bytes and should have {recipe.weights_bytes}: it is damaged"
        )
    steps = [_remake(step, make_optimization) for step in recipe.steps]
    config = load_config(directory)
    with quiet(), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[recipe.dtype])
    for step in steps:
        if step.stage is not Stage.EXECUTION:
            model = optimization_calls.restore(step, model, make_context(step.name))
    _fill(model, weights, recipe.shared, lambda: why_unfit(recipe.steps, steps))
    if (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    model.to(device)
    model.eval()
    for step in runnable(directory, device, make_optimization) if run else ():
        model = optimization_calls.apply(step, model, make_context(step.name)).model
    return model


def runnable(
    directory: Path, device: torch.device, make_optimization: MakeOptimization
) -> list[Optimization[Any]]:
    """Return the steps that only change how a saved model is run, less those that cannot here.

    Args:
        directory: as `save` wrote it.
        device: where the model runs.
        make_optimization: makes an optimization from its name and settings.

    Raises:
        ModelError: the recipe is missing or damaged.
        OptimizationError: an optimization that it needs is not installed.
    """
    found = []
    for step in read_recipe(directory).steps:
        optimization = _remake(step, make_optimization)
        if optimization.stage is not Stage.EXECUTION:
            continue
        verdict = optimization_calls.check(optimization, str(device))
        if verdict.ok:
            found.append(optimization)
        else:
            logger.warning("%s runs without %s: %s", directory, step.name, verdict.reason)
    return found


def _remake(step: SavedStep, make_optimization: MakeOptimization) -> Optimization[Any]:
    try:
        return make_optimization(step.name, step.settings)
    except OptimizationError as error:
        origin = f"The model was saved with {step.distribution}." if step.distribution else ""
        hint = f"{error.hint or ''} {origin}".strip()
        raise OptimizationError(error.message, hint=hint or None) from error


def weights_bytes(model: Any) -> int:
    """Bytes of a model's parameters and buffers in memory, shared ones counted once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in [*model.parameters(), *model.buffers()]
    }
    return sum(storages.values())


def _unshared(model: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    tensors: dict[str, torch.Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in first:
            shared[name] = first[key]
        else:
            first[key] = name
            tensors[name] = tensor.detach().cpu().contiguous()
    return tensors, shared


def why_unfit(saved: Sequence[SavedStep], remade: Sequence[Optimization[Any]]) -> str:
    """Return the hint for weights that do not fit the model that `restore` made ready.

    Args:
        saved: the steps of the recipe.
        remade: the same steps as they are installed here.
    """
    others, authors = [], []
    for step, optimization in zip(saved, remade, strict=True):
        if optimization.stage is Stage.EXECUTION:
            continue
        installed = distribution_of(type(optimization))
        if step.distribution and installed and step.distribution != installed:
            others.append(f"{step.name} was saved with {step.distribution}, and {installed} is")
        authors.append(described(type(optimization)))
    if others:
        return f"{others[0]} installed."
    if authors:
        return (
            f"The restore of {', '.join(authors)} has to make the same modules and tensors as its "
            "apply: tell its author."
        )
    return "The file was changed after it was saved."


def _fill(model: Any, weights: Path, shared: dict[str, str], hint: Callable[[], str]) -> None:
    wanted = set(model.state_dict())
    try:
        with safe_open(weights, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{weights} is damaged: {error}") from error
    state.update({name: state[stored] for name, stored in shared.items() if stored in state})
    if set(state) != wanted:
        odd = sorted(set(state) ^ wanted)
        raise ModelError(
            f"{weights} does not fit its recipe: {len(odd)} tensors are missing or too many, "
            f"the first is {odd[0]}",
            hint=hint(),
        )
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ModelError(f"{weights} does not fit its recipe: {reason}", hint=hint()) from error
    model.tie_weights()
