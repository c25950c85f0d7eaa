"""What linear layers see while a model reads text: collected once, used by every method of quantization."""

from bitnet_onnx.calibration.collection import CollectOptions, Progress, collect
from bitnet_onnx.calibration.statistics_file import ModelStatistics, open_statistics
from bitnet_onnx.calibration.windows import Sampling

__all__ = ["CollectOptions", "ModelStatistics", "Progress", "Sampling", "collect", "open_statistics"]
