"""`GET /metrics` of replicas: whichever of them is asked answers for all."""

from __future__ import annotations

import threading
import time
from typing import Any

import ray
from ray.exceptions import RayError

from bitnet_onnx.runtime.server._interfaces import EngineLike
from bitnet_onnx.runtime.server.prometheus import ServerMetrics, labelled

_TELL_SECONDS = 2.0
#: Who has told nothing for so long has ended.
_FORGET_SECONDS = 10.0
_ASK_SECONDS = 5.0


class _Board:
    """What each replica has told last; an actor, one for all of them."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[float, bytes]] = {}

    def tell(self, replica: str, text: bytes) -> None:
        self._told[replica] = time.monotonic(), text

    def told(self) -> dict[str, bytes]:
        oldest = time.monotonic() - _FORGET_SECONDS
        self._told = {replica: entry for replica, entry in self._told.items() if entry[0] >= oldest}
        return {replica: text for replica, (_, text) in self._told.items()}


def new_board() -> Any:
    """The actor; it lives as long as this process keeps what it gets."""
    return ray.remote(num_cpus=0)(_Board).remote()


class ReplicaMetrics(ServerMetrics):
    """The registry of one replica; its text is that of all, with a label `replica`.

    Args:
        engine: of this replica.
        model_name: what clients call the model.
        board: what they share.
        replica: its name.
    """

    def __init__(self, engine: EngineLike, model_name: str, *, board: Any, replica: str) -> None:
        super().__init__(engine, model_name)
        self._board = board
        self._replica = replica
        threading.Thread(target=self._tell_forever, name="bitnet-onnx metrics", daemon=True).start()

    def text(self) -> bytes:
        """What a scrape reads: of the others, what they told within the last seconds."""
        try:
            others: dict[str, bytes] = ray.get(self._board.told.remote(), timeout=_ASK_SECONDS)
        except RayError:
            others = {}
        return labelled("replica", others | {self._replica: super().text()})

    def _tell_forever(self) -> None:
        while True:
            self._board.tell.remote(self._replica, super().text())
            time.sleep(_TELL_SECONDS)
