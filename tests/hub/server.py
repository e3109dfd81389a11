"""A Hub on this machine: the endpoints of huggingface.co that its client calls, over real HTTP, and able to fail.

Repositories, branches, commits, pull requests, large files (LFS) and tokens are kept in memory as the Hub keeps them;
what is stored is checked (SHA-256, size, parent). Xet is not spoken: clients run with `HF_HUB_DISABLE_XET=1`, or the
server is told to take every file as a regular one (`hub.lfs = False`).

The client reads `HF_ENDPOINT` when it is imported: it runs in processes of its own, with `hub.environment()`.
"""

import base64
import hashlib
import json
import os
import re
import socket
import threading
import time
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from helpers import python

ADA, BOB, READER = "hf_AdasDistinctiveSecret", "hf_BobsDistinctiveSecret", "hf_ReadersDistinctiveSecret"
LFS_SIZE = 1 << 20  # bytes; the Hub takes larger files, and those of .gitattributes, as LFS
LFS_NAMES = (".safetensors", ".png", ".npz", ".parquet")
DATE = "2024-01-01T00:00:00.000Z"


@dataclass
class File:
    content: bytes
    lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        lines = (
            "version https://git-lfs.github.com/spec/v1",
            f"oid sha256:{self.sha256}",
            f"size {len(self.content)}",
        )
        return "".join(f"{line}\n" for line in lines).encode()

    @property
    def oid(self) -> str:
        """What git calls it."""
        blob = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    def entry(self, path: str) -> dict:
        size = len(self.content)
        found = {"type": "file", "path": path, "size": size, "oid": self.oid}
        if self.lfs:
            found["lfs"] = {"oid": self.sha256, "size": size, "pointerSize": len(self.pointer)}
        return found


@dataclass
class Commit:
    message: str
    parent: str | None
    files: dict[str, File]
    author: str

    @property
    def sha(self) -> str:
        tree = "".join(f"{path} {file.oid}\n" for path, file in sorted(self.files.items()))
        return hashlib.sha1(f"{self.message}\n{self.parent}\n{self.author}\n{tree}".encode()).hexdigest()


@dataclass
class Repo:
    kind: str
    id: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: list[str] = field(default_factory=list)  # titles
    security: dict = field(default_factory=lambda: {"scansDone": True, "filesWithIssues": []})

    def add(self, ref: str, message: str, files: dict[str, File], author: str) -> str:
        commit = Commit(message, self.refs.get(ref), files, author)
        self.commits[commit.sha] = commit
        self.refs[ref] = commit.sha
        return commit.sha

    def sha(self, revision: str) -> str:
        found = self.refs.get(revision) or self.tags.get(revision)
        if found is None and revision not in self.commits:
            raise Answer(404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"})
        return found or revision

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """What a revision holds, for tests to look at."""
        return {path: file.content for path, file in self.commits[self.sha(revision)].files.items()}

    def history(self, revision: str = "main") -> list[str]:
        """Messages of the commits, newest first."""
        sha, messages = self.sha(revision), []
        while sha:
            messages.append(self.commits[sha].message)
            sha = self.commits[sha].parent
        return messages


@dataclass
class Failure:
    pattern: str
    times: int
    status: int
    headers: dict[str, str]
    message: str
    drop: str | None
    delay: float
    drip: float


class Answer(Exception):
    """Ends a request with this answer."""

    def __init__(self, status: int, content: object, headers: dict[str, str] | None = None):
        super().__init__(status)
        self.status, self.content, self.headers = status, content, headers or {}


class Hub:
    """The server and all that it keeps.

    Attributes:
        url (`str`): What `HF_ENDPOINT` must be.
        repos (`dict`): Repositories by kind and name, as `("models", "ada/digits")`.
        users (`dict`): Name and role, `write` or `read`, by token.
        requests (`list`): Method, path and time of each request.
        lfs (`bool`): Whether large files go the way of large files.
        signature (`str`): What ends their addresses.
    """

    def __init__(self) -> None:
        self.users = {ADA: ("ada", "write"), BOB: ("bob", "write"), READER: ("ada", "read")}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, float]] = []
        self.failures: list[Failure] = []
        self.lfs, self.signature = True, ""
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        # As on the Hub, large files lie on another host, which must not see the token.
        self.storage = f"http://localhost:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def __getitem__(self, name: str) -> Repo:
        return self.repos["models", name]

    def create(self, name: str, private: bool = False, kind: str = "models") -> Repo:
        repo = self.repos[kind, name] = Repo(kind, name, private)
        repo.add("main", "initial commit", {".gitattributes": File(b"*.safetensors filter=lfs\n")}, "ada")
        return repo

    def fail(
        self,
        pattern: str,
        times: int = 1,
        status: int = 0,
        headers: dict[str, str] | None = None,
        message: str = "told to fail",
        drop: str | None = None,
        delay: float = 0.0,
        drip: float = 0.0,
    ) -> None:
        """Lets requests fail.

        Args:
            pattern: Regular expression, sought in "METHOD path".
            times: How many of those requests; the following ones work again.
            status: Answers with this, `headers` and `message`.
            drop: Hangs up: "early", in the midst of the body, or "late", when all is done but not answered.
            delay: Seconds to wait before anything else.
            drip: Seconds to wait after each byte of the answer's body.
        """
        self.failures.append(Failure(pattern, times, status, headers or {}, message, drop, delay, drip))

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, f"{method} {path}")) for method, path, _ in self.requests)

    # Clients

    def environment(self, token: str | None = None, hurry: bool = False, **more: str) -> dict[str, str]:
        """For a process that talks to this Hub. `hurry` makes it wait a hundredth of the time that it means to."""
        found = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", **more}
        found |= {"HF_TOKEN": token} if token else {}
        if hurry:
            found["PYTHONPATH"] = os.pathsep.join(
                [str(Path(__file__).parent / "hurry"), os.environ.get("PYTHONPATH", "")]
            )
        return found

    def python(self, code: str, *arguments: object, token: str | None = None, hurry: bool = False, **more: str) -> str:
        """Runs code in a process that talks to this Hub, and returns what it prints."""
        return python(code, *arguments, env=self.environment(token, hurry, **more))


class Handler(BaseHTTPRequestHandler):
    """One connection. The methods of ROUTES answer by raising or returning."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, OSError, ValueError):  # clients that hang up, killed ones among them
            self.close_connection = True

    def serve(self) -> None:
        self.url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(self.url.query).items()}
        name = f"{self.command} {self.url.path}"
        with self.hub.lock:
            self.hub.requests.append((self.command, self.url.path, time.monotonic()))
            failure = next((f for f in self.hub.failures if f.times > 0 and re.search(f.pattern, name)), None)
            if failure:
                failure.times -= 1
        if failure:
            time.sleep(failure.delay)
            if failure.drop == "early":
                self.rfile.read(min(1024, int(self.headers.get("Content-Length") or 1)))
                return self.hang_up()
        self.body = self.read_body()
        try:
            if failure and failure.status:
                raise Answer(failure.status, {"error": failure.message}, failure.headers)
            with self.hub.lock:
                content = self.route()
            answer = Answer(200, content)
        except Answer as other:
            answer = other
        if failure and failure.drop == "late":
            return self.hang_up()
        self.send(answer, failure.drip if failure else 0.0)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def send(self, answer: Answer, drip: float = 0.0) -> None:
        raw = isinstance(answer.content, bytes)
        body = answer.content if raw else json.dumps(answer.content).encode()
        headers = {"Content-Type": "application/octet-stream" if raw else "application/json"}
        if answer.status >= 400:
            headers |= {"X-Error-Message": answer.content["error"]} if not raw else {}
        self.send_response(answer.status)
        headers |= {"X-Request-Id": f"Root=1-{uuid.uuid4().hex}", "Content-Length": str(len(body))}
        for key, value in (headers | answer.headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for part in [body[place : place + 1] for place in range(len(body))] if drip else [body]:
            self.wfile.write(part)
            time.sleep(drip)

    def route(self) -> object:
        for method, pattern, answer in ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, self.url.path)):
                return answer(self, **{key: unquote(value or "") for key, value in match.groupdict().items()})
        raise Answer(404, {"error": f"no such endpoint: {self.command} {self.url.path}"})

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    # Who may do what

    def user(self, needed: bool = True) -> tuple[str, str]:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise Answer(401, {"error": "Invalid credentials in Authorization header"})
        if not token and needed:
            raise Answer(401, {"error": "Invalid username or password."})
        return self.hub.users[token] if token else ("", "read")

    def repo(self, kind: str, id: str, write: bool = False, propose: bool = False) -> Repo:
        name, role = self.user(needed=write)
        found = self.hub.repos.get((kind or "models", id))
        owner = id.partition("/")[0]
        if found is None or (found.private and name != owner):
            status = 404 if name else 401  # as the Hub does: strangers do not learn whether it exists
            raise Answer(status, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if write and (role != "write" or (name != owner and not propose)):
            raise Answer(403, {"error": "You don't have the rights to do this"})
        return found

    # The endpoints

    def whoami(self) -> dict:
        name, role = self.user()
        token = {"displayName": "test", "role": role}
        return {"type": "user", "name": name, "fullname": name, "orgs": [], "auth": {"accessToken": token}}

    def create_repo(self) -> dict:
        name, role = self.user()
        owner, kind = self.json.get("organization") or name, self.json.get("type", "model") + "s"
        id = f"{owner}/{self.json['name']}"
        if kind == "spaces" and self.json.get("sdk") not in ("gradio", "docker", "static"):
            raise Answer(400, {"error": "a Space needs an sdk"})
        if role != "write" or owner != name:
            raise Answer(403, {"error": f"You don't have the rights to create a {kind[:-1]} under {owner}"})
        url = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{id}"
        if (kind, id) in self.hub.repos:
            raise Answer(409, {"error": "You already created this repo", "url": url})
        private = self.json.get("private") is True or self.json.get("visibility") == "private"
        self.hub.create(id, private, kind)
        return {"url": url, "name": id}

    def auth_check(self, kind: str, id: str, write: str) -> dict:
        self.repo(kind, id, write=bool(write))
        return {}

    def delete_repo(self) -> dict:
        name, _ = self.user()
        kind, id = self.json.get("type", "model") + "s", f"{self.json.get('organization') or name}/{self.json['name']}"
        self.repo(kind, id, write=True)
        del self.hub.repos[kind, id]
        return {}

    def info(self, kind: str, id: str, revision: str = "main") -> dict:
        repo = self.repo(kind, id)
        sha = repo.sha(revision)
        files = repo.commits[sha].files
        siblings = [{"rfilename": path} for path in files]
        if self.query.get("blobs"):
            siblings = [{"rfilename": path, "blobId": f.oid, "size": len(f.content)} for path, f in files.items()]
        found = {"id": id, "sha": sha, "private": repo.private, "siblings": siblings, "author": id.partition("/")[0]}
        found |= {"tags": [], "downloads": 0, "likes": 0, "gated": False, "disabled": False, "lastModified": DATE}
        if self.query.get("securityStatus"):
            found["securityRepoStatus"] = repo.security
        return found

    def tree(self, kind: str, id: str, revision: str, path: str = "") -> list[dict]:
        repo = self.repo(kind, id)
        files = repo.commits[repo.sha(revision)].files
        prefix = f"{path.strip('/')}/" if path.strip("/") else ""
        found: dict[str, dict] = {}
        for name, file in files.items():
            if not name.startswith(prefix):
                continue
            parts = name.removeprefix(prefix).split("/")
            folders = [prefix + "/".join(parts[:depth]) for depth in range(1, len(parts))]
            deep = self.query.get("recursive", "").lower() in ("1", "true")
            for folder in folders if deep else folders[:1]:
                found[folder] = {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40}
            if deep or not folders:
                found[name] = file.entry(name)
        if prefix and not found:
            raise Answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        return list(found.values())

    def paths_info(self, kind: str, id: str, revision: str) -> list[dict]:
        repo = self.repo(kind, id)
        files = repo.commits[repo.sha(revision)].files
        asked = parse_qs(self.body.decode())["paths"] if self.body[:1] != b"{" else self.json["paths"]
        return [files[path].entry(path) for path in asked if path in files]

    def refs(self, kind: str, id: str) -> dict:
        repo = self.repo(kind, id)
        branches = [(name, sha) for name, sha in repo.refs.items() if not name.startswith("refs/")]
        pulls = [(name, sha) for name, sha in repo.refs.items() if name.startswith("refs/")]
        return {
            "branches": [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha} for n, sha in branches],
            "tags": [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": sha} for n, sha in repo.tags.items()],
            "pullRequests": [{"name": n, "ref": n, "targetCommit": sha} for n, sha in pulls],
            "converts": [],
        }

    def branch(self, kind: str, id: str, name: str) -> dict:
        repo = self.repo(kind, id, write=True)
        if name in repo.refs:
            raise Answer(409, {"error": f"Reference {name} already exists"})
        if name.startswith("refs/"):
            raise Answer(400, {"error": f"Invalid reference for a branch: {name}"})
        repo.refs[name] = repo.sha(self.json.get("startingPoint") or "main")
        return {}

    def tag(self, kind: str, id: str, revision: str) -> dict:
        repo = self.repo(kind, id, write=True)
        repo.tags[self.json["tag"]] = repo.sha(revision)
        return {}

    def validate(self) -> dict:
        if not re.match(r"---\n(.*\n)*?---\n", self.json["content"]):
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
        return {"errors": [], "warnings": []}

    def preupload(self, kind: str, id: str, revision: str) -> dict:
        repo = self.repo(kind, id, write=True, propose=True)
        there = repo.commits[repo.sha(revision)].files
        found = []
        for file in self.json["files"]:
            large = self.hub.lfs and (file["size"] > LFS_SIZE or file["path"].endswith(LFS_NAMES))
            mode = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            known = there.get(file["path"])  # lets the client leave out what has not changed
            found.append(mode | ({"oid": known.sha256 if known.lfs else known.oid} if known else {}))
        return {"files": found}

    def lfs_batch(self, kind: str, id: str) -> dict:
        self.repo(kind.rstrip("/"), id, write=True, propose=True)
        found = []
        for wanted in self.json["objects"]:
            actions = {"upload": {"href": f"{self.hub.storage}/lfs/{wanted['oid']}{self.hub.signature}"}}
            actions |= {"verify": {"href": f"{self.hub.url}/lfs/{wanted['oid']}/verify"}}
            found.append(wanted | ({} if wanted["oid"] in self.hub.objects else {"actions": actions}))
        return {"transfer": "basic", "objects": found}

    def lfs_upload(self, oid: str) -> dict:
        if self.headers.get("Authorization"):
            raise Answer(400, {"error": "the storage was shown a token"})
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Answer(400, {"error": "the content has another SHA-256"})
        self.hub.objects[oid] = self.body
        return {}

    def lfs_verify(self, oid: str) -> dict:
        if len(self.hub.objects.get(oid, b"")) != self.json["size"] or self.json["oid"] != oid:
            raise Answer(404, {"error": "Object not found"})
        return {}

    def lfs_download(self, oid: str) -> object:
        if self.headers.get("Authorization"):
            raise Answer(400, {"error": "the storage was shown a token"})
        return self.content(self.hub.objects[oid], {"ETag": f'"{oid}"'})

    def commit(self, kind: str, id: str, revision: str) -> dict:
        propose = self.query.get("create_pr") == "1"
        repo = self.repo(kind, id, write=True, propose=propose or revision.startswith("refs/pr/"))
        name, _ = self.user()
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        before = repo.sha(revision)
        if revision not in repo.refs:
            raise Answer(400, {"error": "commits need a branch"})
        if header.get("parentCommit", before) != before:
            raise Answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        files = dict(repo.commits[before].files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                if len(self.hub.objects.get(value["oid"], b"")) != value.get("size"):
                    raise Answer(400, {"error": f"{value['path']} was not uploaded"})
                files[value["path"]] = File(self.hub.objects[value["oid"]], lfs=True)
            elif line["key"] in ("deletedFile", "deletedFolder"):
                path = value["path"].rstrip("/")
                files = {n: f for n, f in files.items() if n != path and not n.startswith(f"{path}/")}
        found = {}
        if propose:
            revision, number = self.open_pull(repo, header["summary"], before)
            found["pullRequestUrl"] = f"{self.hub.url}/{id}/discussions/{number}"
        sha = repo.add(revision, header["summary"], files, name)
        return found | {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{id}/commit/{sha}"}

    def open_pull(self, repo: Repo, title: str, sha: str) -> tuple[str, int]:
        repo.pulls.append(title)
        ref = f"refs/pr/{len(repo.pulls)}"
        repo.refs[ref] = sha
        return ref, len(repo.pulls)

    def discussions(self, kind: str, id: str) -> dict:
        repo = self.repo(kind, id, write=True, propose=True)
        assert self.json["pullRequest"]
        return {"num": self.open_pull(repo, self.json["title"], repo.sha("main"))[1]}

    def discussion(self, kind: str, id: str, number: str) -> dict:
        repo = self.repo(kind, id)
        found = {"title": repo.pulls[int(number) - 1], "num": int(number), "createdAt": DATE, "status": "draft"}
        found |= {
            "isPullRequest": True,
            "repo": {"name": id, "type": kind[:-1]},
            "events": [],
            "author": {"name": "ada"},
        }
        return found | {"changes": {"base": "refs/heads/main"}, "filesWithConflicts": []}

    def resolve(self, kind: str, id: str, revision: str, path: str) -> object:
        repo = self.repo(kind.rstrip("/"), id)
        sha = repo.sha(revision)
        headers = {"X-Repo-Commit": sha}
        file = repo.commits[sha].files.get(path)
        if file is None:
            raise Answer(404, {"error": "Entry not found"}, headers | {"X-Error-Code": "EntryNotFound"})
        if not file.lfs:
            return self.content(file.content, headers | {"ETag": f'"{file.oid}"'})
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        raise Answer(
            302, b"", headers | {"ETag": f'"{file.oid}"', "Location": f"{self.hub.storage}/lfs/{file.sha256}"}
        )

    def content(self, content: bytes, headers: dict[str, str]) -> object:
        headers |= {"Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            raise Answer(200, content, headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        if first > last:
            raise Answer(416, {"error": "out of range"}, {"Content-Range": f"bytes */{len(content)}"})
        headers |= {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        raise Answer(206, content[first : last + 1], headers)


REPO = r"/api/(?P<kind>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)"
PAGE = r"/(?P<kind>(?:datasets/|spaces/)?)(?P<id>[^/]+/[^/]+?)"
REVISION, PATH = r"(?P<revision>[^/]+)", r"(?P<path>.+)"
ROUTES = (
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create_repo),
    ("DELETE", "/api/repos/delete", Handler.delete_repo),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("GET", REPO, Handler.info),
    ("GET", f"{REPO}/auth-check(?P<write>/write)?", Handler.auth_check),
    ("GET", f"{REPO}/revision/{REVISION}", Handler.info),
    ("GET", f"{REPO}/tree/{REVISION}(?:/{PATH})?", Handler.tree),
    ("POST", f"{REPO}/paths-info/{REVISION}", Handler.paths_info),
    ("GET", f"{REPO}/refs", Handler.refs),
    ("POST", f"{REPO}/branch/(?P<name>[^/]+)", Handler.branch),
    ("POST", f"{REPO}/tag/{REVISION}", Handler.tag),
    ("POST", f"{REPO}/preupload/{REVISION}", Handler.preupload),
    ("POST", f"{REPO}/commit/{REVISION}", Handler.commit),
    ("POST", f"{REPO}/discussions", Handler.discussions),
    ("GET", f"{REPO}/discussions/(?P<number>[0-9]+)", Handler.discussion),
    ("POST", rf"{PAGE}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_upload),
    ("POST", "/lfs/(?P<oid>[0-9a-f]{64})/verify", Handler.lfs_verify),
    ("GET", "/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_download),
    ("HEAD", "/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_download),
    ("GET", f"{PAGE}/resolve/{REVISION}/{PATH}", Handler.resolve),
    ("HEAD", f"{PAGE}/resolve/{REVISION}/{PATH}", Handler.resolve),
)
