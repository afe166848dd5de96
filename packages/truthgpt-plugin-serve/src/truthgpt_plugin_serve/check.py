"""Served is measured: each model is compared with its report before it answers requests."""

from __future__ import annotations

import asyncio
import logging

from truthgpt_core.errors import TruthGPTError, in_one_line
from truthgpt_plugin_serve.context import Context
from truthgpt_plugin_serve.served_model import ServedModel

logger = logging.getLogger(__name__)


async def check_models(context: Context) -> None:
    """Compare every model with its report; those that agree are ready then."""
    for model in context.models.values():
        if not context.settings.check:
            model.check, model.why_not_ready = "not checked", None
            continue
        try:
            model.why_not_ready = await asyncio.to_thread(_check, model)
        except TruthGPTError as error:
            model.check = model.why_not_ready = f"it cannot be checked: {error}"
        except Exception as error:
            logger.exception("%s cannot be checked", model.name)
            model.check = model.why_not_ready = f"it cannot be checked: {in_one_line(error)}"
        fields = {"model": model.name, "ready": model.why_not_ready is None, "check": model.check}
        logger.info("checked", extra={"fields": fields})


def _check(model: ServedModel) -> str | None:
    """Return why a model may not be served; None if it may.

    Raises:
        ReportError: its record is damaged.
    """
    from truthgpt_services.measuring.replay import replay
    from truthgpt_services.results.record import read_record

    record = None if model.directory is None else read_record(model.directory)
    if record is None:
        model.check = "not measured"
        return None
    agreement = replay(model.engine, record)
    model.check = agreement.sentence
    return None if agreement.agrees else agreement.sentence
