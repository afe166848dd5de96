"""A source of texts as a third party would publish it: rhymes on a word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from truthgpt_core import TruthGPTError, hookimpl


class Rhymes:
    def __init__(self, dataset: str, *, verses: int = 40) -> None:
        self._word, self._verses = dataset, verses

    def texts(self) -> Iterator[str]:
        if self._word == "orange":
            raise TruthGPTError('Nothing rhymes on "orange"', hint="Take another word.")
        for number in range(self._verses):
            yield f"Verse {number} of the song is about a {self._word}, " * 4

    def fingerprint(self) -> str | None:
        return f"{self._word} {self._verses}"

    def describe(self) -> str | None:
        return f"rhymes on {self._word}"


@hookimpl
def register_components(factories: Mapping[str, Any]) -> None:
    factories["dataset_factory"].register("rhymes", Rhymes)
