"""Results as data: their schema, statistics, reading and writing. Nothing here draws."""
