"""A model in ordinary weights, for exporters: read layer by layer, and dequantized on the way.

What TruthGPT has optimized is built twice without values, on the meta device: once as its
configuration describes it, which is what is exported, and once with the modules of the steps that
changed its weights in place. Where the two differ a step is asked for the ordinary weights of its
module, which has values only while it is asked. Everywhere else tensors are passed on as stored.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from truthgpt_core.optimization import Optimization, OptimizationError, Progress, calls
from truthgpt_core.optimization.errors import author_error, described
from truthgpt_core.sources import PlainModel, TensorInfo
from truthgpt_services.errors import ModelError
from truthgpt_services.models import saved_model
from truthgpt_services.models.lazy_weights import open_model
from truthgpt_services.models.loading import load_config, load_model
from truthgpt_services.models.model_card import CARD
from truthgpt_services.models.model_files import CONFIG, TEMPLATES, read_object, weight_files
from truthgpt_services.models.recipe import Recipe, is_saved, read_recipe
from truthgpt_services.models.safetensors_files import stored_tensors
from truthgpt_services.models.saved_model import MakeContext, MakeOptimization, RemadeStep
from truthgpt_services.results.io import HTML_NAME, JSON_NAME
from truthgpt_services.storage.atomic import MARKER

_WEIGHTS = (
    *(".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth"),
    *(".ckpt", ".pkl", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".tflite"),
)
"""How the names of files end that hold weights, in any format."""

_OURS = frozenset({MARKER, CARD, JSON_NAME, HTML_NAME, "worker.log"})
"""What is in the directory of an optimized model and says how it was optimized."""


@contextmanager
def open_plain(
    directory: Path,
    name: str,
    make_optimization: MakeOptimization,
    make_context: MakeContext,
    progress: Progress,
) -> Iterator[PlainModel]:
    """Open a model to read its ordinary weights.

    Args:
        directory: as transformers writes it, or one that TruthGPT saved.
        name: as the user typed it.
        make_optimization: makes an optimization from its name and settings.
        make_context: makes the context for an optimization, from its name.
        progress: told how many of its modules are read.

    Raises:
        ModelError: something of it is missing or damaged.
        OptimizationError: an optimization is not installed that made modules of its own, or it
            does not say what ordinary weights these have.
    """
    optimized = is_saved(directory)
    if optimized:
        found: _Ordinary | _Optimized = _Optimized(directory, make_optimization, make_context)
    else:
        found = _Ordinary(directory)

    def weights() -> Iterator[tuple[str, Tensor]]:
        for done, total, named in found.read():
            progress("Reading the weights", done, total)
            yield from named

    with tempfile.TemporaryDirectory(prefix="truthgpt-") as place:
        small = Path(place)
        _copy_small_files(directory, small, leave_out=_OURS if optimized else {MARKER})
        (small / CONFIG).write_text(json.dumps(found.config, indent=2) + "\n", encoding="utf-8")
        yield PlainModel(name, found.config, found.tensors, weights, small)


def _copy_small_files(directory: Path, target: Path, leave_out: frozenset[str] | set[str]) -> None:
    for folder in (directory, directory / TEMPLATES):
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if file.is_file() and file.name not in leave_out and not file.name.endswith(_WEIGHTS):
                copy = target / file.relative_to(directory)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, copy)


_Parts = Iterator[tuple[int, int, Iterator[tuple[str, Tensor]]]]
"""How many parts of a model have been read, of how many, and the weights of the next one."""


class _Ordinary:
    """A directory as transformers writes it, whose weights are passed on as they are stored."""

    def __init__(self, directory: Path) -> None:
        # Without its weights in memory, if that can be: a checkpoint that lacks some is refused.
        if open_model(directory) is None:
            load_model(directory)
        self.config = read_object(directory / CONFIG)
        # What is exported has its weights where transformers looks for them.
        self.config.pop("transformers_weights", None)
        self._stored = stored_tensors(weight_files(directory))
        self.tensors = {name: _info(each.shape, each.dtype) for name, each in self._stored.items()}

    def read(self) -> _Parts:
        for done, (name, each) in enumerate(self._stored.items()):
            yield done, len(self._stored), iter([(name, each.read())])


class _Optimized:
    """A directory that TruthGPT saved, whose weights are dequantized where a step changed them."""

    def __init__(
        self, directory: Path, make_optimization: MakeOptimization, make_context: MakeContext
    ) -> None:
        recipe = read_recipe(directory)
        self._steps = _steps_to_ask(directory, recipe, make_optimization)
        self._weights = saved_model.open_weights(directory, recipe)
        self._model: Any = saved_model.put_in_place(
            _without_values(directory, recipe), recipe, self._weights, self._steps, make_context
        )
        plain = _without_values(directory, recipe)
        tied = self._shares_embeddings(plain)
        if tied:
            plain = _without_values(directory, recipe, tied=True)
        self.config = _plain_config(directory, recipe, tied=tied)
        self._plain: dict[str, Tensor] = dict(plain.state_dict(keep_vars=True))
        self._saved_as = _names_of_tied(plain, self._plain)
        self._parts = list(_parts(self._model, plain, ""))
        self._stored = self._weights.stored()
        self.tensors: dict[str, TensorInfo] = {}
        for name, is_made in self._parts:
            for full in self._below(name) if is_made else self._own(name):
                dtype = self._plain[full].dtype if is_made else self._stored[full].dtype
                info = _info(tuple(self._plain[full].shape), dtype)
                self.tensors.setdefault(self._saved_as[full], info)

    def read(self) -> _Parts:
        given: set[str] = set()
        for done, (name, is_made) in enumerate(self._parts):
            yield done, len(self._parts), self._values(name, is_made, given)
        missing = sorted(self.tensors.keys() - given)
        if missing:
            raise ModelError(f"{len(missing)} tensors have no values, the first is {missing[0]}")

    def _values(self, name: str, is_made: bool, given: set[str]) -> Iterator[tuple[str, Tensor]]:
        made = self._ask_for_all(name) if is_made else {}
        for full in made if is_made else self._own(name):
            final = self._saved_as[full]
            if final not in given:
                given.add(final)
                yield final, made[full] if is_made else self._read(full)

    def _ask_for_all(self, name: str) -> dict[str, Tensor]:
        """Return the ordinary weights of a module that a step made, by their whole names."""
        module, prefix = self._model.get_submodule(name), _prefix(name)
        own = {key: self._read(prefix + key) for key in module.state_dict()}
        try:
            module.load_state_dict(own, assign=True)
            kind, weights = self._ask(name, module)
        finally:
            module.to("meta")
        wanted = {full.removeprefix(prefix): self._plain[full] for full in self._below(name)}
        several = Counter(self._saved_as.values())
        wrong = ""
        for key in wanted | dict(weights):
            if key not in wanted:
                wrong = f"gave {key} for {name}, which the ordinary module does not have"
            elif key in weights and (shape := _shape(weights[key])) != _shape(wanted[key]):
                wrong = f"gave {key} of {name} the shape {shape}, not {_shape(wanted[key])}"
            elif key not in weights and several[self._saved_as[prefix + key]] == 1:
                wrong = f"left out {key} of {name}"
        if wrong:
            raise author_error(kind, "plain_weights", wrong)
        return {
            prefix + key: tensor.detach().to(dtype=wanted[key].dtype)
            for key, tensor in weights.items()
        }

    def _ask(self, name: str, module: nn.Module) -> tuple[type[Any], Mapping[str, Tensor]]:
        """Return whose a module is, and its ordinary weights."""
        for _, optimization in reversed(self._steps):
            weights = calls.plain_weights(optimization, name, module)
            if weights is not None:
                return type(optimization), weights
        steps = ", ".join(described(type(each)) for _, each in self._steps)
        raise OptimizationError(
            f"None of {steps} says what ordinary weights {name} has, a {type(module).__name__}",
            hint="The author of the one that made it has to return them from plain_weights.",
        )

    def _shares_embeddings(self, plain: Any) -> bool:
        """Whether one of the two embeddings has no tensors of its own and reads the other's."""
        both = (plain.get_input_embeddings(), plain.get_output_embeddings())
        modules = dict(self._model.named_modules())
        for name, ordinary in plain.named_modules():
            module = modules.get(name)
            if module is None or not any(ordinary is each for each in both):
                continue
            if type(module) is not type(ordinary) and not module.state_dict():
                return not self._ask(name, module)[1]
        return False

    def _own(self, name: str) -> list[str]:
        return [_prefix(name) + key for key in _shapes(self._model.get_submodule(name))]

    def _below(self, name: str) -> list[str]:
        return [full for full in self._plain if full.startswith(_prefix(name))]

    def _read(self, full: str) -> Tensor:
        return self._weights.read(full, self._stored[full])


def _steps_to_ask(
    directory: Path, recipe: Recipe, make_optimization: MakeOptimization
) -> list[RemadeStep]:
    """Return the steps that made modules of their own.

    Raises:
        OptimizationError: one is not installed, or does not say what ordinary weights these have.
    """
    saved = [step for step in recipe.steps if step.changes_weights and not step.ordinary]
    remade = saved_model.remade(saved, make_optimization)
    custom = [(step, each) for step, each in remade if not each.ordinary]
    for _, each in custom:
        if type(each).plain_weights is Optimization.plain_weights:
            raise OptimizationError(
                f"{directory} cannot be exported: {described(type(each))} does not say what "
                "ordinary weights its modules have",
                hint=f"Export the model that it was made from, {recipe.source}. The author of "
                f'"{each.name}" has to write plain_weights.',
            )
    return custom


def _without_values(directory: Path, recipe: Recipe, *, tied: bool = False) -> Any:
    """Make the ordinary model that a configuration describes, on the meta device."""
    config = load_config(directory)
    if tied:
        config.tie_word_embeddings = True
    with torch.device("meta"):
        model = saved_model.without_values(config, recipe)
    model.tie_weights()
    return model


def _plain_config(directory: Path, recipe: Recipe, *, tied: bool) -> dict[str, Any]:
    config = read_object(directory / CONFIG)
    for key in (*saved_model.MARKS, "torch_dtype"):
        config.pop(key, None)
    # A step that cast the weights may have left the dtype that they had.
    config["dtype"] = recipe.dtype
    if tied:
        config["tie_word_embeddings"] = True
    return config


def _names_of_tied(plain: Any, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return under which name transformers saves each tensor: tied ones have one together."""
    copies = getattr(plain, "all_tied_weights_keys", {})
    names: dict[int, str] = {}
    for full in sorted(tensors, key=lambda each: each in copies):
        names.setdefault(id(tensors[full]), full)
    return {full: names[id(tensor)] for full, tensor in tensors.items()}


def _parts(module: nn.Module, ordinary: nn.Module, name: str) -> Iterator[tuple[str, bool]]:
    """Yield the names of modules to read one after the other, and whether a step made each.

    Of one that a step made, the modules inside it are part.
    """
    children, inside = dict(module.named_children()), dict(ordinary.named_children())
    is_made = (
        type(module) is not type(ordinary)
        or _shapes(module) != _shapes(ordinary)
        or children.keys() != inside.keys()
    )
    yield name, is_made
    if not is_made:
        for key, each in inside.items():
            yield from _parts(children[key], each, _prefix(name) + key)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that are saved of a module, less those inside it."""
    own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    buffers = module.named_buffers(recurse=False, remove_duplicate=False)
    unsaved = module._non_persistent_buffers_set
    saved = own | {key: each for key, each in buffers if key not in unsaved}
    return {key: tuple(tensor.shape) for key, tensor in saved.items()}


def _shape(tensor: object) -> tuple[int, ...] | None:
    return tuple(tensor.shape) if isinstance(tensor, Tensor) else None


def _prefix(name: str) -> str:
    return f"{name}." if name else ""


def _info(shape: tuple[int, ...], dtype: torch.dtype) -> TensorInfo:
    return TensorInfo(shape, str(dtype).removeprefix("torch."), math.prod(shape) * dtype.itemsize)
