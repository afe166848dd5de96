"""What is said of the machine, and of what a container leaves of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from truthgpt_core.diagnosis import Status
from truthgpt_core.doctor.findings import Area, Finding, printable, sized
from truthgpt_core.doctor.machine import (
    Limits,
    diagnose_cpu,
    diagnose_memory,
    diagnose_version,
    read_limits,
    usable_cores,
    vector_extensions,
)

CPUINFO = """\
processor\t: 0
model name\t: Some CPU
flags\t\t: fpu sse2 avx2 {flags}

processor\t: 1
model name\t: Some CPU
flags\t\t: fpu sse2 avx2
"""
MEMINFO = "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:   {available} kB\n"


def test_the_machine_is_described(doctor) -> None:
    """System, CPU, memory and disk are there wherever it runs."""
    _, findings = doctor()
    for subject in ("system", "CPU", "memory", "disk"):
        assert findings["machine", subject]["detail"]
    assert findings["python", "Python"]["detail"].startswith(sys.version.split()[0])


@pytest.mark.parametrize(("running", "status"), [("3.12.1", "ok"), ("3.14.0", "warning")])
def test_a_python_that_is_not_tested_is_a_warning(running: str, status: str) -> None:
    """A later Python may work; the one to use instead is named."""
    about = diagnose_version(running, ["3", "3 :: Only", "3.11", "3.12"])
    assert about.status == status
    assert about.fix == ("" if status == "ok" else "Use Python 3.12.")


# CPU and memory


def test_extensions_are_those_of_every_core() -> None:
    """What one core lacks cannot be used."""
    assert vector_extensions(CPUINFO.format(flags="avx512f amx_tile")) == ["AVX2"]
    assert vector_extensions("flags : avx2 avx512f amx_tile") == ["AVX2", "AVX-512", "AMX"]
    assert vector_extensions("Features : asimd sve") == ["NEON", "SVE"]
    assert vector_extensions("model name: x") is None


def test_the_cpu_has_its_name_and_extensions() -> None:
    """The name is the one that people know it by."""
    about = diagnose_cpu(CPUINFO.format(flags=""), Limits())
    assert about.detail.startswith("Some CPU, ")
    assert about.detail.endswith(", AVX2")
    assert "unknown" in diagnose_cpu("", Limits()).detail


def test_a_limit_of_cores_is_said() -> None:
    """In a container the number of cores alone would mislead."""
    about = diagnose_cpu(CPUINFO.format(flags=""), Limits(cores=0.5))
    assert "limited to the time of 0.5" in about.detail


@pytest.mark.parametrize(
    ("available", "limits", "said", "status"),
    [
        (8_000_000, Limits(), "16.4 GB, 8.2 GB available", Status.OK),
        (500_000, Limits(), "16.4 GB, 512 MB available", Status.WARNING),
        (
            8_000_000,
            Limits(memory=4 * 10**9, memory_left=3 * 10**9),
            "4.0 GB, the limit of this container, 3.0 GB available",
            Status.OK,
        ),
        (
            8_000_000,
            Limits(memory=4 * 10**9, memory_left=10**8),
            "4.0 GB, the limit of this container, 100 MB available",
            Status.WARNING,
        ),
        (8_000_000, Limits(memory=10**12, memory_left=1), "16.4 GB, 8.2 GB available", Status.OK),
    ],
)
def test_memory_is_what_this_process_may_have(
    available: int, limits: Limits, said: str, status: Status
) -> None:
    """Of the machine's memory and the container's limit, the smaller one counts."""
    about = diagnose_memory(MEMINFO.format(available=available), limits)
    assert (about.detail, about.status) == (said, status)


# Control groups


def write(folder: Path, **files: str) -> None:
    """Write a control group."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_version_2_limits_are_read_with_those_around(tmp_path: Path) -> None:
    """The narrowest of this group's limits and its parents' counts."""
    root = tmp_path / "root"
    write(root / "a", memory__max="4000", memory__current="1000", cpu__max="200000 100000")
    (root / "a" / "memory.stat").write_text("anon 5\ninactive_file 300\n")
    write(root / "a" / "b", memory__max="max", memory__current="10", cpu__max="max 100000")
    (tmp_path / "cgroup").write_text("0::/a/b\n")
    assert read_limits(root, tmp_path / "cgroup") == Limits(4000, 3300, 2.0)


def test_version_1_limits_are_read(tmp_path: Path) -> None:
    """Version 1 has a tree for each controller, and shows a container's own at its top."""
    root = tmp_path / "root"
    write(root / "memory", memory__limit_in_bytes="4000", memory__usage_in_bytes="1000")
    write(root / "cpu", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    (tmp_path / "cgroup").write_text("4:memory:/outside\n3:cpu,cpuacct:/outside\n0::/\n")
    assert read_limits(root, tmp_path / "cgroup") == Limits(4000, 3000, 0.5)


def test_no_limits_are_none(tmp_path: Path) -> None:
    """The huge number and the -1 by which version 1 says "none" are no limits."""
    root = tmp_path / "root"
    write(root / "memory", memory__limit_in_bytes=str(2**63 - 4096), memory__usage_in_bytes="1")
    write(root / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    (tmp_path / "cgroup").write_text("4:memory:/\n3:cpu:/\n")
    assert read_limits(root, tmp_path / "cgroup") == Limits()
    assert read_limits(root, tmp_path / "nowhere") == Limits()


def test_threads_are_counted_from_what_is_allowed() -> None:
    """Half a core's time is one thread; no limit leaves all cores."""
    assert usable_cores(Limits(cores=0.5)) == 1
    assert usable_cores(Limits(cores=1e6)) == usable_cores(Limits()) >= 1


# Text


def test_text_becomes_one_harmless_line() -> None:
    """Line breaks, escape sequences and half characters never reach a terminal; length ends."""
    assert printable("a\n  b\tc") == "a b c"
    assert printable("\x1b[31m \ud800 é") == "\\x1b[31m \\ud800 é"
    assert len(printable("x" * 10_000)) < 3000


def test_sizes_are_decimal() -> None:
    """As on the boxes of disks, and in the report."""
    assert [sized(n) for n in (0, 1500, 538_000_000, 1.44e9)] == [
        "0 bytes",
        "2 kB",
        "538 MB",
        "1.4 GB",
    ]


def test_a_finding_survives_its_journey() -> None:
    """What a child sends is what the parent has."""
    finding = Finding(Area.TORCH, "a", Status.WARNING, "b", "c")
    assert Finding.from_json(finding.as_json()) == finding


def test_nothing_of_the_core_imports_torch() -> None:
    """Importing what the doctor is made of imports no torch: only its probe does, when run."""
    code = (
        "import sys, truthgpt_core.cli.commands.doctor, truthgpt_core.doctor.examination\n"
        "import truthgpt_core.doctor.plugin_probe, truthgpt_core.doctor.torch_probe\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
