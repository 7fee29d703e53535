"""Limits as callers write them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

from ociruntime.arguments import parse_count, parse_cpus, parse_limit, parse_size, parse_timeout
from ociruntime.host import Hierarchy, Host
from ociruntime.options import SandboxOptions
from ociruntime.overrides import Overrides, with_default_limits
from ociruntime.rootfs.users import ContainerRoot
from ociruntime.spec import Mount, Resources, RuntimeSpec


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (1, 1),
        (-1, -1),
        ("-1", -1),
        ("4096", 4096),
        ("128M", 128 << 20),
        (" 128 m ", 128 << 20),
        ("64k", 64 << 10),
        ("64KiB", 64 << 10),
        ("64kb", 64 << 10),
        ("1.5GiB", 3 << 29),
        ("2t", 2 << 40),
        ("1P", 1 << 50),
        ("9223372036854775807", (1 << 63) - 1),
        ("100b", 100),
    ],
)
def test_sizes(value: int | str, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (1.5, 1.5),
        ("5", 5.0),
        ("0.5", 0.5),
        ("500ms", 0.5),
        ("90 s", 90.0),
        ("1m30s", 90.0),
        ("1h 30min", 5400.0),
        ("2 Days", 172800.0),
        ("250us", 0.00025),
        (timedelta(minutes=2, milliseconds=500), 120.5),
        ("1000000000000 d", float(1 << 31)),
    ],
)
def test_times(value: float | str | timedelta | None, seconds: float | None) -> None:
    assert parse_timeout(value) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("value", ["", " ", "s", "5x", "5 s or so", "-1", "1m30", "five", "1e3", "1..5s", "nan", "٣s"])
def test_what_is_not_a_time(value: str) -> None:
    with pytest.raises(
        ValueError, match=r"^timeout is .*: a number of seconds, or a time such as '500ms', '30s' or '1h30m' is needed$"
    ):
        parse_timeout(value)


@pytest.mark.parametrize(
    "value",
    [
        0,
        -2,
        1 << 63,
        "",
        "0",
        "-2",
        "x",
        "1x",
        "1e9",
        "1..5M",
        ".5M",
        "-1M",
        "8192P",
        "9" * 5000,
        "\u0663M",
        "12 34",
        "infM",
        "0.1",
    ],
)
def test_values_that_are_not_sizes(value: int | str) -> None:
    with pytest.raises(ValueError, match=r": a number of bytes from 1 on, .* such as '512M', or -1 for no limit is needed"):
        parse_size(value)


@pytest.mark.parametrize(
    ("parse", "value"),
    [(parse, value) for parse in (parse_size, parse_cpus, parse_count) for value in (True, None, b"1", [1], dict[str, int]())]
    + [(parse_size, 1.5), (parse_cpus, "1"), (parse_count, "1"), (parse_count, 1.0)],
)
def test_wrong_types(parse: Callable[[Any], object], value: object) -> None:
    with pytest.raises(TypeError, match=r"^here is .*: a number of (bytes|CPUs|tasks) from"):
        parse_limit("here", parse, value)


def test_cpus_and_counts() -> None:
    assert [parse_cpus(value) for value in (0.01, 1, 1.5)] == [0.01, 1, 1.5]
    assert [parse_count(value) for value in (-1, 1, 1 << 40)] == [-1, 1, 1 << 40]
    for cpus in (0, 0.009, -1, float("nan"), float("inf"), 1 << 30):
        with pytest.raises(ValueError, match=r": a number of CPUs from 0.01 on is needed"):
            parse_cpus(cpus)
    for count in (0, -2, 1 << 64):
        with pytest.raises(ValueError, match=": a number of tasks from 1 on, or -1 for no limit is needed"):
            parse_count(count)


@pytest.mark.parametrize(("name", "value"), [("memory", "lots"), ("memory", 0), ("cpus", 0.001), ("pids", 0), ("pids", "5")])
def test_run_names_the_argument(name: str, value: object) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{name} is {value!r}: a number of"):
        Overrides(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "added"),
    [
        ((), ("size=8388608", "nr_inodes=2048")),
        (("size=1m", "mode=755"), ("nr_inodes=1024",)),
        (("size=65536k",), ("nr_inodes=16384",)),
        (("size=64M", "nr_inodes=9"), ()),
        (("size=50%",), ()),
        (("size=0",), ()),
        (("nr_blocks=7",), ()),
        (("rbind",), ()),
        (("remount", "ro"), ()),
    ],
)
def test_every_tmpfs_of_a_sandbox_is_limited(options: tuple[str, ...], added: tuple[str, ...]) -> None:
    mount = Mount(destination="/x", type="tmpfs", source="tmpfs", options=options)
    given = RuntimeSpec.default().evolve(mounts=(mount, mount.evolve(type="ramfs")))
    changed = Overrides(default_tmpfs_size=8 << 20).apply(given, _no_root)
    assert [one.options for one in changed.mounts or ()] == [(*options, *added), options]
    unlimited = Overrides(default_tmpfs_size=0).apply(given, _no_root).mounts or ()
    assert unlimited[0].options == (options if not options else (*options, *added))
    assert Overrides(pids=3).apply(given, _no_root).mounts == given.mounts


def _no_root(spec: RuntimeSpec) -> ContainerRoot:
    raise AssertionError("names of users are not looked up")


@pytest.mark.parametrize(("version", "accounts", "counts"), [(1, True, True), (1, False, False), (2, False, True)])
def test_the_memory_of_a_sandbox_counts_swap(
    version: int, accounts: bool, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cgroup v1 has no file for it where the kernel does not account swap: then memory alone is limited."""
    if accounts:
        (tmp_path / "memory.memsw.limit_in_bytes").touch()
    hierarchy = Hierarchy(str(tmp_path), version, frozenset({"cpu", "memory", "pids"}))
    host = attrs.evolve(Host.probe(), hierarchies=(hierarchy,))
    monkeypatch.setattr(Host, "probe", lambda: host)
    memory = SandboxOptions(memory="64M").overrides.limit(Resources()).memory
    assert memory is not None
    assert (memory.limit, memory.swap) == (64 << 20, 64 << 20 if counts else None)


@pytest.mark.parametrize(("cpus", "limit"), [(1, 2048), (32, 2048), (33, 2112), (None, 2048)])
def test_the_default_limit_of_processes(monkeypatch: pytest.MonkeyPatch, cpus: int | None, limit: int) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cpus)
    spec = with_default_limits(RuntimeSpec.default())
    assert spec.at.linux.resources.pids.limit.get() == limit
    assert spec.at.linux.resources.devices.get() == RuntimeSpec.default().at.linux.resources.devices.get()
    assert spec.annotations == {"org.ociruntime.pids-limit": "if possible"}
    own = Overrides(pids=7).apply(spec, lambda spec: ContainerRoot("/none"))
    assert (own.at.linux.resources.pids.limit.get(), own.annotations) == (7, {})
