"""A W&B server of its own, as small as the real client lets it be: what it received, and the ways that it can fail."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Mode = Literal["ok", "error", "hang", "die", "refuse", "lose_files"]

ME = {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}


class StoredRun:
    """What the server keeps of one run, under the names of the real one; ``received`` are its rows in every copy."""

    def __init__(self) -> None:
        self.upserts: list[dict[str, Any]] = []
        self.lines: dict[int, dict[str, Any]] = {}
        self.received: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
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

    def first(self, key: str) -> Any:
        """The first value that was sent under a name of the request that makes a run."""
        return next((upsert[key] for upsert in self.upserts if upsert.get(key)), None)


@dataclass
class StoredArtifact:
    """One version of an artifact; the content of its files by their path in it."""

    name: str
    type: str
    run: str | None
    digest: str
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False


@dataclass
class StoredSweep:
    """A sweep of the server's: the YAML that it is, the runs left to hand out, and what its agents said of theirs."""

    config: str
    left: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    heartbeats: list[dict[str, Any]] = field(default_factory=list)


class Loopback:
    """The server on 127.0.0.1; ``mode`` says how it answers from now on, and ``stop`` makes it unreachable.

    ``error`` answers everything with 500, ``hang`` nothing, ``die`` nothing once rows have come; ``refuse`` takes no
    rows, ``lose_files`` takes no files. Of single runs, by id: ``deleted`` and ``denied`` cannot be opened, of
    ``refused`` no rows are taken, ``silent`` get no answer to theirs.
    """

    def __init__(self) -> None:
        self.mode: Mode = "ok"
        self.deleted: set[str] = set()
        self.denied: set[str] = set()
        self.refused: set[str] = set()
        self.silent: set[str] = set()
        self.runs: dict[str, StoredRun] = {}
        self.artifacts: list[StoredArtifact] = []
        self.sweeps: dict[str, StoredSweep] = {}
        self.views: dict[str, dict[str, Any]] = {}
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
                if server.mode == "die" and self.path.endswith("/file_stream"):
                    server.mode = "hang"
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

    @property
    def uploaded(self) -> bytes:
        """All that was ever uploaded as a file, one after another."""
        contents = [content for run in self.runs.values() for content in run.files.values()]
        return b"\n".join(contents + [content for a in self.artifacts for content in a.files.values()])

    def artifact(self, type: str, run: str | None = None) -> StoredArtifact:
        """The last version of a type, of one run where that is given."""
        return [a for a in self.artifacts if a.type == type and a.committed and run in (None, a.run)][-1]

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON document for one request."""
        streamed = re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", path)
        if streamed and streamed[3] in self.silent:
            self.over.wait()
        if streamed and (self.mode == "refuse" or streamed[3] in self.refused):
            return 404, {"error": "run not found"}
        if streamed:
            self._stream(self.runs[streamed[3]], json.loads(body))
            return 200, {}
        if path != "/graphql":
            return self._file(path, body), {}
        request = json.loads(body)
        query, variables = request["query"], request.get("variables") or {}
        operation = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = operation[1] if operation else ""
        self.seen.append(name)
        return getattr(self, f"_{name}", self._other)(variables)

    def _file(self, path: str, body: bytes) -> int:
        _, kind, *rest = path.split("/", 3)
        if kind == "upload":
            self.seen.append("upload")
            if self.mode == "lose_files":
                return 403
            self.runs[rest[0]].files[rest[1]] = body
        elif kind == "artifact":
            self.seen.append("artifact")
            if self.mode == "lose_files":
                return 403
            self.artifacts[int(rest[0])].files[rest[1]] = body
        else:
            self.seen.append(path)
        return 200

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
        if name in self.denied:
            text = "permission denied"
            return 403, {"errors": [{"message": text, "path": ["upsertBucket"]}], "data": {"upsertBucket": None}}
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
            "sweepName": run.first("sweep"),
            "project": project,
        }
        return 200, {"data": {"upsertBucket": {"bucket": bucket, "inserted": inserted}}}

    def _CreateRunFiles(self, variables: dict[str, Any]) -> tuple[int, Any]:  # noqa: N802
        folder = f"{self.url}/upload/{variables['run']}"
        files = [{"name": file, "uploadUrl": f"{folder}/{file}"} for file in variables["files"]]
        return 200, {"data": {"createRunFiles": {"runID": "storage", "uploadHeaders": [], "files": files}}}

    def _Viewer(self, _: dict[str, Any]) -> tuple[int, Any]:  # noqa: N802
        return 200, {"data": {"viewer": ME}}

    _GetDefaultEntity = _Viewer

    def _ArtifactType(self, _: dict[str, Any]) -> tuple[int, Any]:  # noqa: N802
        return 200, {"data": {"project": {"artifact": None}}}

    def _CreateArtifact(self, variables: dict[str, Any]) -> tuple[int, Any]:  # noqa: N802
        asked = variables["input"]
        name = asked["artifactCollectionName"]
        known = [
            i for i, a in enumerate(self.artifacts) if (a.name, a.digest, a.committed) == (name, asked["digest"], True)
        ]
        if not known:
            stored = StoredArtifact(name, asked["artifactTypeName"], asked.get("runName"), asked["digest"])
            self.artifacts.append(stored)
        number = known[0] if known else len(self.artifacts) - 1
        made = {
            "id": str(number),
            "state": "COMMITTED" if known else "PENDING",
            "artifactSequence": {"id": name, "latestArtifact": None},
        }
        return 200, {"data": {"createArtifact": {"artifact": made}}}

    def _CreateArtifactManifest(self, variables: dict[str, Any]) -> tuple[int, Any]:  # noqa: N802
        file = {"uploadUrl": self._place(variables["artifactID"], "manifest"), "uploadHeaders": []}
        manifest = {"id": f"m{variables['artifactID']}", "file": file}
        return 200, {"data": {"createArtifactManifest": {"artifactManifest": manifest}}}

    def _UpdateArtifactManifest(self, variables: dict[str, Any]) -> tuple[int, Any]:  # noqa: N802
        number = variables["artifactManifestID"].removeprefix("m")
        manifest = {"id": f"m{number}", "file": {"uploadUrl": self._place(number, "manifest"), "uploadHeaders": []}}
        return 200, {"data": {"updateArtifactManifest": {"artifactManifest": manifest}}}

    def _CreateArtifactFiles(self, variables: dict[str, Any]) -> tuple[int, Any]:  # noqa: N802
        nodes = [
            {
                "id": "f",
                "name": file["name"],
                "displayName": file["name"],
                "storagePath": file["name"],
                "uploadUrl": self._place(file["artifactID"], file["name"]),
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": file["artifactID"]},
            }
            for file in variables["input"]["artifactFiles"]
        ]
        return 200, {"data": {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}}

    def _CommitArtifact(self, variables: dict[str, Any]) -> tuple[int, Any]:  # noqa: N802
        self.artifacts[int(variables["artifactID"])].committed = True
        return 200, {"data": {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "d"}}}}

    def _ArtifactByID(self, variables: dict[str, Any]) -> tuple[int, Any]:  # noqa: N802
        stored = self.artifacts[int(variables["id"])]
        none = dict.fromkeys(("description", "metadata", "historyStep", "commitHash", "updatedAt"))
        made = {
            **{"__typename": "Artifact", "id": variables["id"], "digest": stored.digest, "state": "COMMITTED", **none},
            "artifactSequence": {"__typename": "ArtifactSequence", "name": stored.name, "project": None},
            "artifactType": {"name": stored.type},
            **{"versionIndex": 0, "ttlDurationSeconds": -1, "ttlIsInherited": True, "tags": [], "aliases": []},
            **{"size": 1, "fileCount": len(stored.files), "createdAt": "2026-01-01T00:00:00Z"},
        }
        return 200, {"data": {"artifact": made}}

    def _place(self, number: str, file: str) -> str:
        return f"{self.url}/artifact/{number}/{file}"

    def _UpsertSweep(self, variables: dict[str, Any]) -> tuple[int, Any]:  # noqa: N802
        name = f"sweep{len(self.sweeps)}"
        self.sweeps[name] = StoredSweep(variables["config"])
        project = {"id": "p", "name": variables["projectName"], "entity": {"id": "e", "name": "me"}}
        made = {"sweep": {"name": name, "project": project}, "configValidationWarnings": []}
        return 200, {"data": {"upsertSweep": made}}

    def _SweepWithRuns(self, variables: dict[str, Any]) -> tuple[int, Any]:  # noqa: N802
        name = variables["sweep"]
        sweep = {"id": name, "name": name, "config": self.sweeps[name].config, "state": "RUNNING", "method": "grid"}
        return 200, {"data": {"project": {"sweep": {**sweep, "runs": {"edges": []}}}}}

    def _CreateAgent(self, variables: dict[str, Any]) -> tuple[int, Any]:  # noqa: N802
        return 200, {"data": {"createAgent": {"agent": {"id": variables["sweep"]}}}}

    def _Heartbeat(self, variables: dict[str, Any]) -> tuple[int, Any]:  # noqa: N802
        sweep = self.sweeps[variables["id"]]
        running = json.loads(variables["runState"])
        sweep.heartbeats.append(running)
        commands: list[dict[str, Any]] = []
        if not running and sweep.left:
            run_id, values = sweep.left.pop(0)
            arguments = {key: {"value": value} for key, value in values.items()}
            commands = [{"type": "run", "run_id": run_id, "program": "mixersweep", "args": arguments}]
        elif not running:
            commands = [{"type": "exit"}]
        return 200, {"data": {"agentHeartbeat": {"agent": {"id": variables["id"]}, "commands": json.dumps(commands)}}}

    def _UpsertView2(self, variables: dict[str, Any]) -> tuple[int, Any]:  # noqa: N802
        identity = variables.get("id") or f"view{len(self.views)}"
        self.views[identity] = variables
        view = {"id": identity, "name": variables["name"]}
        return 200, {"data": {"upsertView": {"view": view, "inserted": not variables.get("id")}}}

    def _View(self, variables: dict[str, Any]) -> tuple[int, Any]:  # noqa: N802
        nodes = [
            {"node": {"id": identity, "displayName": view["displayName"], "spec": view["spec"]}}
            for identity, view in self.views.items()
            if view["name"] == variables["viewName"]
        ]
        return 200, {"data": {"project": {"allViews": {"edges": nodes}}}}

    def _other(self, _: dict[str, Any]) -> tuple[int, Any]:
        return 200, {"data": {}}

    def _stream(self, run: StoredRun, sent: dict[str, Any]) -> None:
        for file, chunk in (sent.get("files") or {}).items():
            if file == "wandb-history.jsonl":
                for number, line in enumerate(chunk["content"], chunk["offset"]):
                    run.lines[number] = json.loads(line)
                    run.received.append(run.lines[number])
            if file == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
        run.preempting = run.preempting or bool(sent.get("preempting"))
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]
