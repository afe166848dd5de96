"""Training: the optimizers and learning-rate schedules that can be asked for by name."""
