"""`truthgpt services`: the graph of what plugins register, and how the services are."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.slow

SHOP = """
from truthgpt_core import hookimpl

class Store:
    def __init__(self):
        pass

class Session:
    def __init__(self, store: Store):
        pass

class Job:
    def __init__(self, session: Session, store: Store):
        pass

@hookimpl
def register_services(registry):
    registry.register("store", Store)
    registry.register("session", Session)
    registry.register("job", Job, singleton=False)
"""
GRAPH = """\
flowchart TD
    n0["event_emitter"]
    n1(["job"])
    n2["plugin_manager"]
    n3["session"]
    n4["store"]
    n1 --> n3
    n1 --> n4
    n3 --> n4
"""
NEEDY = """
from truthgpt_core import hookimpl

@hookimpl
def register_services(registry):
    registry.register("needy", lambda stroe: 1)
"""


def of_plugins(listed: str) -> list[dict]:
    """The services of a list in JSON, without those of the application itself."""
    found = json.loads(listed)
    return [each for each in found if each["name"] not in ("event_emitter", "plugin_manager")]


def test_the_graph_and_nothing_else_is_printed(truthgpt, site) -> None:
    """What plugins register is a Mermaid flowchart on stdout."""
    site.install_plugin("shop", SHOP)
    result = truthgpt("services")
    assert (result.returncode, result.stdout, result.stderr) == (0, GRAPH, "")


def test_services_as_json(truthgpt, site) -> None:
    """`--json` lists name, lifetime and needs of each."""
    site.install_plugin("shop", SHOP)
    result = truthgpt("services", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert of_plugins(result.stdout) == [
        {
            "name": "job",
            "lifetime": "transient",
            "needs": ["session", "store"],
            "missing": [],
            "plugin": "shop",
        },
        {
            "name": "session",
            "lifetime": "singleton",
            "needs": ["store"],
            "missing": [],
            "plugin": "shop",
        },
        {
            "name": "store",
            "lifetime": "singleton",
            "needs": [],
            "missing": [],
            "plugin": "shop",
        },
    ]


def test_a_broken_plugin_is_a_line_on_stderr(truthgpt, site) -> None:
    """The graph can be piped though a plugin is broken; what that registered is not in it."""
    site.install_plugin("shop", SHOP)
    site.install_plugin(
        "wrong",
        "from truthgpt_core import hookimpl\n@hookimpl\ndef register_services(registry):\n"
        "    registry.register('half', object)\n    raise OSError('two\\nlines')\n",
    )
    result = truthgpt("services")
    assert (result.returncode, result.stdout) == (0, GRAPH)
    (line,) = result.stderr.splitlines()
    assert line.startswith('truthgpt: plugin "wrong" is broken: ')


def test_a_broken_plugin_is_fatal_if_strict(truthgpt, site, monkeypatch) -> None:
    """With TRUTHGPT_STRICT=1 nothing is printed but the error."""
    site.install_plugin("shop", SHOP)
    site.install_plugin("wrong", "raise OSError('broken')")
    monkeypatch.setenv("TRUTHGPT_STRICT", "1")
    result = truthgpt("services")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith('truthgpt: Plugin "wrong" is broken: ')


def test_a_graph_that_is_not_valid_is_printed_all_the_same(truthgpt, site) -> None:
    """A need that nothing meets is told on stderr, and the command ends with 1."""
    site.install_plugin("shop", SHOP)
    site.install_plugin("needy", NEEDY)
    result = truthgpt("services")
    assert result.returncode == 1
    assert result.stdout.startswith('flowchart TD\n    n0["event_emitter"]\n')
    assert result.stderr == (
        'truthgpt: "needy" of plugin "needy" needs "stroe" (parameter "stroe" of <lambda>), '
        'which is not registered. Did you mean "store"?\n'
    )


def test_json_lists_what_is_missing(truthgpt, site) -> None:
    """A graph that is not valid is listed too, with the parameters that get nothing."""
    site.install_plugin("needy", NEEDY)
    result = truthgpt("services", "--json")
    assert result.returncode == 1
    (service,) = of_plugins(result.stdout)
    assert (service["name"], service["missing"]) == ("needy", ["stroe"])


def test_health_builds_nothing(truthgpt, site, tmp_path) -> None:
    """`--health` is a table of all services, and makes none of them."""
    trace = tmp_path / "built"
    site.install_plugin("shop", SHOP.replace("pass", f"open({str(trace)!r}, 'w').close()"))
    result = truthgpt("services", "--health")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "service         lifetime   built  health",
        "event_emitter   singleton  no",
        "job             transient  no",
        "plugin_manager  singleton  no",
        "session         singleton  no",
        "store           singleton  no",
    ]
    assert not trace.exists()


STARTED = """
from truthgpt_core import hookimpl
from truthgpt_core.service_registry import get_container

class Store:
    def health(self):
        BODY

@hookimpl(trylast=True)
def register_services(registry):
    registry.register("store", Store)
    get_container().get("store")
"""


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("return None", 0, "well"),
        ("return 'two\\nfiles'", 0, r"well: two\nfiles"),
        ("return False", 1, "not well"),
        ("raise OSError('disk full')", 1, "not well: OSError: disk full"),
    ],
)
def test_health_of_what_a_plugin_has_built(truthgpt, site, body, status, said) -> None:
    """A service that is there is asked; one that is not well is an error at the end."""
    site.install_plugin("shop", STARTED.replace("BODY", body))
    result = truthgpt("services", "--health")
    assert result.stdout.splitlines()[3] == f"store           singleton  yes    {said}"
    assert result.returncode == status
    assert result.stderr == ("truthgpt: Not well: store\n" if status else "")


def test_health_as_json(truthgpt, site) -> None:
    """`--health --json` has the same in JSON."""
    site.install_plugin("shop", SHOP)
    result = truthgpt("services", "--health", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert of_plugins(result.stdout)[2] == {
        "name": "store",
        "lifetime": "singleton",
        "built": False,
        "ok": True,
        "message": "",
    }


def test_no_services_of_plugins_are_a_line_on_stderr(truthgpt) -> None:
    """Where no plugin registers a service, the flowchart has those of the application."""
    result = truthgpt("services")
    own = 'flowchart TD\n    n0["event_emitter"]\n    n1["plugin_manager"]\n'
    assert (result.returncode, result.stdout) == (0, own)
    assert result.stderr == "truthgpt: no plugin registers a service\n"
