#!/usr/bin/env python3
"""console.py SOCKET COMMAND...: runs a command in the guest by its second serial line; its output and status."""
import base64
import fcntl
import os
import re
import shlex
import socket
import sys

PATIENCE = 120
path, *command = sys.argv[1:]
name = os.urandom(6).hex()
with open(path + ".lock", "w") as lock, socket.socket(socket.AF_UNIX) as line:
    # The guest takes one at a time.
    fcntl.flock(lock, fcntl.LOCK_EX)
    line.settimeout(PATIENCE)
    line.connect(path)
    line.sendall(f"{name} {shlex.join(command)}\n".encode())
    said = b""
    while not (end := re.search(rb"BEGIN %s\s(.*?)END %s (\d+)" % ((name.encode(),) * 2), said, re.S)):
        try:
            some = line.recv(65536)
        except TimeoutError:
            sys.exit(f"console: no answer of the guest within {PATIENCE} s to: {shlex.join(command)}")
        if not some:
            sys.exit("console: the guest is gone")
        said += some
sys.stdout.buffer.write(base64.b64decode(end[1]))
sys.exit(int(end[2]))
