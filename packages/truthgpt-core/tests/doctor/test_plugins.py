"""What is said of plugins and optimizations, whatever they do."""

from __future__ import annotations

import pytest

from truthgpt_core.diagnosis import Status
from truthgpt_core.doctor.plugin_probe import MOST, describe
from truthgpt_core.plugin_system.discovery import discover
from truthgpt_core.plugin_system.plugin import PluginRow

pytestmark = pytest.mark.slow

DIAGNOSING = """
    import os, signal
    from truthgpt_core import hookimpl
    from truthgpt_core.diagnosis import Diagnosis

    @hookimpl
    def diagnose():
        {body}
"""
HALF = """
    from truthgpt_core import Optimization, Options, Verdict

    class Needy(Options):
        size: int

    class Half(Optimization):
        name = "{name}"
        def apply(self, model, context): ...
        {body}
"""
KILL = "os.kill(os.getpid(), signal.SIGSEGV)"


@pytest.fixture
def plugin(site):
    """Install a plugin whose `diagnose` has a body of our own."""

    def install(name: str, body: str) -> None:
        site.install_plugin(name, DIAGNOSING.format(body=body))

    return install


@pytest.fixture
def half(site):
    """Install an optimization, with more in its class."""

    def install(name: str, body: str) -> None:
        code = HALF.format(name=name, body=body)
        site.install_plugin(name, code, optimizations={name: "MODULE:Half"})

    return install


# The state of a plugin


def test_an_active_plugin_is_ok(doctor, site) -> None:
    """A plugin that works is shown with its distribution and version."""
    site.install_plugin("good")
    code, findings = doctor()
    assert findings["plugins", "good"]["status"] == "ok"
    assert findings["plugins", "good"]["detail"] == "good-dist 1.0"
    assert code == 0


@pytest.mark.parametrize(
    ("code", "requires", "said"),
    [
        ("raise OSError('two\\nlines')", ("truthgpt-core>=0.1,<0.2",), "OSError: two lines"),
        ("raise KeyboardInterrupt", ("truthgpt-core>=0.1,<0.2",), "KeyboardInterrupt"),
        ("", ("truthgpt-core>=9",), "written for truthgpt-core>=9"),
    ],
)
def test_a_broken_plugin_is_a_failure(doctor, site, code: str, requires, said: str) -> None:
    """A plugin that cannot be used is shown with the reason and a way out; others go on."""
    site.install_plugin("bad", code, requires=requires)
    site.install_plugin("good")
    status, findings = doctor()
    about = findings["plugins", "bad"]
    assert about["status"] == "failed"
    assert said in about["detail"]
    assert "bad-dist" in about["fix"]
    assert findings["plugins", "good"]["status"] == "ok"
    assert status == 1


def test_a_disabled_plugin_is_no_failure(doctor, truthgpt, site, monkeypatch) -> None:
    """What the user switched off is shown as such, and not imported."""
    site.install_plugin("bad", "raise OSError")
    monkeypatch.setenv("TRUTHGPT_PLUGINS_BLOCK", "bad")
    code, findings = doctor()
    about = findings["plugins", "bad"]
    assert about["status"] == "ok"
    assert "TRUTHGPT_PLUGINS_BLOCK" in about["detail"]
    assert code == 0


@pytest.mark.parametrize("state", ["found", "of a later version", None, 3])
def test_a_state_that_is_not_known_is_shown(state) -> None:
    """A row in a state that this code has not heard of is a warning that says which."""
    about = describe(PluginRow("new", state))  # type: ignore[arg-type]
    assert about.status is Status.WARNING
    assert str(state) in about.detail


def test_strict_mode_changes_nothing(doctor, site, monkeypatch) -> None:
    """TRUTHGPT_STRICT=1 does not keep the doctor from looking at the other plugins."""
    monkeypatch.setenv("TRUTHGPT_STRICT", "1")
    site.install_plugin("bad", "raise OSError")
    site.install_plugin("good")
    _, findings = doctor()
    assert [name for (_, name), each in findings.items() if each["status"] == "failed"] == ["bad"]
    assert findings["plugins", "good"]["status"] == "ok"


def test_a_name_that_no_plugin_has_is_a_warning(doctor, site, monkeypatch) -> None:
    """A slip in a variable that switches plugins off would change nothing, in silence."""
    site.install_plugin("good")
    monkeypatch.setenv("TRUTHGPT_PLUGINS_BLOCK", "goood")
    _, findings = doctor()
    about = findings["plugins", "environment"]
    assert about["status"] == "warning"
    assert 'Did you mean "good"?' in about["detail"]


def test_plugins_that_cannot_be_listed_are_a_failure(doctor, tmp_path, monkeypatch) -> None:
    """Settings that cannot be read are a finding, and the rest goes on."""
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "disabled_plugins").touch()
    monkeypatch.setenv("TRUTHGPT_SETTINGS", str(tmp_path / "settings"))
    code, findings = doctor()
    about = findings["plugins", "plugins"]
    assert about["status"] == "failed"
    assert "disabled_plugins" in about["detail"]
    assert ("config", "cache") in findings
    assert code == 1


def test_no_plugin_is_a_warning(doctor) -> None:
    """With nothing installed the fix says what there is to install."""
    if discover():
        pytest.skip("plugins are installed here")
    _, findings = doctor()
    assert findings["plugins", "plugins"]["status"] == "warning"
    assert findings["plugins", "plugins"]["fix"].startswith("pip install truthgpt-plugin-")


# What a plugin kills


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (f"import os, signal; {KILL}", "activating it: killed by SIGSEGV"),
        ("import os; os._exit(3)", "activating it: exit code 3"),
        ("import os; os._exit(0)", "activating it: exit code 0"),
        (DIAGNOSING.format(body=KILL), "diagnose of deadly: killed by SIGSEGV"),
    ],
)
def test_a_deadly_plugin_is_named_and_hides_no_other(doctor, site, code, said: str) -> None:
    """A plugin that kills its process is the one that failed; the others are looked at."""
    site.install_plugin("deadly", code)
    site.install_plugin("good", DIAGNOSING.format(body="return [Diagnosis.ok('thing', 'fine')]"))
    status, findings = doctor()
    broken = [each for each in findings.values() if each["status"] == "failed"]
    assert [(each["area"], each["subject"]) for each in broken] == [("plugins", "deadly")]
    assert broken[0]["detail"] == said
    assert "truthgpt plugins disable deadly" in broken[0]["fix"]
    assert findings["plugins", "good: thing"]["detail"] == "fine"
    assert status == 1


def test_what_needs_a_deadly_plugin_is_not_blamed(doctor, site) -> None:
    """A plugin is not asked what another one, that it needs, has to say."""
    site.install_plugin("deadly", DIAGNOSING.format(body=KILL))
    site.install_plugin("needing", requires=("truthgpt-core>=0.1,<0.2", "deadly-dist"))
    _, findings = doctor()
    assert findings["plugins", "deadly"]["status"] == "failed"
    assert findings["plugins", "needing"]["status"] == "ok"


def test_where_torch_kills_plugins_are_not_blamed(doctor, site, torch) -> None:
    """A plugin that dies of importing torch is told from one that has to be reinstalled."""
    torch("import os; os._exit(1)")
    site.install_plugin("importing", DIAGNOSING.format(body="import torch"))
    _, findings = doctor()
    about = findings["plugins", "importing"]
    assert about["status"] == "failed"
    assert about["fix"] == "Mend torch first: importing may do nothing wrong."


def test_plugins_that_die_together_are_a_failure(doctor, site, tmp_path) -> None:
    """Two plugins that kill the process only together are not taken to be fine."""
    code = "import os, sys\nif {other!r} in sys.modules: os.kill(os.getpid(), 11)"
    site.install_plugin("one", code.format(other="two_module"))
    site.install_plugin("two", code.format(other="one_module"))
    status, findings = doctor()
    about = findings["plugins", "plugins together"]
    assert "killed by SIGSEGV; each alone works" in about["detail"]
    assert "disable" in about["fix"]
    assert findings["plugins", "one"]["status"] == findings["plugins", "two"]["status"] == "ok"
    assert status == 1


@pytest.mark.parametrize("body", ["import time; time.sleep(600)", "while True: pass"])
def test_a_plugin_that_hangs_is_a_failure(doctor, site, body: str) -> None:
    """Nothing waits for a plugin for ever."""
    site.install_plugin("slow", body)
    code, findings = doctor("--timeout", "2")
    assert any(
        each["status"] == "failed" and "no answer within 2 s" in each["detail"]
        for (area, _), each in findings.items()
        if area == "plugins"
    )
    assert code == 1


# The hook `diagnose`


def test_what_a_plugin_says_is_shown_under_its_name(doctor, plugin) -> None:
    """All that `diagnose` returns is shown, with status, detail and fix as they are."""
    plugin(
        "saying",
        "return [Diagnosis.ok('one', 'fine'), Diagnosis.warning('two', 'slow', 'Hurry.'),"
        " Diagnosis.failed('three', 'gone')]",
    )
    code, findings = doctor()
    said = {
        name: (each["status"], each["detail"], each["fix"])
        for (_, name), each in findings.items()
        if name.startswith("saying: ")
    }
    assert said == {
        "saying: one": ("ok", "fine", ""),
        "saying: two": ("warning", "slow", "Hurry."),
        "saying: three": ("failed", "gone", ""),
    }
    assert code == 1


def test_nothing_to_say_is_no_finding(doctor, plugin) -> None:
    """None and an empty list are both fine."""
    plugin("silent", "return None")
    plugin("quiet", "return []")
    code, findings = doctor()
    assert not [name for _, name in findings if name.startswith(("silent:", "quiet:"))]
    assert code == 0


WRONG_ANSWERS = {
    "raise OSError('no such thing')": "it raised OSError: no such thing",
    "raise SystemExit(3)": "it raised SystemExit: 3",
    "return 3": "it returned int, not a list of Diagnosis",
    "return Diagnosis.ok('a', 'b')": "it returned Diagnosis, not a list of Diagnosis",
    "return ['text']": "it returned str where Diagnosis belongs",
    "return [Diagnosis('a', 'good', 'b')]": "it raised ValueError: 'good' is not a valid Status",
}


def test_a_wrong_diagnosis_is_a_failure_of_its_plugin(doctor, plugin) -> None:
    """A hook that raises or returns something else names its plugin, and hides no other."""
    for number, body in enumerate(WRONG_ANSWERS):
        plugin(f"wrong{number}", body)
    plugin("aright", "return [Diagnosis.ok('thing', 'fine')]")
    plugin("zright", "return [Diagnosis.ok('thing', 'fine')]")
    code, findings = doctor()
    for number, said in enumerate(WRONG_ANSWERS.values()):
        about = findings["plugins", f"wrong{number}: diagnose"]
        assert (about["status"], about["detail"]) == ("failed", said)
        assert f"wrong{number}" in about["fix"]
    assert findings["plugins", "aright: thing"]["status"] == "ok"
    assert findings["plugins", "zright: thing"]["status"] == "ok"
    assert code == 1


def test_what_was_said_before_an_error_is_kept(doctor, plugin) -> None:
    """A generator that raises half-way has said what it said."""
    plugin("half", "yield Diagnosis.ok('first', 'fine')\n        raise OSError('then')")
    _, findings = doctor()
    assert findings["plugins", "half: first"]["status"] == "ok"
    assert findings["plugins", "half: diagnose"]["detail"] == "it raised OSError: then"


def test_one_that_never_ends_is_cut_short(doctor, plugin) -> None:
    """A plugin that says more than anybody reads is stopped, with a warning."""
    plugin(
        "endless",
        "import itertools\n        return (Diagnosis.ok(str(n), 'x') for n in itertools.count())",
    )
    _, findings = doctor()
    assert len([name for _, name in findings if name.startswith("endless: ")]) == MOST + 1
    assert findings["plugins", "endless: diagnose"]["status"] == "warning"


def test_a_wrapper_of_diagnose_wraps_each(doctor, plugin, site) -> None:
    """A plugin that wraps the hook sees and changes what every other one says."""
    plugin("plain", "return [Diagnosis.ok('thing', 'fine')]")
    site.install_plugin(
        "wrapping",
        """
        from truthgpt_core import hookimpl
        from truthgpt_core.diagnosis import Diagnosis

        @hookimpl(wrapper=True)
        def diagnose():
            said = yield
            return [[*each, Diagnosis.ok("more", "added")] for each in said]
        """,
    )
    _, findings = doctor()
    assert findings["plugins", "plain: thing"]["status"] == "ok"
    assert findings["plugins", "plain: more"]["detail"] == "added"


# What optimizations say of this machine


CHECKS = {
    "": ("ok", "can be applied"),
    "check = lambda self, device: Verdict.no('no ' + device)": ("warning", "no cpu"),
    "check = lambda self, device: 1 / 0": ("failed", "its check raised ZeroDivisionError"),
    "check = lambda self, device: True": ("failed", "its check returned bool, not a Verdict"),
    "def __init__(self): raise OSError('x')": ("failed", "making it raised OSError: x"),
    "options_type = Needy": ("ok", "not asked: "),
    "name = 'other'": ("failed", 'calls itself "other", not "half6"'),
}


def test_optimizations_say_whether_they_can_work(doctor, half) -> None:
    """Its `check` decides; one that cannot be asked says why, and hides no other."""
    for number, body in enumerate(CHECKS):
        half(f"half{number}", body)
    _, findings = doctor()
    for number, (status, said) in enumerate(CHECKS.values()):
        about = findings["optimizations", f"half{number} on cpu"]
        assert about["status"] == status
        assert said in about["detail"]


def test_a_deadly_check_is_laid_to_its_plugin(doctor, half) -> None:
    """What was asked when the process died is named."""
    half("half", "def check(self, device): import os; os.kill(os.getpid(), 11)")
    code, findings = doctor()
    about = findings["plugins", "half"]
    assert about["detail"] == "check of half on cpu: killed by SIGSEGV"
    assert code == 1
