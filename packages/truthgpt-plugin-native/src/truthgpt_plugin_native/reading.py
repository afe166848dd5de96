"""Which models the compiled code can run, and their weights as it sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from truthgpt_core.optimization import StoredMatrix, StoresMatrix
from truthgpt_plugin_native.library import Layer, Matrix, Shape
from truthgpt_plugin_native.matrices import KINDS, columns_of, describe, group_of

ARCHITECTURES = frozenset(
    f"{family}ForCausalLM" for family in ("Gemma", "Llama", "Mistral", "Qwen2", "Qwen3")
)
ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1}
ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
"""Those whose angles do not depend on how long the sequence is."""

FLOATS = (torch.float32, torch.bfloat16)
BLOCK = 32
"""Columns that rounded activations share a scale in; groups of integers are multiples of it."""

_CAPTURING = "transformers.utils.output_capturing"


def why_not(model: Any) -> str:
    """Say why the compiled code cannot run a model; empty if it can."""
    kind = type(model)
    if kind.__name__ not in ARCHITECTURES or not kind.__module__.startswith("transformers."):
        return f"{kind.__name__} is none of {', '.join(sorted(ARCHITECTURES))}"
    config = model.config
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation not in ACTIVATIONS:
        return f"its activation is {activation}"
    if model.model.rotary_emb.rope_type not in ROPE_TYPES:
        return f"its rotary embedding is {model.model.rotary_emb.rope_type}"
    modules = list(model.modules())
    if any(map(_has_hooks, modules)):
        return "it has forward hooks"
    if any("forward" in vars(module) for module in modules):
        return "the forward of one of its modules was replaced"
    scalings = {layer.self_attn.scaling for layer in model.model.layers}
    if len(set(_epsilons(modules))) != 1 or len(scalings) != 1:
        return "its layers differ in a number that they share in compiled code"
    for name, module in model.named_modules():
        if hasattr(module, "in_features") and (reason := _why_not_linear(module)):
            return f"{name} {reason}"
    if reason := _why_not_shapes(model):
        return reason
    if any(not each.is_cpu for each in [*model.parameters(), *model.buffers()]):
        return "it is not on the CPU"
    if any(each.dtype not in FLOATS for each in model.parameters()):
        return "it is neither in float32 nor in bfloat16"
    return ""


def _why_not_linear(module: Any) -> str:
    if type(module) is nn.Linear:
        return ""
    stored = _stored(module)
    if stored is None:
        return f"is a {type(module).__name__}"
    columns, group = columns_of(stored.weight), group_of(stored.weight, stored.scales)
    whole = 2 * BLOCK if stored.minima is not None else BLOCK
    if columns % whole or group % BLOCK:
        return (
            f"has rows of {columns} integers in groups of {group}, not in whole blocks of {BLOCK}"
        )
    return ""


def _stored(module: Any) -> StoredMatrix | None:
    return module.stored_matrix() if isinstance(module, StoresMatrix) else None


def _has_hooks(module: nn.Module) -> bool:
    # Those that transformers leaves behind when hidden states were once asked for do nothing
    # unless they are asked for again.
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(getattr(each, "__module__", "") != _CAPTURING for each in hooks)


def _epsilons(modules: Sequence[nn.Module]) -> list[float]:
    found = (vars(each).get("variance_epsilon", vars(each).get("eps")) for each in modules)
    return [each for each in found if isinstance(each, float)]


def _why_not_shapes(model: Any) -> str:
    """Say where a model's layers are not of the sizes that its configuration says."""
    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    for layer in model.model.layers:
        attention = layer.self_attn
        d = attention.head_dim
        wanted = {
            "q_proj": (config.hidden_size, heads * d),
            "k_proj": (config.hidden_size, kv_heads * d),
            "v_proj": (config.hidden_size, kv_heads * d),
            "o_proj": (heads * d, config.hidden_size),
        }
        if heads % kv_heads or any(
            (getattr(attention, name).in_features, getattr(attention, name).out_features) != sizes
            for name, sizes in wanted.items()
        ):
            return "its attention is not of the sizes that its configuration says"
    return ""


class Weights:
    """The weights of a model as the compiled code sees them; keeps alive all that it points to.

    Args:
        model: one that `why_not` has nothing against. Its tensors are pointed to.
        cache: the dtype of keys and values: float32, bfloat16 or int8.

    Attributes:
        shape: of the model.
        layers: its layers.
        norm: the address of the last norm's weights.
        head: the matrix that gives logits.
        embedding: the matrix that tokens are rows of.
        bytes: the size of all weights.
    """

    def __init__(self, model: Any, *, cache: torch.dtype) -> None:
        self._kept: dict[int, Tensor] = {}
        config, inner = model.config, model.model
        # Gemma multiplies by 1 + weight, and its embeddings by a number rounded to their type.
        self._gemma = type(model).__name__ == "GemmaForCausalLM"
        scale = 1.0
        if self._gemma:
            scale = float(torch.tensor(config.hidden_size**0.5, dtype=model.dtype))
        attention = inner.layers[0].self_attn
        self.head = self._matrix(model.lm_head)
        self.embedding = self._matrix(inner.embed_tokens)
        self.layers = (Layer * len(inner.layers))(*map(self._layer, inner.layers))
        self.norm = self._norm(inner.norm)
        activation = getattr(config, "hidden_activation", None) or config.hidden_act
        self.shape = Shape(
            hidden=config.hidden_size,
            intermediate=self.layers[0].gate.rows,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=attention.head_dim,
            rotary_dim=2 * inner.rotary_emb.inv_freq.shape[0],
            layers=len(inner.layers),
            vocabulary=self.head.rows,
            activation=ACTIVATIONS[activation],
            cache=KINDS[cache],
            epsilon=_epsilons(list(model.modules()))[0],
            attention_scale=attention.scaling,
            embedding_scale=scale,
        )
        self._rotary = inner.rotary_emb
        self.bytes = sum({t.data_ptr(): t.nbytes for t in self._kept.values()}.values())

    def integers(self) -> list[Tensor]:
        """Return the tensors of integers."""
        return [each for each in self._kept.values() if not each.is_floating_point()]

    def angles(self, positions: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of so many positions, float32 of shape (positions, dims)."""
        like = torch.zeros(1, 1, 1, dtype=torch.float32)
        with torch.no_grad():
            cosines, sines = self._rotary(like, torch.arange(positions).unsqueeze(0))
        return cosines[0].contiguous(), sines[0].contiguous()

    def _window(self, attention: Any) -> int | None:
        if hasattr(attention, "sliding_window"):
            window: int | None = attention.sliding_window
            return window
        of_all: int | None = getattr(attention.config, "sliding_window", None)
        return of_all if type(attention).__name__ == "MistralAttention" else None

    def _keep(self, tensor: Tensor) -> Tensor:
        self._kept[id(tensor)] = tensor
        return tensor

    def _vector(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        return self._keep(tensor.detach().float().contiguous()).data_ptr()

    def _norm(self, module: Any) -> int | None:
        if module is None:
            return None
        weight = module.weight.detach()
        return self._vector(1.0 + weight.float() if self._gemma else weight)

    def _matrix(self, module: Any) -> Matrix:
        stored = _stored(module) or StoredMatrix(module.weight.detach(), None)
        weight, scales, minima = (
            None if each is None else self._keep(each.contiguous())
            for each in (stored.weight, stored.scales, stored.minima)
        )
        assert weight is not None
        bias = getattr(module, "bias", None)
        kept = None if bias is None else self._keep(bias.detach().float().contiguous())
        return describe(weight, scales, minima, kept)

    def _layer(self, layer: Any) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        return Layer(
            attention_norm=self._norm(layer.input_layernorm),
            mlp_norm=self._norm(layer.post_attention_layernorm),
            q_norm=self._norm(getattr(attention, "q_norm", None)),
            k_norm=self._norm(getattr(attention, "k_norm", None)),
            q=self._matrix(attention.q_proj),
            k=self._matrix(attention.k_proj),
            v=self._matrix(attention.v_proj),
            o=self._matrix(attention.o_proj),
            gate=self._matrix(mlp.gate_proj),
            up=self._matrix(mlp.up_proj),
            down=self._matrix(mlp.down_proj),
            window=self._window(attention) or 0,
        )
