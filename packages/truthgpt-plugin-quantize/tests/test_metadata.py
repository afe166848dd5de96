"""What is known of the plugin before it works: entry points, options, what importing costs."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest

from truthgpt_core.optimization import OptimizationError, Stage
from truthgpt_plugin_quantize.optimization import Quantize
from truthgpt_plugin_quantize.plugin import QuantizePlugin


def test_entry_points_lead_to_what_they_name() -> None:
    """The optimization and the plugin are found under the names that they give themselves."""
    (optimization,) = entry_points(group="truthgpt.optimizations", name=Quantize.name)
    (plugin,) = entry_points(group="truthgpt.plugins", name=QuantizePlugin().name)
    assert optimization.load() is Quantize
    assert plugin.load() is QuantizePlugin
    assert QuantizePlugin().version == version("truthgpt-plugin-quantize")


def test_changes_weights() -> None:
    """It is a step on weights: applied before compiling, and saved with the model."""
    assert Quantize.name == "quantize"
    assert Quantize.stage is Stage.WEIGHTS


@pytest.mark.parametrize("module", ["plugin", "optimization"])
def test_importing_it_imports_no_torch(module: str) -> None:
    """Listing plugins and checking options stay fast: torch comes with the work."""
    code = (
        f"import sys, truthgpt_plugin_quantize.{module}\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == "[]"


def test_all_wrong_options_are_named_at_once() -> None:
    """A misspelt name gets a suggestion, a wrong value what it may be, in one error."""
    with pytest.raises(OptimizationError) as caught:
        Quantize(scheme="int3", skp="lm_head", kernel="fast")
    said = str(caught.value)
    assert '"scheme"' in said
    assert "int8" in said
    assert '"skp"' in said
    assert "skip" in said.replace("skp", "")
    assert "packed-bfloat16" in said


def test_one_pattern_may_be_given_as_text() -> None:
    """`skip=lm_head` on the command line is the same as a list of one in YAML."""
    assert Quantize(skip="lm_head").options == Quantize(skip=["lm_head"]).options
