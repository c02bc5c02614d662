"""Faults on demand: what the next requests of a kind meet instead of, or on top of, an answer.

A fault is a JSON object. Which requests: `service` (lifecycle, execd, egress), `method`, `path` (a
regular expression for the path without prefix), `skip` and `times` (1). What happens: `fault`:

    reset         the connection is reset; the request was not looked at
    lose          the request is carried out, then the connection is reset without an answer
    hang          nothing is ever answered; with "run": true the request is carried out
    status        `status`, `headers`, and `body` or a body of the service's `form`: error,
                  unauthorized, detail, text
    raw           exactly the bytes of `text` (or `base64`), then the end; with "hold": true no end
    cut           the answer ends after `after` bytes of its body; "reset": true resets
    drip          the answer comes `bytes` (1) at a time every `delay` (1) seconds
    delay         the answer starts after `seconds`
    length        Content-Length is told wrong, by `add`
    no-terminal   the stream's last event never comes; "end": true ends the stream without it
    garbage       `text` stands in the stream after event `after` (0)
    headers       header lines without end
    websocket     `how`: fragment, mask, oversize, reserved, text (invalid UTF-8), ping, close
                  (`code`), drop; after `after` (0) frames
"""

import base64
import re
import struct
import threading
import time

from http11 import Broken, go_json, head
from websocket import CLOSE, PING, TEXT, frame

KINDS = {"reset", "lose", "hang", "status", "raw", "cut", "drip", "delay", "length", "no-terminal",
         "garbage", "headers", "websocket"}
TERMINAL = re.compile(rb'"type":"(execution_complete|error)"')


class Faults:
    """Those that were asked for and have not happened yet."""

    def __init__(self):
        self.waiting = []
        self.lock = threading.Lock()

    def add(self, value):
        if value.get("fault") not in KINDS:
            raise ValueError("fault: one of " + ", ".join(sorted(KINDS)))
        value = {"times": 1, "skip": 0, **value}
        value["path"] = re.compile(value.get("path", ""))
        with self.lock:
            self.waiting.append(value)

    def clear(self):
        with self.lock:
            self.waiting = []

    def take(self, service, method, path):
        """The fault for a request; None for most."""
        with self.lock:
            for value in self.waiting:
                if (value.get("service", service) == service
                        and value.get("method", method) == method and value["path"].search(path)):
                    if value["skip"] > 0:
                        value["skip"] -= 1
                        continue
                    value["times"] -= 1
                    if value["times"] == 0:
                        self.waiting.remove(value)
                    return value
        return None


def hold(connection):
    """Until the other end has enough."""
    while not connection.gone():
        time.sleep(0.02)
    raise Broken("the client left")


def at_once(fault, exchange, service):
    """Carries out a fault that needs no answer; True when that was all."""
    connection, kind = exchange.connection, fault["fault"]
    if kind == "reset":
        connection.reset()
    elif kind == "hang" and not fault.get("run"):
        hold(connection)
    elif kind == "status":
        answer_status(fault, exchange, service)
    elif kind == "raw":
        connection.closing = True
        connection.send(base64.b64decode(fault["base64"]) if "base64" in fault
                        else fault.get("text", "").encode())
        if fault.get("hold"):
            hold(connection)
    elif kind == "headers":
        connection.send(head(200, [("Content-Type", "application/json")])[:-2])
        while True:
            connection.send(b"X-More: " + b"x" * 1000 + b"\r\n")
    else:
        return False
    return True


def answer_status(fault, exchange, service):
    status = fault.get("status", 503)
    headers = list(fault.get("headers", {}).items())
    form = fault.get("form", "unauthorized" if service == "execd" and status == 401 else "error")
    message = fault.get("message", "made by the fake")
    code = fault.get("code", "RUNTIME_ERROR" if service == "execd" else "GENERAL::UNKNOWN_ERROR")
    bodies = {
        "error": {"code": code, "message": message},
        "unauthorized": {"error": "Unauthorized: invalid or missing header X-EXECD-ACCESS-TOKEN"},
        "detail": {"detail": [{"loc": ["body"], "msg": message, "type": "value_error"}]},
    }
    kind = "text/plain; charset=utf-8" if form == "text" else "application/json"
    body = fault["body"].encode() if "body" in fault else (
        message.encode() if form == "text" else go_json(bodies[form]))
    while exchange.read():
        pass
    exchange.answer(status, [("Content-Type", kind), *headers], body)


class Outlet:
    """Where an answer leaves: sends it as the fault wants it."""

    def __init__(self, connection, fault):
        self.connection = connection
        self.fault = fault or {}
        self.kind = self.fault.get("fault")
        self.sent = 0

    def head(self, data):
        if self.kind == "lose":
            self.connection.reset()
            raise Broken("lost")
        if self.kind == "hang":
            hold(self.connection)
        if self.kind == "delay":
            time.sleep(self.fault.get("seconds", 1))
        if self.kind == "length":
            add = self.fault.get("add", 1)
            data = re.sub(rb"(?i)(content-length: )(\d+)",
                          lambda match: match[1] + b"%d" % (int(match[2]) + add), data)
            self.connection.closing = True
        self.connection.send(data)

    def body(self, data):
        if self.kind == "cut":
            self.cut(data)
        elif self.kind == "drip":
            self.drip(data)
        else:
            self.connection.send(data)

    def cut(self, data):
        left = self.fault.get("after", 0) - self.sent
        self.sent += len(data)
        self.connection.send(data[:left])
        if left < len(data) or left == 0:
            self.end_early()

    def drip(self, data):
        size = self.fault.get("bytes", 1)
        for start in range(0, len(data), size):
            time.sleep(self.fault.get("delay", 1))
            self.connection.send(data[start:start + size])
            if self.connection.gone():
                raise Broken("the client left")

    def end_early(self):
        if self.fault.get("reset"):
            self.connection.reset()
        self.connection.closing = True
        raise Broken("cut")


class Events:
    """The chunks of a stream, changed."""

    def __init__(self, outlet):
        self.outlet, self.fault = outlet, outlet.fault
        self.buffer = b""
        self.count = 0
        self.over = False

    def feed(self, data):
        self.buffer += data
        while (at := self.buffer.find(b"\r\n")) >= 0:
            size = int(self.buffer[:at], 16)
            if len(self.buffer) < at + size + 4:
                return
            chunk, self.buffer = self.buffer[at + 2:at + 2 + size], self.buffer[at + size + 4:]
            self.chunk(chunk)

    def chunk(self, data):
        kind = self.fault["fault"]
        if kind == "garbage" and self.count == self.fault.get("after", 0):
            self.send(self.fault.get("text", "").encode())
        self.count += 1
        if kind == "no-terminal" and (not data or TERMINAL.search(data)):
            if not self.fault.get("end"):
                hold(self.outlet.connection)
            data = b""
        if not self.over:
            self.send(data, last=not data)
            self.over = not data

    def send(self, data, last=False):
        if data or last:
            self.outlet.body(b"%x\r\n%s\r\n" % (len(data), data))


class Frames:
    """The frames that a server sends, spoilt."""

    def __init__(self, outlet):
        self.outlet, self.fault = outlet, outlet.fault
        self.buffer = b""
        self.count = 0

    def feed(self, data):
        self.buffer += data
        while (whole := self.cut_one()) is not None:
            if self.count >= self.fault.get("after", 0):
                self.spoil(*whole)
            else:
                self.outlet.connection.send(frame(*whole))
            self.count += 1

    def cut_one(self):
        """The next frame's opcode and data; None when it is not all there."""
        if len(self.buffer) < 2:
            return None
        size, start = self.buffer[1], 2
        if size == 126 and len(self.buffer) >= 4:
            size, start = struct.unpack("!H", self.buffer[2:4])[0], 4
        elif size == 127 and len(self.buffer) >= 10:
            size, start = struct.unpack("!Q", self.buffer[2:10])[0], 10
        elif size > 125:
            return None
        if len(self.buffer) < start + size:
            return None
        opcode, data = self.buffer[0] & 15, self.buffer[start:start + size]
        self.buffer = self.buffer[start + size:]
        return opcode, data

    def spoil(self, opcode, data):
        send, how = self.outlet.connection.send, self.fault.get("how", "drop")
        if how == "fragment" and opcode < CLOSE: # the others never are
            for place in range(len(data)):
                send(frame(0 if place else opcode, data[place:place + 1], place + 1 == len(data)))
                send(frame(PING, b"between"))
        elif how in ("fragment", "ping"):
            send(frame(PING, b"x") + frame(opcode, data))
        elif how == "mask":
            send(frame(opcode, data, mask=b"\x01\x02\x03\x04"))
        elif how == "oversize":
            send(struct.pack("!BBQ", 0x80 | opcode, 127, 1 << 40))
        elif how == "reserved":
            send(bytes([0xC0 | opcode]) + frame(opcode, data)[1:])
        elif how == "text":
            send(frame(TEXT, b"\xff\xfe"))
        elif how == "close":
            send(frame(CLOSE, struct.pack("!H", self.fault.get("code", 1011)) + b"fault"))
        else:
            self.outlet.connection.reset()
            raise Broken("dropped")


def editor(outlet, upgraded):
    """What changes an answer's body on its way; None when nothing does."""
    if outlet.kind in ("no-terminal", "garbage"):
        return Events(outlet)
    if upgraded and outlet.kind == "websocket":
        return Frames(outlet)
    return None


