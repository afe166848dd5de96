"""What may be read of a model's directory: files that are files, inside it, and no pickles.

A model directory comes from outside. transformers follows whatever an index, a link or a
setting names, so what they name is checked before transformers sees the directory. Nothing
here needs torch or transformers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from truthgpt_core.terminal_text import harmless
from truthgpt_services.errors import ModelError

CONFIG = "config.json"
ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_PICKLES = ("pytorch_model*.bin", "adapter_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TEMPLATES = "additional_chat_templates"
_SETTINGS = (CONFIG, "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_LARGEST_JSON = 2**28
_LARGEST_HEADER = 100_000_000
"""The bound of the safetensors library itself, in bytes."""

_SIZES = re.compile(r"(num|n)_((\w+_)?(layers?|heads?))|n_embd|hidden_size|vocab_size|head_dim")
_LISTED = re.compile(r"(num|n)_(\w+_)?(layers?|experts?|heads?|blocks?|groups?|labels|codebooks)")
_ALWAYS_FINE = 1024
"""So many layers are built before it shows that the checkpoint lacks them."""

Shapes = dict[str, tuple[int, ...]]


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        ModelError: it is not there, is not a regular file, or holds something else.
    """
    try:
        if not path.is_file():
            raise ModelError(f"{path} cannot be used: it is {_what_it_is(path)}")
        if path.stat().st_size > _LARGEST_JSON:
            raise ModelError(f"{path} cannot be used: it has more than {_LARGEST_JSON:,} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{path} cannot be used: {reason}") from error
    except RecursionError:
        raise ModelError(f"{path} cannot be used: it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} cannot be used: it must hold a JSON object")
    return value


def check_files(directory: Path) -> dict[str, Any]:
    """Check a model's directory before anything of it is loaded.

    Args:
        directory: of a model in transformers' format, or one that TruthGPT saved.

    Returns:
        What its config.json holds.

    Raises:
        ModelError: a file is not a regular file or leads out of the directory, a file of
            settings does not hold a JSON object, or there is a PEFT adapter.
    """
    directory = directory.resolve()
    try:
        for folder in (directory, directory / TEMPLATES):
            for path in folder.iterdir() if folder.is_dir() else ():
                _refuse_special(path)
                # What links to nothing is not there; of folders, only that one is read.
                if path.is_symlink() and (path.is_file() or path.name == TEMPLATES):
                    _refuse_outside(path, directory)
    except OSError as error:
        raise ModelError(f"{directory} cannot be read: {error.strerror or error}") from error
    config, *_ = [
        read_object(directory / name)
        for name in _SETTINGS
        if name == CONFIG or (directory / name).exists()
    ]
    if (directory / "adapter_config.json").exists():
        raise ModelError(
            f"{directory} holds a PEFT adapter (adapter_config.json), which is not loaded",
            hint="Merge it into its model (merge_and_unload of peft) and save that, or remove "
            "adapter_config.json to load the model without it.",
        )
    return config


def weight_files(directory: Path) -> list[Path]:
    """Return the files that transformers reads the weights of a model from.

    Args:
        directory: of a model in transformers' format.

    Raises:
        ModelError: there are none, or its index names something that is not a safetensors
            file inside the directory.
    """
    directory = directory.resolve()
    named = read_object(directory / CONFIG).get("transformers_weights")
    if named is not None:
        where = f'"transformers_weights" of {directory / CONFIG}'
        first: Path | None = _inside(
            directory, named, where, (".safetensors", ".safetensors.index.json")
        )
    else:
        known = (directory / name for name in (ONE_FILE, INDEX))
        first = next((path for path in known if path.is_file()), None)
    if any(_DISTRIBUTED.fullmatch(path.name) for path in directory.glob("shard-*.safetensors")):
        raise ModelError(
            f"{directory} holds a distributed checkpoint, which is not loaded",
            hint="Save the model with save_pretrained first.",
        )
    if first is None:
        raise _no_weights(directory)
    if first.suffix != ".json":
        _refuse_outside(first, directory)
        return [first]
    index = read_object(first)
    weight_map, metadata = index.get("weight_map"), index.get("metadata")
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(metadata, dict):
        raise ModelError(
            f'{first} cannot be used: it must hold the objects "weight_map" and "metadata"'
        )
    names = {str(name): name for name in weight_map.values()}
    return [_inside(directory, name, str(first)) for _, name in sorted(names.items())]


def refuse_impossible_numbers(directory: Path, config: dict[str, Any]) -> None:
    """Refuse sizes of a model that are no sizes, and counts far beyond what its files hold.

    transformers makes an object for each layer, head or label, and would not come to an end.

    Args:
        directory: where it is.
        config: what its config.json holds.

    Raises:
        ModelError: a size is not a positive integer, a count is larger than the number of
            tensors, or something that names code or files to load is set.
    """
    path = directory / CONFIG
    for key, value in config.items():
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ModelError(f"{path} cannot be used: {harmless(key)[:80]} is larger than 2**63")
        if _SIZES.fullmatch(key) and isinstance(value, str | float | bool):
            raise ModelError(
                f"{path} cannot be used: {key} is {value!r:.80}, and must be an integer"
            )
        if _SIZES.fullmatch(key) and isinstance(value, int) and value < 1:
            raise ModelError(f"{path} cannot be used: {key} is {value}, and must be at least 1")
    held = -1
    for key, value in _entries(config):
        if key in ("attn_implementation", "experts_implementation") and "/" in str(value):
            raise ModelError(
                f"{path} cannot be used: {key} names a kernel to download, {str(value)[:80]}"
            )
        if _LISTED.fullmatch(key) and isinstance(value, int) and value > _ALWAYS_FINE:
            if held < 0:
                held = len(stored_shapes(sorted(directory.glob("**/*.safetensors"))))
            if value > held * (1 if "layer" in key else _ALWAYS_FINE):
                raise ModelError(
                    f"{path} cannot be used: {key} is {value:,}, and the weights beside it are "
                    f"{held:,} tensors"
                )


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def stored_shapes(files: Iterable[Path]) -> Shapes:
    """Return the shapes of all tensors in safetensors files, by name, without reading them.

    Raises:
        ModelError: a file is damaged.
    """
    shapes: Shapes = {}
    for path in files:
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > min(_LARGEST_HEADER, path.stat().st_size):
                    raise ValueError("its header is larger than it may be")
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                shapes[name] = tuple(int(size) for size in entry["shape"])
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"The weights in {path} are damaged: {error}") from error
    return shapes


def refuse_incomplete(
    directory: Path,
    kind: str,
    missing: Iterable[str],
    unexpected: Iterable[str] = (),
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
) -> None:
    """Refuse a checkpoint that leaves weights of its model without values.

    Args:
        directory: where it is; for the message.
        kind: the class of the model; for the message.
        missing: names of the model's tensors that the checkpoint does not have.
        unexpected: names in the checkpoint that the model has no tensor for. Alone they are
            no reason: checkpoints hold more than one use of a model needs.
        mismatched: shapes in the checkpoint and in the model, by name.

    Raises:
        ModelError: something is missing or has another shape.
    """
    gone, extra, odd = sorted(missing), sorted(unexpected), mismatched or {}
    if not gone and not odd:
        return
    parts = []
    if gone:
        parts.append(f"{_count(gone, 'tensor')} of {kind} {_are(gone)} missing: {_few(gone)}")
    if odd:
        shapes = [
            f"{name} is {_shape(stored)} and must be {_shape(wanted)}"
            for name, (stored, wanted) in sorted(odd.items())
        ]
        parts.append(f"{_count(shapes, 'tensor')} {_have(shapes)} another shape: {_few(shapes)}")
    if extra:
        parts.append(f"{_count(extra, 'tensor')} in it {_are(extra)} unexpected: {_few(extra)}")
    hint = _prefix_hint(gone, extra)
    raise ModelError(
        f"The checkpoint in {directory} is not complete: {'; '.join(parts)}", hint=hint
    )


def _prefix_hint(missing: list[str], unexpected: list[str]) -> str:
    known = set(unexpected)
    for name in unexpected[:3]:
        end = next((each for each in missing if name.endswith(f".{each}")), None)
        if end is not None:
            prefix = name.removesuffix(end)
            # All but what may be tied, which is stored once.
            if sum(prefix + each in known for each in missing) >= len(missing) - 2:
                return f'Its names begin with "{harmless(prefix)[:80]}": save it without that.'
    return "Download it again, or look whether config.json belongs to these weights."


def _few(names: list[str]) -> str:
    text = ", ".join(harmless(name)[:120] for name in names[:3])
    return f"{text} and {len(names) - 3:,} more" if len(names) > 3 else text


def _count(names: list[str], what: str) -> str:
    return f"{len(names):,} {what}{'s' if len(names) > 1 else ''}"


def _are(names: list[str]) -> str:
    return "are" if len(names) > 1 else "is"


def _have(names: list[str]) -> str:
    return "have" if len(names) > 1 else "has"


def _shape(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes)) if sizes else "a single number"


def numbers(shapes: Iterable[tuple[int, ...]]) -> int:
    """Return how many numbers tensors of these shapes hold together."""
    return sum(map(math.prod, shapes))


def pickle_error(path: Path) -> ModelError:
    """Return the error for a checkpoint that is a pickle."""
    return ModelError(
        f"{path} is a pickle checkpoint, and loading a pickle runs whatever code is in it",
        hint="Get the model as safetensors, or convert it on a machine that you can lose.",
    )


def is_pickle(path: Path) -> bool:
    """Whether a file has the name of a pickle checkpoint."""
    return any(path.match(pattern) for pattern in _PICKLES)


def _no_weights(directory: Path) -> ModelError:
    pickles = sorted(path for path in directory.iterdir() if is_pickle(path))
    if pickles:
        return pickle_error(pickles[0])
    others = sorted(path.name for path in directory.glob("*.safetensors"))
    hint = f"It has {others[0]}; transformers reads {ONE_FILE} or {INDEX}." if others else None
    return ModelError(f"{directory} has no weights: there is no {ONE_FILE} in it", hint=hint)


def _inside(
    directory: Path, name: Any, where: str, endings: tuple[str, ...] = (".safetensors",)
) -> Path:
    """Return the file that an index names, if it is one that may be read."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise ModelError(f"{where} names {name!r:.80}, which is not the name of a file")
    relative, display_name = PurePosixPath(name.replace("\\", "/")), harmless(name)[:200]
    if is_pickle(Path(name)):
        raise pickle_error(directory / display_name)
    if relative.is_absolute() or ".." in relative.parts:
        raise ModelError(f"{where} names {display_name}, which is outside the model's directory")
    if not name.endswith(endings):
        raise ModelError(f"{where} names {display_name}, which is not a safetensors file")
    path = directory / name
    try:
        if not path.is_file():
            raise ModelError(f"{where} names {display_name}, which is {_what_it_is(path)}")
    except OSError as error:
        raise ModelError(f"{where} names {display_name}: {error.strerror or error}") from error
    _refuse_outside(path, directory)
    return path


def _refuse_special(path: Path) -> None:
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ModelError(f"{harmless(str(path))} cannot be read: it is {_what_it_is(path)}")


def _refuse_outside(path: Path, directory: Path) -> None:
    allowed = [directory]
    if directory.parent.name == "snapshots":
        # The cache of the Hugging Face hub keeps contents there, and links to them here.
        allowed.append(directory.parent.parent / "blobs")
    target = path.resolve()
    if not any(target.is_relative_to(each) for each in allowed):
        raise ModelError(
            f"{harmless(str(path))} is a link out of the model's directory, to "
            f"{harmless(str(target))[:200]}",
            hint="Put the file itself there.",
        )


def _what_it_is(path: Path) -> str:
    if path.is_dir():
        return "a directory"
    if path.is_symlink() and not path.exists():
        return "a link to nothing"
    return "not a regular file" if path.exists() else "not there"
