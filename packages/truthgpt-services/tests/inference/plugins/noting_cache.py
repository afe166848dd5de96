"""A key-value cache that says how often it was written to."""

import os
from pathlib import Path

from transformers import DynamicCache

from truthgpt_core import hookimpl


class Noting(DynamicCache):
    def update(self, *args, **kwargs):
        with Path(os.environ["NOTES"]).open("a") as file:
            file.write("update\n")
        return super().update(*args, **kwargs)


@hookimpl
def make_cache(model, rows, positions):
    return Noting(config=model.config)
