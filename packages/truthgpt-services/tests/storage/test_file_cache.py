"""Texts in private files: whole or not there, bounded, and shared by processes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from truthgpt_services.storage.lru import FileCache

LIMIT = 64 * 4096


def key_of(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


KEY, TEXT = key_of(0), "a text with a line\nand an ä \N{REPLACEMENT CHARACTER} \udc80"


@pytest.fixture
def cache(tmp_path):
    return FileCache(tmp_path / "answers", ".answer", max_bytes=LIMIT)


@pytest.fixture
def file(cache, tmp_path):
    """The one file of a cache with one text."""
    cache.put(KEY, TEXT)
    (file,) = (tmp_path / "answers").iterdir()
    return file


def test_a_text_comes_back_as_it_was(cache, file):
    """Whatever characters it has."""
    assert cache.get(KEY) == TEXT
    assert cache.get(key_of(1)) is None


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
    """It is never an error and never another text."""
    file.write_bytes(damage(file.read_bytes()))
    assert cache.get(KEY) is None
    cache.put(KEY, TEXT)
    assert cache.get(KEY) == TEXT


def test_every_bit_that_flips_is_noticed(cache, file):
    """A wrong text is worse than none."""
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert cache.get(KEY) in (None, TEXT), place
        assert cache.get(KEY) is None, place


def test_a_file_under_another_name_is_a_miss(cache, file):
    """It is whole, but belongs to another key."""
    file.rename(file.with_name(file.name.replace(KEY, key_of(1))))
    assert cache.get(key_of(1)) is None


def test_a_directory_in_place_of_a_file_is_a_miss(cache, file):
    """Nothing that is found there ends a program."""
    file.unlink()
    file.mkdir()
    assert cache.get(KEY) is None


def forged(body, key=KEY):
    return hashlib.sha256(key.encode() + b"\n" + body).hexdigest().encode() + b"\n" + body


def test_a_forged_file_that_is_no_text_is_a_miss(cache, file):
    """Whoever knows the checksum can write anything below it."""
    file.write_bytes(forged(b"a text"))
    assert cache.get(KEY) == "a text"
    file.write_bytes(forged(b"\xff\xfe"))
    assert cache.get(KEY) is None
    cache.put(KEY, TEXT)
    assert cache.get(KEY) == TEXT


def replace_by_fifo(file, tmp_path):
    os.mkfifo(file)


def replace_by_link(file, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(forged(b"a"))
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


def test_what_others_may_write_is_a_miss(cache, file):
    """Even with the right checksum."""
    file.chmod(0o660)
    assert cache.get(KEY) is None


def test_nobody_else_can_read_it(cache, file):
    """Files are 0600 in a directory 0700, whatever the umask."""
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def taken(folder):
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in folder.iterdir())


def test_the_directory_never_takes_more_than_its_limit(cache, tmp_path):
    """After each text, at the size that disks give to files."""
    for number in range(200):
        cache.put(key_of(number), "x" * (number * 37 % 9000))
        assert taken(tmp_path / "answers") <= LIMIT
    assert taken(tmp_path / "answers") > LIMIT / 2


def test_the_least_recently_used_go_first(cache, tmp_path):
    """A text that is asked for again and again stays."""
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
    cache = FileCache(tmp_path, ".answer", max_bytes=LIMIT)
    for number in range(200):
        cache.put(key_of(number), "x")
    assert mine.exists()


def test_a_text_larger_than_the_limit_is_not_kept(cache, file):
    """It does not drive out all others."""
    cache.put(key_of(1), "x" * LIMIT)
    assert cache.get(key_of(1)) is None
    assert cache.get(KEY) == TEXT


def test_what_a_killed_process_left_is_removed_in_time(cache, file):
    """A file that is being written is left alone; one that is an hour old is not."""

    def die(*given):
        os._exit(9)

    for _ in range(2):
        child = os.fork()
        if child == 0:
            os.replace = Path.replace = die
            cache.put(KEY, "half")
        os.waitpid(child, 0)
    old, young = (each for each in file.parent.iterdir() if each != file)
    os.utime(old, (time.time() - 4000,) * 2)
    for number in range(100):
        cache.put(key_of(number), "x")
    assert not old.exists()
    assert young.exists()


def hammer(folder, seed):
    """Write and read the same few texts as others do, in a directory that is too small."""
    cache = FileCache(folder, ".answer", max_bytes=16 * 4096)
    for turn in range(300):
        number = (turn * 7 + seed * 13) % 40
        said = cache.get(key_of(number))
        if said not in (None, f"{number} " * number * 50):
            os._exit(1)
        cache.put(key_of(number), f"{number} " * number * 50)
    os._exit(0)


def test_several_processes_can_use_one_directory(tmp_path):
    """Each gets whole texts or none, whoever else writes and removes them."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=hammer, args=(tmp_path, seed)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_what_is_older_than_asked_is_a_miss_and_goes(tmp_path):
    """Reading does not make it younger."""
    cache = FileCache(tmp_path, ".answer", max_bytes=LIMIT, max_age=60)
    for number in range(2):
        cache.put(key_of(number), TEXT)
    old = tmp_path / f"{key_of(0)}.answer"
    os.utime(old, (time.time() - 50,) * 2)
    assert cache.get(key_of(0)) == TEXT
    assert old.stat().st_mtime < time.time() - 40
    os.utime(old, (time.time() - 61,) * 2)
    assert cache.get(key_of(0)) is None
    FileCache(tmp_path, ".answer", max_bytes=LIMIT, max_age=60).put(key_of(2), TEXT)
    assert not old.exists()
    assert cache.get(key_of(1)) == TEXT
