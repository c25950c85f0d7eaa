"""The tokenizer inside a GGUF file, written as tokenizer.json.

Byte-level BPE (`gpt2`) names the rule that cuts text into words in `tokenizer.ggml.pre`; SentencePiece (`llama`) has
scores, from which the merges follow.
"""

from __future__ import annotations

import json
import logging

from bitnet_onnx.converters.checkpoints._base import TokenizerFiles
from bitnet_onnx.converters.checkpoints._gguf_architectures import nearest
from bitnet_onnx.converters.checkpoints._gguf_config import special_ids
from bitnet_onnx.converters.checkpoints._gguf_metadata import Metadata
from bitnet_onnx.converters.checkpoints._gguf_pretokenizers import PRE_TOKENIZERS, PreTokenizer
from bitnet_onnx.converters.checkpoints._tokenizer_check import check_tokenizer
from bitnet_onnx.errors import CheckpointError, UnsupportedError
from bitnet_onnx.json_input import shown

_log = logging.getLogger(__name__)

# Values of tokenizer.ggml.token_type.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_SPACE = "\u2581"  # how SentencePiece writes a space

#: The largest vocabularies of today have 262 thousand tokens.
_MAX_TOKENS = 524_288
#: The longest word piece, the sum of all, and that of the merges: finding the merges of a vocabulary takes a step for
#: each character. The largest vocabularies of today have 2 million characters, their merges 5 million.
_MAX_PIECE = 256
_MAX_CHARACTERS = 4_000_000
_MAX_MERGE_CHARACTERS = 20_000_000
_MAX_TEMPLATE = 1_000_000


def tokenizer_files(metadata: Metadata) -> TokenizerFiles:
    """The tokenizer as files.

    Raises:
        CheckpointError: there is no tokenizer, or it contradicts itself.
        UnsupportedError: a kind of tokenizer or a word rule that is not known.
    """
    kind = metadata.text("tokenizer.ggml.model", "none")
    if kind not in {"gpt2", "llama"}:
        raise UnsupportedError(f"{metadata.source}: tokenizer.ggml.model {shown(kind)} is not one of gpt2, llama")
    tokens = metadata.texts("tokenizer.ggml.tokens")
    if len(tokens) > _MAX_TOKENS:
        raise CheckpointError(
            f"{metadata.source}: tokenizer.ggml.tokens has {len(tokens)} tokens, the limit is {_MAX_TOKENS}"
        )
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        twice = next(token for index, token in enumerate(tokens) if vocabulary[token] != index)
        raise CheckpointError(f"{metadata.source}: tokenizer.ggml.tokens holds {shown(twice)} twice")
    types = _token_types(metadata, len(tokens))
    rule = _rule(metadata) if kind == "gpt2" else None
    add_bos = metadata.flag("tokenizer.ggml.add_bos_token", rule.add_bos if rule else True)
    add_eos = metadata.flag("tokenizer.ggml.add_eos_token", False)
    special = special_ids(metadata)
    if rule:
        parts = _byte_level(metadata, vocabulary, rule)
    else:
        parts = _sentencepiece(metadata, vocabulary, types, special.get("unk"))
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokens, types, marked=rule is None and not _space_prefix(metadata)),
        "post_processor": _template(metadata, tokens, special, add_bos=add_bos, add_eos=add_eos),
        **parts,
    }
    data = _dump(document)
    check_tokenizer(data, f"{metadata.source}: tokenizer", len(tokens))

    names = {f"{name}_token": tokens[index] for name, index in special.items()}
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        "clean_up_tokenization_spaces": False,
        **names,
    }
    files = {"tokenizer.json": data, "special_tokens_map.json": _dump(names)}
    if others := [key for key in metadata.values if key.startswith("tokenizer.chat_template.")]:
        _log.info("%s: chat templates beside the main one are left out: %s", metadata.source, shown(", ".join(others)))
    template = metadata.text("tokenizer.chat_template", None)
    if template is not None:
        if len(template) > _MAX_TEMPLATE:
            raise CheckpointError(
                f"{metadata.source}: tokenizer.chat_template of {len(template)} characters exceeds {_MAX_TEMPLATE}"
            )
        config["chat_template"] = template
        files["chat_template.jinja"] = template.encode()
    files["tokenizer_config.json"] = _dump(config)
    guessed = rule is not None and "tokenizer.ggml.pre" not in metadata.values
    warning = f"{metadata.source}: tokenizer.ggml.pre is missing; words are cut as in GPT-2" if guessed else ""
    return TokenizerFiles(files, warning)


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _token_types(metadata: Metadata, count: int) -> list[int]:
    key = "tokenizer.ggml.token_type"
    if key not in metadata.values:
        return [_NORMAL] * count
    types = metadata.integers(key)
    if len(types) != count:
        raise CheckpointError(f"{metadata.source}: {key} has {len(types)} entries for {count} tokens")
    return types


def _rule(metadata: Metadata) -> PreTokenizer:
    name = metadata.text("tokenizer.ggml.pre", None)
    if name is None:
        return PRE_TOKENIZERS["default"]
    if name not in PRE_TOKENIZERS:
        raise UnsupportedError(
            f"{metadata.source}: tokenizer.ggml.pre {shown(name)} is not one of {', '.join(sorted(PRE_TOKENIZERS))}"
            f"{nearest(name, list(PRE_TOKENIZERS))}"
        )
    return PRE_TOKENIZERS[name]


def _space_prefix(metadata: Metadata) -> bool:
    """Whether a space stands in front of every piece of text between special tokens (SentencePiece)."""
    return metadata.flag("tokenizer.ggml.add_space_prefix", True)


def _added_tokens(tokens: list[str], types: list[int], *, marked: bool) -> list[dict[str, object]]:
    """Tokens that are found before the text is cut.

    `marked`: those with a space mark are found in text whose spaces are marks by then, as SentencePiece does it (the
    runs of spaces of Gemma). Where a prefix is put before the text it would be put before such a token too.
    """
    return [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": marked and kind == _USER_DEFINED and _SPACE in token,
            "special": kind != _USER_DEFINED,
        }
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in {_UNKNOWN, _CONTROL, _USER_DEFINED} and token
    ]


def _template(
    metadata: Metadata, tokens: list[str], special: dict[str, int], *, add_bos: bool, add_eos: bool
) -> dict[str, object] | None:
    """A post-processor that puts bos before and eos after the text, as asked for."""
    wanted = [name for name, add in (("bos", add_bos), ("eos", add_eos)) if add]
    if not wanted:
        return None
    for name in wanted:
        if name not in special:
            raise CheckpointError(f"{metadata.source}: tokenizer.ggml.add_{name}_token without a {name} token")

    def around(*sequences: tuple[str, int]) -> list[dict[str, object]]:
        pieces: list[dict[str, object]] = []
        for sequence, type_id in sequences:
            if add_bos:
                pieces.append({"SpecialToken": {"id": tokens[special["bos"]], "type_id": type_id}})
            pieces.append({"Sequence": {"id": sequence, "type_id": type_id}})
            if add_eos:
                pieces.append({"SpecialToken": {"id": tokens[special["eos"]], "type_id": type_id}})
        return pieces

    ids = {tokens[special[name]]: special[name] for name in wanted}
    return {
        "type": "TemplateProcessing",
        "single": around(("A", 0)),
        "pair": around(("A", 0), ("B", 1)),
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]} for token, index in ids.items()},
    }


def _bpe(vocabulary: dict[str, int], merges: list[str]) -> dict[str, object]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": merges,
    }


def _byte_level(metadata: Metadata, vocabulary: dict[str, int], rule: PreTokenizer) -> dict[str, object]:
    merges = metadata.texts("tokenizer.ggml.merges")
    for merge in merges:
        left, _, right = merge.partition(" ")
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise CheckpointError(f"{metadata.source}: merge {shown(merge)} is not of two tokens to a third")
    return {
        "normalizer": {"type": rule.normalizer} if rule.normalizer else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(rule.steps)},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(vocabulary, merges) | {"ignore_merges": rule.ignore_merges},
    }


def _sentencepiece(
    metadata: Metadata, vocabulary: dict[str, int], types: list[int], unknown: int | None
) -> dict[str, object]:
    # As llama.cpp and the original tokenizer.json of Llama 2 do it.
    prefix = _space_prefix(metadata)
    to_marks: list[dict[str, object]] = [{"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]
    from_marks: list[dict[str, object]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        to_marks.insert(0, {"type": "Prepend", "prepend": _SPACE})
        from_marks.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    model = _bpe(vocabulary, _merges_by_score(metadata, vocabulary, types))
    tokens = list(vocabulary)
    return {
        "normalizer": {"type": "Sequence", "normalizers": to_marks},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": from_marks},
        "model": model
        | {
            "unk_token": None if unknown is None else tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)),
        },
    }


def _merges_by_score(metadata: Metadata, vocabulary: dict[str, int], types: list[int]) -> list[str]:
    """Every way to make a token of two others, best score of the result first.

    SentencePiece joins the neighbours whose joint piece scores best; a merge list in that order does the same.
    """
    scores = metadata.numbers("tokenizer.ggml.scores")
    if len(scores) != len(vocabulary):
        raise CheckpointError(
            f"{metadata.source}: tokenizer.ggml.scores has {len(scores)} entries for {len(vocabulary)} tokens"
        )
    # Text holds no spaces by then, and tokenizer.json writes a merge as two pieces with a space between them.
    pieces = [
        token
        for token, index in vocabulary.items()
        if types[index] not in {_UNKNOWN, _CONTROL, _UNUSED, _BYTE} and " " not in token
    ]
    longest = max(map(len, pieces), default=0)
    if longest > _MAX_PIECE or sum(map(len, pieces)) > _MAX_CHARACTERS:
        raise CheckpointError(
            f"{metadata.source}: tokenizer.ggml.tokens exceed {_MAX_PIECE} characters a token "
            f"or {_MAX_CHARACTERS} in all"
        )
    found: list[tuple[float, int, int]] = []
    characters = 0
    for token in pieces:
        score = -scores[vocabulary[token]]
        for cut in range(1, len(token)):
            left, right = vocabulary.get(token[:cut]), vocabulary.get(token[cut:])
            if left is not None and right is not None:
                found.append((score, left, right))
                characters += len(token)
        if characters > _MAX_MERGE_CHARACTERS:
            raise CheckpointError(
                f"{metadata.source}: tokenizer.ggml.tokens imply merges of more than {_MAX_MERGE_CHARACTERS} characters"
            )
    found.sort()
    tokens = list(vocabulary)
    return [f"{tokens[left]} {tokens[right]}" for _, left, right in found]
