"""The engine `native`, beside the services and `quantize`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from truthgpt_core import PluginManager
from truthgpt_core.decoding import Engine
from truthgpt_plugin_native import library
from truthgpt_plugin_native.engine import make_engine
from truthgpt_services import InferenceService, ModelService
from truthgpt_services.inference.engine import TorchEngine
from truthgpt_services.measuring.replay import record, replay
from truthgpt_services.results.record import Record, read_record
from truthgpt_services.results.schema import Replay

from .conftest import Run

WITH_NATIVE = {"TRUTHGPT_PLUGINS_BLOCK": ""}

SCHEMES = {
    "int8": {"scheme": "int8"},
    "int8 in groups": {"scheme": "int8", "group_size": 32},
    "int4": {"scheme": "int4"},
    "a mix": {"scheme": "int8", "layers": ["*down_proj=int4"]},
}


@pytest.fixture(scope="module", autouse=True)
def compiled_once(once: Callable[[str, Callable[[Path], object]], Path]) -> None:
    """One process compiles the engine for all, and others wait."""
    once("compiled", lambda _: library.load())


@pytest.mark.parametrize("kind", SCHEMES)
def test_what_quantize_stores_is_run_as_it_is(tiny_model: Path, kind: str) -> None:
    """Logits are within rounding of activations of those that PyTorch computes."""
    models = ModelService()
    model = models.load_model(str(tiny_model), {"device": "cpu"})
    model = models.optimize_model(model, [models.make_optimization("quantize", SCHEMES[kind])])
    ids = list(range(3, 90))
    engine = make_engine(model)
    assert engine is not None
    given = engine.prompt_logits(ids).log_softmax(-1)
    with torch.inference_mode():
        own = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    assert float((own.exp() * (own - given)).sum(-1).mean()) < 0.005


def recorded(engine: Engine, ids: list[int]) -> Record:
    """A record as `truthgpt optimize` writes and a server reads it."""
    made = record(engine, ids)
    about = Replay(
        tokens=len(ids),
        engine=made.engine,
        kernel=made.kernel,
        distribution=made.distribution,
        sha256="",
    )
    return Record(made.predictions, about, kl_error=0.0)


def calm(models: ModelService, directory: Path, kind: str) -> Any:
    """The tiny model with smaller matrices: those that it has multiply what rounding does."""
    model = models.load_model(str(directory), {"device": "cpu"})
    with torch.no_grad():
        for layer in model.model.layers:
            for parameter in layer.parameters():
                parameter.mul_(0.4 if parameter.ndim == 2 else 1.0)
    if kind in SCHEMES:
        model = models.optimize_model(model, [models.make_optimization("quantize", SCHEMES[kind])])
    return model


def other_rope(model: Any) -> None:
    model.config.rope_parameters["rope_theta"] *= 4
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)


def swapped_layers(model: Any) -> None:
    layers = model.model.layers
    layers[0], layers[1] = layers[1], layers[0]


@pytest.mark.parametrize("kind", ["as it is", *SCHEMES])
def test_both_engines_predict_what_the_other_recorded(
    tiny_model: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each agrees with its own record to 1e-5 nats, and with the other's within rounding."""
    monkeypatch.setenv("TRUTHGPT_PLUGINS_BLOCK", "")
    models = ModelService(PluginManager())
    model = calm(models, tiny_model, kind)
    native, on_torch = make_engine(model), TorchEngine(model, models.hooks)
    assert native is not None
    for one, other in ((native, on_torch), (on_torch, native)):
        made = recorded(one, list(range(3, 400)))
        own, others = replay(one, made), replay(other, made)
        assert (own.agrees, own.same) == (True, True), own.sentence
        assert (others.agrees, others.same) == (True, False), others.sentence
        assert others.difference is not None
        assert others.difference > 0


@pytest.mark.parametrize("kind", ["as it is", "int8"])
@pytest.mark.parametrize("fault", [other_rope, swapped_layers])
def test_a_wrong_model_does_not_agree_on_either_engine(
    tiny_model: Path, kind: str, fault: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where the last digits count nor where a kernel may round in its own way."""
    monkeypatch.setenv("TRUTHGPT_PLUGINS_BLOCK", "")
    models = ModelService(PluginManager())
    model = calm(models, tiny_model, kind)
    engine = make_engine(model)
    assert engine is not None
    made = recorded(engine, list(range(3, 400)))
    fault(model)
    wrong = make_engine(model)
    assert wrong is not None
    for each in (wrong, TorchEngine(model, models.hooks)):
        found = replay(each, made)
        assert not found.agrees, found.sentence


def test_layers_of_other_models_are_multiplied_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2 runs on PyTorch, and its quantized layers in compiled code."""
    monkeypatch.setenv("TRUTHGPT_PLUGINS_BLOCK", "")
    sizes = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
    config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    ids = torch.tensor([list(range(3, 40))])
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        models = ModelService(PluginManager())
        quantized = models.optimize_model(model, [models.make_optimization("quantize", {})])
        after = quantized(input_ids=ids).logits
    assert quantized.lm_head.kernel == "native"
    assert 0 < float((after - before).std() / before.std()) < 0.05
    assert make_engine(quantized) is None


def test_generate_writes_the_same_text(tiny_model: Path, truthgpt: Run) -> None:
    """Greedily, with weights in float32."""
    texts = []
    for environment in ({}, WITH_NATIVE):
        arguments = ("The quick", "--max-new-tokens", "24", "--json", "--device", "cpu")
        done = truthgpt("generate", tiny_model, *arguments, **environment)
        assert done.returncode == 0, done.stderr
        texts.append(json.loads(done.stdout)["text"])
    assert texts[0] == texts[1]


def test_optimize_measures_both_models_on_it(
    tiny_model: Path, truthgpt: Run, tmp_path: Path
) -> None:
    """The baseline and what quantize made of it; what only PyTorch would run is not applied."""
    arguments = ("--apply", "quantize,compile", "--quick", "--keep-all", "--device", "cpu")
    done = truthgpt("optimize", tiny_model, *arguments, "-o", tmp_path / "out", **WITH_NATIVE)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [each["measured"]["engine"] for each in report["variants"]] == ["native", "native"]
    (compiling,) = (each for each in report["steps"] if each["name"] == "torch_compile")
    assert compiling["outcome"] == "not applied"
    assert "The engine native runs quantize" in compiling["reason"]
    assert "--engine torch" in compiling["reason"]
    made = read_record(tmp_path / "out")
    assert made is not None
    assert made.made.engine == "native"
    assert made.made.distribution.startswith("truthgpt-plugin-native ")
    engine = make_engine(ModelService().load_model(str(tmp_path / "out"), {"device": "cpu"}))
    assert engine is not None
    assert replay(engine, made).same
    assert replay(engine, made).agrees


def test_an_engine_can_be_asked_for(tiny_model: Path, truthgpt: Run, tmp_path: Path) -> None:
    """`--engine torch` is what runs where `native` would."""
    done = truthgpt("eval", tiny_model, "--quick", "--json", "--engine", "torch", **WITH_NATIVE)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["variants"][0]["measured"]["engine"] == "torch"


def test_an_engine_that_is_not_there_is_named(tiny_model: Path, truthgpt: Run) -> None:
    """One line says which there are."""
    done = truthgpt("generate", tiny_model, "The", "--engine", "nativ", **WITH_NATIVE)
    assert done.returncode != 0
    assert 'No engine named "nativ" runs' in done.stderr
    assert "Traceback" not in done.stderr


def test_keys_and_values_of_8_bits_are_measured_saved_and_used(
    tiny_model: Path, truthgpt: Run, tmp_path: Path
) -> None:
    """A step that measured tokens run through; another engine says that it has no effect."""
    out = tmp_path / "out"
    measuring = ("--apply", "kv_cache", "--context", "60", "--quick", "--keep-all")
    done = truthgpt("optimize", tiny_model, *measuring, "--device", "cpu", "-o", out, **WITH_NATIVE)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["settings"]["prompt_tokens"] == 60
    (step,) = report["steps"]
    assert step["outcome"] == "accepted", step["reason"]
    assert "No measured token" not in step["reason"]
    before, after = (
        each["measured"] for each in report["variants"] if each["name"] in ("baseline", "kv_cache")
    )
    assert after["cache_bytes_per_token"] < before["cache_bytes_per_token"] / 2
    assert after["quality"]["decode_kl_mean"] > 0
    said = "runs without kv_cache, which changes only how the engine native runs a model"
    for engine, warned in (("native", False), ("torch", True)):
        arguments = ("The quick", "--max-new-tokens", "2", "--device", "cpu", "--engine", engine)
        done = truthgpt("generate", out, *arguments, **WITH_NATIVE)
        assert done.returncode == 0, done.stderr
        assert (said in done.stderr) is warned


def test_answers_of_the_engine_are_cached(tiny_model: Path, tmp_path: Path) -> None:
    """Under the weights and the code: another model, or other keys and values, are asked anew."""
    models = ModelService()
    tokenizer = models.load_tokenizer(str(tiny_model))
    model = models.load_model(str(tiny_model), {"device": "cpu"})
    config = {"use_cache": True, "cache_dir": tmp_path}

    def hits(engine: Engine) -> int:
        service = InferenceService(PluginManager())
        service.configure(engine, tokenizer, config)
        service.generate("Hello", {"max_new_tokens": 4})
        return service.cache_statistics.hits

    assert [hits(_engine(model)), hits(_engine(model))] == [0, 1]
    other = models.load_model(str(tiny_model), {"device": "cpu"})
    assert hits(_engine(other)) == 1
    assert hits(_engine(other, kv_cache="int8")) == 0
    with torch.no_grad():
        other.lm_head.weight[0] += 1
    assert hits(_engine(other)) == 0


def _engine(model: Any, **options: Any) -> Engine:
    made = make_engine(model, **options)
    assert made is not None
    return made
