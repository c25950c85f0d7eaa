"""What a decoder is: the one description that every emitter reads."""

from __future__ import annotations

import difflib
import enum
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bitnet_onnx.errors import CheckpointError, UnsupportedError

#: Tensors are listed layer by layer before a file is looked at: a lie must not fill the memory.
MAX_LAYERS = 10_000

#: The fields of a specification that a package's manifest repeats as they are.
MANIFEST_SIZES: Final = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "tie_word_embeddings",
)
#: Linear layers of one block that read the same input, by role.
ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj")
MLP_INPUTS = ("gate_proj", "up_proj")


class MlpActivation(enum.StrEnum):
    """The non-linearity of an MLP."""

    SILU = "silu"
    RELU = "relu"
    RELU2 = "relu2"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    QUICK_GELU = "quick_gelu"


class Norm(enum.StrEnum):
    """What all norms of a decoder compute."""

    #: `x / sqrt(mean(x^2) + epsilon) * weight`
    RMS = "rms"
    #: `(x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias`
    LAYER = "layer"


class NormPlacement(enum.StrEnum):
    """Where the norms of a block stand; `f` is attention or the MLP."""

    #: `x + f(norm(x))`
    INPUT = "input"
    #: `x + norm(f(x))`
    OUTPUT = "output"
    #: `x + norm(f(norm(x)))`
    BOTH = "both"
    #: `norm(x + f(x))`; there is no norm before the head
    RESIDUAL = "residual"


class Residual(enum.StrEnum):
    """How attention and the MLP of a block follow each other."""

    #: the MLP reads what attention has added to
    SEQUENTIAL = "sequential"
    #: both read the block's input, each through a norm of its own
    PARALLEL = "parallel"
    #: both read the block's input through one norm
    PARALLEL_SHARED_NORM = "parallel_shared_norm"


class QueryKeyNorm(enum.StrEnum):
    """Norms on queries and keys, before they are rotated."""

    NONE = "none"
    #: over the features of each head, one weight for all of them
    HEAD = "head"
    #: over all heads together
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary position embedding over the first `dim` features of a head.

    Attributes:
        theta: base of the geometric series of frequencies.
        dim: rotated features of a head, even.
        divisors: one divisor for each of the `dim / 2` inverse frequencies (context extension), or empty.
        magnitude: factor on cosine and sine (YaRN's attention factor).
        interleaved: pairs are features `2i, 2i + 1` and not `i, i + dim/2`.
        dynamic_factor: of dynamic NTK scaling, or 0: the position `p >= original_context` is rotated with the base
            `theta * (factor * (p + 1) / original_context - (factor - 1)) ^ (dim / (dim - 2))`.
        original_context: positions that dynamic scaling leaves alone.
    """

    theta: float
    dim: int
    divisors: tuple[float, ...] = ()
    magnitude: float = 1.0
    interleaved: bool = False
    dynamic_factor: float = 0.0
    original_context: int = 0

    def __post_init__(self) -> None:
        if self.dim % 2 or self.dim < 2:
            raise CheckpointError(f"rotary dim is {self.dim}: it must be even and at least 2")
        if self.divisors and len(self.divisors) != self.dim // 2:
            raise CheckpointError(
                f"{len(self.divisors)} rotary divisors: expected {self.dim // 2}, half of the rotary dim"
            )
        if self.dynamic_factor and (self.original_context < 1 or self.dim < 4):
            raise CheckpointError(
                f"dynamic rotary scaling of {self.dim} features beyond {self.original_context} positions: it needs "
                f"at least 4 features and 1 position"
            )


@dataclass(frozen=True, slots=True)
class Attention:
    """How one layer attends.

    Attributes:
        rotary: rotation of queries and keys, or None.
        window: positions that a query sees, itself included; 0 is all before it.
    """

    rotary: Rotary | None = None
    window: int = 0


@dataclass(frozen=True, slots=True)
class LearnedPositions:
    """A table of position embeddings that is added to the token embeddings.

    Attributes:
        rows: of the table.
        offset: row of position 0.
    """

    rows: int
    offset: int = 0


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
        context_length: most positions that the package has room for.
        norm_epsilon: of every norm.
        activation: of the MLP, one of `MlpActivation`.
        attention: how each layer attends; a single entry stands for all layers.
        norm: what the norms compute; layer norms have a bias.
        norm_affine: a checkpoint has weights for the norms; without, their roles hold ones and zeros.
        placement: where the norms of a block stand.
        final_norm: a norm stands before the head, unless `placement` rules it out.
        residual: how attention and the MLP follow each other.
        query_key_norm: norms on queries and keys.
        gated: the MLP is `down(act(gate(x)) * up(x))` and not `down(act(up(x)))`.
        learned_positions: a table of position embeddings.
        qkv_bias: q, k and v projections have a bias.
        output_bias: the o projection has a bias.
        mlp_bias: the linear layers of the MLP have a bias.
        head_bias: the head has a bias.
        tie_word_embeddings: the head is the embedding.
        embedding_size: width of the embedding where projections lead from and to it, or 0 where it is `hidden_size`.
        attention_sub_norm: a norm stands between attention and its output projection.
        mlp_sub_norm: a norm stands between the activation and the down projection.
        linear_norm_epsilon: an RMSNorm with this epsilon and a weight of its own stands inside every linear layer of
            a block, or None.
        attention_scale: of the scores, or None for `1 / sqrt(head_dim)`.
        attention_softcap: scores become `cap * tanh(score / cap)`; 0 is off.
        embedding_scale: factor on embeddings.
        residual_scale: factor on what attention and MLP add.
        logit_scale: factor on logits.
        logit_softcap: logits become `cap * tanh(logit / cap)`; 0 is off.
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
    attention: tuple[Attention, ...]
    norm: Norm = Norm.RMS
    norm_affine: bool = True
    placement: NormPlacement = NormPlacement.INPUT
    final_norm: bool = True
    residual: Residual = Residual.SEQUENTIAL
    query_key_norm: QueryKeyNorm = QueryKeyNorm.NONE
    gated: bool = True
    learned_positions: LearnedPositions | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    tie_word_embeddings: bool = False
    embedding_size: int = 0
    attention_sub_norm: bool = False
    mlp_sub_norm: bool = False
    linear_norm_epsilon: float | None = None
    attention_scale: float | None = None
    attention_softcap: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float = 0.0

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
        if self.num_hidden_layers > MAX_LAYERS:
            raise CheckpointError(f"num_hidden_layers is {self.num_hidden_layers}: the limit is {MAX_LAYERS}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                f"num_key_value_heads is {self.num_key_value_heads}: it must divide "
                f"num_attention_heads = {self.num_attention_heads}"
            )
        if len(self.attention) not in {1, self.num_hidden_layers}:
            raise CheckpointError(
                f"{len(self.attention)} layer types: expected one for each of {self.num_hidden_layers} layers"
            )
        for layer in self.attention:
            if layer.rotary is not None and layer.rotary.dim > self.head_dim:
                raise CheckpointError(
                    f"rotary dim is {layer.rotary.dim}: it must be even and at most head_dim = {self.head_dim}"
                )
        for field in ("norm_epsilon", "linear_norm_epsilon", "attention_scale"):
            value = getattr(self, field)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise CheckpointError(f"{field.replace('_', ' ')} is {value}: it must be greater than 0")
        positions = self.learned_positions
        if positions is not None and positions.rows - positions.offset < self.context_length:
            raise CheckpointError(
                f"context_length is {self.context_length}: the table of positions has room for "
                f"{positions.rows - positions.offset}"
            )
        if self.activation not in set(MlpActivation):
            near = difflib.get_close_matches(self.activation[:60], list(MlpActivation), n=1)
            hint = f"; did you mean {str(near[0])!r}?" if near else ""
            raise UnsupportedError(
                f"hidden_act {self.activation!r:.60} is not supported{hint} (known: {', '.join(MlpActivation)})"
            )

    @property
    def attention_size(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of all key (or value) heads together."""
        return self.num_key_value_heads * self.head_dim

    @property
    def embedding_width(self) -> int:
        """Columns of the embedding and of the head."""
        return self.embedding_size or self.hidden_size

    @property
    def has_final_norm(self) -> bool:
        """Whether a norm stands before the head."""
        return self.final_norm and self.placement is not NormPlacement.RESIDUAL

    @property
    def mlp_inputs(self) -> tuple[str, ...]:
        """The linear layers that read the MLP's input."""
        return MLP_INPUTS if self.gated else ("up_proj",)

    def layer(self, index: int) -> Attention:
        """How layer `index` attends."""
        return self.attention[index if len(self.attention) > 1 else 0]

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor of the decoder by role, with its shape (linears are `[out, in]`).

        Roles, each with `.weight` and perhaps `.bias`:
        `embed_tokens`, `embed_positions`, `project_in`, `project_out`, `norm`, `lm_head`;
        `layers.{i}.input_norm` (before attention), `layers.{i}.attn.{q,k,v,o}_proj`,
        `layers.{i}.attn.{query,key,sub,output,residual}_norm`; `layers.{i}.post_attention_norm` (before the MLP),
        `layers.{i}.mlp.{gate,up,down}_proj`, `layers.{i}.mlp.{sub,output,residual}_norm`. With `linear_norm_epsilon`
        a linear layer of a block has a `.norm.weight` too.
        """
        yield "embed_tokens.weight", (self.vocab_size, self.embedding_width)
        if self.learned_positions is not None:
            yield "embed_positions.weight", (self.learned_positions.rows, self.hidden_size)
        if self.embedding_size:
            yield "project_in.weight", (self.hidden_size, self.embedding_size)
        for index in range(self.num_hidden_layers):
            yield from self._block(f"layers.{index}")
        if self.has_final_norm:
            yield from self._norm("norm", self.hidden_size)
        if self.embedding_size:
            yield "project_out.weight", (self.embedding_size, self.hidden_size)
        if not self.tie_word_embeddings:
            yield "lm_head.weight", (self.vocab_size, self.embedding_width)
        if self.head_bias:
            yield "lm_head.bias", (self.vocab_size,)

    def matrices(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """The roles that a policy gives a precision: linear layers, embedding and head, without `.weight`."""
        for role, shape in self.tensors():
            if len(shape) == 2 and role != "embed_positions.weight":
                yield role.removesuffix(".weight"), (shape[0], shape[1])

    def _block(self, layer: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden, inner = self.hidden_size, self.intermediate_size
        reads_norm = self.placement in {NormPlacement.INPUT, NormPlacement.BOTH}
        if reads_norm:
            yield from self._norm(f"{layer}.input_norm", hidden)
        for name, size in zip(
            ATTENTION_INPUTS, (self.attention_size, self.key_value_size, self.key_value_size), strict=True
        ):
            yield from self._linear(f"{layer}.attn.{name}", size, hidden, self.qkv_bias)
        if self.query_key_norm is not QueryKeyNorm.NONE:
            whole = self.query_key_norm is QueryKeyNorm.ALL
            yield from self._norm(f"{layer}.attn.query_norm", self.attention_size if whole else self.head_dim)
            yield from self._norm(f"{layer}.attn.key_norm", self.key_value_size if whole else self.head_dim)
        if self.attention_sub_norm:
            yield from self._norm(f"{layer}.attn.sub_norm", self.attention_size)
        yield from self._linear(f"{layer}.attn.o_proj", hidden, self.attention_size, self.output_bias)
        yield from self._branch_norm(f"{layer}.attn")
        if reads_norm and self.residual is not Residual.PARALLEL_SHARED_NORM:
            yield from self._norm(f"{layer}.post_attention_norm", hidden)
        for name in self.mlp_inputs:
            yield from self._linear(f"{layer}.mlp.{name}", inner, hidden, self.mlp_bias)
        if self.mlp_sub_norm:
            yield from self._norm(f"{layer}.mlp.sub_norm", inner)
        yield from self._linear(f"{layer}.mlp.down_proj", hidden, inner, self.mlp_bias)
        yield from self._branch_norm(f"{layer}.mlp")

    def _branch_norm(self, branch: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        if self.placement in {NormPlacement.OUTPUT, NormPlacement.BOTH}:
            yield from self._norm(f"{branch}.output_norm", self.hidden_size)
        elif self.placement is NormPlacement.RESIDUAL:
            yield from self._norm(f"{branch}.residual_norm", self.hidden_size)

    def _norm(self, role: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{role}.weight", (width,)
        if self.norm is Norm.LAYER:
            yield f"{role}.bias", (width,)

    def _linear(self, role: str, rows: int, columns: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
        if self.linear_norm_epsilon is not None:
            yield f"{role}.norm.weight", (columns,)
        yield f"{role}.weight", (rows, columns)
        if bias:
            yield f"{role}.bias", (rows,)
