#!/usr/bin/env python3
"""Control a program on a terminal: read its output, type, resize the terminal and interrupt the program."""

from __future__ import annotations

import os

from common import expect, place

import ociruntime as oci

SCRIPT = """
trap 'stty size' WINCH
trap 'echo interrupted; exit 7' INT
stty -echo; tty; read word; echo hello $word
while :; do sleep 0.05; done
"""


def main() -> None:
    with place() as (rootfs, state):
        bundle = oci.Bundle.from_dir(rootfs.parent).with_args(["sh", "-c", SCRIPT])
        with oci.Container.run(f"terminal-{os.getpid()}", bundle, state_root=state, terminal=True) as container:
            terminal = container.terminal
            expect(terminal.readline(), b"/dev/pts/0\r\n")
            terminal.write(b"world\n")
            expect(terminal.readline(), b"hello world\r\n")
            terminal.resize(40, 120)
            expect(terminal.readline(), b"40 120\r\n")
            result = container.exec(["sh", "-c", "tty; cat"], terminal=True, capture_output=True, input="typed\n", text=True)
            print(result.stdout, end="")  # a separate terminal, which echoes the input
            terminal.write(b"\x03")  # ^C
            print(terminal.readall().decode(), end="")
            expect(container.wait(30), 7)
        expect(oci.Container.list(state_root=state), [])


if __name__ == "__main__":
    main()
