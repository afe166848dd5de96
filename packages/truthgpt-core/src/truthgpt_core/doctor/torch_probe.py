"""The probe of torch: run as a process of its own, because importing it can kill one."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from truthgpt_core.child_process import send, serve
from truthgpt_core.diagnosis import Diagnosis, Status
from truthgpt_core.doctor.findings import Area, doing, found, sized
from truthgpt_core.doctor.machine import usable_cores
from truthgpt_core.errors import in_one_line

REINSTALL = "pip install --force-reinstall torch"

_DRIVER = Path("/proc/driver/nvidia/version")
_BUILDS = "Install a build of torch for it: https://pytorch.org/get-started/locally."


def installed_version() -> str:
    """The version of torch that its metadata says; empty if there is none."""
    try:
        return version("torch") or ""
    except (PackageNotFoundError, KeyError, ValueError, OSError):
        return ""


def probe() -> None:
    """Import torch, compute with it on every device, and tell which `devices` there are."""
    doing(f"importing torch {installed_version()}".rstrip())
    try:
        torch = importlib.import_module("torch")
    except BaseException as error:  # noqa: BLE001 - shown to the user
        found(Area.TORCH, [_not_imported(error)])
        return
    if getattr(torch, "__file__", None) is None:
        places = ", ".join(getattr(torch, "__path__", ()))
        detail = f"it has no code: {places} holds what is left of it"
        found(Area.TORCH, [Diagnosis.failed("torch", detail, REINSTALL)])
        return
    send("devices", ["cpu"])
    found(Area.TORCH, _guarded("torch", _build, torch))
    doing("computing on the CPU")
    found(Area.TORCH, _guarded("computing", _cpu, torch))
    accelerators, usable = 0, ["cpu"]
    for kind, look in (("cuda", _cuda), ("mps", _mps), ("xpu", _xpu)):
        doing(f"looking for {kind} devices")
        there = list(_guarded(kind, look, torch))
        accelerators += found(Area.ACCELERATORS, there)
        if any(diagnosis.status is Status.OK for diagnosis in there):
            usable.append(kind)
    if not accelerators:
        found(Area.ACCELERATORS, _guarded("GPU", _none, torch))
    if len(usable) > 1:
        send("devices", usable)
        doing("importing triton")
        found(Area.COMPILERS, _guarded("triton", _triton, torch))


def nvidia_driver() -> str:
    """Say where an NVIDIA driver shows; empty if none does."""
    try:
        text = _DRIVER.read_text(errors="replace")
    except OSError:
        tool = shutil.which("nvidia-smi")
        return f"there is {tool}" if tool else ""
    number = re.search(r"\s(\d+(?:\.\d+)+)\s", text)
    return f"the NVIDIA driver {number[1]} is loaded" if number else "an NVIDIA driver is loaded"


def _not_imported(error: BaseException) -> Diagnosis:
    have = installed_version()
    if isinstance(error, ModuleNotFoundError) and error.name == "torch" and not have:
        return Diagnosis.warning(
            "torch",
            "not installed: models can be neither optimized nor run",
            "pip install truthgpt-services",
        )
    named = f"torch {have}" if have else "torch"
    return Diagnosis.failed("torch", f"importing {named}: {in_one_line(error)}", REINSTALL)


def _guarded(
    subject: str, look: Callable[[Any], Iterator[Diagnosis]], torch: Any
) -> Iterator[Diagnosis]:
    """Yield what a look at torch finds; what it raises is a failure."""
    try:
        yield from look(torch)
    except BaseException as error:  # noqa: BLE001 - shown to the user
        yield Diagnosis.failed(subject, in_one_line(error), REINSTALL)


def _build(torch: Any) -> Iterator[Diagnosis]:
    version = torch.version
    kinds = (("CUDA", "cuda"), ("ROCm", "hip"), ("XPU", "xpu"))
    built = [f"{name} {has}" for name, key in kinds if (has := getattr(version, key, None))]
    yield Diagnosis.ok(
        "torch", f"{torch.__version__}, built for {' and '.join(built) or 'the CPU'}"
    )


def _cpu(torch: Any) -> Iterator[Diagnosis]:
    _compute(torch, "cpu")
    capability = torch.backends.cpu.get_cpu_capability()
    threads, cores = torch.get_num_threads(), usable_cores()
    counted = f"{threads} thread{'s' if threads > 1 else ''}"
    detail = f"works on the CPU; kernels for {capability}, {counted}"
    if threads > cores:
        yield Diagnosis.warning(
            "computing",
            f"{detail} on {cores} core{'s' if cores > 1 else ''}: they wait for each other",
            f"Set OMP_NUM_THREADS={cores}.",
        )
    elif capability == "DEFAULT" and platform.machine() in ("x86_64", "AMD64"):
        chosen = os.environ.get("ATEN_CPU_CAPABILITY")
        yield Diagnosis.warning(
            "computing",
            f"{detail}: without vector instructions it is slow",
            "Unset ATEN_CPU_CAPABILITY." if chosen else "",
        )
    else:
        yield Diagnosis.ok("computing", detail)


def _cuda(torch: Any) -> Iterator[Diagnosis]:
    if not torch.cuda.is_available():
        return
    # ROCm answers to the same names.
    for index in range(torch.cuda.device_count()):
        device = f"cuda:{index}"
        try:
            about = torch.cuda.get_device_properties(index)
            _compute(torch, device)
            free, total = torch.cuda.mem_get_info(index)
        except Exception as error:  # noqa: BLE001 - shown to the user
            yield _unusable(device, error)
        else:
            detail = f"{about.name}, {sized(total)}, {sized(free)} free"
            yield Diagnosis.ok(device, detail)


def _mps(torch: Any) -> Iterator[Diagnosis]:
    if not torch.backends.mps.is_available():
        return
    try:
        _compute(torch, "mps")
    except Exception as error:  # noqa: BLE001 - shown to the user
        yield _unusable("mps", error)
    else:
        yield Diagnosis.ok("mps", "the GPU of this Mac")


def _xpu(torch: Any) -> Iterator[Diagnosis]:
    if not hasattr(torch, "xpu") or not torch.xpu.is_available():
        return
    for index in range(torch.xpu.device_count()):
        device = f"xpu:{index}"
        try:
            about = torch.xpu.get_device_properties(index)
            _compute(torch, device)
        except Exception as error:  # noqa: BLE001 - shown to the user
            yield _unusable(device, error)
        else:
            yield Diagnosis.ok(device, f"{about.name}, {sized(about.total_memory)}")


def _unusable(device: str, error: Exception) -> Diagnosis:
    return Diagnosis.failed(
        device,
        f"computing on it fails: {in_one_line(error)}",
        f"It may be in use, or not supported by this build. {_BUILDS}",
    )


def _compute(torch: Any, device: str) -> None:
    """Multiply two matrices.

    Raises:
        ArithmeticError: the result is wrong.
    """
    ones = torch.ones(64, 64, device=device)
    if float((ones @ ones).sum()) != 64.0**3:
        raise ArithmeticError("the product of two matrices is wrong")


def _none(torch: Any) -> Iterator[Diagnosis]:
    """Say why there is no accelerator, where one may be expected."""
    driver = nvidia_driver()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    cuda, hip = getattr(torch.version, "cuda", None), getattr(torch.version, "hip", None)
    if cuda and driver and hidden is not None:
        yield Diagnosis.warning(
            "CUDA",
            f"{driver}, and no device is visible: CUDA_VISIBLE_DEVICES is {hidden!r}",
            "Unset CUDA_VISIBLE_DEVICES to use the GPU.",
        )
    elif cuda and driver:
        yield _not_initialized(torch, driver)
    elif cuda:
        yield Diagnosis.warning(
            "CUDA",
            f"torch is built for CUDA {cuda}, and there is no NVIDIA driver: it uses the CPU",
            "If this machine has an NVIDIA GPU, install its driver.",
        )
    elif hip:
        yield Diagnosis.warning(
            "ROCm",
            f"torch is built for ROCm {hip}, and it finds no GPU: it uses the CPU",
            "If this machine has an AMD GPU, install its driver.",
        )
    elif driver:
        yield Diagnosis.warning(
            "CUDA", f"{driver}, and torch is not built for CUDA: it uses the CPU", _BUILDS
        )
    else:
        yield Diagnosis.ok("GPU", "none: models run on the CPU")


def _not_initialized(torch: Any, driver: str) -> Diagnosis:
    try:
        torch.cuda.init()
    except Exception as error:  # noqa: BLE001 - shown to the user
        return Diagnosis.failed(
            "CUDA",
            f"{driver}, and torch cannot use it: {in_one_line(error)}",
            f"See whether nvidia-smi works and update the driver, or choose another build: "
            f"{_BUILDS.rpartition(' ')[2]}",
        )
    return Diagnosis.warning("CUDA", f"{driver}, and torch finds no device", "Look at nvidia-smi.")


def _triton(torch: Any) -> Iterator[Diagnosis]:
    try:
        triton = importlib.import_module("triton")
    except ModuleNotFoundError:
        yield Diagnosis.warning(
            "triton", "not installed: models cannot be compiled for a GPU", "pip install triton"
        )
    else:
        yield Diagnosis.ok("triton", str(triton.__version__))


if __name__ == "__main__":
    serve(lambda request, arguments: probe())
