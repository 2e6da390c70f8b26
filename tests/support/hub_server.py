"""A model hub on this machine: the calls that `huggingface_hub` makes to create, push to and download a repository.

Files live in memory. LFS uploads follow git-lfs: a batch call hands out an upload URL and a verify URL on this server.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.support.local_server import LocalServer

TOKEN = "hf_" + "s3cretS3cretS3cret" * 2
READ_ONLY = "hf_" + "readonly" * 4


@dataclass
class Repository:
    """One repository."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()


class HubServer(LocalServer):
    """The hub; `with HubServer() as hub:` runs it in a thread."""

    def __init__(self) -> None:
        super().__init__(Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if not self.chunked else self.chunks()
        parts = path.strip("/").split("/")
        if path.startswith("/upload/"):  # what stands for object storage knows no token: the URL is the permission
            self.server.objects[parts[1]] = self.body
            self.answer({})
        elif self.command in ("POST", "PUT") and path != "/api/validate-yaml" and not self.allowed():
            return
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self.create()
        elif path.startswith("/api/models/"):
            self.model("/".join(parts[2:4]), parts[4:])
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.batch()
        elif path == "/verify":
            wanted = json.loads(self.body)
            whole = len(self.server.objects.get(wanted["oid"], b"")) == wanted["size"]
            self.answer({}, 200 if whole else 404)
        elif len(parts) > 4 and parts[2] == "resolve":
            self.resolve("/".join(parts[:2]), "/".join(parts[4:]))
        else:
            self.answer({"error": f"no such call: {path}"}, 404)

    do_GET = do_POST = do_PUT = do_HEAD = handle_any

    @property
    def chunked(self) -> bool:
        return self.headers.get("Transfer-Encoding") == "chunked"

    def chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def allowed(self) -> bool:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token == READ_ONLY:
            self.answer({"error": "You don't have the rights to write there"}, 403)
        elif token != TOKEN:
            self.answer({"error": "Invalid username or password."}, 401)
        return token == TOKEN

    def answer(self, value: Any, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        if status >= 400 and isinstance(value, dict) and "error" in value:
            self.send_header("X-Error-Message", value["error"])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def create(self) -> None:
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        private = wanted.get("visibility", "private" if wanted.get("private") else "public") == "private"
        exists = name in self.server.repositories
        if not exists:
            self.server.repositories[name] = Repository(private, {".gitattributes": b"*.safetensors filter=lfs\n"})
        answer = {"url": f"{self.server.url}/{name}", "name": name}
        self.answer(
            {**answer, "error": "You already created this model repo"} if exists else answer, 409 if exists else 200
        )

    def model(self, name: str, rest: list[str]) -> None:
        repository = self.server.repositories.get(name)
        if repository is None:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif rest[:1] == ["preupload"]:
            self.answer({"files": [self.upload_mode(file) for file in json.loads(self.body)["files"]]})
        elif rest[:1] == ["commit"]:
            self.commit(name, repository)
        elif rest[:1] == ["tree"]:
            self.answer([tree_entry(path, content) for path, content in repository.files.items()])
        else:
            siblings = [{"rfilename": path} for path in repository.files]
            self.answer({"id": name, "private": repository.private, "sha": repository.sha, "siblings": siblings})

    def upload_mode(self, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith(".safetensors")
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": None}

    def batch(self) -> None:
        objects = []
        for file in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.server.url}/upload/{file['oid']}"}
            verify = {"href": f"{self.server.url}/verify"}
            objects.append({**file, "authenticated": True, "actions": {"upload": upload, "verify": verify}})
        self.answer({"transfer": "basic", "objects": objects})

    def commit(self, name: str, repository: Repository) -> None:
        lines = [json.loads(line) for line in self.body.decode().splitlines()]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.server.objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                repository.files[value["path"]] = content
            elif line["key"] == "deletedFile":
                del repository.files[value["path"]]
        repository.commits.append(lines[0]["value"])
        self.answer(
            {
                "success": True,
                "commitOid": repository.sha,
                "commitUrl": f"{self.server.url}/{name}/commit/{repository.sha}",
            }
        )

    def resolve(self, name: str, path: str) -> None:
        repository = self.server.repositories.get(name)
        if repository is None or path not in repository.files:
            self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            return
        content = repository.files[path]
        self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=repository.sha)


def tree_entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as the tree call lists it."""
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
