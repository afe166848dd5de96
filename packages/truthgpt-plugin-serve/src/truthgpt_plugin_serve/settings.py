"""What a server is started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a server is started with, beside its models.

    Attributes:
        engine: the name of the engine; None for whichever runs a model.
        device: in torch's notation, or "auto".
        given: further options of engines, by name.
        max_batch_size: how many texts each model generates at once.
        max_waiting: how many more may wait; what comes then gets 429.
        prefix_cache_tokens: how many tokens of texts that ended are kept for prompts that begin
            the same way.
        response_cache: where answers are kept, to be given again; None for nowhere.
        default_max_tokens: how many tokens an answer of a chat has at most where the client does
            not say.
        request_timeout: seconds after which a request that is not answered fails.
        max_body_bytes: of a request.
        compile_timeout: seconds in which the form that an answer has to have is compiled.
        send_timeout: seconds after which a client that takes nothing of its answer is given up.
        body_timeout: seconds in which a request has to be there, headers and body each.
        max_requests: how many are handled at once, those that wait included.
        keys: the file with API keys; None for no authentication.
        any_host: without keys, answer requests under whatever name the server is called.
        drain_timeout: seconds in which answers that have begun may end after SIGTERM.
        check: whether the models are compared with their reports first.
        log_prompts: whether prompts and answers are in the log.
    """

    engine: str | None = None
    device: str = "auto"
    given: Mapping[str, Any] = field(default_factory=dict)
    max_batch_size: int = 16
    max_waiting: int = 256
    prefix_cache_tokens: int = 8192
    response_cache: Path | None = None
    default_max_tokens: int = 1024
    request_timeout: float = 600.0
    max_body_bytes: int = 4 << 20
    compile_timeout: float = 10.0
    send_timeout: float = 60.0
    body_timeout: float = 30.0
    max_requests: int = 1024
    keys: Path | None = None
    any_host: bool = False
    drain_timeout: float = 60.0
    check: bool = True
    log_prompts: bool = False
