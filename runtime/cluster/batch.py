"""A file of prompts answered by a Ray cluster: Ray Data hands blocks of lines to actors that hold an engine."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.exceptions import RayError, RayTaskError

from bitnet_onnx.errors import BitnetOnnxError
from bitnet_onnx.runtime.cluster.placement import Placement, Share
from bitnet_onnx.runtime.cluster.session import first_line
from bitnet_onnx.runtime.engine.engine import Engine, EngineSettings
from bitnet_onnx.runtime.memory import HybridMemoryPool
from bitnet_onnx.runtime.offline import (
    AnsweredLine,
    OfflineReport,
    PromptLine,
    answer_lines,
    continued,
    package_salt,
    read_lines,
    salt_of,
)
from bitnet_onnx.runtime.package import PackageInfo
from bitnet_onnx.runtime.prompts import PromptEncoder
from bitnet_onnx.runtime.sampling import SamplingParameters

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 4 << 20
#: Lines of a block, as a multiple of the batch: an engine is never idle for long at the end of one, since it has two.
_BLOCK_BATCHES = 4
_BLOCKS_AT_A_TIME = 2
#: More would take the memory of this process; then blocks are larger.
_MAX_BLOCKS = 8192

_LINES = pa.schema([("number", pa.int64()), ("data", pa.large_binary())])
_ANSWERS = pa.schema(
    [("number", pa.int64()), ("data", pa.large_binary()), ("failed", pa.bool_()), ("generated", pa.int64())]
)


def write_answers_on_ray(
    placement: Placement,
    source: Path,
    out: Path,
    parameters: SamplingParameters,
    settings: EngineSettings,
) -> OfflineReport:
    """What `write_answers` does, with the same bytes, by engines of a cluster; the files are read and written here.

    A worker or a machine that is lost loses nothing: its block is answered again elsewhere.

    Args:
        placement: of the engines; its most.
        source: the prompts.
        out: is made, or continued.
        parameters: of all lines that do not say otherwise; line n gets the seed plus n - 1.
        settings: of each engine.

    Raises:
        InputError: a file cannot be read or written, or `out` holds other answers.
        BitnetOnnxError: an engine or the cluster died; what was answered stands in `out`.
    """
    placement.check_room(placement.most)
    salt = salt_of(package_salt(placement.package, settings), parameters)
    with continued(source, out, salt) as answers:
        blocks = find_blocks(answers.lines, answers.number, settings.max_batch * _BLOCK_BATCHES)
        if not blocks:
            return answers.write(())
        work = _Work(str(placement.package), settings, placement.share, parameters, salt)
        return answers.write(_answered(placement, source.resolve(), blocks, work))


@dataclass(frozen=True, slots=True)
class _Work:
    """What an engine is opened with, and answers with."""

    package: str
    settings: EngineSettings
    share: Share
    parameters: SamplingParameters
    salt: bytes


@dataclass(frozen=True, slots=True)
class Block:
    """Successive lines of a file.

    Attributes:
        start: byte where they begin.
        number: lines before them, empty ones counted.
        count: those that are not empty.
        nbytes: of them all.
    """

    start: int
    number: int
    count: int
    nbytes: int


def find_blocks(file: BinaryIO, number: int, most: int) -> list[Block]:
    """The rest of a file in blocks of up to `most` lines, or more lines where it is very long."""
    blocks: list[Block] = []
    most_bytes = _BLOCK_BYTES
    start = end = file.tell()
    before, count = number, 0
    for line in read_lines(file, number):
        count += 1
        end = file.tell()
        if count >= most or end - start >= most_bytes:
            blocks.append(Block(start, before, count, end - start))
            start, before, count = end, line.number, 0
        if len(blocks) > _MAX_BLOCKS:
            blocks = [_joined(*blocks[at : at + 2]) for at in range(0, len(blocks), 2)]
            most, most_bytes = 2 * most, 2 * most_bytes
    if count:
        blocks.append(Block(start, before, count, end - start))
    return blocks


def _joined(first: Block, second: Block | None = None) -> Block:
    if second is None:
        return first
    return Block(first.start, first.number, first.count + second.count, first.nbytes + second.nbytes)


def _answered(placement: Placement, source: Path, blocks: list[Block], work: _Work) -> Iterator[AnsweredLine]:
    """Streams the answers in order.

    Raises:
        BitnetOnnxError: an engine or the cluster died.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    lines = ray.data.read_datasource(
        _Lines(source, blocks),
        override_num_blocks=len(blocks),
        num_cpus=0,
        concurrency=1,
        label_selector={"ray.io/node-id": placement.cluster.here},
    )
    answers = lines.map_batches(
        _EngineActor,
        fn_constructor_args=(work,),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            size=min(placement.most, len(blocks)),
            max_tasks_in_flight_per_actor=2 * _BLOCKS_AT_A_TIME,
            max_concurrent_calls_per_actor=_BLOCKS_AT_A_TIME,
            enable_true_multi_threading=True,
        ),
        num_cpus=placement.share.cpus,
    )
    try:
        for table in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            columns = (table.column(name).to_pylist() for name in _ANSWERS.names)
            for number, data, failed, generated in zip(*columns, strict=True):
                yield AnsweredLine(number, data, failed, generated)
    except (RayError, RuntimeError) as error:
        raise _own(error) from error


def _own(error: BaseException) -> BitnetOnnxError:
    """The error of ours that Ray has wrapped, or one that tells what it says."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RayTaskError) and isinstance(cause.cause, BitnetOnnxError):
            cause = cause.cause
        if isinstance(cause, BitnetOnnxError):
            return BitnetOnnxError(str(cause))
        cause = cause.__cause__
    return BitnetOnnxError(f"Ray: {first_line(error)}")


class _Lines(Datasource):  # type: ignore[misc]  # Ray's base classes are Any to mypy
    """Blocks of lines, each read by a task of its own on this machine."""

    def __init__(self, source: Path, blocks: list[Block]) -> None:
        super().__init__()
        self._source = source
        self._blocks = blocks

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all lines."""
        return sum(block.nbytes for block in self._blocks)

    def get_read_tasks(self, parallelism: int, *_: object, **__: object) -> list[ReadTask]:  # noqa: ARG002
        """One task a block, whatever the parallelism."""
        return [
            ReadTask(partial(_read_block, self._source, block), BlockMetadata(block.count, block.nbytes, None, None))
            for block in self._blocks
        ]


def _read_block(source: Path, block: Block) -> Iterable[pa.Table]:
    with source.open("rb") as file:
        file.seek(block.start)
        lines = list(islice(read_lines(file, block.number), block.count))
        if len(lines) < block.count or file.tell() != block.start + block.nbytes:
            raise BitnetOnnxError(f"{source} was changed while it was read")
    columns = [[line.number for line in lines], [line.data for line in lines]]
    return [pa.table(columns, schema=_LINES)]


class _EngineActor:
    """Holds an engine and answers blocks of lines, two at a time."""

    def __init__(self, work: _Work) -> None:
        self._work = work
        self._prompts = PromptEncoder(PackageInfo.open(work.package))
        memory = HybridMemoryPool(work.share.memory_bytes)
        self._engine = Engine.open(
            work.package, work.settings, memory=memory, threads=work.share.threads, prompts=self._prompts
        )
        self._engine.start()

    def __call__(self, lines: pa.Table) -> pa.Table:
        """Answers a block."""
        numbers, data = lines.column("number").to_pylist(), lines.column("data").to_pylist()
        todo = [PromptLine(number, line) for number, line in zip(numbers, data, strict=True)]
        answers = answer_lines(self._engine, self._prompts, todo, self._work.parameters, salt=self._work.salt)
        rows = [(line.number, line.data, line.failed, line.generated_tokens) for line in answers]
        return pa.table([list(column) for column in zip(*rows, strict=True)], schema=_ANSWERS)
