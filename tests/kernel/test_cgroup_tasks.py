"""Processes by their cgroups: frozen, signalled, listed, killed, also in cgroups that the container made below its own."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import threading
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.cli import main
from ociruntime.engine import cgroup

from ..support.cgroups import Limited, directory, own_cgroups
from ..support.processes import is_running
from ..support.waiting import TIME_LIMIT, wait_until

pytestmark = [pytest.mark.root, pytest.mark.vm]
RABBITS = "f() { usleep 500; f & }; f; f; exec sleep 100"
NO_PID = [{"type": kind} for kind in ("mount", "uts", "ipc", "network")]


def family(container: oci.Container, count: int) -> list[int]:
    """The container's processes, once there are as many."""
    wait_until(lambda: len(container.processes()) >= count, f"the start of {count} processes")
    return list(container.processes())


def below(container: oci.Container, name: str) -> Path:
    """A cgroup below the container's own, with one of its processes in it; in every hierarchy, as the container would do it."""
    [pid] = set(family(container, 2)) - {container.pid}
    for path in own_cgroups(container):
        nested = Path(path, name, "deeper")
        nested.mkdir(parents=True)
        for parent in (nested.parent, nested):
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (parent / file).exists() and not (parent / file).read_text().strip():
                    (parent / file).write_text((parent.parent / file).read_text())
        (nested / "cgroup.procs").write_text(str(pid))
    return nested


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("way", ["kill", "delete", "paused"])
def test_everything_dies(limited: Limited, way: str, nested: bool) -> None:
    """Without a pid namespace, the end of which would kill all processes."""
    linux = {"namespaces": NO_PID}
    with limited({}, ["sh", "-c", "sleep 100 & exec sleep 100"], start=True, linux=linux) as container:
        pids = family(container, 2)
        if nested:
            below(container, "sub")
            assert sorted(container.processes()) == sorted(pids)
        if way == "paused":
            container.pause()
        if way == "delete":
            os.kill(container.pid, signal.SIGKILL)
            container.wait(TIME_LIMIT)
            assert any(map(is_running, pids))
            container.delete()
        else:
            container.kill("KILL", all=True)
            assert container.wait(TIME_LIMIT) == -9
        assert not any(map(is_running, pids))


def test_processes_that_are_born_as_fast_as_they_die(limited: Limited) -> None:
    with limited({"pids": {"limit": 2000}}, ["sh", "-c", RABBITS], start=True, linux={"namespaces": NO_PID}) as container:
        family(container, 3)
        container.kill("KILL", all=True)
        assert container.wait(TIME_LIMIT) == -9
        assert container.processes() == ()


@pytest.mark.parametrize("paused", [False, True])
def test_a_signal_for_all(limited: Limited, paused: bool) -> None:
    text = "trap 'exit 3' TERM; sh -c 'trap \"\" TERM; exec sleep 100' & sh -c 'exec sleep 100' & while :; do wait; done"
    with limited({}, ["sh", "-c", text], start=True) as container:
        family(container, 3)
        for _ in range(2000):
            words = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in container.processes()]
            if words.count(b"sleep\x00100\x00") == 2:
                break
        if paused:
            container.pause()
        container.kill("TERM", all=True)
        if paused:
            assert container.status is oci.Status.PAUSED
            container.resume()
        assert container.wait(TIME_LIMIT) == 3


def test_kill_of_a_paused_container(limited: Limited) -> None:
    with limited({}, start=True) as container:
        container.pause()
        container.kill("KILL")
        assert container.wait(TIME_LIMIT) == -9


def test_kill_all_of_a_stopped_container(limited: Limited) -> None:
    with limited({}, ["true"], start=True) as container:
        container.wait(TIME_LIMIT)
        container.kill("KILL", all=True)
        container.kill("TERM", all=True)


def test_without_cgroups(limited: Limited) -> None:
    with limited({}, ["sh", "-c", "sleep 100 & exec sleep 100"], start=True, cgroup_manager="disabled") as container:
        assert len(family(container, 2)) == 2
        container.kill("KILL", all=True)
        assert container.wait(TIME_LIMIT) == -9
        with pytest.raises(oci.WrongStatus):
            container.pause()
    with limited({}, start=True, cgroup_manager="disabled", linux={"namespaces": NO_PID}) as container:
        with pytest.raises(oci.UnsupportedError, match="neither cgroups nor a pid namespace"):
            container.processes()
        with pytest.raises(oci.UnsupportedError, match="needs a cgroup: the container was created without one; create it again"):
            container.pause()
        container.kill("KILL")
        container.wait(TIME_LIMIT)


def test_pause_stops_time(limited: Limited) -> None:
    with limited({}, ["sh", "-c", "while :; do echo x; sleep 0.01; done"], start=True, stdout=(pipe := os.pipe())[1]) as container:
        os.close(pipe[1])
        assert os.read(pipe[0], 2) == b"x\n"
        container.pause()
        os.set_blocking(pipe[0], False)
        try:
            while os.read(pipe[0], 4096):
                pass
        except BlockingIOError:
            pass
        assert select.select([pipe[0]], [], [], 0.2)[0] == []
        container.resume()
        assert select.select([pipe[0]], [], [], TIME_LIMIT)[0] == [pipe[0]]
        container.kill("KILL")
        container.wait(TIME_LIMIT)
    os.close(pipe[0])


def test_ps(limited: Limited, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with limited({}, ["sh", "-c", "sleep 100 & exec sleep 99"], start=True) as container:
        pids = family(container, 2)
        for _ in range(2000):
            if Path(f"/proc/{container.pid}/cmdline").read_bytes() == b"sleep\x0099\x00":
                break
        command = ["--root", str(limited.root), "ps"]
        assert main([*command, "--format", "json", container.id]) == 0
        assert json.loads(capsys.readouterr().out) == pids
        assert main([*command, container.id]) == 0
        title, *lines = capsys.readouterr().out.splitlines()
        assert title.split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
        rows = [line.split() for line in lines]
        assert [str(container.pid), str(os.getpid()), "sleep", "99"] in [[*row[1:3], *row[7:]] for row in rows]
        assert len(lines) == 2
        assert main([*command, container.id, "-o", "pid,comm"]) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["PID", *map(str, pids)]
        assert main([*command, container.id, "-o", "comm"]) == 1
        assert "prints no PID" in capsys.readouterr().err
        with monkeypatch.context() as without_ps:
            without_ps.setenv("PATH", str(tmp_path))
            assert main([*command, container.id]) == 0
            assert len(capsys.readouterr().out.splitlines()) == 3
            assert main([*command, container.id, "-o", "pid,comm"]) == 1
            assert "ps -o pid,comm: options are passed to the host's ps, which is not in $PATH; install it (Debian: procps)" in (
                capsys.readouterr().err
            )
        container.kill("KILL")
        container.wait(TIME_LIMIT)
        capsys.readouterr()
        assert main([*command, container.id]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1


def test_ps_of_processes_with_odd_names(limited: Limited, capsys: pytest.CaptureFixture[str]) -> None:
    """A container chooses the names and arguments of its processes: they are one line each, without control characters."""
    script = r"""printf 'a\rNSpid: 9' >/proc/$$/comm; exec 9<>/tmp/pipe; read -r x <&9"""
    arguments = ["sh", "-c", f"mkfifo /tmp/pipe; {script}", "a\u2028b", "c\rd\x0be\x1b[2Jf\ng"]
    with limited({}, arguments, start=True) as container:
        wait_until(lambda: "NSpid" in Path(f"/proc/{container.pid}/comm").read_text(), "the new name")
        command = ["--root", str(limited.root), "ps", container.id]
        for options in ([], ["-ef"], ["-eo", "pid,args"], ["-eo", "args,pid"], ["-eo", "pid,comm"]):
            assert main([*command, *options]) == 0
            title, *lines = capsys.readouterr().out.removesuffix("\n").split("\n")
            assert "PID" in title
            if options != ["-eo", "args,pid"]:  # there the arguments stand before the number
                assert len(lines) == 1, (options, lines)
                assert str(container.pid) in lines[0].split()
        assert main(command) == 0
        assert re.search(r" a\?+b c\?d\?e\?\[2Jf[ ?]g\n\Z", capsys.readouterr().out)


def test_what_does_not_freeze_is_thawed(tmp_path: Path) -> None:
    """Files as of a v2 cgroup in which something never freezes."""
    (tmp_path / "cgroup.freeze").write_text("0")
    (tmp_path / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    with pytest.raises(TimeoutError, match="did not freeze"):
        cgroup.freeze([str(tmp_path)], True, timeout=0.05)
    assert (tmp_path / "cgroup.freeze").read_text() == "0"


def test_kill_while_it_is_being_frozen(limited: Limited) -> None:
    with limited({}, ["sh", "-c", "while :; do sleep 0.001; done"], start=True) as container:
        stop = threading.Event()
        path = [str(directory(container, "freezer" if oci.Host.probe().has_controller("freezer") else ""))]

        def flip() -> None:
            while not stop.is_set():
                try:
                    cgroup.freeze(path, True, needed=False)
                    cgroup.freeze(path, False, needed=False)
                except OSError:
                    return

        thread = threading.Thread(target=flip)
        thread.start()
        try:
            os.kill(container.pid, 0)
            container.kill(signal.SIGKILL, all=True)
            assert container.wait(TIME_LIMIT) == -9
        finally:
            stop.set()
            thread.join()
