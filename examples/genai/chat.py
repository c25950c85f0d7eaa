"""A conversation with a package of bitnet-onnx, on onnxruntime-genai; README.md tells how."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import onnxruntime_genai as og


class ChatError(Exception):
    """What goes wrong, as the one line that the user reads."""


def open_model(package: Path, library: Path | None) -> og.Model:
    """Opens the directory as it is; with the operator library its kernels run, without it the function bodies.

    onnxruntime-genai takes a library only from the package or from the working directory. The overlay names it without
    a change of genai_config.json, and the working directory is that of the library while the model is opened.
    """
    if not (package / "genai_config.json").is_file():
        raise ChatError(
            f"{package} is not a package: it has no genai_config.json; `bitnet-onnx convert` makes packages"
        )
    if not (package / "model.onnx.data").is_file():
        raise ChatError(
            f"{package / 'model.onnx.data'} is missing, which holds the weights: copy the package as a whole"
        )
    config = og.Config(str(package.resolve()))
    if library is None:
        return og.Model(config)
    if not library.is_file():
        raise ChatError(f"{library}: no such library; `bitnet-onnx ops --path` prints where it is")
    options = {"custom_ops_library": library.name}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    with contextlib.chdir(library.parent):
        return og.Model(config)


class Conversation:
    """Messages and the generator that has read them.

    Args:
        model: the opened package.
        search: settings of onnxruntime-genai's search.
        max_new_tokens: most tokens of an answer.
    """

    def __init__(self, model: og.Model, search: dict[str, float | int | bool], max_new_tokens: int) -> None:
        self.tokenizer = og.Tokenizer(model)
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(**search)
        self._context = int(parameters.get_search_options()["max_length"])
        self._generator = og.Generator(model, parameters)
        self._limit = max_new_tokens
        self._ends = set(self.tokenizer.eos_token_ids)
        self.messages: list[dict[str, str]] = []

    def ask(self, question: str) -> Iterator[str]:
        """Answers in pieces, and remembers question and answer."""
        self.messages.append({"role": "user", "content": question})
        try:
            text = self.tokenizer.apply_chat_template(messages=json.dumps(self.messages), add_generation_prompt=True)
        except RuntimeError as error:
            raise ChatError(f"the package has no chat template that can be used ({error}): give --raw") from None
        answer = ""
        for piece in self._answer(self.tokenizer.encode(text)):
            answer += piece
            yield piece
        self.messages.append({"role": "assistant", "content": answer})

    def continue_text(self, text: str) -> Iterator[str]:
        """Goes on with a text, after the tokens that begin one."""
        self.tokenizer.update_options(add_special_tokens="true")
        return self._answer(self.tokenizer.encode(text))

    def _answer(self, ids: list[int]) -> Iterator[str]:
        if len(ids) >= self._context:
            raise ChatError(
                f"{len(ids)} tokens leave no room in the context of {self._context}: give a larger --context"
            )
        # What the last turn has read already stays: only what is new behind it is read.
        known = self._generator.get_sequence(0) if self._generator.token_count() else []
        same = 0
        while same < min(len(known), len(ids) - 1) and known[same] == ids[same]:
            same += 1
        self._generator.rewind_to(same)
        self._generator.append_tokens(ids[same:])
        stream = self.tokenizer.create_stream()
        for _ in range(self._limit):
            if self._generator.is_done():
                raise ChatError(f"the context of {self._context} tokens is full: give a larger --context")
            self._generator.generate_next_token()
            (token,) = self._generator.get_next_tokens()
            if token in self._ends:
                return
            yield stream.decode(token)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ChatError(f"{message}; --help lists the options")


def read_arguments() -> argparse.Namespace:
    parser = _Parser(description="Chat with a package of bitnet-onnx on onnxruntime-genai.")
    parser.add_argument("package", type=Path, help="the directory that `bitnet-onnx convert` wrote")
    parser.add_argument("--library", type=Path, help="the operator library; without it the function bodies run")
    parser.add_argument("--prompt", help="ask this alone; otherwise each line of the standard input is a question")
    parser.add_argument("--raw", action="store_true", help="continue the text of --prompt, without a chat template")
    parser.add_argument("--system", help="the message that begins the conversation")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="most tokens of an answer (256)")
    parser.add_argument("--context", type=int, help="most tokens of the conversation (as genai_config.json says)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the most probable token (0)")
    parser.add_argument("--top-p", type=float, default=1.0, help="keep the tokens whose probabilities reach this (1)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same answers (0)")
    arguments = parser.parse_args()
    if arguments.raw and arguments.prompt is None:
        parser.error("--raw continues a text: give --prompt")
    for name, value, fits in (
        ("--max-new-tokens", arguments.max_new_tokens, arguments.max_new_tokens >= 1),
        ("--context", arguments.context, arguments.context is None or arguments.context >= 2),
        ("--temperature", arguments.temperature, 0 <= arguments.temperature <= 1000),
        ("--top-p", arguments.top_p, 0 < arguments.top_p <= 1),
        ("--seed", arguments.seed, 0 <= arguments.seed < 2**31),
    ):
        if not fits:
            parser.error(f"{name} is {value}, which is out of range")
    return arguments


def questions(prompt: str | None) -> Iterator[str]:
    if prompt is not None:
        yield prompt
        return
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return


def main() -> None:
    arguments = read_arguments()
    search: dict[str, float | int | bool] = {"do_sample": arguments.temperature > 0}
    if arguments.temperature > 0:
        search |= {"temperature": arguments.temperature, "random_seed": arguments.seed}
        search |= {"top_k": 0, "top_p": arguments.top_p}  # without the first there would be 50
    if arguments.context is not None:
        search["max_length"] = arguments.context
    conversation = Conversation(open_model(arguments.package, arguments.library), search, arguments.max_new_tokens)
    if arguments.system is not None:
        conversation.messages.append({"role": "system", "content": arguments.system})
    for question in questions(arguments.prompt):
        try:
            for piece in conversation.continue_text(question) if arguments.raw else conversation.ask(question):
                print(piece, end="", flush=True)
        finally:
            print()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ChatError, RuntimeError) as error:
        print(f"chat.py: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
