"""A small Hub in the test process: what the real `huggingface_hub` client asks for when it loads and pushes.

Repositories live in memory. It answers who am I, create a repository, repository and tree information, `resolve`
(HEAD and GET, with the headers that the client's cache is built on), preupload, the Git LFS batch call with its basic
transfer, and commit. The client reads its endpoint when it is imported, so tests run it in a process of its own:

    with HubServer() as hub:
        commit = hub.commit("walloc/rgb-16x", {"config.json": b"{}"})
        subprocess.run([sys.executable, "-c", code], env={**os.environ, **hub.environment(tmp_path)})
        assert ("HEAD", "/walloc/rgb-16x/resolve/main/config.json") in hub.requests
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

TOKEN = "hf_dummy"
USER = "walloc"
LFS_SUFFIXES = (".safetensors", ".parquet", ".bin")
API_REPO = re.compile(
    r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit|paths-info)/([^/]+)(/.*)?)?"
)
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
LFS_BATCH = re.compile(r"/(datasets/|spaces/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")


class HubServer:
    """The server, its repositories and its request log. Use as a context manager.

    Attributes:
        url: `http://127.0.0.1:PORT`, the value for `HF_ENDPOINT`.
        requests: (method, path) of everything that was asked, in order. Clear it between two measurements.
        missing_status: status for an unknown repository: 404, or 401 as the Hub says to a client without a token.
        status: when set, the status that answers every request, for example 503.
    """

    def __init__(self):
        self.repositories: dict[tuple[str, str], list[tuple[str, dict[str, bytes]]]] = {}  # newest commit last
        self.lfs_objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.missing_status = 404
        self.status: int | None = None
        handler = type("Handler", (_Handler,), {"hub": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *exc_info) -> None:
        self._http.shutdown()
        self._http.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """Environment variables of a client of this server whose cache is the folder `home`."""
        client = {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
        return {**client, "NO_PROXY": "127.0.0.1,localhost"}

    def commit(self, repo_id: str, files: dict[str, bytes], kind: str = "models") -> str:
        """Add a commit whose files replace those of the same name (creating the repository); returns its hash."""
        history = self.repositories.setdefault((kind, repo_id), [])
        tree = {**(history[-1][1] if history else {}), **files}
        digest = hashlib.sha1(f"{kind}/{repo_id}/{len(history)}".encode())
        for name in sorted(tree):
            digest.update(name.encode() + hashlib.sha256(tree[name]).digest())
        history.append((digest.hexdigest(), tree))
        return digest.hexdigest()

    def commit_folder(self, repo_id: str, folder: Path) -> str:
        """Commit the files directly inside `folder` to the model repository `repo_id`."""
        return self.commit(repo_id, {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()})

    def files(self, repo_id: str, kind: str = "models") -> dict[str, bytes]:
        """The files of the newest commit of a repository, by name."""
        return self.repositories[kind, repo_id][-1][1]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path, errors="replace")
        self.hub.requests.append((self.command, path))
        body = self.read_body()
        if self.hub.status is not None:
            return self.reply(self.hub.status, {"error": "out of order"})
        if path.startswith("/lfs/"):
            return self.lfs_object(path.removeprefix("/lfs/"), body)
        if match := LFS_BATCH.fullmatch(path):
            return self.lfs_batch(json.loads(body))
        if match := RESOLVE.fullmatch(path):
            return self.resolve("datasets" if match[1] else "models", match[2], match[3], match[4])
        if path == "/api/whoami-v2":
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.reply(401, {"error": "Invalid username or password."})
            return self.reply(200, {"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if match := API_REPO.fullmatch(path):
            return self.repository(*match.groups(), body)
        self.reply(404, {"error": f"no route for {self.command} {path}"})

    do_HEAD = do_GET = do_POST = do_PUT = handle_any

    def create(self, request: dict) -> None:
        key = (request.get("type", "model") + "s", f"{request.get('organization') or USER}/{request['name']}")
        known = key in self.hub.repositories
        if not known:
            self.hub.commit(key[1], {".gitattributes": b""}, kind=key[0])
        url = f"{self.hub.url}/{'datasets/' if key[0] == 'datasets' else ''}{key[1]}"
        self.reply(409 if known else 200, {"url": url, "name": key[1], "id": key[1]})

    def repository(self, kind, repo_id, action, revision, path, body) -> None:
        found = self.find(kind, repo_id, revision or "main")
        if found is None:
            return
        commit, tree = found
        if action in (None, "revision"):
            siblings = [{"rfilename": name} for name in tree]
            info = {
                "id": repo_id,
                "modelId": repo_id,
                "sha": commit,
                "siblings": siblings,
                "private": False,
                "tags": [],
            }
            self.reply(200, info, {"X-Repo-Commit": commit})
        elif action == "tree":
            entries = self.entries(tree)
            parent = (path or "").strip("/")
            if parent and parent not in entries:
                return self.reply(404, {"error": f"{parent} does not exist"}, {"X-Error-Code": "EntryNotFound"})
            inside = parent + "/" if parent else ""
            deep = "recursive=True" in self.path or "recursive=true" in self.path
            names = [n for n in entries if n.startswith(inside) and (deep or "/" not in n[len(inside) :])]
            self.reply(200, [entries[name] for name in names])
        elif action == "paths-info":
            wanted = json.loads(body)["paths"]
            self.reply(200, [entry for name, entry in self.entries(tree).items() if name in wanted])
        elif action == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": n, "uploadMode": "lfs" if is_lfs(n) else "regular", "shouldIgnore": False} for n in names]
            self.reply(200, {"files": modes})
        else:
            changes = {}
            for item in map(json.loads, body.splitlines()):
                value = item["value"]
                if item["key"] == "file":
                    changes[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    changes[value["path"]] = self.hub.lfs_objects[value["oid"]]
            commit = self.hub.commit(repo_id, changes, kind=kind)
            url = f"{self.hub.url}/{repo_id}/commit/{commit}"
            self.reply(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def resolve(self, kind: str, repo_id: str, revision: str, name: str) -> None:
        found = self.find(kind, repo_id, revision)
        if found is None:
            return
        commit, tree = found
        headers = {"X-Repo-Commit": commit}
        if name not in tree:
            return self.reply(404, {"error": "Entry not found"}, {**headers, "X-Error-Code": "EntryNotFound"})
        content = tree[name]
        if is_lfs(name):
            oid = hashlib.sha256(content).hexdigest()
            self.hub.lfs_objects[oid] = content
            storage = f"http://localhost:{self.hub.port}/lfs/{oid}"  # another host name, as the Hub's storage has one
            headers |= {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(content)), "Location": storage}
            return self.reply(302, b"", headers)
        self.reply(200, content, {**headers, "ETag": f'"{git_oid(content)}"'})

    def lfs_batch(self, request: dict) -> None:
        objects = []
        for wanted in request["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}", "header": {}}}
            known = wanted["oid"] in self.hub.lfs_objects
            objects.append({"oid": wanted["oid"], "size": wanted["size"]} | ({} if known else {"actions": upload}))
        self.reply(200, {"transfer": "basic", "objects": objects})

    def lfs_object(self, oid: str, body: bytes) -> None:
        if self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != oid:
                return self.reply(400, {"error": "content does not match its hash"})
            self.hub.lfs_objects[oid] = body
            return self.reply(200, b"")
        self.reply(200, self.hub.lfs_objects[oid], {"ETag": f'"{oid}"'})

    def find(self, kind: str, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """(commit, files) of a revision; answers the request itself and returns None where there is none."""
        history = self.hub.repositories.get((kind, repo_id))
        if history is None:
            self.reply(self.hub.missing_status, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        for commit, tree in reversed(history):
            if revision in ("main", commit):
                return commit, tree
        self.reply(404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"})
        return None

    @staticmethod
    def entries(tree: dict[str, bytes]) -> dict[str, dict]:
        """Files and folders of a commit as the tree call describes them, by path."""
        entries = {}
        for name, content in sorted(tree.items()):
            for folder in map(str, reversed(PurePosixPath(name).parents[:-1])):
                entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": git_oid(folder.encode())}
            entries[name] = {"type": "file", "path": name, "size": len(content), "oid": git_oid(content)}
            if is_lfs(name):
                oid = hashlib.sha256(content).hexdigest()
                entries[name]["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
        return entries

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def reply(self, status: int, content: bytes | dict | list, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        total, headers = len(body), dict(headers or {})
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and status == 200:  # a resumed download, or datasets streaming a Parquet file
            start, end = int(wanted[1]), min(int(wanted[2] or total), total - 1)
            status, body = 206, body[start : end + 1]
            headers["Content-Range"] = f"bytes {start}-{end}/{total}"
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


def is_lfs(name: str) -> bool:
    return name.endswith(LFS_SUFFIXES)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
