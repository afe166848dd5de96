"""Components of plugins: found by their entry points, made by name, gone with their plugin."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from truthgpt_core.dynamic_factory import UnknownComponentError
from truthgpt_core.plugin_system import PluginManager, State
from truthgpt_core.service_registry import ServiceContainer
from truthgpt_services.data import DatasetManager
from truthgpt_services.data.sources.file_sources import JsonLines

# A stranger's: it knows the hook, and of this package nothing.
PLUGIN = '''
from torch.optim import Optimizer

from truthgpt_core import hookimpl


class SignSGD(Optimizer):
    """Steps by the sign of the gradient."""

    def __init__(self, params, lr: float = 0.1):
        super().__init__(params, {"lr": lr})

    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data -= group["lr"] * parameter.grad.sign()


class Counting:
    """Counts in words of one language."""

    def __init__(self, dataset: str, *, to: int = 3):
        self.words, self.to = dataset, to

    def texts(self):
        for number in range(self.to):
            yield f"{self.words} {number}"


@hookimpl
def register_components(factories):
    factories["optimizer_factory"].register("sign_sgd", SignSGD)
    factories["dataset_factory"].register("counting", Counting)
'''


@pytest.fixture
def acme(tmp_path, monkeypatch):
    """The plugin `acme`, installed as a distribution that needs the services."""
    (tmp_path / "acme_components.py").write_text(PLUGIN)
    info = tmp_path / "acme_components-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: acme-components\nVersion: 1.0\n"
        "Requires-Dist: truthgpt-core>=0.1,<0.2\nRequires-Dist: truthgpt-services>=0.1,<0.2\n"
    )
    (info / "entry_points.txt").write_text("[truthgpt.plugins]\nacme = acme_components\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_components", raising=False)
    manager = PluginManager(ServiceContainer())
    manager.activate("acme")
    return manager


def test_an_installed_plugin_s_optimizer_is_made_from_a_configuration(acme):
    """Naming it in a file is all that it takes to train with a stranger's optimizer."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    optimizer = acme.factories["optimizer_factory"].create_from_config(
        {"name": "sign_sgd", "parameters": {"lr": 0.25}}, [weight]
    )
    weight.square().sum().backward()
    optimizer.step()
    assert weight.tolist() == [0.75, -0.75]


def test_an_installed_plugin_s_texts_are_loaded_by_the_name_of_their_source(acme):
    """A stranger's source takes part in all that is done to a data set."""
    train, validation = DatasetManager.load_dataset("counting", "one", plugins=acme, to=10)
    assert len(validation) == 1
    assert sorted(train + validation) == [f"one {number}" for number in range(10)]


def test_an_installed_plugin_s_source_is_made_from_a_configuration(acme):
    """The factory gives the stream itself to who wants no list."""
    source = acme.factories["dataset_factory"].create_from_config(
        {"name": "counting", "parameters": {"to": 2}}, "uno"
    )
    assert list(source.texts()) == ["uno 0", "uno 1"]


@pytest.mark.parametrize(
    ("factory", "name", "other"),
    [("optimizer_factory", "sign_sgd", "adamw"), ("dataset_factory", "counting", "jsonl")],
)
def test_components_go_with_their_plugin_and_no_others(acme, factory, name, other):
    """After a plugin is deactivated, no configuration reaches its code."""
    names = acme.factories[factory].names()
    assert {name, other} <= set(names)
    acme.deactivate("acme")
    assert set(acme.factories[factory].names()) == set(names) - {name}
    with pytest.raises(UnknownComponentError, match=name):
        acme.factories[factory].create_from_config({"name": name}, [])


def test_components_come_back_with_their_plugin(acme):
    """A plugin that is activated again has all that it had."""
    names = acme.factories["optimizer_factory"].names()
    acme.deactivate("acme")
    acme.activate("acme")
    assert acme.factories["optimizer_factory"].names() == names


def test_a_plugin_that_takes_a_name_of_ours_is_refused_and_leaves_ours(tmp_path, bare_plugins):
    """A second "jsonl" is an error of the plugin that brings it, with all that it brings."""
    (tmp_path / "usurper.py").write_text(PLUGIN.replace('"counting"', '"jsonl"'))
    bare_plugins.strict = False
    (row,) = bare_plugins.load_plugins_from_directory(tmp_path)
    assert row.state is State.BROKEN
    assert 'dataset_factory has "jsonl" already' in row.reason
    assert bare_plugins.factories["dataset_factory"].get_class("jsonl") is JsonLines
    assert "sign_sgd" not in bare_plugins.factories["optimizer_factory"]


@pytest.mark.new_process
def test_filling_the_factories_imports_nothing_heavy():
    """Whoever lists plugins does not wait for torch, nor for libraries that read data."""
    script = (
        "import sys\n"
        "from truthgpt_core.plugin_system import get_plugin_manager\n"
        "manager = get_plugin_manager()\n"
        "manager.activate('services')\n"
        "factories = manager.factories\n"
        "for name in ('optimizer_factory', 'scheduler_factory', 'dataset_factory'):\n"
        "    assert factories[name].names()\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pyarrow', 'datasets'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
