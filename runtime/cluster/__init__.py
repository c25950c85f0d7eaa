"""More than one machine: the server and files of prompts on a Ray cluster; needs the extra `ray`."""

from __future__ import annotations

import logging
import os

# Read when Ray is imported, which the modules here do. Nothing is told to its makers unless the user says so; and what
# workers and the scheduler write is not put on the standard output of a command, unless that is to be verbose.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if not logging.getLogger(__name__).isEnabledFor(logging.DEBUG):
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")
