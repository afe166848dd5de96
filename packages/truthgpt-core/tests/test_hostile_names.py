"""Names that drive a terminal are written as escapes, wherever the command prints them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import pytest

pytestmark = pytest.mark.slow

TITLE, C1, TURN = "\x1b]0;owned\x07", "\x9b2J", "\u202eevil"
HOSTILE = f"x{TITLE}{C1}{TURN}"
"""It sets the title of a terminal, clears the screen by a C1 control, and turns text around."""

ESCAPED = "x\\x1b]0;owned\\x07\\x9b2J\\u202eevil"


def plugin_name(site) -> list[str]:
    site.install("marked", {"truthgpt.plugins": {HOSTILE: "nowhere"}})
    return ["plugins"]


def distribution(site) -> list[str]:
    metadata = f"Metadata-Version: 2.1\nName: {HOSTILE}\nVersion: 1\n"
    site.install("marked", {"truthgpt.plugins": {"marked": "nowhere"}}, metadata=metadata)
    return ["plugins", "show", "marked"]


def reason(site) -> list[str]:
    site.install_plugin("marked", f"raise ValueError({HOSTILE!r})")
    return ["plugins", "--load"]


def disabled(site) -> list[str]:
    site.install("marked", {"truthgpt.plugins": {HOSTILE: "nowhere"}})
    return ["plugins", "disable", HOSTILE]


def unknown_plugin(site) -> list[str]:
    return ["plugins", "show", HOSTILE]


def hint(site) -> list[str]:
    site.install("marked", {"truthgpt.plugins": {f"{HOSTILE}1": "nowhere"}})
    return ["plugins", "show", f"{HOSTILE}2"]


def command_in_help(site) -> list[str]:
    site.install("marked", {"truthgpt.commands": {HOSTILE: "nowhere"}})
    return ["--help"]


def distribution_in_help(site) -> list[str]:
    metadata = f"Metadata-Version: 2.1\nName: {HOSTILE}\nVersion: 1\n"
    site.install("marked", {"truthgpt.commands": {"marked": "nowhere"}}, metadata=metadata)
    return ["--help"]


def summary_in_help(site) -> list[str]:
    metadata = f"Metadata-Version: 2.1\nName: marked\nVersion: 1\nSummary: {HOSTILE}\n"
    site.install("marked", {"truthgpt.commands": {"marked": "nowhere"}}, metadata=metadata)
    return ["--help"]


def unknown_command(site) -> list[str]:
    return [HOSTILE]


def broken_command(site) -> list[str]:
    code = f"raise ValueError({HOSTILE!r})"
    site.install("marked", {"truthgpt.commands": {"marked": "marked_m:it"}}, {"marked_m.py": code})
    return ["marked"]


def unknown_option(site) -> list[str]:
    return ["plugins", f"--{HOSTILE}"]


def one_argument_too_many(site) -> list[str]:
    return ["plugins", "show", "one", HOSTILE]


def file_name(site) -> list[str]:
    return ["config", "show", f"{HOSTILE}.yaml"]


def key_of_a_configuration(site) -> list[str]:
    file = site.path / "train.yaml"
    file.write_text(f'"{HOSTILE}": 1\n'.encode("unicode_escape").decode().replace("\\n", "\n"))
    return ["config", "show", str(file)]


def service(site) -> list[str]:
    site.install_plugin(
        "marked",
        "from truthgpt_core import hookimpl\n@hookimpl\n"
        f"def register_services(registry): registry.register({HOSTILE!r}, lambda: 1)",
    )
    return ["services", "--health"]


def faulty_service(site) -> list[str]:
    site.install_plugin(
        "marked",
        "from truthgpt_core import hookimpl\ndef make(not_there): ...\n@hookimpl\n"
        f"def register_services(registry): registry.register({HOSTILE!r}, make)",
    )
    return ["services"]


def log(site) -> list[str]:
    site.install_plugin("marked", f"import logging\nlogging.getLogger('m').error({HOSTILE!r})")
    return ["plugins", "--load"]


def warning(site) -> list[str]:
    site.install_plugin(
        "marked",
        f"import warnings\nwith warnings.catch_warnings():\n    warnings.simplefilter('always')\n"
        f"    warnings.warn({HOSTILE!r})",
    )
    return ["plugins", "--load"]


def bug(site) -> list[str]:
    code = f"import click\n@click.command()\ndef it(): raise RuntimeError({HOSTILE!r})"
    site.install("marked", {"truthgpt.commands": {"marked": "marked_m:it"}}, {"marked_m.py": code})
    return ["marked"]


PLACES: list[Callable[..., list[str]]] = [
    plugin_name,
    distribution,
    reason,
    disabled,
    unknown_plugin,
    hint,
    command_in_help,
    distribution_in_help,
    summary_in_help,
    unknown_command,
    broken_command,
    unknown_option,
    one_argument_too_many,
    file_name,
    key_of_a_configuration,
    service,
    faulty_service,
    log,
    warning,
    bug,
]


@pytest.mark.campaign(cases=8)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_hostile_name_reaches_no_terminal(site, truthgpt, place) -> None:
    """It is printed as escapes, on standard output and standard error."""
    result = truthgpt(*place(site))
    said = result.stdout + result.stderr
    for harmful in ("\x1b", "\x07", "\x9b", "\u202e"):
        assert harmful not in said
    # Help wraps its lines.
    assert "1b]0;" in "".join(said.split())
    assert "\\u202e" in said or "\\u202e" in "".join(said.split())


def test_names_in_the_environment_reach_no_terminal(truthgpt, monkeypatch) -> None:
    """Nor does a name in a variable that no plugin has."""
    monkeypatch.setenv("TRUTHGPT_PLUGINS_BLOCK", HOSTILE)
    result = truthgpt("plugins")
    assert ESCAPED in result.stderr
    assert "\x1b" not in result.stderr


def test_the_settings_of_the_program_come_back(main) -> None:
    """Logs and warnings of a program that runs the command are its own again afterwards."""
    handler = logging.lastResort
    assert handler is not None
    before = handler.formatter, warnings.formatwarning
    main("plugins")
    assert (handler.formatter, warnings.formatwarning) == before
