"""Properties of configuration files that no list of examples covers."""

import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from truthgpt_core.config import (
    ConfigError,
    ConfigManager,
    load_located,
    load_yaml_model,
    render_resolved,
)
from truthgpt_core.config.yaml_nodes import MAX_NODES

pytestmark = pytest.mark.slow

# What YAML can hold without escapes that the two parsers of PyYAML read differently.
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Co", "Cn"]), max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | texts
    | st.sampled_from(
        ["yes", "no", "on", "1e-3", "2024-01-01", "~", "null", "0x1f", "<<", "${v}", ""]
    )
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
quick = settings(
    max_examples=60,
    deadline=None,
    # The sections of a file do not change.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Free(BaseModel):
    v: Any = None


class QuotingDumper(yaml.SafeDumper):
    """Quotes all text: PyYAML decides by YAML 1.1 what needs quotes."""


QuotingDumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


def dump(value: object, *, flow: bool) -> str:
    return yaml.dump(
        value,
        Dumper=QuotingDumper,
        default_flow_style=flow,
        allow_unicode=True,
        sort_keys=False,
        width=10**9 if flow else 40,
    )


def load(data: str | bytes, overrides=(), model=Free):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "f.yaml")
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return load_located(path, model, overrides)


def attempt(data: str | bytes, overrides=()) -> Free | ConfigError:
    try:
        return load(data, overrides).value
    except ConfigError as error:
        return error


def assert_bounded(text: str) -> None:
    outcome = attempt(text)
    if isinstance(outcome, ConfigError):
        assert "more than" in str(outcome)
    else:
        assert size(outcome.v) <= MAX_NODES


def same(left: object, right: object) -> bool:
    """Return whether both are equal, types included: in Python 1 equals True and 1.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        assert isinstance(right, dict)
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        assert isinstance(right, list)
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        assert isinstance(right, float)
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    return left == right


@quick
@given(trees, st.booleans())
def test_any_tree_dumped_is_loaded_equal(tree, flow):
    """Whatever JSON can hold comes back as it was, from both styles of YAML."""
    assert same(load(dump({"v": tree}, flow=flow)).value.v, tree)


def quoted(key: str) -> str:
    return '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else c for c in key) + '"'


@quick
@given(st.dictionaries(texts, trees, min_size=1, max_size=4), trees, st.data())
def test_an_override_equals_editing_the_file(tree, new, data):
    """Setting a value from outside gives what writing it into the file gives."""
    edited = dict(tree)
    steps = ["v"]
    place: Any = edited
    while True:
        choices = list(place) if isinstance(place, dict) else list(range(len(place)))
        step = data.draw(st.sampled_from(choices))
        steps.append(quoted(step) if isinstance(step, str) else str(step))
        below = place[step]
        if not (isinstance(below, dict | list) and below and data.draw(st.booleans())):
            place[step] = new
            break
        # Copied on the way down, so that `tree` is what the file says.
        place[step] = dict(below) if isinstance(below, dict) else list(below)
        place = place[step]
    # A document's end marker may follow a bare scalar; it is no part of the value.
    value = dump(new, flow=True).removesuffix("...\n")
    found = load(dump({"v": tree}, flow=False), [f"{'.'.join(steps)}={value}"])
    assert same(found.value.v, edited)


@quick
@given(trees)
def test_rows_have_an_origin_in_the_file(tree):
    """Every row of what a file sets points into that file, and `origin` agrees with the rows."""
    loaded = load(dump({"v": tree}, flow=False))
    rows = list(render_resolved(loaded))
    assert rows
    for row in rows:
        assert "f.yaml:" in row.origin
        assert loaded.origin(row.path) == row.origin


@quick
@given(st.binary(max_size=200))
def test_random_bytes_raise_only_config_errors(data):
    """No file, whatever its bytes, is more than an error with a reason."""
    outcome = attempt(data)
    assert isinstance(outcome, Free) or outcome.problems


SYNTAX = st.lists(
    st.sampled_from([*"{}[]:,-?&*!|>'\"%@`#~$.\n\t ", "a", "1", "&a ", "*a", "v: ", "${v}", "!!"]),
    max_size=40,
).map("".join)


@quick
@given(SYNTAX | st.text(max_size=60), st.lists(SYNTAX | st.text(max_size=20), max_size=2))
def test_random_text_raises_only_config_errors(text, overrides):
    """Nor is any text in a file or an override; every line of the error can be printed."""
    outcome = attempt(text.encode("utf-8", "surrogatepass"), overrides)
    if isinstance(outcome, ConfigError):
        lines = str(outcome).splitlines()
        assert len(lines) == len(outcome.problems) > 0
        assert str(outcome).encode()


@quick
@given(SYNTAX)
def test_random_values_of_training_files_raise_only_config_errors(sections, text):
    """The same holds for a training configuration with sections."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "f.yaml")
        path.write_text(f"model:\n  name: {text}\ntraining: {text}\n", encoding="utf-8")
        with pytest.raises(ConfigError):
            ConfigManager.load_config(path, environment={}, sections=sections)


@st.composite
def bombs(draw):
    """Draw layers of lists or mappings, each of which repeats earlier ones many times."""
    lines = ["v:", "- &a0 x"]
    for level in range(1, draw(st.integers(2, 30))):
        targets = draw(st.lists(st.integers(0, level - 1), min_size=1, max_size=12))
        if draw(st.booleans()):
            body = "[" + ", ".join(f"*a{target}" for target in targets) + "]"
        else:
            body = "{" + ", ".join(f"k{i}: *a{target}" for i, target in enumerate(targets)) + "}"
        lines.append(f"- &a{level} {body}")
    return "\n".join(lines)


def size(value: object) -> int:
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(size, below))


@quick
@given(bombs())
def test_bombs_of_any_shape_stay_bounded(text):
    """What is built from aliases never exceeds the limit, and what exceeds it says so."""
    assert_bounded(text)


def test_load_yaml_model_returns_the_model(tmp_path):
    """The short form is the long form's value."""
    path = tmp_path / "f.yaml"
    path.write_text("v: 1", encoding="utf-8")
    assert load_yaml_model(path, Free) == load_located(path, Free).value == Free(v=1)
