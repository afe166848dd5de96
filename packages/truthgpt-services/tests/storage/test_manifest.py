"""A manifest knows every file beside it, and says which one is damaged."""

from __future__ import annotations

import hashlib
import json

import pytest

from truthgpt_services.errors import DamagedError
from truthgpt_services.storage.manifest import read_manifest, verify_files, write_manifest


@pytest.fixture(params=["sha256", "crc32"])
def manifest(tmp_path, request):
    """The manifest of a directory with two files."""
    (tmp_path / "a.bin").write_bytes(b"a" * 3_000_000)
    (tmp_path / "b.bin").write_bytes(b"")
    path = tmp_path / "manifest.json"
    write_manifest(path, {"format": 3, "about": ["ä", None, 0.1]}, checksum=request.param)
    return path


def test_facts_come_back_and_whole_files_are_whole(manifest):
    """With either kind of checksum, and beside files that came later."""
    (manifest.parent / "later").touch()
    found = read_manifest(manifest, 3)
    assert (found["format"], found["about"]) == (3, ["ä", None, 0.1])
    assert found["files"].keys() == {"a.bin", "b.bin"}
    verify_files(manifest.parent, found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file: file.write_bytes(b"a" * 2_999_999 + b"b"), "damaged: its checksum"),
        (lambda file: file.write_bytes(b"a"), "1 bytes instead of 3000000: it is truncated"),
        (lambda file: file.write_bytes(b"a" * 3_000_001), "3000001 bytes instead of 3000000"),
        (lambda file: file.unlink(), "cannot be read: No such file"),
    ],
)
def test_a_file_that_changed_is_named(manifest, change, said):
    """With what is wrong with it."""
    file = manifest.with_name("a.bin")
    change(file)
    with pytest.raises(DamagedError, match=said) as caught:
        verify_files(manifest.parent, read_manifest(manifest, 3))
    assert str(file) in str(caught.value)


def test_every_bit_of_a_manifest_that_flips_is_noticed(tmp_path):
    """Those that JSON does not mind are noticed too; only white space may change."""
    (tmp_path / "file").write_bytes(b"x")
    path = tmp_path / "manifest.json"
    write_manifest(path, {"format": 3})
    whole, read = path.read_bytes(), read_manifest(path, 3)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(DamagedError, match=r"manifest\.json is damaged"):
            assert read_manifest(path, 3) != read


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "has no manifest.json"),
        ("[" * 100_000, "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 3, "files": {}}', "is damaged"),
    ],
)
def test_what_is_no_manifest_is_refused(manifest, content, said):
    """A missing one by another name than a damaged one."""
    manifest.unlink() if content is None else manifest.write_text(content)
    with pytest.raises(DamagedError, match=said):
        read_manifest(manifest, 3)


def test_another_format_is_named(manifest):
    """What a later version wrote is not damaged."""
    with pytest.raises(DamagedError, match="has the format 3, and this version reads 4"):
        read_manifest(manifest, 4)


@pytest.mark.parametrize("name", ["../a.bin", "/etc/passwd", "..", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    """Whoever makes a manifest can make its checksum too."""
    (tmp_path / "a.bin").write_bytes(b"x")
    path = tmp_path / "manifest.json"
    write_manifest(path, {"format": 3})
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    manifest["files"] = {name: manifest["files"]["a.bin"]}
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**manifest, "sha256": digest}))
    with pytest.raises(DamagedError):
        verify_files(tmp_path, read_manifest(path, 3))
