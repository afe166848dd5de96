"""What the page shows, as HTML; what models, files and users write is text in it, and nothing more.

Every text that is not ours goes through `plain`, or into an attribute.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from truthgpt_plugin_gradio.answers import Answer, State
from truthgpt_plugin_gradio.models import METRICS_NAME, DemoModel
from truthgpt_services.formatting import ABSENT, number, seconds, size, visible
from truthgpt_services.report.html import render_html
from truthgpt_services.report.loss_plot import loss_plot

_STATUS = Path("/proc/self/status")
_ENDED = {
    "eos_token": "ended by the model",
    "length": "cut at the most tokens",
    "stop_sequence": "ended by a stop string",
    "cancelled": "stopped",
    "timeout": "out of time",
}
# The height of a report is that of what is in it. No script in it runs: its sandbox allows none.
_FIT = (
    "const page=this.contentDocument,fit=()=>{this.style.height="
    "page.documentElement.getBoundingClientRect().height+'px'};"
    "new ResizeObserver(fit).observe(page.documentElement);fit()"
)


def plain(text: str) -> Markup:
    """Return any text as HTML that shows it, character by character."""
    return escape(visible(text))


def style() -> str:
    """Return the style sheet of the page."""
    return files("truthgpt_plugin_gradio").joinpath("page.css").read_text(encoding="utf-8")


def header() -> str:
    """Return the top of the page."""
    return (
        '<header class="tg-header"><p class="tg-kicker">TruthGPT</p>'
        "<h1>One question, two models</h1>"
        "<p>Ask a model and the one that was made from it, and see both answer on this machine."
        "</p></header>"
    )


def note(text: str) -> Markup:
    """Return a sentence that explains something."""
    return Markup('<p class="tg-note">{}</p>').format(plain(text))


def card(answer: Answer | None, model: DemoModel, fastest: float | None = None) -> Markup:
    """Return what a column shows: a model's figures and its answer.

    Args:
        answer: of the model; None before the first question.
        model: the model.
        fastest: the highest speed of those beside each other, in tokens per second.
    """
    return Markup(
        '<article class="tg-card" data-state="{}"><p class="tg-about">{}</p>{}{}{}</article>'
    ).format(
        "empty" if answer is None else "failed" if answer.error else answer.state.name.lower(),
        plain(_about(model)),
        _speed(answer, fastest),
        _figures(answer, model),
        _body(answer),
    )


def cards(answers: Sequence[Answer]) -> list[Markup]:
    """Return what the columns show."""
    speeds = [each.tokens_per_second for each in answers if each.tokens_per_second]
    return [card(each, each.model, max(speeds, default=None)) for each in answers]


def memory_line() -> Markup:
    """Return what the process takes, with the models that it holds."""
    resident = _resident_bytes()
    figure = "not known on this system" if resident is None else size(resident)
    return Markup(
        '<p class="tg-memory"><strong>{}</strong> resident memory (RSS) of the one process that '
        "holds all models, PyTorch and this page. What a single model takes is its weights.</p>"
    ).format(figure)


def report_panel(model: DemoModel) -> Markup:
    """Return the report of a model, as a page within the page."""
    if model.report is None:
        why = model.report_problem or (
            "This model has none. `truthgpt optimize` writes one beside the model that it makes."
        )
        return _section("Report", note(why))
    # As it is drawn from the checked data: a report.html beside the model could hold anything.
    frame = Markup(
        '<iframe class="tg-report" title="Report" sandbox="allow-same-origin" onload="{}" '
        'srcdoc="{}"></iframe>'
    ).format(_FIT, escape(str(render_html(model.report))))
    return Markup('<section class="tg-section">{}</section>').format(frame)


def loss_panel(run: Path | None) -> Markup:
    """Return the losses of a training run as a picture; nothing if there is no run."""
    if run is None:
        return Markup("")
    from truthgpt_services.training.metrics_log import read_metrics

    try:
        rows = [row for row in read_metrics(run / METRICS_NAME) if _can_be_drawn(row)]
    except OSError as error:
        rows, problem = [], f"{METRICS_NAME} cannot be read: {error.strerror}."
    else:
        problem = f"{METRICS_NAME} has no losses yet."
    if not rows:
        return _section("Training run", note(problem))
    drawn = base64.b64encode(loss_plot(rows).encode()).decode()
    picture = Markup(
        '<img class="tg-loss" alt="Loss by step" src="data:image/svg+xml;base64,{}">'
    ).format(drawn)
    return _section("Training run", note(str(run)), picture)


def _section(title: str, *body: Markup) -> Markup:
    return Markup('<section class="tg-section"><h2>{}</h2>{}</section>').format(
        title, Markup("").join(body)
    )


def _about(model: DemoModel) -> str:
    made = " + ".join(model.steps) or model.dtype
    return f"{made}, on the engine {model.engine}" if made else f"On the engine {model.engine}"


def _speed(answer: Answer | None, fastest: float | None) -> Markup:
    rate = None if answer is None else answer.tokens_per_second
    share = 100 * rate / fastest if rate and fastest else 0
    figure = ABSENT if rate is None else number(rate)
    return Markup(
        '<p class="tg-speed"><strong>{}</strong> tokens/s</p>'
        '<div class="tg-bar" aria-hidden="true"><span style="width: {:.1f}%"></span></div>'
    ).format(figure, share)


def _figures(answer: Answer | None, model: DemoModel) -> Markup:
    first = None if answer is None else answer.first_token_seconds
    weights = model.weights_bytes
    pairs = (
        ("First token", ABSENT if first is None else seconds(first)),
        ("Tokens", str(answer.tokens) if answer is not None and answer.tokens else ABSENT),
        ("Weights in memory", ABSENT if weights is None else size(weights)),
    )
    return Markup('<dl class="tg-figures">{}</dl>').format(
        Markup("").join(
            Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, figure)
            for name, figure in pairs
        )
    )


def _body(answer: Answer | None) -> Markup:
    if answer is None:
        return Markup('<p class="tg-status">The answer appears here.</p>')
    text = Markup('<div class="tg-answer" dir="auto">{}</div>').format(plain(answer.text))
    line = Markup('<p class="tg-status">{}</p>').format(plain(_status(answer)))
    if answer.error:
        line = Markup('<p class="tg-error" role="alert">{}</p>').format(plain(answer.error))
    return (text if answer.text else Markup("")) + line


def _status(answer: Answer) -> str:
    if answer.state is not State.OVER:
        words = "waiting for the other model" if answer.state is State.WAITING else ""
        return (words or answer.state.value).capitalize() + "\N{HORIZONTAL ELLIPSIS}"
    parts = [_ENDED.get(str(answer.finish_reason), str(answer.finish_reason)).capitalize()]
    if not answer.text and answer.finish_reason == "eos_token":
        parts = ["The model ended the text at once"]
    if answer.most_at_once > 1:
        parts.append(f"speed of up to {answer.most_at_once} answers sharing this machine")
    if not answer.is_chat:
        parts.append("no chat template: the text is continued")
    return "; ".join(parts) + "."


def _resident_bytes() -> int | None:
    try:
        found = re.search(r"^VmRSS:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _can_be_drawn(row: Mapping[str, Any]) -> bool:
    """Whether a row, which anything may have written, has a step and a loss of usual sizes."""
    step, loss = row["step"], row.get("loss")
    if isinstance(loss, bool) or not isinstance(loss, int | float):
        return False
    return 0 <= step < 10**12 and abs(loss) < 1e9 and math.isfinite(loss)
