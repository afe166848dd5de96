"""Tiny models of many families through the optimizations, onto disk and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from truthgpt_core.decoding import SamplingParams
from truthgpt_core.plugin_system import get_plugin_manager
from truthgpt_plugin_quantize.quantized import QuantizedEmbedding, QuantizedLinear
from truthgpt_services.inference.decoder import stream
from truthgpt_services.inference.engine import TorchEngine
from truthgpt_services.models.recipe import SavedStep
from truthgpt_services.services.model_service import ModelService
from truthgpt_services.testing import VOCABULARY, tiny_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    # Larger than a new model's, so that what it writes depends on its weights.
    "initializer_range": 0.2,
}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
BIASES = {"attention_bias": True, "mlp_bias": True}

ZOO: dict[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("LlamaConfig", UNTIED),
    "llama, tied": ("LlamaConfig", TIED),
    "llama, biases": ("LlamaConfig", UNTIED | BIASES),
    "qwen2": ("Qwen2Config", UNTIED),
    "qwen2, tied": ("Qwen2Config", TIED),
    "gpt2": ("GPT2Config", GPT2),
    "gemma": ("GemmaConfig", {"head_dim": 16}),
    "phi": ("PhiConfig", UNTIED),
    "mistral": ("MistralConfig", UNTIED),
    "mixtral": ("MixtralConfig", UNTIED | EXPERTS),
}
COMPILED = ("llama", "gpt2", "mixtral")
INT8: dict[str, Any] = {}
INT4 = {"scheme": "int4", "layers": "lm_head=int4"}
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "int8": {"quantize": INT8},
    "int4": {"quantize": INT4},
    "compiled": {"torch_compile": {}},
    "int8, compiled": {"quantize": {"kernel": "dequantize"}, "torch_compile": {}},
}
# What takes longest to compile: `nox -s soak` does.
LONG = (("mixtral", "compiled"), ("mixtral", "int8, compiled"), ("gpt2", "int8, compiled"))
LEFT_OUT = pytest.mark.campaign(cases=0)
CASES = [
    pytest.param(
        name,
        recipe,
        marks=[LEFT_OUT] * ((name, recipe) in LONG) + [pytest.mark.slow] * ("compiled" in recipe),
    )
    for name in ZOO
    for recipe, steps in RECIPES.items()
    if name in COMPILED or "torch_compile" not in steps
]
PROMPT = torch.tensor([[70, 300, 12, 95, 411, 7]])
TOKENS = 12

# What inductor in torch 2.13 does to itself: it imports a class made with torch.jit.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:`torch\.jit\.script_method` is deprecated:DeprecationWarning"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One for all of them."""
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def service() -> ModelService:
    """The service as an application has it, with all installed plugins."""
    models = ModelService(get_plugin_manager())
    models.initialize()
    return models


def make(name: str) -> Any:
    """Make a model of the zoo, with random weights that are the same each time."""
    config, own = ZOO[name]
    sizes = {**SIZES, **own}
    if config == "GPT2Config":
        sizes = {key: sizes[key] for key in sizes if key not in _OF_OTHERS}
    torch.manual_seed(0)
    made = getattr(transformers, config)(**sizes)
    model = transformers.AutoModelForCausalLM.from_config(made).eval()
    with torch.no_grad():
        for key, each in model.named_parameters():
            if key.endswith("bias"):
                each.normal_(std=0.2)
    return model


_OF_OTHERS = frozenset(
    {
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "max_position_embeddings"),
    }
)


def answers(model: Any) -> torch.Tensor:
    """Return the logits of every token of the prompt."""
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=PROMPT).logits
    return logits


def written(model: Any, service: ModelService) -> list[int]:
    """Return the tokens that a model writes after the prompt."""
    engine, params = TorchEngine(model, service.hooks), SamplingParams(max_new_tokens=TOKENS)
    return list(stream(engine, PROMPT[0].tolist(), params))


@pytest.mark.parametrize(("name", "recipe"), CASES)
def test_a_model_that_was_saved_says_what_it_said_before(
    name: str, recipe: str, service: ModelService, tokenizer: Any, tmp_path: Path
) -> None:
    """Optimized, saved and loaded again, it predicts bit for bit the same and writes the same."""
    model = make(name)
    before, steps = answers(model), []
    for optimization, options in RECIPES[recipe].items():
        made = service.make_optimization(optimization, options)
        applied = service.apply(made, model)
        model = applied.model
        assert applied.coverage.covered
        steps.append(SavedStep(made.name, made.stage.name.lower(), applied.settings, ""))
    predicted, text = answers(model), written(model, service)
    service.save_model(model, tokenizer, tmp_path, source=name, steps=steps)
    loaded = service.load_model(str(tmp_path))
    assert torch.equal(answers(loaded), predicted)
    assert written(loaded, service) == text
    assert len(text) == TOKENS
    assert torch.equal(predicted, before) is ("quantize" not in RECIPES[recipe])


def plain(model: Any, name: str, like: torch.Tensor) -> torch.Tensor:
    """Return the tensor that a quantized model stands for under a name of the ordinary one."""
    path, _, key = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, QuantizedEmbedding):
        module = module.source
    if not isinstance(module, QuantizedLinear) or key != "weight":
        found: torch.Tensor = model.state_dict()[name]
        return found
    weight = module.dequantize().to(like.dtype)
    # GPT-2's linear layers keep theirs transposed.
    return weight if weight.shape == like.shape and "c_" not in name else weight.t()


SCHEMES = ("int8", "int8-dynamic", "int4", "fp8")
EXPORTED = [
    *((name, "int8") for name in ZOO),
    *((name, scheme) for name in ("llama, tied", "gpt2") for scheme in SCHEMES[1:]),
]


@pytest.mark.parametrize(("name", "scheme"), EXPORTED)
def test_a_quantized_model_is_exported_in_the_weights_that_it_stands_for(
    name: str, scheme: str, service: ModelService, tokenizer: Any, tmp_path: Path
) -> None:
    """Bit for bit, in its dtype; transformers loads them, and ties what was tied."""
    model = make(name).bfloat16()
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    made = service.make_optimization("quantize", {"scheme": scheme})
    applied = service.apply(made, model)
    quantized, exported = tmp_path / "quantized", tmp_path / "exported"
    quantized.mkdir()
    steps = [SavedStep("quantize", "weights", applied.settings, "")]
    service.save_model(applied.model, tokenizer, quantized, source=name, steps=steps)
    service.export(str(quantized), exported)
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(exported)
    assert loaded.dtype == torch.bfloat16
    shared = isinstance(applied.model.get_input_embeddings(), QuantizedEmbedding)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) is (tied and shared)
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, plain(applied.model, key, tensor)), key


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[LEFT_OUT] * ((name, "compiled") in LONG)) for name in COMPILED],
)
def test_a_compiled_model_writes_what_it_wrote_before(name: str, service: ModelService) -> None:
    """Compiling changes how tokens are computed, and not which."""
    model = make(name)
    text = written(model, service)
    compiled = service.optimize_model(model, ["torch_compile"])
    assert written(compiled, service) == text


@pytest.mark.parametrize("name", ZOO)
def test_eight_bits_are_nearly_what_the_model_was(name: str, service: ModelService) -> None:
    """Whatever the family, int8 moves predictions by far less than they differ from each other."""
    model = make(name)
    before = answers(model).log_softmax(-1)
    after = answers(service.optimize_model(model, ["quantize"])).log_softmax(-1)
    moved = (before.exp() * (before - after)).sum(-1).mean()
    apart = (before[:, 1:].exp() * (before[:, 1:] - before[:, :-1])).sum(-1).mean()
    assert 0 < float(moved) < 0.02 * float(apart)


def test_a_mix_can_be_looked_for_in_memory(service: ModelService) -> None:
    """`scheme=auto` takes its text and its bound from whoever applies it."""
    auto = service.make_optimization("quantize", {"scheme": "auto"})
    tokens = list(range(5, 69))
    model = service.optimize_model(make("llama"), [auto], tokens=tokens, max_kl=10.0)
    schemes = {each.scheme for each in model.modules() if hasattr(each, "scheme")}
    assert schemes == {"int4"}
