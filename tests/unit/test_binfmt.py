"""Which architectures count as those that this machine runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ociruntime import host
from ociruntime.host import runs_programs_of

QEMU_ARM64 = """\
{state}
interpreter /usr/bin/qemu-aarch64-static
flags: OCF
offset 0
magic 7f454c460201010000000000000000000200b700
mask ffffffffffffff00fffffffffffffffffeffffff
"""
JAR = "enabled\ninterpreter /usr/bin/jexec\nflags: \nextension .jar\n"
SHORT = "enabled\ninterpreter /usr/bin/x\nflags: \noffset 18\nmagic f300\n"
LONG = "enabled\ninterpreter /usr/bin/x\nflags: \noffset 100\nmagic 00\n"


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(host, "_BINFMT", str(tmp_path))
    (tmp_path / "register").touch()
    (tmp_path / "status").write_text("enabled\n")
    return tmp_path


def test_native() -> None:
    for machine in ("amd64", "arm64", "s390x", "sh4"):
        assert runs_programs_of(machine, machine)
    assert runs_programs_of("386", "amd64")
    assert runs_programs_of("arm", "arm64")
    assert not runs_programs_of("amd64", "386")


def test_emulators(entries: Path) -> None:
    assert not runs_programs_of("arm64", "amd64")
    entry = entries / "qemu-aarch64"
    entry.write_text(QEMU_ARM64.format(state="enabled"))
    assert runs_programs_of("arm64", "amd64")
    for other in ("arm", "riscv64", "ppc64", "s390x", "99", "vax"):
        assert not runs_programs_of(other, "amd64")
    entry.write_text(QEMU_ARM64.format(state="disabled"))
    assert not runs_programs_of("arm64", "amd64")
    entry.write_text(QEMU_ARM64.format(state="enabled"))
    (entries / "status").write_text("disabled\n")
    assert not runs_programs_of("arm64", "amd64")


def test_other_entries(entries: Path) -> None:
    (entries / "jar").write_text(JAR)
    (entries / "long").write_text(LONG)
    assert not runs_programs_of("riscv64", "amd64")
    (entries / "short").write_text(SHORT)
    assert runs_programs_of("riscv64", "amd64")
    assert not runs_programs_of("loong64", "amd64")


def test_without_the_filesystem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_BINFMT", str(tmp_path / "absent"))
    assert not runs_programs_of("arm64", "amd64")


REGISTER = r"""
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc || exit 99
printf %s ':x:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:'\
'\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/bin/true:' > /proc/sys/fs/binfmt_misc/register || exit 99
exec "$0" -P -c "
from ociruntime.host import runs_programs_of
print(runs_programs_of('arm64', 'amd64'), runs_programs_of('riscv64', 'amd64'))"
"""


def test_entries_of_the_kernel() -> None:
    """From Linux 6.7 each user namespace can have entries of its own."""
    if os.uname().machine != "x86_64":
        pytest.skip("on this machine arm64 can be native")
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", REGISTER, sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 99 or done.stderr.startswith("unshare: "):
        pytest.skip(f"no binfmt_misc in user namespaces: {done.stderr}")
    assert done.stdout == "True False\n", done.stderr
