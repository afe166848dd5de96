"""The backend alone: two processes, without the loop that uses it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from truthgpt_core.plugin_system import PluginManager
from truthgpt_plugin_accelerate.backend import AccelerateBackend
from truthgpt_plugin_accelerate.errors import BackendError

# One worker runs the processes.
pytestmark = pytest.mark.xdist_group("processes")
SCRIPT = Path(__file__).parent / "two_processes.py"


@pytest.fixture(scope="module")
def seen() -> dict[str, list[Any]]:
    """What each of two processes, in order of rank, saw; and one alone, under `alone`."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_gradients_are_the_mean_of_all_processes(seen: dict[str, list[Any]], sharding: str) -> None:
    """After passes with and without an exchange, each process has the mean of both sums."""
    for process in seen[sharding]:
        assert process["gradient"] == pytest.approx(seen["alone"][0]["gradient"], rel=1e-5)


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_tensors_are_whole_again(seen: dict[str, list[Any]], sharding: str) -> None:
    """A part of a whole tensor, made whole, is the tensor; names and tied weights are kept."""
    for process in seen[sharding]:
        assert process["round trip"]
        assert process["tied"]
        assert process["names"] == seen["alone"][0]["names"]


def test_fsdp2_leaves_a_part_to_each_process(seen: dict[str, list[Any]]) -> None:
    """Two processes hold about a half of the weights each, and the optimizer those same ones."""
    (alone,) = seen["alone"]
    for process in seen["fsdp2"]:
        assert process["held"] == pytest.approx(alone["held"] / 2, rel=0.1)
        assert process["optimized"]
    assert seen["none"][1]["held"] == alone["held"]


def test_values_go_round(seen: dict[str, list[Any]]) -> None:
    """Sums, values of each process in order, and the main process's value reach all."""
    for process in seen["none"]:
        assert process["total"] == 3.0
        assert process["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert process["sent"] == "of 0"


def test_one_process_needs_no_launcher(seen: dict[str, list[Any]]) -> None:
    """Asked for by name, without a launcher, it trains in the one process there is."""
    (alone,) = seen["alone"]
    assert (alone["total"], alone["gathered"], alone["sent"]) == (1.0, [{"rank": 0}], "of 0")


def test_a_mistyped_sharding_is_named() -> None:
    """The error says what there is."""
    with pytest.raises(BackendError, match="fsdp3") as caught:
        AccelerateBackend(sharding="fsdp3")
    assert "fsdp2" in str(caught.value.hint)


@pytest.mark.hook("register_components")
def test_the_plugin_brings_it() -> None:
    """It is made by its name, with options, from the factory of backends."""
    manager = PluginManager()
    manager.activate_all()
    factory = manager.factories["training_backend_factory"]
    made = factory.create_from_config(
        {"name": "accelerate", "parameters": {"find_unused_parameters": True}}
    )
    assert isinstance(made, AccelerateBackend)


@pytest.mark.parametrize(
    ("environment", "launched"),
    [
        ({}, False),
        ({"WORLD_SIZE": "1", "RANK": "0"}, False),
        ({"WORLD_SIZE": "2", "RANK": "1"}, True),
    ],
)
def test_it_knows_its_launchers(environment: dict[str, str], launched: bool) -> None:
    """It is chosen where torchrun started several processes."""
    assert AccelerateBackend.launched(environment) is launched


def test_a_run_of_one_process_does_not_wait_for_accelerate() -> None:
    """That the plugin is installed costs a run without launcher no import of a second."""
    code = """
import sys
from truthgpt_plugin_accelerate.backend import AccelerateBackend
backend = AccelerateBackend()
assert not AccelerateBackend.launched({}) and backend.processes == 1
assert backend.prepare("model", None) == "model" and backend.device("cpu") == "cpu"
print({"torch", "accelerate"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr
