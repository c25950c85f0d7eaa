"""The command line: one file per command, loaded when it is called."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

import click
from click.exceptions import NoArgsIsHelpError

from bitnet_onnx.cli._console import error_console, printable, setup_logging
from bitnet_onnx.cli._signals import Terminated, termination_raised
from bitnet_onnx.errors import BitnetOnnxError

#: Command, and the line that `--help` shows, so that help imports none of them.
_COMMANDS = {
    "convert": "Convert a checkpoint into an ONNX package, or a model into GGUF or safetensors.",
    "calibrate": "Read texts with a model, so that its conversion loses less.",
    "train": "Train a ternary model, from a checkpoint or from nothing.",
    "inspect": "Describe a checkpoint or a package.",
    "evaluate": "Measure perplexity, distance from a reference, and answers to questions.",
    "validate": "Compare a package with the checkpoint that it was made from.",
    "report": "Measure what a package lost, or show a training run, as a page.",
    "infer": "Generate text from a package.",
    "serve": "Serve a package to OpenAI clients, with a chat page.",
    "watch": "Draw what a running server does.",
    "zoo": "List and fetch models known by name.",
    "benchmark": "Measure speed and memory against peers.",
    "ops": "Locate the operator library.",
}
_INTERRUPTED = 130


class _Group(click.Group):
    """Commands that are imported when they run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"bitnet_onnx.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bitnet-onnx", prog_name="bitnet-onnx")
@click.option("-v", "--verbose", is_flag=True, help="Log what is done, step by step.")
def app(verbose: bool) -> None:
    """Any Llama- or GPT-family checkpoint, BitNet included, as one ONNX package with low-bit weights."""
    setup_logging(logging.DEBUG if verbose else logging.WARNING)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Bad input ends with one line on stderr and status 2; any other foreseen failure with one line and status 1; a signal
    with one line and 128 plus its number, after what was begun is undone.
    """
    try:
        with termination_raised():
            status = app.main(args=arguments, prog_name="bitnet-onnx", standalone_mode=False)
    except NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        status = error.exit_code
    except click.UsageError as error:
        hint = f" (see `{error.ctx.command_path} --help`)" if error.ctx is not None else ""
        status = _fail(f"{error.format_message()}{hint}", error.exit_code)
    except click.ClickException as error:
        status = _fail(error.format_message(), error.exit_code)
    except BitnetOnnxError as error:
        status = _fail(str(error), error.exit_status)
    except (KeyboardInterrupt, click.Abort):
        status = _fail("interrupted", _INTERRUPTED)
    except Terminated as signal:
        status = _fail("terminated", signal.exit_status)
    except BrokenPipeError:
        # The reader of our output went away: nothing is left to tell it, and the interpreter must not try.
        sys.stdout = None
        status = 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        status = _fail(f"{where}{error.strerror or error}", 1)
    except MemoryError:
        status = _fail("out of memory: close other programs, or choose a smaller model", 1)
    except RuntimeError as error:
        # A signal that meets Python's own locks at work may come out as their complaint.
        ended = interruption(error)
        if ended is None:
            raise
        status = _fail(*ended)
    sys.exit(status if isinstance(status, int) else 0)


def interruption(error: BaseException) -> tuple[str, int] | None:
    """What is said of the signal in whose handling an error arose, and the exit status; None: there was none."""
    cause = error.__context__
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            return "interrupted", _INTERRUPTED
        if isinstance(cause, Terminated):
            return "terminated", cause.exit_status
        cause = cause.__context__
    return None


def _fail(message: str, status: int) -> int:
    from rich.text import Text

    line = printable(" ".join(message.split()))
    error_console().print(Text.assemble(("error:", "bold red"), " ", line), soft_wrap=True)
    return status
