"""Answers that must be JSON, follow a schema, a regular expression or a grammar: token by token, by llguidance.

Whatever cannot be enforced whole is refused; whatever fails on the way ends the answer with an error. No answer is
ever less constrained than was asked for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from bitnet_onnx.errors import BitnetOnnxError, InputError, UnsupportedError
from bitnet_onnx.limited_process import Limits, ProcessEndedError, run_limited
from bitnet_onnx.runtime._native_errors import one_line
from bitnet_onnx.runtime.engine._schema_check import check_schema
from bitnet_onnx.runtime.engine._token_bytes import Spelling, token_bytes
from bitnet_onnx.runtime.engine.request import EngineBusyError
from bitnet_onnx.runtime.tokenizer import TextTokenizer, parse_tokenizer

if TYPE_CHECKING:
    import llguidance

logger = logging.getLogger(__name__)

_TRIAL = Path(__file__).with_name("_grammar_trial.py")
_TRIAL_LIMITS = Limits(megabytes=768, seconds=5)
_REMEMBERED_TRIALS = 256
_TRIALS_AT_ONCE = 2
_MAX_WAIT_SECONDS = 10.0
#: Of one grammar, in each answer that follows it.
_MAX_MEGABYTES = 96
_MAX_MASK_SECONDS = 2.0
_MAX_PATTERN = 8 * 1024
_MAX_GRAMMAR = 64 * 1024
_MAX_CHOICES = 1_000
_MAX_CHOICE_CHARACTERS = 64 * 1024
#: A step stays in the milliseconds, and a grammar below about 100 MB. What would need more is an error of the grammar.
_LIMITS: dict[str, int | bool] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
#: Some white space is what models were trained with; without a bound a model may never stop writing it.
_WHITE_SPACE = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,32}"}
_EMBEDDED = re.compile(r"%\s*json\b")


class ConstraintError(BitnetOnnxError):
    """An answer cannot go on under its constraint."""


class GrammarConstraint:
    """The state of one answer in its grammar; implements `request.Constraint`."""

    __slots__ = ("_ended", "_matcher", "_stop", "_stop_ids", "_vocab_size")

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int, stop_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._stop_ids = stop_ids
        self._stop = np.array(sorted(stop_ids), np.int64)
        self._ended = False

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens may come next, `[vocab_size]`; the end tokens exactly where the answer is whole.

        Raises:
            ConstraintError: nothing may come next, or the step took more than its limits.
        """
        if self.complete:
            mask = np.zeros(self._vocab_size, np.bool_)
            mask[self._stop] = True
        else:
            started = time.perf_counter()
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            self._check_state()
            if (took := time.perf_counter() - started) > _MAX_MASK_SECONDS:
                raise ConstraintError(
                    f"the grammar is too complex: one step took {took:.1f} s, above {_MAX_MASK_SECONDS} s"
                )
            mask = np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)
            mask[self._stop] = self._matcher.is_accepting()
        if not mask.any():
            raise ConstraintError("the grammar allows none of the model's tokens here")
        return mask

    def accept(self, token: int) -> None:
        """Tells which token was chosen.

        Raises:
            ConstraintError: the token was not allowed, or the step took more than its limits.
        """
        if self._ended:
            raise ConstraintError(f"token {token} follows the end of the answer")
        if token in self._stop_ids:
            if not self.complete and not self._matcher.is_accepting():
                raise ConstraintError(f"end token {token} before the answer is whole")
            self._check_state()
            self._ended = True
        elif not 0 <= token < self._vocab_size or self.complete or not self._matcher.consume_token(token):
            self._check_state()
            raise ConstraintError(f"token {token} does not follow the grammar")

    @property
    def complete(self) -> bool:
        """Whether nothing but the end may follow."""
        return self._ended or (self._matcher.is_stopped() and not self._matcher.is_error())

    def _check_state(self) -> None:
        if self._matcher.is_error():
            raise ConstraintError(f"the grammar cannot be followed: {_reason(self._matcher.get_error())}")


class ConstraintFactory:
    """Makes constraints for the answers of one model; for any thread.

    Args:
        tokenizer: tokenizer.json, or the package's tokenizer.
        vocab_size: of the model's logits; may be above what the tokenizer has.
        stop_ids: every token that ends an answer.

    Raises:
        UnsupportedError: llguidance is not installed, or cannot know how this tokenizer spells.
        InputError: tokenizer.json cannot be read, or an end token is outside the vocabulary.
    """

    def __init__(self, tokenizer: bytes | TextTokenizer, vocab_size: int, stop_ids: Iterable[int]) -> None:
        try:
            import llguidance
        except ImportError:
            raise UnsupportedError("structured output needs llguidance: pip install 'bitnet-onnx[serve]'") from None
        self._stop_ids = frozenset(stop_ids)
        if outside := sorted(token for token in self._stop_ids if not 0 <= token < vocab_size):
            raise InputError(f"end token {outside[0]} is outside the vocabulary of {vocab_size}")
        self._vocab_size = vocab_size
        inner = parse_tokenizer(tokenizer, "tokenizer.json") if isinstance(tokenizer, bytes) else tokenizer.inner
        self._control: dict[str, int] = {
            added.content: token
            for token, added in inner.get_added_tokens_decoder().items()
            if added.special and token < vocab_size
        }
        self._library = llguidance
        self._limits = llguidance.LLParserLimits(**_LIMITS)  # type: ignore[arg-type]  # one dictionary of both types
        self._tokenizer = _ll_tokenizer(inner, vocab_size, sorted(self._stop_ids))
        self._tried: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()
        self._trials = threading.BoundedSemaphore(_TRIALS_AT_ONCE)

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Text and id of the tokens that answers are decoded without."""
        return self._control

    def json_object(self) -> GrammarConstraint:
        """Any JSON object."""
        return self._compile(_schema_grammar({"type": "object"}), "json_object", tried=True)

    def json_schema(self, schema: Mapping[str, object], where: str = "schema") -> GrammarConstraint:
        """JSON that is valid by `schema` (draft 2020-12); properties come in the order of the schema.

        A schema that is new takes a tenth of a second, and at worst some seconds: not for an event loop. So do the
        other kinds of grammar.

        Raises:
            InputError: the schema is wrong or too large; nothing is valid by it.
            UnsupportedError: a keyword or value that could not be enforced.
            EngineBusyError: too many new grammars at once.
        """
        return self._compile(_schema_grammar(check_schema(schema, where)), where)

    def regex(self, pattern: str) -> GrammarConstraint:
        """A text that the pattern (of Rust's regex syntax, without anchors) matches whole.

        Raises:
            InputError: the pattern is wrong, too long, or matches nothing.
        """
        text = _text(pattern, "regex", _MAX_PATTERN)
        return self._compile(self._library.LLMatcher.grammar_from_regex(text), "regex")

    def grammar(self, lark: str) -> GrammarConstraint:
        """A text by a grammar in llguidance's variant of Lark, whose first rule is `start`.

        Raises:
            InputError: the grammar is wrong, too long, or matches nothing.
            UnsupportedError: a schema within it has a keyword that could not be enforced.
        """
        text = _text(lark, "grammar", _MAX_GRAMMAR)
        for found in _EMBEDDED.finditer(text):
            _check_embedded(text, found.end())
        return self.trusted_grammar(text, "grammar")

    def trusted_grammar(self, lark: str, where: str) -> GrammarConstraint:
        """As `grammar`, where whatever schemas it holds have been checked."""
        return self._compile(self._library.LLMatcher.grammar_from_lark(lark), where, names_tokens=True)

    def choice(self, choices: Sequence[str]) -> GrammarConstraint:
        """One of some texts.

        Raises:
            InputError: no choices, too many, or not texts.
        """
        if isinstance(choices, str) or not isinstance(choices, Sequence) or not 0 < len(choices) <= _MAX_CHOICES:
            raise InputError(f"choice: expected a list of 1 to {_MAX_CHOICES} texts")
        texts = [_text(choice, "choice", _MAX_CHOICE_CHARACTERS) for choice in choices]
        if sum(map(len, texts)) > _MAX_CHOICE_CHARACTERS:
            raise InputError(f"choice: more than {_MAX_CHOICE_CHARACTERS} characters in all")
        pattern = "|".join("".join(f"\\x{{{ord(character):x}}}" for character in text) for text in texts)
        return self._compile(self._library.LLMatcher.grammar_from_regex(f"({pattern})"), "choice")

    def _compile(
        self, grammar: str, where: str, *, tried: bool = False, names_tokens: bool = False
    ) -> GrammarConstraint:
        if not tried:
            self._try(grammar, where, names_tokens)
        try:
            matcher = self._library.LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the Rust library is no Exception
            raise InputError(f"{where} cannot be followed: {one_line(error)}") from None
        if matcher.is_error():
            raise InputError(f"{where} cannot be followed: {_reason(matcher.get_error())}")
        if warnings := matcher.get_grammar_warnings():
            raise UnsupportedError(f"{where} cannot be followed whole: {_reason(warnings[0])}")
        return GrammarConstraint(matcher, self._vocab_size, self._stop_ids)

    def _try(self, grammar: str, where: str, names_tokens: bool) -> None:
        """Compiles a new grammar in a process of its own first, which it may end."""
        key = hashlib.sha256(grammar.encode()).digest()
        with self._lock:
            if key in self._tried:
                self._tried.move_to_end(key)
                return
        request = {
            "grammar": grammar,
            "vocab_size": self._vocab_size if names_tokens else 0,
            "control": self._control if names_tokens else {},
            "limits": _LIMITS,
        }
        if not self._trials.acquire(timeout=_MAX_WAIT_SECONDS):
            raise EngineBusyError(f"{where}: too many new grammars are being read", retry_after_s=_TRIAL_LIMITS.seconds)
        try:
            answer = run_limited(_TRIAL, json.dumps(request).encode(), _TRIAL_LIMITS)
        except ProcessEndedError as error:
            logger.debug("grammar process: %s", error)
            raise InputError(
                f"{where} is too complex: it takes more than {_TRIAL_LIMITS.seconds} s or {_TRIAL_LIMITS.megabytes} MB "
                f"to read"
            ) from None
        finally:
            self._trials.release()
        if "error" in answer:
            raise InputError(f"{where} cannot be followed: {_reason(str(answer['error']))}")
        if answer["megabytes"] > _MAX_MEGABYTES:
            raise InputError(
                f"{where} is too complex: it takes {answer['megabytes']} MB, above the limit of {_MAX_MEGABYTES}"
            )
        with self._lock:
            self._tried[key] = None
            while len(self._tried) > _REMEMBERED_TRIALS:
                self._tried.popitem(last=False)


class _Vocabulary:
    """What `llguidance.TokenizerWrapper` asks for; one more id than the model has stands for its end of text."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int]) -> None:
        found = token_bytes(tokenizer, vocab_size, stop_ids)
        self.eos_token_id = vocab_size
        self.tokens = (*found.tokens, b"\xff[end]")
        self.special_token_ids = (*found.control, vocab_size)
        self._spelling = Spelling(tokenizer, found.tokens, found.control)

    def __call__(self, text: str) -> list[int]:
        return self._spelling(text)


def _ll_tokenizer(tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int]) -> llguidance.LLTokenizer:
    import llguidance

    vocabulary = _Vocabulary(tokenizer, vocab_size, stop_ids)
    try:
        wrapper = llguidance.TokenizerWrapper(vocabulary)
        return llguidance.LLTokenizer(wrapper)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        raise UnsupportedError(f"tokenizer.json cannot serve structured output: {one_line(error)}") from None


def embedded_schema(schema: dict[str, object]) -> str:
    """A checked schema as it stands in a grammar, after `%json`."""
    return json.dumps({"x-guidance": _WHITE_SPACE, **schema})


def _schema_grammar(schema: dict[str, object]) -> str:
    return "start: %json " + embedded_schema(schema)


def _check_embedded(text: str, start: int) -> None:
    where = f"grammar: the schema at character {start}"
    begin = start + len(text[start:]) - len(text[start:].lstrip())
    try:
        schema, _ = json.JSONDecoder().raw_decode(text, begin)
    except (ValueError, RecursionError):
        raise InputError(f"{where} is not JSON") from None
    check_schema(schema, where)


def _text(value: object, where: str, most: int) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{where} is {value!r:.40}, expected a text that is not empty")
    if len(value) > most:
        raise InputError(f"{where} has {len(value)} characters, above the limit of {most}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where} is not valid Unicode: lone surrogate at character {error.start}") from None
    return value


def _reason(message: str) -> str:
    """What llguidance says, on one line of bounded length."""
    text = " ".join(message.partition("<backtrace>")[0].replace("<non-verbose/>", " ").split())
    if text.startswith("NoExtension"):
        return "no text satisfies it"
    return text if len(text) <= 300 else text[:150] + " ... " + text[-150:]
