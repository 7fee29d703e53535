"""Attaching: from Python, several at once, and on the command line with a real terminal."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.terminal import DetachKeys

from ..support.fixture_types import Command
from ..support.processes import parent_process
from ..support.waiting import TIME_LIMIT, wait_until

pytestmark = pytest.mark.root


def read_until(attachment: oci.Attachment, end: bytes) -> bytes:
    seen = b""
    while not seen.endswith(end):
        data = attachment.read(4096)
        assert data, seen
        seen += data
    return seen


def create(name: str, bundle: oci.Bundle, root: Path, script: str, **more: object) -> oci.Container:
    args = ["sh", "-c", script]
    return oci.Container.create(name, bundle.with_args(args), state_root=root, supervise=True, **more)  # type: ignore[arg-type]


# ---- in Python ----


def test_several_at_once(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with create(prefix, bundle, state_root, "while read line; do echo got $line; done; exit 3") as container:
        with container.attach() as one, oci.Container.load(prefix, state_root=state_root).attach() as two:
            assert not one.terminal
            container.start()
            one.write(b"a\n")
            assert read_until(one, b"got a\n") == read_until(two, b"got a\n") == b"got a\n"
            one.detach()
            two.write(b"b\n")
            assert read_until(two, b"got b\n") == b"got b\n"
            with pytest.raises(oci.StateError, match="did not read fast enough"):
                _ = two.returncode
            two.end_input()
            assert two.read(100) == b""
            assert two.returncode == 3
        with pytest.raises(oci.WrongStatus, match=r"attach to.*stopped"):
            container.attach()


def test_the_exit_code_is_known_when_the_container_is_deleted_already(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    container = create(prefix, bundle, state_root, "sleep 100")
    with container.attach() as attachment:
        container.delete(force=True)
        assert attachment.read(100) == b""
        assert attachment.returncode == -signal.SIGKILL


def test_a_terminal(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"
    with create(prefix, bundle, state_root, script, terminal=True) as container, container.attach() as attachment:
        assert attachment.terminal
        assert container.terminal is None
        container.start()
        read_until(attachment, b"ready\r\n")
        attachment.resize(21, 43)
        assert read_until(attachment, b"\r\n") == b"21 43\r\n"


def test_what_cannot_be_attached_to(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with oci.Container.create(prefix, bundle, state_root=state_root) as container:
        with pytest.raises(oci.StateError, match="no supervisor"):
            container.attach()
    with create(f"{prefix}-b", bundle, state_root, "sleep 100") as container:
        with container.attach() as attachment:
            os.kill(parent_process(container.pid), signal.SIGKILL)
            assert attachment.read(100) == b""
            with pytest.raises(oci.StateError, match="its supervisor is gone"):
                _ = attachment.returncode
        with pytest.raises(oci.StateError, match="its supervisor is gone"):
            container.attach()


@pytest.mark.parametrize(
    ("keys", "typed", "passed", "detached"),
    [
        ("ctrl-p,ctrl-q", [b"a\x10\x11b"], b"a", True),
        ("ctrl-p,ctrl-q", [b"a\x10", b"\x11"], b"a", True),
        ("ctrl-p,ctrl-q", [b"\x10", b"x\x11"], b"\x10x\x11", False),
        ("ctrl-p,ctrl-q", [b"\x10", b"\x10", b"\x11"], b"\x10", True),
        ("a,b,c", [b"a", b"b", b"a", b"b", b"c"], b"ab", True),
        ("ctrl-@", [b"\x00"], b"", True),
        ("ctrl-],q", [b"\x1dq"], b"", True),
        ("", [b"\x10\x11"], b"\x10\x11", False),
    ],
)
def test_detach_keys(keys: str, typed: list[bytes], passed: bytes, detached: bool) -> None:
    parser, out, stop = DetachKeys(keys), b"", False
    for data in typed:
        text, stop = parser.feed(data)
        out += text
    assert (out, stop) == (passed, detached)


@pytest.mark.parametrize("keys", ["ctrl-", "ctrl-1", "ab", "alt-x", "a,,b", "é"])
def test_keys_that_are_none(keys: str) -> None:
    with pytest.raises(ValueError, match="is not a valid key"):
        DetachKeys(keys)


# ---- on the command line ----


def test_attach_waits_for_the_start(bundle: oci.Bundle, state_root: Path, prefix: str, command: Command) -> None:
    with create(prefix, bundle, state_root, "read x; echo hello $x; cat; exit 9") as container:
        with subprocess.Popen(command("attach", prefix), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
            assert client.stdin
            assert client.stdout
            client.stdin.write(b"early\nlines\n")
            client.stdin.flush()
            container.start()
            assert client.stdout.readline() + client.stdout.readline() == b"hello early\nlines\n"
            client.stdin.close()
            assert client.wait(TIME_LIMIT) == 9


def test_attach_errors(bundle: oci.Bundle, state_root: Path, prefix: str, command: Command) -> None:
    def said(name: str, *words: str) -> tuple[int, str]:
        done = subprocess.run(command("attach", *words, name), capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
        return done.returncode, done.stderr

    assert said(prefix)[0] == 1
    with create(prefix, bundle, state_root, "exit 1") as container:
        container.start()
        container.wait(TIME_LIMIT)
        reason = "container not running: it is stopped, not created or running"
        assert said(prefix) == (1, f"ociruntime: cannot attach to container {prefix!r}: {reason}\n")
        assert "is not a valid key" in said(prefix, "--detach-keys", "shift-x")[1]


def test_a_shell_is_left_and_found_again(shell: oci.Bundle, state_root: Path, prefix: str, session, command: Command) -> None:
    assert subprocess.run(command("run", "-dt", "-b", shell.path, prefix), timeout=TIME_LIMIT, check=True).returncode == 0
    tty = session(*command("attach", prefix), size=(30, 90))
    tty.type("\r")
    tty.expect("$ ")
    assert not tty.restored
    tty.type("stty size; X=kept\r")
    tty.expect("30 90\r\n")
    tty.expect("$ ")
    tty.type("\x10\x11")
    assert tty.wait() == 0
    assert tty.restored
    assert oci.Container.load(prefix, state_root=state_root).status is oci.Status.RUNNING
    again = session(*command("attach", "--detach-keys", "ctrl-a,d", prefix), size=(20, 70))
    again.expect("$ ")  # the current line
    wait_until(lambda: not again.restored, "raw mode")
    again.resize(25, 75)
    again.type("echo $X; stty size\r")
    again.expect("kept\r\n")
    again.expect("25 75\r\n")
    again.type("exit 6\r")
    assert again.wait() == 6
    assert again.restored
    oci.Container.load(prefix, state_root=state_root).delete()


def test_signals_pass_through(bundle: oci.Bundle, state_root: Path, prefix: str, session, command: Command) -> None:
    script = "trap 'echo caught; exit 7' USR1; read x; echo ready; while :; do sleep 0.05; done"
    with create(prefix, bundle, state_root, script) as container:
        tty = session(*command("attach", prefix))
        container.start()
        tty.type("\r")
        tty.expect("ready")
        tty.process.send_signal(signal.SIGUSR1)
        tty.expect("caught")
        assert tty.wait() == 7


def test_a_killed_client_takes_nothing_with_it(
    bundle: oci.Bundle, state_root: Path, prefix: str, session, command: Command
) -> None:
    with create(prefix, bundle, state_root, "read x; echo ready; cat; exit 5") as container:
        tty = session(*command("attach", prefix))
        container.start()
        tty.type("\r")
        tty.expect("ready")
        tty.process.kill()
        tty.process.wait()
        with container.attach() as attachment:
            attachment.write(b"still\n")
            assert read_until(attachment, b"still\n") == b"still\n"
            attachment.end_input()
            assert attachment.read(1) == b""
            assert attachment.returncode == 5


@pytest.mark.parametrize("flag", ["--log-path={}", "--log-format=json", "--supervise"])
def test_a_supervised_run_in_the_foreground(
    bundle: oci.Bundle, state_root: Path, prefix: str, command: Command, tmp_path: Path, flag: str
) -> None:
    (bundle.path / "config.json").write_text(bundle.with_args(["sh", "-c", "cat; seq 1000; exit 8"]).spec.to_json())
    words = command("run", flag.format(tmp_path / "log"), "-b", bundle.path, prefix)
    done = subprocess.run(words, input="in\n", capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (8, "in\n" + "".join(f"{n}\n" for n in range(1, 1001)), "")
    assert oci.Container.list(state_root=state_root) == []
    assert (tmp_path / "log").exists() == ("path" in flag)


def test_a_supervised_run_on_a_terminal(shell: oci.Bundle, state_root: Path, prefix: str, session, command: Command) -> None:
    tty = session(*command("run", "-it", "--supervise", "-b", shell.path, prefix), size=(22, 66))
    tty.expect("$ ")
    tty.type("tty; stty size; exit 4\r")
    tty.expect("/dev/pts/0\r\n22 66\r\n")
    assert tty.wait() == 4
    assert tty.restored
    assert oci.Container.list(state_root=state_root) == []


def test_stderr_comes_separately_where_it_is_asked_for(bundle: oci.Bundle, state_root: Path, prefix: str, command: Command) -> None:
    with create(prefix, bundle, state_root, "echo out; echo err >&2; cat >&2; exit 3") as container:
        with container.attach(stderr=True) as two, container.attach() as one:
            assert one.stderr is None
            assert two.stderr is not None
            with subprocess.Popen(
                command("attach", prefix), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as client:
                container.start()
                assert client.communicate(b"in\n", timeout=TIME_LIMIT)[0] in (b"out\n", b"")  # it may have come late
                assert client.returncode == 3
            assert (two.readall(), two.stderr.readall()) == (b"out\n", b"err\nin\n")
            assert sorted((one.readall() or b"").splitlines()) == [b"err", b"in", b"out"]
            assert two.returncode == 3
        assert two.stderr.closed


def test_a_supervised_run_keeps_the_streams_apart(bundle: oci.Bundle, state_root: Path, prefix: str, command: Command) -> None:
    (bundle.path / "config.json").write_text(bundle.with_args(["sh", "-c", "seq 3000; seq 5 >&2; seq 3"]).spec.to_json())
    done = subprocess.run(
        command("run", "--supervise", "-b", bundle.path, prefix), capture_output=True, timeout=TIME_LIMIT, check=True
    )
    assert len(done.stdout.splitlines()) == 3003
    assert done.stderr == b"1\n2\n3\n4\n5\n"


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("typed", ["", "line\n", "no newline"])
def test_piped_input_ends(bundle: oci.Bundle, state_root: Path, prefix: str, command: Command, terminal: bool, typed: str) -> None:
    with create(prefix, bundle, state_root, "test -t 0 && stty -echo; cat; exit 6", terminal=terminal) as container:
        container.start()
        done = subprocess.run(
            command("attach", prefix), input=typed, capture_output=True, text=True, timeout=TIME_LIMIT, check=False
        )
        assert done.returncode == 6
        assert typed.strip() in done.stdout


@pytest.mark.parametrize("how", ["signal", "terminal"])
def test_a_hang_up_leaves_the_container_alone(
    shell: oci.Bundle, state_root: Path, prefix: str, session, command: Command, how: str
) -> None:
    subprocess.run(command("run", "-dt", "-b", shell.path, prefix), timeout=TIME_LIMIT, check=True)
    tty = session(*command("attach", prefix))
    tty.expect("$ ")  # before, what is typed is echoed here
    tty.type("X=kept\r")
    tty.expect("kept\r\n")
    tty.expect("$ ")
    if how == "signal":
        tty.process.send_signal(signal.SIGHUP)
        assert tty.wait() == 128 + signal.SIGHUP
        assert tty.restored
    else:
        tty.hang_up()
        assert tty.process.wait(TIME_LIMIT) == 128 + signal.SIGHUP
    again = session(*command("attach", prefix))
    again.expect("$ ")
    again.type("echo $X; exit 5\r")
    again.expect("kept\r\n")
    assert again.wait() == 5
    oci.Container.load(prefix, state_root=state_root).delete()


def test_keys_that_begin_like_those_to_detach_are_passed_on_at_the_end(
    bundle: oci.Bundle, state_root: Path, prefix: str, command: Command
) -> None:
    script = "stty raw -echo; head -c 3 | od -An -tx1; exit 4"
    with create(prefix, bundle, state_root, script, terminal=True) as container:
        container.start()
        with subprocess.Popen(command("attach", prefix), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
            assert b"61 10 04" in client.communicate(b"a\x10", timeout=TIME_LIMIT)[0]  # then the key for the end of file
            assert client.returncode == 4


def test_what_is_typed_before_the_keys_to_detach_counts(
    bundle: oci.Bundle, state_root: Path, prefix: str, session, command: Command
) -> None:
    with create(prefix, bundle, state_root, "read x; exit $x", terminal=True) as container:
        container.start()
        tty = session(*command("attach", prefix))
        wait_until(lambda: not tty.restored, "raw mode")
        tty.type("7\r\x10\x11")
        assert tty.wait() in (0, 7)
        assert container.wait(TIME_LIMIT) == 7


def test_a_container_that_ends_while_a_client_attaches(bundle: oci.Bundle, state_root: Path, prefix: str, command: Command) -> None:
    """Whenever it is, the answer is its exit code, or that it has stopped."""
    for turn in range(6):
        with create(prefix, bundle, state_root, f"sleep 0.{turn}; exit 6", terminal=True) as container:
            with subprocess.Popen(command("attach", prefix), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as client:
                container.start()
                _, printed = client.communicate(timeout=TIME_LIMIT)
                assert client.returncode == 6 or "it is stopped, not created or running" in printed, printed


@pytest.mark.parametrize("verb", ["attach", "exec", "run", "logs"])
def test_a_command_without_standard_streams(bundle: oci.Bundle, state_root: Path, prefix: str, command: Command, verb: str) -> None:
    """What is not there is empty, and nothing else takes its number."""
    script = ["sh", "-c", "cat; echo out; exit 5"]
    (bundle.path / "config.json").write_text(bundle.with_args(script).spec.to_json())
    words = {"attach": [prefix], "exec": [prefix, *script], "run": ["-b", bundle.path, f"{prefix}-b"], "logs": [prefix]}[verb]
    with create(prefix, bundle, state_root, script[2] if verb == "attach" else "sleep 100") as container:
        container.start()
        for closed in ("<&-", "<&- >&-", "<&- >&- 2>&-"):
            if verb != "attach" or closed == "<&-":
                line = f'exec "$@" {closed}'
                done = subprocess.run(["sh", "-c", line, "sh", *command(verb, *words)], timeout=TIME_LIMIT, check=False)
                assert done.returncode == (0 if verb == "logs" else 5)
