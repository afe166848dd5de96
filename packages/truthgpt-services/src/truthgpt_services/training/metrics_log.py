"""What listens to a run: a file of its metrics, a line of progress, samples.

They are listeners: what they raise is logged and counted by the emitter, and the run goes on.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import IO, Any

import torch

from truthgpt_core.decoding import Engine, SamplingParams
from truthgpt_core.event_system import Event, EventEmitter, EventType
from truthgpt_core.paths import read_regular_bytes, write_file
from truthgpt_core.terminal_text import harmless
from truthgpt_services.formatting import number, seconds, shortened, size
from truthgpt_services.inference.decoder import stream
from truthgpt_services.measuring.memory import peak
from truthgpt_services.models.loading import quiet
from truthgpt_services.training.flops import matmul_rate
from truthgpt_services.training.precision import TYPES, choose_precision
from truthgpt_services.training.rng import preserved_random_state

_KINDS = {
    EventType.TRAINING_STEP: "step",
    EventType.EVALUATION_FINISHED: "evaluation",
    EventType.TRAINING_NOTED: "note",
}
_SECONDS_BETWEEN_LINES = 10.0


class MetricsFile:
    """Appends a line of JSON for each step, evaluation and note.

    Args:
        path: of the file.
        after: a run that goes on begins after this step; lines of later ones are removed.
        emitter: whose events are written.
    """

    def __init__(self, path: Path, *, after: int, emitter: EventEmitter) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [json.dumps(row) for row in read_metrics(path) if row["step"] <= after]
        write_file(path, "".join(f"{line}\n" for line in kept if after))
        self._file = path.open("a", encoding="utf-8")
        self._listening = [emitter.on(kind, self._write) for kind in _KINDS]

    def close(self) -> None:
        """Write no more."""
        for each in self._listening:
            each.remove()
        self._file.close()

    def _write(self, event: Event) -> None:
        row = {"kind": _KINDS[event.type], "time": event.timestamp, **_flat(event.data)}
        self._file.write(json.dumps(row, default=str) + "\n")
        self._file.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read what a `MetricsFile` wrote; a line that was not written to its end is passed over."""
    rows = []
    with suppress(FileNotFoundError):
        for line in read_regular_bytes(path).decode("utf-8", "replace").splitlines():
            with suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and type(row.get("step")) is int and "kind" in row:
                    rows.append(row)
    return rows


class ProgressLine:
    """Shows how a run goes on standard error: one line that changes, or now and then a new one.

    Args:
        emitter: whose events are shown.
        total: steps of the run, if that is known.
        device: whose memory is shown.
        output: where; standard error if None.
    """

    def __init__(
        self,
        emitter: EventEmitter,
        total: int | None,
        device: torch.device,
        output: IO[str] | None = None,
    ) -> None:
        self._device = device
        self._total = total
        self._output = output or sys.stderr
        self._changes = self._output.isatty() and os.environ.get("TERM") != "dumb"
        # Tokens and seconds of the newest steps: evaluating and saving do not count.
        self._recent: deque[tuple[int, float]] = deque(maxlen=50)
        self._compiling = False
        self._peak = _peak(device)
        self._first: float | None = None
        self._steps = 0
        self._stepping = 0.0
        self._last = -math.inf
        self._current_line = ""
        self._listening = [
            emitter.on(EventType.TRAINING_STEP, self._step),
            emitter.on(EventType.EVALUATION_STARTED, self._evaluating),
            emitter.on(EventType.EVALUATION_FINISHED, self._evaluation),
            emitter.on(EventType.TRAINING_NOTED, self._note),
        ]

    def close(self) -> None:
        """Show no more."""
        for each in self._listening:
            each.remove()
        if self._changes and self._current_line:
            self._output.write("\n")
            self._current_line = ""

    def _step(self, event: Event) -> None:
        data, now = event.data, monotonic()
        took = data["tokens"] / data["tokens_per_second"]
        # How long a step took that was compiled before it says nothing of those to come.
        if not self._compiling:
            self._recent.append((data["tokens"], took))
        self._compiling = False
        if self._first is None:
            self._first = now - took
        self._steps += 1
        self._stepping += took
        step = data["step"]
        last = step == self._total
        if not last and now - self._last < (0.2 if self._changes else _SECONDS_BETWEEN_LINES):
            return
        self._last = now
        parts = [
            f"step {step}" if self._total is None else f"step {step}/{self._total}",
            f"loss {data['loss']:.4f}",
        ]
        if self._recent:
            parts.append(f"{number(self._tokens_per_second())} tokens/s")
        if self._recent and self._peak and data.get("flops"):
            done = data["flops"] / data["tokens"] * self._tokens_per_second()
            parts.append(f"MFU {done / self._peak:.0%}")
        if self._recent and self._total is not None and not last:
            # What is done between steps takes its share of the time that is left.
            between = max(now - self._first - self._stepping, 0.0) / self._steps
            left = (self._total - step) * (self._seconds_of_a_step() + between)
            parts.append(f"{_roughly(left)} left")
        parts.append(size(peak(self._device)))
        self._show("  ".join(parts))

    def _tokens_per_second(self) -> float:
        return sum(tokens for tokens, _ in self._recent) / max(self._in_steps(), 1e-9)

    def _seconds_of_a_step(self) -> float:
        return self._in_steps() / len(self._recent)

    def _in_steps(self) -> float:
        return sum(took for _, took in self._recent)

    def _evaluating(self, event: Event) -> None:
        if self._changes:
            self._show(f"step {event.data['step']}: evaluating ...")

    def _evaluation(self, event: Event) -> None:
        metrics = event.data["metrics"]
        loss, perplexity = metrics["loss"], number(metrics["perplexity"])
        self._say(f"step {event.data['step']}: validation loss {loss:.4f}, perplexity {perplexity}")

    def _note(self, event: Event) -> None:
        if event.data["about"] == "compile":
            self._compiling = True
        self._say(event.data["note"])

    def _show(self, line: str) -> None:
        line = harmless(line)
        if self._changes:
            # A line that wraps cannot be written over, and would scroll the screen.
            self._current_line = shortened(line, max(shutil.get_terminal_size().columns - 1, 20))
            self._output.write(f"\r\x1b[2K{self._current_line}")
        else:
            self._output.write(f"{line}\n")
        self._output.flush()

    def _say(self, line: str) -> None:
        line = harmless(line)
        self._output.write(f"\r\x1b[2K{line}\n" if self._changes else f"{line}\n")
        self._output.flush()
        self._current_line = ""


def _roughly(duration: float) -> str:
    """Write a duration that is an estimate: in whole seconds."""
    return seconds(duration) if duration >= 119.95 else f"{math.ceil(duration)} s"


def _peak(device: torch.device) -> float | None:
    """Return how many operations a GPU does in a second, measured; None for a CPU.

    On a CPU it takes seconds, and depends on what else the machine does.
    """
    if device.type != "cuda":
        return None
    dtype = TYPES.get(choose_precision("auto", device), torch.float32)
    return matmul_rate(device, dtype, size=8192)


def sample(
    model: Any, engine_of: Callable[[Any], Engine], tokenizer: Any, prompts: list[str], tokens: int
) -> list[str]:
    """Continue prompts with the likeliest tokens; random numbers stay as they are.

    Args:
        model: in whatever mode, which it keeps.
        engine_of: returns the engine that runs it.
        tokenizer: its tokenizer.
        prompts: to continue.
        tokens: how many at most; fewer where the context ends before.

    Returns:
        Each prompt with what follows it.
    """
    training = model.training
    model.eval()
    texts = []
    try:
        with preserved_random_state(), torch.no_grad(), quiet():
            engine = engine_of(model)
            for prompt in prompts:
                ids = tokenizer(prompt).input_ids
                # A run does not end because a sample would be longer than the model can read.
                room = tokens if engine.context_length is None else engine.context_length - len(ids)
                params = SamplingParams(max_new_tokens=max(1, min(tokens, room)))
                made = stream(engine, ids, params, end=engine.end_tokens) if room > 0 else ()
                texts.append(tokenizer.decode([*ids, *made], skip_special_tokens=True))
    finally:
        model.train(training)
    return texts


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value)
        elif isinstance(value, float) and not math.isfinite(value):
            flat[name] = None
        else:
            flat[name] = value
    return flat
