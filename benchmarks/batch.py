"""How much text sixteen requests at once get, beside llama.cpp: `workload.json`.

    python benchmarks/batch.py

Each contender loads SmolLM2-135M-Instruct in a process of its own and then waits; they take
turns, one at a time, in an order that rotates. In a turn all requests come at once, each ends
when it has its tokens, and the useful tokens per second are those returned, over the time from the
first request to the last token. Alone is what one request after the other gets. Memory is what
a turn takes beyond what was resident after loading. llama.cpp takes part where llama-cpp-python
is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import decode

WORKLOAD = Path(__file__).with_name("workload.json")
NATIVE = ("native, float32", "native, bfloat16", "native, int8 (the default)", "native, int4")
LLAMA = ("llama.cpp, BF16", "llama.cpp, Q8_0", "llama.cpp, Q4_1")
POSITIONS = 512

Requests = list[dict[str, Any]]


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--only", nargs="+", metavar="PART", help="contenders with this in them")
    arguments.add_argument("--worker", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.worker:
        work(given.worker)
        return
    names = ["torch, int8", *NATIVE, *(LLAMA if find_spec("llama_cpp") else ())]
    if given.only:
        names = [name for name in names if any(part in name for part in given.only)]
    with tempfile.TemporaryDirectory() as folder:
        run(names, given.rounds, Path(folder))


def run(names: list[str], rounds: int, folder: Path) -> None:
    """Let contenders take turns and print what came out."""
    ids = decode.text_ids(folder)
    requests = json.loads(WORKLOAD.read_text(encoding="utf-8"))["requests"]
    for each in requests:
        each["ids"] = ids[each["begin"] : each["begin"] + each["prompt"]]
    files = decode.write_gguf(folder, [decode.LLAMA[name] for name in names if name in LLAMA])
    workers = {
        name: decode.Worker(
            name, folder, files.get(decode.LLAMA.get(name, ""), ""), script=__file__
        )
        for name in names
    }
    decode.describe()
    print_table(decode.take_turns(workers, "turn", requests, rounds))
    for worker in workers.values():
        worker.close()


def work(name: str) -> None:
    """Be a contender: answer on standard output what is asked on standard input."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print
    contender: Any = LlamaCpp() if name in LLAMA else Engine(name)
    print(json.dumps({}), file=answers)
    for line in sys.stdin:
        requests = json.loads(line)["ids"]
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
        print(
            json.dumps({"alone": alone, "together": together, "memory": memory / 2**20}),
            file=answers,
        )


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
        texts: list[list[int]] = [[] for _ in requests]
        active = list(range(len(requests)))
        given = [each["ids"] for each in requests]
        while active:
            found = self.engine.forward([states[at] for at in active], given)
            for at, logits in zip(active, found, strict=True):
                texts[at].append(int(logits[-1].argmax()))
            active = [at for at in active if len(texts[at]) < requests[at]["new"]]
            given = [[texts[at][-1]] for at in active]
        self.engine.close(states)
        return texts


class LlamaCpp:
    """A file in llama.cpp, with a batch of sequences of its own."""

    def __init__(self) -> None:
        import llama_cpp

        self.api = api = llama_cpp
        api.llama_backend_init()
        model = api.llama_model_load_from_file(
            os.environ["DECODE_GGUF"].encode(), api.llama_model_default_params()
        )
        params = api.llama_context_default_params()
        sequences = len(json.loads(WORKLOAD.read_text(encoding="utf-8"))["requests"])
        params.n_ctx, params.n_seq_max = POSITIONS * sequences, sequences
        params.n_batch = params.n_ctx
        params.n_threads = params.n_threads_batch = os.cpu_count()
        self.context = api.llama_init_from_model(model, params)
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        self.batch = api.llama_batch_init(params.n_ctx, 0, 1)

    def answer(self, requests: Requests) -> list[list[int]]:
        """Return the tokens of each request, greedily."""
        import numpy as np

        api, batch = self.api, self.batch
        api.llama_memory_clear(api.llama_get_memory(self.context), True)
        texts: list[list[int]] = [[] for _ in requests]
        positions = [0] * len(requests)
        active = list(range(len(requests)))
        given = [each["ids"] for each in requests]
        while active:
            batch.n_tokens, last = 0, []
            for at, tokens in zip(active, given, strict=True):
                for token in tokens:
                    row = batch.n_tokens
                    batch.token[row], batch.pos[row] = token, positions[at]
                    batch.n_seq_id[row], batch.seq_id[row][0] = 1, at
                    batch.logits[row] = False
                    batch.n_tokens += 1
                    positions[at] += 1
                batch.logits[batch.n_tokens - 1] = True
                last.append(batch.n_tokens - 1)
            assert api.llama_decode(self.context, batch) == 0
            for at, row in zip(active, last, strict=True):
                logits = api.llama_get_logits_ith(self.context, row)
                numbers = np.ctypeslib.as_array(logits, shape=(self.vocabulary,))
                texts[at].append(int(numbers.argmax()))
            active = [at for at in active if len(texts[at]) < requests[at]["new"]]
            given = [[texts[at][-1]] for at in active]
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
