"""The tracker `wandb`: training runs in Weights & Biases."""
