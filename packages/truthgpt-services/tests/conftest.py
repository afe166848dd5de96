"""Real parts, small: a model, a tokenizer, a plugin on disk; no network and no one's cache."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

# Before anything imports huggingface_hub or torch, which read these once. Worker
# processes and commands inherit them: models this small gain nothing from threads.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import settings

from truthgpt_core.event_system import get_event_emitter
from truthgpt_core.hookspecs import hookimpl
from truthgpt_core.plugin_system import PluginManager, discovery
from truthgpt_core.service_registry import ServiceContainer

# How long an example takes says something about the machine and nothing about the code.
settings.register_profile("services", deadline=None, database=None)
settings.load_profile("services")


def pytest_configure(config: pytest.Config) -> None:
    """Say what the marker of fault tests is."""
    config.addinivalue_line(
        "markers",
        "fault(kind, cases=1): something goes wrong in the test, as a kind of fault that the table "
        "in docs/benchmarks.md counts; in so many cases, if they are not parameters",
    )


HERE = Path(__file__).parent
CONTEXT = 512
OURS = {"truthgpt-core", "truthgpt-services"}


@pytest.fixture(scope="session", autouse=True)
def processes_begin_warm(warm_processes: ModuleType) -> None:
    """Let the processes of all tests begin warm, those that fixtures start among them."""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of the test's own."""
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TRUTHGPT_CACHE", str(directory))
    monkeypatch.setenv("TRUTHGPT_SETTINGS", str(directory / "settings"))
    return directory


Once = Callable[[str, Callable[[Path], None]], Path]
"""What the fixture `once` is, of the conftest that all packages share."""


def make_model(vocabulary: int, *, tied: bool = False, seed: int = 0) -> Any:
    """A random Llama that is sure of what it says: a flat one would hide what ruins it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.1,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(3.0)
    return model.eval()


@pytest.fixture(scope="session")
def tiny(once: Once) -> Path:
    """A model directory as transformers writes it, in float32."""

    def fill(directory: Path) -> None:
        from truthgpt_services.testing import tiny_tokenizer

        tokenizer = tiny_tokenizer(320)
        make_model(len(tokenizer)).save_pretrained(directory)
        tokenizer.save_pretrained(directory)

    return once("tiny", fill)


@pytest.fixture(scope="session")
def tied(once: Once, tiny: Path) -> Path:
    """The same with one matrix for reading and for writing tokens."""

    def fill(directory: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tiny)
        make_model(len(tokenizer), tied=True, seed=1).save_pretrained(directory)
        tokenizer.save_pretrained(directory)

    return once("tied", fill)


@pytest.fixture
def model(tiny: Path) -> Any:
    """The tiny model in memory, the test's own."""
    from truthgpt_services.models.loading import load_model

    return load_model(tiny)


@pytest.fixture(scope="session")
def tokenizer(tiny: Path) -> Any:
    """The tokenizer of the tiny model."""
    from truthgpt_services.models.loading import load_tokenizer

    return load_tokenizer(tiny)


@pytest.fixture(scope="session")
def examples() -> ModuleType:
    """The module of example optimizations."""
    name = "truthgpt_services_tests_examples"
    path = HERE / "example_plugin" / "example_optimizations.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # pydantic and dataclasses look a class's module up by its name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class ExamplePlugin:
    """Registers the example optimizations by hand, as a plugin without a distribution does."""

    def __init__(self, kinds: tuple[type, ...]) -> None:
        self._kinds = kinds

    @hookimpl
    def register_components(self, factories: Any) -> None:
        """Register them."""
        for kind in self._kinds:
            factories["optimization_factory"].register(kind.name, kind)


@pytest.fixture
def only_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be as in this package's own environment, where no plugin but its own is installed."""
    discover = discovery.discover
    monkeypatch.setattr(
        discovery, "discover", lambda: [each for each in discover() if each.name in OURS]
    )


@pytest.fixture
def bare_plugins(only_services: None) -> PluginManager:
    """A plugin manager with the services alone."""
    manager = PluginManager(ServiceContainer(), events=get_event_emitter(), strict=True)
    manager.activate_all()
    return manager


@pytest.fixture
def plugins(only_services: None, examples: ModuleType) -> PluginManager:
    """A plugin manager with the services and the example optimizations."""
    manager = PluginManager(ServiceContainer(), events=get_event_emitter(), strict=True)
    manager.register_plugin(ExamplePlugin(examples.ALL), "examples")
    return manager


@pytest.fixture(scope="session")
def example_distribution(once: Once, examples: ModuleType) -> Path:
    """The example optimizations as a distribution: a directory for PYTHONPATH."""

    def fill(directory: Path) -> None:
        shutil.copy(HERE / "example_plugin" / "example_optimizations.py", directory)
        info = directory / "truthgpt_example-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: truthgpt-example\nVersion: 1.0\n"
            "Requires-Dist: truthgpt-core>=0.1,<0.2\n"
        )
        lines = ["[truthgpt.plugins]", "example = example_optimizations", ""]
        lines += ["[truthgpt.optimizations]"]
        lines += [f"{kind.name} = example_optimizations:{kind.__name__}" for kind in examples.ALL]
        lines += ["", "[truthgpt.optimizations.aliases]", "half = example_optimizations:Halve"]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")

    return once("example-distribution", fill)


def before_others(directory: Path) -> str:
    """PYTHONPATH with a directory before those that are in it already."""
    return os.pathsep.join([str(directory), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture
def example_installed(example_distribution: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes that a test starts find the example distribution."""
    monkeypatch.setenv("PYTHONPATH", before_others(example_distribution))


COMMAND = (sys.executable, "-P", "-c", "from truthgpt_core.cli.main import main; main()")
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def truthgpt() -> Run:
    """Run the `truthgpt` command as the user does, in a process of its own."""

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"capture_output": True, "text": True, "timeout": 300} | options
        return subprocess.run([*COMMAND, *map(str, arguments)], **options)

    run.command = COMMAND  # type: ignore[attr-defined]
    return run


@pytest.fixture(scope="session")
def optimized(once: Once, tiny: Path, example_distribution: Path, truthgpt: Run) -> Path:
    """One run of `truthgpt optimize` with all that can become of a step; started once.

    In the directory are `out`, what the command said as `stdout`, `stderr` and `code`,
    and a cache. Speed decides nothing here: a gain of 30 % is asked for, which `halve` reaches
    by its size and noise does not reach, and any loss of speed is allowed.
    """

    def fill(directory: Path) -> None:
        done = truthgpt(
            "optimize",
            tiny,
            "--apply",
            "idle,refuse,half:note=mine,ruin",
            "--apply",
            "forget,die",
            "--output",
            directory / "out",
            *(
                "--min-gain",
                "0.3",
                "--max-slowdown",
                "0.99",
                "--rounds",
                "3",
                "--launches",
                "2",
                "--max-launches",
                "2",
                "--seed",
                "5",
                "--device",
                "cpu",
            ),
            env=os.environ
            | {
                "PYTHONPATH": before_others(example_distribution),
                "TRUTHGPT_CACHE": str(directory / "cache"),
            },
            timeout=900,
        )
        for name in ("stdout", "stderr"):
            (directory / name).write_text(getattr(done, name))
        (directory / "code").write_text(str(done.returncode))

    return once("optimized", fill)


@pytest.fixture(scope="session")
def distribute() -> Callable[[str, Path], None]:
    """Make one of `outside_plugins` a distribution in a directory for PYTHONPATH."""

    def run(name: str, site: Path) -> None:
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        shutil.copy(HERE / "outside_plugins" / f"{name}.py", site)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
            "Requires-Dist: truthgpt-core>=0.1,<0.2\n"
        )
        (info / "entry_points.txt").write_text(f"[truthgpt.plugins]\n{name} = {name}\n")

    return run


@pytest.fixture
def install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribute: Callable[[str, Path], None]
) -> Callable[[str], None]:
    """Install one of `outside_plugins` for the processes that a test starts."""

    def run(name: str) -> None:
        distribute(name, tmp_path / "site")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a disk of so many kilobytes, where the tests may."""
    mounted: list[Path] = []

    def mount(kilobytes: int) -> Path:
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    if shutil.which("mount") is None:
        pytest.skip("there is no mount command")
    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)
