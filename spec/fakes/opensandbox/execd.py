"""The fake execution daemon: one process in each sandbox, reached through a Unix socket.

    python3 -IS execd.py SOCKET TOKEN COMMAND…

COMMAND is the sandbox's entry point: with it the sandbox ends, as a container does.
"""

import os
import socket
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import files
from contexts import Contexts
from http11 import Broken, go_json, serve
from isolated import Isolated
from runs import STREAM_HEADERS, Commands, Refused, Sessions, now_ms, runtime_error
from terminal import Terminals

NO_SNIFF = [("X-Content-Type-Options", "nosniff")]
METRICS_EVERY = 1 # seconds, after the second that one measure takes


def cpu_times():
    """Busy and all clock ticks of this machine so far."""
    with open("/proc/stat") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def measure():
    """One answer about this machine, a second in the making."""
    busy, all_ticks = cpu_times()
    time.sleep(1)
    busy_after, all_after = cpu_times()
    memory = {}
    with open("/proc/meminfo") as file:
        for line in file:
            name, value = line.split(":")
            memory[name] = int(value.split()[0]) / 1024
    used = 100 * (busy_after - busy) / max(1, all_after - all_ticks)
    return {"cpu_count": os.cpu_count(), "cpu_used_pct": used, "mem_total_mib": memory["MemTotal"],
            "mem_used_mib": memory["MemTotal"] - memory["MemAvailable"], "timestamp": now_ms()}


def watch(exchange):
    exchange.start(200, STREAM_HEADERS)
    while True:
        exchange.chunk(go_json(measure()) + b"\n")
        time.sleep(METRICS_EVERY)


class Daemon:
    """What the requests find: all that was started in this sandbox."""

    def __init__(self, token):
        self.token = token
        self.commands, self.sessions = Commands(), Sessions()
        self.contexts = Contexts(self.commands)
        self.terminals, self.isolated = Terminals(), Isolated()
        self.routes = {
            ("GET", "/ping"): lambda exchange: exchange.answer(200),
            ("GET", "/metrics"): lambda exchange: exchange.json(200, measure()),
            ("GET", "/metrics/watch"): watch,
            ("POST", "/command"): self.commands.run,
            ("DELETE", "/command"): self.interrupt,
            ("GET", "/command/status/*"): self.commands.status,
            ("GET", "/command/*/logs"): self.commands.logs,
            ("POST", "/session"): self.sessions.create,
            ("POST", "/session/*/run"): self.sessions.run,
            ("DELETE", "/session/*"): self.sessions.delete,
            ("POST", "/code"): self.contexts.run,
            ("DELETE", "/code"): self.interrupt,
            ("POST", "/code/context"): self.contexts.create,
            ("GET", "/code/contexts"): self.contexts.list,
            ("DELETE", "/code/contexts"): self.contexts.delete_language,
            ("GET", "/code/contexts/*"): self.contexts.get,
            ("DELETE", "/code/contexts/*"): self.contexts.delete,
            ("POST", "/pty"): self.terminals.create,
            ("GET", "/pty/*"): self.terminals.status,
            ("DELETE", "/pty/*"): self.terminals.delete,
            ("GET", "/pty/*/ws"): self.terminals.connect,
            **files.ROUTES,
            **self.isolated.routes,
        }

    def find(self, method, path):
        """The handler of a path and the words that stand for its stars."""
        if (method, path) in self.routes:
            return self.routes[method, path], []
        words = path.split("/")
        for (other, pattern), handler in self.routes.items():
            parts = pattern.split("/")
            if other == method and len(parts) == len(words) and all(
                    part in ("*", word) for part, word in zip(parts, words)):
                return handler, [word for part, word in zip(parts, words) if part == "*"]
        return None, []

    def handle(self, exchange):
        if self.token and exchange.headers.get("x-execd-access-token") != self.token:
            exchange.json(401, {"error": "Unauthorized: invalid or missing header "
                                         "X-EXECD-ACCESS-TOKEN"})
            return
        if exchange.path.startswith("/proxy/"):
            proxy(exchange)
            return
        handler, words = self.find(exchange.method, exchange.path)
        if not handler:
            exchange.answer(404, [("Content-Type", "text/plain")], b"404 page not found")
            return
        try:
            handler(exchange, *words)
        except Refused as refused:
            if not exchange.answered:
                exchange.error(refused.status, refused.code, refused.message)
        except (AttributeError, KeyError, TypeError) as error: # let through by an unstrict gateway
            if not exchange.answered:
                exchange.error(400, "INVALID_REQUEST_BODY", "error parsing request, MAYBE invalid "
                               f"body format. {error!r}")
        except OSError as error:
            if exchange.answered:
                raise
            exchange.error(500, "RUNTIME_ERROR", str(error))

    def interrupt(self, exchange):
        """Ends what runs under this id, whatever it is."""
        name = exchange.param("id")
        if not name:
            raise Refused(400, "MISSING_QUERY", "missing query parameter 'id'")
        if name in self.contexts.all:
            self.contexts.all[name].interrupt()
        elif name in self.commands.all:
            self.commands.all[name].interrupt()
        elif name in self.sessions.all:
            self.sessions.all.pop(name).close()
        else:
            raise runtime_error("error interruptting code context. no such session")
        exchange.answer(200)


def proxy(exchange):
    """Passes a request on to a port of this sandbox, and back whatever comes."""
    port, _, rest = exchange.target.removeprefix("/proxy/").partition("/")
    if not port:
        exchange.text(400, "port is required\n", NO_SNIFF)
        return
    try:
        backend = socket.create_connection(("127.0.0.1", int(port)))
    except (OSError, ValueError, OverflowError):
        exchange.text(502, "Bad Gateway\n", NO_SNIFF)
        return
    exchange.answered = exchange.connection.closing = True
    upgrade = exchange.headers.get("upgrade")
    pairs = [pair for pair in exchange.pairs
             if pair[0].lower() not in ("host", "connection", "x-execd-access-token")]
    pairs += [("Host", f"127.0.0.1:{port}"), ("Connection", "Upgrade" if upgrade else "close")]
    lines = [f"{exchange.method} /{rest} HTTP/1.1"] + [f"{name}: {text}" for name, text in pairs]
    with backend:
        backend.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")
        threading.Thread(target=send_on, args=(exchange, backend, upgrade), daemon=True).start()
        while data := backend.recv(1 << 16):
            exchange.connection.send(data)


def send_on(exchange, backend, upgrade):
    try:
        while data := exchange.read():
            backend.sendall(b"%x\r\n%s\r\n" % (len(data), data) if exchange.chunked else data)
        if exchange.chunked:
            backend.sendall(b"0\r\n\r\n")
        while upgrade and (data := exchange.connection.take(1 << 16)):
            backend.sendall(data)
    except (OSError, Broken):
        pass


def main():
    path, token, *entrypoint = sys.argv[1:]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(128)
    threading.Thread(target=serve, args=(listener, Daemon(token).handle), daemon=True).start()
    try:
        process = subprocess.Popen(entrypoint, stdin=subprocess.DEVNULL)
    except OSError as error:
        sys.exit(f"the entry point cannot be started: {error}")
    code = process.wait()
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
