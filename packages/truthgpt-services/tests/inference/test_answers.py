"""Answers on disk: whole or not there, bounded, and shared by processes."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import time

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


def flip(content):
    return content[:-6] + bytes([content[-6] ^ 1]) + content[-5:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:70],
        lambda content: content[:-1],
        flip,
        lambda content: b"\xff" * len(content),
        lambda content: content + b"x",
    ],
    ids=["empty", "cut", "one byte", "bit", "noise", "longer"],
)
def test_a_damaged_file_is_a_miss_and_is_mended(cache, file, damage):
    """It is never an error and never a wrong answer."""
    file.write_bytes(damage(file.read_bytes()))
    assert cache.get(KEY) is None
    cache.put(KEY, TEXT)
    assert cache.get(KEY) == TEXT


def test_every_bit_that_flips_is_noticed(cache, file):
    """A wrong answer is worse than none."""
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert cache.get(KEY) in (None, TEXT), place
        assert cache.get(KEY) is None, place


def test_a_file_under_another_name_is_no_answer(cache, file):
    """It is whole, but the answer to something else."""
    file.rename(file.with_name(file.name.replace(KEY, key_of(1))))
    assert cache.get(key_of(1)) is None


def test_a_directory_in_place_of_a_file_is_a_miss(cache, file):
    """Nothing that is found there ends a program."""
    file.unlink()
    file.mkdir()
    assert cache.get(KEY) is None


def forged(body):
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000 + b"]" * 100_000,
        b"5",
        b"null",
        b'{"key": "' + KEY.encode() + b'"}',
        b'{"key": "' + KEY.encode() + b'", "text": 5}',
        b'{"key": "' + KEY.encode() + b'", "text": ["a"]}',
        b'{"key": 7, "text": "a"}',
        b'{"text": "a"}',
        b"\xff\xfe",
        b"9" * 10_000,
    ],
    ids=["deep", "number", "null", "no text", "int", "list", "int key", "no key", "bytes", "long"],
)
def test_a_forged_file_is_a_miss(cache, file, body):
    """Whoever knows the checksum can write anything below it."""
    file.write_bytes(forged(body))
    assert cache.get(KEY) is None
    cache.put(KEY, TEXT)
    assert cache.get(KEY) == TEXT


def replace_by_fifo(file, tmp_path):
    os.mkfifo(file)


def replace_by_link(file, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(forged(b'{"key": "' + KEY.encode() + b'", "text": "a"}'))
    file.symlink_to(elsewhere)


def replace_by_device(file, tmp_path):
    file.symlink_to("/dev/zero")


def replace_by_loop(file, tmp_path):
    file.symlink_to(file.name)


def replace_by_large(file, tmp_path):
    with file.open("wb") as large:
        large.truncate(1 << 40)


@pytest.mark.parametrize(
    "replace",
    [replace_by_fifo, replace_by_link, replace_by_device, replace_by_loop, replace_by_large],
)
def test_what_is_not_a_file_of_ours_is_a_miss(cache, file, tmp_path, replace):
    """A pipe does not wait, a link is not followed, and a terabyte is not read."""
    file.unlink()
    replace(file, tmp_path)
    assert cache.get(KEY) is None
    cache.put(KEY, TEXT)
    assert cache.get(KEY) == TEXT
    assert file.is_file()
    assert not file.is_symlink()


def test_nobody_else_can_read_the_answers(cache, file):
    """Files are 0600 in a directory 0700, whatever the umask."""
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


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


def taken(folder):
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in folder.iterdir())


def test_the_directory_never_takes_more_than_its_limit(cache, tmp_path):
    """After each answer, at the size that disks give to files."""
    for number in range(200):
        cache.put(key_of(number), "x" * (number * 37 % 9000))
        assert taken(tmp_path / "answers") <= LIMIT
    assert taken(tmp_path / "answers") > LIMIT / 2


def test_the_least_recently_used_go_first(cache, tmp_path):
    """An answer that is asked for again and again stays."""
    for number in range(300):
        cache.put(key_of(number), "x")
        # Two uses at one tick of the file system's clock have no order.
        time.sleep(0.001)
        assert cache.get(key_of(0)) == "x"
    assert cache.get(key_of(299)) == "x"
    assert cache.get(key_of(1)) is None


def test_what_is_not_ours_is_left_alone(tmp_path):
    """The directory may be one that has other things in it."""
    mine = tmp_path / "notes.txt"
    mine.write_bytes(b"x" * LIMIT)
    cache = AnswerCache(tmp_path, LIMIT)
    for number in range(200):
        cache.put(key_of(number), "x")
    assert mine.exists()


def test_an_answer_larger_than_the_limit_is_not_kept(cache, file):
    """It does not drive out all others."""
    cache.put(key_of(1), "x" * LIMIT)
    assert cache.get(key_of(1)) is None
    assert cache.get(KEY) == TEXT


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


def test_what_a_killed_process_left_is_removed_in_time(cache, file):
    """A file that is being written is left alone; one that is an hour old is not."""
    names = [f".{key_of(number)}-{'0' * 16}.answer" for number in range(2)]
    old, young = (file.with_name(name) for name in names)
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 4000,) * 2)
    for number in range(100):
        cache.put(key_of(number), "x")
    assert not old.exists()
    assert young.exists()


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


def hammer(folder, seed):
    """Write and read the same few answers as others do, in a directory that is too small."""
    cache = AnswerCache(folder, 16 * 4096)
    for turn in range(300):
        number = (turn * 7 + seed * 13) % 40
        said = cache.get(key_of(number))
        if said not in (None, f"{number} " * number * 50):
            os._exit(1)
        cache.put(key_of(number), f"{number} " * number * 50)
    os._exit(0 if not cache._warned else 2)


def test_several_processes_can_use_one_directory(tmp_path):
    """Each gets whole answers or none, whoever else writes and removes them."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=hammer, args=(tmp_path, seed)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]
