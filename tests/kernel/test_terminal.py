"""Terminals: as a Python file, on the command line, over a console socket (config.md#process, terminal and consoleSize)."""

from __future__ import annotations

import array
import os
import signal
import socket
import subprocess
import sys
import termios
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci

from ..support.fixture_types import Command, MakeBundle, Script
from ..support.terminals import in_foreground
from ..support.users import FIRST_ID, give, with_user_namespace
from ..support.waiting import TIME_LIMIT, timed_out_with_output, wait_until

pytestmark = pytest.mark.root


def read_all(terminal: oci.Terminal) -> str:
    out = b""
    while data := terminal.read(4096):
        out += data
    return out.decode()


def nothing_left(root: Path) -> None:
    wait_until(lambda: oci.Container.list(state_root=root) == [], "the end of the container")


# ---- in Python ----


def test_the_terminal_is_a_file(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    args = ["sh", "-c", "tty; stat -c %t:%u /dev/console; read x; stty size; echo got $x; exit 3"]
    with oci.Container.create(prefix, bundle.with_args(args), state_root=state_root, terminal=True) as container:
        terminal = container.terminal
        assert terminal is not None
        terminal.resize(33, 101)
        assert terminal.size == (33, 101)
        container.start()
        assert (terminal.readline(), terminal.readline()) == (b"/dev/pts/0\r\n", b"88:0\r\n")
        terminal.write(b"words\n")
        assert read_all(terminal) == "words\r\n33 101\r\ngot words\r\n"
        assert container.wait(TIME_LIMIT) == 3
    assert terminal.closed
    with pytest.raises(ValueError, match="closed"):
        terminal.fileno()


def test_the_size_of_the_config_and_its_change(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    document = oci.RuntimeSpec.default().to_dict()
    script = "trap 'stty size; exit 7' WINCH; stty size; while :; do sleep 0.05; done"
    document["process"].update(args=["sh", "-c", script], terminal=True, consoleSize={"height": 11, "width": 22})  # type: ignore[index, attr-defined]
    with oci.Container.run(prefix, make_bundle(oci.RuntimeSpec.load(document)), state_root=state_root, terminal=True) as container:
        assert container.terminal is not None
        assert container.terminal.readline() == b"11 22\r\n"
        container.terminal.resize(12, 34)
        assert read_all(container.terminal) == "12 34\r\n"
        assert container.wait(TIME_LIMIT) == 7


def test_exec_with_a_terminal(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        with container.popen(["sh", "-c", "test -t 0 && test -t 1 && test -t 2 && tty"], terminal=True) as child:
            assert child.terminal is not None
            assert read_all(child.terminal) == "/dev/pts/0\r\n"
            assert child.wait(TIME_LIMIT) == 0
        with container.popen(["true"]) as child:
            assert child.terminal is None


def test_exec_that_captures_a_terminal(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        script = ["sh", "-c", "stty -echo; tty; cat; tty -s 0>&2 && echo err >&2; exit 3"]
        for typed in ("", "line\n", "no end"):
            result = container.exec(script, terminal=True, capture_output=True, input=typed, text=True)
            assert (result.returncode, result.stderr) == (3, "")
            assert typed in result.stdout  # and perhaps its echo
            assert result.stdout.replace(typed, "") == "/dev/pts/0\nerr\n"
        assert (
            container.exec(["tty"], process={"args": [], "cwd": "/", "terminal": True}, capture_output=True).stdout
            == b"/dev/pts/0\r\n"
        )
        script = ["sh", "-c", "echo early; sleep 100"]
        late = timed_out_with_output(lambda limit: container.exec(script, terminal=True, capture_output=True, timeout=limit))
        assert late.stdout == b"early\r\n"
        big = container.exec(["seq", "20000"], terminal=True, capture_output=True, text=True)
        assert big.stdout.split() == [str(n) for n in range(1, 20001)]
        for wrong in (
            {"stdout": subprocess.PIPE}, {"stderr": subprocess.DEVNULL}, {"input": b"x"}, {"timeout": 1}, {"input": "x", "capture_output": True}
        ):  # fmt: skip
            with pytest.raises((ValueError, TypeError)):
                container.exec(["true"], terminal=True, **wrong)  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="conflict with a terminal"):
            container.popen(["true"], terminal=True, stdout=subprocess.PIPE)
        assert len(container.processes()) == 1


def test_exec_from_python_on_our_terminal(bundle: oci.Bundle, state_root: Path, prefix: str, session) -> None:
    text = """import sys, ociruntime as oci
container = oci.Container.load(sys.argv[1], state_root=sys.argv[2])
print("code", container.exec(["sh"], terminal=True, env={"PS1": "$ "}).returncode)"""
    with oci.Container.run(prefix, bundle, state_root=state_root):
        tty = session(sys.executable, "-P", "-c", text, prefix, state_root, size=(21, 66))
        tty.expect("$ ")
        assert not tty.restored
        tty.type("stty size; exit 8\r")
        tty.expect("21 66\r\n")
        tty.expect("code 8\r\n")
        assert tty.wait() == 0
        assert tty.restored


def test_a_terminal_without_a_taker_is_refused(shell: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path) -> None:
    with pytest.raises(oci.UnsupportedError, match=r"\$\.process\.terminal.*console_socket"):
        oci.Container.create(prefix, shell, state_root=state_root)
    with pytest.raises(oci.UnsupportedError, match="console_socket is given"):
        oci.Container.create(prefix, shell, state_root=state_root, terminal=False, console_socket=tmp_path / "no")
    with pytest.raises(FileNotFoundError):
        oci.Container.create(prefix, shell, state_root=state_root, console_socket=tmp_path / "no")
    assert oci.Container.list(state_root=state_root) == []


def _console(path: Path, kind: str) -> None:
    path.parent.mkdir(exist_ok=True)
    if kind == "link":
        path.symlink_to("../etc/passwd")
    elif kind == "dangling":
        path.symlink_to("/etc/made")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "file":
        path.write_text("")


def with_terminal(*, user: bool, script: str = "true", uid: int = 0) -> dict[str, Any]:
    """A config whose process has a terminal, with or without a user namespace."""
    spec = oci.RuntimeSpec.default()
    document: dict[str, Any] = (with_user_namespace(spec) if user else spec).to_dict()
    document["process"].update(args=["sh", "-c", script], terminal=True, user={"uid": uid, "gid": uid})
    return document


def bundle_of(make: MakeBundle, document: dict[str, Any]) -> oci.Bundle:
    """A bundle whose root filesystem belongs to root of the container."""
    bundle = make(oci.RuntimeSpec.load(document))
    return give(bundle, FIRST_ID) if "uidMappings" in document["linux"] else bundle


@pytest.mark.parametrize("user", [False, True], ids=["root", "user"])
@pytest.mark.parametrize("kind", ["none", "file", "link", "dangling", "directory", "fifo"])
def test_what_the_image_has_as_dev_console(make_bundle: MakeBundle, state_root: Path, prefix: str, kind: str, user: bool) -> None:
    document = with_terminal(user=user, script="echo con > /dev/console")
    document["mounts"] = [m for m in document["mounts"] if m["destination"] not in ("/dev", "/dev/shm", "/dev/mqueue")]
    bundle = bundle_of(make_bundle, document)
    _console(bundle.path / "rootfs/dev/console", kind)
    if user:
        os.chown(bundle.path / "rootfs/dev", 100000, 100000)
    passwd = (bundle.path / "rootfs/etc/passwd").read_text()
    if kind in ("none", "file"):
        with oci.Container.run(prefix, bundle, state_root=state_root, terminal=True) as container:
            assert container.terminal is not None
            assert read_all(container.terminal) == "con\r\n"
    else:
        with pytest.raises(oci.StepError, match="/dev/console") as caught:
            oci.Container.run(prefix, bundle, state_root=state_root, terminal=True)
        assert caught.value.op == "console"
    assert (bundle.path / "rootfs/etc/passwd").read_text() == passwd
    assert not (bundle.path / "rootfs/etc/made").exists()


@pytest.mark.parametrize("user", [False, True], ids=["root", "user"])
def test_dev_pts_must_be_a_devpts(make_bundle: MakeBundle, state_root: Path, prefix: str, user: bool) -> None:
    document = with_terminal(user=user)
    for mount in document["mounts"]:
        if mount["destination"] == "/dev/pts":
            mount.update(type="tmpfs", source="tmpfs", options=[])
    with pytest.raises(oci.StepError, match="console"):
        oci.Container.run(prefix, bundle_of(make_bundle, document), state_root=state_root, terminal=True)
    assert oci.Container.list(state_root=state_root) == []


@pytest.mark.parametrize("supervise", [False, True])
@pytest.mark.parametrize("user", [False, True], ids=["root", "user"])
def test_whose_the_terminal_is(make_bundle: MakeBundle, state_root: Path, prefix: str, user: bool, supervise: bool) -> None:
    """The process's user opens it by every name; exec has one of its own, and leaves /dev/console as it is."""
    script = (
        "stat -c '%u %t' /dev/console $(tty); for f in /dev/console /dev/tty $(tty) /dev/stdout; do echo $f > $f; done; sleep 100"
    )
    bundle = bundle_of(make_bundle, with_terminal(user=user, script=script, uid=1234))
    own = "1234 88\r\n1234 88\r\n/dev/console\r\n/dev/tty\r\n/dev/pts/0\r\n/dev/stdout\r\n"
    options = {"supervise": True} if supervise else {"terminal": True}
    with oci.Container.create(prefix, bundle, state_root=state_root, **options) as container, ExitStack() as stack:  # type: ignore[arg-type]
        stream = stack.enter_context(container.attach()) if supervise else container.terminal
        assert stream is not None
        container.start()
        assert "".join(stream.readline().decode() for _ in range(6)) == own
        other = container.exec(
            ["sh", "-c", "tty; stat -c %u $(tty); echo x > $(tty)"], terminal=True, capture_output=True, user=(77, 77)
        )
        assert other.stdout == b"/dev/pts/1\r\n77\r\nx\r\n"
        container.exec(["sh", "-c", "echo mine > /dev/console"])
        assert stream.readline() == b"mine\r\n"


# ---- over a console socket ----


def test_the_console_socket_gets_the_master(
    shell: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path, command: Command
) -> None:
    (shell.path / "config.json").write_text(shell.with_args(["sh", "-c", "tty; exit 4"]).spec.to_json())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "console"))
        listener.listen()
        with subprocess.Popen(command("run", "-b", shell.path, "--console-socket", tmp_path / "console", prefix)) as process:
            listener.settimeout(TIME_LIMIT)
            peer, _ = listener.accept()
            with peer:
                data, ancillary, _, _ = peer.recvmsg(100, socket.CMSG_SPACE(4))
            with oci.Terminal(array.array("i", ancillary[0][2])[0]) as terminal:
                assert data
                assert read_all(terminal) == "/dev/pts/0\r\n"
            assert process.wait(TIME_LIMIT) == 4


# ---- on the command line ----


def test_an_interactive_run(shell: oci.Bundle, state_root: Path, prefix: str, session, command: Command) -> None:
    tty = session(*command("run", "-it", "-b", shell.path, prefix), size=(31, 97))
    tty.expect("$ ")
    assert not tty.restored
    tty.type("stty size; tty\r")
    tty.expect("31 97\r\n/dev/pts/0\r\n$ ")
    tty.type("exit 5\r")
    assert tty.wait() == 5
    assert tty.restored
    nothing_left(state_root)


def test_job_control_in_the_shell(shell: oci.Bundle, state_root: Path, prefix: str, session, command: Command) -> None:
    tty = session(*command("run", "-it", "-b", shell.path, prefix))
    tty.expect("$ ")
    assert "can't access tty" not in tty.seen.decode()
    container = oci.Container.load(prefix, state_root=state_root)
    tty.type("sleep 100\r")
    wait_until(lambda: in_foreground(container), "a job in the foreground")
    tty.type("\x1a")
    tty.expect("Stopped")
    tty.expect("$ ")
    tty.type("jobs; bg\r")
    tty.expect("Stopped")
    tty.expect("sleep 100\r\n$ ")
    tty.type("fg\r")
    wait_until(lambda: in_foreground(container), "a job in the foreground")
    tty.type("\x03")
    tty.expect("$ ")
    tty.type("echo code $?\r")
    tty.expect("code 130")
    tty.expect("$ ")
    tty.type("exit 7\r")
    assert tty.wait() == 7


def test_the_size_follows(shell: oci.Bundle, state_root: Path, prefix: str, session, command: Command) -> None:
    script = "trap 'stty size' WINCH; trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    (shell.path / "config.json").write_text(shell.with_args(["sh", "-c", script]).spec.to_json())
    tty = session(*command("run", "-t", "-b", shell.path, prefix))
    tty.expect("ready")
    for size in ((41, 55), (42, 56)):
        tty.resize(*size)
        tty.expect("{} {}\r\n".format(*size))
    tty.process.terminate()
    assert tty.wait() == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGRTMIN + 3])
def test_signals_are_forwarded(shell: oci.Bundle, state_root: Path, prefix: str, session, command: Command, number: int) -> None:
    script = f"trap 'echo caught; exit 9' {int(number)}; echo ready; while :; do sleep 0.05; done"
    (shell.path / "config.json").write_text(shell.with_args(["sh", "-c", script]).spec.to_json())
    tty = session(*command("run", "-b", shell.path, prefix))
    tty.expect("ready")
    tty.process.send_signal(number)
    tty.expect("caught")
    assert tty.wait() == 9
    assert tty.restored
    nothing_left(state_root)


def test_a_container_killed_by_a_signal(shell: oci.Bundle, state_root: Path, prefix: str, session, command: Command) -> None:
    tty = session(*command("run", "-b", shell.path, prefix))
    tty.expect("$ ")
    oci.Container.load(prefix, state_root=state_root).kill("KILL")
    assert tty.wait() == 128 + 9
    assert tty.restored
    nothing_left(state_root)


def test_control_keys_of_a_run_without_terminal(
    make_bundle: MakeBundle, state_root: Path, prefix: str, session, command: Command
) -> None:
    bundle = make_bundle().with_args(["sh", "-c", "trap 'echo caught; exit 6' INT; echo ready; while :; do sleep 0.05; done"])
    (bundle.path / "config.json").write_text(bundle.spec.to_json())
    tty = session(*command("run", "-b", bundle.path, prefix))
    tty.expect("ready")
    tty.type("\x03")
    tty.expect("caught")
    assert tty.wait() == 6
    nothing_left(state_root)


def test_exec_on_the_command_line(bundle: oci.Bundle, state_root: Path, prefix: str, session, command: Command) -> None:
    with oci.Container.run(prefix, bundle, state_root=state_root):
        tty = session(*command("exec", "-t", "-e", "PS1=$ ", prefix, "sh"), size=(20, 70))
        tty.expect("$ ")
        assert not tty.restored
        tty.type("stty size; tty\r")
        tty.expect("20 70\r\n/dev/pts/0\r\n$ ")
        tty.type("exit 8\r")
        assert tty.wait() == 8
        assert tty.restored


def test_much_output_comes_whole(bundle: oci.Bundle, state_root: Path, prefix: str, session, command: Command) -> None:
    with oci.Container.run(prefix, bundle, state_root=state_root):
        tty = session(*command("exec", "-t", prefix, "sh", "-c", "seq 20000; echo done"))
        printed = tty.expect("done\r\n", timeout=60)
        assert printed.split() == [str(n) for n in range(1, 20001)]
        assert tty.wait() == 0


def test_a_program_that_does_not_read_is_heard_all_the_same(
    bundle: oci.Bundle, state_root: Path, prefix: str, command: Command
) -> None:
    with oci.Container.run(prefix, bundle, state_root=state_root):
        done = subprocess.run(
            command("exec", "-t", prefix, "sh", "-c", "stty raw -echo; seq 5000"),
            input=b"x" * 100_000, capture_output=True, timeout=TIME_LIMIT, check=True,
        )  # fmt: skip
        assert done.stdout.count(b"\n") == 5000


def test_the_terminal_is_restored_after_an_error(
    shell: oci.Bundle, state_root: Path, prefix: str, session, command: Command
) -> None:
    (shell.path / "config.json").write_text(shell.with_args(["nothing-of-the-kind"]).spec.to_json())
    tty = session(*command("run", "-t", "-b", shell.path, prefix))
    assert tty.wait() == 127
    assert tty.restored
    assert termios.tcgetattr(tty.slave)[3] & termios.ECHO
    assert oci.Container.list(state_root=state_root) == []


@pytest.mark.parametrize("verb", ["run", "exec"])
def test_a_hang_up_is_passed_on(bundle: oci.Bundle, state_root: Path, prefix: str, session, command: Command, verb: str) -> None:
    """Closing the window ends the shell inside, as it would outside."""
    script = "sh -i; echo the shell has ended > /ended"
    (bundle.path / "config.json").write_text(
        bundle.with_args(["sh", "-c", "sleep 100" if verb == "exec" else script]).spec.to_json()
    )
    if verb == "exec":
        with oci.Container.run(prefix, oci.Bundle.load(bundle.path), state_root=state_root):
            tty = session(*command("exec", "-it", prefix, "sh", "-c", script))
            tty.expect("# ")
            tty.hang_up()
            tty.process.wait(TIME_LIMIT)
            wait_until(lambda: len(oci.Container.load(prefix, state_root=state_root).processes()) == 1, "the end of the shell")
    else:
        tty = session(*command("run", "-it", "-b", bundle.path, prefix))
        tty.expect("# ")
        tty.hang_up()
        tty.process.wait(TIME_LIMIT)
        nothing_left(state_root)


def test_stopping_and_going_on(shell: oci.Bundle, state_root: Path, prefix: str, session, command: Command) -> None:
    """A command that is stopped gives the terminal back as it was, and takes it again."""
    tty = session(*command("run", "-it", "-b", shell.path, prefix), size=(31, 97))
    tty.expect("$ ")
    stat = Path(f"/proc/{tty.process.pid}/stat")
    tty.process.send_signal(signal.SIGTSTP)
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the stop")
    assert tty.restored
    tty.process.send_signal(signal.SIGCONT)
    wait_until(lambda: not tty.restored, "raw mode")
    tty.type("exit 5\r")
    assert tty.wait() == 5
    assert tty.restored


@pytest.mark.parametrize("typed", ["", "line\n", "no newline"])
def test_input_that_ends_anywhere(bundle: oci.Bundle, state_root: Path, prefix: str, command: Command, typed: str) -> None:
    with oci.Container.run(prefix, bundle, state_root=state_root):
        words = command("exec", "-t", prefix, "sh", "-c", "stty -echo; cat; exit 6")
        done = subprocess.run(words, input=typed, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
        assert done.returncode == 6
        assert typed.strip() in done.stdout


def test_what_survives_on_the_terminal_is_not_waited_for(
    make_bundle: MakeBundle, state_root: Path, prefix: str, command: Command
) -> None:
    spec = oci.RuntimeSpec.default().without_namespace(oci.spec.NamespaceType.PID)
    bundle = make_bundle(spec.with_args(["sh", "-c", "trap '' HUP; yes & exit 3"]))
    words = command("run", "-t", "-b", bundle.path, prefix)
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=TIME_LIMIT, check=False)
    assert done.returncode == 3
    assert oci.Container.list(state_root=state_root) == []


def test_a_container_that_is_killed_under_a_further_shell(
    bundle: oci.Bundle, state_root: Path, prefix: str, session, command: Command
) -> None:
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        tty = session(*command("exec", "-it", "-e", "PS1=$ ", prefix, "sh"))
        tty.expect("$ ")
        container.kill("KILL")
        assert tty.wait() == 128 + 9
        assert tty.restored


IN_A_KERNEL = """
import sys, threading, types
import ociruntime as oci
from ociruntime.cli import main

state, identity, bundle = sys.argv[1:]
container = oci.Container.load(identity, state_root=state)
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: shell)
for shell in (None, types.SimpleNamespace()):  # a program that imports IPython, and IPython in a terminal
    assert container.exec(["sh", "-c", "exit 3"], terminal=True).returncode == 3
shell = types.SimpleNamespace(kernel=object())
try:
    container.exec(["sh"], terminal=True)
except oci.UnsupportedError as error:
    assert "Jupyter kernel" in str(error) and "popen(terminal=True)" in str(error), error
else:
    raise AssertionError("it was executed")
assert container.exec(["tty"], terminal=True, capture_output=True, text=True).stdout.startswith("/dev/pts/")
with container.popen(["tty"], terminal=True) as process:
    assert process.terminal.read(4) == b"/dev"
assert main(["--root", state, "exec", "-t", identity, "sh"]) == 255
assert main(["--root", state, "run", "-t", "-b", bundle, identity + "-2"]) == 1
assert len(container.processes()) == 1
assert len(oci.Container.list(state_root=state)) == 1

del sys.modules["IPython"]
errors = []


def execute():
    try:
        container.exec(["sh"], terminal=True)
    except ValueError as error:
        errors.append(str(error))


thread = threading.Thread(target=execute)
thread.start()
thread.join()
assert errors and "needs the main thread" in errors[0], errors
assert len(container.processes()) == 1
"""


def test_in_a_jupyter_kernel_and_in_a_thread(bundle: oci.Bundle, state_root: Path, prefix: str, script: Script) -> None:
    """There the standard streams are the server's, whose terminal would be taken over, and no signals come."""
    with oci.Container.run(prefix, bundle, state_root=state_root):
        script(IN_A_KERNEL, state_root, prefix, bundle.path)


def test_a_real_jupyter_kernel(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    pytest.importorskip("ipykernel")
    manager = pytest.importorskip("jupyter_client.manager").KernelManager()
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=TIME_LIMIT)
        with oci.Container.run(prefix, bundle, state_root=state_root):
            code = (
                "import ociruntime as oci\n"
                f"oci.Container.load({prefix!r}, state_root={str(state_root)!r}).exec(['sh'], terminal=True)"
            )
            reply = client.execute_interactive(code, timeout=TIME_LIMIT, output_hook=lambda message: None)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["content"]["ename"] == "UnsupportedError"
    assert "Jupyter kernel" in reply["content"]["evalue"]
