"""The hub of `tests/checkpoints/hub_server.py` with datasets, for the real library."""

import json
import re
import urllib.parse

from tests.checkpoints import hub_server

TREE = re.compile(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?")


class _Handler(hub_server._Handler):
    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if match := TREE.fullmatch(path):
            self._tree(*match.groups())
            return
        # What is left has the same pages as models.
        for of_datasets, of_models in (("/api/datasets/", "/api/models/"), ("/datasets/", "/")):
            if path.startswith(of_datasets):
                self.path = self.path.replace(of_datasets, of_models, 1)
                break
        super().do_GET()

    do_HEAD = do_GET

    def _tree(self, name: str, revision: str, folder: str | None) -> None:
        """The files and folders directly in a folder."""
        repository = self._find(name, revision)
        if repository is None:
            return
        prefix = f"{folder}/" if folder else ""
        inside = {path.removeprefix(prefix): data for path, data in repository.files.items() if path.startswith(prefix)}
        found = [
            {"type": "file", "path": prefix + path, **hub_server._blob(data)}
            for path, data in inside.items()
            if "/" not in path
        ]
        folders = sorted({path.partition("/")[0] for path in inside if "/" in path})
        found += [{"type": "directory", "path": prefix + each, "size": 0, "oid": "0" * 40} for each in folders]
        if folder and not found:
            self._refuse(404, "EntryNotFound", "no such folder")
        else:
            self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})


class DatasetHub(hub_server.FakeHub):
    HANDLER = _Handler
