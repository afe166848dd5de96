"""The contracts of sources and exporters, as their authors meet them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from truthgpt_core import Exporter, ModelSource, Options, ResolvedModel, TextSource
from truthgpt_core.dynamic_factory import ComponentTypeError


class Zoo(ModelSource):
    name = "zoo"

    def claims(self, spec: str) -> bool:
        return spec.startswith("zoo:")

    def resolve(self, spec: str) -> ResolvedModel:
        return ResolvedModel(spec, self.name)


class Poems:
    def texts(self):
        yield "a poem"


class Stone(Exporter[Options]):
    name = "stone"
    summary = "Carves it."

    def export(self, model: Any, directory: Path, options: Options) -> None:
        (directory / "stone").touch()


@pytest.mark.parametrize(
    ("factory", "kind"),
    [("model_source_factory", Zoo), ("dataset_factory", Poems), ("exporter_factory", Stone)],
)
def test_a_factory_takes_what_keeps_its_contract_and_nothing_else(manager, factory, kind) -> None:
    """An author's mistake is found when the component is registered, not when it is used."""
    manager.factories[factory].register("one", kind)
    assert isinstance(manager.factories[factory].create("one"), kind)
    with pytest.raises(ComponentTypeError, match=f"{factory} takes "):
        manager.factories[factory].register("other", dict)


def test_a_source_of_texts_derives_from_nothing() -> None:
    """A class with the method `texts` is one."""
    assert isinstance(Poems(), TextSource)


@pytest.mark.parametrize(
    ("path", "is_gguf"), [(Path("a.gguf"), True), (Path("a"), False), (None, False)]
)
def test_a_model_that_is_not_on_disk_is_not_a_file_to_convert(path, is_gguf) -> None:
    """One behind a URL has no path, and nothing about it needs one."""
    assert ResolvedModel("zoo:a", "zoo", path).is_gguf is is_gguf
