"""Output directories are whole or not there, whatever happens in between."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import pytest
from safetensors import SafetensorError

from truthgpt_services.errors import OutputError
from truthgpt_services.storage.atomic import (
    MARKER,
    StagedDirectory,
    explain_write_error,
    staging,
)

pytestmark = pytest.mark.slow


def write(target, text="new", *, overwrite=False):
    with StagedDirectory(target, overwrite=overwrite) as staged:
        (staged.path / "file").write_text(text)
        (staged.path / MARKER).write_text("{}")
        staged.commit()


def fail_while_writing(target, *, overwrite=False):
    with StagedDirectory(target, overwrite=overwrite) as staged:
        (staged.path / "file").write_text("half")
        raise RuntimeError


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_what_was_written_appears_with_commit_and_not_before(tmp_path):
    """Nobody ever sees half of it under its name."""
    target = tmp_path / "deep" / "er" / "out"
    with StagedDirectory(target) as staged:
        (staged.path / MARKER).write_text("{}")
        assert not target.exists()
        staged.commit()
        assert names(target) == [MARKER]
    assert names(target.parent) == ["out"]


def test_without_commit_nothing_is_left(tmp_path):
    """An error on the way leaves neither the target nor a hidden directory."""
    with pytest.raises(RuntimeError):
        fail_while_writing(tmp_path / "out")
    assert names(tmp_path) == []


def test_what_has_no_marker_is_not_complete(tmp_path):
    """A directory that could not be told from a stranger's never appears."""
    with (
        pytest.raises(OutputError, match="it is not complete"),
        StagedDirectory(tmp_path / "out") as staged,
    ):
        staged.commit()
    assert names(tmp_path) == []


def test_an_empty_directory_may_be_filled(tmp_path):
    """The user who made the directory first gets no error."""
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert names(tmp_path / "out") == ["file", MARKER]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_stranger_s_directory_is_never_replaced(tmp_path, overwrite):
    """--overwrite given to the wrong directory destroys nothing."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="nothing in it says that TruthGPT wrote it"):
        StagedDirectory(tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_our_own_directory_is_replaced_only_if_asked(tmp_path):
    """Without --overwrite an earlier result is kept, and the option is named."""
    write(tmp_path / "out", "old")
    with pytest.raises(OutputError, match="Use --overwrite"):
        StagedDirectory(tmp_path / "out")
    assert (tmp_path / "out" / "file").read_text() == "old"


def test_replacing_leaves_only_the_new(tmp_path):
    """Files of the earlier result that the new one lacks are gone."""
    write(tmp_path / "out", "old")
    (tmp_path / "out" / "left over").touch()
    write(tmp_path / "out", "new", overwrite=True)
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["file", MARKER]
    assert (tmp_path / "out" / "file").read_text() == "new"


def test_a_failed_replacement_keeps_the_old(tmp_path):
    """Until the new one is complete, the earlier result stays as it was."""
    write(tmp_path / "out", "old")
    with pytest.raises(RuntimeError):
        fail_while_writing(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "file").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_stranger_s_files_that_appear_meanwhile_are_kept(tmp_path):
    """An hour passes between the first check and the end; the check is made again."""
    with StagedDirectory(tmp_path / "out", overwrite=True) as staged:
        (staged.path / MARKER).write_text("{}")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").touch()
        with pytest.raises(OutputError, match="is not empty"):
            staged.commit()
    assert names(tmp_path / "out") == ["thesis.tex"]


def test_without_an_atomic_swap_it_is_replaced_in_two_steps(tmp_path, monkeypatch):
    """A system that cannot swap two directories at once replaces them all the same."""
    monkeypatch.setattr(sys, "platform", "plan9")
    write(tmp_path / "out", "old")
    write(tmp_path / "out", "new", overwrite=True)
    assert (tmp_path / "out" / "file").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_a_replacement_killed_half_way_gives_the_old_back(tmp_path):
    """If a run died after moving the old directory aside, the next run puts it back."""
    old = tmp_path / f".out.replaced-{TOKEN}"
    old.mkdir()
    (old / MARKER).write_text("{}")
    target = tmp_path / "out"
    with StagedDirectory(target, overwrite=True):
        pass
    assert (target / MARKER).read_text() == "{}"
    assert not old.exists()


@pytest.mark.parametrize("kind", ["file", "link to a directory", "link to nothing"])
def test_a_file_or_a_link_is_not_replaced(tmp_path, kind):
    """Not even a link to a directory of ours: what it leads to would not be what it was."""
    target = tmp_path / "out"
    if kind == "file":
        target.touch()
    elif kind == "link to nothing":
        target.symlink_to(tmp_path / "nowhere")
    else:
        write(tmp_path / "real")
        target.symlink_to(tmp_path / "real")
    with pytest.raises(OutputError, match="exists and is not a directory"):
        StagedDirectory(target, overwrite=True)


def test_a_parent_that_is_a_file_is_said_so(tmp_path):
    """A wrong path costs one line at the start and not an hour of work."""
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match=r"Cannot write beside .*Name another --output"),
        StagedDirectory(tmp_path / "file" / "out"),
    ):
        pass


TOKEN = "0123456789abcdef"
CHILD = """
import sys, time
from pathlib import Path
from truthgpt_services.storage.atomic import StagedDirectory
with StagedDirectory(Path(sys.argv[1]), overwrite=True) as staged:
    (staged.path / "file").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writing(tmp_path):
    """A process that is in the middle of writing `out`."""
    command = [sys.executable, "-c", CHILD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def test_a_killed_run_leaves_no_target_and_the_next_run_cleans_up(tmp_path, writing):
    """A kill -9 cannot be caught: what it leaves has another name and goes next time."""
    os.kill(writing.pid, signal.SIGKILL)
    writing.wait()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.partial-")
    write(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_a_running_process_s_directory_is_left_alone(tmp_path, writing):
    """Two runs with one target do not pull the floor from under each other."""
    (unfinished,) = tmp_path.iterdir()
    write(tmp_path / "out")
    assert names(tmp_path) == [unfinished.name, "out"]
    assert names(unfinished) == ["file"]


def test_a_running_process_s_replacement_is_left_alone(tmp_path):
    """Where directories are swapped in two steps, nobody takes the first for a crash."""
    write(tmp_path / "out", "old")
    rename, others = Path.rename, []

    def renaming(path, target):
        done = rename(path, target)
        if "replaced" in Path(target).name:
            with staging(tmp_path / "out"):
                others.append(names(tmp_path))
        return done

    with (
        patch.object(sys, "platform", "plan9"),
        patch.object(Path, "rename", renaming),
    ):
        write(tmp_path / "out", "new", overwrite=True)
    assert len(others) == 1
    assert "out" not in others[0]
    assert (tmp_path / "out" / "file").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_threads_of_one_process_may_write_the_same_target(tmp_path):
    """Each has a directory of its own, and what the last one commits is whole."""

    def work(number):
        write(tmp_path / "out", f"{number}", overwrite=True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(40)))
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["file", MARKER]


def test_only_what_is_left_of_this_target_is_cleaned_up(tmp_path):
    """Hidden directories of other targets, and of other programs, are not ours to remove."""
    kept = [f".other.partial-{TOKEN}", f".outXpartial-{TOKEN}", ".out.partial-x"]
    for name in [*kept, *(f".out.{kind}-{TOKEN}" for kind in ("partial", "replaced", "removed"))]:
        (tmp_path / name).mkdir()
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert names(tmp_path) == sorted([*kept, "out"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "x"), "The disk is full"),
        (OSError(errno.EDQUOT, "x"), "The disk is full"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "The disk is full"),
        (OSError(errno.EFBIG, "x"), "larger than this system allows"),
        (SafetensorError("I/O error: File too large (os error 27)"), "larger than this system"),
        (OSError(errno.EACCES, "x"), None),
        (ValueError("x"), None),
    ],
)
def test_a_full_disk_is_recognized_however_it_is_reported(tmp_path, error, said):
    """Libraries in Rust report a full disk as text; both ways end as the same sentence."""
    explained = explain_write_error(error, tmp_path)
    assert (said in str(explained)) if said else (explained is None)


SAVE = """
import resource, sys
from pathlib import Path
from truthgpt_core.errors import TruthGPTError
from truthgpt_services import ModelService
from truthgpt_services.storage.atomic import StagedDirectory
source, target = sys.argv[1], Path(sys.argv[2])
service = ModelService()
model, tokenizer = service.load_model(source), service.load_tokenizer(source)
sys.dont_write_bytecode = True  # or half a module's would be left
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    with StagedDirectory(target) as staged:
        service.save_model(model, tokenizer, staged.path, source=source, steps=[])
        staged.commit()
except TruthGPTError as error:
    print(type(error).__name__, error)
"""


def test_saving_beyond_a_limit_is_one_error_and_leaves_nothing(tmp_path, tiny):
    """A real limit on the size of files; a real full disk is in the tests of the pipeline."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", SAVE, str(tiny), str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("OutputError A file of")
    assert len(done.stdout.splitlines()) == 1
    assert names(tmp_path) == []
