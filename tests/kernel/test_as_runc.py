"""What clients of runc use of its command line: its output, its log and its options."""

from __future__ import annotations

import array
import json
import pwd
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.cli import main
from ociruntime.terminal import _Lines

from ..support.fixture_types import Command, MakeBundle
from ..support.waiting import TIME_LIMIT, wait_until

pytestmark = pytest.mark.root


def call(words: list[str], *, status: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIME_LIMIT, check=False, **options)
    assert status in (None, done.returncode), done.stdout + done.stderr
    return done


@pytest.fixture
def sleeper(make_bundle: MakeBundle) -> oci.Bundle:
    return make_bundle(oci.RuntimeSpec.default().with_args(["sleep", "1000"]))


# ---- output ----


def test_list(sleeper: oci.Bundle, command: Command, prefix: str, state_root: Path) -> None:
    with oci.Container.run(prefix, sleeper, state_root=state_root) as container:
        titles, row = (line.split() for line in call(command("list")).stdout.splitlines())
        owner = pwd.getpwuid(0).pw_name
        assert titles == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
        assert row[:4] == [prefix, str(container.pid), "running", str(sleeper.path)]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", row[4])
        assert row[5] == owner
        text = call(command("list", "--format", "json")).stdout
        start = (
            f'[{{"ociVersion":"1.3.0","id":"{prefix}","pid":{container.pid},"status":"running","bundle":"{sleeper.path}","rootfs":"'
        )
        assert text.startswith(start)
        assert text.count("\n") == 1
        (document,) = json.loads(text)
        assert (document["created"], document["owner"]) == (row[4], owner)


def test_list_of_a_root_that_does_not_exist(command: Command, state_root: Path, tmp_path: Path) -> None:
    done = call([*command()[:-2], "--root", str(tmp_path / "missing"), "list"], status=1)
    assert f"{tmp_path}/missing: no such file or directory" in done.stderr
    state_root.mkdir(mode=0o700, exist_ok=True)
    assert call(command("list")).stdout.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]


def test_events(sleeper: oci.Bundle, command: Command, prefix: str, state_root: Path) -> None:
    start = f'{{"type":"stats","id":"{prefix}","data":{{'
    with oci.Container.run(prefix, sleeper, state_root=state_root) as container:
        text = call(command("events", "--stats", prefix)).stdout
        assert text.startswith(start)
        assert text.count("\n") == 1
        with subprocess.Popen(command("events", "--interval", "50ms", prefix), stdout=subprocess.PIPE, text=True) as events:
            assert events.stdout is not None
            assert [events.stdout.readline().startswith(start) for _ in range(2)] == [True, True]
            container.kill("KILL")
            rest = events.stdout.read()
        assert events.returncode == 0
        assert rest.splitlines()[-1] == f'{{"type":"exit","id":"{prefix}"}}'


def test_the_event_of_an_oom_kill() -> None:
    assert oci.Event("oom", 0, kills=3).to_dict("c") == {"type": "oom", "id": "c"}


def test_ps(sleeper: oci.Bundle, command: Command, prefix: str, state_root: Path) -> None:
    with oci.Container.run(prefix, sleeper, state_root=state_root) as container:
        titles, row = call(command("ps", prefix)).stdout.splitlines()
        assert titles.split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
        assert row.split()[1] == str(container.pid)
        assert call(command("ps", prefix, "-o", "pid,args")).stdout.split() == [
            "PID",
            "COMMAND",
            str(container.pid),
            "sleep",
            "1000",
        ]
        assert call(command("ps", "-f", "json", prefix)).stdout == f"[{container.pid}]\n"
        container.kill("KILL")
        container.wait()
        assert call(command("ps", prefix)).stdout.split() == titles.split()
        assert call(command("ps", "-f", "json", prefix)).stdout == "[]\n"


# ---- the environment ----


@pytest.mark.parametrize(
    ("env", "shown"), [((), "/root"), (("HOME=",), "/root"), (("HOME=/x", "HOME="), "/root"), (("HOME=", "HOME=/x"), "/x")]
)
def test_an_empty_home_is_none(env: tuple[str, ...], shown: str, make_bundle: MakeBundle, command: Command, prefix: str) -> None:
    spec = oci.RuntimeSpec.default().with_args(["sh", "-c", "echo $HOME"])
    bundle = make_bundle(spec.at.process.env.append(*env))
    assert call(command("run", "-b", bundle.path, prefix)).stdout == f"{shown}\n"


# ---- a terminal without one of the caller ----


def test_lines_in_a_file(make_bundle: MakeBundle, command: Command, prefix: str) -> None:
    """The program has a terminal, and a file gets its lines as the program writes them; only a terminal needs carriage returns."""
    script = "tty; printf 'one\\ntwo\\r\\nthree\\rfour\\n\\r'"
    spec = oci.RuntimeSpec.default().with_args(["sh", "-c", script]).at.process.terminal.set(True)
    bundle = make_bundle(spec)
    with subprocess.Popen(command("run", "-b", bundle.path, prefix), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        shown = process.stdout.read()
    assert process.returncode == 0
    assert shown == b"/dev/pts/0\none\ntwo\r\nthree\rfour\n\r"


def test_where_a_part_of_the_output_ends() -> None:
    lines = _Lines()
    parts = [b"a\r", b"\nb\r", b"\r\n", b"\r", b"c\r", b""]
    assert [lines.convert(part) for part in parts] == [b"a", b"\nb", b"\r\n", b"", b"\rc", b"\r"]


# ---- the log ----


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("place", ["stderr", "file", "descriptor"])
def test_debug(form: str, place: str, make_bundle: MakeBundle, command: Command, prefix: str, tmp_path: Path) -> None:
    bundle = make_bundle(oci.RuntimeSpec.default().with_args(["echo", "out"]))
    log = tmp_path / "log"
    with open(log, "wb") as file:
        number = file.fileno()
        options = {"stderr": [], "file": ["--log", log], "descriptor": ["--log", f"/dev/fd/{number}"]}[place]
        words = command("--debug", "--log-format", form, *options, "run", "-b", bundle.path, prefix)
        done = call(words, pass_fds=[number] if place == "descriptor" else [])
    assert done.stdout == "out\n"
    assert (done.stderr == "") == (place != "stderr")
    lines = (done.stderr if place == "stderr" else log.read_text()).splitlines()
    assert len(lines) > 3
    if form == "json":
        assert all(line.startswith('{"level":"debug","msg":"') for line in lines)
        texts = [json.loads(line)["msg"] for line in lines]
    else:
        assert all(re.match(r'time="[^"]+" level=debug msg="', line) for line in lines)
        texts = lines
    for words_ in ("clone3: init process", "has carried out the plan of"):
        assert any(words_ in text for text in texts), words_


@pytest.mark.parametrize(
    ("flags", "number"),
    [([], 0), (["SECCOMP_FILTER_FLAG_LOG"], 2), (["SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_LOG"], 6)],
)
def test_debug_tells_the_flags_of_the_filter(
    flags: list[str], number: int, make_bundle: MakeBundle, command: Command, prefix: str
) -> None:
    seccomp = {"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": None, "flags": flags}
    bundle = make_bundle(oci.RuntimeSpec.default().with_args(["true"]).merge({"linux": {"seccomp": seccomp}}))
    assert f'msg="seccomp filter flags: {number}"' in call(command("--debug", "run", "-b", bundle.path, prefix)).stderr


def test_no_debug(make_bundle: MakeBundle, command: Command, prefix: str) -> None:
    bundle = make_bundle(oci.RuntimeSpec.default().with_args(["true"]))
    assert call(command("run", "-b", bundle.path, prefix)).stderr == ""


# ---- help ----


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for words in (["help"], ["--help"], ["help", "exec"], ["exec", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert not stop.value.code
        shown[" ".join(words)] = capsys.readouterr().out
    assert shown["help"] == shown["--help"]
    assert shown["help exec"] == shown["exec --help"]
    for words in (["help", "foo"], ["foo", "-h"], ["foo", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 3
        assert "No help topic for 'foo'" in capsys.readouterr().err


# ---- options ----


class Receiver:
    """A Unix socket that receives a pidfd."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._socket.settimeout(TIME_LIMIT)

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def kill(self) -> None:
        """Receive a pidfd, and kill its process."""
        peer, _ = self._socket.accept()
        with peer:
            _, ancillary, _, _ = peer.recvmsg(100, socket.CMSG_SPACE(4))
        fds = array.array("i", ancillary[0][2])
        signal.pidfd_send_signal(fds[0], signal.SIGKILL)
        with open(fds[0], "rb"):
            pass


@pytest.mark.parametrize("words", ["create", "run --detach", "run"])
def test_the_pidfd_of_a_container(
    words: str, sleeper: oci.Bundle, command: Command, prefix: str, state_root: Path, tmp_path: Path
) -> None:
    with Receiver(tmp_path / "socket") as receiver:
        process = subprocess.Popen(
            command(*words.split(), "--pidfd-socket", receiver.path, "-b", sleeper.path, prefix),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if words == "run":
            receiver.kill()
            assert process.wait(TIME_LIMIT) == 128 + 9
            return
        assert process.wait(TIME_LIMIT) == 0
        container = oci.Container.load(prefix, state_root=state_root)
        try:
            assert container.status == ("created" if words == "create" else "running")
            receiver.kill()
            wait_until(lambda: container.status == "stopped", "the end of the container")
        finally:
            container.delete(force=True)


@pytest.mark.parametrize("words", ["create", "run --detach", "run"])
def test_a_pidfd_socket_that_does_not_exist(
    words: str, sleeper: oci.Bundle, command: Command, prefix: str, state_root: Path, tmp_path: Path
) -> None:
    done = call(command(*words.split(), "--pidfd-socket", tmp_path / "missing", "-b", sleeper.path, prefix), status=1)
    assert f"{tmp_path}/missing: no such file or directory" in done.stderr
    assert oci.Container.list(state_root=state_root) == []


def test_the_pidfd_of_an_exec_process(sleeper: oci.Bundle, command: Command, prefix: str, state_root: Path, tmp_path: Path) -> None:
    with oci.Container.run(prefix, sleeper, state_root=state_root) as container, Receiver(tmp_path / "socket") as receiver:
        words = command("exec", "--detach", "--pidfd-socket", receiver.path, prefix, "sleep", "1000")
        subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=TIME_LIMIT, check=True)
        assert len(container.processes()) == 2
        receiver.kill()
        wait_until(lambda: len(container.processes()) == 1, "the end of the process")
        call(command("exec", "--pidfd-socket", tmp_path / "missing", prefix, "sleep", "1000"), status=255)
        assert len(container.processes()) == 1


def test_exec_in_a_paused_container(sleeper: oci.Bundle, command: Command, prefix: str, state_root: Path) -> None:
    with oci.Container.run(prefix, sleeper, state_root=state_root) as container:
        container.pause()
        try:
            assert "cannot exec in a paused container" in call(command("exec", prefix, "true"), status=255).stderr
            timer = threading.Timer(1, container.resume)
            timer.start()
            begun = time.monotonic()
            assert call(command("exec", "--ignore-paused", prefix, "echo", "ok")).stdout == "ok\n"
            assert time.monotonic() - begun > 0.9
            timer.join()
        finally:
            if container.status == "paused":
                container.resume()
