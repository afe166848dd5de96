"""What an optimization's author writes, and what it is given: `Optimization` and its parts."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, ClassVar, Generic

from pydantic import ValidationError

from truthgpt_core.optimization.errors import OptimizationError, naming_the_author
from truthgpt_core.optimization.options import Options, OptionsT, wrong_options
from truthgpt_core.optimization.stored_weights import StoredMatmul

Model = Any
"""A `torch.nn.Module`; this package never needs to know more than that it is one."""

Tensor = Any
"""A `torch.Tensor`."""


class Stage(enum.IntEnum):
    """When an optimization takes place, which is also what has to be saved of it.

    Lower stages are applied first, in whatever order the user named them.
    """

    STRUCTURE = 0
    """Changes which modules there are or how large they are: pruning, dropping layers,
    low-rank factors. It comes first, so that later steps see the modules that stay. Its
    result is saved with the model."""

    WEIGHTS = 1
    """Changes what the modules are made of: quantizing, another dtype. Its result is saved
    with the model."""

    EXECUTION = 2
    """Changes how the model is run. It is done again each time the model is loaded."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether something can work on this machine, said before any work starts.

    Attributes:
        ok: True if it can.
        reason: why not; empty if it can.
        fix: what the user could do about it; may be empty.
    """

    ok: bool
    reason: str = ""
    fix: str = ""

    @classmethod
    def yes(cls) -> Verdict:
        """It can work."""
        return cls(ok=True)

    @classmethod
    def no(cls, reason: str, fix: str = "") -> Verdict:
        """It cannot, because of `reason`."""
        return cls(ok=False, reason=reason, fix=fix)


@dataclass(frozen=True, slots=True)
class SourceModel:
    """What is known of a model before it is loaded.

    Attributes:
        name: as the user typed it.
        architecture: the name of its class, as in config.json.
        config: the content of config.json.
        optimizations: canonical names of the optimizations it has already, in their order.
    """

    name: str
    architecture: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    optimizations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which of a model's parts a step changed and, for each one it left alone, why.

    Attributes:
        unit: what is counted, in the plural: "linear layers", "decoder blocks".
        covered: names of the modules, parameters or buffers that were changed.
        skipped: names of those that were not, each with the reason.

    A name is one that the model has, before or after: others are an error, and so is one
    that is there twice.
    """

    unit: str = "layers"
    covered: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def total(self) -> int:
        """How many modules were looked at."""
        return len(self.covered) + len(self.skipped)


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """What an optimization chose for one layer, and what that was worth.

    Attributes:
        name: of the layer.
        choice: what it was made of, as the optimization's options write it.
        divergence: mean KL divergence, in nats per token, if this layer alone is changed as
            much as the optimization may change one: how sensitive the model is to it.
    """

    name: str
    choice: str
    divergence: float


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying an optimization gives.

    Attributes:
        model: the changed model; the one passed in, changed in place, is fine.
        coverage: what was changed and what was not.
        settings: options as they were finally chosen on this machine, by name,
            in JSON types. `Optimization.restore` gets them back as its options,
            so a choice that "auto" made here is the same after a reload.
        notes: sentences for the report.
        choices: what was chosen for each layer, if it was measured; the report draws it.
    """

    model: Model
    coverage: Coverage = field(default_factory=Coverage)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    choices: tuple[LayerChoice, ...] = ()


Progress = Callable[[str, int, int], None]
"""Called as `progress(what, done, total)`; `total` 0 means that it is not known."""


def no_progress(what: str, done: int, total: int) -> None:
    """Ignore progress."""


Note = Callable[[str, str], None]
Fill = Callable[[str], None]
"""Called as `fill(name)` with the name of a module: its own tensors are then in memory."""


def no_note(about: str, note: str) -> None:
    """Do nothing: no notes were requested."""


def no_fill(name: str) -> None:
    """Do nothing: everything is in memory already."""


def no_stored_matmul() -> None:
    """Return None: integers are not multiplied as they are stored."""


@dataclass(frozen=True, slots=True)
class OptimizationContext:
    """What an optimization may use besides the model.

    Attributes:
        device: where the model is and stays, in torch's notation ("cpu", "cuda:0").
        cache_dir: a directory of this optimization's own that outlives the process.
            Whatever is in it is input: it may be missing, old or damaged.
        progress: to be called now and then during work that takes seconds.
        seed: for anything random.
        fill: brings the parameters and buffers of one module, without those of the
            modules inside it, into memory. Only an optimization that is `layerwise`
            is given a model where that is needed.
        tokens: of a text that the model can be tried on, in its own vocabulary; not the
            text that the result is judged by. May be empty.
        max_kl: the mean KL divergence, in nats per token, that the result may cost; None if
            nothing was said.
        note: tells the user what is known only when the model runs, such as how long compiling
            took. Called as `note(about, sentence)`; a later sentence about the same takes the
            place of an earlier one. It may be called at any time, also after `apply`.
        make_stored_matmul: returns how a CPU multiplies rows by integers as they are stored; None
            if no plugin brings it. It may take seconds, the first time on a machine.
    """

    device: str
    cache_dir: Path
    progress: Progress = no_progress
    seed: int = 0
    fill: Fill = no_fill
    tokens: Sequence[int] = ()
    max_kl: float | None = None
    note: Note = no_note
    make_stored_matmul: Callable[[], StoredMatmul | None] = no_stored_matmul


class Optimization(ABC, Generic[OptionsT]):
    """A change to a model that should make it faster or smaller.

    A subclass sets `name`, `stage` and `options_type`, and writes `apply`. It is found
    through the entry-point group `truthgpt.optimizations` of its distribution.

    Args:
        options: keyword arguments for `options_type`.

    Raises:
        OptimizationError: an option is unknown or has a wrong value; all of them
            are named at once.
    """

    name: ClassVar[str]
    """The canonical name, the same as in the entry point."""

    stage: ClassVar[Stage] = Stage.WEIGHTS

    after: ClassVar[frozenset[str]] = frozenset()
    """Canonical names of optimizations that come before this one when both are applied."""

    before: ClassVar[frozenset[str]] = frozenset()
    """Canonical names of optimizations that come after this one when both are applied."""

    options_type: ClassVar[type[Options]] = Options

    layerwise: ClassVar[bool] = False
    """Whether `apply` takes a model whose weights are not in memory yet.

    If so, parameters and persistent buffers that it is given may be on the meta device,
    and it calls `context.fill(name)` before it reads those of the module `name`. What is
    still missing when it returns is filled in then, so it need not fill what it leaves
    alone, and the whole model is never in memory at once.
    """

    engine: ClassVar[str | None] = None
    """The name of the engine that runs the model in another way after this; None if any does.

    `torch` says that it changes how PyTorch runs a model, as compiling it does: where another
    engine runs the model it is skipped, with this reason.
    """

    ordinary: ClassVar[bool] = False
    """Whether the result is an ordinary model: all modules are transformers' own, with weights
    that transformers loads into a model made from the configuration as `apply` left it.

    Pruning, dropping layers or casting to another dtype give one. It is exported without this
    optimization being installed. Of any other, `plain_weights` makes ordinary weights.
    """

    options: OptionsT

    def __init__(self, **options: Any) -> None:
        try:
            self.options = self.options_type(**options)  # type: ignore[assignment]
        except ValidationError as error:
            raise OptimizationError(wrong_options(self.name, self.options_type, error)) from None

    def check(self, device: str) -> Verdict:
        """Say whether this can work on this machine, before a model is loaded.

        Args:
            device: where the model will be, in torch's notation.
        """
        return Verdict.yes()

    def check_source(self, source: SourceModel) -> Verdict:
        """Say whether this can be applied to a model, before it is loaded.

        That a model has this optimization already is seen without asking.

        Args:
            source: the model.
        """
        return Verdict.yes()

    @abstractmethod
    def apply(self, model: Model, context: OptimizationContext) -> Applied:
        """Change `model`.

        Raises:
            OptimizationError: it cannot be done to this model. The model must
                then be as it was.
        """

    def was_used(self, model: Model) -> bool:
        """Say whether tokens that a model has computed ran through what `apply` put in place.

        That a step changed weights or structure is seen in the model. How a model is run
        cannot be seen from outside, so a `Stage.EXECUTION` step has to prove it: count the
        calls that run through it, and answer whether there were any. A step that does not is
        rejected, since whatever was measured is then not its doing. So is one that says True
        of a model that has computed nothing yet.

        Args:
            model: this optimization was applied to it; it has run or not.

        Returns:
            False for a `Stage.EXECUTION` step unless a subclass knows better, True for others.
        """
        return self.stage is not Stage.EXECUTION

    def restore(self, model: Model, context: OptimizationContext) -> Model:
        """Make `model`, built from the saved `config.json`, ready to take the saved weights.

        Called when a saved model is loaded, with this object built from the
        `settings` that `apply` returned. A `Stage.STRUCTURE` or `Stage.WEIGHTS` optimization
        replaces modules here as `apply` did, without computing anything: parameters may be
        on the meta device. A `Stage.EXECUTION` one is applied again instead, after
        the weights are in place, and need not override this.

        Args:
            model: has the weights of a new model, and the structure that its configuration
                describes. That configuration was saved after `apply`: what `apply` wrote into
                `model.config` holds already. Where `apply` took layers out and lowered
                `num_hidden_layers`, they are not there, and nothing is left to do.
            context: as for `apply`.

        Returns:
            The model, with each module, parameter and buffer that the saved one had, in its
            shape and dtype; the one passed in, changed in place, is fine.
        """
        raise OptimizationError(
            f'"{self.name}" does not say how to restore a saved model',
            hint="Its author has to write restore.",
        )

    def plain_weights(self, name: str, module: Model) -> Mapping[str, Tensor] | None:
        """Return the ordinary weights of a module that this optimization made.

        `truthgpt export` asks it of each module that is not one of transformers' own, once, with
        the tensors of that module and of those inside it in memory, on the CPU, and of no other.
        An `ordinary` optimization is not asked.

        Args:
            name: of the module, in the model.
            module: as `restore` made it, with the saved values.

        Returns:
            The tensors of the module that this one took the place of, by their names inside it,
            such as "weight" and "bias", in that module's shapes and in any floating-point dtype:
            they are cast to the dtype of the model. Where an input embedding that has no tensors
            of its own reads those of the output embedding, that is an empty mapping, and the two
            are tied in what is exported. None for a module that another optimization made.
        """
        return None


def in_order(optimizations: Sequence[Optimization[Any]]) -> list[Optimization[Any]]:
    """Put optimizations in the order that they declare, whatever order they are given in.

    First by stage, then by `after` and `before`, then by name.

    Raises:
        OptimizationError: the same optimization twice, or a cycle of `after` and `before`.
    """
    named: dict[str, Optimization[Any]] = {}
    for optimization in optimizations:
        if optimization.name in named:
            raise OptimizationError(
                f'"{optimization.name}" is applied twice', hint="Name each optimization once."
            )
        named[optimization.name] = optimization
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for name, later in sorted(named.items()):
        sorter.add(name)
        for other, earlier in sorted(named.items()):
            if other in later.after or name in earlier.before or earlier.stage < later.stage:
                sorter.add(name, other)
    try:
        sorter.prepare()
    except CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        raise OptimizationError(f"Optimizations want to come after each other: {cycle}") from None
    ordered: list[Optimization[Any]] = []
    ready: list[str] = []
    while sorter.is_active():
        ready.extend(sorter.get_ready())
        ready.sort(reverse=True)
        name = ready.pop()
        sorter.done(name)
        ordered.append(named[name])
    return ordered


def refuse_impossible(optimizations: Iterable[Optimization[Any]], source: SourceModel) -> None:
    """See that each optimization can be applied to a model, before any work starts.

    Args:
        optimizations: with their options.
        source: the model, as it is before the first of them.

    Raises:
        OptimizationError: the model has one of them already, or one says that it cannot.
    """
    for each in optimizations:
        if each.name in source.optimizations:
            verdict = Verdict.no(
                "the model has it already",
                f"Leave out {each.name}, or start from the model that this one was made from.",
            )
        else:
            with naming_the_author(type(each), "check_source"):
                verdict = each.check_source(source)
        if not verdict.ok:
            raise OptimizationError(
                f'"{each.name}" cannot be applied to {source.name}: {verdict.reason}',
                hint=verdict.fix or None,
            )


def help_requests(texts: Iterable[str]) -> list[str]:
    """Return the optimizations whose options were asked for after `--apply`: `quantize:help`."""
    parts = [part.partition(":") for text in texts for part in text.split(",")]
    return [name.strip() for name, _, rest in parts if rest.strip() == "help" and name.strip()]


def parse_applied(texts: Iterable[str]) -> list[tuple[str, dict[str, Any]]]:
    """Read what the user typed after `--apply`.

    `quantize,compile` names two optimizations. Options follow a colon and are
    separated by commas, so `quantize:scheme=int8,skip=lm_head,compile` names two
    as well: a part without `=` begins the next one. An option that is given
    several times becomes a list.

    Returns:
        Names as typed, each with its options as text.

    Raises:
        OptimizationError: a part that cannot be read.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    for text in texts:
        options: dict[str, Any] | None = None
        for part in text.split(","):
            name, colon, first = part.partition(":")
            if "=" not in name:
                options = {}
                found.append((_nonempty(name, text), options))
                if not colon:
                    continue
                part = first
            if options is None:
                raise OptimizationError(
                    f'"{text}" begins with an option and not with the name of an optimization',
                    hint="Write it as NAME:OPTION=VALUE.",
                )
            key, equals, value = part.partition("=")
            if not equals:
                raise OptimizationError(
                    f'"{part}" in "{text}" is not an option', hint="Write it as OPTION=VALUE."
                )
            key = _nonempty(key, text)
            if key in options:
                earlier = options[key]
                options[key] = [*(earlier if isinstance(earlier, list) else [earlier]), value]
            else:
                options[key] = value
    return found


def _nonempty(name: str, text: str) -> str:
    name = name.strip()
    if not name:
        raise OptimizationError(
            f'A name is missing in "{text}"', hint="Write it as NAME:OPTION=VALUE,NAME."
        )
    return name
