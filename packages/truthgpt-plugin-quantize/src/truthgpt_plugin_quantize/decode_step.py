"""Which models `decode.cpp` can take one token through, and preparing one for it."""

from __future__ import annotations

import ctypes
import logging
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from truthgpt_core.compiled_code import NativeError
from truthgpt_core.errors import TruthGPTError
from truthgpt_plugin_quantize.native import library, rows
from truthgpt_plugin_quantize.native.library import Cache, Layer, Linear, Shape
from truthgpt_plugin_quantize.quantized import QuantizedEmbedding, QuantizedLinear

logger = logging.getLogger(__name__)

Step = Callable[[Tensor, Tensor], Tensor]

ARCHITECTURES = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
)
ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1}
ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
"""Those whose angles do not depend on how long the sequence is."""

FLOATS = {dtype: rows.KINDS[dtype] for dtype in (torch.float32, torch.bfloat16)}

CAPTURING = "transformers.utils.output_capturing"

LARGEST_DIVERGENCE = 0.1
"""Nats from the model's own first step, from which on the compiled step is not used. Rounding
activations to 8 bits takes some 0.001; what is computed wrongly takes whole nats."""

_decoders: weakref.WeakKeyDictionary[nn.Module, Decoder] = weakref.WeakKeyDictionary()


def native_step(model: Any, cache: Any) -> Step | None:
    """Return the function that computes one position with compiled code.

    The first step of a model is computed by the model itself too; if the answers differ
    by more than rounding explains, the compiled code is not used for it again.

    Args:
        model: a causal language model of transformers.
        cache: its key-value cache, already holding the prompt.

    Returns:
        As the hook `make_decode_step`; None if the model or its cache is none that the
        compiled code knows, or its answers were found to be wrong.
    """
    # Walked once: this is done for each prompt, and walking takes as long as a layer does.
    modules = list(model.modules())
    if _why_not(model, modules, cache):
        return None
    try:
        decoder = _decoders.get(model)
        if decoder is None or not decoder.fits(model, modules, cache):
            decoder = _decoders[model] = Decoder(model, modules, cache)
    except NativeError as error:
        logger.warning("Decoding goes on without compiled code: %s", error)
        return None
    return None if decoder.trusted is False else decoder.step_for(model, cache)


def why_not(model: Any, cache: Any) -> str:
    """Say why the compiled code cannot do a model with a cache; empty if it can."""
    return _why_not(model, list(model.modules()), cache)


def _why_not(model: Any, modules: Sequence[nn.Module], cache: Any) -> str:
    kind = type(model)
    if kind.__name__ not in ARCHITECTURES or not kind.__module__.startswith("transformers."):
        return f"{kind.__name__} is none of {', '.join(sorted(ARCHITECTURES))}"
    if model.config.hidden_act not in ACTIVATIONS:
        return f"its activation is {model.config.hidden_act}"
    if model.model.rotary_emb.rope_type not in ROPE_TYPES:
        return f"its rotary embedding is {model.model.rotary_emb.rope_type}"
    linears = [each for each in modules if hasattr(each, "in_features")]
    if not any(isinstance(each, QuantizedLinear) for each in linears):
        return "none of its layers is quantized"
    for each in linears:
        if isinstance(each, QuantizedLinear):
            if each.kernel != "native":
                return f"a layer is quantized for the kernel {each.kernel}"
        elif type(each) is not nn.Linear:
            return f"it has a {type(each).__name__}"
    if any(_has_hooks(each) for each in modules):
        return "it has forward hooks"
    if any(_is_replaced(each) for each in modules):
        return "the forward of one of its modules was replaced"
    if len(set(_epsilons(modules))) != 1 or len(set(_scalings(model))) != 1:
        return "its layers differ in a number that they share in compiled code"
    if not all(_is_known(each, model) for each in _activations(model)):
        return "an activation was replaced"
    if reason := _why_not_shapes(model):
        return reason
    if type(model.model.embed_tokens) not in (nn.Embedding, QuantizedEmbedding):
        return f"its embedding is a {type(model.model.embed_tokens).__name__}"
    if any(not each.is_cpu or each.dtype not in FLOATS for each in _parameters(modules)):
        return "it is not in float32 or bfloat16 on a CPU"
    return _why_not_cache(cache, len(model.model.layers))


def _epsilons(modules: Sequence[nn.Module]) -> list[float]:
    found = (vars(each).get("variance_epsilon") for each in modules)
    return [each for each in found if each is not None]


def _scalings(model: Any) -> list[float]:
    return [layer.self_attn.scaling for layer in model.model.layers]


def _activations(model: Any) -> list[Any]:
    """Return those of all layers; of a kind without state, one."""
    nothing = {*vars(nn.Module()), "_is_hf_initialized"}
    found: dict[Any, Any] = {}
    for layer in model.model.layers:
        activation = layer.mlp.act_fn
        plain = isinstance(activation, nn.Module) and vars(activation).keys() <= nothing
        found[type(activation) if plain else id(activation)] = activation
    return list(found.values())


def _is_known(activation: Any, model: Any) -> bool:
    kind = model.config.hidden_act
    x = torch.linspace(-6, 6, 25)
    with torch.inference_mode():
        if kind == "silu":
            exact = nn.functional.silu(x)
        else:
            exact = nn.functional.gelu(x, approximate="tanh")
        return bool(torch.allclose(activation(x), exact, rtol=1e-4, atol=1e-5))


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


def _has_hooks(module: nn.Module) -> bool:
    # Those that transformers leaves behind when hidden states were once asked for do nothing
    # unless they are asked for again.
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(getattr(each, "__module__", "") != CAPTURING for each in hooks)


def _is_replaced(module: nn.Module) -> bool:
    forward = vars(module).get("forward")
    return forward is not None and not getattr(forward, "only_compiles", False)


def _why_not_cache(cache: Any, count: int) -> str:
    layers = getattr(cache, "layers", ())
    if len(layers) != count:
        return f"its cache has {len(layers)} layers, and the model {count}"
    for layer in layers:
        if type(layer).__name__ != "StaticLayer":
            return f"its cache has a {type(layer).__name__}"
        if not layer.is_initialized:
            return "its cache does not hold a prompt"
        if layer.keys.shape[0] != 1:
            return "it decodes several sequences at once"
        if layer.keys.dtype not in FLOATS:
            return f"its cache is in {layer.keys.dtype}"
        if not (layer.keys.is_contiguous() and layer.values.is_contiguous()):
            return "its cache is not contiguous"
    return ""


class StepError(TruthGPTError):
    """A step was asked for a token or a position that there is not."""


class Decoder:
    """One model as the compiled code sees it; it keeps all that the code points to.

    Args:
        model: one that `why_not` has nothing against.
        modules: all of the model's.
        cache: likewise.

    Attributes:
        trusted: whether the first step agreed with the model's own; None before it.

    Raises:
        NativeError: the code cannot be compiled, or its threads cannot be started.
    """

    def __init__(self, model: Any, modules: Sequence[nn.Module], cache: Any) -> None:
        self.trusted: bool | None = None
        self._library = library.load()
        self._threads, self._process = torch.get_num_threads(), os.getpid()
        pool = library.pool(self._threads, self._process)
        self._signature = _signature(modules)
        self._numbers = _numbers(model, modules)
        self._positions = cache.layers[0].keys.shape[2]
        self._cache_dtype = cache.layers[0].keys.dtype
        # While these live, no other tensor can have their addresses, which `fits` compares.
        self._kept: list[Tensor] = [each.detach() for each in _tensors(modules)]
        config, inner = model.config, model.model
        attention = inner.layers[0].self_attn
        cosines, sines = self._angles(inner)
        head = self._linear(model.lm_head)
        tokens = inner.embed_tokens
        embedding = self._linear(tokens.source if hasattr(tokens, "source") else tokens)
        layers = (Layer * len(inner.layers))(*map(self._layer, inner.layers))
        shape = Shape(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=attention.head_dim,
            rotary_dim=cosines.shape[-1],
            layers=len(inner.layers),
            vocabulary=head.rows,
            activation=ACTIVATIONS[config.hidden_act],
            cache_kind=FLOATS[self._cache_dtype],
            epsilon=_epsilons(modules)[0],
            attention_scale=attention.scaling,
            embedding_scale=1.0,
        )
        self._vocabulary = head.rows
        self._decoder = self._library.decoder_new(
            pool,
            ctypes.byref(shape),
            layers,
            self._vector(inner.norm.weight),
            ctypes.byref(head),
            ctypes.byref(embedding),
            cosines.data_ptr(),
            sines.data_ptr(),
        )
        if not self._decoder:
            raise NativeError("There is no memory for compiled code to decode in")
        weakref.finalize(self, self._library.decoder_free, self._decoder)

    def fits(self, model: Any, modules: Sequence[nn.Module], cache: Any) -> bool:
        """Return whether what the code points to is what the model has, and the cache no longer."""
        keys = cache.layers[0].keys
        return (
            keys.shape[2] <= self._positions
            and keys.dtype == self._cache_dtype
            and self._threads == torch.get_num_threads()
            and self._process == os.getpid()
            and self._signature == _signature(modules)
            and self._numbers == _numbers(model, modules)
        )

    def step_for(self, model: Any, cache: Any) -> Step:
        """Return the step for one sequence."""
        caches = (Cache * len(cache.layers))(*map(_cache, cache.layers))
        dtype = model.lm_head.weight.dtype if hasattr(model.lm_head, "weight") else model.dtype
        run, decoder, vocabulary = self._library.decoder_step, self._decoder, self._vocabulary

        places, tokens = cache.layers[0].keys.shape[2], model.model.embed_tokens.num_embeddings

        def step(token: Tensor, position: Tensor) -> Tensor:
            if self.trusted is False or os.getpid() != self._process:
                return _own_step(model, cache, token, position)
            chosen, place = int(token), int(position)
            # Compiled code does not look where its data ends.
            if not 0 <= chosen < tokens:
                raise StepError(f"Token {chosen} is none of the model's {tokens}")
            if not 0 <= place < places:
                raise StepError(f"The cache has no position {place}: it has {places}")
            logits = torch.empty(1, vocabulary, dtype=torch.float32)
            run(decoder, chosen, place, caches, logits.data_ptr())
            if self.trusted is None and not self._agrees(model, cache, token, position, logits):
                return _own_step(model, cache, token, position)
            return logits.to(dtype)

        # The code writes into the cache, and reads what this object keeps.
        step.keeps = (self, cache)  # type: ignore[attr-defined]
        return step

    def _agrees(
        self, model: Any, cache: Any, token: Tensor, position: Tensor, logits: Tensor
    ) -> bool:
        own = _own_step(model, cache, token, position)
        expected, given = own.float().log_softmax(-1), logits.log_softmax(-1)
        divergence = float((expected.exp() * (expected - given)).sum())
        self.trusted = divergence <= LARGEST_DIVERGENCE
        if not self.trusted:
            logger.warning(
                "Compiled code is not used for this model: its first answer differs by %.3g nats",
                divergence,
            )
        return self.trusted

    def _keep(self, tensor: Tensor) -> Tensor:
        self._kept.append(tensor)
        return tensor

    def _vector(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        return self._keep(tensor.detach().float().contiguous()).data_ptr()

    def _angles(self, inner: Any) -> tuple[Tensor, Tensor]:
        positions = torch.arange(self._positions).unsqueeze(0)
        like = torch.zeros(1, 1, 1, dtype=torch.float32)
        cosines, sines = inner.rotary_emb(like, positions)
        return self._keep(cosines[0].contiguous()), self._keep(sines[0].contiguous())

    def _linear(self, module: Any) -> Linear:
        if isinstance(module, QuantizedLinear):
            tensors = list(module.buffers(recurse=False))
        else:
            tensors = [module.weight.detach()]
        matrix = rows.describe(*(self._keep(each.contiguous()) for each in tensors))
        matrix.bias = self._vector(getattr(module, "bias", None))
        return matrix

    def _layer(self, layer: Any) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        return Layer(
            attention_norm=self._vector(layer.input_layernorm.weight),
            mlp_norm=self._vector(layer.post_attention_layernorm.weight),
            q_norm=self._vector(getattr(getattr(attention, "q_norm", None), "weight", None)),
            k_norm=self._vector(getattr(getattr(attention, "k_norm", None), "weight", None)),
            q=self._linear(attention.q_proj),
            k=self._linear(attention.k_proj),
            v=self._linear(attention.v_proj),
            o=self._linear(attention.o_proj),
            gate=self._linear(mlp.gate_proj),
            up=self._linear(mlp.up_proj),
            down=self._linear(mlp.down_proj),
        )


def _own_step(model: Any, cache: Any, token: Tensor, position: Tensor) -> Tensor:
    for layer in cache.layers:
        layer.cumulative_length.fill_(position.item())
    # Another plugin may have made it compile what is needed only once.
    with torch.compiler.set_stance("force_eager"):
        output = model(
            input_ids=token, position_ids=position, past_key_values=cache, use_cache=True
        )
    logits: Tensor = output.logits[:, -1]
    return logits


def _cache(layer: Any) -> Cache:
    _, head_step, position_step, _ = layer.keys.stride()
    return Cache(
        keys=layer.keys.data_ptr(),
        values=layer.values.data_ptr(),
        length=layer.cumulative_length.data_ptr(),
        head_step=head_step,
        position_step=position_step,
    )


def _signature(modules: Sequence[nn.Module]) -> tuple[tuple[int, int], ...]:
    """Say where all weights are and how often they were changed in place."""
    return tuple(
        (each.data_ptr(), 0 if each.is_inference() else each._version) for each in _tensors(modules)
    )


def _numbers(model: Any, modules: Sequence[nn.Module]) -> tuple[Any, ...]:
    """Return what is not a tensor, and was copied when the decoder was made."""
    rotary = getattr(model.model.rotary_emb, "attention_scaling", None)
    return (*_epsilons(modules), *_scalings(model), model.config.hidden_act, rotary)


def _tensors(modules: Sequence[nn.Module]) -> list[Tensor]:
    own = [each for module in modules for each in module._buffers.values() if each is not None]
    return _parameters(modules) + own


def _parameters(modules: Sequence[nn.Module]) -> list[Tensor]:
    return [each for module in modules for each in module._parameters.values() if each is not None]
