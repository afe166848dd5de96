"""DatasetManager: a data set by the name of its source, split to train and to validate."""

from __future__ import annotations

from typing import Any

from truthgpt_core.plugin_system import PluginManager, get_plugin_manager
from truthgpt_core.sources import TextSource
from truthgpt_services.data.splitting import SplitTexts, key_of
from truthgpt_services.errors import DataError


class DatasetManager:
    """Loads data sets from the sources that plugins have."""

    @staticmethod
    def load_dataset(
        source: str,
        dataset_name: str,
        *,
        validation_fraction: float = 0.05,
        seed: int = 42,
        plugins: PluginManager | None = None,
        **options: Any,
    ) -> tuple[list[str], list[str]]:
        """Read a data set into memory and split it, text by text.

        The split depends on the texts and the seed alone: on every machine it is the same
        one, in whatever order the texts come, and a text that is there more than once is on
        one side only. Texts of nothing but white space are left out.

            train, validation = DatasetManager.load_dataset("jsonl", "corpus.jsonl", field="body")

        Args:
            source: the kind of source, a component of the factory `dataset_factory`.
            dataset_name: the data set's name or path in that source.
            validation_fraction: how much of the different texts is kept for validation:
                from 0.0, which keeps none, to less than 1.0. Above 0.0 at least one text
                is, and at least one is left to train on.
            seed: another one gives another split.
            plugins: where sources come from; the process's plugin manager if None.
            **options: what the source takes besides.

        Returns:
            The texts to train on and those to validate with, in the order of the source.

        Raises:
            DataError: the data set cannot be read, is empty or too small to be split, or
                the fraction is out of range.
            FactoryError: there is no source of that name, or its options are wrong.
        """
        made = _source(source, dataset_name, validation_fraction, plugins, options)
        where = f'The data set "{dataset_name}" of "{source}"'
        texts, keys = [], []
        for number, text in enumerate(made.texts()):
            key = key_of(text, seed)
            if key is None:
                raise DataError(f"{where} has no proper text at {number}: {text!r:.80}")
            if not text.isspace() and text:
                texts.append(text)
                keys.append(key)
        if not texts:
            raise DataError(f"{where} is empty: it has no text, or blank ones alone")
        return _split(texts, keys, validation_fraction, where)

    @staticmethod
    def stream_dataset(
        source: str,
        dataset_name: str,
        *,
        validation_fraction: float = 0.05,
        seed: int = 42,
        plugins: PluginManager | None = None,
        **options: Any,
    ) -> tuple[TextSource, TextSource | None]:
        """Split a data set as it streams, with no more than a text of it in memory.

        The split depends on the texts and the seed alone, and a text that is there more than
        once is on one side only. The sides are as large as asked on average: what decides is
        each text's own hash, not how many there are. Blank texts are left out.

        Args:
            source: the kind of source, a component of the factory `dataset_factory`.
            dataset_name: the data set's name or path in that source.
            validation_fraction: how much of the texts is kept for validation: from 0.0,
                which keeps none, to less than 1.0.
            seed: another one gives another split.
            plugins: where sources come from; the process's plugin manager if None.
            **options: what the source takes besides.

        Returns:
            The texts to train on and those to validate with; None for these if the fraction
            is 0.0.

        Raises:
            DataError: the fraction is out of range. What cannot be read is found out by
                the code that reads.
            FactoryError: there is no source of that name, or its options are wrong.
        """
        made = _source(source, dataset_name, validation_fraction, plugins, options)
        where = f'The data set "{dataset_name}" of "{source}"'
        training, validation = (
            SplitTexts(made, fraction=validation_fraction, seed=seed, validation=side, where=where)
            for side in (False, True)
        )
        return training, validation if validation_fraction else None


def _source(
    source: str,
    dataset: str,
    fraction: float,
    plugins: PluginManager | None,
    options: dict[str, Any],
) -> TextSource:
    if not 0 <= fraction < 1:
        raise DataError(
            f"The validation fraction {fraction} is out of range",
            hint="Give one from 0.0 to less than 1.0.",
        )
    plugins = plugins or get_plugin_manager()
    plugins.activate_all()
    made: TextSource = plugins.factories["dataset_factory"].create(source, dataset, **options)
    return made


def _split(
    texts: list[str], keys: list[bytes], fraction: float, where: str
) -> tuple[list[str], list[str]]:
    if fraction == 0:
        return texts, []
    # Those with the lowest keys: which they are depends on no generator of random numbers,
    # whose sequences change between versions of Python.
    different = sorted(set(keys))
    if len(different) < 2:
        raise DataError(
            f"{where} has one text, so it cannot be split",
            hint="Give validation_fraction=0, or a source that divides it into more texts.",
        )
    wanted = min(max(1, round(fraction * len(different))), len(different) - 1)
    last = different[wanted - 1]
    sides: tuple[list[str], list[str]] = ([], [])
    for text, key in zip(texts, keys, strict=True):
        sides[key <= last].append(text)
    return sides
