"""Many sequences over one opened decoder: prompts in chunks, and one token for all of them in one call."""

from __future__ import annotations

from collections import OrderedDict, abc
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from bitnet_onnx.errors import BitnetOnnxError, InputError, UnsupportedError
from bitnet_onnx.package_format import Operators
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.runtime._decoder_graph import CacheArray, DecoderGraph, bind_cache
from bitnet_onnx.runtime._malloc import return_free_memory
from bitnet_onnx.runtime._speculation import POSITIONS, check_draft_tokens
from bitnet_onnx.runtime.devices import Device
from bitnet_onnx.runtime.engine._activations import activation_bytes
from bitnet_onnx.runtime.engine._calls import Calls
from bitnet_onnx.runtime.engine._kv_slots import open_slots
from bitnet_onnx.runtime.engine.request import EngineBusyError
from bitnet_onnx.runtime.kv_scales import KvScales
from bitnet_onnx.runtime.memory import HybridMemoryPool
from bitnet_onnx.runtime.package import PackageInfo

_MAX_BATCH: Final = 1024
#: Steps that a free slot below others may cost a row before the highest sequence moves there: at least so many, and
#: one for so many tokens that are to be copied, since copying these takes about as long as a row.
_PATIENCE: Final = 4
_TOKENS_A_STEP: Final = 16
#: Bindings that are kept. Each knows the buffers of one range of slots.
_BINDINGS: Final = 32
#: What a closed sequence leaves in its slot, for the next one to write without asking the system for pages.
_KEPT_TOKENS: Final = 256


@dataclass(eq=False, slots=True)
class Sequence:
    """One text in the session. `BatchSession.open` gives it, and nobody else changes it.

    Attributes:
        length: tokens held.
        room: tokens that fit without asking for memory.
    """

    length: int
    room: int
    _slot: int


@dataclass(frozen=True, slots=True, eq=False)
class KvBlock:
    """Keys and values of some positions of a sequence, apart from it.

    Attributes:
        start: first position.
        data: `[2 * layers, kv_heads, positions, head_dim]`, keys and values of layer 0, of layer 1, ...
    """

    start: int
    data: CacheArray

    @property
    def stop(self) -> int:
        """The position behind the last."""
        return self.start + int(self.data.shape[2])

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.data.nbytes


class BatchSession:
    """An opened decoder with slots for the keys and values of `max_batch` sequences; for one thread.

    Logits of a sequence are the same bits whatever else is in the batch and however its prompt is cut into chunks, as
    far as the operators keep to that: those of the operator library do, function bodies do up to rounding.

    Args:
        package: the checked package.
        device: where it runs.
        memory: what is allocated is accounted there, keys and values as `kv`, what a call needs as `onnxruntime`.
        threads: threads of one operator; None: as many as there are physical cores.
        max_batch: most sequences at a time.
        prefill_chunk: most tokens of a prompt that one call reads.
        activation_bits: of the linear layers: 8, 16 or 0 (floats) instead of what the file says.
        draft_tokens: longest draft that `verify` reads.
        kv_scales: keys and values are held as int8 with these scales; None: as float32.

    Attributes:
        vocab_size: number of logits.
        exact: the operator library is there, and with it logits are the same bits in any call.
        context_length: most tokens of a sequence.
        prefill_chunk: as the argument, or less where the package has no graph of the engine and many logits.
        max_batch: as the argument.

    Raises:
        InputError: an argument is out of range.
        OperatorError: the operator library cannot be loaded.
        PackageError: the graph cannot be opened, or is not what the manifest says.
        UnsupportedError: attention has a form that has no int8 cache, or the package has standard operators.
        BitnetOnnxError: the budget has no room for a single call.
    """

    def __init__(
        self,
        package: PackageInfo,
        device: Device,
        memory: HybridMemoryPool,
        *,
        threads: int | None = None,
        max_batch: int = 16,
        prefill_chunk: int = 256,
        activation_bits: int | None = None,
        draft_tokens: int = 0,
        kv_scales: KvScales | None = None,
    ) -> None:
        if not 1 <= max_batch <= _MAX_BATCH:
            raise InputError(f"max_batch is {max_batch}, expected 1 to {_MAX_BATCH}")
        check_draft_tokens("draft_tokens", draft_tokens)
        if package.operators is Operators.STANDARD:
            raise UnsupportedError(
                f"{package.directory}: batches need a cache that is written in place, which standard operators do not "
                f"have: use `bitnet-onnx infer`, or convert the checkpoint with --operator stock or bitnet"
            )
        sizes = package.architecture
        chunk = min(prefill_chunk, sizes.context_length)
        self._graph = DecoderGraph(
            package,
            device,
            threads=threads,
            prefill_chunk=chunk,
            activation_bits=activation_bits,
            kv_scales=kv_scales,
        )
        self.vocab_size = sizes.vocab_size
        self.context_length = sizes.context_length
        self.prefill_chunk = self._graph.chunk
        self.max_batch = max_batch
        self.exact = device.operator_library is not None
        self._draft_tokens = draft_tokens
        self._calls = Calls(self._can_rest, max(max_batch, POSITIONS) if draft_tokens else max_batch)
        needed = activation_bytes(
            self._graph.path, chunk=self.prefill_chunk, batch=self._calls.positions, bodies=not self.exact
        )
        working, kv = memory.take("onnxruntime", needed), memory.take("kv", 0)
        if working is None or kv is None:
            if working is not None:
                working.release()
            raise BitnetOnnxError(
                f"a step of {package.directory} needs {needed} bytes of working memory, and the budget of "
                f"{memory.budget} bytes has no room for that; give more memory or smaller prefill_chunk and max_batch"
            )
        self._working, self._kv = working, kv
        self._token_bytes = sizes.cache_bytes_of(self._graph.cache_type)
        self._lengths = np.zeros(max_batch, np.int64)
        self._open: list[Sequence | None] = [None] * max_batch
        self._free = (1 << max_batch) - 1
        self._wasted = 0
        self._bindings: OrderedDict[tuple[int, int], ort.IOBinding] = OrderedDict()
        self._slots = open_slots(sizes, max_batch, kv, self._bindings.clear, self._graph.cache_type, device)

    def open(self, length: int) -> Sequence | None:
        """An empty sequence with room for `length` tokens; None: memory or slots are spent.

        Raises:
            InputError: `length` is negative or more than the context.
        """
        self._check_length(length)
        if not self._free:
            return None
        slot = (self._free & -self._free).bit_length() - 1
        if not self._commit(slot, length):
            return None
        self._free &= ~(1 << slot)
        sequence = Sequence(0, length, slot)
        self._open[slot] = sequence
        return sequence

    def reserve(self, sequence: Sequence, length: int) -> bool:
        """Room for `length` tokens in all; False: no memory, and everything is as before.

        Raises:
            InputError: `length` is negative or more than the context, or the sequence is closed.
        """
        self._check_open(sequence)
        self._check_length(length)
        if length > sequence.room:
            if not self._commit(sequence._slot, length):
                return False
            sequence.room = length
        return True

    def prefill(self, sequence: Sequence, ids: abc.Sequence[int], *, logits: bool) -> FloatArray | None:
        """Reads a chunk of a prompt behind what the sequence holds.

        Returns:
            Logits `[vocab_size]` of the last position, or None if they are not asked for.

        Raises:
            InputError: no ids or more than `prefill_chunk`, one outside the vocabulary, more than the context holds, or
                a closed sequence.
            EngineBusyError: no memory.
            BitnetOnnxError: ONNX Runtime failed; the sequence holds what it held before.
        """
        tokens = self._graph.checked(ids)
        if tokens.size > self.prefill_chunk:
            raise InputError(f"{tokens.size} tokens in one chunk, at most {self.prefill_chunk} fit")
        total = self._make_room(sequence, tokens.size)
        slot = sequence._slot
        mask = np.ones((1, total), np.int64)
        found = self._graph.run(self._binding(slot, slot + 1), tokens[np.newaxis], mask, tokens.size - 1)
        self._set_length(sequence, total)
        # A view would keep the logits of the whole chunk alive.
        return np.array(found[0, -1]) if logits else None

    def decode(self, sequences: abc.Sequence[Sequence], ids: abc.Sequence[int]) -> FloatArray:
        """Reads one token for each of some sequences.

        Returns:
            Logits `[n, vocab_size]` of what comes next, in the order of `sequences`.

        Raises:
            InputError: other numbers of sequences and ids, a sequence twice, or as `prefill`.
            EngineBusyError, BitnetOnnxError: as `prefill`; no sequence has changed.
        """
        tokens = self._graph.checked(ids)
        if tokens.size != len(sequences) or len(set(map(id, sequences))) != len(sequences):
            raise InputError(f"{tokens.size} tokens for {len(sequences)} sequences; each once and a token for each")
        for sequence in sequences:
            self._make_room(sequence, 1)
        self._close_gaps()
        slots = np.array([sequence._slot for sequence in sequences])
        inputs = np.zeros((self.max_batch, 1), np.int64)
        inputs[slots, 0] = tokens
        found = []
        rows = np.empty(self.max_batch, np.int64)
        count = 0
        for first, stop in self._calls.ranges(sorted(slots.tolist()), 1):
            found.append(self._step(inputs, first, stop)[:, 0])
            rows[first:stop] = np.arange(count, count + stop - first)
            count += stop - first
        for sequence in sequences:
            sequence.length += 1
        self._lengths[slots] += 1
        self._account()
        logits = found[0] if len(found) == 1 else np.concatenate(found)
        order = rows[slots]
        return logits if np.array_equal(order, np.arange(count)) else logits[order]

    def verify(
        self, sequences: abc.Sequence[Sequence], ids: abc.Sequence[int], drafts: abc.Sequence[abc.Sequence[int]]
    ) -> list[FloatArray]:
        """Reads one token for each of some sequences, and the tokens that are guessed to follow it.

        Drafts take no memory that a sequence could need: one is left out, which the number of logits tells, where its
        tokens do not fit what is held already, or the context.

        Args:
            sequences: as in `decode`.
            ids: as in `decode`.
            drafts: for each sequence at most `draft_tokens` tokens, perhaps none.

        Returns:
            For each sequence logits `[1 + tokens read of its draft, vocab_size]`. It holds all that was read:
            `truncate` what was guessed wrong.

        Raises:
            InputError, EngineBusyError, BitnetOnnxError: as `decode`; no sequence has changed.
        """
        tokens = self._graph.checked(ids)
        if not tokens.size == len(sequences) == len(drafts) == len(set(map(id, sequences))):
            raise InputError(f"{tokens.size} tokens for {len(sequences)} sequences; each once and a token for each")
        for sequence, draft in zip(sequences, drafts, strict=True):
            if draft:
                self._graph.checked(draft)
            if len(draft) > self._draft_tokens:
                raise InputError(f"a draft of {len(draft)} tokens, at most {self._draft_tokens} are read")
            self._make_room(sequence, 1)
        self._close_gaps()
        slots = [sequence._slot for sequence in sequences]
        longest = 1 + max(map(len, drafts))
        read = [
            1 + len(draft) if draft and self._can_rest(slot, longest) else 1
            for slot, draft in zip(slots, drafts, strict=True)
        ]
        inputs = np.zeros((self.max_batch, max(read)), np.int64)
        for slot, token, draft, count in zip(slots, tokens, drafts, read, strict=True):
            inputs[slot, :count] = [token, *draft][:count]
        found: dict[int, FloatArray] = {}
        counts = dict(zip(slots, read, strict=True))
        for group, width in self._calls.split(counts):
            columns = np.ascontiguousarray(inputs[:, :width])
            # A row of one group that rests in a call of another reads its token there too, or what it reads later.
            for first, stop in self._calls.ranges(group, width):
                logits = self._step(columns, first, stop)
                found |= {slot: logits[slot - first, : counts[slot]] for slot in group if first <= slot < stop}
        for sequence in sequences:
            sequence.length += counts[sequence._slot]
            self._lengths[sequence._slot] = sequence.length
        self._account()
        return [found[slot] for slot in slots]

    def truncate(self, sequence: Sequence, length: int) -> None:
        """Forgets every token from position `length` on; the room stays.

        Raises:
            InputError: `length` is negative or more than is held, or the sequence is closed.
        """
        self._check_open(sequence)
        if not 0 <= length <= sequence.length:
            raise InputError(f"cannot truncate a sequence of {sequence.length} tokens to {length}")
        self._set_length(sequence, length)

    def close(self, sequence: Sequence) -> None:
        """Gives the slot back; the memory of a short text is kept for the next sequence until `trim`, or until another
        needs it, and what a long one had beyond that goes back at once.

        Raises:
            InputError: the sequence is closed.
        """
        self._check_open(sequence)
        self._set_length(sequence, 0)
        sequence.room = 0
        self._open[sequence._slot] = None
        # Where nothing ever rests nothing is trimmed: every slot would come to hold the longest text there has been.
        self._slots.release(sequence._slot, _KEPT_TOKENS)
        self._free |= 1 << sequence._slot

    def copy_out(self, sequence: Sequence, start: int, stop: int) -> KvBlock:
        """A copy of the keys and values of positions `start` to `stop`.

        Raises:
            InputError: the sequence does not hold them, or is closed.
        """
        self._check_open(sequence)
        if not 0 <= start < stop <= sequence.length:
            raise InputError(f"positions {start} to {stop} of a sequence of {sequence.length} tokens cannot be copied")
        return KvBlock(start, np.stack([buffer[sequence._slot, :, start:stop] for buffer in self._slots.buffers]))

    def copy_in(self, sequence: Sequence, block: KvBlock) -> None:
        """Appends what `copy_out` gave, of the same text, to a sequence that holds the tokens before it.

        Raises:
            InputError: the block begins elsewhere or is of another model, or the sequence is closed or full.
            EngineBusyError: no memory.
        """
        self._check_open(sequence)
        buffers = self._slots.buffers
        shape = (len(buffers), buffers[0].shape[1], block.stop - block.start, buffers[0].shape[3])
        same = block.data.shape == shape and block.data.dtype == self._graph.cache_type
        if block.start != sequence.length or not same:
            raise InputError(
                f"keys and values of positions {block.start} to {block.stop} do not continue a sequence of "
                f"{sequence.length} tokens of this model"
            )
        total = self._make_room(sequence, block.stop - block.start)
        for buffer, part in zip(self._slots.buffers, block.data, strict=True):
            buffer[sequence._slot, :, block.start : block.stop] = part
        self._set_length(sequence, total)

    def trim(self) -> None:
        """Gives memory back that no sequence has reserved: for when there is nothing else to do."""
        used = 0
        longest = 0
        for slot, sequence in enumerate(self._open):
            room = 0 if sequence is None else _needed(sequence)
            self._slots.release(slot, room)
            if sequence is not None:
                used, longest = slot + 1, max(longest, room)
        self._slots.trim(used, longest)
        return_free_memory()

    def _check_length(self, length: int) -> None:
        if not 0 <= length <= self.context_length:
            raise InputError(f"{length} tokens do not fit the model's context of {self.context_length}")

    def _check_open(self, sequence: Sequence) -> None:
        if self._open[sequence._slot] is not sequence:
            raise InputError("the sequence is closed, or belongs to another session")

    def _make_room(self, sequence: Sequence, count: int) -> int:
        """Room for `count` more tokens; returns the length with them."""
        total = sequence.length + count
        if not self.reserve(sequence, total):
            raise EngineBusyError(f"no memory for a sequence of {total} tokens; close another or give more memory")
        return total

    def _commit(self, slot: int, length: int) -> bool:
        """Memory for `length` tokens in a slot, if need be what free slots and drafts still have."""
        if self._slots.commit(slot, length):
            return True
        for other, sequence in enumerate(self._open):
            if other != slot:
                self._slots.release(other, 0 if sequence is None else _needed(sequence))
        return self._slots.commit(slot, length)

    def _set_length(self, sequence: Sequence, length: int) -> None:
        sequence.length = length
        self._lengths[sequence._slot] = length
        self._account()

    def _account(self) -> None:
        self._kv.fill(int(self._lengths.sum()) * self._token_bytes)

    def _can_rest(self, slot: int, count: int) -> bool:
        """Whether a row may be in a call with tokens that are no part of it: they are written behind what is held.

        Such tokens make no buffer grow, and what they take is given back before anything is refused.
        """
        length = int(self._lengths[slot]) + count
        capacity = min(self.context_length, self._slots.buffers[0].shape[2]) if count > 1 else self.context_length
        return length <= capacity and self._slots.commit(slot, length)

    def _step(self, inputs: npt.NDArray[np.int64], first: int, stop: int) -> FloatArray:
        """One call over a range of slots: logits `[stop - first, columns of inputs, vocab_size]`."""
        totals = self._lengths[first:stop] + inputs.shape[1]
        mask = (np.arange(totals.max()) < totals[:, np.newaxis]).astype(np.int64)
        return self._graph.run(self._binding(first, stop), inputs[first:stop], mask, 0)

    def _close_gaps(self) -> None:
        """Moves the highest sequence to the lowest free slot when the gap has cost as much as the copy."""
        top = ((1 << self.max_batch) - 1 ^ self._free).bit_length() - 1
        hole = (self._free & -self._free).bit_length() - 1
        if hole < 0 or hole > top:
            self._wasted = 0
            return
        self._wasted += 1
        if self._wasted < max(_PATIENCE, int(self._lengths[top]) // _TOKENS_A_STEP):
            return
        self._wasted = 0
        sequence = self._open[top]
        if sequence is None or not self._commit(hole, sequence.room):
            return
        for buffer in self._slots.buffers:
            buffer[hole, :, : sequence.length] = buffer[top, :, : sequence.length]
        self._lengths[hole], self._lengths[top] = sequence.length, 0
        self._open[hole], self._open[top] = sequence, None
        self._free ^= 1 << hole | 1 << top
        sequence._slot = hole
        self._slots.release(top, 0)

    def _binding(self, first: int, stop: int) -> ort.IOBinding:
        """The binding with the buffers of a range of slots bound in place."""
        binding = self._bindings.get((first, stop))
        if binding is None:
            binding = bind_cache(self._graph.session, [buffer[first:stop] for buffer in self._slots.buffers])
            self._bindings[first, stop] = binding
            if len(self._bindings) > _BINDINGS:
                self._bindings.popitem(last=False)
        self._bindings.move_to_end((first, stop))
        return binding


def _needed(sequence: Sequence) -> int:
    """Tokens that a sequence keeps room for; what was guessed right may reach beyond what was asked for."""
    return max(sequence.room, sequence.length)
