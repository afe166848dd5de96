"""What is measured of one model is what a direct computation gives."""

from __future__ import annotations

import copy
import math
import shutil

import pytest
import torch

from truthgpt_core.application import Application
from truthgpt_services import InferenceService
from truthgpt_services.inference.engine import TorchEngine
from truthgpt_services.measuring.bench import Bench
from truthgpt_services.measuring.worker import Worker

TEXT = "The lambda expression yields a function object, which is é and 漢."


@pytest.fixture
def ids(tokenizer):
    return (tokenizer(TEXT).input_ids * 3)[:100]


@pytest.fixture
def bench(model, tokenizer, bare_plugins):
    return Bench(TorchEngine(model, bare_plugins.hooks), tokenizer)


@pytest.fixture
def perturbed(model):
    """Another model, a little different everywhere."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for index, weight in enumerate(other.parameters()):
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(index))
            weight.add_(0.01 * noise)
    return other


@pytest.fixture
def other_bench(perturbed, tokenizer, bare_plugins):
    return Bench(TorchEngine(perturbed, bare_plugins.hooks), tokenizer)


def exact(model, ids):
    """Log-probabilities of every next token, in float64 from the logits on."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)


@pytest.mark.parametrize("prompt", [0, 30])
def test_a_model_does_not_diverge_from_itself(bench, ids, tmp_path, prompt):
    """No divergence at all, full agreement, and the same likelihoods, to the last bit."""
    path = str(tmp_path / "reference.npy")
    written = bench.write_reference(ids, path, prompt=prompt)
    found = bench.compare(ids, path, prompt=prompt)
    assert len(written) == len(ids) - (prompt or 1)
    assert found.nll == written
    assert max(found.kl) < 1e-9
    assert set(found.agrees) == {1.0}


def test_the_divergence_is_that_of_a_direct_computation(
    bench, other_bench, model, perturbed, ids, tmp_path
):
    """KL(baseline || other) for each token, and not the other way round."""
    path = str(tmp_path / "reference.npy")
    bench.write_reference(ids, path)
    found = other_bench.compare(ids, path)
    expected, predicted = exact(model, ids), exact(perturbed, ids)
    divergence = (expected.exp() * (expected - predicted)).sum(-1)
    backwards = (predicted.exp() * (predicted - expected)).sum(-1)
    assert found.kl == pytest.approx(divergence.tolist(), rel=1e-3, abs=1e-5)
    assert found.kl != pytest.approx(backwards.tolist(), rel=1e-3, abs=1e-5)
    agrees = (expected.argmax(-1) == predicted.argmax(-1)).double()
    assert found.agrees == agrees.tolist()
    assert 0 < agrees.mean() < 1


def test_likelihoods_are_those_of_a_direct_computation(bench, model, ids, tmp_path):
    """Each is of the true next token; their mean's exponential is the perplexity."""
    written = bench.write_reference(ids, str(tmp_path / "reference.npy"))
    targets = torch.tensor(ids[1:]).unsqueeze(-1)
    direct = -exact(model, ids).gather(-1, targets)[:, 0]
    assert written == pytest.approx(direct.tolist(), rel=1e-4)
    perplexity = math.exp(sum(written) / len(written))
    with torch.inference_mode():
        tokens = torch.tensor([ids])
        loss = float(model(input_ids=tokens, labels=tokens).loss)
    assert perplexity == pytest.approx(math.exp(loss), rel=1e-4)


def test_token_by_token_predicts_what_one_pass_predicts(bench, ids, tmp_path):
    """The decode path and its cache agree with a whole forward pass, in float32."""
    prompt = 30
    whole = bench.write_reference(ids, str(tmp_path / "whole.npy"))
    stepwise = bench.write_reference(ids, str(tmp_path / "steps.npy"), prompt=prompt)
    assert stepwise == pytest.approx(whole[prompt - 1 :], rel=1e-3, abs=1e-3)


def test_what_only_one_path_gets_wrong_shows_there_only(
    bench, other_bench, perturbed, model, ids, tmp_path
):
    """A kernel that is wrong for a single row is seen by the decode path, and not by prefill."""
    perturbed.load_state_dict(model.state_dict())

    def wrong(module, inputs, output):
        return -output if output.shape[1] == 1 else output

    perturbed.model.layers[1].mlp.register_forward_hook(wrong)
    path = str(tmp_path / "reference.npy")
    bench.write_reference(ids, path)
    assert max(other_bench.compare(ids, path).kl) < 1e-9
    bench.write_reference(ids, path, prompt=30)
    found = other_bench.compare(ids, path, prompt=30).kl
    # The first is predicted by the prompt itself, all at once.
    assert found[0] < 1e-9
    assert min(found[1:]) > 0.01


def test_predictions_that_are_not_numbers_are_not_hidden(bench, model, ids, tmp_path):
    """A model that gives NaN has a divergence of NaN, and not of nothing."""
    path = str(tmp_path / "reference.npy")
    bench.write_reference(ids, path)
    model.lm_head.weight.data[3] = math.nan
    assert all(math.isnan(value) for value in bench.compare(ids, path).kl)


def test_the_reference_does_not_stay_on_disk(bench, ids, tmp_path):
    """A window of a large vocabulary is hundreds of megabytes."""
    path = tmp_path / "reference.npy"
    bench.write_reference(ids, str(path))
    bench.compare(ids, str(path))
    assert not path.exists()


def test_a_run_is_as_long_as_asked(bench, model, ids):
    """It does not stop at the end of a text, or the shorter one would seem the faster."""
    lengths = []
    model.generation_config.eos_token_id = list(range(320))
    model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    assert bench.read_prompt(ids, 5) > 0
    assert bench.decode(3) > 0
    assert bench.decode(1) > 0
    assert lengths == [len(ids), 1, 1, 1, 1]


def test_a_model_is_described_by_what_it_holds(bench, model):
    """Parameters, dtype and the bytes of all of them; nothing is counted twice."""
    found = bench.describe(1.0)
    assert found.parameters == sum(weight.numel() for weight in model.parameters())
    assert found.dtype == "float32"
    buffers = sum(buffer.numel() * buffer.itemsize for buffer in model.buffers())
    assert found.weights_bytes == 4 * found.parameters + buffers


def test_the_sample_is_what_generate_prints(bare_plugins, model, tokenizer, tiny):
    """The text in the report is the model's own greedy continuation."""
    worker = Worker(lambda what, done, total: None, Application(bare_plugins))
    worker.open(str(tiny), None, "cpu")
    service = InferenceService(bare_plugins)
    service.configure(model, tokenizer)
    continued = service.generate("The future", {"max_new_tokens": 12})
    assert worker.sample("The future", 12) == continued


def test_the_sample_of_a_chat_model_is_its_answer(bare_plugins, tiny, tmp_path):
    """The prompt goes through the chat template, as `truthgpt generate` does it."""
    chat = tmp_path / "chat"
    shutil.copytree(tiny, chat)
    template = "{% for m in messages %}<{{ m.content }}>{% endfor %}Answer:"
    (chat / "chat_template.jinja").write_text(template)
    samples = []
    for directory, prompt in ((tiny, "<Why>Answer:"), (chat, "Why")):
        worker = Worker(lambda what, done, total: None, Application(bare_plugins))
        worker.open(str(directory), None, "cpu")
        samples.append(worker.sample(prompt, 8))
    assert samples[1] == "\n" + samples[0]


def test_the_beginning_of_a_text_is_taken(bench, tokenizer):
    """As many tokens as asked for, and they are the first ones."""
    text = TEXT * 50
    assert bench.tokenize(text, 90) == tokenizer(text).input_ids[:90]


def test_the_peak_is_a_size_that_a_process_has(bench):
    """More than an interpreter, and not more than the machine's memory."""
    bench.describe(1.0)
    block = torch.ones(40_000_000)
    assert 160e6 < bench.peak_memory() < 1e12
    del block


def test_a_flip_is_a_token_that_one_gets_right_and_the_other_wrong(
    bench, other_bench, model, perturbed, ids, tmp_path
):
    """What both get wrong in different ways is a disagreement and no flip (Dutta et al. 2024)."""
    path = str(tmp_path / "reference.npy")
    # A random model is never right: here it wrote the second half of the text itself.
    ids = ids[:40]
    for _ in range(40):
        ids.append(int(exact(model, [*ids, 0])[-1].argmax()))
    bench.write_reference(ids, path)
    found = other_bench.compare(ids, path)
    targets = torch.tensor(ids[1:])
    right = [exact(each, ids).argmax(-1) == targets for each in (model, perturbed)]
    assert found.flips == (right[0] != right[1]).float().tolist()
    disagreements = len(found.agrees) - sum(found.agrees)
    assert 0 < sum(found.flips) < disagreements


def test_likelihoods_alone_need_no_file(bench, ids, tmp_path):
    """A model that is measured alone is read as one that is compared, and nothing is written."""
    written = bench.write_reference(ids, str(tmp_path / "reference.npy"))
    (tmp_path / "reference.npy").unlink()
    assert bench.write_reference(ids, None) == written
    assert list(tmp_path.iterdir()) == []
