"""tokenizer.json in the words of GGUF metadata (`tokenizer.ggml.*`).

Byte-level BPE keeps its merges, and its rule for cutting text into words gets the name that GGUF readers know it by.
SentencePiece-like BPE has scores there in place of merges: the better the rank of the merge that makes a token, the
higher its score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bitnet_onnx.converters.checkpoints._gguf_metadata import Value
from bitnet_onnx.converters.checkpoints._gguf_pretokenizers import PRE_TOKENIZERS
from bitnet_onnx.converters.model import SourceModel
from bitnet_onnx.errors import CheckpointError, UnsupportedError
from bitnet_onnx.json_input import load_object, shown
from bitnet_onnx.package_format import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_SPACE: Final = "\u2581"
_BYTES: Final = frozenset(f"<0x{byte:02X}>" for byte in range(256))
#: Files of other packages name several rules alike; the name that says most comes first.
_LAST_CHOICE: Final = frozenset({"default", "phi-2", "refact", "llama3", "llama-v3", "dbrx", "deepseek-r1-qwen"})
_KEYS: Final = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


@dataclass(frozen=True, slots=True)
class _Parts:
    """A tokenizer.json of the BPE kind, taken apart."""

    source: str
    document: Mapping[str, Any]
    vocabulary: Mapping[str, int]
    merges: list[tuple[str, str]]
    added: list[Mapping[str, Any]]


def tokenizer_metadata(model: SourceModel) -> tuple[dict[str, Value], list[str]]:
    """The tokenizer as metadata, and what they do not say.

    Raises:
        UnsupportedError: GGUF has no word for this kind of tokenizer, or no name for its rule.
        CheckpointError: the tokenizer contradicts itself.
    """
    parts = _parts(model)
    byte_level = any(
        step.get("type") == "ByteLevel" for step in _steps(parts.document.get("pre_tokenizer"), "pretokenizers")
    )
    tokens, types = _tokens(parts, model.spec.vocab_size)
    values: dict[str, Value] = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    notes: list[str] = []
    if byte_level:
        values["tokenizer.ggml.model"] = "gpt2"
        values["tokenizer.ggml.pre"], note = _pre(parts)
        notes += [note] if note else []
        values["tokenizer.ggml.merges"] = [f"{left} {right}" for left, right in parts.merges]
    else:
        values |= _sentencepiece(parts, tokens)
    index = {token: number for number, token in enumerate(tokens)}
    config = _config(model)
    values |= _special(model, config, index, types)
    begins = _begins_with(parts.document.get("post_processor"))
    values["tokenizer.ggml.add_bos_token"] = begins is not None or config.get("add_bos_token") is True
    values["tokenizer.ggml.add_eos_token"] = config.get("add_eos_token") is True
    if values["tokenizer.ggml.add_bos_token"] and "tokenizer.ggml.bos_token_id" not in values:
        if begins not in index:
            raise CheckpointError(f"{parts.source}: text begins with a token that is not in the vocabulary")
        values["tokenizer.ggml.bos_token_id"] = index[begins]
    template = _chat_template(model, config)
    if template:
        values["tokenizer.chat_template"] = template
    return values, notes


def _parts(model: SourceModel) -> _Parts:
    source = f"{model.path}: {TOKENIZER}"
    data = model.tokenizer[TOKENIZER]
    document = load_object(data, source, max_bytes=len(data), error=CheckpointError)
    bpe: Any = document.get("model")
    kind = bpe.get("type", "BPE") if isinstance(bpe, dict) else None
    if not isinstance(bpe, dict) or kind != "BPE":
        raise UnsupportedError(
            f"{source}: a GGUF holds BPE tokenizers, this is {kind!r:.40}; --no-tokenizer writes the file without it"
        )
    merges = []
    for merge in bpe.get("merges", []):
        pair = tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)
        if len(pair) != 2 or not all(isinstance(piece, str) and " " not in piece for piece in pair):
            raise UnsupportedError(f"{source}: merge {shown(str(merge))} is not two pieces without spaces")
        merges.append((pair[0], pair[1]))
    if not merges:  # an empty list has no type in a GGUF, and readers ask for one
        raise UnsupportedError(f"{source}: a tokenizer without merges; --no-tokenizer writes the file without it")
    added: Any = document.get("added_tokens") or []
    return _Parts(source, document, bpe["vocab"], merges, added)


def _tokens(parts: _Parts, size: int) -> tuple[list[str], list[int]]:
    """Text and type of each token; ids that nothing has are filled up."""
    texts: dict[int, str] = {number: text for text, number in parts.vocabulary.items()}
    kinds = dict.fromkeys(texts, _NORMAL)
    for token in parts.added:
        number = token["id"]
        texts[number] = token["content"]
        kinds[number] = _CONTROL if token.get("special") else _USER_DEFINED
    bpe = parts.document["model"]
    if bpe.get("byte_fallback"):
        kinds |= {number: _BYTE for number, text in texts.items() if text in _BYTES}
    unknown = parts.vocabulary.get(bpe.get("unk_token") or "")
    if unknown is not None:
        kinds[unknown] = _UNKNOWN
    if texts and max(texts) >= size:
        raise CheckpointError(f"{parts.source}: token id {max(texts)}, but the model has {size} rows")
    taken = set(texts.values())
    tokens = []
    for number in range(size):
        text = texts.get(number)
        if text is None:
            text = f"[PAD{number}]"
            while text in taken:
                text = f"[{text}]"
        tokens.append(text)
    if len(set(tokens)) != size:
        raise CheckpointError(f"{parts.source}: two ids have one text")
    return tokens, [kinds.get(number, _UNUSED) for number in range(size)]


def _pre(parts: _Parts) -> tuple[str, str | None]:
    """The name of the rule that cuts text into words, and what its name does not say."""
    ours = [_normal(step) for step in _steps(parts.document.get("pre_tokenizer"), "pretokenizers")]
    whole = bool(parts.document["model"].get("ignore_merges"))
    normalizers = [step.get("type") for step in _steps(parts.document.get("normalizer"), "normalizers")]
    fitting = [
        name
        for name, rule in PRE_TOKENIZERS.items()
        if [_normal(step) for step in rule.steps] == ours and rule.ignore_merges == whole
    ]
    fitting.sort(
        key=lambda name: ([PRE_TOKENIZERS[name].normalizer or ""] != (normalizers or [""]), name in _LAST_CHOICE)
    )
    if not fitting or len(normalizers) > 1:
        raise UnsupportedError(
            f"{parts.source}: its rule for cutting text into words is none that GGUF readers know by name (known: "
            f"{', '.join(sorted(PRE_TOKENIZERS))}); --no-tokenizer writes the file without it"
        )
    rule = PRE_TOKENIZERS[fitting[0]]
    if [rule.normalizer or ""] == (normalizers or [""]):
        return fitting[0], None
    ours_name = normalizers[0] if normalizers else "none"
    return fitting[
        0
    ], f"tokenizer: the rule {fitting[0]!r} has the normalizer {rule.normalizer or 'none'}, not {ours_name}"


def _sentencepiece(parts: _Parts, tokens: list[str]) -> dict[str, Value]:
    bpe = parts.document["model"]
    steps = [
        *_steps(parts.document.get("normalizer"), "normalizers"),
        *_steps(parts.document.get("pre_tokenizer"), "pretokenizers"),
    ]
    prefix = False
    for step in steps:
        match step.get("type"):
            case "Prepend" if step.get("prepend") == _SPACE:
                prefix = True
            case "Replace" if step.get("content") == _SPACE:
                pass
            case "Metaspace" if step.get("replacement") == _SPACE:
                prefix = step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True)
            case "Split" if step.get("pattern") == {"String": " "}:
                pass  # Gemma's: text has no spaces by then
            case kind:
                raise UnsupportedError(
                    f"{parts.source}: the step {kind!r:.40} is none that GGUF readers know; --no-tokenizer writes the "
                    f"file without it"
                )
    if not bpe.get("byte_fallback"):
        raise UnsupportedError(
            f"{parts.source}: neither byte-level BPE nor one with byte_fallback, which are the kinds that a GGUF "
            f"holds; --no-tokenizer writes the file without it"
        )
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(parts.merges):
        ranks.setdefault(left + right, rank)
    lowest = len(parts.merges)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [-float(ranks.get(token, lowest)) for token in tokens],
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _special(
    model: SourceModel, config: Mapping[str, Any], index: Mapping[str, int], types: list[int]
) -> dict[str, Value]:
    """Ids of the named tokens: by tokenizer_config.json, else by the generation settings."""
    values: dict[str, Value] = {}
    for name, key in _KEYS.items():
        entry = config.get(f"{name}_token")
        text = entry.get("content") if isinstance(entry, Mapping) else entry
        number = index.get(text) if isinstance(text, str) else None
        given = model.generation_config.get(f"{name}_token_id", model.config.get(f"{name}_token_id"))
        ends = [token for token in (given if isinstance(given, list) else [given]) if type(token) is int]
        if number is None:
            number = next((token for token in ends if 0 <= token < len(types)), None)
        if number is not None:
            values[f"tokenizer.ggml.{key}_token_id"] = number
        if name == "eos":
            others = [token for token in ends if token != number and 0 <= token < len(types)]
            if others:
                values["tokenizer.ggml.eot_token_id"] = others[0]
    if "tokenizer.ggml.unknown_token_id" not in values and _UNKNOWN in types:
        values["tokenizer.ggml.unknown_token_id"] = types.index(_UNKNOWN)
    return values


def _config(model: SourceModel) -> Mapping[str, Any]:
    data = model.tokenizer.get(TOKENIZER_CONFIG, b"{}")
    return load_object(data, f"{model.path}: {TOKENIZER_CONFIG}", max_bytes=max(len(data), 2), error=CheckpointError)


def _chat_template(model: SourceModel, config: Mapping[str, Any]) -> str | None:
    data = model.tokenizer.get(CHAT_TEMPLATE)
    if data is not None:
        return data.decode("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}.get(
            "default"
        )
    return template if isinstance(template, str) else None


def _begins_with(processor: Any) -> str | None:
    """The special token that a post-processor puts before the text."""
    for step in _steps(processor, "processors"):
        if step.get("type") == "TemplateProcessing":
            first: Mapping[str, Any] = next(iter(step.get("single") or []), {})
            token = first.get("SpecialToken", {}).get("id")
            if isinstance(token, str):
                return token
    return None


def _steps(value: Any, children: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a part of tokenizer.json, sequences taken apart."""
    if not isinstance(value, Mapping):
        return
    if value.get("type") == "Sequence":
        for child in value.get(children) or []:
            yield from _steps(child, children)
        return
    yield value


def _normal(step: Mapping[str, Any]) -> tuple[object, ...]:
    """What a pre-tokenizer does, without what changes only offsets."""
    match step.get("type"):
        case "ByteLevel":
            return "ByteLevel", step.get("add_prefix_space", True), step.get("use_regex", True)
        case "Split":
            pattern = step.get("pattern")
            text = tuple(pattern.items()) if isinstance(pattern, Mapping) else pattern
            return "Split", text, step.get("behavior"), step.get("invert", False)
        case "Digits":
            return "Digits", step.get("individual_digits", False)
        case kind:
            return (kind, repr(sorted(step.items())))
