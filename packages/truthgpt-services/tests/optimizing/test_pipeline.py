"""The main job, from the command line to the files, with workers and a plugin that are real."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from truthgpt_services.results.io import read_report
from truthgpt_services.results.schema import Outcome

pytestmark = pytest.mark.slow


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
    """Nothing of the candidates that were taken back, and no working directory beside it."""
    assert sorted(path.name for path in (optimized / "out").iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "report.html",
        "report.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "truthgpt.json",
        "weights.safetensors",
        "worker.log",
    ]
    assert not [path for path in optimized.iterdir() if path.name.startswith(".")]


def test_the_recipe_is_that_of_the_step_kept(optimized, tiny):
    """A step that was taken back left nothing in it."""
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


def test_a_file_asks_for_the_same_and_an_earlier_output_is_replaced(
    tiny, tmp_path, truthgpt, example_installed
):
    """YAML with the command line's keys; no step kept leaves the model as it was, for all to load.

    What the command line says goes before the file.
    """
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    out.mkdir()
    (out / "truthgpt.json").write_text("{}")
    (out / "earlier").touch()
    (tmp_path / "text.txt").write_text("The lambda is a function without a name. " * 40)
    (tmp_path / "job.yaml").write_text(
        f"model: {tiny}\napply:\n  - refuse\n  - picky: {{}}\noutput: {tmp_path / 'unused'}\n"
        f"rounds: 3\nmax_kl: 0.25\ndevice: cpu\ndtype: float32\ntext: {tmp_path / 'text.txt'}\n"
    )
    done = truthgpt(
        *("optimize", "--config", tmp_path / "job.yaml", "-o", out, "--overwrite", "--rounds", 2),
        *("--launches", 1, "--max-launches", 1),
    )
    assert done.returncode == 0, done.stderr
    report = read_report(out)
    assert [step.outcome for step in report.steps] == [Outcome.FAILED, Outcome.NOT_APPLIED]
    # In its own words, though the error is of a class that only the plugin knows.
    assert report.steps[0].reason == "This model has no knobs. Take one with knobs."
    assert report.result.steps == []
    assert report.result.summary == "No step was accepted: the output is the model as it was."
    assert (report.settings.rounds, report.settings.gate.max_kl) == (2, 0.25)
    assert report.text.name == str(tmp_path / "text.txt")
    assert not report.source.dtype_is_native
    assert len(report.variants[0].measured.decode_tokens_per_second.values) == 2
    assert not (out / "earlier").exists()
    assert not (tmp_path / "unused").exists()
    ours = AutoModelForCausalLM.from_pretrained(out).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(tiny).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_all_steps_are_accepted_if_the_user_says_so(tiny, tmp_path, truthgpt, example_installed):
    """The report says which the gate would have rejected; one that fails is not accepted."""
    out = tmp_path / "out"
    done = truthgpt(
        *("optimize", tiny, "--apply", "ruin,picky", "-o", out, "--keep-all", "--quick")
    )
    assert done.returncode == 0, done.stderr
    report = read_report(out)
    picky, ruin = report.steps
    assert (ruin.outcome, ruin.overruled) == (Outcome.ACCEPTED, True)
    assert "else it would not have been: it loses quality: KL" in ruin.reason
    assert (picky.outcome, picky.overruled) == (Outcome.FAILED, False)
    assert report.result.steps == ["ruin"]
    assert report.settings.gate.keep_all
    assert "accepted anyway" in done.stdout


def running(scratch):
    """Processes at work that have this directory for their temporary files."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            variables = (path / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if f"TMPDIR={scratch}".encode() in variables and state != "Z":
            found.append(int(path.name))
    return found


def interrupted(truthgpt, arguments, scratch, what):
    """Run `truthgpt optimize` and press Ctrl-C when it says what it does now.

    Returns the code it ended with, what it printed, and how many processes there were.
    """
    scratch.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [*truthgpt.command, "optimize", *map(str, arguments)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(scratch)},
        # Tests that run in the background of a shell inherit that Ctrl-C is ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    seen = ""
    while what not in seen and (character := process.stderr.read(1)):
        seen += character
    count = len(running(scratch))
    os.killpg(process.pid, signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    return process.returncode, said, seen + errors, count


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_ctrl_c_ends_it_with_one_line_and_leaves_nothing(
    tiny, tmp_path, truthgpt, example_installed
):
    """In the middle of the work, with two workers busy: no output and no process is left."""
    scratch = tmp_path / "scratch"
    code, said, errors, count = interrupted(
        truthgpt, [tiny, "--apply", "halve", "-o", tmp_path / "out"], scratch, "Making halve"
    )
    assert count >= 3
    assert (code, said) == (130, "")
    assert errors.splitlines()[-1] == "truthgpt: interrupted"
    deadline = time.monotonic() + 20
    while running(scratch) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert running(scratch) == []
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]
    assert list(scratch.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_after_ctrl_c_the_same_command_goes_on_with_what_was_finished(
    tiny, tmp_path, truthgpt, example_installed, cache
):
    """The finished comparison is taken over and says so; the one cut short is measured.

    Once it has come to its end nothing is left to take over.
    """
    out = tmp_path / "out"
    command = [
        *(tiny, "--apply", "halve,ruin", "-o", out, "--rounds", 2),
        *("--launches", 1, "--max-launches", 1, "--min-gain", 0.3, "--max-slowdown", 100),
    ]
    code, *_ = interrupted(truthgpt, command, tmp_path / "scratch", "Making halve + ruin")
    assert code == 130
    assert len(list((cache / "comparisons").iterdir())) == 1
    # Not on the time of day, which the report of another run would have, too.
    done = truthgpt("optimize", *command, env=os.environ | {"TMPDIR": str(tmp_path / "scratch")})
    assert done.returncode == 0, done.stderr
    assert "Timing baseline, control, halve ..." not in done.stderr
    report = read_report(out)
    halve, ruin = report.steps
    assert (halve.outcome, ruin.outcome) == (Outcome.ACCEPTED, Outcome.REJECTED)
    assert halve.reused
    assert "Measured in an earlier run, on 2" in halve.reason
    assert not ruin.reused
    assert "Halves were multiplied." in halve.notes
    assert [each.name for each in report.variants] == ["baseline", "halve", "halve + ruin"]
    launches = [each.measured.decode_tokens_per_second.launches for each in report.variants]
    assert launches == [[2, 2], [2], [2]]
    assert report.result.steps == ["halve"]
    assert list((cache / "comparisons").iterdir()) == []
    log = (out / "worker.log").read_text()
    assert "== making halve, started 2" in log


def test_a_full_disk_in_the_middle_ends_the_run_and_leaves_nothing(
    tiny, small_disk, truthgpt, example_installed
):
    """It is no fault of the step: it is not reported as failed, and the disk is free again."""
    place = small_disk(200)
    done = truthgpt("optimize", tiny, "--apply", "halve", "-o", place / "out")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("truthgpt: The disk is full")
    assert "Traceback" not in done.stderr
    assert list(place.iterdir()) == []


def refused(truthgpt, *arguments, code=1):
    """Run what must fail at once; return the one line that it says."""
    done = truthgpt("optimize", *arguments)
    assert done.returncode == code
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line.removeprefix("truthgpt: ")


def test_wrong_input_is_refused_in_one_line_before_any_work(
    tiny, tmp_path, truthgpt, example_installed
):
    """Through the real command: an option of a step, a model, a text, an output."""
    out = ("-o", tmp_path / "out")
    line = refused(truthgpt, tiny, "--apply", "halve:nite=x", *out, code=2)
    assert line == '"halve": there is no option "nite" (Did you mean "note"?)'
    line = refused(truthgpt, tiny.with_name("tyny"), "--apply", "halve", *out)
    assert line.endswith('Did you mean "tiny"?')
    line = refused(truthgpt, tiny, "--apply", "halve", *out, "--text", tmp_path / "no.txt")
    assert "no.txt cannot be read" in line
    shutil.copytree(tiny, tmp_path / "theirs")
    line = refused(truthgpt, tiny, "--apply", "halve", "-o", tmp_path / "theirs", "--overwrite")
    assert "nothing in it says that TruthGPT wrote it" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]


def test_a_text_that_is_too_short_says_how_much_is_needed(
    tiny, tmp_path, truthgpt, example_installed
):
    """Quality on three words would be no quality."""
    (tmp_path / "short.txt").write_text("Too short.")
    done = truthgpt(
        *("optimize", tiny, "--apply", "idle", "-o", tmp_path / "out"),
        *("--text", tmp_path / "short.txt"),
    )
    assert done.returncode == 1
    assert "tokens, and at least 34 are needed" in done.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


@pytest.mark.new_process
@pytest.mark.parametrize(
    "modules",
    [
        "truthgpt_services.optimizing.pipeline, truthgpt_services.commands.optimize, "
        "truthgpt_services.optimizing.evaluate_one, truthgpt_services.commands.evaluate, "
        "truthgpt_services.report.compare, truthgpt_services.commands.compare, "
        "truthgpt_services.commands.generate, truthgpt_services.commands.convert",
        "truthgpt_services, truthgpt_services.plugin, truthgpt_services.models.sources",
    ],
)
def test_the_process_that_a_person_starts_never_imports_torch(modules):
    """It answers at once, and the memory it takes is not that of a model."""
    code = (
        f"import sys, {modules}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
