"""What is installed is judged from its metadata, before a line of it is imported."""

from __future__ import annotations

import platform

import pytest

from truthgpt_core.plugin_system import PluginError, PluginRow, State, compatibility, discovery

CORE = "truthgpt-core>=0.1,<0.2"


def reason_for(name: str) -> str:
    installed = discovery.discover()
    assert name in {each.name for each in installed}
    return compatibility.judge(installed).get(name, "")


def row_named(manager, name: str) -> PluginRow:
    (row,) = (row for row in manager.rows() if row.name == name)
    return row


# Judging what was written for which core


@pytest.mark.parametrize(
    "requires",
    [
        ("truthgpt-core",),
        (CORE,),
        ("Truthgpt_Core >=0.1",),
        ("truthgpt-core @ https://example.org/core.whl",),
        ("not-there>=1; python_version < '3'", "truthgpt-core>=0.1; python_version >= '3.11'"),
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
        requires=("not-there; os_name ~= 'posix'", "=== nonsense", CORE),
    )
    assert reason_for("odd") == ""


def test_optimizations_need_a_plugin(site) -> None:
    """A distribution that declares optimizations and no plugin is told what is missing."""
    site.install("bare", {"truthgpt.optimizations": {"bare": "nowhere:Bare"}})
    assert 'no entry in the group "truthgpt.plugins"' in reason_for("bare")


# Judging Python and what else is required


def test_a_plugin_for_another_python_is_refused(site) -> None:
    """A plugin whose metadata is for another Python is refused, with both versions named."""
    site.install("old", {"truthgpt.plugins": {"old": "nowhere"}}, python=">=2.7,<3")
    assert reason_for("old") == (
        f"it is for Python >=2.7,<3, and this is {platform.python_version()}"
    )


def test_a_plugin_for_this_python_is_fine(site) -> None:
    """A plugin whose metadata is for this Python can be used."""
    site.install("new", {"truthgpt.plugins": {"new": "nowhere"}}, python=">=3.11")
    assert reason_for("new") == ""


def test_a_missing_requirement_names_what_to_install(site) -> None:
    """A plugin that requires what is not installed is refused, with the command that helps."""
    site.install_plugin("lacking", requires=(CORE, "not-there-at-all>=2"))
    assert reason_for("lacking-dist") == (
        "it requires not-there-at-all>=2, which is not installed: pip install 'not-there-at-all>=2'"
    )


def test_a_requirement_of_another_version_names_both(site) -> None:
    """A plugin that requires a newer version than there is is refused, with both named."""
    site.install("library", version="1.5")
    site.install_plugin("ahead", requires=(CORE, "Library>=2"))
    assert reason_for("ahead-dist") == (
        "it requires Library>=2, and 1.5 is installed: pip install 'Library>=2'"
    )


@pytest.mark.parametrize(
    "requirement", ["library", "library>=1,<2", "Lib.Rary ; python_version>'3'"]
)
def test_a_requirement_that_is_installed_is_fine(site, requirement: str) -> None:
    """What is installed in a version that will do is no reason, however its name is written."""
    site.install("library", version="1.5")
    site.install("lib-rary", version="1.5")
    site.install_plugin("content", requires=(CORE, requirement))
    assert reason_for("content-dist") == ""


def test_what_only_an_extra_requires_is_not_required(site) -> None:
    """A requirement of an extra is nobody's reason."""
    site.install_plugin("optional", requires=(CORE, "not-there-at-all; extra == 'all'"))
    assert reason_for("optional-dist") == ""


def test_a_plugin_is_judged_by_what_it_needs(site, manager) -> None:
    """A plugin whose required plugin cannot be used is refused too, through any distance."""
    site.install_plugin("base", requires=("truthgpt-core>=99",))
    site.install_plugin("middle", "raise AssertionError('imported')", requires=(CORE, "base-dist"))
    site.install_plugin("top", "raise AssertionError('imported')", requires=(CORE, "middle-dist"))
    manager.activate_all()
    assert row_named(manager, "middle").reason == 'it needs plugin "base", which is broken'
    assert row_named(manager, "top").reason == 'it needs plugin "middle", which is broken'
    assert row_named(manager, "top").state is State.BROKEN


def test_a_plugin_is_not_activated_when_what_it_needs_fails(site, manager) -> None:
    """A plugin whose required plugin raises is refused without being imported."""
    site.install_plugin("base", "1 / 0")
    site.install_plugin("top", "raise AssertionError('imported')", requires=(CORE, "base-dist"))
    with pytest.raises(PluginError, match='it needs plugin "base", which is broken'):
        manager.activate("top")


def test_plugins_that_cannot_be_used_side_by_side(site, manager) -> None:
    """A plugin that says it conflicts with another gives way, and the other works."""
    site.install_plugin("other")
    site.install(
        "picky-dist",
        {
            "truthgpt.plugins": {"picky": "picky_module"},
            "truthgpt.plugins.conflicts": {"other": "picky_module"},
        },
        {"picky_module.py": "raise AssertionError('imported')"},
    )
    manager.activate_all()
    assert row_named(manager, "picky").reason == (
        'it cannot be used beside plugin "other" of other-dist: uninstall or disable one of them'
    )
    assert row_named(manager, "other").state is State.ACTIVE


def test_a_conflict_with_what_is_not_installed_is_none(site) -> None:
    """A plugin may say what it conflicts with whether or not that is there."""
    site.install(
        "picky-dist",
        {
            "truthgpt.plugins": {"picky": "nowhere"},
            "truthgpt.plugins.conflicts": {"not_there": "nowhere"},
        },
    )
    assert reason_for("picky-dist") == ""


def test_the_names_of_truthgpts_own_commands_cannot_be_taken(site, truthgpt) -> None:
    """A distribution with a command named `plugins` is refused, and `truthgpt plugins` works."""
    site.install_plugin("thief", commands={"plugins": "MODULE:steal"})
    result = truthgpt("plugins")
    assert result.returncode == 0, result.stderr
    assert 'thief: truthgpt has a command named "plugins" itself' in result.stdout


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
        assert "uninstall or disable all but one" in reason


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
    """A circle of requirements is a reason that shows it, without what only leans on it."""
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
    leans = row_named(manager, "leans")
    assert leans.reason == 'it needs plugin "ring_a", which is broken'


def test_every_circle_is_named(site) -> None:
    """Two circles are two reasons."""
    for pair in ("ab", "cd"):
        for one, other in (pair, pair[::-1]):
            site.install_plugin(f"ring_{one}", requires=(CORE, f"ring-{other}-dist"))
    reasons = compatibility.judge(discovery.discover())
    for name in "abcd":
        assert f"ring_{name}-dist" in reasons[f"ring_{name}-dist"]


def test_a_distribution_may_require_itself(site) -> None:
    """Requiring oneself, as `name[all]` does for extras, is no circle."""
    site.install_plugin("selfish", requires=(CORE, "selfish-dist"))
    assert reason_for("selfish-dist") == ""
