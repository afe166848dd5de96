"""DatasetManager: a data set by name, split so that validation says something."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from functools import partial
from string import ascii_lowercase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.dynamic_factory import ComponentArgumentsError, UnknownComponentError
from truthgpt_services.data import DataError, DatasetManager


@pytest.fixture
def load(bare_plugins):
    return partial(DatasetManager.load_dataset, plugins=bare_plugins)


@pytest.fixture
def write(tmp_path):
    """Write texts as JSON Lines; return the path as a configuration has it."""

    def write(texts: list[str]) -> str:
        path = tmp_path / "corpus.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return str(path)

    return write


@pytest.mark.new_process
def test_the_call_of_the_training_example_works(tmp_path):
    """A configuration's `data` section says all that it takes, and torch is not needed."""
    (tmp_path / "config.yaml").write_text(
        "model: {name_or_path: gpt2}\ndata: {source: python_docs, dataset: topics}\n"
    )
    script = (
        "import sys\n"
        "from truthgpt_core.config import ConfigManager\n"
        "from truthgpt_services.data import DatasetManager\n"
        "config = ConfigManager.load_config('config.yaml')\n"
        "train_texts, val_texts = DatasetManager.load_dataset(\n"
        "    source=config.data.source, dataset_name=config.data.dataset\n"
        ")\n"
        "print(len(train_texts) > 10 * len(val_texts) > 0, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert (done.stdout, done.stderr) == ("True False\n", "")


GOLDEN = ["d", "l", "p", "v", "y"]


def test_the_split_of_a_seed_never_changes(load, write):
    """A result from last year can be compared: this is what seed 42 has always kept."""
    train, validation = load("jsonl", write(list(ascii_lowercase)), validation_fraction=0.2)
    assert validation == GOLDEN
    assert train == [letter for letter in ascii_lowercase if letter not in GOLDEN]


def test_the_order_of_the_texts_does_not_decide_the_split(load, write):
    """Sorting or shuffling a data set moves no text from one side to the other."""
    texts = [f"text {number}" for number in range(100)]
    validation = set(load("jsonl", write(texts))[1])
    random.Random(1).shuffle(texts)
    train, again = load("jsonl", write(texts))
    assert set(again) == validation
    assert train == [text for text in texts if text not in validation]


def test_another_seed_gives_another_split(load, write):
    """A result can be checked on texts that it was not chosen by."""
    path = write([f"text {number}" for number in range(100)])
    assert load("jsonl", path, seed=1)[1] != load("jsonl", path, seed=2)[1]


def test_copies_of_a_text_are_on_one_side(load, write):
    """A model is not validated with what it was trained on."""
    train, validation = load(
        "jsonl", write([f"text {number % 50}" for number in range(500)]), validation_fraction=0.3
    )
    assert not set(train) & set(validation)
    assert (len(train), len(validation)) == (350, 150)


class Numbers:
    def __init__(self, dataset):
        self.count = int(dataset)

    def texts(self):
        return map(str, range(self.count))


def test_each_text_is_on_one_side_and_the_sides_are_as_large_as_asked(load, bare_plugins):
    """Neither side is ever empty, and validation is within half a text of its fraction."""
    bare_plugins.factories["dataset_factory"].register("numbers", Numbers)

    @given(st.integers(2, 60), st.floats(0.001, 0.999), st.integers())
    def check(count: int, fraction: float, seed: int) -> None:
        train, validation = load("numbers", str(count), validation_fraction=fraction, seed=seed)
        assert sorted(map(int, train + validation)) == list(range(count))
        assert train == sorted(train, key=int)
        assert train
        assert validation
        assert abs(len(validation) - fraction * count) <= 0.5 or 1 in (len(train), len(validation))

    check()


def test_nothing_is_kept_for_validation_if_none_is_asked_for(load, write):
    """All texts can be trained on, one alone too."""
    assert load("jsonl", write(["only"]), validation_fraction=0) == (["only"], [])


def test_blank_texts_are_left_out(load, write):
    """A text of white space teaches nothing, and some data sets are full of them."""
    assert load("jsonl", write(["a", "", " \n\t"]), validation_fraction=0) == (["a"], [])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 5, float("nan")])
def test_a_fraction_out_of_range_is_refused_before_anything_is_read(load, fraction):
    """Five per cent that was written as 5 is not taken for something else."""
    with pytest.raises(DataError, match=r"fraction .* is out of range\. Give one from 0\.0"):
        load("jsonl", "nowhere", validation_fraction=fraction)


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_an_empty_data_set_is_refused(load, write, texts):
    """Training on nothing is an error of the data, and says so."""
    with pytest.raises(DataError, match=r"corpus\.jsonl\" of \"jsonl\" is empty"):
        load("jsonl", write(texts), validation_fraction=0)


@pytest.mark.parametrize("texts", [["one"], ["one", "one"]])
def test_one_text_cannot_be_split(load, write, texts):
    """The error says how to train on it all the same."""
    with pytest.raises(DataError, match=r"cannot be split\. Give validation_fraction=0"):
        load("jsonl", write(texts))


def test_a_mistyped_source_is_suggested(load):
    """The error names the kind of source that was meant, and all there are."""
    with pytest.raises(UnknownComponentError) as caught:
        load("jsnol", "corpus.jsonl")
    assert 'Did you mean "jsonl"? It has: chat, csv, huggingface, jsonl' in str(caught.value)


def test_wrong_options_are_reported_together(load):
    """What the source takes is checked before a file is opened."""
    with pytest.raises(ComponentArgumentsError) as caught:
        load("text", "nowhere", documents="page", document="file")
    assert len(caught.value.problems) == 2


def test_options_reach_the_source(load, tmp_path):
    """What only one kind of source takes is given beside what all do."""
    (tmp_path / "a.csv").write_text("body;n\nx;1\n")
    options = {"column": "body", "delimiter": ";", "validation_fraction": 0}
    assert load("csv", str(tmp_path), **options) == (["x"], [])


def test_what_a_source_cannot_read_is_said_as_it_says_it(load, write, tmp_path):
    """The file and line of the source's error come through."""
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "a"}\n{"text": 1}\n')
    with pytest.raises(DataError, match=r"corpus\.jsonl:2: field"):
        load("jsonl", str(path))


class Careless:
    """A plugin's source that takes no care of what it gives."""

    gives = b"bytes"

    def __init__(self, dataset):
        pass

    def texts(self):
        yield "good"
        yield self.gives


class HalfACharacter(Careless):
    gives = "\ud83d"


@pytest.mark.parametrize(
    ("kind", "said"), [(Careless, r"at 1: b'bytes'"), (HalfACharacter, r"at 1: '\\ud83d'")]
)
def test_what_is_no_text_is_found_before_it_reaches_a_tokenizer(load, bare_plugins, kind, said):
    """The error names the data set, and which of its texts."""
    bare_plugins.factories["dataset_factory"].register("careless", kind)
    with pytest.raises(DataError, match=f'"x" of "careless" has no proper text {said}'):
        load("careless", "x")
