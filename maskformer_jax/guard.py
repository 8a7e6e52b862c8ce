"""What the demo page answers: requests to its own address, from its own page, of bounded size. An ASGI middleware.

A page of another site can send requests to servers on its visitor's machine. It can even read what they answer, if its
own name is made to resolve to that machine (DNS rebinding); the header Host has that name then.
"""

import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from maskformer_jax.errors import UserError
from maskformer_jax.files import limits, paths

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """Passes requests on to an app, or answers them with the reason why not.

    Args:
        app: an ASGI application.
        host: the address that it listens on; 0.0.0.0 is every address of this machine.
        uploads: the folder of uploaded files, whose total size is bounded.
    """

    def __init__(self, app: App, host: str, uploads: str):
        self.app, self.uploads = app, uploads
        self._names = own_names(host)
        self._every_address = _is_every_address(host)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):  # its start and end
            await self.app(scope, receive, send)
            return
        refused = self.refusal(scope)
        if refused is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refused[1][:100]})
        else:
            status, reason = refused
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": f"{reason}\n".encode()})

    def refusal(self, scope: Message) -> tuple[int, str] | None:
        """The HTTP status and the reason why a request is not answered; None if it is."""
        headers: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value.decode("latin-1"))
        hosts, origins = headers.get(b"host", []), headers.get(b"origin", [])
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            named = paths.printable(", ".join(hosts)[:200], lines=False) or "no address"
            return 421, (
                f"This page answers its own address alone, and the request is to {named}. If that is a name of this "
                "machine, start the demo with it as --host."
            )
        if any(urlsplit(origin).netloc.lower() != hosts[0].lower() for origin in origins):
            return 403, "This page answers its own requests alone, and this one comes from a page of another address."
        return self._excess(headers)

    def _is_own(self, host: str) -> bool:
        name = _name_of(host)
        return name in self._names or (self._every_address and _is_address(name))

    def _excess(self, headers: dict[bytes, list[str]]) -> tuple[int, str] | None:
        if b"transfer-encoding" in headers:
            return 411, "Requests must state their length."
        length = headers.get(b"content-length", ["0"])
        if len(length) != 1 or not length[0].isascii() or not length[0].isdigit():
            return 400, "Requests must state their length once, as a number."
        most = limits.UPLOAD_BYTES
        if len(length[0]) > 15 or int(length[0]) > most.value:
            return 413, str(most.exceeded(length[0][:30], "this upload"))
        if int(length[0]) and (used := _size(self.uploads)) > limits.UPLOADS_BYTES.value:
            return 507, str(limits.UPLOADS_BYTES.exceeded(f"{used:,}", "this page"))
        return None


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address. Raises UserError, in terms of the flags --host and --port, if it cannot."""
    if not 0 < port < 65536:
        raise UserError(f"--port={port}: it must lie in 1..65535")
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise UserError(
            f"--host={host} --port={port}: cannot listen on this address ({error}). If another program uses it, "
            "set another --port."
        ) from error


def own_names(host: str) -> frozenset[str]:
    """The names by which a server that listens on `host` is reached, in lower case."""
    if _is_loopback(host):
        return _LOOPBACK | {host.lower()}
    machine = socket.gethostname().lower()
    return _LOOPBACK | {host.lower(), machine, f"{machine}.local", socket.getfqdn().lower()}


def _name_of(host: str) -> str:
    """The name in a header Host, without the port; "" if it is damaged."""
    try:
        return (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host.lower() == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_every_address(host: str) -> bool:
    return not host or (_is_address(host) and ipaddress.ip_address(host).is_unspecified)


def _size(folder: str) -> int:
    """Bytes of the files below a folder; files that disappear meanwhile do not count."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return total
