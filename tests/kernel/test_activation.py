"""Sockets and readiness as systemd has them: LISTEN_FDS (sd_listen_fds(3)) and NOTIFY_SOCKET (sd_notify(3))."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.spec import RuntimeSpec, User

from ..support.fixture_types import Command, MakeBundle
from ..support.users import FIRST_ID, give, with_user_namespace
from ..support.waiting import TIME_LIMIT, wait_until

pytestmark = pytest.mark.root
# busybox has no systemd-notify, but speaks to syslog's socket, and what it says there has two lines.
SAY = 'ln -s "$NOTIFY_SOCKET" /dev/log && logger "$(printf "%s\\nREADY=1\\n." STATUS=soon)"'


@pytest.fixture
def host(tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's socket; what it hears can be read without waiting."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify.sock"))
        listener.setblocking(False)
        yield listener


def address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return "@" + name[1:].decode() if isinstance(name, bytes) else str(name)


def heard(listener: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(listener.recv(4096).decode())
        except BlockingIOError:
            return found


def bundle_of(make_bundle: MakeBundle, *args: str, spec: RuntimeSpec | None = None) -> oci.Bundle:
    return make_bundle((spec or RuntimeSpec.default()).with_args(args))


def environment(pid: int) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in entry)


def test_start_returns_when_the_process_is_ready(
    make_bundle: MakeBundle, state_root: Path, prefix: str, host: socket.socket
) -> None:
    bundle = bundle_of(make_bundle, "sleep", "100")
    with oci.Container.create(prefix, bundle, state_root=state_root, notify_socket=address(host)) as container:
        starting = threading.Thread(target=oci.Container.load(prefix, state_root=state_root).start)
        starting.start()
        wait_until(lambda: container.status is oci.Status.RUNNING, "the start", 120)
        place = environment(container.pid)["NOTIFY_SOCKET"]
        assert place == f"{address(host)}/notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as process:
            for printed in (b"STATUS=loading", b"READY=0", b"XREADY=1"):
                process.sendto(printed, f"/proc/{container.pid}/root{place}")
                assert starting.is_alive()
            assert heard(host) == []
            process.sendto(b"STATUS=fine\nREADY=1\n", f"/proc/{container.pid}/root{place}")
        starting.join(TIME_LIMIT)
        assert heard(host) == [f"READY=1\nMAINPID={container.pid}"]
        assert "NOTIFY_SOCKET" not in str(container.exec(["env"], capture_output=True, text=True).stdout)
        inside = container.exec(["touch", f"{Path(place).parent}/file"], capture_output=True, text=True)
        assert "Read-only file system" in str(inside.stderr)


@pytest.mark.parametrize("user", [0, 7])
@pytest.mark.parametrize("namespace", [False, True])
def test_the_process_may_be_of_any_user(
    make_bundle: MakeBundle, state_root: Path, prefix: str, host: socket.socket, user: int, namespace: bool
) -> None:
    spec = RuntimeSpec.default().at.process.user.set(User(uid=user, gid=user))
    if namespace:
        spec = with_user_namespace(spec).at.linux.resources.set(None)
    dev = next(mount for mount in spec.mounts or () if mount.destination == "/dev")
    open_to_all = tuple("mode=777" if option.startswith("mode=") else option for option in dev.options or ())
    bundle = bundle_of(make_bundle, "sh", "-c", f"{SAY}; exec sleep 100", spec=spec.with_mount(dev.evolve(options=open_to_all)))
    if namespace:
        give(bundle, FIRST_ID)
    with oci.Container.create(prefix, bundle, state_root=state_root, notify_socket=address(host)) as container:
        container.start()
        assert heard(host) == [f"READY=1\nMAINPID={container.pid}"]


def test_a_process_that_ends_without_a_word(make_bundle: MakeBundle, state_root: Path, prefix: str, host: socket.socket) -> None:
    with oci.Container.create(
        prefix, bundle_of(make_bundle, "true"), state_root=state_root, notify_socket=address(host)
    ) as container:
        container.start()
        assert heard(host) == []
        container.wait(TIME_LIMIT)


def test_an_abstract_socket_and_one_without_a_listener(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    bundle = bundle_of(make_bundle, "sh", "-c", f"test $NOTIFY_SOCKET = /run/notify/notify && {SAY}; exec sleep 100")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{prefix}")
        listener.setblocking(False)
        with oci.Container.create(prefix, bundle, state_root=state_root, notify_socket=address(listener)) as container:
            container.start()
            assert heard(listener) == [f"READY=1\nMAINPID={container.pid}"]
    with oci.Container.create(prefix, bundle, state_root=state_root, notify_socket=f"@{prefix}") as container:
        with pytest.warns(oci.OCIRuntimeWarning, match="notify_socket .*: the readiness notification cannot be sent"):
            container.start()
        assert container.status is oci.Status.RUNNING
    with pytest.raises(ValueError, match="notify_socket"):
        oci.Container.create(prefix, bundle, state_root=state_root, notify_socket="vsock:2:1")
    assert oci.Container.list(state_root=state_root) == []


def test_run_goes_on_and_a_supervised_one_waits(
    make_bundle: MakeBundle, state_root: Path, prefix: str, host: socket.socket
) -> None:
    bundle = bundle_of(make_bundle, "sh", "-c", f"{SAY}; exec sleep 100")
    host.setblocking(True)
    host.settimeout(TIME_LIMIT)
    with oci.Container.run(prefix, bundle, state_root=state_root, notify_socket=address(host)):
        assert host.recv(100) == b"READY=1"  # we are the main process of the service
    host.setblocking(False)
    with oci.Container.run(prefix, bundle, state_root=state_root, notify_socket=address(host), supervise=True) as container:
        assert heard(host) == [f"READY=1\nMAINPID={container.pid}"]


def test_the_command_line_takes_it_from_its_environment(
    make_bundle: MakeBundle, state_root: Path, prefix: str, host: socket.socket, command: Command
) -> None:
    bundle = bundle_of(make_bundle, "sh", "-c", f"{SAY}; exec sleep 100")
    env = os.environ | {"NOTIFY_SOCKET": address(host)}
    for words in (("create", "-b", bundle.path, prefix), ("start", prefix)):
        subprocess.run(command(*words), env=env, check=True, stdout=subprocess.DEVNULL, timeout=TIME_LIMIT)
    container = oci.Container.load(prefix, state_root=state_root)
    assert heard(host) == [f"READY=1\nMAINPID={container.pid}"]
    container.delete(force=True)
    done = subprocess.run(command("run", "-b", bundle_of(make_bundle, "sh", "-c", SAY).path, prefix), env=env, timeout=TIME_LIMIT)
    assert done.returncode == 0


def test_what_is_printed_before_it_is_ready_is_read(
    make_bundle: MakeBundle, state_root: Path, prefix: str, host: socket.socket, command: Command
) -> None:
    """With a supervisor, which does not wait for a service manager that does not read."""
    env = os.environ | {"NOTIFY_SOCKET": address(host)}
    for script, code, size in ((f"yes | head -c 3000000; {SAY}; exit 3", 3, 3000000), ("exit 4", 4, 0)):
        words = command("run", "--supervise", "-b", bundle_of(make_bundle, "sh", "-c", script).path, prefix)
        done = subprocess.run(words, env=env, capture_output=True, timeout=TIME_LIMIT)
        assert (done.returncode, len(done.stdout)) == (code, size), done.stderr
        assert [message.split("\n")[0] for message in heard(host)] == ["READY=1"] * (code == 3)
    bundle = bundle_of(
        make_bundle, "sleep", "1", spec=RuntimeSpec.default().evolve(hooks=oci.spec.Hooks(poststart=(oci.spec.Hook(path="/none"),)))
    )
    done = subprocess.run(
        command("run", "--supervise", "-b", bundle.path, prefix), env=env, capture_output=True, text=True, timeout=TIME_LIMIT
    )
    assert done.returncode == 1
    assert "poststart hook #0: /none cannot be run" in done.stderr


SHOW = "readlink /proc/self/fd/3; readlink /proc/self/fd/4; echo $LISTEN_FDS-$LISTEN_PID-$LISTEN_FDNAMES"


@pytest.mark.parametrize("mine", [True, False])
def test_sockets_that_we_were_activated_with_are_the_containers(
    make_bundle: MakeBundle, state_root: Path, prefix: str, mine: bool
) -> None:
    bundle = bundle_of(make_bundle, "sh", "-c", f"{SHOW} 2>/dev/null")
    words = [
        sys.executable,
        "-P",
        "-m",
        "ociruntime",
        "--root",
        str(state_root),
        "run",
        "--preserve-fds",
        "1",
        "-b",
        str(bundle.path),
        prefix,
    ]
    launcher = (
        "import os, socket, sys\n"
        "a, b = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)\n"
        "print(os.readlink(f'/proc/self/fd/{a.fileno()}'), os.readlink(f'/proc/self/fd/{b.fileno()}'), flush=True)\n"
        "x, y = os.dup(a.fileno()), os.dup(b.fileno())\n"
        "os.dup2(x, 3); os.dup2(y, 4)\n"
        f"os.environ |= {{'LISTEN_FDS': '1', 'LISTEN_FDNAMES': 'web', 'LISTEN_PID': str(os.getpid() + {int(not mine)})}}\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", launcher, *words], capture_output=True, text=True, timeout=TIME_LIMIT, check=True)
    first, second, *seen = done.stdout.split()
    # The preserved descriptors begin behind the sockets. A process that was not activated has no sockets.
    assert seen == ([first, second, "1-1-web"] if mine else [first, "--"]), done.stderr


def test_sockets_by_name_and_without_a_pid_of_its_own(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    bundle = bundle_of(make_bundle, "sleep", "100")
    with oci.Container.run(prefix, bundle, state_root=state_root, listen_fds=("a", "b")) as container:
        seen = environment(container.pid)
        assert (seen["LISTEN_FDS"], seen["LISTEN_PID"], seen["LISTEN_FDNAMES"]) == ("2", "1", "a:b")
        assert "LISTEN_PID" not in str(container.exec(["env"], capture_output=True, text=True).stdout)
    bundle = bundle_of(make_bundle, "sleep", "100", spec=RuntimeSpec.default().without_namespace("pid"))
    with pytest.warns(oci.OCIRuntimeWarning, match="LISTEN_PID is 1"):
        with oci.Container.run(prefix, bundle, state_root=state_root, listen_fds=1) as container:
            assert "LISTEN_FDNAMES" not in environment(container.pid)


def test_the_version_names_systemd_in_a_line_that_programs_look_for(command: Command) -> None:
    printed = subprocess.run(command("--version"), capture_output=True, text=True, check=True, timeout=TIME_LIMIT).stdout
    assert [line.split()[0] for line in printed.splitlines()] == ["ociruntime", "spec:", "+SYSTEMD"]
