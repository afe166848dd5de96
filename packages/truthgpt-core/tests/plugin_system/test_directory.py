"""Plugins from a directory: what is loaded, what is refused, and what stays after a failure."""

from __future__ import annotations

import os
import py_compile
import sys
import textwrap
from pathlib import Path

import pytest

from truthgpt_core import PluginManager
from truthgpt_core.plugin_system import PluginError, State
from truthgpt_core.service_registry import ServiceContainer, get_container

CLASS = """
from truthgpt_core import Plugin

class {name}Plugin(Plugin):
    name = "{name}"
    version = "1.0"

    def initialize(self, registry):
        registry.register("{name}_service", lambda: "{name}")
"""

HOOKS = """
from truthgpt_core import hookimpl

@hookimpl
def register_services(registry):
    registry.register("hooked_service", lambda: __name__)
"""


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """An empty directory for plugins."""
    directory = tmp_path / "plugins"
    directory.mkdir(mode=0o755)
    return directory


def write(directory: Path, file: str, code: str) -> Path:
    path = directory / file
    path.parent.mkdir(mode=0o755, exist_ok=True)
    path.write_text(textwrap.dedent(code))
    path.chmod(0o644)
    return path


def load(manager: PluginManager, directory: Path) -> dict[str, tuple[State, str]]:
    rows = manager.load_plugins_from_directory(directory)
    return {row.name: (row.state, row.reason) for row in rows}


ACTIVE = (State.ACTIVE, "")


def test_the_plugins_of_a_file_are_its_plugin_classes(manager, plugins) -> None:
    """Every subclass of `Plugin` that a file defines is a plugin, by its own name."""
    write(plugins, "two.py", CLASS.format(name="one") + CLASS.format(name="other"))
    assert load(manager, plugins) == {"one": ACTIVE, "other": ACTIVE}
    assert manager.container.get("one_service") == "one"
    assert manager.container.get("other_service") == "other"


def test_a_module_with_hooks_is_a_plugin(manager, plugins) -> None:
    """A file with hook implementations and no class is a plugin of the file's name."""
    path = write(plugins, "hooked.py", HOOKS)
    assert load(manager, plugins) == {"hooked": ACTIVE}
    (row,) = (row for row in manager.rows() if row.name == "hooked")
    assert (row.file, row.distribution) == (path, None)
    assert "hooked_service" in manager.container.registry.names()


def test_a_package_is_loaded_with_its_modules(manager, plugins) -> None:
    """A directory with an __init__.py is loaded as a package; its parts may import each other."""
    write(plugins, "packed/__init__.py", "from .inner import InnerPlugin, helped")
    write(plugins, "packed/inner.py", "from .help import helped\n" + CLASS.format(name="Inner"))
    write(plugins, "packed/help.py", "helped = True")
    assert load(manager, plugins) == {"Inner": ACTIVE}


def test_imported_classes_are_not_the_files_own(manager, plugins) -> None:
    """A plugin class that a file only imports is not loaded a second time with it."""
    write(
        plugins,
        "derived.py",
        """
        from truthgpt_core import Plugin
        from truthgpt_core.plugin_system import Plugin as Same

        class _Base(Plugin):
            version = "1.0"

        class Derived(_Base):
            name = "derived"

        Again = Derived
        """,
    )
    assert load(manager, plugins) == {"derived": ACTIVE}


def test_hidden_and_private_files_are_left_out(manager, plugins) -> None:
    """Names with `_` or `.` in front, and what is no Python, are not loaded."""
    for file in ("_private.py", ".hidden.py", "notes.txt", "data/readme.py", "_pack/__init__.py"):
        write(plugins, file, "raise SystemExit")
    assert load(manager, plugins) == {}


def test_an_optimization_of_a_file_can_be_made(manager, plugins, unique: str) -> None:
    """A file without distribution brings an optimization by registering it itself."""
    write(
        plugins,
        "shrinking.py",
        f"""
        from truthgpt_core import Applied, Optimization, hookimpl

        class Shrink(Optimization):
            name = "{unique}"
            def apply(self, model, context):
                return Applied(model)

        @hookimpl
        def register_components(factories):
            factories["optimization_factory"].register("{unique}", Shrink)
        """,
    )
    assert load(manager, plugins) == {"shrinking": ACTIVE}
    assert manager.make_optimization(unique, {}).name == unique


# What is broken


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def f(:", "cannot be loaded: SyntaxError: "),
        ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("raise SystemExit(2)", "cannot be loaded: SystemExit: 2"),
        ("raise OSError('two\\nlines')", "cannot be loaded: OSError: two lines"),
        ("x = 1", "has neither a subclass of Plugin nor a function marked with hookimpl"),
        (CLASS.format(name="both") + HOOKS, "has hook implementations beside bothPlugin"),
        (
            "from truthgpt_core import Plugin\nclass P(Plugin): pass",
            "P does not say its name",
        ),
        (
            "from truthgpt_core import hookimpl\n@hookimpl\ndef register_servises(): pass",
            'there is no hook named register_servises. Did you mean "register_services"?',
        ),
    ],
)
def test_a_broken_file_is_a_row_and_the_others_work(manager, plugins, code, reason) -> None:
    """A file that fails is a row with a reason, and the files before and after it are loaded."""
    write(plugins, "a_good.py", CLASS.format(name="a"))
    write(plugins, "bad.py", code)
    write(plugins, "c_good.py", CLASS.format(name="c"))
    found = load(manager, plugins)
    state, said = found.pop("bad")
    assert found == {"a": ACTIVE, "c": ACTIVE}
    assert state is State.BROKEN
    assert reason in said
    assert "\n" not in said
    assert {row.name: row.reason for row in manager.rows()}["bad"] == said


def test_a_file_that_fails_leaves_nothing_behind(manager, plugins, unique: str) -> None:
    """What a file registered before it raised is taken back, and so is its module."""
    before = set(sys.modules)
    write(
        plugins,
        "half.py",
        f"""
        from truthgpt_core.service_registry import register_service

        @register_service("{unique}")
        def service(): pass

        raise ValueError
        """,
    )
    assert load(manager, plugins)["half"][0] is State.BROKEN
    assert unique not in get_container().registry.names()
    assert set(sys.modules) - before == set()


def test_one_plugin_of_a_file_may_fail(manager, plugins, unique: str) -> None:
    """Of two plugins in a file, the one that works keeps what running the file registered."""
    write(
        plugins,
        "two.py",
        "from truthgpt_core.service_registry import register_service\n"
        f"register_service('{unique}')(lambda: 1)\n"
        + CLASS.format(name="bad").rstrip()
        + "\n        raise ValueError('boom')\n"
        + CLASS.format(name="good"),
    )
    found = load(manager, plugins)
    assert found == {
        "bad": (State.BROKEN, "it failed to initialize: ValueError: boom"),
        "good": ACTIVE,
    }
    assert "bad_service" not in manager.container.registry.names()
    assert unique in get_container().registry.names()
    manager.deactivate("good")
    assert unique not in get_container().registry.names()


def test_deactivating_a_plugin_of_a_file_undoes_it(manager, plugins) -> None:
    """What came with a file goes with its plugin, its module and its row included."""
    before = set(sys.modules)
    write(plugins, "one.py", CLASS.format(name="one"))
    load(manager, plugins)
    manager.deactivate("one")
    assert "one" not in {row.name for row in manager.rows()}
    assert "one_service" not in manager.container.registry.names()
    assert set(sys.modules) - before == set()


def test_a_taken_name_is_a_row(site, manager, plugins) -> None:
    """A file's plugin cannot take the name of an installed one, which stays."""
    site.install_plugin("taken")
    write(plugins, "mine.py", CLASS.format(name="taken"))
    assert load(manager, plugins) == {
        "taken": (State.BROKEN, 'there is a plugin named "taken" already')
    }
    rows = [row for row in manager.rows() if row.name == "taken"]
    assert sorted(row.state for row in rows) == [State.BROKEN, State.FOUND]
    assert "taken_service" not in manager.container.registry.names()


def test_loading_again_tries_what_was_broken(manager, plugins) -> None:
    """A file that was put right is loaded the next time, and active ones stay as they are."""
    write(plugins, "fixed.py", "1 / 0")
    write(plugins, "steady.py", CLASS.format(name="steady"))
    assert load(manager, plugins)["fixed"][0] is State.BROKEN
    write(plugins, "fixed.py", CLASS.format(name="fixed"))
    assert load(manager, plugins) == {"fixed": ACTIVE, "steady": ACTIVE}
    assert [row.name for row in manager.rows() if row.file is not None] == ["fixed", "steady"]


def test_strict_makes_a_broken_file_fatal(plugins) -> None:
    """In strict mode a broken file is an error with its reason."""
    write(plugins, "bad.py", "1 / 0")
    manager = PluginManager(ServiceContainer(), strict=True)
    with pytest.raises(PluginError, match=r'Plugin "bad" is broken: .*ZeroDivisionError'):
        manager.load_plugins_from_directory(plugins)


# What is refused


@pytest.mark.parametrize("given", [str, Path])
def test_a_directory_that_is_not_there_is_an_error(manager, tmp_path: Path, given) -> None:
    """A missing directory is an error that names it."""
    with pytest.raises(PluginError, match=r"There is no directory .*nowhere"):
        manager.load_plugins_from_directory(given(tmp_path / "nowhere"))


def test_a_file_is_no_directory(manager, plugins) -> None:
    """The path of a file is an error that says what it is not."""
    path = write(plugins, "one.py", "")
    with pytest.raises(PluginError, match=r"one\.py is not a directory"):
        manager.load_plugins_from_directory(path)


def test_a_directory_that_everyone_may_write_is_refused(manager, plugins) -> None:
    """If everyone may write into the directory nothing in it is run, and the error says why."""
    write(plugins, "one.py", CLASS.format(name="one"))
    plugins.chmod(0o777)
    with pytest.raises(PluginError, match=r"Everyone may write into .*chmod o-w"):
        manager.load_plugins_from_directory(plugins)
    assert "one_service" not in manager.container.registry.names()


def test_a_file_that_everyone_may_write_is_refused(manager, plugins) -> None:
    """A file that anyone could have changed is a row that says so, and is not run."""
    write(plugins, "one.py", CLASS.format(name="one")).chmod(0o666)
    state, reason = load(manager, plugins)["one"]
    assert state is State.BROKEN
    assert reason.startswith("everyone may write ")


@pytest.mark.parametrize("part", ["packed", "packed/inner.py", "packed/deep"])
def test_a_package_that_everyone_may_write_is_refused(manager, plugins, part: str) -> None:
    """A package is refused if anyone could have changed any part of it."""
    write(plugins, "packed/__init__.py", CLASS.format(name="packed"))
    write(plugins, "packed/inner.py", "")
    write(plugins, "packed/deep/data.txt", "")
    (plugins / part).chmod(0o777)
    state, reason = load(manager, plugins)["packed"]
    assert (state, reason.startswith(f"everyone may write {plugins / part}")) == (
        State.BROKEN,
        True,
    )


def test_a_link_out_of_the_directory_is_refused(manager, plugins, tmp_path: Path) -> None:
    """A link is followed no further than the directory; the row says where it leads."""
    outside = write(tmp_path / "elsewhere", "outside.py", CLASS.format(name="outside"))
    (plugins / "linked.py").symlink_to(outside)
    state, reason = load(manager, plugins)["linked"]
    assert state is State.BROKEN
    assert f"is really {outside}, outside {plugins}" in reason


def test_a_link_to_a_package_is_refused(manager, plugins, tmp_path: Path) -> None:
    """A package must be a directory of its own: a link to one is refused."""
    write(tmp_path / "elsewhere", "__init__.py", CLASS.format(name="outside"))
    (plugins / "linked").symlink_to(tmp_path / "elsewhere")
    assert load(manager, plugins)["linked"][0] is State.BROKEN


@pytest.mark.parametrize("target", ["elsewhere/inner.py", "elsewhere"])
def test_a_package_with_a_link_out_of_it_is_refused(manager, plugins, tmp_path, target) -> None:
    """A package is refused if any part of it leads outside, a file or a directory."""
    write(plugins, "packed/__init__.py", CLASS.format(name="packed"))
    write(tmp_path / "elsewhere", "inner.py", "")
    (plugins / "packed" / Path(target).name).symlink_to(tmp_path / target)
    assert load(manager, plugins)["packed"][0] is State.BROKEN


def test_a_package_with_a_link_to_a_directory_is_refused(manager, plugins) -> None:
    """What is behind a link to a directory was not looked at, so the package is not run."""
    write(plugins, "packed/__init__.py", CLASS.format(name="packed"))
    write(plugins, "_other/inner.py", "").chmod(0o666)
    (plugins / "packed" / "other").symlink_to(plugins / "_other")
    state, reason = load(manager, plugins)["packed"]
    assert (state, reason.endswith("is a link to a directory")) == (State.BROKEN, True)


def test_a_link_within_the_directory_is_fine(manager, plugins) -> None:
    """A link to a file of the same directory is loaded."""
    target = write(plugins, "_real.py", HOOKS)
    (plugins / "linked.py").symlink_to(target)
    assert load(manager, plugins) == {"linked": ACTIVE}


def test_a_directory_that_is_a_link_is_fine(manager, plugins, tmp_path: Path) -> None:
    """The directory itself may be a link: what counts is where its files really are."""
    write(plugins, "hooked.py", HOOKS)
    (tmp_path / "link").symlink_to(plugins)
    assert load(manager, tmp_path / "link") == {"hooked": ACTIVE}


@pytest.mark.parametrize("target", ["nothing.py", "broken.py"])
def test_a_link_to_nothing_is_a_row(manager, plugins, target: str) -> None:
    """A link to nothing, or to itself, is a row and no crash."""
    (plugins / "broken.py").symlink_to(plugins / target)
    state, reason = load(manager, plugins)["broken"]
    assert (state, reason.endswith("is a link to nothing")) == (State.BROKEN, True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no named pipes")
def test_a_pipe_is_refused(manager, plugins) -> None:
    """What is not a regular file is refused: reading a pipe would wait for ever."""
    os.mkfifo(plugins / "pipe.py", 0o600)
    assert load(manager, plugins)["pipe"][1].endswith("is not a regular file")


def test_compiled_code_beside_a_file_is_not_run(manager, plugins) -> None:
    """Only the source counts: compiled code that pretends to be of it is not run."""
    path = write(plugins, "hooked.py", "raise SystemExit".ljust(len(HOOKS)))
    before = path.stat()
    py_compile.compile(str(path), doraise=True)
    write(plugins, "hooked.py", HOOKS)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert load(manager, plugins) == {"hooked": ACTIVE}


def test_no_compiled_code_is_written(manager, plugins, monkeypatch) -> None:
    """Loading a directory writes nothing into it."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    write(plugins, "hooked.py", HOOKS)
    assert load(manager, plugins) == {"hooked": ACTIVE}
    assert [path.name for path in plugins.iterdir()] == ["hooked.py"]


def test_a_relative_path_is_fine(manager, plugins, monkeypatch) -> None:
    """The seed's `load_plugins_from_directory("plugins/")` is relative to where one is."""
    write(plugins, "hooked.py", HOOKS)
    monkeypatch.chdir(plugins.parent)
    rows = manager.load_plugins_from_directory("plugins/")
    assert [row.state for row in rows] == [State.ACTIVE]
