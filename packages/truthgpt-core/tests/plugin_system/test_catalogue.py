"""The catalogue says what to install for a name, and is asked for nothing else."""

from __future__ import annotations

import pytest

from truthgpt_core import OptimizationError, PluginManager
from truthgpt_core.plugin_system import catalogue, discovery, table
from truthgpt_core.service_registry import ServiceContainer


def without(monkeypatch: pytest.MonkeyPatch, *distributions: str) -> PluginManager:
    """Make a manager on a machine where some distributions are not installed.

    These tests run where they are and where they are not; what is found is filtered.
    """
    found = discovery.discover()
    monkeypatch.setattr(
        table, "discover", lambda: [each for each in found if each.name not in distributions]
    )
    return PluginManager(ServiceContainer())


@pytest.mark.parametrize(
    ("name", "distribution"),
    [
        ("draft_model", "truthgpt-services"),
        ("kv_cache", "truthgpt-plugin-native"),
        ("prompt_lookup", "truthgpt-services"),
        ("quantize", "truthgpt-plugin-quantize"),
        ("torch_compile", "truthgpt-plugin-compile"),
        ("compile", "truthgpt-plugin-compile"),
    ],
)
def test_a_known_optimization_names_what_to_install(monkeypatch, name, distribution) -> None:
    """Asking for an optimization that is not installed says which distribution has it."""
    manager = without(
        monkeypatch,
        *("truthgpt-plugin-quantize", "truthgpt-plugin-compile", "truthgpt-plugin-native"),
        "truthgpt-services",
    )
    with pytest.raises(OptimizationError) as raised:
        manager.make_optimization(name, {})
    assert raised.value.message == f'Optimization "{name}" is not installed'
    assert raised.value.hint is not None
    assert raised.value.hint.startswith(
        f"It comes with {distribution}: pip install {distribution}. "
    )
    available = manager.optimization_names()
    have = f"Available: {', '.join(available)}." if available else "None is installed."
    assert raised.value.hint.endswith(have)


def test_a_known_name_is_suggested_though_not_installed(monkeypatch) -> None:
    """A slip in the name of what is not installed still gets the right name."""
    manager = without(monkeypatch, "truthgpt-plugin-quantize", "truthgpt-plugin-compile")
    with pytest.raises(OptimizationError, match=r'"quantise". Did you mean "quantize"'):
        manager.make_optimization("quantise", {})


@pytest.mark.parametrize("kind", ["commands", "optimizations"])
def test_every_known_name_has_a_distribution(kind) -> None:
    """Nothing is in the catalogue that cannot be installed."""
    assert catalogue.known(kind)
    for name in catalogue.known(kind):
        distribution = catalogue.distribution_of(kind, name)
        assert distribution is not None
        assert distribution == discovery.normalized(distribution)


def test_every_known_command_has_a_line_of_help() -> None:
    """`truthgpt --help` has a sentence for each known command."""
    for name in catalogue.known("commands"):
        line = catalogue.help_of("commands", name)
        assert line is not None
        assert line.endswith(".")
        assert "\n" not in line


def test_what_is_not_known_is_none() -> None:
    """For names that nobody has there is neither distribution nor help."""
    assert catalogue.distribution_of("optimizations", "xyzzy") is None
    assert catalogue.help_of("commands", "xyzzy") is None


def test_the_catalogue_dispatches_nothing(site, unique: str) -> None:
    """An optimization that the catalogue has never heard of is as good as any other."""
    site.install_plugin(
        "stranger",
        f"""
        from truthgpt_core import Applied, Optimization

        class Strange(Optimization):
            name = "{unique}"
            def apply(self, model, context):
                return Applied(model)
        """,
        optimizations={unique: "MODULE:Strange"},
    )
    assert catalogue.distribution_of("optimizations", unique) is None
    made = PluginManager(ServiceContainer(), strict=False).make_optimization(unique, {})
    assert made.name == unique
