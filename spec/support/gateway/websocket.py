"""A WebSocket for spec/gateway_spec.lua: websocket.py SOCKET [ORIGIN]

A line of stdin is sent as a message, a line of stdout is a message that came; it ends when stdin
does, not before, so that nobody writes into a broken pipe. Other things begin with "!": sent,
"!ping TEXT", "!pieces TEXT" (a frame for each character), "!raw HEX", "!deaf" (reads no more),
"!drop" (leaves without a word); and what came, "!status N" (of the answer), "!pong TEXT",
"!close N", "!gone" (the connection has ended).
"""

import os
import socket
import struct
import sys
import threading

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


def say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def connect(path, origin):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    head = (
        "GET /session HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: bW9vbnNhbmQgbW9vbnNhbg==\r\nSec-WebSocket-Version: 13\r\n"
    )
    if origin:
        head += "Origin: " + origin + "\r\n"
    connection.sendall((head + "\r\n").encode())
    incoming = connection.makefile("rb")
    status = incoming.readline().split()[1].decode()
    while incoming.readline() not in (b"\r\n", b""):
        pass
    say("!status " + status)
    return connection, incoming, status == "101"


def frame(opcode, data, final=True):
    mask = os.urandom(4)
    size = len(data)
    head = bytes([(0x80 if final else 0) | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += bytes([0x80 | 126]) + struct.pack(">H", size)
    else:
        head += bytes([0x80 | 127]) + struct.pack(">Q", size)
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))


def listen(incoming, deaf):
    while not deaf.is_set():
        head = incoming.read(2)
        if len(head) < 2:
            break
        opcode, size = head[0] & 15, head[1] & 127
        if size == 126:
            size = struct.unpack(">H", incoming.read(2))[0]
        elif size == 127:
            size = struct.unpack(">Q", incoming.read(8))[0]
        data = incoming.read(size)
        if opcode == TEXT:
            say(data.decode())  # what is no UTF-8 ends this
        elif opcode == PONG:
            say("!pong " + data.decode())
        elif opcode == CLOSE:
            say("!close %d" % struct.unpack(">H", data[:2]))
    say("!gone")


def talk(connection, deaf):
    for line in sys.stdin:
        word, _, rest = line.rstrip("\n").partition(" ")
        if word == "!ping":
            data = frame(PING, rest.encode())
        elif word == "!pieces":
            last = len(rest) - 1
            data = b"".join(
                frame(0 if i else TEXT, letter.encode(), i == last) for i, letter in enumerate(rest)
            )
        elif word == "!raw":
            data = bytes.fromhex(rest)
        elif word == "!deaf":
            deaf.set()
            data = frame(PING, b"")  # the one who listens sees a pong, and then that he is deaf
        elif word == "!drop":
            connection.shutdown(socket.SHUT_RDWR)
            continue
        else:
            data = frame(TEXT, line.rstrip("\n").encode())
        try:
            connection.sendall(data)
        except OSError:
            pass  # it has ended, as the one who listens says


def main():
    connection, incoming, open_ = connect(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
    deaf = threading.Event()
    if open_:
        threading.Thread(target=listen, args=(incoming, deaf), daemon=True).start()
    talk(connection, deaf)
    os._exit(0)  # whatever the one who listens is at


main()
