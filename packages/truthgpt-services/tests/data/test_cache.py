"""The cache of tokens stays within its size, and several processes can use it at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from truthgpt_services.data import DataError, DataLoaderFactory
from truthgpt_services.data import token_store as data_tokens

NAMES = "abcdef"


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch):
    """Keep data sets in the cache that are otherwise small enough for memory."""
    monkeypatch.setattr(data_tokens, "IN_MEMORY", 200)
    monkeypatch.setattr(data_tokens, "_CHUNK", 500)


@pytest.fixture
def limit(monkeypatch) -> Callable[[int], None]:
    """Set how many bytes are kept."""

    def limit(size: int) -> None:
        monkeypatch.setenv("TRUTHGPT_TOKENS_GB", f"{size / 1e9:.12f}")

    return limit


@pytest.fixture
def load(tokenizer):
    """Open a data set of a name; return its loader, and whether it had to be tokenized."""

    def load(name: str, **options):
        told = []
        texts = [f"Text {name} {number}: " + "word " * (number % 9) for number in range(60)]
        loader = DataLoaderFactory.create_train_loader(
            texts,
            tokenizer,
            48,
            4,
            num_workers=0,
            tokenizing_processes=1,
            progress=lambda what, done, total: told.append(what),
            **options,
        )
        return loader, any(what.startswith("Tokenizing") for what in told)

    return load


def kept(cache: Path) -> set[Path]:
    """The directories of tokens and rows, unfinished and removed ones too."""
    return {path for path in (cache / "tokens").iterdir() if path.name != "known"}


def size(cache: Path) -> int:
    return sum(file.stat().st_size for path in kept(cache) for file in path.iterdir())


def same(one, other) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a
    )


def in_a_fork(work: Callable[[], None]) -> int:
    """Do something in a fork; return its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        os._exit(code)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_the_cache_stays_within_its_size(load, limit, cache) -> None:
    """However many data sets there were, no more is kept than was asked for."""
    load("a")
    most = 3 * size(cache)
    limit(most)
    for name in NAMES:
        load(name)
        assert size(cache) <= most
    assert size(cache) > most / 2


def test_what_was_not_used_for_longest_goes_first(load, limit, cache) -> None:
    """A data set that was used again outlives one that was made after it."""
    load("a")
    limit(int(2.5 * size(cache)))
    load("b")
    load("a")
    load("c")
    assert not load("a")[1]
    assert load("b")[1]


@pytest.mark.fault("several processes at once")
def test_what_another_process_uses_is_kept(load, limit, cache) -> None:
    """Tokens that a run in another process trains on stay, until it ends or is killed."""
    load("a")
    used = kept(cache)
    limit(0)
    ready, tell = os.pipe()

    def use() -> None:
        loader, _ = load("a")
        os.write(tell, b".")
        signal.pause()
        del loader

    child = in_a_fork(use)
    try:
        assert os.read(ready, 1) == b"."
        load("b")
        assert used <= kept(cache)
    finally:
        os.kill(child, signal.SIGKILL)
        ended(child)
    load("c")
    assert not used & kept(cache)


def test_what_this_process_uses_is_kept(load, limit) -> None:
    """A loader goes on giving batches when a cache without room has others."""
    limit(0)
    loader, _ = load("a")
    first = list(loader)
    load("b")
    loader.load_state_dict({**loader.state_dict(), "epoch": 0, "batch": 0})
    assert same(first, list(loader))
    assert not load("a")[1]


@pytest.mark.fault("a kill at any moment")
@pytest.mark.parametrize("moment", range(4))
def test_a_process_killed_while_it_makes_room_leaves_a_cache_that_works(
    load, limit, cache, moment
) -> None:
    """What it was about to remove is whole or not there, and the next one removes the rest."""
    expected = [list(load(name)[0]) for name in "ab"]
    most = int(size(cache) / 2)

    def work() -> None:
        limit(0)
        rename, unlink, passed = Path.rename, os.unlink, 0

        def counted(do):
            def act(path, *given, **named):
                nonlocal passed
                # Of what is removed, and not of what is written before.
                if "removed" in f"{path} {given}" or "dir_fd" in named:
                    if passed == moment:
                        os.kill(os.getpid(), signal.SIGKILL)
                    passed += 1
                return do(path, *given, **named)

            return act

        Path.rename, os.unlink = counted(rename), counted(unlink)
        load("c")

    assert ended(in_a_fork(work)) == -signal.SIGKILL
    assert all(
        same(list(load(name)[0]), batches) for name, batches in zip("ab", expected, strict=True)
    )
    limit(most)
    load("d")
    assert not [path for path in kept(cache) if path.name.startswith(".")]


@pytest.mark.fault("several processes at once", cases=5)
def test_two_processes_that_tokenize_the_same_texts_are_both_right(load, cache, tmp_path) -> None:
    """Whoever is first, both have the right batches, and one copy is kept."""
    for turn in range(5):
        expected = list(load(f"{turn}")[0])
        for path in kept(cache):
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
        start = tmp_path / f"start-{turn}"

        def work(start=start, name=f"{turn}", expected=expected) -> None:
            while not start.exists():
                time.sleep(0.001)
            assert same(list(load(name)[0]), expected)

        children = [in_a_fork(work), in_a_fork(work)]
        start.touch()
        assert [ended(child) for child in children] == [0, 0]
        assert len(kept(cache)) == 2
        assert not load(f"{turn}")[1]


@pytest.mark.parametrize("given", ["much", "-1", "nan", ""])
def test_a_size_that_is_none_is_refused(load, monkeypatch, given) -> None:
    """What the environment says is checked before anything is tokenized."""
    monkeypatch.setenv("TRUTHGPT_TOKENS_GB", given)
    with pytest.raises(DataError, match=f'TRUTHGPT_TOKENS_GB is "{given}".*Give 0 or more'):
        load("a")


def test_notes_of_what_is_gone_go_too(load, limit, cache) -> None:
    """What is remembered of files is not more than there are tokens for."""
    known = cache / "tokens" / "known"
    known.mkdir(parents=True)
    (known / "0.json").write_text('{"fingerprint": "0", "key": "gone"}')
    (known / "1.json").write_text("half a no")
    load("a")
    assert list(known.iterdir()) == []
