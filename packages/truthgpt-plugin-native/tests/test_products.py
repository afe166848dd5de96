"""Rows times one matrix of integers, for layers of models that PyTorch runs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_products import BLOCK, grouped, random_matrix, rounded, weights_of

from truthgpt_core.diagnosis import Status
from truthgpt_plugin_native import diagnosis, library
from truthgpt_plugin_native.plugin import NativePlugin
from truthgpt_plugin_native.products import make_matmul, multiply


@given(
    rows=st.integers(1, 70),
    groups=st.integers(1, 5),
    group=st.sampled_from([1, 2, 4]),
    count=st.integers(0, 600),
    packed=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_comes_out(
    rows: int, groups: int, group: int, count: int, packed: bool, seed: int
) -> None:
    """It is the product with activations rounded to 8 bits in groups, within float32's rounding."""
    torch.manual_seed(seed)
    blocks = groups * group
    if packed and blocks % 2:
        blocks *= 2
    matrix = random_matrix(rows, blocks, group, packed=packed)
    x = torch.randn(count, blocks * BLOCK)
    weights = weights_of(matrix)
    out = multiply(x, matrix)
    assert out.shape == (count, rows)
    # A number between two steps may be rounded either way.
    halves = grouped(x.abs()).amax(-1, keepdim=True) / 127
    close = grouped(x.double() - rounded(x)).abs() > 0.4999 * halves
    either = (close * halves).view(x.shape) @ weights.abs().T
    bound = either + 1e-5 * (x.double().abs() @ weights.abs().T) + 1e-9
    assert ((out.double() - rounded(x) @ weights.T).abs() <= bound).all()


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_is_the_same_in_any_company(packed: bool) -> None:
    """Alone and among hundreds, with the same bits; and in the dtype that it came in."""
    matrix = random_matrix(40, 6, 1, packed=packed)
    x = torch.randn(300, 6 * BLOCK)
    together = multiply(x, matrix)
    for at in (0, 1, 255, 256, 299):
        assert torch.equal(multiply(x[at : at + 1], matrix)[0], together[at])
    assert multiply(x.bfloat16(), matrix).dtype == torch.bfloat16
    strided = torch.stack((x, x), dim=-1)[..., 0]
    assert torch.equal(multiply(strided, matrix), together)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_not_finite_is_not_hidden(packed: bool, bad: float) -> None:
    """It leaves no number in its own row's answers, and touches no other row."""
    matrix = random_matrix(9, 4, 2, packed=packed)
    x = torch.randn(5, 4 * BLOCK)
    before = multiply(x, matrix)
    x[2, 40] = bad
    after = multiply(x, matrix)
    assert not after[2].isfinite().any()
    kept = [0, 1, 3, 4]
    assert torch.equal(after[kept], before[kept])


def test_the_hook_offers_it_on_a_cpu_alone() -> None:
    """Models elsewhere are left to others."""
    assert NativePlugin().make_stored_matmul("cpu") is multiply
    assert NativePlugin().make_stored_matmul("cuda:0") is None


def test_without_code_there_is_a_warning_and_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing can be compiled, layers go on with PyTorch."""
    monkeypatch.setenv("CXX", "nothing-of-this-name")
    monkeypatch.setattr(library, "packaged", lambda: None)
    library.load.cache_clear()
    try:
        assert make_matmul() is None
        said = diagnosis.diagnose()
    finally:
        library.load.cache_clear()
    assert "nothing-of-this-name" in caplog.text
    assert said.status is Status.FAILED
    assert "CXX" in said.fix


def test_doctor_tries_it() -> None:
    """What is there and right is OK."""
    assert diagnosis.diagnose().status is Status.OK
