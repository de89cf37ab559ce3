"""A stand-in for the HTTP API of the Hub, as huggingface_hub speaks with it: repositories, branches, LFS, commits."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import yaml

TOKEN = "hf_right"
LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "other", "unknown")


class Hub:
    """repos: name -> branch -> path -> content. private: names of those. refuse: beginning of "METHOD /path" -> the
    status that it is answered with. asked: all of these. whole: nothing goes by LFS."""

    def __init__(self, owner: str = "me") -> None:
        self.owner, self.address = owner, ""
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.stored: dict[str, bytes] = {}
        self.refuse: dict[str, int] = {}
        self.asked: list[str] = []
        self.whole = False

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any]:
        self.asked.append(f"{method} {path}")
        refused = next((code for start, code in self.refuse.items() if self.asked[-1].startswith(start)), 0)
        if refused:
            return refused, {"error": f"refused with\n{refused}"}
        if path.startswith("/lfs/"):  # a storage by itself, which its address alone opens
            self.stored[path.removeprefix("/lfs/")] = body
            return 200, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": self.owner, "orgs": []}
        if path == "/api/validate-yaml":
            errors = card_errors(json.loads(body)["content"])
            return 400 if errors else 200, {"errors": [{"message": one} for one in errors], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        return self._of_repo(method, path, body)

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        owner = asked.get("organization") or self.owner
        repo = f"{owner}/{asked['name']}"
        if owner != self.owner:
            return 403, {"error": f"You don't have the rights to create a model under the namespace {owner!r}"}
        if repo in self.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.address}/{repo}"}
        self.repos[repo] = {"main": {".gitattributes": b"*.safetensors filter=lfs\n"}}
        if asked.get("visibility") == "private" or asked.get("private"):
            self.private.add(repo)
        return 200, {"url": f"{self.address}/{repo}", "name": repo, "id": repo}

    def _of_repo(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if found := re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            return 200, {"transfer": "basic", "objects": [self._place(one) for one in json.loads(body)["objects"]]}
        found = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+?)(?:/(\w+)(?:/([^/]+))?(?:/.*)?)?", path)
        if found is None or found[1] not in self.repos:
            return 404, {"error": "Repository not found"}
        name, verb, revision = found[1], found[2], unquote(found[3] or "main")
        branches = self.repos[name]
        if verb == "branch":
            here = revision in branches
            branches.setdefault(revision, dict(branches["main"]))
            return 409 if here else 200, {"error": "Reference already exists"} if here else {}
        if revision not in branches:
            return 404, {"error": f"Invalid rev id: {revision}"}
        files = branches[revision]
        if verb == "preupload":
            return 200, {"files": [self._mode(one) for one in json.loads(body)["files"]]}
        if verb == "commit":
            return self._commit(name, revision, files, [json.loads(line) for line in body.splitlines()])
        if verb == "tree":
            return 200, [{"type": "file", "path": path, "size": len(files[path]), "oid": "0" * 40} for path in files]
        siblings = [{"rfilename": path} for path in files]
        return 200, {"id": name, "modelId": name, "sha": "0" * 40, "siblings": siblings, "private": False, "tags": []}

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith((".safetensors", ".png", ".jpg")) and not self.whole
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": None}

    def _place(self, one: dict[str, Any]) -> dict[str, Any]:
        known = {"oid": one["oid"], "size": one["size"]}
        there = one["oid"] in self.stored
        return known if there else known | {"actions": {"upload": {"href": f"{self.address}/lfs/{one['oid']}"}}}

    def _commit(self, name: str, revision: str, files: dict[str, bytes], lines: list[Any]) -> tuple[int, Any]:
        new, gone = {}, []
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                new[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.stored.get(value["oid"], b"")
                if hashlib.sha256(content).hexdigest() != value["oid"]:
                    return 400, {"error": f"{value['path']} was not uploaded"}
                new[value["path"]] = content
            elif line["key"] == "deletedFile":
                gone.append(value["path"])
        for path in gone:
            del files[path]
        files.update(new)
        commit = hashlib.sha1(repr(sorted(files)).encode()).hexdigest()
        return 200, {"commitUrl": f"{self.address}/{name}/commit/{commit}", "commitOid": commit, "success": True}


def card_errors(text: str) -> list[str]:
    """What the Hub finds wrong in the metadata of a card, by its own description of them."""
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if front is None:
        return ["there is no metadata"]
    values = yaml.safe_load(front[1])
    wrong = [] if values.get("license") in LICENCES else [f'"license" must be one of {", ".join(LICENCES)}']
    for key in ("tags", "datasets", "base_model"):
        named = values.get(key, [])
        wrong += [] if all(isinstance(one, str) for one in named) else [f'"{key}" must be a list of names']
    for model in values.get("model-index", []):
        wrong += [] if isinstance(model.get("name"), str) else ['"model-index[0].name" is required']
        for result in model["results"]:
            needed = (result["task"].get("type"), result["dataset"].get("type"), result["dataset"].get("name"))
            metrics = [(one.get("type"), str(one.get("value"))) for one in result["metrics"]]
            kinds = (isinstance(one, str) and one for one in (*needed, *(word for one in metrics for word in one)))
            wrong += [] if metrics and all(kinds) else ['"model-index[0].results" lacks something']
    return wrong


@contextmanager
def standing_in() -> Iterator[Hub]:
    """A Hub at its address, which is its endpoint."""
    hub = Hub()

    class Answering(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            status, values = hub.answer(self.command, path, body, self.headers.get("Authorization", ""))
            content = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = _do

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as running:
        running.daemon_threads = True
        hub.address = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield hub
        running.shutdown()
        thread.join()
