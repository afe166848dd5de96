"""The commands as a person types them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from click.testing import CliRunner

from truthgpt_services.commands.compare import compare
from truthgpt_services.commands.convert import convert
from truthgpt_services.commands.evaluate import evaluate
from truthgpt_services.commands.generate import generate
from truthgpt_services.commands.optimize import optimize
from truthgpt_services.commands.progress import shown_progress


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
    ],
)
def test_help_names_every_option(command, options):
    """What can be said is found without reading the code."""
    done = CliRunner().invoke(command, ["--help"])
    assert done.exit_code == 0
    for option in options:
        assert option in done.output


def test_convert_writes_a_directory_and_generate_runs_it(tiny, tmp_path, truthgpt):
    """Two processes: one writes the model, the other streams text with it."""
    out = tmp_path / "out"
    done = truthgpt("convert", tiny, out)
    assert (done.returncode, done.stdout) == (0, f"Wrote {out}\n"), done.stderr
    assert done.stderr.splitlines()[0].startswith(f"Converting {tiny} ... ")
    done = truthgpt(
        *("generate", out, "The é ", "--max-new-tokens", 5, "--temperature", 0.8, "--top-k", 9)
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > len("\n")
    assert "The é" not in done.stdout
    # Some releases of torch and torchao add advice of their own.
    assert done.stderr.splitlines()[0].startswith("Loading the model ... ")


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
    with shown_progress() as progress:
        for done in range(100):
            progress(f"Reading: round {done}", done, 100)
        progress("Writing", 0, 0)
    assert capsys.readouterr().err == "Reading ... 0 s\nWriting ... 0 s\n"


def test_an_error_does_not_stand_in_the_line_of_a_phase(capsys):
    """What is printed after it begins a line."""
    with suppress(ValueError), shown_progress() as progress:
        progress("Reading", 0, 0)
        assert capsys.readouterr().err == "Reading ..."
        raise ValueError
    assert capsys.readouterr().err.endswith(" s\n")
