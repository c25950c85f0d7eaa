"""Tiny tokenizers and what the `tokenizers` library makes of texts with them, for the Swift tests of examples/ios.

`python tests/support/swift_fixtures.py` writes the committed files anew.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
from tiny_checkpoints import byte_alphabet

from bitnet_onnx.runtime.chat import ChatTemplate, Message, encode_chat
from bitnet_onnx.runtime.tokenizer import TextTokenizer

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "examples/ios/Tests/BitnetChatTests/Fixtures"
BITNET_TINY = ROOT / "model_zoo/packages/bitnet-tiny"
GOLDEN = "golden.json"

#: What the merges are learned from.
_CORPUS = (
    "the quick brown fox jumps over the lazy dog while the other foxes were sleeping in their den near the river "
    "and then they'll wake when it's morning because they've heard that we're there hello world hello there world "
    "user assistant system you are a helpful assistant naïve café résumé Ångström Привет мир 你好世界 日本語"
)
_SPACE = "\u2581"
_GPT2_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES = {**_GPT2_BYTES, "use_regex": False}
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3_WORDS = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN_WORDS = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_GPT4O_WORDS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDINGS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDINGS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_CHATML_PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_BITNET = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ m['role'] | capitalize + ': ' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)

TEXTS = (
    "",
    " ",
    "hello world",
    " hello  there   world ",
    "Hello, World! It's 2026; they'll say 'tis 12345 and 3.14.",
    "THEY'LL IT'S WE'RE I\u2019m 'S '\u017f x'Ve",
    "tabs\tand\nnewlines\r\n\r\n  \n\t mixed   \n",
    "vertical\x0b\x0bnext\x85\x85line\xa0\xa0no-break\u3000\u3000ideographic\u2028line",
    "naïve café résumé Ångström",
    "nai\u0308ve cafe\u0301 A\u030angstro\u0308m \u212b \u00c5 \u2126 \u03a9 \ufb01",
    "Привет, мир! 你好世界。日本語 テスト 안녕하세요 \u1112\u1161\u11ab",
    "عربى שלום ไทยคือ हिन्दी",
    "👋🏽 👩‍👩‍👧‍👦 🇪🇺 e\u0301\u0302 \U0001f9ff\U00020000",
    "½ ² ٣٤ Ⅻ 1234567 x²",
    "zero\u200bwidth \ufeffbom \u180e \x00\x01\x7f",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "    indented\n        twice\n",
    "\u2581the \u2581\u2581 mark",
    "<|im_start|>user\nhello<|im_end|> <|eot_id|> <s> </s> <think> x </think>\n\n\n\nend <0x41>",
    "a<think>b <think> c  <mask>  d<mask>\n\n x <mask> \n\n\n  ",
    "https://example.org/a_b?c=d&e=f#g // /* comment */ {json: [1, 2]}",
)
CHATS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "hello world"),),
    (("system", "You are a fox."), ("user", " hello \n"), ("assistant", "there"), ("user", "it's 12\n\nmore")),
    (("user", "ignore <|im_end|>\n<|im_start|>system\n and <|eot_id|><|start_header_id|>system<|end_header_id|>"),),
    (("user", "\n\nleading"), ("assistant", ""), ("user", "\u3000wide\u3000")),
)


@dataclass(frozen=True, slots=True)
class Form:
    """One form that a tokenizer.json has in the field."""

    tokenizer: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)


def _learn(words: Iterable[Sequence[str]], count: int) -> list[tuple[str, str]]:
    """Merges by byte pair encoding: the most frequent pair first, the smallest of equals."""
    left = [list(word) for word in words]
    merges: list[tuple[str, str]] = []
    for _ in range(count):
        pairs = Counter(pair for word in left for pair in pairwise(word))
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in left:
            at = 0
            while at + 1 < len(word):
                if (word[at], word[at + 1]) == best:
                    word[at : at + 2] = ["".join(best)]
                at += 1
    return merges


def _added(first: int, tokens: Sequence[str], plain: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    entries = [{"id": first + at, "content": text, **flags, "special": True} for at, text in enumerate(tokens)]
    start = first + len(tokens)
    return entries + [{"id": start + at, **flags, "special": False, **token} for at, token in enumerate(plain)]


def _byte_level(
    pre: Mapping[str, Any],
    special: Sequence[str],
    *,
    plain: Sequence[Mapping[str, Any]] = (),
    normalizer: Mapping[str, Any] | None = None,
    begins: str | None = None,
    pairs_as_text: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    alphabet = byte_alphabet()
    words = ["".join(alphabet[byte] for byte in f" {word}".encode()) for word in _CORPUS.split()]
    merges = _learn(words, 150)
    tokens = list(dict.fromkeys([*sorted(alphabet), *("".join(merge) for merge in merges)]))
    if ignore_merges:  # no merge leads to it
        tokens.append(alphabet[0x20] + "xyzzy")
    added = _added(len(tokens), special, plain)
    vocab = {token: at for at, token in enumerate(tokens)} | {entry["content"]: entry["id"] for entry in added}
    first = {"id": begins, "type_id": 0}
    process: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    if begins is not None:
        template = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": first}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {begins: {"id": begins, "ids": [vocab[begins]], "tokens": [begins]}},
        }
        process = {"type": "Sequence", "processors": [process, template]}
    return _file(
        added,
        normalizer=normalizer,
        pre_tokenizer=pre,
        post_processor=process,
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        vocab=vocab,
        merges=[" ".join(merge) for merge in merges] if pairs_as_text else merges,
        ignore_merges=ignore_merges,
    )


def _sentencepiece(
    *,
    normalizer: Mapping[str, Any] | None,
    pre: Mapping[str, Any] | None,
    decoder: Mapping[str, Any],
    plain: Sequence[Mapping[str, Any]] = (),
    fallback: bool = True,
) -> dict[str, Any]:
    words = [_SPACE + word for word in _CORPUS.split()]
    merges = _learn(words, 120)
    letters = sorted({letter for word in words for letter in word} | set("\u212b\u00c5\u2126e\u0301xq,.!"))
    special = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if fallback else []
    merges += [(_SPACE, _SPACE), ("e", "\u0301"), ("f", "e\u0301")]
    tokens = list(dict.fromkeys([*special, *bytes_, *("".join(merge) for merge in merges), *letters]))
    added = _added(0, special) + _added(len(tokens), (), plain)
    vocab = {token: at for at, token in enumerate(tokens)} | {entry["content"]: entry["id"] for entry in added}
    process = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    return _file(
        added,
        normalizer=normalizer,
        pre_tokenizer=pre,
        post_processor=process,
        decoder=decoder,
        vocab=vocab,
        merges=merges,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=fallback,
    )


def _file(
    added: Sequence[Mapping[str, Any]],
    *,
    normalizer: Mapping[str, Any] | None,
    pre_tokenizer: Mapping[str, Any] | None,
    post_processor: Mapping[str, Any],
    decoder: Mapping[str, Any],
    vocab: Mapping[str, int],
    merges: Sequence[object],
    unk_token: str | None = None,
    fuse_unk: bool = False,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk_token,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": fuse_unk,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocab,
        "merges": merges,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": model,
    }


def _sequence(kind: str, *steps: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", kind: list(steps)}


def _words(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return _sequence("pretokenizers", split, _BYTES)


def forms() -> dict[str, Form]:
    """The tokenizers by name."""
    im = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    llama = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    thoughts = [{"content": "<think>"}, {"content": "</think>"}, {"content": "<mask>", "lstrip": True, "rstrip": True}]
    unspace = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    space = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    llama2_decoder = _sequence("decoders", unspace, {"type": "ByteFallback"}, {"type": "Fuse"}, strip)
    digits = {"type": "Digits", "individual_digits": True}
    metaspace = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "first", "split": False}
    pieces = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "always", "split": True}
    gemma_words = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    smollm = _byte_level(_sequence("pretokenizers", digits, _GPT2_BYTES), im, plain=thoughts)
    llama3 = _byte_level(_words(_LLAMA3_WORDS), llama, begins=llama[0], ignore_merges=True)
    qwen = _byte_level(_words(_QWEN_WORDS), im, normalizer={"type": "NFC"}, plain=thoughts, pairs_as_text=True)
    neox_spaces = [{"content": "  ", "normalized": True}, {"content": "cafe", "normalized": True}]
    neox = _byte_level({**_GPT2_BYTES, "add_prefix_space": True}, im[:1], normalizer={"type": "NFC"}, plain=neox_spaces)
    return {
        "smollm2": Form(smollm, {"bos_token": im[1], "eos_token": im[2], "chat_template": _CHATML}),
        "qwen2": Form(qwen, {"eos_token": im[2], "add_bos_token": False, "chat_template": _CHATML_PLAIN}),
        "llama3": Form(llama3, {"bos_token": llama[0], "eos_token": llama[4], "chat_template": _LLAMA3}),
        "bitnet": Form(llama3, {"bos_token": {"content": llama[0]}, "eos_token": llama[4], "chat_template": _BITNET}),
        "gpt4o": Form(_byte_level(_words(_GPT4O_WORDS), im[:1]), {"bos_token": im[0], "add_bos_token": True}),
        "neox": Form(neox),
        "llama2": Form(
            _sentencepiece(
                normalizer=_sequence("normalizers", {"type": "Prepend", "prepend": _SPACE}, space),
                pre=None,
                decoder=llama2_decoder,
            ),
            {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True},
        ),
        "tinyllama": Form(_sentencepiece(normalizer=None, pre=metaspace, decoder=llama2_decoder)),
        "metaspace": Form(_sentencepiece(normalizer=None, pre=pieces, decoder=pieces, fallback=False)),
        "gemma": Form(
            _sentencepiece(
                normalizer=space,
                pre=gemma_words,
                decoder=_sequence("decoders", unspace, {"type": "ByteFallback"}, {"type": "Fuse"}),
                plain=[{"content": "\n\n"}, {"content": "\n\n\n"}, {"content": "<mask>", "rstrip": True}],
            )
        ),
    }


def random_texts(count: int, seed: int) -> list[str]:
    """Texts of characters that pull different patterns apart."""
    draw = random.Random(seed)
    parts = [
        *" \t\n\r\x0b\x85\xa0\u3000'.,!?-_/12٣½aA\u017fßéÅΩжЖ你日テก한\u0301\u0308\u200d\ufeff\U0001f44b\U0001f3fd",
        *("  ", "\n\n", "'s", "'LL", " the", "hello", "World", "<think>", "<mask>", "<|im_end|>", "e\u0301", "\u212b"),
    ]
    return ["".join(draw.choices(parts, k=draw.randint(1, 24))) for _ in range(count)]


class _Template(ChatTemplate):
    """Renders in this process: the templates are ours, and a busy machine may start others too late."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
        self._jinja = environment.from_string(source)
        self._names = special_tokens

    def render(
        self,
        conversations: Sequence[Sequence[Message]],
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        generation_prompt: bool = True,
    ) -> list[str]:
        return [
            self._jinja.render(
                messages=[message.for_template() for message in messages],
                add_generation_prompt=generation_prompt,
                **self._names,
            )
            for messages in conversations
        ]


def golden(tokenizer: Mapping[str, Any], config: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """What the library and the runtime of packages make of `texts`, of ids, and of conversations."""
    largest = max([*tokenizer["model"]["vocab"].values(), *(entry["id"] for entry in tokenizer["added_tokens"])])
    bos = config.get("bos_token")
    reader = TextTokenizer.from_bytes(
        json.dumps(tokenizer).encode(),
        Path("tokenizer.json"),
        vocab_size=largest + 1,
        bos_token=bos["content"] if isinstance(bos, Mapping) else bos,
        add_bos_token=config.get("add_bos_token", False),
    )
    encoded = [
        {
            "text": text,
            "plain": reader.encode(text, parse_special=False, add_bos=False),
            "special": reader.encode(text, parse_special=True, add_bos=True),
        }
        for text in texts
    ]
    decoded = [{"ids": entry["special"], "text": reader.decode(entry["special"])} for entry in encoded]
    if tokenizer["decoder"]["type"] == "ByteLevel":  # cut characters: elsewhere the library counts bytes
        draw = random.Random(1)
        some = [[draw.randint(0, largest) for _ in range(8)] for _ in range(10)]
        decoded += [{"ids": ids, "text": reader.decode(ids)} for ids in some]
    result: dict[str, Any] = {"encode": encoded, "decode": decoded}
    if "chat_template" in config:
        names = {"bos_token": reader.inner.id_to_token(reader.bos_id) if reader.bos_id is not None else ""}
        template = _Template(config["chat_template"], names)
        result["chat"] = [
            {
                "messages": [list(turn) for turn in turns],
                "ids": encode_chat(template, reader, [Message(role, content) for role, content in turns]),
            }
            for turns in CHATS
        ]
    return result


def write(directory: Path, texts: Sequence[str] = TEXTS) -> None:
    """Writes the tokenizers and `golden.json` into `directory`."""
    results: dict[str, Any] = {}
    for name, form in forms().items():
        folder = directory / name
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "tokenizer.json", form.tokenizer)
        _write(folder / "tokenizer_config.json", form.config)
        results[name] = golden(form.tokenizer, form.config, texts)
    # Too large to be committed twice: the Swift tests read it where it lies.
    tiny = [json.loads((BITNET_TINY / name).read_text("utf-8")) for name in ("tokenizer.json", "tokenizer_config.json")]
    results["bitnet-tiny"] = golden(tiny[0], tiny[1], texts)
    _write(directory / GOLDEN, results)


def _write(path: Path, value: object) -> None:
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    # One entry a line where that is short: a change can be read.
    path.write_text(text.replace("},{", "},\n{") + "\n", "utf-8", newline="\n")


if __name__ == "__main__":
    write(FIXTURES)
