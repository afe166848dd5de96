"""One model measured alone, in a process as the user starts it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.optimization import no_progress
from truthgpt_services.errors import ModelError
from truthgpt_services.optimizing.evaluate_one import evaluate
from truthgpt_services.optimizing.request import OptimizeFile, read_measuring
from truthgpt_services.results.io import read_report

pytestmark = pytest.mark.slow

COMMAND = "from truthgpt_services.commands.evaluate import evaluate; evaluate()"


def evaluated(*arguments):
    """Run `truthgpt eval`."""
    return subprocess.run(
        [sys.executable, "-P", "-c", COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.xdist_group("optimized")
def test_what_was_optimized_is_measured_as_it_was_when_it_was_made(
    optimized, tmp_path, example_installed
):
    """The same predictions of the same text, in a report that `truthgpt compare` reads."""
    done = evaluated(optimized / "out", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    (tmp_path / "report.json").write_text(done.stdout)
    report, made = read_report(tmp_path), read_report(optimized / "out").variant("halve").measured
    (alone,) = report.variants
    assert (report.source.kind, report.steps) == ("optimized", [])
    assert report.source.file_bytes == made.saved_bytes
    assert alone.measured.weights_bytes == made.weights_bytes
    assert alone.measured.quality.perplexity == pytest.approx(made.quality.perplexity, rel=1e-5)
    assert alone.measured.quality.perplexity_error > 0
    assert alone.measured.sample == made.sample
    assert len(alone.measured.decode_tokens_per_second.values) == 2


@pytest.mark.xdist_group("optimized")
def test_a_model_is_measured_as_the_baseline_of_a_run_is(tiny, optimized):
    """The command prints its speed, memory and perplexity, which are those of a whole run."""
    done = evaluated(tiny, "--quick", "--device", "cpu", "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    perplexity = read_report(optimized / "out").variants[0].measured.quality.perplexity
    line = next(line for line in done.stdout.splitlines() if line.startswith("Perplexity"))
    assert float(line.split()[1].replace(",", "")) == pytest.approx(perplexity, rel=1e-3)
    for word in ("Decode, tok/s", "Peak memory", "Load", "Warm-up", "The future of AI is"):
        assert word in done.stdout
    assert "\nReading the text with baseline ... " in done.stderr


@pytest.mark.parametrize(
    ("said", "error", "expected"),
    [
        ({}, TruthGPTError, "No model is named"),
        ({"model": "/no/where"}, ModelError, "There is no model"),
        ({"model": "m", "text": "/no.txt"}, ModelError, "no.txt cannot be read"),
    ],
)
def test_wrong_input_is_refused_before_any_work(said, error, expected, bare_plugins):
    """In one sentence, with no process started for it."""
    request = OptimizeFile(**said) if "text" not in said else read_measuring(said)
    with pytest.raises(error, match=expected):
        evaluate(request, bare_plugins, progress=no_progress)


@pytest.mark.xdist_group("optimized")
def test_an_optimized_model_keeps_its_dtypes(optimized, plugins, example_installed):
    """They are part of what was made; asking for others is refused."""
    request = read_measuring({"model": str(optimized / "out"), "dtype": "bfloat16"})
    with pytest.raises(ModelError, match="its dtypes are part of it"):
        evaluate(request, plugins, progress=no_progress)
