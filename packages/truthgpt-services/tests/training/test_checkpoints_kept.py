"""Which checkpoints are kept when some are damaged, read by others, or cannot be written."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truthgpt_services.training.checkpoint_files import (
    Contents,
    in_use,
    read_checkpoint,
    write_checkpoint,
)
from truthgpt_services.training.checkpoints import CheckpointStore
from truthgpt_services.training.errors import CheckpointError

FILES = ("model.safetensors", "training.safetensors", "state.json", "manifest.json")
FLIPS = 200


def contents(step: int, metric: float | None = None) -> Contents:
    weight = torch.full((4, 5), float(step))
    return Contents(step, {"step": step}, {"weight": weight}, {"mean": torch.ones(3)}, metric)


def store_in(directory: Path, **options) -> CheckpointStore:
    return CheckpointStore(
        directory, background=False, **{"keep_last": 2, "keep_best": 0} | options
    )


def steps(store: CheckpointStore) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in store.all())


def damage(path: Path, name: str = "model.safetensors") -> None:
    data = bytearray((path / name).read_bytes())
    data[-1] ^= 16
    (path / name).write_bytes(data)


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """Three whole checkpoints."""
    directory = tmp_path_factory.mktemp("three")
    store = store_in(directory, keep_last=3)
    for step in (1, 2, 3):
        store.save(contents(step, metric=1.0 / step))
    store.close()
    return directory


@pytest.mark.fault("a file that is damaged or of another format", cases=FLIPS)
@settings(max_examples=FLIPS)
@given(name=st.sampled_from(FILES), place=st.floats(0, 1), bit=st.integers(0, 7))
def test_any_bit_that_is_flipped_is_found(three, name, place, bit) -> None:
    """Whichever bit of a file is wrong, the file is named and the checkpoint before found."""
    store = CheckpointStore(three)
    newest = store.path_of(3)
    file = newest / name
    whole = file.read_bytes()
    data = bytearray(whole)
    data[min(int(place * len(data)), len(data) - 1)] ^= 1 << bit
    file.write_bytes(data)
    try:
        found = store.newest()
    finally:
        file.write_bytes(whole)
    assert found.path == store.path_of(2)
    (skipped,) = found.skipped
    assert skipped.path == newest
    assert name in skipped.reason


@pytest.mark.fault("a file that is damaged or of another format")
def test_a_checkpoint_of_another_format_is_passed_over_by_name(tmp_path) -> None:
    """What a later version wrote is not read, not removed, and named with its format."""
    store = store_in(tmp_path, keep_last=1)
    older, later = store.save(contents(1)), tmp_path / "step-00000002"
    write_checkpoint(later, contents(2))
    manifest = json.loads((later / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["format"] = 9
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (later / "manifest.json").write_text(json.dumps({**manifest, "sha256": digest}))
    found = store.newest()
    assert found.path == older
    assert "has the format 9, and this version reads 1" in found.skipped[0].reason
    store.save(contents(3))
    assert steps(store) == [2, 3]
    store.close()


@pytest.mark.fault("a file that is damaged or of another format")
def test_damage_to_all_newer_ones_does_not_cost_the_one_that_was_gone_back_to(tmp_path) -> None:
    """A run that went back behind damaged checkpoints keeps what it saves there.

    The damage is in the weights; the manifests are sound.
    """
    store = store_in(tmp_path, keep_last=3)
    for step in (2, 5, 6):
        store.save(contents(step))
    store.close()
    for step in (5, 6):
        damage(store.path_of(step))
    again = store_in(tmp_path)
    assert again.newest().path == again.path_of(2)
    again.save(contents(3))
    again.close()
    assert again.newest().path == again.path_of(3)
    read_checkpoint(again.path_of(2))


@pytest.mark.fault("a file that is damaged or of another format")
@pytest.mark.parametrize("options", [{"keep_last": 2}, {"keep_last": 1, "keep_best": 1}])
def test_a_damaged_one_is_not_kept_in_the_place_of_a_whole_one(tmp_path, options) -> None:
    """Of those kept, so many are whole, though the manifest of a damaged one looks right."""
    store = store_in(tmp_path, keep_last=3)
    for step, metric in ((1, 2.0), (2, 1.0)):
        store.save(contents(step, metric))
    store.close()
    damage(store.path_of(2))
    again = store_in(tmp_path, **options)
    again.save(contents(3))
    again.close()
    for step in (1, 3):
        read_checkpoint(again.path_of(step))


def test_older_ones_are_kept_no_longer_than_asked(tmp_path) -> None:
    """A run that goes on with a directory removes what the one before kept."""
    for first in (1, 3):
        store = store_in(tmp_path)
        for step in (first, first + 1):
            store.save(contents(step))
        store.close()
    assert steps(store) == [3, 4]


def forked(work) -> int:
    """Do something in a fork of this process; return its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


@pytest.mark.fault("several processes at once")
def test_one_that_another_process_reads_is_not_removed(tmp_path) -> None:
    """It stays as long as that process lives, and goes when it was killed."""
    store = store_in(tmp_path, keep_last=1)
    path = store.save(contents(1))
    ready, tell = os.pipe()

    def read() -> None:
        with in_use(path):
            os.write(tell, b".")
            signal.pause()

    child = forked(read)
    try:
        assert os.read(ready, 1) == b"."
        store.save(contents(2))
        read_checkpoint(path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    store.save(contents(3))
    assert steps(store) == [3]
    store.close()


@pytest.mark.fault("several processes at once")
def test_whoever_looks_while_checkpoints_come_and_go_finds_one(tmp_path) -> None:
    """A process that looks for the newest again and again is never told that one is damaged."""
    store = store_in(tmp_path, keep_last=1)
    store.save(contents(1))
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        # The lock of the store is the parent's; looking needs none.
        code = 0
        os.write(tell, b".")
        while not (tmp_path / "end").exists():
            found = CheckpointStore(tmp_path).newest()
            if found.path is None or found.skipped:
                code = 1
                break
        os._exit(code)
    assert os.read(ready, 1) == b"."
    for step in range(2, 80):
        store.save(contents(step))
    (tmp_path / "end").touch()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.close()


@pytest.fixture
def turn_read_only(tmp_path):
    """Turn the directory of the test read-only, files that are open in it left out."""

    def mount(*arguments: str) -> None:
        done = subprocess.run(["mount", *arguments, str(tmp_path)], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"a directory cannot be mounted here: {done.stderr.strip()}")

    def turn() -> None:
        mount("--bind", str(tmp_path))
        mounted.append(tmp_path)
        mount("-o", "remount,ro,bind")

    mounted: list[Path] = []
    yield turn
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.fault("a disk that is full or read-only")
@pytest.mark.parametrize("when", ["before the run", "amid the run"])
def test_a_directory_that_became_read_only_is_one_error(tmp_path, turn_read_only, when) -> None:
    """The error names the directory or the checkpoint, and those there are can be read."""
    store = store_in(tmp_path / "checkpoints")
    path = store.save(contents(1))
    if when == "before the run":
        store.close()
    turn_read_only()
    named = "checkpoints: Read-only" if when == "before the run" else "step-00000002 .*: Read-only"
    with pytest.raises(CheckpointError, match=named) as caught:
        store.save(contents(2))
    assert "\n" not in str(caught.value)
    assert store.newest().path == path
    read_checkpoint(path)
    store.close()
