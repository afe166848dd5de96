"""An optimization is made by its name, and an error says what there is and why it is not."""

from __future__ import annotations

import pytest

from truthgpt_core import Applied, Optimization, OptimizationError, Options, hookimpl
from truthgpt_core.plugin_system import State

OPTIMIZATION = """
    from truthgpt_core import Applied, Optimization, Options

    class ShrinkOptions(Options):
        scheme: str = "int8"

    class Shrink(Optimization):
        name = "{name}"
        options_type = ShrinkOptions

        def apply(self, model, context):
            return Applied(("shrunk", model))
"""


def install_shrink(site, name: str, code: str | None = None) -> None:
    site.install_plugin(
        f"{name}_plugin",
        code or OPTIMIZATION.format(name=name),
        optimizations={name: "MODULE:Shrink"},
        aliases={f"{name}_alias": "MODULE:Shrink"},
    )


@pytest.mark.parametrize("suffix", ["", "_alias"])
def test_an_optimization_is_made_by_name_or_alias(site, manager, unique: str, suffix: str) -> None:
    """A name and its alias make the same optimization, with the options given."""
    install_shrink(site, unique)
    made = manager.make_optimization(unique + suffix, {"scheme": "int4"})
    assert (made.name, made.options.scheme) == (unique, "int4")
    assert unique in manager.optimization_names()
    assert f"{unique}_alias" not in manager.optimization_names()


def test_an_unknown_optimization_lists_what_there_is(site, manager) -> None:
    """A wrong name is answered with the closest one and all that are available."""
    install_shrink(site, "zz_shrink")
    with pytest.raises(OptimizationError) as raised:
        manager.make_optimization("zz_shrnk", {})
    assert raised.value.message == 'There is no optimization named "zz_shrnk"'
    assert raised.value.hint is not None
    assert raised.value.hint.startswith('Did you mean "zz_shrink"? Available: ')
    assert "zz_shrink_alias" not in raised.value.hint
    assert ", ".join(manager.optimization_names()) in raised.value.hint


def test_the_path_of_a_class_is_no_optimization(site, manager) -> None:
    """Nothing that is typed is ever imported: a dotted path is an unknown name."""
    with pytest.raises(OptimizationError, match=r'no optimization named "os\.path\.join"'):
        manager.make_optimization("os.path.join", {})


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_the_optimization_of_a_broken_plugin_says_why(site, manager, unique, code, reason) -> None:
    """Asking for what a broken plugin has gives its reason."""
    install_shrink(site, unique, code)
    with pytest.raises(OptimizationError) as raised:
        manager.make_optimization(f"{unique}_alias", {})
    assert str(raised.value) == (
        f'"{unique}_alias" comes with plugin "{unique}_plugin", '
        f"but {unique}_plugin_module cannot be imported: {reason}"
    )


def test_the_optimization_of_an_inactive_plugin_says_so(site, manager, unique: str) -> None:
    """Asking for what a deactivated plugin has says that it is not active."""
    install_shrink(site, unique)
    manager.activate_all()
    manager.deactivate(f"{unique}_plugin")
    with pytest.raises(OptimizationError, match=r"but it is not active$"):
        manager.make_optimization(unique, {})


def test_an_optimization_is_imported_when_it_is_made(site, manager, unique: str) -> None:
    """Activating a plugin does not import its optimizations, which may need torch."""
    site.install(
        "lazy-dist",
        {
            "truthgpt.plugins": {"lazy": "lazy_plugin_module"},
            "truthgpt.optimizations": {unique: "lazy_heavy_module:Shrink"},
        },
        {"lazy_plugin_module.py": "", "lazy_heavy_module.py": "raise SystemExit('torch\\nfailed')"},
    )
    manager.activate_all()
    assert {row.name: row.state for row in manager.rows()}["lazy"] is State.ACTIVE
    with pytest.raises(OptimizationError) as raised:
        manager.make_optimization(unique, {})
    assert str(raised.value) == (
        f'"{unique}" comes with plugin "lazy", but lazy_heavy_module:Shrink '
        "cannot be imported: SystemExit: torch failed"
    )


def test_an_optimization_by_hand_can_be_made(manager, unique: str) -> None:
    """A plugin without a distribution registers its optimizations in the factory."""

    class Mine(Optimization[Options]):
        name = "mine"

        def apply(self, model, context):
            return Applied(model)

    class Bringing:
        @hookimpl
        def register_components(self, factories) -> None:
            factories["optimization_factory"].register(unique, Mine)

    manager.register_plugin(Bringing())
    assert isinstance(manager.make_optimization(unique, {}), Mine)
    assert unique in manager.optimization_names()


def test_wrong_options_are_an_error_of_the_optimization(site, manager, unique: str) -> None:
    """An option that does not exist is refused when the optimization is made."""
    install_shrink(site, unique)
    with pytest.raises(OptimizationError, match=r'no option "shceme" .Did you mean "scheme"'):
        manager.make_optimization(unique, {"shceme": "int8"})
