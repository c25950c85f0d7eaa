"""Fetch a checkpoint from the Hugging Face hub, with the hub's own client."""

from __future__ import annotations

import logging
from pathlib import Path

from bitnet_onnx.errors import ZooError
from bitnet_onnx.model_zoo._manifest import HubSource, Manifest

_log = logging.getLogger(__name__)

#: Data only, never code, pickles or images.
ALLOWED_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
#: Only the top of the repository: folders such as `original/` hold the same weights again.
IGNORED_FILES = ("*/*",)


def pull_hub(manifest: Manifest, source: HubSource, folder: Path | None) -> Path:
    """The directory of the checkpoint's snapshot.

    `folder` is the root of the hub client's cache; None is the client's own, shared with other tools.

    Raises:
        ZooError: the client is not installed, the hub cannot be reached or refuses, or the repository
            holds no config.json and safetensors.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ZooError(
            f"{manifest.name}: fetching {source.repo} needs huggingface_hub: `pip install bitnet-onnx[hub]`"
        ) from error
    try:
        snapshot = Path(
            snapshot_download(
                repo_id=source.repo,
                revision=source.revision,
                cache_dir=folder,
                allow_patterns=list(ALLOWED_FILES),
                ignore_patterns=list(IGNORED_FILES),
            )
        )
    # The client raises types of whichever HTTP library its version uses, and they share no root.
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ZooError(
            f"{manifest.name}: {source.repo} at revision {source.revision} could not be fetched ({reason}): "
            "check the network, or pass the path of a copy"
        ) from error
    shards = sorted(snapshot.glob("*.safetensors"))
    if not shards or not (snapshot / "config.json").is_file():
        raise ZooError(
            f"{manifest.name}: {source.repo} at revision {source.revision} holds no config.json with "
            f"*.safetensors beside it (in {snapshot})"
        )
    size = sum(shard.stat().st_size for shard in shards)
    if manifest.tensor_bytes is not None and not manifest.tensor_bytes <= size <= 1.01 * manifest.tensor_bytes:
        _log.warning(
            "%s: the safetensors have %d bytes, about %d were expected: %s may have changed",
            manifest.name,
            size,
            manifest.tensor_bytes,
            source.repo,
        )
    return snapshot
