"""Packing: no token is lost, rows are full, and documents do not see each other."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truthgpt_services.data import DataLoaderFactory
from truthgpt_services.data.packing import best_fit


@given(st.integers(1, 40), st.data())
def test_no_row_has_more_than_it_takes(width, data):
    """Each piece has a row with room for it, and no row is empty."""
    lengths = np.array(data.draw(st.lists(st.integers(1, width), max_size=80)), np.int64)
    rows = best_fit(lengths, width)
    assert len(rows) == len(lengths)
    filled = np.bincount(rows, lengths) if len(rows) else np.empty(0)
    assert (filled <= width).all()
    assert (filled > 0).all()


def one_by_one(lengths, width):
    """Best fit, longest first, as its definition has it: how full the rows are."""
    rows: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in range(len(rows)) if rows[row] + length <= width]
        if fitting:
            rows[max(fitting, key=lambda row: rows[row])] += length
        else:
            rows.append(length)
    return sorted(rows)


@given(st.integers(1, 30), st.data())
def test_rows_are_as_full_as_with_one_piece_at_a_time(width, data):
    """Taking pieces of one length together gives what best fit gives."""
    lengths = data.draw(st.lists(st.integers(1, width), min_size=1, max_size=60))
    rows = best_fit(np.array(lengths, np.int64), width)
    assert sorted(np.bincount(rows, lengths).astype(int)) == one_by_one(lengths, width)


@given(
    texts=st.lists(st.text(st.sampled_from("abc de\n"), max_size=90), min_size=1, max_size=20),
    width=st.integers(2, 50),
    batch_size=st.integers(1, 4),
)
@settings(max_examples=50)
def test_every_token_of_every_text_is_in_one_place(tokenizer, texts, width, batch_size):
    """Packed rows hold the texts' tokens, no more and no fewer, in pieces of the texts."""
    texts = [*texts, "one"]
    loader = DataLoaderFactory.create_train_loader(texts, tokenizer, width, batch_size)
    end = tokenizer.eos_token_id
    expected: Counter[tuple[int, ...]] = Counter()
    for text in filter(None, texts):
        ids = [*tokenizer(text)["input_ids"], end]
        expected.update(tuple(ids[at : at + width]) for at in range(0, len(ids), width))
    # A row is filled up with one more document, of the token that pads.
    found: Counter[tuple[int, ...]] = Counter()
    for batch in loader:
        rows = zip(batch["input_ids"].tolist(), batch["position_ids"].tolist(), strict=True)
        for ids, positions in rows:
            begins = [at for at, position in enumerate(positions) if position == 0]
            pieces = [tuple(ids[a:b]) for a, b in zip(begins, [*begins[1:], width], strict=True)]
            assert [p - q for p, q in zip(positions[1:], positions, strict=False)].count(1) == (
                width - len(begins)
            )
            found.update(pieces)
    padding = found - expected
    assert not expected - found
    assert all(set(piece) == {tokenizer.pad_token_id} for piece in padding)
    assert sum(len(piece) * many for piece, many in expected.items()) == loader.summary.tokens
    rows = loader.summary.rows
    assert padding.total() <= rows
    assert loader.summary.efficiency == pytest.approx(loader.summary.tokens / (rows * width))


def test_rows_of_ordinary_text_are_nearly_full(tokenizer):
    """Of rows of paragraphs, less than one token in a hundred fills up."""
    from pydoc_data.topics import topics

    texts = "\n\n".join(topics.values()).split("\n\n")
    loader = DataLoaderFactory.create_train_loader(texts[:1500], tokenizer, 512, 8)
    assert loader.summary.efficiency > 0.99


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_documents_of_a_row_do_not_see_each_other(model, tokenizer, attention):
    """A document's logits are those that it has alone, in every row of a batch."""
    texts = [f"Text {number}: " + "some words " * (number % 5) for number in range(14)]
    loader = DataLoaderFactory.create_train_loader(texts, tokenizer, 64, 3)
    model.set_attn_implementation(attention)
    assert len(loader) > 1
    for batch in loader:
        with torch.no_grad():
            together = model(**batch, use_cache=False)
            for row, positions in enumerate(batch["position_ids"].tolist()):
                begins = [at for at, position in enumerate(positions) if position == 0]
                assert len(begins) > 1
                for begin, end in zip(begins, [*begins[1:], 64], strict=True):
                    alone = model(batch["input_ids"][row : row + 1, begin:end], use_cache=False)
                    torch.testing.assert_close(
                        together.logits[row, begin:end], alone.logits[0], atol=1e-4, rtol=1e-4
                    )


def test_packed_and_padded_rows_have_the_same_loss(model, tokenizer):
    """Packing changes how fast a model learns, not what."""
    texts = [f"Text {number}: " + "some words " * (number % 5) for number in range(14)]
    losses = []
    for packing in (True, False):
        (batch,) = DataLoaderFactory.create_train_loader(texts, tokenizer, 64, 100, packing=packing)
        with torch.no_grad():
            losses.append(model(**batch, use_cache=False).loss)
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-4)
