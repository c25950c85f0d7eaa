"""Those who watch a run: a log, TensorBoard, the terminal, metrics of quantization, and a page."""

from bitnet_onnx.training.monitoring.history import LOG_NAME, History
from bitnet_onnx.training.monitoring.json_log import JsonLog, read_log
from bitnet_onnx.training.monitoring.page import PAGE_NAME, is_run, write_page
from bitnet_onnx.training.monitoring.progress import ProgressLine
from bitnet_onnx.training.monitoring.quantization import (
    LayerQuantization,
    MeasuringMonitor,
    QuantizationMetrics,
    QuantizationMonitor,
    QuantizationRecord,
)
from bitnet_onnx.training.monitoring.tensorboard import TensorBoardLog

__all__ = [
    "LOG_NAME",
    "PAGE_NAME",
    "History",
    "JsonLog",
    "LayerQuantization",
    "MeasuringMonitor",
    "ProgressLine",
    "QuantizationMetrics",
    "QuantizationMonitor",
    "QuantizationRecord",
    "TensorBoardLog",
    "is_run",
    "read_log",
    "write_page",
]
