"""Logs: what is written in each format, what is read back, and disks that are full."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.supervisor.logs import LogRecord, read_log

from ..support.fixture_types import Command
from ..support.waiting import TIME_LIMIT

pytestmark = pytest.mark.root
FORMATS = ("kubernetes", "json", "basic")
STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z"


def ended(name: str, bundle: oci.Bundle, root: Path, script: str, **more: object) -> oci.Container:
    """A supervised container that has run a script to its end."""
    container = oci.Container.create(name, bundle.with_args(["sh", "-c", script]), state_root=root, supervise=True, **more)  # type: ignore[arg-type]
    container.start()
    container.wait(TIME_LIMIT)
    return container


LINES = {
    "kubernetes": [f"^{STAMP} stdout F out  two$", f"^{STAMP} stdout F $", rf'^{STAMP} stdout F q"\\$'],
    "json": [
        rf'^{{"time": "{STAMP}", "stream": "stdout", "log": "out  two"}}$',
        rf'^{{"time": "{STAMP}", "stream": "stdout", "log": ""}}$',
        rf'^{{"time": "{STAMP}", "stream": "stdout", "log": "q\\"\\\\"}}$',
    ],
    "basic": [f"^{STAMP} stdout out  two$", f"^{STAMP} stdout $", rf'^{STAMP} stdout q"\\$'],
}


@pytest.mark.parametrize("style", FORMATS)
def test_what_is_written(bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path, style: str) -> None:
    script = r"""printf 'out  two\n\nq"\\\n'"""
    with ended(prefix, bundle, state_root, script, log_format=style, log_path=tmp_path / "log"):
        lines = (tmp_path / "log").read_text().splitlines()
        assert len(lines) == 3
        for line, pattern in zip(lines, LINES[style], strict=True):
            assert re.match(pattern, line), line
        assert (tmp_path / "log").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("style", FORMATS)
def test_what_is_read_back(bundle: oci.Bundle, state_root: Path, prefix: str, style: str) -> None:
    before = time.time_ns()
    with ended(prefix, bundle, state_root, r"printf 'a\n\377\303\244\t\033\n'; echo err >&2", log_format=style) as container:
        records = sorted(container.logs(), key=lambda record: (record.stream, record.time))
        assert [(r.stream, r.text, r.partial) for r in records] == [
            ("stderr", "err", False), ("stdout", "a", False), ("stdout", "\udcffä\t\x1b", False),
        ]  # fmt: skip
        assert all(before < record.time < time.time_ns() for record in records)
        assert records[0].datetime.tzinfo is UTC
        assert [r.text for r in container.logs(stream="stderr")] == ["err"]
        assert list(container.logs(since=time.time_ns())) == []
        assert list(container.logs(since=datetime.now(UTC))) == []
        assert len(list(container.logs(since=datetime.fromtimestamp(before // 10**9, UTC)))) == 3
        assert [r.text for r in container.logs(tail=1, stream="stdout")] == ["\udcffä\t\x1b"]
        assert list(container.logs(tail=0)) == []
        with pytest.raises(ValueError, match="tail is -1"):
            container.logs(tail=-1)


@pytest.mark.parametrize("style", FORMATS)
def test_long_lines(bundle: oci.Bundle, state_root: Path, prefix: str, style: str) -> None:
    script = "head -c 50000 /dev/zero | tr '\\0' x; echo; for i in 1 2 3 4 5 6; do printf 'ä%.0s' $(seq 4000); done; printf end"
    with ended(prefix, bundle, state_root, script, log_format=style) as container:
        records = list(container.logs())
        assert "".join(r.text for r in records) == "x" * 50000 + "ä" * 24000 + "end"
        assert max(len(r.text.encode()) for r in records) <= 16384
        if style != "basic":
            assert [r.partial for r in records].count(False) == 2
            assert not records[-1].partial
            assert "".join(r.text for r in container.logs(tail=1)) == "ä" * 24000 + "end"


def test_a_prompt_does_not_wait_for_its_newline(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with oci.Container.create(
        prefix, bundle.with_args(["sh", "-c", "printf prompt; read x; echo; sleep 100"]), state_root=state_root, supervise=True
    ) as container:
        container.start()
        records = container.logs(follow=True)
        record = next(records)
        assert (record.text, record.partial) == ("prompt", True)
        with container.attach() as attachment:
            attachment.write(b"\n")
            record = next(records)
            assert (record.text, record.partial) == ("", False)
        records.close()  # type: ignore[attr-defined]


def test_following(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    script = "while read line; do echo got $line; done"
    with oci.Container.create(prefix, bundle.with_args(["sh", "-c", script]), state_root=state_root, supervise=True) as container:
        with container.attach() as attachment:
            container.start()
            for number in range(5):
                attachment.write(b"%d\n" % number)
            read = 0
            while read < 5:
                read += (attachment.read(100) or b"").count(b"\n")
            records = container.logs(follow=True, tail=2)
            assert [next(records).text, next(records).text] == ["got 3", "got 4"]
            attachment.write(b"five\n")
            assert next(records).text == "got five"
            attachment.end_input()
            assert list(records) == []


def test_following_through_a_rotation(bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path, command: Command) -> None:
    log = tmp_path / "log"
    script = "while read line; do echo got $line; done"
    with oci.Container.create(prefix, bundle.with_args(["sh", "-c", script]), state_root=state_root, log_path=log) as container:
        container.start()
        records = container.logs(follow=True)
        with container.attach() as attachment:
            for number in range(4):
                attachment.write(b"%d\n" % number)
                assert next(records).text == f"got {number}"
                log.rename(tmp_path / f"log.{number}")
                container.reopen_log()
                assert log.exists()
            attachment.end_input()
            assert list(records) == []
    assert [len((tmp_path / f"log.{n}").read_text().splitlines()) for n in range(4)] == [1, 1, 1, 1]


def test_following_whoever_rotates_and_however_often(tmp_path: Path) -> None:
    """Nothing is missed and nothing comes twice, wherever the reader is when the writer goes on."""
    log, texts = tmp_path / "log", iter(range(1000))

    def write(count: int, *, mode: str = "a") -> None:
        with open(log, mode) as file:
            for _ in range(count):
                file.write(f"2026-01-01T00:00:00.000000000Z stdout F {next(texts)}\n")

    def some(items: Iterator[LogRecord | None]) -> list[int]:
        found = []
        while (record := next(items)) is not None:
            found.append(int(record.text))
        return found

    given = {"since": None, "tail": None, "stream": None}
    write(3)
    for rotated in (False, True):
        with closing(read_log(str(log), "kubernetes", rotated=rotated, **given)) as items:  # type: ignore[arg-type]
            assert len(some(items)) == 3
    items = read_log(str(log), "kubernetes", rotated=True, **given)  # type: ignore[arg-type]
    assert some(items) == [0, 1, 2]
    assert some(items) == []
    log.rename(tmp_path / "log.1")
    assert some(items) == []
    write(2)
    assert some(items) == [3, 4]
    for count in (1, 2):  # two files ahead
        log.rename(tmp_path / "log.1")
        write(count)
    assert some(items) == [5, 6, 7]
    write(1)
    log.rename(tmp_path / "log.1")
    log.touch()  # as the program that rotates does: the writer still has the old file
    assert some(items) == [8]
    with open(tmp_path / "log.1", "a") as old:
        old.write(f"2026-01-01T00:00:00.000000000Z stdout F {next(texts)}\n")
    assert some(items) == [9]
    write(2)
    assert some(items) == [10, 11]
    items.close()
    given["tail"] = 3  # type: ignore[assignment]
    with closing(read_log(str(log), "kubernetes", rotated=True, **given)) as items:  # type: ignore[arg-type]
        assert some(items) == [9, 10, 11]
        write(1)
        assert some(items) == [12]
        log.write_text("")
        assert some(items) == []
        write(1)
        assert some(items) == [13]


def test_a_log_in_the_state_directory_is_bounded(
    bundle: oci.Bundle, state_root: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ociruntime.supervisor.client._LOG_LIMIT", 400_000)
    with ended(prefix, bundle, state_root, "seq 30000") as container:
        sizes = [os.path.getsize(container.state.log_path + end) for end in ("", ".1")]
        assert max(sizes) <= 400_000 < sum(sizes)
        texts = [record.text for record in container.logs()]
        assert texts == [str(n) for n in range(30001 - len(texts), 30001)]
        assert 1000 < len(texts) < 30000


# ---- disks that are full ----


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "disk"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", where], check=True)
    yield where
    subprocess.run(["umount", where], check=True)


@pytest.mark.parametrize("style", FORMATS)
def test_a_full_disk(bundle: oci.Bundle, state_root: Path, prefix: str, small_disk: Path, style: str, command: Command) -> None:
    script = "seq 5000; echo asleep >&2; read x; echo last; exit 3"
    with oci.Container.create(
        prefix, bundle.with_args(["sh", "-c", script]), state_root=state_root, log_path=small_disk / "log", log_format=style  # type: ignore[arg-type]
    ) as container:  # fmt: skip
        with container.attach() as attachment:
            container.start()
            seen = b""
            while seen.count(b"\n") < 5001:  # the container and its clients go on
                data = attachment.read(65536)
                assert data
                seen += data
            os.truncate(small_disk / "log", 0)
            attachment.write(b"\n")
            assert attachment.read(100) == b"last\n"
            assert attachment.read(100) == b""
        assert container.wait(TIME_LIMIT) == 3
        state = container.state
        assert 0 < state.log_lost.entries <= 5001
        assert state.log_lost.bytes > 0
        assert state.to_dict()["logLost"] == {
            "entries": state.log_lost.entries, "bytes": state.log_lost.bytes, "error": "No space left on device",
        }  # fmt: skip
        assert [record.text for record in container.logs()][-1] == "last"
        done = subprocess.run(command("logs", prefix), capture_output=True, text=True, timeout=TIME_LIMIT, check=True)
        assert done.stdout.endswith("last\n")
        assert "No space left on device" in done.stderr


def test_entries_stay_whole_on_a_full_disk(bundle: oci.Bundle, state_root: Path, prefix: str, small_disk: Path) -> None:
    with ended(prefix, bundle, state_root, "seq 5000", log_path=small_disk / "log", log_format="json") as container:
        entries = [json.loads(line) for line in (small_disk / "log").read_text().splitlines()]
        assert len(entries) + container.state.log_lost.entries == 5000
        assert (small_disk / "log").read_bytes().endswith(b"}\n")


def test_logs_that_cannot_be(bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path) -> None:
    with oci.Container.create(prefix, bundle, state_root=state_root) as container:
        with pytest.raises(oci.StateError, match="has no log"):
            container.logs()
        with pytest.raises(oci.StateError, match="no supervisor"):
            container.reopen_log()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="fifo"):  # it has no reader
        oci.Container.create(prefix, bundle, state_root=state_root, log_path=tmp_path / "fifo")
    with ended(f"{prefix}-b", bundle, state_root, "seq 100000", log_path=os.devnull) as container:
        for follow in (False, True):
            with pytest.raises(oci.StateError, match="not a regular file"):
                container.logs(follow=follow)
        assert container.state.log_lost == oci.LostOutput()
    with ended(f"{prefix}-c", bundle, state_root, "seq 10", log_path=tmp_path / "log") as container:
        with pytest.raises(ValueError, match="stdout or stderr is needed"):
            container.logs(stream="stdin")  # type: ignore[arg-type]
        (tmp_path / "log").unlink()
        with pytest.raises(oci.StateError, match="no longer exists"):
            container.logs()
        assert list(container.logs(follow=True)) == []


# ---- on the command line ----


def test_logs_on_the_command_line(bundle: oci.Bundle, state_root: Path, prefix: str, command: Command) -> None:
    def said(*words: str) -> tuple[str, str]:
        done = subprocess.run(command("logs", *words, prefix), capture_output=True, text=True, timeout=TIME_LIMIT, check=True)
        return done.stdout, done.stderr

    with ended(prefix, bundle, state_root, "seq 5; echo err >&2; printf end"):
        assert said() == ("1\n2\n3\n4\n5\nend\n", "err\n")
        assert said("--tail", "2", "--stream", "stdout") == ("5\nend\n", "")
        assert said("--since", "10m")[0] == said("-f")[0] == said()[0]
        assert said("--since", datetime.now(UTC).isoformat()) == ("", "")
        assert re.match(f"{STAMP} 1\n", said("--timestamps")[0])
        entries = [json.loads(line) for line in said("--json", "--tail", "3")[0].splitlines()]
        assert ("stdout", "end") in {(entry["stream"], entry["text"]) for entry in entries}
        assert all(re.fullmatch(STAMP, entry["time"]) for entry in entries)
        assert len(entries) == 3
        bad = subprocess.run(
            command("logs", "--since", "soon", prefix), capture_output=True, text=True, timeout=TIME_LIMIT, check=False
        )
        assert bad.returncode == 1
        assert "is not a time" in bad.stderr


def test_following_on_the_command_line(bundle: oci.Bundle, state_root: Path, prefix: str, command: Command) -> None:
    with oci.Container.create(
        prefix, bundle.with_args(["sh", "-c", "read x; echo got $x"]), state_root=state_root, supervise=True
    ) as container:
        with (
            subprocess.Popen(command("logs", "-f", prefix), stdout=subprocess.PIPE, text=True) as follower,
            container.attach() as me,
        ):
            container.start()
            me.write(b"it\n")
            assert follower.stdout
            assert follower.stdout.readline() == "got it\n"
            assert follower.wait(TIME_LIMIT) == 0


def test_following_what_has_not_begun_and_what_has_ended(
    bundle: oci.Bundle, state_root: Path, prefix: str, command: Command
) -> None:
    words = bundle.with_args(["sh", "-c", "seq 3"])
    with oci.Container.create(prefix, words, state_root=state_root, supervise=True) as container:
        assert list(container.logs()) == []
        with subprocess.Popen(command("logs", "-f", "--tail", "2", prefix), stdout=subprocess.PIPE, text=True) as follower:
            container.start()
            out, _ = follower.communicate(timeout=TIME_LIMIT)
            assert (out, follower.returncode) in (("1\n2\n3\n", 0), ("2\n3\n", 0))  # by what was there when it came
        for flags in ([], ["-f"], ["--since", "1h", "--tail", "9", "--stream", "stdout"]):
            done = subprocess.run(command("logs", *flags, prefix), capture_output=True, text=True, timeout=TIME_LIMIT, check=True)
            assert done.stdout == "1\n2\n3\n"
    with oci.Container.create(f"{prefix}-b", words, state_root=state_root):
        for flags in ([], ["-f"], ["--reopen"]):
            done = subprocess.run(
                command("logs", *flags, f"{prefix}-b"), capture_output=True, text=True, timeout=TIME_LIMIT, check=False
            )
            assert done.returncode == 1
            assert "supervisor" in done.stderr


def test_a_follower_outlives_the_container(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    container = oci.Container.create(
        prefix, bundle.with_args(["sh", "-c", "seq 1000; sleep 100"]), state_root=state_root, supervise=True
    )
    container.start()
    records = container.logs(follow=True)
    assert next(records).text == "1"
    container.delete(force=True)
    assert len(list(records)) == 999


def test_the_order_of_both_streams_is_kept(bundle: oci.Bundle, state_root: Path, prefix: str, command: Command) -> None:
    script = "for i in 1 2 3 4 5; do echo out $i; sleep 0.02; echo err $i >&2; sleep 0.02; done"
    with ended(prefix, bundle, state_root, script):
        done = subprocess.run(
            command("logs", prefix), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIME_LIMIT, check=True
        )
        assert done.stdout.decode().split("\n")[:-1] == [f"{name} {i}" for i in range(1, 6) for name in ("out", "err")]


def test_a_reader_that_has_seen_enough(bundle: oci.Bundle, state_root: Path, prefix: str, command: Command) -> None:
    with ended(prefix, bundle, state_root, "seq 100000"):
        with subprocess.Popen(command("logs", prefix), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout
            assert process.stderr
            assert process.stdout.readline() == b"1\n"
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(TIME_LIMIT) == 141


def test_reopening_on_the_command_line(bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path, command: Command) -> None:
    log = tmp_path / "log"
    with oci.Container.create(
        prefix, bundle.with_args(["sh", "-c", "while read x; do echo got $x; done"]), state_root=state_root, log_path=log
    ) as container:
        container.start()
        with container.attach() as attachment:
            for number in range(2):
                attachment.write(b"%d\n" % number)
                assert attachment.read(100) == b"got %d\n" % number
                log.rename(tmp_path / f"log.{number}")
                subprocess.run(command("logs", "--reopen", prefix), timeout=TIME_LIMIT, check=True)
        log.unlink()
        tmp_path.joinpath("log").mkdir()
        done = subprocess.run(command("logs", "--reopen", prefix), capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
        assert done.returncode == 1
        assert "a directory, not a regular file" in done.stderr
    assert [(tmp_path / f"log.{n}").read_text().split()[-1] for n in range(2)] == ["0", "1"]


ODD = {
    "json": [
        b"[1]", b"5", b"null", b"NaN", b"{}", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b"\xff\xfe",
        b'{"time": 5, "stream": "stdout", "log": "x"}',
        b'{"time": "2020-01-01T00:00:00Z", "stream": ["stdout"], "log": "x"}',
        b'{"time": "2020-01-01T00:00:00Z", "stream": "stdout", "log": 1}',
        b'{"time": "' + b"9" * 5000 + b'", "stream": "stdout", "log": "x"}',
    ],
    "kubernetes": [b"", b"x", b"2020 stdout F", b"2020-13-01T00:00:00Z stdout P x", b"\xff " * 5],
    "basic": [b"", b"x", b"2020 x y"],
}  # fmt: skip


@pytest.mark.parametrize("style", ODD)
def test_lines_that_no_writer_wrote(tmp_path: Path, style: str) -> None:
    """They are skipped, as torn ones are."""
    good = {"json": '{"time": "2020-01-01T00:00:00Z", "stream": "stdout", "log": "x"}', "basic": "2020-01-01T00:00:00Z stdout x"}
    last = good.get(style, "2020-01-01T00:00:00Z stdout F x").encode()
    (tmp_path / "log").write_bytes(b"\n".join([*ODD[style], last, b""]))
    with closing(read_log(str(tmp_path / "log"), style, rotated=False, since=None, tail=None, stream=None)) as records:
        assert [record and record.text for record in (next(records), next(records))] == ["x", None]


@pytest.mark.parametrize("tail", [None, 2])
def test_a_log_that_grows_faster_than_it_is_read(tmp_path: Path, tail: int | None) -> None:
    """What there was at the call is the end of it; a reader that follows the log gets the rest afterwards."""
    log = tmp_path / "log"
    line = "2026-01-02T03:04:05.000000006Z stdout line\n"
    log.write_text(line * 5000)  # several reads
    with closing(read_log(str(log), "basic", rotated=False, since=None, tail=tail, stream=None)) as items:
        for count, record in enumerate(items):
            if record is None:
                break
            assert count < 10_000
            with log.open("a") as file:
                file.write(line * 2)
        assert count == tail if tail else 5000 <= count < 7000
        assert next(item for item in items if item is not None).text == "line"
