"""The page itself, made of components of gradio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from truthgpt_plugin_gradio import panels
from truthgpt_plugin_gradio.answers import Answering
from truthgpt_plugin_gradio.models import DemoModel

IN_TURN, AT_ONCE = "One after the other", "Both at once"
_SPEEDS = "Both at once, the two models share this machine: each speed is that of both running."
_LONGEST_QUESTION = 20_000
_MOST_TOKENS = 2048
_TABS_AT_ONCE = 8


def make_page(
    models: Sequence[DemoModel], answering: Answering, run: Path | None = None
) -> gr.Blocks:
    """Make the page.

    Args:
        models: that can be chosen; the first two are chosen at first.
        answering: writes the answers.
        run: the directory of a training run whose losses are drawn; None for none.
    """
    known = {model.spec: model for model in models}
    names = list(known)

    def ask(
        question: str,
        base: str,
        optimized: str,
        order: str,
        temperature: float,
        most: float,
        seed: float | None,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        chosen = [known[base], known[optimized]]
        if not question.strip():
            gr.Warning("Write a question first.")
            yield (*_empty(chosen), *[gr.skip()] * 5)
            return
        options = {
            "temperature": float(temperature),
            "max_new_tokens": int(most),
            "seed": int(seed or 0),
        }
        asked = answering.ask(
            str(request.session_hash), chosen, question, options, at_once=order == AT_ONCE
        )
        controls = _controls(answering=True)
        for answers in asked:
            yield (*panels.cards(answers), gr.skip(), *controls)
            controls = [gr.skip()] * 4
        yield (*panels.cards(answers), panels.memory_line(), *_controls(answering=False))

    def stop(request: gr.Request) -> None:
        answering.stop(str(request.session_hash))

    def choose(base: str, optimized: str) -> tuple[Any, ...]:
        chosen = [known[base], known[optimized]]
        return (*_empty(chosen), panels.report_panel(chosen[1]))

    page: gr.Blocks = gr.Blocks(title="TruthGPT: one question, two models", analytics_enabled=False)
    with page:
        gr.HTML(panels.header())
        with gr.Row(elem_classes="tg-ask"):
            question = gr.Textbox(
                label="Question",
                show_label=False,
                container=False,
                placeholder="Why is the sky blue?",
                lines=1,
                max_lines=8,
                max_length=_LONGEST_QUESTION,
                autofocus=True,
                elem_id="question",
                min_width=240,
            )
            with gr.Row(elem_classes="tg-buttons"):
                asking = gr.Button("Ask", variant="primary", elem_id="ask", min_width=80)
                stopping = gr.Button("Stop", interactive=False, elem_id="stop", min_width=80)
        with gr.Row(elem_classes="tg-order"):
            order = gr.Radio(
                [IN_TURN, AT_ONCE],
                value=IN_TURN,
                label="Order",
                show_label=False,
                container=False,
            )
            gr.HTML(panels.note(_SPEEDS))
        with gr.Accordion("Sampling", open=False, elem_classes="tg-sampling"), gr.Row():
            temperature = gr.Slider(
                0, 2, value=0, step=0.05, label="Temperature", info="0: the likeliest token."
            )
            most = gr.Slider(1, _MOST_TOKENS, value=192, step=1, label="Tokens", info="At most.")
            seed = gr.Number(0, label="Seed", info="Of the random choice.", precision=0, minimum=0)
        columns = []
        with gr.Row(elem_classes="tg-columns", equal_height=True):
            for label, model in (("Base", models[0]), ("Optimized", models[1])):
                with gr.Column(min_width=320, elem_classes="tg-column"):
                    picker = gr.Dropdown(
                        names, value=model.spec, label=label, elem_id=label.lower()
                    )
                    columns.append((picker, gr.HTML(panels.card(None, model))))
        (base, left), (optimized, right) = columns
        # Functions are called whenever the page is loaded.
        memory = gr.HTML(panels.memory_line)
        gr.HTML(partial(panels.loss_panel, run), visible=run is not None)
        report = gr.HTML(panels.report_panel(models[1]))

        gr.on(
            [asking.click, question.submit],
            ask,
            [question, base, optimized, order, temperature, most, seed],
            [left, right, memory, stopping, asking, base, optimized],
            show_progress="hidden",
            trigger_mode="once",
            concurrency_limit=_TABS_AT_ONCE,
            api_visibility="private",
        )
        stopping.click(stop, queue=False, show_progress="hidden", api_visibility="private")
        gr.on(
            [base.input, optimized.input],
            choose,
            [base, optimized],
            [left, right, report],
            show_progress="hidden",
            api_visibility="private",
        )
        page.unload(stop)
    return page


def _empty(chosen: Sequence[DemoModel]) -> list[Any]:
    return [panels.card(None, model) for model in chosen]


def _controls(*, answering: bool) -> list[Any]:
    """Return what can be used: to stop, or to ask and to choose models."""
    return [gr.update(interactive=answering), *[gr.update(interactive=not answering)] * 3]
