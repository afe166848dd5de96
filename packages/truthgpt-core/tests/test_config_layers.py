"""Includes, environment, overrides and references: which value wins, and what is refused."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from truthgpt_core.config import (
    MAX_FILES,
    MAX_INCLUDE_DEPTH,
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


def test_included_values_are_overridden_key_by_key():
    """The file wins over what it includes, and what it does not name stays."""
    write("base.yaml", "s: {a: 1, b: {x: 1, y: 2}, c: [1, 2]}\nn: 3\n")
    root = load("include: base.yaml\ns: {b: {y: 9}, c: [5]}\n")
    assert (root.s.a, root.s.b, root.s.c, root.n) == (1, {"x": 1, "y": 9}, [5], 3)


def test_later_includes_win():
    """Of a list of includes the later ones override the earlier."""
    write("one.yaml", "s: {a: 1, b: 1}")
    write("two.yaml", "s: {b: 2}")
    assert load("include: [one.yaml, two.yaml]").s == Sub(a=1, b=2)


def test_includes_are_relative_to_the_file_that_names_them():
    """A file in another directory includes its own neighbours."""
    write("shared/base.yaml", "include: more.yaml")
    write("shared/more.yaml", "n: 12")
    assert load("include: shared/base.yaml").n == 12


def test_errors_in_included_files_point_into_them():
    """The position of an error is that of the file it is in, as seen from the main file."""
    write("shared/base.yaml", "\nn: x")
    assert failures("include: shared/base.yaml")[0].startswith(
        str(Path("shared/base.yaml")) + ":2:4: n: should be an integer"
    )


def test_cycle_of_includes_is_named():
    """Files that include one another are an error that shows the way round."""
    write("g.yaml", "include: f.yaml")
    (line,) = failures("include: g.yaml")
    assert line == "g.yaml:1:10: files include one another: f.yaml -> g.yaml -> f.yaml"


def test_includes_are_bounded():
    """Neither a long chain nor a tree of includes is followed to its end."""
    for number in range(MAX_INCLUDE_DEPTH + 2):
        write(f"c{number}.yaml", f"include: c{number + 1}.yaml")
    assert "nest more than" in failures("include: c0.yaml")[0]
    for number in range(MAX_INCLUDE_DEPTH):
        wide = ", ".join([f"d{number + 1}.yaml"] * 10)
        write(f"d{number}.yaml", f"include: [{wide}]")
    write(f"d{MAX_INCLUDE_DEPTH}.yaml", "n: 1")
    assert f"more than {MAX_FILES} files" in str(failures("include: [d2.yaml, d2.yaml]"))


def test_one_file_may_be_included_by_two():
    """A diamond is no cycle."""
    write("base.yaml", "n: 5")
    write("left.yaml", "include: base.yaml")
    write("right.yaml", "include: base.yaml")
    assert load("include: [left.yaml, right.yaml]").n == 5


@pytest.mark.parametrize("value", ["3", "[1]", "{}", "''", "no-such.yaml", '"a\\0b"', "."])
def test_includes_that_cannot_be(value):
    """What is no path, or no file, is reported at its place and nothing else is."""
    (line,) = failures(f"include: {value}\nn: 3")
    assert line.startswith("f.yaml:1:1")


def test_includes_stand_at_the_top_level():
    """In a section `include` is an unknown key, and the error says where it belongs."""
    write("base.yaml", "a: 1")
    (line,) = failures("s: {include: base.yaml}")
    assert line == ("f.yaml:1:5: s.include: unknown key. Files are included at the top level only.")


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege")
def test_includes_follow_links_as_the_system_does():
    """`..` after a link to a directory leads out of what it links to."""
    write("elsewhere/deep/x.yaml", "")
    write("elsewhere/base.yaml", "n: 1")
    write("base.yaml", "n: 2")
    Path("link").symlink_to("elsewhere/deep")
    assert load("include: link/../base.yaml").n == 1


def test_missing_include_suggests_a_neighbour():
    """A misspelt include names the file that is there."""
    write("base.yaml", "")
    assert 'Did you mean "base.yaml"?' in failures("include: bsae.yaml")[0]


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
        ("items.5.name=x", 'items is a list of 2, "5" is no index into it'),
        ("items.x=1", 'items is a list of 2, "x" is no index into it'),
        ("n=[1", "n: not valid YAML"),
        ("n=a: b", "a mapping has to be written in brackets"),
        ("n=- 1", "a list has to be written in brackets"),
        ("n={a: 1, a: 2}", "the key a is given twice"),
        ("n=!!python/name:os.system x", "the tag !!python/name:os.system is not allowed"),
        ("include=x.yaml", "files are included only by files"),
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
        ("items__5__size", "2", 'items is a list of 2, "5" is no index into it'),
        ("free", "{a: 1, a: 2}", "the key a is given twice; first environment"),
        ("n", "[1", "n: not valid YAML"),
        ("free", "${nn}", '${nn} names a key that is not there. Did you mean "n"?'),
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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${t.b}", [1, 2]),
        ("${t}", {"b": [1, 2]}),
        ("${t.b.1}", 2),
        ("${n}", 7),
        ("${items.1.name}", "second"),
        ("${t.a}", 1),
        ("x${n}y${t.b.0}", "x7y1"),
        ("$${n}", "${n}"),
        ("a $${n} ${n}", "a ${n} 7"),
        ("$n", "$n"),
    ],
)
def test_reference(text, value):
    """A whole reference keeps the type, one in text is text, and defaults can be named."""
    found = load(f"s: {{a: '{text}'}}\nt: {{b: [1, 2]}}").s.a
    assert found == value
    assert type(found) is type(value)


def test_references_in_text_are_written_as_yaml_writes_them():
    """Booleans and null appear as they would in the file."""
    assert load("free: [true, null, 1e-3]\ns: {a: '${free.0} ${free.1} ${free.2}'}").s.a == (
        "true null 0.001"
    )


def test_references_see_overrides_and_environment():
    """They are resolved when all layers are in place, and may stand in any of them."""
    root = load("s: {a: '${n}'}", ["n=3", "t.a=${s.a}"], {"TRUTHGPT_CONFIG__t__b": "${n}"})
    assert (root.s.a, root.t.a, root.t.b) == (3, 3, 3)


def test_references_lead_through_references():
    """A path may go through a value that is a reference itself."""
    assert load("s: {a: '${t}', b: '${s.a.c.x}'}\nt: {c: {x: 5}}").s.b == 5


def test_a_cycle_through_all_layers_is_named():
    """A cycle is found wherever its references come from, and reported where one stands."""
    write("base.yaml", "s: {a: '${s.b}'}")
    environment = {"TRUTHGPT_CONFIG__s__b": "${s.c}"}
    (line,) = failures("include: base.yaml", ["s.c=${s.a}"], environment)
    assert line.endswith("references lead back to where they began: s.a -> s.b -> s.c -> s.a")


def test_all_layers_are_told_at_once():
    """Mistakes in the file, what it includes, the environment and overrides come together."""
    write("base.yaml", "items: [{size: x}]\nn: 1\nn: 2")
    lines = failures(
        "include: base.yaml\ns: {aa: 1, b: '${s.bb}'}",
        ["nonsense", "t.aa=1"],
        {"TRUTHGPT_CONFIG__t__bb": "1"},
    )
    assert sorted(line.partition(": ")[0] for line in lines) == [
        "base.yaml:1:16",
        "base.yaml:3:1",
        "environment TRUTHGPT_CONFIG__t__bb",
        "f.yaml:2:15",
        "f.yaml:2:5",
        "override 1",
        "override 2",
    ]


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
    write("base.yaml", f"free: {bomb('x')}")
    (line,) = failures("include: base.yaml")
    assert line.startswith("base.yaml:1:")


def test_error_of_a_reference_points_at_the_reference():
    """A value of the wrong type is reported where the reference stands."""
    assert failures("n: ${s.a}\ns: {a: text}")[0].startswith("f.yaml:1:4: n: should be an integer")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s: {a: '${s.b}', b: '${s.c}', c: '${s.a}'}", "s.a -> s.b -> s.c -> s.a"),
        ("s: {a: '${s}'}", "s -> s.a -> s"),
        ("s: {a: '${t.a}'}\nt: '${s}'", "s -> s.a -> t -> s"),
        ("free: x${free}", "free -> free"),
        ("free: ${t.aa}", "${t.aa} names a key that is not there"),
        ("free: ${itms.0}", 'Did you mean "items"?'),
        ("free: ${}", "names no key"),
        ("free: ${a..b}", "names no key"),
        ("free: x ${n", "a reference is not closed"),
        ("free: x ${t}\nt: {b: 1}", "${t} is a mapping and cannot be part of a text"),
    ],
)
def test_reference_error(text, expected):
    """A reference that leads nowhere is one error that shows why."""
    (line,) = failures(text)
    assert line.startswith("f.yaml:")
    assert expected in line


@pytest.mark.parametrize(
    ("first", "pattern", "levels", "message"),
    [
        ("x" * 100, "'{}{}{}{}'", 12, "references add more than"),
        ("[1, 2, 3]", "['{}', '{}', '{}', '{}']", 12, "references repeat more than"),
        ("[1]", "['{}']", 80, "deep"),
    ],
)
def test_references_cannot_blow_up(first, pattern, levels, message):
    """Text, lists and depth made by references to references are bounded."""
    lines = [f"  k0: {first}"]
    lines += [f"  k{i}: {pattern.replace('{}', f'${{free.k{i - 1}}}')}" for i in range(1, levels)]
    found = failures("free:\n" + "\n".join(lines))
    assert message in found[0]


def test_a_long_chain_of_references_is_an_error_not_a_crash():
    """However long a chain is, it ends in ConfigError."""
    lines = [f"  k{number}: ${{free.k{number + 1}}}" for number in range(5000)]
    assert "deep" in failures("free:\n" + "\n".join(lines) + "\n  k5000: 1")[0]


def test_origins_of_layers():
    """Includes, list elements and parts of defaults have origins of their own."""
    write("base.yaml", "s: {a: 5}")
    path = write("f.yaml", "include: base.yaml\nn: ${s.a}\n")
    loaded = load_located(path, Root, ["items.1.size=5"])
    assert loaded.origin("s.a") == "base.yaml:1:8"
    assert loaded.origin("n") == "f.yaml:2:4"
    assert loaded.origin("items.1.size") == "override 1"
    assert loaded.origin("items.0.size") == "default"
