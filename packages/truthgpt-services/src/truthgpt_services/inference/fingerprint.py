"""What a model is besides its weights, as data that can be compared.

Of code, its place in an installed distribution and the version of that distribution are seen.
What is written in a notebook or a script has no version, so it cannot be seen.
"""

from __future__ import annotations

import enum
import functools
import sys
import types
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from platform import python_version
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig, PretrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from truthgpt_core.errors import TruthGPTError
from truthgpt_services.inference.speculation_choice import ATTRIBUTE as _SPECULATION

_STANDARD = frozenset(vars(nn.Module()))

# Where a model was loaded from, what only loading looks at, and what computes the same in
# another order or in fewer passes.
_IRRELEVANT = frozenset({"name_or_path", "_is_hf_initialized", "_compiled_call_impl", _SPECULATION})
_UNKNOWN_PLACE = "_name_or_path"

# Hides the padding of a batch while it is decoded, and does nothing to other callers.
_OWN_HOOKS = "truthgpt_services.inference.engine"

# A class that was made by a class statement; others keep state where Python cannot see it.
_HEAP_TYPE = 1 << 9

_DEEPEST = 40
_LARGEST_ARRAY = 1 << 20


class UnseenError(TruthGPTError):
    """Something that can change an answer cannot be described."""


class Fingerprint:
    """Describes objects as nested lists and tuples of texts.

    What is met again is described by where it was met first, so a description also says which
    parts are shared.

    Attributes:
        tensors: those outside of the parameters and buffers of modules, with their places.
    """

    def __init__(self) -> None:
        self.tensors: list[tuple[str, torch.Tensor]] = []
        # An address is an identity only while the object is there.
        self._met: dict[int, tuple[str, Any]] = {}
        self._modules: set[str] = {"torch.nn.functional", "torch.nn.modules.module"}
        self._attention: set[str] = set()
        self._kinds: dict[type, int] = {}
        self._depth = 0

    def of_model(self, model: nn.Module) -> Any:
        """Describe a model: its modules with all their attributes, hooks and code.

        Parameters and buffers are named, and their content left to the caller.

        Raises:
            UnseenError: it has a part that cannot be described.
        """
        described = [self.of(model, "the model"), self._hooks(vars(nn.modules.module), "_global")]
        for registry in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
            described += [
                (name, self.of(registry[name], f'the attention "{name}"'))
                for name in sorted(self._attention)
                if name in registry
            ]
        # Functions that are replaced in the module that uses them, as faster ones are.
        for name in sorted(self._modules):
            described += [
                (key, _origin(value, f"{name}.{key}"))
                for key, value in sorted(vars(sys.modules[name]).items())
                if isinstance(value, types.FunctionType)
            ]
        return described

    def of(self, value: Any, where: str) -> Any:
        """Describe an object.

        Args:
            value: the object.
            where: what it is called in errors.

        Raises:
            UnseenError: it has a part that cannot be described.
        """
        if isinstance(value, enum.Enum):
            return self._class(type(value), where), value.name
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            return type(value).__name__, repr(value)
        met = self._met.get(id(value))
        if met is not None:
            return "met", met[0]
        if self._depth > _DEEPEST:
            raise UnseenError(f"{where} is nested too deeply")
        self._met[id(value)] = where, value
        self._depth += 1
        try:
            return self._described(value, where)
        finally:
            self._depth -= 1

    def _described(self, value: Any, where: str) -> Any:
        kind = type(value)
        if isinstance(value, nn.Module):
            return self._module(value, where)
        if isinstance(value, torch.Tensor):
            self.tensors.append((where, value))
            return "tensor"
        if isinstance(value, PretrainedConfig | GenerationConfig):
            return self._config(value, where)
        if isinstance(value, np.generic):
            return str(value.dtype), repr(value)
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject or value.nbytes > _LARGEST_ARRAY:
                raise UnseenError(f"{where} is a large array outside of PyTorch")
            return "array", str(value.dtype), value.shape, value.tobytes()
        if isinstance(value, torch.dtype | torch.device | torch.layout | torch.memory_format):
            return kind.__name__, str(value)
        if isinstance(value, types.ModuleType):
            return "module", _release(value.__name__, where)
        if isinstance(value, type):
            return "class", self._class(value, where)
        if isinstance(value, Mapping):
            items = [(self.of(key, where), self.of(each, f"{where}[{key!r:.40}]")) for key, each in
                     value.items()]  # fmt: skip
            return self._class(kind, where), items, self._attributes(value, where)
        if isinstance(value, list | tuple):
            items = [self.of(each, f"{where}[{number}]") for number, each in enumerate(value)]
            return self._class(kind, where), items, self._attributes(value, where)
        if isinstance(value, set | frozenset):
            return self._class(kind, where), sorted(repr(self.of(each, where)) for each in value)
        described = self._callable(value, where)
        return self._object(value, where) if described is None else described

    def _module(self, module: nn.Module, where: str) -> Any:
        if type(module).__module__.startswith("torch._dynamo"):
            # What `torch.compile` makes of a module: it computes the same in another order.
            return self.of(module._orig_mod, where)
        described: list[Any] = [self._code(type(module), where)]
        described.append(self._hooks(vars(module), "", where))
        described += [
            (name, self.of(value, f"{where}.{name}"))
            for name, value in sorted(vars(module).items())
            if name not in _STANDARD and name not in _IRRELEVANT
        ]
        described += [*module._parameters, *module._buffers]
        described += [
            (name, self.of(child, f"{where}.{name}")) for name, child in module._modules.items()
        ]
        return described

    def _code(self, kind: type, where: str) -> Any:
        """Describe the class of a module and its methods, once."""
        if kind in self._kinds:
            return self._kinds[kind]
        self._kinds[kind] = len(self._kinds)
        described: list[Any] = [self._class(kind, where)]
        for base in kind.__mro__:
            if not issubclass(base, nn.Module) or base.__module__ == "transformers.modeling_utils":
                continue
            self._modules.add(base.__module__)
            described += [
                (name, self.of(value, f"{base.__name__}.{name}"))
                for name, value in sorted(vars(base).items())
                if isinstance(value, types.FunctionType)
            ]
        return described

    def _hooks(self, attributes: Mapping[str, Any], prefix: str, where: str = "torch") -> Any:
        described = []
        for kind in ("_forward_pre_hooks", "_forward_hooks"):
            with_keywords = attributes.get(f"{prefix}{kind}_with_kwargs", ())
            always = attributes.get(f"{prefix}{kind}_always_called", ())
            described += [
                (kind, self.of(hook, f"a hook of {where}"), key in with_keywords, key in always)
                for key, hook in attributes[f"{prefix}{kind}"].items()
                if getattr(hook, "__module__", None) != _OWN_HOOKS
            ]
        return described

    def _config(self, config: Any, where: str) -> Any:
        content = config.to_dict()
        content.pop(_UNKNOWN_PLACE, None)
        parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", ())]
        chosen = [getattr(part, "_attn_implementation", None) for part in (config, *parts)]
        for name in chosen:
            # Some models have one for each part.
            names = name.values() if isinstance(name, dict) else [name]
            self._attention.update(each for each in names if isinstance(each, str))
        return self._class(type(config), where), self.of(content, where), repr(chosen)

    def _callable(self, value: Any, where: str) -> Any:
        if isinstance(value, types.FunctionType):
            return self._function(value, where)
        if isinstance(value, types.MethodType):
            return "method", self.of(value.__func__, where), self.of(value.__self__, where)
        if isinstance(value, functools.partial):
            return "partial", *(
                self.of(each, where) for each in (value.func, value.args, value.keywords)
            )
        if isinstance(value, types.BuiltinFunctionType):
            owner = value.__self__
            if owner is None or isinstance(owner, types.ModuleType | type):
                return "builtin", str(value.__module__), value.__qualname__
        if type(value).__module__ == "torch._ops":
            return "operator", str(value)
        if isinstance(value, staticmethod | classmethod | functools._lru_cache_wrapper):
            return type(value).__name__, self.of(value.__wrapped__, where)
        if getattr(type(value), "only_compiles", False) is True:
            # Says of itself that it computes what it did before: see the plugin `compile`.
            return self._class(type(value), where), self.of(value.__wrapped__, where)
        return None

    def _function(self, function: types.FunctionType, where: str) -> Any:
        cells = [_content(cell) for cell in function.__closure__ or ()]
        inside = [self.of(each, where) for each in (cells, function.__defaults__,
                                                    function.__kwdefaults__)]  # fmt: skip
        return "function", _place(function, where), inside

    def _object(self, value: Any, where: str) -> Any:
        kind = type(value)
        if not all(base.__flags__ & _HEAP_TYPE or base is object for base in kind.__mro__):
            raise UnseenError(f"{where} is of {kind.__module__}.{kind.__qualname__}, which hides "
                              "what it has")  # fmt: skip
        return self._class(kind, where), self._attributes(value, where)

    def _attributes(self, value: Any, where: str) -> Any:
        return [(name, self.of(each, f"{where}.{name}")) for name, each in _attributes(value)]

    def _class(self, kind: type, where: str) -> Any:
        """Name a class and the classes that it is made of, with their versions."""
        return [
            (base.__qualname__, _release(base.__module__, where))
            for base in kind.__mro__
            if base.__module__ != "builtins"
        ]


def _place(function: types.FunctionType, where: str) -> tuple[str, str, int]:
    """Say where the code of a function is, be it decorated or not."""
    # What a decorator writes into `__module__` and `__qualname__` is of another function.
    release = _release(str(function.__globals__.get("__name__")), where)
    return release, function.__code__.co_qualname, function.__code__.co_firstlineno


def _origin(function: types.FunctionType, where: str) -> list[Any]:
    """Say where the code of a function is, and that of those it decorates."""
    found: list[Any] = [_place(function, where)]
    for cell in function.__closure__ or ():
        inner = _content(cell)
        if isinstance(inner, types.FunctionType) and inner is not function:
            found.append(_origin(inner, where))
    return found


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from sorted(getattr(value, "__dict__", {}).items())
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            private = slot.startswith("__") and not slot.endswith("__")
            name = f"_{kind.__name__.lstrip('_')}{slot}" if private else slot
            if slot not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


def _release(module: str, where: str) -> str:
    """Return a module with the version of the distribution that it belongs to.

    Raises:
        UnseenError: it belongs to none.
    """
    found = _distribution(module.partition(".")[0])
    if found is None:
        raise UnseenError(
            f"{where} is code of {module}, which is not part of an installed distribution"
        )
    return f"{module} {found}"


@functools.cache
def _distribution(package: str) -> str | None:
    if package in sys.stdlib_module_names and package != "__main__":
        return python_version()
    try:
        return version(package.replace("_", "-"))
    except (PackageNotFoundError, ValueError):
        pass
    # Reads the metadata of everything that is installed.
    owners = sorted(set(packages_distributions().get(package, ())))
    return " ".join(f"{owner} {version(owner)}" for owner in owners) or None
