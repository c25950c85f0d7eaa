"""Where the tokens of a call stand, and what each of them may see.

The key axis of the mask is as long as the sequence will be after the call, so that the past is what it has more than
the query axis. The mask itself only takes away: applications that send nothing but zeros get causal attention.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.converters.coreml._graph import Graph
from bitnet_onnx.converters.coreml._tools import Value

#: Added to scores that are not seen: with float16 scores nothing is left of them, and two of it do not overflow.
_UNSEEN: Final = -30000.0


class Positions:
    """Positions of one function.

    Args:
        graph: where operations go.
        ids: int32 `[1, query]`.
        mask: float16 `[1, 1, query, key]`.
        single: the query has one token.
    """

    def __init__(self, graph: Graph, ids: Value, mask: Value, *, single: bool) -> None:
        ops = graph.ops
        self._graph = graph
        self._mask = mask
        self.single = single
        #: Length of the sequence after this call, int32 `[1]`.
        self.end: Value = ops.gather(x=ops.shape(x=mask), indices=_ints(3), axis=0, name="end")
        length = ops.squeeze(x=self.end, axes=[0])
        zero, one = np.int32(0), np.int32(1)
        if single:
            #: Length before this call, int32 `[1]`.
            self.past: Value = ops.sub(x=self.end, y=_ints(1), name="past")
            #: Of each token, int32 `[query]`.
            self.tokens: Value = self.past
        else:
            count = ops.gather(x=ops.shape(x=ids), indices=np.int32(1), axis=0)
            self.past = ops.sub(x=self.end, y=count, name="past")
            self.tokens = ops.add(x=ops.range_1d(start=zero, end=count, step=one), y=self.past, name="positions")
        keys = ops.range_1d(start=zero, end=length, step=one)
        queries = ops.expand_dims(x=self.tokens, axes=[0, 1, 3])
        #: How far behind a query each key stands, int32 `[1, 1, query, key]`.
        self._distance: Value = ops.sub(x=queries, y=ops.expand_dims(x=keys, axes=[0, 1, 2]), name="distance")

    def rows(self, table: Value) -> Value:
        """The row of each position, `[query, width]`."""
        return self._graph.ops.gather(x=table, indices=self.tokens, axis=0)

    def mask(self, window: int) -> Value:
        """What is added to scores, float16 `[1, 1, query, key]`; with a window only so many keys are seen."""
        return self._graph.once(f"mask_{window}", lambda: self._masked(window))

    def _masked(self, window: int) -> Value:
        ops = self._graph.ops
        unseen = ops.less(x=self._distance, y=np.int32(0))
        if window:
            unseen = ops.logical_or(x=unseen, y=ops.greater_equal(x=self._distance, y=np.int32(window)))
        # MIL's `select` of two numbers would be declared a number.
        own = ops.mul(x=self._graph.narrow(unseen), y=np.float16(_UNSEEN))
        return ops.minimum(x=self._mask, y=own, name=f"mask_{window}")


def _ints(*values: int) -> npt.NDArray[np.int32]:
    return np.array(values, np.int32)
