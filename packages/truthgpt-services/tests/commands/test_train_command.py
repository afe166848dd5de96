"""`truthgpt train`, as the user runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from truthgpt_services.training.checkpoints import CheckpointStore

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path: Path, tiny: Path) -> Path:
    """A configuration that trains the tiny model for a few steps."""
    file = tmp_path / "train.yaml"
    file.write_text(f"""\
model: {{name_or_path: "{tiny}"}}
data: {{source: python_docs, dataset: topics, max_seq_len: 64, tokenizing_processes: 1}}
training:
  max_steps: 6
  train_batch_size: 2
  gradient_accumulation_steps: 2
  learning_rate: 1e-3
  eval_steps: 3
  eval_batch_size: 32
  save_steps: 2
  precision: float32
  sample_prompts: ["The for statement"]
  sample_tokens: 4
output_dir: "{tmp_path / "out"}"
""")
    return file


def rows(out: Path, kind: str) -> list[dict]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def test_a_model_is_trained_and_can_be_used(truthgpt, config, tmp_path) -> None:
    """The result generates, metrics and plot are there, and going on later adds to them."""
    out = tmp_path / "out"
    done = truthgpt("train", config, "--set", "training.max_steps=3")
    assert done.returncode == 0, done.stderr
    assert "validation loss" in done.stdout
    assert "| The for statement" in done.stdout
    assert (out / "loss.svg").read_text().startswith("<svg")
    assert [row["step"] for row in rows(out, "step")] == [1, 2, 3]

    refused = truthgpt("train", config)
    assert refused.returncode == 1
    assert "--resume" in refused.stderr

    resumed = truthgpt("train", config, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert [row["step"] for row in rows(out, "step")] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows(out, "evaluation")] == [0, 3, 6]

    spoken = truthgpt("generate", out / "model", "The", "--max-new-tokens", "3")
    assert spoken.returncode == 0, spoken.stderr


def test_new_models_and_lora(truthgpt, config, tmp_path) -> None:
    """A small Llama is trained from nothing, then a model with matrices of peft."""
    new = [
        *("--set", "architecture={hidden_size: 32, layers: 1, heads: 2, context: 128}"),
        *("--set", "training.max_steps=2", "--set", "training.eval_steps=null"),
    ]
    done = truthgpt("train", config, *new)
    assert done.returncode == 0, done.stderr
    described = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert (described["hidden_size"], described["num_hidden_layers"]) == (32, 1)

    pytest.importorskip("peft")
    out = tmp_path / "adapted"
    adapted = truthgpt(
        *("train", config, "--set", "lora={rank: 2}", "--set", f"output_dir={out}"),
        *("--set", "training.max_steps=2", "--set", "model.gradient_checkpointing=true"),
    )
    assert adapted.returncode == 0, adapted.stderr
    assert (out / "model" / "model.safetensors").exists()


@pytest.mark.new_process
def test_a_run_that_ends_between_evaluations_is_evaluated(truthgpt, config, tmp_path) -> None:
    """What is said of a model at the end is said of the one that was saved."""
    done = truthgpt("train", config, "--set", "training.max_steps=4")
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(tmp_path / "out", "evaluation")] == [0, 3, 4]


def test_a_run_under_way_is_left_alone(truthgpt, config, tmp_path) -> None:
    """A second run into its directory ends in one line, and what the first wrote stays."""
    out = tmp_path / "out"
    first = CheckpointStore(out / "checkpoints")
    first.open()
    (out / "metrics.jsonl").write_text('{"kind": "step", "step": 1}\n')
    second = truthgpt("train", config)
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1].startswith("truthgpt: Another run is writing checkpoints")
    assert rows(out, "step") == [{"kind": "step", "step": 1}]
    assert not (out / "loss.svg").exists()
    first.close()


def test_a_conversation_is_learned_by_its_answers(truthgpt, config, tmp_path, tiny) -> None:
    """Chats train, padded and in bfloat16 products, once the tokenizer has a template."""
    model = tmp_path / "speaker"
    shutil.copytree(tiny, model)
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    said = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nobody."}]
    chats = tmp_path / "chats.jsonl"
    chats.write_text(f"{json.dumps({'messages': said})}\n" * 8)
    values = {
        "model.name_or_path": model,
        "data.source": "chat",
        "data.dataset": chats,
        "data.packing": "false",
        "data.validation_fraction": "0",
        "training.precision": "bfloat16",
        "training.max_steps": "2",
    }
    done = truthgpt("train", config, *(f"--set={name}={each}" for name, each in values.items()))
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(tmp_path / "out", "step")] == [1, 2]


def test_instructions_in_alpacas_form_train_and_are_recognized(
    truthgpt, config, tmp_path, tiny
) -> None:
    """A file as it is downloaded trains, and one line says how it was understood."""
    model = tmp_path / "speaker"
    shutil.copytree(tiny, model)
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    rows = [{"instruction": "Add.", "input": "1 + 1", "output": "It is two."}] * 8
    file = tmp_path / "alpaca.json"
    file.write_text(json.dumps(rows, indent=2))
    values = {
        "model.name_or_path": model,
        "data.source": "chat",
        "data.dataset": file,
        "data.validation_fraction": "0%",
        "training.precision": "fp32",
        "training.max_steps": "1",
    }
    done = truthgpt("train", config, *(f"--set={name}={each}" for name, each in values.items()))
    assert done.returncode == 0, done.stderr
    assert f"{file}: Alpaca instructions: " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-s", "training.scheduler=cosin"], 2, 'Did you mean "cosine"?'),
        (["--device", "gpu"], 2, 'Unknown device "gpu". Available: cpu'),
        (["-s", "data={source: text, dataset: gone.txt}"], 1, "There is no data set at"),
        (["-s", "output_dir=~no-such-user/out"], 1, "there is no home directory"),
        (["-s", "training.optimizer_options={betaz: [0.9, 0.95]}"], 1, 'Did you mean "betas"?'),
    ],
    ids=["component", "device", "data", "output", "option"],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    truthgpt, config, arguments, code, said
) -> None:
    """Here there is not even a model to load."""
    refused = truthgpt("train", config, "-s", "model.name_or_path=/no/model", *arguments)
    assert refused.returncode == code
    assert said in refused.stderr
    assert "/no/model" not in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_new_model_ends_where_its_tokenizer_says(truthgpt, config, tmp_path, tokenizer) -> None:
    """A Llama from nothing stops at the token that its texts ended with; no library warns."""
    done = truthgpt(
        *("train", config, "--set", "training.max_steps=1", "--set", "training.eval_steps=null"),
        *("--set", "architecture={hidden_size: 32, layers: 1, heads: 2, context: 128}"),
        *("--set", "model.gradient_checkpointing=true"),
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    for name in ("config.json", "generation_config.json"):
        described = json.loads((tmp_path / "out" / "model" / name).read_text())
        assert described["eos_token_id"] == tokenizer.eos_token_id


def test_weights_in_float16_are_refused(truthgpt, config) -> None:
    """Steps that such weights cannot take are one error before training, with the way out."""
    refused = truthgpt("train", config, "--set", "model.torch_dtype=float16")
    assert refused.returncode == 1
    assert "training.precision to float16" in refused.stderr
    assert "Traceback" not in refused.stderr
