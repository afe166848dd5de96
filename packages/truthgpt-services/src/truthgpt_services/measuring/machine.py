"""What machine this is and which versions run on it, for the report."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from truthgpt_services.results.schema import Machine

DISTRIBUTIONS = (
    "truthgpt-core",
    "truthgpt-services",
    "truthgpt-plugin-quantize",
    "truthgpt-plugin-compile",
    "torch",
    "transformers",
    "torchao",
    "safetensors",
    "gguf",
)


def describe_machine(device: torch.device) -> Machine:
    """Describe this machine as the report does."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        cpu=_cpu_name(),
        cores=cores or 1,
        threads=torch.get_num_threads(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        memory_bytes=pages,
        accelerators=[
            torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
        ],
        device=str(device),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
    )


def describe_versions() -> dict[str, str]:
    """Versions of what takes part in a measurement, as far as it is installed."""
    found = {}
    for distribution in DISTRIBUTIONS:
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()
