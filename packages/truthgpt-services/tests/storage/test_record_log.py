"""Records that are appended as they come: what a killed process leaves, and the file at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truthgpt_services.errors import OutputError
from truthgpt_services.storage.record_log import RecordLog, log_path

WORK = {"prompts": [4, "abc"], "options": {"temperature": 0.5}}
ORDER = (2, 0, 3, 1)


def record(index: int) -> dict[str, Any]:
    return {"index": index, "text": f"é{index}\n"}


def finish(target: Path) -> list[int]:
    """Append what is left and publish; return what was there."""
    with RecordLog(target, WORK, len(ORDER)) as log:
        kept = [index for index in range(len(ORDER)) if log.is_done(index)]
        for index in ORDER:
            if index not in kept:
                log.append(record(index))
        log.publish()
    assert not log.path.exists()
    return kept


def content(target: Path) -> list[Any]:
    return [json.loads(line) for line in target.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a process that was killed after its last record."""
    target = tmp_path_factory.mktemp("whole") / "out.jsonl"
    with RecordLog(target, WORK, len(ORDER)) as log:
        for index in ORDER:
            log.append(record(index))
    return log.path.read_bytes()


def test_records_are_in_order_in_the_end(tmp_path: Path) -> None:
    """Whatever the order in which they came, and nothing else is left."""
    target = tmp_path / "out.jsonl"
    assert finish(target) == []
    assert content(target) == [record(index) for index in range(4)]
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_cut_at_any_byte_keeps_its_whole_lines(tmp_path: Path, whole: bytes) -> None:
    """A half-written line is cut off, its record made again, and none is there twice."""
    for size in range(len(whole) + 1):
        target = tmp_path / f"{size}.jsonl"
        log_path(target).write_bytes(whole[:size])
        lines = whole[:size].count(b"\n")
        assert finish(target) == sorted(ORDER[: max(0, lines - 1)])
        assert content(target) == [record(index) for index in range(4)]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10_000), damage=st.binary(min_size=1, max_size=40))
def test_a_damaged_file_is_refused_or_made_whole(
    tmp_path: Path, whole: bytes, place: int, damage: bytes
) -> None:
    """Never an error of another kind, and never a file that lacks a record."""
    target = tmp_path / "out.jsonl"
    target.unlink(missing_ok=True)
    place %= len(whole)
    log_path(target).write_bytes(whole[:place] + damage + whole[place + len(damage) :])
    try:
        finish(target)
    except OutputError:
        return
    assert [each["index"] for each in content(target)] == [0, 1, 2, 3]


def test_records_of_other_work_are_refused(tmp_path: Path, whole: bytes) -> None:
    """What differs is named, and the records stay."""
    target = tmp_path / "out.jsonl"
    log_path(target).write_bytes(whole)
    other = WORK | {"options": {"temperature": 0.6}}
    with pytest.raises(OutputError, match="differs in options"):
        RecordLog(target, other, 4).__enter__()
    assert log_path(target).read_bytes() == whole


@pytest.mark.parametrize("given", [b"notes of mine\n", b"no line break", b"[]\n", b"null\n"])
def test_a_file_of_someone_else_is_left_alone(tmp_path: Path, given: bytes) -> None:
    """One that has the name by chance."""
    target = tmp_path / "out.jsonl"
    log_path(target).write_bytes(given)
    with pytest.raises(OutputError, match="is something else"):
        RecordLog(target, WORK, 4).__enter__()
    assert log_path(target).read_bytes() == given


def test_a_failed_record_is_tried_again(tmp_path: Path) -> None:
    """After an interruption; it is in the file if the work comes to its end."""
    target = tmp_path / "out.jsonl"
    failed = {"index": 0, "error": "no luck"}
    for _ in range(2):
        with RecordLog(target, WORK, 1) as log:
            assert not log.is_done(0)
            log.append(failed)
    with RecordLog(target, WORK, 1) as log:
        log.append(failed)
        log.publish()
    assert content(target) == [failed]


def test_only_one_process_adds_records(tmp_path: Path) -> None:
    """The second one says why it does not."""
    target = tmp_path / "out.jsonl"
    with (
        RecordLog(target, WORK, 4),
        pytest.raises(OutputError, match="Another process is writing"),
    ):
        RecordLog(target, WORK, 4).__enter__()


def test_a_kill_between_the_last_two_steps_is_made_good(tmp_path: Path, whole: bytes) -> None:
    """The file has its name and the records so far are still there."""
    target = tmp_path / "out.jsonl"
    finish(target)
    log_path(target).write_bytes(whole)
    assert finish(target) == [0, 1, 2, 3]
    assert not log_path(target).exists()


def test_a_link_is_not_followed_when_the_file_appears(tmp_path: Path) -> None:
    """What it points to stays as it is."""
    other, target = tmp_path / "other", tmp_path / "out.jsonl"
    other.write_text("mine")
    (tmp_path / ".out.jsonl.ordered").symlink_to(other)
    finish(target)
    assert other.read_text() == "mine"


def test_a_full_disk_loses_nothing(small_disk: Any) -> None:
    """What was appended stays, the error says so, and it goes on when there is room."""
    place = small_disk(64)
    target, ballast = place / "out.jsonl", place / "ballast"
    ballast.write_bytes(bytes(48 * 1024))
    long = {"index": 1, "text": "x" * 30_000}
    with RecordLog(target, WORK, 2) as log:
        log.append(record(0))
        with pytest.raises(
            OutputError, match=r"The disk is full: .* Nothing that was done is lost"
        ):
            log.append(long)
    ballast.unlink()
    with RecordLog(target, WORK, 2) as log:
        assert (log.is_done(0), log.is_done(1)) == (True, False)
        log.append({"index": 1})
        log.publish()
    assert content(target) == [record(0), {"index": 1}]
    assert list(place.iterdir()) == [target]
