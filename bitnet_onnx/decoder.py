"""What a decoder is: the one description that every emitter reads."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from bitnet_onnx.errors import CheckpointError, UnsupportedError
from bitnet_onnx.gated import Activation

#: Linear layers of one block, by role.
ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj")
MLP_INPUTS = ("gate_proj", "up_proj")


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary position embedding over the first `dim` features of a head (halves rotated against each other).

    Attributes:
        theta: base of the geometric series of frequencies.
        dim: rotated features of a head, even.
        divisors: one divisor for each of the `dim / 2` inverse frequencies (context extension), or empty.
        magnitude: factor on cosine and sine (YaRN's attention factor).
    """

    theta: float
    dim: int
    divisors: tuple[float, ...] = ()
    magnitude: float = 1.0


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """Sizes and options of a decoder-only transformer.

    Attributes:
        family: Hugging Face `model_type`.
        vocab_size: rows of the embedding and of the head.
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP.
        num_hidden_layers: number of blocks.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads; divides `num_attention_heads`.
        head_dim: features of a head.
        context_length: most positions that the rotary tables hold.
        norm_epsilon: of every RMSNorm.
        activation: gate activation of the MLP, one of `Activation`.
        rotary: rotary embedding.
        attention_bias: q, k, v and o projections have a bias.
        mlp_bias: gate, up and down projections have a bias.
        tie_word_embeddings: the head is the embedding.
        attention_sub_norm: an RMSNorm stands between attention and its output projection.
        mlp_sub_norm: an RMSNorm stands between the gated activation and the down projection.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    context_length: int
    norm_epsilon: float
    activation: str
    rotary: Rotary
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    attention_sub_norm: bool = False
    mlp_sub_norm: bool = False

    def __post_init__(self) -> None:
        for field in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "context_length",
        ):
            if getattr(self, field) < 1:
                raise CheckpointError(f"{field} is {getattr(self, field)}: it must be at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                f"num_key_value_heads is {self.num_key_value_heads}: it must divide "
                f"num_attention_heads = {self.num_attention_heads}"
            )
        if self.rotary.dim % 2 or not 0 < self.rotary.dim <= self.head_dim:
            raise CheckpointError(
                f"rotary dim is {self.rotary.dim}: it must be even and at most head_dim = {self.head_dim}"
            )
        if self.rotary.divisors and len(self.rotary.divisors) != self.rotary.dim // 2:
            raise CheckpointError(
                f"{len(self.rotary.divisors)} rotary divisors: expected {self.rotary.dim // 2}, half of the rotary dim"
            )
        if not self.norm_epsilon > 0:
            raise CheckpointError(f"norm epsilon is {self.norm_epsilon}: it must be greater than 0")
        if self.activation not in set(Activation):
            near = difflib.get_close_matches(self.activation[:60], list(Activation), n=1)
            hint = f"; did you mean {str(near[0])!r}?" if near else ""
            raise UnsupportedError(
                f"hidden_act {self.activation!r:.60} is not supported{hint} (known: {', '.join(Activation)})"
            )

    @property
    def attention_size(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of all key (or value) heads together."""
        return self.num_key_value_heads * self.head_dim

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor of the decoder by role, with its shape (linears are `[out, in]`).

        Roles are `embed_tokens`, `layers.{i}.attn.{q,k,v,o}_proj`, `layers.{i}.mlp.{gate,up,down}_proj`, each with
        `.weight` and perhaps `.bias`, `layers.{i}.{input,post_attention}_norm.weight`, perhaps
        `layers.{i}.{attn,mlp}.sub_norm.weight`, `norm.weight` and `lm_head`.
        """
        hidden, inner = self.hidden_size, self.intermediate_size
        yield "embed_tokens.weight", (self.vocab_size, hidden)
        for index in range(self.num_hidden_layers):
            layer = f"layers.{index}"
            yield f"{layer}.input_norm.weight", (hidden,)
            yield from self._linear(f"{layer}.attn.q_proj", self.attention_size, hidden, self.attention_bias)
            yield from self._linear(f"{layer}.attn.k_proj", self.key_value_size, hidden, self.attention_bias)
            yield from self._linear(f"{layer}.attn.v_proj", self.key_value_size, hidden, self.attention_bias)
            if self.attention_sub_norm:
                yield f"{layer}.attn.sub_norm.weight", (self.attention_size,)
            yield from self._linear(f"{layer}.attn.o_proj", hidden, self.attention_size, self.attention_bias)
            yield f"{layer}.post_attention_norm.weight", (hidden,)
            yield from self._linear(f"{layer}.mlp.gate_proj", inner, hidden, self.mlp_bias)
            yield from self._linear(f"{layer}.mlp.up_proj", inner, hidden, self.mlp_bias)
            if self.mlp_sub_norm:
                yield f"{layer}.mlp.sub_norm.weight", (inner,)
            yield from self._linear(f"{layer}.mlp.down_proj", hidden, inner, self.mlp_bias)
        yield "norm.weight", (hidden,)
        if not self.tie_word_embeddings:
            yield "lm_head.weight", (self.vocab_size, hidden)

    @staticmethod
    def _linear(role: str, rows: int, columns: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{role}.weight", (rows, columns)
        if bias:
            yield f"{role}.bias", (rows,)
