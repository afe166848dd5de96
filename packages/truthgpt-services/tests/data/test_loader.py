"""DataLoaderFactory: what is in a batch, in which order, and how a run goes on where it was."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truthgpt_services.data import DataError, DataLoaderFactory

pytestmark = pytest.mark.slow

WORDS = ["the", "model", "reads", "each", "text", "from", "its", "beginning", "to", "learn"]
TEXTS = [
    " ".join(WORDS[(7 * number + at) % len(WORDS)] for at in range(number % 11 + 1)) + f" {number}"
    for number in range(60)
]


@pytest.fixture(scope="module")
def load(tokenizer):
    """Make a loader to train with, of short rows."""
    return partial(
        DataLoaderFactory.create_train_loader, tokenizer=tokenizer, max_length=48, batch_size=4
    )


def tokens_of(tokenizer, texts):
    return [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]


def documents(batch, padding):
    """The documents of a packed batch, those that fill rows up left out."""
    found = []
    rows = zip(batch["input_ids"].tolist(), batch["position_ids"].tolist(), strict=True)
    for ids, positions in rows:
        begins = [at for at, position in enumerate(positions) if position == 0]
        parts = [ids[a:b] for a, b in zip(begins, [*begins[1:], None], strict=True)]
        found += [part for part in parts if part != [padding] * len(part)]
    return found


def same(one, other):
    """Whether two lists of batches are the same to the bit."""
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


def test_a_padded_batch_is_what_transformers_takes(load, tokenizer):
    """Rows are as long as the longest of them, with a mask, and no loss on what fills them up."""
    (batch,) = load(TEXTS[:2], packing=False, shuffle=False)
    short, long = tokens_of(tokenizer, TEXTS[:2])
    missing = len(long) - len(short)
    assert batch["input_ids"].tolist() == [short + [tokenizer.pad_token_id] * missing, long]
    assert batch["attention_mask"].tolist() == [
        [1] * len(short) + [0] * missing,
        [1] * len(long),
    ]
    assert batch["labels"].tolist() == [
        [-100, *short[1:]] + [-100] * missing,
        [-100, *long[1:]],
    ]
    assert batch["position_ids"].tolist() == [list(range(len(long)))] * 2
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_a_long_text_is_cut_without_packing(load, tokenizer):
    """A row never has more tokens than were asked for."""
    (batch,) = load(["word " * 500], packing=False)
    assert batch["input_ids"].tolist() == [tokenizer("word " * 500)["input_ids"][:48]]


def test_the_first_token_of_each_packed_document_has_no_loss(load, tokenizer):
    """No document is predicted from the one before it."""
    (batch,) = load(TEXTS[:12], batch_size=100)
    begins = batch["position_ids"] == 0
    assert (batch["labels"][begins] == -100).all()
    filled = batch["input_ids"] == tokenizer.pad_token_id
    learned = batch["labels"][~begins & ~filled]
    assert torch.equal(learned, batch["input_ids"][~begins & ~filled])
    assert "attention_mask" not in batch
    # Each text ends once with the token to learn it from, and what fills up has no loss.
    assert int((batch["labels"] == tokenizer.eos_token_id).sum()) == 12


def test_every_text_is_in_an_epoch_once(load, tokenizer):
    """An epoch is a permutation of the texts, packed or not, in buckets or not."""
    expected = sorted(tokens_of(tokenizer, TEXTS))
    packed = [d for batch in load(TEXTS) for d in documents(batch, tokenizer.pad_token_id)]
    assert sorted(packed) == expected
    for bucketing in (True, False):
        found = [
            ids[: sum(mask)]
            for batch in load(TEXTS, packing=False, length_bucketing=bucketing)
            for ids, mask in zip(
                batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True
            )
        ]
        assert sorted(found) == expected


@pytest.mark.parametrize("packing", [True, False])
def test_epochs_differ_and_a_seed_repeats_them(load, packing):
    """Order depends on seed and epoch: both give another one, and the same give the same."""
    make = partial(load, TEXTS, packing=packing, batch_size=2)
    loader = make(seed=1)
    first, second = list(loader), list(loader)
    assert not same(first, second)
    again = make(seed=1)
    again.set_epoch(1)
    assert same(list(again), second)
    assert not same(list(make(seed=2)), first)


def test_the_order_of_a_seed_never_changes(load, tokenizer):
    """A run can be resumed with another version of numpy: this is what seed 42 has always given."""
    texts = [chr(ord("a") + number) for number in range(10)]
    loader = load(texts, packing=False, batch_size=10, length_bucketing=False)
    (batch,) = loader
    assert tokenizer.decode(batch["input_ids"][:, 0]) == GOLDEN


GOLDEN = "haibfegcjd"


def test_buckets_have_texts_of_like_length(load):
    """Bucketing leaves less padding than chance does."""
    padded = {}
    for bucketing in (True, False):
        batches = list(load(TEXTS, packing=False, length_bucketing=bucketing))
        padded[bucketing] = sum(int((batch["attention_mask"] == 0).sum()) for batch in batches)
    assert padded[True] < padded[False] / 4


@given(
    texts=st.integers(1, 40),
    batch_size=st.integers(1, 5),
    packing=st.booleans(),
    drop_last=st.booleans(),
    epoch=st.integers(0, 3),
    data=st.data(),
)
@settings(max_examples=40)
def test_a_run_goes_on_where_it_was(load, texts, batch_size, packing, drop_last, epoch, data):
    """From any batch of any epoch, a new loader with the saved position yields what was left."""
    options = {"batch_size": batch_size, "packing": packing}
    rows = load(TEXTS[:texts], **options).summary.rows
    options["drop_last"] = drop_last and rows >= batch_size
    loader = load(TEXTS[:texts], **options)
    loader.set_epoch(epoch)
    stop = data.draw(st.integers(0, len(loader)))
    batches = iter(loader)
    taken = [next(batches) for _ in range(stop)]
    state = json.loads(json.dumps(loader.state_dict()))
    rest, following = list(batches), list(loader)
    assert len(taken) + len(rest) == len(loader)

    resumed = load(TEXTS[:texts], **options)
    resumed.load_state_dict(state)
    resumed.set_epoch(epoch)
    assert same(list(resumed), rest)
    assert same(list(resumed), following)


RESUME = """
import hashlib, json, sys
from truthgpt_services.data import DataLoaderFactory
from truthgpt_services.models.loading import load_tokenizer
from pathlib import Path
directory, workers, state, count, texts = json.load(sys.stdin)
loader = DataLoaderFactory.create_train_loader(
    texts, load_tokenizer(Path(directory)), 48, 2, num_workers=workers
)
if state:
    loader.load_state_dict(state)
batches = []
while len(batches) < count:
    for batch in loader:
        digest = hashlib.sha256(b"".join(batch[k].numpy().tobytes() for k in sorted(batch)))
        batches.append(digest.hexdigest())
        if len(batches) == count:
            break
json.dump([batches, loader.state_dict()], sys.stdout)
"""


def test_workers_change_nothing_and_a_new_process_goes_on_in_epoch_two(tiny):
    """2N batches with two workers are N, and N more in a new process with none."""

    def run(workers, state, count):
        done = subprocess.run(
            [sys.executable, "-c", RESUME],
            input=json.dumps([str(tiny), workers, state, count, TEXTS[:25]]),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    whole, _ = run(2, None, 14)
    first, state = run(2, None, 11)
    assert (state["epoch"] > 0, state["batch"] > 0) == (True, True)
    second, _ = run(0, state, 3)
    assert first + second == whole


def test_random_numbers_of_the_process_are_left_alone(load):
    """Dropout is the same whether a run was stopped in between or not."""
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    for _ in range(2):
        list(load(TEXTS))
    assert torch.equal(torch.rand(4), expected)


def test_a_loader_to_evaluate_with_begins_at_the_beginning(load, tokenizer):
    """Each evaluation sees all texts, whether or not the last one was broken off."""
    loader = DataLoaderFactory.create_val_loader(TEXTS, tokenizer, max_length=48, batch_size=4)
    whole = list(loader)
    next(iter(loader))
    assert same(list(loader), whole)
    assert len(loader) == len(whole)


def test_a_position_in_other_data_is_refused(load):
    """A run does not go on with other texts, or other settings, without a word."""
    state = load(TEXTS).state_dict()
    with pytest.raises(DataError, match=r"one in other data.*Go on with the same data"):
        load(TEXTS[1:]).load_state_dict(state)
    with pytest.raises(DataError, match="saved with batch_size=4, and now it is 3"):
        load(TEXTS, batch_size=3).load_state_dict(state)
    with pytest.raises(DataError, match="not a position in the data"):
        load(TEXTS).load_state_dict({"epoch": 0})


@pytest.mark.parametrize(
    ("texts", "options", "said"),
    [
        ([], {}, "The data set is empty"),
        (["", ""], {}, "learned from any of 2 texts: they are empty"),
        (["", "a"], {"packing": False, "end_of_text": False}, "any of 2 texts"),
        ("a text", {}, "The texts are a single text. Give a list of texts."),
        (["a", 5], {}, "Text 1 is not a list of messages"),
        (["a", "b\ud800"], {}, r"Text 1 has half a surrogate pair, \\ud800"),
        (["a"], {"max_length": 1}, "max_length is 1, not an integer of 2 or more"),
        (["a"], {"batch_size": 0}, "batch_size is 0, not an integer of 1 or more"),
        (["a"], {"num_workers": -1}, "num_workers is -1"),
        (["a"], {"prefetch": 0}, "prefetch is 0"),
        (["a"], {"tokenizing_processes": 0}, "tokenizing_processes is 0"),
        (
            ["a"],
            {"context_length": 40},
            "max_length is 48.*context of 40 tokens. Give max_length=40",
        ),
        (["a"], {"batch_size": 2, "drop_last": True}, "are 1 rows, fewer than the 2.*batch_size=1"),
    ],
)
def test_what_cannot_be_trained_on_is_said_before_training(load, texts, options, said):
    """Each mistake is an error that names it and how to put it right."""
    with pytest.raises(DataError, match=said):
        load(texts, **options)


def test_a_row_longer_than_the_tokenizer_gives_is_refused(tiny):
    """A tokenizer's own limit is the model's."""
    from truthgpt_services.models.loading import load_tokenizer

    limited = load_tokenizer(tiny)
    limited.model_max_length = 40
    with pytest.raises(DataError, match="its tokenizer gives 40 tokens"):
        DataLoaderFactory.create_train_loader(["a"], limited, max_length=48, batch_size=1)


def test_what_is_left_out_is_counted(load):
    """Empty texts are no rows, and the summary says how many there were."""
    summary = load(["", "one text", "", "two texts"], packing=False).summary
    assert (summary.documents, summary.left_out, summary.rows) == (4, 2, 2)
