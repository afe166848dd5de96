"""`replay.json` beside a report: read back as it was, or one clear error, or not there."""

from __future__ import annotations

import hashlib
import json
import math
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from truthgpt_core.errors import TruthGPTError
from truthgpt_services.report.files import write_report
from truthgpt_services.results import io
from truthgpt_services.results.record import NAME, Predictions, read_record, write_record

MADE = {"engine": "native", "kernel": "avx2", "distribution": "truthgpt-plugin-native 0.1.0"}
PREDICTIONS = {
    "vocabulary": 10,
    "ids": [4, 9, 4],
    "logprobs": [-0.5, -2.25],
    "top_ids": [[9, 0], [1, 4]],
    "top_logprobs": [[-0.5, -1.25], [-0.125, -2.25]],
}
DEEP = "[" * 200_000


@pytest.fixture
def directory(tmp_path, samples):
    """A directory with a report and a record."""
    replay = write_record(tmp_path, Predictions(**PREDICTIONS), **MADE)
    write_report(samples.report().model_copy(update={"replay": replay}), tmp_path)
    return tmp_path


def change_report(directory, **changes):
    path = directory / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def sealed(directory, content):
    """Write a record with the checksum that it should have."""
    content = content if isinstance(content, bytes) else content.encode()
    (directory / NAME).write_bytes(content)
    replay = json.loads((directory / "report.json").read_text())["replay"]
    change_report(directory, replay=replay | {"sha256": hashlib.sha256(content).hexdigest()})


def refusal(directory) -> str:
    """The one line that is said of a record."""
    with pytest.raises(TruthGPTError) as caught:
        read_record(directory)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def test_a_record_reads_back_as_it_was(directory, samples):
    """With what made it, and the standard error of the model that was saved."""
    found = read_record(directory)
    assert found.predictions == Predictions(**PREDICTIONS)
    assert found.made.model_dump(exclude={"sha256"}) == MADE | {"tokens": 3}
    report = samples.report()
    saved = report.variant(report.result.variant).measured.quality
    assert found.kl_error == saved.kl_mean_error > 0


def test_a_standard_error_that_is_unknown_allows_nothing(directory):
    """Of a text with a single block it is NaN."""
    variants = json.loads((directory / "report.json").read_text())["variants"]
    for variant in variants:
        variant["measured"]["quality"]["kl_mean_error"] = "NaN"
    change_report(directory, variants=variants)
    assert read_record(directory).kl_error == 0.0


def test_a_model_without_a_report_was_not_measured(tmp_path, samples):
    """Nor one whose report is of before there were records; a file is no directory."""
    assert read_record(tmp_path) is None
    assert read_record(tmp_path / "nowhere") is None
    (tmp_path / "model.gguf").touch()
    assert read_record(tmp_path / "model.gguf") is None
    write_report(samples.report(), tmp_path)
    assert read_record(tmp_path) is None


def test_a_record_is_written_whole(directory, monkeypatch):
    """On a full disk the earlier one is still there."""
    before = (directory / NAME).read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(io.os, "fsync", full)
    with pytest.raises(TruthGPTError, match="No space left on device"):
        write_record(directory, Predictions(**PREDICTIONS | {"ids": [1, 2, 3]}), **MADE)
    assert (directory / NAME).read_bytes() == before


def test_a_record_that_is_gone_is_missed(directory):
    """The report says that there was one."""
    (directory / NAME).unlink()
    assert "There is no" in refusal(directory)


def test_a_record_with_a_flipped_bit_is_damaged(directory):
    """Else it would seem to be the model that is wrong."""
    path = directory / NAME
    path.write_text(path.read_text().replace("-2.25", "-2.24"))
    assert "its checksum is not the report's" in refusal(directory)


def test_a_report_without_its_result_is_damaged(directory):
    """Nobody knows then how much another engine may differ."""
    change_report(directory, variants=[])
    assert "it has no variant that is the result" in refusal(directory)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ids": [4, 10, 4]}, "ids has the token 10, of 10"),
        ({"ids": [4, -1, 4]}, "ids.1: "),
        ({"ids": [4, 1.5, 4]}, "ids.1: "),
        ({"ids": [4, True, 4]}, "ids.1: "),
        ({"ids": ["4", 9, 4]}, "ids.0: "),
        ({"ids": [4]}, "ids: "),
        ({"ids": [1] * 5000}, "ids: "),
        ({"ids": [4, 9]}, "logprobs has 2 entries for 1 predicted tokens"),
        ({"ids": [4, 10**400, 4], "vocabulary": 10**401}, "vocabulary: "),
        ({"vocabulary": 0}, "vocabulary: "),
        ({"logprobs": [-0.5, 0.5]}, "logprobs.1: "),
        ({"logprobs": [-0.5, math.nan]}, "logprobs.1: "),
        ({"logprobs": [-0.5, -math.inf]}, "logprobs.1: "),
        ({"logprobs": [-0.5, None]}, "logprobs.1: "),
        ({"top_ids": [[9, 0]]}, "top_ids has 1 entries"),
        ({"top_ids": [[9, 0], [1]]}, "top_ids.1 has not 2 different tokens"),
        ({"top_ids": [[9, 9], [1, 4]]}, "top_ids.0 has not 2 different tokens"),
        ({"top_ids": [[9, 0], [1, 10]]}, "top_ids.1 has the token 10, of 10"),
        ({"top_ids": [[], []], "top_logprobs": [[], []]}, "top_ids.0: "),
        ({"top_ids": [list(range(300))] * 2}, "top_ids.0: "),
        ({"top_logprobs": [[-0.5], [-0.125, -2.25]]}, "top_ids.0 has not 2 different tokens"),
        ({"top_logprobs": [[0.0, -0.1], [-0.1, -2.0]]}, "top_logprobs.0 add up to more than 1"),
        ({"top_logprobs": {"0": 1}}, "top_logprobs: "),
        ({"more": 1}, "more: "),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_record_that_misleads_is_refused(directory, change, said):
    """An attacker can make its checksum, too; what is wrong is named."""
    sealed(directory, json.dumps(PREDICTIONS | change))
    line = refusal(directory)
    assert f"{NAME} is damaged: " in line
    assert said in line


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff", DEEP.encode(), b"{}"], ids=repr)
def test_a_record_that_is_something_else_is_refused(directory, content):
    """Deep JSON, other values, and bytes that are no text."""
    sealed(directory, content)
    assert f"{NAME} is damaged: " in refusal(directory)


def test_a_record_that_is_huge_is_not_read(directory):
    """A server's start does not depend on how much somebody wrote."""
    with (directory / NAME).open("wb") as file:
        file.truncate(1 << 40)
    assert "bytes" in refusal(directory)


def test_a_record_that_is_a_pipe_is_not_waited_for(directory):
    """A server's start does not wait for a writer."""
    (directory / NAME).unlink()
    os.mkfifo(directory / NAME)
    assert "it is a named pipe, not a regular file" in refusal(directory)


@given(
    st.dictionaries(
        st.sampled_from([*PREDICTIONS, "other"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
            max_leaves=6,
        ),
    )
)
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_record_breaks_its_reader(directory, changes):
    """Whatever stands in it: a record that can be replayed, or one line."""
    sealed(directory, json.dumps(PREDICTIONS | changes))
    try:
        Predictions(**PREDICTIONS | changes)
    except ValidationError:
        assert f"{NAME} is damaged: " in refusal(directory)
    else:
        assert read_record(directory) is not None
