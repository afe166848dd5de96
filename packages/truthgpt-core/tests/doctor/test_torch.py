"""What is said of torch and of GPUs, whatever torch does."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

WRITE = """
    import os, signal

    for fd in range(3, 30):
        try:
            os.write(fd, {text!r})
        except OSError:
            pass
    {end}
"""
RUBBISH = WRITE.format(text=b"\x1erubbish\n", end="os._exit(0)")
CUT_OFF = WRITE.format(text=b'\x1e["fin', end="os.kill(os.getpid(), signal.SIGKILL)")


def failed(findings) -> list[tuple[str, str]]:
    """Name what has failed."""
    return [name for name, each in findings.items() if each["status"] == "failed"]


@pytest.mark.skipif(find_spec("torch") is not None, reason="torch is installed here")
def test_torch_that_is_not_installed_is_a_warning(doctor) -> None:
    """The core works without torch; what brings it is named."""
    code, findings = doctor()
    about = findings["torch", "torch"]
    assert about["status"] == "warning"
    assert about["fix"] == "pip install truthgpt-services"
    assert code == 0


def test_torch_that_works_is_described(doctor, torch) -> None:
    """Version, build and threads are shown, and that it computes."""
    torch()
    _, findings = doctor()
    assert findings["torch", "torch"]["detail"] == "9.9.0, built for the CPU"
    assert findings["torch", "computing"]["status"] == "ok"
    assert "kernels for AVX2, 1 thread" in findings["torch", "computing"]["detail"]


@pytest.mark.campaign(cases=4)
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "killed by SIGILL"),
        ("import os; os.write(2, b'out of luck\\n'); os.abort()", "killed by SIGABRT: out of luck"),
        ("import os; os._exit(0)", "exit code 0"),
        ("import os; os.write(2, b'bad news\\n'); os._exit(7)", "exit code 7: bad news"),
        ("import sys; sys.exit('no')", "SystemExit: no"),
        ("raise ImportError('libcudart.so.12: cannot open')", "ImportError: libcudart.so.12"),
        ("import numpy_not_there", "ModuleNotFoundError: No module named 'numpy_not_there'"),
        ("def f(:", "SyntaxError: "),
        (RUBBISH, "its answer cannot be read"),
        (CUT_OFF, "killed by SIGKILL"),
    ],
)
def test_torch_that_breaks_is_one_failure(doctor, torch, code: str, said: str) -> None:
    """Whatever importing torch does, one finding says what, with a fix; the rest goes on."""
    torch(code)
    status, findings = doctor()
    about = findings["torch", "torch"]
    assert about["status"] == "failed"
    assert about["detail"].startswith(f"importing torch 9.9.0: {said}")
    assert about["fix"]
    assert [name for name in failed(findings) if name[0] == "torch"] == [("torch", "torch")]
    assert status == 1
    assert ("config", "cache") in findings


def test_torch_that_hangs_is_a_failure(doctor, torch) -> None:
    """Nothing waits for torch for ever."""
    torch("import time; time.sleep(600)")
    code, findings = doctor("--timeout", "1.5")
    about = findings["torch", "torch"]
    assert about["status"] == "failed"
    assert about["detail"].endswith("no answer within 1.5 s")
    assert "--timeout 4.5" in about["fix"]
    assert code == 1


def test_what_torch_prints_is_no_answer(doctor, torch, site) -> None:
    """What is printed before, while and after torch is imported spoils nothing."""
    noise = "import os; os.write(1, b'noise, without an end'); print('noise {')"
    in_the_probe = "any('torch_probe' in each for each in sys.orig_argv)"
    site.install("noisy", files={"sitecustomize.py": f"import sys\nif {in_the_probe}: {noise}\n"})
    torch(first=noise)
    _, findings = doctor()
    assert findings["torch", "torch"]["detail"] == "9.9.0, built for the CPU"


def test_what_is_left_of_torch_is_a_failure(doctor, site) -> None:
    """A folder that pip could not remove can be imported, and is not torch."""
    (site.path / "torch").mkdir()
    _, findings = doctor()
    about = findings["torch", "torch"]
    assert about["status"] == "failed"
    assert str(site.path / "torch") in about["detail"]


def test_torch_that_computes_wrong_is_a_failure(doctor, torch) -> None:
    """That torch can be imported is not enough: it has to compute."""
    torch(product=1)
    _, findings = doctor()
    assert findings["torch", "computing"]["status"] == "failed"
    assert "is wrong" in findings["torch", "computing"]["detail"]


def test_more_threads_than_cores_is_a_warning(doctor, torch) -> None:
    """In a container with few cores torch starts too many threads; the fix says how many."""
    torch(threads=9999)
    _, findings = doctor()
    about = findings["torch", "computing"]
    assert about["status"] == "warning"
    assert about["fix"].startswith("Set OMP_NUM_THREADS=")


# Accelerators


@pytest.fixture
def no_driver() -> None:
    """Be on a machine with no NVIDIA driver."""
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has an NVIDIA driver")


def test_a_gpu_is_shown_and_optimizations_are_asked_about_it(doctor, torch, site) -> None:
    """Each device has its name and memory, and each optimization is asked about its kind."""
    torch(cuda="13.0", devices=2)
    site.install_plugin(
        "half",
        """
        from truthgpt_core import Optimization, Verdict
        class Half(Optimization):
            name = "half"
            def apply(self, model, context): ...
            def check(self, device):
                if device == "cpu":
                    return Verdict.yes()
                return Verdict.no(f"not on {device}", "Buy another.")
        """,
        optimizations={"half": "MODULE:Half"},
    )
    code, findings = doctor()
    assert [name for area, name in findings if area == "accelerators"] == ["cuda:0", "cuda:1"]
    for device in ("cuda:0", "cuda:1"):
        assert findings["accelerators", device]["detail"] == "Some GPU, 8.0 GB, 6.0 GB free"
    assert findings["optimizations", "half on cpu"]["status"] == "ok"
    assert findings["optimizations", "half on cuda"] == {
        "area": "optimizations",
        "subject": "half on cuda",
        "status": "warning",
        "detail": "not on cuda",
        "fix": "Buy another.",
    }
    assert code == 0


def test_a_gpu_needs_triton_to_compile(doctor, torch, site) -> None:
    """With a GPU, triton belongs to the compilers; here it cannot be imported."""
    torch(cuda="13.0", devices=1)
    site.install("triton", files={"triton.py": "raise OSError('no libdevice')"})
    _, findings = doctor()
    assert findings["compilers", "triton"]["status"] == "failed"
    assert "no libdevice" in findings["compilers", "triton"]["detail"]


def test_a_gpu_that_cannot_compute_is_a_failure(doctor, torch) -> None:
    """A device that torch lists and cannot use is not taken for one that works."""
    torch(cuda="13.0", devices=2, broken="cuda:1")
    code, findings = doctor()
    assert findings["accelerators", "cuda:0"]["status"] == "ok"
    assert findings["accelerators", "cuda:1"]["status"] == "failed"
    assert "no kernel image" in findings["accelerators", "cuda:1"]["detail"]
    assert code == 1


@pytest.mark.usefixtures("no_driver")
def test_torch_for_cuda_without_a_driver_is_a_warning(doctor, torch) -> None:
    """A build for CUDA works on the CPU, which may not be what was wanted."""
    torch(cuda="13.0")
    _, findings = doctor()
    about = findings["accelerators", "CUDA"]
    assert about["status"] == "warning"
    assert "built for CUDA 13.0, and there is no NVIDIA driver" in about["detail"]
    assert "driver" in about["fix"]


@pytest.mark.usefixtures("no_driver")
def test_a_driver_without_torch_for_cuda_is_a_warning(doctor, torch, program) -> None:
    """A GPU that the installed build of torch cannot use is pointed out."""
    program("nvidia-smi", "exit 0")
    torch()
    _, findings = doctor()
    about = findings["accelerators", "CUDA"]
    assert about["status"] == "warning"
    assert "torch is not built for CUDA" in about["detail"]
    assert "https://pytorch.org" in about["fix"]


@pytest.mark.usefixtures("no_driver")
def test_a_driver_that_torch_cannot_use_is_a_failure(doctor, torch, program) -> None:
    """What torch says of the driver is shown."""
    program("nvidia-smi", "exit 0")
    torch(cuda="13.0")
    _, findings = doctor()
    about = findings["accelerators", "CUDA"]
    assert about["status"] == "failed"
    assert "the driver is too old" in about["detail"]


@pytest.mark.usefixtures("no_driver")
def test_a_hidden_gpu_is_a_warning(doctor, torch, program, monkeypatch) -> None:
    """A variable that hides the GPU is named, rather than the driver blamed."""
    program("nvidia-smi", "exit 0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    torch(cuda="13.0")
    _, findings = doctor()
    assert findings["accelerators", "CUDA"]["status"] == "warning"
    assert findings["accelerators", "CUDA"]["fix"].startswith("Unset CUDA_VISIBLE_DEVICES")
