"""From streams of the inference service, which threads generate, to the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from truthgpt_core.decoding import GenerationError, OverloadedError
from truthgpt_core.errors import in_one_line
from truthgpt_plugin_serve.errors import (
    SERVER,
    ApiError,
    failed,
    of_engine,
    overloaded,
    unavailable,
)
from truthgpt_plugin_serve.metrics import Metrics
from truthgpt_plugin_serve.places import Places
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
        model: that generates them.
    """

    def __init__(
        self,
        model: ServedModel,
        streams: list[TextStream],
        changed: asyncio.Event,
        places: Places | None,
        metrics: Metrics,
        ended: Callable[[Generation], None],
        timeout: float,
    ) -> None:
        self.streams = streams
        self.model = model
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + timeout
        self._changed = changed
        self._places = places
        self._metrics = metrics
        self._ended = ended
        self._is_open = True
        self._cut: asyncio.Future[None] = loop.create_future()
        self._why_cut = ""
        self._taking: asyncio.Future[None] | None = None
        self._asking: asyncio.Future[str | None] | None = None

    @classmethod
    async def start(
        cls,
        model: ServedModel,
        prompt: Any,
        options: Mapping[str, Any],
        *,
        timeout: float,
        readers: ThreadPoolExecutor,
        places: Places | None,
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
            places: at an engine that chooses tokens itself; None for one that gives logits.
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
        return cls(model, streams, changed, places, metrics, ended, timeout)

    async def pieces(self) -> AsyncIterator[tuple[int, str | None]]:
        """Yield pieces of the texts as they come.

        Yields:
            The number of a text and a piece of it; None where it has ended.

        Raises:
            ApiError: a text could not be generated, or not in time.
        """
        waits = self._places is not None
        live = dict(enumerate(self.streams))
        try:
            if self._places is not None:
                self._taking = asyncio.ensure_future(self._places.take())
                await self._in_time(self._taking, self.streams[0])
            while live:
                for index, stream in list(live.items()):
                    while stream.is_ready or waits or self._cut.done():
                        piece = await self._next(stream)
                        if piece is None:
                            del live[index]
                            self._metrics.text_ended(self.model.name, stream)
                            self._refuse_unfinished(stream)
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
                self._metrics.text_ended(self.model.name, stream)
        if self._is_open:
            self._is_open = False
            self._give_place()
            self._ended(self)

    def cut(self, why: str = "The server stopped while it answered") -> None:
        """End it as it is; its client gets an error.

        Args:
            why: what the client is told.
        """
        self._why_cut = why
        if not self._cut.done():
            self._cut.set_result(None)
        for stream in self.streams:
            if stream.finish_reason is None:
                stream.close()
        self._changed.set()

    def _give_place(self) -> None:
        places, taking, asking = self._places, self._taking, self._asking
        if places is None or taking is None:
            return
        if not taking.done():
            taking.cancel()
        elif asking is None or asking.done():
            places.give()
        else:

            def over(done: asyncio.Future[Any]) -> None:
                # An error that nobody waits for any more is none of asyncio's to tell of.
                if not done.cancelled():
                    done.exception()
                places.give()

            # The thread goes on until the engine gives it something.
            asking.add_done_callback(over)

    async def _in_time(self, work: asyncio.Future[_Made], stream: TextStream) -> _Made:
        """Return what work gives, unless it is too late or this is cut before."""
        seconds = self._deadline - asyncio.get_running_loop().time()
        either: set[asyncio.Future[Any]] = {work, self._cut}
        await asyncio.wait(either, timeout=max(0, seconds), return_when=asyncio.FIRST_COMPLETED)
        if self._cut.done():
            raise self._stopped()
        if not work.done():
            raise _late(stream)
        return work.result()

    async def _next(self, stream: TextStream) -> str | None:
        try:
            if self._places is None:
                return next(stream, None)
            self._asking = self._places.ask(lambda: next(stream, None))
            return await self._in_time(self._asking, stream)
        except ApiError:
            raise
        except GenerationError as error:
            logger.warning("%s: %s", self.model.name, error)
            raise of_engine(error, is_remote=self._places is not None) from error
        except Exception as error:
            logger.exception("%s failed to generate", self.model.name)
            raise failed() from error

    def _refuse_unfinished(self, stream: TextStream) -> None:
        if stream.finish_reason == "timeout":
            raise _late(stream)
        if stream.finish_reason == "cancelled":
            raise self._stopped()

    def _stopped(self) -> ApiError:
        return unavailable(self._why_cut or "The server stopped while it answered")


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
    try:
        return await asyncio.get_running_loop().run_in_executor(threads, work)
    except OverloadedError as error:
        raise overloaded(error.message) from error
    except GenerationError as error:
        raise ApiError(400, str(error)) from error
    except ApiError:
        raise
    except Exception as error:
        logger.error("A request failed: %s", in_one_line(error), exc_info=True)
        raise failed() from error
