"""More than one machine: the server and files of prompts on a Ray cluster; needs the extra `ray`."""

from __future__ import annotations
