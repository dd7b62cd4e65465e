"""As much of a Hugging Face hub as `datasets` and `huggingface_hub` ask for to read a data set."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

RESOLVE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
API = re.compile(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")


class FakeHub:
    """Serves data sets on a port of this machine; `endpoint` is for HF_ENDPOINT.

    `repositories` has the bytes of files by repository, branch and path.
    """

    def __init__(self, repositories):
        self.repositories = repositories
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self)

            do_HEAD = do_GET
            do_POST = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def stop(self):
        """Ends serving."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, request):
        """Answers one request."""
        length = int(request.headers.get("Content-Length") or 0)
        asked = request.rfile.read(length)
        path = urlsplit(request.path).path
        if match := RESOLVE.fullmatch(path):
            repository, revision, file = match[1], unquote(match[2]), unquote(match[3])
            self.send_file(request, repository, revision, file)
        elif match := API.fullmatch(path):
            self.send_information(request, match, asked)
        else:
            send(request, 404, b"")

    def files(self, repository, revision):
        """The files of a revision and its commit; None where there is no such revision."""
        for branch, files in self.repositories.get(repository, {}).items():
            commit = hashlib.sha1(f"{repository} {branch}".encode()).hexdigest()
            if revision in (branch, commit):
                return files, commit
        return None, None

    def send_file(self, request, repository, revision, file):
        """The file, or the part of it that is asked for."""
        files, commit = self.files(repository, revision)
        if files is None:
            return refuse(request, repository in self.repositories)
        if file not in files:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
            return send(request, 404, b"", headers)
        data = files[file]
        headers = {"ETag": f'"{oid(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
        if not wanted:
            return send(request, 200, data, headers)
        first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return send(request, 206, data[first : last + 1], headers)

    def send_information(self, request, match, asked):
        """What the hub's programming interface says about a repository."""
        repository, kind, revision, folder = match[1], match[2], match[3], match[4]
        files, commit = self.files(repository, unquote(revision or "main"))
        if files is None:
            return refuse(request, repository in self.repositories)
        listed = entries(files)
        if kind == "tree":
            folder = unquote(folder or "")
            recursive = "recursive=true" in request.path.lower()
            answer = [entry for entry in listed if inside(entry["path"], folder, recursive)]
        elif kind == "paths-info":
            paths = json.loads(asked)["paths"]
            answer = [entry for entry in listed if entry["path"] in paths]
        else:
            siblings = [{"rfilename": path} for path in files]
            answer = {"id": repository, "sha": commit, "siblings": siblings, "tags": []}
        return send(request, 200, json.dumps(answer).encode(), {"Content-Type": "application/json"})


def oid(data):
    """What stands for a file's contents."""
    return hashlib.sha1(data).hexdigest()


def entries(files):
    """Files and folders of a revision, as its tree lists them."""
    folders = set()
    for path in files:
        parts = path.split("/")[:-1]
        folders.update("/".join(parts[:end]) for end in range(1, len(parts) + 1))
    return [
        {"type": "directory", "path": path, "size": 0, "oid": oid(path.encode())}
        for path in sorted(folders)
    ] + [
        {"type": "file", "path": path, "size": len(data), "oid": oid(data)}
        for path, data in files.items()
    ]


def inside(path, folder, recursive):
    """Whether a folder's listing has a path."""
    if folder and not path.startswith(folder + "/"):
        return False
    rest = path[len(folder) + 1 :] if folder else path
    return recursive or "/" not in rest


def refuse(request, repository_is_there):
    code = "RevisionNotFound" if repository_is_there else "RepoNotFound"
    send(request, 404, b"{}", {"X-Error-Code": code})


def send(request, status, body, headers=None):
    """An answer; of a HEAD request without its body."""
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
