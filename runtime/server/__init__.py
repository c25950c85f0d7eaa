"""The HTTP server: an OpenAI-compatible face of the batching engine; needs the extra `serve`."""

from __future__ import annotations
