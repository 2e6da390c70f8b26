"""Whether the hub can be reached."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit


def hub_resolves() -> bool:
    """Whether the hub's name resolves. Without a network, the hub's client would retry for half a minute."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # the proxy resolves names
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True
