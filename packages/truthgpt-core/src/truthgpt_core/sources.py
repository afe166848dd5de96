"""Contracts of sources and exporters: where models and texts come from, and where models go.

What an author derives from or returns is here, so that no plugin imports the services. A model
source is registered in `factories["model_source_factory"]`, a source of texts in
`dataset_factory` and an exporter in `exporter_factory`, in the hook `register_components`.
Errors that an author raises derive from `TruthGPTError`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, runtime_checkable

from truthgpt_core.optimization import Options
from truthgpt_core.optimization.options import OptionsT

Tensor = Any
"""A `torch.Tensor`; this package never needs to know more than that it is one."""


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that a source found.

    Attributes:
        spec: as the user typed it.
        kind: the name of the kind of source, for reports.
        path: a directory as transformers writes it, or a `.gguf` file; None for a model that is
            not on this machine's disk, which takes an engine that runs it where it is.
        file_bytes: the size of its weight files. A source need not say: it is filled in.
    """

    spec: str
    kind: str
    path: Path | None = None
    file_bytes: int = 0

    @property
    def is_gguf(self) -> bool:
        """True if it has to be converted before it can be loaded."""
        return self.path is not None and self.path.suffix == ".gguf"


class ModelSource(ABC):
    """One kind of place where models come from. It is created without arguments."""

    name: ClassVar[str]

    rank: ClassVar[int] = 0
    """Sources are asked in order of rank, lowest first. Those of TruthGPT have 10 (a file in an
    installed package), 20 (a path) and 90 (a hub id)."""

    @abstractmethod
    def claims(self, spec: str) -> bool:
        """Return whether `spec` is meant for this source, be the model there or not.

        Args:
            spec: what the user typed.
        """

    @abstractmethod
    def resolve(self, spec: str) -> ResolvedModel:
        """Find the model, fetching it if that is what this source does.

        What it returns is checked before anything is loaded: pickles, links that lead out of a
        model's directory and files that are not regular files are refused, whatever the source.

        Args:
            spec: what the user typed; `claims` returned True for it.

        Raises:
            TruthGPTError: the model is not there, or cannot be had.
        """


@runtime_checkable
class TextSource(Protocol):
    """A data set as a stream of texts.

    A component of the factory `dataset_factory` is a class with this method. It is created with
    the name of a data set and the options that it takes, and need not derive from this class.
    """

    def texts(self) -> Iterator[str]:
        """Yield the texts, one by one, the same ones in the same order each time.

        A source that reads files holds one text at a time, or a batch of them, so a data
        set may be larger than memory.

        Raises:
            TruthGPTError: the data set is not there or cannot be read; raised when the first
                text is asked for, or the one that is damaged.
        """


@runtime_checkable
class Fingerprinted(TextSource, Protocol):
    """A source that can tell without reading its texts whether they are the same as before."""

    def fingerprint(self) -> str | None:
        """Return a text that is another one whenever the texts, or how they are read, are.

        Returns:
            It, or None if that cannot be told now.

        Raises:
            TruthGPTError: the data set is not there.
        """


@runtime_checkable
class Described(TextSource, Protocol):
    """A source that can say in one line what it has recognized."""

    def describe(self) -> str | None:
        """Say how the texts are read, where that is not what the configuration says.

        Returns:
            A sentence without its full stop; None if there is nothing to say.

        Raises:
            TruthGPTError: the data set cannot be read.
        """


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known of a tensor before it is read.

    Attributes:
        shape: its sizes.
        dtype: as torch writes it, without `torch.`: "bfloat16".
        nbytes: how many bytes its values take.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class PlainModel:
    """A model in ordinary weights, whatever optimizations made of them.

    Attributes:
        name: of the model, as the user typed it.
        config: the content of its `config.json`, as transformers reads it. Where it has a
            `quantization_config`, another library quantized the model, and the tensors are as
            that library stores them.
        tensors: what the weights are, by name. Tensors that the model ties to each other are
            there once, under the name that transformers saves them under.
        weights: called without arguments, yields each of `tensors` once, as `(name, tensor)`,
            on the CPU. They are read and dequantized layer by layer, in whatever order they are
            stored: an exporter that lets go of them never has the whole model in memory. Each
            call reads them again.
        directory: has `config.json`, the tokenizer and the other small files of the model, such
            as the generation configuration and the model card; no weights. It is there while
            `Exporter.export` runs, and all of it may be copied.
    """

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    weights: Callable[[], Iterator[tuple[str, Tensor]]]
    directory: Path


class Exporter(ABC, Generic[OptionsT]):
    """A format that models are exported to. It is created without arguments."""

    name: ClassVar[str]
    """What the user types after `--to`; also its name in the factory."""

    summary: ClassVar[str]
    """What it writes, in a line for `truthgpt export --to help`."""

    options_type: ClassVar[type[Options]] = Options
    """What can be set with `--option NAME=VALUE`."""

    @abstractmethod
    def export(self, model: PlainModel, directory: Path, options: OptionsT) -> None:
        """Write a model.

        Args:
            model: in ordinary weights.
            directory: to write to. It is empty, and takes the name that the user gave only when
                this returns: what an error or a crash leaves behind never has that name.
            options: an `options_type`, with the values that the user gave.

        Raises:
            TruthGPTError: the format cannot hold this model.
        """
