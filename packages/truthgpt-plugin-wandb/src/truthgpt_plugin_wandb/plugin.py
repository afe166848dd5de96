"""The tracker `wandb`; wandb itself is imported when a run begins that asks for it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from truthgpt_core.config import Section
from truthgpt_core.errors import TruthGPTError, in_one_line
from truthgpt_core.tracking import Outcome, Row, RunStart, TrackerPlugin

if TYPE_CHECKING:
    import wandb


class WandbSection(Section):
    """Pass the run on to Weights & Biases."""

    project: str = Field(min_length=1, description="The project that the run belongs to.")
    entity: str | None = Field(
        default=None, min_length=1, description="The user or team; without, the user's own."
    )
    name: str | None = Field(
        default=None, min_length=1, description="The run's name; without, the output directory's."
    )
    mode: Literal["online", "offline"] = Field(
        default="online",
        description="offline keeps everything in output_dir/wandb, for `wandb sync` to send later.",
    )


class WandbPlugin(TrackerPlugin):
    """Passes training runs on to Weights & Biases, if the configuration has its section.

    Attributes:
        seconds_to_begin: how long it tries to reach the server before it keeps the run on disk.
    """

    section = WandbSection
    seconds_to_begin: float = 60.0

    @property
    def name(self) -> str:
        """Its name."""
        return "wandb"

    @property
    def version(self) -> str:
        """The version of its distribution."""
        return version("truthgpt-plugin-wandb")

    def open(self, settings: WandbSection, start: RunStart) -> WandbRun:
        """Open a run, or go on with one; keep it on disk where the server cannot be had.

        Args:
            settings: the section.
            start: what is known of the run.

        Raises:
            wandb.Error: not even that is possible.
        """
        import wandb

        # Said once for the process, or it writes of its own accord where credentials are from.
        wandb.setup(settings=wandb.Settings(silent=True, console="off"))
        key = start.key or _new_key()
        sync = f"`wandb sync` sends what is in {start.directory / 'wandb'}"
        if settings.mode == "online":
            try:
                # It would ask in the terminal, in the middle of training.
                if wandb.login(prompt=False, verify=False):
                    return WandbRun(self._init(settings, start, key, "online"))
                start.note(f"not logged in, so the run is kept on disk; {sync}")
            except wandb.Error as error:
                # wandb still has a run of the old key in use.
                key = _new_key()
                again = "what follows is" if start.key else "the run is"
                start.note(f"{in_one_line(error)}; {again} kept on disk as run {key}, and {sync}")
        return WandbRun(self._init(settings, start, key, "offline"))

    def _init(
        self, settings: WandbSection, start: RunStart, key: str, mode: Literal["online", "offline"]
    ) -> wandb.Run:
        import wandb

        run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            name=settings.name or start.directory.resolve().name,
            id=key,
            resume="allow",
            reinit="create_new",
            mode=mode,
            config=dict(start.config),
            dir=start.directory,
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=self.seconds_to_begin,
                # Less than what training waits, so that the process can end in peace.
                finish_timeout=0.8 * self.seconds_to_end,
                finish_timeout_raises=True,
            ),
        )
        # Its own count of steps never goes back, and drops what does; a run that goes on from a
        # checkpoint does some steps again.
        run.define_metric("*", step_metric="step")
        return run


class WandbRun:
    """A run of wandb.

    Args:
        run: it, opened.
    """

    def __init__(self, run: wandb.Run) -> None:
        self._run = run

    @property
    def key(self) -> str:
        """Its id."""
        return self._run.id

    def log(self, rows: Sequence[Row]) -> None:
        """Log a row; a note goes under `notes/`, by what it is about."""
        for row in rows:
            what = {f"notes/{row.about}": row.note} if row.note else dict(row.numbers)
            self._run.log({"step": row.step, **what})

    def end(self, outcome: Outcome, reason: str) -> None:
        """Finish, which waits until all is sent.

        Raises:
            TruthGPTError: that took too long.
        """
        self._run.summary.update({"outcome": outcome.value, "reason": reason})
        try:
            self._run.finish(exit_code=0 if outcome is Outcome.FINISHED else 1)
        except TimeoutError:
            place = self._run.settings.sync_dir
            raise TruthGPTError(
                "Not everything could be sent", hint=f"`wandb sync {place}` sends the rest"
            ) from None


def _new_key() -> str:
    return uuid.uuid4().hex[:16]
