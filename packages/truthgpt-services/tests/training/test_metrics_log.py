"""What the user sees of a run."""

from __future__ import annotations

import io
import os
import re
import signal
import time

import pytest
import torch
from rich.console import Console

from truthgpt_core import Plugin, hookimpl
from truthgpt_core.event_system import EventEmitter, EventType
from truthgpt_services.inference.engine import TorchEngine
from truthgpt_services.report.loss_plot import loss_plot
from truthgpt_services.services.model_service import ModelService
from truthgpt_services.training.errors import TrainingInterrupted
from truthgpt_services.training.metrics_log import ProgressLine, sample
from truthgpt_services.training.signals import StopSignals
from truthgpt_services.training.summary import print_result


class Terminal(io.StringIO):
    """Takes what is written to a terminal."""

    def isatty(self) -> bool:
        """Be one."""
        return True


def step(emitter: EventEmitter, number: int, *, rate: float = 50.0) -> None:
    emitter.emit(
        EventType.TRAINING_STEP,
        {"step": number, "loss": 2.5, "tokens": 100, "tokens_per_second": rate},
    )


def shown(output: io.StringIO, *, steps: int) -> str:
    emitter = EventEmitter()
    line = ProgressLine(emitter, steps, torch.device("cpu"), output)
    for number in range(1, steps + 1):
        step(emitter, number)
    metrics = {"loss": 2.25, "perplexity": 9.49}
    emitter.emit(EventType.EVALUATION_STARTED, {"step": steps})
    emitter.emit(EventType.EVALUATION_FINISHED, {"step": steps, "metrics": metrics})
    line.close()
    return output.getvalue()


def test_a_file_gets_few_whole_lines() -> None:
    """Where there is no terminal, fast steps do not each write a line, and nothing is erased."""
    lines = shown(io.StringIO(), steps=200).splitlines(keepends=True)
    assert len(lines) < 20
    assert all(line.endswith("\n") and line.strip().isprintable() for line in lines)
    assert lines[-2].startswith("step 200/200  loss 2.5000  50.0 tokens/s")
    assert lines[-1] == "step 200: validation loss 2.2500, perplexity 9.49\n"


def test_a_line_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a narrow terminal the line that changes is cut, so that it can be written over."""
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("TERM", "xterm")
    written = shown(Terminal(), steps=3)
    changing = [part.split("\n")[0] for part in written.split("\r\x1b[2K")[1:-1]]
    assert changing
    assert max(map(len, changing)) < 30


def test_the_time_that_is_left_is_that_of_the_steps() -> None:
    """Steps of two seconds each are taken as such, however little time the test itself takes."""
    output, emitter = io.StringIO(), EventEmitter()
    line = ProgressLine(emitter, 11, torch.device("cpu"), output)
    step(emitter, 1)
    line.close()
    assert "  20 s left" in output.getvalue()


def test_the_time_that_is_left_is_not_that_of_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first step of minutes, in which code was made, says nothing of those to come."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    output, emitter = Terminal(), EventEmitter()
    line = ProgressLine(emitter, 12, torch.device("cpu"), output)
    emitter.emit(EventType.TRAINING_NOTED, {"step": 0, "about": "compile", "note": "Compiling"})
    step(emitter, 1, rate=0.5)
    assert " left" not in output.getvalue()
    # A line that changes does so a few times in a second.
    time.sleep(0.3)
    step(emitter, 2)
    line.close()
    assert "50.0 tokens/s  20 s left" in output.getvalue()


def evaluation(step: int, loss: float | None, perplexity: float | None) -> dict:
    return {"kind": "evaluation", "step": step, "loss": loss, "perplexity": perplexity}


def result(rows: list[dict]) -> str:
    output = io.StringIO()
    print_result(rows, Console(file=output, width=100))
    return output.getvalue()


def test_the_result_compares_before_and_after() -> None:
    """Both losses stand side by side, and the speed is that of the steps alone."""
    steps = [
        {"kind": "step", "step": n, "loss": 3 - n / 10, "tokens": 100, "tokens_per_second": 50.0}
        for n in (1, 2, 3, 4)
    ]
    told = result([evaluation(0, 3.0, 20.1), *steps, evaluation(4, 2.5, 12.2)])
    assert "validation loss, nats/token" in told
    assert "3.000" in told
    assert "2.500" in told
    assert "4 steps, 400 tokens in 8.00 s: 50.0 tokens/s" in told


def test_a_perplexity_beyond_numbers_is_infinite() -> None:
    """A model that training has ruined ends in a table, not in an error."""
    assert "∞" in result([evaluation(0, 9.0, 8103.1), evaluation(4, 1076.8, None)])


def test_a_better_model_on_the_way_is_named() -> None:
    """If the loss rose again, the result says where it was lowest."""
    rows = [evaluation(0, 3.0, 20.1), evaluation(5, 2.0, 7.4), evaluation(10, 2.5, 12.2)]
    assert "lowest at step 5: 2.000" in result(rows)


def test_a_plot_of_a_long_run_stays_small() -> None:
    """A file of kilobytes shows a hundred thousand steps, each evaluation among them."""
    rows = [{"kind": "step", "step": n, "loss": 2 + 1 / n} for n in range(1, 100_001)]
    drawn = loss_plot([*rows, evaluation(50_000, 2.5, 12.2), evaluation(100_000, 2.4, 11.0)])
    assert len(drawn) < 20_000
    assert drawn.count("<circle") == 2


def test_a_plot_shows_what_changes() -> None:
    """Losses that differ by little fill the plot: its axis begins just below the lowest."""
    drawn = loss_plot([evaluation(0, 2.93, 18.7), evaluation(20, 2.65, 14.2)])
    heights = [float(each) for each in re.findall(r'cy="([\d.]+)"', drawn)]
    assert max(heights) - min(heights) > 150


def test_a_signal_is_answered_before_it_is_heeded() -> None:
    """Who listens is told of the first signal as it comes, while a long step still computes."""
    told: list[str] = []
    with StopSignals() as signals:
        signals.say = told.append
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.pending
    assert told == ["SIGTERM"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_in_a_destructor_is_heeded() -> None:
    """Python swallows what is raised there; the block is left all the same, when it says so."""

    class Ending:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    def prepare() -> None:
        with signals.at_once():
            Ending()
            reached.append("after the destructor")
            signals.heed()
            reached.append("after that")

    reached: list[str] = []
    with StopSignals() as signals, pytest.raises(TrainingInterrupted, match="SIGTERM"):
        prepare()
    assert reached == ["after the destructor"]


def test_a_sample_is_what_the_engine_of_a_plugin_makes(model, tiny, plugins) -> None:
    """Samples come from the engine that runs the model, and leave training as it was."""
    asked = []

    class Samples(Plugin):
        name, version = "samples", "1.0"

        @hookimpl(tryfirst=True)
        def make_engine(self, source, options):
            asked.append((source.kind, options.load().training))
            return TorchEngine(options.load(), options.hooks)

    plugins.register_plugin(Samples(), "samples")
    plugins.activate_all()
    service = ModelService(plugins)
    tokenizer = service.load_tokenizer(str(tiny))
    model.train()
    before = torch.get_rng_state()
    (text,) = sample(model, service.engine_of, tokenizer, ["The for statement"], 4)
    assert asked == [("memory", False)]
    assert text.startswith("The for statement")
    assert len(tokenizer(text).input_ids) > len(tokenizer("The for statement").input_ids)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_a_sample_ends_where_the_context_does(model, tiny, plugins) -> None:
    """Training goes on where what is asked for is more than the model can read."""
    service = ModelService(plugins)
    tokenizer = service.load_tokenizer(str(tiny))
    prompt = "The for statement"

    def text(tokens: int) -> str:
        return sample(model, service.engine_of, tokenizer, [prompt], tokens)[0]

    length, two = len(tokenizer(prompt).input_ids), text(2)
    model.config.max_position_embeddings = length + 2
    assert text(40) == two != prompt
    for context in (length, length - 1):
        model.config.max_position_embeddings = context
        assert text(40) == prompt
