"""The optimizations `prompt_lookup` and `draft_model`: which requests they decode, and how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from following import save

from truthgpt_core.decoding import Capabilities
from truthgpt_core.optimization import OptimizationContext, OptimizationError, Stage
from truthgpt_services import ModelService
from truthgpt_services.inference.engine import TorchEngine
from truthgpt_services.inference.speculation import Speculative
from truthgpt_services.inference.speculation_choice import NAMES, choice_of
from truthgpt_services.models.recipe import SavedStep
from truthgpt_services.results.io import read_report
from truthgpt_services.results.schema import Outcome
from truthgpt_services.services.batch_job import BatchRequest, run_batch
from truthgpt_services.services.speculation import beside_others

LOOKUP = "prompt_lookup_num_tokens"
CONTEXT = OptimizationContext(device="cpu", cache_dir=Path())
GREEDY = {"max_new_tokens": 40}
PROMPT = "The lambda"


@pytest.fixture
def optimized(repeating, chosen):
    """A model that repeats itself, with the optimization."""
    return chosen().apply(repeating, CONTEXT).model


def test_a_request_that_says_nothing_guesses(configured, optimized, chosen, passes):
    """It has the same text in fewer passes, and an option turns it off."""
    service, sizes = configured(optimized), passes(optimized)
    plain = service.generate(PROMPT, {**GREEDY, LOOKUP: 0})
    assert len(sizes) == GREEDY["max_new_tokens"]
    assert not chosen().was_used(optimized)
    sizes.clear()
    assert service.generate(PROMPT, GREEDY) == plain
    assert len(sizes) < GREEDY["max_new_tokens"] / 2
    assert chosen().was_used(optimized)


def test_sampled_texts_are_the_same(configured, optimized):
    """Each token is drawn from the model's own logits."""
    service = configured(optimized)
    options = {"max_new_tokens": 80, "temperature": 1.0, "seed": 1}
    guessed = service.generate(PROMPT, options)
    assert choice_of(optimized).guessed > choice_of(optimized).right
    assert guessed == service.generate(PROMPT, {**options, LOOKUP: 0})


def test_right_guesses_are_counted(configured, optimized):
    """Those of a text that goes on as guessed are all right."""
    configured(optimized).generate(PROMPT, GREEDY)
    choice = choice_of(optimized)
    assert choice.right == choice.guessed > 0


def test_it_guesses_no_more_than_was_chosen(configured, repeating, chosen, passes):
    chosen(tokens=2).apply(repeating, CONTEXT)
    service, sizes = configured(repeating), passes(repeating)
    service.generate(PROMPT, GREEDY)
    assert max(sizes[1:]) == 3


@pytest.mark.parametrize("present", sorted(NAMES))
def test_a_model_guesses_in_one_way(plugins, repeating, chosen, draft, present):
    """The error names what the model has already, be it in memory or saved."""
    options = {"model": str(draft)} if present == "draft_model" else {}
    first = plugins.make_optimization(present, options)
    with pytest.raises(OptimizationError, match=f'has "{present}" already, which guesses') as found:
        ModelService(plugins).optimize_model(first.apply(repeating, CONTEXT).model, [chosen()])
    assert "start from the model without it" in found.value.hint


@pytest.mark.parametrize("present", sorted(NAMES))
def test_a_saved_model_guesses_in_one_way(
    bare_plugins, repeating, tokenizer, chosen, draft, tmp_path, present
):
    """It is said before the model is loaded."""
    settings = {"tokens": 3} | ({"model": str(draft)} if present == "draft_model" else {})
    models, step = ModelService(bare_plugins), SavedStep(present, "execution", settings, "")
    models.save_model(repeating, tokenizer, tmp_path / "saved", source="", steps=[step])
    reason = "the model has it" if present == chosen().name else f'it has "{present}"'
    with pytest.raises(OptimizationError, match=f"cannot be applied to .*: {reason} already"):
        models.load_and_optimize(str(tmp_path / "saved"), [chosen()])


@pytest.mark.parametrize("wrong", [0, 65, "many", None])
def test_a_wrong_number_of_tokens_is_named(chosen, wrong):
    with pytest.raises(OptimizationError, match=r'option "tokens"'):
        chosen(tokens=wrong)


def test_its_settings_make_the_same_again(repeating, chosen):
    """What is saved with a model is what it was made with."""
    made = chosen(tokens=3)
    settings = made.apply(repeating, CONTEXT).settings
    again = type(made)(**json.loads(json.dumps(settings)))
    assert (again.options, again.options.tokens) == (made.options, 3)
    assert again.stage is Stage.EXECUTION
    assert again.check("cuda:0").ok


def test_an_engine_that_cannot_crop_decodes_token_by_token(
    bare_plugins, configured, optimized, chosen
):
    """The model still generates: nobody asked for more with this request."""
    engine = TorchEngine(optimized, bare_plugins.hooks)
    engine.capabilities = Capabilities(crop=False)
    assert configured(engine).generate(PROMPT, GREEDY)
    assert not chosen().was_used(optimized)


def test_answers_are_found_again_in_the_response_cache(configured, optimized):
    """What is counted is not part of the model."""
    service = configured(optimized, use_cache=True)
    assert service.generate(PROMPT, GREEDY) == service.generate(PROMPT, GREEDY)
    assert service.cache_statistics.hits == 1


@pytest.mark.parametrize("options", [{}, {LOOKUP: 8}], ids=["chosen", "asked for"])
def test_prompts_are_scored_all_the_same(configured, optimized, tokenizer, options):
    """Each token of the prompt has its log-probability, as without guessing."""
    service = configured(optimized)
    found = []
    for more in (options, {LOOKUP: 0}):
        text = service.stream(PROMPT, {**GREEDY, "prompt_logprobs": 0, **more})
        list(text)
        found.append(text.prompt_logprobs)
    assert found[0] == found[1]
    assert len(found[0]) == len(tokenizer(PROMPT).input_ids)


@pytest.mark.parametrize(
    ("options", "guesses"),
    [({}, False), ({"temperature": 0.0}, False), ({LOOKUP: 4}, True)],
)
def test_beside_others_it_has_to_be_asked_for(
    configured, optimized, passes, bare_plugins, options, guesses
):
    """Where several texts are generated at once, none is kept out of their passes."""
    service, sizes = configured(optimized), passes(optimized)
    engine = TorchEngine(optimized, bare_plugins.hooks)
    service.generate(PROMPT, beside_others(engine, {**GREEDY, **options}))
    assert (len(sizes) < GREEDY["max_new_tokens"]) is guesses


def test_other_models_are_given_no_option(repeating, bare_plugins):
    """A plugin's decoder would have to know it."""
    assert beside_others(TorchEngine(repeating, bare_plugins.hooks), GREEDY) == GREEDY


@pytest.mark.parametrize(("given", "guesses"), [({}, False), ({LOOKUP: 4}, True)])
def test_a_batch_guesses_where_the_command_says_so(
    repeating, tokenizer, tmp_path, monkeypatch, chosen, given, guesses
):
    """Its texts are generated together."""
    guessed = []
    decode = Speculative.decode

    def spy(self, *args):
        guessed.append(args)
        return decode(self, *args)

    monkeypatch.setattr(Speculative, "decode", spy)
    made = chosen()
    step = SavedStep(made.name, "execution", made.options.model_dump(mode="json"), "")
    ModelService().save_model(repeating, tokenizer, tmp_path / "model", source="", steps=[step])
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": PROMPT}))
    request = BatchRequest(
        model=str(tmp_path / "model"),
        prompts=prompts,
        output=tmp_path / "out.jsonl",
        options=GREEDY,
        given=given,
        raw=True,
        device="cpu",
    )
    assert run_batch(request).failed == 0
    assert bool(guessed) is guesses


@pytest.mark.slow
def test_a_model_is_measured_and_saved_with_it(
    repeating, tokenizer, tmp_path, truthgpt, chosen, configured, bare_plugins
):
    """Tokens ran through it, so it is judged; the saved model guesses, and has the same text."""
    source, out = save(repeating, tokenizer, tmp_path / "source"), tmp_path / "out"
    made = chosen(tokens=4)
    settings = made.options.model_dump(mode="json")
    options = ",".join(f"{name}={value}" for name, value in settings.items())
    done = truthgpt(
        *("optimize", source, "--apply", f"{made.name}:{options}", "--keep-all", "--quick"),
        *("--device", "cpu", "--engine", "torch", "-o", out),
    )
    assert done.returncode == 0, done.stderr
    (step,) = read_report(out).steps
    assert step.outcome is Outcome.ACCEPTED
    # A speed that is measured so little is never a gain, whatever it is.
    assert "claim a gain in speed" in step.reason
    assert step.notes[0].startswith("How fast it decodes depends on the text")
    quality = read_report(out).variant(made.name).measured.quality
    assert (quality.kl_mean, quality.top1_agreement) == (0.0, 1.0)
    (saved,) = json.loads((out / "truthgpt.json").read_text())["steps"]
    assert (saved["name"], saved["settings"]) == (made.name, settings)
    model = ModelService(bare_plugins).load_model(str(out))
    text = configured(model).generate(PROMPT, GREEDY)
    assert text == configured(repeating).generate(PROMPT, GREEDY)
    assert choice_of(model).guessed > 0
