"""Texts to train and evaluate on. Importing this does not import torch; making loaders does."""

from truthgpt_core.sources import TextSource
from truthgpt_services.data.dataloaders import DataLoaderFactory
from truthgpt_services.data.datasets import DatasetManager
from truthgpt_services.errors import DataError

__all__ = ["DataError", "DataLoaderFactory", "DatasetManager", "TextSource"]
