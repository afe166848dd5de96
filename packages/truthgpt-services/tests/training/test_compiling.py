"""Compiling the training step: when it is done, and that it changes nothing but the time."""

from __future__ import annotations

import pickle

import peft
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from truthgpt_core.event_system import EventType
from truthgpt_services.training import compiling
from truthgpt_services.training.errors import TrainingError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not compiling.has_compiler(torch.device("cpu")), reason="there is no C++ compiler here"
    ),
    # Importing inductor uses what torch itself has deprecated.
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]


class PackedLoader:
    """Packed batches of 2 rows of 2 documents each; the last of an epoch has 1 row."""

    def __init__(self, batches: int = 4) -> None:
        self.batches = batches
        self.epoch = self.taken = 0

    def __len__(self) -> int:
        return self.batches

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.taken = epoch, 0

    def state_dict(self):
        return {"epoch": self.epoch, "taken": self.taken}

    def load_state_dict(self, state) -> None:
        self.epoch, self.taken = state["epoch"], state["taken"]

    def __iter__(self):
        while self.taken < self.batches:
            number = self.epoch * 100 + self.taken
            self.taken += 1
            yield packed(number, 1 if self.taken == self.batches else 2)
        self.epoch, self.taken = self.epoch + 1, 0


def packed(number: int, rows: int):
    """Rows of two documents of 11 and 13 tokens, as the loader makes them."""
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(1, 64, (rows, 24), generator=generator)
    labels = ids.clone()
    labels[:, [0, 11]] = -100
    positions = torch.cat([torch.arange(11), torch.arange(13)]).expand(rows, 24).contiguous()
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}


def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL))


def told(events, event_type):
    return [event.data for event in events if event.type is event_type]


def losses(events):
    return [data["loss"] for data in told(events, EventType.TRAINING_STEP)]


@pytest.fixture
def compilations(monkeypatch):
    """A list with an item for each graph that inductor is given."""
    from torch._inductor import compile_fx

    real, counted = compile_fx.compile_fx, []

    def counting(graph, *arguments, **options):
        counted.append(graph)
        return real(graph, *arguments, **options)

    monkeypatch.setattr(compile_fx, "compile_fx", counting)
    torch._dynamo.reset()
    yield counted
    torch._dynamo.reset()


def train(runs, out, *, resume=False, of=model, **settings):
    service = runs.configured(out, model=of(), loader=PackedLoader(), **settings)
    if resume:
        service.resume()
    service.run()
    return service


def test_a_compiled_run_is_the_same_but_for_rounding(runs, tmp_path, events, compilations):
    """Losses are those of the same run uncompiled, of one code for all blocks and one besides.

    A smaller last batch makes no code.
    """
    train(runs, tmp_path / "eager", epochs=2, compile=False)
    eager, compiled = losses(events), len(compilations)
    assert compiled == 0
    events.clear()
    train(runs, tmp_path / "compiled", epochs=2, compile=True)
    assert len(compilations) == 2
    assert [data["note"] for data in told(events, EventType.TRAINING_NOTED)] == [
        "Compiling the step, once for the run: it takes a minute or so"
    ]
    assert losses(events) == pytest.approx(eager, rel=1e-5)
    assert losses(events)[0] != pytest.approx(losses(events)[4], rel=1e-5)


@pytest.mark.campaign(cases=0)
def test_a_compiled_run_resumes_compiled(runs, tmp_path, monkeypatch, compilations):
    """A run that `auto` compiled goes on compiled, the same in every bit as one never stopped."""
    monkeypatch.setattr(compiling, "BREAK_EVEN_FLOPS", {"cpu": 1.0})
    whole = train(runs, tmp_path / "whole", max_steps=6)
    # The next batch is the small one.
    train(runs, tmp_path / "parts", max_steps=3)
    monkeypatch.setattr(compiling, "BREAK_EVEN_FLOPS", {"cpu": 1e30})
    torch._dynamo.reset()
    compilations.clear()
    parts = train(runs, tmp_path / "parts", max_steps=6, resume=True)
    assert compilations
    assert runs.fingerprint(parts)["weights"] == runs.fingerprint(whole)["weights"]
    assert runs.fingerprint(parts)["optimizer"] == runs.fingerprint(whole)["optimizer"]


def test_a_short_run_is_not_compiled(runs, tmp_path, compilations):
    """With `auto`, the default, a run for which it does not pay is left alone."""
    train(runs, tmp_path, max_steps=2)
    assert not compilations


def test_a_run_of_unknown_length_is_not_compiled(runs, tmp_path, monkeypatch, compilations):
    """Nobody can say that it pays, where the loader does not know how much there is."""

    class Stream:
        def __init__(self) -> None:
            loader = PackedLoader()
            self.state_dict, self.load_state_dict = loader.state_dict, loader.load_state_dict
            self.batches = iter(loader)

        def __iter__(self):
            return self.batches

    monkeypatch.setattr(compiling, "BREAK_EVEN_FLOPS", {"cpu": 1.0})
    runs.configured(tmp_path, model=model(), loader=Stream(), epochs=1).run()
    assert not compilations


@pytest.fixture
def graphs(monkeypatch):
    """A list with each graph that inductor is given; it runs them as they are."""
    from torch._inductor import compile_fx

    counted = []

    def running(graph, *_arguments, **_options):
        counted.append(graph)
        return graph

    monkeypatch.setattr(compile_fx, "compile_fx", running)
    torch._dynamo.reset()
    yield counted
    torch._dynamo.reset()


def test_padded_batches_are_compiled_when_asked(runs, tmp_path, events, graphs):
    """`compile: true` takes batches of many widths too, and makes no code for each of them."""
    service = runs.configured(tmp_path / "eager", epochs=1, compile=False)
    service.run()
    eager = losses(events)
    events.clear()
    runs.configured(tmp_path / "compiled", epochs=1, compile=True).run()
    assert 1 <= len(graphs) <= 3
    assert losses(events) == pytest.approx(eager, rel=1e-4)


def two_kinds_of_attention():
    """A model whose blocks attend to all before them, or to some, by turns."""
    torch.manual_seed(0)
    config = Gemma2Config(**SMALL, num_key_value_heads=1, head_dim=8, sliding_window=4)
    return Gemma2ForCausalLM(config)


def few_weights():
    """A model that keeps its weights, and learns what is added to them."""
    torch.manual_seed(0)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    return peft.get_peft_model(model(), lora)


def checkpointed():
    """A model that computes activations again in the backward pass."""
    made = model()
    made.gradient_checkpointing_enable()
    return made


class Numbered(LlamaDecoderLayer):
    """A block that depends on its number, so that the code of one is none for another."""

    def __init__(self, config: LlamaConfig, number: int) -> None:
        super().__init__(config, number)
        self.number = number

    def forward(self, *arguments, **named):
        return super().forward(*arguments, **named) * (1 + self.number / 100)


def blocks_that_differ():
    """A model with more kinds of blocks than torch compiles one code for."""
    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(**{**SMALL, "num_hidden_layers": 10}))
    made.model.layers = torch.nn.ModuleList(Numbered(made.config, n) for n in range(10))
    return made


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.campaign(cases=1)
@pytest.mark.parametrize(
    ("of", "least", "most"),
    [
        # One of the blocks and one of the loss.
        (model, 2, 2),
        (two_kinds_of_attention, 2, 2),
        # What goes into the first block needs no gradient, so its code is another.
        (few_weights, 3, 3),
        # As a whole.
        (checkpointed, 1, 1),
        # Of blocks until torch gives up, then of the whole.
        (blocks_that_differ, 2, 10),
    ],
    ids=lambda of: getattr(of, "__name__", ""),
)
def test_whatever_its_blocks_are_a_model_learns_the_same(
    runs, tmp_path, events, graphs, of, least, most
):
    """Losses of steps, and so the gradients of those before, are those of the run uncompiled."""
    train(runs, tmp_path / "eager", of=of, max_steps=3, compile=False)
    eager = losses(events)
    assert not graphs
    events.clear()
    train(runs, tmp_path / "compiled", of=of, max_steps=3, compile=True)
    assert least <= len(graphs) <= most
    assert losses(events) == pytest.approx(eager, rel=1e-5)


def test_a_model_that_was_trained_compiled_is_as_it_was(runs, tmp_path, graphs):
    """Its blocks compute what their class says, and can be pickled as before."""
    trained = model()
    train(runs, tmp_path, of=lambda: trained, max_steps=1, compile=True)
    assert graphs
    assert all("forward" not in vars(block) for block in trained.model.layers)
    pickle.dumps(trained)


@pytest.fixture
def no_compiling(monkeypatch):
    """Whatever inductor is given, it cannot compile."""
    from torch._inductor import compile_fx

    def failing(*_arguments, **_options):
        raise RuntimeError("nothing compiles today")

    monkeypatch.setattr(compile_fx, "compile_fx", failing)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_where_compiling_fails_auto_goes_on(runs, tmp_path, monkeypatch, events, no_compiling):
    """It is noted, and the run is the one that it would have been uncompiled, in every bit."""
    monkeypatch.setattr(compiling, "BREAK_EVEN_FLOPS", {"cpu": 1.0})
    compiled = train(runs, tmp_path / "auto", max_steps=2)
    notes = [data["note"] for data in told(events, EventType.TRAINING_NOTED)]
    assert any("nothing compiles today" in note for note in notes)
    eager = train(runs, tmp_path / "eager", max_steps=2, compile=False)
    assert runs.fingerprint(compiled)["weights"] == runs.fingerprint(eager)["weights"]


def test_where_compiling_fails_and_was_asked_for_it_is_an_error(runs, tmp_path, no_compiling):
    """With `compile: true` it is one error, with its reason, and no step was taken."""
    service = runs.configured(tmp_path, model=model(), loader=PackedLoader(), compile=True)
    with pytest.raises(TrainingError, match=r"cannot be compiled: .*nothing compiles today"):
        service.run()
    assert service.progress.step == 0
