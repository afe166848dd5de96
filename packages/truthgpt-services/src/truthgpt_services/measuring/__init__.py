"""Measuring models in worker processes, and judging what was measured."""
