"""The file, the environment and overrides: which value wins, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from truthgpt_core.config import (
    ConfigError,
    load_located,
    load_yaml_model,
)
from truthgpt_core.errors import TruthGPTError


class Item(BaseModel):
    name: str = "x"
    size: int = 1


class Sub(BaseModel):
    a: Any = 1
    b: Any = None
    c: Any = None


class Root(BaseModel):
    s: Sub = Sub()
    t: Sub = Sub()
    items: list[Item] = [Item(name="first"), Item(name="second")]
    n: int = 7
    free: Any = None


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")
    return name


def load(text: str, overrides=(), environment=None) -> Root:
    return load_yaml_model(write("f.yaml", text), Root, overrides, environment or {})


def failures(text: str, overrides=(), environment=None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, overrides, environment)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("override", "check"),
    [
        ("n=3", lambda root: root.n == 3),
        (" n = 3", lambda root: root.n == 3),
        ("s.a=1e-3", lambda root: root.s.a == 0.001),
        ("s.a='3'", lambda root: root.s.a == "3"),
        ("s.a=", lambda root: root.s.a is None),
        ("s.a=x=y", lambda root: root.s.a == "x=y"),
        ("s.a=[1, {b: c}]", lambda root: root.s.a == [1, {"b": "c"}]),
        ("s.a.b.c=1", lambda root: root.s.a == {"b": {"c": 1}}),
        ('s.a."x.y"=1', lambda root: root.s.a == {"x.y": 1}),
        ("s={b: 2}", lambda root: root.s == Sub(b=2)),
        ("items.0.name=new", lambda root: [i.name for i in root.items] == ["new", "other"]),
        ("items.1={name: z}", lambda root: root.items[1] == Item(name="z")),
    ],
)
def test_override(override, check):
    """An override is typed YAML that replaces the value at its path."""
    assert check(load("s: {a: 0}\nitems: [{name: one}, {name: other}]", [override]))


def test_override_reaches_into_a_default_list():
    """An element of a list that only the model has can be changed."""
    items = load("", ["items.1.size=5"]).items
    assert items == [Item(name="first"), Item(name="second", size=5)]


def test_overrides_are_a_list():
    """One text in place of a list of them is refused, not read letter by letter."""
    with pytest.raises(TruthGPTError, match=r'Write \["n=1"\]'):
        load("", "n=1")


def test_later_overrides_win():
    """Of two overrides of one value the second counts."""
    assert load("", ["n=1", "n=2"]).n == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("nn.a=1", "override 1: `nn.a=1`: nn: unknown key. Did you mean"),
        ("items.0.nmae=1", 'items.0.nmae: unknown key. Did you mean "name"?'),
        ("n=x", "override 1: `n=x`: n: should be an integer, not the text 'x'"),
        ("n", "override 1: `n`: write it as section.key=value"),
        ("=1", "write it as section.key=value"),
        ("a..b=1", "write it as section.key=value"),
        ('"a=1', "write it as section.key=value"),
        ("items.5.name=x", 'items is a list of 2, "5" is not an index into it'),
        ("items.x=1", 'items is a list of 2, "x" is not an index into it'),
        ("n=[1", "n: not valid YAML"),
        ("n=a: b", "a mapping has to be written in brackets"),
        ("n=- 1", "a list has to be written in brackets"),
        ("n={a: 1, a: 2}", "the key a is given twice"),
        ("n=!!python/name:os.system x", "the tag !!python/name:os.system is not allowed"),
        ("include=x.yaml", "include: unknown key"),
        ("n=\0", "U+0000"),
        (".".join("a" * 100) + "=1", "deep"),
    ],
)
def test_override_error(override, expected):
    """Errors about an override name it in place of a file."""
    lines = failures("items: [{}, {}]", [override])
    assert lines[0].startswith("override 1: `")
    assert any(expected in line for line in lines), lines


def test_environment_sets_values_under_overrides():
    """Variables win over the file and lose to overrides; other variables are not ours."""
    environment = {"TRUTHGPT_CONFIG__s__a": "[1]", "TRUTHGPT_CONFIG__n": "2", "HOME": "x"}
    root = load("s: {a: 0}\nn: 1", ["n=3"], environment)
    assert (root.s.a, root.n) == ([1], 3)


@pytest.mark.parametrize("name", ["s__aa__", "", "S__a", "include"])
def test_environment_errors_name_the_variable(name):
    """A variable that sets nothing is an error, so that typing mistakes are seen."""
    (line,) = failures("", (), {f"TRUTHGPT_CONFIG__{name}": "1"})
    assert line.startswith(f"environment TRUTHGPT_CONFIG__{name}: ")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("n", "x", "n: should be an integer, not the text 'x'"),
        ("n", "'3'", "n: should be an integer, not the text '3'. Take the quotes away."),
        ("itmes__0__size", "2", 'itmes: unknown key. Did you mean "items"?'),
        ("ITEMS__0__size", "2", 'ITEMS: unknown key. Did you mean "items"?'),
        ("items__0__szie", "2", 'items.0.szie: unknown key. Did you mean "size"?'),
        ("items__5__size", "2", 'items is a list of 2, "5" is not an index into it'),
        ("free", "{a: 1, a: 2}", "the key a is given twice; first environment"),
        ("n", "[1", "n: not valid YAML"),
    ],
)
def test_environment_error(name, value, expected):
    """Errors about a variable name it in place of a file, and suggest as for a file."""
    (line,) = failures("", (), {f"TRUTHGPT_CONFIG__{name}": value})
    assert line.startswith(f"environment TRUTHGPT_CONFIG__{name}: ")
    assert expected in line


def test_environment_is_not_read_unless_given(monkeypatch):
    """A command's own file does not take the variables meant for training."""
    monkeypatch.setenv("TRUTHGPT_CONFIG__n", "2")
    assert load_yaml_model(write("f.yaml", ""), Root).n == 7


def test_all_layers_are_told_at_once():
    """Mistakes in the file, the environment and overrides come together."""
    lines = failures(
        "items: [{size: x}]\nn: 1\nn: 2\ns: {aa: 1}",
        ["nonsense", "t.aa=1"],
        {"TRUTHGPT_CONFIG__t__bb": "1"},
    )
    assert sorted(line.partition(": ")[0] for line in lines) == [
        "environment TRUTHGPT_CONFIG__t__bb",
        "f.yaml:1:16",
        "f.yaml:3:1",
        "f.yaml:4:5",
        "override 1",
        "override 2",
    ]


@pytest.mark.parametrize("text", ["${n}", "$n", "a ${n} b", "$${n}", "${"])
def test_a_dollar_sign_is_text(text):
    """Nothing is put in the place of `${...}`, in no layer."""
    root = load(f"s: {{a: '{text}'}}", [f"s.b='{text}'"], {"TRUTHGPT_CONFIG__s__c": f"'{text}'"})
    assert root.s == Sub(a=text, b=text, c=text)


def test_an_include_is_an_unknown_key():
    """A file names no other."""
    write("base.yaml", "n: 1")
    assert failures("include: base.yaml") == ["f.yaml:1:1: include: unknown key"]


def bomb(first: str) -> str:
    """Return a value of nested aliases that stands for a million of its parts."""
    levels = ", ".join(f"&a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 7))
    return f"[&a0 [{first}], {levels}]"


def test_bombs_are_refused_in_every_layer():
    """Aliases that multiply are refused in overrides and variables as they are in files."""
    (line,) = failures("", [f"free={bomb('x')}"])
    assert line.endswith("free: more than 50000 values, counting those that aliases repeat")
    (line,) = failures("", (), {"TRUTHGPT_CONFIG__free": bomb("x")})
    assert line.endswith("free: more than 50000 values, counting those that aliases repeat")
    (line,) = failures(f"free: {bomb('x')}")
    assert line.startswith("f.yaml:1:")


def test_origins_of_layers():
    """List elements and parts of defaults have origins of their own."""
    path = write("f.yaml", "s: {a: 5}\nn: 1\n")
    loaded = load_located(path, Root, ["items.1.size=5"])
    assert loaded.origin("s.a") == "f.yaml:1:8"
    assert loaded.origin("n") == "f.yaml:2:4"
    assert loaded.origin("t.a") == "default"
    assert loaded.origin("items.1.size") == "override 1"
    assert loaded.origin("items.0.size") == "default"
