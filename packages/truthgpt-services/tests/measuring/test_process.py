"""Worker processes: they answer, they fail alone, and they end."""

from __future__ import annotations

import json
import math
import os

import pytest

from truthgpt_core.optimization import OptimizationError
from truthgpt_services.errors import ModelError, WorkerError
from truthgpt_services.measuring.bench import Bench
from truthgpt_services.measuring.client import WorkerProcess
from truthgpt_services.measuring.protocol import (
    BenchRequests,
    Compared,
    ModelRequests,
    RequestError,
    StepToBuild,
    perform,
    result_of,
)
from truthgpt_services.measuring.worker import Worker
from truthgpt_services.measuring.worker_log import NAME, collected, keep, new_log
from truthgpt_services.results.schema import Skipped

pytestmark = pytest.mark.slow

OPEN = ("auto", "cpu")


@pytest.fixture
def worker(example_installed, tmp_path):
    with WorkerProcess("halve + idle", tmp_path) as process:
        yield process


def build(worker, tiny, output, name):
    return worker.build(str(tiny), "here", [StepToBuild(name, {})], str(output), *OPEN, seed=7)


def test_a_worker_answers_and_its_errors_are_raised_here(worker, tiny, tmp_path):
    """One start for all that follows from it: an error does not end the worker.

    Ours keep their class, message and hint; a plugin's own class becomes the nearest of ours;
    what nobody expected becomes a WorkerError with the worker's name.
    """
    with pytest.raises(ModelError, match="There is no model at") as caught:
        worker.open("/no/where", *OPEN)
    assert type(caught.value) is ModelError
    with pytest.raises(OptimizationError, match=r"no optimization named.*Did you mean") as caught:
        build(worker, tiny, tmp_path, "halv")
    assert caught.value.hint.startswith('Did you mean "halve"?')
    with pytest.raises(OptimizationError) as caught:
        build(worker, tiny, tmp_path, "picky")
    assert type(caught.value) is OptimizationError
    assert str(caught.value) == "This model has no knobs. Take one with knobs."
    with pytest.raises(RequestError, match="no model to decode"):
        worker.decode(4)
    (tmp_path / "saved").mkdir()
    (step,) = build(worker, tiny, tmp_path / "saved", "half").steps
    assert (step.coverage.covered, step.coverage.total) == (14, 15)
    assert step.notes == ["Halves are whole enough, with seed 7."]
    assert step.coverage.skipped == [Skipped(name="lm_head", reason="it makes the logits")]
    assert worker.open(str(tmp_path / "saved"), *OPEN).dtype == "float32"
    assert worker.tokenize("The end", 2) == worker.tokenize("The ending", limit=2)
    assert worker.notes() == []
    with pytest.raises(WorkerError, match=r'"halve \+ idle" failed to compare: File') as caught:
        worker.compare([5, 6, 7], "/no/where")
    assert caught.value.worker == "halve + idle"
    # The last of all: it takes the worker with it.
    with pytest.raises(WorkerError) as caught:
        build(worker, tiny, tmp_path, "die")
    assert 'The worker for "halve + idle" failed to build: killed by SIGKILL' in str(caught.value)
    assert "too little memory" in caught.value.hint
    with pytest.raises(WorkerError, match="failed to open: killed by SIGKILL"):
        worker.open(str(tiny), *OPEN)


@pytest.mark.parametrize(
    ("request_", "arguments", "said"),
    [
        ("opne", {}, 'has no request "opne". Did you mean "open"?'),
        ("__init__", {}, 'has no request "__init__"'),
        ("answer", {}, 'has no request "answer"'),
        ("decode", {"tokens": "many"}, '"decode" does not fit its types: tokens: .* integer'),
        ("open", {"directory": "x", "dtype": None}, '"open" .*: device: Field required'),
        ("notes", {"of": 1}, '"notes" .*: of: Extra inputs are not permitted'),
    ],
)
def test_a_request_that_a_worker_does_not_have_is_an_error(request_, arguments, said):
    """By its name, and so is one whose arguments do not fit their types."""
    with pytest.raises(RequestError, match=said):
        perform(object(), request_, arguments)


def test_each_request_is_answered_in_a_worker():
    """What a worker can be asked by the types is what it does."""
    for declared, answers in ((ModelRequests, Worker), (BenchRequests, Bench)):
        for name in vars(declared):
            if not name.startswith("_"):
                assert getattr(answers, name) is not getattr(declared, name), name


def test_results_come_as_they_were():
    """Infinities and missing numbers, and the types that were declared."""
    infinite = Compared([math.inf], [-math.inf], [0.0], [1.0])

    class Owner(BenchRequests):
        def compare(self, ids, path, prompt=0):
            assert (ids, path, prompt) == ([1, 2], "odd \udcff", 0)
            return infinite

    result = perform(Owner(), "compare", {"ids": [1, 2], "path": "odd \udcff"})
    assert result_of("compare", json.loads(json.dumps(result))) == infinite


@pytest.fixture
def torch_is(tmp_path, monkeypatch):
    """Let workers run some code instead of loading torch."""

    def install(code):
        (tmp_path / "torch.py").write_text(code)
        paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))

    return install


def test_a_worker_that_cannot_start_says_why(tmp_path, torch_is):
    """The last line that it printed stands in the error."""
    torch_is("raise ImportError('libtorch.so is missing')")
    with WorkerProcess("baseline", tmp_path) as worker, pytest.raises(WorkerError) as caught:
        worker.open("x", *OPEN)
    assert str(caught.value) == (
        'The worker for "baseline" failed to open: exit code 1: ImportError: libtorch.so is missing'
    )


def test_a_worker_that_hangs_is_ended_in_time(tmp_path, torch_is):
    """The error says how long it had and how to give it longer, and what it printed is there."""
    torch_is("import sys, time; print('Going to sleep', file=sys.stderr); time.sleep(3600)")
    slow = WorkerProcess("slow", tmp_path, step_timeout=10)
    with slow as worker, pytest.raises(WorkerError) as caught:
        worker.open("x", *OPEN)
    assert str(caught.value) == (
        'The worker for "slow" failed to open: no answer within 10 s. '
        "If it only takes long, raise --step-timeout."
    )
    assert caught.value.worker == "slow"
    assert "Going to sleep" in collected(tmp_path)


def test_two_workers_work_at_the_same_time(tmp_path, torch_is):
    """What was begun goes on in both, and each is asked for its answer later."""
    torch_is("import time; time.sleep(2); raise ImportError('late')")
    with WorkerProcess("one", tmp_path) as one, WorkerProcess("two", tmp_path) as two:
        begun = [each.begin(each.open, "x", *OPEN) for each in (one, two)]
        for answer, name in zip(begun, ("one", "two"), strict=True):
            with pytest.raises(WorkerError, match=f'"{name}" failed to open: .*late'):
                answer()


def test_what_workers_print_is_put_together_under_headings(tmp_path):
    """In the order in which they were started; two of one name do not share a heading."""
    for name, text in (("baseline", "one\n"), ("halve", ""), ("baseline", "\x1b[2Jthree")):
        log = new_log(tmp_path, name)
        with log.open("a") as file:
            file.write(text)
    lines = collected(tmp_path).splitlines()
    assert [line.partition(", started 2")[0] for line in lines if line] == [
        "== baseline",
        "one",
        "== halve",
        "== baseline",
        "�[2Jthree",
    ]
    assert NAME == "worker.log"


def test_a_worker_that_prints_without_end_leaves_a_log_that_can_be_read(tmp_path):
    """Its beginning and its end, and how much is not there; and not too many of them."""
    for name in ("loud", *"abcdefghijklmnopqrst"):
        log = new_log(tmp_path, name)
        with log.open("a") as file:
            file.write("first\n" + "x" * 3_000_000 + "\nlast")
    text = collected(tmp_path)
    first = text.partition("\n== a, ")[0]
    assert "first" in first
    assert first.endswith("\nlast\n")
    assert "2,936,011 bytes are left out" in first
    assert len(text) <= 1_100_000
    assert "more processes are left out" in text.splitlines()[-1]


def test_what_was_printed_before_a_failure_is_kept(tmp_path, cache):
    """In the cache directory, for its owner alone; ten of them, and none if nothing was printed."""
    log = new_log(tmp_path, "baseline")
    assert keep(tmp_path) is None
    log.write_text(log.read_text() + "Segmentation fault\n")
    kept = keep(tmp_path)
    assert kept.parent == cache / "logs"
    assert "Segmentation fault" in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600
    for day in range(10, 29):
        (kept.parent / f"2020-01-{day}-000000-1.log").touch()
    kept.unlink()
    kept = keep(tmp_path)
    left = sorted(kept.parent.iterdir())
    assert len(left) == 10
    assert left[-1] == kept


def test_a_traceback_of_a_worker_is_shown_where_it_is_asked_for(worker, monkeypatch, capfd):
    """TRUTHGPT_DEBUG=1 shows where in a plugin it went wrong; without it there is one line."""
    for debugging in ("", "1"):
        monkeypatch.setenv("TRUTHGPT_DEBUG", debugging)
        with pytest.raises(ModelError):
            worker.open("/no/where", *OPEN)
        assert ("Traceback" in capfd.readouterr().err) is bool(debugging)
