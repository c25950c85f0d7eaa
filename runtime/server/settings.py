"""What whoever starts the server decides."""

from __future__ import annotations

from dataclasses import dataclass

from bitnet_onnx.errors import InputError

_MIN_BODY_BYTES = 1024
_MAX_BODY_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Names and limits of one server.

    Args:
        model_name: what clients call the model.
        max_body_bytes: the largest request body.
        max_bodies_bytes: of all request bodies that are read at a time; beyond it requests are answered with 429.
        body_seconds: within which a body must have arrived.
        max_messages: messages of one conversation.
        max_answers: answers of one request: prompts times `n`.
        workers: threads that parse and tokenize requests.
        require_local_host: refuse requests whose Host names another machine, which a browser sends when a foreign
            page has its own name resolved to this machine.

    Raises:
        InputError: a value is outside its range.
    """

    model_name: str
    max_body_bytes: int = 4 * 2**20
    max_bodies_bytes: int = 64 * 2**20
    body_seconds: float = 60.0
    max_messages: int = 1024
    max_answers: int = 64
    workers: int = 2
    require_local_host: bool = False

    def __post_init__(self) -> None:
        if not self.model_name or not self.model_name.isprintable():
            raise InputError(f"the model's name is {self.model_name!r:.80}, expected printable text")
        if not _MIN_BODY_BYTES <= self.max_body_bytes <= _MAX_BODY_BYTES:
            raise InputError(
                f"the limit of a body is {self.max_body_bytes} bytes, expected {_MIN_BODY_BYTES} to {_MAX_BODY_BYTES}"
            )
        for name in ("max_messages", "max_answers", "workers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 1")
