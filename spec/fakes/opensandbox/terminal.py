"""Terminals of the fake execd: a shell behind a WebSocket, on a pty or on plain pipes."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import threading
import time
import uuid

from http11 import Broken, go_json
from runs import Refused, body_of, expand, make_directories
from websocket import BINARY, CLOSE, PING, TEXT, WebSocket

STDIN, STDOUT, STDERR, REPLAY = b"\0", b"\1", b"\2", b"\3"
KEPT = 1 << 20
PING_EVERY = 30
TAKEOVER_WAIT = 5
SIGNALS = {name: getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGKILL", "SIGQUIT",
                                                    "SIGHUP")}


class Terminal:
    """One shell. It starts with the first client and outlives each of them."""

    def __init__(self, cwd, command):
        self.id = str(uuid.uuid4())
        self.cwd, self.command = cwd, command
        self.process = self.master = self.stdin = None
        self.on_pty = True
        self.kept, self.total = b"", 0 # the last output, and how much there was in all
        self.lock = threading.Lock()   # of the output and of who gets it
        self.client = None
        self.held = threading.Lock()   # by the client that is connected
        self.readers = []

    @property
    def running(self):
        return self.process is not None and self.process.poll() is None

    def start(self, on_pty):
        argv = ["bash", "--norc", "--noprofile"]
        if self.command:
            argv += ["-c", self.command]
        self.on_pty = on_pty
        outputs = self.start_pty(argv) if on_pty else self.start_pipe(argv)
        self.readers = [(threading.Thread(target=self.pump, args=output, daemon=True), output[0])
                        for output in outputs]
        for reader, _ in self.readers:
            reader.start()

    def start_pty(self, argv):
        self.master, slave = pty.openpty()
        self.resize(80, 24)
        env = {**os.environ, "TERM": "xterm-256color"}

        def own_terminal():
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(argv, cwd=self.cwd or None, env=env, stdin=slave,
                                        stdout=slave, stderr=slave, preexec_fn=own_terminal)
        os.close(slave)
        self.stdin = self.master
        return [(self.master, STDOUT)]

    def start_pipe(self, argv):
        self.process = subprocess.Popen(argv, cwd=self.cwd or None, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        process_group=0, bufsize=0)
        self.stdin = self.process.stdin.fileno()
        return [(self.process.stdout.fileno(), STDOUT), (self.process.stderr.fileno(), STDERR)]

    def pump(self, fd, channel):
        while True:
            try:
                data = os.read(fd, 32768)
            except OSError: # a pty whose last process has ended
                return
            if not data:
                return
            with self.lock:
                self.kept = (self.kept + data)[-KEPT:]
                self.total += len(data)
                try:
                    if self.client:
                        self.client.send(BINARY, channel + data)
                except Broken:
                    self.client = None

    def attach(self, client, since):
        """What the client missed goes first, and nothing is lost in between."""
        with self.lock:
            oldest = self.total - len(self.kept)
            offset = max(since, oldest)
            missed = self.kept[offset - oldest:]
            if missed:
                client.send(BINARY, REPLAY + struct.pack("!Q", offset) + missed)
            mode = "pty" if self.on_pty else "pipe"
            tell(client, {"type": "connected", "session_id": self.id, "mode": mode})
            self.client = client

    def detach(self, client):
        with self.lock:
            if self.client is client:
                self.client = None

    def resize(self, columns, rows):
        if self.master is not None:
            fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def signal(self, name):
        if name in SIGNALS and self.running:
            os.killpg(self.process.pid, SIGNALS[name])

    def write(self, data):
        while data:
            data = data[os.write(self.stdin, data):]

    def exit_code(self):
        code = self.process.wait()
        for reader, fd in self.readers:
            reader.join(1)
            deadline = time.monotonic() + 5
            while (reader.is_alive() and select.select([fd], [], [], 0)[0]
                   and time.monotonic() < deadline):
                reader.join(0.1) # it was slow: there is more, or the end
        return code if code >= 0 else -1

    def close(self):
        if self.running:
            self.signal("SIGKILL")
            self.process.wait()


def tell(client, value):
    client.send(TEXT, go_json(value) + b"\n")


class Terminals:
    """All terminals, and the talk with their clients."""

    def __init__(self):
        self.all = {}

    def find(self, name):
        terminal = self.all.get(name)
        if not terminal:
            raise Refused(404, "CONTEXT_NOT_FOUND", f"pty session {name} not found")
        return terminal

    def create(self, exchange):
        request = body_of(exchange, "error parsing request:", optional=True)
        try:
            cwd = expand(request.get("cwd") or "")
            cwd and make_directories(cwd)
        except ValueError as error:
            # The real daemon goes on after this error and answers twice.
            message = ("error creating pty session: error creating PTY session work directory: "
                       f"{error}")
            both = go_json({"code": "RUNTIME_ERROR", "message": message})
            both += go_json({"session_id": str(uuid.uuid4())})
            exchange.answer(500, [("Content-Type", "application/json; charset=utf-8")], both)
            return
        terminal = Terminal(cwd, request.get("command"))
        self.all[terminal.id] = terminal
        exchange.json(201, {"session_id": terminal.id})

    def status(self, exchange, name):
        terminal = self.find(name)
        exchange.json(200, {"session_id": name, "running": terminal.running,
                            "output_offset": terminal.total})

    def delete(self, exchange, name):
        self.find(name).close()
        del self.all[name]
        exchange.answer(200)

    def connect(self, exchange, name):
        terminal = self.find(name)
        busy = f"another client is already connected to pty session {name}"
        held = terminal.held.acquire(blocking=False)
        if not held and exchange.param("takeover") != "1":
            raise Refused(409, "ALREADY_CONNECTED", busy)
        if not WebSocket.wanted(exchange):
            if held:
                terminal.held.release()
            exchange.text(400, "Bad Request\n")
            return
        client = WebSocket(exchange)
        if not held:
            with terminal.lock: # who has heard something is the client
                other = terminal.client
            other and other.close(4001, "TAKEN_OVER")
            if not terminal.held.acquire(timeout=TAKEOVER_WAIT):
                late = f"takeover timed out for pty session {name}"
                tell(client, {"type": "error", "error": late, "code": "ALREADY_CONNECTED"})
                client.close(1000, "")
                return
        try:
            self.talk(exchange, terminal, client)
        except (Broken, OSError):
            pass
        finally:
            terminal.detach(client)
            terminal.held.release()

    def talk(self, exchange, terminal, client):
        if not terminal.running:
            try:
                terminal.start(exchange.param("pty") != "0")
            except OSError as error:
                tell(client, {"type": "error", "error": str(error), "code": "START_FAILED"})
                client.close(1000, "")
                return
        since = exchange.param("since")
        terminal.attach(client, int(since) if since.isdigit() else 0)
        over = threading.Event()
        for watch in (self.watch_exit, self.watch_line):
            threading.Thread(target=watch, args=(terminal, client, over), daemon=True).start()
        try:
            while (message := client.receive())[0] != CLOSE:
                self.receive(terminal, client, *message)
        finally:
            over.set()

    @staticmethod
    def watch_exit(terminal, client, over):
        code = terminal.exit_code()
        if not over.is_set():
            try:
                tell(client, {"type": "exit", "exit_code": code})
                client.close(1000, "process exited")
            except (Broken, OSError):
                pass

    @staticmethod
    def watch_line(terminal, client, over):
        while not over.wait(PING_EVERY):
            try:
                client.send(PING, b"")
            except Broken:
                return

    @staticmethod
    def receive(terminal, client, opcode, data):
        if opcode == BINARY:
            if data[:1] == STDIN:
                Terminals.input(terminal, client, data[1:])
            return
        try:
            value = json.loads(data)
        except ValueError:
            return
        kind = value.get("type")
        if kind == "stdin":
            Terminals.input(terminal, client, value.get("data", "").encode())
        elif kind == "signal":
            terminal.signal(value.get("signal"))
        elif kind == "resize":
            if value.get("cols", 0) > 0 and value.get("rows", 0) > 0:
                terminal.resize(value["cols"], value["rows"])
        elif kind == "ping":
            tell(client, {"type": "pong"})
        else:
            tell(client, {"type": "error", "error": f'unknown frame type "{kind or ""}"',
                          "code": "INVALID_FRAME"})

    @staticmethod
    def input(terminal, client, data):
        try:
            terminal.write(data)
        except OSError as error:
            tell(client, {"type": "error", "error": str(error), "code": "STDIN_WRITE_FAILED"})
            time.sleep(0.05)
            raise
