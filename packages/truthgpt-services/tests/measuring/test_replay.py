"""A server can tell that it predicts what was measured, and what keeps it from doing so."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from truthgpt_core.decoding import Capabilities, Engine, GenerationError
from truthgpt_services.errors import ModelError
from truthgpt_services.inference.engine import TorchEngine
from truthgpt_services.measuring.replay import TOP, record, replay
from truthgpt_services.models.loading import load_model
from truthgpt_services.results.record import LEAST, Record
from truthgpt_services.results.schema import Replay


@pytest.fixture
def hooks(bare_plugins):
    return bare_plugins.hooks


@pytest.fixture
def engine(model, hooks):
    """PyTorch's engine, in the class of those that are broken below."""
    return Changed(model, hooks, unchanged)


@pytest.fixture(scope="session")
def ids():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 320, (200,), generator=generator).tolist()


def recorded(engine, ids, kl_error=0.0) -> Record:
    """A record of an engine, as if it had been read."""
    made = record(engine, ids)
    known = made.predictions
    about = Replay(
        tokens=len(known.ids),
        engine=made.engine,
        kernel=made.kernel,
        distribution=made.distribution,
        sha256="",
    )
    return Record(known, about, kl_error)


def unchanged(logits):
    return logits


class Changed(TorchEngine):
    """PyTorch's engine with other logits, and the kernel that it says it has."""

    kernel: str | None = None

    def __init__(self, model, hooks, change, kernel=None):
        super().__init__(model, hooks)
        self._change = change
        self.kernel = kernel

    def describe(self) -> dict[str, Any]:
        about = super().describe()
        return about if self.kernel is None else about | {"kernel": self.kernel}

    def prompt_logits(self, tokens):
        return self._change(super().prompt_logits(tokens))


def directly(model, ids):
    """Log-probabilities in float64 from the logits on, of shape (tokens - 1, vocabulary)."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)


def test_a_record_has_what_a_direct_computation_gives(engine, model, ids):
    """The log-probability of each token after the first, and the likeliest ones in its place."""
    made = record(engine, ids)
    known, direct = made.predictions, directly(model, ids)
    assert (known.ids, known.vocabulary) == (ids, direct.shape[-1])
    targets = torch.tensor(ids[1:]).unsqueeze(-1)
    own = direct.gather(-1, targets).squeeze(-1).tolist()
    assert known.logprobs == pytest.approx(own, abs=1e-6)
    top = direct.topk(TOP)
    assert torch.allclose(torch.tensor(known.top_logprobs).double(), top.values, atol=1e-5)
    assert [each[0] for each in known.top_ids] == direct.argmax(-1).tolist()


def test_a_record_says_what_made_it(model, hooks, ids):
    """The engine, the version of its distribution, and what PyTorch's rounding depends on."""
    made = record(TorchEngine(model, hooks), ids)
    assert made.engine == "torch"
    assert made.distribution.startswith("truthgpt-services ")
    for part in (torch.__version__, f"{torch.get_num_threads()} threads"):
        assert part in made.kernel


def test_a_text_beyond_the_context_is_cut(engine, model, ids):
    """A model of a short context is recorded on what it holds."""
    engine.context_length = 50
    known = record(engine, ids).predictions
    assert known.ids == ids[:50]
    assert len(known.logprobs) == 49


def test_the_unchanged_model_agrees(tiny, model, hooks, ids):
    """Loaded once more, on the same engine: to 1e-5 nats, and it says so in one line."""
    made = recorded(TorchEngine(model, hooks), ids)
    found = replay(TorchEngine(load_model(tiny), hooks), made)
    assert (found.agrees, found.same, found.bound) == (True, True, 1e-5)
    assert found.difference <= 1e-5
    assert 0 <= found.kl < 1e-6
    assert "The replay of 200 tokens agrees with the record." in found.sentence
    assert "(bound 1e-05)" in found.sentence
    assert "\n" not in found.sentence


def other_rope(directory, model):
    """What a changed config.json makes of the saved model; no checksum covers that file."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"]["rope_theta"] *= 4
    path.write_text(json.dumps(config))
    return load_model(directory)


def swapped_layers(directory, model):
    """What a loader that mixes up names makes of it."""
    layers = model.model.layers
    layers[0], layers[1] = layers[1], layers[0]
    return model


@pytest.mark.parametrize("kernel", [None, "another"])
@pytest.mark.parametrize("fault", [other_rope, swapped_layers])
def test_a_model_that_was_put_together_wrong_does_not_agree(
    tiny, engine, hooks, ids, tmp_path, fault, kernel
):
    """Whether the kernel is held to the last digits, or may round in its own way."""
    made = recorded(engine, ids)
    model = load_model(tiny)
    model.save_pretrained(tmp_path)
    wrong = fault(tmp_path, model)
    found = replay(Changed(wrong, hooks, unchanged, kernel), made)
    assert found.same is (kernel is None)
    assert not found.agrees
    assert found.kl > 0.01
    assert "does not agree with the record" in found.sentence


def test_a_kernel_that_rounds_badly_does_not_agree(model, engine, hooks, ids):
    """A divergence of a thousandth is too much on the very same kernel, and is little elsewhere."""
    made = recorded(engine, ids)

    def round_badly(logits):
        return (logits * 64).round() / 64

    found = replay(Changed(model, hooks, round_badly), made)
    assert (found.agrees, found.same) == (False, True)
    assert 1e-5 < found.difference < 0.05
    assert found.kl < 1e-3
    elsewhere = replay(Changed(model, hooks, round_badly, "another"), made)
    assert (elsewhere.agrees, elsewhere.same) == (True, False)
    assert elsewhere.bound == 1e-3


def test_another_kernel_that_is_wrong_does_not_agree(model, engine, hooks, ids):
    """Its logits are off by a tenth here and there: more than rounding does."""
    made = recorded(engine, ids)
    noise = torch.randn(len(ids), 320, generator=torch.Generator().manual_seed(1))
    engines = [
        Changed(model, hooks, lambda logits, size=size: logits + size * noise, "another")
        for size in (0.01, 0.1)
    ]
    right, wrong = (replay(each, made) for each in engines)
    assert (right.agrees, wrong.agrees) == (True, False)
    assert right.kl < 1e-3 < wrong.kl


def test_what_the_report_cannot_tell_from_noise_is_allowed_elsewhere(model, engine, hooks, ids):
    """Another kernel may diverge by 0.001 nats beside the report's standard error."""
    noise = torch.randn(len(ids), 320, generator=torch.Generator().manual_seed(1))
    other = Changed(model, hooks, lambda logits: logits + 0.06 * noise, "another")
    strict, wide = (replay(other, recorded(engine, ids, error)) for error in (0.0, 0.01))
    assert (strict.bound, wide.bound) == (0.001, pytest.approx(0.011))
    assert strict.kl == wide.kl
    assert (strict.agrees, wide.agrees) == (False, True)


def test_the_divergence_is_a_lower_bound_of_that_over_the_whole_vocabulary(
    model, engine, hooks, ids
):
    """And most of it: the other tokens have a bin together."""
    noise = torch.randn(len(ids), 320, generator=torch.Generator().manual_seed(1))
    found = replay(
        Changed(model, hooks, lambda logits: logits + 0.3 * noise), recorded(engine, ids)
    )
    one = directly(model, ids)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    other = (logits + 0.3 * noise)[:-1].double().log_softmax(-1)
    whole = float((one.exp() * (one - other)).sum(-1).mean())
    assert 0.5 * whole < found.kl < whole
    own = torch.tensor(ids[1:]).unsqueeze(-1)
    apart = (one.gather(-1, own) - other.gather(-1, own)).abs().max()
    assert found.difference == pytest.approx(float(apart), abs=1e-4)


def test_an_engine_that_does_not_say_its_kernel_is_another(model, hooks, ids):
    """It cannot be held to the last digits: nobody knows whether it computes as before."""
    silent = Changed(model, hooks, unchanged, "")
    found = replay(silent, recorded(silent, ids))
    assert (found.agrees, found.same, found.bound) == (True, False, 1e-3)


def test_another_version_of_the_engine_is_another(model, hooks, ids):
    """Its kernels may have changed since."""
    engine = TorchEngine(model, hooks)
    made = recorded(engine, ids)
    assert replay(engine, made).same
    about = made.made.model_copy(update={"distribution": "truthgpt-services 0.0.1"})
    assert not replay(engine, Record(made.predictions, about, 0.0)).same


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_logits_that_are_not_finite_do_not_agree(model, engine, hooks, ids, broken):
    """One of them is enough, wherever it is; the sentence says so."""

    def broken_at_the_end(logits):
        logits = logits.clone()
        logits[150, 3] = broken
        return logits

    found = replay(Changed(model, hooks, broken_at_the_end), recorded(engine, ids))
    assert (found.agrees, found.difference, found.kl) == (False, None, None)
    assert found.sentence.endswith("its predictions are not finite numbers")
    with pytest.raises(ModelError, match="not finite"):
        record(Changed(model, hooks, broken_at_the_end), ids)


def test_tokens_that_a_model_rules_out_are_recorded(model, hooks, ids):
    """A logit of minus infinity is a prediction, and not a fault."""

    def without_three(logits):
        logits = logits.clone()
        logits[:, 3] = -math.inf
        return logits

    text = [*ids[:40], 3, *ids[40:60]]
    engine = Changed(model, hooks, without_three)
    made = recorded(engine, text)
    assert made.predictions.logprobs[39] == LEAST
    assert replay(engine, made).agrees


class Odd(Engine):
    """An engine of somebody else's, which cannot do what is needed."""

    name = "odd"

    def __init__(self, logits=None, **facts):
        self._logits = logits
        for name, value in facts.items():
            setattr(self, name, value)

    def prompt_logits(self, tokens):
        if isinstance(self._logits, Exception):
            raise self._logits
        return self._logits


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        (
            Odd(capabilities=Capabilities(logits=False, prompt_logprobs=False)),
            "Replaying a record needs logits, which the engine odd does not give",
        ),
        (
            Odd(capabilities=Capabilities(prompt_logprobs=False)),
            "Replaying a record needs prompt logprobs, which the engine odd does not give",
        ),
        (Odd(context_length=64), "the record has 200 tokens, and the context holds 64"),
        (Odd(torch.zeros(200, 321)), "its logits are of 321 tokens, and the record's of 320"),
        (Odd(torch.zeros(1, 320)), "its logits for 200 tokens have the shape (1, 320)"),
        (Odd(GenerationError("The prompt has the token 7")), "The prompt has the token 7"),
        (Odd(RuntimeError("out of\nmemory")), "RuntimeError: out of memory"),
    ],
)
def test_an_engine_that_cannot_replay_says_why(engine, ids, odd, why):
    """One sentence, and no exception: a server goes on to say that it is not as measured."""
    found = replay(odd, recorded(engine, ids))
    assert (found.agrees, found.difference, found.kl) == (False, None, None)
    assert found.sentence == (
        f"The record of this model cannot be replayed on the engine odd: {why}"
    )


def test_a_model_in_training_is_replayed_as_it_predicts(model, engine, ids):
    """Nothing is dropped at random."""
    made = recorded(engine, ids)
    model.model.layers[0].mlp.register_forward_hook(
        lambda module, inputs, output: output * 2 if module.training else output
    )
    model.train()
    assert replay(engine, made).agrees
    assert model.training
