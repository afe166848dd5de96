"""What is shown, without a browser."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_report import made_report
from parrot import Parrot, demo_model

from truthgpt_core.errors import TruthGPTError
from truthgpt_plugin_gradio import panels
from truthgpt_plugin_gradio.answers import Answer, Answering

HOSTILE = '<script>alert(1)</script> <img src=x onerror=alert(1)> "\' onload="x'


class Tags(HTMLParser):
    """The tags of a piece of HTML, with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, str | None] = {}
        self.text = ""
        self.feed(str(text))  # Markup would escape what is added to it

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= dict(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def answered(text: str | None = None, error: Exception | None = None) -> Answer:
    """The answer of a model that says this."""
    (*_, answers) = Answering().ask("tab", [demo_model(HOSTILE, Parrot(text, error))], "Hello", {})
    return answers[0]


def test_an_answer_is_text() -> None:
    """Markup that a model writes is shown and makes no tags."""
    plain, hostile = (
        Tags(panels.cards([answered("Hi")])[0]),
        Tags(panels.cards([answered(HOSTILE)])[0]),
    )
    assert hostile.tags == plain.tags
    assert HOSTILE in hostile.text
    assert not hostile.attributes.keys() & {"onload", "onerror", "src"}


def test_characters_that_act_are_written_out() -> None:
    """What would turn text around, or drive a terminal, can be seen."""
    assert "\\u202e" in panels.cards([answered("a\u202eb")])[0]


@pytest.mark.parametrize("error", [TruthGPTError(HOSTILE), ValueError(HOSTILE)])
def test_an_error_is_text(error: Exception) -> None:
    """What is wrong is one sentence in the column, with nothing left out."""
    shown = Tags(panels.cards([answered(error=error)])[0])
    assert HOSTILE in shown.text
    assert not {"script", "img"} & set(shown.tags)


def test_a_report_is_kept_in_a_sandbox() -> None:
    """A report is a page of its own, in which no script runs."""
    model = demo_model("a", Parrot())
    reported = made_report(result={"variant": "baseline", "steps": [], "summary": HOSTILE})
    shown = Tags(panels.report_panel(replace(model, report=reported)))
    assert shown.tags == ["section", "iframe"]
    assert shown.attributes["sandbox"] == "allow-same-origin"
    inside = Tags(str(shown.attributes["srcdoc"]))
    assert HOSTILE in inside.text
    assert not {"script", "img"} & set(inside.tags)


@pytest.mark.parametrize(("problem", "said"), [("", "This model has none."), (HOSTILE, HOSTILE)])
def test_a_report_that_is_missing_says_why(problem: str, said: str) -> None:
    """There is none, or it cannot be read."""
    shown = Tags(panels.report_panel(replace(demo_model("a", Parrot()), report_problem=problem)))
    assert said in shown.text
    assert shown.tags == ["section", "h2", "p"]


def test_the_losses_of_a_run_are_drawn(tmp_path: Path) -> None:
    """Steps and evaluations are a picture, which is in the page itself."""
    rows = [{"kind": "step", "step": each, "loss": 3 - each / 10} for each in range(1, 9)]
    rows.append({"kind": "evaluation", "step": 8, "loss": 2.5})
    picture = drawn(tmp_path, "\n".join(map(json.dumps, rows)))
    assert picture.startswith("<svg")
    assert picture.count("<polyline") == 2


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "step", "step": 2, "loss": NaN}',
        '{"kind": "step", "step": 2, "loss": Infinity}',
        '{"kind": "step", "step": 2, "loss": 1e300}',
        '{"kind": "step", "step": 2, "loss": "<script>"}',
        '{"kind": "step", "step": -2, "loss": 1}',
        '{"kind": "step", "step": 1' + "0" * 400 + ', "loss": 1}',
        '{"kind": "step", "step": 2, "loss": 1' + "0" * 400 + "}",
        '{"kind": "step", "step": 2, "loss": null}',
        '{"kind": "step", "step": 2}',
        "[" * 100_000,
        "\x00\xff<script>",
    ],
    ids=lambda line: str(line)[:44],
)
def test_metrics_that_cannot_be_drawn_are_left_out(tmp_path: Path, line: str) -> None:
    """The others are drawn, and the picture holds nothing but them."""
    good = '{"kind": "step", "step": 1, "loss": 2.5}'
    assert drawn(tmp_path, f"{good}\n{line}\n") == drawn(tmp_path, good)


def test_a_run_without_losses_says_so(tmp_path: Path) -> None:
    """There is no empty picture."""
    tmp_path.joinpath("metrics.jsonl").touch()
    assert "has no losses yet" in panels.loss_panel(tmp_path)


def test_without_a_run_nothing_is_shown() -> None:
    """There is no heading either."""
    assert panels.loss_panel(None) == ""


def drawn(directory: Path, metrics: str) -> str:
    """The picture that is drawn of metrics."""
    directory.joinpath("metrics.jsonl").write_text(metrics, encoding="utf-8")
    found = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', panels.loss_panel(directory))
    assert found is not None
    return base64.b64decode(found[1]).decode()
