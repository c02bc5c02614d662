"""One sandbox of the fake: a directory as its root, and an execd in a bubblewrap on top of it.

The processes in it have a process table of their own and end with the fake, however that ends.
"""

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
INSIDE = "/opt/opensandbox"
MADE = ("tmp", "root", "home", "run", "var", "workspace", "mnt", "opt", "srv", "proc", "dev", "sys")
# A child that is to die with its parent dies with the thread that made it: one that stays does.
spawner = ThreadPoolExecutor(max_workers=1)


def host_mounts(root):
    """The host's programs, read-only."""
    argv = []
    for name in ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc"):
        path = "/" + name
        if os.path.islink(path):
            link = os.path.join(root, name)
            os.path.lexists(link) or os.symlink(os.readlink(path), link)
        elif os.path.isdir(path):
            os.makedirs(os.path.join(root, name), exist_ok=True)
            argv += ["--ro-bind", path, path]
    return argv


def descendants(pid):
    """The processes below one, as the host numbers them."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                for child in map(int, file.read().split()):
                    found += [child, *descendants(child)]
        except OSError:
            pass # it has just ended
    return found


class Box:
    """The running half of a sandbox."""

    def __init__(self, root, token, env, entrypoint, mounts):
        self.root = root
        for name in MADE:
            os.makedirs(os.path.join(root, name), exist_ok=True)
        os.chmod(os.path.join(root, "tmp"), 0o1777)
        self.socket = os.path.join(root, "run", "execd.sock")
        if os.path.exists(self.socket):
            os.remove(self.socket)
        argv = ["bwrap", "--bind", root, "/", *host_mounts(root), "--ro-bind", HERE, INSIDE,
                "--proc", "/proc", "--dev", "/dev", "--unshare-pid", "--die-with-parent",
                "--new-session", "--clearenv", "--chdir", "/"]
        if os.geteuid() != 0:
            argv += ["--unshare-user", "--uid", "0", "--gid", "0", "--cap-add", "ALL"]
        for kind, source, target in mounts:
            os.makedirs(root + target, exist_ok=True)
            argv += [kind, source, target]
        plain = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                 "HOME": "/root", "HOSTNAME": os.path.basename(root), "LANG": "C.UTF-8"}
        for name, value in {**plain, **env}.items():
            argv += ["--setenv", name, value]
        argv += ["/usr/bin/python3", "-ISB", f"{INSIDE}/execd.py", "/run/execd.sock", token,
                 *entrypoint]
        self.process = spawner.submit(subprocess.Popen, argv, stdin=subprocess.DEVNULL,
                                      start_new_session=True).result()
        self.stopped = []

    def connect(self):
        """A connection to its execd. An OSError while that does not listen."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(self.socket)
        except OSError:
            sock.close()
            raise
        return sock

    def pause(self):
        """Stops all that runs in it, also what is being started meanwhile."""
        while True:
            new = [pid for pid in descendants(self.process.pid) if pid not in self.stopped]
            if not new:
                return
            for pid in new:
                try:
                    os.kill(pid, signal.SIGSTOP)
                except ProcessLookupError:
                    pass
            self.stopped += new

    def resume(self):
        for pid in self.stopped:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass
        self.stopped = []

    def wait(self):
        """Until its entry point has ended: the exit code."""
        return self.process.wait()

    def kill(self):
        """Ends all that runs in it."""
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + 2
        while os.path.exists(self.socket) and time.monotonic() < deadline:
            try:
                self.connect().close() # its processes end a moment after their parent
                time.sleep(0.002)
            except OSError:
                return

    def remove(self):
        """Takes its files away."""
        for _ in range(3):
            shutil.rmtree(self.root, ignore_errors=True)
            if not os.path.exists(self.root):
                return
            time.sleep(0.02)


def copy_root(source, target):
    """The files of a sandbox for a snapshot, as they are; sockets and what is mounted are not."""
    def leave(directory, names):
        return [name for name in names
                if os.path.join(directory, name) == os.path.join(source, "run", "execd.sock")]
    shutil.copytree(source, target, symlinks=True, ignore=leave, dirs_exist_ok=True)


def after(seconds, fn):
    """Calls fn later, unless the timer that is returned is cancelled."""
    timer = threading.Timer(seconds, fn)
    timer.daemon = True
    timer.start()
    return timer
