"""The text that quality is measured on."""

from __future__ import annotations

import hashlib

import pytest

from truthgpt_services.errors import ModelError
from truthgpt_services.measuring.text import evaluation_text


def test_every_python_has_a_text():
    """Without a network and without a file there is real English to measure on."""
    text = evaluation_text(None)
    assert text.name == "pydoc_data.topics"
    assert len(text.text) > 100_000
    assert evaluation_text(None).sha256 == text.sha256


def test_a_person_s_own_text_is_named_and_checkable(tmp_path):
    """The report's hash is that of the file, as `sha256sum` prints it."""
    file = tmp_path / "own.txt"
    file.write_bytes("Größe 漢\n".encode())
    text = evaluation_text(file)
    assert text.name == str(file)
    assert text.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe\x00"])
def test_a_text_that_is_none_is_refused(tmp_path, content):
    """Missing, empty, or not UTF-8: one line that names the file."""
    file = tmp_path / "own.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ModelError, match=r"own\.txt (is empty|is not UTF-8|cannot be read)"):
        evaluation_text(file)
