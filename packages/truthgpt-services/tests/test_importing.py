"""Imports without the collector."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from truthgpt_services.importing import importing


@pytest.fixture(autouse=True)
def as_before():
    """Give python's collector back what it had."""
    yield
    gc.unfreeze()
    gc.enable()


def test_the_collector_rests_while_modules_are_imported():
    """Nothing is looked through meanwhile, nor later, and then the collector works again."""
    with importing():
        assert not gc.isenabled()
        made = [[]]
    assert gc.isenabled()
    assert not any(each is made for each in gc.get_objects())


def test_an_import_that_fails_leaves_the_collector_at_work():
    """A module that is missing costs no more than that."""
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()


def test_who_works_without_a_collector_goes_on_without():
    """A collector that somebody switched off stays off."""
    gc.disable()
    with importing():
        pass
    assert not gc.isenabled()


READ = """
import sys
from collections import Counter
from truthgpt_services.importing import importing
opened = Counter()
sys.addaudithook(lambda event, given: opened.update([str(given[0])]) if event == "open" else None)
with importing():
    from transformers.models.llama import LlamaConfig
print({count for name, count in opened.items() if "/models/gpt2/" in name})
"""


@pytest.mark.new_process
def test_the_source_of_transformers_is_read_once():
    """Files of models that nobody asks for are opened once; transformers opens them twice."""
    done = subprocess.run(
        [sys.executable, "-c", READ], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.stdout, done.stderr) == ("{1}\n", "")
