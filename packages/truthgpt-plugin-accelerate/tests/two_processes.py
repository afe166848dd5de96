"""What a backend does, in one process and in two, as JSON on standard output."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from truthgpt_plugin_accelerate.backend import AccelerateBackend


def tiny() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=48,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=True,
        )
    )


def see(sharding: str) -> dict[str, Any]:
    """Use every method once."""
    backend = AccelerateBackend(sharding=sharding)
    assert backend.device("cpu").startswith("cpu")
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    prepared = backend.prepare(model, optimizer)
    rows = torch.arange(4 * 6).view(4, 6)[backend.rank :: backend.processes]
    for number in range(2):
        passing = rows + number

        def backward(ids: torch.Tensor) -> None:
            loss = prepared(input_ids=ids, labels=ids, use_cache=False).loss
            (loss * len(ids) * backend.processes).backward()

        if number == 0:
            with backend.accumulating(prepared):
                backward(passing)
        else:
            backward(passing)
    embedding = model.get_input_embeddings().weight
    gradient = backend.whole(embedding.grad)
    whole = {name: backend.whole(each.detach()) for name, each in model.named_parameters()}
    parts = {
        name: backend.part(whole[name], each.detach()) for name, each in model.named_parameters()
    }
    return {
        "gradient": gradient.flatten()[:64].tolist(),
        "round trip": all(
            torch.equal(backend.whole(part), whole[name]) for name, part in parts.items()
        )
        and all(whole[name].shape == each.shape for name, each in tiny().named_parameters()),
        "tied": model.get_output_embeddings().weight is embedding,
        "names": list(model.state_dict()),
        "held": sum(held(each) for each in model.parameters()),
        "optimized": {id(each) for each in optimizer.param_groups[0]["params"]}
        == {id(each) for each in model.parameters()},
        "total": backend.total(torch.tensor(1.0 + backend.rank)).item(),
        "gathered": backend.gather({"rank": backend.rank}),
        "sent": backend.broadcast(f"of {backend.rank}"),
    }


def held(tensor: Any) -> int:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return int(local.numel())


def in_processes(count: int, sharding: str) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with TemporaryDirectory() as directory:
        children = []
        for rank in range(count):
            child = os.fork()
            if child == 0:
                if count > 1:
                    os.environ.update(
                        WORLD_SIZE=str(count),
                        RANK=str(rank),
                        LOCAL_RANK=str(rank),
                        LOCAL_WORLD_SIZE=str(count),
                        MASTER_ADDR="127.0.0.1",
                        MASTER_PORT=str(port),
                    )
                try:
                    Path(directory, str(rank)).write_text(json.dumps(see(sharding)))
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                    os._exit(1)
                os._exit(0)
            children.append(child)
        for child in children:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        return [json.loads(Path(directory, str(rank)).read_text()) for rank in range(count)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    seen = {
        "alone": in_processes(1, "none"),
        "none": in_processes(2, "none"),
        "fsdp2": in_processes(2, "fsdp2"),
    }
    json.dump(seen, sys.stdout)
