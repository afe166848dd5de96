"""Plugins are switched off and on, for good or for once, whether or not they work."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from truthgpt_core import PluginManager, TruthGPTError
from truthgpt_core.plugin_system import PluginError, State, switches
from truthgpt_core.service_registry import ServiceContainer

CORE = "truthgpt-core>=0.1,<0.2"
SERVICE = """
from truthgpt_core import hookimpl

@hookimpl
def register_services(registry):
    registry.register("switched_service", lambda: 1)
"""


def states(manager: PluginManager) -> dict[str, State]:
    return {row.name: row.state for row in manager.rows()}


def reasons(manager: PluginManager) -> dict[str, str]:
    return {row.name: row.reason for row in manager.rows()}


def fresh() -> PluginManager:
    """What the next process sees."""
    return PluginManager(ServiceContainer())


# For good


def test_a_disabled_plugin_is_off_in_later_processes(site, manager) -> None:
    """What is disabled is not imported by the next process, and says how to get it back."""
    site.install_plugin("mine", "raise AssertionError('imported')")
    manager.disable("mine")
    later = fresh()
    later.activate_all()
    assert states(later)["mine"] is State.DISABLED
    assert reasons(later)["mine"] == "it is disabled: truthgpt plugins enable mine"


def test_an_enabled_plugin_is_back(site, manager) -> None:
    """`enable` takes `disable` back, here and in later processes."""
    site.install_plugin("mine")
    manager.disable("mine")
    manager.enable("mine")
    manager.activate_all()
    assert states(manager)["mine"] is State.ACTIVE
    assert states(fresh())["mine"] is State.FOUND


def test_disabling_an_active_plugin_deactivates_it(site, manager) -> None:
    """What an active plugin registered is gone when it is disabled."""
    site.install_plugin("mine", SERVICE)
    manager.activate_all()
    manager.disable("mine")
    assert "switched_service" not in manager.container.registry.names()
    assert states(manager)["mine"] is State.DISABLED


def test_a_disabled_plugin_cannot_be_activated(site, manager) -> None:
    """`activate` does not go around `disable`, and says what to do."""
    site.install_plugin("mine")
    manager.disable("mine")
    with pytest.raises(PluginError, match="it is disabled: truthgpt plugins enable mine"):
        manager.activate("mine")


def test_a_deactivated_plugin_that_is_enabled_is_found_again(site, manager) -> None:
    """`enable` also takes back `deactivate`."""
    site.install_plugin("mine")
    manager.activate_all()
    manager.deactivate("mine")
    manager.enable("mine")
    manager.activate_all()
    assert states(manager)["mine"] is State.ACTIVE


def test_disabling_is_refused_while_active_plugins_need_it(site, manager) -> None:
    """`disable` names the active dependents and changes nothing."""
    site.install_plugin("base")
    site.install_plugin("top", requires=(CORE, "base-dist"))
    manager.activate_all()
    with pytest.raises(PluginError, match='"base" is needed by plugins that are active: "top"'):
        manager.disable("base")
    assert states(manager)["base"] is State.ACTIVE
    assert states(fresh())["base"] is State.FOUND


def test_cascade_takes_what_needs_it_too(site, manager) -> None:
    """`disable(cascade=True)` deactivates dependents, which are off as long as it is."""
    site.install_plugin("base")
    site.install_plugin("top", requires=(CORE, "base-dist"))
    manager.activate_all()
    manager.disable("base", cascade=True)
    assert states(manager)["base"] is State.DISABLED
    assert states(manager)["top"] is State.INACTIVE
    later = fresh()
    assert states(later)["top"] is State.DISABLED
    assert reasons(later)["top"] == 'it needs plugin "base", which is disabled'


@pytest.mark.parametrize(
    "code", ["def f(:", "raise SystemExit", "import not_there", "from os import nothing"]
)
def test_a_broken_plugin_can_be_disabled_and_enabled(site, code: str) -> None:
    """Switching works while a plugin is broken, and disabled it is not fatal in strict mode."""
    site.install_plugin("ill", code)
    strict = PluginManager(ServiceContainer(), strict=True)
    strict.disable("ill")
    strict.activate_all()
    assert states(strict)["ill"] is State.DISABLED
    strict.enable("ill")
    with pytest.raises(PluginError, match='"ill" is broken'):
        strict.activate_all()


def test_an_enabled_plugin_that_was_broken_is_tried_again(site, manager) -> None:
    """After its cause is mended, `enable` lets a broken plugin be activated."""
    site.install_plugin("ill", "1 / 0")
    manager.activate_all()
    (site.path / "ill_module.py").write_text("# mended\n")
    manager.enable("ill")
    manager.activate_all()
    assert states(manager)["ill"] is State.ACTIVE


def test_disabling_one_of_two_with_a_name_lets_the_other_work(site, manager) -> None:
    """A clash of names is settled by disabling one distribution."""
    for name in ("first-dist", "second-dist"):
        site.install(name, {"truthgpt.plugins": {"same": "same_module"}}, {"same_module.py": ""})
    manager.disable("first-dist")
    manager.activate("same")
    found = {row.distribution.name: row.state for row in manager.rows() if row.name == "same"}
    assert found == {"first-dist": State.DISABLED, "second-dist": State.ACTIVE}


def test_disabling_one_of_two_that_conflict_lets_the_other_work(site, manager) -> None:
    """A conflict is settled by disabling either."""
    site.install_plugin("other")
    groups = {"truthgpt.plugins": {"picky": "x"}, "truthgpt.plugins.conflicts": {"other": "x"}}
    site.install("picky-dist", groups)
    manager.disable("other")
    assert states(manager)["picky"] is State.FOUND


def test_what_is_not_there_cannot_be_disabled(site, manager) -> None:
    """A misspelled name is an error that suggests the right one, and nothing is written."""
    site.install_plugin("mine")
    with pytest.raises(PluginError, match=r'no plugin named "mien"\. Did you mean "mine"'):
        manager.disable("mien")
    with pytest.raises(PluginError, match='no plugin named "mien"'):
        manager.enable("mien")
    assert switches.disabled_names() == frozenset()


def test_what_was_uninstalled_can_be_enabled(manager) -> None:
    """The last trace of a plugin that is gone can be taken away."""
    switches.disable("gone")
    manager.enable("gone")
    assert switches.disabled_names() == frozenset()


@pytest.mark.parametrize("name", ["../../etc", "a/b", "..", "", "ünïcode", "con", "a%2Fb", " x "])
def test_any_name_can_be_switched(tmp_path: Path, name: str) -> None:
    """Whatever a plugin is called, its switch stays inside the settings directory."""
    switches.disable(name)
    assert switches.disabled_names() == {name}
    written = {each for each in tmp_path.rglob("*") if each.is_file()}
    assert {each.parent.parent for each in written} == {tmp_path / "settings"}
    assert switches.enable(name)
    assert not switches.enable(name)


# Faults


def test_many_processes_at_once_lose_nothing() -> None:
    """Names disabled by processes that run at the same time are all disabled."""
    code = (
        "import sys; from truthgpt_core.plugin_system.switches import disable; disable(sys.argv[1])"
    )
    names = {f"plugin_{number}" for number in range(8)}
    started = [subprocess.Popen([sys.executable, "-c", code, name]) for name in sorted(names)]
    assert [process.wait(timeout=60) for process in started] == [0] * len(names)
    assert switches.disabled_names() == names


def test_a_killed_process_leaves_nothing_half_done() -> None:
    """A process killed while it switches leaves each name on or off, and readable."""
    code = (
        "from truthgpt_core.plugin_system.switches import disable, enable\n"
        "disable('steady'); print('ready', flush=True)\n"
        "while True: disable('wavering'); enable('wavering')"
    )
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        process.wait(timeout=60)
        process.stdout.close()
        assert switches.disabled_names() - {"wavering"} == {"steady"}


def test_settings_that_are_no_directory_are_one_error(monkeypatch, tmp_path: Path) -> None:
    """A file where the settings should be is an error that names it and what moves it."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRUTHGPT_SETTINGS", str(tmp_path / "file"))
    for switch in (switches.disable, switches.enable):
        with pytest.raises(TruthGPTError, match=r"cannot be .*file.*TRUTHGPT_SETTINGS"):
            switch("mine")


def test_a_failed_write_leaves_the_plugin_active(site, manager, monkeypatch, tmp_path) -> None:
    """If the switch cannot be written down, the plugin stays as it was."""
    site.install_plugin("mine", SERVICE)
    manager.activate_all()
    (tmp_path / "settings").write_text("")
    with pytest.raises(TruthGPTError, match="cannot be written"):
        manager.disable("mine")
    assert states(manager)["mine"] is State.ACTIVE
    assert manager.container.get("switched_service") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="limits files on Linux")
def test_a_disk_without_room_for_data_is_enough() -> None:
    """Disabling writes no data, so that a process that may write none can do it."""
    code = "from truthgpt_core.plugin_system.switches import disable; disable('mine')"

    def no_data() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    result = subprocess.run(
        [sys.executable, "-B", "-c", code], preexec_fn=no_data, check=False, timeout=60
    )
    assert result.returncode == 0
    assert switches.disabled_names() == {"mine"}


# For once


@pytest.mark.parametrize(
    ("allowed", "active"),
    [
        ("a_one", {"a_one"}),
        ("a_one, b_two", {"a_one", "b_two"}),
        ("", set()),
        ("b-two-dist", {"b_two"}),
    ],
)
def test_the_allow_list_switches_all_others_off(site, monkeypatch, allowed, active) -> None:
    """TRUTHGPT_PLUGINS names the only plugins that are activated; empty, none is."""
    site.install_plugin("a_one")
    site.install_plugin("b_two")
    monkeypatch.setenv("TRUTHGPT_PLUGINS", allowed)
    manager = fresh()
    manager.activate_all()
    found = states(manager)
    assert {name for name in ("a_one", "b_two") if found[name] is State.ACTIVE} == active
    for name in {"a_one", "b_two"} - active:
        assert reasons(manager)[name] == (
            "it is switched off by TRUTHGPT_PLUGINS, which does not name it"
        )


def test_the_block_list_switches_these_off(site, monkeypatch) -> None:
    """TRUTHGPT_PLUGINS_BLOCK names plugins that are not activated, broken ones too."""
    site.install_plugin("good")
    site.install_plugin("ill", "1 / 0")
    monkeypatch.setenv("TRUTHGPT_PLUGINS_BLOCK", "ill")
    manager = PluginManager(ServiceContainer(), strict=True)
    manager.activate_all()
    assert states(manager)["good"] is State.ACTIVE
    assert (
        reasons(manager)["ill"] == "it is switched off by TRUTHGPT_PLUGINS_BLOCK, which names ill"
    )


def test_what_an_allowed_plugin_needs_is_not_let_in_with_it(site, monkeypatch) -> None:
    """An allowed plugin whose requirement is not allowed is off, and says what it needs."""
    site.install_plugin("base")
    site.install_plugin("top", requires=(CORE, "base-dist"))
    monkeypatch.setenv("TRUTHGPT_PLUGINS", "top")
    manager = fresh()
    manager.activate_all()
    assert reasons(manager)["top"] == 'it needs plugin "base", which is disabled'


def test_lists_reach_plugins_by_hand_and_files(tmp_path: Path, monkeypatch) -> None:
    """A plugin from a directory, or registered by hand, that is switched off is not activated."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "from_file.py").write_text("raise AssertionError('run')")
    monkeypatch.setenv("TRUTHGPT_PLUGINS_BLOCK", "from_file,by_hand")
    manager = fresh()
    (row,) = manager.load_plugins_from_directory(folder)
    assert row.state is State.DISABLED
    with pytest.raises(
        PluginError, match='"by_hand": it is switched off by TRUTHGPT_PLUGINS_BLOCK'
    ):
        manager.register_plugin(object(), name="by_hand")


# Commands


def test_the_commands_switch(site, truthgpt) -> None:
    """`truthgpt plugins disable` and `enable` do it from outside, broken or not."""
    site.install_plugin("ill", "raise SystemExit(3)")
    result = truthgpt("plugins", "disable", "ill")
    assert (result.returncode, result.stdout) == (0, "ill is disabled.\n")
    assert truthgpt("plugins", "--load", "--strict").returncode == 0
    assert "ill: it is disabled: truthgpt plugins enable ill" in truthgpt("plugins").stdout
    assert truthgpt("plugins", "enable", "ill").stdout == "ill is enabled.\n"
    assert truthgpt("plugins", "--load", "--strict").returncode == 1


def test_a_command_of_a_disabled_plugin_is_gone(site, truthgpt) -> None:
    """What a disabled plugin brings to the command line is not offered, and says why."""
    site.install_plugin("mine", "raise AssertionError", commands={"try-it": "MODULE:command"})
    truthgpt("plugins", "disable", "mine")
    assert "try-it" not in truthgpt("--help").stdout
    result = truthgpt("try-it")
    assert result.returncode == 1
    assert "it is disabled: truthgpt plugins enable mine" in result.stderr


def test_disabling_several_is_all_or_nothing(site, truthgpt) -> None:
    """If one of the names is wrong, none is disabled."""
    site.install_plugin("mine")
    result = truthgpt("plugins", "disable", "mine", "mien")
    assert result.returncode == 1
    assert result.stderr == ('truthgpt: There is no plugin named "mien". Did you mean "mine"?\n')
    assert switches.disabled_names() == frozenset()


def test_disabling_says_what_goes_with_it(site, truthgpt) -> None:
    """Plugins that need the disabled one are named."""
    site.install_plugin("base")
    site.install_plugin("top", requires=(CORE, "base-dist"))
    assert truthgpt("plugins", "disable", "base").stdout.splitlines() == [
        "base is disabled.",
        'top is disabled now: it needs plugin "base", which is disabled.',
    ]


def test_enabling_what_the_environment_switches_off_says_so(site, truthgpt, monkeypatch) -> None:
    """`enable` does not claim more than it did."""
    site.install_plugin("mine")
    truthgpt("plugins", "disable", "mine")
    monkeypatch.setenv("TRUTHGPT_PLUGINS", "other")
    assert truthgpt("plugins", "enable", "mine").stdout.splitlines() == [
        "mine is enabled.",
        "mine is disabled: it is switched off by TRUTHGPT_PLUGINS, which does not name it.",
    ]


def test_a_stranger_in_the_environment_is_told(site, truthgpt, monkeypatch) -> None:
    """A misspelled name in a list is told, with the one that may be meant."""
    site.install_plugin("mine")
    monkeypatch.setenv("TRUTHGPT_PLUGINS", "mien")
    assert truthgpt("plugins").stderr == (
        'truthgpt: TRUTHGPT_PLUGINS names "mien", and no plugin has that name. '
        'Did you mean "mine"?\n'
    )


@pytest.mark.skipif(os.name == "nt", reason="for file systems that can be read-only")
def test_without_settings_nothing_is_off(monkeypatch, site) -> None:
    """Where there are no settings and none can be made, all plugins are on."""
    site.install_plugin("mine")
    monkeypatch.setenv("TRUTHGPT_SETTINGS", "/proc/no-such-place")
    manager = fresh()
    manager.activate_all()
    assert states(manager)["mine"] is State.ACTIVE
