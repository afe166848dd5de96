"""Manifests: what files a directory has, with a checksum of each, and of the manifest itself.

A manifest is written last and read first. Checksums are for damage, not for forgery: one who can
write the files can write their manifest.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from truthgpt_core.paths import UnusableFileError, file_sha256, open_regular, read_json
from truthgpt_services.errors import DamagedError

_LARGEST = 1 << 20
_BLOCK = 1 << 20


def write_manifest(
    path: Path, facts: Mapping[str, Any], *, checksum: Literal["sha256", "crc32"] = "sha256"
) -> None:
    """Write a manifest of all the files beside it.

    Args:
        path: of the manifest; its directory has files and no directories.
        facts: what else there is to say, in JSON types; the key `format` is a number.
        checksum: of the files. CRC-32 takes less than half of the time, and finds every flipped
            bit, all damage of up to 32 bits in a row and all but one in 2**32 of the rest.
    """
    files = {
        each.name: {"bytes": each.stat().st_size, checksum: _CHECKSUMS[checksum](each)}
        for each in sorted(path.parent.iterdir())
    }
    manifest = {**facts, "files": files}
    text = json.dumps({**manifest, "sha256": _digest(manifest)}, indent=2)
    path.write_text(text, encoding="utf-8")


def read_manifest(path: Path, version: int) -> dict[str, Any]:
    """Read a manifest, and see that it is what was written.

    Args:
        path: of the manifest.
        version: the format that is read.

    Returns:
        Its facts, and `files`: what `verify_files` compares.

    Raises:
        DamagedError: it is missing, damaged, or of another format.
    """
    try:
        manifest = read_json(path, limit=_LARGEST)
        intact = manifest.pop("sha256", None) == _digest(manifest)
    except UnusableFileError as error:
        raise DamagedError(error.message) from None
    except FileNotFoundError:
        raise DamagedError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError, RecursionError):
        intact = False
    if not intact:
        raise DamagedError(f"{path} is damaged")
    if manifest.get("format") != version:
        raise DamagedError(
            f"{path.parent} has the format {manifest.get('format')!r:.40}, and this version reads "
            f"{version}",
            hint="Use the version of truthgpt-services that wrote it.",
        )
    if not _describes_files(manifest.get("files")):
        raise DamagedError(f'{path} is damaged: "files" is missing or wrong')
    return manifest


def verify_files(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Compare every byte of the files of a directory with what its manifest says.

    Raises:
        DamagedError: it names the file that is missing, truncated or damaged.
    """
    for name, expected in manifest["files"].items():
        file = directory / name
        try:
            size, wanted = file.stat().st_size, expected["bytes"]
            if size != wanted:
                cut = ": it is truncated" if size < wanted else ""
                raise DamagedError(f"{file} has {size} bytes instead of {wanted}{cut}")
            (checksum,) = expected.keys() - {"bytes"}
            if _CHECKSUMS[checksum](file) != expected[checksum]:
                raise DamagedError(f"{file} is damaged: its checksum is another")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise DamagedError(f"{file} cannot be read: {why}") from None


def _describes_files(files: object) -> bool:
    return isinstance(files, dict) and all(
        # Nothing outside of the directory.
        name == Path(name).name
        and isinstance(of, dict)
        and type(of.get("bytes")) is int
        and len(of) == 2
        and bool(of.keys() & _CHECKSUMS.keys())
        for name, of in files.items()
    )


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _crc32(path: Path) -> int:
    checksum, block = 0, memoryview(bytearray(_BLOCK))
    with open_regular(path) as file:
        while count := file.readinto(block):
            checksum = zlib.crc32(block[:count], checksum)
    return checksum


_CHECKSUMS: dict[str, Callable[[Path], object]] = {"sha256": file_sha256, "crc32": _crc32}
