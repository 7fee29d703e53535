"""A program in place of criu: it does as a scenario says, over the protocol of criu, and restores a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

PROGRAM = '''\
import contextlib, ctypes, os, signal, socket, sys

SCENARIO = {scenario!r}
CLONE_PARENT, SYS_CLONE = 0x8000, {{"x86_64": 56, "aarch64": 220}}[os.uname().machine]

def varint(value):
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)

def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value

def fields(data):
    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte, at = data[at], at + 1
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value
    at, found = 0, {{}}
    while at < len(data):
        tag, value = number(), number()
        if tag & 7:
            value, at = data[at:at + value], at + value
        found.setdefault(tag >> 3, []).append(value)
    return found

assert sys.argv[1] == "swrk"
peer = socket.socket(fileno=int(sys.argv[2]))
request = fields(peer.recv(1 << 20))
kind, options = request[1][0], fields(request[2][0])
work = f"/proc/{{os.getppid()}}/fd/{{options[17][0]}}"

def log(*lines):
    with open(work + "/" + options[10][0].decode(), "w") as file:
        file.writelines(line + "\\n" for line in lines)

def reply(*parts):
    return b"".join(field(*part) for part in parts)

def notify(event, fds=()):
    message = reply((1, 6), (2, 1), (5, field(1, event)))
    socket.send_fds(peer, [message], fds) if fds else peer.send(message)
    answer = fields(peer.recv(1 << 16))
    assert answer == {{1: [6], 3: [1]}}, answer

def restore(program):
    """Run a function in a new child of the caller."""
    pid = ctypes.CDLL(None).syscall(SYS_CLONE, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        peer.close()
        program()
        os._exit(0)
    return pid

def echo():
    os.close(master)
    with open(terminal, "r+b", 0) as file, contextlib.suppress(OSError):  # a hang-up
        while data := file.read(100):
            file.write(b"<" + data.strip() + b">")

exec(SCENARIO)
'''
"""What a scenario can use, and its place at the end."""


def write_criu(directory: Path, scenario: str) -> None:
    """Write a program ``criu`` that follows a scenario, as Python code.

    Args:
        directory: where, which comes first in $PATH.
    """
    directory.mkdir(exist_ok=True)
    program = directory / "criu"
    program.write_text(f"#!{sys.executable} -P\n{PROGRAM.format(scenario=scenario)}")
    program.chmod(0o755)
