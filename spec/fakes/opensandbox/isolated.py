"""Isolated sessions of the fake execd: one bash in a bubblewrap, which runs one code after another.

Written from the protocol page and the reviews of the real one (its pull request 1008), whose
source was not at hand: one shell that lives on, stderr in stdout, the variables of a run stay.
"""

import functools
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
import uuid

import files
from http11 import go_text
from runs import (Command, Refused, Stream, bad_request, body_of, duration, rfc3339,
                  runtime_error)

ECHOED = ("profile", "workspace", "extra_writable", "binds", "share_net", "env_passthrough", "uid",
          "gid", "uid_mode", "idle_timeout_seconds")
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD")


class IsolatedSession:
    """What a session was created with, and its runs."""

    def __init__(self, request):
        self.id = str(uuid.uuid4())
        self.request = request
        self.created = self.used = time.time_ns()
        self.last_run = None
        self.runs, self.shell, self.busy = {}, None, threading.Lock()
        workspace = request["workspace"]
        self.path = os.path.abspath(workspace["path"])
        self.mode = workspace.get("mode", "rw")
        self.directory = self.path
        if self.mode == "overlay": # what is changed is seen here only
            self.directory = tempfile.mkdtemp(prefix="isolated-")
            shutil.copytree(self.path, self.directory, symlinks=True, dirs_exist_ok=True)

    def environment(self):
        wanted = self.request.get("env_passthrough") or {"mode": "deny", "keys": []}
        keys = wanted.get("keys") or []
        if wanted.get("mode", "deny") == "allow":
            return {name: os.environ[name] for name in keys if name in os.environ}
        return {name: value for name, value in os.environ.items() if name not in keys
                and not any(word in name for word in SECRET_WORDS)}

    def argv(self, request):
        mount = "--ro-bind" if self.mode == "ro" else "--bind"
        argv = [*bubblewrap(), "--tmpfs", "/tmp", mount, self.directory, self.path,
                "--chdir", self.path, "--clearenv"]
        for path in self.request.get("extra_writable") or ():
            argv += ["--bind", path, path]
        for bind in self.request.get("binds") or ():
            argv += ["--ro-bind" if bind.get("readonly") else "--bind", bind["source"],
                     bind.get("dest") or bind["source"]]
        if not self.request.get("share_net", self.request.get("profile") != "strict"):
            argv.append("--unshare-net")
        for name in ("uid", "gid"):
            if self.request.get(name) is not None:
                argv += [f"--{name}", str(self.request[name])]
        if ("--uid" in argv or "--gid" in argv) and "--unshare-user" not in argv:
            argv.insert(1, "--unshare-user")
        for name, value in {**self.environment(), **(request.get("envs") or {})}.items():
            argv += ["--setenv", name, value]
        return argv

    def start(self):
        """The shell, anew when the last one has ended."""
        if self.shell is None or self.shell.poll() is not None:
            self.shell = subprocess.Popen(
                self.argv({}) + ["bash", "--norc", "--noprofile"], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0)
        return self.shell

    def run(self, stream, request):
        """One code in the shell; a mark that nobody can guess closes its output."""
        began, shell, mark = time.monotonic(), self.start(), uuid.uuid4().hex.encode()
        stream.init(self.id)
        script = "".join(f"export {name}={shlex.quote(value)}\n"
                         for name, value in (request.get("envs") or {}).items())
        script += f"eval {shlex.quote(request['code'])} </dev/null\n"
        script += f"printf '\\n%s %s\\n' {mark.decode()} $?\n"
        shell.stdin.write(script.encode())
        shell.stdin.flush()
        timeout, late = request.get("timeout_seconds"), threading.Event()
        if timeout:
            timer = threading.Timer(timeout, lambda: (late.set(), shell.kill()))
            timer.daemon = True
            timer.start()
        code = self.read(stream, shell, mark)
        if late.is_set():
            raise runtime_error("error running in isolated session. timeout after "
                                + duration(timeout * 1000))
        if timeout:
            timer.cancel()
        if code:
            stream.failed(code, f"exit status {code}")
        else:
            stream.complete(began)

    @staticmethod
    def read(stream, shell, mark):
        """Tells the lines before the mark; the code, the shell's own when it ended."""
        blank = False # one line end belongs to the mark
        for line in shell.stdout:
            if line.startswith(mark):
                return int(line.split()[1])
            if blank:
                stream.event("stdout", text="\n")
            blank = line == b"\n"
            if not blank:
                stream.event("stdout", text=go_text(line.rstrip(b"\n")))
        return max(shell.wait(), -1)

    def state(self):
        idle = self.request.get("idle_timeout_seconds")
        state = {"status": "active", "created_at": rfc3339(self.created)}
        if self.last_run:
            state["last_run_at"] = rfc3339(self.last_run)
        if idle:
            state["idle_remaining_seconds"] = max(0, idle - int((time.time_ns() - self.used) / 1e9))
        return state

    def echo(self):
        return {name: self.request[name] for name in ECHOED if name in self.request}

    def close(self):
        for run in self.runs.values():
            run.kill()
        if self.shell:
            self.shell.kill()
            self.shell.wait()
        if self.mode == "overlay":
            shutil.rmtree(self.directory, ignore_errors=True)


class Isolated:
    """The isolated sessions."""

    def __init__(self):
        self.all = {}
        base = "/v1/isolated/session"
        self.routes = {
            ("POST", base): self.create,
            ("GET", "/v1/isolated/sessions"): self.list,
            ("GET", "/v1/isolated/capabilities"): self.capabilities,
            ("GET", f"{base}/*"): self.get,
            ("DELETE", f"{base}/*"): self.delete,
            ("POST", f"{base}/*/run"): self.run,
            ("GET", f"{base}/*/runs/*"): self.run_status,
            ("GET", f"{base}/*/runs/*/logs"): self.run_logs,
            ("POST", f"{base}/*/diff"): self.not_yet,
            ("POST", f"{base}/*/commit"): self.not_yet,
        }
        for (method, path), handler in files.ROUTES.items():
            self.routes[method, f"{base}/*{path}"] = self.with_files(handler)

    def find(self, name):
        session = self.all.get(name)
        if not session:
            raise Refused(404, "SESSION_NOT_FOUND", f"isolated session {name} not found")
        session.used = time.time_ns()
        return session

    def with_files(self, handler):
        def handle(exchange, name):
            session = self.find(name)
            if session.mode == "ro" and exchange.method != "GET":
                raise runtime_error("error accessing file: read-only file system")
            files.seen.instead = (session.path, session.directory)
            try:
                handler(exchange)
            finally:
                files.seen.instead = ("", "")
        return handle

    def create(self, exchange):
        request = body_of(exchange, "error parsing request.")
        if not os.path.isdir(request["workspace"]["path"]):
            raise bad_request(f"workspace does not exist: {request['workspace']['path']}")
        if not bubblewrap():
            raise Refused(503, "SERVICE_UNAVAILABLE", "isolation is not available here")
        session = IsolatedSession(request)
        self.all[session.id] = session
        if request.get("idle_timeout_seconds"):
            self.expire(session)
        exchange.json(201, {"session_id": session.id, "created_at": rfc3339(session.created),
                            **session.echo()})

    def expire(self, session):
        """Ends a session that nobody has used for so long; looks again when somebody has."""
        idle = session.request["idle_timeout_seconds"]
        left = idle - (time.time_ns() - session.used) / 1e9
        if left <= 0:
            if self.all.pop(session.id, None):
                session.close()
            return
        timer = threading.Timer(left, self.expire, (session,))
        timer.daemon = True
        timer.start()

    def list(self, exchange):
        exchange.json(200, {"sessions": [{"session_id": session.id, **session.state()}
                                         for session in list(self.all.values())]})

    def capabilities(self, exchange):
        able = bubblewrap() is not None
        version = subprocess.run(["bwrap", "--version"], capture_output=True, text=True,
                                 check=False)
        exchange.json(200, {"available": able, "isolator": "bwrap",
                            "version": version.stdout.strip().removeprefix("bubblewrap "),
                            "setpriv_available": shutil.which("setpriv") is not None,
                            "userns_available": able, "commit_supported": False,
                            "diff_supported": False})

    def get(self, exchange, name):
        session = self.find(name)
        exchange.json(200, {**session.state(), **session.echo()})

    def delete(self, exchange, name):
        self.find(name).close()
        del self.all[name]
        exchange.answer(200)

    @staticmethod
    def not_yet(exchange, name):
        raise Refused(503, "SERVICE_UNAVAILABLE", "not supported by this isolator")

    def run(self, exchange, name):
        session = self.find(name)
        request = body_of(exchange, "error parsing request.")
        if not request.get("code"):
            raise bad_request("invalid request. code is required")
        session.last_run = time.time_ns()
        if request.get("background"):
            self.run_behind(exchange, session, request)
            return
        stream = Stream(exchange)
        try:
            with session.busy:
                session.run(stream, request)
        except Refused as refused:
            stream.refuse(refused)
        stream.end()

    @staticmethod
    def run_behind(exchange, session, request):
        timeout = request.get("timeout_seconds")
        command = Command({"command": request["code"], "background": True,
                           "timeout": timeout and timeout * 1000},
                          session.argv(request) + ["bash", "-c", request["code"]])
        session.runs[command.id] = command
        command.start(None)
        threading.Thread(target=command.wait, daemon=True).start()
        exchange.json(200, {"session_id": session.id, "run_id": command.id,
                            "started_at": rfc3339(command.started_ns)})

    def find_run(self, name, run):
        command = self.find(name).runs.get(run)
        if not command or not command.background:
            raise Refused(404, "SESSION_NOT_FOUND", f"run {run} not found")
        return command

    def run_status(self, exchange, name, run):
        status = self.find_run(name, run).status()
        exchange.json(200, {"session_id": name, "run_id": status.pop("id"), **status})

    def run_logs(self, exchange, name, run):
        command = self.find_run(name, run)
        cursor = int(exchange.param("cursor") or 0)
        with open(command.paths[0], "rb") as file:
            file.seek(cursor)
            data = file.read()
        exchange.answer(200, [("Content-Type", "text/plain; charset=utf-8"),
                              ("Execd-Isolated-Tail-Cursor", cursor + len(data))], data)


@functools.cache
def bubblewrap():
    """The words that make a bubblewrap in here: a root without capabilities needs a user namespace.
    None when there is no way."""
    for argv in (["bwrap"], ["bwrap", "--unshare-user"]):
        argv += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-pid"]
        try:
            if subprocess.run([*argv, "true"], capture_output=True, check=False).returncode == 0:
                return argv
        except OSError:
            pass
    return None
