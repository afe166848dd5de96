"""Builds the wheel, with compiled code where TRUTHGPT_COMPILE_WITH_ZIG=1: `nox -s wheels` says so.

Without, the wheel is for any platform, and the code is compiled when it is first used.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
PACKAGE = HERE / "src" / "truthgpt_plugin_native"
COMPILES = os.environ.get("TRUTHGPT_COMPILE_WITH_ZIG") == "1"
# The oldest glibc that wheels of torch run with, too; manylinux has a name for it.
TARGET = "x86_64-linux-gnu.2.17"


class BuildCompiled(build_py):
    """Adds a library for each kind of processor."""

    def run(self) -> None:
        """Copy the package, and compile into it."""
        super().run()
        if not COMPILES:
            return
        said = runpy.run_path(str(PACKAGE / "compiling.py"))
        folder = Path(self.build_lib) / PACKAGE.name / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
        for name, (processor, _) in said["LEVELS"].items():
            subprocess.run(
                [
                    *(sys.executable, "-m", "ziglang", "c++", "-target", TARGET),
                    *(f"-mcpu={processor}", *said["FLAGS"], "-s", "-Wl,--build-id=none"),
                    f"-Wl,--version-script={HERE / 'exports.map'}",
                    *(str(PACKAGE / "cpp" / said["SOURCES"][0]), "-o", str(folder / f"{name}.so")),
                ],
                check=True,
            )


class PlatformWheel(bdist_wheel):
    """Names the platform, and no version of Python: the libraries know nothing of it."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of Python, its binary interface and the platform."""
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if COMPILES else (python, abi, platform)


class MaybeCompiled(Distribution):
    """Is installed where compiled code belongs, if there is some."""

    def has_ext_modules(self) -> bool:
        """Say whether there is."""
        return COMPILES


setup(distclass=MaybeCompiled, cmdclass={"build_py": BuildCompiled, "bdist_wheel": PlatformWheel})
