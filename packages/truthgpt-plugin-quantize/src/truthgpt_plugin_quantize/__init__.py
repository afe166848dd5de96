"""The `quantize` optimization: linear layers with 8-bit integer weights."""
