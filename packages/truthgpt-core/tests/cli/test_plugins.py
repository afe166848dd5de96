"""`truthgpt plugins` and `truthgpt plugins show`; `plugin_system/test_switches.py` has the rest."""

from __future__ import annotations

import json

import pytest

from truthgpt_core.plugin_system import discovery

CORE = "truthgpt-core>=0.1,<0.2"
HOOKED = """
import time
from truthgpt_core import hookimpl

time.sleep(0.05)

@hookimpl
def register_services(registry):
    registry.register("shown_service", lambda: 1)

@hookimpl
def make_decode_step(model, cache):
    return None
"""


def test_plugins_as_json(main, site) -> None:
    """`truthgpt plugins --json` has these keys for each plugin."""
    site.install_plugin("shown", optimizations={"zz": "MODULE:Z"}, aliases={"yy": "MODULE:Z"})
    status, out, error = main("plugins", "--json")
    assert (status, error) == (0, "")
    (row,) = (row for row in json.loads(out) if row["name"] == "shown")
    assert set(row.pop("api").split(",")) == {">=0.1", "<0.2"}
    assert row == {
        "name": "shown",
        "state": "found",
        "reason": "",
        "distribution": "shown-dist",
        "version": "1.0",
        "optimizations": ["zz"],
        "hooks": None,
        "load_seconds": None,
        "problems": [],
    }


def test_plugins_as_a_table(main, site) -> None:
    """The table has a line for each plugin, and reasons stand in full below it."""
    site.install_plugin("shown", optimizations={"zz": "MODULE:Z"})
    site.install_plugin("early", requires=("truthgpt-core>=99",))
    status, out, _ = main("plugins")
    assert status == 0
    (line,) = (line for line in out.splitlines() if line.split()[:1] == ["shown"])
    assert line.split() == ["shown", "found", "shown-dist", "1.0", "<0.2,>=0.1", "zz"]
    assert "early: it was written for truthgpt-core>=99, and 0.1.0 is installed\n" in out


def test_loading_shows_hooks_and_time(truthgpt, site) -> None:
    """With `--load`, rows say which hooks a plugin implements and how long it took."""
    site.install_plugin("shown", HOOKED)
    site.install_plugin("ill", "1 / 0")
    rows = {row["name"]: row for row in json.loads(truthgpt("plugins", "--load", "--json").stdout)}
    assert rows["shown"]["state"] == "active"
    assert rows["shown"]["hooks"] == ["make_decode_step", "register_services"]
    assert 0.05 <= rows["shown"]["load_seconds"] < 5
    assert (rows["ill"]["hooks"], rows["ill"]["load_seconds"]) == (None, None)


def test_loading_shows_hooks_and_time_in_the_table(truthgpt, site) -> None:
    """The table has them too."""
    site.install_plugin("shown", HOOKED)
    out = truthgpt("plugins", "--load").stdout
    (line,) = (line for line in out.splitlines() if line.split()[:1] == ["shown"])
    assert "make_decode_step, register_services" in line
    assert line.endswith(" ms")


@pytest.mark.parametrize("name", ["[red]marked", "two words", "\x1b[31mred", "日本"])
def test_names_are_shown_as_they_are(main, site, name: str) -> None:
    """What a plugin writes into its metadata does nothing to the terminal."""
    site.install("marked", {"truthgpt.plugins": {name: "nowhere"}})
    out = main("plugins")[1]
    assert name.replace("\x1b", "\\x1b") in out
    assert "\x1b" not in out


def test_no_plugins_say_what_to_try(main, monkeypatch) -> None:
    """With no plugin installed, the command says so and what to install."""
    monkeypatch.setattr(discovery, "distributions", list)
    assert main("plugins") == (
        0,
        "No plugins are installed. Try: pip install truthgpt-plugin-quantize\n",
        "",
    )
    assert main("plugins", "--json") == (0, "[]\n", "")


def test_showing_one(main, site) -> None:
    """`truthgpt plugins show` says all that is known, and who needs it.

    It imports nothing but optimizations, to list their options.
    """
    site.install_plugin("base", "raise AssertionError('imported')")
    site.install_plugin(
        "shown",
        "raise AssertionError('imported')",
        requires=(CORE, "base-dist>=1"),
        optimizations={"zz": "MODULE:Z"},
        aliases={"yy": "MODULE:Z"},
        commands={"try-it": "MODULE:command"},
    )
    status, out, _ = main("plugins", "show", "shown")
    assert status == 0
    known, _, options = out.partition("\n\n")
    said = dict(line.split(maxsplit=1) for line in known.splitlines())
    assert options.startswith("zz: shown_module:Z cannot be imported: AssertionError")
    assert said["name"] == "shown"
    assert said["state"] == "found"
    assert said["distribution"] == "shown-dist"
    assert said["requires"] == "truthgpt-core<0.2,>=0.1, base-dist>=1"
    assert said["needs"] == "base"
    assert (said["optimizations"], said["aliases"], said["commands"]) == ("zz", "yy", "try-it")
    (base,) = json.loads(main("plugins", "show", "base-dist", "--json")[1])
    assert base["needed_by"] == ["shown"]


def test_showing_a_broken_one(main, site) -> None:
    """A broken plugin is shown with its reason, judged or loaded."""
    site.install_plugin("ill", "import not_there")
    assert "reason" not in main("plugins", "show", "ill")[1]
    out = main("plugins", "show", "ill", "--load")[1]
    assert "No module named 'not_there'" in out


def test_showing_what_is_not_there_suggests(main, site) -> None:
    """A misspelled name is one line that suggests the right one."""
    site.install_plugin("shown")
    assert main("plugins", "show", "shwon") == (
        1,
        "",
        'truthgpt: There is no plugin named "shwon". Did you mean "shown"?\n',
    )


def install_with_faults(site) -> None:
    """Install a plugin that works, with an optimization and a command that do not."""
    site.install(
        "half-dist",
        {
            "truthgpt.plugins": {"half": "half_module"},
            "truthgpt.optimizations": {"zz": "half_more:Gone"},
            "truthgpt.commands": {"zzz": "half_module:command"},
        },
        {"half_module.py": "command = 3", "half_more.py": "import not_there"},
    )
    site.install("alone-dist", {"truthgpt.commands": {"alone": "alone_module:command"}})


def test_loading_reports_entry_points_that_cannot_be_imported(main, site) -> None:
    """With `--load`, optimizations and commands are imported too, and those that fail are named."""
    install_with_faults(site)
    status, out, _ = main("plugins", "--load")
    assert status == 0
    assert (
        'half: optimization "zz": half_more:Gone cannot be imported: '
        "ModuleNotFoundError: No module named 'not_there'\n" in out
    )
    assert 'half: command "zzz": half_module:command is not a click command\n' in out
    assert 'alone-dist: command "alone": alone_module:command cannot be imported: ' in out
    rows = {row["name"]: row for row in json.loads(main("plugins", "--load", "--json")[1])}
    assert (rows["half"]["state"], len(rows["half"]["problems"])) == ("active", 2)
    assert (rows["alone-dist"]["state"], len(rows["alone-dist"]["problems"])) == ("broken", 1)


def test_entry_points_that_cannot_be_imported_are_fatal_if_strict(main, site) -> None:
    """`--strict` names their plugins."""
    install_with_faults(site)
    status, _, error = main("plugins", "--load", "--strict")
    assert status == 1
    assert "half" in error
    assert "alone-dist" in error


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "def make_decode_step(model, cash): ...",
            "the hook make_decode_step has no argument cash. "
            'Did you mean "cache"? It has model, cache.',
        ),
        ("def diagnose(machine): ...", "the hook diagnose has no argument machine. It has none."),
    ],
)
def test_a_wrong_argument_of_a_hook_is_one_sentence(main, site, code: str, said: str) -> None:
    """It names the hook, the argument, and those that there are."""
    site.install_plugin("wrong", f"from truthgpt_core import hookimpl\n@hookimpl\n{code}")
    assert f"wrong: {said}\n" in main("plugins", "--load")[1]
