"""How byte-level BPE tokenizers cut text into words, by the name that a GGUF gives the rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Step = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One rule, in the terms of tokenizer.json."""

    steps: tuple[Step, ...]
    normalizer: str | None = None
    #: A word that is a token is taken as it is, even if the merges do not lead to it.
    ignore_merges: bool = False
    #: Whether a file that does not say so puts bos before the text.
    add_bos: bool = False


_BYTES: Step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_GPT2_WORDS: Step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS: Step = {"type": "Digits", "individual_digits": True}


def _words(pattern: str) -> tuple[Step, Step]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, _BYTES


# Published patterns of the model families; they differ in how many digits make a word.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _words(_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST)
_QWEN2 = _words(_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST)
# Words that begin with capitals, or have none; in one of the two with a contraction at the end.
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_MIXED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}*{_SMALL}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}+{_SMALL}*")
_SLASHED = _REST.replace(r"[\r\n]*|", r"[\r\n/]*|", 1)
_TEKKEN = _words("|".join(_MIXED) + r"|\p{N}" + _SLASHED)
_GPT4O = _words("|".join(f"{words}{_CONTRACTIONS}?" for words in _MIXED) + r"|\p{N}{1,3}" + _SLASHED)

_GPT2 = PreTokenizer((_GPT2_WORDS,))
_STARCODER = PreTokenizer((_DIGITS, _GPT2_WORDS))
_LLAMA_BPE = PreTokenizer(_LLAMA3, ignore_merges=True, add_bos=True)

#: As llama.cpp names them; the normalizers are those of the models' own tokenizer.json.
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "smollm": _STARCODER,
    "starcoder": _STARCODER,
    "refact": _STARCODER,
    "llama-bpe": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "falcon3": _LLAMA_BPE,
    "dbrx": PreTokenizer(_LLAMA3),
    "smaug-bpe": PreTokenizer(_LLAMA3),
    "qwen2": PreTokenizer(_QWEN2, normalizer="NFC"),
    "deepseek-r1-qwen": PreTokenizer(_QWEN2, normalizer="NFC"),
    # GPT-NeoX, Pythia and the first OLMo have one tokenizer, with this name.
    "olmo": PreTokenizer((_GPT2_WORDS,), normalizer="NFC"),
    "tekken": PreTokenizer(_TEKKEN, ignore_merges=True, add_bos=True),
    "gpt-4o": PreTokenizer(_GPT4O),
}
