"""Metrics, criteria and report sections of third parties, each run through the command."""

from __future__ import annotations

import json
import math
import os

import pytest

from truthgpt_services.results.io import read_report

pytestmark = pytest.mark.slow

QUICK = ("--quick", "--gain", "size", "--max-slowdown", "0.99", "--device", "cpu")


@pytest.fixture(scope="session")
def evaluated(once, truthgpt, distribute, example_distribution, tiny):
    """One run of `truthgpt optimize --apply halve` with these plugins, none of which objects.

    In the directory are `out` and what the command said on standard output as `stdout`.
    """

    def fill(directory):
        for name in ("entropy_metric", "frugal_gate"):
            distribute(name, directory / "site")
        paths = [directory / "site", example_distribution, os.environ.get("PYTHONPATH", "")]
        done = truthgpt(
            *("optimize", tiny, "--apply", "halve", "-o", directory / "out", *QUICK),
            *("--metric", "entropy", "--full"),
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join(map(str, paths)),
                "FRUGAL_MB": "100",
                "TRUTHGPT_CACHE": str(directory / "cache"),
            },
        )
        assert done.returncode == 0, done.stderr
        (directory / "stdout").write_text(done.stdout)

    return once("evaluated", fill)


def shown(evaluated):
    """What the command printed, and the page that it wrote."""
    return [(evaluated / each).read_text() for each in ("stdout", "out/report.html")]


def test_a_metric_has_its_row_in_terminal_page_and_json(evaluated):
    """For each variant, with its unit; baseline and candidate are measured in their workers."""
    variants = json.loads((evaluated / "out" / "report.json").read_text())["variants"]
    found = [each["measured"]["metrics"] for each in variants]
    assert [[(one["metric"], one["name"], one["unit"]) for one in each] for each in found] == [
        [("entropy", "Entropy", "nats/token")]
    ] * 2
    assert all(0 < each[0]["value"] <= math.log(320) for each in found)
    for text in shown(evaluated):
        assert "Entropy" in text
        assert "nats/token" in text


def test_one_model_is_measured_with_a_metric(truthgpt, install, tiny):
    """`eval` takes the same option."""
    install("entropy_metric")
    done = truthgpt("eval", tiny, "--quick", "--metric", "entropy")
    assert done.returncode == 0, done.stderr
    assert "Entropy, nats/token" in done.stdout


def test_a_metric_that_nobody_has_is_refused_before_any_work(truthgpt, install, tiny):
    """With the name that was meant."""
    install("entropy_metric")
    done = truthgpt("eval", tiny, "--metric", "entropie")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        'truthgpt: There is no metric named "entropie". Did you mean "entropy"? Available: entropy.'
    )


def test_a_criterion_rejects_a_step(truthgpt, install, tiny, example_installed, tmp_path):
    """With its objection as the reason."""
    install("frugal_gate")
    command = ("optimize", tiny, "--apply", "halve", "-o", tmp_path / "out", *QUICK)
    done = truthgpt(*command, env=os.environ | {"FRUGAL_MB": "0.01"})
    assert done.returncode == 0, done.stderr
    (step,) = read_report(tmp_path / "out").steps
    assert step.outcome == "rejected"
    assert step.reason.endswith("MB, and the budget is 0.01.")


def test_a_criterion_without_objection_leaves_it_to_the_gate(evaluated):
    """What the gate says holds."""
    (step,) = read_report(evaluated / "out").steps
    assert step.outcome == "accepted"


def test_a_section_is_shown_in_terminal_page_and_json(evaluated):
    """Below what every report has."""
    (section,) = read_report(evaluated / "out").sections
    assert section.title == "Budget of memory"
    assert [label for label, _ in section.rows] == ["baseline", "halve"]
    for text in shown(evaluated):
        assert "Budget of memory" in text
        assert "At most 100 MB are allowed." in text
