"""From streams of the inference service, which threads generate, to the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from truthgpt_core.decoding import GenerationError
from truthgpt_core.errors import in_one_line
from truthgpt_plugin_serve.errors import SERVER, ApiError, failed, overloaded
from truthgpt_plugin_serve.metrics import Metrics
from truthgpt_plugin_serve.served_model import ServedModel

if TYPE_CHECKING:
    from truthgpt_services.inference.text import TextStream

logger = logging.getLogger(__name__)

_Made = TypeVar("_Made")

_FINISH_REASONS = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}


class Generation:
    """The texts that answer one request.

    Attributes:
        streams: of the inference service, one for each text.
    """

    def __init__(
        self,
        model: ServedModel,
        streams: list[TextStream],
        changed: asyncio.Event,
        askers: ThreadPoolExecutor,
        metrics: Metrics,
        ended: Callable[[Generation], None],
        timeout: float,
    ) -> None:
        self.streams = streams
        self._deadline = asyncio.get_running_loop().time() + timeout
        self._model = model
        self._changed = changed
        self._askers = askers
        self._metrics = metrics
        self._ended = ended
        self._is_open = True

    @classmethod
    async def start(
        cls,
        model: ServedModel,
        prompt: Any,
        options: Mapping[str, Any],
        *,
        timeout: float,
        readers: ThreadPoolExecutor,
        askers: ThreadPoolExecutor,
        metrics: Metrics,
        ended: Callable[[Generation], None],
    ) -> Generation:
        """Ask a model for texts.

        Args:
            model: the model.
            prompt: as `InferenceService.stream` takes it.
            options: generation options, by name.
            timeout: seconds after which they end as they are.
            readers: threads for work that would hold the event loop up.
            askers: threads for texts of an engine that chooses tokens itself.
            metrics: what is counted.
            ended: called once no more is generated.

        Raises:
            ApiError: the model cannot do it, or too many wait already.
        """
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def progressed() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody reads any more
                loop.call_soon_threadsafe(changed.set)

        streams = await in_thread(
            readers,
            lambda: model.service.streams(prompt, options, timeout=timeout, progressed=progressed),
        )
        return cls(model, streams, changed, askers, metrics, ended, timeout)

    async def pieces(self) -> AsyncIterator[tuple[int, str | None]]:
        """Yield pieces of the texts as they come.

        Yields:
            The number of a text and a piece of it; None where it has ended.

        Raises:
            ApiError: a text could not be generated, or not in time.
        """
        waits = not self._model.engine.capabilities.logits
        live = dict(enumerate(self.streams))
        try:
            while live:
                for index, stream in list(live.items()):
                    while stream.is_ready or waits:
                        piece = await self._next(stream, waits=waits)
                        if piece is None:
                            del live[index]
                            self._refuse_unfinished(stream)
                            self._metrics.text_ended(self._model.name, stream)
                            yield index, None
                            break
                        yield index, piece
                if live and not waits:
                    await self._changed.wait()
                    self._changed.clear()
        finally:
            self.close()

    async def whole(self) -> list[str]:
        """Return the texts, when all have ended.

        Raises:
            ApiError: as for `pieces`.
        """
        async for _ in self.pieces():
            pass
        return [stream.text for stream in self.streams]

    def close(self) -> None:
        """Want no more of what has not ended; its row is free within a step."""
        for stream in self.streams:
            if stream.finish_reason is None:
                stream.close()
                self._metrics.text_ended(self._model.name, stream)
        if self._is_open:
            self._is_open = False
            self._ended(self)

    def cut(self) -> None:
        """End it as it is, because the server stops; its client gets an error."""
        for stream in self.streams:
            if stream.finish_reason is None:
                stream.close()
        self._changed.set()

    async def _next(self, stream: TextStream, *, waits: bool) -> str | None:
        try:
            if not waits:
                return next(stream, None)
            loop = asyncio.get_running_loop()
            # The thread goes on until the engine gives it something.
            async with asyncio.timeout_at(self._deadline):
                return await loop.run_in_executor(self._askers, lambda: next(stream, None))
        except TimeoutError:
            raise _late(stream) from None
        except GenerationError as error:
            logger.warning("%s: %s", self._model.name, error)
            raise ApiError(500, error.message, code="generation_failed", kind=SERVER) from error
        except Exception as error:
            logger.exception("%s failed to generate", self._model.name)
            raise failed() from error

    def _refuse_unfinished(self, stream: TextStream) -> None:
        if stream.finish_reason == "timeout":
            raise _late(stream)
        if stream.finish_reason == "cancelled":
            raise ApiError(503, "The server stopped while it answered", kind=SERVER)


def _late(stream: TextStream) -> ApiError:
    return ApiError(
        504,
        f"The answer was not ready in time: {len(stream.tokens)} tokens in {stream.seconds:.0f} s",
        code="deadline_exceeded",
        kind=SERVER,
    )


def finish_reason(stream: TextStream) -> str:
    """Return why a text ended, in the words of the protocol."""
    return _FINISH_REASONS.get(stream.finish_reason or "", "stop")


async def in_thread(threads: ThreadPoolExecutor, work: Callable[[], _Made]) -> _Made:
    """Do work in a thread, and raise what goes wrong as errors of the protocol.

    Raises:
        ApiError: the request cannot be met.
    """
    from truthgpt_services.inference.scheduler import QueueFullError

    try:
        return await asyncio.get_running_loop().run_in_executor(threads, work)
    except QueueFullError as error:
        raise overloaded(error.message) from error
    except GenerationError as error:
        raise ApiError(400, str(error)) from error
    except ApiError:
        raise
    except Exception as error:
        logger.error("A request failed: %s", in_one_line(error), exc_info=True)
        raise failed() from error
