"""Quantized models on a GPU: as near to what they were as on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from truthgpt_core.optimization import OptimizationContext
from truthgpt_plugin_quantize.optimization import Quantize

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

DEVICE = "cuda:0"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("scheme", "far"), [("int8", 0.05), ("int8-dynamic", 0.05), ("int4", 0.25), ("fp8", 0.1)]
)
def test_answers_stay_near(scheme: str, far: float, dtype: torch.dtype, tmp_path: Path) -> None:
    """Each scheme moves answers as little as it does on a CPU; what cannot be is refused."""
    quantize = Quantize(scheme=scheme)
    if not quantize.check(DEVICE).ok:
        pytest.skip(quantize.check(DEVICE).reason)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=False,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval().to(DEVICE, dtype)
    ids = torch.arange(3, 67, device=DEVICE).unsqueeze(0)
    with torch.inference_mode():
        before = model(input_ids=ids).logits.float()
        quantize.apply(model, OptimizationContext(DEVICE, tmp_path))
        after = model(input_ids=ids).logits.float()
    assert 0 < float((after - before).std() / before.std()) < far
