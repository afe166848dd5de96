"""One run of the main job, from the command line to the files, and all that came of it."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from truthgpt_services.inference.engine import TorchEngine
from truthgpt_services.measuring.replay import replay
from truthgpt_services.results.io import read_report
from truthgpt_services.results.record import read_record
from truthgpt_services.results.schema import Outcome

# In one process: those of others would wait for the run.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("optimized")]


@pytest.fixture(scope="session")
def report(optimized):
    assert (optimized / "code").read_text() == "0", (optimized / "stderr").read_text()
    return read_report(optimized / "out")


@pytest.fixture(scope="session")
def steps(report):
    return {step.name: step for step in report.steps}


def test_stages_go_first_and_then_names(report):
    """`idle` was typed first and changes no weights: it comes last; an alias is what it names."""
    names = [step.name for step in report.steps]
    assert names == ["die", "forget", "halve", "refuse", "ruin", "idle"]


def test_a_step_that_pays_is_accepted(steps, report):
    """Smaller and as good: its settings, its coverage and where it came from are told."""
    step = steps["halve"]
    assert step.outcome is Outcome.ACCEPTED
    assert step.against == "baseline"
    assert step.distribution == "truthgpt-example 1.0"
    assert step.options == {"note": "mine"}
    # The first from applying it, the second from running it; what that replaced is gone.
    assert step.notes == ["Halves are whole enough, with seed 5.", "Halves were multiplied."]
    assert (step.coverage.covered, step.coverage.total) == (14, 15)
    assert [(each.name, each.reason) for each in step.coverage.skipped] == [
        ("lm_head", "it makes the logits")
    ]
    assert report.result.steps == ["halve"]


def test_a_step_that_no_token_ran_through_is_rejected(steps):
    """Nothing that could be measured would be its doing, so no time is spent on it."""
    step = steps["idle"]
    assert step.outcome is Outcome.REJECTED
    assert step.reason.startswith("No measured token is known to have run through it")
    assert (step.variant, step.decode_ratio) == (None, None)
    assert step.coverage is not None


def test_a_step_that_ruins_the_model_is_rejected(steps, report):
    """The reason is its quality, and the variant still stands in the report to be seen."""
    step = steps["ruin"]
    assert step.outcome is Outcome.REJECTED
    assert step.reason.startswith("It loses quality: KL to the baseline is")
    ruined = report.variant("halve + ruin").measured.quality
    assert ruined.kl_mean > 0.05
    assert ruined.top1_agreement < 0.1


def test_each_step_that_was_timed_says_when_it_has_repaid_itself(steps):
    """Applying it and warming up cost time; only a step that was not timed says nothing."""
    told = {name for name, step in steps.items() if step.break_even is not None}
    assert told == {"halve", "ruin"}
    assert all(step.break_even.extra_seconds > -60 for step in steps.values() if step.break_even)


def test_the_layers_of_each_variant_are_compared_with_the_baseline(report):
    """Halves differ a little from the first layer on; what ruins the output shows in the last."""
    halved, ruined = (report.variant(name).layers for name in ("halve", "halve + ruin"))
    assert [each.layer for each in halved] == [1, 2]
    assert 0 < halved[0].kl_mean < 0.05
    assert ruined[0] == halved[0]
    assert ruined[1].kl_mean > 1
    assert report.variants[0].layers is None


def test_quality_is_told_with_its_errors_on_both_paths(report):
    """Perplexity, KL, its tail, agreement and flips; of the decode path the same."""
    quality = report.variant("halve").measured.quality.model_dump()
    names = ("perplexity", "perplexity_ratio", "kl_mean", "kl_p999", "top1_agreement", "flips")
    for name in (*names, *(f"decode_{name}" for name in names)):
        assert quality[name] >= 0
        assert quality[f"{name}_error"] >= 0
    assert quality["perplexity_error"] > 0
    assert quality["decode_kl_mean_error"] > 0


def test_a_step_that_cannot_work_here_is_not_applied(steps):
    """Its own words say why and what to do, and no model was made with it."""
    step = steps["refuse"]
    assert step.outcome is Outcome.NOT_APPLIED
    assert step.reason == "No cpu is ever good enough. Buy another."
    assert step.variant is None


def test_a_step_whose_process_dies_has_failed(steps):
    """Killed for memory, say: what was asked of it and the signal are told, the rest goes on."""
    step = steps["die"]
    assert (step.outcome, step.variant) == (Outcome.FAILED, None)
    assert 'The worker for "making die" failed to build: killed by SIGKILL' in step.reason


def test_a_step_that_saves_what_it_cannot_load_has_failed(steps):
    """A mistake in one plugin does not cost the steps that others bring."""
    step = steps["forget"]
    assert step.outcome is Outcome.FAILED
    assert "does not fit its recipe: 1 tensors are missing or too many" in step.reason
    assert "forgotten" in step.reason


def test_every_variant_that_was_measured_is_reported(report):
    """The baseline first; each with a value for every round of every launch it took part in."""
    names = [variant.name for variant in report.variants]
    assert names == ["baseline", "halve", "halve + ruin"]
    rounds = [len(each.measured.decode_tokens_per_second.values) for each in report.variants]
    assert rounds == [12, 6, 6]
    launches = [each.measured.decode_tokens_per_second.launches for each in report.variants]
    assert launches == [[3] * 4, [3, 3], [3, 3]]
    for variant in report.variants:
        assert all(value > 0 for value in variant.measured.first_token_seconds.values)
        assert variant.measured.peak_memory_bytes > 10_000_000


def test_the_baseline_is_compared_with_itself(report):
    """Its ratios are 1 and its divergence 0."""
    baseline = report.variants[0]
    assert (baseline.decode_ratio.low, baseline.decode_ratio.high) == (1.0, 1.0)
    assert baseline.measured.quality.kl_mean == 0.0


def test_quality_in_the_report_is_that_of_the_models(report, tiny, tokenizer):
    """The perplexity of the baseline is what transformers computes for the same windows."""
    import math

    from transformers import AutoModelForCausalLM

    from truthgpt_services.measuring.text import evaluation_text

    model = AutoModelForCausalLM.from_pretrained(tiny)
    text = evaluation_text(None)
    assert report.text.sha256 == text.sha256
    ids = torch.tensor(tokenizer(text.text[:30_000]).input_ids[: 8 * 256]).view(8, 256)
    with torch.inference_mode():
        losses = [float(model(input_ids=row[None], labels=row[None]).loss) for row in ids]
    expected = math.exp(sum(losses) / 8)
    assert report.variants[0].measured.quality.perplexity == pytest.approx(expected, rel=1e-3)
    assert report.text.tokens == 8 * 255


def test_sizes_in_the_report_are_those_of_the_files(report, optimized, tiny):
    """Source, baseline in memory and result on disk are three different numbers."""
    weights = optimized / "out" / "weights.safetensors"
    halved = report.variant("halve").measured
    assert halved.saved_bytes == weights.stat().st_size
    assert report.source.file_bytes == (tiny / "model.safetensors").stat().st_size
    ratio = halved.weights_bytes / report.variants[0].measured.weights_bytes
    assert 0.55 < ratio < 0.7


def test_the_baseline_was_measured_against_itself(report):
    """The control shows what no difference looks like here, and the load what else was going on."""
    control = report.control.decode_ratio
    # Not beside a step that no token ran through, which is rejected in any case.
    assert len(control.launches) == 4
    assert 0 < control.low <= control.median <= control.high
    assert report.load.cores >= 1
    if sys.platform == "linux":
        assert report.load.before >= 0
        assert 0 <= report.load.median <= report.load.highest


def test_how_it_was_measured_stands_in_the_report(report, tiny):
    """Command, seed, bounds, machine and versions: enough to do it again."""
    assert report.command[:3] == ["truthgpt", "optimize", str(tiny)]
    assert report.seed == 5
    assert (report.settings.rounds, report.settings.launches) == (3, 2)
    assert not report.settings.closely
    assert report.settings.gate.min_gain == 0.3
    assert report.machine.device == "cpu"
    assert {"torch", "transformers", "truthgpt-services"} <= set(report.versions)
    assert (report.source.kind, report.source.dtype) == ("directory", "float32")
    assert report.source.dtype_is_native


def test_the_output_holds_the_model_and_the_report_and_nothing_else(optimized):
    """Nothing of the candidates that were rejected, and no working directory beside it."""
    assert sorted(path.name for path in (optimized / "out").iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "replay.json",
        "report.html",
        "report.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "truthgpt.json",
        "weights.safetensors",
        "worker.log",
    ]
    assert not [path for path in optimized.iterdir() if path.name.startswith(".")]


def test_what_the_result_predicts_is_recorded(optimized, report, plugins, tiny):
    """On 512 tokens; the saved model agrees, and the model that it was made from does not."""
    from truthgpt_services import ModelService
    from truthgpt_services.measuring.text import evaluation_text

    models, record = ModelService(plugins), read_record(optimized / "out")
    text = evaluation_text(None).text[:20_000]
    assert record.predictions.ids == models.load_tokenizer(str(tiny))(text).input_ids[:512]
    assert (report.replay.tokens, report.replay.engine) == (512, "torch")
    assert report.replay_missing == ""
    saved, source = (
        replay(TorchEngine(models.load_model(str(each), {"device": "cpu"}), plugins.hooks), record)
        for each in (optimized / "out", tiny)
    )
    assert (saved.agrees, saved.same) == (True, True)
    assert (source.agrees, source.same) == (False, True)


def test_the_recipe_is_that_of_the_step_kept(optimized, tiny):
    """A step that was rejected left nothing in it."""
    recipe = json.loads((optimized / "out" / "truthgpt.json").read_text())
    assert recipe["source"] == str(tiny)
    assert [(step["name"], step["settings"]) for step in recipe["steps"]] == [
        ("halve", {"note": "mine"})
    ]


def test_the_command_shows_what_it_does_and_what_came_of_it(optimized):
    """Progress on standard error; the table and where to look on standard output."""
    said, progress = (optimized / "stdout").read_text(), (optimized / "stderr").read_text()
    for word in ("halve", "idle", "rejected", "not applied", "failed"):
        assert word in said
    report, following = said.rstrip().splitlines()[-2:]
    assert report.startswith(f"Report: {optimized / 'out' / 'report.html'}")
    assert following.startswith(f"Next:   truthgpt generate {optimized / 'out'}")
    for line in ("Loading baseline ...", "Making halve ...", "Timing baseline, "):
        assert any(each.startswith(line) for each in progress.splitlines())
    assert "Traceback" not in progress


@pytest.mark.new_process
def test_the_result_generates_in_a_new_process(
    optimized, truthgpt, example_installed, plugins, tokenizer
):
    """`truthgpt generate` streams what the saved model says, and nothing else."""
    from truthgpt_services import InferenceService, ModelService

    done = truthgpt("generate", optimized / "out", "The future", "--max-new-tokens", 20)
    assert done.returncode == 0, done.stderr
    service = InferenceService(plugins)
    model = ModelService(plugins).load_model(str(optimized / "out"))
    service.configure(model, tokenizer)
    expected = service.generate("The future", {"max_new_tokens": 20})
    assert done.stdout == f"{expected}\n"
