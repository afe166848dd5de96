"""How much text sixteen requests at once get, beside llama.cpp: `workload.json`.

    python benchmarks/batch.py

Each contender loads SmolLM2-135M-Instruct in a process of its own and then waits; they take
turns, one at a time, in an order that rotates. In a turn all requests come at once, each ends
when it has its tokens, and the useful tokens per second are those returned, over the time from the
first request to the last token. Alone is what one request after the other gets. Memory is what
a turn takes beyond what was resident after loading. Others take part as in `decode.py`.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import decode
from rivals import Requests, answer_greedily

WORKLOAD = Path(__file__).with_name("workload.json")
NATIVE = ("native, float32", "native, bfloat16", "native, int8 (the default)", "native, int4")
SEQUENCES, POSITIONS = 16, 512


def main() -> None:
    """Measure and print."""
    given = decode.contender_arguments(__doc__).parse_args()
    if given.worker:
        decode.serve(given.worker, SEQUENCES, POSITIONS, Engine, take_turn)
        return
    pythons = decode.rivals_there(given)
    names = ["torch, int8", *NATIVE, *pythons]
    if given.only:
        names = [name for name in names if any(part in name for part in given.only)]
    with tempfile.TemporaryDirectory() as folder:
        run(names, pythons, given.rounds, Path(folder))


def run(names: list[str], pythons: dict[str, str], rounds: int, folder: Path) -> None:
    """Let contenders take turns and print what came out."""
    ids = decode.text_ids(folder)
    requests = read_requests(ids)
    workers = decode.start_workers(names, pythons, folder, __file__)
    decode.describe(pythons)
    print_table(decode.take_turns(names, lambda name: workers[name].ask("turn", requests), rounds))
    for worker in workers.values():
        worker.close()


def read_requests(ids: list[int]) -> Requests:
    """Return the requests of the workload, with their prompts of a text's tokens."""
    requests: Requests = json.loads(WORKLOAD.read_text(encoding="utf-8"))["requests"]
    for each in requests:
        each["ids"] = ids[each["begin"] : each["begin"] + each["prompt"]]
    return requests


def take_turn(contender: Any, what: str, requests: Requests) -> dict[str, Any]:
    """Take a turn: the requests one after the other, and all of them at once."""
    useful = sum(each["new"] for each in requests)
    began = time.perf_counter()
    for each in requests:
        contender.answer([each])
    alone = useful / (time.perf_counter() - began)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    resident = _memory("VmRSS")
    began = time.perf_counter()
    texts = contender.answer(requests)
    together = useful / (time.perf_counter() - began)
    assert [len(text) for text in texts] == [each["new"] for each in requests]
    memory = _memory("VmHWM") - resident
    return {"alone": alone, "together": together, "memory": memory / 2**20}


def _memory(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{what}:"))
    return 1024 * int(line.split()[1])


class Engine:
    """An engine of this project; sequences leave the batch when they have their tokens."""

    def __init__(self, name: str) -> None:
        self.engine = decode.Torch(name).engine

    def answer(self, requests: Requests) -> list[list[int]]:
        """Return the tokens of each request, greedily."""
        states = [state for _ in requests for state in self.engine.open(POSITIONS)]

        def forward(active: list[int], given: list[list[int]]) -> list[Any]:
            found = self.engine.forward([states[at] for at in active], given)
            return [logits[-1] for logits in found]

        texts = answer_greedily(requests, forward)
        self.engine.close(states)
        return texts


def print_table(turns: dict[str, list[dict[str, float]]]) -> None:
    """Print a row for each contender, in Markdown."""
    base = "llama.cpp, Q8_0"
    heads = ["16 at once, useful tokens/s", *([f"to {base}"] if base in turns else [])]
    print("| | " + " | ".join([*heads, "one after the other", "memory of a turn, MB"]) + " |")
    print("|---" * (len(heads) + 3) + "|")
    for name, found in turns.items():
        cells = [f"{median(each['together'] for each in found):.0f}"]
        if base in turns:
            cells.append(decode.ratio(turns, name, base, "together"))
        cells.append(f"{median(each['alone'] for each in found):.0f}")
        cells.append(f"{median(each['memory'] for each in found):.0f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
