"""What `truthgpt.json` of an optimized model says: how it was made, and what its files hold."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from truthgpt_core.optimization import Stage
from truthgpt_services.errors import ModelError
from truthgpt_services.models.loading import DTYPES
from truthgpt_services.storage.atomic import MARKER, read_marker

FORMAT = 2
"""1 had no checksum of the weights. Nothing with it was published, and one that is missing cannot
be told from one that was lost with other bytes, so it is refused."""

ORDINARY = "model.safetensors"
CHANGED = "weights.safetensors"
KIND: Literal["optimized"] = "optimized"


def _known(names: Any, what: str) -> AfterValidator:
    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"there is no {what} {value}")
        return value

    return AfterValidator(check)


@dataclass(frozen=True)
class SavedStep:
    """An optimization as it was applied.

    Attributes:
        name: its canonical name.
        stage: the name of its stage, in lower case.
        settings: its options as finally chosen.
        distribution: where it came from, as "NAME VERSION"; for the error when it is missing.
        ordinary: whether its result is an ordinary model, which is exported without it. A file
            that was written before there was this field does not say.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    stage: Annotated[str, _known([each.name.lower() for each in Stage], "stage")]
    settings: dict[str, Any]
    distribution: str
    ordinary: bool = False

    @property
    def changes_weights(self) -> bool:
        """Whether its result is part of the weights file."""
        return self.stage != Stage.EXECUTION.name.lower()


@dataclass(frozen=True)
class Recipe:
    """What `truthgpt.json` of an optimized model holds.

    Attributes:
        source: the model it was made from, as typed.
        dtype: of the weights that no step changed.
        steps: in the order applied.
        weights_bytes: size of the weights file, which tells a truncated one.
        weights_sha256: of the weights file, in hexadecimal.
        shared: names of tensors that are stored under another name.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    source: str
    dtype: Annotated[str, _known(DTYPES, "dtype")]
    steps: tuple[SavedStep, ...]
    weights_bytes: Annotated[int, Field(ge=0)] = 0
    weights_sha256: str = ""
    shared: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT
    kind: Literal["optimized"] = KIND

    @property
    def changes_weights(self) -> bool:
        """Whether a step changed the weights."""
        return any(step.changes_weights for step in self.steps)

    @property
    def weights(self) -> str:
        """The name of the weights file."""
        return CHANGED if self.changes_weights else ORDINARY


def is_saved(directory: Path) -> bool:
    """Whether a directory holds an optimized model, or a damaged marker that may be one's."""
    try:
        return bool(read_marker(directory).get("kind") == KIND)
    except (OSError, ValueError):
        return os.path.lexists(directory / MARKER)


def read_recipe(directory: Path) -> Recipe:
    """Read `truthgpt.json`.

    Raises:
        ModelError: it is missing, damaged, or of a format that this version does not read.
    """
    path = directory / MARKER
    try:
        raw = read_marker(directory)
        found = raw.get("format")
        if type(found) is int and found > FORMAT:
            raise ModelError(
                f"{path} has format {found}, and this version reads up to {FORMAT}",
                hint="Update truthgpt-services.",
            )
        if type(found) is int and found < FORMAT:
            raise ModelError(
                f"{path} has format {found}, without a checksum of the weights",
                hint="Make the model again with `truthgpt optimize`.",
            )
        return TypeAdapter(Recipe).validate_json(json.dumps(raw), strict=True)
    except FileNotFoundError:
        raise ModelError(
            f"{directory} is not a model that TruthGPT saved: it has no {MARKER}"
        ) from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ModelError(f"{path} is damaged: {where}: {problem['msg']}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: {error}") from error
