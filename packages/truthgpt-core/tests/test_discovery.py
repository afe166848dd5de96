"""What is installed is found and judged from metadata, with no plugin imported."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from truthgpt_core import discovery
from truthgpt_core.plugin_system import PluginRow, State

CORE = "truthgpt-core>=0.1,<0.2"


def reason_for(name: str) -> str:
    installed = discovery.discover()
    assert name in {each.name for each in installed}
    return discovery.judge(installed).get(name, "")


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


# Judging what was written for which core


@pytest.mark.parametrize(
    "requires",
    [
        ("truthgpt-core",),
        (CORE,),
        ("Truthgpt_Core >=0.1",),
        ("truthgpt-core @ https://example.org/core.whl",),
        ("numpy>=1; python_version < '3'", "truthgpt-core>=0.1; python_version >= '3.11'"),
        ("truthgpt-core>=99; python_version < '3'", CORE),
    ],
)
def test_a_requirement_that_this_core_meets_is_fine(site, requires) -> None:
    """A distribution that requires this core, however it writes that, can be used."""
    site.install("fine", {"truthgpt.plugins": {"fine": "nowhere"}}, requires=requires)
    assert reason_for("fine") == ""


@pytest.mark.parametrize(
    "requires",
    [("truthgpt-core>=99",), ("truthgpt-core<0.1",), ("truthgpt-core>=0.1", "truthgpt-core<0.1")],
)
def test_a_plugin_for_another_core_is_refused(site, requires) -> None:
    """A plugin that was written for another core is refused, with both versions named."""
    site.install("early", {"truthgpt.plugins": {"early": "nowhere"}}, requires=requires)
    reason = reason_for("early")
    assert "it was written for truthgpt-core" in reason
    assert requires[-1].removeprefix("truthgpt-core") in reason
    assert "0.1.0 is installed" in reason


@pytest.mark.parametrize(
    "requires",
    [(), ("numpy",), ("truthgpt-core>=0.1; extra == 'all'",), ("truthgpt-core !! what",)],
)
def test_a_plugin_that_does_not_say_its_core_is_refused(site, requires) -> None:
    """A requirement that is missing, optional or unreadable says nothing about the core."""
    site.install("silent", {"truthgpt.plugins": {"silent": "nowhere"}}, requires=requires)
    assert reason_for("silent") == (
        "its metadata does not say which truthgpt-core it was written for"
    )


def test_one_unreadable_requirement_does_not_hide_the_others(site) -> None:
    """A requirement with a marker that makes no sense is passed over."""
    site.install(
        "odd",
        {"truthgpt.plugins": {"odd": "nowhere"}},
        requires=("numpy; os_name ~= 'posix'", "=== nonsense", CORE),
    )
    assert reason_for("odd") == ""


def test_optimizations_need_a_plugin(site) -> None:
    """A distribution that declares optimizations and no plugin is told what is missing."""
    site.install("bare", {"truthgpt.optimizations": {"bare": "nowhere:Bare"}})
    assert 'no entry in the group "truthgpt.plugins"' in reason_for("bare")


# Judging names


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("truthgpt.plugins", "truthgpt.plugins"),
        ("truthgpt.commands", "truthgpt.commands"),
        ("truthgpt.optimizations", "truthgpt.optimizations"),
        ("truthgpt.optimizations.aliases", "truthgpt.optimizations.aliases"),
        ("truthgpt.optimizations", "truthgpt.optimizations.aliases"),
    ],
)
def test_a_name_that_two_distributions_have_breaks_both(site, one: str, other: str) -> None:
    """Neither of two distributions with one name is used, and each reason names both."""
    for name, group in (("first-dist", one), ("second-dist", other)):
        groups = {"truthgpt.plugins": {f"of_{name[0]}": "nowhere"}}
        groups[group] = groups.get(group, {}) | {"same": "nowhere:Same"}
        site.install(name, groups)
    for name in ("first-dist", "second-dist"):
        reason = reason_for(name)
        assert "first-dist, second-dist" in reason
        assert '"same"' in reason
        assert "uninstall all but one" in reason


def test_an_optimization_and_a_command_may_share_a_name(site) -> None:
    """Names clash within what they name: a plugin, its command and its optimization do not."""
    site.install(
        "first-dist",
        {
            "truthgpt.plugins": {"same": "nowhere"},
            "truthgpt.optimizations": {"same": "nowhere:Same"},
        },
    )
    site.install("second-dist", {"truthgpt.commands": {"same": "nowhere:same"}})
    assert reason_for("first-dist") == ""
    assert reason_for("second-dist") == ""


def test_both_plugins_of_one_name_are_rows(site, manager) -> None:
    """Two plugins of one name are two broken rows, and none of them is lost."""
    for name in ("first-dist", "second-dist"):
        site.install(name, {"truthgpt.plugins": {"same": "nowhere"}})
    rows = [row for row in manager.rows() if row.name == "same"]
    assert [row.state for row in rows] == [State.BROKEN, State.BROKEN]
    assert {row.distribution.name for row in rows} == {"first-dist", "second-dist"}


def test_a_distribution_without_plugins_can_be_a_row(site, manager) -> None:
    """Something that is only a command and cannot be used is listed under its distribution."""
    site.install("bad-command", {"truthgpt.commands": {"bad": "nowhere:bad"}}, requires=())
    row = row_named(manager, "bad-command")
    assert row.state is State.BROKEN
    assert "does not say which truthgpt-core" in row.reason


def test_plugins_that_require_each_other_are_named(site, manager) -> None:
    """A circle of requirements is a reason that shows the circle, and others are not in it."""
    site.install_plugin("ring_a", requires=(CORE, "ring-b-dist"))
    site.install_plugin("ring_b", requires=(CORE, "ring_c.dist"))
    site.install_plugin("ring_c", requires=(CORE, "ring-a-dist"))
    site.install_plugin("leans", requires=(CORE, "ring-a-dist"))
    circle = "ring_a-dist -> ring_b-dist -> ring_c-dist -> ring_a-dist"
    reason = row_named(manager, "ring_b").reason
    assert reason.startswith("plugins require each other: ")
    names = reason.partition(": ")[2].split(" -> ")
    assert names[0] == names[-1]
    assert " -> ".join([*names[:-1], *names]).count(circle) == 1
    assert row_named(manager, "leans").state is State.FOUND


def test_every_circle_is_named(site) -> None:
    """Two circles are two reasons."""
    for pair in ("ab", "cd"):
        for one, other in (pair, pair[::-1]):
            site.install_plugin(f"ring_{one}", requires=(CORE, f"ring-{other}-dist"))
    reasons = discovery.judge(discovery.discover())
    for name in "abcd":
        assert f"ring_{name}-dist" in reasons[f"ring_{name}-dist"]


def test_a_distribution_may_require_itself(site) -> None:
    """Requiring oneself, as `name[all]` does for extras, is no circle."""
    site.install_plugin("selfish", requires=(CORE, "selfish-dist"))
    assert reason_for("selfish-dist") == ""


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


def test_entry_points_that_are_no_text_are_nobodys(site, manager) -> None:
    """A damaged file of somebody else's does not keep plugins from being found."""
    site.install("binary")
    (site.path / "binary-1.0.dist-info" / "entry_points.txt").write_bytes(b"\xff truthgpt.plugins")
    site.install_plugin("whole")
    assert row_named(manager, "whole").state is State.FOUND


def test_broken_metadata_does_not_break_the_command(site, truthgpt) -> None:
    """`truthgpt plugins --json` lists a damaged distribution and exits with 0."""
    site.install("half", {"truthgpt.plugins": {"half": "nowhere"}}, metadata="")
    result = truthgpt("plugins", "--json")
    assert result.returncode == 0, result.stderr
    (row,) = (row for row in json.loads(result.stdout) if row["name"] == "half")
    assert (row["state"], row["distribution"], row["version"]) == ("broken", "half", "")
