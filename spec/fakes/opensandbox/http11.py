"""HTTP/1.1 over a socket, as the fakes need it: small, quick to load, and nothing hidden.

A `Connection` reads requests one after the other; each is an `Exchange`, which reads its body and
writes its answer. Answers can be sent piece by piece, and the wire can be cut at any byte.
"""

import json
import re
import select
import socket
import threading
import time
from urllib.parse import parse_qsl, unquote

REASONS = {
    100: "Continue", 101: "Switching Protocols", 200: "OK", 201: "Created", 202: "Accepted",
    204: "No Content", 206: "Partial Content", 301: "Moved Permanently", 302: "Found",
    307: "Temporary Redirect", 308: "Permanent Redirect", 400: "Bad Request", 401: "Unauthorized",
    403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 409: "Conflict",
    413: "Request Entity Too Large", 416: "Requested Range Not Satisfiable",
    422: "Unprocessable Entity", 429: "Too Many Requests", 500: "Internal Server Error",
    501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable",
    504: "Gateway Timeout",
}
HEAD_LIMIT = 1 << 20
PIECE = 1 << 18
LINGER = 3
UNBUFFERED = 2048 # Go tells no length of an answer that is longer


class Broken(Exception):
    """The other end left, or does not speak HTTP."""


def date():
    """Now, as headers write it."""
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())


def head(status, headers):
    """The bytes before an answer's body."""
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n"


def go_text(data):
    """Bytes as text; a byte that is no UTF-8 becomes what `go_json` writes as \\ufffd."""
    return data.decode("utf-8", "surrogateescape")


def go_json(value):
    """JSON as Go's encoding/json writes it: compact, `<>&` and what is no UTF-8 escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for char, escape in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"),
                         ("\u2028", "\\u2028"), ("\u2029", "\\u2029")):
        text = text.replace(char, escape)
    return re.sub("[\ud800-\udfff]", r"\\ufffd", text).encode()


def parse_head(data):
    """The first line's three words and the headers, as pairs, of a request or an answer."""
    lines = data.decode("latin-1").split("\r\n")
    first = lines[0].split(" ", 2)
    pairs = []
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            raise Broken(f"not a header: {line[:80]!r}")
        pairs.append((name, value.strip()))
    if len(first) < 2:
        raise Broken(f"not HTTP: {lines[0][:80]!r}")
    return first, pairs


class Connection:
    """One socket and what was read from it ahead of time."""

    def __init__(self, sock):
        self.sock = sock
        self.buffer = b""
        self.closing = False

    def fill(self):
        """Reads more; False at the end."""
        try:
            data = self.sock.recv(PIECE)
        except OSError as error:
            raise Broken(str(error)) from error
        self.buffer += data
        return bool(data)

    def until(self, mark, limit=HEAD_LIMIT):
        """The bytes before `mark`, which is taken away; None at a clean end."""
        start = 0
        while (at := self.buffer.find(mark, start)) < 0:
            if len(self.buffer) > limit:
                raise Broken("too long a line or head")
            start = max(0, len(self.buffer) - len(mark))
            if not self.fill():
                if self.buffer:
                    raise Broken("the connection ended in a head")
                return None
        data, self.buffer = self.buffer[:at], self.buffer[at + len(mark):]
        return data

    def take(self, count):
        """At most `count` bytes; b"" at the end."""
        if not self.buffer:
            self.fill()
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def send(self, data):
        try:
            self.sock.sendall(data)
        except OSError as error:
            self.closing = True
            raise Broken(str(error)) from error

    def hang_up(self):
        """Says no more, and takes what the other end still says: to close with something unread is
        to reset, and takes back what is on its way."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
            self.sock.settimeout(LINGER)
            while self.sock.recv(PIECE):
                pass
        except OSError:
            pass

    def gone(self):
        """Has the other end left? Looks, without reading."""
        ready = select.select([self.sock], [], [], 0)[0]
        if not ready:
            return False
        try:
            return self.sock.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return True

    def reset(self):
        """Leaves without a word: the other end sees a reset."""
        self.closing = True
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.sock.close()
        except OSError:
            pass

    def request(self):
        """The next request as an Exchange; None when there is none."""
        data = self.until(b"\r\n\r\n")
        if data is None:
            return None
        first, pairs = parse_head(data)
        if len(first) != 3 or not first[2].startswith("HTTP/1."):
            raise Broken("not an HTTP/1 request")
        return Exchange(self, first[0], first[1], pairs)


class Exchange:
    """One request and its answer."""

    def __init__(self, connection, method, target, pairs):
        self.connection = connection
        self.method = method
        self.target = target
        self.pairs = pairs
        self.headers = {name.lower(): value for name, value in pairs}
        path, _, self.raw_query = target.partition("?")
        self.raw_path = path
        self.path = unquote(path)
        self.query = parse_qsl(self.raw_query, keep_blank_values=True)
        self.lock = threading.Lock()
        self.answered = False
        self.chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        try:
            self.left = int(self.headers.get("content-length", 0))
        except ValueError as error:
            raise Broken("Content-Length is no number") from error
        self.has_body = self.chunked or self.left > 0
        self.over = not self.has_body
        if self.headers.get("connection", "").lower() == "close":
            connection.closing = True

    # -------------------------------------------------------------- the request

    def param(self, name):
        """The first query parameter of that name; "" without one, as Go has it."""
        return next((value for key, value in self.query if key == name), "")

    def params(self, name):
        return [value for key, value in self.query if key == name]

    def read(self, count=PIECE):
        """At most `count` bytes of the body; b"" at its end."""
        if self.over:
            return b""
        if self.headers.get("expect", "").lower() == "100-continue":
            del self.headers["expect"]
            self.connection.send(head(100, []))
        if self.chunked and self.left == 0:
            self.left = self.chunk_size()
        data = self.connection.take(min(count, self.left)) if self.left else b""
        if self.left and not data:
            raise Broken("the connection ended in a body")
        self.left -= len(data)
        if self.left == 0:
            if self.chunked and data:
                self.connection.until(b"\r\n")
            self.over = not self.chunked or not data
        return data

    def chunk_size(self):
        line = self.connection.until(b"\r\n")
        try:
            size = int((line or b"").split(b";")[0], 16)
        except ValueError as error:
            raise Broken("not a chunk") from error
        if size == 0:
            while self.connection.until(b"\r\n"):
                pass # trailers
        return size

    def body(self):
        """All of the body."""
        return b"".join(iter(self.read, b""))

    # -------------------------------------------------------------- the answer

    def answer(self, status, headers=(), body=b""):
        """A whole answer."""
        self.answered = True
        pairs = list(headers) + [("Date", date())]
        if status != 204:
            pairs.append(("Content-Length", len(body)))
        self.connection.send(head(status, pairs) + body)

    def json(self, status, value, headers=()):
        kind = ("Content-Type", "application/json; charset=utf-8")
        body = go_json(value)
        if len(body) <= UNBUFFERED:
            self.answer(status, [kind, *headers], body)
            return
        self.start(status, [kind, *headers])
        self.chunk(body)
        self.finish()

    def error(self, status, code, message):
        self.json(status, {"code": code, "message": message})

    def text(self, status, text, headers=()):
        kind = ("Content-Type", "text/plain; charset=utf-8")
        self.answer(status, [kind, *headers], text.encode())

    def start(self, status, headers):
        """The head of an answer that comes in chunks."""
        self.answered = True
        pairs = [*headers, ("Date", date()), ("Transfer-Encoding", "chunked")]
        self.connection.send(head(status, pairs))

    def chunk(self, data):
        with self.lock:
            self.connection.send(b"%x\r\n%s\r\n" % (len(data), data))

    def finish(self):
        with self.lock:
            self.connection.send(b"0\r\n\r\n")


def converse(sock, handle):
    """Answers the requests of one connection until it ends."""
    connection = Connection(sock)
    try:
        while not connection.closing and (exchange := connection.request()):
            handle(exchange)
            while exchange.read():
                pass # what nobody wanted to read: unread, it would make the end a reset
    except (Broken, OSError):
        pass
    finally:
        sock.close()


def serve(listener, handle):
    """Answers whoever connects, each in a thread of its own, until the listener is closed."""
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=converse, args=(sock, handle), daemon=True).start()
