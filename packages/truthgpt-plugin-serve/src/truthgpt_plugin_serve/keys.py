"""API keys: a file with their hashes, and what each may use."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from truthgpt_core.errors import did_you_mean
from truthgpt_core.paths import open_regular, write_file
from truthgpt_plugin_serve.errors import ApiError, ServeError, overloaded

logger = logging.getLogger(__name__)

Scope = Literal["api", "metrics"]

_PREFIX = "tgpt-"
_LARGEST = 4 << 20


class Key(BaseModel):
    """An API key, as it is stored.

    Attributes:
        name: what the log calls it.
        hash: SHA-256 of the key, which has 256 random bits: nothing slower is needed.
        scope: `api` for models, `metrics` for metrics.
        created: when, as a date.
        tokens_per_minute: of prompts and answers; None for any number.
        requests_per_minute: None for any number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scope: Scope = "api"
    created: str
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[Key] = []


def read_keys(file: Path) -> list[Key]:
    """Return the keys that a file has; none if there is no such file.

    Raises:
        ServeError: it cannot be read, or holds something else.
    """
    try:
        with open_regular(file) as opened:
            return _File.model_validate_json(opened.read(_LARGEST)).keys
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ServeError(f"The keys in {file} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ServeError(
            f"{file} does not hold keys: {where}: {first['msg']}",
            hint="truthgpt serve keys writes it.",
        ) from None


def add_key(
    file: Path,
    name: str,
    *,
    scope: Scope = "api",
    tokens_per_minute: int | None = None,
    requests_per_minute: int | None = None,
) -> str:
    """Make a key and add it to a file.

    Returns:
        The key, which is stored nowhere.

    Raises:
        ServeError: there is one of that name, or the file cannot be written.
    """
    with suppress(OSError):  # writing says so
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _alone(file):
        keys = read_keys(file)
        if any(each.name == name for each in keys):
            raise ServeError(
                f'There is a key "{name}" already', hint="Revoke it, or take another name."
            )
        secret = _PREFIX + secrets.token_urlsafe(32)
        try:
            made = Key(
                name=name,
                hash=_hash(secret),
                scope=scope,
                created=time.strftime("%Y-%m-%d"),
                tokens_per_minute=tokens_per_minute,
                requests_per_minute=requests_per_minute,
            )
        except ValidationError:
            raise ServeError(
                f'"{name:.80}" cannot name a key',
                hint="It may have letters, digits, '.', '_' and '-'.",
            ) from None
        _write(file, [*keys, made])
    return secret


def revoke_key(file: Path, name: str) -> None:
    """Take a key out of a file; servers that use it notice within a second.

    Raises:
        ServeError: there is none of that name, or the file cannot be written.
    """
    with _alone(file):
        keys = read_keys(file)
        left = [each for each in keys if each.name != name]
        if len(left) == len(keys):
            names = [each.name for each in keys]
            raise ServeError(f'There is no key "{name:.80}"', hint=did_you_mean(name, names))
        _write(file, left)


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Let others who change a file wait, where directories can be locked."""
    from truthgpt_services.storage.locks import wait_alone

    with ExitStack() as opened:
        with suppress(OSError):
            directory = os.open(file.parent, os.O_RDONLY)
            opened.callback(os.close, directory)
            wait_alone(directory)
        yield


def _write(file: Path, keys: list[Key]) -> None:
    _refuse_others_file(file)
    text = json.dumps({"keys": [each.model_dump() for each in keys]}, indent=2) + "\n"
    try:
        write_file(file, text, private=True)
    except OSError as error:
        raise ServeError(f"The keys cannot be written to {file}: {error.strerror}") from error


def _refuse_others_file(file: Path) -> None:
    """Refuse to replace a file of another user, who could not read what is written then.

    Raises:
        ServeError: it belongs to another user.
    """
    if not hasattr(os, "geteuid"):  # Windows
        return
    with suppress(OSError):  # there is none, or writing says so
        owner = file.stat().st_uid
        if owner != os.geteuid():
            raise ServeError(
                f"{file} belongs to the user with the number {owner}: a server of that user could "
                "not read what is written here",
                hint=f"Run it as that user: sudo -u '#{owner}' truthgpt serve keys ...",
            )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(slots=True)
class Bucket:
    """So much a minute: what is not used adds up to a minute's worth, and no more.

    Args:
        a_minute: how much is added in a minute; None for no limit.
        clock: returns seconds.
    """

    a_minute: int | None
    clock: Callable[[], float] = time.monotonic
    _left: float = field(init=False)
    _then: float = field(init=False)

    def __post_init__(self) -> None:
        self._left, self._then = float(self.a_minute or 0), self.clock()

    def take(self, amount: int, what: str) -> None:
        """Use some of it.

        Raises:
            ApiError: less is left, or it is more than ever is.
        """
        if self.a_minute is None:
            return
        self._refill()
        if amount > self.a_minute:
            # Not 429, which clients answer by asking again: it would never be let in.
            raise ApiError(
                400,
                f"The request may take {amount} {what}, and the API key has {self.a_minute} a "
                "minute: shorten the prompt or the answer",
                code="request_too_large",
            )
        if amount > self._left:
            seconds = (amount - self._left) * 60 / self.a_minute
            raise overloaded(f"The API key has used its {what} of this minute", seconds)
        self._left -= amount

    def give(self, amount: int) -> None:
        """Give back what was taken and not used."""
        if self.a_minute is not None:
            self._refill()
            self._left = min(float(self.a_minute), self._left + amount)

    def _refill(self) -> None:
        assert self.a_minute is not None
        now = self.clock()
        self._left = min(float(self.a_minute), self._left + (now - self._then) * self.a_minute / 60)
        self._then = now


class Allowance:
    """What one key may use."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self._tokens = Bucket(key.tokens_per_minute)
        self._requests = Bucket(key.requests_per_minute)

    def take_request(self) -> None:
        """Count a request.

        Raises:
            ApiError: there were too many.
        """
        self._requests.take(1, "requests")

    def take_tokens(self, amount: int) -> None:
        """Count tokens that a request takes at most.

        Raises:
            ApiError: there are not so many left.
        """
        self._tokens.take(amount, "tokens")

    def give_tokens(self, amount: int) -> None:
        """Give back those that it did not take."""
        self._tokens.give(amount)


class KeyRing:
    """The keys of a file, which may change while the server runs.

    Args:
        file: with the keys.

    Raises:
        ServeError: the file cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stamp: object = None
        self._looked = float("-inf")
        self._broken = False
        self._allowances: dict[str, Allowance] = {}
        self._read()

    def __len__(self) -> int:
        return len(self._allowances)

    def find(self, authorization: str | None, scope: Scope) -> Allowance:
        """Return what the key of a request may use.

        Args:
            authorization: the header, `Bearer KEY`.
            scope: what the key has to be for.

        Raises:
            ApiError: there is no key, or it is not one of these.
        """
        self._notice()
        kind, _, secret = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not secret:
            raise _refused("An API key is needed: Authorization: Bearer KEY")
        given, found = _hash(secret.strip()), None
        # All of them, so that the time does not tell which one came close.
        for allowance in self._allowances.values():
            if hmac.compare_digest(allowance.key.hash, given):
                found = allowance
        if found is None:
            raise _refused("The API key is not known")
        if found.key.scope != scope:
            raise ApiError(
                403,
                f"The API key is for {found.key.scope}",
                code="insufficient_permissions",
                kind="permission_error",
            )
        return found

    def _notice(self) -> None:
        """Read the file again if it was changed; one that is broken now changes nothing."""
        now = time.monotonic()
        if now - self._looked < 1:
            return
        try:
            self._read()
        except ServeError as error:
            # Who breaks the file neither lets anyone in nor locks anyone out.
            if not self._broken:
                logger.error("The keys that were read before still count: %s", error)
            self._broken = True
        else:
            self._broken = False

    def _read(self) -> None:
        self._looked = time.monotonic()
        try:
            found = self._file.stat()
            stamp: object = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            stamp = None
        if stamp == self._stamp and self._allowances:
            return
        keys = read_keys(self._file)
        old = {each.key: each for each in self._allowances.values()}
        self._allowances = {each.hash: old.get(each) or Allowance(each) for each in keys}
        self._stamp = stamp


def _refused(message: str) -> ApiError:
    return ApiError(
        401,
        message,
        code="invalid_api_key",
        kind="authentication_error",
        headers={"WWW-Authenticate": "Bearer"},
    )
