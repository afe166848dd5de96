"""What code of plugins raises and prints is theirs, and no business of the program."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time

import pytest

from truthgpt_core.plugin_system import PluginError, State

COMMAND = "from truthgpt_core.cli.main import main; main()"
PLACES = {
    "import": ("{raises}", "MODULE"),
    "class": ("class Broken:\n    def __init__(self): {raises}", "MODULE:Broken"),
    "name": ("{plugin}    name = property(lambda self: {call})", "MODULE:Broken"),
    "version": ("{plugin}    version = property(lambda self: {call})", "MODULE:Broken"),
    "dependencies": ("{plugin}    dependencies = property(lambda self: {call})", "MODULE:Broken"),
    "initialize": ("{plugin}    def initialize(self, registry): {raises}", "MODULE:Broken"),
    "hook": ("{hook}def register_services(registry): {raises}", "MODULE"),
    "sections": ("{hook}def register_config_sections(sections): {raises}", "MODULE"),
}
ERRORS = {
    "KeyboardInterrupt": "KeyboardInterrupt()",
    "GeneratorExit": "GeneratorExit()",
    "SystemExit": "SystemExit(3)",
    "Worst": "type('Worst', (BaseException,), {})()",
    "StopIteration": "StopIteration()",
    "Unspeakable": "type('Unspeakable', (Exception,), {'__str__': lambda self: 1 / 0})()",
}


def install(site, code: str, value: str = "MODULE") -> None:
    site.install(
        "broken-dist",
        {"truthgpt.plugins": {"broken": value.replace("MODULE", "broken_module")}},
        {"broken_module.py": code},
    )
    for name in ("a_whole", "z_whole"):
        site.install_plugin(name)


def code_raising(place: str, error: str) -> tuple[str, str]:
    code, value = PLACES[place]
    helpers = f"def thrown():\n    raise {ERRORS[error]}\n"
    return helpers + code.format(
        raises="thrown()",
        call="thrown()",
        plugin="from truthgpt_core import Plugin\nclass Broken(Plugin):\n"
        "    name = 'broken'\n    version = '1.0'\n",
        hook="from truthgpt_core import hookimpl\n@hookimpl\n",
    ), value


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("place", PLACES)
def test_whatever_a_plugin_raises_is_a_row(site, manager, place: str, error: str) -> None:
    """Its row has the reason, and plugins before and after it are active."""
    install(site, *code_raising(place, error))
    manager.activate_all()
    rows = {row.name: row for row in manager.rows()}
    assert rows["broken"].state is State.BROKEN
    assert error in rows["broken"].reason
    assert rows["a_whole"].state is rows["z_whole"].state is State.ACTIVE


def test_the_command_goes_on_after_a_keyboard_interrupt_of_a_plugin(site, truthgpt) -> None:
    """`truthgpt plugins --load` lists the plugin as broken, and the others."""
    install(site, "raise KeyboardInterrupt")
    result = truthgpt("plugins", "--load", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert rows["broken"]["reason"].endswith("cannot be imported: KeyboardInterrupt")
    assert rows["z_whole"]["state"] == "active"


CTRL_C = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize(
    "code",
    [
        f"{CTRL_C}\nfor _ in range(10 ** 8): pass",
        "try:\n    {}\n    for _ in range(10 ** 8): pass\nexcept BaseException: pass".format(
            CTRL_C.replace("\n", "\n    ")
        ),
    ],
    ids=["as it is", "swallowed"],
)
def test_a_real_ctrl_c_ends_the_command(site, truthgpt, code: str) -> None:
    """SIGINT while a plugin is imported ends it with 130, whether or not the plugin minds."""
    install(site, code)
    result = truthgpt("plugins", "--load", "--json")
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr.strip() == "truthgpt: interrupted"


def test_a_ctrl_c_from_outside_ends_the_command(site, tmp_path) -> None:
    """SIGINT from another process, while a plugin sleeps in its import, ends it with 130."""
    began = tmp_path / "began"
    install(site, f"import time\nopen({str(began)!r}, 'w').close()\ntime.sleep(600)")
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from truthgpt_core.cli.main import main; main()",
            "plugins",
            "--load",
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    while not began.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1].strip() == "truthgpt: interrupted"
    assert process.returncode == 130


def test_the_programs_own_handler_of_ctrl_c_stays(site, manager) -> None:
    """Importing plugins leaves the program's handler of SIGINT as it was."""
    install(site, "")
    before = signal.getsignal(signal.SIGINT)
    manager.activate_all()
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_can_activate_plugins(site, manager) -> None:
    """Outside the main thread a KeyboardInterrupt is always the plugin's own: a row."""
    install(site, "raise KeyboardInterrupt")
    thread = threading.Thread(target=manager.activate_all)
    thread.start()
    thread.join(timeout=60)
    (row,) = (row for row in manager.rows() if row.name == "broken")
    assert row.state is State.BROKEN


def test_a_shutdown_that_interrupts_is_logged(site, manager, caplog) -> None:
    """Deactivating a plugin undoes the rest, whatever its `shutdown` raises."""
    install(
        site,
        """
        from truthgpt_core import Plugin
        class Broken(Plugin):
            name = "broken"
            version = "1.0"
            def initialize(self, registry): registry.register("of_broken", lambda: 1)
            def shutdown(self): raise KeyboardInterrupt
        """,
        "MODULE:Broken",
    )
    manager.activate("broken")
    manager.deactivate("broken")
    assert "of_broken" not in manager.container.registry
    assert "Broken.shutdown() raised KeyboardInterrupt" in caplog.text


def test_a_plugin_whose_name_raises_is_refused(manager) -> None:
    """Registering it by hand is an error in one line."""
    from truthgpt_core import Plugin

    class Broken(Plugin):
        @property
        def name(self) -> str:
            raise GeneratorExit

    with pytest.raises(PluginError, match="The name of Broken raised GeneratorExit"):
        manager.register_plugin(Broken())


# What it prints

PRINTING = """
import os, subprocess, sys
print("from python")
os.write(1, b"from C\\n")
subprocess.run([sys.executable, "-c", "print('from a child')"])
"""


@pytest.mark.parametrize(
    "arguments", [["plugins", "--load"], ["services"], ["plugins", "show", "broken", "--load"]]
)
def test_what_a_plugin_prints_does_not_spoil_json(site, truthgpt, arguments: list[str]) -> None:
    """Standard output is JSON alone; what the plugin printed is on standard error."""
    install(site, PRINTING)
    result = truthgpt(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    json.loads(result.stdout)
    for line in ("from python", "from C", "from a child"):
        assert line in result.stderr


def test_in_other_programs_plugins_print_where_they_like(site, manager, capsys) -> None:
    """Only the command `truthgpt` owns its standard output."""
    install(site, "print('here')")
    manager.activate_all()
    assert capsys.readouterr().out == "here\n"
