"""What the compiled code is made of, and for which processors a wheel has it.

`setup.py` reads this file, too, so it imports nothing but the standard library.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

SOURCES = (
    "engine.cpp",
    *("attention.hpp", "attention_integers.hpp", "attention_pairs.hpp", "engine.hpp"),
    *("few_avx512.hpp", "integers.hpp", "integers_avx2.hpp", "integers_avx512.hpp"),
    *("integers_neon.hpp", "integers_plain.hpp", "lanes.hpp", "large_pages.hpp", "matrix.hpp"),
    *("model.hpp", "multiply.hpp", "numbers.hpp", "packed_matrices.hpp", "packing_avx512.hpp"),
    *("pass.hpp", "products.hpp", "rows.hpp", "sequence.hpp", "team.hpp", "tiles.hpp"),
)
"""The first one includes the others."""

FLAGS = (
    *("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread"),
    # Sums are not reordered: a token has the same bits in any company.
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-Wno-psabi"),
)

_V3 = frozenset({"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"})
_V4 = _V3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}

LEVELS: Mapping[str, tuple[str, frozenset[str]]] = {
    "avx512-bf16": (
        "x86_64_v4+avx512vnni+avx512bf16",
        _V4 | {"avx512_vnni", "avx512_bf16"},
    ),
    "avx512-vnni": ("x86_64_v4+avx512vnni", _V4 | {"avx512_vnni"}),
    "avx2": ("x86_64_v3", _V3),
    "x86-64": ("x86_64", frozenset()),
}
"""The libraries in a wheel for x86-64 Linux, the fastest first: for each the name that zig has for
such processors, and what Linux says that they can do."""


def choose_level(able: Collection[str]) -> str:
    """Return the fastest of `LEVELS` for a processor.

    Args:
        able: what it can do, as the line `flags` of /proc/cpuinfo says.
    """
    return next(name for name, (_, needed) in LEVELS.items() if needed <= set(able))
