"""What training takes: beside PyTorch, Trainer and Fabric; compiling, saving, starting, memory.

    python benchmarks/train.py
    python benchmarks/train.py --only twin stall

What is compared takes turns in one process; each table's way of measuring is at the head of
the `benchmarks/train_*.py` that makes it. Trainer needs `pip install accelerate`, Fabric
`pip install lightning-fabric`; the rows of what is not there are left out. Making a gigabyte
of text into tokens takes ten minutes or more on two cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from train_common import ROWS, SMOLLM2, WIDTH, describe

TABLES = ("twin", "like", "defaults", "compiled", "kept", "stall", "start", "memory")


def main() -> None:
    """Measure and print."""
    given = _arguments()
    print(f"{describe()}\n", flush=True)
    for name in given.only:
        for line in _lines(name, given):
            print(line, flush=True)
        print(flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--model", default=SMOLLM2, help="of all but twin, stall and memory")
    parser.add_argument(
        "--twins", nargs="+", default=["small", SMOLLM2], help="models of the table twin"
    )
    parser.add_argument("--steps", type=int, default=20, help="timed, of each of the twins")
    parser.add_argument("--rounds", type=int, default=5, help="of each way that takes turns")
    parser.add_argument("--turn", type=int, default=2, help="steps in such a turn")
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--stalled", default="small", help="model of the table stall")
    parser.add_argument("--checkpoints", type=int, default=100)
    parser.add_argument("--every", type=int, default=5, help="steps between them")
    parser.add_argument("--text-megabytes", type=int, default=1000)
    parser.add_argument("--stores", nargs="+", type=int, default=[50, 200, 800])
    given = parser.parse_args()
    if given.steps < 2 or given.rounds < 2 or given.checkpoints < 2:
        parser.error("--steps, --rounds and --checkpoints must be at least 2: they show a spread")
    return given


def _lines(name: str, given: argparse.Namespace) -> Iterator[str]:
    # Imported when it is wanted: a table need not have what others need.
    if name == "twin":
        import train_twin

        yield train_twin.HEADING
        for model in given.twins:
            yield train_twin.row(model, given.steps, ROWS, WIDTH)
    elif name == "like":
        import train_others

        yield from train_others.like_table(given.model, given.rounds, given.turn)
    elif name == "defaults":
        import train_others

        yield from train_others.defaults_table(
            given.model, given.rounds, given.turn, compiled=given.compiled
        )
    elif name == "compiled":
        import train_compiled

        yield from train_compiled.table(given.model, given.rounds)
    elif name == "kept":
        import train_allocation

        yield from train_allocation.table(given.model, given.rounds)
    elif name == "stall":
        import train_stall

        yield from train_stall.table(given.stalled, given.checkpoints, given.every, ROWS, WIDTH)
    elif name == "start":
        import train_data

        yield from train_data.start_table(given.text_megabytes, given.model)
    else:
        import train_data

        yield from train_data.memory_table(given.stores)


if __name__ == "__main__":
    main()
