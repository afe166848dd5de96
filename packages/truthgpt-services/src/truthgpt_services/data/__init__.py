"""Texts to train and evaluate on. Nothing here imports torch."""

from truthgpt_services.data.contract import DataError, TextSource
from truthgpt_services.data.manager import DatasetManager

__all__ = ["DataError", "DatasetManager", "TextSource"]
