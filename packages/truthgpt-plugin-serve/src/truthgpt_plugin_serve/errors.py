"""Errors as OpenAI's protocol has them: a status, and what the client did or can do."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from truthgpt_core.decoding import (
    GenerationError,
    OverloadedError,
    RefusedError,
    UnavailableError,
)
from truthgpt_core.errors import TruthGPTError

INVALID = "invalid_request_error"
SERVER = "server_error"

NO_MORE = "The model generates no more"

_LONGEST_SAID = 500
"""Characters of what another server says that are passed on."""


class ServeError(TruthGPTError):
    """The server cannot start, or its files cannot be used."""


class ApiError(TruthGPTError):
    """A request that gets an error in place of an answer.

    Args:
        status: of HTTP.
        message: what is wrong, for the client; nothing about the server's insides.
        code: a short name that programs can look for.
        param: the field of the request that it is about.
        kind: `invalid_request_error`, `authentication_error`, `rate_limit_error`, `server_error`.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = INVALID,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.kind = kind
        self.headers = dict(headers or {})

    @property
    def body(self) -> bytes:
        """What the response holds, as JSON.

        It is ASCII: what a client wrote may have half a character, which UTF-8 has no bytes for.
        """
        fields: dict[str, Any] = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return json.dumps({"error": fields}).encode()


def overloaded(message: str, seconds: float = 1.0) -> ApiError:
    """Return the error of a server that has too much to do.

    Args:
        message: why.
        seconds: when it is worth trying again.
    """
    return ApiError(
        429,
        message,
        code="rate_limit_exceeded",
        kind="rate_limit_error",
        headers={"Retry-After": str(max(1, math.ceil(seconds)))},
    )


def unavailable(message: str) -> ApiError:
    """Return the error of a server that answers no requests now."""
    return ApiError(503, message, code="unavailable", kind=SERVER, headers={"Retry-After": "1"})


def of_engine(error: GenerationError, *, is_remote: bool) -> ApiError:
    """Return the error of a text that an engine did not generate.

    What another server says of itself is in the log: its address is nothing to clients.

    Args:
        error: of the engine.
        is_remote: whether it chooses tokens itself, as one does that asks another server.
    """
    if isinstance(error, OverloadedError):
        message = "What runs the model has too much to do" if is_remote else error.message
        return overloaded(message, error.retry_after or 1.0)
    if isinstance(error, RefusedError):
        if error.said is None:
            return ApiError(400, str(error))
        said = "".join(each if " " <= each <= "~" else "?" for each in error.said[:_LONGEST_SAID])
        return ApiError(400, f"What runs the model refuses the request: {said}", code="refused")
    if not isinstance(error, UnavailableError):
        return ApiError(500, error.message, code="generation_failed", kind=SERVER)
    if is_remote:
        message = "What runs the model failed to answer; the log of this server says why"
        return ApiError(502, message, code="bad_gateway", kind=SERVER)
    return unavailable(NO_MORE)


def failed(message: str = "The server failed to answer; its log says why") -> ApiError:
    """Return the error of a server that is at fault."""
    return ApiError(500, message, code="internal_error", kind=SERVER)
