"""Quantization-aware training on ONNX Runtime: `train(read_config("config.toml"))`."""

from bitnet_onnx.training.config_file import read_config
from bitnet_onnx.training.result import TrainingResult
from bitnet_onnx.training.run_directory import Begin
from bitnet_onnx.training.settings import TrainingSettings
from bitnet_onnx.training.trainer import train

__all__ = ["Begin", "TrainingResult", "TrainingSettings", "read_config", "train"]
