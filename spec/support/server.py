"""A server for the specs of HTTP and WebSockets: well behaved at a few paths, and otherwise as bad as
it is told to be. It speaks from raw sockets, so that nothing keeps it from breaking the rules.

    server.py [CERT KEY]    prints its port (and that of its TLS twin), serves until stdin ends

What it does is in the path: /name?option=value. Bytes are given in hexadecimal.
"""
import base64
import gzip
import hashlib
import json
import os
import socket
import ssl
import struct
import sys
import threading
import time
from urllib.parse import parse_qs, urlsplit

counts = {}  # how often a request with ?count=NAME came, whatever became of it
notes = {}  # what a connection has noted under ?count=NAME
lock = threading.Lock()


class Gone(Exception):
    pass


class Connection:
    def __init__(self, sock):
        self.sock, self.pending = sock, b""

    def more(self):
        data = self.sock.recv(262144)
        if not data:
            raise Gone
        self.pending += data

    def until(self, mark):
        while mark not in self.pending:
            self.more()
        head, _, self.pending = self.pending.partition(mark)
        return head

    def exactly(self, count):
        while len(self.pending) < count:
            self.more()
        data, self.pending = self.pending[:count], self.pending[count:]
        return data

    def send(self, data):
        self.sock.sendall(data)

    def answer(self, status, body=b"", headers=()):
        lines = ["HTTP/1.1 %d Word" % status, "Content-Length: %d" % len(body)]
        lines += ["%s: %s" % pair for pair in headers]
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def end(self, how):
        """close: FIN. reset: RST. half: FIN, but reads on. hold: nothing, until the peer goes."""
        if how == "reset":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif how in ("half", "hold"):
            if how == "half":
                self.sock.shutdown(socket.SHUT_WR)
            while True:
                self.more()
        raise Gone


class Request:
    def __init__(self, connection):
        self.connection = connection
        lines = connection.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        self.lines = lines
        self.method, self.target, _ = lines[0].split(" ", 2)
        self.headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()
        parts = urlsplit(self.target)
        self.path = parts.path
        self.options = {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}

    def option(self, name, otherwise=None):
        return self.options.get(name, otherwise)

    def number(self, name, otherwise=0):
        return float(self.option(name, otherwise))

    def pieces(self):
        """The body as it comes."""
        connection = self.connection
        if self.headers.get("transfer-encoding") == "chunked":
            while True:
                size = int(connection.until(b"\r\n"), 16)
                piece = connection.exactly(size)
                connection.exactly(2)
                if size == 0:
                    return
                yield piece
        left = int(self.headers.get("content-length", 0))
        while left > 0:
            if not connection.pending:
                connection.more()
            piece = connection.exactly(min(left, len(connection.pending)))
            left -= len(piece)
            yield piece

    def body(self):
        return b"".join(self.pieces())


# ---------------------------------------------------------------- what is served


def hello(connection, request):
    request.body()
    connection.answer(200, b"hello")


def echo(connection, request):
    connection.answer(200, request.body(), [("Content-Type", "application/octet-stream")])


def shown(connection, request):
    """The request as it came."""
    body = request.body()
    note(request, request.lines)
    text = json.dumps({"head": request.lines, "body": body.hex(), "port": connection.port})
    connection.answer(200, text.encode(), [("Content-Type", "application/json")])


def status(connection, request):
    """Any status, body and headers; with ?times=N only so often, then 200."""
    request.body()
    times = request.option("times")
    if times and counts[request.option("count")] > int(times):
        connection.answer(200, b"at last")
        return
    headers = [tuple(h.split(":", 1)) for h in request.option("headers", "").split("|") if h]
    connection.answer(int(request.option("code")), bytes.fromhex(request.option("body", "")), headers)


def raw(connection, request):
    """Any bytes in place of an answer."""
    if not request.option("early"):
        request.body()
    data = bytes.fromhex(request.option("data", ""))
    pause = request.number("pause")
    if pause:
        for i in range(len(data)):
            connection.send(data[i : i + 1])
            time.sleep(pause)
    else:
        connection.send(data)
    connection.end(request.option("end", "close"))


def flood(connection, request):
    """Something without an end."""
    request.body()
    kind = request.option("kind")
    head = b"HTTP/1.1 200 OK\r\n"
    if kind == "headers":
        connection.send(head)
        while True:
            connection.send(b"X-More: " + b"x" * 1000 + b"\r\n")
    if kind == "interim":
        while True:
            connection.send(b"HTTP/1.1 103 Early\r\nX: " + b"x" * 1000 + b"\r\n\r\n")
    if kind == "header":
        connection.send(head + b"X: ")
        while True:
            connection.send(b"x" * 65536)
    connection.send(head + b"\r\n")
    while True:
        connection.send(b"x" * 65536)


def big(connection, request):
    size = int(request.option("size"))
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
    block = bytes(1 << 20)
    while size > 0:
        connection.send(block[: min(size, len(block))])
        size -= min(size, len(block))
        note(request, size)


def upload(connection, request):
    total, digest = 0, hashlib.sha256()
    for piece in request.pieces():
        total += len(piece)
        digest.update(piece)
        note(request, total)
        time.sleep(request.number("pause"))
    connection.answer(200, ("%d %s" % (total, digest.hexdigest())).encode())


def packed(connection, request):
    body = gzip.compress(bytes(int(request.option("size"))))
    connection.answer(200, body, [("Content-Encoding", "gzip")])


def trickle(connection, request):
    """Chunks, one every so often, each with the time it was sent."""
    connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(int(request.number("count_of", 10))):
        text = b"%.6f\n" % time.monotonic()
        connection.send(b"%x\r\n%s\r\n" % (len(text), text))
        time.sleep(request.number("pause"))
    connection.send(b"0\r\n\r\n")


def count(connection, request):
    name = request.option("of")
    text = json.dumps({"count": counts.get(name, 0), "note": notes.get(name)})
    connection.answer(200, text.encode(), [("Content-Type", "application/json")])


# ---------------------------------------------------------------- WebSockets

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(opcode, data, fin=True, mask=False):
    head = bytes([(0x80 if fin else 0) | opcode])
    flag = 0x80 if mask else 0
    if len(data) < 126:
        head += bytes([flag | len(data)])
    elif len(data) < 65536:
        head += struct.pack("!BH", flag | 126, len(data))
    else:
        head += struct.pack("!BQ", flag | 127, len(data))
    return head + (b"\0\0\0\0" if mask else b"") + data


def read_frame(connection):
    first, second = connection.exactly(2)
    length = second & 0x7F
    if length == 126:
        (length,) = struct.unpack("!H", connection.exactly(2))
    elif length == 127:
        (length,) = struct.unpack("!Q", connection.exactly(8))
    if not second & 0x80:
        raise Gone  # a client must mask
    mask = connection.exactly(4)
    data = bytearray(connection.exactly(length))
    for i in range(4):
        data[i::4] = data[i::4].translate(bytes(b ^ mask[i] for b in range(256)))
    return first & 0x80 != 0, first & 0x0F, bytes(data)


def upgrade(connection, request):
    key = request.headers.get("sec-websocket-key", "").encode()
    accept = base64.b64encode(hashlib.sha1(key + MAGIC).digest()).decode()
    accept = request.option("accept", accept)
    lines = ["HTTP/1.1 101 Switching", "Upgrade: websocket", "Connection: Upgrade"]
    lines += ["Sec-WebSocket-Accept: " + accept]
    lines += [h for h in request.option("headers", "").split("|") if h]
    connection.send(("\r\n".join(lines) + "\r\n\r\n").encode())


def ws_echo(connection, request):
    """Says back what it hears, as messages; with ?pause it reads slowly; notes the close."""
    upgrade(connection, request)
    parts = b""
    while True:
        fin, opcode, data = read_frame(connection)
        time.sleep(request.number("pause"))
        if opcode == 8:
            note(request, [int.from_bytes(data[:2], "big"), data[2:].decode()])
            connection.send(frame(8, data))
            raise Gone
        elif opcode == 9:
            connection.send(frame(10, data))
        elif opcode == 10:
            note(request, "pong " + data.decode())
            connection.send(frame(1, b"pong " + data))
        else:
            kind = opcode or kind
            parts += data
            if fin:
                connection.send(frame(kind, parts))
                parts = b""


def ws_raw(connection, request):
    """Any bytes after the upgrade; then notes what the client closes with."""
    upgrade(connection, request)
    connection.send(bytes.fromhex(request.option("data", "")))
    if request.option("end"):
        connection.end(request.option("end"))
    while True:
        _, opcode, data = read_frame(connection)
        if opcode == 8:
            note(request, [int.from_bytes(data[:2], "big"), data[2:].decode()])
            raise Gone


def ws_flood(connection, request):
    """Messages without an end; notes how many it got rid of."""
    upgrade(connection, request)
    sent = 0
    while True:
        connection.send(frame(2, bytes(65536)))
        sent += 1
        note(request, sent)


def tunnel(connection, request):
    """CONNECT: this is a proxy, too."""
    if request.headers.get("proxy-authorization", "") == "" and "secret" in request.target:
        connection.answer(407, b"")
        raise Gone
    host, port = request.target.rsplit(":", 1)
    other = socket.create_connection((host, int(port)))
    connection.send(b"HTTP/1.1 200 Connected\r\n\r\n")
    note_as("tunnel", request.target)

    def copy(source, sink):
        try:
            while True:
                data = source.recv(65536)
                if not data:
                    break
                sink.sendall(data)
        except OSError:
            pass
        for sock in (source, sink):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    back = threading.Thread(target=copy, args=(other, connection.sock), daemon=True)
    back.start()
    copy(connection.sock, other)
    back.join()
    other.close()
    raise Gone


def forwarded(connection, request):
    note_as("forwarded", request.target)
    request.body()
    connection.answer(200, b"through the proxy", [("X-Proxied", request.target)])


def note_as(name, value):
    with lock:
        notes[name] = value


def note(request, value):
    if request.option("count"):
        note_as(request.option("count"), value)


paths = {
    "/hello": hello,
    "/echo": echo,
    "/shown": shown,
    "/status": status,
    "/raw": raw,
    "/flood": flood,
    "/big": big,
    "/upload": upload,
    "/packed": packed,
    "/trickle": trickle,
    "/count": count,
    "/ws/echo": ws_echo,
    "/ws/raw": ws_raw,
    "/ws/flood": ws_flood,
}


def serve_one(connection):
    request = Request(connection)
    if request.option("count"):
        with lock:
            counts[request.option("count")] = counts.get(request.option("count"), 0) + 1
    if request.method == "CONNECT":
        tunnel(connection, request)
    elif request.target.startswith("http://"):
        forwarded(connection, request)
    elif request.path in paths:
        paths[request.path](connection, request)
    else:
        request.body()
        connection.answer(404, b'{"code":"NOPE","message":"no such page"}',
                          [("Content-Type", "application/json")])


def serve(sock, context):
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context:
            sock = context.wrap_socket(sock, server_side=True)
        connection = Connection(sock)
        connection.port = sock.getpeername()[1]
        while True:
            serve_one(connection)
    except (Gone, OSError, ValueError, KeyError):
        pass
    finally:
        sock.close()


def listen(context):
    listener = socket.create_server(("127.0.0.1", 0), backlog=200)

    def accept():
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=serve, args=(sock, context), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


ports = [listen(None)]
if len(sys.argv) > 2:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(sys.argv[1], sys.argv[2])
    ports.append(listen(tls))
print(*ports, flush=True)
sys.stdin.read()
os._exit(0)
