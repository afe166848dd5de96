"""The learning-rate schedules that can be asked for by name.

They are transformers' own functions, under the names of its `SchedulerType`, and components
of the factory `scheduler_factory`:

    schedule = factory.create("cosine", optimizer, num_warmup_steps=100, num_training_steps=1000)

Each returns a `torch.optim.lr_scheduler.LambdaLR`, to be stepped once after each step of the
optimizer; steps are counted in those, and rates are multiples of the optimizer's own `lr`.

Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping

# Two of transformers' names are left out, `reduce_lr_on_plateau` and `greedy`: they are
# stepped with a metric, so the code that steps the others could not step them.
SCHEDULERS: Mapping[str, str] = {
    "constant": "transformers.optimization:get_constant_schedule",
    "constant_with_warmup": "transformers.optimization:get_constant_schedule_with_warmup",
    "cosine": "transformers.optimization:get_cosine_schedule_with_warmup",
    "cosine_warmup_with_min_lr": (
        "transformers.optimization:get_cosine_with_min_lr_schedule_with_warmup_lr_rate"
    ),
    "cosine_with_min_lr": "transformers.optimization:get_cosine_with_min_lr_schedule_with_warmup",
    "cosine_with_restarts": (
        "transformers.optimization:get_cosine_with_hard_restarts_schedule_with_warmup"
    ),
    "inverse_sqrt": "transformers.optimization:get_inverse_sqrt_schedule",
    "linear": "transformers.optimization:get_linear_schedule_with_warmup",
    "polynomial": "transformers.optimization:get_polynomial_decay_schedule_with_warmup",
    "warmup_stable_decay": "transformers.optimization:get_wsd_schedule",
}
"""Each schedule's name and where it is, as "module:attribute"."""
