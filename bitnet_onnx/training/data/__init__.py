"""Texts and chats as packed windows of tokens."""

from bitnet_onnx.training.data._sources import holdout_start
from bitnet_onnx.training.data.cache import Counts
from bitnet_onnx.training.data.tokenizer import DataTokenizer
from bitnet_onnx.training.data.tokenizer_training import train_tokenizer
from bitnet_onnx.training.data.training_data import TrainingData, check_settings, open_data, read_texts
from bitnet_onnx.training.data.windows import TokenBatch, TokenStream, TokenWindows, ValidationWindows

__all__ = [
    "Counts",
    "DataTokenizer",
    "TokenBatch",
    "TokenStream",
    "TokenWindows",
    "TrainingData",
    "ValidationWindows",
    "check_settings",
    "holdout_start",
    "open_data",
    "read_texts",
    "train_tokenizer",
]
