"""A model source as a third party would publish it: `zoo:NAME`, in the directory ZOO."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truthgpt_core import ModelSource, ResolvedModel, TruthGPTError, hookimpl


class Zoo(ModelSource):
    name = "zoo"
    rank = 1

    def claims(self, spec: str) -> bool:
        return spec.startswith("zoo:")

    def resolve(self, spec: str) -> ResolvedModel:
        animal = spec.removeprefix("zoo:")
        if animal == "dodo":
            return ResolvedModel(spec, self.name)
        path = Path(os.environ["ZOO"], animal)
        if not path.exists():
            raise TruthGPTError(f'There is no "{animal}" in the zoo', hint="There is a dodo.")
        return ResolvedModel(spec, self.name, path)


@hookimpl
def register_components(factories: Mapping[str, Any]) -> None:
    factories["model_source_factory"].register(Zoo.name, Zoo)
