"""Sections of a training configuration that installed plugins add through the hook."""

from __future__ import annotations

import pytest

from truthgpt_core import PluginManager
from truthgpt_core.config import ConfigError, ConfigManager, ConfigSections, json_schema
from truthgpt_core.plugin_system import State
from truthgpt_core.service_registry import ServiceContainer

SECTION = """
from truthgpt_core import Plugin, hookimpl
from truthgpt_core.config import Section, get_config_sections

class Tracking(Section):
    project: str = "truthgpt"
    steps: int = 10
"""

PLUGIN = f"""{SECTION}
@hookimpl
def register_config_sections(sections):
    sections.register("tracking", Tracking)
"""


@pytest.fixture
def manager() -> PluginManager:
    """A plugin manager with a container and sections of its own."""
    return PluginManager(ServiceContainer(), sections=ConfigSections(), strict=False)


@pytest.fixture
def load(write, manager):
    """Load a configuration with the sections of a manager."""

    def load(lines: str = "", sections: ConfigSections | None = manager.sections) -> ConfigManager:
        return ConfigManager.load_config(write(lines), environment={}, sections=sections)

    return load


def assert_gone(load, sections: ConfigSections | None) -> None:
    assert "tracking" not in dir(load("", sections))
    assert "tracking" not in json_schema(sections=sections)["properties"]
    with pytest.raises(ConfigError, match=r":1:1: tracking: unknown key"):
        load("tracking: {project: x}\n", sections)


def reason_of(manager: PluginManager, name: str) -> str:
    (row,) = (row for row in manager.rows() if row.name == name)
    assert row.state is State.BROKEN
    return row.reason


def test_a_plugin_adds_a_section(site, manager, load) -> None:
    """What a plugin registers through the hook is read, validated and an attribute."""
    site.install_plugin("tracker", PLUGIN)
    assert manager.rows()
    assert_gone(load, manager.sections)
    manager.activate_all()
    config = load("tracking: {project: x}\n")
    assert (config.tracking.project, config.tracking.steps) == ("x", 10)
    with pytest.raises(ConfigError, match=r":1:19: tracking\.steps: should be an integer"):
        load("tracking: {steps: many}\n")


def test_a_section_goes_with_its_plugin_and_comes_back(site, manager, load) -> None:
    """Deactivating takes the section away; activating again brings it back."""
    site.install_plugin("tracker", PLUGIN)
    manager.activate("tracker")
    manager.deactivate("tracker")
    assert_gone(load, manager.sections)
    manager.activate("tracker")
    assert load().tracking.project == "truthgpt"


def test_managers_share_nothing_but_the_sections_that_they_are_given(site, load) -> None:
    """A plugin of one manager adds nothing to another's sections, nor to the default ones."""
    site.install_plugin("tracker", PLUGIN)
    one = PluginManager(ServiceContainer(), sections=ConfigSections())
    other = PluginManager(ServiceContainer(), sections=ConfigSections())
    one.activate("tracker")
    assert load("tracking: {project: x}\n", one.sections).tracking.project == "x"
    assert_gone(load, other.sections)
    assert_gone(load, None)


def test_a_section_lasts_until_the_last_manager_lets_go(site, load) -> None:
    """Two managers with the same sections may activate one plugin, and end in any order."""
    site.install_plugin("tracker", PLUGIN)
    sections = ConfigSections()
    one, other = (PluginManager(ServiceContainer(), sections=sections) for _ in range(2))
    one.activate("tracker")
    other.activate("tracker")
    one.deactivate("tracker")
    assert load("tracking: {project: x}\n", sections).tracking.project == "x"
    other.deactivate("tracker")
    assert_gone(load, sections)


def test_sections_are_the_default_ones_unless_given(site, load) -> None:
    """A plugin of a manager like `get_plugin_manager()` adds to what everyone reads."""
    site.install_plugin("tracker", PLUGIN)
    manager = PluginManager()
    manager.activate("tracker")
    assert load("tracking: {project: x}\n", None).tracking.project == "x"
    manager.deactivate("tracker")
    assert_gone(load, None)


CLASS = f"""{SECTION}
class Tracker(Plugin):
    name = "tracker"
    version = "1.0"

    @hookimpl
    def register_config_sections(self, sections):
        sections.register("tracking", Tracking)
"""


RAISES = "raise OSError('no network')"
FAILING = {
    "import": f"get_config_sections().register('tracking', Tracking)\n{RAISES}\n",
    "initialize": f"""
    def initialize(self, registry):
        {RAISES}
""",
    "initialize after registering": f"""
    def initialize(self, registry):
        get_config_sections().register("tracking", Tracking)
        {RAISES}
""",
    "this hook": f"""
    @hookimpl
    def register_config_sections(self, sections):
        sections.register("tracking", Tracking)
        {RAISES}
""",
    "a hook called before": f"""
    @hookimpl
    def register_components(self, factories):
        {RAISES}
""",
    "a hook called after": f"""
    @hookimpl
    def register_services(self, registry):
        {RAISES}
""",
}


@pytest.mark.parametrize("failing", FAILING)
def test_a_plugin_that_fails_leaves_no_section(site, load, failing: str) -> None:
    """Wherever activation fails, before the section is registered or after it, none is left."""
    site.install(
        "tracker-dist",
        {"truthgpt.plugins": {"tracker": "tracker_module:Tracker"}},
        {"tracker_module.py": f"{CLASS}{FAILING[failing]}"},
    )
    manager = PluginManager(ServiceContainer(), strict=False)
    manager.activate_all()
    assert reason_of(manager, "tracker").endswith("OSError: no network")
    assert_gone(load, None)


def test_of_two_plugins_with_one_section_the_second_is_broken(site, manager, load) -> None:
    """The first keeps the section; the reason of the second names whose it is."""
    site.install_plugin("first", PLUGIN)
    site.install_plugin("second", PLUGIN)
    manager.activate_all()
    assert reason_of(manager, "second") == (
        'the configuration section "tracking" is taken by first_module.Tracking'
    )
    assert type(load().tracking).__module__ == "first_module"
    manager.deactivate("first")
    assert_gone(load, manager.sections)


def test_a_key_of_the_core_cannot_be_taken(site, manager, load) -> None:
    """A plugin that claims `seed` is broken, and `seed` is what it was."""
    site.install_plugin("greedy", PLUGIN.replace('"tracking"', '"seed"'))
    manager.activate_all()
    assert reason_of(manager, "greedy") == 'the configuration section "seed" is taken by the core'
    assert load().seed == 42


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "class Tracking(Section):\n    steps: 'Steps'\n",
            'the model of the configuration section "tracking" cannot be used: ',
        ),
        (
            "class Tracking:\n    steps: int = 1\n",
            'the model of the configuration section "tracking" is not a pydantic model',
        ),
    ],
)
def test_an_unusable_model_breaks_its_plugin_alone(site, manager, load, code, reason) -> None:
    """A section that cannot be validated is the plugin's fault, told when it is activated."""
    site.install_plugin("tracker", f"{SECTION}\n{code}\n{PLUGIN.removeprefix(SECTION)}")
    manager.activate_all()
    assert reason_of(manager, "tracker").startswith(reason)
    assert_gone(load, manager.sections)


def test_a_section_that_defaults_do_not_fill_may_be_left_out(site, manager, load) -> None:
    """Where a validator wants one of two keys, a file without the section is valid all the same."""
    one_of = """
    from pydantic import model_validator
    from truthgpt_core import hookimpl
    from truthgpt_core.config import Section

    class Tracking(Section):
        url: str = ""
        folder: str = ""

        @model_validator(mode="after")
        def _one(self):
            if not self.url and not self.folder:
                raise ValueError("give url or folder")
            return self

    @hookimpl
    def register_config_sections(sections):
        sections.register("tracking", Tracking)
    """
    site.install_plugin("tracker", one_of)
    manager.activate_all()
    assert load().tracking is None
    assert load("tracking: {folder: runs}\n").tracking.folder == "runs"
    with pytest.raises(ConfigError, match=r":1:11: tracking: give url or folder"):
        load("tracking: {}\n")


def test_a_section_may_have_any_name_that_hides_nothing(site, manager, load) -> None:
    """Names that begin as pydantic's own do are names like any other."""
    site.install_plugin("zoo", PLUGIN.replace('"tracking"', '"model_validate_zoo"'))
    manager.activate_all()
    assert load("model_validate_zoo: {project: x}\n").model_validate_zoo.project == "x"
