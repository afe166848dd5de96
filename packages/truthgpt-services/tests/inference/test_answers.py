"""The response cache: in memory, on disk, and what cannot be written."""

from __future__ import annotations

import hashlib
import logging

import pytest

from truthgpt_services.inference.response_cache import AnswerCache, CacheStatistics

LIMIT = 64 * 4096


def key_of(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


KEY, TEXT = key_of(0), "an answer with a line\nand an ä \N{REPLACEMENT CHARACTER}"


@pytest.fixture
def cache(tmp_path):
    return AnswerCache(tmp_path / "answers", LIMIT)


@pytest.fixture
def file(cache, tmp_path):
    """The one file of a cache with one answer."""
    cache.put(KEY, TEXT)
    (file,) = (tmp_path / "answers").iterdir()
    return file


def test_a_text_comes_back_as_it_was(cache, file):
    """Whatever characters it has."""
    assert cache.get(KEY) == TEXT
    assert cache.get(key_of(1)) is None
    assert cache.statistics == CacheStatistics(hits=1, misses=1)


def test_what_the_reader_cannot_use_is_a_miss(cache, file):
    """Whoever asks knows what an answer looks like."""
    assert cache.get(KEY, lambda text: text != TEXT) is None
    assert cache.get(KEY, lambda text: text == TEXT) == TEXT
    assert cache.statistics == CacheStatistics(hits=1, misses=1)


def test_clearing_leaves_other_files(cache, file, tmp_path):
    """No answer is left, in memory or on disk, and what is not ours is."""
    (file.parent / "notes.txt").write_text("")
    cache.clear()
    assert cache.get(KEY) is None
    assert [each.name for each in file.parent.iterdir()] == ["notes.txt"]
    memory = AnswerCache(None, LIMIT)
    memory.put(KEY, TEXT)
    memory.clear()
    assert memory.get(KEY) is None


def test_in_memory_the_least_recently_used_go_first_too():
    """The limit holds there as well."""
    cache = AnswerCache(None, 20_000)
    for number in range(100):
        cache.put(key_of(number), "x" * 1000)
        assert cache.get(key_of(0)) is not None
    held = [number for number in range(100) if cache.get(key_of(number)) is not None]
    assert held[0] == 0
    assert held[1:] == list(range(100 - len(held) + 1, 100))
    assert 5 < len(held) <= 20


def test_a_full_disk_costs_one_warning(small_disk, caplog):
    """Answers are in memory then, and each of them is found."""
    disk = small_disk(64)
    (disk / "other").write_bytes(b"x" * 64 * 1024)
    cache = AnswerCache(disk, LIMIT)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            cache.put(key_of(number), TEXT)
    assert [cache.get(key_of(number)) for number in range(3)] == [TEXT] * 3
    assert len(caplog.records) == 1
    assert "No space left on device" in caplog.text
    assert [file.name for file in disk.iterdir()] == ["other"]


def test_a_directory_that_cannot_be_made_costs_one_warning(tmp_path, caplog):
    """The same holds where nothing may be written."""
    (tmp_path / "file").write_text("")
    cache = AnswerCache(tmp_path / "file" / "answers", LIMIT)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            cache.put(key_of(number), TEXT)
    assert cache.get(key_of(2)) == TEXT
    assert len(caplog.records) == 1
    assert "kept in memory instead" in caplog.text
