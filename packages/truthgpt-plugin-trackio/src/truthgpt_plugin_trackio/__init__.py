"""The tracker `trackio`: training runs in trackio."""
