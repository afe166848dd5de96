"""A checkpoint is whole or not there, and the newest whole one is found."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from truthgpt_services.training.checkpoint_files import Contents, in_use, read_checkpoint
from truthgpt_services.training.checkpoints import CheckpointStore
from truthgpt_services.training.errors import CheckpointError

pytestmark = pytest.mark.slow

FILES = ("model.safetensors", "training.safetensors", "state.json", "manifest.json")


def contents(step: int, metric: float | None = None, value: float | None = None) -> Contents:
    weight = torch.full((4, 5), float(step) if value is None else value)
    return Contents(step, {"step": step}, {"weight": weight}, {"mean": torch.ones(3)}, metric)


@pytest.fixture
def store(tmp_path):
    """A store that writes at once and keeps all."""
    made = CheckpointStore(tmp_path / "checkpoints", keep_last=100, background=False)
    yield made
    made.close()


def steps(store: CheckpointStore) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in store.all())


def test_a_checkpoint_is_read_as_it_was_written(store) -> None:
    """Weights, other tensors, values and the metric come back."""
    path = store.save(contents(7, metric=1.5))
    found = read_checkpoint(path)
    assert (found.step, found.metric, found.state) == (7, 1.5, {"step": 7})
    assert torch.equal(found.model["weight"], torch.full((4, 5), 7.0))
    assert torch.equal(found.training["mean"], torch.ones(3))


def test_there_is_no_pickle_in_a_checkpoint(store) -> None:
    """It is safetensors and JSON, and the manifest names every other file."""
    path = store.save(contents(1))
    assert {each.name for each in path.iterdir()} == set(FILES)
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest["files"]) == set(FILES) - {"manifest.json"}


@pytest.mark.fault("a file that is damaged or of another format")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_passed_over_by_name(store, name, how) -> None:
    """A truncated, bit-flipped or missing file is named, and the next older checkpoint found."""
    older, newest = store.save(contents(1)), store.save(contents(2))
    file = newest / name
    data = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(data[:-1])
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    found = store.newest()
    assert found.path == older
    (skipped,) = found.skipped
    assert skipped.path == newest
    assert name in skipped.reason
    with pytest.raises(CheckpointError, match=re.escape(name)):
        read_checkpoint(newest)


@pytest.mark.fault("a kill at any moment")
def test_what_is_half_written_is_not_seen_and_goes_away(store) -> None:
    """What a killed run left is no checkpoint, and the next run removes it."""
    path = store.save(contents(1))
    left = path.with_name(".step-00000002.partial-0123456789abcdef")
    shutil.copytree(path, left)
    assert store.newest().path == path
    store.close()
    store.open()
    assert not left.exists()


@pytest.mark.fault("a disk that is full or read-only")
def test_a_full_disk_leaves_the_older_ones_and_one_error(
    store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be written to its end is an error of ours, and nothing of it is left."""
    path = store.save(contents(1))
    big = contents(2)
    big.model["weight"] = torch.zeros(100_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Or half of a module's would be left.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match="step-00000002") as caught:
            store.save(big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert [each.name for each in store.directory.iterdir() if each.is_dir()] == [path.name]
    assert store.newest().path == path


@pytest.mark.fault("a disk that is full or read-only")
def test_the_disk_is_full(small_disk) -> None:
    """On a disk without room the older checkpoint stays, and the error says what is the matter."""
    store = CheckpointStore(small_disk(400) / "checkpoints", background=False)
    path = store.save(contents(1))
    big = contents(2)
    big.model["weight"] = torch.zeros(200_000)
    with pytest.raises(CheckpointError, match="disk is full"):
        store.save(big)
    assert store.newest().path == path
    store.close()


def test_the_last_and_the_best_are_kept(tmp_path) -> None:
    """Of many, the newest ones and those with the lowest loss are there in the end."""
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=2, background=False)
    for step, metric in enumerate((5.0, 1.0, 4.0, 2.0, 3.0, None, None), start=1):
        store.save(contents(step, metric))
    assert steps(store) == [2, 4, 6, 7]
    store.close()


@pytest.mark.fault("several processes at once")
def test_one_that_is_read_is_not_removed(tmp_path) -> None:
    """A checkpoint that somebody reads stays until the next time."""
    store = CheckpointStore(tmp_path, keep_last=1, keep_best=0, background=False)
    with in_use(store.save(contents(1))):
        store.save(contents(2))
        assert steps(store) == [1, 2]
    store.save(contents(3))
    assert steps(store) == [3]
    store.close()


@pytest.mark.fault("a file that is damaged or of another format")
def test_a_damaged_one_does_not_count_as_kept(tmp_path) -> None:
    """Damage to the newest does not cost the one before, which is the newest whole one."""
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=0, background=False)
    store.save(contents(1))
    damaged = store.save(contents(2))
    (damaged / "manifest.json").write_text("{}")
    store.save(contents(3))
    assert steps(store) == [1, 2, 3]
    store.close()


def test_saving_in_the_background_saves_what_there_was(tmp_path) -> None:
    """What training changes while a checkpoint is written is not in it."""
    store = CheckpointStore(tmp_path)
    kept = contents(1)
    path = store.save(kept)
    kept.model["weight"].fill_(-1.0)
    assert store.wait() == path
    assert torch.equal(read_checkpoint(path).model["weight"], torch.ones(4, 5))
    store.close()


@pytest.mark.fault("a disk that is full or read-only")
def test_an_error_in_the_background_is_raised_when_it_is_asked_for(tmp_path) -> None:
    """What the thread could not write is an error of the next call, once."""
    store = CheckpointStore(tmp_path / "checkpoints")
    store.open()
    shutil.rmtree(store.directory)
    store.directory.write_text("in the way")
    store.save(contents(1))
    with pytest.raises(CheckpointError, match="step-00000001"):
        store.close()
    assert store.close() is None
    assert not [each for each in threading.enumerate() if each.name.startswith("checkpoint")]


TAKE = """
import sys, time
from pathlib import Path
from truthgpt_services.training.checkpoints import CheckpointStore
store = CheckpointStore(Path(sys.argv[1]))
store.open()
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.fault("several processes at once")
def test_two_runs_cannot_write_into_one_directory(tmp_path) -> None:
    """The second one is told, and once the first is gone it may."""
    other = subprocess.Popen(
        [sys.executable, "-c", TAKE, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    store = CheckpointStore(tmp_path)
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(CheckpointError, match="Another run"):
            store.open()
    store.open()
    store.close()


SAVE = """
import sys, torch
from pathlib import Path
from truthgpt_services.training.checkpoint_files import Contents, write_checkpoint
write_checkpoint(Path(sys.argv[1]), Contents(1, {}, {"w": torch.ones(3)}, {}))
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace here")
def test_all_is_on_the_disk_before_it_has_its_name(tmp_path) -> None:
    """The calls of the system: each file is flushed, the directory, and then comes the rename."""
    trace = tmp_path / "trace"
    calls = "trace=fsync,rename,renameat,renameat2"
    done = subprocess.run(
        [
            *("strace", "-f", "-y", "-e", calls, "-o", str(trace)),
            *(sys.executable, "-c", SAVE, str(tmp_path / "out" / "step-00000001")),
        ],
        capture_output=True,
        text=True,
    )
    if "ptrace" in done.stderr and done.returncode != 0:
        pytest.skip("this system does not let strace trace")
    assert done.returncode == 0, done.stderr
    order = []
    for line in trace.read_text().splitlines():
        if str(tmp_path / "out") not in line:
            continue
        if call := re.search(r"fsync\(\d+<(.*?)>\)\s+= 0", line):
            order.append(Path(call[1]).name)
        elif '/out/step-00000001"' in line:
            order.append("rename")
    hidden = order[4] if len(order) > 4 else ""
    assert hidden.startswith(".step-00000001.partial-")
    assert sorted(order[:4]) == sorted(FILES)
    assert order[4:] == [hidden, "rename", "out"]
