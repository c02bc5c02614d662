#!/usr/bin/python3
"""A fake OpenSandbox: lifecycle server, gateway and, in each sandbox, an execution daemon.

    python3 fake.py [--key KEY] [--ingress uri|header] [--no-execd-token]

Listens on 127.0.0.1, says where in one line of JSON on stdout, and ends when its stdin is closed,
leaving no process and no file. What it runs is real; what isolates it is not a promise.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading

sys.dont_write_bytecode = True

from gateway import Gateway
from http11 import serve
from lifecycle import Lifecycle


def arguments():
    parser = argparse.ArgumentParser(description="a fake OpenSandbox for specs")
    parser.add_argument("--key", default="fake-key", help="what clients must show")
    parser.add_argument("--ingress", choices=("uri", "header"), default="uri",
                        help="how a sandbox's ports are reached")
    parser.add_argument("--no-execd-token", action="store_true",
                        help="the daemons want no token, as the real server has it")
    return parser.parse_args()


def listen():
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    return sock


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: os.close(0))
    directory = tempfile.mkdtemp(prefix="opensandbox-")
    listener, refusing = listen(), listen() # the second never listens: connections are refused
    listener.listen(512)
    address = "127.0.0.1:%d" % listener.getsockname()[1]
    lifecycle = Lifecycle(directory, address, options.ingress, not options.no_execd_token)
    gateway = Gateway(lifecycle, options.key)
    threading.Thread(target=serve, args=(listener, gateway.handle), daemon=True).start()
    print(json.dumps({"port": listener.getsockname()[1], "domain": address, "key": options.key,
                      "refused_port": refusing.getsockname()[1], "directory": directory,
                      "pid": os.getpid()}), flush=True)
    try:
        while os.read(0, 4096):
            pass
    except (OSError, KeyboardInterrupt):
        pass
    listener.close()
    lifecycle.stop()
    shutil.rmtree(directory, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    main()
