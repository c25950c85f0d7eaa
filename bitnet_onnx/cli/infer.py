"""`bitnet-onnx infer`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import click

from bitnet_onnx.cli._console import error_console, printable
from bitnet_onnx.cli._package import package_path
from bitnet_onnx.cli._ray import on_ray, ray_options
from bitnet_onnx.cli._running import activations_option, kv_option, speculate_option
from bitnet_onnx.errors import InputError, UnsupportedError
from bitnet_onnx.runtime import Generation, Message, Model, SamplingParameters, TokenStream, load
from bitnet_onnx.runtime.kv_scales import KvType

_IDS_LIMIT = 64 << 20
_CONVERSATION_PENALTY = 1.1
_LINE_LIMIT = 4 << 20
_CHAT_HELP = "An empty line or Ctrl-D ends the chat, Ctrl-C the answer; /new starts a new conversation."


@click.command()
@click.argument("package", type=package_path)
@click.option("--prompt", metavar="TEXT", help="Text to continue; with --chat, the one message to answer.")
@click.option("--chat", is_flag=True, help="Converse through the model's chat template.")
@click.option("--ids-file", type=click.Path(path_type=Path), help="Token ids to continue: a JSON list; - for stdin.")
@click.option("--max-new-tokens", type=int, default=512, show_default=True, help="Most tokens to generate.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0: always the likeliest token.")
@click.option("--top-k", type=int, default=0, show_default=True, help="Sample among the k likeliest; 0: all.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Sample among the likeliest that sum to p.")
@click.option("--min-p", type=float, default=0.0, show_default=True, help="Drop tokens below p times the likeliest.")
@click.option(
    "--repetition-penalty", type=float, help="Above 1 discourages repeats.  [default: 1.1 in a conversation, else 1]"
)
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End at this text, which is not shown; repeatable.")
@speculate_option
@click.option("--threads", type=click.IntRange(min=1), help="Threads of one operator.  [default: physical cores]")
@activations_option
@kv_option
@click.option("--batch", type=click.Path(path_type=Path), help="Prompts to answer: a JSON object a line.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="With --batch: the answers, a line each; continued if there."
)
@click.option("--max-batch", type=int, default=16, show_default=True, help="With --batch: most answers at a time.")
@click.option("--memory", metavar="SIZE", help="With --batch: most memory, such as 4GiB.  [default: half of it]")
@ray_options("With --ray: engines.  [default: one on each node]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with ids, text, finish_reason and timings.")
def command(
    package: Path,
    prompt: str | None,
    chat: bool,
    ids_file: Path | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float | None,
    seed: int | None,
    stop: tuple[str, ...],
    speculate: int,
    threads: int | None,
    activation_bits: int | None,
    kv: KvType,
    batch: Path | None,
    out: Path | None,
    max_batch: int,
    memory: str | None,
    use_ray: bool,
    ray_address: str | None,
    replicas: str | None,
    as_json: bool,
) -> None:
    """Generate text from PACKAGE: continue --prompt or --ids-file, --chat, or answer a file of prompts with --batch.

    A line of --batch is {"prompt": TEXT or ids} or {"messages": [...]}, perhaps with an "id" and sampling options of
    its own. Line n gets the seed plus n - 1.
    """
    if (batch is None) != (out is None):
        raise InputError("--batch FILE and --out FILE belong together")
    if batch is not None and (chat or as_json or prompt is not None or ids_file is not None):
        raise InputError("--batch excludes --prompt, --chat, --ids-file and --json")
    if batch is None and memory is not None:
        raise InputError("--memory belongs to --batch")
    if batch is None and use_ray:
        raise InputError("--ray belongs to --batch")
    ray = on_ray(use_ray, ray_address, replicas)
    if ids_file is not None and (chat or prompt is not None):
        raise InputError("--ids-file excludes --prompt and --chat")
    if ids_file is None and prompt is None and batch is None and not chat:
        raise InputError("nothing to do: give --prompt TEXT, --chat, --ids-file FILE or --batch FILE")
    conversation = chat and prompt is None
    if conversation and as_json:
        raise InputError("--json answers one prompt: give --prompt TEXT, or leave --json out")
    if repetition_penalty is None:
        # Small models without sampling fall into loops once a conversation has some length.
        repetition_penalty = _CONVERSATION_PENALTY if conversation else 1.0
    parameters = SamplingParameters(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
    )
    if batch is not None and out is not None:
        from bitnet_onnx.cli._batch import answer_file
        from bitnet_onnx.runtime.engine.engine import EngineSettings

        settings = EngineSettings(max_batch=max_batch, speculate=speculate, kv=kv, activation_bits=activation_bits)
        answer_file(package, batch, out, parameters, settings=settings, memory=memory, threads=threads, on_ray=ray)
        return
    ids = None if ids_file is None else _read_ids(ids_file)
    model = load(package, threads=threads, activation_bits=activation_bits, speculate=speculate, kv=kv)
    if conversation:
        _converse(model, parameters)
        return
    stream = model.stream(
        ids if ids is not None else [Message("user", prompt or "")] if chat else prompt or "", parameters
    )
    generation = _answer(stream, show=not as_json)
    if as_json:
        click.echo(json.dumps(_as_json(generation)))


def _read_ids(path: Path) -> list[int]:
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(_IDS_LIMIT + 1)
        else:
            with path.open("rb") as file:
                data = file.read(_IDS_LIMIT + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > _IDS_LIMIT:
        raise InputError(f"{path}: larger than the limit of {_IDS_LIMIT} bytes")
    try:
        ids = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error!s:.80}") from error
    if not isinstance(ids, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise InputError(f"{path}: expected a JSON list of token ids, such as [1, 42, 7]")
    return ids


def _answer(stream: TokenStream, *, show: bool, resume: bool = False) -> Generation:
    """Run a stream to its end, printing text as it becomes certain; with `resume` Ctrl-C ends only the answer."""
    try:
        for token in stream:
            if show and token.text:
                click.echo(token.text, nl=False)
                sys.stdout.flush()
    except KeyboardInterrupt:
        if not resume:
            raise
    generation = stream.result()
    if show:
        click.echo()
        _print_timings(generation)
    return generation


def _print_timings(generation: Generation) -> None:
    if not error_console().is_terminal:
        return
    t = generation.timings
    error_console().print(
        f"[dim]{t.prefill_tokens} tokens read at {t.prefill_tokens_per_s:.0f}/s, {len(generation.ids)} written at "
        f"{t.decode_tokens_per_s:.1f}/s ({generation.finish_reason})[/]",
        highlight=False,
    )


def _converse(model: Model, parameters: SamplingParameters) -> None:
    if sys.stdin.isatty():
        error_console().print(f"[dim]{_CHAT_HELP}[/]", highlight=False)
    messages: list[Message] = []
    turn = 0
    while (text := _read_message()) is not None:
        if text.strip() == "/new":
            messages.clear()
            continue
        messages.append(Message("user", text))
        # Each answer has a seed of its own, so that a seeded conversation repeats as a whole and not within itself.
        seeded = parameters if parameters.seed is None else replace(parameters, seed=parameters.seed + turn)
        try:
            generation = _answer(model.stream(messages, seeded), show=True, resume=True)
        except UnsupportedError:
            raise
        except InputError as error:
            # The conversation outgrew the context: say so and go on without its history.
            line = printable(f"{error}; the conversation starts anew")
            error_console().print(line, style="yellow", markup=False, soft_wrap=True)
            messages.clear()
            continue
        messages.append(Message("assistant", generation.text))
        turn += 1


def _read_message() -> str | None:
    if sys.stdin.isatty():
        error_console().print("[bold cyan]you>[/] ", end="")
    try:
        line = sys.stdin.buffer.readline(_LINE_LIMIT).decode("utf-8", errors="replace")
    except KeyboardInterrupt:
        return None
    return line.rstrip("\r\n") if line.strip() else None


def _as_json(generation: Generation) -> dict[str, object]:
    return {
        "ids": list(generation.ids),
        "text": generation.text,
        "finish_reason": generation.finish_reason,
        "timings": generation.timings.as_dict(),
    }
