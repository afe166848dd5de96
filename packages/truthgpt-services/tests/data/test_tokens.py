"""The cache of tokens: found by content, and never used unless it is whole."""

from __future__ import annotations

import copy
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import ByT5Tokenizer

from truthgpt_core.child_process import ChildProcess
from truthgpt_services.data import DataError, DataLoaderFactory, DatasetManager
from truthgpt_services.data import token_store as data_tokens
from truthgpt_services.data.sources import files as data_files
from truthgpt_services.data.sources.file_sources import JsonLines

pytestmark = pytest.mark.slow

TEXTS = [f"Text {number} of this data set. " + "word " * (number % 9) for number in range(80)]
END = 60
KILLS = 20


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch):
    """Keep data sets in the cache that are otherwise small enough for memory."""
    monkeypatch.setattr(data_tokens, "IN_MEMORY", 200)
    monkeypatch.setattr(data_tokens, "_CHUNK", 500)


class Heard:
    """What progress told."""

    def __init__(self):
        self.told: set[str] = set()

    def __call__(self, what, done, total):
        self.told.add(what.partition(" ")[0].rstrip(","))


@pytest.fixture
def load(tokenizer):
    """Return the batches of a data set, and what had to be done for them."""

    def load(texts=TEXTS, tokenizer=tokenizer, **options):
        heard = Heard()
        given = {"tokenizing_processes": 1, "progress": heard, "num_workers": 0} | options
        loader = DataLoaderFactory.create_train_loader(texts, tokenizer, 48, 4, **given)
        return list(loader), heard.told

    return load


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a
    )


def whole(cache: Path) -> list[Path]:
    """What is in the cache of tokens, unfinished things too."""
    return sorted(path for path in (cache / "tokens").iterdir() if path.name != "known")


def test_the_cache_gives_what_memory_does(load, monkeypatch):
    """Where tokens are kept does not change a batch."""
    kept, _ = load()
    monkeypatch.setattr(data_tokens, "IN_MEMORY", 10**6)
    assert same(load()[0], kept)


def test_texts_are_tokenized_once(load):
    """The second start reads the texts, to find out that they are the same, and no more."""
    first, told = load()
    assert "Tokenizing" in told
    second, told = load()
    assert told == {"Reading"}
    assert same(first, second)


def test_texts_that_can_be_read_once_only_are_kept_too(load):
    """An iterator is tokenized as it streams; what it had is found again by its content."""
    first, told = load(iter(TEXTS))
    assert told == {"Tokenizing"}
    second, told = load()
    assert told == {"Reading"}
    assert same(first, second)


@pytest.mark.parametrize("change", ["a text", "an end", "the tokenizer", "the option"])
def test_other_content_is_tokenized_anew(load, tokenizer, change):
    """Nothing of another data set, tokenizer or option is ever taken for this one."""
    load()
    texts, other, options = list(TEXTS), copy.deepcopy(tokenizer), {}
    if change == "a text":
        texts[40] = texts[40].replace("data", "date")
    elif change == "an end":
        # Joined, they are the same texts as before.
        texts[3:5] = [texts[3] + texts[4][:5], texts[4][5:]]
    elif change == "the tokenizer":
        other.add_tokens(["data"])
    else:
        options["end_of_text"] = False
    assert "Tokenizing" in load(texts, other, **options)[1]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def lose(path: Path) -> None:
    path.unlink()


NAMES = ["ids.bin", "lengths.bin", "starts.bin", "pieces.bin", "truthgpt.json"]


@pytest.mark.fault("a file that is damaged or of another format")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", [truncate, flip, lose])
def test_what_is_damaged_is_made_anew(load, cache, name: str, damage: Callable, caplog):
    """A file that is cut off, has one bit wrong or is gone is found out, said and replaced."""
    first, _ = load()
    for path in (cache / "tokens").rglob(name):
        damage(path)
    second, _ = load()
    assert same(first, second)
    assert "is damaged" in caplog.text
    caplog.clear()
    assert load()[1] == {"Reading"}
    assert caplog.text == ""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write the data set to a file that has not changed for long."""
    monkeypatch.setattr(data_files, "RECENT", 0.0)
    path = tmp_path / "texts.jsonl"

    def write(texts=TEXTS):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return JsonLines(str(path))

    return write


def test_a_file_that_did_not_change_is_not_read(load, write):
    """The second start looks at the file's size and times alone, on each side of a split."""
    first, _ = load(write())
    path = write()._dataset
    load(JsonLines(path))
    second, told = load(JsonLines(path))
    assert told == set()
    assert same(first, second)


def test_a_file_with_the_same_texts_is_not_tokenized_again(load, write):
    """A copy of a file, or one that was written again, has the tokens that there are."""
    load(write())
    assert load(write())[1] == {"Reading"}


def test_a_file_that_was_changed_is_read_again(load, write):
    """A text of the same length, with the same date, is another text."""
    source = write()
    load(source)
    path = Path(source._dataset)
    stat = path.stat()
    write([text.replace("data", "date") for text in TEXTS])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    batches, told = load(source)
    assert "Tokenizing" in told
    assert same(batches, load([text.replace("data", "date") for text in TEXTS])[0])


def test_a_file_that_just_changed_is_read(load, write, monkeypatch):
    """A change within what clocks of file systems can tell apart is not overlooked."""
    monkeypatch.setattr(data_files, "RECENT", 3600.0)
    load(write())
    assert load(write())[1] == {"Reading"}


def test_both_sides_of_a_streamed_split_are_kept(load, write, bare_plugins):
    """A split that streams gives each text to one side, and neither side is read twice."""
    path = write()._dataset
    sides = DatasetManager.stream_dataset(
        "jsonl", path, validation_fraction=0.4, plugins=bare_plugins
    )
    texts = [list(side.texts()) for side in sides]
    assert sorted(texts[0] + texts[1]) == sorted(TEXTS)
    assert not set(texts[0]) & set(texts[1])
    assert 0.2 < len(texts[1]) / len(TEXTS) < 0.6
    for side in sides:
        load(side)
        assert load(side)[1] == set()


@pytest.fixture
def a_little_of_much(write, bare_plugins, monkeypatch):
    """The side of a split that is few enough texts for memory."""
    path = write()._dataset
    monkeypatch.setattr(data_tokens, "IN_MEMORY", 10**6)
    return DatasetManager.stream_dataset("jsonl", path, plugins=bare_plugins, seed=1)[1]


def test_of_a_file_a_little_is_kept_too(load, a_little_of_much, monkeypatch):
    """A file is not read again for the few texts to validate with, either."""
    first, told = load(a_little_of_much)
    assert told == {"Tokenizing"}
    monkeypatch.setattr(JsonLines, "texts", None)
    second, told = load(a_little_of_much)
    assert told == set()
    assert same(first, second)


@pytest.mark.fault("a disk that is full or read-only")
@pytest.mark.parametrize("start", ["first", "second"])
def test_a_little_needs_no_room_on_the_disk(load, cache, a_little_of_much, start):
    """Few texts are trained on though nothing can be written, be it in the cache or not."""
    expected = load(a_little_of_much)[0]
    if start == "first":
        (cache / "tokens").rename(cache / "away")

    def work() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        return str(same(load(a_little_of_much)[0], expected))

    assert in_a_child(work) == (0, "True")


def test_several_processes_give_what_one_does(load, cache):
    """Texts come back in their order, whichever process was first."""
    several, _ = load(tokenizing_processes=2)
    (cache / "tokens").rename(cache / "away")
    one, told = load()
    assert "Tokenizing" in told
    assert same(several, one)


def test_a_tokenizer_that_cannot_be_sent_is_said(load, tokenizer):
    """What a process cannot be given is an error with a way around it."""
    changed = copy.deepcopy(tokenizer)
    changed.normalize = lambda text: text
    with pytest.raises(DataError, match=r"sent to another process.*tokenizing_processes=1"):
        load(tokenizer=changed, tokenizing_processes=2)


def test_a_slow_tokenizer_is_sent_too(load):
    """One whose code is Python, and whose files are not what makes its tokens."""
    tokenizer = ByT5Tokenizer()
    several, _ = load(tokenizer=tokenizer, tokenizing_processes=2)
    assert same(several, load(tokenizer=tokenizer)[0])


DOUBLING = """
from transformers import ByT5Tokenizer

class Doubling(ByT5Tokenizer):
    times = 1

    def _tokenize(self, text, **options):
        return super()._tokenize(text, **options) * self.times
"""


def test_a_tokenizer_that_is_another_when_loaded_is_not_used(load, monkeypatch, tmp_path):
    """Nothing is trained on tokens that it does not make; a class of the user's is found."""
    (tmp_path / "of_mine.py").write_text(DOUBLING)
    monkeypatch.syspath_prepend(tmp_path)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    tokenizer = importlib.import_module("of_mine").Doubling()
    several, _ = load(tokenizer=tokenizer, tokenizing_processes=2)
    assert same(several, load(tokenizer=tokenizer)[0])
    tokenizer.times = 2
    with pytest.raises(DataError, match=r"sent to another process: .*makes other tokens"):
        load([*TEXTS, "more"], tokenizer, tokenizing_processes=2)


def test_a_process_that_is_killed_is_an_error(load, monkeypatch):
    """With what may help, if it was too little memory."""

    def killed(self, request, **arguments):
        os.kill(self.pid, signal.SIGKILL)
        return call(self, request, **arguments)

    call = ChildProcess.call
    monkeypatch.setattr(ChildProcess, "call", killed)
    with pytest.raises(DataError, match=r"tokenizes failed to load: killed by SIGKILL.*memory"):
        load(tokenizing_processes=2)


@pytest.mark.fault("a signal")
def test_stopping_leaves_nothing_behind(load, cache):
    """Ctrl-C while texts are tokenized is heard, and what was written is gone."""

    def stop(what, done, total):
        if what.startswith("Tokenizing"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(progress=stop)
    assert whole(cache) == []


def in_a_child(work: Callable[[], str]) -> tuple[int, str]:
    """Do something in a forked process; return how it ended and what it said."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        sys.dont_write_bytecode = True  # where files are limited, half a module's would be left
        try:
            os.write(write, work().encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


@pytest.mark.fault("a kill at any moment", cases=KILLS)
def test_a_process_killed_at_any_moment_leaves_a_cache_that_works(load, cache):
    """Killed at each write, flush and rename in turn, no run leaves what another one would use."""
    expected, _ = load()
    (cache / "tokens").rename(cache / "away")
    killed = 0

    def die_at(moment: int) -> Callable[[], str]:
        def work() -> str:
            passed = 0

            def count() -> None:
                nonlocal passed
                if passed == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                passed += 1

            fsync, rename = os.fsync, Path.rename

            def counted_fsync(descriptor):
                count()
                fsync(descriptor)

            def counted_rename(self, target):
                count()
                rename(self, target)
                count()

            os.fsync, Path.rename = counted_fsync, counted_rename
            load(progress=lambda *told: count())
            return "done"

        return work

    for moment in range(END):
        code, said = in_a_child(die_at(moment))
        if code != -signal.SIGKILL:
            assert (code, said) == (0, "done")
            break
        killed += 1
        if moment % 4 == 0:
            assert same(load()[0], expected)
            assert not [path for path in whole(cache) if "partial" in path.name]
            (cache / "tokens").rename(cache / f"away-{moment}")
    # The last of the fsync and rename calls is past the last progress.
    assert killed >= KILLS


@pytest.mark.fault("a disk that is full or read-only")
def test_a_full_disk_is_one_clear_error(load, cache):
    """What cannot be written is said, with what to do, and nothing is left behind."""

    def work() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
        try:
            load()
        except DataError as error:
            return str(error)
        return "no error"

    code, said = in_a_child(work)
    assert code == 0
    assert said.startswith("Tokens cannot be kept in the cache: ")
    assert f"Make room at {cache / 'tokens'}, or set TRUTHGPT_CACHE to another place." in said
    assert whole(cache) == []


def test_a_side_without_texts_is_said(write, bare_plugins):
    """A split of so few texts that none is left for one side is an error with a way out."""
    path = write(TEXTS[:1])._dataset
    training, validation = DatasetManager.stream_dataset("jsonl", path, plugins=bare_plugins)
    assert list(training.texts()) == TEXTS[:1]
    with pytest.raises(DataError, match=r"has no text to validate with.*validation_fraction"):
        list(validation.texts())


def test_a_split_that_keeps_nothing_has_no_other_side(write, bare_plugins):
    """With a fraction of zero all texts are for training."""
    path = write()._dataset
    training, validation = DatasetManager.stream_dataset(
        "jsonl", path, validation_fraction=0, plugins=bare_plugins
    )
    assert validation is None
    assert list(training.texts()) == TEXTS
