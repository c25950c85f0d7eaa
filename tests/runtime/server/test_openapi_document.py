"""Schemathesis: whatever the OpenAPI document allows, and what it does not, is answered as the document says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from server_client import listen

CHECKS = "not_a_server_error,response_schema_conformance,status_code_conformance"


def test_no_request_makes_the_server_fail(package_dir: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("schemathesis") is None:
        pytest.skip("schemathesis is not installed")
    with listen(package_dir) as server:
        command = ["run", f"{server.url}/openapi.json", "--checks", CHECKS, "-n", "25", "--seed", "1", "--no-color"]
        done = subprocess.run(
            [sys.executable, "-P", "-m", "schemathesis.cli", *command],
            capture_output=True,
            text=True,
            encoding="utf-8",
            cwd=tmp_path,
            env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        )
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
        assert "Tested: 6" in done.stdout
        assert len(server.engine.requests) > 10
