"""A fake Google Cloud Storage on the loopback, with the requests that clients of datasets make.

The client of array_record accepts the address of a server. TensorFlow's client only knows Google's addresses: it uses
the server as its proxy, which replies in Google's name, with a certificate made for this purpose.
"""

import dataclasses
import datetime
import http.server
import json
import pathlib
import re
import ssl
import subprocess
import threading
import time
import urllib.parse

HOSTS = ("www.googleapis.com", "storage.googleapis.com")
# TensorFlow reads content from the second host; all other requests go to the first.
CONTENT, OBJECT = re.compile(r"/bucket/(.+)"), re.compile(r"/storage/v1/b/bucket/o/([^/]+)")


@dataclasses.dataclass(frozen=True)
class Stored:
    """An object in the storage."""

    data: bytes
    mtime: float = dataclasses.field(default_factory=time.time)


class FakeCloudStorage:
    """The server of gs://bucket: its objects, and the requests that it received.

    Attributes:
        objects: keyed by name, in the order in which they were last written.
        reads: the name and range of every request for content.
        refused: writing to a name that contains one of these fails.
        environment: the environment variables that direct clients to this server.
    """

    def __init__(self, folder: pathlib.Path):
        """Starts the server, whose certificate is stored in `folder`."""
        self.objects: dict[str, Stored] = {}
        self.reads: list[tuple[str, str | None]] = []
        self.refused: list[str] = []
        certificate, key = folder / "certificate.pem", folder / "key.pem"
        subject = ["-subj", "/CN=fake", "-addext", "subjectAltName=" + ",".join(f"DNS:{host}" for host in HOSTS)]
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
        subprocess.run([*command, "-out", certificate, "-keyout", key], check=True, capture_output=True)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(certificate, key)
        handler = type("Handler", (_Handler,), {"storage": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.environment = {
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,  # array_record's
            "https_proxy": address,  # TensorFlow's, and other clients
            "no_proxy": "127.0.0.1",
            "CURL_CA_BUNDLE": str(certificate),
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
            "GCS_STAT_CACHE_MAX_AGE": "0",  # TensorFlow's, so that a test does not see objects of the last one
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def upload(self, folder: pathlib.Path, prefix: str) -> None:
        """Stores all files below a folder under a prefix, with their modification times."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = f"{prefix}/{path.relative_to(folder).as_posix()}"
            self.objects[name] = Stored(path.read_bytes(), path.stat().st_mtime)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a response is sent in two pieces
    storage: FakeCloudStorage

    def do_CONNECT(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.connection = self.storage.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", buffering=0)
        self.close_connection = False

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path == "/storage/v1/b/bucket":
            return self._reply_json({"name": "bucket"})
        if url.path == "/storage/v1/b/bucket/o":
            return self._reply_json(self._list(query.get("prefix", ""), query.get("delimiter")))
        match = OBJECT.fullmatch(url.path) or CONTENT.fullmatch(url.path)
        name = urllib.parse.unquote(match[1]) if match else ""
        if name not in self.storage.objects:
            return self._reply(404)
        stored = self.storage.objects[name]
        if query.get("alt") == "media" or match.re is CONTENT:
            return self._reply_range(name, stored.data)
        return self._reply_json(self._describe(name, stored))

    def do_POST(self) -> None:
        """Starts an upload, whose content comes by PUT to the address in the response."""
        self._body()
        self._reply(200, {"Location": f"https://{HOSTS[0]}{self.path}&upload_id=1"})

    def do_PUT(self) -> None:
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        data, name = self._body(), query["name"]
        if any(part in name for part in self.storage.refused):
            return self._reply(403)
        self.storage.objects.pop(name, None)
        self.storage.objects[name] = Stored(data)
        return self._reply_json(self._describe(name, self.storage.objects[name]))

    def _list(self, prefix: str, delimiter: str | None) -> dict:
        names = [name for name in sorted(self.storage.objects) if name.startswith(prefix)]
        if not delimiter:
            return {"items": [self._describe(name, self.storage.objects[name]) for name in names]}
        rest = {name: name.removeprefix(prefix).partition(delimiter) for name in names}
        files = [self._describe(name, self.storage.objects[name]) for name in names if not rest[name][1]]
        return {"items": files, "prefixes": sorted({prefix + r[0] + r[1] for r in rest.values() if r[1]})}

    def _describe(self, name: str, stored: Stored) -> dict:
        updated = datetime.datetime.fromtimestamp(stored.mtime, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {"name": name, "bucket": "bucket", "size": str(len(stored.data)), "generation": "1", "updated": updated}

    def _reply_range(self, name: str, data: bytes) -> None:
        wanted = self.headers.get("Range")
        self.storage.reads.append((name, wanted))
        first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "bytes=0-").groups()
        start = int(first) if first else max(0, len(data) - int(last))
        stop = min(len(data), int(last) + 1) if first and last else len(data)
        if start >= len(data):
            return self._reply(416)
        place = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"} if wanted else {}
        return self._reply(206 if wanted else 200, place, data[start:stop])

    def _reply_json(self, value: dict) -> None:
        self._reply(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _reply(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":  # otherwise TensorFlow states a length as well
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *args: object) -> None:
        """Logs nothing, to keep the output of tests clean."""
