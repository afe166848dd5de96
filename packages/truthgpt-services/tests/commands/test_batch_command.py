"""`truthgpt batch`: the answers, what is left when it is killed, and what is said of mistakes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from click.testing import CliRunner, Result

from truthgpt_core.application import get_application
from truthgpt_core.cluster import Cluster, Replicas
from truthgpt_core.errors import TruthGPTError
from truthgpt_core.optimization import Options
from truthgpt_services import InferenceService
from truthgpt_services.commands.batch import batch
from truthgpt_services.models.loading import load_tokenizer
from truthgpt_services.storage.record_log import log_path

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SHORT = ("--max-new-tokens", "6", "--engine", "torch")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Records that say who they are."""
    path = tmp_path / "prompts.jsonl"
    texts = [f"The import statement {number}" for number in range(30)]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return path


def run(*arguments: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(batch, [*map(str, arguments), *SHORT])


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def continued(bare_plugins: Any, model: Any, tokenizer: Any) -> Callable[..., str]:
    """What the tiny model says after a text."""
    service = InferenceService(bare_plugins)
    service.configure(model, tokenizer)
    return lambda text, **options: service.generate(text, {"max_new_tokens": 6} | options)


def test_answers_are_what_generate_says(
    tiny: Path, prompts: Path, tmp_path: Path, continued: Callable[..., str]
) -> None:
    """In the order of the prompts, whichever was done first, with ids and tokens."""
    lines = [
        {"prompt": "The import statement", "id": "long", "options": {"max_new_tokens": 40}},
        {"prompt": "The lambda", "id": 2, "options": {"temperature": 0.8, "seed": 4}},
        {"prompt": "The while loop"},
    ]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    output = tmp_path / "out.jsonl"
    done = run(tiny, prompts, "-o", output, "--max-batch-size", 2)
    assert done.exit_code == 0, done.output
    assert "3 records" in done.stdout
    found = answers(output)
    assert [each["text"] for each in found] == [
        continued(each["prompt"], **each.get("options", {})) for each in lines
    ]
    assert [each["id"] for each in found] == ["long", 2, None]
    assert [each["index"] for each in found] == [0, 1, 2]
    assert found[0]["tokens"]["generated"] == 40
    assert (found[2]["finish_reason"], found[2]["tokens"]["generated"]) == ("length", 6)


def test_conversations_go_through_the_chat_template(
    tiny: Path, prompts: Path, tmp_path: Path, continued: Callable[..., str]
) -> None:
    """A prompt is asked, as `generate` does; `--system` comes first where there is none."""
    model = tmp_path / "chatty"
    shutil.copytree(tiny, model)
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model)
    lines = [
        {"prompt": "Hi"},
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"messages": [{"role": "system", "content": "A"}, {"role": "user", "content": "Hi"}]},
    ]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    assert run(model, prompts, "-o", tmp_path / "out", "--system", "B").exit_code == 0
    asked = [f"<system>{who}\n<user>Hi\n<assistant>" for who in "BBA"]
    assert [each["text"] for each in answers(tmp_path / "out")] == list(map(continued, asked))
    prompts.write_text(json.dumps(lines[0]))
    assert run(model, prompts, "-o", tmp_path / "raw", "--raw").exit_code == 0
    assert answers(tmp_path / "raw")[0]["text"] == continued("Hi")


def test_a_record_that_cannot_be_answered_says_why(
    tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    """The others are, the command says how many are not, and exits with 1."""
    lines = [{"prompt": "x" * 3000, "id": "a"}, {"prompt": "fine"}]
    lines.append({"messages": [{"role": "user", "content": "no template"}]})
    prompts.write_text("\n".join(map(json.dumps, lines)))
    done = run(tiny, prompts, "-o", tmp_path / "out")
    assert isinstance(done.exception, TruthGPTError)
    assert str(done.exception).startswith("2 of 3 records have no answer")
    first, second, third = answers(tmp_path / "out")
    assert (first["index"], first["id"], first["line"]) == (0, "a", 1)
    assert "the model holds 512" in first["error"]
    assert second["text"]
    assert "no chat template" in third["error"]


def test_fail_fast_ends_at_the_first(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    """It names the line; what was done before is kept."""
    text = prompts.read_text()
    prompts.write_text(text + json.dumps({"prompt": "x" * 3000}))
    output = tmp_path / "out"
    failed = run(tiny, prompts, "-o", output, "--fail-fast").exception
    assert isinstance(failed, TruthGPTError)
    assert str(failed).startswith(f"{prompts}:31: ")
    assert not output.exists()
    assert log_path(output).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--raw", "--system", "x"), "--raw has none"),
        (("--option", "temperature=1"), "write --temperature instead"),
        (("--option", "n=2"), "n has no place in a batch"),
        (("--top-k", "-1"), "not in the range"),
    ],
)
def test_wrong_options_are_usage_errors(
    prompts: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    """Before anything is loaded."""
    done = run("nowhere", prompts, "-o", tmp_path / "out", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr


def test_an_option_that_nothing_knows_is_refused_once(
    tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    """It is not an error of each record."""
    refused = run(tiny, prompts, "-o", tmp_path / "out", "--option", "temprature=1").exception
    assert isinstance(refused, TruthGPTError)
    assert 'Did you mean "temperature"?' in str(refused)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_there_is_kept(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    """Unless `--overwrite` says otherwise."""
    output = tmp_path / "out"
    output.write_text("mine")
    assert "is there already" in str(run("nowhere", prompts, "-o", output).exception)
    assert output.read_text() == "mine"
    assert run(tiny, prompts, "-o", output, "--overwrite").exit_code == 0
    assert len(answers(output)) == 30


def test_what_was_done_of_something_else_is_refused(
    tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    """Other prompts or options would give a file of two halves."""
    output = tmp_path / "out"
    text = prompts.read_text()
    prompts.write_text(text + json.dumps({"prompt": "x" * 3000}))
    run(tiny, prompts, "-o", output, "--fail-fast")
    kept = log_path(output).read_bytes()
    prompts.write_text(text)
    refused = str(run(tiny, prompts, "-o", output).exception)
    assert "records of other work, which differs in prompts" in refused
    prompts.write_text(text + json.dumps({"prompt": "x" * 3000}))
    refused = str(run(tiny, prompts, "-o", output, "--temperature", "0.5").exception)
    assert "which differs in options" in refused
    assert log_path(output).read_bytes() == kept


class Threads(Cluster[Options]):
    """A cluster of threads of this process: the smallest that there is."""

    name = "threads"

    def map(
        self,
        make_worker: str,
        settings: Mapping[str, Any],
        tasks: Iterable[Any],
        *,
        replicas: Replicas,
    ) -> Generator[Any, None, None]:
        """Do tasks, the last one first."""
        made = resolve_name(make_worker)(json.loads(json.dumps(settings)))
        given = [json.loads(json.dumps(each)) for each in tasks]
        assert len(given) >= replicas.least
        with ThreadPoolExecutor(1) as pool:
            yield from pool.map(made, reversed(given))


def test_a_cluster_gives_the_same_answers(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    """In the order of the prompts, whichever task was done first."""
    factory = get_application().factories["cluster_factory"]
    expected, output = tmp_path / "expected", tmp_path / "out"
    assert run(tiny, prompts, "-o", expected).exit_code == 0
    factory.register("threads", Threads)
    try:
        done = run(tiny, prompts, "-o", output, "--on", "threads", "--replicas", "2")
    finally:
        factory.unregister("threads")
    assert done.exit_code == 0, done.output
    assert output.read_bytes() == expected.read_bytes()


def test_replicas_are_those_of_a_cluster(prompts: Path, tmp_path: Path) -> None:
    """In one process there are none."""
    done = run("nowhere", prompts, "-o", tmp_path / "out", "--replicas", "2")
    assert done.exit_code == 2
    assert "--replicas needs --on" in done.stderr


@pytest.mark.slow
def test_a_cluster_that_is_not_installed_says_what_brings_it(
    prompts: Path, tmp_path: Path, truthgpt: Any
) -> None:
    """Before anything else."""
    done = truthgpt(
        *("batch", "nowhere", prompts, "-o", tmp_path / "out", "--on", "ray"),
        env=os.environ | {"TRUTHGPT_PLUGINS": "services"},
    )
    assert (done.returncode, done.stderr) == (
        2,
        'truthgpt: The cluster "ray" is not installed. It comes with truthgpt-plugin-ray: '
        "pip install truthgpt-plugin-ray.\n",
    )


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(
    tiny: Path, prompts: Path, tmp_path: Path, truthgpt: Any
) -> None:
    """The answers are those of a run that nobody killed, each once."""
    texts = [f"Number {number}" for number in range(400)]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    expected, output = tmp_path / "expected", tmp_path / "out"
    assert run(tiny, prompts, "-o", expected).exit_code == 0
    command = [*truthgpt.command, "batch", tiny, prompts, "-o", output, *SHORT]
    lines = 0
    for more in (1, 60, 150):
        child = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
        lines += more
        while child.poll() is None and count(log_path(output)) < lines:
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert not output.exists()
        before, lines = lines, count(log_path(output))
        assert lines >= before
    # As a machine leaves it that loses its power in the middle of a write.
    content = log_path(output).read_bytes()
    log_path(output).write_bytes(content[: content.rindex(b"\n", 0, -1) + 20])
    done = truthgpt(*command[len(truthgpt.command) :])
    assert done.returncode == 0, done.stderr
    assert f"{lines - 2} of them from before" in done.stdout
    assert output.read_bytes() == expected.read_bytes()
    assert sorted(tmp_path.iterdir()) == sorted([prompts, expected, output])


def count(path: Path) -> int:
    """The whole lines of a file."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_a_disk_that_is_full_is_one_error(
    tiny: Path, prompts: Path, tmp_path: Path, truthgpt: Any
) -> None:
    """And the same command goes on when there is room."""
    expected, output = tmp_path / "expected", tmp_path / "out"
    assert run(tiny, prompts, "-o", expected).exit_code == 0
    limited = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500));"
        "from truthgpt_core.cli.main import main; main()"
    )
    arguments = ["batch", tiny, prompts, "-o", output, *SHORT]
    failed = subprocess.run(
        [*truthgpt.command[:-1], limited, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert failed.returncode == 1
    (line,) = (each for each in failed.stderr.splitlines() if each.startswith("truthgpt: "))
    assert "is larger than this system allows. Nothing that was done is lost" in line
    assert not output.exists()
    assert count(log_path(output)) > 2
    assert truthgpt(*arguments).returncode == 0
    assert output.read_bytes() == expected.read_bytes()
