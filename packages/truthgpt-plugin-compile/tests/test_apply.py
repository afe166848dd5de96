"""What is covered, what is refused, and what is known before anything is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points, version
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, MambaConfig, MambaForCausalLM

from truthgpt_core.optimization import OptimizationContext, OptimizationError, Stage
from truthgpt_plugin_compile.optimization import TorchCompile
from truthgpt_plugin_compile.plugin import CompilePlugin


def refused(model: Any, context: OptimizationContext) -> str:
    """Apply, see that it is refused and that the model runs as before; return what was said."""
    before = dict(vars(model))
    with pytest.raises(OptimizationError) as caught:
        TorchCompile().apply(model, context)
    assert dict(vars(model)) == before
    return str(caught.value)


def test_all_linear_layers_are_covered(
    eager: LlamaForCausalLM, context: OptimizationContext
) -> None:
    """The whole decode step is compiled, so every linear layer is covered."""
    eager.model.layers[0].mlp.up_proj = OtherLinear()
    coverage = TorchCompile().apply(eager, context).coverage
    assert coverage.unit == "linear layers"
    assert len(coverage.covered) == 2 * 7 + 1
    assert "lm_head" in coverage.covered
    assert "model.layers.0.mlp.up_proj" in coverage.covered
    assert coverage.skipped == ()


class OtherLinear(torch.nn.Module):
    """A linear layer of somebody else."""

    in_features = 64


def test_settings_make_the_same_optimization_again(
    eager: LlamaForCausalLM, context: OptimizationContext
) -> None:
    """What is saved of a step is enough to apply it when the model is loaded."""
    settings = TorchCompile(mode="max-autotune").apply(eager, context).settings
    assert settings == {"mode": "max-autotune", "region": "model", "max_recompilations": 6}
    assert TorchCompile(**settings).options.model_dump() == settings


@pytest.mark.parametrize(
    ("device", "mode", "region"),
    [("cpu", "default", "model"), ("cuda:0", "reduce-overhead", "model")],
)
def test_auto_is_chosen_by_device(
    device: str, mode: str, region: str, eager: LlamaForCausalLM, context: OptimizationContext
) -> None:
    """What `auto` becomes is written down: the whole step, on a GPU as a CUDA graph."""
    there = OptimizationContext(device, context.cache_dir)
    settings = TorchCompile().apply(eager, there).settings
    assert (settings["mode"], settings["region"]) == (mode, region)


def test_blocks_of_several_kinds_are_compiled_with_the_model(
    eager: LlamaForCausalLM, context: OptimizationContext
) -> None:
    """Blocks that cannot share code are no reason to refuse, unless `blocks` was asked for."""

    class Other(type(eager.model.layers[0])):
        pass

    eager.model.layers[1].__class__ = Other
    with pytest.raises(OptimizationError, match="no repeated blocks"):
        TorchCompile(region="blocks").apply(eager, context)
    assert TorchCompile().apply(eager, context).settings["region"] == "model"


def test_compiling_twice_is_refused(compiled: Any, context: OptimizationContext) -> None:
    """A model that is compiled already is refused, and stays as it is."""
    assert "compiled already" in refused(compiled, context)


def test_a_model_given_to_torch_compile_is_refused(
    eager: LlamaForCausalLM, context: OptimizationContext
) -> None:
    """What `torch.compile(model)` returns would be compiled twice; it is refused."""
    assert "compiled already" in refused(torch.compile(eager), context)


def test_a_model_that_compiles_itself_is_refused(
    eager: LlamaForCausalLM, context: OptimizationContext
) -> None:
    """The same after `model.compile()`."""
    eager.compile()
    assert "compiled already" in refused(eager, context)


def test_a_model_without_a_static_cache_is_refused_by_name(context: OptimizationContext) -> None:
    """Architectures that cannot decode against a static cache are refused with the reason."""
    config = MambaConfig(vocab_size=96, hidden_size=64, num_hidden_layers=1, state_size=8)
    said = refused(MambaForCausalLM(config), context)
    assert "MambaForCausalLM" in said
    assert "static key-value cache" in said
    assert "Linear" in refused(torch.nn.Linear(2, 2), context)


def test_a_refused_model_leaves_the_environment_alone(
    context: OptimizationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is set up for a model that is not compiled: no directory is made or named."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    refused(torch.nn.Linear(2, 2), context)
    assert not context.cache_dir.exists()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_entry_points_lead_to_what_they_name() -> None:
    """The optimization, its alias and the plugin are found under their names."""
    (optimization,) = entry_points(group="truthgpt.optimizations", name=TorchCompile.name)
    (alias,) = entry_points(group="truthgpt.optimizations.aliases", name="compile")
    (plugin,) = entry_points(group="truthgpt.plugins", name=CompilePlugin().name)
    assert optimization.load() is TorchCompile
    assert alias.load() is TorchCompile
    assert plugin.load() is CompilePlugin
    assert CompilePlugin().version == version("truthgpt-plugin-compile")


def test_changes_only_how_a_model_runs() -> None:
    """It is a step of execution: applied last, and again whenever the model is loaded."""
    assert TorchCompile.name == "torch_compile"
    assert TorchCompile.stage is Stage.EXECUTION


@pytest.mark.parametrize("module", ["plugin", "optimization"])
def test_importing_it_imports_no_torch(module: str) -> None:
    """Listing plugins and checking the machine stay fast: torch comes with the work."""
    code = (
        f"import sys, truthgpt_plugin_compile.{module} as found\n"
        "getattr(found, 'TorchCompile', lambda: None)() and found.TorchCompile().check('cpu')\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == "[]"


def test_all_wrong_options_are_named_at_once() -> None:
    """A misspelt name gets a suggestion, a wrong value what it may be, in one error."""
    with pytest.raises(OptimizationError) as caught:
        TorchCompile(mode="fastest", mod="default")
    said = str(caught.value)
    assert '"mode"' in said
    assert "reduce-overhead" in said
    assert '"mod"' in said
