"""A plugin that registers another service changes what the commands do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

MODULE = """
from truthgpt_core import hookimpl
from truthgpt_services import InferenceService, ModelService


class Louder(InferenceService):
    def stream(self, prompt, options=None):
        print("louder", end=": ")
        return super().stream(prompt, options)


class Watching(ModelService):
    def load_model(self, name, options=None):
        with open(PLACE, "a") as file:
            file.write("load_model\\n")
        return super().load_model(name, options)

    def save_model(self, *args, **kwargs):
        with open(PLACE, "a") as file:
            file.write("save_model\\n")
        return super().save_model(*args, **kwargs)


@hookimpl
def register_services(registry):
    registry.register("inference_service", Louder, replace=True)
    registry.register("model_service", Watching, replace=True)
"""


@pytest.fixture
def watched(tmp_path, monkeypatch, example_distribution) -> Path:
    """Install a plugin that replaces two services; return the file that one notes its calls in."""
    site, place = tmp_path / "site", tmp_path / "watched"
    info = site / "replacing-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "replacing.py").write_text(MODULE.replace("PLACE", repr(str(place))))
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: replacing\nVersion: 1.0\n"
        "Requires-Dist: truthgpt-core>=0.1,<0.2\nRequires-Dist: truthgpt-services\n"
    )
    (info / "entry_points.txt").write_text("[truthgpt.plugins]\nreplacing = replacing\n")
    before = str(example_distribution)
    monkeypatch.setenv("PYTHONPATH", before, prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")
    return place


def test_generate_uses_the_services_of_a_plugin(truthgpt, tiny, watched):
    """`truthgpt generate` loads and generates with what the plugin registered."""
    done = truthgpt("generate", tiny, "Once", "--raw", "--max-new-tokens", "2", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("louder: ")
    assert watched.read_text().split() == ["load_model"]


def test_workers_make_candidates_with_the_model_service_of_a_plugin(
    truthgpt, tiny, watched, tmp_path
):
    """`truthgpt optimize` saves candidates and loads them with it, in its worker processes."""
    done = truthgpt(
        *("optimize", tiny, "--apply", "halve", "-o", tmp_path / "out", "--device", "cpu"),
        "--quick",
    )
    assert done.returncode == 0, done.stderr
    assert {"load_model", "save_model"} <= set(watched.read_text().split())


def test_the_graph_shows_who_needs_whom(truthgpt, example_distribution):
    """`truthgpt services --json` lists the dependencies that the container injects."""
    listed = json.loads(truthgpt("services", "--json").stdout)
    needs = {each["name"]: set(each["needs"]) for each in listed}
    assert needs["inference_service"] == {"plugin_manager", "event_emitter"}
    assert {"model_service", "training_service"} <= needs["training_job"]
