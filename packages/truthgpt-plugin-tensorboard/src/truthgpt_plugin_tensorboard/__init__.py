"""The tracker `tensorboard`: training runs in TensorBoard."""
