"""What a family contributes: how to read its configuration, and where its tensors lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bitnet_onnx.converters._config import Config
from bitnet_onnx.decoder import DecoderSpec


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a tensor: `count` blocks of `block` rows, each `stride` after the one before.

    Attributes:
        start: first row.
        block: rows of one block.
        total: rows of the whole tensor.
        stride: from the start of a block to that of the next.
        count: number of blocks.
    """

    start: int
    block: int
    total: int
    stride: int = 0
    count: int = 1


@dataclass(frozen=True, slots=True)
class Source:
    """Where the tensor of a role lies in a checkpoint.

    Attributes:
        name: of the tensor.
        rows: those that belong to the role, where several roles share the tensor.
        transposed: the tensor is stored `[in, out]`.
        offset: added to every element (a norm that multiplies with `1 + weight`).
        constant: value of every element of a tensor that is not stored, or None (a norm without weights).
    """

    name: str
    rows: Rows | None = None
    transposed: bool = False
    offset: float = 0.0
    constant: float | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """One family of decoders.

    Attributes:
        model_type: Hugging Face `model_type`, also the file's name.
        spec: reads `config.json`.
        source: where the tensor of a role (`layers.0.attn.q_proj.weight`) lies.
        reads: fields of `_refused.FIELDS` that `spec` reads; others are refused unless they do nothing.
        ignored: suffixes of tensors that carry nothing to convert, such as saved rotary tables.
        aliases: beginnings of names to other beginnings that checkpoints have instead, `{"transformer.": ("",)}`.
        left_out: beginnings of tensors of other modalities; a package of the language model goes without them.
        trained_ternary: the linear layers of the blocks were trained to be ternary: those that are dense are masters,
            for which a policy's `auto` means `ternary`.
    """

    model_type: str
    spec: Callable[[Config], DecoderSpec]
    source: Callable[[DecoderSpec, str], Source]
    reads: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    trained_ternary: bool = False


def named(tensor_name: Callable[[str], str]) -> Callable[[DecoderSpec, str], Source]:
    """The `source` of a family whose tensors are the roles under other names."""

    def source(_: DecoderSpec, role: str) -> Source:
        return Source(tensor_name(role))

    return source


def replaced(role: str, names: dict[str, str]) -> str:
    """A role with parts of its name replaced, e.g. `{".attn.": ".self_attn."}`, in the order given."""
    for ours, theirs in names.items():
        role = role.replace(ours, theirs)
    return role
