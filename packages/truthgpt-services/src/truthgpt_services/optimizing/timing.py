"""Launching models again and again, and timing them until the interval decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from truthgpt_core.optimization import Progress
from truthgpt_services.measuring.compare import Contestant, take_turns, warm_up
from truthgpt_services.measuring.machine_load import LoadMeter
from truthgpt_services.measuring.speed import Launch, Plan
from truthgpt_services.optimizing.model_maker import ModelMaker

SPARE = 2**30
"""Bytes that a process takes beside the weights of its model."""


class Timing:
    """Runs the launches of a whole job, which it numbers.

    Args:
        plan: how much is measured.
        models: starts workers and lets them load.
        progress: told about work that takes seconds.

    Attributes:
        meter: what other programs did meanwhile.
    """

    def __init__(
        self,
        plan: Plan,
        models: ModelMaker,
        progress: Progress,
    ) -> None:
        self._plan = plan
        self._models = models
        self._progress = progress
        self._launches = 0
        self.meter = LoadMeter()

    def control(self, baseline: Contestant, ids: Sequence[int]) -> Contestant | None:
        """Load the baseline once more, in a process of its own, if there is memory for it."""
        available = baseline.worker.available_memory()
        if available is not None and available < baseline.opened.weights_bytes + SPARE:
            return None
        control = self._models.open_twin(baseline, "control", baseline.engine)
        warm_up(control, ids, self._plan)
        return control

    @property
    def launches(self) -> int:
        """How many there were."""
        return self._launches

    def take_over(
        self, contestants: Sequence[Contestant], found: Mapping[str, Sequence[Launch]]
    ) -> None:
        """Number launches of an earlier run as if they were of this one, by name of the model."""
        for each in contestants:
            for number, launch in enumerate(found.get(each.name, ()), self._launches):
                each.launches[number] = launch
        self._launches += max(map(len, found.values()), default=0)

    def until(
        self,
        contestants: Sequence[Contestant],
        ids: Sequence[int],
        enough: Callable[[int], bool],
    ) -> None:
        """Launch all and let them take turns, until it is enough.

        Args:
            contestants: warm; after the first launch each is started again in a new process.
            ids: a text that the prompt is cut from.
            enough: asked after each launch, with how many there were.
        """
        began = time.monotonic()
        for number in range(1, self._plan.looks[-1] + 1):
            if number > 1:
                self._launch(contestants, ids)
            self.meter.begin(each.worker.process for each in contestants)
            take_turns(
                contestants,
                ids,
                self._plan,
                self._launch_progress(number),
                launch=self._launches,
            )
            self.meter.end()
            self._launches += 1
            late = time.monotonic() - began > self._plan.seconds
            if enough(number) or (late and number in self._plan.looks):
                return

    def _launch(self, contestants: Sequence[Contestant], ids: Sequence[int]) -> None:
        """End the workers and start new ones, which load their models at the same time."""
        for each in contestants:
            each.worker.end(at_once=True)
            each.worker = self._models.start(each.name)
        opening = [
            self._models.begin_loading(each.worker, each.directory, each.dtype, each.engine)
            for each in contestants
        ]
        for opened in opening:
            opened()
        for each in contestants:
            warm_up(each, ids, self._plan)

    def _launch_progress(self, number: int) -> Progress:
        """Count rounds over launches, up to those of the next look."""
        rounds = self._plan.rounds
        look = next(look for look in self._plan.looks if look >= number)

        def progress(what: str, done: int, total: int) -> None:
            now = f"launch {number}/{look}, round {min(done + 1, total)}/{total}"
            self._progress(f"{what}: {now}", (number - 1) * rounds + done, look * rounds)

        return progress
