"""The command `truthgpt train` in a fork, with a signal at a moment that does not depend on time.

A job has `arguments`, what follows `truthgpt train`; `log`, a file for what is said; `tokens`,
what to set in the module of tokens; and at most one `trouble`, a name in `TROUBLES` and what that
takes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM

from truthgpt_core.cli.main import main
from truthgpt_core.event_system import Event, EventType, on_event
from truthgpt_core.hookspecs import hookimpl
from truthgpt_core.plugin_system import get_plugin_manager
from truthgpt_services.data import token_store as data_tokens

SENDING = "sending"
"""The plugin that sends signals."""


def warm() -> None:
    """Import what the command does, and nothing of other plugins, so that its forks need not."""
    os.environ["TRUTHGPT_PLUGINS"] = f"services,{SENDING}"
    for name in (
        "rich.console",
        "rich.table",
        "transformers.optimization",
        "truthgpt_services.commands.train",
        "truthgpt_services.services.training_job",
        "truthgpt_services.training.metrics_log",
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module(name)
    get_plugin_manager().activate_all()


def run_command(job: dict[str, Any]) -> dict[str, Any]:
    """Run the command in a session of its own; return its exit code and which processes it left.

    A process that a signal ended has the negative of it as its code.
    """
    child = os.fork()
    if child == 0:
        os.setsid()
        _become(job)
    _, status = os.waitpid(child, 0)
    left = _of_session(child)
    for each in left:
        os.kill(each, signal.SIGKILL)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "said": Path(job["log"]).read_text(),
        "left": len(left),
    }


def _become(job: dict[str, Any]) -> None:
    with Path(job["log"]).open("w") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    warnings.simplefilter("default")
    for name, value in job.get("tokens", {}).items():
        setattr(data_tokens, name, value)
    sys.argv = ["truthgpt", "train", *map(str, job["arguments"])]
    if "trouble" in job:
        name, given = job["trouble"]
        TROUBLES[name](**given)
    code: Any = 1
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _of_session(session: int) -> list[int]:
    """The processes of a session, once those that are about to end have had their time."""
    for _ in range(100):
        found = []
        for each in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, its = each.read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(its) == session and state != "Z":
                found.append(int(each.parent.name))
        if not found:
            break
        time.sleep(0.1)
    return found


def _send(number: str, *, group: bool = False) -> None:
    """Send this process a signal; or its group, as a terminal or a service manager does."""
    if not group:
        os.kill(os.getpid(), signal.Signals[number])
        return
    # Workers of torch take a signal of their parent for its own. And not by a fork of this
    # process: python runs hooks beside one, and loses what a handler raises in them.
    name = number.removeprefix("SIG")
    sending = ["sh", "-c", f"trap '' {name}; kill -{name} 0"]
    os.waitpid(os.posix_spawn("/bin/sh", sending, os.environ), 0)
    # The others die of it by now, if they do.
    time.sleep(0.5)


def at_a_batch(at: int, number: str, *, group: bool = False, workers: bool = False) -> None:
    """A signal when a batch is computed, counted from 1; `workers` get it and not this process."""

    class Sending:
        count = 0

        @hookimpl(wrapper=True)
        def make_training_step(self) -> Any:
            step = yield

            def sending(batch: Any) -> Any:
                self.count += 1
                if self.count == at:
                    for worker in multiprocessing.active_children() if workers else ():
                        os.kill(worker.pid or 0, signal.Signals[number])
                        worker.join()
                    if not workers:
                        _send(number, group=group)
                return step(batch)

            return sending

    get_plugin_manager().register_plugin(Sending(), SENDING)


def at_an_event(event: str, nth: int, number: str) -> None:
    """A signal when an event is told for the nth time."""
    seen = 0

    def send(_event: Event) -> None:
        nonlocal seen
        seen += 1
        if seen == nth:
            _send(number)

    on_event(getattr(EventType, event), send)


def when_it_says(words: str, number: str, *, group: bool = False) -> None:
    """A signal when words are written to standard error."""
    stream = sys.stderr

    class Listening:
        sent = False

        def write(self, text: str) -> int:
            count = stream.write(text)
            if words in text and not self.sent:
                self.sent = True
                stream.flush()
                _send(number, group=group)
            return count

        def __getattr__(self, name: str) -> Any:
            return getattr(stream, name)

    listening: Any = Listening()
    sys.stderr = listening


def while_a_file_is_flushed(
    directory: str,
    number: str,
    *,
    seconds: float = 0.5,
    before: tuple[int, str] | None = None,
) -> None:
    """A signal when something below a directory is first flushed.

    Args:
        directory: part of the path.
        number: the signal.
        seconds: how long the flush takes then.
        before: a batch and a signal that comes then, before this one.
    """
    flush, count = os.fsync, 0

    def flushing(descriptor: int) -> None:
        nonlocal count
        if directory in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            count += 1
            if count == 1:
                _send(number)
                time.sleep(seconds)
        flush(descriptor)

    os.fsync = flushing
    if before is not None:
        at_a_batch(*before)


def while_a_model_is_saved(number: str) -> None:
    """A signal when transformers has written the weights of a model."""
    save = LlamaForCausalLM.save_pretrained

    def saving(self: Any, *given: Any, **named: Any) -> None:
        save(self, *given, **named)
        _send(number)

    LlamaForCausalLM.save_pretrained = saving


TROUBLES: dict[str, Callable[..., None]] = {
    "batch": at_a_batch,
    "event": at_an_event,
    "says": when_it_says,
    "flush": while_a_file_is_flushed,
    "save": while_a_model_is_saved,
}
