"""How `InferenceService` is set up: whether and where answers are kept, the size of batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

from truthgpt_core.decoding import GenerationError
from truthgpt_core.errors import did_you_mean

_LEAST = {"max_cache_bytes": 1, "max_batch_size": 1, "max_waiting": 1, "prefix_cache_tokens": 0}


@dataclass(frozen=True, slots=True)
class InferenceSettings:
    """What `InferenceService.configure` takes as its configuration.

    Attributes:
        use_cache: whether the answer to a request is kept, and given again.
        cache_dir: where on disk; in memory alone if None. A relative one is made absolute
            now: it stays where it is if the process changes its directory.
        max_cache_bytes: what the answers may take, on disk and in memory.
        max_batch_size: how many texts are generated at once at most.
        max_waiting: how many more may wait for their turn; what comes then is refused.
        prefix_cache_tokens: how many tokens of texts that ended stay in the engine, for prompts
            that begin the same way; 0 for none. An engine that cannot copy sequences keeps none.

    Raises:
        GenerationError: one of them is wrong.
    """

    use_cache: bool = False
    cache_dir: Path | None = None
    max_cache_bytes: int = 64 * 2**20
    max_batch_size: int = 8
    max_waiting: int = 1024
    prefix_cache_tokens: int = 4096

    def __post_init__(self) -> None:
        if not isinstance(self.use_cache, bool):
            raise GenerationError(f"use_cache is {self.use_cache!r}: it must be True or False")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise GenerationError(
                    f"{name} is {value!r}: it must be an integer, {least} or more"
                )
        if self.cache_dir is not None:
            object.__setattr__(self, "cache_dir", _as_directory(self.cache_dir))


def read_settings(config: Mapping[str, Any] | None) -> InferenceSettings:
    """Read a configuration.

    Args:
        config: settings by name; those that are left out have their defaults.

    Raises:
        GenerationError: it is not a mapping, or a setting is unknown or wrong.
    """
    if config is None:
        return InferenceSettings()
    if not isinstance(config, Mapping):
        raise GenerationError(
            f"The configuration is {config!r}: it must be a mapping",
            hint='For example {"use_cache": True}.',
        )
    known = [field.name for field in fields(InferenceSettings)]
    for name in config:
        if name not in known:
            raise GenerationError(
                f'There is no setting "{name}" for inference',
                hint=did_you_mean(str(name), known) or f"Known: {', '.join(known)}.",
            )
    return InferenceSettings(**config)


def _as_directory(given: object) -> Path:
    if not isinstance(given, str | PathLike) or not str(given) or "\0" in str(given):
        raise GenerationError(
            f"cache_dir is {given!r}: it must be the path of a directory",
            hint="None keeps answers in memory alone.",
        )
    try:
        path = Path(given).expanduser().absolute()
        is_taken = path.exists() and not path.is_dir()
    except (OSError, RuntimeError, TypeError) as error:
        raise GenerationError(f"cache_dir is {given!r}, which is not a path: {error}") from error
    if is_taken:
        raise GenerationError(
            f"cache_dir is {path}, which is not a directory", hint="Name another."
        )
    return path
