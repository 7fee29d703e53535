"""The files of an image, read without mounting it: one view of all its layers, the content of a file, and extraction."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs
from typing_extensions import override

from ociruntime.arguments import printable
from ociruntime.errors import ImageError, ImagePathError, ImagePathNotFound, OCIRuntimeError, UnsupportedError
from ociruntime.files import absolute_path, write_all
from ociruntime.image.blobs import INSTALL, LayerFormat, check_digest, optional_module
from ociruntime.image.filesystems import ErofsTree, ExtTree
from ociruntime.image.layers import (
    FILE_TYPES,
    MAX_DEPTH,
    MAX_PATH,
    Budget,
    DirectoryTree,
    FileType,
    Node,
    TarTree,
    Tree,
)
from ociruntime.interrupts import check_deadline, complete

if TYPE_CHECKING:
    from ociruntime.image.model import Layer

__all__ = [
    "MAX_BYTES",
    "MAX_FILES",
    "FileType",
    "ImageFile",
    "LayerView",
    "Layers",
    "Route",
    "View",
    "extract",
    "image_file",
    "top_node",
]

StrPath = str | os.PathLike[str]

MAX_FILES: Final = 1_000_000
"""Most files that a call looks at by default."""
MAX_BYTES: Final = 64 << 30
"""Most bytes that a call decompresses or writes by default."""
_MAX_LINKS: Final = 40
_MODES: Final = {kind: mode for mode, kind in FILE_TYPES.items()}


@attrs.frozen(kw_only=True)
class ImageFile:
    """A file in an image."""

    path: str
    """The path from the root of the image, as ``/etc/passwd``. Bytes that are not UTF-8 are surrogates, as in `os.fsdecode`."""
    type: FileType
    mode: int
    """Permissions, set-user-ID, set-group-ID and sticky bits."""
    uid: int
    gid: int
    size: int
    """Size of the content in bytes; 0 for anything but a regular file."""
    mtime: int
    """Time of modification, in seconds since the epoch."""
    target: str = ""
    """What a symbolic link holds."""
    device: tuple[int, int] | None = None
    """Major and minor number of a device."""

    def __str__(self) -> str:
        size = ",".join(map(str, self.device)) if self.device is not None else str(self.size)
        link = f" -> {printable(self.target)}" if self.type is FileType.SYMLINK else ""
        mode = stat.filemode(_MODES[self.type] | self.mode)
        return f"{mode} {self.uid}/{self.gid} {size:>12} {printable(self.path)}{link}"


Merged: TypeAlias = tuple[Node, ...]
"""A file of the merged view: its nodes in the layers, the uppermost first; several only of a directory."""
Route: TypeAlias = list[tuple[str, Merged]]
"""The way from the root to a file: names and files, the root first."""


def _top(merged: Merged) -> Node:
    """Return the node that describes a file."""
    return next((node for node in merged if not node.implied), merged[0])


def top_node(route: Route) -> Node:
    """Return the node that describes the file at the end of a route."""
    return _top(route[-1][1])


def _path(route: Route) -> str:
    return "/" + "/".join(name for name, _ in route[1:])


def image_file(route: Route) -> ImageFile:
    """Return the file at the end of a route."""
    node = top_node(route)
    return ImageFile(
        path=_path(route),
        type=node.type,
        mode=node.mode,
        uid=node.uid,
        gid=node.gid,
        size=node.size,
        mtime=node.mtime,
        target=node.target,
        device=node.device,
    )


class Layers:
    """The trees of the layers of an open image, each of which is read when it is needed and kept.

    Args:
        name: the image, for messages.
        layers: the layers, lowest first.
    """

    def __init__(self, name: str, layers: Sequence[Layer]) -> None:
        self.name = name
        self._layers = layers
        self._trees: list[Tree] = []

    def view(self, max_files: int, max_bytes: int, upper: Tree | None = None) -> View:
        """Return the merged view.

        Args:
            upper: a further layer above those of the image.

        Raises:
            ImageError: a layer is damaged, or exceeds a limit.
            UnsupportedError: the files of a layer cannot be read, or only with modules that are not installed.
        """
        budget = Budget(self.name, max_files, max_bytes)
        return View(self.name, self._read(budget, upper), budget.renewed())

    def views(self, max_files: int, max_bytes: int, upper: Tree | None = None) -> list[LayerView]:
        """Return the views of all layers, lowest first. Arguments and errors as for `view`."""
        budget = Budget(self.name, max_files, max_bytes)
        trees = self._read(budget, upper)
        return [LayerView(self.name, trees[: number + 1], budget.renewed()) for number in range(len(trees))]

    def _read(self, budget: Budget, upper: Tree | None) -> list[Tree]:
        if not self._layers:
            raise ImageError(f"{self.name}: no part of the image is a part of a root filesystem")
        trees = list(self._trees)
        for layer in self._layers[len(trees) :]:
            trees.append(self._tree(layer, View(self.name, trees, budget), budget))
        self._trees = trees
        return trees if upper is None else [*trees, upper]

    def _tree(self, layer: Layer, below: View, budget: Budget) -> Tree:
        where = f"{self.name}: layer {layer.digest or layer}"
        if layer.format.is_archive:
            return TarTree(layer, where, lambda path: _top(below.find(path, follow=False)[-1][1]), budget)
        if layer.format is LayerFormat.DIRECTORY:
            return DirectoryTree(layer._directory, self.name)
        if layer.format.is_filesystem and layer._section is not None:
            reader: Any = {LayerFormat.EXT: ExtTree, LayerFormat.EROFS: ErofsTree}.get(layer.format)
            if reader is None:
                module = optional_module("ociruntime.image.squashfs", "reading a squashfs without mounting it", INSTALL)
                reader = module.SquashfsTree
            if layer.digest:
                check_digest(layer._section, layer.digest, where)
            tree: Tree = reader(layer._section, where)
            return tree
        raise UnsupportedError(f"{where}: files cannot be read from a layer of the format {layer.format!s}")


class View:
    """The files of an image as a container sees them: one tree of all layers.

    Args:
        name: the image, for messages.
        trees: the layers, lowest first.
        budget: for the files of directories.
    """

    def __init__(self, name: str, trees: Sequence[Tree], budget: Budget) -> None:
        self.name = name
        self.budget = budget
        self._root: Merged = tuple(tree.root for tree in reversed(trees))

    def find(self, path: StrPath, *, follow: bool = True) -> Route:
        """Return the way to a file. Symbolic links are followed; they cannot lead out of the image.

        Args:
            path: the path, from the root of the image.
            follow: follow the last component too.

        Raises:
            ImagePathNotFound: there is no such file.
            ImagePathError: the path leads through a file that is not a directory, or through too many links.
        """
        given = os.fsdecode(path)
        route: Route = [("", self._root)]
        if not self._root:
            raise self.error(errno.ENOENT, given)
        parts, links = deque(_split(given)), 0
        while parts:
            part = parts.popleft()
            if part == "..":
                del route[max(1, len(route) - 1) :]
                continue
            above = route[-1][1]
            if not above[0].is_directory:
                raise self.error(errno.ENOTDIR, given)
            found = self.children(above).get(part)
            if found is None:
                raise self.error(errno.ENOENT, given)
            if found[0].type is not FileType.SYMLINK or not (follow or parts):
                route.append((part, found))
                continue
            links += 1
            if links > _MAX_LINKS:
                raise self.error(errno.ELOOP, given)
            if found[0].target.startswith("/"):
                del route[1:]
            parts.extendleft(reversed(_split(found[0].target)))
        return route

    def children(self, merged: Merged) -> dict[str, Merged]:
        """Return the files in a directory."""
        found: dict[str, list[Node]] = {}
        closed: set[str] = set()  # names of which lower layers have nothing to say
        for directory in merged:
            for name, node in directory.tree.children(directory, self.budget).items():
                if name in closed:
                    continue
                if not node.whiteout and (node.is_directory or name not in found):
                    found.setdefault(name, []).append(node)
                if node.whiteout or not node.is_directory:
                    closed.add(name)
            if directory.opaque:
                break
        return {name: tuple(nodes) for name, nodes in found.items()}

    def describe(self, route: Route) -> Node:
        """Return a node with the attributes of the file at the end of a route."""
        return top_node(route)

    def marks(self, node: Node) -> dict[str, bytes]:
        """Return further extended attributes, which say how a file of a layer covers lower ones."""
        return {}

    def below(
        self, route: Route, *, recursive: bool = True, leave_out: Callable[[Route], bool] = lambda _: False
    ) -> Iterator[Route]:
        """Yield the way to a file and, if it is a directory, to everything in it, in the order of the paths.

        A directory comes before its content. The list that is yielded is used again for the next one.

        Args:
            route: the way to the file.
            recursive: also what is in the directories of a directory.
            leave_out: says of a file whether to leave it out, with everything in it.
        """
        self.budget.take_files()
        yield route
        begin, pending = len(route), [self._sorted(route[-1][1])]
        while pending:
            del route[begin + len(pending) - 1 :]
            item = next(pending[-1], None)
            if item is None:
                pending.pop()
                continue
            route.append(item)
            if leave_out(route):
                continue
            self.budget.take_files()
            if len(route) > MAX_DEPTH or len(os.fsencode(_path(route))) > MAX_PATH:
                raise ImageError(f"{self.name}: {printable(_path(route)[:200])}... lies too deep in the image")
            yield route
            if recursive and item[1][0].is_directory:
                pending.append(self._sorted(item[1]))

    def _sorted(self, merged: Merged) -> Iterator[tuple[str, Merged]]:
        return iter(sorted(self.children(merged).items(), key=lambda item: item[0]) if merged[0].is_directory else ())

    def files(self, path: StrPath, *, recursive: bool) -> Iterator[ImageFile]:
        """Yield a file and what is in it. Arguments and errors as for `Image.files`."""
        return map(image_file, self.below(self.find(path), recursive=recursive))

    def read(self, path: StrPath, limit: int) -> bytes:
        """Return the content of a regular file. Errors as for `Image.read_bytes`."""
        node = top_node(self.find(path))
        if node.is_directory:
            raise self.error(errno.EISDIR, os.fsdecode(path))
        if node.type is not FileType.FILE:
            raise self.error(errno.EINVAL, os.fsdecode(path), f"a {node.type}, not a regular file")
        if node.size > limit:
            raise self.error(errno.EFBIG, os.fsdecode(path), f"{node.size} bytes are more than the limit of {limit}")
        result = bytearray()
        for _, pieces in node.tree.contents([node], self.budget):
            for piece in pieces:
                result += piece
                if len(result) > node.size:
                    break
        if len(result) != node.size:
            raise ImageError(f"{self.name}: {printable(os.fsdecode(path))}: the content does not have {node.size} bytes")
        return bytes(result)

    def error(self, number: int, path: str, problem: str = "") -> ImagePathError:
        """Return an error about a path in the image."""
        message = f"{self.name}: {printable(path[:MAX_PATH])}: {problem or os.strerror(number).lower()}"
        return (ImagePathNotFound if number == errno.ENOENT else ImagePathError)(number, message, path)


class LayerView(View):
    """The files of one layer, with the whiteouts that hide files of lower layers.

    Args:
        name: the image, for messages.
        trees: the layer and all lower ones, lowest first.
        budget: for the files of directories.
    """

    def __init__(self, name: str, trees: Sequence[Tree], budget: Budget) -> None:
        super().__init__(name, trees[-1:], budget)
        self._merged, self._lower = View(name, trees, budget), View(name, trees[:-1], budget)

    @override
    def children(self, merged: Merged) -> dict[str, Merged]:
        (node,) = merged
        found: dict[str, Merged] = {name: (child,) for name, child in node.tree.children(node, self.budget).items()}
        if node is self._root[0] and node.opaque and self._lower._root:  # an overlay has no opaque root
            for name in self._lower.children(self._lower._root).keys() - found.keys():
                found[name] = (Node(tree=node.tree, type=FileType.CHARACTER_DEVICE, whiteout=True),)
        return found

    @override
    def describe(self, route: Route) -> Node:
        node = top_node(route)
        if node.whiteout:
            return attrs.evolve(node, mode=0, device=(0, 0))
        changes: dict[str, Any] = {}
        if len(route) <= 2 and self._root[0].opaque:
            changes["opaque"] = len(route) == 2
        if node.implied:  # the layer says nothing about it
            found = top_node(self._merged.find(_path(route), follow=False))
            known = found.tree.attributes(found)
            changes |= {"mode": found.mode, "uid": found.uid, "gid": found.gid, "mtime": found.mtime, "attributes": known}
        return attrs.evolve(node, **changes) if changes else node

    @override
    def marks(self, node: Node) -> dict[str, bytes]:
        """Return the attributes of opaque directories, in the forms of root's overlays and of users'."""
        is_opaque = node.is_directory and node.opaque
        return {"trusted.overlay.opaque": b"y", "user.overlay.opaque": b"y"} if is_opaque else {}


def _split(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


# ---- extraction ----


def extract(view: View, path: StrPath, to: StrPath) -> tuple[ImageFile, ...]:
    """Copy a file or directory out of an image. Arguments and errors as for `Image.extract`."""
    route = view.find(path)
    node = top_node(route)
    if node.type not in (FileType.FILE, FileType.DIRECTORY):
        raise view.error(errno.EINVAL, os.fsdecode(path), f"a {node.type}, not a regular file or directory")
    folder, name = os.path.split(absolute_path(to))
    parent = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not name or _exists(name, parent):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        return _Extraction(view, parent, name).run(route)
    except OSError as error:
        if isinstance(error, OCIRuntimeError) or f"{error.filename}/".startswith(f"{view.name}/"):
            raise  # about the image
        raise OSError(error.errno, error.strerror, os.fspath(to)) from error  # not the name of a file that is removed by now
    finally:
        os.close(parent)


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


class _Writer:
    """Makes files of an image in a directory that only the caller's user can reach, so that nothing in it can be replaced.

    Args:
        view: the image.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._fd = -1
        self._budget = view.budget.renewed()
        self._directories: list[tuple[str, Node]] = []
        self._pending: dict[int, dict[Any, tuple[Node, list[str]]]] = {}
        """For each tree and location of a regular file: its node, and the paths that it gets."""

    def _add_file(self, node: Node, path: str) -> None:
        """Note a regular file, whose content comes in the order of its layer."""
        files = self._pending.setdefault(id(node.tree), {})
        files.setdefault(node.location, (node, []))[1].append(path)

    def _write_files(self) -> None:
        """Write the regular files, and links for those that have further names."""
        for files in self._pending.values():
            nodes = [node for node, _ in files.values()]
            for node in nodes:
                self._budget.take_bytes(node.size)
            for node, pieces in nodes[0].tree.contents(nodes, self._view.budget.renewed()):
                first, *others = files[node.location][1]
                self._write(node, first, pieces)
                for path in others:
                    os.link(first, path, src_dir_fd=self._fd, dst_dir_fd=self._fd, follow_symlinks=False)

    def _write(self, node: Node, path: str, pieces: Iterator[bytes]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, self._mode(node), dir_fd=self._fd)
        try:
            size = 0
            for piece in pieces:
                check_deadline()
                size += len(piece)
                if size > node.size:
                    break
                if piece.count(0) == len(piece):
                    os.lseek(fd, len(piece), os.SEEK_CUR)  # a hole
                else:
                    write_all(fd, piece)
            if size != node.size:
                raise ImageError(f"{self._view.name}: {printable(path[1:])}: the content does not have {node.size} bytes")
            os.ftruncate(fd, size)
            self._finish(node, fd)
        finally:
            os.close(fd)

    def _mode(self, node: Node) -> int:
        """Return the mode with which a file is created."""
        return node.mode & 0o777

    def _finish(self, node: Node, fd: int) -> None:
        """Give a file that is written its attributes."""
        os.utime(fd, (node.mtime, node.mtime))


class _Extraction(_Writer):
    """One file or directory on its way out of an image.

    It is made in a directory beside the target that only the caller's user can enter, so that nothing in it can be replaced, and
    takes its place at the end.

    Args:
        view: the image.
        parent: descriptor of the directory of the target.
        name: the name of the target in it.
    """

    def __init__(self, view: View, parent: int, name: str) -> None:
        super().__init__(view)
        self._parent, self._name = parent, name
        self._staging = f".{name[:48]}.{os.urandom(8).hex()}"
        self._committed = False
        self._left_out: list[ImageFile] = []

    def run(self, route: Route) -> tuple[ImageFile, ...]:
        try:
            os.mkdir(self._staging, 0o700, dir_fd=self._parent)
            self._fd = os.open(self._staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._parent)
            self._make_tree(route)
            self._write_files()
            for path, node in reversed(self._directories):
                os.utime(path, (node.mtime, node.mtime), dir_fd=self._fd, follow_symlinks=False)
            complete(partial(self._commit, top_node(route).is_directory))
        except BaseException:
            complete(self._remove)
            raise
        finally:
            if self._fd >= 0:
                os.close(self._fd)
        return tuple(self._left_out)

    def _make_tree(self, route: Route) -> None:
        """Make directories and symbolic links, and collect regular files, whose content comes in the order of the layers."""
        base = len(route)
        for way in self._view.below(route):
            node = top_node(way)
            names = [name for name, _ in way[base:]]
            path = "/".join(("x", *names))
            if node.type is FileType.DIRECTORY:
                os.mkdir(path, node.mode & 0o777 | 0o700, dir_fd=self._fd)
                self._directories.append((path, node))
            elif node.type is FileType.FILE:
                self._add_file(node, path)
            elif node.type is FileType.SYMLINK and (text := _inside(node.target, names[:-1], [name for name, _ in way[1:base]])):
                os.symlink(text, path, dir_fd=self._fd)
            else:
                self._left_out.append(image_file(way))

    def _commit(self, is_directory: bool) -> None:
        """Move the result to the target, whose name is taken first, so that no other file is replaced."""
        if is_directory:
            os.mkdir(self._name, 0o700, dir_fd=self._parent)
        else:
            os.close(os.open(self._name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._parent))
        self._committed = True
        os.rename("x", self._name, src_dir_fd=self._fd, dst_dir_fd=self._parent)
        os.rmdir(self._staging, dir_fd=self._parent)

    def _remove(self) -> None:
        for name in (self._staging, self._name) if self._committed else (self._staging,):
            if not _exists(name, self._parent):
                continue
            if stat.S_ISDIR(os.stat(name, dir_fd=self._parent, follow_symlinks=False).st_mode):
                shutil.rmtree(name, dir_fd=self._parent)
            else:
                os.unlink(name, dir_fd=self._parent)


def unpack(view: View, to: str, *, privileged: bool) -> None:
    """Make the files of an image in a new directory as they are. Arguments and errors as for `Image.unpack`."""
    os.mkdir(to, 0o700)
    _Unpacking(view, privileged=privileged).run(to)


_MAX_ID: Final = (1 << 32) - 2
_KINDS: Final = {FileType.FIFO: stat.S_IFIFO, FileType.SOCKET: stat.S_IFSOCK} | {
    FileType.CHARACTER_DEVICE: stat.S_IFCHR,
    FileType.BLOCK_DEVICE: stat.S_IFBLK,
}


class _Unpacking(_Writer):
    """All files of an image on their way to a directory, as they are in the image.

    Args:
        view: the image.
        privileged: whether to keep owners, devices and extended attributes.
    """

    def __init__(self, view: View, *, privileged: bool) -> None:
        super().__init__(view)
        self._privileged = privileged

    def run(self, to: str) -> None:
        self._fd = os.open(to, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for way in self._view.below(self._view.find("/")):
                self._make(top_node(way), _path(way)[1:] or ".")
            self._write_files()
            for path, node in reversed(self._directories):
                self._complete(node, path)
        except OSError as error:
            if isinstance(error, OCIRuntimeError) or f"{error.filename}/".startswith(f"{self._view.name}/"):
                raise  # about the image
            raise OSError(error.errno, error.strerror, to) from error
        finally:
            os.close(self._fd)

    def _make(self, node: Node, path: str) -> None:
        if node.type is FileType.FILE:
            self._add_file(node, path)
            return
        if node.type is FileType.DIRECTORY:
            if path != ".":
                os.mkdir(path, 0o700, dir_fd=self._fd)
            self._directories.append((path, node))
            return
        if node.type is FileType.SYMLINK:
            if not node.target or "\0" in node.target:
                raise ImageError(f"{self._view.name}: /{printable(path)}: a symbolic link without a valid target")
            os.symlink(node.target, path, dir_fd=self._fd)
        elif self._privileged or node.device is None:
            device = 0 if node.device is None else self._device(node, path)
            os.mknod(path, _KINDS[node.type] | 0o600, device, dir_fd=self._fd)
        else:
            return  # a device, which has no effect where a user mounts the files
        self._complete(node, path)

    def _device(self, node: Node, path: str) -> int:
        assert node.device is not None  # it is a device
        major, minor = node.device
        if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
            raise ImageError(f"{self._view.name}: /{printable(path)}: a device with the numbers {major}, {minor}")
        return os.makedev(major, minor)

    def _mode(self, node: Node) -> int:
        return 0o600

    def _finish(self, node: Node, fd: int) -> None:
        self._complete(node, f"/proc/self/fd/{fd}", follow=True)

    def _complete(self, node: Node, path: str, *, follow: bool = False) -> None:
        """Give a file its owner, attributes, permissions and times, in this order: a new owner clears set-user-ID bits."""
        if self._privileged:
            if not (0 <= node.uid <= _MAX_ID and 0 <= node.gid <= _MAX_ID):
                raise ImageError(f"{self._view.name}: {printable(path)}: a file of the user {node.uid} and group {node.gid}")
            try:
                os.chown(path, node.uid, node.gid, dir_fd=self._fd, follow_symlinks=follow)
            except OSError as error:
                if error.errno in (errno.EPERM, errno.EINVAL):
                    message = f"privileged=True keeps owners, and this user cannot give files to {node.uid}:{node.gid}"
                    raise OSError(error.errno, message) from error
                raise
        self._set_attributes(node, path, follow=follow)
        if node.type is not FileType.SYMLINK:
            bits = 0o7777 if self._privileged or node.is_directory else 0o1777
            os.chmod(path, node.mode & bits, dir_fd=self._fd)
        os.utime(path, (node.mtime, node.mtime), dir_fd=self._fd, follow_symlinks=follow)

    def _set_attributes(self, node: Node, path: str, *, follow: bool) -> None:
        attributes = node.tree.attributes(node)
        for name, value in attributes.items():
            if name.startswith(_OF_HOSTS) or not (self._privileged or name.startswith("user.")):
                continue
            try:
                os.setxattr(path if follow else f"/proc/self/fd/{self._fd}/{path}", name, value, follow_symlinks=follow)
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.EPERM) or (name.startswith("security.") and self._privileged):
                    raise


_OF_HOSTS: Final = ("trusted.overlay.", "user.overlay.", "security.selinux")
"""Attributes that an overlay would take for its own, and labels, which the policy of the host assigns."""


def _inside(target: str, folder: Sequence[str], base: Sequence[str]) -> str:
    """Return the text of a symbolic link in an extracted directory; empty if the link could lead out of it.

    The text has ``..`` only at its beginning, where all of it are real directories. All links in the directory are like that, so
    that none leads out even through others.

    Args:
        target: what the link holds in the image.
        folder: the names from the extracted directory to that of the link.
        base: the names from the root of the image to the extracted directory.
    """
    parts = _split(target)
    if target.startswith("/"):
        if parts[: len(base)] != list(base):
            return ""
        up, down = len(folder), parts[len(base) :]
    else:
        up = next((index for index, part in enumerate(parts) if part != ".."), len(parts))
        down = parts[up:]
    if not target or ".." in down or up > len(folder):
        return ""
    return "/".join([".."] * up + down) or "."
