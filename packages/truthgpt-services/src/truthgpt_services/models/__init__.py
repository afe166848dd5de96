"""Models: where they come from, loading, converting, saving."""
