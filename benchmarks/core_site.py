"""A directory of installed distributions, as pip leaves them, some of them plugins.

Their metadata is as large as that of packages on PyPI: most of it is the description,
2 to 60 kB. Every third has entry points of its own, as many packages have scripts. Plugins
require what such plugins do: the core, torch, numpy, and some of them another plugin.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

MODULES = "truthgpt_bench_"
"""What the names of all plugins' modules begin with."""

LIBRARIES = {"torch": "2.13.0", "numpy": "2.3.2"}
"""What all plugins require: name and version."""

_CLASSIFIERS = [
    "Development Status :: 5 - Production/Stable",
    "Intended Audience :: Developers",
    "Intended Audience :: Science/Research",
    "License :: OSI Approved :: Apache Software License",
    "Operating System :: OS Independent",
    "Programming Language :: Python :: 3",
    *(f"Programming Language :: Python :: 3.{minor}" for minor in range(9, 14)),
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Typing :: Typed",
]

_PARAGRAPH = """\
## A heading

What a README says: how to install it, how to use it, and *why* it is there. It has
links such as [the documentation](https://example.org/en/stable/index.html), `code`, and

    >>> with("examples") as usual:
    ...     print("of how it is used")

"""


def make_site(folder: Path, *, plugins: int, distributions: int) -> None:
    """Write distributions into an empty directory.

    Args:
        folder: where; it is made.
        plugins: how many of them are plugins, `bench0` and so on.
        distributions: how many there are.
    """
    folder.mkdir(parents=True)
    chance = random.Random(0)  # the same directory every time
    for number in range(plugins):
        _write_plugin(folder, number, chance)
    for name, version in LIBRARIES.items():
        _write(folder, name, version, [f"{name}-part>=1; extra == 'all'"], "", chance)
    for number in range(distributions - plugins - len(LIBRARIES)):
        requires = [f"other-{chance.randrange(number + 1)}>=1.{each}" for each in range(5)]
        scripts = f"[console_scripts]\nother{number} = other{number}:main\n"
        text = scripts if number % 3 == 0 else ""
        _write(folder, f"other-{number}", f"1.{number}.0", requires, text, chance)


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a process that finds `folder`, and nothing else that is unusual."""
    unusual = ("PYTHON", "TRUTHGPT_")
    usual = {name: value for name, value in os.environ.items() if not name.startswith(unusual)}
    return usual | {"PYTHONPATH": str(folder), "COLUMNS": "100"}


def _write_plugin(folder: Path, number: int, chance: random.Random) -> None:
    module = f"{MODULES}{number}"
    groups = {
        "truthgpt.plugins": f"bench{number} = {module}",
        "truthgpt.optimizations": f"bench_optimization_{number} = {module}:Optimization",
        # Where catalogue looks for the plugins of a registry ("truthgpt", "plugins").
        "truthgpt_plugins": f"bench{number} = {module}",
    }
    if number % 10 == 0:
        groups["truthgpt.commands"] = f"bench-{number} = {module}:command"
    requires = [
        "truthgpt-core>=0.1",
        "torch>=2.4",
        "numpy",
        "pytest>=8; extra == 'test'",
        *([f"truthgpt-bench-{number - 1}>=1"] if number % 5 == 4 else []),
    ]
    text = "\n".join(f"[{group}]\n{line}\n" for group, line in groups.items())
    _write(folder, f"truthgpt-bench-{number}", f"1.0.{number}", requires, text, chance)
    (folder / f"{module}.py").write_text(f'"""Plugin {number}."""\n')


def _write(
    folder: Path,
    name: str,
    version: str,
    requires: list[str],
    entry_points: str,
    chance: random.Random,
) -> None:
    size = 2000 * 30 ** chance.random()  # between 2 and 60 kB, small ones more often
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {name}",
        f"Version: {version}",
        f"Summary: What {name} is good for, in one line",
        f"Author-email: The {name} developers <developers@example.org>",
        "License-Expression: Apache-2.0",
        *(f"Project-URL: {each}, https://example.org/{name}" for each in ("Source", "Issues")),
        *(f"Classifier: {each}" for each in _CLASSIFIERS),
        "Requires-Python: >=3.9",
        "Description-Content-Type: text/markdown",
        "License-File: LICENSE",
        *(f"Requires-Dist: {each}" for each in requires),
        "",
        _PARAGRAPH * (int(size) // len(_PARAGRAPH) + 1),
    ]
    # pip keeps the case and the dots of a name and writes `_` for the rest.
    information = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("\n".join(lines))
    (information / "RECORD").write_text(
        "".join(f"{name}/module{each}.py,sha256={each:043x},{each * 100}\n" for each in range(40))
    )
    (information / "INSTALLER").write_text("pip\n")
    if entry_points:
        (information / "entry_points.txt").write_text(entry_points)
