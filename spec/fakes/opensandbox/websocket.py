"""The server's side of WebSocket (RFC 6455): the handshake's answer, frames in and out."""

import base64
import hashlib
import socket
import struct
import threading

from http11 import LINGER, Broken, head

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
LIMIT = 1 << 24


def frame(opcode, data, final=True, mask=None):
    """One frame. A server that masks breaks the rules: that is for faults."""
    first = (0x80 if final else 0) | opcode
    bit = 0x80 if mask else 0
    if len(data) < 126:
        start = struct.pack("!BB", first, bit | len(data))
    elif len(data) < 1 << 16:
        start = struct.pack("!BBH", first, bit | 126, len(data))
    else:
        start = struct.pack("!BBQ", first, bit | 127, len(data))
    if mask:
        return start + mask + unmask(data, mask)
    return start + data


def unmask(data, mask):
    repeated = (mask * (len(data) // 4 + 1))[:len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")).to_bytes(
        len(data), "big")


class WebSocket:
    """An upgraded connection. Any thread may send; one receives."""

    def __init__(self, exchange):
        key = exchange.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.connection = exchange.connection
        self.connection.closing = True
        self.lock = threading.Lock()
        exchange.answered = True
        self.connection.send(head(101, [("Upgrade", "websocket"), ("Connection", "Upgrade"),
                                        ("Sec-WebSocket-Accept", accept)]))

    @staticmethod
    def wanted(exchange):
        """Is this a request for a WebSocket, with all that it must say?"""
        headers = exchange.headers
        return (headers.get("upgrade", "").lower() == "websocket"
                and headers.get("sec-websocket-version") == "13"
                and len(base64.b64decode(headers.get("sec-websocket-key", "") + "==")) == 16)

    def send(self, opcode, data):
        with self.lock:
            self.connection.send(frame(opcode, data))

    def close(self, code, reason):
        """Says why and hangs up. Who receives goes on to the peer's end: to close before that is to
        reset, and takes back what is still on its way."""
        try:
            self.send(CLOSE, struct.pack("!H", code) + reason.encode())
            if code != 1006:
                self.connection.sock.settimeout(LINGER)
                self.connection.sock.shutdown(socket.SHUT_WR)
        except (Broken, OSError):
            pass
        if code == 1006:
            self.connection.reset()

    def exactly(self, count):
        data = b""
        while len(data) < count:
            piece = self.connection.take(count - len(data))
            if not piece:
                raise Broken("the connection ended in a frame")
            data += piece
        return data

    def receive_frame(self):
        first, second = self.exactly(2)
        if not second & 0x80:
            raise Broken("a client's frame was not masked")
        size = second & 0x7F
        if size == 126:
            size = struct.unpack("!H", self.exactly(2))[0]
        elif size == 127:
            size = struct.unpack("!Q", self.exactly(8))[0]
        if size > LIMIT:
            raise Broken("too big a frame")
        mask = self.exactly(4)
        return first & 0x80, first & 0x0F, unmask(self.exactly(size), mask)

    def receive(self):
        """The next message: opcode and bytes. Pings are answered; a close gives (CLOSE, …)."""
        kind, parts = None, []
        while True:
            final, opcode, data = self.receive_frame()
            if opcode == PING:
                self.send(PONG, data)
            elif opcode == CLOSE:
                self.close(struct.unpack("!H", data[:2])[0] if len(data) > 1 else 1000, "")
                return CLOSE, data
            elif opcode != PONG:
                kind = kind or opcode
                parts.append(data)
                if final:
                    return kind, b"".join(parts)
