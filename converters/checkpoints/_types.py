"""The stored types of both formats, and which of them are refused on purpose."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StorageType:
    """How a type is stored: `block` elements in `nbytes` bytes, and `tail` bytes once after all of them."""

    name: str
    block: int
    nbytes: int
    tail: int = 0

    def size(self, elements: int) -> int:
        """Stored bytes of a tensor of whole blocks."""
        return elements // self.block * self.nbytes + self.tail


_SAFETENSORS = (
    StorageType("BOOL", 1, 1),
    StorageType("U8", 1, 1),
    StorageType("I8", 1, 1),
    StorageType("F8_E4M3", 1, 1),
    StorageType("F8_E5M2", 1, 1),
    StorageType("I16", 1, 2),
    StorageType("U16", 1, 2),
    StorageType("F16", 1, 2),
    StorageType("BF16", 1, 2),
    StorageType("I32", 1, 4),
    StorageType("U32", 1, 4),
    StorageType("F32", 1, 4),
    StorageType("I64", 1, 8),
    StorageType("U64", 1, 8),
    StorageType("F64", 1, 8),
)

#: By the name in a safetensors header.
SAFETENSORS_TYPES = {kind.name: kind for kind in _SAFETENSORS}

#: By the id in a GGUF tensor description. Block sizes: ggml's type table.
GGUF_TYPES = {
    0: StorageType("F32", 1, 4),
    1: StorageType("F16", 1, 2),
    2: StorageType("Q4_0", 32, 18),
    3: StorageType("Q4_1", 32, 20),
    6: StorageType("Q5_0", 32, 22),
    7: StorageType("Q5_1", 32, 24),
    8: StorageType("Q8_0", 32, 34),
    10: StorageType("Q2_K", 256, 84),
    11: StorageType("Q3_K", 256, 110),
    12: StorageType("Q4_K", 256, 144),
    13: StorageType("Q5_K", 256, 176),
    14: StorageType("Q6_K", 256, 210),
    16: StorageType("IQ2_XXS", 256, 66),
    17: StorageType("IQ2_XS", 256, 74),
    18: StorageType("IQ3_XXS", 256, 98),
    19: StorageType("IQ1_S", 256, 50),
    20: StorageType("IQ4_NL", 32, 18),
    21: StorageType("IQ3_S", 256, 110),
    22: StorageType("IQ2_S", 256, 82),
    23: StorageType("IQ4_XS", 256, 136),
    24: StorageType("I8", 1, 1),
    25: StorageType("I16", 1, 2),
    26: StorageType("I32", 1, 4),
    27: StorageType("I64", 1, 8),
    28: StorageType("F64", 1, 8),
    29: StorageType("IQ1_M", 256, 56),
    30: StorageType("BF16", 1, 2),
    34: StorageType("TQ1_0", 256, 54),
    35: StorageType("TQ2_0", 256, 66),
}

#: Types whose blocks hold codes for -1, 0, 1 (and 2) and no floats.
TERNARY_TYPES = frozenset({"TQ1_0", "TQ2_0", "Q2_0", "I2_S"})

Q2_0 = 42
#: The two layouts under id 42, upstream's and that of the fork that had the id first; never told apart by a guess.
Q2_0_LAYOUTS = (StorageType("Q2_0", 64, 18), StorageType("Q2_0", 128, 34))

I2_S = 36
#: The layouts under id 36 that are read, by the name that a user gives. The float32 scale of the whole tensor begins
#: the tail. Source: bitnet.cpp, `quantize_i2_s` as built for AVX2 with ACT_PARALLEL, and its converter.
I2_S_LAYOUTS = {"x86": StorageType("I2_S", 128, 32, tail=32)}

#: Ids that are known and not read, with the reason and the way out.
GGUF_REFUSED = {
    9: "Q8_1 is a type of intermediate results, not of weights",
    15: "Q8_K is a type of intermediate results, not of weights",
    38: "TL1 is laid out for one machine; use the original checkpoint, or TQ1_0 or TQ2_0",
    39: "MXFP4 and TL2 share this id; use the original checkpoint, or TQ1_0 or TQ2_0",
    40: "NVFP4 is not read; use the original checkpoint",
    41: "Q1_0 is not read; use the original checkpoint",
}
