"""Models in memory that are optimized and measured: real workers, a real plugin, a tiny model.

What counts as a gain is size alone here, so that speed decides nothing.
"""

from __future__ import annotations

import copy
import functools
import math
import os
import signal
import tempfile

import pytest
import torch

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.event_system import EventType
from truthgpt_core.optimization import Applied, Optimization, OptimizationError, Options
from truthgpt_services import ModelService
from truthgpt_services.errors import ModelError, OutputError
from truthgpt_services.measuring.client import WorkerProcess
from truthgpt_services.measuring.replay import replay
from truthgpt_services.models.loading import load_model
from truthgpt_services.models.snapshot import snapshot_model
from truthgpt_services.results.io import read_report
from truthgpt_services.results.record import read_record
from truthgpt_services.results.schema import Outcome

pytestmark = pytest.mark.slow

IDS = torch.arange(5, 45).unsqueeze(0)
# However slow the machine is meanwhile: speed decides nothing here.
QUICK = {"gain": "size", "quick": True, "max_slowdown": 0.99}


@pytest.fixture
def service(plugins):
    return ModelService(plugins)


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Where temporary files go; nothing may be left in it."""
    directory = tmp_path / "scratch"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    yield directory
    assert list(directory.iterdir()) == []


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def linear_kinds(model):
    return {type(layer).__name__ for layer in model.modules() if isinstance(layer, torch.nn.Linear)}


def test_a_listener_sees_what_becomes_of_each_step(service, plugins, model, example_installed):
    """In order, though a worker process applies it: started, applied, noted, accepted or not."""
    seen = []
    names = ("started", "applied", "noted", "finished", "reverted", "skipped", "failed")
    for name in names:
        kind = EventType(f"optimization_{name}")
        plugins.events.on(kind, lambda event, name=name: seen.append((name, event.payload)))
    service.optimize_model(model, ["refuse", "halve", "ruin"], measure=True, options=QUICK)
    steps = [(name, payload.optimization) for name, payload in seen if name != "noted"]
    assert steps == [
        ("started", "halve"),
        ("applied", "halve"),
        ("finished", "halve"),
        ("skipped", "refuse"),
        ("started", "halve"),
        ("applied", "halve"),
        ("started", "ruin"),
        ("applied", "ruin"),
        ("reverted", "ruin"),
    ]
    assert ("noted", "Halves were multiplied.") in [
        (name, getattr(payload, "note", None)) for name, payload in seen
    ]


def test_what_pays_is_returned_made_of_the_weights_in_memory(service, model, example_installed):
    """Not of those on disk; the model given is as it was, and nothing is left on disk."""
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(-1)
    model.train()
    before = copy.deepcopy(model)
    assert service.last_report is None
    half = service.make_optimization("halve", {"note": "mine"})
    optimized = service.optimize_model(model, ["ruin", half], measure=True, options=QUICK)
    assert linear_kinds(optimized) == {"HalfLinear", "Linear"}
    assert not optimized.training
    assert optimized.name_or_path == model.name_or_path
    report = service.last_report
    assert [(step.name, step.outcome) for step in report.steps] == [
        ("halve", Outcome.ACCEPTED),
        ("ruin", Outcome.REJECTED),
    ]
    assert report.steps[0].options == {"note": "mine"}
    assert linear_kinds(model) == {"Linear"}
    assert model.training
    assert vars(model.config) == vars(before.config)
    theirs = before.state_dict()
    assert all(torch.equal(each, theirs[name]) for name, each in model.state_dict().items())
    assert torch.equal(logits(optimized), logits(service.optimize_model(before.eval(), ["halve"])))


def test_the_output_holds_what_was_returned_and_its_report(
    service, model, tokenizer, tmp_path, example_installed
):
    """As `truthgpt optimize` leaves it, measured as the call asked for."""
    text = tmp_path / "text.txt"
    text.write_text("The lambda is a function without a name. " * 40)
    output = tmp_path / "out"
    model.config.name_or_path = model.name_or_path = ""
    optimized = service.optimize_model(
        model,
        ["halve"],
        max_kl=0.25,
        measure=True,
        tokenizer=tokenizer,
        output=str(output),
        options=QUICK | {"text": str(text), "max_flips": 1.0},
    )
    report = read_report(output)
    assert report == service.last_report
    assert (output / "report.html").is_file()
    assert (report.text.name, report.settings.rounds) == (str(text), 2)
    gate = report.settings.gate
    assert (gate.max_kl, gate.gain, gate.max_flips) == (0.25, "size", 1.0)
    assert report.source.spec == "LlamaForCausalLM in memory"
    assert torch.equal(logits(service.load_model(str(output))), logits(optimized))
    assert replay(service.engine_of(optimized), read_record(output)).agrees


def test_the_model_itself_is_returned_if_no_step_pays(service, model, tmp_path, example_installed):
    """Not a copy; the report says why, and the output holds the model as it was."""
    output = tmp_path / "out"
    given = service.optimize_model(model, ["ruin"], measure=True, output=output, options=QUICK)
    assert given is model
    (step,) = service.last_report.steps
    assert step.outcome is Outcome.REJECTED
    assert torch.equal(logits(service.load_model(str(output))), logits(model))
    found = replay(service.engine_of(model), read_record(output))
    assert (found.agrees, found.same) == (True, True)


def test_a_run_does_not_fail_because_nothing_could_be_recorded(
    service, model, tmp_path, example_installed, monkeypatch
):
    """As where memory runs out at the very end: the report says why, and all else is there."""
    original = WorkerProcess.record

    @functools.wraps(original)
    def killed(self, ids):
        os.kill(self.process, signal.SIGKILL)
        return original(self, ids)

    monkeypatch.setattr(WorkerProcess, "record", killed)
    output = tmp_path / "out"
    optimized = service.optimize_model(model, ["halve"], measure=True, output=output, options=QUICK)
    assert linear_kinds(optimized) == {"HalfLinear", "Linear"}
    report = read_report(output)
    assert report.replay is None
    assert 'The worker for "halve" failed to record: killed by SIGKILL' in report.replay_missing
    assert read_record(output) is None


def measured(service, model, optimizations=("halve",), **given):
    return service.optimize_model(model, optimizations, measure=True, **given)


def test_a_model_that_was_optimized_already_is_refused(service, model):
    """Worker processes would load it without that; the error names what they would not find."""
    halved = service.optimize_model(model, ["halve"])
    with pytest.raises(ModelError) as caught:
        measured(service, halved, ["idle"])
    assert str(caught.value) == (
        f"{model.name_or_path} in memory cannot be measured, because another process could not "
        "load it: model.layers.0.self_attn.q_proj is a HalfLinear and would be a Linear. "
        "Give the model as it was before it was changed, with all optimizations at once."
    )


def replace_forward(model):
    model.model.layers[1].forward = model.model.layers[1].forward


def compile_it(model):
    # Without inductor, whose import warns.
    model.compile(backend="eager")


def one_more_module(model):
    model.model.extra = torch.nn.Linear(2, 2)


def one_more_buffer(model):
    model.model.register_buffer("extra", torch.ones(2))


def two_dtypes(model):
    model.model.norm.to(torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (replace_forward, r"the forward of model\.layers\.1 was replaced or compiled"),
        (compile_it, "the forward of the model was replaced or compiled"),
        (one_more_module, r"model\.extra, a Linear, would be missing"),
        (one_more_buffer, r"model\.extra would be missing"),
        (two_dtypes, r"model\.norm\.weight would have another dtype or other values"),
        (lambda model: model.model.norm.to("meta"), "it is on cpu, meta. Put all of it on one"),
    ],
)
def test_what_another_process_would_not_load_is_refused(service, model, change, said):
    """Else something would be measured that is not the model given."""
    change(model)
    with pytest.raises(ModelError, match=said):
        measured(service, model)


def test_what_is_no_model_of_transformers_is_refused(service):
    """A module of torch's alone cannot be loaded by name in another process."""
    with pytest.raises(ModelError, match="a Linear is not a model of transformers"):
        measured(service, torch.nn.Linear(2, 2))


def test_a_model_that_cannot_be_saved_says_why_in_one_line(service, model):
    """In the words of transformers, which checks settings of generation when it saves."""
    model.generation_config.temperature = 0.3
    with pytest.raises(ModelError, match=r"cannot be saved, which measuring needs: .*temperature"):
        measured(service, model)


def test_what_was_left_of_a_quantization_is_not_saved(model, tokenizer):
    """A model that transformers has dequantized is an ordinary one, and keeps its settings."""
    model.config.quantization_config = {"quant_method": "gguf"}
    model.hf_quantizer = quantizer = object()
    with snapshot_model(model, tokenizer) as aside:
        again = load_model(aside.path)
        assert torch.equal(logits(again), logits(model))
        assert not hasattr(again.config, "quantization_config")
    assert model.config.quantization_config == {"quant_method": "gguf"}
    assert model.hf_quantizer is quantizer


def test_matrices_that_were_untied_in_memory_stay_apart(tied, tokenizer):
    """Its configuration still says that they are one."""
    model = load_model(tied)
    model.lm_head.weight = torch.nn.Parameter(-model.lm_head.weight.detach())
    with snapshot_model(model, tokenizer) as aside:
        again = load_model(aside.path)
    assert not again.config.tie_word_embeddings
    assert torch.equal(logits(again), logits(model))
    assert model.config.tie_word_embeddings


def test_a_nan_is_the_same_as_itself(model, tokenizer):
    """A broken model is set aside as it is, for the report to show that it is broken."""
    with torch.no_grad():
        model.model.norm.weight[3] = math.nan
    with snapshot_model(model, tokenizer) as aside:
        assert load_model(aside.path).model.norm.weight[3].isnan()


def test_a_model_that_came_from_nowhere_needs_a_tokenizer(service, model, tmp_path):
    """Whether it says nothing, or names a place that has none; the error says what to give."""
    model.config.name_or_path = model.name_or_path = ""
    with pytest.raises(ModelError, match=r"does not say where it came from\. Give the tokenizer"):
        measured(service, model)
    model.name_or_path = str(tmp_path / "gone")
    with pytest.raises(
        ModelError,
        match=r"needs a tokenizer: .*gone/config.json cannot be used: .*Give the tokenizer",
    ):
        measured(service, model)


def test_a_full_disk_says_so_and_leaves_nothing(service, model, small_disk, monkeypatch):
    """The temporary directory may be the small one: the error says how to have another."""
    place = small_disk(200)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    with pytest.raises(OutputError, match=r"The disk is full.*TMPDIR"):
        measured(service, model)
    assert list(place.iterdir()) == []


def test_an_output_that_may_not_be_replaced_is_refused_first(service, model, tmp_path):
    """Before the model is looked at: nothing takes time that leads to nothing."""
    (tmp_path / "theirs").touch()
    model.name_or_path = ""
    with pytest.raises(OutputError, match="is not empty, and nothing in it says"):
        measured(service, model, output=tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"options": {"raunds": 3}}, r'no option "raunds" for measuring\. Did you mean "rounds"'),
        ({"options": {"output": "x"}}, r'no option "output" for measuring\. Known: text, seed'),
        ({"options": {"rounds": 1, "gain": "luck"}}, r"rounds=1: .*; gain='luck': "),
        ({"max_kl": -1.0}, r"max_kl=-1\.0: "),
        ({"tokens": [1, 2]}, r"tokens are not used.*options=\{\"text\": FILE\}"),
        ({"optimizations": []}, "No optimization is named"),
    ],
)
def test_wrong_arguments_are_refused_in_the_words_of_python(service, model, given, said):
    """All wrong values at once, before any work."""
    with pytest.raises(TruthGPTError, match=said):
        measured(service, model, **given)


@pytest.mark.parametrize(
    "given", [{"output": "x"}, {"overwrite": True}, {"options": {"rounds": 3}}]
)
def test_what_only_measuring_uses_is_refused_without_it(service, model, given):
    """Else the user would look for an output that nobody wrote."""
    with pytest.raises(TruthGPTError, match="Add measure=True"):
        service.optimize_model(model, ["halve"], **given)
    assert linear_kinds(model) == {"Linear"}


def test_a_class_that_worker_processes_would_not_find_is_refused(service, model, examples):
    """They go by the name, and would measure another one, or none."""

    class Halve(examples.Halve):
        """Another one of the same name."""

    class Unheard(Optimization[Options]):
        """In no distribution."""

        name = "unheard"

        def apply(self, model, context):
            return Applied(model)

    with pytest.raises(OptimizationError, match='"halve" cannot be measured: worker processes'):
        measured(service, model, [Halve()])
    with pytest.raises(OptimizationError, match="unheard"):
        measured(service, model, [Unheard()])
