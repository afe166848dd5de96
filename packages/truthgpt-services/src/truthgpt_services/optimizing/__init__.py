"""The main job: apply optimizations, measure each, keep what pays."""
