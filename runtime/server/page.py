"""`GET /`: the chat page, one file that loads nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path

from fastapi.responses import Response

_PAGE = Path(__file__).with_name("page.html")


@lru_cache(maxsize=1)
def _page() -> tuple[bytes, str]:
    """The page, and the policy that allows its own script and style and nothing else."""
    text = _PAGE.read_text("utf-8")
    policy = ["default-src 'none'", "connect-src 'self'", "img-src data:", "base-uri 'none'", "form-action 'none'"]
    policy.append("frame-ancestors 'none'")
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        hashes = [
            f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'"
            for body in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        ]
        policy.append(f"{directive} {' '.join(hashes)}")
    return text.encode(), "; ".join(policy)


def page_response() -> Response:
    """The page with its policy."""
    body, policy = _page()
    headers = {"Content-Security-Policy": policy, "X-Frame-Options": "DENY", "Cache-Control": "no-cache"}
    return Response(body, media_type="text/html; charset=utf-8", headers=headers)
