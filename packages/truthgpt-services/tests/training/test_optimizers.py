"""Optimizers by name, and which parameters they decay."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from truthgpt_core.dynamic_factory import ComponentArgumentsError, UnknownComponentError
from truthgpt_services.models.loading import load_model
from truthgpt_services.training.optimizers import ParameterError, fast_options, parameter_groups

OPTIMIZERS = {
    "adadelta": torch.optim.Adadelta,
    "adafactor": torch.optim.Adafactor,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "asgd": torch.optim.ASGD,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "rprop": torch.optim.Rprop,
    "sgd": torch.optim.SGD,
}


@pytest.fixture
def factory(bare_plugins):
    return bare_plugins.factories["optimizer_factory"]


class Bigrams(nn.Module):
    """Says from each token which one comes next, with every kind of parameter there is."""

    def __init__(self, vocabulary: int = 16, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embedding(tokens)))


@pytest.fixture
def bigrams():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Bigrams()


def names_in(model: nn.Module, group: dict) -> list[str]:
    """Name the parameters of a group; each under the first name that the model has for it."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for parameter in group["params"]]


def test_each_name_stands_for_torch_s_own_class(factory):
    """A state that torch saved can be loaded, and torch's documentation holds."""
    assert {name: factory.get_class(name) for name in factory.names()} == OPTIMIZERS


def test_transformers_name_for_adamw_works_too(factory):
    """A configuration written for transformers names the same optimizer."""
    assert factory.get_class("adamw_torch") is torch.optim.AdamW


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_with_each_optimizer_reduces_the_loss(factory, bigrams, name):
    """Every name is one that a model can be trained with, its defaults left as they are."""
    optimizer = factory.create_from_config({"name": name}, parameter_groups(bigrams, 0.01))
    tokens = torch.arange(16)
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(bigrams(tokens), tokens.roll(1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_parameters_come_from_a_configuration(factory, bigrams):
    """What a file says reaches the optimizer."""
    optimizer = factory.create_from_config(
        {"name": "sgd", "parameters": {"lr": 0.25, "momentum": 0.5}}, bigrams.parameters()
    )
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.25, 0.5)


def test_wrong_arguments_are_reported_together(factory, bigrams):
    """Who mistypes two and gets the type of a third wrong is told all of it at once."""
    with pytest.raises(ComponentArgumentsError) as caught:
        factory.create("adamw", bigrams.parameters(), learning=1, beta=2, amsgrad="yes")
    assert len(caught.value.problems) == 3
    assert 'Did you mean "betas"?' in str(caught.value)
    assert "\"amsgrad\" must be bool, not str 'yes'" in caught.value.problems


def test_a_mistyped_name_is_suggested(factory, bigrams):
    """The error names the optimizer that was meant."""
    with pytest.raises(UnknownComponentError, match=r'"admw"\. Did you mean "adamw"\?'):
        factory.create("admw", bigrams.parameters())


def test_biases_norms_and_embeddings_are_not_decayed(bigrams):
    """Weight decay is for the matrices that multiply, and for nothing else."""
    decayed, others = parameter_groups(bigrams, 0.1)
    assert (names_in(bigrams, decayed), decayed["weight_decay"]) == (["head.weight"], 0.1)
    assert names_in(bigrams, others) == [
        "embedding.weight",
        "norm.weight",
        "norm.bias",
        "head.bias",
    ]
    assert others["weight_decay"] == 0.0


def test_a_step_without_gradients_shrinks_what_is_decayed_alone(factory, bigrams):
    """The optimizer does to each group what the group says."""
    before = {name: value.detach().clone() for name, value in bigrams.named_parameters()}
    optimizer = factory.create("adamw", parameter_groups(bigrams, 0.5), lr=0.1)
    for parameter in bigrams.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    changed = {
        name for name, value in bigrams.named_parameters() if not torch.equal(value, before[name])
    }
    assert changed == {"head.weight"}
    torch.testing.assert_close(bigrams.head.weight, before["head.weight"] * 0.95)


def test_a_language_model_s_parameters_are_each_in_one_group(model):
    """No parameter is left as it is because neither group has it."""
    groups = parameter_groups(model, 0.1)
    names = [name for group in groups for name in names_in(model, group)]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    decayed = names_in(model, groups[0])
    assert "lm_head.weight" in decayed
    assert not [name for name in decayed if "norm" in name or "embed" in name]


def test_a_matrix_tied_to_an_embedding_is_one_parameter_and_not_decayed(tied):
    """An optimizer refuses a parameter that is in two groups."""
    model = load_model(tied)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    decayed, others = parameter_groups(model, 0.1)
    assert sum(each is model.lm_head.weight for each in others["params"]) == 1
    assert not any(each is model.lm_head.weight for each in decayed["params"])
    torch.optim.AdamW([decayed, others])


def test_a_matrix_tied_to_an_embedding_that_comes_later_is_not_decayed():
    """Which of the two layers the model lists first makes no difference."""
    model = nn.ModuleDict({"head": nn.Linear(4, 8, bias=False), "embedding": nn.Embedding(8, 4)})
    model["embedding"].weight = model["head"].weight
    decayed, others = parameter_groups(model, 0.1)
    assert (len(decayed["params"]), len(others["params"])) == (0, 1)


def test_frozen_parameters_are_left_out(bigrams):
    """Training part of a model keeps no optimizer state for the rest."""
    bigrams.embedding.requires_grad_(False)
    bigrams.head.weight.requires_grad_(False)
    decayed, others = parameter_groups(bigrams, 0.1)
    assert names_in(bigrams, decayed) == []
    assert names_in(bigrams, others) == ["norm.weight", "norm.bias", "head.bias"]


def test_a_model_with_nothing_to_train_is_refused(bigrams):
    """A model that is wholly frozen would be trained for hours and stay as it is."""
    bigrams.requires_grad_(False)
    with pytest.raises(ParameterError, match=r"Bigrams has no parameter to train.*requires_grad"):
        parameter_groups(bigrams, 0.1)


@pytest.mark.parametrize("decay", [-0.1, float("nan"), float("inf")])
def test_an_impossible_weight_decay_is_refused(bigrams, decay):
    """Growing weights and weights of NaN are not found out by the loss."""
    with pytest.raises(ParameterError, match=r"weight decay .* Give 0\.0 or more"):
        parameter_groups(bigrams, decay)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_the_fused_kernel_is_taken_and_does_the_same_but_for_rounding(bigrams, optimizer):
    """Where nobody says otherwise Adam and AdamW are fused, and their steps are torch's own."""
    plain, groups = copy.deepcopy(bigrams), parameter_groups(bigrams, 0.1)
    fused = optimizer(groups, lr=1e-2, **fast_options(optimizer, {}, groups))
    assert fused.param_groups[0]["fused"]
    usual = optimizer(parameter_groups(plain, 0.1), lr=1e-2)
    for model, each in ((bigrams, fused), (plain, usual)):
        for _ in range(3):
            model(torch.arange(16)).square().mean().backward()
            each.step()
            each.zero_grad()
    for one, other in zip(bigrams.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["fused", "foreach", "capturable", "differentiable"])
def test_options_that_say_how_to_compute_are_left_alone(bigrams, name):
    """Whoever chooses a kernel gets it."""
    options = {name: False, "eps": 1e-6}
    groups = parameter_groups(bigrams, 0.0)
    assert fast_options(torch.optim.AdamW, options, groups) == options


def test_an_optimizer_without_such_a_kernel_keeps_its_options(bigrams):
    """Others than Adam and AdamW, those of plugins included, get what they were given."""
    groups = parameter_groups(bigrams, 0.0)
    assert fast_options(torch.optim.Adagrad, {"eps": 1e-6}, groups) == {"eps": 1e-6}
