"""Tasks on a cluster: each is done once more if its process dies, and errors come back as such."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from truthgpt_core.application import Application
from truthgpt_core.cluster import ClusterError, Replicas, make_cluster
from truthgpt_core.errors import TruthGPTError, UsageError

pytest.importorskip("ray", reason="ray is not installed")

TWO = Replicas(least=2, most=2)
DOUBLE = "ray_programs:make_doubler"


def test_every_task_is_done_once_by_several_processes(cluster: Any) -> None:
    """Results come in any order."""
    results = list(cluster.map(DOUBLE, {"seconds": 0.05}, range(60), replicas=TWO))
    assert sorted(each["double"] for each in results) == [2 * number for number in range(60)]
    assert len({each["process"] for each in results}) == 2


def test_a_task_whose_process_dies_is_done_by_another(cluster: Any, tmp_path: Path) -> None:
    """And none is lost, nor there twice."""
    settings = {"die_at": 11, "folder": str(tmp_path)}
    results = list(cluster.map(DOUBLE, settings, range(30), replicas=TWO))
    assert sorted(each["double"] for each in results) == [2 * number for number in range(30)]
    assert (tmp_path / "died").exists()


def test_tasks_are_taken_as_they_are_needed(cluster: Any, monkeypatch: Any) -> None:
    """There may be more than fit into memory, or no end of them."""
    monkeypatch.setattr("truthgpt_plugin_ray.data._ROUND", 8)
    taken = count()
    results = cluster.map(DOUBLE, {}, taken, replicas=TWO)
    assert len(list(islice(results, 10))) == 10
    results.close()
    assert next(taken) <= 24


def test_what_a_worker_refuses_is_the_error(cluster: Any) -> None:
    """With its hint, and as the worker said it."""
    with pytest.raises(ClusterError) as raised:
        list(cluster.map(DOUBLE, {"refuse": 3}, range(5), replicas=TWO))
    assert str(raised.value) == "3 is refused. Take another."


def test_a_worker_that_cannot_be_made_is_one_error(cluster: Any) -> None:
    """And Ray does not try again and again."""
    with pytest.raises(ClusterError, match=r"There is no such model\. Name another\."):
        list(cluster.map("ray_programs:refuse", {}, range(5), replicas=TWO))


def test_more_replicas_than_the_cluster_has_room_for_are_refused(cluster: Any) -> None:
    """They would be waited for without an end."""
    many = Replicas(least=9, most=9)
    with pytest.raises(ClusterError, match=r"9 replicas take 4.5 CPUs, and the cluster has 4"):
        list(cluster.map(DOUBLE, {}, range(5), replicas=many))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ray:cpu=1", 'there is no option "cpu" (Did you mean "cpus"?)'),
        ("ray:cpus=0", 'option "cpus"'),
        ("ray:cpus", '"cpus" of --on ray is not OPTION=VALUE'),
        ("rya", 'There is no cluster named "rya". Did you mean "ray"?'),
    ],
)
def test_a_wrong_choice_is_one_error(given: str, message: str) -> None:
    """Before Ray is imported."""
    application = Application()
    application.plugins.activate("ray")
    with pytest.raises(UsageError) as raised:
        make_cluster(given, application.factories["cluster_factory"])
    assert message in str(raised.value)


def test_an_address_without_a_cluster_is_one_error(monkeypatch: Any) -> None:
    """In a program that has none yet."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    from truthgpt_plugin_ray.cluster import RayCluster
    from truthgpt_plugin_ray.settings import RayOptions

    cluster = RayCluster(RayOptions(address="nowhere://x"))
    with pytest.raises(ClusterError, match="There is no Ray cluster at nowhere://x"):
        list(cluster.map(DOUBLE, {}, range(5), replicas=TWO))


def test_batch_on_the_cluster_gives_the_same_texts(cluster: Any, tmp_path: Path) -> None:
    """500 prompts, as the inference service answers each alone; a record that fails says why."""
    from truthgpt_services import InferenceService
    from truthgpt_services.commands.batch import batch
    from truthgpt_services.models.loading import load_model, load_tokenizer
    from truthgpt_services.testing import write_tiny_model

    model = tmp_path / "model"
    write_tiny_model(model)
    texts = [f"The import statement {number}" for number in range(500)]
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    lines = [*texts, "x" * 3000]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in lines))
    done = CliRunner().invoke(
        batch,
        [
            *map(str, (model, prompts, "-o", output, "--max-new-tokens", "6")),
            *("--engine", "torch", "--on", "ray:cpus=0.5", "--replicas", "2"),
        ],
    )
    assert isinstance(done.exception, TruthGPTError), done.output
    assert str(done.exception).startswith("1 of 501 records have no answer")
    service = InferenceService()
    service.configure(load_model(model), load_tokenizer(model))
    answers = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    expected = service.generate(texts, {"max_new_tokens": 6})
    assert [each["text"] for each in answers[:500]] == expected
    assert "the model holds 512" in answers[500]["error"]


@pytest.mark.slow
def test_without_a_cluster_one_is_started_here(tmp_path: Path) -> None:
    """By the command, in a process of its own; it says what it does, and nothing of Ray's."""
    from truthgpt_services.testing import write_tiny_model

    write_tiny_model(tmp_path / "model")
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text('{"prompt": "The import statement"}\n' * 5)
    code = "from truthgpt_core.cli.main import main; main()"
    arguments = ("batch", "model", prompts, "-o", output, "--max-new-tokens", "4")
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments), "--on", "ray:cpus=0.5"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
    )
    assert done.returncode == 0, done.stderr
    assert len(output.read_text("utf-8").splitlines()) == 5
    assert done.stdout.startswith(f"Wrote {output}: 5 records")
    assert "Warning" not in done.stderr
