"""transformers loads what TruthGPT saved: `AutoModelForCausalLM.from_pretrained(DIRECTORY)`.

A saved model whose weights a step changed says `"quant_method": "truthgpt"` in its config.json.
transformers looks that up among its quantizers, where this module registers ours. It is imported
when `transformers.quantizers.auto` is, see `truthgpt_services.__init__`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from truthgpt_services.errors import ModelError

METHOD = "truthgpt"


class TruthGPTConfig(QuantizationConfigMixin):
    """What config.json of a saved model says of its weights; the rest is in `truthgpt.json`.

    Args:
        quant_method: `truthgpt`.
        others: of a later version; ignored.
    """

    def __init__(self, quant_method: str = METHOD, **others: Any) -> None:
        self.quant_method = quant_method  # type: ignore[assignment]


class TruthGPTQuantizer(HfQuantizer):
    """Loads a saved model as `ModelService` does, with the same checks of its tensors.

    Steps that only change how a model is run are not applied: transformers runs it.
    """

    _weights: Any = None
    _dtype: torch.dtype | None = None

    @property
    def is_trainable(self) -> bool:
        """Integers have no gradients."""
        return False

    def is_serializable(self) -> bool:
        """`save_pretrained` would leave out the recipe."""
        return False

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to quantize while loading.

        Raises:
            ModelError: the model is an ordinary one.
        """
        if not self.pre_quantized:
            raise ModelError(
                "A model is optimized before it is loaded", hint="Use `truthgpt optimize`."
            )

    def update_attn_implementation(self, config: Any) -> Any:
        """Say where the weights are; the name in config.json is for those who are not us."""
        from truthgpt_services.models.recipe import CHANGED

        # The only one of transformers' questions that comes with the configuration before
        # weights are looked for.
        config.transformers_weights = CHANGED
        return config

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Take note of the dtype that was asked for; by default it is the model's own."""
        self._dtype = dtype
        return dtype

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> None:
        """Leave each tensor as it was saved."""

    def _process_model_before_weight_loading(
        self,
        model: Any,
        device_map: Any = None,
        checkpoint_files: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        from truthgpt_services.models.loading import DTYPES
        from truthgpt_services.models.recipe import read_recipe
        from truthgpt_services.models.saved_model import open_weights, put_in_place, remade
        from truthgpt_services.services.model_service import ModelService

        if not checkpoint_files:
            raise ModelError("An optimized model is loaded from its directory, not from tensors")
        directory = Path(checkpoint_files[0]).parent
        named = getattr(model.config, "architectures", None) or [type(model).__name__]
        if type(model).__name__ not in named:
            raise ModelError(
                f"The model in {directory} is a {named[0]} and cannot be loaded as a "
                f"{type(model).__name__}",
                hint="Use AutoModelForCausalLM.",
            )
        recipe = read_recipe(directory)
        if self._dtype not in (None, DTYPES[recipe.dtype]):
            raise ModelError(
                f"{directory} is an optimized model: its dtypes are part of it, and cannot be "
                f"{self._dtype}",
                hint='Load it with dtype="auto".',
            )
        self._weights = open_weights(directory, recipe)
        service = ModelService()
        service.initialize()
        device = _device(device_map)
        made = put_in_place(
            model,
            recipe,
            self._weights,
            remade(recipe.steps, service.make_optimization),
            lambda name: service.context(name, device),
        )
        if made is not model:
            raise ModelError(
                f"The model in {directory} cannot be loaded by transformers, because a step "
                "replaced it as a whole",
                hint="Load it with truthgpt_services.ModelService().load_model.",
            )
        # The embedding and the head are not tied any more where a step replaced one of them.
        model.tie_weights()

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        # What transformers has filled in went through its own conversions and was not verified.
        self._weights.fill(model)
        self._weights = None


def register() -> None:
    """Tell transformers of our quantizer, once."""
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(TruthGPTConfig)
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(METHOD)(TruthGPTQuantizer)


def _device(device_map: Any) -> str:
    places = set(device_map.values()) if isinstance(device_map, dict) else set()
    found = next(iter(places), "cpu") if len(places) == 1 else "cpu"
    return f"cuda:{found}" if isinstance(found, int) else str(found)
