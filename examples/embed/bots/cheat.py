# Wants what is not allowed: other people's files, a network, more processes than there may be.
import os
import signal
import socket
import sys


def steal():
    open("/etc/shadow").read()


def call_home():
    socket.create_connection(("192.0.2.1", 80), 1)


def multiply():
    while True:
        if os.fork() == 0:
            signal.pause()


for turn, line in enumerate(sys.stdin):
    try:
        (steal, call_home, multiply)[turn % 3]()
        print("TELEPORT 1 1", flush=True)
    except OSError:
        print("N", flush=True)
