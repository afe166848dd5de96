"""Talking with models in a terminal: what `truthgpt chat` is made of. It never imports torch."""
