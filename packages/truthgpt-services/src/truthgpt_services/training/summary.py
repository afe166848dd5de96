"""What the user reads before a run and after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from truthgpt_services.formatting import INFINITY, number, seconds, share
from truthgpt_services.training.config_sections import TrainingSection

if TYPE_CHECKING:
    from rich.console import Console

    from truthgpt_services.data.loader import BatchLoader

_MEAN_OF = 10
"""Training losses of single steps differ by more than a short run gains."""

Rows = Iterable[Mapping[str, Any]]


def describe_run(
    model: Any,
    train_loader: BatchLoader,
    val_loader: BatchLoader | None,
    settings: TrainingSection,
    *,
    precision: str,
    total_steps: int | None,
) -> list[str]:
    """Say in lines what will be trained, on what and how long.

    Args:
        model: that is trained.
        train_loader: batches to train on.
        val_loader: batches to evaluate on, if there are any.
        settings: how to train.
        precision: in which matrix products are computed.
        total_steps: how many steps there will be at most, if that is known.
    """
    parameters = list(model.parameters())
    every = sum(each.numel() for each in parameters)
    trained = sum(each.numel() for each in parameters if each.requires_grad)
    part = "all" if trained == every else f"{trained:,}"
    stored = str(parameters[0].dtype).removeprefix("torch.")
    lines = [f"Weights: {every:,} in {stored}, {part} of them trained"]
    lines.append(f"Products: {precision} on {parameters[0].device}")
    lines.append(f"Training texts: {_data(train_loader)}")
    if val_loader is not None:
        lines.append(f"Validation texts: {_data(val_loader)}")
    rows = settings.train_batch_size * settings.gradient_accumulation_steps
    steps = "" if total_steps is None else f"{total_steps:,} of them, "
    lines.append(f"Steps: {steps}each of {rows:,} {'row' if rows == 1 else 'rows'}")
    return lines


def print_result(rows: Rows, console: Console) -> None:
    """Print the losses before and after a run, and how long its steps took.

    Args:
        rows: as `read_metrics` returns them, of the whole run.
        console: where to.
    """
    from rich import box
    from rich.table import Table

    all_rows = list(rows)
    steps = [row for row in all_rows if row["kind"] == "step"]
    evaluations = [row for row in all_rows if row["kind"] == "evaluation" and _has_loss(row)]
    losses = [row["loss"] for row in steps if _has_loss(row)]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("")
    table.add_column("first", justify="right")
    table.add_column("last", justify="right")
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        table.add_row("evaluated at step", f"{first['step']:,}", f"{last['step']:,}")
        for name, key in (("validation loss, nats/token", "loss"), ("perplexity", "perplexity")):
            table.add_row(name, *(_figure(row.get(key)) for row in (first, last)))
    count = min(_MEAN_OF, len(losses) // 2)
    if count:
        means = (sum(part) / count for part in (losses[:count], losses[-count:]))
        name = "training loss" if count == 1 else f"training loss, mean of {count} steps"
        table.add_row(name, *map(_figure, means))
    if table.row_count:
        console.print(table)
    if steps:
        tokens = sum(row["tokens"] for row in steps)
        took = sum(row["tokens"] / row["tokens_per_second"] for row in steps)
        console.print(
            f"{len(steps):,} steps, {tokens:,} tokens in {seconds(took)}: "
            f"{number(tokens / max(took, 1e-9))} tokens/s",
            highlight=False,
        )
    best = min(evaluations, key=lambda row: row["loss"], default=None)
    if best is not None and _figure(best["loss"]) != _figure(evaluations[-1]["loss"]):
        console.print(
            f"The validation loss was lowest at step {best['step']:,}: {_figure(best['loss'])}",
            highlight=False,
        )


def _data(loader: BatchLoader) -> str:
    summary = loader.summary
    text = (
        f"{summary.documents:,}, {summary.tokens:,} tokens in {summary.rows:,} rows that are "
        f"{share(summary.efficiency)} full"
    )
    if summary.left_out:
        text += f"; {summary.left_out:,} left out, with nothing to learn"
    return text


def _figure(value: float | None) -> str:
    # What is not a finite number has none in the file.
    return INFINITY if value is None else number(value, 4)


def _has_loss(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("loss"), int | float)
