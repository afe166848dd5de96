"""What a worker says of a step: whether it changed the model, and whether the model ran through."""

from __future__ import annotations

import pytest

from truthgpt_core.application import Application
from truthgpt_core.optimization import (
    Applied,
    Coverage,
    Optimization,
    OptimizationError,
    Options,
    Stage,
)
from truthgpt_services.measuring.protocol import StepToBuild
from truthgpt_services.measuring.worker import Worker


class Boast(Optimization[Options]):
    """Names modules that there are, and does nothing to them."""

    name = "boast"

    def apply(self, model, context):
        names = tuple(name for name, _ in model.named_modules())
        return Applied(model, Coverage("modules", names), notes=("10x faster!",))

    def restore(self, model, context):
        return model


class LazyBoast(Boast):
    """The same, and takes a model whose weights are not in memory."""

    name = "lazy_boast"
    layerwise = True


class StructureBoast(Boast):
    """The same, in the stage for changes of structure."""

    name = "structure_boast"
    stage = Stage.STRUCTURE


class Invent(Boast):
    """Names modules that there are not."""

    name = "invent"

    def apply(self, model, context):
        return Applied(model, Coverage("modules", tuple(f"m{n}" for n in range(1000))))


class Flip(Boast):
    """Changes the sign of one matrix."""

    name = "flip"
    layerwise = True

    def apply(self, model, context):
        context.fill("lm_head")
        model.lm_head.weight.data.neg_()
        return Applied(model, Coverage("matrices", ("lm_head",)))


class Counting(Boast):
    """Changes how the model is run, and counts."""

    name = "counting"
    stage = Stage.EXECUTION

    def apply(self, model, context):
        forward, model.counted = model.forward, 0

        def counted(*args, **kwargs):
            model.counted += 1
            return forward(*args, **kwargs)

        model.forward = counted
        return Applied(model)

    def was_used(self, model):
        return model.counted > 0


class Silent(Counting):
    """Proves nothing."""

    name = "silent"

    def was_used(self, model):
        return Optimization.was_used(self, model)


class Claiming(Counting):
    """Says that it was used before anything was computed."""

    name = "claiming"

    def was_used(self, model):
        return True


class Lost(Counting):
    """Cannot answer."""

    name = "lost"

    def was_used(self, model):
        return model.gone


KINDS = (Boast, LazyBoast, StructureBoast, Invent, Flip, Counting, Silent, Claiming, Lost)


@pytest.fixture
def worker(plugins):
    for kind in KINDS:
        plugins.factories["optimization_factory"].register(kind.name, kind)
    return Worker(lambda what, done, total: None, Application(plugins))


@pytest.fixture
def build(worker, tiny, tmp_path):
    def run(*names, output=None):
        output = output or tmp_path / "-".join(names)
        output.mkdir()
        steps = [StepToBuild(name, {}) for name in names]
        built = worker.build(str(tiny), "typed", steps, str(output), "auto", "cpu", 0)
        return built.steps, str(output)

    return run


@pytest.mark.parametrize("name", ["boast", "lazy_boast", "structure_boast"])
def test_a_step_that_changed_nothing_is_known_for_it(build, name):
    """However many modules it names, and whether or not the weights were in memory."""
    ((step,), _) = build(name)
    assert step.coverage.covered > 20
    assert step.changed is False
    assert step.changed_note.startswith("0 of ")
    assert "tensors and 0 of" in step.changed_note


def test_a_step_that_changed_something_is_known_for_it(build):
    """With how much of the model differs."""
    ((step,), _) = build("flip")
    assert step.changed is True
    assert step.changed_note.startswith("1 of ")


def test_each_step_is_compared_with_what_was_before_it(build):
    """The steps before have changed the model already, and that is not the last one's doing."""
    (steps, _) = build("flip", "halve", "boast", "counting")
    assert [step.changed for step in steps] == [True, True, False, None]


def test_invented_modules_are_an_error_that_names_the_author(build):
    """A thousand names of modules that the model does not have."""
    with pytest.raises(OptimizationError, match=r'"invent" .*: apply says .* and 997 more'):
        build("invent")


@pytest.mark.parametrize(("name", "used"), [("counting", True), ("silent", False)])
def test_how_a_model_is_run_has_to_be_proven(worker, build, name, used):
    """By counting what ran through it; a step that says nothing has proven nothing."""
    (_, directory) = build(name)
    worker.open(directory, "auto", "cpu")
    assert worker.was_used(name, {}) is False
    worker.answer("warm_up", {"ids": [5, 6, 7], "new_tokens": 4})
    assert worker.was_used(name, {}) is used


def test_a_claim_from_before_anything_ran_proves_nothing(worker, build):
    """An answer that is always True is no proof, and the report says why."""
    (_, directory) = build("claiming")
    worker.open(directory, "auto", "cpu")
    worker.answer("warm_up", {"ids": [5, 6, 7], "new_tokens": 4})
    assert worker.was_used("claiming", {}) is False
    (note,) = worker.notes()
    assert note.optimization == "claiming"
    assert "True before anything is computed" in note.text


def test_a_proof_that_fails_names_its_author(worker, build):
    """The error has the file and the line."""
    (_, directory) = build("lost")
    with pytest.raises(OptimizationError, match=r"failed in was_used at .*test_building\.py:\d+"):
        worker.open(directory, "auto", "cpu")


def test_what_weights_are_made_of_needs_no_proof(worker, build):
    """That a step changed them is seen in the model."""
    (_, directory) = build("flip")
    worker.open(directory, "auto", "cpu")
    assert worker.was_used("flip", {}) is True
