"""One arena of memory for all sessions of a run, which work one after the other."""

from __future__ import annotations

from functools import cache

import onnxruntime as ort


def share_arena(options: ort.SessionOptions) -> None:
    """Let a session take its memory from the arena that all have.

    A session's own arena keeps what the session has taken once: the training step, its evaluation and a teacher
    would add up, though only one of them runs at a time. Memory is not planned ahead either, which doubles it.

    Args:
        options: of the session that will be opened.
    """
    _register()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.enable_mem_pattern = False


@cache
def _register() -> None:
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    defaults = ort.OrtArenaCfg(0, -1, -1, -1)
    ort.create_and_register_allocator(memory, defaults)
