"""Where in a model a candidate comes to diverge."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from truthgpt_services.inference.engine import TorchEngine
from truthgpt_services.measuring.bench import Bench
from truthgpt_services.measuring.protocol import LayersCompared

IDS = list(range(5, 45))


@pytest.fixture
def lens(tokenizer, bare_plugins, tmp_path):
    """What a baseline says of a candidate's layers, through the file that passes between them."""

    def look(baseline, candidate, ids=IDS):
        path = str(tmp_path / "layers.npz")
        missing = Bench(TorchEngine(candidate, bare_plugins.hooks), tokenizer).write_layers(
            ids, path
        )
        if missing:
            return LayersCompared([], missing)
        found = Bench(TorchEngine(baseline, bare_plugins.hooks), tokenizer).compare_layers(
            ids, path
        )
        assert list(tmp_path.iterdir()) == []
        return found

    return look


def gpt2():
    """A model of another family, whose parts have other names."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_embd=32, n_layer=3, n_head=2, n_positions=64)
    return GPT2LMHeadModel(config).eval()


def opt():
    """A model whose decoder is one level further down."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=60,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    )
    return OPTForCausalLM(config).eval()


def logits(model, ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)


def test_a_model_does_not_diverge_from_itself_in_any_layer(model, lens):
    """One list for each layer, one value for each token, none above what floats leave."""
    found = lens(model, model)
    assert found.missing == ""
    assert [len(tokens) for tokens in found.kl] == [len(IDS)] * 2
    assert max(map(max, found.kl)) < 1e-9


@pytest.mark.parametrize("make", [gpt2, opt])
def test_divergence_begins_in_the_layer_that_was_changed(make, lens):
    """The layers before it are as they were, in other families of models too."""
    baseline, candidate = make(), make()
    layers = next(each for each in candidate.modules() if isinstance(each, torch.nn.ModuleList))
    with torch.no_grad():
        for weight in layers[1].parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    first, second, third = lens(baseline, candidate).kl
    assert max(first) < 1e-9
    assert min(second) > 1e-6
    assert min(third) > 1e-9


def test_the_last_layer_is_that_of_the_real_predictions(model, lens):
    """The plot ends where the figure in the table stands."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.add_(0.05 * torch.randn_like(other.lm_head.weight))
    expected, predicted = logits(model, IDS), logits(other, IDS)
    direct = (expected.exp() * (expected - predicted)).sum(-1)
    first, last = lens(model, other).kl
    # The output embedding of the candidate is not looked through before that.
    assert max(first) < 1e-9
    assert last == pytest.approx(direct.tolist(), rel=1e-3, abs=1e-6)


def test_what_was_compiled_is_not_compiled_anew_to_look_into_it(model, lens):
    """Code for hidden states would take minutes, and be of no use to anybody."""
    other = copy.deepcopy(model)
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    for layer in other.model.layers:
        layer.compile(backend=backend)
    found = lens(model, other)
    assert max(map(max, found.kl)) < 1e-9
    assert compiled == []


def scaled(model):
    """Do more to the logits than a norm and an output embedding."""
    model.register_forward_hook(
        lambda module, args, out: type(out)(logits=2 * out.logits, hidden_states=out.hidden_states)
    )
    return model


def blind(model):
    """Give no hidden states."""
    model.register_forward_hook(lambda module, args, out: type(out)(logits=out.logits))
    return model


def nameless(model):
    """Call the last norm what nobody knows."""
    model.transformer.last = model.transformer.ln_f
    del model.transformer.ln_f
    return model


def shallow():
    """One layer less."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize(
    ("baseline", "candidate", "why"),
    [
        (lambda: scaled(gpt2()), gpt2, "its logits are more than a norm and its output embedding"),
        (gpt2, lambda: blind(gpt2()), "GPT2LMHeadModel does not give its hidden states"),
        (lambda: nameless(gpt2()), gpt2, "no final norm is known of GPT2LMHeadModel"),
        (gpt2, shallow, "it has 2 layers, and the baseline 3"),
    ],
)
def test_a_model_that_cannot_be_looked_into_is_left_out_with_a_reason(
    baseline, candidate, why, lens
):
    """It is one plot less, and never an error."""
    assert lens(baseline(), candidate()) == LayersCompared([], why)


def test_looking_leaves_a_model_as_it_was(model, lens):
    """What is measured of it afterwards is the same model: no hook stays, nor a sign of one."""
    before = [(set(vars(each)), len(each._forward_hooks)) for each in model.modules()]
    assert lens(model, model).missing == ""
    assert [(set(vars(each)), len(each._forward_hooks)) for each in model.modules()] == before
