"""The `truthgpt` command: what it imports, what it says, and how it ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from truthgpt_core.cli import main
from truthgpt_core.plugin_system import catalogue, discovery

COMMAND = """
import click

@click.command(short_help="Not shown: this is not imported.")
@click.argument("words", nargs=-1)
def command(words):
    {body}
"""


@pytest.fixture
def with_command(site):
    """Install a command `try-it` with a body of our own."""

    def install(body: str) -> None:
        site.install(
            "trying",
            {"truthgpt.commands": {"try-it": "trying_module:command"}},
            {"trying_module.py": COMMAND.format(body=body)},
        )

    return install


# Help


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_commands_of_plugins(main, with_command, option: str) -> None:
    """`truthgpt --help` lists installed commands; an unknown one says where it is from."""
    with_command("pass")
    code, out, _ = main(option)
    assert code == 0
    (line,) = (line for line in out.splitlines() if "try-it" in line)
    assert line.split() == ["try-it", "(from", "trying)"]
    assert "List the installed plugins" in out


def test_help_shows_the_summary_of_a_distribution(main, site) -> None:
    """A command that the catalogue does not know has the summary of its distribution as help."""
    metadata = "Metadata-Version: 2.1\nName: told\nVersion: 1\nSummary: Serve a model.\n"
    site.install("told", {"truthgpt.commands": {"try-it": "nowhere:it"}}, metadata=metadata)
    assert "  try-it    Serve a model. (from told)\n" in main("--help")[1]


def test_help_imports_nothing_of_plugins(site, truthgpt, tmp_path) -> None:
    """Neither plugins nor commands are imported to list them."""
    trace = tmp_path / "imported"
    code = f"open({str(trace)!r}, 'w').close()"
    site.install_plugin("noisy", code, commands={"noisy": "MODULE:command"})
    for arguments in (["--help"], ["plugins"], ["plugins", "--json"], ["--version"], ["wrong"]):
        truthgpt(*arguments)
        assert not trace.exists(), arguments
    truthgpt("noisy")
    assert trace.exists()


def test_known_commands_have_their_help(main, site) -> None:
    """A command that the catalogue knows is listed with its line of help."""
    site.install("other-services", {"truthgpt.commands": {"optimize": "nowhere:optimize"}})
    _, out, _ = main("--help")
    assert catalogue.help_of("commands", "optimize") in out


def test_version(main) -> None:
    """`truthgpt --version` prints the version of the core."""
    assert main("--version") == (0, "truthgpt, version 0.1.0\n", "")


# Commands


def test_a_command_of_a_plugin_runs(main, with_command) -> None:
    """An installed command gets its arguments."""
    with_command("click.echo(' '.join(words))")
    assert main("try-it", "a", "b") == (0, "a b\n", "")


def test_an_unknown_command_suggests(main, with_command) -> None:
    """A slip in a command's name is answered with the right one, in one line."""
    with_command("pass")
    assert main("tri-it") == (
        1,
        "",
        'truthgpt: There is no command "tri-it". Did you mean "try-it"?\n',
    )


def test_a_known_command_is_suggested_though_not_installed(main) -> None:
    """A slip in the name of a command that is not installed still gets the right name."""
    assert main("optimise")[2] == (
        'truthgpt: There is no command "optimise". Did you mean "optimize"?\n'
    )


def test_a_command_like_no_other_points_to_the_help(main) -> None:
    """An unknown command that resembles none is told where to look."""
    assert main("xyzzy")[2] == 'truthgpt: There is no command "xyzzy". See truthgpt --help.\n'


@pytest.mark.parametrize("name", catalogue.known("commands"))
def test_a_command_that_is_not_installed_says_what_to_install(main, monkeypatch, name) -> None:
    """A known command that is not installed names its distribution."""
    monkeypatch.setattr(discovery, "discover", list)
    distribution = catalogue.distribution_of("commands", name)
    assert main(name, "--anything") == (
        1,
        "",
        f'truthgpt: The command "{name}" is not installed. '
        f"It comes with {distribution}: pip install {distribution}.\n",
    )


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise OSError('two\\nlines')", "cannot be imported: OSError: two lines. Reinstall it"),
        ("raise SystemExit(0)", "cannot be imported: SystemExit: 0. Reinstall it"),
        ("def f(:", "cannot be imported: SyntaxError: "),
        ("import not_there_at_all", "No module named 'not_there_at_all'"),
        ("command = 3", '"bad_module:command", the command "bad", is not a click command'),
    ],
)
def test_a_broken_command_is_one_line(main, site, code: str, said: str) -> None:
    """A command that cannot be imported says why in one line, and other commands work."""
    site.install(
        "bad", {"truthgpt.commands": {"bad": "bad_module:command"}}, {"bad_module.py": code}
    )
    status, out, error = main("bad")
    assert (status, out) == (1, "")
    assert said in error
    assert error.startswith("truthgpt: ")
    assert error.count("\n") == 1
    assert main("plugins", "--json")[0] == 0


def test_a_command_for_another_core_is_not_imported(main, site) -> None:
    """A command of a distribution that was written for another core is refused unseen."""
    site.install(
        "early",
        {"truthgpt.commands": {"early": "early_module:command"}},
        {"early_module.py": "raise AssertionError('imported')"},
        requires=("truthgpt-core>=99",),
    )
    status, _, error = main("early")
    assert (status, error) == (
        1,
        'truthgpt: The command "early" of early cannot be used: '
        "it was written for truthgpt-core>=99, and 0.1.0 is installed\n",
    )


def test_a_command_that_two_have_is_neither(main, site) -> None:
    """Of two commands of one name none is run, for it might be the wrong one."""
    for name in ("one-dist", "other-dist"):
        site.install(name, {"truthgpt.commands": {"same": "nowhere:command"}})
    status, _, error = main("same")
    assert status == 1
    assert 'one-dist, other-dist all have a commands entry named "same"' in error


# How it ends


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ("pass", 0, ""),
        ("return 3", 3, ""),
        ("return 'text'", 0, ""),
        ("raise SystemExit(4)", 4, ""),
        ("click.get_current_context().exit(5)", 5, ""),
        (
            "from truthgpt_core import TruthGPTError;"
            " raise TruthGPTError('It is wrong', hint='Do so.')",
            1,
            "truthgpt: It is wrong. Do so.\n",
        ),
        ("raise OSError(28, 'No space left on device')", 1, "truthgpt: the disk is full: "),
    ],
)
def test_exit_codes(main, with_command, body: str, status: int, error: str) -> None:
    """A command ends with its code; an error of ours is one line and 1, and so is a full disk."""
    with_command(body)
    found, out, said = main("try-it")
    assert (found, out) == (status, "")
    assert said.startswith(error)
    assert said.count("\n") == (1 if error else 0)


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "click.Abort"])
def test_an_interruption_is_130(main, with_command, error: str) -> None:
    """Ctrl-C ends with 130, as shells expect, and one word."""
    with_command(f"raise {error}")
    status, _, said = main("try-it")
    assert (status, said.strip()) == (130, "truthgpt: interrupted")


def test_debugging_shows_where_an_error_came_from(main, with_command, monkeypatch) -> None:
    """With `TRUTHGPT_DEBUG=1` the traceback stands before the line; without it, it does not."""
    with_command("from truthgpt_core import TruthGPTError; raise TruthGPTError('It is wrong')")
    assert main("try-it")[2] == "truthgpt: It is wrong\n"
    for value in ("", "0"):
        monkeypatch.setenv("TRUTHGPT_DEBUG", value)
        assert main("try-it")[2] == "truthgpt: It is wrong\n"
    monkeypatch.setenv("TRUTHGPT_DEBUG", "1")
    code, _, error = main("try-it")
    assert code == 1
    assert error.startswith("Traceback (most recent call last):")
    assert "trying_module.py" in error
    assert error.endswith("truthgpt: It is wrong\n")


def test_wrong_usage_is_2(main) -> None:
    """An option that does not exist ends with 2 and says so."""
    status, _, said = main("plugins", "--lod")
    assert status == 2
    assert "No such option" in said
    assert "--load" in said


@pytest.mark.parametrize("error", ["ValueError('ours')", "OSError(5, 'Input/output error')"])
def test_a_bug_keeps_its_traceback(monkeypatch, with_command, error: str) -> None:
    """What is not an error of ours is not swallowed."""
    with_command(f"raise {error}")
    monkeypatch.setattr(sys, "argv", ["truthgpt", "try-it"])
    with pytest.raises((ValueError, OSError), match=r"ours|Input/output error"):
        main.main()


@pytest.mark.parametrize(
    "body",
    ["[click.echo('x' * 99) for _ in range(9999)]", "[print('x' * 99) for _ in range(9999)]"],
)
def test_a_reader_that_went_away_is_no_error_to_tell(with_command, body: str) -> None:
    """`truthgpt ... | head -1` says nothing on stderr."""
    with_command(body)
    process = subprocess.Popen(
        [sys.executable, "-c", "from truthgpt_core.cli.main import main; main()", "try-it"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 1
