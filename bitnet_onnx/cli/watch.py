"""`bitnet-onnx watch`."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from bitnet_onnx.cli.serve import check_extra
from bitnet_onnx.errors import BitnetOnnxError, InputError

if TYPE_CHECKING:
    from bitnet_onnx.runtime.server.snapshot import ServerSnapshot

_TIMEOUT_S = 5.0
_MAX_BYTES = 2**20
_CHUNK = 2**16


@click.command()
@click.argument("url")
@click.option(
    "--api-key-file", type=click.Path(path_type=Path), help="Its first key is used; also BITNET_ONNX_API_KEYS."
)
def command(url: str, api_key_file: Path | None) -> None:
    """Draw speed, queue, cache and memory of the server at URL, as `serve --watch` does."""
    check_extra("watch")
    from bitnet_onnx.cli._watch import check_terminal, drawing
    from bitnet_onnx.cli._watch_view import Watched
    from bitnet_onnx.runtime.server.auth import read_client_key

    check_terminal("watch")
    source = metrics_source(url, read_client_key(api_key_file))
    source()  # a wrong address is told before the screen is taken
    try:
        with drawing(Watched(url, "Ctrl-C ends the view"), source):
            while True:
                time.sleep(1)
    except KeyboardInterrupt:
        return


def metrics_source(url: str, key: str | None = None) -> Callable[[], ServerSnapshot]:
    """What reads the `/metrics` of a server.

    Args:
        url: of the server, or of its `/metrics`.
        key: that opens it.

    Raises:
        InputError: the address is none of HTTP.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or parts.scheme not in ("http", "https") or not url.isascii() or not url.isprintable():
        raise InputError(f"{url!r:.80}: expected the address of a server, such as http://127.0.0.1:8000")
    connect: Callable[[], http.client.HTTPConnection] = partial(
        http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection,
        host,
        port,
        timeout=_TIMEOUT_S,
    )
    path = f"{parts.path.removesuffix('/metrics').rstrip('/')}/metrics"
    return partial(_fetch, connect, path.replace(" ", "%20"), key)


def _fetch(connect: Callable[[], http.client.HTTPConnection], path: str, key: str | None) -> ServerSnapshot:
    """One snapshot; redirects are not followed, so that the key stays where it was given.

    Raises:
        BitnetOnnxError: there was no answer, or another one.
    """
    from bitnet_onnx.runtime.server.snapshot import parse_snapshot

    connection = connect()
    ends = time.monotonic() + _TIMEOUT_S
    body = b""
    try:
        connection.request("GET", path, headers={} if key is None else {"Authorization": f"Bearer {key}"})
        with connection.getresponse() as response:
            while chunk := response.read1(_CHUNK):
                body += chunk
                if len(body) > _MAX_BYTES or time.monotonic() > ends:
                    raise InputError(f"{path}: larger than {_MAX_BYTES} bytes or slower than {_TIMEOUT_S:g} s")
    except OSError as error:
        raise BitnetOnnxError(f"{connection.host}:{connection.port}: {error.strerror or error}") from None
    except http.client.HTTPException as error:
        raise BitnetOnnxError(f"{connection.host}:{connection.port}: {type(error).__name__}") from None
    finally:
        connection.close()
    if response.status == 401:
        raise InputError("the server asks for an API key: give it with --api-key-file or BITNET_ONNX_API_KEYS")
    if response.status != 200:
        raise BitnetOnnxError(f"{path}: the server answers with status {response.status}")
    return parse_snapshot(body.decode("utf-8", errors="replace"))
