"""Code contexts of the fake execd. Python has a kernel here; other languages have none, and what
the real daemon does without one (it hangs, or says so) is done here too."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid

from http11 import Broken
from runs import (Command, Refused, Stream, bad_request, body_of, runtime_error,
                  working_directory)

WITH_KERNEL = ("python",)
JUPYTER = ("python", "java", "javascript", "typescript", "go", "bash")
KERNEL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "kernel.py")
# On a new kernel the first run is told complete when it has answered, at the latest after this;
# on one that was used before, at once: the real daemon takes an old `idle` for the new one.
FIRST_IDLE = 5


class Context:
    """One kernel."""

    def __init__(self, language, cwd=None):
        self.id = str(uuid.uuid4())
        self.language, self.cwd = language, cwd
        self.busy = threading.Lock()
        self.used = False
        self.process = subprocess.Popen(
            [sys.executable, "-P", KERNEL], cwd=cwd, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, encoding="utf-8", process_group=0)
        self.process.stdout.readline() # it is there

    def messages(self, code):
        """What the kernel says of this code, to its end."""
        self.process.stdin.write(json.dumps({"code": code}) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            message = json.loads(line)
            if message.get("done"):
                return
            yield message
        yield {"error": {"ename": "DeadKernelError", "evalue": "Kernel died", "traceback": []}}

    def run(self, stream, code):
        began = time.monotonic()
        complete = threading.Lock()

        def tell_complete():
            if complete.acquire(blocking=False):
                stream.complete(began)

        if self.used:
            tell_complete()
        timer = threading.Timer(FIRST_IDLE, tell_complete)
        timer.start()
        self.used = True
        for message in self.messages(code):
            tell_message(stream, message)
        timer.cancel()
        tell_complete()

    def interrupt(self):
        os.killpg(self.process.pid, signal.SIGINT)

    def close(self):
        self.process.kill()
        self.process.wait()


def tell_message(stream, message):
    if "stream" in message:
        stream.event(message["stream"], text=message["text"])
    elif "error" in message:
        stream.event("status", text="error")
        stream.event("error", error=message["error"])
    elif "result" in message:
        stream.event("execution_count", execution_count=message["count"])
        renamed = {"text" if kind == "text/plain" else kind: value
                   for kind, value in message["result"].items()}
        stream.event("result", results=renamed)


def hang(exchange):
    """Until the client has enough."""
    while not exchange.connection.gone():
        time.sleep(0.05)
    raise Broken("the client left")


class Contexts:
    """The contexts, and one more for each language that nobody named one for."""

    def __init__(self, commands):
        self.all, self.defaults = {}, {}
        self.commands = commands
        self.lock = threading.Lock()

    def create(self, exchange):
        request = body_of(exchange, "error parsing request, MAYBE invalid body format.")
        language = request.get("language", "")
        cwd = working_directory(request, "invalid request, validation error")
        if language not in WITH_KERNEL:
            hang(exchange)
        context = Context(language, cwd)
        self.all[context.id] = context
        answer = {"id": context.id, "language": language}
        if cwd:
            answer["cwd"] = cwd
        exchange.json(200, answer)

    def find(self, name):
        context = self.all.get(name)
        if not context:
            raise Refused(404, "CONTEXT_NOT_FOUND", f"context {name} not found")
        return context

    def get(self, exchange, name):
        exchange.json(200, {"id": name, "language": self.find(name).language})

    def list(self, exchange):
        language = exchange.param("language")
        if language in ("sql", "command", "background-command"):
            raise runtime_error(f"unsupported language context operation: {language}")
        exchange.json(200, [{"id": context.id, "language": context.language}
                            for context in list(self.all.values())
                            if language in ("", context.language)])

    def delete(self, exchange, name):
        self.find(name).close()
        self.forget(name)
        exchange.answer(200)

    def forget(self, name):
        del self.all[name]
        self.defaults = {key: value for key, value in self.defaults.items() if value.id != name}

    def delete_language(self, exchange):
        language = exchange.param("language")
        if not language:
            raise Refused(400, "MISSING_QUERY", "missing query parameter 'language'")
        for context in [value for value in self.all.values() if value.language == language]:
            context.close()
            self.forget(context.id)
        exchange.answer(200)

    def run(self, exchange):
        request = body_of(exchange, "error parsing request, MAYBE invalid body format.")
        if not request.get("code"):
            raise bad_request("invalid request, validation error Key: 'RunCodeRequest.Code' "
                              "Error:Field validation for 'Code' failed on the 'required' tag")
        wanted = request.get("context") or {}
        language = wanted.get("language") or ("" if not wanted.get("id") else "python")
        stream = Stream(exchange)
        if language in ("", "command", "background-command"):
            self.run_command(stream, request["code"], language)
        elif language == "sql":
            self.run_sql(stream)
        else:
            self.run_kernel(stream, request["code"], wanted.get("id"), language)
        stream.end()

    def run_command(self, stream, text, language):
        command = Command({"command": text, "background": language == "background-command"})
        if command.background:
            self.commands.behind(command, stream, None)
        else:
            self.commands.in_front(command, stream, None)

    @staticmethod
    def run_sql(stream):
        """There is no database, as in most sandboxes."""
        reason = "dial tcp 127.0.0.1:3306: connect: connection refused"
        stream.init(str(uuid.uuid4()))
        stream.event("error", error={"ename": "DBInitError", "evalue": reason, "traceback": None})
        stream.refuse(runtime_error(f"error running codes {reason}"))

    def run_kernel(self, stream, code, name, language):
        if language not in JUPYTER:
            raise runtime_error(f"error running codes unknown language: {language}")
        if language not in WITH_KERNEL:
            hang(stream.exchange)
        context = self.all.get(name) if name else self.default(language)
        if not context:
            raise runtime_error("error running codes context not found")
        if not context.busy.acquire(blocking=False):
            stream.event("init", text=context.id)
            stream.refuse(runtime_error("error running codes session is busy"))
            return
        try:
            stream.init(context.id)
            context.run(stream, code)
        finally:
            context.busy.release()

    def default(self, language):
        with self.lock:
            if language not in self.defaults:
                context = self.defaults[language] = Context(language)
                self.all[context.id] = context
            return self.defaults[language]
