"""A request that was answered before is answered from the cache, and no other is."""

from __future__ import annotations

import functools
import logging
import shutil
import sys

import pytest
import torch
import transformers
from tokenizers import decoders, normalizers

from truthgpt_core.decoding import GenerationError
from truthgpt_core.event_system import EventType, on_event
from truthgpt_core.hookspecs import hookimpl
from truthgpt_services import InferenceService
from truthgpt_services.inference.response_cache import CacheStatistics
from truthgpt_services.models.loading import load_model, load_tokenizer

PROMPT = "The import statement"
SHORT = {"max_new_tokens": 5}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "answers"


@pytest.fixture
def service(bare_plugins, model, tokenizer, folder):
    service = InferenceService(bare_plugins)
    service.configure(model, tokenizer, {"use_cache": True, "cache_dir": folder})
    return service


def another(plugins, model, tokenizer, folder):
    """A service as another process would have it: nothing but the files is shared."""
    service = InferenceService(plugins)
    service.configure(model, tokenizer, {"use_cache": True, "cache_dir": str(folder)})
    return service


def test_the_second_call_is_from_the_cache(service):
    """The model is not asked again, and the text is the same."""
    first = service.generate(PROMPT, SHORT)
    heard = []
    on_event(EventType.INFERENCE_FINISHED, lambda event: heard.append(event.data["tokens"]))
    assert service.generate(PROMPT, SHORT) == first
    assert "".join(service.stream(PROMPT, SHORT)) == first
    assert service.generate([PROMPT, PROMPT], SHORT) == [first, first]
    assert heard == [0, 0, 0]
    assert service.cache_statistics == CacheStatistics(hits=3, misses=1)


def test_sampling_without_a_seed_is_kept_too(service):
    """It begins at seed 0 each time, so the cache says what the model would say again."""
    sampled = {"max_new_tokens": 12, "temperature": 0.8}
    first = service.generate(PROMPT, sampled)
    assert service.generate(PROMPT, sampled) == first
    assert service.generate(PROMPT, sampled | {"seed": 0}) == first
    assert service.cache_statistics.hits == 2
    service.configure(service._setup.engine.model, service._setup.tokenizer)
    assert service.generate(PROMPT, sampled) == first


def test_without_use_cache_nothing_is_kept(bare_plugins, model, tokenizer, folder):
    """The default is to ask the model each time."""
    service = InferenceService(bare_plugins)
    service.configure(model, tokenizer, {"cache_dir": folder})
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        service.generate(PROMPT, {"max_new_tokens": 1})
    assert len(calls) == 2
    assert not folder.exists()
    assert service.cache_statistics == CacheStatistics(0, 0)


def test_without_a_directory_answers_are_in_memory(
    bare_plugins, model, tokenizer, tmp_path, monkeypatch
):
    """They are found again, and no file is written."""
    monkeypatch.chdir(tmp_path)
    service = InferenceService(bare_plugins)
    service.configure(model, tokenizer, {"use_cache": True})
    for _ in range(2):
        service.generate(PROMPT, SHORT)
    assert service.cache_statistics == CacheStatistics(hits=1, misses=1)
    assert list(tmp_path.iterdir()) == []


def test_answers_outlive_the_process(service, bare_plugins, tiny, folder, tmp_path):
    """The same weights and tokenizer, loaded from another place, have the same answers."""
    first = service.generate(PROMPT, SHORT)
    elsewhere = shutil.copytree(tiny, tmp_path / "elsewhere")
    later = another(bare_plugins, load_model(elsewhere), load_tokenizer(elsewhere), folder)
    assert later.generate(PROMPT, SHORT) == first
    assert later.cache_statistics == CacheStatistics(hits=1, misses=0)


def test_a_batch_computes_only_what_the_cache_has_not(service):
    """Its texts and those of single calls are the same answers."""
    known = service.generate(PROMPT, SHORT)
    heard = []
    on_event(EventType.INFERENCE_FINISHED, lambda event: heard.append(event.data["tokens"]))
    texts = service.generate(["x", PROMPT, "The class statement"], SHORT)
    assert texts[1] == known
    assert heard == [2 * 5]
    assert service.generate("x", SHORT) == texts[0]
    assert service.cache_statistics == CacheStatistics(hits=2, misses=3)


def test_a_text_that_was_not_read_to_its_end_is_not_kept(service):
    """A half answer is never given for a whole one."""
    pieces = service.stream(PROMPT, SHORT)
    next(pieces)
    pieces.close()
    service.generate(PROMPT, SHORT)
    assert service.cache_statistics == CacheStatistics(hits=0, misses=2)


def test_a_text_that_two_models_wrote_is_not_kept(service, model):
    """Whoever trains between two pieces gets a mixture, and nobody else does."""
    pieces = service.stream(PROMPT, SHORT)
    next(pieces)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    add_to_one_weight(model)
    list(pieces)
    model.load_state_dict(before)
    service.generate(PROMPT, SHORT)
    assert service.cache_statistics.hits == 0


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 6},
        {"temperature": 1.0},
        {"temperature": 1.0, "seed": 4},
        {"temperature": 1.0, "top_k": 4},
        {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 1.0, "min_p": 0.2},
        {"min_new_tokens": 3},
        {"repetition_penalty": 1.5},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"logit_bias": {70: 5.0}},
        {"json_schema": True},
        {"json_schema": {"type": "integer"}},
        {"regex": "[a-z]*"},
    ],
)
def test_another_request_is_another_answer(service, options):
    """Every option that can change a text is part of what is looked up."""
    before = {"temperature": 1.0} if options != {"temperature": 1.0} else {}
    service.generate(PROMPT, SHORT | before)
    service.generate(PROMPT, SHORT | before | options)
    assert service.cache_statistics.hits == 0


def test_at_temperature_0_the_rest_of_sampling_is_not_looked_at(service):
    """The likeliest token is the same with any seed."""
    service.generate(PROMPT, SHORT)
    chance = {"seed": 9, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "temperature": 0.0}
    service.generate(PROMPT, SHORT | chance)
    assert service.cache_statistics.hits == 1


def test_what_changes_no_text_is_not_looked_at(service):
    """The order of biases, and how many texts are generated beside one."""
    service.generate(PROMPT, SHORT | {"logit_bias": {5: 1.0, 70: 2.0}})
    service.generate(PROMPT, SHORT | {"logit_bias": {70: 2.0, 5: 1.0}, "n": 2})
    assert service.cache_statistics.hits >= 1


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
def test_an_answer_with_log_probabilities_is_computed_each_time(service, name):
    """They are not kept."""
    for _ in range(2):
        service.generate(PROMPT, SHORT | {name: 1})
    assert service.cache_statistics == CacheStatistics()


def train_a_step(model, **options):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, **options)
    ids = torch.arange(20).unsqueeze(0)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def add_to_one_weight(model):
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3


def replace_a_module(model):
    old = model.model.layers[0].mlp.down_proj
    model.model.layers[0].mlp.down_proj = torch.nn.Linear(old.in_features, old.out_features)


def load_others(model):
    model.load_state_dict({name: value * 2 for name, value in model.state_dict().items()})


def end_elsewhere(model):
    model.generation_config.eos_token_id = [0, 7]


def another_activation(model):
    model.model.layers[0].mlp.act_fn = torch.nn.Tanh()


def another_function(model):
    del model.model.layers[0].mlp.act_fn
    model.model.layers[0].mlp.act_fn = torch.nn.functional.relu


def another_epsilon(model):
    model.model.norm.variance_epsilon = 10.0


def another_scaling(model):
    for layer in model.model.layers:
        layer.self_attn.scaling = 5.0


def another_rotation(model):
    model.model.rotary_emb.inv_freq.mul_(3)


def another_attention(model):
    model.set_attn_implementation("eager")


def tie(model):
    model.lm_head.weight = model.model.embed_tokens.weight


@pytest.mark.parametrize(
    "change",
    [
        train_a_step,
        lambda model: train_a_step(model, fused=True),
        lambda model: train_a_step(model, foreach=True),
        add_to_one_weight,
        replace_a_module,
        load_others,
        end_elsewhere,
        lambda model: model.bfloat16(),
        another_activation,
        another_function,
        another_epsilon,
        another_scaling,
        another_rotation,
        another_attention,
        tie,
    ],
    ids=[
        *("train", "fused", "foreach", "one weight", "module", "load", "end", "dtype"),
        *("activation", "function", "epsilon", "scaling", "rotation", "attention", "tied"),
    ],
)
def test_a_model_that_was_changed_is_another_model(service, model, tokenizer, change):
    """No answer of before is given, and the answer is that of the model as it is."""
    service.generate(PROMPT, SHORT)
    change(model)
    text = service.generate(PROMPT, SHORT)
    assert service.cache_statistics == CacheStatistics(hits=0, misses=2)
    service.configure(model, tokenizer)
    assert text == service.generate(PROMPT, SHORT)


def hook(model):
    model.model.layers[0].register_forward_hook(lambda module, given, made: made * -3)


def hook_before(model):
    model.model.layers[1].register_forward_pre_hook(lambda module, given: (given[0] * -3,))


def replace_forward(model):
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda hidden: hidden * 2


def replace_forward_of_the_class(model):
    class Doubled(type(model.model.layers[0].mlp)):
        def forward(self, hidden):
            return hidden * 2

    model.model.layers[0].mlp.__class__ = Doubled


def activate_by_hand(model):
    del model.model.layers[0].mlp.act_fn
    model.model.layers[0].mlp.act_fn = lambda hidden: hidden * 2


def wrap_the_activation(model):
    act = model.model.layers[0].mlp.act_fn
    del model.model.layers[0].mlp.act_fn
    model.model.layers[0].mlp.act_fn = functools.wraps(torch.relu)(lambda hidden: -act(hidden))


def keep_in_a_list(model):
    class Layers(torch.nn.Module):
        def __init__(self, old):
            super().__init__()
            self.old = [old]

        def forward(self, hidden):
            return self.old[0](hidden) * 2

    model.model.layers[0].mlp = Layers(model.model.layers[0].mlp)


@pytest.mark.parametrize(
    "change",
    [
        hook,
        hook_before,
        replace_forward,
        replace_forward_of_the_class,
        activate_by_hand,
        wrap_the_activation,
        keep_in_a_list,
    ],
)
def test_code_that_has_no_version_is_not_cached(service, model, tokenizer, caplog, change):
    """What a hook or a function of a script does cannot be seen: the model is asked each time."""
    service.generate(PROMPT, SHORT)
    change(model)
    with caplog.at_level(logging.WARNING):
        text = [service.generate(PROMPT, SHORT) for _ in range(2)]
    assert service.cache_statistics == CacheStatistics(hits=0, misses=1)
    (said,) = caplog.messages
    assert said.startswith("Answers are not cached: ")
    assert __name__ in said
    service.configure(model, tokenizer)
    assert text == [service.generate(PROMPT, SHORT)] * 2


def test_a_hook_for_all_modules_is_not_cached(service, model):
    """Nor one that PyTorch calls for every module of the process."""
    before = service.generate(PROMPT, SHORT)
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, given, made: made * -1 if isinstance(module, torch.nn.Linear) else made
    )
    try:
        assert service.generate(PROMPT, SHORT) != before
    finally:
        handle.remove()
    assert service.generate(PROMPT, SHORT) == before
    assert service.cache_statistics == CacheStatistics(hits=1, misses=1)


def test_a_function_replaced_in_a_library_is_not_cached(service, monkeypatch):
    """As packages with faster kernels do, for all models of a kind."""
    before = service.generate(PROMPT, SHORT)
    modeling = sys.modules["transformers.models.llama.modeling_llama"]
    monkeypatch.setattr(modeling, "apply_rotary_pos_emb", lambda q, k, *_, **__: (q, k))
    assert service.generate(PROMPT, SHORT) != before
    monkeypatch.setattr(modeling.LlamaMLP, "forward", lambda self, hidden: hidden)
    assert service.generate(PROMPT, SHORT) != before
    assert service.cache_statistics == CacheStatistics(hits=0, misses=1)


def test_an_attention_of_a_script_is_not_cached(service, model):
    """Transformers calls by name what was registered, whoever did so."""
    transformers.AttentionInterface.register(
        "mine", lambda module, q, k, v, mask, **_: (q.transpose(1, 2), None)
    )
    service.generate(PROMPT, SHORT)
    model.config._attn_implementation = "mine"
    service.generate(PROMPT, SHORT)
    assert service.cache_statistics == CacheStatistics(hits=0, misses=1)


def past_pytorch(model):
    weight = model.lm_head.weight.detach().numpy()
    weight[:] = weight[::-1].copy()


def through_data(model):
    model.lm_head.weight.data.copy_(model.lm_head.weight.data.flip(0))


@pytest.mark.parametrize(
    "write",
    [past_pytorch, through_data],
)
@pytest.mark.parametrize("again", ["configure", "clear_cache"])
def test_writes_past_pytorch_are_seen_when_asked(service, model, tokenizer, folder, write, again):
    """They are not counted, so the next `configure` or `clear_cache` reads the weights again."""
    before = service.generate(PROMPT, SHORT)
    write(model)
    if again == "configure":
        service.configure(model, tokenizer, {"use_cache": True, "cache_dir": folder})
    else:
        service.clear_cache()
        assert list(folder.iterdir()) == []
    assert service.generate(PROMPT, SHORT) != before


def test_a_plugin_registered_by_hand_that_decodes_is_not_cached(service, bare_plugins):
    """Its code has no version: what it computes is neither kept nor taken from the cache."""

    class Always:
        @hookimpl
        def make_decode_step(self, model, cache):
            return lambda token, position: torch.nn.functional.one_hot(token[:, 0], 320).float()

    before = service.generate(PROMPT, SHORT)
    bare_plugins.register_plugin(Always(), "always")
    assert service.generate(PROMPT, SHORT) != before
    bare_plugins.deactivate("always")
    assert service.generate(PROMPT, SHORT) == before
    assert service.cache_statistics == CacheStatistics(hits=1, misses=1)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_switching_an_adapter_off_is_another_model(bare_plugins, model, tokenizer):
    """Adapters are switched without a change to any weight."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules="all-linear", init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    service = InferenceService(bare_plugins)
    service.configure(adapted, tokenizer, {"use_cache": True})
    with_adapter = service.generate(PROMPT, SHORT)
    with adapted.disable_adapter():
        assert service.generate(PROMPT, SHORT) != with_adapter
    assert service.generate(PROMPT, SHORT) == with_adapter
    assert service.cache_statistics == CacheStatistics(hits=1, misses=2)


def shout(tokenizer):
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(
        [tokenizer.backend_tokenizer.decoder, decoders.Replace("e", "E")]
    )


def add_a_token(tokenizer):
    tokenizer.add_tokens(["<thing>"])


def clean_up(tokenizer):
    tokenizer.clean_up_tokenization_spaces = True


def lowercase(tokenizer):
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


@pytest.mark.parametrize("change", [shout, add_a_token, clean_up, lowercase])
def test_an_answer_is_what_the_tokenizer_says_now(bare_plugins, model, tiny, folder, change):
    """A tokenizer that was changed is obeyed, whatever was kept before."""
    tokenizer = load_tokenizer(tiny)
    service = another(bare_plugins, model, tokenizer, folder)
    prompt, longer = "The IMPORT statement", {"max_new_tokens": 30}
    service.generate(prompt, longer)
    change(tokenizer)
    said = service.generate(prompt, longer)
    service.configure(model, tokenizer)
    assert said == service.generate(prompt, longer)


def test_a_stop_string_that_is_no_longer_there_is_asked_again(bare_plugins, model, tiny, folder):
    """What another decoder cut short is not given for the whole."""
    tokenizer = load_tokenizer(tiny)
    service = another(bare_plugins, model, tokenizer, folder)
    whole = service.generate(PROMPT, {"max_new_tokens": 30})
    stop = next(character for character in whole[3:] if character.isalpha())
    cut = service.generate(PROMPT, {"max_new_tokens": 30, "stop": stop})
    assert whole.startswith(cut)
    assert service.generate(PROMPT, {"max_new_tokens": 30, "stop": stop}) == cut
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(
        [tokenizer.backend_tokenizer.decoder, decoders.Replace(stop, "#")]
    )
    said = service.generate(PROMPT, {"max_new_tokens": 30, "stop": stop})
    service.configure(model, tokenizer)
    assert said == service.generate(PROMPT, {"max_new_tokens": 30, "stop": stop}) != cut


def test_an_event_says_what_came_from_the_cache(service):
    """A listener learns how many tokens were made, how long it took, and of the cache."""
    heard = []
    on_event(EventType.INFERENCE_FINISHED, heard.append)
    service.generate(PROMPT, SHORT)
    service.generate(PROMPT, SHORT)
    service.generate([PROMPT, "x"], SHORT)
    told = [(event.data["cached"], event.data["tokens"]) for event in heard[-3:]]
    assert told == [(False, 5), (True, 0), (False, 5)]
    assert all(event.data["seconds"] >= 0 for event in heard[-3:])


def test_an_event_says_that_generating_failed(service, model):
    """Whoever heard of the beginning hears of the end."""

    def fail(*_):
        raise MemoryError("no memory is left")

    heard = []
    on_event(EventType.INFERENCE_FAILED, lambda event: heard.append(event.data["reason"]))
    model.register_forward_hook(fail)
    with pytest.raises(MemoryError):
        service.generate(PROMPT)
    assert "no memory is left" in heard[-1]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_cash": True}, r'no setting "use_cash" for inference.*"use_cache"\?'),
        ({"beams": 1}, "Known: use_cache, cache_dir, max_cache_bytes, max_batch_size"),
        ({"use_cache": "yes"}, "use_cache is 'yes': it must be True or False"),
        ({"max_batch_size": 0}, "max_batch_size is 0"),
        ({"max_batch_size": True}, "max_batch_size is True"),
        ({"max_cache_bytes": 1.5}, "max_cache_bytes is 1.5"),
        ({"cache_dir": 5}, "cache_dir is 5: it must be the path of a directory"),
        ({"cache_dir": ""}, "cache_dir is ''"),
        ({"cache_dir": "a\0b"}, "it must be the path of a directory"),
        ({"cache_dir": "~nobody-has-this-name/x"}, "which is not a path"),
        ({"cache_dir": __file__}, "which is not a directory"),
        ("cache", "The configuration is 'cache': it must be a mapping"),
    ],
)
def test_a_wrong_setting_is_an_error(bare_plugins, model, tokenizer, config, message):
    """It is named, with what was meant or what there is."""
    with pytest.raises(GenerationError, match=message):
        InferenceService(bare_plugins).configure(model, tokenizer, config)
