"""Talking to a server that may send anything: bounded in time and memory, errors in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from urllib.parse import urlsplit

import httpx2
import openai

from truthgpt_core.decoding import (
    GenerationError,
    OverloadedError,
    RefusedError,
    UnavailableError,
)
from truthgpt_core.errors import in_one_line, meant_or_known
from truthgpt_plugin_openai.settings import Settings
from truthgpt_plugin_openai.source import Address

_MOST_BYTES = 8 << 20
"""Of a response, or of a stream between two events."""

_LONGEST_MESSAGE = 300
_MOST_NAMES = 20
_CONNECT_SECONDS = 30.0

_HINTS = {
    400: None,
    404: "The address usually ends in /v1. See which models the server has: URL/models.",
    408: "Try again later.",
    413: "Shorten the prompt.",
    422: None,
    429: "Try again later, or see whether the account has credit.",
}

_FAULTS = (400, 404, 413, 422)
"""What servers answer if the request is at fault."""

# What the library raises where a server breaks the protocol, beside errors of its own.
_BROKEN = (ValueError, TypeError, AttributeError, LookupError, RecursionError)


class Bounded(httpx2.SyncByteStream):
    """A response that ends with an error when it is too large, or goes on for too long.

    Args:
        stream: the response.
        url: of the server, for errors.
        timeout: seconds between two calls of `advance`.
    """

    def __init__(self, stream: Iterator[bytes] | httpx2.SyncByteStream, url: str, timeout: float):
        self._stream = stream
        self._url = url
        self._timeout = timeout
        self._bytes = 0
        self._last = monotonic()

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            self._bytes += len(chunk)
            if self._bytes > _MOST_BYTES:
                raise UnavailableError(
                    f"{self._url} sent more than {_MOST_BYTES >> 20} MiB at once"
                )
            self.check()
            yield chunk

    def check(self) -> None:
        """Raise if no text has come for too long, whatever else comes."""
        if monotonic() - self._last > self._timeout:
            raise too_slow(self._url, self._timeout)

    def event(self) -> None:
        """Count bytes anew: an event has come, and is not kept."""
        self._bytes = 0

    def advance(self) -> None:
        """Count time anew: text has come."""
        self._last = monotonic()

    def close(self) -> None:
        """Close the connection."""
        if isinstance(self._stream, httpx2.SyncByteStream):
            self._stream.close()


def make_client(address: Address, settings: Settings) -> openai.OpenAI:
    """Return a client that follows no redirects, and asks nothing a second time."""

    def bound(response: httpx2.Response) -> None:
        if encoding := response.headers.get("content-encoding"):
            # A few bytes may become gigabytes.
            raise UnavailableError(f"{address.url} compresses what it sends ({encoding!r:.40})")
        stream = response.stream
        assert isinstance(stream, httpx2.SyncByteStream)
        response.stream = Bounded(stream, address.url, settings.timeout)

    def strip(request: httpx2.Request) -> None:
        # The library insists on a key, and takes more from the environment.
        if not settings.key:
            for name in ("Authorization", "OpenAI-Organization", "OpenAI-Project"):
                request.headers.pop(name, None)

    connect = min(_CONNECT_SECONDS, settings.timeout)
    timeout = httpx2.Timeout(settings.timeout, connect=connect)
    return openai.OpenAI(
        api_key=settings.key or "none",
        base_url=address.url,
        max_retries=0,
        timeout=timeout,
        default_headers={"Accept-Encoding": "identity"},
        http_client=httpx2.Client(
            timeout=timeout,
            follow_redirects=False,
            # A proxy cannot reach this machine, and would read the key.
            trust_env=not address.is_local,
            event_hooks={"request": [strip], "response": [bound]},
        ),
    )


def model_name(client: openai.OpenAI, address: Address, settings: Settings) -> str:
    """Return the name of the model at the server.

    Raises:
        GenerationError: the server cannot be asked, has no model of the name, or has several
            where none is named.
    """
    with errors_of(address, settings):
        try:
            listed = client.models.list().data
        except openai.NotFoundError:
            if address.model is None:
                raise
            # Not every server lists its models; a name that is wrong is refused later.
            return address.model
        names = [each.id for each in listed]
        if not all(isinstance(each, str) for each in names):
            raise ValueError("a model has no name")
    shown = ", ".join(f'"{each:.80}"' for each in names[:_MOST_NAMES])
    known = f"It has {shown}{', …' if len(names) > _MOST_NAMES else ''}."
    if address.model is not None and address.model not in names:
        raise GenerationError(
            f'{address.url} has no model "{address.model:.200}"',
            hint=meant_or_known(address.model, names, known) if names else "It lists no models.",
        )
    if address.model is None and len(names) != 1:
        raise GenerationError(
            f"{address.url} has {len(names)} models",
            hint=f"Write openai:{address.url}#MODEL. {known}" if names else None,
        )
    return address.model or names[0]


@contextmanager
def errors_of(address: Address, settings: Settings) -> Iterator[None]:
    """Raise what goes wrong with a server as one `GenerationError`, without the API key."""
    try:
        yield
    except (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError, *_BROKEN) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, GenerationError):
            cause = cause.__cause__
        found = cause or _translated(error, address.url, settings)
        # Without the context, whose traceback has the request and its key.
        raise found from None


def too_slow(url: str, seconds: float) -> UnavailableError:
    """Return the error of a server that takes too long."""
    return UnavailableError(
        f"{url} sent no text for {seconds:g} seconds", hint="--option timeout=SECONDS waits longer."
    )


def _translated(error: Exception, url: str, settings: Settings) -> GenerationError:
    if isinstance(error, openai.APITimeoutError | httpx2.TimeoutException):
        return too_slow(url, settings.timeout)
    if isinstance(error, openai.APIStatusError):
        return _refused(error, url, settings)
    says = _short(_message(error), settings)
    if isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError):
        return UnavailableError(f"{url} broke the answer off: {says}", hint="Try again.")
    if isinstance(error, openai.APIConnectionError | httpx2.TransportError):
        lost = isinstance(error.__cause__, httpx2.RemoteProtocolError | httpx2.ReadError)
        what = "broke the answer off" if lost else "cannot be reached"
        hint = "Try again." if lost else "See whether the server runs, and the address is right."
        return UnavailableError(f"{url} {what}: {says}", hint=hint)
    if isinstance(error, openai.APIError):
        return UnavailableError(f"{url} failed while it answered: {says}")
    return UnavailableError(
        f"{url} does not keep to the OpenAI protocol: {says}",
        hint="The address usually ends in /v1.",
    )


def _refused(error: openai.APIStatusError, url: str, settings: Settings) -> GenerationError:
    status = error.status_code
    if 300 <= status < 400:
        named = _short(urlsplit(error.response.headers.get("location", "")).netloc, settings)
        return UnavailableError(
            f"{url} redirects to {named or 'another address'}, which is not followed",
            hint="Give the address that it leads to, if you trust it.",
        )
    says = _short(_message(error), settings)
    if status in (401, 403):
        has = f"the API key in {settings.key_name}" if settings.key else "requests without a key"
        return UnavailableError(
            f"{url} refuses {has} ({status}): {says}",
            hint="Put the key into OPENAI_API_KEY, or name another environment variable with "
            "--option api_key_env=NAME.",
        )
    what = "failed" if status >= 500 else "refuses the request"
    message, hint = f"{url} {what} ({status}): {says}", _HINTS.get(status)
    if status == 429:
        return OverloadedError(message, hint=hint, retry_after=_retry_after(error))
    if status in _FAULTS:
        return RefusedError(message, hint=hint, said=says)
    return UnavailableError(message, hint=hint)


def _retry_after(error: openai.APIStatusError) -> float | None:
    """Return the seconds that a server names; a date is not read."""
    given = error.response.headers.get("retry-after", "")
    return float(given) if re.fullmatch(r"[0-9]{1,4}", given) else None


def _message(error: Exception) -> str:
    body = getattr(error, "body", None)
    for key in ("message", "detail", "error"):
        if isinstance(body, dict) and isinstance(body.get(key), str):
            return str(body[key])
    if isinstance(error, openai.APIStatusError) and body is not None:
        return str(body)
    return in_one_line(error.__cause__ or error)


def _short(text: str, settings: Settings) -> str:
    text = " ".join(text[: 100 * _LONGEST_MESSAGE].split())
    if settings.key:
        text = text.replace(settings.key, "***")
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}…"
