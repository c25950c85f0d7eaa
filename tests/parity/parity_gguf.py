"""GGUF files against transformers: the configuration is one of its own, and names and shapes are those of its model.

Run by `make parity`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers
from tiny_gguf import SHAPES, write_tiny

from bitnet_onnx.converters.checkpoints import open_checkpoint


@pytest.mark.parametrize("architecture", SHAPES)
def test_tensors_fit_the_model_of_the_configuration(tmp_path: Path, architecture: str) -> None:
    path = tmp_path / "x.gguf"
    write_tiny(path, architecture)
    with open_checkpoint(path) as checkpoint:
        options = {key: value for key, value in checkpoint.config.items() if key != "torch_dtype"}
        config = transformers.AutoConfig.for_model(**options, pad_token_id=0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        assert type(model).__name__ == checkpoint.config["architectures"][0]
        expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        # transformers 5 gives GPT-NeoX's head another name in memory than on disk.
        names = {name: name.replace("embed_out.", "lm_head.") for name in checkpoint.tensors}
        ours = {names[name]: info.shape for name, info in checkpoint.tensors.items()}
        if config.tie_word_embeddings:
            assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
            expected.pop("lm_head.weight")
        assert ours == expected
        for name in checkpoint.tensors:
            model.get_parameter(names[name]).data = torch.from_numpy(checkpoint.read(name))
        logits = model.eval()(torch.arange(8)[None]).logits
        assert torch.isfinite(logits).all()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
