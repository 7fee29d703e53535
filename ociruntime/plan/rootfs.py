"""The root filesystem: how it becomes the container's /, which paths in it are hidden, and the overlay of an image's layers.

See config.md#root and config-linux.md.
"""

from __future__ import annotations

import posixpath
import struct
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from ..arguments import shown
from ..errors import SpecError, UnsupportedError
from ..spec.base import Problem, destination_in_root
from . import ops
from .model import NO_SLOT, PlanBuilder
from .mount_options import PROPAGATION, MountOptions, parse_options
from .namespaces import dumpable
from .ops import Sync

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..host import Host
    from ..spec import Linux, RuntimeSpec
    from .detached_mounts import DetachedMounts
    from .model import Plan
    from .mount_options import MountEntry


_RECEIVES_MOUNTS: Final = (ops.MS_SLAVE, ops.MS_SHARED)


def rootfs_path(spec: RuntimeSpec, bundle: str) -> str:
    """Return the absolute path of the root filesystem on the host."""
    assert spec.root is not None
    return posixpath.normpath(posixpath.join(bundle, spec.root.path))


def root_propagation(spec: RuntimeSpec) -> tuple[int, bool]:
    """Return the kernel's propagation type for `linux.rootfsPropagation`, and whether it applies to all mounts of the container.

    The default is private, or slave if a mount of the config is to receive mounts of the host.

    Raises:
        SpecError: the value does not exist.
    """
    name = spec.linux.rootfs_propagation if spec.linux else None
    if not name:
        options = [option for mount in spec.mounts or () for option in parse_options(mount.options or ()).propagation]
        receives = any(PROPAGATION[option][0] in _RECEIVES_MOUNTS for option in options)
        return (ops.MS_SLAVE if receives else ops.MS_PRIVATE), True
    if name not in PROPAGATION:
        message = f"{shown(str(name))} is not one of [r]private, [r]slave, [r]shared, [r]unbindable"
        raise SpecError([Problem("$.linux.rootfsPropagation", message, "config-linux.md#rootfs-mount-propagation")])
    return PROPAGATION[name]


def check_propagation(spec: RuntimeSpec, entries: Iterable[MountEntry]) -> None:
    """Check the propagation of a container without a new mount namespace, whose mounts neither send nor receive any.

    Raises:
        UnsupportedError: the config asks for another propagation than private.
    """
    requests = [(f"{entry.location}.options", name) for entry in entries for name in entry.options.propagation]
    if spec.linux and spec.linux.rootfs_propagation:
        requests.append(("$.linux.rootfsPropagation", spec.linux.rootfs_propagation))
    for location, name in requests:
        if name.removeprefix("r") != "private":
            raise UnsupportedError(f"{location}: {name} needs a new mount namespace; add one, or use private")


def cut_tree_propagation(builder: PlanBuilder, spec: RuntimeSpec) -> None:
    """Cut the propagation between the container's mount namespace and the host's, unless it is to be shared."""
    cut_propagation(builder, root_propagation(spec)[0], NO_SLOT, "all mounts")


def cut_propagation(builder: PlanBuilder, propagation: int, slot: int, subject: str) -> None:
    """Make a tree receive the host's mounts (slave) or not (private); none of its mounts appears on the host."""
    if propagation == ops.MS_SHARED:
        return
    slave = propagation == ops.MS_SLAVE
    kept, text = (ops.MS_SLAVE, "slave") if slave else (ops.MS_PRIVATE, "private")
    builder.add("mount_setattr", slot, ops.AT_RECURSIVE, 0, 0, kept, NO_SLOT, text=f"{text} propagation for {subject}")


def clone_root(builder: PlanBuilder, spec: RuntimeSpec, path: str, *, unsettled: bool = False) -> int:
    """Copy the rootfs and return its slot.

    Args:
        unsettled: the init is in the runtime's mount namespace, whose propagation has not been changed for the container.
    """
    bits, _ = root_propagation(spec)
    root = builder.new_slot()
    builder.add("open_tree", NO_SLOT, path, ops.OPEN_TREE_CLONE | ops.AT_RECURSIVE, root, text=f"rootfs {path}")
    if unsettled or bits == ops.MS_SHARED:
        cut_propagation(builder, ops.MS_PRIVATE if bits == ops.MS_SHARED else bits, root, "the rootfs")
    return root


def enter_root(builder: PlanBuilder, spec: RuntimeSpec, root: int, uncovered: Sequence[str] | None) -> None:
    """Attach the rootfs over the host's root and change into it.

    Args:
        uncovered: as for `compile_create`.
    """
    if root_propagation(spec)[0] == ops.MS_SHARED:
        # The bind mounts are copied and stay peers of the host's. A peer in the old tree would be unmounted on the host with it.
        _make_tree_private(builder)
    if uncovered is not None:
        cover_root(builder, root, uncovered)
        return
    builder.add("move_mount", root, NO_SLOT, text="rootfs -> /, over the host's root")
    pivot_root(builder, root)


def open_rootfs_place(builder: PlanBuilder, path: str) -> int:
    """Open the path of the rootfs for `attach_root`, while the init has the caller's ids; return its slot."""
    slot = builder.new_slot()
    builder.add("open", NO_SLOT, path, ops.O_PATH, 0, 0, slot, text=f"path of the rootfs {path}, for hooks")
    return slot


def attach_root(builder: PlanBuilder, root: int, place: int) -> None:
    """Attach the rootfs at its path in the host's tree, of which this copy becomes private."""
    _make_tree_private(builder)
    builder.add("move_mount", root, place, text="rootfs -> its path in the host's tree")


def _make_tree_private(builder: PlanBuilder) -> None:
    text = "private propagation for the copy of the host's tree"
    builder.add("mount_setattr", NO_SLOT, ops.AT_RECURSIVE, 0, 0, ops.MS_PRIVATE, NO_SLOT, text=text)


def pivot_root(builder: PlanBuilder, root: int) -> None:
    """Make the rootfs /, and detach the host's tree."""
    builder.add("pivot_root", root, text="rootfs becomes /, and the host's tree is detached")


def cover_root(builder: PlanBuilder, root: int, uncovered: Sequence[str]) -> None:
    """Make the rootfs / by mounting it over the host's tree, which stays, private to the container.

    As long as the tree has a whole procfs or sysfs, the kernel lets a user namespace in the container mount another one, without
    the masks of the container's. So these are hidden.

    Args:
        uncovered: their mount points.
    """
    if uncovered:
        host = builder.new_slot()
        builder.add("open", NO_SLOT, "/", ops.O_PATH, 0, 0, host, text="the host's root")
        for path in uncovered:
            builder.add("mask", host, path.lstrip("/"), NO_SLOT, text=f"{path} of the host is hidden")
        builder.add("close", host, text="the host's root")
    builder.add("move_mount", root, NO_SLOT, text="rootfs -> /, over the host's root")
    builder.add("chroot", root, text="rootfs becomes /, and the host's tree stays below it")


def change_root(builder: PlanBuilder, root: int) -> None:
    """Make a detached rootfs /: the mount namespace is not the container's own, so nothing is mounted in it."""
    builder.add("chroot", root, text="rootfs becomes /, and stays detached from the shared mount namespace")


def finish_root(builder: PlanBuilder, spec: RuntimeSpec, root: int) -> None:
    """Set the propagation and the read-only attribute of the root, after everything in it is done."""
    assert spec.root is not None
    bits, recursive = root_propagation(spec)
    if bits in (ops.MS_SHARED, ops.MS_UNBINDABLE):
        flags = ops.AT_RECURSIVE if recursive else 0
        name = next(name for name, value in PROPAGATION.items() if value == (bits, recursive))
        builder.add("mount_setattr", root, flags, 0, 0, bits, NO_SLOT, text=f"{name} propagation for /")
    if spec.root.readonly:
        builder.add("mount_setattr", root, 0, ops.MOUNT_ATTR_RDONLY, 0, 0, NO_SLOT, text="ro for /")


def hide_paths(builder: PlanBuilder, linux: Linux | None, root: int) -> None:
    """Apply ``readonlyPaths`` and ``maskedPaths`` to the paths that exist (config-linux.md#masked-paths)."""
    if linux is None:
        return
    for index, path in enumerate(linux.readonly_paths or ()):
        with builder.at(f"$.linux.readonlyPaths[{index}]"):
            builder.add("readonly", root, destination_in_root(path), text=f"read-only path {path}, if it exists")
    if linux.masked_paths:
        null = builder.new_slot()
        in_root = ops.RESOLVE_IN_ROOT | ops.RESOLVE_NO_MAGICLINKS
        builder.add("open", root, "dev/null", ops.O_PATH, 0, in_root, null, text="/dev/null, to mask paths")
        builder.add("prove_dev", null, ops.S_IFCHR, ops.makedev(1, 3), text="/dev/null is the null device")
        hidden: set[str] = set()
        for index, path in enumerate(linux.masked_paths):
            if (place := destination_in_root(path)) not in hidden:
                hidden.add(place)
                with builder.at(f"$.linux.maskedPaths[{index}]"):
                    builder.add("mask", root, place, null, text=f"masked path {path}, if it exists")


# ---- the overlay that becomes the root filesystem of one container, mounted in the mount namespace of that container ----
#
# The init gets each layer by descriptor. A kernel before 6.15 takes only layers that are attached in the mount namespace of the
# process that mounts the overlay. So the layers that are not directories of the host are attached over its root for a moment, which
# changes no path: paths begin at the root directory of the init, below these mounts. Where another process would see that, it
# happens in a mount namespace of its own, which the init then leaves.


class ImageMount(NamedTuple):
    """A filesystem of an image, which the calling process mounts and hands to the init as a detached mount."""

    source: str
    """What is mounted, for people and as the name of the mount: ``squashfs at 36864 of /srv/image.sif``."""
    directory: str = ""
    """The directory in it that is the layer; an empty string for its root directory."""


class Tmpfs(NamedTuple):
    """A tmpfs for an upper layer, which lives as long as the container."""

    size: int = 0
    """Its size in bytes; 0 for the default of the kernel, which is half of the memory."""

    @property
    def files(self) -> int:
        """The most files that it can have; 0 for the default of the kernel, which depends on the memory alone.

        An empty file takes about 1 KiB of the kernel's memory, and nothing of the size.
        """
        return self.size and max(_LEAST_FILES, self.size // _BYTES_PER_FILE)


_BYTES_PER_FILE: Final = 4096
_LEAST_FILES: Final = 1024


class Overlay(NamedTuple):
    """The layers of the root filesystem of one container."""

    lowers: tuple[str | ImageMount, ...]
    """The read-only layers, the uppermost first: absolute paths of directories, and filesystems of the image."""
    upper: str | ImageMount | Tmpfs
    """What has the directories ``upper`` and ``work``: the absolute path of a directory, or a filesystem."""
    kept: bool = False
    """Whether the upper layer outlives the container. Otherwise the kernel does not need to write it to the disk at the end."""
    note: str = ""
    """How the files of the image are mounted or extracted, and why, as the plan shows it."""


WHOLE_FILES: Final = (("redirect_dir", "off"), ("metacopy", "off"))
"""Options of an overlay whose upper layer does not refer to files of the layers below, whatever the defaults of the host are:
otherwise it could not be copied into an image. They conflict with ``userxattr``, which implies them."""
UPPER_STEPS: Final = ("upper layer of /", "create the overlay for /")
"""How the texts of the steps begin that fail with EINVAL if the filesystem of the upper layer cannot have one."""
_JOINED_LAYERS: Final = 12
"""Layers in one option of 255 bytes, as paths of descriptors; more need an option for each, as Linux 6.5 has it."""
_SINGLE_LAYERS: Final = (6, 5)
_ESCAPES: Final = str.maketrans({"\\": "\\\\", ":": "\\:", ",": "\\,"})
_PLACE: Final = "/, over the host's root for a moment"


def create_overlay(
    builder: PlanBuilder, mounts: DetachedMounts, overlay: Overlay, host: Host, *, aside: bool, userxattr: bool
) -> int:
    """Add the steps that create an overlay, and return the slot of its mount.

    Args:
        mounts: sets the options of its filesystem.
        aside: whether another process would see the mounts of this namespace.
        userxattr: whether the kernel lets this process use the extended attributes of users alone, as in a user namespace.

    Raises:
        UnsupportedError: it has more layers than this kernel supports.
    """
    if len(overlay.lowers) > _JOINED_LAYERS and host.kernel < _SINGLE_LAYERS:
        return _create_by_paths(mounts, overlay, userxattr=userxattr)
    attached = [layer for layer in (*overlay.lowers, overlay.upper) if not isinstance(layer, str)]
    with _namespace_aside(builder) if aside and attached else _in_place(builder) as places:
        lowers = [_open_layer(builder, lower, places) for lower in overlay.lowers]
        upper = _open_upper(builder, mounts, overlay.upper, lowers[0], places)
        return _mount(builder, mounts, overlay, lowers, upper, userxattr=userxattr)


def _create_by_paths(mounts: DetachedMounts, overlay: Overlay, *, userxattr: bool) -> int:
    """Create an overlay of many directories on a kernel that takes them only as one option, by their paths."""
    layers = [layer for layer in (*overlay.lowers, overlay.upper) if isinstance(layer, str)]
    if len(layers) <= len(overlay.lowers):
        raise UnsupportedError(
            f"$.root: an overlay of {len(overlay.lowers)} layers that are mounted for it needs Linux "
            f"{'.'.join(map(str, _SINGLE_LAYERS))}; convert the image to one with fewer layers"
        )
    *lowers, upper = [path.translate(_ESCAPES) for path in layers]
    data = [("lowerdir", ":".join(lowers)), ("upperdir", f"{upper}/upper"), ("workdir", f"{upper}/work")]
    flags = _flags(overlay, userxattr=userxattr)
    options = MountOptions(set=ops.MOUNT_ATTR_NOSUID | ops.MOUNT_ATTR_NODEV, data=(*data, *flags))
    return mounts.create_filesystem("overlay", "overlay", "/", options, "$.root")


def _mount(
    builder: PlanBuilder, mounts: DetachedMounts, overlay: Overlay, lowers: list[int], upper: tuple[int, int], *, userxattr: bool
) -> int:
    context, slot = mounts.context(), builder.new_slot()
    builder.add("fsopen", "overlay", context, text="overlay for /")
    mounts.configure(context, "source", "overlay", "/")
    keys = [("lowerdir", lowers)] if len(lowers) <= _JOINED_LAYERS else [("lowerdir+", [lower]) for lower in lowers]
    for key, slots in keys:
        builder.add("fsconfig_fds", context, key, struct.pack(f"={len(slots)}I", *slots), text=f"{key} for /")
    for key, fd in zip(("upperdir", "workdir"), upper, strict=True):
        text = f"{UPPER_STEPS[0]}: {key} in {_named(overlay.upper)}"
        builder.add("fsconfig_fds", context, key, struct.pack("=I", fd), text=text)
    for key, value in _flags(overlay, userxattr=userxattr):
        mounts.configure(context, key, value, "/")
    for key, value in mounts.labels("overlay"):
        mounts.configure(context, key, value, "/")
    text = f"{UPPER_STEPS[1]}, with {_named(overlay.upper)} over {' over '.join(map(_named, overlay.lowers))}"
    builder.add("fsconfig", context, ops.FSCONFIG_CMD_CREATE, "", "", text=text)
    attributes = ops.MOUNT_ATTR_NOSUID | ops.MOUNT_ATTR_NODEV
    builder.add("fsmount", context, attributes, slot, text="overlay for / (nosuid, nodev)")
    return slot


def _flags(overlay: Overlay, *, userxattr: bool) -> list[tuple[str, str | None]]:
    volatile = isinstance(overlay.upper, str) and not overlay.kept
    return [*([("userxattr", None)] if userxattr else WHOLE_FILES), *([("volatile", None)] if volatile else [])]


def _named(layer: str | ImageMount | Tmpfs) -> str:
    if isinstance(layer, Tmpfs):
        return f"a tmpfs of {layer.size} bytes" if layer.size else "a tmpfs"
    return layer if isinstance(layer, str) else layer.source


def _open_layer(builder: PlanBuilder, layer: str | ImageMount, places: list[int]) -> int:
    """Return the slot of a directory or filesystem. A filesystem is attached, and noted in ``places``."""
    if isinstance(layer, str):
        slot = builder.new_slot()
        builder.add("open", NO_SLOT, layer, ops.O_PATH, 0, 0, slot, text=f"layer {layer}")
        return slot
    slot = builder.add_input("image", "$.root", layer.source)
    _attach(builder, slot, layer.source, places)
    if not layer.directory:
        return slot
    inner = builder.new_slot()
    text = f"{layer.directory} of {layer.source}"
    builder.add("open", slot, layer.directory, ops.O_PATH, 0, ops.RESOLVE_NO_SYMLINKS, inner, text=text)
    return inner


def _attach(builder: PlanBuilder, slot: int, name: str, places: list[int]) -> None:
    builder.add("move_mount", slot, NO_SLOT, text=f"{name} -> {_PLACE}")
    places.append(slot)


def _open_upper(
    builder: PlanBuilder, mounts: DetachedMounts, upper: str | ImageMount | Tmpfs, lower: int, places: list[int]
) -> tuple[int, int]:
    """Return the slots of an upper and a work directory."""
    if isinstance(upper, Tmpfs):
        base = _create_tmpfs(builder, mounts, upper, places)
        builder.add("mkdir", base, "upper", 0o755, text="upper layer in the tmpfs")
        builder.add("mkdir", base, "work", 0o700, text="work directory in the tmpfs")
    else:
        base = _open_layer(builder, upper, places)
    slots = builder.new_slot(), builder.new_slot()
    for name, slot in zip(("upper", "work"), slots, strict=True):
        builder.add("open", base, name, ops.O_PATH, 0, ops.RESOLVE_NO_SYMLINKS, slot, text=f"{name} of {_named(upper)}")
    if isinstance(upper, Tmpfs):
        builder.add("mode_like", lower, ".", slots[0], text="mode of / like that of the image")
        builder.add("give", slots[0], text="upper layer, which has no path, for the caller")
    return slots


def _create_tmpfs(builder: PlanBuilder, mounts: DetachedMounts, tmpfs: Tmpfs, places: list[int]) -> int:
    context, slot = mounts.context(), builder.new_slot()
    builder.add("fsopen", "tmpfs", context, text="tmpfs for the upper layer of /")
    limits = (("size", str(tmpfs.size)), ("nr_inodes", str(tmpfs.files))) if tmpfs.size else ()
    for key, value in (("source", "tmpfs"), ("mode", "0700"), *limits):
        mounts.configure(context, key, value, "the upper layer of /")
    builder.add("fsconfig", context, ops.FSCONFIG_CMD_CREATE, "", "", text="create the tmpfs for the upper layer of /")
    attributes = ops.MOUNT_ATTR_NOSUID | ops.MOUNT_ATTR_NODEV
    builder.add("fsmount", context, attributes, slot, text="tmpfs for the upper layer of / (nosuid, nodev)")
    _attach(builder, slot, "tmpfs", places)
    return slot


@contextmanager
def _in_place(builder: PlanBuilder) -> Iterator[list[int]]:
    """Attach layers in the mount namespace of the container for the block. The list gets their slots."""
    places: list[int] = []
    yield places
    for slot in reversed(places):
        builder.add("detach", slot, text=f"detach the layer from {_PLACE}; the overlay keeps it")


@contextmanager
def _namespace_aside(builder: PlanBuilder) -> Iterator[list[int]]:
    """Attach layers in a mount namespace that no other process is in, for the block."""
    previous, root = builder.new_slot(), builder.new_slot()
    builder.add("open", NO_SLOT, "/proc/self/ns/mnt", 0, 0, 0, previous, text="mount namespace, to return to it")
    builder.add("open", NO_SLOT, "/", ops.O_PATH, 0, 0, root, text="root directory, to return to it")
    builder.add("unshare", ops.CLONE_NEW["mount"], text="another mount namespace, in which no process sees the layers")
    builder.add("mount_setattr", NO_SLOT, ops.AT_RECURSIVE, 0, 0, ops.MS_PRIVATE, NO_SLOT, text="private propagation in it")
    yield []
    builder.add("setns", previous, ops.CLONE_NEW["mount"], text="back to the mount namespace before; the overlay keeps its layers")
    builder.add("chroot", root, text="back to the root directory before")


# ---- filesystems of an image that programs serve by FUSE, in namespaces of their own ----
#
# A user may mount FUSE filesystems as root of a user namespace. The program mounts its filesystem itself, in the first of two mount
# namespaces, and serves it there in the background. The second one is a copy that no process is in: the caller holds it open, and
# copies the mounts in it for its containers. In the first one they are then unmounted. Otherwise a program would keep its own mount
# namespace, and so its own mount, and never end. Neither namespace keeps mounts of the host, which could not be unmounted there.
#
# The init is the first process of a pid namespace, so that no program outlives it. It ends with the last program.


class FuseProgram(NamedTuple):
    """A program that mounts a filesystem by FUSE. Its stdin is the file, and the mount point is its last argument."""

    path: str
    args: tuple[str, ...]
    env: tuple[str, ...]
    source: str
    """What it mounts, as in `ImageMount`."""


_FUSE_PLACE: Final = "/sys"
"""A directory that every host has and no such program needs. The mount points are in it until it becomes the root directory."""


def compile_fuse(programs: Sequence[FuseProgram], host: Host, timeout: int) -> Plan:
    """Compile the plan that starts programs for filesystems of an image, and hands their mounts out to the caller.

    The inputs of the kind ``image`` are the files. The plan hands out the mount namespace, its root directory, and that of each
    filesystem.

    Args:
        timeout: seconds for each of them.
    """
    builder = PlanBuilder()
    builder.phase = "On the host"
    builder.add_host("clone3", 0, "", text="init process")
    files = [builder.add_input("image", "$.root", program.source) for program in programs]
    output = builder.add_input("output", "messages of the programs")
    flags = sum(ops.CLONE_NEW[kind] for kind in ("user", "mount", "pid"))
    with dumpable(builder, host, "for the id mappings that the caller writes"):
        builder.add("fork", flags, text="child process in new namespaces: user, mount, pid")
        builder.add_host("proc_write", "setgroups", "deny", text="deny > /proc/PID/setgroups, for an unprivileged gid map")
        for kind, own in (("uid", host.euid), ("gid", host.egid)):
            builder.add_host("idmap", f"{kind}_map", f"0 {own} 1\n", "", text=f"0 {own} 1 > /proc/PID/{kind}_map")
    builder.phase = "In the namespaces of the programs"
    builder.add("setresgid", 0, text="gid 0 in the user namespace")
    builder.add("setresuid", 0, text="uid 0 in the user namespace")
    builder.add("setsid", text="new session, which no terminal interrupts")
    places, root, namespaces = _mount_places(builder, len(programs)), builder.new_slot(), builder.new_slot()
    builder.add("open", NO_SLOT, "/", ops.O_PATH, 0, 0, root, text="working directory of the programs")
    builder.add("open", NO_SLOT, "/proc/self/ns", ops.O_PATH, 0, 0, namespaces, text="/proc/self/ns")
    for number, (program, file) in enumerate(zip(programs, files, strict=True)):
        argv = (*program.args, f"{_FUSE_PLACE}/{number}")
        text = f"{program.path} for {program.source}"
        builder.add("hook", root, program.path, argv, program.env, file, output, timeout * 1000, text=text)
    builder.phase = "Handing the mounts out"
    builder.add("close", root, text="the host's root directory")
    pivot_root(builder, places)
    paths = [f"/{number}" for number in range(len(programs))]
    mounts = [_open_fuse(builder, path) for path in paths]
    first, second = builder.new_slot(), builder.new_slot()
    builder.add("open", namespaces, "mnt", 0, 0, 0, first, text="mount namespace, to return to it")
    builder.add("unshare", ops.CLONE_NEW["mount"], text="another mount namespace, in which no program is")
    builder.add("open", namespaces, "mnt", 0, 0, 0, second, text="mount namespace for the caller")
    builder.add("handout", second, text="mount namespace, for the caller")
    builder.add("handout", _open_fuse(builder, "/"), text="/, for the caller")
    for path, program in zip(paths, programs, strict=True):
        slot = builder.new_slot()
        # Not by O_PATH: the program has to answer. This process may wait for that in vain, and its caller never.
        builder.add("open", NO_SLOT, path, 0, 0, 0, slot, text=f"files that {program.path} shows of {program.source}")
        builder.add("handout", slot, text=f"{path}, for the caller")
    builder.add("setns", first, ops.CLONE_NEW["mount"], text="back to the mount namespace of the programs")
    for path, mount in zip(paths, mounts, strict=True):
        builder.add("detach", mount, text=f"unmount {path} there, so that its program can end")
    builder.add("sync", Sync.CREATED, text="wait until the caller has everything")
    builder.add("reap", 1, text="reap children until there are none")
    return builder.build("FUSE", clone_flags=0, namespaces=flags)


def _open_fuse(builder: PlanBuilder, path: str) -> int:
    slot = builder.new_slot()
    builder.add("open", NO_SLOT, path, ops.O_PATH, 0, 0, slot, text=path)
    return slot


def _mount_places(builder: PlanBuilder, count: int) -> int:
    """Mount a filesystem with empty directories as mount points, and return its slot."""
    context, slot, target = builder.new_slot(), builder.new_slot(), builder.new_slot()
    builder.add("fsopen", "tmpfs", context, text="tmpfs for the mount points")
    for key, value in (("source", "tmpfs"), ("mode", "0700"), ("size", "1m")):
        builder.add("fsconfig", context, ops.FSCONFIG_SET_STRING, key, value, text=f"{key}={value} for it")
    builder.add("fsconfig", context, ops.FSCONFIG_CMD_CREATE, "", "", text="create the tmpfs for the mount points")
    builder.add("fsmount", context, ops.MOUNT_ATTR_NOSUID | ops.MOUNT_ATTR_NODEV, slot, text="tmpfs (nosuid, nodev)")
    builder.add("open", NO_SLOT, _FUSE_PLACE, ops.O_PATH, 0, 0, target, text=_FUSE_PLACE)
    builder.add("move_mount", slot, target, text=f"tmpfs -> {_FUSE_PLACE}")
    for number in range(count):
        builder.add("mkdir", slot, str(number), 0o700, text=f"mount point {_FUSE_PLACE}/{number}")
    return slot
