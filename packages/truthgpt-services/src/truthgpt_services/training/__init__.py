"""Training: the loop, its checkpoints and guards, and what can be asked for by name.

Importing this package imports neither torch nor transformers.
"""
