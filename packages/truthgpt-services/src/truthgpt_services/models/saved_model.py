"""Optimized models on disk: weights as safetensors, and the recipe that made them.

A saved model is a directory with `config.json`, the tokenizer, the weights, a model card and
`truthgpt.json`. The last one says which steps were applied, with the settings
that were finally chosen: loading builds the model, lets each step put its modules
in place, compares them with the weights file, fills them in, and applies again the steps that
change only how a model is run.

Where no step changed the weights they are `model.safetensors`, and transformers
loads the directory too. Otherwise they are `weights.safetensors` on purpose: transformers would
fill a model without these steps with them, and answer nonsense. With `import truthgpt_services`
it loads them as well, see `transformers_integration`; without, `config.json` makes it say so.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.initialization import no_init_weights

from truthgpt_core.optimization import (
    Optimization,
    OptimizationContext,
    OptimizationError,
    Stage,
    calls,
)
from truthgpt_core.optimization.errors import described, distribution_of
from truthgpt_core.paths import file_sha256
from truthgpt_services.models.loading import DTYPES, load_config, quiet
from truthgpt_services.models.model_card import write_model_card
from truthgpt_services.models.recipe import Recipe, SavedStep, is_saved, read_recipe
from truthgpt_services.models.safetensors_files import SafetensorsWriter
from truthgpt_services.models.weights_file import Skeleton, WeightsFile
from truthgpt_services.storage.atomic import MARKER, explained_writing, share_as_umask_says

logger = logging.getLogger(__name__)

QUANT_METHOD = "truthgpt"
"""What config.json of a model with changed weights calls them; transformers asks it."""

IMPORT_FIRST = (
    "None, because TruthGPT changed the weights of this model. Run `import truthgpt_services` "
    "before you load it (pip install truthgpt-services)"
)
"""In the place of a file name in config.json, so that it is part of transformers' error."""

ALIGNMENT = 64
"""Bytes that weights begin at a multiple of, in a file that is mapped into memory. Vectors that
begin elsewhere lie in two lines of the processor's cache, which takes longer to read."""

MARKS = ("quantization_config", "transformers_weights")
"""What is added to config.json of a model with changed weights."""

RemadeStep = tuple[SavedStep, Optimization[Any]]
MakeOptimization = Callable[[str, dict[str, Any]], Optimization[Any]]
MakeContext = Callable[[str], OptimizationContext]

_begun: ContextVar[dict[Path, tuple[Recipe, WeightsFile]]] = ContextVar("begun")
"""Weights whose checksum is being computed, by the directory of their model."""


def save(model: Any, tokenizer: Any, directory: Path, recipe: Recipe) -> None:
    """Save an optimized model; the recipe is written last.

    Args:
        model: after its steps were applied.
        tokenizer: to go with it.
        directory: exists, and is empty or being filled.
        recipe: its sizes, checksum and shared names are filled in here.

    Raises:
        OutputError: the disk is full.
    """
    tensors, shared = _unshared(model)
    with explained_writing(directory):
        with quiet():
            model.config.save_pretrained(directory)
            if getattr(model, "generation_config", None) is not None:
                model.generation_config.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
        _mark_config(directory / "config.json", changed=recipe.changes_weights)
        write_model_card(directory, recipe)
        weights = directory / recipe.weights
        described = {name: (each.dtype, tuple(each.shape)) for name, each in tensors.items()}
        with SafetensorsWriter(weights, described, alignment=ALIGNMENT) as file:
            for name, tensor in tensors.items():
                file.write(name, tensor)
        raw = asdict(recipe) | {
            "weights_bytes": weights.stat().st_size,
            "weights_sha256": file_sha256(weights),
            "shared": shared,
        }
        (directory / MARKER).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
        share_as_umask_says(directory)


def _mark_config(path: Path, *, changed: bool) -> None:
    """Let transformers ask us for the weights, or say that it cannot have them without us."""
    config = json.loads(path.read_text(encoding="utf-8"))
    marks = {
        "quantization_config": {"quant_method": QUANT_METHOD},
        "transformers_weights": IMPORT_FIRST,
    }
    for key, value in marks.items():
        config.pop(key, None)
        if changed:
            config[key] = value
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
    begun, weights = _begun.get({}).pop(directory, (None, None))
    if weights is None or begun != recipe:
        weights = open_weights(directory, recipe)
    model = without_values(load_config(directory), recipe)
    steps = remade(recipe.steps, make_optimization)
    model = put_in_place(model, recipe, weights, steps, make_context)
    weights.fill(model)
    if (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    model.to(device)
    model.eval()
    for step in runnable(directory, device, make_optimization) if run else ():
        model = calls.apply(step, model, make_context(step.name)).model
    return model


@contextmanager
def checking(directory: Path) -> Iterator[None]:
    """Begin to compute the checksum of a model's weights, if it is a saved one, for `load`.

    Args:
        directory: of a model that is loaded in the block, after what takes time without it.

    Raises:
        ModelError: the recipe or the weights are missing or damaged.
    """
    begun = {}
    if is_saved(directory):
        recipe = read_recipe(directory)
        begun[directory] = recipe, open_weights(directory, recipe)
    token = _begun.set(begun)
    try:
        yield
    finally:
        _begun.reset(token)


def open_weights(directory: Path, recipe: Recipe) -> WeightsFile:
    """Open the weights of a saved model, and begin to compute their checksum.

    Raises:
        ModelError: they are missing or damaged.
    """
    return WeightsFile(
        directory / recipe.weights, recipe.weights_bytes, recipe.weights_sha256, recipe.shared
    )


def without_values(config: Any, recipe: Recipe) -> Any:
    """Make the ordinary model that the configuration of a saved model describes.

    Args:
        config: of the saved model; our marks are taken from it.
        recipe: of the saved model.

    Returns:
        The model, with whatever is in the memory that its tensors got.
    """
    for mark in MARKS:
        if hasattr(config, mark):
            delattr(config, mark)
    with quiet(), no_init_weights():
        return AutoModelForCausalLM.from_config(config, dtype=DTYPES[recipe.dtype])


def put_in_place(
    model: Any,
    recipe: Recipe,
    weights: WeightsFile,
    steps: Sequence[RemadeStep],
    make_context: MakeContext,
) -> Any:
    """Let steps of a recipe put their modules in place, and compare them with the weights.

    Args:
        model: as its configuration says, without values.
        recipe: of the saved model.
        weights: of the saved model; nothing is filled in yet.
        steps: those whose modules are in it; what changes only how it is run is passed over.
        make_context: makes the context for an optimization, from its name.

    Returns:
        The model, for `weights.fill`.

    Raises:
        ModelError: the weights are not those of such a model.
    """
    skeleton = Skeleton(model, DTYPES[recipe.dtype])
    for _, step in steps:
        if step.stage is not Stage.EXECUTION:
            model = calls.restore(step, model, make_context(step.name))
    weights.compare(model, skeleton, lambda: why_unfit(recipe, steps))
    return model


def remade(steps: Iterable[SavedStep], make_optimization: MakeOptimization) -> list[RemadeStep]:
    """Return steps of a recipe, each with its optimization as it is installed here.

    Args:
        steps: of the recipe.
        make_optimization: makes an optimization from its name and settings.

    Raises:
        OptimizationError: an optimization is not installed.
    """
    return [(step, _remake(step, make_optimization)) for step in steps]


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
    for step, optimization in remade(read_recipe(directory).steps, make_optimization):
        if optimization.stage is not Stage.EXECUTION:
            continue
        verdict = calls.check(optimization, str(device))
        if verdict.ok:
            found.append(optimization)
        else:
            logger.warning("%s runs without %s: %s", directory, step.name, verdict.reason)
    return found


def unused_steps(
    directory: Path, engine: str, make_optimization: MakeOptimization
) -> list[Optimization[Any]]:
    """Return the steps of a saved model that change only how another engine runs it.

    Args:
        directory: of the model; of one that was not optimized there are none.
        engine: the name of the one that runs it.
        make_optimization: makes an optimization from its name and settings.
    """
    steps = read_recipe(directory).steps if is_saved(directory) else ()
    found = [optimization for _, optimization in remade(steps, make_optimization)]
    return [each for each in found if each.engine not in (None, engine)]


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


def why_unfit(recipe: Recipe, steps: Sequence[RemadeStep]) -> str:
    """Return the hint for weights that do not fit the model that `restore` made ready.

    Args:
        recipe: of the saved model.
        steps: those that were restored; of others that change weights, it is said that their
            result is an ordinary model.
    """
    others, authors = [], []
    for step, optimization in steps:
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
    ordinary = [step.name for step in recipe.steps if step.changes_weights and step.ordinary]
    if ordinary and not steps:
        return f"The result of {', '.join(ordinary)} should be an ordinary model: tell its author."
    return "The file was changed after it was saved."
