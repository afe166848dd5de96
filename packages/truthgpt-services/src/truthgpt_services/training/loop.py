"""The loop of training, from top to bottom."""

from __future__ import annotations

from contextlib import nullcontext
from time import perf_counter

import torch
from torch import nn

from truthgpt_core.event_system import TrainingEpochFinished, TrainingEpochStarted, TrainingStep
from truthgpt_core.training import TrainingProgress
from truthgpt_services.training.batches import Group, groups
from truthgpt_services.training.compiling import BatchLoss
from truthgpt_services.training.errors import TrainingError
from truthgpt_services.training.evaluation import EvaluationInterrupted
from truthgpt_services.training.flops import count_flops
from truthgpt_services.training.guards import why_stop_early
from truthgpt_services.training.precision import autocast
from truthgpt_services.training.rng import random_state
from truthgpt_services.training.run import Run
from truthgpt_services.training.state import Moment


def train(run: Run, until_epoch: int) -> str | None:
    """Train, from where the run is to an epoch, or until something ends it before.

    Args:
        run: changed all along.
        until_epoch: the first epoch that is not trained any more.

    Returns:
        Why it ended before that epoch; None if it did not.

    Raises:
        TrainingError: it cannot go on.
        TrainingInterrupted: a signal came; all is saved.
    """
    state, progress, settings = run.state, run.state.progress, run.settings
    model, optimizer = state.model, state.optimizer
    scheduler, scaler = state.scheduler, state.scaler
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    backend = state.backend
    loss_of, flops = BatchLoss(run), count_flops(model)

    model.train()
    optimizer.zero_grad(set_to_none=True)
    if settings.non_finite == "roll_back" and run.checkpoints.newest().path is None:
        run.checkpoints.save()
    if progress.evaluation_pending and run.validation is not None:
        _evaluate_or_leave(run)
        # The checkpoint of this step was saved before it was known how good it is.
        run.checkpoints.save()
    reason = _why_end(run)

    while progress.epoch < until_epoch and reason is None:
        epoch, stepped = progress.epoch, state.position is not None
        ended: TrainingEpochFinished | None = None
        run.emit(TrainingEpochStarted(epoch=epoch, step=progress.step))
        state.begin_epoch(run.loader)
        began = perf_counter()

        for group in groups(run.loader, settings.gradient_accumulation_steps, state.position):
            if group.targets == 0:
                _pass_over(run, group)
                continue
            stepped = True
            step = progress.step + 1
            start = Moment(group.before, random_state()) if len(group.batches) > 1 else None

            # Each loss is divided by the targets of the whole group, so that its gradient is
            # that of one large batch, however the targets are spread. Between processes a
            # backend takes the mean of gradients, not their sum.
            share = group.targets / backend.processes
            summed = torch.zeros((), device=run.device)
            for number, batch in enumerate(group.batches, start=1):
                more = number < len(group.batches)
                with backend.accumulating(run.prepared) if more else nullcontext():
                    with autocast(run.precision, run.device):
                        loss = loss_of(run.processes.share(batch, run.device))
                    scaler.scale(loss / share).backward()
                summed += loss.detach()
                if more and run.processes.leaving:
                    # A resumed run begins the group anew: gradients are not saved.
                    optimizer.zero_grad(set_to_none=True)
                    raise run.checkpoints.leave(start)

            scaler.unscale_(optimizer)
            norm = backend.whole(nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm))
            loss, norm = run.processes.total(summed), norm.float().to(run.device)
            mean, size = torch.stack((loss / group.targets, norm)).tolist()
            where = f"step {step}, {group} of epoch {epoch}"
            refused = run.guard.check(mean, size, where, scaled=scaler.is_enabled())
            rate = float(optimizer.param_groups[0]["lr"])
            if refused is None:
                scaler.step(optimizer)
            scaler.update()
            if refused is None and scheduler is not None:
                scheduler.step()
            optimizer.zero_grad(set_to_none=True)

            progress.step = step
            run.last_loss = mean
            progress.tokens += group.tokens
            state.position = group.after
            if refused is not None and refused.action == "skip":
                run.note("skip", f"{refused.reason}: the step was left out")
            elif refused is not None:
                of = run.checkpoints.roll_back(refused.reason)
                run.note("roll_back", f"{refused.reason}: back to the weights of step {of}")
            else:
                progress.epoch_loss += mean * group.targets
                progress.epoch_targets += group.targets
                usual = run.guard.spike(mean)
                if usual is not None:
                    run.note("spike", f"The loss is {mean:.4f} at {where}; {usual:.4f} is usual")

            if group.last:
                ended = _end_epoch(run)
            seconds = perf_counter() - began
            run.emit(
                TrainingStep(
                    step=step,
                    epoch=epoch,
                    loss=mean,
                    learning_rate=rate,
                    grad_norm=size,
                    tokens=group.tokens,
                    tokens_per_second=group.tokens / max(seconds, 1e-9),
                    flops=None if flops is None else sum(map(flops.of, group.batches)),
                    refused=refused is not None,
                )
            )
            run.checkpoints.look()

            so_far = TrainingProgress(
                step=step,
                total_steps=run.total_steps,
                epoch=epoch,
                last_of_epoch=group.last,
                tokens=progress.tokens,
                loss=mean,
                metrics=dict(progress.metrics),
            )
            evaluate, save, stop = _what_plugins_want(run, so_far)
            by_epochs = run.evaluate_epochs
            if run.validation is not None and _due(
                evaluate, settings.eval_steps, by_epochs and settings.eval_interval, so_far
            ):
                _evaluate_or_leave(run)
            if _due(save, settings.save_steps, by_epochs and settings.save_interval, so_far):
                run.checkpoints.save()
            if run.processes.leaving:
                raise run.checkpoints.leave()
            reason = _why_end(run) or stop
            if reason is not None:
                break
            began = perf_counter()

        if not stepped:
            raise TrainingError(
                f"There is no token to predict in epoch {epoch}",
                hint="The texts are empty or too long, or every label is -100.",
            )
        if ended is None and reason is None:
            # There was nothing to predict in the last of its batches.
            ended = _end_epoch(run)
        if ended is not None:
            run.last_loss = run.last_loss if ended.loss is None else ended.loss
            run.emit(ended)
    return reason


def _what_plugins_want(
    run: Run, so_far: TrainingProgress
) -> tuple[bool | None, bool | None, str | None]:
    """Ask the plugins of the main process what to do after a step.

    Returns:
        Whether to evaluate and whether to save, None if no plugin says, and why to stop.
    """
    hooks = run.hooks
    return run.backend.broadcast(
        (
            hooks.should_evaluate(progress=so_far),
            hooks.should_save(progress=so_far),
            hooks.should_stop_training(progress=so_far),
        )
    )


def _due(wanted: bool | None, steps: int | None, epochs: int, so_far: TrainingProgress) -> bool:
    """Return whether something is due: plugins say so, else the intervals, of 0 for never."""
    if wanted is not None:
        return wanted
    if steps is not None and so_far.step % steps == 0:
        return True
    return bool(so_far.last_of_epoch and epochs and (so_far.epoch + 1) % epochs == 0)


def _end_epoch(run: Run) -> TrainingEpochFinished:
    progress = run.state.progress
    epoch = progress.epoch
    return TrainingEpochFinished(epoch=epoch, step=progress.step, loss=run.state.end_epoch())


def _evaluate_or_leave(run: Run) -> None:
    run.state.progress.evaluation_pending = True
    try:
        run.evaluate()
    except EvaluationInterrupted:
        raise run.checkpoints.leave() from None


def _why_end(run: Run) -> str | None:
    progress, settings = run.state.progress, run.settings
    if settings.max_steps is not None and progress.step >= settings.max_steps:
        return f"{settings.max_steps} steps are done"
    return why_stop_early(progress, settings)


def _pass_over(run: Run, group: Group) -> None:
    epoch = run.state.progress.epoch
    run.note("empty", f"There is no token to predict in {group} of epoch {epoch}")
    run.state.position = group.after
