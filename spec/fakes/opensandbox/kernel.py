"""A Python kernel: takes a line of JSON with code, writes lines of JSON with what came of it.

Runs as a process of its own, so that it can be interrupted, and so that its state is its own.
"""

import ast
import builtins
import json
import os
import signal
import sys
import threading
import traceback

out = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
nothing = os.open(os.devnull, os.O_RDWR)
os.dup2(nothing, 1)
os.dup2(nothing, 2)
lock = threading.RLock()


def tell(value):
    with lock:
        out.write(json.dumps(value) + "\n")
        out.flush()


class StdinNotImplementedError(RuntimeError):
    """There is nobody to ask."""


class Writer:
    """sys.stdout and sys.stderr: told in pieces, in the order in which they were written."""

    encoding = "utf-8"

    def __init__(self, name):
        self.name = name
        self.parts = []
        self.other = None

    def write(self, text):
        with lock:
            self.other.flush()
            self.parts.append(text)
        return len(text)

    def flush(self):
        with lock:
            if self.parts:
                tell({"stream": self.name, "text": "".join(self.parts)})
                self.parts = []

    def flush_lines(self):
        """Not between a print's text and its end."""
        with lock:
            if self.parts and self.parts[-1].endswith("\n"):
                self.flush()

    def isatty(self):
        return False

    def writable(self):
        return True


def no_input(prompt=""):
    raise StdinNotImplementedError(
        "raw_input was called, but this frontend does not support input requests.")


def evaluate(code, scope):
    """Runs code; the value of a last expression, if there is one."""
    tree = ast.parse(code, "<cell>")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), scope)
    if last is not None:
        return eval(compile(ast.Expression(last.value), "<cell>", "eval"), scope)
    return None


def run(code, scope, count):
    try:
        value = evaluate(code, scope)
        flush()
        if value is not None:
            scope["_"] = value
            tell({"count": count, "result": {"text/plain": repr(value)}})
        else:
            tell({"count": count})
    except BaseException as error: # SystemExit and KeyboardInterrupt end a cell, not the kernel
        flush()
        lines = ["-" * 75] + traceback.format_exc().splitlines()
        tell({"error": {"ename": type(error).__name__, "evalue": str(error), "traceback": lines}})


def flush():
    sys.stdout.flush()
    sys.stderr.flush()


def main():
    sys.stdout, sys.stderr = Writer("stdout"), Writer("stderr")
    sys.stdout.other, sys.stderr.other = sys.stderr, sys.stdout
    builtins.input = no_input
    scope = {"__name__": "__main__", "__builtins__": builtins}
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(nothing, 0)

    def keep_flushing():
        while not threading.Event().wait(0.05):
            sys.stdout.flush_lines()
            sys.stderr.flush_lines()

    threading.Thread(target=keep_flushing, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tell({"done": True})
    for count, line in enumerate(requests, 1):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            run(json.loads(line)["code"], scope, count)
        except KeyboardInterrupt:
            pass
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        tell({"done": True})


main()
