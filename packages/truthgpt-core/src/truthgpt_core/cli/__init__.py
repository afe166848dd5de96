"""The `truthgpt` command."""
