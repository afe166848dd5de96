"""What a package imports is what it declares: environments of tests have more in them."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PACKAGES = sorted((Path(__file__).parent.parent / "packages").iterdir())


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(source: Path) -> set[str]:
    """The modules at the top that the files of a package import anywhere in them."""
    found: set[str] = set()
    for file in source.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {each.name.partition(".")[0] for each in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(str(node.module).partition(".")[0])
    return found - sys.stdlib_module_names


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_package_imports_what_it_declares(package: Path) -> None:
    """Every module comes with the package, or with a dependency or an extra of it."""
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    # Authors who test their plugins with `truthgpt_core.testing` install its extra `test`.
    declared = [*project["dependencies"], *(each for needs in extras.values() for each in needs)]
    names = {normal(re.split(r"[\s<>=!~\[;]", each, maxsplit=1)[0]) for each in declared}
    names.add(normal(project["name"]))
    known = packages_distributions()
    for module in imported(package / "src"):
        # What is not installed here is named after its distribution.
        distributions = {normal(each) for each in known.get(module, [module])}
        assert distributions & names, f"{module} is imported and not declared"
