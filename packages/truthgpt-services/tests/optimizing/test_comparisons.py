"""Finished comparisons on disk: whole or not there, and only those of the very same question."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truthgpt_services.inference.draft_model import DraftModelDecoding
from truthgpt_services.optimizing.candidates import RequestedStep
from truthgpt_services.optimizing.comparisons import (
    DAYS,
    Comparison,
    Comparisons,
    Turns,
    identity,
    sources,
)
from truthgpt_services.optimizing.reuse import step_depends_on
from truthgpt_services.results.schema import (
    Load,
    Measurements,
    Outcome,
    Quality,
    Ratio,
    Samples,
    Step,
    Variant,
)

STEP = {"name": "halve", "options": {"note": "auto"}, "distribution": "truthgpt-example 1.0"}
GIVEN = {"machine": {"cpu": "x"}, "versions": {"torch": "2.13"}, "request": {"rounds": 3}}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "comparisons"


@pytest.fixture
def store(folder):
    return Comparisons(GIVEN, folder)


def comparison(key, note="fine", perplexity=math.inf):
    ratio = Ratio(median=2.0, low=1.5, high=math.inf, launches=[2.0])
    samples = Samples(median=1.0, low=1.0, high=1.0, values=[1.0], launches=[1])
    quality = Quality(
        perplexity=perplexity,
        kl_mean=math.nan,
        kl_mean_error=0.0,
        kl_p999=0.0,
        top1_agreement=1.0,
        decode_kl_mean=0.0,
        decode_top1_agreement=1.0,
    )
    measured = Measurements(
        load_seconds=1.0,
        warmup_seconds=1.0,
        decode_tokens_per_second=samples,
        prefill_tokens_per_second=samples,
        first_token_seconds=samples,
        weights_bytes=1,
        saved_bytes=1,
        peak_memory_bytes=1,
        build_peak_memory_bytes=1,
        quality=quality,
        sample="\ud800 é",
    )
    return Comparison(
        key=key,
        created="2026-11-28T12:00:00+00:00",
        step=Step(
            name="halve",
            distribution="",
            options={"note": note},
            outcome=Outcome.ACCEPTED,
            reason="It decodes faster.",
            seconds=1.0,
            coverage=None,
            notes=[],
            variant="halve",
            against="baseline",
            decode_ratio=ratio,
            prefill_ratio=ratio,
        ),
        variant=Variant(
            name="halve",
            steps=["halve"],
            measured=measured,
            decode_ratio=ratio,
            prefill_ratio=ratio,
        ),
        baseline=quality,
        launches={"baseline": [Turns(prompts=[0.1, 1], slices=[0.2])]},
        peaks={"baseline": 1},
        notes={"multiplying": "Halves were multiplied."},
        weights="abc",
        load=Load(before=None, median=0.1, highest=0.2, cores=2),
    )


def test_what_was_finished_is_there_for_the_next_run(folder, store):
    """With all its figures, those included that JSON has no numbers for."""
    key = store.key([STEP])
    store.put(comparison(key))
    found = Comparisons(GIVEN, folder).get(key)
    assert found.step.options == {"note": "fine"}
    assert found.variant.decode_ratio.high == math.inf
    assert math.isnan(found.baseline.kl_mean)
    assert found.launches["baseline"][0].prompts == [0.1, 1.0]
    assert json.dumps(found.notes) == json.dumps({"multiplying": "Halves were multiplied."})


def test_only_its_owner_can_read_it(folder, store):
    """It says what somebody works on."""
    store.put(comparison("0" * 64))
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        (GIVEN | {"versions": {"torch": "2.14"}}, [STEP]),
        (GIVEN | {"machine": {"cpu": "y"}}, [STEP]),
        (GIVEN | {"request": {"rounds": 4}}, [STEP]),
        (GIVEN, [STEP | {"options": {"note": "mine"}}]),
        (GIVEN, [STEP | {"distribution": "truthgpt-example 1.1"}]),
        (GIVEN, [STEP | {"name": "ruin"}, STEP]),
    ],
)
def test_another_question_is_another_key(store, given, steps):
    """Machine, versions, options, and the steps before it."""
    assert Comparisons(given).key(steps) != store.key([STEP])
    assert Comparisons(dict(reversed(GIVEN.items()))).key([STEP]) == store.key([STEP])


def test_a_run_that_ends_measures_again_the_next_time(folder, store):
    """What it used and what it kept is gone, and nothing of another command."""
    store.put(comparison("1" * 64))
    other = Comparisons(GIVEN, folder)
    other.put(comparison("2" * 64))
    other.put(comparison("3" * 64))
    again = Comparisons(GIVEN, folder)
    assert again.get("2" * 64)
    again.forget()
    assert sorted(path.name[0] for path in folder.iterdir()) == ["1", "3"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0), st.integers(1, 255))
def test_a_damaged_file_is_a_miss(folder, place, change):
    """Any byte of it; and what is damaged is replaced when it is measured again."""
    store, key = Comparisons(GIVEN, folder), "4" * 64
    store.put(comparison(key))
    path = folder / f"{key}.json"
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= change
    path.write_bytes(content)
    assert store.get(key) is None
    store.put(comparison(key, note="again"))
    assert store.get(key).step.options == {"note": "again"}


def forged(key, body):
    checksum = hashlib.sha256(key.encode() + b"\n" + body).hexdigest()
    return checksum.encode() + b"\n" + body


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{}", b"[" * 100_000, b"\xff", b'{"format": 1, "key": 7}', b"NaN"],
)
def test_a_forged_file_is_a_miss(folder, store, body):
    """Though its checksum is right."""
    folder.mkdir()
    for content in (forged("5", body), body):
        (folder / "5.json").write_bytes(content)
        assert store.get("5") is None


def test_a_file_under_the_key_of_another_is_a_miss(folder, store):
    """It is whole, and still not the answer."""
    store.put(comparison("6" * 64))
    (folder / f"{'6' * 64}.json").rename(folder / f"{'7' * 64}.json")
    assert store.get("7" * 64) is None


def test_what_is_no_file_of_ours_is_a_miss(folder, store, tmp_path):
    """A pipe does not hang it; a link is not followed; others may not have written it."""
    store.put(comparison("8" * 64))
    path = folder / f"{'8' * 64}.json"
    path.chmod(0o666)
    assert store.get("8" * 64) is None
    path.chmod(0o600)
    assert store.get("8" * 64)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert store.get("8" * 64) is None
    path.unlink()
    os.mkfifo(path)
    assert store.get("8" * 64) is None
    path.unlink()
    path.mkdir()
    assert store.get("8" * 64) is None


def test_what_is_old_goes(folder, store):
    """A week later a machine is another one."""
    key = "0" * 64
    store.put(comparison(key))
    assert store.get(key)
    old = time.time() - DAYS * 86400 - 60
    os.utime(folder / f"{key}.json", (old, old))
    assert store.get(key) is None
    Comparisons(GIVEN, folder).put(comparison("9" * 64))
    assert not (folder / f"{key}.json").exists()


def test_a_cache_that_cannot_be_written_keeps_nothing(tmp_path):
    """And costs the run nothing."""
    (tmp_path / "file").touch()
    store = Comparisons(GIVEN, tmp_path / "file" / "comparisons")
    store.put(comparison("0" * 64))
    assert store.get("0" * 64) is None
    store.forget()


def test_a_model_that_was_written_again_is_another(tmp_path):
    """Whether its files are small, and read, or too large for that."""
    (tmp_path / "config.json").write_text("{}")
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(17_000_000)
    before = identity(tmp_path)
    assert identity(tmp_path) == before
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.write(b"x")
    os.utime(tmp_path / "model.safetensors", ns=(before[1][4],) * 2)
    assert identity(tmp_path) != before
    before = identity(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert identity(tmp_path) != before


def test_a_draft_model_that_was_written_again_is_another(tmp_path):
    """A comparison with it is not taken over, be it a directory or one file."""
    (tmp_path / "config.json").touch()
    for draft in (tmp_path, tmp_path / "config.json"):
        optimization = DraftModelDecoding(model=draft)
        step = RequestedStep(optimization, "", optimization.options.model_dump(mode="json"))
        before = step_depends_on(step)
        assert step_depends_on(step) == before
        (tmp_path / "config.json").write_text(f"changed: {draft}")
        assert step_depends_on(step) != before


def test_a_plugin_that_was_edited_in_place_is_another(tmp_path, monkeypatch):
    """Its version stays the same while its author works on it; compiled files do not count."""
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "edited_plugin"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "code.cpp").write_text("int main() {}")
    before = sources(["edited_plugin", "truthgpt_core"])
    (package / "__pycache__" / "x.pyc").touch()
    assert sources(["truthgpt_core", "edited_plugin"]) == before
    (package / "code.cpp").write_text("int main() { return 1; }")
    after = sources(["edited_plugin", "truthgpt_core"])
    assert after["edited_plugin"] != before["edited_plugin"]
    assert after["truthgpt_core"] == before["truthgpt_core"]
    assert "edited_plugin" not in sys.modules
