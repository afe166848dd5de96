"""load_yaml_model: what YAML means, what is refused, and where errors point."""

import enum
import math
import os
import pickle
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from truthgpt_core.config import ConfigError, Section, load_yaml_model
from truthgpt_core.config.errors import MAX_PROBLEMS
from truthgpt_core.config.yaml_nodes import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_INTEGER_CHARACTERS,
    MAX_NODES,
)


class Free(BaseModel):
    v: Any = None
    w: Any = None


class Color(enum.Enum):
    RED = "red"


class Inner(BaseModel):
    size: int = Field(default=1, ge=1)
    name: str = "x"


class Steps(BaseModel):
    """A command's own file, with what such a file may hold."""

    count: int = 1
    rate: float = 0.5
    flag: bool = False
    text: str = ""
    mode: Literal["fast", "small"] = "fast"
    color: Color = Color.RED
    place: Path = Path()
    pair: tuple[int, str] = (1, "a")
    inner: Inner = Inner()
    inners: list[Inner] = []
    by_name: dict[str, Inner] = {}
    either: int | Inner = 1

    @field_validator("text")
    @classmethod
    def _no_tabs(cls, value: str) -> str:
        if "\t" in value:
            raise ValueError("must not have tabs")
        return value


class Needs(BaseModel):
    inner: dict[str, int]
    deep: "Deep"


class Deep(BaseModel):
    wanted: int
    other: int = 1


def failures(path, model=Steps) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_yaml_model(path, model)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        (".5e-2", 0.005),
        ("1.", 1.0),
        ("-.inf", -math.inf),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("+3", 3),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-31", "2024-01-31"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
        ("!!null ''", None),
        ("[a, {b: 1}]", ["a", {"b": 1}]),
    ],
)
def test_core_schema(write, text, value):
    """Scalars mean what YAML 1.2 says, in value and in type."""
    found = load_yaml_model(write(f"v: {text}\n"), Free).v
    assert found == value
    assert type(found) is type(value)


def test_nan(write):
    """`.nan` is a float that is not a number."""
    assert math.isnan(load_yaml_model(write("v: .nan\n"), Free).v)


def test_types_json_has_not_are_read_from_text(write):
    """Paths, enumerations and tuples are written as text and lists, though types are strict."""
    value = load_yaml_model(write("{place: a/b, color: red, pair: [2, b], rate: 1}"), Steps)
    assert (value.place, value.color, value.pair) == (Path("a/b"), Color.RED, (2, "b"))
    assert value.rate == 1.0


@pytest.mark.parametrize("content", [b"", b"# only a comment\n", b"---\n", b"\xef\xbb\xbfcount: 1"])
def test_empty_files_and_byte_order_marks(write, content):
    """A file with nothing in it is all defaults; a byte order mark is nothing."""
    assert load_yaml_model(write(content), Steps) == Steps()


def test_anchors_repeat_values(write):
    """An alias stands for what its anchor names."""
    assert load_yaml_model(write("v: &a [1, 2]\nw: *a\n"), Free).w == [1, 2]


@pytest.mark.skipif(not hasattr(yaml, "CSafeLoader"), reason="PyYAML was built without libyaml")
@pytest.mark.parametrize(
    "content",
    [
        "v: [1e-3, yes, 'x', {a: ~}]\nw: &a !!str 1\n",
        "v: 1\nx: 2\n  - 3",
        'v: "\\ud800"',
        "v: !a b",
    ],
)
def test_both_parsers_of_pyyaml_agree(write, monkeypatch, content):
    """Without libyaml a file means the same, and its errors point at the same line."""

    def outcome():
        try:
            return load_yaml_model(write(content), Free)
        except ConfigError as error:
            return [problem.origin.line for problem in error.problems]

    with_libyaml = outcome()
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert outcome() == with_libyaml


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("count: three", "f.yaml:1:8: count: should be an integer, not the text 'three'"),
        ("count: '3'", "f.yaml:1:8: count: should be an integer, not the text '3'. Take"),
        ("flag: yes", "f.yaml:1:7: flag: should be true or false, not the text 'yes'. YAML 1.2"),
        ("flag: 1", "f.yaml:1:7: flag: should be true or false, not the number 1"),
        ("text: 5", "f.yaml:1:7: text: should be text, not the number 5. Put quotes"),
        ("mode: smal", "f.yaml:1:7: mode: should be 'fast' or 'small', not the text 'smal'. Did"),
        ("inner: 3", "f.yaml:1:8: inner: should be a mapping, not the number 3"),
        ("inner:", "f.yaml:1:7: inner: should be a mapping, not null"),
        ("inners: {}", "f.yaml:1:9: inners: should be a list, not a mapping"),
        ("inner:\n  size: 0", "f.yaml:2:9: inner.size: should be greater than or equal to 1"),
        ("inners: [{size: x}]", "f.yaml:1:17: inners.0.size: should be an integer"),
        ("by_name: {a.b: {size: x}}", 'f.yaml:1:23: by_name."a.b".size: should be an integer'),
        ('text: "\\t"', "f.yaml:1:7: text: must not have tabs"),
        ("conut: 3", 'f.yaml:1:1: conut: unknown key. Did you mean "count"?'),
        ("inner: {siez: 1}", 'f.yaml:1:9: inner.siez: unknown key. Did you mean "size"?'),
        ("inners: [{siez: 1}]", 'f.yaml:1:11: inners.0.siez: unknown key. Did you mean "size"?'),
        ("by_name: {a: {siez: 1}}", "f.yaml:1:15: by_name.a.siez: unknown key"),
        ("either: {siez: 1}", "f.yaml:1:10: either.siez: unknown key"),
        ("- 1", "f.yaml:1:1: the file has to be a mapping of keys to values, not a list"),
        ("text", "f.yaml:1:1: the file has to be a mapping of keys to values, not the text"),
        ("1: a", "f.yaml:1:1: a key has to be text, not the number 1. Put quotes"),
        ("no: 1\nnull: a", "f.yaml:2:1: a key has to be text, not null"),
        ("? [a]\n: 1", "f.yaml:1:3: a key has to be text, not a list"),
        ("inner: {true: 1}", "f.yaml:1:9: inner: a key has to be text, not the boolean true"),
        ("count: 1\nflag: true\ncount: 2", "f.yaml:3:1: the key count is given twice; first f.y"),
        ("'count': 1\n\"count\": 2", "f.yaml:2:1: the key count is given twice; first f.yaml:1:1"),
        ("inner: {size: 1, !!str size: 2}", "f.yaml:1:18: inner: the key size is given twice"),
        ("inner: &a {}\neither: {<<: *a}", "f.yaml:2:10: either: merge keys (<<) are not part"),
        ("text: !!python/name:os.system ''", "f.yaml:1:7: text: the tag !!python/name:os.system"),
        ("inners: !!python/tuple [1]", "f.yaml:1:9: inners: the tag !!python/tuple is not"),
        ("text: !mine x", "f.yaml:1:7: text: the tag !mine is not allowed"),
        ("count: !!int x", "f.yaml:1:8: count: the text 'x' is not a !!int"),
        ("text: *a", "f.yaml:1:7: the alias *a has no anchor"),
        ("inners: &a [*a]", "f.yaml:1:13: inners.0: the alias *a stands inside itself"),
        ("count: 1\n---\ncount: 2", "f.yaml:2:1: a second YAML document begins here"),
        ("count: [1\n}", "f.yaml:2:1: not valid YAML: while parsing a flow sequence"),
        ("a: b: c", "f.yaml:1:5: not valid YAML: mapping values are not allowed"),
        ("text: 'a\x00'", "f.yaml:1:9: the character U+0000 is not allowed in YAML"),
        ("rate: 1e999", "f.yaml:1:7: rate: 1e999 is too large for a float; write .inf"),
        (b"count: 1\ntext: \xc3\xa4\xff", "f.yaml:2:8: the byte 0xff is not UTF-8"),
        (b"\xff\xfec\x00", "f.yaml:1:1: the byte 0xff is not UTF-8"),
    ],
)
def test_error(write, content, expected):
    """Each mistake is one line that begins with its place and says what to do."""
    lines = failures(write(content))
    assert any(expected in line for line in lines), lines


class Disk(Section):
    kind: Literal["disk"]
    folder: str = "."


class Cloud(BaseModel):
    kind: Literal["cloud"]
    url: str = ""


class Rich(BaseModel):
    """What a plugin's section may hold besides: unions, limits, keys that are no text."""

    sink: Annotated[Disk | Cloud, Field(discriminator="kind")] = Disk(kind="disk")
    sinks: dict[str, Disk | Cloud] = {}
    amount: int | str | None = None
    pair: tuple[int, str] = (1, "a")
    few: list[int] = Field(default=[], max_length=2)
    word: str = Field(default="a", pattern="^a")
    colors: dict[Color, int] = {}
    numbers: dict[int, int] = {}

    @model_validator(mode="after")
    def _few_of_few(self):
        if self.amount == 0 and self.few:
            raise ValueError("few has to be empty where amount is 0")
        return self


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "sink: {kind: dsik}",
            "1:14: sink.kind: should be one of 'disk', 'cloud', not the text 'dsik'. "
            'Did you mean "disk"?',
        ),
        ("sink: {folder: a}", "1:1: sink.kind: this key is required and missing"),
        ("sink: {kind: disk, url: a}", "1:20: sink.url: unknown key"),
        ("sink: {kind: cloud, folder: a}", "1:21: sink.folder: unknown key"),
        ("sinks: {a: {kind: cloud, folder: b}}", "1:26: sinks.a.folder: unknown key"),
        ("sink: {kind: disk, foldr: a}", 'sink.foldr: unknown key. Did you mean "folder"?'),
        ("amount: [1]", "1:9: amount: should be an integer or text, not a list"),
        ("pair: [1]", "1:1: pair.1: this item is required and missing"),
        ("pair: [1, a, b]", "1:7: pair: should have at most 2 items, not 3"),
        ("few: [1, 2, 3]", "1:6: few: should have at most 2 items, not 3"),
        ("word: b", "1:7: word: should match pattern '^a', not the text 'b'"),
        (
            "colors: {rde: 1}",
            "1:10: colors.rde: the key should be 'red', not the text 'rde'. Did you mean \"red\"?",
        ),
        ("numbers: {one: 1}", "1:11: numbers.one: the key should be a valid integer"),
        ("numbers: {'[key]': 1}", '1:11: numbers."[key]": the key should be a valid integer'),
        ("amount: 0\nfew: [1]", "1:1: few has to be empty where amount is 0"),
    ],
)
def test_error_of_a_rich_type(write, content, expected):
    """What is wrong with a value of any type is one line, in its place and in YAML's words."""
    (line,) = failures(write(content), Rich)
    assert line.startswith("f.yaml:")
    assert expected in line


@pytest.mark.parametrize(
    "content",
    [
        "sink: {kind: cloud, url: a}",
        "sinks: {a: {kind: disk, folder: b}, b: {kind: cloud, url: c}}",
        "colors: {red: 1}\nnumbers: {'1': 1}",
    ],
)
def test_rich_types_are_read(write, content):
    """Members of unions, and keys that are read from text, have nothing against them."""
    assert load_yaml_model(write(content), Rich) != Rich()


def test_both_positions_of_a_duplicate_key(write):
    """The error about a key given twice names both places."""
    (line,) = failures(write("count: 1\ncount: 2"))
    assert "f.yaml:2:1" in line
    assert "f.yaml:1:1" in line


def test_missing_key_points_at_its_section(write):
    """A required key that is missing is reported where the mapping that lacks it is named."""
    lines = failures(write("inner: {}\ndeep:\n  other: 1\n"), Needs)
    assert lines == ["f.yaml:2:1: deep.wanted: this key is required and missing"]


def test_all_problems_at_once(write):
    """Faulty keys and values are reported together, each once."""
    lines = failures(write("cuont: 1\ncount: x\nflag: maybe\ninner: {size: 0}\ntext: !a b\n"))
    assert len(lines) == 5
    assert {line.split(":")[1] for line in lines} == {"1", "2", "3", "4", "5"}


def test_problems_are_records_and_bounded(write):
    """`problems` holds what the lines say; a file full of mistakes does not flood."""
    path = write("\n".join(f"key{number}: 1" for number in range(MAX_PROBLEMS * 2)))
    with pytest.raises(ConfigError) as caught:
        load_yaml_model(path, Steps)
    first = caught.value.problems[0]
    assert (first.origin.line, first.path, first.message) == (1, "key0", "unknown key")
    assert len(caught.value.problems) == MAX_PROBLEMS
    with pytest.raises(AttributeError):
        first.message = "x"


def test_errors_survive_pickling(write):
    """A worker process can hand the error on."""
    with pytest.raises(ConfigError) as caught:
        load_yaml_model(write("count: x"), Steps)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.problems == caught.value.problems
    assert str(copy) == str(caught.value)


def test_missing_file_suggests_a_sibling(write):
    """A misspelt file name names the file that is there."""
    write("", "train.yaml")
    assert failures("trian.yaml") == [
        'trian.yaml: the file does not exist. Did you mean "train.yaml"?'
    ]


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path) -> None:
    """Reading one would hang until something writes to it."""
    path = tmp_path / "pipe.yaml"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="it is a named pipe, not a regular file"):
        load_yaml_model(path, Free)


@pytest.mark.parametrize("path", ["/dev/zero", "x" * 5000, "~no-such-user/x", "a\0b"])
def test_what_is_no_file_is_one_line(path) -> None:
    """Devices, names that no system takes, home directories of nobody."""
    with pytest.raises(ConfigError) as caught:
        load_yaml_model(path, Free)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(("path", "message"), [(".", "is a directory"), ("a\0b", "cannot be read")])
def test_paths_that_are_no_files(write, path, message):
    """A directory and a name no file can have are ConfigErrors too."""
    assert message in failures(path)[0]


def test_pydantics_own_error_stays_inside(write):
    """Nobody who catches ConfigError needs to catch pydantic's error as well."""
    with pytest.raises(ConfigError) as caught:
        load_yaml_model(write("text: 1"), Steps)
    assert not isinstance(caught.value, ValidationError)


def laughs(levels: int, width: int) -> str:
    lines = ["v:", "- &a0 [x]"]
    for level in range(1, levels):
        lines.append(f"- &a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (laughs(10, 10), f"more than {MAX_NODES} values, counting"),
        ("v: " + "[" * (MAX_DEPTH * 2000), f"nest more than {MAX_DEPTH} deep"),
        ("v: " + "{a: " * (MAX_DEPTH * 2000), f"nest more than {MAX_DEPTH} deep"),
        (laughs(MAX_DEPTH + 5, 1), f"nest more than {MAX_DEPTH} deep"),
        ("v: [" + "1," * (MAX_NODES + 1) + "]", f"more than {MAX_NODES} values"),
        ("#" * (MAX_BYTES + 1), f"larger than {MAX_BYTES} bytes"),
        ("v: " + "9" * 100_000, f"may have {MAX_INTEGER_CHARACTERS} characters"),
    ],
    ids=["laughs", "lists", "mappings", "aliases", "wide", "large", "integer"],
)
def test_limits(write, content, message):
    """What is too much is refused before it is built."""
    assert message in failures(write(content), Free)[0]


def test_just_within_the_limits(write):
    """The limits refuse nothing below them."""
    depth = MAX_DEPTH - 1
    value = load_yaml_model(write("v: " + "[" * depth + "]" * depth), Free).v
    for _ in range(depth - 1):
        (value,) = value
    assert value == []
    digits = "9" * MAX_INTEGER_CHARACTERS
    assert load_yaml_model(write(f"v: {digits}"), Free).v == int(digits)
