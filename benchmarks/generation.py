"""What `InferenceService` costs and gains: requests that arrive, share prompts, and speculate.

    python benchmarks/generation.py

All on SmolLM2-135M-Instruct as int8 with the engine `native`:

- arrivals: the sixteen requests of `workload.json` arrive over two seconds; useful tokens per
  second over the time from the first arrival to the last token. OpenVINO takes part with its
  continuous batching if `--openvino PYTHON` names a Python that has `openvino-genai`.
- shared prompts: eight conversations with one system prompt of 1,000 tokens, one after the other:
  time to the first token of the later ones, as a part of the first one's.
- stalls: eight texts are generated while a prompt of 2,000 tokens arrives: the 99th percentile of
  the time between two tokens of a text, against the median without it.
- shares of a pass at sixteen texts: the scheduler's own work, and choosing tokens and detokenizing.
- prompt look-up: tokens per second with it against without, on a text that repeats its prompt and
  on one that does not, in turns.
- a constraint: what a JSON schema adds to a step.
"""

from __future__ import annotations

import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import decode
from batch import POSITIONS, SEQUENCES, read_requests
from rivals import OPENVINO

OURS = "native, int8 (the default)"
ARRIVING = 2.0
SYSTEM, CONVERSATIONS = 1000, 8
LONG_PROMPT, STREAMS = 2000, 8

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def main() -> None:
    """Measure and print."""
    given = decode.contender_arguments(__doc__, only="parts").parse_args()
    if given.worker:
        decode.serve(given.worker, SEQUENCES, POSITIONS, Service, measure_part)
        return
    pythons = decode.rivals_there(given)
    pythons = {name: python for name, python in pythons.items() if name == f"{OPENVINO}, Q8_0"}
    with tempfile.TemporaryDirectory() as folder:
        run(pythons, given.rounds, given.only, Path(folder))


def run(pythons: dict[str, str], rounds: int, only: list[str] | None, folder: Path) -> None:
    """Measure each part and print what came out."""
    ids = decode.text_ids(folder)
    decode.describe(pythons)

    def wanted(part: str) -> bool:
        return not only or any(each in part for each in only)

    names = [OURS, *pythons]
    workers = decode.start_workers(names, pythons, folder, __file__)
    if wanted("arrivals"):
        requests = read_requests(ids)
        for number, each in enumerate(requests):
            each["at"] = number * ARRIVING / len(requests)
        turns = decode.take_turns(
            names, lambda name: workers[name].ask("arrivals", requests), rounds
        )
        print("\n| 16 requests over 2 s | useful tokens/s | to OpenVINO |\n|---|---|---|")
        for name in names:
            rival = next(iter(pythons), None)
            beside = decode.ratio(turns, name, rival, "useful") if rival else ""
            print(f"| {name} | {decode.middle(turns, name, 'useful'):.0f} | {beside} |")
    for part in ("shared", "stalls", "shares", "lookup", "constraint"):
        if wanted(part):
            found = [workers[OURS].ask(part, ids) for _ in range(rounds + 1)][1:]
            print(f"\n{part}, {rounds} rounds:")
            for what in found[0]:
                values = sorted(each[what] for each in found)
                print(f"  {what}: {median(values):.3g} ({values[0]:.3g} to {values[-1]:.3g})")
    for worker in workers.values():
        worker.close()


def measure_part(contender: Any, what: str, given: list[Any]) -> dict[str, Any]:
    """Measure one part."""
    if what == "arrivals":
        return {"useful": sum(each["new"] for each in given) / contender.arrive(given)}
    found: dict[str, Any] = getattr(contender, what)(given)
    return found


class Service:
    """`InferenceService` on an engine of this project."""

    def __init__(self, name: str) -> None:
        from truthgpt_services import InferenceService, ModelService

        self.engine = decode.Torch(name).engine
        self.tokenizer = ModelService().load_tokenizer(decode.MODEL)
        self.service = InferenceService()
        self.configure()

    def configure(self, **config: Any) -> None:
        """Begin anew, with nothing kept."""
        self.service.configure(self.engine, self.tokenizer, {"max_batch_size": SEQUENCES, **config})

    def prompt(self, ids: list[int]) -> Any:
        """Return tokens as a prompt."""
        from truthgpt_services.inference.prompts import Prompt

        return Prompt("", tuple(ids), is_chat=False)

    def stream(self, ids: list[int], count: int, **options: Any) -> Any:
        """Ask for so many tokens."""
        return self.service.stream(
            self.prompt(ids), {"max_new_tokens": count, "min_new_tokens": count, **options}
        )

    def arrive(self, requests: list[dict[str, Any]]) -> float:
        """Take requests as they come, each in a thread; return how long all of them took."""
        self.configure(prefix_cache_tokens=0)
        began = time.perf_counter()

        def ask(each: dict[str, Any]) -> None:
            time.sleep(max(0.0, began + each["at"] - time.perf_counter()))
            stream = self.stream(each["ids"], each["new"])
            list(stream)
            assert len(stream.tokens) == each["new"]

        threads = [threading.Thread(target=ask, args=(each,)) for each in requests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began

    def shared(self, ids: list[int]) -> dict[str, float]:
        """Eight prompts that begin with the same thousand tokens, one after the other."""
        self.configure()
        seconds = []
        for number in range(CONVERSATIONS):
            own = ids[SYSTEM + 16 * number : SYSTEM + 16 * number + 16]
            stream = self.stream([*ids[:SYSTEM], *own], 4)
            list(stream)
            seconds.append(stream.first_token_seconds)
        later = median(seconds[1:])
        return {"first token, ms": 1e3 * later, "of the first one's": later / seconds[0]}

    def stalls(self, ids: list[int]) -> dict[str, float]:
        """Eight texts, and a prompt of two thousand tokens that arrives among them."""
        self.configure(prefix_cache_tokens=0)
        steps: list[list[float]] = [[], []]
        streams = [self.stream(ids[64 * n : 64 * n + 64], 200) for n in range(STREAMS)]

        def tokens(stream: Any, own: list[float]) -> None:
            own.extend(time.perf_counter() for _ in stream)

        times: list[list[float]] = [[] for _ in streams]
        threads = [
            threading.Thread(target=tokens, args=pair) for pair in zip(streams, times, strict=True)
        ]
        for thread in threads:
            thread.start()
        while min(map(len, times)) < 60:
            time.sleep(0.01)
        at = time.perf_counter()
        arrived = self.stream(ids[:LONG_PROMPT], 2)
        list(arrived)
        read = time.perf_counter()
        for thread in threads:
            thread.join()
        for own in times:
            for before, after in pairwise(own):
                if after < at:
                    steps[0].append(after - before)
                elif before < read:
                    steps[1].append(after - before)
        alone = median(steps[0])
        return {
            "median alone, ms": 1e3 * alone,
            "99th percentile meanwhile, ms": 1e3 * quantiles(steps[1], n=100)[-1],
            "to the median": quantiles(steps[1], n=100)[-1] / alone,
            "the prompt's first token, s": arrived.first_token_seconds,
        }

    def shares(self, ids: list[int]) -> dict[str, float]:
        """Sixteen texts at once: where the time of a pass goes."""
        found = {}
        for name, options in {"greedy": {}, "sampled": {"temperature": 0.8, "top_p": 0.95}}.items():
            self.configure(prefix_cache_tokens=0)
            streams = [
                self.stream(ids[64 * n : 64 * n + 32], 64, **options) for n in range(SEQUENCES)
            ]
            for stream in streams:
                list(stream)
            done = self.service.statistics
            own = done.seconds - done.engine_seconds - done.choosing_seconds
            found[f"{name}: scheduler, % of a pass"] = 100 * own / done.seconds
            found[f"{name}: choosing and detokenizing, %"] = (
                100 * done.choosing_seconds / done.seconds
            )
        return found

    def lookup(self, ids: list[int]) -> dict[str, float]:
        """Tokens per second with prompt look-up against without."""
        self.configure(prefix_cache_tokens=0)
        text = self.tokenizer.decode(ids[:200])
        prompts = {
            "repeats": [{"role": "user", "content": f"Repeat this text word for word:\n{text}"}],
            "does not": [{"role": "user", "content": "Write a story about a cat who cooks."}],
        }
        found = {}
        for name, messages in prompts.items():
            rates = []
            for options in ({}, {"prompt_lookup_num_tokens": 16}):
                stream = self.service.stream(messages, {"max_new_tokens": 160, **options})
                list(stream)
                seconds = stream.seconds - stream.first_token_seconds
                rates.append((len(stream.tokens) - 1) / seconds)
            found[f"{name}: tokens/s without"] = rates[0]
            found[f"{name}: with, as a ratio"] = rates[1] / rates[0]
        return found

    def constraint(self, ids: list[int]) -> dict[str, float]:
        """What a schema adds to a step of one text, and to its first token."""
        self.configure(prefix_cache_tokens=0)
        question = "Describe a person as JSON."
        rates, first = [], []
        for options in ({}, {"json_schema": SCHEMA}):
            stream = self.service.stream(
                [{"role": "user", "content": question}],
                {"max_new_tokens": 96, "temperature": 0.7, "seed": 1, **options},
            )
            list(stream)
            done = len(stream.tokens)
            rates.append((stream.seconds - stream.first_token_seconds) / max(done - 1, 1))
            first.append(stream.first_token_seconds)
        return {
            "a step without, ms": 1e3 * rates[0],
            "more with a schema, % of a step": 100 * (rates[1] / rates[0] - 1),
            "more to the first token, ms": 1e3 * (first[1] - first[0]),
        }


if __name__ == "__main__":
    main()
