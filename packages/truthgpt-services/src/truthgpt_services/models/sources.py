"""Where a model comes from: a directory, a GGUF file, an installed package or a hub.

Finding out needs neither torch nor transformers. Each kind of source is a
component of the factory `model_source_factory`, so a plugin can add more. What any of them
returns is checked here, before anything is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from truthgpt_core.dynamic_factory import DynamicFactory
from truthgpt_core.errors import did_you_mean, in_one_line
from truthgpt_core.optimization import SourceModel
from truthgpt_core.sources import ModelSource, ResolvedModel
from truthgpt_services.errors import ModelError, naming_the_plugin, origin_of
from truthgpt_services.models.model_files import (
    CONFIG,
    check_files,
    is_pickle,
    pickle_error,
    read_object,
    weight_files,
)
from truthgpt_services.storage.atomic import read_marker

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LONGEST_SHOWN = 200
_FORMATS = "a directory, a .gguf file, package:PACKAGE/FILE or a hub id"


class PackageSource(ModelSource):
    """`package:PACKAGE/FILE`: a file inside an installed package, which is not imported."""

    name = "package"
    rank = 10

    def claims(self, spec: str) -> bool:
        """Whether it begins with `package:`."""
        return spec.startswith("package:")

    def resolve(self, spec: str) -> ResolvedModel:
        """Find the file by the package's import name."""
        package, _, file = spec.removeprefix("package:").partition("/")
        if not package.isidentifier() or not file:
            raise ModelError(
                f'"{_short(spec)}" does not name a file in a package',
                hint="Write package:PACKAGE/FILE.",
            )
        # PathFinder looks a top-level name up on sys.path and runs none of its code.
        found = PathFinder.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise ModelError(
                f'No package "{_short(package)}" is installed',
                hint="Install the one that has the model.",
            )
        for location in found.submodule_search_locations:
            root = Path(location).resolve()
            path = root / file
            if _exists(path) and (path := path.resolve()).is_relative_to(root):
                return ResolvedModel(spec, self.name, path)
        models = [name for name in _names(root) if name.endswith(".gguf")]
        has = f"It has {', '.join(models)}." if models else "It has no .gguf file."
        close = did_you_mean(file, models)
        raise ModelError(
            f'Package "{package}" has no file "{_short(file)}"',
            hint=f"{close} {has}" if close else has,
        )


class LocalSource(ModelSource):
    """A directory as transformers writes it, or a `.gguf` file."""

    name = "local"
    rank = 20

    def claims(self, spec: str) -> bool:
        """Whether it exists, or can be nothing but a path."""
        looks_like_path = spec.startswith(("/", "./", "../", "~")) or spec.endswith(".gguf")
        return looks_like_path or _exists(Path(spec)) or spec.count("/") > 1

    def resolve(self, spec: str) -> ResolvedModel:
        """Look at the directory or file."""
        try:
            path = Path(spec).expanduser()
        except RuntimeError:
            user = spec.partition("/")[0]
            raise ModelError(f'There is no home directory of "{user:.80}"') from None
        if _exists(path):
            return ResolvedModel(spec, _kind(path), path)
        raise ModelError(
            f'There is no model at "{_short(spec)}"',
            hint=did_you_mean(path.name, _names(path.parent)),
        )


class HubSource(ModelSource):
    """A model of the Hugging Face hub, downloaded to its cache."""

    name = "hub"
    rank = 90

    def claims(self, spec: str) -> bool:
        """Whether it has the form of a hub id."""
        return _HUB_ID.fullmatch(spec) is not None

    def resolve(self, spec: str) -> ResolvedModel:
        """Download what is needed of it, without pickles."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
        from huggingface_hub.errors import RepositoryNotFoundError as NotFound

        close = did_you_mean(spec, _names(Path()))
        try:
            path = snapshot_download(
                spec,
                allow_patterns=["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"],
            )
        except HFValidationError:
            # The hub's rules for names change; only the hub's own code knows all of them.
            raise ModelError(
                f'"{_short(spec)}" is not on disk, and is not a name that the hub allows',
                hint=close or f"A model is {_FORMATS}.",
            ) from None
        except NotFound:
            raise ModelError(
                f'There is no model "{_short(spec)}" on the hub, and nothing on disk by that name',
                hint=close or f"A model is {_FORMATS}.",
            ) from None
        except LocalEntryNotFoundError:
            raise ModelError(
                f'"{_short(spec)}" is not on disk, and the hub cannot be reached to look for it '
                "there",
                hint=close or f"A model is {_FORMATS}.",
            ) from None
        except (HfHubHTTPError, OSError) as error:
            raise ModelError(f'"{_short(spec)}" could not be downloaded: {error}') from error
        return ResolvedModel(spec, self.name, Path(path))


def resolve(spec: str, sources: DynamicFactory[Any]) -> ResolvedModel:
    """Find the model that `spec` names, and check what a source says of it.

    Args:
        spec: what the user typed.
        sources: the factory `model_source_factory`.

    Raises:
        ModelError: it cannot be found, or may not be loaded.
    """
    if not spec.strip():
        raise ModelError("No model is named", hint=f"A model is {_FORMATS}.")
    known: list[ModelSource] = [sources.create(name) for name in sources.names()]
    for source in sorted(known, key=lambda source: source.rank):
        with naming_the_plugin(source, "model source"):
            found = source.resolve(spec) if source.claims(spec) else None
        if found is not None:
            return _checked(found, source)
    raise ModelError(f'"{_short(spec)}" names no model', hint=f"A model is {_FORMATS}.")


def local_model(path: Path) -> ResolvedModel:
    """Find a model at a path of this machine, whatever else plugins would take the path for.

    Raises:
        ModelError: it is not there, or may not be loaded.
    """
    source = LocalSource()
    return _checked(source.resolve(str(path)), source)


def vocabulary_size(resolved: ResolvedModel) -> int | None:
    """Return how many tokens a model has, without loading it; None if its files do not say.

    Raises:
        ModelError: its files are not on this machine, or cannot be read.
    """
    path = files_of(resolved)
    return _embedded(path) if resolved.is_gguf else vocabulary_in(read_object(path / CONFIG))


def vocabulary_in(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens a config.json names; None if it names none."""
    text = config.get("text_config")
    found = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    return found if isinstance(found, int) else None


def _embedded(path: Path) -> int | None:
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(path).tensors
        found = [int(each.shape[-1]) for each in tensors if each.name == "token_embd.weight"]
    except Exception as error:  # a damaged file fails in any way
        raise ModelError(f"{path} cannot be read: {in_one_line(error)}") from error
    return found[0] if found else None


def files_of(resolved: ResolvedModel) -> Path:
    """Return where the files of a model are.

    Raises:
        ModelError: they are not on this machine's disk.
    """
    if resolved.path is None:
        raise ModelError(
            f'"{_short(resolved.spec)}" has no files on this machine that could be loaded '
            f"({resolved.kind})",
            hint="It needs an engine that runs it where it is, from a plugin.",
        )
    return resolved.path


def describe(directory: Path, spec: str) -> SourceModel:
    """Say what optimizations are told of a model before it is loaded.

    Args:
        directory: a transformers directory, or one that TruthGPT saved.
        spec: what the user typed.

    Raises:
        ModelError: its config.json cannot be read.
    """
    config = read_object(directory / CONFIG)
    method = config.get("quantization_config")
    if isinstance(method, dict) and method.get("quant_method") == "truthgpt":
        # Ours, which `optimizations_of` says better.
        del config["quantization_config"]
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else config.get("model_type", "")
    return SourceModel(spec, str(architecture), config, optimizations_of(directory))


def optimizations_of(directory: Path) -> tuple[str, ...]:
    """Names of what TruthGPT has applied to a model; empty for an ordinary one."""
    try:
        return tuple(str(step["name"]) for step in _marker(directory).get("steps", ()))
    except (KeyError, TypeError):
        return ()


def _is_optimized(directory: Path) -> bool:
    try:
        return bool(read_marker(directory).get("kind") == "optimized")
    except FileNotFoundError:
        return False
    except (OSError, ValueError):  # it may be one; loading says what is wrong with it
        return True


def _marker(directory: Path) -> dict[str, Any]:
    try:
        return read_marker(directory)
    except (OSError, ValueError):  # it is not there, or loading says what is wrong with it
        return {}


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # as of a name that is too long
        return False


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _names(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir())
    except (OSError, ValueError):  # a null byte is a ValueError
        return []


def _kind(path: Path) -> str:
    if path.suffix == ".gguf":
        return "gguf"
    return "optimized" if _is_optimized(path) else "directory"


def _checked(found: object, source: ModelSource) -> ResolvedModel:
    """Return what a source found, with its size, if it may be loaded."""
    if not isinstance(found, ResolvedModel) or not isinstance(found.path, Path | None):
        raise ModelError(
            f'The model source "{source.name}" ({origin_of(source)}) returned {found!r:.200}',
            hint="Its author has to return a ResolvedModel, with a Path or None.",
        )
    if found.path is None:
        return found
    try:
        path = found.path.resolve()
        return replace(found, path=path, file_bytes=_weight_bytes(path))
    except (OSError, RuntimeError) as error:  # links in a circle are a RuntimeError
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{found.path} cannot be read: {reason}") from error


def _weight_bytes(path: Path) -> int:
    if path.is_dir():
        return _directory(path)
    if not path.exists():
        raise ModelError(f"There is nothing at {path}")
    if not path.is_file():
        raise ModelError(f"{path} is not a model: it is not a regular file")
    if path.suffix == ".gguf":
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(
                    f"{path} is not a GGUF file: it does not begin with GGUF",
                    hint="It may be damaged, or a pointer left by Git LFS.",
                )
        return path.stat().st_size
    if is_pickle(path):
        raise pickle_error(path)
    raise ModelError(f"{path} is not a model", hint=f"A model is {_FORMATS}.")


def _directory(path: Path) -> int:
    if not (path / "config.json").is_file():
        ggufs = sorted(each.name for each in path.glob("*.gguf"))
        hint = f"Name the file: {path / ggufs[0]}." if ggufs else f"A model is {_FORMATS}."
        if (path / "adapter_config.json").exists():
            hint = "It is a PEFT adapter: merge it into its model (merge_and_unload) and save that."
        raise ModelError(f"{path} has no config.json, so it is not a transformers model", hint=hint)
    check_files(path)
    # The weights of what TruthGPT changed have a name of their own.
    weights = path.glob("*.safetensors") if _is_optimized(path) else weight_files(path)
    return sum(file.stat().st_size for file in weights)
