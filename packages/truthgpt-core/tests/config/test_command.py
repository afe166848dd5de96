"""`truthgpt config`: the values in force with their origins, and the schema for editors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TRAIN_YAML = """\
model:
  name: gpt2
training:
  learning_rate: 1e-3
  max_grad_norm: .inf
output_dir: runs/one
data: {source: text, dataset: wiki}
"""
TRACKER = """
from truthgpt_core import hookimpl
from truthgpt_core.config import Section

class Tracking(Section):
    '''Where metrics go.'''
    project: str = "größe"
    tags: list[str] = []

@hookimpl
def register_config_sections(sections):
    sections.register("tracking", Tracking)
"""


@pytest.fixture
def site(site):
    """Installed distributions, one with the sections of trainer.py among them."""
    site.install_plugin("trainer", Path(__file__).with_name("trainer.py").read_text())
    return site


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with train.yaml in it."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "train.yaml").write_text(TRAIN_YAML, encoding="utf-8")
    return folder


def shown(result: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    """Return what `show` printed: value and origin by path."""
    assert (result.returncode, result.stderr) == (0, "")
    rows = [line.split("  ") for line in result.stdout.splitlines()]
    found = {row[0]: tuple(cell.strip() for cell in row[1:] if cell.strip()) for row in rows}
    assert len(found) == len(rows)
    return found


# show


def test_show_refuses_components_that_nothing_provides(truthgpt, site) -> None:
    """A misspelled name is told with its place, before anything is loaded for it."""
    site.install_plugin(
        "books",
        """
        from truthgpt_core import hookimpl

        @hookimpl
        def register_components(factories):
            factories["dataset_factory"].register("library_of_books", Books)

        class Books:
            def texts(self):
                yield "Once upon a time"
        """,
    )
    result = truthgpt("config", "show", "train.yaml", "-s", "data.source=library_of_boks")
    assert (result.returncode, result.stdout) == (2, "")
    assert "data.source: should be " in result.stderr
    assert 'Did you mean "library_of_books"?' in result.stderr
    schema = json.loads(truthgpt("config", "schema").stdout)
    choices = schema["$defs"]["Data"]["properties"]["source"]["enum"]
    assert "library_of_books" in choices


def test_show_says_where_each_value_comes_from(truthgpt, monkeypatch) -> None:
    """Each value is printed with its path and file:line:column, variable, override or default."""
    monkeypatch.setenv("TRUTHGPT_CONFIG__training__epochs", "7")
    result = truthgpt("config", "show", "train.yaml", "--set", "seed=1", "-s", "data.source=jsonl")
    found = shown(result)
    assert found["model.name"] == ('"gpt2"', "train.yaml:2:9")
    assert found["data.dataset"] == ('"wiki"', "train.yaml:7:31")
    assert found["data.source"] == ('"jsonl"', "override 2")
    assert found["training.epochs"] == ("7", "environment TRUTHGPT_CONFIG__training__epochs")
    assert found["training.learning_rate"] == ("0.001", "train.yaml:4:18")
    assert found["training.max_grad_norm"] == (".inf", "train.yaml:5:18")
    assert found["training.optimizer"] == ('"adamw"', "default")
    assert found["model.dtype"] == ('"auto"', "default")
    assert found["output_dir"] == ('"runs/one"', "train.yaml:6:13")
    assert found["seed"] == ("1", "override 1")


def test_show_is_aligned_and_in_the_order_of_the_model(truthgpt) -> None:
    """Values stand below one another, and so do origins; sections come in a fixed order."""
    lines = truthgpt("config", "show", "train.yaml").stdout.splitlines()
    sections = list(dict.fromkeys(line.split()[0].split(".")[0] for line in lines))
    assert sections == ["output_dir", "seed", "model", "data", "training"]
    by_path = {line.split()[0]: line for line in lines}
    name, rate = by_path["model.name"], by_path["training.learning_rate"]
    assert name.index('"gpt2"') == rate.index("0.001")
    assert name.index("train.yaml:2") == rate.index("train.yaml:4")


def test_show_knows_the_sections_of_plugins(truthgpt, site) -> None:
    """Sections of installed plugins are shown, written in the file or not."""
    site.install_plugin("tracker", TRACKER)
    found = shown(truthgpt("config", "show", "train.yaml", "-s", "tracking.tags=[a]"))
    assert found["tracking.project"] == ('"größe"', "default")
    assert found["tracking.tags.0"] == ('"a"', "override 1")


def test_show_as_json(truthgpt, site) -> None:
    """`--json` prints path, value and origin of each in JSON that any reader reads."""
    result = truthgpt("config", "show", "train.yaml", "--json")
    assert (result.returncode, result.stderr) == (0, "")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    rows = json.loads(result.stdout, parse_constant=refuse)
    assert rows[2] == {
        "path": "model.name",
        "value": "gpt2",
        "origin": "train.yaml:2:9",
    }
    by_path = {row["path"]: row["value"] for row in rows}
    assert by_path["training.learning_rate"] == 0.001
    assert by_path["training.max_grad_norm"] == ".inf"


def test_show_names_files_from_here(truthgpt, folder) -> None:
    """A file given by its whole path is named from the working directory."""
    found = shown(truthgpt("config", "show", str(folder / "train.yaml")))
    assert found["model.name"][1] == "train.yaml:2:9"


def test_show_does_not_name_a_file_the_longer_way(truthgpt, folder, monkeypatch) -> None:
    """From far away the whole path is the shorter one."""
    far = folder / "a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/r/s/t/u/v/w/x/y/z/a/b/c/d/e/f/g/h"
    far = far / "/".join("a" * 40)
    far.mkdir(parents=True)
    monkeypatch.chdir(far)
    found = shown(truthgpt("config", "show", str(folder / "train.yaml")))
    assert found["model.name"][1] == f"{folder / 'train.yaml'}:2:9"


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege")
def test_show_does_not_take_another_file_for_it(truthgpt, folder) -> None:
    """Where `..` follows a link, the path that only looks right is not the one shown."""
    (folder / "elsewhere/deep").mkdir(parents=True)
    (folder / "link").symlink_to(folder / "elsewhere/deep")
    (folder / "elsewhere/train.yaml").write_text(TRAIN_YAML)
    path = f"{folder}/link/../train.yaml"
    assert shown(truthgpt("config", "show", path))["model.name"][1] == f"{path}:2:9"


def test_show_tells_all_errors_at_once(truthgpt, monkeypatch) -> None:
    """File, environment and overrides: each mistake is a line with its place."""
    text = TRAIN_YAML.replace("learning_rate: 1e-3", "epochs: no").replace("dataset", "datset")
    Path("train.yaml").write_text(text)
    monkeypatch.setenv("TRUTHGPT_CONFIG__training__eval_intervall", "2")
    result = truthgpt("config", "show", "train.yaml", "-s", "seed=x", "--set", "nonsense")
    assert (result.returncode, result.stdout) == (1, "")
    lines = result.stderr.removeprefix("truthgpt: ").splitlines()
    assert sorted(line.split(": ")[0] for line in lines) == [
        "environment TRUTHGPT_CONFIG__training__eval_intervall",
        "override 1",
        "override 2",
        "train.yaml:4:11",
        "train.yaml:7:1",
        "train.yaml:7:22",
    ]
    assert any('Did you mean "dataset"?' in line for line in lines)
    assert any('Did you mean "eval_interval"?' in line for line in lines)


def test_show_of_a_file_that_is_not_there(truthgpt) -> None:
    """A misspelt file name is one line that names the file that is there."""
    result = truthgpt("config", "show", "trian.yaml")
    assert (result.returncode, result.stdout, result.stderr) == (
        1,
        "",
        'truthgpt: trian.yaml: the file does not exist. Did you mean "train.yaml"?\n',
    )


def test_show_keeps_values_on_one_line(truthgpt) -> None:
    """A value with line breaks or escape sequences is one line that does nothing."""
    result = truthgpt("config", "show", "train.yaml", "-s", r'output_dir="a\nb\e[31m\x9b"')
    assert shown(result)["output_dir"] == (r'"a\nb\u001b[31m\x9b"', "override 1")


@pytest.mark.parametrize("subcommand", [("show", "train.yaml"), ("schema",)])
def test_a_broken_plugin_is_a_line_on_stderr(truthgpt, site, subcommand) -> None:
    """A plugin that fails is told in one line, and what is asked for is printed."""
    site.install_plugin("tracker", TRACKER)
    site.install_plugin("wrong", "raise OSError('two\\n\\x07lines')")
    result = truthgpt("config", *subcommand)
    assert result.returncode == 0
    assert "tracking" in result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith('truthgpt: plugin "wrong" is broken: ')
    assert line.endswith(r": OSError: two \x07lines")


@pytest.mark.parametrize("subcommand", [("show", "train.yaml"), ("schema",)])
def test_a_broken_plugin_is_fatal_if_strict(truthgpt, site, monkeypatch, subcommand) -> None:
    """With TRUTHGPT_STRICT=1 nothing is printed but the error."""
    site.install_plugin("wrong", "raise OSError('broken')")
    monkeypatch.setenv("TRUTHGPT_STRICT", "1")
    result = truthgpt("config", *subcommand)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith('truthgpt: Plugin "wrong" is broken: ')


# schema


def test_schema_has_the_sections_of_plugins(truthgpt, site) -> None:
    """The schema is printed as JSON, with the core's sections and those of installed plugins."""
    site.install_plugin("tracker", TRACKER)
    result = truthgpt("config", "schema")
    assert (result.returncode, result.stderr) == (0, "")
    schema = json.loads(result.stdout)
    assert {"model", "data", "training", "tracking"} <= set(schema["properties"])
    assert schema["$defs"]["Tracking"]["description"] == "Where metrics go."


def test_schema_is_written_to_a_file(truthgpt, folder) -> None:
    """`-o` writes what is printed otherwise, and prints nothing."""
    printed = truthgpt("config", "schema").stdout
    result = truthgpt("config", "schema", "-o", "train.schema.json")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert Path("train.schema.json").read_text() == printed
    assert sorted(path.name for path in folder.iterdir()) == ["train.schema.json", "train.yaml"]


@pytest.mark.skipif(os.name == "nt", reason="files have no limit that can be set")
def test_schema_that_cannot_be_written_leaves_the_old_file(site, folder) -> None:
    """When the disk is full the file that was there stays, and nothing is left beside it."""
    Path("train.schema.json").write_text("old")
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "from truthgpt_core.cli.main import main; main()"
    )
    # Nor may half of a module's bytecode be left, which Python writes without looking.
    result = subprocess.run(
        [sys.executable, "-B", "-c", code, "config", "schema", "-o", "train.schema.json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 1
    assert result.stderr == "truthgpt: train.schema.json cannot be written: File too large\n"
    assert Path("train.schema.json").read_text() == "old"
    assert len(list(folder.iterdir())) == 2


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege")
def test_schema_keeps_links_and_permissions(truthgpt) -> None:
    """A file that others read through a link, and may write, stays so."""
    Path("real.json").write_text("old")
    Path("real.json").chmod(0o664)
    Path("link.json").symlink_to("real.json")
    assert truthgpt("config", "schema", "-o", "link.json").returncode == 0
    assert Path("link.json").is_symlink()
    assert Path("real.json").stat().st_mode & 0o777 == 0o664
    assert json.loads(Path("real.json").read_text())["title"]


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("nowhere/s.json", "nowhere/s.json cannot be written: No such file or directory"),
        (".", ". is not a file"),
    ],
)
def test_schema_to_no_file_is_an_error(truthgpt, folder, output: str, said: str) -> None:
    """A directory, and a file in a directory that is not there, are told in a line."""
    result = truthgpt("config", "schema", "-o", output)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"truthgpt: {said}\n"
    assert len(list(folder.iterdir())) == 1


def test_schema_tells_how_an_editor_uses_it(truthgpt) -> None:
    """The help has the line that a file begins with."""
    help_text = truthgpt("config", "schema", "--help").stdout
    assert "# yaml-language-server: $schema=train.schema.json\n" in help_text
