"""Texts to train and evaluate on. Importing this does not import torch; making loaders does."""

from truthgpt_services.data.contract import DataError, TextSource
from truthgpt_services.data.factory import DataLoaderFactory
from truthgpt_services.data.manager import DatasetManager

__all__ = ["DataError", "DataLoaderFactory", "DatasetManager", "TextSource"]
