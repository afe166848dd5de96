"""What others offer for running the same model: llama.cpp, ik_llama.cpp and OpenVINO GenAI.

`decode.py` and `batch.py` start a process for each, in the Python that has it: nothing is imported
here but the standard library, numpy, and the one that is measured.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RIVALS: dict[str, str] = {
    "llama.cpp, F32": "F32",
    "llama.cpp, BF16": "BF16",
    "llama.cpp, Q8_0": "Q8_0",
    "llama.cpp, Q4_1": "Q4_1",
    "ik_llama.cpp, BF16": "BF16",
    "ik_llama.cpp, Q8_0": "Q8_0",
    "ik_llama.cpp, Q4_1": "Q4_1",
    "OpenVINO, F16": "F16",
    "OpenVINO, Q8_0": "Q8_0",
    "OpenVINO, Q4_1": "Q4_1",
}
"""The contenders, and the type of the weights in the GGUF file that each loads."""
LLAMA, IK_LLAMA, OPENVINO = "llama.cpp", "ik_llama.cpp", "OpenVINO"
PACKAGES = {
    LLAMA: "llama-cpp-python",
    IK_LLAMA: "ik-llama-cpp-python",
    OPENVINO: "openvino-genai",
}
"""The distributions that they come from, by what the names of contenders begin with."""

Requests = list[dict[str, Any]]


def make_rival(name: str, sequences: int, positions: int) -> Any:
    """Load the file that the environment variable DECODE_GGUF names.

    Args:
        name: one of `RIVALS`.
        sequences: how many at once.
        positions: of each.
    """
    kind = OpenVino if name.startswith(OPENVINO) else Ggml
    return kind(name, os.environ["DECODE_GGUF"], sequences, positions)


def answer_greedily(
    requests: Requests, forward: Callable[[list[int], list[list[int]]], list[Any]]
) -> list[list[int]]:
    """Return the tokens of each request, all at once; who has its tokens leaves.

    Args:
        requests: each with its prompt, `ids`, and how many tokens it wants, `new`.
        forward: given which requests go on and the tokens of each that are next, returns the logits
            after the last of each.
    """
    texts: list[list[int]] = [[] for _ in requests]
    active = list(range(len(requests)))
    given = [each["ids"] for each in requests]
    while active:
        for at, logits in zip(active, forward(active, given), strict=True):
            texts[at].append(int(logits.argmax()))
        active = [at for at in active if len(texts[at]) < requests[at]["new"]]
        given = [[texts[at][-1]] for at in active]
    return texts


class Ggml:
    """A file in llama.cpp or ik_llama.cpp, through the functions of its C library."""

    def __init__(self, name: str, file: str, sequences: int, positions: int) -> None:
        if name.startswith(IK_LLAMA):
            from ik_llama_cpp import _ctypes_api as api

            clear = api.llama_kv_cache_clear
        else:
            import llama_cpp as api

            def clear(context: Any) -> None:
                api.llama_memory_clear(api.llama_get_memory(context), True)

        self.api, self._clear = api, clear
        api.llama_backend_init()
        options = api.llama_model_default_params()
        if hasattr(options, "repack_tensors"):
            options.repack_tensors = True
        model = api.llama_model_load_from_file(file.encode(), options)
        params = api.llama_context_default_params()
        params.n_ctx, params.n_seq_max = positions * sequences, sequences
        params.n_batch = params.n_ctx
        params.n_threads = params.n_threads_batch = os.cpu_count()
        if name.startswith(IK_LLAMA) and sequences > 1:
            params.flash_attn = False  # of several sequences it fails an assertion of its own
        self.context = api.llama_init_from_model(model, params)
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        self.batch = api.llama_batch_init(params.n_ctx, 0, 1)

    def forward(
        self,
        active: list[int],
        given: list[list[int]],
        positions: list[int],
        *,
        every: bool = False,
    ) -> list[Any]:
        """Append tokens to sequences; return the logits of the last of each, or of every token."""
        import numpy as np

        batch, requested = self.batch, []
        batch.n_tokens = 0
        for at, tokens in zip(active, given, strict=True):
            for number, token in enumerate(tokens):
                row = batch.n_tokens
                batch.token[row], batch.pos[row] = token, positions[at]
                batch.n_seq_id[row], batch.seq_id[row][0] = 1, at
                wanted = every or number == len(tokens) - 1
                batch.logits[row] = wanted
                if wanted:
                    requested.append(row)
                batch.n_tokens += 1
                positions[at] += 1
        assert self.api.llama_decode(self.context, batch) == 0
        found = (self.api.llama_get_logits_ith(self.context, row) for row in requested)
        return [np.ctypeslib.as_array(each, shape=(self.vocabulary,)) for each in found]

    def prefill(self, ids: list[int]) -> None:
        """Read a prompt."""
        self._clear(self.context)
        self.forward([0], [ids], [0])

    def decode(self, ids: list[int], count: int) -> float:
        """Tokens per second after the first."""
        self._clear(self.context)
        positions = [0]
        (logits,) = self.forward([0], [ids], positions)
        began = time.perf_counter()
        for _ in range(count):
            (logits,) = self.forward([0], [[int(logits.argmax())]], positions)
        int(logits.argmax())
        return count / (time.perf_counter() - began)

    def predict(self, ids: list[int], begin: int, file: Path) -> None:
        """Follow a text and write down the log-probabilities from a position on."""
        import numpy as np

        self._clear(self.context)
        logits = np.stack(self.forward([0], [ids], [0], every=True))[begin - 1 : -1]
        shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
        np.save(file, shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))

    def answer(self, requests: Requests) -> list[list[int]]:
        """Return the tokens of each request, greedily, all at once."""
        self._clear(self.context)
        positions = [0] * len(requests)
        return answer_greedily(
            requests, lambda active, given: self.forward(active, given, positions)
        )


class OpenVino:
    """A GGUF file in OpenVINO GenAI; what it computes in is left to it. It gives no logits."""

    def __init__(self, name: str, file: str, sequences: int, positions: int) -> None:
        import openvino_genai

        self.api, self.turns = openvino_genai, 0
        if sequences == 1:
            self.pipeline = openvino_genai.LLMPipeline(file, "CPU")
        else:
            scheduler = openvino_genai.SchedulerConfig()
            scheduler.max_num_seqs, scheduler.cache_size = sequences, 1
            scheduler.enable_prefix_caching = False  # turns repeat their prompts
            self.pipeline = openvino_genai.ContinuousBatchingPipeline(file, scheduler, "CPU")

    def _config(self, count: int) -> Any:
        return self.api.GenerationConfig(
            max_new_tokens=count, min_new_tokens=count, ignore_eos=True, do_sample=False
        )

    def _generate(self, ids: list[int], count: int) -> Any:
        import numpy as np
        import openvino

        # Another first token each time: it keeps what it has read of a text that begins the same.
        self.turns += 1
        rows = np.array([[self.turns, *ids[1:]]], dtype=np.int64)
        inputs = self.api.TokenizedInputs(
            openvino.Tensor(rows), openvino.Tensor(np.ones_like(rows))
        )
        found = self.pipeline.generate(inputs, self._config(count))
        assert len(found.tokens[0]) == count
        return found

    def prefill(self, ids: list[int]) -> None:
        """Read a prompt, for one token."""
        self._generate(ids, 1)

    def decode(self, ids: list[int], count: int) -> float:
        """Tokens per second after the first, as it measures itself."""
        return 1000.0 / float(self._generate(ids, count + 1).perf_metrics.get_tpot().mean)

    def answer(self, requests: Requests) -> list[list[int]]:
        """Return the tokens of each request, greedily, all at once."""
        import numpy as np
        import openvino

        found = self.pipeline.generate(
            [openvino.Tensor(np.array([each["ids"]], dtype=np.int64)) for each in requests],
            [self._config(each["new"]) for each in requests],
        )
        return [list(each.m_generation_ids[0]) for each in found]

    def arrive(self, requests: Requests) -> float:
        """Take requests as they come, `at` seconds from now; return how long all of them took."""
        import numpy as np
        import openvino

        began, left, handles = time.perf_counter(), list(enumerate(requests)), []
        while left or self.pipeline.has_non_finished_requests():
            while left and time.perf_counter() - began >= left[0][1]["at"]:
                number, each = left.pop(0)
                ids = openvino.Tensor(np.array([each["ids"]], dtype=np.int64))
                handles.append(self.pipeline.add_request(number, ids, self._config(each["new"])))
            if self.pipeline.has_non_finished_requests():
                self.pipeline.step()
            else:
                time.sleep(0.001)
        seconds = time.perf_counter() - began
        made = [len(handle.read_all()[0].generated_ids) for handle in handles]
        assert made == [each["new"] for each in requests], made
        return seconds
