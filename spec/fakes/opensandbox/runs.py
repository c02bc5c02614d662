"""Commands and shell sessions of the fake execd: what they run is real.

The oddities are the real daemon's: output goes to files that are looked at every 100 ms and told
line by line without line ends; a session is a new bash each time that gets its variables back.
"""

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from datetime import datetime, timezone

from http11 import Broken, go_json, go_text

STREAM_HEADERS = [("Cache-Control", "no-cache"), ("Connection", "keep-alive"),
                  ("Content-Type", "text/event-stream"), ("X-Accel-Buffering", "no")]
PING_EVERY = 3
SIGNAL_WORDS = {
    signal.SIGHUP: "hangup", signal.SIGINT: "interrupt", signal.SIGQUIT: "quit",
    signal.SIGILL: "illegal instruction", signal.SIGTRAP: "trace/breakpoint trap",
    signal.SIGABRT: "aborted", signal.SIGBUS: "bus error",
    signal.SIGFPE: "floating point exception", signal.SIGKILL: "killed",
    signal.SIGUSR1: "user defined signal 1", signal.SIGSEGV: "segmentation fault",
    signal.SIGUSR2: "user defined signal 2", signal.SIGPIPE: "broken pipe",
    signal.SIGALRM: "alarm clock", signal.SIGTERM: "terminated",
}


class Refused(Exception):
    """An answer of the daemon's normal error form."""

    def __init__(self, status, code, message):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def bad_request(message):
    return Refused(400, "INVALID_REQUEST_BODY", message)


def runtime_error(message):
    return Refused(500, "RUNTIME_ERROR", message)


def now_ms():
    return int(time.time() * 1000)


def rfc3339(ns):
    """Nanoseconds since 1970 as Go writes a time: no zeros at the fraction's end."""
    seconds, rest = divmod(ns, 10**9)
    text = datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return text + fraction + "Z"


def duration(ms):
    """Milliseconds as Go writes a duration."""
    if ms < 1000:
        return f"{ms}ms"
    minutes, seconds = divmod(ms / 1000, 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    return (f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else "") + text


VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}|\$([A-Za-z_]\w*)")


def expand(path):
    """`~`, `$NAME` and `${NAME}` in a path; a name without a value is an error."""
    env = os.environ
    names = {match[1] or match[2] for match in VARIABLE.finditer(path)}
    missing = sorted(name for name in names if name not in env)
    if missing:
        raise ValueError("path references undefined environment variables: " + ",".join(missing))
    path = VARIABLE.sub(lambda match: env[match[1] or match[2]], path)
    if path == "~" or path.startswith("~/"):
        path = env.get("HOME", "/root") + path[1:]
    return path


def working_directory(request, prefix):
    """The directory a request names, which must be there; None without one."""
    if not request.get("cwd"):
        return None
    try:
        path = expand(request["cwd"])
    except ValueError as error:
        raise bad_request(f'{prefix} cannot resolve working directory "{request["cwd"]}": {error}'
                          ) from error
    if not os.path.exists(path):
        raise bad_request(f"{prefix} working directory does not exist: {path}: "
                          f"stat {path}: no such file or directory")
    if not os.path.isdir(path):
        raise bad_request(f"{prefix} working directory path is not a directory: {path}")
    return path


def make_directories(path):
    """As `mkdir -p`; raises a ValueError with Go's words."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        place = path
        while not os.path.lexists(place):
            place = os.path.dirname(place)
        reason = (error.strerror.lower() if os.path.isdir(place)
                  else "file exists" if os.path.islink(place) else "not a directory")
        raise ValueError(f"mkdir {place}: {reason}") from error


def body_of(exchange, prefix, optional=False):
    """The request's JSON object."""
    data = exchange.body()
    if not data.strip():
        if optional:
            return {}
        raise bad_request(f"{prefix} EOF")
    try:
        value = json.loads(data)
    except ValueError as error:
        raise bad_request(f"{prefix} unexpected EOF" if "Unterminated" in str(error)
                          or "Expecting" in str(error) else f"{prefix} {error}") from error
    return value


class Stream:
    """The events of one run. The head goes out with the first of them."""

    def __init__(self, exchange):
        self.exchange = exchange
        self.sse = exchange.headers.get("x-fake-framing") == "sse"
        self.grace = float(exchange.headers.get("x-fake-grace", "1"))
        self.over = threading.Event()
        self.lost = False
        self.lock = threading.Lock()

    def write(self, data):
        with self.lock:
            try:
                if not self.lost:
                    if not self.exchange.answered:
                        self.exchange.start(200, STREAM_HEADERS)
                    self.exchange.chunk(data)
            except Broken:
                self.lost = True

    def event(self, kind, **fields):
        value = {"type": kind}
        for name in ("text", "execution_count", "execution_time"):
            if fields.get(name):
                value[name] = fields[name]
        value["timestamp"] = now_ms()
        for name in ("results", "error"):
            if name in fields:
                value[name] = fields[name]
        data = go_json(value)
        self.write(b"event: %s\ndata: %s\n\n" % (kind.encode(), data) if self.sse
                   else data + b"\n\n")

    def init(self, name):
        """Tells what runs; from here on the line is kept alive."""
        self.event("init", text=name)
        threading.Thread(target=self.keep_alive, daemon=True).start()

    def keep_alive(self):
        while not self.over.is_set():
            self.event("ping", text="pong")
            self.over.wait(PING_EVERY)

    def failed(self, value, reason):
        self.event("error", error={"ename": "CommandExecError", "evalue": str(value),
                                   "traceback": [reason]})

    def complete(self, began):
        self.event("execution_complete", execution_time=int((time.monotonic() - began) * 1000))

    def refuse(self, refused):
        """An error: an answer of its own before the first event, a bare object after it."""
        if not self.exchange.answered:
            raise refused
        self.write(go_json({"code": refused.code, "message": refused.message}))

    def end(self, grace=0):
        """The last chunk, after so many seconds in which a client may leave."""
        deadline = time.monotonic() + grace
        while grace and time.monotonic() < deadline and not self.exchange.connection.gone():
            time.sleep(0.01)
        self.over.set()
        with self.lock:
            if not self.lost and self.exchange.answered:
                try:
                    self.exchange.finish()
                except Broken:
                    pass


class Lines:
    """Splits bytes at LF or CR. An empty line is told as "\\n", CR LF is one end."""

    END = re.compile(rb"[\r\n]")

    def __init__(self, tell):
        self.tell = tell
        self.rest = b""
        self.after_cr = False

    def feed(self, data):
        data = self.rest + data
        start = 0
        for match in self.END.finditer(data, len(self.rest)):
            line, end = data[start:match.start()], match.group()
            if line:
                self.tell(go_text(line))
            elif not (end == b"\n" and self.after_cr):
                self.tell("\n")
            self.after_cr = end == b"\r"
            start = match.end()
        self.rest = data[start:]
        if self.rest:
            self.after_cr = False

    def flush(self):
        if self.rest:
            self.tell(go_text(self.rest))
            self.rest = b""


def ending(process, dumped=False):
    """Go's exit code and words for how a process ended."""
    if process.returncode < 0:
        number = -process.returncode
        words = SIGNAL_WORDS.get(number, f"signal {number}")
        return -1, f"signal: {words}" + (" (core dumped)" if dumped else "")
    return process.returncode, f"exit status {process.returncode}"


def kill_group(pid, number):
    try:
        os.killpg(pid, number)
        return True
    except ProcessLookupError:
        return False


def identity(uid, gid):
    """Whom a process runs as: the user's own groups, unless another is wanted."""
    try:
        entry = pwd.getpwuid(uid)
        groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
        own = entry.pw_gid
    except KeyError:
        groups, own = [], 0
    return {"user": uid, "group": own if gid is None else gid, "extra_groups": groups}


class Command:
    """One shell command, in the foreground or behind."""

    def __init__(self, request, argv=None):
        self.id = uuid.uuid4().hex
        self.request = request
        shell = "bash" if shutil.which("bash") else "sh"
        self.argv = argv or [shell, "-c", request["command"]]
        self.background = bool(request.get("background"))
        self.started_ns, self.began = time.time_ns(), time.monotonic()
        self.running, self.exit_code, self.error, self.finished_ns = True, None, "", None
        base = os.path.join(tempfile.gettempdir(), self.id)
        names = ["output"] if self.background else ["stdout", "stderr"]
        self.paths = [f"{base}.{name}" for name in names]
        self.process = None
        self.lock = threading.Lock()

    def start(self, cwd):
        request = self.request
        outputs = [open(path, "wb", buffering=0) for path in self.paths]
        who = {}
        if request.get("uid") is not None:
            who = identity(request["uid"], request.get("gid"))
        try:
            self.process = subprocess.Popen(
                self.argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=outputs[0],
                stderr=outputs[-1],
                env={**os.environ, **(request.get("envs") or {})}, process_group=0, **who)
        finally:
            for output in outputs:
                output.close()
        if request.get("timeout"):
            timer = threading.Timer(request["timeout"] / 1000, self.kill)
            timer.daemon = True
            timer.start()

    def kill(self):
        with self.lock:
            if self.running:
                kill_group(self.process.pid, signal.SIGKILL)

    def wait(self):
        """Until it has ended: its code and the reason."""
        how = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        with self.lock: # from here its number may be another's
            self.process.wait()
            code, reason = ending(self.process, how.si_code == os.CLD_DUMPED)
            self.finish(code, reason if code else "")
        return code, reason

    def finish(self, code, error):
        self.running, self.exit_code, self.error = False, code, error
        self.finished_ns = time.time_ns()

    def interrupt(self):
        """TERM to the group, three seconds, KILL."""
        if not self.running:
            raise runtime_error("error interruptting code context. "
                                f"command session {self.id} is not running")
        kill_group(self.process.pid, signal.SIGTERM)
        deadline = time.monotonic() + 3
        while kill_group(self.process.pid, 0):
            if time.monotonic() > deadline:
                kill_group(self.process.pid, signal.SIGKILL)
                time.sleep(0.15)
                return
            time.sleep(0.05)

    def status(self):
        value = {"id": self.id, "content": self.request["command"]}
        with self.lock: # a process that is gone does not run
            value["running"] = self.running
            if not self.running:
                value["exit_code"] = self.exit_code
            if self.error:
                value["error"] = self.error
            value["started_at"] = rfc3339(self.started_ns)
            if self.finished_ns:
                value["finished_at"] = rfc3339(self.finished_ns)
        return value


def follow(path, tell, done):
    """Tells the lines of a growing file until `done` is set, and then the rest."""
    lines = Lines(tell)
    with open(path, "rb", buffering=0) as file:
        while True:
            last = done.wait(0.1)
            while data := file.read(1 << 16):
                lines.feed(data)
            if last:
                lines.flush()
                return


class Commands:
    """All that were started here; they are remembered."""

    def __init__(self):
        self.all = {}

    def run(self, exchange):
        prefix = "invalid request, validation error"
        request = body_of(exchange, "error parsing request, MAYBE invalid body format.")
        self.check(request, prefix)
        cwd = working_directory(request, prefix)
        command, stream = Command(request), Stream(exchange)
        if command.background:
            self.behind(command, stream, cwd)
        else:
            self.in_front(command, stream, cwd)
        stream.end(stream.grace)

    @staticmethod
    def check(request, prefix):
        field = ("Key: 'RunCommandRequest.{0}' Error:Field validation for '{0}' failed on the "
                 "'{1}' tag")
        if not request.get("command"):
            raise bad_request(f"{prefix} " + field.format("Command", "required"))
        if request.get("timeout", 0) < 0:
            raise bad_request(f"{prefix} " + field.format("TimeoutMs", "gte"))
        if request.get("gid") is not None and request.get("uid") is None:
            raise bad_request(f"{prefix} uid is required when gid is provided")

    def behind(self, command, stream, cwd):
        """Starts it and says so at once: `execution_complete` means started."""
        stream.init(command.id)
        self.all[command.id] = command
        try:
            command.start(cwd)
        except OSError as error:
            reason = f"fork/exec /usr/bin/bash: {error.strerror.lower()}"
            command.finish(255, reason)
            stream.refuse(runtime_error("error running commands failed to start commands: "
                                        + reason))
            return
        threading.Thread(target=command.wait, daemon=True).start()
        stream.complete(command.began)

    def in_front(self, command, stream, cwd):
        try:
            command.start(cwd)
        except OSError as error:
            reason = f"fork/exec /usr/bin/bash: {error.strerror.lower()}"
            stream.init(command.id)
            stream.failed(reason, reason)
            return
        self.all[command.id] = command
        stream.init(command.id)
        done = threading.Event()
        readers = []
        for path, kind in zip(command.paths, ("stdout", "stderr")):
            tell = lambda text, kind=kind: stream.event(kind, text=text)
            readers.append(threading.Thread(target=follow, args=(path, tell, done), daemon=True))
            readers[-1].start()
        code, reason = command.wait()
        done.set()
        for reader in readers:
            reader.join()
        if code != 0:
            stream.failed(code, reason)
        else:
            stream.complete(command.began)

    def status(self, exchange, name):
        command = self.all.get(name)
        if not command:
            raise Refused(404, "INVALID_REQUEST_BODY", f"command not found: {name}")
        exchange.json(200, command.status())

    def logs(self, exchange, name):
        command = self.all.get(name)
        if not command:
            raise bad_request(f"command not found: {name}")
        if not command.background:
            raise bad_request(f"command {name} is not running in background")
        try:
            cursor = int(exchange.param("cursor"))
        except ValueError:
            cursor = 0
        path = command.paths[0]
        if cursor < 0:
            raise bad_request(f"error seek file: seek {path}: invalid argument")
        with open(path, "rb") as file:
            file.seek(cursor)
            data = file.read()
        exchange.answer(200, [("Content-Type", "text/plain; charset=utf-8"),
                              ("Execd-Commands-Tail-Cursor", cursor + len(data))], data)


ENV_START, ENV_END = "__FAKE_ENV_START__", "__FAKE_ENV_END__"
PWD_MARK, EXIT_MARK = "__FAKE_PWD__:", "__FAKE_EXIT__:"
NAME = re.compile(r"[A-Za-z_]\w*$", re.ASCII)
VALUE_LIMIT = 8192
GO_STRING = re.compile(r'"([^"\\\n]|\\["\\])*"$')


def quote(text):
    return "'" + text.replace("'", "'\"'\"'") + "'"


def unquote(value):
    """What bash has quoted, as Go reads it: with `$` or a backtick the backslashes stay."""
    if GO_STRING.match(value):
        return re.sub(r'\\(["\\])', r"\1", value[1:-1])
    return value.strip('"')


class Session:
    """A bash session: each run is a new bash with the variables and the directory of the last."""

    def __init__(self, cwd):
        self.id = str(uuid.uuid4())
        self.cwd = cwd
        self.env = dict(os.environ)
        self.process = None

    def script(self, command, cwd):
        lines = [f"export {name}={quote(value)}" for name, value in sorted(self.env.items())
                 if NAME.match(name) and len(value) <= VALUE_LIMIT
                 and name not in ("PS1", "PS2", "PS3", "PS4", "PROMPT_COMMAND")]
        if cwd:
            lines.append(f"cd {quote(cwd)}")
        lines += [command.removesuffix("\n"), "__code__=$?",
                  f'printf "\\n%s\\n" "{ENV_START}"', "export -p", f'printf "%s\\n" "{ENV_END}"',
                  f'printf "{PWD_MARK}%s\\n" "$(pwd)"', f'printf "{EXIT_MARK}%s\\n" "$__code__"',
                  'exit "$__code__"']
        return "\n".join(lines) + "\n"

    def run(self, stream, request, cwd):
        began = time.monotonic()
        stream.init(self.id)
        with tempfile.NamedTemporaryFile("w", prefix="execd_bash_", suffix=".sh",
                                         delete=False) as file:
            file.write(self.script(request["command"], cwd or self.cwd))
        process = self.process = subprocess.Popen(
            ["bash", "--noprofile", "--norc", file.name], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0)
        timeout = request.get("timeout") or 24 * 3600 * 1000
        late = threading.Event()
        timer = threading.Timer(timeout / 1000, lambda: (late.set(), process.kill()))
        timer.daemon = True
        timer.start()
        over = threading.Event()
        threading.Thread(target=self.watch, args=(stream, process, over), daemon=True).start()
        code = self.read(process, stream)
        process.wait()
        over.set()
        timer.cancel()
        self.process = None
        if late.is_set():
            raise runtime_error(f"error running in session. timeout after {duration(timeout)}")
        own_code, reason = ending(process)
        code = own_code if code is None else code
        if code != 0:
            stream.failed(code, reason)
        else:
            stream.complete(began)

    @staticmethod
    def watch(stream, process, over):
        """A client that leaves ends the run: its bash, not what that has started."""
        while not over.wait(0.05):
            if stream.exchange.connection.gone():
                process.kill()
                return

    def read(self, process, stream):
        """Tells the output but the last lines, which say what to keep."""
        env, code, cwd, in_env = [], None, None, False
        for line in process.stdout:
            line = go_text(line.rstrip(b"\n").removesuffix(b"\r"))
            if line in (ENV_START, ENV_END):
                in_env = line == ENV_START
            elif line.startswith(EXIT_MARK):
                code = int(line.removeprefix(EXIT_MARK))
            elif line.startswith(PWD_MARK):
                cwd = line.removeprefix(PWD_MARK)
            elif in_env:
                env.append(line)
            elif line:
                stream.event("stdout", text=line)
        self.env = self.parse(env) or self.env
        self.cwd = cwd or self.cwd
        return code

    @staticmethod
    def parse(lines):
        """The variables of `export -p`."""
        found = {}
        for line in lines:
            name, _, value = line.removeprefix("declare -x ").partition("=")
            if line.startswith("declare -x ") and NAME.match(name) and len(value) <= VALUE_LIMIT:
                found[name] = unquote(value)
        return found

    def close(self):
        if self.process:
            kill_group(self.process.pid, signal.SIGKILL)


class Sessions:
    """The bash sessions."""

    def __init__(self):
        self.all = {}

    def create(self, exchange):
        request = body_of(exchange, "error parsing request.", optional=True)
        raw = request.get("cwd") or ""
        try:
            cwd = expand(raw)
        except ValueError as error:
            raise runtime_error(f"error creating session. resolve request cwd {raw}: {error}"
                                ) from error
        try:
            cwd and make_directories(cwd)
        except ValueError as error:
            raise runtime_error(f"error creating session. {error}") from error
        session = Session(cwd)
        self.all[session.id] = session
        exchange.json(200, {"session_id": session.id})

    def run(self, exchange, name):
        request = body_of(exchange, "error parsing request.")
        if not request.get("command"):
            raise bad_request("invalid request. Key: 'RunInSessionRequest.Command' Error:Field "
                              "validation for 'Command' failed on the 'required' tag")
        if request.get("timeout", 0) < 0:
            raise bad_request("invalid request. Key: 'RunInSessionRequest.Timeout' Error:Field "
                              "validation for 'Timeout' failed on the 'gte' tag")
        cwd = working_directory(request, "invalid request.")
        session = self.all.get(name)
        if not session:
            raise runtime_error("error running in session. context not found")
        stream = Stream(exchange)
        try:
            session.run(stream, request, cwd)
        except Refused as refused:
            stream.refuse(refused)
        stream.end()

    def delete(self, exchange, name):
        session = self.all.pop(name, None)
        if not session:
            raise Refused(404, "CONTEXT_NOT_FOUND", f"session {name} not found")
        session.close()
        exchange.answer(200)
