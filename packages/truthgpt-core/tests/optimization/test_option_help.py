"""The options of an optimization are listed: name, type, default and what they do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from truthgpt_core import Applied, Optimization, Options
from truthgpt_core.optimization import help_requests
from truthgpt_core.optimization.option_help import describe_options, option_lines


class Depth(BaseModel):
    """Options inside options."""

    layers: int = 1


class ShrinkOptions(Options):
    """Options of every kind."""

    must: int
    kind: Literal["a", "b"] = Field("a", description="Which\n  of the two.")
    size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    share: float | None = Field(None, gt=0, le=1)
    names: tuple[str, ...] = ()
    flags: list[bool] = Field([True, False])
    depth: Depth = Depth()
    on: bool = True


class Shrink(Optimization[ShrinkOptions]):
    """Make it small.

    More about it.
    """

    name = "shrink"
    options_type = ShrinkOptions

    def apply(self, model: Any, context: Any) -> Applied:
        """Do nothing."""
        return Applied(model)


def test_types_and_defaults_are_written_as_they_are_typed() -> None:
    """Each option has its name, its type in words, its default and its description."""
    found = {each.name: (each.type, each.default) for each in describe_options(Shrink)}
    assert found == {
        "must": ("integer", ""),
        "kind": ("a | b", "a"),
        "size": ("integer, at least 1 | auto", "auto"),
        "share": ("number, more than 0, at most 1 | none", "none"),
        "names": ("list of text", "none"),
        "flags": ("list of true or false", "true, false"),
        "depth": ("mapping", "layers=1"),
        "on": ("true or false", "true"),
    }
    assert [each.description for each in describe_options(Shrink)][1] == "Which of the two."


def test_the_lines_say_how_to_write_them() -> None:
    """The first line says what it is for, the last how to give an option."""
    lines = option_lines("less", Shrink)
    assert lines[0] == "less: Make it small."
    assert lines[-1] == "Write them as --apply less:must=VALUE"
    assert "  must  integer  must be given" in lines
    assert "    Which of the two." in lines


def test_a_type_that_json_does_not_know_is_listed_all_the_same() -> None:
    """An option of an unusual type has its name and default."""

    class Odd(Options):
        model_config = {"arbitrary_types_allowed": True}  # noqa: RUF012
        call: Callable[[int], int] = abs

    kind = type("OddOne", (Shrink,), {"options_type": Odd})
    (only,) = describe_options(kind)
    assert (only.name, only.type) == ("call", "anything")


def test_no_options_are_said() -> None:
    """An optimization without options says so."""
    kind = type("Plain", (Shrink,), {"options_type": Options, "__doc__": None})
    assert option_lines("plain", kind) == ["plain", "It has no options."]


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["shrink:help"], ["shrink"]),
        (["shrink:help,other"], ["shrink"]),
        (["other", "less:a=1,shrink:help"], ["shrink"]),
        (["shrink:kind=help"], []),
        (["help"], []),
        ([":help"], []),
        ([], []),
    ],
)
def test_help_is_asked_for_by_name(texts: list[str], names: list[str]) -> None:
    """`--apply NAME:help` asks for the options of NAME; a value `help` does not."""
    assert help_requests(texts) == names


@pytest.mark.parametrize("value", ["lm_head", 3, ["lm_head"], ("lm_head",)])
def test_one_value_will_do_for_an_option_that_has_several(value: object) -> None:
    """`skip=lm_head` is a tuple of one, whether a tuple or a list is asked for."""

    class Several(Options):
        skip: tuple[str | int, ...] = ()
        more: list[str | int] | None = None

    expected = list(value) if isinstance(value, list | tuple) else [value]
    made = Several(skip=value, more=value)
    assert (list(made.skip), made.more) == (expected, expected)
    assert Several(more=None).more is None


# On the command line

CODE = """
from pydantic import Field
from truthgpt_core import Applied, Optimization, Options

class ZzOptions(Options):
    size: int = Field(3, description="How large.")

class Zz(Optimization[ZzOptions]):
    \"\"\"Make it small.\"\"\"
    name = "zz"
    options_type = ZzOptions
    def apply(self, model, context): return Applied(model)
"""


def test_showing_a_plugin_lists_options(main, site) -> None:
    """`truthgpt plugins show NAME` ends with the options of its optimizations."""
    site.install_plugin("shown", CODE, optimizations={"zz": "MODULE:Zz"})
    out = main("plugins", "show", "shown")[1]
    assert "zz: Make it small.\n\n  size  integer  default 3\n    How large.\n" in out
    for arguments in (["show", "shown", "--json"], ["--json", "show", "shown"]):
        (found,) = json.loads(main("plugins", *arguments)[1])
        assert found["options"]["zz"] == [
            {"name": "size", "type": "integer", "default": "3", "description": "How large."}
        ]


def test_an_optimization_that_cannot_be_imported_is_said_so(main, site) -> None:
    """The plugin is shown all the same."""
    site.install_plugin("ill", "1 / 0", optimizations={"zz": "MODULE:Zz"})
    status, out, _ = main("plugins", "show", "ill")
    assert status == 0
    assert "zz: ill_module:Zz cannot be imported: ZeroDivisionError: division by zero" in out
    (found,) = json.loads(main("plugins", "show", "ill", "--json")[1])
    assert "cannot be imported" in found["options"]["zz"]["problem"]
