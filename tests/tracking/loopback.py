"""A W&B server of its own, as small as the real client lets it be: what it received, and the ways that it can fail."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Mode = Literal["ok", "error", "hang", "refuse"]


class StoredRun:
    """What the server keeps of one run, under the names of the real one."""

    def __init__(self) -> None:
        self.upserts: list[dict[str, Any]] = []
        self.lines: dict[int, dict[str, Any]] = {}
        self.summary: dict[str, Any] = {}
        self.exit_code: int | None = None
        self.preempting = False

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The history in the order of its lines."""
        return [self.lines[number] for number in sorted(self.lines)]

    @property
    def config(self) -> dict[str, Any]:
        """The last config that was sent, without the client's own entry."""
        sent = [json.loads(upsert["config"]) for upsert in self.upserts if upsert.get("config")]
        return {key: entry["value"] for key, entry in sent[-1].items() if key != "_wandb"}


class Loopback:
    """The server on 127.0.0.1; ``mode`` says how it answers from now on, and ``stop`` makes it unreachable."""

    def __init__(self) -> None:
        self.mode: Mode = "ok"
        self.deleted: set[str] = set()
        self.runs: dict[str, StoredRun] = {}
        self.seen: list[str] = []
        self.over = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._serve()

            do_POST = do_PUT = do_GET  # noqa: N815

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if server.mode == "hang":
                    server.over.wait()
                status, answer = (500, {}) if server.mode == "error" else server.answer(self.path, body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:
                    self.close_connection = True

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def stop(self) -> None:
        """No longer listen; what hangs is let go."""
        if not self.over.is_set():
            self.over.set()
            self._http.shutdown()
            self._http.server_close()
            self._thread.join()

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON document for one request."""
        streamed = re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", path)
        if streamed and self.mode == "refuse":
            return 404, {"error": "run not found"}
        if streamed:
            self._stream(self.runs[streamed[3]], json.loads(body))
            return 200, {}
        if path != "/graphql":
            self.seen.append(path)
            return 200, {}
        request = json.loads(body)
        query, variables = request["query"], request.get("variables") or {}
        operation = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = operation[1] if operation else ""
        self.seen.append(name)
        return getattr(self, f"_{name}", self._other)(variables)

    def _RunResumeStatus(self, variables: dict[str, Any]) -> tuple[int, Any]:  # noqa: N802
        run = self.runs.get(variables["name"])
        bucket = run and {
            "id": "storage",
            "name": variables["name"],
            "displayName": variables["name"],
            "historyLineCount": len(run.lines),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run.rows[-1:]]),
            "eventsTail": "[]",
            "summaryMetrics": json.dumps(run.summary),
            "config": next(upsert["config"] for upsert in reversed(run.upserts) if upsert.get("config")),
            "tags": [],
            "wandbConfig": '{"t": 1}',
        }
        return 200, {"data": {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}, "bucket": bucket}}}

    def _UpsertBucket(self, variables: dict[str, Any]) -> tuple[int, Any]:  # noqa: N802
        name = variables["name"]
        if name in self.deleted:
            text = f"run {name} was previously created and deleted; try a new run name"
            return 409, {"errors": [{"message": text, "path": ["upsertBucket"]}], "data": {"upsertBucket": None}}
        inserted = name not in self.runs
        run = self.runs.setdefault(name, StoredRun())
        run.upserts.append(variables)
        project = {
            "id": "p",
            "name": variables["project"],
            "entity": {"id": "e", "name": variables.get("entity") or "me"},
        }
        bucket = {
            "id": "storage",
            "name": name,
            "displayName": variables.get("displayName") or name,
            "project": project,
        }
        return 200, {"data": {"upsertBucket": {"bucket": bucket, "inserted": inserted}}}

    def _CreateRunFiles(self, variables: dict[str, Any]) -> tuple[int, Any]:  # noqa: N802
        files = [{"name": file, "uploadUrl": f"{self.url}/upload/{file}"} for file in variables["files"]]
        return 200, {"data": {"createRunFiles": {"runID": "storage", "uploadHeaders": [], "files": files}}}

    def _Viewer(self, _: dict[str, Any]) -> tuple[int, Any]:  # noqa: N802
        viewer = {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
        return 200, {"data": {"viewer": viewer}}

    def _other(self, _: dict[str, Any]) -> tuple[int, Any]:
        return 200, {"data": {}}

    def _stream(self, run: StoredRun, sent: dict[str, Any]) -> None:
        for file, chunk in (sent.get("files") or {}).items():
            if file == "wandb-history.jsonl":
                for number, line in enumerate(chunk["content"], chunk["offset"]):
                    run.lines[number] = json.loads(line)
            if file == "wandb-summary.json":
                run.summary.update(json.loads(chunk["content"][-1]))
        run.preempting = run.preempting or bool(sent.get("preempting"))
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]
