"""A Hugging Face Hub in this process, for the real clients: data sets, commits, tags, LFS uploads.

It keeps users and tokens, private and gated repositories, refuses a commit whose parent is not the
head, serves ranges, logs every request, and fails on demand: `hub.fail("PUT /_s3", 500)`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

LFS: Final = (".parquet", ".png", ".jpg")
DROPPED: Final = 0  # the status of a connection that breaks in the middle of its body
HANGS: Final = -1  # of one that is not answered until `hub.go_on` is set


@dataclass
class Commit:
    """A commit: its parent, and the bytes of each path (with a flag for LFS)."""

    oid: str
    parent: str | None
    title: str
    tree: dict[str, tuple[bytes, bool]]


@dataclass
class Repo:
    """A data set, its commits by id, the head of main, and tags."""

    id: str
    private: bool
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    head: str = ""
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, tree: dict[str, tuple[bytes, bool]], title: str) -> str:
        oid = hashlib.sha1(f"{self.id} {len(self.commits)} {title}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, self.head or None, title, tree)
        self.head = oid
        return oid

    def at(self, revision: str) -> Commit:
        oid = {"main": self.head, **self.tags}.get(revision, revision)
        if oid not in self.commits:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]


class RefusedError(Exception):
    """An answer that is an error, with the code in which the clients read what it means."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class Fault:
    """The next `times` requests that fit the pattern fail, after `after` that pass."""

    pattern: str
    status: int
    times: int
    after: int


class HubDouble:
    """The server; as a context it listens on a free port of this machine."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.users: dict[str, str] = {}
        self.readers: set[tuple[str, str]] = set()
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.bodies: list[bytes] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.hanging, self.go_on = threading.Event(), threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> HubDouble:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add_user(self, name: str) -> str:
        """Return a token of a user."""
        token = f"hf_{hashlib.sha1(name.encode()).hexdigest()}"
        self.users[token] = name
        return token

    def fail(self, pattern: str, status: int, *, times: int = 1, after: int = 0) -> None:
        """Let requests fail whose "METHOD /path" has the pattern; DROPPED breaks the connection."""
        self.faults.append(Fault(pattern, status, times, after))

    def count(self, pattern: str) -> int:
        """Count the requests that fit a pattern and were answered well."""
        return sum(
            1
            for method, path, status in self.requests
            if re.search(pattern, f"{method} {path}") and 200 <= status < 300
        )


class _Handler(BaseHTTPRequestHandler):
    hub: HubDouble
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def dispatch(self) -> None:
        parts = urlsplit(self.path)
        path, self.query = unquote(parts.path), parse_qs(parts.query)
        with self.hub.lock:
            status = self.due_fault(path)
        if status == HANGS:
            self.hub.hanging.set()
            self.hub.go_on.wait(60)
            status = DROPPED
        if status == DROPPED:
            self.rfile.read(max(1, int(self.headers.get("Content-Length") or 0) // 2))
            self.hub.requests.append((self.command, path, 0))
            self.connection.shutdown(2)
            self.close_connection = True
            return
        body = self.body()
        try:
            if status:
                raise RefusedError(status, "injected")
            with self.hub.lock:
                self.hub.bodies.append(body)
                self.route(path, body)
        except RefusedError as refused:
            headers = {"X-Error-Message": str(refused)}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            self.send(refused.status, json.dumps({"error": str(refused)}).encode(), headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = dispatch  # noqa: N815

    def due_fault(self, path: str) -> int | None:
        for fault in self.hub.faults:
            if fault.times and re.search(fault.pattern, f"{self.command} {path}"):
                if fault.after:
                    fault.after -= 1
                    continue
                fault.times -= 1
                return fault.status
        return None

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.hub.requests.append((self.command, unquote(urlsplit(self.path).path), status))
        self.send_response(status)
        sent = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, value in {**sent, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, answer: Any, headers: dict[str, str] | None = None) -> None:
        self.send(200, json.dumps(answer).encode(), headers)

    def user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()
        if token and token not in self.hub.users:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def repo(self, name: str, *, write: bool = False, content: bool = False) -> Repo:
        user, repo = self.user(), self.hub.repos.get(name)
        owner = name.partition("/")[0]
        mine = user == owner or (user, name) in self.hub.readers
        if repo is None or (repo.private and not mine):
            raise RefusedError(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user != owner:
            raise RefusedError(403, f"You don't have the rights to write to {name}")
        if content and repo.gated and not mine:
            raise RefusedError(403, f"Access to dataset {name} is restricted.", "GatedRepo")
        return repo

    def route(self, path: str, body: bytes) -> None:
        for method, pattern, answer in ROUTES:
            fits = method == self.command or (method == "GET" and self.command == "HEAD")
            if fits and (match := re.fullmatch(pattern, path)):
                answer(self, body, *match.groups())
                return
        raise RefusedError(404, f"the double has no route {self.command} {path}")

    def whoami(self, _: bytes) -> None:
        if not (user := self.user()):
            raise RefusedError(401, "Invalid username or password.")
        self.json({"type": "user", "id": "0", "name": user, "orgs": [], "auth": {}})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or self.user()}/{asked['name']}"
        if name.partition("/")[0] != self.user():
            raise RefusedError(
                403, "You don't have the rights to create a repo under this namespace"
            )
        if name in self.hub.repos:
            raise RefusedError(409, "You already created this dataset repo")
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repo = self.hub.repos[name] = Repo(name, private)
        repo.add({".gitattributes": (b"*.parquet filter=lfs\n", False)}, "initial commit")
        self.json({"url": f"{self.hub.url}/datasets/{name}", "name": name, "id": name})

    def info(self, _: bytes, name: str, revision: str = "main") -> None:
        repo = self.repo(name)
        commit = repo.at(revision)
        self.json(
            {
                "id": name, "sha": commit.oid, "private": repo.private, "gated": repo.gated,
                "tags": [], "siblings": [{"rfilename": path} for path in sorted(commit.tree)],
            }
        )  # fmt: skip

    def refs(self, _: bytes, name: str) -> None:
        repo = self.repo(name)
        tags = [
            {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid}
            for tag, oid in repo.tags.items()
        ]
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.head}
        self.json({"branches": [main], "converts": [], "tags": tags})

    def tree(self, _: bytes, name: str, revision: str, folder: str | None = None) -> None:
        files = self.repo(name).at(revision).tree
        prefix = f"{folder.strip('/')}/" if folder else ""
        below = {path: blob for path, blob in files.items() if path.startswith(prefix)}
        if not below:
            raise RefusedError(404, f"{folder} does not exist", "EntryNotFound")
        deep = self.query.get("recursive", ["false"])[0].lower() == "true"
        folders = {
            prefix + "/".join(parts[: n + 1])
            for path in below
            for parts in [path.removeprefix(prefix).split("/")]
            for n in range(len(parts) - 1 if deep else min(1, len(parts) - 1))
        }
        rows = [
            {"type": "directory", "path": path, "size": 0, "oid": git_oid(path.encode())}
            for path in sorted(folders)
        ]
        for path, blob in sorted(below.items()):
            if deep or "/" not in path.removeprefix(prefix):
                rows.append(described(path, *blob))
        self.json(rows)

    def paths_info(self, body: bytes, name: str, revision: str) -> None:
        files = self.repo(name).at(revision).tree
        is_json = "json" in (self.headers.get("Content-Type") or "")
        asked = json.loads(body)["paths"] if is_json else parse_qs(body.decode()).get("paths", [])
        self.json([described(path, *files[path]) for path in asked if path in files])

    def tag(self, body: bytes, name: str, revision: str) -> None:
        repo, tag = self.repo(name, write=True), json.loads(body)["tag"]
        if tag in repo.tags:
            raise RefusedError(409, f"Tag reference exists already: {tag}")
        repo.tags[tag] = repo.at(revision).oid
        self.json({})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        self.repo(name, write=True)
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.json({"files": files})

    def batch(self, body: bytes, name: str) -> None:
        self.repo(name, write=True)
        objects = []
        for asked in json.loads(body)["objects"]:
            known = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                href = f"{self.hub.url}/_s3/{asked['oid']}"
                verify = f"{self.hub.url}/_verify/{asked['oid']}"
                known["actions"] = {"upload": {"href": href}, "verify": {"href": verify}}
            objects.append(known)
        self.json({"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusedError(400, "sha256 mismatch")
        self.hub.objects[oid] = body
        self.send(200, headers={"ETag": f'"{oid}"'})

    def verify(self, _: bytes, oid: str) -> None:
        if oid not in self.hub.objects:
            raise RefusedError(404, "Object not found")
        self.json({})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        repo = self.repo(name, write=True)
        tree, title = dict(repo.at(revision).tree), ""
        for line in filter(None, body.splitlines()):
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, repo.head):
                    raise RefusedError(
                        412, "A commit has happened since. Please refresh and try again."
                    )
            elif item["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"]), False
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise RefusedError(400, f"LFS object {value['oid']} was never uploaded")
                tree[value["path"]] = self.hub.objects[value["oid"]], True
            elif item["key"] == "deletedFile":
                del tree[value["path"]]
        oid = repo.add(tree, title)
        url = f"{self.hub.url}/datasets/{name}/commit/{oid}"
        self.json({"success": True, "commitUrl": url, "commitOid": oid, "hookOutput": ""})

    def resolve(self, _: bytes, name: str, revision: str, path: str) -> None:
        commit = self.repo(name, content=True).at(revision)
        if path not in commit.tree:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        data, lfs = commit.tree[path]
        etag = hashlib.sha256(data).hexdigest() if lfs else git_oid(data)
        headers = {
            "X-Repo-Commit": commit.oid, "ETag": f'"{etag}"', "X-Linked-Etag": f'"{etag}"',
            "X-Linked-Size": str(len(data)), "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }  # fmt: skip
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if asked and self.command == "GET":
            start = int(asked[1]) if asked[1] else max(0, len(data) - int(asked[2]))
            end = min(int(asked[2]), len(data) - 1) if asked[1] and asked[2] else len(data) - 1
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            self.send(206, data[start : end + 1], headers)
            return
        self.send(200, data, {**headers, "Content-Length": str(len(data))})


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def described(path: str, data: bytes, lfs: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
    if lfs:
        sha256 = hashlib.sha256(data).hexdigest()
        row["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
    return row


NAME = r"([^/]+/[^/]+)"
API = rf"/api/datasets/{NAME}"
ROUTES: Final[list[tuple[str, str, Callable[..., None]]]] = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/validate-yaml", lambda handler, _: handler.json({"errors": [], "warnings": []})),
    ("POST", "/api/repos/create", _Handler.create),
    ("GET", API, _Handler.info),
    ("GET", rf"{API}/revision/(.+)", _Handler.info),
    ("GET", rf"{API}/refs", _Handler.refs),
    ("GET", rf"{API}/tree/([^/]+)(?:/(.*))?", _Handler.tree),
    ("POST", rf"{API}/paths-info/([^/]+)", _Handler.paths_info),
    ("POST", rf"{API}/tag/(.+)", _Handler.tag),
    ("POST", rf"{API}/preupload/([^/]+)", _Handler.preupload),
    ("POST", rf"{API}/commit/([^/]+)", _Handler.commit),
    ("POST", rf"/datasets/{NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/_s3/([0-9a-f]{64})", _Handler.put),
    ("POST", r"/_verify/([0-9a-f]{64})", _Handler.verify),
    ("GET", rf"/datasets/{NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
]
