"""Files that are none, and files made to mislead: one line in no time, in every place of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truthgpt_core.errors import TruthGPTError
from truthgpt_services.data import DataError
from truthgpt_services.data.sources.file_sources import ChatLines, CsvFiles, JsonLines, TextFiles
from truthgpt_services.data.token_arrays import read_arrays, write_arrays
from truthgpt_services.errors import ModelError, OutputError
from truthgpt_services.measuring.text import evaluation_text
from truthgpt_services.results.io import ReportError, read_report
from truthgpt_services.storage.atomic import StagedDirectory
from truthgpt_services.training.checkpoint_files import Contents, read_checkpoint
from truthgpt_services.training.checkpoints import CheckpointStore
from truthgpt_services.training.errors import CheckpointError
from truthgpt_services.training.metrics_log import read_metrics

DEEP = "[" * 200_000


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A named pipe that nothing writes to."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def parquet_texts(path: str) -> list[str]:
    pytest.importorskip("pyarrow")
    from truthgpt_services.data.sources.library_sources import ParquetFiles

    return list(ParquetFiles(path).texts())


READERS: dict[str, tuple[Callable[[str], Any], type[TruthGPTError]]] = {
    "text": (lambda path: list(TextFiles(path).texts()), DataError),
    "jsonl": (lambda path: list(JsonLines(path).texts()), DataError),
    "chat": (lambda path: list(ChatLines(path).texts()), DataError),
    "csv": (lambda path: list(CsvFiles(path).texts()), DataError),
    "parquet": (parquet_texts, DataError),
    "--text": (lambda path: evaluation_text(Path(path)), ModelError),
    "compare": (read_report, ReportError),
    "metrics": (lambda path: read_metrics(Path(path)), TruthGPTError),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["a named pipe", "a device"])
def test_what_is_no_file_is_refused_where_files_are_read(pipe, name, kind) -> None:
    """The error names the file and what it is; nothing waits for a writer."""
    read, error = READERS[name]
    path = str(pipe) if kind == "a named pipe" else "/dev/zero"
    with pytest.raises(error) as caught:
        read(path)
    assert f"it is {kind}, not a regular file" in str(caught.value)
    assert path in str(caught.value)


@pytest.mark.parametrize("name", [name for name in READERS if name != "metrics"])
@pytest.mark.parametrize("path", ["~no-such-user/x", "x" * 5000, "a\0b"])
def test_what_is_no_path_is_one_short_line_where_files_are_read(name, path) -> None:
    """Home directories of nobody, and names longer than the system's longest."""
    with pytest.raises(TruthGPTError) as caught:
        READERS[name][0](path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("path", ["~no-such-user/x", "x" * 5000, "a\0b"])
def test_an_output_that_is_no_path_is_refused_at_once(path) -> None:
    """Before anything is measured, not after."""
    with pytest.raises(OutputError, match="cannot be an output") as caught:
        StagedDirectory(Path(path))
    assert len(str(caught.value)) < 500


def test_an_output_may_begin_with_a_tilde(tmp_path, monkeypatch) -> None:
    """In a YAML file no shell replaces it, and it means the same."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert StagedDirectory(Path("~/out")).target == tmp_path / "out"


# Checkpoints


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint as a run writes it."""
    store = CheckpointStore(tmp_path / "checkpoints", background=False)
    weight = torch.ones(2)
    path = store.save(Contents(3, {"step": 3}, {"weight": weight}, {"mean": weight + 1}, 1.0))
    store.close()
    return path


def sealed(path: Path, manifest: Any) -> None:
    """Write a manifest with the checksum that it should have."""
    text = json.dumps(manifest, sort_keys=True)
    manifest = {**manifest, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))


def refusal(path: Path) -> str:
    """What is said of a checkpoint, by those who read it and by those who look for one."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    found = CheckpointStore(path.parent).newest()
    assert found.path is None
    assert [each.path for each in found.skipped] == [path]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"files": None},
        {"files": []},
        {"files": {}},
        {"files": {"model.safetensors": {}}},
        {"files": {"../../secret": {"bytes": 1, "sha256": ""}}},
        {"step": "3"},
        {"step": -1},
        {"step": True},
        {"metric": "low"},
        {"format": None},
        {"format": [1]},
    ],
    ids=str,
)
def test_a_manifest_with_a_right_checksum_and_wrong_content_is_refused(checkpoint, change) -> None:
    """Whoever makes one can make its checksum too; it is passed over, and named."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["sha256"]
    sealed(checkpoint, {**manifest, **change})
    (key,) = change
    assert key in refusal(checkpoint)


def test_a_manifest_without_files_is_refused(checkpoint) -> None:
    """A key that is missing is as wrong as one that is damaged."""
    sealed(checkpoint, {"format": 1, "step": 3, "metric": None})
    assert '"files" is missing or wrong' in refusal(checkpoint)


@pytest.mark.parametrize("text", [DEEP, "[]", "null", "3", '{"sha256": 1}', "\udc80"], ids=repr)
def test_a_manifest_that_is_something_else_is_damaged(checkpoint, text) -> None:
    """Deep JSON, other values, and bytes that are no text."""
    (checkpoint / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "manifest.json is damaged" in refusal(checkpoint)


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "model.safetensors"])
def test_a_pipe_in_a_checkpoint_is_refused(checkpoint, name) -> None:
    """Looking for the newest checkpoint does not wait for ever."""
    size = (checkpoint / name).stat().st_size
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    assert size
    assert name in refusal(checkpoint)


def test_a_state_that_is_deep_is_refused(checkpoint) -> None:
    """Its checksum may be right, and Python's recursion has an end all the same."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["sha256"]
    (checkpoint / "state.json").write_text(DEEP)
    digest = hashlib.sha256(DEEP.encode()).hexdigest()
    manifest["files"]["state.json"] = {"bytes": len(DEEP), "sha256": digest}
    sealed(checkpoint, manifest)
    with pytest.raises(CheckpointError, match="RecursionError"):
        read_checkpoint(checkpoint)


def test_a_lock_that_is_a_pipe_is_refused(tmp_path) -> None:
    """A run does not wait for somebody to read its lock."""
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(CheckpointError, match="it is not a regular file"):
        CheckpointStore(tmp_path).open()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=8,
    )
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_manifest_breaks_the_search(checkpoint, content) -> None:
    """Whatever JSON stands in it, with the right checksum or none."""
    if isinstance(content, dict):
        sealed(checkpoint, content)
    else:
        (checkpoint / "manifest.json").write_text(json.dumps(content))
    refusal(checkpoint)


# The cache of tokens


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """A directory of the cache of tokens."""

    def fill(sink: Any) -> tuple[str, dict[str, Any]]:
        sink.append("ids", np.arange(10, dtype=np.uint16))
        return "made", {}

    written = write_arrays(tmp_path / "tokens", fill)
    assert written.place is not None
    return written.place


def manifest_of(directory: Path, content: Any) -> None:
    """Write the manifest of a directory of arrays, with its checksum."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (directory / "truthgpt.json").write_text(json.dumps({**content, "sha256": digest}))


@pytest.mark.parametrize("name", ["truthgpt.json", "ids.bin"])
def test_a_pipe_in_the_cache_of_tokens_is_a_miss(arrays, name) -> None:
    """The tokens are made again, and nobody waits."""
    (arrays / name).unlink()
    os.mkfifo(arrays / name)
    assert read_arrays(arrays) is None
    assert not arrays.exists()


def test_a_manifest_of_tokens_with_a_right_checksum_is_taken(arrays) -> None:
    """So that the ones below are refused for what is in them."""
    manifest = json.loads((arrays / "truthgpt.json").read_text())
    del manifest["sha256"]
    manifest_of(arrays, manifest)
    assert read_arrays(arrays) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"arrays": {"ids": "|O"}},
        {"arrays": {"../../outside": "<u2"}},
        {"arrays": {"ids": None, "other": 3}},
        {"arrays": {"ids": "<i8,<i8"}},
        {"arrays": []},
        {"files": {"ids.bin": {"bytes": "20", "crc32": 0}}},
        {"files": {"ids.bin": {"bytes": 20, "md5": 0}}},
        {"files": {"../outside.bin": {"bytes": 0, "crc32": 0}}},
        {"files": {"ids.bin": None}},
        {"files": []},
    ],
    ids=str,
)
def test_a_layout_that_misleads_is_a_miss(arrays, change) -> None:
    """Arrays of objects are pointers, and names with slashes lead elsewhere."""
    manifest = json.loads((arrays / "truthgpt.json").read_text())
    del manifest["sha256"]
    manifest_of(arrays, manifest | change)
    assert read_arrays(arrays) is None


def test_a_deep_manifest_of_tokens_is_a_miss(arrays) -> None:
    """A damaged cache is never an exception."""
    (arrays / "truthgpt.json").write_text(DEEP)
    assert read_arrays(arrays) is None


# Metrics


def test_lines_of_metrics_that_are_none_are_passed_over(tmp_path) -> None:
    """A run that goes on does not stumble over what somebody wrote between its lines."""
    good = {"kind": "step", "step": 1}
    lines = [json.dumps(good), DEEP, '{"kind": "step", "step": "x"}', '{"step": 2}', "[]"]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert read_metrics(tmp_path / "metrics.jsonl") == [good]
