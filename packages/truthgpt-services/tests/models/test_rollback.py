"""A model in memory is as it was after an optimization failed, whatever was done to it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from truthgpt_core.optimization import Applied, Coverage, Optimization, OptimizationError, Options
from truthgpt_services import ModelService
from truthgpt_services.models.changes import compare, parts_in_memory


class Harm(Optimization[Options]):
    """Does what a test says, and then fails."""

    name = "harm"
    harm = staticmethod(lambda model: None)

    def apply(self, model, context):
        type(self).harm(model)
        raise ValueError("half-way")


@pytest.fixture
def service(plugins):
    return ModelService(plugins)


def zero(model):
    with torch.no_grad():
        for parameter in list(model.parameters())[::2]:
            parameter.zero_()


def reassign(model):
    model.lm_head.weight.data = model.lm_head.weight.data.bfloat16()
    model.model.norm.weight.data = torch.zeros(3)


def replace(model):
    model.model.layers[0].mlp.up_proj = nn.Linear(2, 2)
    model.lm_head.weight = nn.Parameter(torch.zeros(1))
    del model.model.layers[1]


def retype(model):
    class Other(nn.Linear):
        """Another kind of layer."""

    model.lm_head.__class__ = Other
    model.lm_head.weight.requires_grad_(False)
    model.train()


def configure(model):
    model.config.num_hidden_layers = 9
    model.config.tie_word_embeddings = True
    model.config.rope_parameters["rope_theta"] = 1.0
    model.generation_config.max_new_tokens = 5
    model.model.layers[0].self_attn.scaling = 7.0


def add(model):
    model.register_buffer("added", torch.ones(2))
    model.lm_head.register_forward_hook(lambda *_: None)
    model.forward = lambda *_: None


def rotate(model):
    model.model.rotary_emb.inv_freq.mul_(2)


HARMS = (zero, reassign, replace, retype, configure, add, rotate)


def state(model):
    return {
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_dict(),
        "training": [each.training for each in model.modules()],
        "gradients": [each.requires_grad for each in model.parameters()],
        "ids": [id(each) for each in [*model.modules(), *model.parameters(), *model.buffers()]],
        "attributes": [sorted(vars(each)) for each in model.modules()],
        "hooks": [len(each._forward_hooks) for each in model.modules()],
        "scaling": [getattr(each, "scaling", None) for each in model.modules()],
    }


@pytest.mark.parametrize("harm", HARMS)
def test_a_model_is_as_it_was_bit_for_bit(service, model, monkeypatch, harm):
    """Tensors, modules, configuration and hooks, and each parameter is the same object."""
    parts, before = parts_in_memory(model), copy.deepcopy(state(model))
    ids = torch.arange(5, 45).unsqueeze(0)
    with torch.inference_mode():
        logits = model(input_ids=ids).logits
    monkeypatch.setattr(Harm, "harm", staticmethod(harm))
    with pytest.raises(
        OptimizationError, match=r"harm.*failed in apply at .*: ValueError: half-way"
    ):
        service.apply(Harm(), model)
    assert compare(parts, model).changed is False
    assert state(model) == before
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, logits)


def test_an_optimizer_goes_on_with_the_same_parameters(service, model, monkeypatch):
    """Gradients are as they were too."""
    model(input_ids=torch.tensor([[1, 2]]), labels=torch.tensor([[1, 2]])).loss.backward()
    gradients = [each.grad.clone() for each in model.parameters()]
    parameters = list(model.parameters())

    def forget(model):
        for each in model.parameters():
            each.grad.zero_()
        model.zero_grad()

    monkeypatch.setattr(Harm, "harm", staticmethod(forget))
    with pytest.raises(OptimizationError):
        service.apply(Harm(), model)
    assert all(torch.equal(each.grad, old) for each, old in zip(parameters, gradients, strict=True))


def test_tied_weights_stay_tied(service, tied, monkeypatch):
    """Two names of one tensor are still two names of one tensor."""
    model = service.load_model(str(tied))
    monkeypatch.setattr(Harm, "harm", staticmethod(reassign))
    with pytest.raises(OptimizationError):
        service.apply(Harm(), model)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_steps_before_the_one_that_failed_are_undone_too(service, model, monkeypatch):
    """`optimize_model` gives a model with all optimizations, or leaves it alone."""
    parts = parts_in_memory(model)
    halve = service.make_optimization("halve", {})
    monkeypatch.setattr(Harm, "name", "later")
    monkeypatch.setattr(Harm, "harm", staticmethod(zero))
    with pytest.raises(OptimizationError):
        service.optimize_model(model, [halve, Harm()])
    assert compare(parts, model).changed is False


def test_a_result_that_is_refused_leaves_the_model_too(service, model):
    """Invented names are found after the model was changed."""

    class Invent(Optimization[Options]):
        name = "invent"

        def apply(self, model, context):
            zero(model)
            return Applied(model, Coverage("layers", ("no.such.layer",)))

    parts = parts_in_memory(model)
    with pytest.raises(OptimizationError, match=r"'no\.such\.layer', which the model"):
        service.apply(Invent(), model)
    assert compare(parts, model).changed is False


def test_no_copy_is_made_if_the_caller_does_not_want_one(service, model, monkeypatch):
    """For who throws the model away, or has no memory for a second one."""
    parts = parts_in_memory(model)
    monkeypatch.setattr(Harm, "harm", staticmethod(zero))
    with pytest.raises(OptimizationError):
        service.apply(Harm(), model, undo=False)
    assert compare(parts, model).changed is True


@pytest.mark.parametrize("given", [None, "a model", Applied(None)])
def test_an_apply_that_gives_no_model_says_so(service, model, given):
    """Whether it forgot what to return, or what to put into it."""

    class Blank(Optimization[Options]):
        name = "blank"

        def apply(self, model, context):
            return given

    with pytest.raises(OptimizationError, match=r'"blank" \(.*Blank\): apply (returned|gave no)'):
        service.apply(Blank(), model)
