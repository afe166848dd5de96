"""Fixtures: `doctor` runs `truthgpt doctor`, `torch` installs a torch of our own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Findings = dict[tuple[str, str], dict[str, str]]

TORCH = """
    {first}
    from types import SimpleNamespace as Some

    class Matrix:
        def __matmul__(self, other): return self
        def sum(self): return {product}

    __version__ = "9.9.0"
    version = Some(cuda={cuda!r}, hip=None)
    backends = Some(
        cpu=Some(get_cpu_capability=lambda: "AVX2"),
        mps=Some(is_available=lambda: False),
    )

    def get_num_threads(): return {threads}

    def ones(*shape, device):
        if device == {broken!r}:
            raise RuntimeError("no kernel image")
        return Matrix()

    def init(): raise RuntimeError("the driver is too old")

    cuda = Some(
        is_available=lambda: {devices} > 0,
        device_count=lambda: {devices},
        get_device_properties=lambda index: Some(name="Some GPU", total_memory=8e9),
        mem_get_info=lambda index: (6e9, 8e9),
        init=init,
    )
"""
"""What is asked of torch, where torch is not installed."""

WORKING = {
    "first": "",
    "cuda": None,
    "threads": 1,
    "devices": 0,
    "broken": "",
    "product": 64**3,
}


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory where programs are looked for, empty: no compiler and no driver."""
    for name in [*os.environ]:
        if name.startswith("TRUTHGPT_") and name != "TRUTHGPT_SETTINGS":
            monkeypatch.delenv(name)
    for name in ("CXX", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRUTHGPT_CACHE", str(tmp_path / "cache"))
    directory = tmp_path / "programs"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory


@pytest.fixture
def program(programs: Path) -> Callable[[str, str], Path]:
    """Put a shell script where programs are looked for."""

    def write(name: str, script: str) -> Path:
        path = programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return write


@pytest.fixture
def doctor(truthgpt) -> Callable[..., tuple[int, Findings]]:
    """Run `truthgpt doctor --json`; return its exit code and findings by area and subject."""

    def run(*options: str) -> tuple[int, Findings]:
        done = truthgpt("doctor", "--json", *options)
        assert done.stderr == ""
        findings = json.loads(done.stdout)
        by_subject = {(each["area"], each["subject"]): each for each in findings}
        assert len(by_subject) == len(findings)
        return done.returncode, by_subject

    return run


@pytest.fixture
def torch(site) -> Callable[..., None]:
    """Install a module of our own as torch 9.9.0."""

    def install(code: str = TORCH, **values: Any) -> None:
        if code is TORCH:
            code = code.format(**(WORKING | values))
        site.install("torch", files={"torch.py": code}, version="9.9.0", requires=())

    return install
