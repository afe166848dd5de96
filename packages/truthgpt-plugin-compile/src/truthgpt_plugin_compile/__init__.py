"""The `torch_compile` optimization: the decode step compiled with torch.compile."""
