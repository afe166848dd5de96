"""What `truthgpt doctor` says of a real torch, and what the services add to it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from truthgpt_core.diagnosis import Status
from truthgpt_services.plugin import ServicesPlugin

# What libraries are like is found out by processes that start.
pytestmark = [pytest.mark.slow, pytest.mark.new_process]

Findings = dict[tuple[str, str], dict[str, str]]


@pytest.fixture
def doctor(truthgpt: Any) -> Callable[..., Findings]:
    """Run `truthgpt doctor --json`; return its findings by area and subject."""

    def run(**environment: str) -> Findings:
        done = truthgpt("doctor", "--json", env=os.environ | environment)
        assert done.stderr == ""
        return {(each["area"], each["subject"]): each for each in json.loads(done.stdout)}

    return run


def test_torch_and_the_libraries_work_here(doctor: Callable[..., Findings]) -> None:
    """Where the other tests pass, torch computes and what models are loaded with is found."""
    findings = doctor()
    assert findings["torch", "torch"]["detail"].startswith(f"{torch.__version__}, built for ")
    capability = torch.backends.cpu.get_cpu_capability()
    assert f"kernels for {capability}" in findings["torch", "computing"]["detail"]
    for library in ("transformers", "safetensors", "gguf", "accelerate"):
        about = findings["plugins", f"services: {library}"]
        assert (about["status"], about["detail"]) == ("ok", version(library))
    assert "HF_HUB_OFFLINE is set" in findings["plugins", "services: hub"]["detail"]


def test_a_library_that_cannot_be_imported_is_named(
    doctor: Callable[..., Findings], tmp_path: Path
) -> None:
    """A library that is installed and broken is a failure of its own; the others go on."""
    (tmp_path / "gguf.py").write_text("raise ImportError('no\\nway')")
    findings = doctor(PYTHONPATH=str(tmp_path))
    about = findings["plugins", "services: gguf"]
    assert about["status"] == "failed"
    assert about["detail"] == "importing it: ImportError: no way"
    assert about["fix"].startswith("pip install")
    assert findings["plugins", "services: accelerate"]["status"] == "ok"


def test_the_hub_is_where_models_are_kept() -> None:
    """The directory is the one that the hub's library uses."""
    from huggingface_hub import constants

    hub = [each for each in ServicesPlugin().diagnose() if each.subject == "hub"]
    assert [each.status for each in hub] == [Status.OK]
    assert constants.HF_HUB_CACHE in hub[0].detail
