"""Sections of a training configuration that installed plugins add through the hook."""

from __future__ import annotations

import pytest

from truthgpt_core import PluginManager
from truthgpt_core.config import ConfigError, ConfigManager, json_schema
from truthgpt_core.plugin_system import State
from truthgpt_core.service_registry import ServiceContainer

TRAIN_YAML = """\
model: {name_or_path: gpt2}
data: {source: text, dataset: wikitext}
"""

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
def make_manager(monkeypatch):
    """Make plugin managers, whose plugins are deactivated at the end of the test."""
    made: list[PluginManager] = []

    def make() -> PluginManager:
        made.append(PluginManager(ServiceContainer(), strict=False))
        return made[-1]

    yield make
    for manager in made:
        for row in manager.rows():
            if row.state is State.ACTIVE:
                manager.deactivate(row.name)


@pytest.fixture
def manager(make_manager) -> PluginManager:
    """A plugin manager whose plugins are deactivated at the end of the test."""
    return make_manager()


@pytest.fixture
def load(tmp_path):
    """Load a training configuration with some lines of a plugin's."""
    path = tmp_path / "train.yaml"

    def load(lines: str = "") -> ConfigManager:
        path.write_text(TRAIN_YAML + lines, encoding="utf-8")
        return ConfigManager.load_config(path, environment={})

    return load


def assert_gone(load) -> None:
    assert "tracking" not in dir(load())
    assert "tracking" not in json_schema()["properties"]
    with pytest.raises(ConfigError, match=r":3:1: tracking: unknown key"):
        load("tracking: {project: x}\n")


def reason_of(manager: PluginManager, name: str) -> str:
    (row,) = (row for row in manager.rows() if row.name == name)
    assert row.state is State.BROKEN
    return row.reason


def test_a_plugin_adds_a_section(site, manager, load) -> None:
    """What a plugin registers through the hook is read, validated and an attribute."""
    site.install_plugin("tracker", PLUGIN)
    manager.activate_all()
    config = load("tracking: {project: x}\n")
    assert (config.tracking.project, config.tracking.steps) == ("x", 10)
    with pytest.raises(ConfigError, match=r":3:19: tracking\.steps: should be an integer"):
        load("tracking: {steps: many}\n")


def test_nothing_is_added_before_activation(site, manager, load) -> None:
    """A plugin that is installed and not active adds nothing."""
    site.install_plugin("tracker", PLUGIN)
    assert manager.rows()
    assert_gone(load)


def test_a_section_goes_with_its_plugin_and_comes_back(site, manager, load) -> None:
    """Deactivating takes the section away; activating again brings it back."""
    site.install_plugin("tracker", PLUGIN)
    manager.activate("tracker")
    manager.deactivate("tracker")
    assert_gone(load)
    manager.activate("tracker")
    assert load().tracking.project == "truthgpt"


def test_what_was_loaded_stays_when_the_plugin_goes(site, manager, load) -> None:
    """A configuration keeps the sections that it was loaded with."""
    site.install_plugin("tracker", PLUGIN)
    manager.activate("tracker")
    config = load("tracking: {project: x}\n")
    manager.deactivate("tracker")
    assert config.tracking.project == "x"
    assert config.origin("tracking.project").endswith(":3:21")


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
def test_a_plugin_that_fails_leaves_no_section(site, manager, load, failing: str) -> None:
    """Wherever activation fails, before the section is registered or after it, none is left."""
    site.install(
        "tracker-dist",
        {"truthgpt.plugins": {"tracker": "tracker_module:Tracker"}},
        {"tracker_module.py": f"{CLASS}{FAILING[failing]}"},
    )
    manager.activate_all()
    assert reason_of(manager, "tracker").endswith("OSError: no network")
    assert_gone(load)


def test_of_two_plugins_with_one_section_the_second_is_broken(site, manager, load) -> None:
    """The first keeps the section; the reason of the second names whose it is."""
    site.install_plugin("first", PLUGIN)
    site.install_plugin("second", PLUGIN)
    manager.activate_all()
    assert reason_of(manager, "second") == (
        'the configuration section "tracking" is taken by first_module.Tracking'
    )
    assert type(load().tracking).__module__ == "first_module"


def test_a_section_that_was_taken_can_be_had_when_it_is_free(site, manager, load) -> None:
    """After the first of two plugins is deactivated the section is nobody's, and not half one's."""
    site.install_plugin("first", PLUGIN)
    site.install_plugin("second", PLUGIN)
    manager.activate_all()
    manager.deactivate("first")
    assert_gone(load)


def test_a_section_of_the_core_cannot_be_taken(site, manager, load) -> None:
    """A plugin that claims `training` is broken, and `training` is what it was."""
    site.install_plugin("greedy", PLUGIN.replace('"tracking"', '"training"'))
    manager.activate_all()
    assert reason_of(manager, "greedy") == (
        'the configuration section "training" is taken by the core'
    )
    assert load().training.epochs == 1


def test_a_section_lasts_until_the_last_manager_lets_go(site, make_manager, load) -> None:
    """Two plugin managers of a process may activate one plugin, and end in any order."""
    site.install_plugin("tracker", PLUGIN)
    one, other = make_manager(), make_manager()
    one.activate("tracker")
    other.activate("tracker")
    one.deactivate("tracker")
    assert load("tracking: {project: x}\n").tracking.project == "x"
    other.deactivate("tracker")
    assert_gone(load)


def test_a_section_of_a_plugin_that_is_not_installed(load) -> None:
    """A file with such a section is told that a plugin may be missing."""
    with pytest.raises(ConfigError) as caught:
        load("wandb: {project: x}\n")
    (problem,) = caught.value.problems
    assert (problem.path, problem.message) == ("wandb", "unknown key")
    assert problem.hint == ("If a plugin defines it, that plugin is not installed or not active.")


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
    assert_gone(load)


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
    with pytest.raises(ConfigError, match=r":3:11: tracking: give url or folder"):
        load("tracking: {}\n")


def test_a_section_may_have_any_name_that_hides_nothing(site, manager, load) -> None:
    """Names that begin as pydantic's own do are names like any other."""
    site.install_plugin("zoo", PLUGIN.replace('"tracking"', '"model_validate_zoo"'))
    manager.activate_all()
    assert load("model_validate_zoo: {project: x}\n").model_validate_zoo.project == "x"
