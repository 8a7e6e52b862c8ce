"""The Hugging Face hub as far as downloads need it, on the loopback, for the real client of any version."""

import base64
import dataclasses
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

LARGE = (".safetensors", ".bin")  # the hub keeps these files on another host and redirects to it
TOKEN = "hf_right"
API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?")
RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
STORED = re.compile(r"/stored/([0-9a-f]+)")


@dataclasses.dataclass(frozen=True)
class Repository:
    """The files of a model at its only commit.

    Attributes:
        access: "public"; "private", which is not shown without TOKEN; "gated", whose files are not given without it.
        tags: names for the commit beside "main".
        stated: hashes that the hub states of files, where these are not the right ones.
    """

    files: dict[str, bytes]
    access: str = "public"
    tags: tuple[str, ...] = ()
    stated: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


class FakeHub:
    """What the hub has, and what was asked of it.

    Attributes:
        repositories: by their ids.
        requests: method, path and Range of every request.
        cut: of files that contain one of these keys, only so many bytes are sent before the line is dropped; once.
        broken: status that every request for content is answered with; 0 for none.
        address: what clients must have as HF_ENDPOINT.
        storage: where large files lie; another host to clients.
    """

    HANDLER: type | None = None  # of other kinds of repositories than models

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut: dict[bytes, int] = {}
        self.broken = 0
        self.uploaded: dict[str, bytes] = {}  # large files by their SHA-256, before a commit names them
        handler = type("Handler", (self.HANDLER or _Handler,), {"hub": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        port = self._server.server_address[1]
        self.address, self.storage = f"http://127.0.0.1:{port}", f"http://localhost:{port}/stored"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def downloads(self) -> list[str]:
        """The names of the files whose content was asked for, in order; of a large one the hash."""
        asked = [path for method, path, _ in self.requests if method == "GET"]
        return [path.split("/")[-1] for path in asked if RESOLVE.fullmatch(path) or STORED.fullmatch(path)]

    def stored(self, digest: str) -> bytes:
        files = [data for repository in self.repositories.values() for data in repository.files.values()]
        return next(data for data in files if hashlib.sha256(data).hexdigest() == digest)


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if match := API.fullmatch(path):
            self._api(match[1], match[2], match[3] or "main")
        elif match := RESOLVE.fullmatch(path):
            self._resolve(*match.groups())
        elif match := STORED.fullmatch(path):
            self._content(self.hub.stored(match[1]), {"ETag": f'"{match[1]}"'})
        else:
            self._refuse(404, "EntryNotFound", "no such page")

    do_HEAD = do_GET

    def do_POST(self):
        """Creates repositories, and takes commits of files: small ones in the commit, large ones before it."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, path, None))
        if self._token() != TOKEN:
            self._send(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.hub.repositories.setdefault(name, Repository({}, "private" if asked.get("private") else "public"))
            self._answer({"url": f"{self.hub.address}/{name}"})
        elif path.endswith("/info/lfs/objects/batch"):
            asked = json.loads(body)["objects"]
            upload = [{**each, "actions": {"upload": {"href": f"{self.hub.storage}/{each['oid']}"}}} for each in asked]
            self._answer({"transfer": "basic", "objects": upload})
        elif "/preupload/" in path:
            mode = {True: "lfs", False: "regular"}
            files = [each["path"] for each in json.loads(body)["files"]]
            modes = [{"path": each, "uploadMode": mode[each.endswith(LARGE)], "shouldIgnore": False} for each in files]
            self._answer({"files": modes})
        elif "/commit/" in path:
            name = path.removeprefix("/api/models/").partition("/commit/")[0]
            repository = self.hub.repositories[name]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repository.files[value["path"]] = self.hub.uploaded[value["oid"]]
            url = f"{self.hub.address}/{name}/commit/{repository.commit}"
            self._answer({"success": True, "commitOid": repository.commit, "commitUrl": url, "hookOutput": ""})
        else:
            self._refuse(404, "EntryNotFound", "no such page")

    def do_PUT(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.uploaded[hashlib.sha256(data).hexdigest()] = data
        self._send(200, b"", {})

    def _answer(self, values: dict) -> None:
        self._send(200, json.dumps(values).encode(), {"Content-Type": "application/json"})

    def log_message(self, *_):
        pass

    def _api(self, name: str, what: str | None, revision: str) -> None:
        repository = self._find(name, revision)
        if repository is None:
            return
        if what == "tree":
            answer = [{"type": "file", "path": path, **_blob(data)} for path, data in repository.files.items()]
        else:
            files = [{"rfilename": path} for path in repository.files]
            shown = {"private": repository.access == "private", "downloads": 0, "likes": 0, "tags": []}
            answer = {"id": name, "modelId": name, "sha": repository.commit, "siblings": files, **shown}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._find(name, revision)
        if repository is None:
            return
        if repository.access == "gated" and not self._token():
            self._refuse(401, "GatedRepo", f"Access to model {name} is restricted.")
            return
        commit = {"X-Repo-Commit": repository.commit}
        if path not in repository.files:
            self._refuse(404, "EntryNotFound", "Entry not found", commit)
            return
        data = repository.files[path]
        if not path.endswith(LARGE):
            self._content(data, {**commit, "ETag": f'"{repository.stated.get(path, git_hash(data))}"'})
            return
        digest = hashlib.sha256(data).hexdigest()
        stated = repository.stated.get(path, digest)
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{stated}"'}
        self._send(302, b"", {**commit, **linked, "Location": f"{self.hub.storage}/{digest}"})

    def _find(self, name: str, revision: str) -> Repository | None:
        """The repository, if the client may see it; if not, it has been told."""
        repository = self.hub.repositories.get(name)
        token = self._token()
        if token and token != TOKEN:
            self._send(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repository is None or (repository.access == "private" and not token):
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif revision not in ("main", repository.commit, *repository.tags):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repository
        return None

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _content(self, data: bytes, headers: dict[str, str]) -> None:
        """A file or, with a Range, the rest of it."""
        if self.hub.broken and self.command == "GET":
            self._send(self.hub.broken, b"", {})
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "bytes=0-")[1])
        ranged = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        key = next((key for key in self.hub.cut if key in data), None) if self.command == "GET" else None
        sent = None if key is None else self.hub.cut.pop(key)
        self._send(206 if start else 200, data[start:], {**headers, **ranged, "Accept-Ranges": "bytes"}, sent)

    def _refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str], sent: int | None = None) -> None:
        """Answers; of the body only `sent` bytes, if that is a number, and then the line is dropped."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:sent])
        if sent is not None:
            self.close_connection = True


def _blob(data: bytes) -> dict:
    """Size and hash of a file as listings have them."""
    return {"size": len(data), "oid": git_hash(data)}


def git_hash(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
