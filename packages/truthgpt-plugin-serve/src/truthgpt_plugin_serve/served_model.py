"""A model that is served: what generates with it, and whether it is ready."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truthgpt_core.application import Application, get_application
from truthgpt_core.errors import TruthGPTError, in_one_line
from truthgpt_plugin_serve.errors import ServeError
from truthgpt_plugin_serve.settings import Settings

if TYPE_CHECKING:
    from truthgpt_core.decoding import Engine
    from truthgpt_services import InferenceService, ModelService

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class ServedModel:
    """A model that is served.

    Attributes:
        name: what clients call it.
        service: generates with it.
        engine: runs it.
        tokenizer: of the model; None where the engine keeps it to itself.
        directory: where the model is saved; None if it is not in a directory.
        created: when it was loaded, in seconds since 1970.
        why_not_ready: why requests are refused; None once they are answered.
        check: what comparing it with its report said.
    """

    name: str
    service: InferenceService
    engine: Engine
    tokenizer: Any
    directory: Path | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    why_not_ready: str | None = "it is being checked"
    check: str = "not checked"
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _died: bool = False

    def start(self, died: Callable[[], None] = lambda: None) -> None:
        """Begin to generate what is asked for.

        Args:
            died: called by the thread that generates if it ends before it is told to.
        """
        self._thread = threading.Thread(
            target=self._run, args=(died,), name=f"generate {self.name}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Generate no more."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    @property
    def is_alive(self) -> bool:
        """Whether what is asked for is generated."""
        return not self.engine.capabilities.logits or (
            self._thread is not None and self._thread.is_alive() and not self._died
        )

    @property
    def why_refused(self) -> str | None:
        """Why requests are refused now; None if they are answered."""
        return self.why_not_ready if self.is_alive else "it generates no more"

    def _run(self, died: Callable[[], None]) -> None:
        try:
            self.service.run(self._stopping.is_set)
        except BaseException:
            # Requests would wait forever.
            logger.exception("The thread that generates with %s ended", self.name)
        if self.engine.capabilities.logits and not self._stopping.is_set():
            self._died = True
            died()


def split_names(given: Sequence[str]) -> dict[str, str]:
    """Return models by the names that clients use.

    Args:
        given: each is a model, or NAME=MODEL. Without a name it is called after the last part of
            its path.

    Raises:
        ServeError: two have one name.
    """
    found: dict[str, str] = {}
    for each in given:
        name, mark, model = each.partition("=")
        if not mark or "/" in name or ":" in name or Path(each).exists():
            path = each.partition("#")[0].rstrip("/")
            model, name = each, path.rpartition("/")[2].removesuffix(".gguf") or each
        if name in found:
            raise ServeError(
                f'Two models are called "{name}": {found[name]} and {model}',
                hint="Write NAME=MODEL for one of them.",
            )
        found[name] = model
    return found


def load(
    name: str,
    model: str,
    settings: Settings,
    progress: Callable[[str, int, int], None],
    application: Application,
) -> ServedModel:
    """Load a model.

    Args:
        name: what clients call it.
        model: a directory, a GGUF file, or whatever else a model source knows.
        settings: of the server.
        progress: called with what is done, and how much of it.
        application: whose services are used, by this model alone.

    Raises:
        TruthGPTError: it cannot be loaded.
    """
    from truthgpt_services.inference.prompts import read_prompt
    from truthgpt_services.services.opened_model import open_model

    models: ModelService = application.get_service("model_service")
    service: InferenceService = application.get_service("inference_service")
    models.progress = progress
    given = dict(settings.given)

    def look(directory: Path, tokenizer: Any) -> None:
        with suppress(TruthGPTError):
            # The process that applies chat templates is a fork: as yet it has little to copy.
            read_prompt(tokenizer, [{"role": "user", "content": "Hello"}])

    opened = open_model(
        models,
        model,
        device=settings.device,
        engine=settings.engine,
        given=given,
        look=look,
    )
    if given:
        raise ServeError(
            f'The engine {opened.engine.name} has no option "{min(given)}"',
            hint="Options of requests are given with each request.",
        )
    service.configure(
        opened.engine,
        opened.tokenizer,
        {
            "max_batch_size": settings.max_batch_size,
            "max_waiting": settings.max_waiting,
            "prefix_cache_tokens": settings.prefix_cache_tokens,
            "use_cache": settings.response_cache is not None,
            "cache_dir": settings.response_cache,
        },
    )
    return ServedModel(name, service, opened.engine, opened.tokenizer, opened.directory)


def load_all(
    models: Mapping[str, str], settings: Settings, progress: Callable[[str, int, int], None]
) -> list[ServedModel]:
    """Load models, and have each generate a token.

    Args:
        models: what is served, by name.
        settings: of the server.
        progress: called with what is done, and how much of it.

    Raises:
        TruthGPTError: one cannot be loaded.
    """
    served: list[ServedModel] = []
    for name, model in models.items():
        progress(f"Loading {name}", 0, 0)
        # Each has services of its own, which a plugin may have replaced.
        application = Application() if served else get_application()
        served.append(load(name, model, settings, progress, application))
        warm_up(served[-1])
    return served


def warm_up(model: ServedModel) -> None:
    """Generate a token, so that the first request does not wait for what is made on first use.

    An engine that chooses tokens itself may ask a server, and pay for it: it is left alone.

    Raises:
        ServeError: the model generates nothing.
    """
    if not model.engine.capabilities.logits:
        return
    try:
        for _ in model.service.stream("Hello", {"max_new_tokens": 1}):
            pass
    except Exception as error:
        raise ServeError(f"{model.name} generates nothing: {in_one_line(error)}") from error
