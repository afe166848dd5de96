"""The options of the engine, which the user gives with `--option NAME=VALUE`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from truthgpt_core.decoding import GenerationError
from truthgpt_core.errors import meant_or_known
from truthgpt_plugin_openai.source import Address

EXTRA_FIELDS: Mapping[str, str] = {
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "min_new_tokens": "min_tokens",
}
"""Generation options that are no part of the protocol, with the fields of vLLM and SGLang."""

_DEFAULT_KEY = "OPENAI_API_KEY"
_DEFAULT_TIMEOUT = 600.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server is asked.

    Attributes:
        key: the API key; empty for none.
        key_name: the environment variable that it comes from.
        timeout: seconds that the server may take until the next piece of text.
        extra: the names in `EXTRA_FIELDS` that the server knows, as the user says.
    """

    key: str = field(repr=False)
    key_name: str
    timeout: float
    extra: frozenset[str]


def read_settings(address: Address, given: dict[str, Any]) -> Settings:
    """Take the options of the engine out of those that the user gave.

    Raises:
        GenerationError: one is wrong, or a key would be sent where others can read it.
    """
    named = given.pop("api_key_env", None)
    if named is not None and (not isinstance(named, str) or named not in os.environ):
        raise GenerationError(
            f"api_key_env is {named!r:.80}, and there is no such environment variable",
            hint="Name the variable that has the API key, and not the key.",
        )
    name = named or _DEFAULT_KEY
    # A key that the user did not name for this server is not sent where others can read it.
    key = os.environ.get(name, "").strip() if named or address.is_private else ""
    timeout = given.pop("timeout", _DEFAULT_TIMEOUT)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise GenerationError(f"timeout is {timeout!r:.80}: it must be a number of seconds above 0")
    return Settings(key, name, float(timeout), _extra(given.pop("extra_fields", [])))


def _extra(given: object) -> frozenset[str]:
    listed = given.split(",") if isinstance(given, str) else given
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise GenerationError(f"extra_fields is {given!r:.80}: it must be a list of names")
    for each in listed:
        if each not in EXTRA_FIELDS:
            known = f"Known: {', '.join(EXTRA_FIELDS)}."
            raise GenerationError(
                f'extra_fields has "{each:.80}"', hint=meant_or_known(each, EXTRA_FIELDS, known)
            )
    return frozenset(listed)
