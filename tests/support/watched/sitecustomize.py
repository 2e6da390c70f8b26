"""On PYTHONPATH, it notes where a process and its children connect to: each address in the file CONNECTIONS.

Connections of C code that does not go through Python's sockets are not seen.
"""

import contextlib
import ipaddress
import os
import sys

_EVENTS = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")


def _is_here(host):
    if host is None or host in ("", b"", "localhost", os.uname().nodename):
        return True
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host)
        return address.is_loopback or address.is_unspecified
    return False


def _watch(event, arguments):
    if event not in _EVENTS:
        return
    address = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
    if isinstance(address, tuple):
        address = address[0]
    elif event in ("socket.connect", "socket.sendto"):  # a path: a socket of this machine
        return
    if not _is_here(address):
        file = os.open(os.environ["CONNECTIONS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, f"{event} {address}\n".encode())
        os.close(file)


if os.environ.get("CONNECTIONS"):
    sys.addaudithook(_watch)
