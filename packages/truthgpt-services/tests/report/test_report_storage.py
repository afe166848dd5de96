"""What a user can rely on in the files."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from truthgpt_core.errors import TruthGPTError
from truthgpt_services.report.files import write_report
from truthgpt_services.results import io
from truthgpt_services.results.io import read_report, report_json, report_schema

ROOT = Path(__file__).parents[4]


def test_a_report_reads_back_as_it_was(tmp_path, samples):
    """Nothing is lost between a run and the reader later."""
    report = samples.mixed_report()
    json_path, html_path = write_report(report, tmp_path / "new" / "folder")
    assert read_report(json_path) == report
    assert read_report(json_path.parent) == report
    assert html_path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_numbers_that_json_lacks_survive(tmp_path, samples):
    """A perplexity that overflowed is read back as infinite, from valid JSON."""
    report = samples.report(
        variants=[samples.baseline(quality=samples.quality(perplexity=math.inf, kl_p999=math.nan))]
    )

    def refuse(constant):
        raise AssertionError(constant)

    json.loads(report_json(report), parse_constant=refuse)
    write_report(report, tmp_path)
    quality = read_report(tmp_path).variants[0].measured.quality
    assert quality.perplexity == math.inf
    assert math.isnan(quality.kl_p999)


def test_files_are_replaced_whole(tmp_path, samples, monkeypatch):
    """If writing fails, the earlier report is still there and nothing is left beside it."""
    write_report(samples.report(), tmp_path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(io.os, "fsync", full)
    with pytest.raises(TruthGPTError, match="No space left on device"):
        write_report(samples.mixed_report(), tmp_path)
    assert read_report(tmp_path) == samples.report()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_the_measurements_are_kept_if_the_page_cannot_be_drawn(tmp_path, samples, monkeypatch):
    """An hour of measuring is not lost to a mistake in a template."""
    monkeypatch.setattr("truthgpt_services.report.files.render_html", lambda report: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(samples.report(), tmp_path)
    assert read_report(tmp_path) == samples.report()


def written(folder: Path, text: str) -> Path:
    path = folder / "report.json"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_missing_report_is_named(tmp_path):
    """The error says which file it looked for."""
    with pytest.raises(TruthGPTError, match=r"There is no report at .*report\.json"):
        read_report(tmp_path)


def test_what_is_larger_than_any_report_is_not_read(tmp_path):
    """A server that looks for a report does not run out of memory."""
    with (tmp_path / "report.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(TruthGPTError, match=r"report\.json cannot be read: it has more than"):
        read_report(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 200_000])
def test_what_is_not_json_is_said_not_to_be(text, tmp_path):
    """A damaged file gives one sentence and no traceback of a parser."""
    with pytest.raises(TruthGPTError, match="is not JSON"):
        read_report(written(tmp_path, text))


@pytest.mark.parametrize("text", ["[]", "{}", "3", "null"])
def test_other_json_is_said_not_to_be_a_report(text, tmp_path):
    """Some other JSON file is not taken for a report."""
    with pytest.raises(TruthGPTError, match="is not a report"):
        read_report(written(tmp_path, text))


@pytest.mark.parametrize("version", [2, "1", None, True])
def test_another_version_says_which_it_is_and_which_is_read(version, tmp_path):
    """A report of a later schema is refused with both versions named."""
    path = written(tmp_path, json.dumps({"schema_version": version}))
    with pytest.raises(TruthGPTError, match=r"schema version .*reads version 1"):
        read_report(path)


def test_wrong_fields_are_all_named(tmp_path, samples):
    """An edited report says which of its fields are wrong."""
    data = json.loads(report_json(samples.report()))
    data["seed"] = "many"
    del data["variants"][1]["measured"]["weights_bytes"]
    with pytest.raises(TruthGPTError) as caught:
        read_report(written(tmp_path, json.dumps(data)))
    assert "seed: " in str(caught.value)
    assert "variants.1.measured.weights_bytes: Field required" in str(caught.value)


def test_fields_that_a_later_release_added_are_ignored(tmp_path, samples):
    """Within a version fields are only added, so an older release reads a newer report."""
    data = json.loads(report_json(samples.report()))
    data["weather"] = {"rain": True}
    data["variants"][0]["measured"]["joules"] = 3.5
    data["steps"][0]["coverage"]["skipped"][0]["index"] = 4
    assert read_report(written(tmp_path, json.dumps(data))) == samples.report()


def test_a_report_from_before_a_field_was_added_is_read(tmp_path, samples):
    """Within a version, what an earlier release has written stays readable, without errors then."""
    data = json.loads(report_json(samples.report()))
    for variant in data["variants"]:
        quality = variant["measured"]["quality"]
        for field in [name for name in quality if "flips" in name or name.endswith("_error")]:
            if field != "kl_mean_error":
                del quality[field]
        del variant["layers"], variant["layers_missing"]
    for step in data["steps"]:
        del step["break_even"], step["overruled"], step["costs"]
    for field in ("launches", "max_launches", "closely"):
        del data["settings"][field]
    del data["control"], data["load"], data["replay"], data["replay_missing"]
    for field in ("gain", "max_flips", "keep_all", "max_slowdown"):
        del data["settings"]["gate"][field]
    earlier = read_report(written(tmp_path, json.dumps(data)))
    assert earlier.variants[1].measured.quality.flips is None
    assert earlier.steps == [
        step.model_copy(update={"break_even": None}) for step in samples.report().steps
    ]
    required = report_schema()["$defs"]["Quality"]["required"]
    assert "perplexity" in required
    assert "flips" not in required
    html = write_report(earlier, tmp_path / "again")[1].read_text(encoding="utf-8")
    assert "nan" not in html.lower().replace("nano", "")


def test_the_published_schema_is_the_one_in_the_code():
    """docs/report.schema.json is what the code writes; docs/report.md says how to renew it."""
    published = json.loads((ROOT / "docs" / "report.schema.json").read_text(encoding="utf-8"))
    assert published == report_schema()


def test_the_schema_needs_every_field_and_allows_new_ones():
    """A validator with today's schema accepts tomorrow's report of the same version."""
    text = json.dumps(report_schema())
    assert 'additionalProperties": false' not in text
    assert "$id" not in text
    assert "schema_version" in report_schema()["required"]


@pytest.mark.new_process
def test_the_schema_alone_loads_no_drawing():
    """Reading a report's data costs neither jinja2 nor rich nor torch."""
    code = (
        "import sys, truthgpt_services.results.schema, truthgpt_services.results.io;"
        "print([m for m in ('jinja2', 'rich', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
