"""lm-eval scores a served model as the model itself would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from running import Running

lm_eval = pytest.importorskip("lm_eval")

QUESTIONS = [
    {"question": "The sky is", "choices": ["blue", "a long way down", "7"], "answer": 0},
    {"question": "Two and two are", "choices": ["four", "green"], "answer": 0},
    {"question": "A cat says", "choices": ["moo and woof", "meow"], "answer": 1},
]
TASK = """
task: questions
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


def test_every_choice_has_the_log_probability_that_the_model_gives_it(
    server: Running, tiny: Path, tmp_path: Path
) -> None:
    """Through `local-completions`, which asks for a prompt's own log-probabilities."""
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS))
    (tmp_path / "questions.yaml").write_text(TASK.format(data=data))
    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "tiny",
            "base_url": f"{server.url}/completions",
            "tokenizer": str(tiny),
            "num_concurrent": 2,
        },
        tasks=["questions"],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tmp_path)),
        bootstrap_iters=0,
    )
    samples = sorted(found["samples"]["questions"], key=lambda each: each["doc_id"])
    assert len(samples) == len(QUESTIONS)
    for asked, sample in zip(QUESTIONS, samples, strict=True):
        scores = [score for score, _ in sample["filtered_resps"]]
        expected = [score(server, asked["question"], each) for each in asked["choices"]]
        assert scores == pytest.approx(expected, abs=1e-3)


def score(server: Running, question: object, choice: str) -> float:
    """The log-probability of a choice after a question, by the engine."""
    tokenizer = server.model.tokenizer
    ids = tokenizer(f"{question} {choice}", add_special_tokens=False).input_ids
    begin = len(tokenizer(question, add_special_tokens=False).input_ids)
    logs = torch.as_tensor(server.model.engine.prompt_logits(ids)).log_softmax(-1)
    return sum(float(logs[at - 1, ids[at]]) for at in range(begin, len(ids)))
