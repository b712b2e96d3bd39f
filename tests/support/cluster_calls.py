"""How tests speak to nodes that are processes: one call over HTTP, and flags that make a small cluster quick.

Knows HTTP from outside only. Does not know what a test checks.
"""

import json
import ssl
import urllib.error
import urllib.request
from typing import Any

FAST = ("--raft-tick-s", "0.05", "--shards", "4", "--drain-s", "0")


def call(url: str, method: str = "GET", body: Any = None, trust: str = "") -> tuple[int, Any]:
    """The status and the decoded body of an answer; by HTTPS `trust` is whose certificates are believed (PEM). Raises OSError if there is
    none."""
    data = None if body is None else json.dumps(body).encode()
    tls = ssl.create_default_context(cadata=trust) if trust else None
    request = urllib.request.Request(url, method=method, headers={"Content-Type": "application/json"}, data=data)
    try:
        with urllib.request.urlopen(request, timeout=30, context=tls) as response:
            status, content = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read()
    return status, json.loads(content) if content else None
