"""The model source `openai:URL#MODEL`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import urlsplit

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.sources import ModelSource, ResolvedModel

_PREFIX = "openai:"
_HINT = "Write openai:URL or openai:URL#MODEL, such as openai:http://127.0.0.1:8000/v1."


class AddressError(TruthGPTError):
    """The address of a server cannot be used."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a model runs.

    Attributes:
        url: of the API, which usually ends in `/v1`.
        model: its name at the server; None for the only one.
    """

    url: str
    model: str | None

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine."""
        return urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")

    @property
    def is_private(self) -> bool:
        """Whether nobody else reads what is sent there."""
        return self.is_local or self.url.startswith("https:")


def read_address(spec: str) -> Address:
    """Read what the user typed.

    Raises:
        AddressError: it is not the address of a server.
    """
    url, _, model = spec.removeprefix(_PREFIX).partition("#")
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for one that is not a number
    except ValueError as error:
        raise AddressError(f"{url!r:.200} is not a URL: {error}", hint=_HINT) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise AddressError(f"{url!r:.200} is not a URL of http or https", hint=_HINT)
    if parts.username is not None or parts.password is not None:
        # Not shown: the password would be.
        raise AddressError(
            f"The URL of {parts.hostname:.200} has a user name or a password in it",
            hint="Put the API key into the environment variable OPENAI_API_KEY.",
        )
    if parts.query:
        raise AddressError(f"{url!r:.200} has a query, which is not supported", hint=_HINT)
    return Address(parts.geturl().rstrip("/"), model or None)


class OpenAISource(ModelSource):
    """`openai:URL#MODEL`: a model that a server with the OpenAI protocol runs."""

    name: ClassVar[str] = "openai"

    def claims(self, spec: str) -> bool:
        """Whether it begins with `openai:`."""
        return spec.startswith(_PREFIX)

    def resolve(self, spec: str) -> ResolvedModel:
        """Check the address; the server is asked when the engine is made."""
        read_address(spec)
        return ResolvedModel(spec, self.name)
