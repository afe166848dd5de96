"""The optimization `draft_model`: which models may guess, and what is said where one cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from following import ever_new, follow, save

from truthgpt_core.decoding import GenerationError
from truthgpt_core.errors import TruthGPTError
from truthgpt_core.hookspecs import hookimpl
from truthgpt_core.optimization import OptimizationContext, OptimizationError
from truthgpt_core.sources import ModelSource
from truthgpt_services import ModelService
from truthgpt_services.inference.draft_model import DraftModelDecoding
from truthgpt_services.inference.engine import TorchEngine
from truthgpt_services.inference.speculation_choice import choice_of
from truthgpt_services.models.loading import load_model
from truthgpt_services.models.recipe import SavedStep
from truthgpt_services.services.speculation import beside_others
from truthgpt_services.testing import tiny_tokenizer

CONTEXT = OptimizationContext(device="cpu", cache_dir=Path())
GREEDY = {"max_new_tokens": 40}
OFF = {"prompt_lookup_num_tokens": 0}
PROMPT = "The lambda"


@pytest.fixture
def models(bare_plugins):
    return ModelService(bare_plugins)


@pytest.fixture
def saved(models, repeating, tokenizer, tmp_path):
    """Save the model with settings of the optimization; return what loads it."""

    def save_with(settings):
        step = SavedStep("draft_model", "execution", settings, "")
        (tmp_path / "saved").mkdir()
        models.save_model(repeating, tokenizer, tmp_path / "saved", source="", steps=[step])
        return lambda: models.load_model(str(tmp_path / "saved"))

    return save_with


def apply(model, draft, **options):
    return DraftModelDecoding(model=draft, **options).apply(model, CONTEXT).model


def test_wrong_guesses_change_no_text(configured, repeating, tiny, tokenizer, tmp_path):
    """A draft model that says something else costs passes, and fewer and fewer."""
    other = save(follow(load_model(tiny), ever_new), tokenizer, tmp_path / "other")
    service = configured(apply(repeating, other))
    assert service.generate(PROMPT, GREEDY) == service.generate(PROMPT, {**GREEDY, **OFF})
    choice = choice_of(repeating)
    assert choice.right == 0 < choice.guessed < GREEDY["max_new_tokens"]


def test_where_a_draft_model_is_does_not_depend_on_the_directory(draft, repeating, monkeypatch):
    """A saved model is loaded from anywhere."""
    monkeypatch.chdir(draft.parent)
    made = DraftModelDecoding(model="draft")
    monkeypatch.setenv("HOME", str(draft.parent))
    assert made.apply(repeating, CONTEXT).settings == {"model": str(draft), "tokens": 8}
    assert DraftModelDecoding(model="~/draft").options == made.options


def test_a_request_says_how_many_tokens_it_guesses(configured, repeating, draft, passes):
    """`num_assistant_tokens` alone is for the draft model that was chosen, beside others too."""
    service, sizes = configured(apply(repeating, draft)), passes(repeating)
    service.generate(PROMPT, {**GREEDY, "num_assistant_tokens": 2})
    assert max(sizes[1:]) == 3
    given = {**GREEDY, "num_assistant_tokens": 2}
    assert beside_others(TorchEngine(repeating, ModelService().hooks), given) == given


# Before anything is measured


@pytest.fixture
def refused(models, repeating):
    """Return what is said of a draft model that a model in memory cannot have."""

    def say(draft):
        with pytest.raises(OptimizationError) as caught:
            models.optimize_model(repeating, [DraftModelDecoding(model=draft)])
        assert choice_of(repeating) is None
        return str(caught.value)

    return say


def test_a_draft_model_that_is_not_there_is_named(refused, draft):
    """With what was meant, or else with what it may be."""
    said = refused(draft.with_name("darft"))
    assert f'There is no model at "{draft.with_name("darft")}"' in said
    assert 'Did you mean "draft"' in said
    assert "is a directory or a .gguf file on this machine" in refused(draft / "x" / "y")


def test_a_draft_model_of_other_tokens_is_refused(refused, draft):
    """The error has both numbers, and says what to take."""
    config = json.loads((draft / "config.json").read_text()) | {"vocab_size": 400}
    (draft / "config.json").write_text(json.dumps(config))
    said = refused(draft)
    assert f"The draft model {draft} has 400 tokens, and the model has 320" in said
    assert "of the same family" in said


def test_a_draft_model_that_is_a_pickle_is_refused(refused, draft):
    """Loading one runs whatever code is in it."""
    (draft / "model.safetensors").rename(draft / "pytorch_model.bin")
    assert "is a pickle checkpoint" in refused(draft)


def test_a_draft_model_must_be_named():
    with pytest.raises(OptimizationError, match='"draft_model": option "model" must be given'):
        DraftModelDecoding(tokens=4)


@pytest.mark.slow
def test_nothing_is_measured_where_the_draft_model_cannot_be_used(tiny, tmp_path, truthgpt):
    """The command ends with one line, and leaves nothing."""
    done = truthgpt(
        *("optimize", tiny, "--apply", f"draft_model:model={tmp_path / 'nowhere'}"),
        *("--device", "cpu", "--engine", "torch", "-o", tmp_path / "out"),
    )
    assert done.returncode == 1
    assert f'There is no model at "{tmp_path / "nowhere"}"' in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


# What comes with a saved model


def test_a_saved_model_goes_on_without_its_draft_model(configured, saved, repeating, draft):
    """It loads, says what is missing and how to go on, and has the same text without."""
    expected = configured(repeating).generate(PROMPT, GREEDY)
    shutil.rmtree(draft)
    model = saved({"model": str(draft), "tokens": 8})()
    service = configured(model)
    with pytest.raises(GenerationError) as caught:
        service.generate(PROMPT, GREEDY)
    assert f'There is no model at "{draft}"' in caught.value.message
    assert "To go on without it, add --option prompt_lookup_num_tokens=0" in caught.value.hint
    options = beside_others(TorchEngine(model, ModelService().hooks), GREEDY)
    assert service.generate(PROMPT, {**GREEDY, **OFF}) == expected
    assert service.generate(PROMPT, options) == expected


def test_a_draft_model_that_was_replaced_by_another_is_refused(configured, saved, draft):
    """Its tokens would be other words."""
    from transformers import LlamaConfig, LlamaForCausalLM

    load = saved({"model": str(draft), "tokens": 8})
    shutil.rmtree(draft)
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=1, bos_token_id=None,
    )  # fmt: skip
    save(LlamaForCausalLM(config), tiny_tokenizer(300), draft)
    with pytest.raises(GenerationError, match="has 300 tokens, and the model has 320"):
        configured(load()).generate(PROMPT, GREEDY)


@pytest.mark.parametrize(
    "named",
    [None, 5, "", "a\0b", "~nobody-has-this-name/x", ["/x"], {"path": "/x"}, "x" * 5000],
    ids=["null", "number", "empty", "null character", "user", "list", "object", "too long"],
)
def test_a_recipe_that_names_no_path_is_refused(configured, saved, named):
    """In one error of ours, when it is loaded or when it would guess."""
    with pytest.raises(TruthGPTError, match="model"):
        configured(saved({"model": named, "tokens": 8})()).generate(PROMPT, GREEDY)


@pytest.mark.parametrize("spec", ["openai:http://127.0.0.1:9/v1", "claimed:x", "someone/model"])
def test_a_recipe_names_paths_alone(configured, saved, bare_plugins, spec):
    """No plugin's source is asked for what comes with a model, and nothing is fetched."""
    asked = []

    class Claiming(ModelSource):
        name = "claiming"
        rank = 0

        def claims(self, spec):
            asked.append(spec)
            return False

        def resolve(self, spec):
            raise NotImplementedError

    class Plugin:
        @hookimpl
        def register_components(self, factories):
            factories["model_source_factory"].register("claiming", Claiming)

    model = saved({"model": spec, "tokens": 8})()
    bare_plugins.register_plugin(Plugin(), "claiming")
    with pytest.raises(GenerationError, match="There is no model at"):
        configured(model).generate(PROMPT, GREEDY)
    assert asked == []
