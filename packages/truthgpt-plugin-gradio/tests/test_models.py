"""Which models are loaded, and which run is drawn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest

from truthgpt_core.application import Application
from truthgpt_core.errors import TruthGPTError, UsageError
from truthgpt_core.sources import ModelSource, ResolvedModel
from truthgpt_plugin_gradio import find_run, load_models
from truthgpt_plugin_gradio.errors import DemoError

if TYPE_CHECKING:
    from truthgpt_plugin_gradio import DemoModel

pytestmark = pytest.mark.xdist_group("page")


def copied(optimized: Path, to: Path, **changes: object) -> Path:
    """A copy of an optimized model whose truthgpt.json says something else."""
    shutil.copytree(optimized, to)
    marker = to / "truthgpt.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | changes))
    return to


def test_the_base_of_an_optimized_model_comes_first(
    models: list[DemoModel], base: Path, optimized: Path
) -> None:
    """Named alone, it is beside the model that it was made from, with its report."""
    found = load_models([str(optimized)])
    assert [each.spec for each in found] == [str(base), str(optimized)]
    assert [each.report is not None for each in found] == [False, True]
    assert [each.engine for each in found] == ["torch", "torch"]
    assert found[0].weights_bytes == models[0].weights_bytes
    assert isinstance(found[0].weights_bytes, int)


def test_more_than_two_can_be_given(base: Path, optimized: Path, tmp_path: Path) -> None:
    """All are loaded, each once, in the order given."""
    third = copied(optimized, tmp_path / "third")
    specs = [str(base), str(optimized), str(base), str(third)]
    assert [each.spec for each in load_models(specs)] == [str(base), str(optimized), str(third)]


def test_a_model_that_is_missing_is_known_before_any_is_loaded(base: Path) -> None:
    """A slip in the second name does not wait for the first model."""
    said: list[str] = []
    with pytest.raises(TruthGPTError, match="nowhere"):
        load_models([str(base), "./nowhere"], progress=lambda what, *_: said.append(what))
    assert said == []


def test_a_base_that_is_gone_is_an_error_that_names_it(optimized: Path, tmp_path: Path) -> None:
    """What the model was made from may be on another machine; the error says what to type."""
    moved = copied(optimized, tmp_path / "moved", source="./gone")
    with pytest.raises(DemoError, match=r"made from cannot be found: .*gone") as error:
        load_models([str(moved)])
    assert "truthgpt demo BASE" in str(error.value)


class Elsewhere(ModelSource):
    """Models of another machine."""

    name: ClassVar[str] = "elsewhere"

    def claims(self, spec: str) -> bool:
        return spec.startswith("elsewhere:")

    def resolve(self, spec: str) -> ResolvedModel:
        return ResolvedModel(spec, self.name)


def test_a_directory_cannot_send_questions_elsewhere(optimized: Path, tmp_path: Path) -> None:
    """A base is not taken from a directory's word if it would run on another machine."""
    application = Application()
    application.plugins.activate_all()
    application.factories["model_source_factory"].register(Elsewhere.name, Elsewhere)
    hostile = copied(optimized, tmp_path / "hostile", source="elsewhere:attacker")
    with pytest.raises(DemoError, match="which is not on this machine"):
        load_models([str(hostile)], application)


def test_no_model_at_all_is_refused() -> None:
    """There is nothing to ask."""
    with pytest.raises(UsageError, match="No model is named"):
        load_models([])


def test_a_damaged_report_leaves_the_model_usable(optimized: Path, tmp_path: Path) -> None:
    """The page says why there is none; the model answers."""
    damaged = copied(optimized, tmp_path / "damaged")
    damaged.joinpath("report.json").write_text('{"schema_version": 1')
    model = load_models([str(damaged)])[-1]
    assert model.report is None
    assert "is not JSON" in model.report_problem
    assert model.service.generate(model.prompt("Hello"), {"max_new_tokens": 2})


def test_the_run_of_a_trained_model_is_found(models: list[DemoModel], base: Path) -> None:
    """A model in the directory of a run brings its losses; another does not."""
    assert find_run(models) is None
    metrics = base.parent / "metrics.jsonl"
    metrics.touch()
    try:
        assert find_run(models) == base.parent
    finally:
        metrics.unlink()


def test_the_run_that_is_named_comes_first(models: list[DemoModel], tmp_path: Path) -> None:
    """It has to be one."""
    with pytest.raises(DemoError, match=r"it has no metrics\.jsonl"):
        find_run(models, tmp_path)
    tmp_path.joinpath("metrics.jsonl").touch()
    assert find_run(models, tmp_path) == tmp_path
