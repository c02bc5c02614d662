"""What listens: tells the requests for the server from those for a sandbox, holds each against the
specification, writes it down, and has its fault done.

A sandbox's port is reached as with the real gateway: `/ID/PORT/…`, `/sandboxes/ID/proxy/PORT/…`
(the server's proxy), or by the header OpenSandbox-Ingress-To. Below `/fake/` are the specs'
controls.
"""

import base64
import json
import re
import select
import socket
import sys
import threading
import time
import uuid

import egress
from faults import Faults, Outlet, at_once, editor
from http11 import PIECE, Broken, Connection, go_json, parse_head
from lifecycle import EGRESS_PORT, EXECD_PORT, Problem, Unprocessable, authorize, unprocessable
from openapi import load_all

DIRECT = re.compile(r"/(?P<id>[0-9a-f-]{36})/(?P<port>\d+)(?P<rest>/.*)?$")
PROXIED = re.compile(r"(/v1)?/sandboxes/(?P<id>[^/]+)/proxy/(?P<port>\d+)(?P<rest>/.*)?$")
HOP_HEADERS = ("connection", "content-length", "transfer-encoding", "expect")
SECRET_HEADERS = ("authorization", "cookie", "open-sandbox-api-key") # the server's proxy drops them
PROXY_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH")
KEPT_BODY = 1 << 16
LAST_CHUNK = b"\r\n0\r\n\r\n"


def shown(body):
    """The beginning of a body as a record has it."""
    kept = (body or b"")[:KEPT_BODY]
    try:
        return {"body": kept.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(kept).decode()}


class Target:
    """A request for a port of a sandbox."""

    def __init__(self, match, by_server):
        self.id, self.port = match["id"], int(match["port"])
        self.rest = match["rest"] or "/"
        self.by_server = by_server
        self.service = {EXECD_PORT: "execd", EGRESS_PORT: "egress"}.get(self.port, "port")


class Gateway:
    """Everything behind one address."""

    def __init__(self, lifecycle, key):
        self.lifecycle, self.key = lifecycle, key
        self.apis = load_all()
        self.faults = Faults()
        self.requests, self.violations = [], []
        self.settings = {"framing": "bare", "grace": 1, "strict": True}
        self.lock = threading.Lock()

    # -------------------------------------------------------------- which is it

    def handle(self, exchange):
        if exchange.raw_path.startswith("/fake/"):
            self.control(exchange)
            return
        target = self.target(exchange)
        if target:
            self.to_sandbox(exchange, target)
        else:
            self.to_server(exchange)

    @staticmethod
    def target(exchange):
        wanted = re.match(r"(?P<id>[0-9a-f-]{36})-(?P<port>\d+)$",
                          exchange.headers.get("opensandbox-ingress-to", ""))
        if wanted:
            return Target({**wanted.groupdict(), "rest": exchange.raw_path}, False)
        for pattern, by_server in ((DIRECT, False), (PROXIED, True)):
            match = pattern.match(exchange.raw_path)
            if match:
                return Target(match, by_server)
        return None

    def note(self, service, exchange, path, body):
        """Writes a request down; what is returned can be added to."""
        record = {"service": service, "method": exchange.method, "path": path,
                  "target": exchange.target, "headers": dict(exchange.headers), **shown(body)}
        with self.lock:
            self.requests.append(record)
        return record

    def check(self, service, exchange, path, body):
        """What the specification has against a request, as sentences."""
        api = self.apis.get(service)
        if not api or (service == "execd" and path.startswith("/proxy/")):
            return None, []
        # An isolated session has the files' routes below its own.
        path = re.sub(r"^/v1/isolated/session/[^/]+(/(files|directories)\b)", r"\1", path)
        operation = api.find(exchange.method, path)
        if not operation:
            return None, [f"{exchange.method} {path}: the specification knows no such call"]
        return operation, operation.complaints(path, exchange.query, exchange.headers, body)

    def violate(self, service, exchange, path, sentences):
        """Says loudly that somebody broke the specification."""
        text = f"{service}: {exchange.method} {path}: " + "; ".join(sentences)
        with self.lock:
            self.violations.append(text)
        print("VIOLATION " + text, file=sys.stderr, flush=True)

    # -------------------------------------------------------------- the server

    def to_server(self, exchange):
        path = re.sub(r"^/v1(?=/)", "", exchange.raw_path)
        body = exchange.body()
        self.note("lifecycle", exchange, path, body)
        fault = self.faults.take("lifecycle", exchange.method, path)
        if fault and at_once(fault, exchange, "lifecycle"):
            return
        try:
            status, value = self.serve(exchange, path, body)
            data = b"" if value is None else go_json(value)
        except Problem as problem:
            status = problem.status
            data = go_json({"code": problem.code, "message": problem.message})
        except Unprocessable as wrong:
            status, data = 422, unprocessable(wrong.args[0])
        except Exception as error: # the service's form for what went wrong in it
            status = 500
            data = go_json({"code": "SANDBOX::UNKNOWN_ERROR", "message": repr(error)})
        self.answer(exchange, status, data, fault)

    def serve(self, exchange, path, body):
        if (exchange.method, path) == ("GET", "/health"):
            return 200, {"status": "healthy"}
        authorize(exchange, self.key)
        operation, complaints = self.check("lifecycle", exchange, path, body)
        if complaints:
            self.violate("lifecycle", exchange, path, complaints)
            if not operation:
                raise Problem(404, "NOT_FOUND", complaints[0])
            raise Unprocessable(complaints)
        request = json.loads(body) if body.strip() else {}
        status, value = self.lifecycle.call(exchange.method, path, request, exchange.query)
        self.check_answer("lifecycle", exchange, path, operation, status,
                          b"" if value is None else go_json(value))
        return status, value

    def check_answer(self, service, exchange, path, operation, status, data):
        wrong = list(operation.wrong_answer(status, "application/json", data)) if operation else []
        if wrong:
            self.violate(service, exchange, path, ["our own answer: " + text for text in wrong])

    @staticmethod
    def answer(exchange, status, data, fault):
        """A whole answer of the server, as uvicorn writes them: small letters."""
        exchange.answered = True
        request = exchange.headers.get("x-request-id") or str(uuid.uuid4())
        lines = [f"HTTP/1.1 {status} ", "server: uvicorn", f"x-request-id: {request}"]
        if status != 204:
            lines.append(f"content-length: {len(data)}")
        if data:
            lines.append("content-type: application/json")
        outlet = Outlet(exchange.connection, fault)
        outlet.head("\r\n".join(lines).encode() + b"\r\n\r\n")
        if data:
            outlet.body(data)

    # -------------------------------------------------------------- a sandbox

    def to_sandbox(self, exchange, target):
        kind = exchange.headers.get("content-type", "")
        whole = not kind.startswith("multipart/") and target.service != "port"
        body = exchange.body() if whole else None
        record = self.note(target.service, exchange, target.rest, body)
        fault = self.faults.take(target.service, exchange.method, target.rest)
        if fault and at_once(fault, exchange, target.service):
            return
        sandbox = self.lifecycle.sandboxes.get(target.id)
        if not self.admit(exchange, target, sandbox):
            return
        operation, complaints = self.check(target.service, exchange, target.rest, body)
        if complaints:
            self.violate(target.service, exchange, target.rest, complaints)
        if complaints and self.settings["strict"]:
            exchange.error(400, "INVALID_REQUEST_BODY",
                           "the specification forbids this: " + "; ".join(complaints))
            return
        if target.service == "egress":
            egress.handle(sandbox, exchange, body)
            return
        try:
            backend = self.connect(sandbox, target)
        except OSError as error:
            self.bad_gateway(exchange, target, error)
            return
        with backend:
            Relay(self, exchange, target, operation, fault).run(backend, body, record)

    @staticmethod
    def admit(exchange, target, sandbox):
        """May this request go to that sandbox? Answers when it may not."""
        if target.by_server and exchange.method not in PROXY_METHODS:
            exchange.json(405, {"detail": "Method Not Allowed"})
        elif not sandbox and target.by_server:
            exchange.error(404, "DOCKER::SANDBOX_NOT_FOUND", f"Sandbox {target.id} not found.")
        elif not sandbox:
            exchange.text(404, "404 page not found")
        elif sandbox.secure_token and (
                exchange.headers.get("opensandbox-secure-access") != sandbox.secure_token):
            exchange.text(401, "Unauthorized: missing or invalid OpenSandbox-Secure-Access")
        else:
            return True
        return False

    @staticmethod
    def connect(sandbox, target):
        if target.service == "execd":
            return sandbox.box.connect()
        return socket.create_connection(("127.0.0.1", target.port))

    @staticmethod
    def bad_gateway(exchange, target, error):
        if target.by_server:
            exchange.error(502, "GENERAL::UNKNOWN_ERROR",
                           f"Could not connect to the backend sandbox: {error}")
        else:
            exchange.text(502, "Bad Gateway\n")

    # -------------------------------------------------------------- controls

    def control(self, exchange):
        """What the specs ask of the fake itself."""
        call = exchange.method, exchange.raw_path
        body = exchange.body()
        try:
            value = json.loads(body) if body.strip() else None
            answer = self.controls(call, value)
        except (ValueError, TypeError, KeyError, re.error) as error:
            exchange.error(400, "FAKE", str(error))
            return
        if answer is None:
            exchange.error(404, "FAKE", f"no such control: {call[0]} {call[1]}")
        else:
            exchange.json(200, answer)

    def controls(self, call, value):
        with self.lock:
            if call == ("GET", "/fake/requests"):
                return self.requests
            if call == ("GET", "/fake/violations"):
                return self.violations
            if call == ("GET", "/fake/sandboxes"):
                return [{"id": one.id, "state": one.state, "root": one.box.root,
                         "pid": one.box.process.pid}
                        for one in self.lifecycle.sandboxes.values()]
            if call == ("DELETE", "/fake/requests"):
                self.requests = []
                return {}
            if call == ("DELETE", "/fake/violations"):
                self.violations = []
                return {}
        if call == ("POST", "/fake/faults"):
            for fault in value if isinstance(value, list) else [value]:
                self.faults.add(fault)
            return {}
        if call == ("DELETE", "/fake/faults"):
            self.faults.clear()
            return {}
        if call == ("POST", "/fake/settings"):
            unknown = set(value) - set(self.settings)
            if unknown:
                raise ValueError("no such settings: " + ", ".join(sorted(unknown)))
            self.settings.update(value)
            return self.settings
        return None


class Relay:
    """One request to a sandbox and its answer back, byte for byte but for faults."""

    def __init__(self, gateway, exchange, target, operation, fault):
        self.gateway, self.exchange, self.target = gateway, exchange, target
        self.operation = operation
        self.outlet = Outlet(exchange.connection, fault)

    def run(self, backend, body, record):
        backend.sendall(self.request_head(body) + (body or b""))
        if body is None:
            record.update(shown(self.pass_body(backend)))
        self.pass_answer(Connection(backend))

    def request_head(self, body):
        exchange, settings = self.exchange, self.gateway.settings
        left_out = HOP_HEADERS + (SECRET_HEADERS if self.target.by_server else ())
        pairs = [pair for pair in exchange.pairs if pair[0].lower() not in left_out]
        upgrade = exchange.headers.get("upgrade")
        pairs.append(("Connection", "Upgrade" if upgrade else "close"))
        pairs += [("X-Fake-Framing", settings["framing"]), ("X-Fake-Grace", settings["grace"])]
        if body is None and exchange.has_body:
            pairs.append(("Transfer-Encoding", "chunked") if exchange.chunked
                         else ("Content-Length", exchange.left))
        elif body:
            pairs.append(("Content-Length", len(body)))
        query = f"?{exchange.raw_query}" if exchange.raw_query else ""
        lines = [f"{exchange.method} {self.target.rest}{query} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in pairs]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"

    def pass_body(self, backend):
        """Sends the body on as it comes; its beginning."""
        exchange, kept = self.exchange, b""
        try:
            while data := exchange.read():
                kept += data[:KEPT_BODY - len(kept)]
                backend.sendall(b"%x\r\n%s\r\n" % (len(data), data) if exchange.chunked else data)
            if exchange.chunked and exchange.has_body:
                backend.sendall(b"0\r\n\r\n")
        except BrokenPipeError:
            exchange.connection.closing = True # it has answered already
        return kept

    def pass_answer(self, backend):
        data = backend.until(b"\r\n\r\n")
        if data is None:
            self.gateway.bad_gateway(self.exchange, self.target, "it hung up")
            return
        first, pairs = parse_head(data)
        status = int(first[1])
        headers = {name.lower(): value for name, value in pairs}
        self.exchange.answered = True
        client = self.exchange.connection
        if status == 101 or ("content-length" not in headers
                             and "transfer-encoding" not in headers):
            client.closing = True
        self.check(backend, status, headers)
        self.outlet.head(data + b"\r\n\r\n")
        edit = editor(self.outlet, status == 101)
        length = int(headers["content-length"]) if "content-length" in headers else None
        sent = self.pass_bytes(backend, edit.feed if edit else self.outlet.body, status == 101,
                               length)
        if length is not None and sent != length:
            client.closing = True

    def check(self, backend, status, headers):
        """Holds a JSON answer against the specification before it leaves."""
        size = int(headers.get("content-length", 0))
        if headers.get("content-type", "").startswith("application/json") and size < PIECE:
            while len(backend.buffer) < size and backend.fill():
                pass
            self.gateway.check_answer(self.target.service, self.exchange, self.target.rest,
                                      self.operation, status, backend.buffer[:size])

    @staticmethod
    def fill(backend):
        """Reads more; False at the end, also at one that was a reset: all may have been said."""
        try:
            return backend.fill()
        except Broken:
            return False

    def pass_bytes(self, backend, give, both_ways, length):
        """Until the backend has said all, or the client has left: how many bytes there were."""
        client, sent, tail = self.exchange.connection, 0, b""
        while True:
            if backend.buffer:
                data, backend.buffer = backend.buffer, b""
                sent += len(data)
                tail = (tail + data)[-len(LAST_CHUNK):]
                give(data)
            if both_ways and client.buffer:
                data, client.buffer = client.buffer, b""
                try:
                    backend.sock.sendall(data)
                except OSError:
                    pass # it has hung up; its last words may still be on their way
            ready = select.select([backend.sock, client.sock], [], [])[0]
            if backend.sock in ready and not self.fill(backend):
                if length is None and tail != LAST_CHUNK:
                    client.closing = True # it died in the middle of its answer
                if both_ways:
                    client.hang_up()
                return sent
            if client.sock not in ready:
                continue
            if both_ways:
                if not client.fill():
                    return sent
            elif client.gone():
                raise Broken("the client left")
            elif tail == LAST_CHUNK or sent == length:
                return sent # it has all and asks on; a paused backend may not have hung up
            else:
                time.sleep(0.001) # it asks on before it has all


