"""The report of a run: what it holds, how it is kept, and how it is shown.

`schema` says what it holds, `storage` writes and reads it, `html` and `terminal`
show it. Nothing is imported here, so reading `schema` loads neither jinja2 nor rich.
"""
