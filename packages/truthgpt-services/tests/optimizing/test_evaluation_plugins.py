"""Metrics, criteria and report sections of third parties, each run through the command."""

from __future__ import annotations

import json
import math
import os

import pytest

from truthgpt_services.results.io import read_report

pytestmark = pytest.mark.slow

QUICK = ("--quick", "--gain", "size", "--device", "cpu")


@pytest.fixture
def optimize(truthgpt, install, tiny, example_installed, tmp_path):
    """Run `truthgpt optimize --apply halve` with a plugin installed."""

    def run(plugin, *options, **environment):
        install(plugin)
        out = tmp_path / "out"
        command = ("optimize", tiny, "--apply", "halve", "-o", out, *QUICK, *options)
        return truthgpt(*command, env=os.environ | environment), out

    return run


def test_a_metric_has_its_row_in_terminal_page_and_json(optimize):
    """For each variant, with its unit; baseline and candidate are measured in their workers."""
    done, out = optimize("entropy_metric", "--metric", "entropy", "--full")
    assert done.returncode == 0, done.stderr
    variants = json.loads((out / "report.json").read_text())["variants"]
    found = [each["measured"]["metrics"] for each in variants]
    assert [[(one["metric"], one["name"], one["unit"]) for one in each] for each in found] == [
        [("entropy", "Entropy", "nats/token")]
    ] * 2
    assert all(0 < each[0]["value"] <= math.log(320) for each in found)
    for shown in (done.stdout, (out / "report.html").read_text()):
        assert "Entropy" in shown
        assert "nats/token" in shown


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


@pytest.mark.parametrize(("budget", "outcome"), [("0.01", "rejected"), ("100", "accepted")])
def test_a_criterion_rejects_a_step(optimize, budget, outcome):
    """With its objection as the reason; without one, what the gate says holds."""
    done, out = optimize("frugal_gate", FRUGAL_MB=budget)
    assert done.returncode == 0, done.stderr
    (step,) = read_report(out / "report.json").steps
    assert step.outcome == outcome
    assert step.reason.endswith("MB, and the budget is 0.01.") == (outcome == "rejected")


def test_a_section_is_shown_in_terminal_page_and_json(optimize):
    """Below what every report has."""
    done, out = optimize("frugal_gate", "--full")
    assert done.returncode == 0, done.stderr
    (section,) = read_report(out / "report.json").sections
    assert section.title == "Budget of memory"
    assert [label for label, _ in section.rows] == ["baseline", "halve"]
    for shown in (done.stdout, (out / "report.html").read_text()):
        assert "Budget of memory" in shown
        assert "At most inf MB are allowed." in shown
