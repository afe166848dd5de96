"""The commands as the user types them."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress

import pytest
from click.testing import CliRunner

from truthgpt_core.cli import main as command
from truthgpt_services.commands.compare import compare
from truthgpt_services.commands.convert import convert
from truthgpt_services.commands.evaluate import evaluate
from truthgpt_services.commands.export import export
from truthgpt_services.commands.generate import generate
from truthgpt_services.commands.optimize import optimize
from truthgpt_services.commands.progress import display_progress

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (optimize, ["--apply", "--output", "--overwrite", "--config", "--max-kl", "--max-flips"]),
        (optimize, ["--gain", "--min-gain", "--keep-all"]),
        (
            evaluate,
            ["--text", "--device", "--dtype", "--rounds", "--launches", "--quick", "--json"],
        ),
        (compare, ["--json"]),
        (
            generate,
            [
                "--max-new-tokens",
                "--temperature",
                "--raw",
                "--system",
                "--stop",
                "--file",
                "--json",
            ],
        ),
        (convert, ["--overwrite"]),
        (export, ["--to", "--option", "--overwrite"]),
    ],
)
def test_help_names_every_option(command, options):
    """What can be said is found without reading the code."""
    done = CliRunner().invoke(command, ["--help"])
    assert done.exit_code == 0
    for option in options:
        assert option in done.output


@pytest.mark.parametrize(
    "command", [pytest.param("export", marks=pytest.mark.new_process), "convert"]
)
def test_a_directory_is_written_and_generate_runs_it(tiny, tmp_path, truthgpt, command):
    """Two processes: one writes the model, the other streams text with it."""
    out = tmp_path / "out"
    done = truthgpt(command, tiny, out)
    assert (done.returncode, done.stdout) == (0, f"Wrote {out}\n"), done.stderr
    assert done.stderr.splitlines()[0].startswith(f"Exporting {tiny} ... ")
    done = truthgpt(
        *("generate", out, "The é ", "--max-new-tokens", 5, "--temperature", 0.8, "--top-k", 9)
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > len("\n")
    assert "The é" not in done.stdout
    # Some releases of torch and torchao add advice of their own.
    assert done.stderr.splitlines()[0].startswith("Loading the model ... ")


@pytest.mark.parametrize(
    "options",
    [("--min-gain", "x"), ("--max-flips", "200%"), ("--dtype", "int8"), ("--rounds", "1")],
)
def test_a_wrong_value_of_an_option_exits_with_2(main, options):
    """As every command of the system does for what was typed wrong."""
    code, err = main("optimize", "model", "-o", "out", *options)
    assert code == 2
    assert options[0] in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["MODEL"], "Name a model and a directory"),
        (["MODEL", "DIR", "--to", "safetensor"], 'Did you mean "safetensors"? Available: safe'),
        (["MODEL", "DIR", "--to", "safetensors:max_shard_gb=1"], "--option max_shard_gb=1."),
        (["MODEL", "DIR", "--option", "max_shard_gb"], "'max_shard_gb' is not NAME=VALUE."),
        (["MODEL", "DIR", "--option", "max_shard=1"], 'Did you mean "max_shard_gb"?'),
        (["--to", "safetensor:help"], 'Did you mean "safetensors"?'),
    ],
)
def test_what_export_cannot_use_exits_with_2_before_any_work(main, arguments, said):
    """The model is not even looked for."""
    code, err = main("export", *arguments)
    assert code == 2
    assert said in err


def test_a_percentage_is_taken_for_what_it_means(main):
    """`--min-gain 2%` is read, and the next thing that is missing is named."""
    code, err = main("optimize", "model", "--min-gain", "2%", "--max-flips", "1%")
    assert (code, err) == (2, "truthgpt: No output directory is named. Add --output DIR.\n")


@pytest.fixture
def main(monkeypatch, capsys):
    """Run `truthgpt` in this process; return its exit code and what it wrote to standard error."""

    def run(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["truthgpt", *arguments])
        with pytest.raises(SystemExit) as ended:
            command.main()
        return ended.value.code, capsys.readouterr().err

    return run


def test_what_goes_wrong_is_one_line_and_no_traceback(tiny, truthgpt):
    """Beside the progress there is the error, and the exit code is 1."""
    done = truthgpt("generate", tiny, "x", "--max-new-tokens", 7000)
    assert done.returncode == 1
    line = (
        "truthgpt: The prompt has 1 tokens and the answer up to 7000, and the model holds 512. "
        "There is room for --max-new-tokens 511."
    )
    assert done.stderr.splitlines()[-1] == line
    assert "Traceback" not in done.stderr


def test_progress_that_is_not_on_a_terminal_is_a_line_for_each_phase(capsys):
    """A log file gets one line with the seconds it took, and not one for every percent."""
    with display_progress() as progress:
        for done in range(100):
            progress(f"Reading: round {done}", done, 100)
        progress("Writing", 0, 0)
    assert capsys.readouterr().err == "Reading ... 0 s\nWriting ... 0 s\n"


def test_an_error_does_not_stand_in_the_line_of_a_phase(capsys):
    """What is printed after it begins a line."""
    with suppress(ValueError), display_progress() as progress:
        progress("Reading", 0, 0)
        assert capsys.readouterr().err == "Reading ..."
        raise ValueError
    assert capsys.readouterr().err.endswith(" s\n")


HOSTILE = "x\x1b]0;owned\x07\x9b2J\u202e"


@pytest.mark.parametrize("command", ["generate", "optimize", "eval", "export", "train"])
def test_a_hostile_name_reaches_no_terminal(tiny, tmp_path, truthgpt, example_installed, command):
    """What is in truthgpt.json, and the name of a model or a file, is written as escapes."""
    saved = tmp_path / "saved"
    shutil.copytree(tiny, saved)
    recipe = {"format": 2, "kind": "optimized", "source": "x", "dtype": HOSTILE, "steps": []}
    (saved / "truthgpt.json").write_text(json.dumps(recipe))
    arguments = {
        "generate": [saved, "hello"],
        "optimize": [saved, "--apply", "half", "-o", tmp_path / "out"],
        "eval": [tmp_path / HOSTILE],
        "export": [tiny, tmp_path / HOSTILE],
        "train": [tmp_path / HOSTILE],
    }
    done = truthgpt(command, *arguments[command])
    said = done.stdout + done.stderr
    for harmful in ("\x1b", "\x07", "\x9b", "\u202e"):
        assert harmful not in said
    assert "x\\x1b]0;owned\\x07\\x9b2J\\u202e" in said


def test_the_options_of_an_optimization_are_listed(truthgpt, example_installed):
    """`--apply NAME:help` needs no model, and an alias is fine."""
    done = truthgpt("optimize", "--apply", "half:help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "note" in done.stdout
    assert "default auto" in done.stdout
