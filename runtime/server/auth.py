"""API keys: read from a file or the environment, kept as hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from bitnet_onnx.errors import InputError

logger = logging.getLogger(__name__)

KEYS_VARIABLE = "BITNET_ONNX_API_KEYS"
_MIN_LENGTH = 8
_MAX_LENGTH = 512
_MAX_FILE_BYTES = 2**20
_TENANT_DIGITS = 32


class ApiKeys:
    """The keys that open the server; without any it is open to whoever reaches it.

    Args:
        keys: each of 8 to 512 printable ASCII characters without spaces.

    Raises:
        InputError: a key is of another form.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        digests = []
        for number, key in enumerate(keys, 1):
            if not _MIN_LENGTH <= len(key) <= _MAX_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
                # The message must not hold the key.
                raise InputError(
                    f"API key {number} has {len(key)} characters, expected {_MIN_LENGTH} to {_MAX_LENGTH} printable "
                    f"ASCII characters without spaces"
                )
            digests.append(hashlib.sha256(key.encode()).digest())
        self._digests = tuple(digests)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def tenant(self, authorization: str | None) -> str | None:
        """Whose request it is, or None where its key is missing or wrong.

        Args:
            authorization: the header, `Bearer KEY`.

        Returns:
            The key's hash; "" for everyone where no keys are set.
        """
        if not self._digests:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        known = False
        for candidate in self._digests:  # all of them, so that time does not tell which one was close
            known |= hmac.compare_digest(candidate, digest)
        return digest.hex()[:_TENANT_DIGITS] if known else None


def read_keys(path: Path | None) -> ApiKeys:
    """Keys of a file (one a line, `#` begins a comment) and of BITNET_ONNX_API_KEYS (separated by commas).

    Raises:
        InputError: the file cannot be read or holds no key, or a key is of the wrong form.
    """
    return ApiKeys(_key_texts(path))


def read_client_key(path: Path | None) -> str | None:
    """A key to open another server with: the first that `read_keys` would read.

    Raises:
        InputError: as `read_keys`.
    """
    keys = _key_texts(path)
    ApiKeys(keys)  # a key of another form must not get into a header
    return keys[0] if keys else None


def _key_texts(path: Path | None) -> list[str]:
    keys = [] if path is None else _read_file(path)
    return keys + [key for part in os.environ.get(KEYS_VARIABLE, "").split(",") if (key := part.strip())]


def _read_file(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise InputError(f"{path}: larger than the limit of {_MAX_FILE_BYTES} bytes")
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8") from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise InputError(f"{path}: holds no API key; write one a line")
    if os.name == "posix" and mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("%s can be read by other users of this machine: chmod 600 it", path)
    return keys
