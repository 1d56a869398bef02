"""Kubeflow Pipelines' v2beta1 REST API on loopback, in memory: the routes that its own client takes.

Bodies go through kfp-server-api's models, strictly: an unknown field, a value that is no member of an enumeration or a cron
expression that the server's library cannot read is answered by 400, names that are taken by 409, and in multi-user mode a
request without the token by 401 and one for a foreign namespace by 403.
"""

from __future__ import annotations

import email
import email.policy
import json
import re
import threading
import uuid
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import kfp_server_api
import yaml

API = "/apis/v2beta1"
CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 503: 14}


class Refused(Exception):
    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


class StubKfp:
    """``calls`` are (method, path, body). ``script`` gives a run's states by its name, one a question, or a status
    with which it refuses; the last one stays."""

    def __init__(self, token: str = "", namespace: str = "") -> None:
        self.token, self.namespace = token, namespace  # given: multi-user mode
        self.calls: list[tuple[str, str, Any]] = []
        self.script: dict[str, list[str]] = {}
        self.refusals: list[tuple[str, int, str]] = []  # (method and path as a pattern, status, text), each once
        self.killed: list[str] = []  # runs whose workflow was deleted with their schedule: RUNNING for ever
        self.hanging = threading.Event()
        self.hanging.set()
        self.tables: dict[str, dict[str, dict[str, Any]]] = {
            name: {} for name in ("experiments", "pipelines", "versions", "runs", "recurring")
        }
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stub._answer(self)

            do_POST = do_DELETE = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # of a client that has stopped waiting
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def posted(self, path: str) -> list[Any]:
        return [body for method, where, body in self.calls if method == "POST" and where == f"{API}/{path}"]

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        self.hanging.wait(10)
        address = urlsplit(request.path)
        path, query = unquote(address.path), {key: values[0] for key, values in parse_qs(address.query).items()}
        body = _body(request)
        self.calls.append((request.command, path, body))
        try:
            self._admit(request, path, query, body)
            status, answer = 200, self._route(request.command, path.removeprefix(API), query, body)
        except Refused as refused:
            said = str(refused)
            status, answer = refused.status, {"error": said, "message": said, "code": CODES[refused.status], "details": []}
        data = json.dumps(answer).encode()
        request.send_response(status)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(data)))):
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data)

    def _admit(self, request: BaseHTTPRequestHandler, path: str, query: dict[str, str], body: Any) -> None:
        for refusal in self.refusals:
            if re.search(refusal[0], f"{request.command} {path}"):
                self.refusals.remove(refusal)
                raise Refused(*refusal[1:])
        if self.token and (sent := request.headers.get("Authorization")) != f"Bearer {self.token}":
            raise Refused(401, f"Request header error: there is no user identity header in {sent}")
        given = query.get("namespace") or (body or {}).get("namespace")
        if self.namespace and given and given != self.namespace:
            raise Refused(403, f"User 'me' is not authorized with reason: (request: {given})")
        if self.namespace and not given and re.fullmatch(f"{API}/(runs|recurringruns)", path) and request.command == "GET":
            raise Refused(400, "Namespace is empty in multi-user mode")

    def _route(self, method: str, path: str, query: dict[str, str], body: Any) -> dict[str, Any]:
        tables, parts = self.tables, path.strip("/").split("/")
        match method, *parts:
            case "GET", "healthz":
                return {"multi_user": bool(self.namespace)}
            case "GET", ("experiments" | "pipelines") as name:
                return _page(tables[name], name, query)
            case "POST", "experiments":
                return self._add("experiments", "experiment_id", strict(body, "V2beta1Experiment"), unique=True)
            case "POST", "pipelines":
                return self._add("pipelines", "pipeline_id", strict(body, "V2beta1Pipeline"), unique=True)
            case "POST", "pipelines", "upload_version":
                return self._version(query, body)
            case "GET", "pipelines", pipeline, "versions":
                return _page(
                    {k: v for k, v in tables["versions"].items() if v["pipeline_id"] == pipeline}, "pipeline_versions", query
                )
            case "GET", "pipelines", _, "versions", version:
                return _found(tables["versions"], version)
            case "GET", "runs":
                return _page(tables["runs"], "runs", query)
            case "POST", "runs":
                self._check_reference(strict(body, "V2beta1Run"))
                return self._add("runs", "run_id", {**body, "state": "PENDING", "state_history": [{"state": "PENDING"}]})
            case "GET", "runs", run:
                return self._advanced(_found(tables["runs"], run))
            case "POST", "runs", asked if asked.endswith(":terminate"):
                self._enter(_found(tables["runs"], asked.removesuffix(":terminate")), "CANCELING")
                return {}
            case "GET", "recurringruns":
                return _page(tables["recurring"], "recurringRuns", query)
            case "POST", "recurringruns":
                self._check_reference(strict(body, "V2beta1RecurringRun"))
                if len(body["trigger"]["cron_schedule"]["cron"].split()) != 6:
                    raise Refused(400, "The cron expression must have six fields")
                status = {"ENABLE": "ENABLED", "DISABLE": "DISABLED"}[body["mode"]]
                if not body.get("runtime_config", {}).get("parameters"):  # Kubeflow answers without it
                    body = {key: value for key, value in body.items() if key != "runtime_config"}
                return self._add("recurring", "recurring_run_id", {**body, "status": status})
            case "DELETE", "recurringruns", schedule:
                _found(tables["recurring"], schedule)
                if query.get("propagation_policy") != "ORPHAN":  # Kubernetes deletes the workflows that the schedule owns
                    self.killed += [r["run_id"] for r in tables["runs"].values() if r.get("recurring_run_id") == schedule]
                return tables["recurring"].pop(schedule) and {}
            case "POST", "recurringruns", asked if asked.partition(":")[2] in ("enable", "disable"):
                schedule, _, change = asked.partition(":")
                _found(tables["recurring"], schedule)["status"] = f"{change.upper()}D"
                return {}
        raise Refused(404, "Not Found")

    def _add(self, table: str, key: str, body: dict[str, Any], unique: bool = False) -> dict[str, Any]:
        there = self.tables[table]
        if unique and any(each["display_name"] == body["display_name"] for each in there.values()):
            raise Refused(409, f"The name {body['display_name']} already exists. Please specify a new name")
        created = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=sum(map(len, self.tables.values())))
        new = {**body, key: str(uuid.uuid4()), "created_at": created.isoformat()}
        return there.setdefault(new[key], new)

    def _version(self, query: dict[str, str], body: dict[str, bytes]) -> dict[str, Any]:
        pipeline = _found(self.tables["pipelines"], query["pipelineid"])
        spec, *platform = yaml.safe_load_all(body["uploadfile"])
        whole = {"pipeline_spec": spec, "platform_spec": platform[0]} if platform else spec
        new = {"pipeline_id": pipeline["pipeline_id"], "display_name": query["name"], "pipeline_spec": whole}
        if "tags" in query:
            new["tags"] = json.loads(query["tags"])
            if any(len(text) > 63 for pair in new["tags"].items() for text in pair):
                raise Refused(400, "Tag keys and values are limited to 63 characters")
        return self._add("versions", "pipeline_version_id", strict(new, "V2beta1PipelineVersion"), unique=True)

    def _check_reference(self, body: dict[str, Any]) -> None:
        """The version is there, and has every parameter that is given, in its type."""
        version = _found(self.tables["versions"], body["pipeline_version_reference"]["pipeline_version_id"])
        _found(self.tables["experiments"], body["experiment_id"])
        spec = version["pipeline_spec"]
        known = spec.get("pipeline_spec", spec)["root"]["inputDefinitions"]["parameters"]
        python = {"STRING": str, "NUMBER_INTEGER": int, "NUMBER_DOUBLE": float, "BOOLEAN": bool, "LIST": list, "STRUCT": dict}
        for name, value in body["runtime_config"].get("parameters", {}).items():
            if name not in known or type(value) is not python[known[name]["parameterType"]]:
                raise Refused(400, f"Invalid input error: parameter {name}")

    def _advanced(self, run: dict[str, Any]) -> dict[str, Any]:
        states = self.script.get(run["display_name"], [])
        if run["state"] == "CANCELING":  # what is cancelled ends FAILED
            self._enter(run, "FAILED")
        elif states:
            state = states.pop(0)
            if state.isdigit():
                raise Refused(int(state), "no healthy upstream")
            self._enter(run, state)
        return run

    @staticmethod
    def _enter(run: dict[str, Any], state: str) -> None:
        run["state"] = state
        run.setdefault("state_history", []).append({"state": state})


def strict(body: dict[str, Any], model: str) -> dict[str, Any]:
    """The body, if kfp-server-api's model of that name reads all of it and gives it back."""
    client = kfp_server_api.ApiClient()
    try:
        read = client.deserialize(SimpleNamespace(data=json.dumps(body)), model)
        back = client.sanitize_for_serialization(read)
    except (ValueError, TypeError) as error:
        raise Refused(400, f"Invalid {model}: {error}") from None
    if unknown := _lost(body, back):
        raise Refused(400, f"Invalid {model}: unknown field {unknown}")
    if body.get("mode", "ENABLE") not in kfp_server_api.RecurringRunMode.allowable_values:
        raise Refused(400, f"Invalid {model}: mode {body['mode']}")
    return body


def _lost(sent: Any, back: Any) -> str:
    """The first field that the model did not take."""
    if isinstance(sent, dict) and isinstance(back, dict):
        return next(
            (key if key not in back else inner for key in sent if key not in back or (inner := _lost(sent[key], back[key]))), ""
        )
    return ""


def _page(table: dict[str, dict[str, Any]], name: str, query: dict[str, str]) -> dict[str, Any]:
    rows = sorted(table.values(), key=lambda row: row["created_at"], reverse=query.get("sort_by") == "created_at desc")
    for wanted in json.loads(query.get("filter", "{}")).get("predicates", []):
        assert wanted["operation"] == 1
        rows = [row for row in rows if row[wanted["key"]] == wanted["stringValue"]]
    begin, size = int(query.get("page_token") or 0), int(query.get("page_size", 10))
    more = {"next_page_token": str(begin + size)} if begin + size < len(rows) else {}
    return {name: rows[begin : begin + size], "total_size": len(rows), **more}


def _found(table: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
    if key not in table:
        raise Refused(404, f"ResourceNotFoundError: {key} not found")
    return table[key]


def _body(request: BaseHTTPRequestHandler) -> Any:
    data = request.rfile.read(int(request.headers.get("Content-Length") or 0))
    kind = request.headers.get("Content-Type", "")
    if not kind.startswith("multipart/"):
        return json.loads(data) if data else None
    message = email.message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + data, policy=email.policy.HTTP)
    return {
        part.get_param("name", header="content-disposition"): part.get_payload(decode=True) for part in message.iter_parts()
    }
