"""The settings of training, where a program gives them and not a configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from truthgpt_core.config.sections import TrainingSection
from truthgpt_core.errors import did_you_mean
from truthgpt_services.training.errors import TrainingError


def read_settings(config: Mapping[str, Any]) -> TrainingSection:
    """Read the keys of the section `training`.

    Raises:
        TrainingError: a key is unknown, or a value is wrong; all of them.
    """
    try:
        return TrainingSection.model_validate(dict(config))
    except ValidationError as error:
        wrong, hints = [], []
        for each in error.errors():
            name = ".".join(map(str, each["loc"]))
            if each["type"] == "extra_forbidden":
                wrong.append(f'there is no key "{name}"')
                hint = did_you_mean(name, TrainingSection.model_fields)
                hints += [hint] if hint else []
            else:
                wrong.append(f"{name} is {each['input']!r}: {each['msg']}")
        raise TrainingError(
            f"The configuration of training is wrong: {'; '.join(wrong)}",
            hint=" ".join(hints) or None,
        ) from None
