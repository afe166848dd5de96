"""`truthgpt optimize` as the user types it: what it takes, refuses, and leaves when it is ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from truthgpt_services import ModelService
from truthgpt_services.measuring.replay import replay
from truthgpt_services.results.io import read_report
from truthgpt_services.results.record import read_record
from truthgpt_services.results.schema import Outcome

pytestmark = pytest.mark.slow


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
    # Tests that run in the background of a shell inherit that Ctrl-C is ignored, as processes do.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [*truthgpt.command, "optimize", *map(str, arguments)],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
            env=os.environ | {"TMPDIR": str(scratch)},
        )
    finally:
        signal.signal(signal.SIGINT, before)
    seen = ""
    while what not in seen and (character := process.stderr.read(1)):
        seen += character
    count = len(running(scratch))
    os.killpg(process.pid, signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    return process.returncode, said, seen + errors, count


# A fork shows the variables of what it was forked from there.
@pytest.mark.new_process
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


def test_after_ctrl_c_the_same_command_goes_on_with_what_was_finished(
    tiny, tmp_path, truthgpt, example_installed, cache, plugins
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
    # Recorded by the model that was made again.
    models = ModelService(plugins)
    found = replay(models.engine_of(models.load_model(str(out))), read_record(out))
    assert (found.agrees, found.same) == (True, True)


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
