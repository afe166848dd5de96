"""What is installed is found from metadata, with no plugin imported."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import packaging.requirements
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truthgpt_core.plugin_system import PluginRow, State, discovery


def row_named(manager, name: str) -> PluginRow:
    (row,) = (row for row in manager.rows() if row.name == name)
    return row


# Finding


def test_an_installed_plugin_is_a_row(site, manager) -> None:
    """A distribution's entry points and metadata are all that its row needs."""
    site.install(
        "Some.Plugin",
        {
            "truthgpt.plugins": {"some": "some_module"},
            "truthgpt.optimizations": {"shrink": "some_module:Shrink"},
            "truthgpt.optimizations.aliases": {"less": "some_module:Shrink"},
        },
        version="3.1",
    )
    row = row_named(manager, "some")
    assert (row.state, row.reason) == (State.FOUND, "")
    assert row.distribution is not None
    assert (row.distribution.name, row.version) == ("Some.Plugin", "3.1")
    assert set(row.api.split(",")) == {">=0.1", "<0.2"}
    assert row.optimizations == ["shrink"]


def test_listing_imports_no_plugin(site, manager, tmp_path: Path) -> None:
    """A plugin whose import writes a file and raises is listed, and the file is not there."""
    trace = tmp_path / "imported"
    site.install_plugin("noisy", f"open({str(trace)!r}, 'w').close()\nraise ValueError")
    assert row_named(manager, "noisy").state is State.FOUND
    assert "noisy_module" not in sys.modules
    assert not trace.exists()


def test_other_distributions_are_left_out(site) -> None:
    """A distribution with entry points for somebody else is none of ours."""
    site.install("other-tool", {"console_scripts": {"truthgpt.py": "other:main"}})
    site.install("future-thing", {"truthgpt.something_new": {"x": "future:x"}})
    names = {each.name for each in discovery.discover()}
    assert not names & {"other-tool", "future-thing"}


def test_distributions_come_in_the_order_of_their_names(site) -> None:
    """Distributions are listed by their normalized names, however they are found."""
    for name in ("Zeta", "alpha", "Beta_x"):
        site.install(name, {"truthgpt.plugins": {name.lower(): "nowhere"}})
    names = [each.name for each in discovery.discover()]
    assert [name for name in names if name in ("Zeta", "alpha", "Beta_x")] == [
        "alpha",
        "Beta_x",
        "Zeta",
    ]


def test_the_summary_is_the_distributions_own(site) -> None:
    """The one-line description is read from the metadata, and empty if there is none."""
    site.install(
        "told",
        {"truthgpt.plugins": {"told": "nowhere"}},
        metadata="Metadata-Version: 2.1\nName: told\nVersion: 1\nSummary: Makes it small\n",
    )
    site.install("untold", {"truthgpt.plugins": {"untold": "nowhere"}})
    summaries = {each.name: each.summary for each in discovery.discover()}
    assert (summaries["told"], summaries["untold"]) == ("Makes it small", "")


def test_the_first_on_the_path_counts(make_site) -> None:
    """Of a distribution that is there twice, the one counts that would be imported."""
    make_site().install("twice-there", {"truthgpt.plugins": {"old": "nowhere"}}, version="1.0")
    make_site().install("Twice_There", {"truthgpt.plugins": {"new": "nowhere"}}, version="2.0")
    found = [each for each in discovery.discover() if each.version in ("1.0", "2.0")]
    assert [each.names(discovery.PLUGINS) for each in found] == [["new"]]


def test_a_newer_one_without_plugins_hides_an_older_one(make_site) -> None:
    """If what would be imported declares nothing, an older copy further on is not found."""
    make_site().install("twice-there", {"truthgpt.plugins": {"old": "nowhere"}}, version="1.0")
    make_site().install("twice-there", version="2.0")
    assert "twice-there" not in {each.name for each in discovery.discover()}


@pytest.mark.parametrize("name", ["My.Plugin", "my--plugin", "MY_PLUGIN", "my-plugin"])
def test_names_are_normalized(name: str) -> None:
    """Spellings that pip takes for one distribution are one for us."""
    assert discovery.normalized(name) == "my-plugin"


# Damage


@pytest.mark.parametrize(
    "metadata",
    ["", "\n", "Metadata-Version: 2.1\n", "Name: half\n", b"Name: \xff\xfe\nVersion: \xff\n"],
    ids=["missing", "empty", "nameless", "no version", "not utf-8"],
)
def test_broken_metadata_is_a_row(site, manager, metadata) -> None:
    """A distribution whose METADATA is damaged is a row that says so, and others are found."""
    site.install("half", {"truthgpt.plugins": {"half": "nowhere"}}, metadata=metadata)
    site.install_plugin("whole")
    row = row_named(manager, "half")
    assert row.state is State.BROKEN
    assert row.reason == "its METADATA does not say its name and version: reinstall it"
    assert row_named(manager, "whole").state is State.FOUND


def test_broken_entry_points_are_a_row(site, manager) -> None:
    """A distribution whose entry_points.txt cannot be read is listed under its own name."""
    site.install("garbled", "[truthgpt.plugins]\nthis is no entry point\n")
    site.install_plugin("whole")
    row = row_named(manager, "garbled")
    assert row.state is State.BROKEN
    assert row.reason == "its entry_points.txt cannot be read: reinstall it"
    assert row_named(manager, "whole").state is State.FOUND


def test_entry_points_that_are_not_text_are_named(site, manager) -> None:
    """A damaged file of another project is a row, and does not keep plugins from being found."""
    site.install("binary")
    (site.path / "binary-1.0.dist-info" / "entry_points.txt").write_bytes(b"\xff truthgpt.plugins")
    site.install_plugin("whole")
    assert row_named(manager, "binary").state is State.BROKEN
    assert row_named(manager, "whole").state is State.FOUND


def test_broken_metadata_does_not_break_the_command(site, truthgpt) -> None:
    """`truthgpt plugins --json` lists a damaged distribution and exits with 0."""
    site.install("half", {"truthgpt.plugins": {"half": "nowhere"}}, metadata="")
    result = truthgpt("plugins", "--json")
    assert result.returncode == 0, result.stderr
    (row,) = (row for row in json.loads(result.stdout) if row["name"] == "half")
    assert (row["state"], row["distribution"], row["version"]) == ("broken", "half", "")


_NAMES = st.from_regex(r"[A-Za-z0-9._-]{1,8}", fullmatch=True)
_VERSIONS = st.lists(
    st.from_regex(r" ?(==|>=|<=|!=|~=|<|>|===|=) ?[0-9a.*!+-]{1,6} ?", fullmatch=True), max_size=3
).map(",".join)
_MARKERS = st.sampled_from(
    ["", '; extra == "test"', ";extra=='a_b'", '; python_version < "3"', "; extra == ", " ;", "@ x"]
)
_LINES = st.one_of(
    st.builds("{}{}{}".format, _NAMES, _VERSIONS, _MARKERS),
    st.builds("{} ({})".format, _NAMES, _VERSIONS),
    st.builds("{}[extra]{}".format, _NAMES, _VERSIONS),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(line=_LINES)
def test_requirements_are_read_as_packaging_reads_them(site, line: str) -> None:
    if not list(site.path.iterdir()):
        site.install("one", {"truthgpt.plugins": {"one": "one"}})
    metadata = f"Metadata-Version: 2.1\nName: one\nVersion: 1.0\nRequires-Dist: {line}\n"
    (metadata_file,) = site.path.glob("*/METADATA")
    metadata_file.write_text(metadata, encoding="utf-8")
    (found,) = (each for each in discovery.discover() if each.name == "one")
    try:
        parsed = packaging.requirements.Requirement(line)
        applies = parsed.marker is None or parsed.marker.evaluate({"extra": ""})
    except packaging.requirements.InvalidRequirement:
        applies = False
    expected = [(parsed.name, str(parsed.specifier))] if applies else []
    assert [(each.name, each.versions) for each in found.requirements] == expected
