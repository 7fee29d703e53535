"""Every mount option on every type of mount, with each namespace missing and alone: it has its effect, or an error says why it has none."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import ociruntime as oci
from ociruntime.plan.detached_mounts import FILLED_FIRST, SHARED
from ociruntime.plan.mount_options import ATTRIBUTES, KNOWN_OPTIONS, LINKS

from ..support.fixture_types import MakeBundle, Script
from ..support.leftovers import cgroups_of, mounts_below
from ..support.users import FIRST_ID, UID

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(oci.Host.probe().kernel < (6, 15), reason="a container without a mount namespace needs Linux 6.15"),
]
NAMESPACES = ("pid", "network", "ipc", "uts", "mount", "cgroup", "time")
CELLS = {
    "all": NAMESPACES,
    "none": (),
    **{f"without-{name}": tuple(other for other in NAMESPACES if other != name) for name in NAMESPACES},
    **{f"only-{name}": (name,) for name in NAMESPACES},
}
CALLERS = {"root": -1, "user-namespace": 0, "unprivileged": UID}
"""The user of the host that is root of the container's user namespace, which ``root`` does not have."""

BINDS = ("bind", "bind of a file", "bind with flags")
CHANGES = ("remount", "remount with bind", "propagation")
KINDS = (*sorted(FILLED_FIRST | SHARED), "proc", "devpts", "overlay", *BINDS, *CHANGES)
OPTIONS = ("", *(option for option in KNOWN_OPTIONS if option not in ("bind", "rbind", "remount")))
PROPAGATION = ("private", "shared", "slave", "unbindable")
PROPAGATIONS = (*PROPAGATION, *(f"r{name}" for name in PROPAGATION))
OWN_SUPERBLOCK = ("tmpfs", "ramfs", "hugetlbfs", "proc", "devpts", "overlay", "remount")
FLAGS = {"ro": os.ST_RDONLY, "nosuid": os.ST_NOSUID, "nodev": os.ST_NODEV, "noexec": os.ST_NOEXEC, "noatime": os.ST_NOATIME,
         "nodiratime": os.ST_NODIRATIME, "relatime": os.ST_RELATIME, "nosymfollow": 0x2000, "sync": os.ST_SYNCHRONOUS}  # fmt: skip
ACCESS_TIMES = ("noatime", "atime", "relatime", "norelatime", "strictatime", "nostrictatime", "nodiratime", "diratime")
EFFECTS: dict[str, tuple[str, str]] = {
    # option: the flags of statfs(2) that are set then, and those that are not
    "ro": ("ro", ""), "rw": ("", "ro"), "nosuid": ("nosuid", ""), "suid": ("", "nosuid"), "nodev": ("nodev", ""), "dev": ("", "nodev"),
    "noexec": ("noexec", ""), "exec": ("", "noexec"), "noatime": ("noatime", "relatime"), "atime": ("relatime", "noatime"),
    "relatime": ("relatime", "noatime"), "norelatime": ("relatime", "noatime"), "strictatime": ("", "noatime relatime"),
    "nostrictatime": ("relatime", "noatime"), "nodiratime": ("nodiratime", ""), "diratime": ("", "nodiratime"),
    "nosymfollow": ("nosymfollow", ""), "symfollow": ("", "nosymfollow"),
}  # fmt: skip
EFFECTS |= {f"r{option}": effect for option, effect in EFFECTS.items()}
WITHOUT_FLAGS = {"sync", "async", "dirsync", "lazytime", "nolazytime", "mand", "nomand", "tmpcopyup", "idmap", "ridmap", *LINKS,
                 "defaults", "silent", "loud", "iversion", "noiversion", *PROPAGATIONS}  # fmt: skip

RUN = """
import json, os, re, sys, warnings
import ociruntime as oci
bundle, state_root, prefix, uid = sys.argv[1:5]
warnings.simplefilter("ignore", oci.OCIRuntimeWarning)
if int(uid):
    become(int(uid))
count = 0

def attempt(base, rows, run):
    "Carry out the mounts of these rows in one container, and print what became of the last mount of each row, or the error."
    global count
    count += 1
    mounts, owner = [{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}], [None]
    for row in rows:
        mounts += row["mounts"]
        owner += [row["key"]] * len(row["mounts"])
    with open(f"{bundle}/config.json", "w") as file:
        json.dump({**base, "mounts": mounts}, file)
    try:
        if not run:
            oci.Bundle.load(bundle).plan()
            return
        with oci.Container.run(f"{prefix}-{count}", bundle, state_root=state_root) as container:
            with open(f"/proc/{container.pid}/mountinfo", newline="\\n") as table:
                tags = {line.split(" ")[4]: line.partition(" - ")[0].split(" ")[6:] for line in table}
            for row in rows:
                path = row["mounts"][-1]["destination"]
                flags = os.statvfs(f"/proc/{container.pid}/root{path}").f_flag
                print(json.dumps([row["key"], flags, [tag.partition(":")[0] for tag in tags.get(path, ())]]))
    except (oci.SpecError, oci.UnsupportedError, oci.StepError) as error:
        found = re.search(r"\\$\\.mounts\\[([0-9]+)\\]", str(error))
        key = owner[int(found[1])] if found else rows[0]["key"]
        print(json.dumps([key, str(error), []]))
        left = [row for row in rows if row["key"] != key] if found else []
        if left:
            attempt(base, left, run)
    assert not oci.Container.list(state_root=state_root)

with open(f"{bundle}/rows") as file:
    document = json.load(file)
for rows, run in document["attempts"]:
    attempt(document["base"], rows, run)
"""


class Case(NamedTuple):
    """What the expectations depend on."""

    caller: str
    namespaces: tuple[str, ...]
    host_flags: dict[str, int]
    """The flags of statfs(2) of what is bound: by the type of the mount."""

    @property
    def user(self) -> bool:
        return self.caller != "root"

    @property
    def refused(self) -> bool:
        """Whether no mount is possible at all."""
        return self.user and "mount" not in self.namespaces

    def kernel_refuses(self, kind: str) -> str:
        """Return the reason why the kernel refuses a type of mount with any option, as a pattern, or an empty string."""
        if kind in SHARED | FILLED_FIRST and not kind.startswith("cgroup") and kind not in supported():
            return f"{kind} for .*: this kernel does not support the filesystem"
        if self.user and kind in {"hugetlbfs", *SHARED} - {"mqueue", "sysfs", "cgroup", "cgroup2"}:
            bind = "let root mount it" if self.caller == "unprivileged" else "mount it"
            return f"create the {kind} for .*: the kernel does not allow this filesystem in a user namespace; {bind} on the host, and bind it"
        return ""

    def refuses(self, kind: str, option: str) -> str:
        """Return the reason why an option is refused for a type of mount, as a pattern, or an empty string."""
        if self.refused:
            return r"\$\.linux\.namespaces: a user namespace needs a mount namespace"
        plain = option[1:] if option[1:] in ATTRIBUTES and option not in ATTRIBUTES else option
        if option in LINKS and kind not in BINDS:
            return f"{option} requires a bind mount"
        if option == "tmpcopyup" and kind != "tmpfs":
            return "tmpcopyup requires a tmpfs"
        if option in ("idmap", "ridmap") and kind not in BINDS:
            return "only bind mounts can be id-mapped"
        if option in ("idmap", "ridmap") and self.caller == "unprivileged":
            return "an id-mapped mount needs root; run as root, or remove the mapping"
        if option in PROPAGATIONS and not option.endswith("private") and "mount" not in self.namespaces:
            return f"{option} needs a new mount namespace; add one, or use private"
        if kind == "remount" and option == "dirsync":
            return "dirsync cannot be set by a remount; add it to the entry of the mount"
        if not self.user:
            return ""
        needed = {"proc": ("pid", "/proc"), "mqueue": ("ipc", "/dev/mqueue")}.get(kind)
        if needed and needed[0] not in self.namespaces:
            return f"{kind} in a user namespace needs a new {needed[0]} namespace; add one, or bind {needed[1]} instead"
        if kind == "sysfs" and "network" not in self.namespaces and plain != "ro":
            return "a writable sysfs in a user namespace needs a new network namespace; add one, or the option ro"
        if kind in ("proc", "sysfs") and self.changes(kind, plain, ACCESS_TIMES):
            return "in a user namespace it can be mounted only as on the host: .*; remove options of access times, or bind the host's with rbind"
        bound = (kind in BINDS and self.caller == "unprivileged") or (kind.startswith("cgroup") and "cgroup" not in self.namespaces)
        if kind.startswith("cgroup") and bound and plain == "rw" and self.caller == "unprivileged":
            return (
                "has no cgroup in .*, so a writable mount would give it the host's; mount it read-only, or add a cgroup namespace"
            )
        if bound and self.changes(kind, plain, (*ACCESS_TIMES, "rw", "suid", "dev", "exec")):
            return "the attributes are locked: .*; remove the options that change them"
        return ""

    def changes(self, kind: str, option: str, options: tuple[str, ...]) -> bool:
        """Return whether an option, one of these, changes a flag that the host's mount has."""
        if option not in options:
            return False
        on, off = masks(option)
        flags = self.host_flags[kind]
        return flags & on != on or bool(flags & off)


def supported() -> set[str]:
    return {line.split("\t")[1].strip() for line in Path("/proc/filesystems").read_text().splitlines()}


def masks(option: str) -> tuple[int, int]:
    on, off = (sum(FLAGS[name] for name in names.split()) for names in EFFECTS[option])
    return on, off


def mounts_of(kind: str, option: str, place: str, tree: Path) -> list[dict[str, Any]]:
    """Return the entries of a config, of which the last one is the one to try."""
    options = [option] if option else []
    mount: dict[str, Any] = {"destination": place, "options": options}
    if option in ("idmap", "ridmap"):
        ids = [{"containerID": 0, "hostID": FIRST_ID, "size": 1000}]
        mount.update(uidMappings=ids, gidMappings=ids)
    if kind in BINDS:
        name = {"bind": "bound/dir", "bind of a file": "bound/file"}.get(kind, "flags")
        return [{**mount, "source": f"{tree}/{name}", "options": ["bind", *options]}]
    if kind in CHANGES:
        options = {"remount": ["remount"], "remount with bind": ["remount", "bind"]}.get(kind, []) + options
        return [{"destination": place, "type": "tmpfs", "source": "tmpfs"}, {**mount, "options": options}]
    if kind == "overlay":
        mount["options"] = [f"lowerdir={tree}/bound/dir:{tree}/bound/other", *options]
    return [{**mount, "type": kind, "source": kind}]


def base(case: Case) -> dict[str, Any]:
    linux: dict[str, Any] = {"namespaces": [{"type": name} for name in case.namespaces]}
    if case.user:
        uid = CALLERS[case.caller]
        ids = [{"containerID": 0, "hostID": uid or FIRST_ID, "size": 1 if uid else 65536}]
        linux.update(uidMappings=ids, gidMappings=ids)
        linux["namespaces"].append({"type": "user"})
    process = {"cwd": "/", "args": ["sleep", "1000"], "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]}
    return {"ociVersion": "1.3.0", "root": {"path": "rootfs"}, "process": process, "linux": linux}


def attempts(case: Case, rows: list[dict[str, Any]]) -> Iterator[tuple[list[dict[str, Any]], bool]]:
    """Yield groups of rows, each for one container, and whether to run that: what should succeed together, and each refusal alone.

    If the kernel refuses a type, its plain mount is run, and all other options are planned together.
    """
    good = [row for row in rows if not row["refused"]]
    for first in range(0, len(good), 250):
        yield good[first : first + 250], True
    for kind in KINDS:
        refused = [row for row in rows if row["kind"] == kind and row["refused"]]
        if planned := [row for row in refused if row["planned"]]:
            yield planned, False
        for row in refused:
            if not row["planned"]:
                yield [row], True


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    """Directories and a file to bind, on filesystems of their own; one of them has every flag that can be locked."""
    # Elsewhere than tmp_path, to whose parent every beginning session of pytest bars others.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as work:
        os.chmod(work, 0o755)
        tree = Path(work)
        places = {"bound": "relatime", "flags": "nosuid,nodev,noexec,noatime,nodiratime"}
        try:
            for name, options in places.items():
                (tree / name).mkdir()
                subprocess.run(["mount", "-t", "tmpfs", "-o", f"{options},mode=755", "none", tree / name], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro,noatime,nodiratime", tree / "flags"], check=True)
            for name in ("dir", "other"):
                (tree / "bound" / name).mkdir()
            (tree / "bound/file").touch()
            yield tree
        finally:
            for name in places:
                if os.path.ismount(tree / name):
                    subprocess.run(["umount", tree / name], check=True)


def test_every_option_has_an_expectation() -> None:
    """A new option needs a row in EFFECTS, or in WITHOUT_FLAGS."""
    assert {*EFFECTS, *WITHOUT_FLAGS} == {*OPTIONS[1:]}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("caller", CALLERS)
def test_every_mount_has_its_effect_or_is_refused(
    make_bundle: MakeBundle, prefix: str, user_script: Script, tree: Path, caller: str, cell: str
) -> None:
    uid = max(CALLERS[caller], 0)
    bound = {"bind": "bound", "bind of a file": "bound", "bind with flags": "flags"}
    flags = {kind: os.statvfs(tree / name).f_flag for kind, name in bound.items()}
    cgroups = [hierarchy.mountpoint for hierarchy in oci.Host.probe().hierarchies]
    flags |= {"proc": os.statvfs("/proc").f_flag, "sysfs": os.statvfs("/sys").f_flag}
    flags |= {name: os.statvfs(cgroups[-1]).f_flag for name in ("cgroup", "cgroup2")}
    case = Case(caller, CELLS[cell], flags)
    rows = []
    for kind in KINDS:
        for number, option in enumerate(OPTIONS):
            if kind == "propagation" and option not in PROPAGATIONS:
                continue
            place = f"/m/{kind.replace(' ', '-')}/{number}"
            if case.refused and option:
                continue
            by_plan = case.refuses(kind, option)
            by_kernel = "" if by_plan else case.kernel_refuses(kind)
            row = {"key": f"{kind}, {option}", "kind": kind, "option": option, "refused": by_plan or by_kernel}
            row |= {"planned": bool(by_kernel and option), "mounts": mounts_of(kind, option, place, tree)}
            rows.append(row)
    with tempfile.TemporaryDirectory(prefix=prefix, dir="/var/tmp") as work:
        os.chmod(work, 0o755)
        bundle, state_root = Path(shutil.move(make_bundle().path, work)), Path(work, "state")
        state_root.mkdir(mode=0o700)
        (bundle / "rows").write_text(json.dumps({"base": base(case), "attempts": [*attempts(case, rows)]}))
        for directory, _, _ in os.walk(bundle / "rootfs"):
            os.chown(directory, *((uid or FIRST_ID,) * 2 if case.user else (0, 0)))
        for path in (bundle, state_root, bundle / "config.json"):
            os.chown(path, uid, uid)
        done = user_script(RUN, bundle, state_root, prefix, uid, timeout=300)
        assert mounts_below(Path(work)) == []
        assert [name for name in os.listdir(state_root) if not name.startswith(".")] == []
        assert cgroups_of(prefix) == []
    found = {key: (result, tags) for key, result, tags in map(json.loads, done.stdout.splitlines())}
    problems = {row["key"]: problem for row in rows if (problem := compare(case, row, found))}
    assert problems == {}


def compare(case: Case, row: dict[str, Any], found: dict[str, tuple[int | str, list[str]]]) -> str:
    """Return what differs from the expectation; an empty string if nothing does."""
    kind, option, refused = row["kind"], row["option"], row["refused"]
    result, tags = found.get(row["key"], (None, []))
    if refused:
        if row["planned"]:
            return "" if result is None else f"not planned: {result}"
        if not isinstance(result, str) or not re.search(refused, result):
            return f"{result!r} instead of {refused!r}"
        return (
            ""
            if re.match(r"\$\.mounts\[[0-9]+\](\.\w+)?: |\$\.linux\.namespaces: |config is not valid", result)
            else f"no location: {result}"
        )
    if not isinstance(result, int):
        return f"{result!r}"
    on, off = masks(option) if option in EFFECTS else (0, 0)
    if kind == "overlay":
        off &= ~FLAGS["ro"]  # without an upper layer it is read-only
    if option == "sync" and kind in OWN_SUPERBLOCK:
        on = FLAGS["sync"]
    if result & on != on or result & off:
        return f"flags {result:#x}, not with {on:#x}, without {off:#x}"
    if option in PROPAGATIONS and "mount" in case.namespaces:
        expected = {
            "shared": "shared" in tags,
            "unbindable": "unbindable" in tags,
            "slave": "shared" not in tags,
            "private": tags == [],
        }
        name = option if option in expected else option[1:]
        return "" if expected[name] else f"{option}: {tags}"
    return ""
