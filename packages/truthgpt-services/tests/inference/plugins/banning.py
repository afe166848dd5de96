"""A logits processor: tokens that are never generated."""

from typing import ClassVar

from truthgpt_core import TruthGPTError, hookimpl
from truthgpt_core.decoding import LogitsProcessor


class Banning(LogitsProcessor):
    options: ClassVar = {"ban": "ids of tokens that are never generated, with + between them"}

    def __init__(self, ban):
        try:
            self.tokens = [int(each) for each in str(ban).split("+")]
        except ValueError:
            raise TruthGPTError(f"ban is {ban!r}: write ids with + between them") from None

    def __call__(self, logits, tokens):
        logits = logits.clone()
        logits[self.tokens] = -float("inf")
        return logits


@hookimpl
def register_components(factories):
    factories["logits_processor_factory"].register("banning", Banning)
