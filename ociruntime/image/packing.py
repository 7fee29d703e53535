"""Packing the files of an image into a squashfs.

The files are written as one tar stream, which ``tar2sqfs`` or ``mksquashfs`` reads. The owners of files are numbers in it, so that
no file has to be made and no rights are needed.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatchcase
from typing import IO, TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeAlias

import attrs

from ociruntime.arguments import check_bool, check_str, printable, size_text, wrong_type
from ociruntime.errors import ImageError, ProcessError, SifError, UnsupportedError
from ociruntime.files import absolute_path, inheritable
from ociruntime.image.files import ImageFile, image_file
from ociruntime.image.layers import FileType, Node
from ociruntime.interrupts import CHECK_INTERVAL, deliver, wait_for_child, waiting

if TYPE_CHECKING:
    from ociruntime.image.files import Route, View

__all__ = [
    "Compression",
    "Files",
    "LayoutEntry",
    "Meter",
    "Packing",
    "Progress",
    "ShownProgress",
    "check_progress",
    "pack",
    "progress_bar",
    "shown_progress",
]

Compression: TypeAlias = Literal["gzip", "lzma", "lzo", "lz4", "xz", "zstd"]
Progress: TypeAlias = Callable[[int, int], object]
"""Called with the bytes of content that are done, and with their number in all."""
ShownProgress: TypeAlias = Progress | bool | None
"""A function, or True for a progress bar."""

_TAR2SQFS: Final = "tar2sqfs"
_PIECE: Final = 1 << 20
_OUTPUT: Final = 1 << 16
"""Most bytes of a program's messages that an error shows."""
_LATEST: Final = (1 << 32) - 1
"""The latest time that squashfs can store."""
_TYPES: Final = {
    FileType.DIRECTORY: tarfile.DIRTYPE,
    FileType.FILE: tarfile.REGTYPE,
    FileType.SYMLINK: tarfile.SYMTYPE,
    FileType.CHARACTER_DEVICE: tarfile.CHRTYPE,
    FileType.BLOCK_DEVICE: tarfile.BLKTYPE,
    FileType.FIFO: tarfile.FIFOTYPE,
}
_MAX_DEVICE: Final = (0xFFF, 0xFFFFF)


@attrs.frozen
class LayoutEntry:
    """A file to add: a directory without content and target, a symbolic link with a target, or a regular file.

    ``path`` is relative to the root of the image.
    """

    path: str
    mode: int
    content: bytes | None = None
    target: str = ""


@attrs.frozen(kw_only=True)
class Packing:
    """How files are packed."""

    compression: Compression = "gzip"
    mksquashfs: str = ""
    """This program by name or path. By default ``tar2sqfs``, or ``mksquashfs`` where it is not installed."""
    processors: int | None = None
    exclude: tuple[str, ...] = ()
    """Shell patterns of paths to leave out. Each component of a path is compared with one of the pattern."""
    all_root: bool = False
    """Whether root owns every file."""
    latest: int | None = None
    """Unix seconds, to which the times of files that are newer are set, and that of the filesystem."""
    progress: Progress | None = None


class Meter:
    """Reports progress.

    Args:
        progress: the function to call, if any.
        total: bytes in all.
    """

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total = progress, total
        self._done = self._reported = 0
        self._report()

    def add(self, count: int) -> None:
        """Count bytes that are done."""
        self._done = min(self._done + count, self._total)
        if count and self._done >= min(self._reported + _PIECE, self._total):
            self._report()

    def _report(self) -> None:
        if self._progress is not None:
            with waiting():
                self._progress(self._done, self._total)
        self._reported = self._done


def progress_bar(label: str = "", *, quiet: bool = False) -> AbstractContextManager[Progress | None]:
    """Give a function that shows a progress bar, for the argument ``progress`` of `build`, `pull` and `Image.verify`.

    With ``progress=True`` they show such a bar themselves. This is for a label of one's own, or one bar for several calls::

        with oci.progress_bar("building the image of the course") as progress:
            oci.build("rootfs", "image.sif", progress=progress)

    In a notebook the bar is an output of the cell, which stays. On a terminal it is a line on stderr, which is erased in the end.
    Elsewhere the block gets None, and nothing is shown.

    Args:
        label: what is shown until the function is called, and before the bar in a notebook.
        quiet: whether to show nothing anywhere.

    Raises:
        TypeError: an argument is of a wrong type.
    """
    check_str("label", label)
    check_bool("quiet", quiet)
    return _shown(label, quiet)


def check_progress(progress: object) -> None:
    """Raise TypeError unless this is a `ShownProgress`."""
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise wrong_type("progress", progress, "a function, or True for a progress bar,")


def shown_progress(progress: ShownProgress, label: str) -> AbstractContextManager[Progress | None]:
    """Give the function to call with the progress, if any; for True that of a bar with this label."""
    return progress_bar(label, quiet=not progress) if isinstance(progress, bool) else nullcontext(progress)


@contextmanager
def _shown(label: str, quiet: bool) -> Iterator[Progress | None]:
    show = None if quiet else _notebook_bar(printable(label)) or _terminal_bar(printable(label))
    if show is None:
        yield None
        return
    begin = last = time.monotonic()
    state = (0, 0)

    def report(done: int, total: int) -> None:
        nonlocal last, state
        state, now = (done, total), time.monotonic()
        if now - last >= _REFRESH:
            last = now
            show(done, total, now - begin, False)

    if label:
        show(0, 0, 0.0, False)
    try:
        yield report
    finally:
        if label or last != begin:
            show(*state, time.monotonic() - begin, True)


_REFRESH: Final = 0.1
"""Seconds between two updates of a progress bar, and before the first."""
_BAR: Final = 30
_LINE: Final = 75
_Show: TypeAlias = Callable[[int, int, float, bool], None]
"""Shows a bar, given the bytes that are done, all bytes, the seconds that have passed, and whether it is the last time."""


def _terminal_bar(label: str) -> _Show | None:
    """Return what shows a bar on stderr, or None if that is not a terminal."""
    stream = sys.stderr
    if not stream.isatty():
        return None

    def show(done: int, total: int, passed: float, is_last: bool) -> None:
        part = done / total if total else 0.0
        left = f", {passed * (1 - part) / part:.0f} s left" if part else ""
        bar = f"{100 * part:3.0f}% [{'#' * round(_BAR * part):{_BAR}}] of {total / (1 << 20):.1f} MiB{left}"
        line = "" if is_last else bar if total else label
        stream.write(f"\r{line[:_LINE]:{_LINE}}{chr(13) if is_last else ''}")
        stream.flush()

    return show


def _notebook_bar(label: str) -> _Show | None:
    """Return what shows a bar as an output of the cell that runs, or None if this is not the kernel of a notebook."""
    ipython: Any = sys.modules.get("IPython")
    if ipython is None or not hasattr(ipython.get_ipython(), "kernel"):
        return None
    handle: Any = None

    def show(done: int, total: int, passed: float, is_last: bool) -> None:
        nonlocal handle
        part = done / total if total else 0.0
        left = f", {passed * (1 - part) / part:.0f} s left" if part and not is_last else f", {passed:.1f} s" if is_last else ""
        text = f"{label} {100 * part:.0f} % of {size_text(total)}{left}" if total else f"{label}{left}"
        bar = f'<progress max="{total}" value="{done}"></progress> ' if total else ""
        escaped = text.replace("&", "&amp;").replace("<", "&lt;")
        data = {"text/plain": text, "text/html": f'<span style="font:13px system-ui,sans-serif">{bar}{escaped}</span>'}
        if handle is None:
            handle = ipython.display.display(data, raw=True, display_id=True)
        else:
            handle.update(data, raw=True)

    return show


def pack(files: Files, output: int, meter: Meter) -> None:
    """Write a squashfs of files.

    Args:
        files: the files.
        output: descriptor of an empty file.
        meter: counts the content of files.

    Raises:
        ImageError: a layer is damaged, or exceeds a limit.
        UnsupportedError: no program for the work is installed.
        ProcessError: the program failed; the message has its output.
        OSError: a file cannot be read, or the output not be written.
    """
    with tempfile.TemporaryFile(buffering=0) as messages, inheritable(output) as inherited:
        command = _command(files.root, inherited, files.packing)
        process = _start(command, inherited, messages, files.packing.latest)
        assert process.stdin is not None
        stream, is_broken = _Pipe(process.stdin.fileno()), False
        try:
            try:
                files.write(stream, meter, with_root=command[0] == _TAR2SQFS)
                stream.flush()
            except _Ended:
                is_broken = True
            process.stdin.close()
            status = wait_for_child(process)
        except BaseException:
            process.kill()
            process.wait()
            process.stdin.close()
            raise
        if status or is_broken:
            _fail(command, status, messages)


# ---- the stream ----


class _Ended(Exception):
    """The program has ended and reads no more."""


class _Pipe:
    """The end of a pipe that is written to, with a buffer. Writing raises _Ended. A signal is seen within `CHECK_INTERVAL`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = bytearray()
        self._poller = select.poll()
        self._poller.register(fd, select.POLLOUT)
        os.set_blocking(fd, False)

    def write(self, content: bytes) -> None:
        self._buffer += content
        if len(self._buffer) >= _PIECE:
            self.flush()

    def flush(self) -> None:
        content, self._buffer = memoryview(self._buffer), bytearray()
        with waiting():
            try:
                while content:
                    if self._poller.poll(CHECK_INTERVAL * 1000):
                        content = content[os.write(self._fd, content) :]
            except BrokenPipeError as error:
                raise _Ended from error


class Files:
    """Files in the order in which they are packed: first all but regular files, then those of each layer.

    Args:
        view: the files of an image, or of one of its layers.
        entries: files to add where the image does not have them.
        packing: the settings.

    Raises:
        SifError: an entry cannot be added, because its parent is not a directory.
        ImageError: a layer is damaged, or exceeds a limit.
    """

    left_out: list[ImageFile]
    """The sockets."""
    total: int
    """Bytes of content."""

    def __init__(self, view: View, entries: Iterable[LayoutEntry], packing: Packing) -> None:
        self.left_out = []
        self.packing = packing
        self._view = view
        self._patterns = [pattern.split("/") for pattern in packing.exclude]
        self._others: list[tuple[str, Node]] = []
        self._links: dict[tuple[int, Any], tuple[Node, list[str]]] = {}
        """For each tree and location of a file that is not a directory: its node and paths."""
        self._entries = {entry.path: entry for entry in entries}
        self.total = 0
        parents = {os.path.dirname(path): path for path in self._entries}
        for route in view.below(view.find("/"), leave_out=self._is_excluded):
            deliver()
            node, path = view.describe(route), "/".join(name for name, _ in route[1:])
            if path in parents and not node.is_directory:
                raise SifError(f"/{path} in the image is not a directory, so /{parents[path]} cannot be added", path=view.name)
            self._entries.pop(path, None)
            self._take(route, node, path)
        self.root = self._others[0][1]
        self.total += sum(len(entry.content or b"") for entry in self._entries.values())

    def _take(self, route: Route, node: Node, path: str) -> None:
        if node.type is FileType.SOCKET:
            self.left_out.append(image_file(route))
        elif node.is_directory or node.whiteout:
            self._others.append((path, node))
        else:
            found = self._links.setdefault((id(node.tree), node.location), (node, []))
            found[1].append(path)
            if len(found[1]) > 1:
                return
            self.total += node.size
            if node.type is not FileType.FILE:
                self._others.append((path, node))

    def _is_excluded(self, route: Route) -> bool:
        names = [name for name, _ in route[1:]]
        return any(len(names) == len(parts) and all(map(fnmatchcase, names, parts)) for parts in self._patterns)

    def write_archive(self, output: int) -> None:
        """Write all files as a tar archive to a descriptor. Raises ImageError, OSError."""
        stream = _Pipe(output)
        self.write(stream, Meter(None, self.total), with_root=True)
        stream.flush()

    def write(self, stream: _Pipe, meter: Meter, *, with_root: bool) -> None:
        """Write all files. The root directory is a member of its own for a program that takes one."""
        for path, node in self._others[0 if with_root else 1 :]:
            stream.write(self._header(path or ".", node))
            self._write_links(stream, node)
        for entry in self._entries.values():
            self._write_entry(stream, entry)
            meter.add(len(entry.content or b""))
        trees: dict[int, list[Node]] = {}
        for node, _ in self._links.values():
            if node.type is FileType.FILE:
                trees.setdefault(id(node.tree), []).append(node)
        for nodes in trees.values():
            budget = self._view.budget.renewed()
            for node in nodes:
                budget.take_bytes(node.size)
            for node, pieces in nodes[0].tree.contents(nodes, self._view.budget.renewed()):
                path = self._links[id(node.tree), node.location][1][0]
                stream.write(self._header(path, node))
                self._write_content(stream, meter, path, node, pieces)
                self._write_links(stream, node)
        stream.write(bytes(2 * tarfile.BLOCKSIZE))

    def _write_content(self, stream: _Pipe, meter: Meter, path: str, node: Node, pieces: Iterator[bytes]) -> None:
        size = 0
        for piece in pieces:
            size += len(piece)
            if size > node.size:
                break
            stream.write(piece)
            meter.add(len(piece))
        if size != node.size:
            raise ImageError(f"{self._view.name}: /{printable(path)}: the content does not have {node.size} bytes")
        stream.write(bytes(-size % tarfile.BLOCKSIZE))

    def _write_links(self, stream: _Pipe, node: Node) -> None:
        """Write the further names of a file."""
        first, *others = self._links.get((id(node.tree), node.location), (node, [""]))[1]
        for path in others:
            member = tarfile.TarInfo(path)
            member.type, member.linkname = tarfile.LNKTYPE, first
            stream.write(member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))

    def _write_entry(self, stream: _Pipe, entry: LayoutEntry) -> None:
        member = tarfile.TarInfo(entry.path)
        member.mode, member.mtime = entry.mode, self._time(int(time.time()))
        member.type = tarfile.SYMTYPE if entry.target else tarfile.DIRTYPE if entry.content is None else tarfile.REGTYPE
        member.linkname, content = entry.target, entry.content or b""
        member.size = len(content)
        stream.write(member.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE))

    def _header(self, path: str, node: Node) -> bytes:
        member = tarfile.TarInfo(path)
        member.type, member.mode, member.mtime = _TYPES[node.type], node.mode, self._time(node.mtime)
        member.size, member.linkname = node.size, node.target
        if not (self.packing.all_root or node.whiteout):
            member.uid, member.gid = node.uid, node.gid
        if node.device is not None:
            member.devmajor, member.devminor = node.device
            if any(number > most for number, most in zip(node.device, _MAX_DEVICE, strict=True)):
                raise ImageError(f"{self._view.name}: /{printable(path)}: squashfs cannot store the device {node.device}")
        known = {} if node.whiteout else node.tree.attributes(node)
        kept = {name: value for name, value in sorted(known.items()) if _is_kept(name)} | self._view.marks(node)
        return _attribute_header(kept) + member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")

    def _time(self, seconds: int) -> int:
        return min(seconds, _LATEST if self.packing.latest is None else max(0, self.packing.latest))


def _is_kept(name: str) -> bool:
    """Return whether an extended attribute belongs to the file, not to the host or the overlay where it lies."""
    if name == "security.selinux" or name.startswith(("trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.")):
        return False
    return name.startswith(("user.", "trusted.", "security."))


def _attribute_header(attributes: dict[str, bytes]) -> bytes:
    """Return the extended header with extended attributes. tarfile writes only text there."""
    if not attributes:
        return b""
    content = b"".join(_record(b"SCHILY.xattr." + os.fsencode(name), value) for name, value in attributes.items())
    member = tarfile.TarInfo("attributes")
    member.type, member.size = tarfile.XHDTYPE, len(content)
    return member.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _record(keyword: bytes, value: bytes) -> bytes:
    """Return a record of an extended header, which begins with its own length (pax)."""
    rest = b" %s=%s\n" % (keyword, value)
    length = len(rest) + len(str(len(rest)))
    return b"%d%s" % (len(rest) + len(str(length)), rest)


# ---- the program ----


def _command(root: Node, output: int, packing: Packing) -> list[str]:
    """Return the command that reads the stream. Raises UnsupportedError."""
    target = f"/proc/self/fd/{output}"
    processors = packing.processors or len(os.sched_getaffinity(0))
    if not packing.mksquashfs and shutil.which(_TAR2SQFS) is not None:
        return [_TAR2SQFS, "--force", "--quiet", "--no-skip", "-c", packing.compression, "-j", str(processors), target]
    program = packing.mksquashfs or "mksquashfs"
    if shutil.which(program) is None:
        raise UnsupportedError(f"cannot build an image: {program} not found; install squashfs-tools, or squashfs-tools-ng")
    command = [absolute_path(program) if os.sep in program else program, "-", target, "-tar", "-noappend", "-no-progress"]
    command += ["-exit-on-error", "-comp", packing.compression, "-processors", str(processors), "-root-mode", f"{root.mode:o}"]
    owner = (0, 0) if packing.all_root else (root.uid, root.gid)
    if owner != (os.getuid(), os.getgid()):  # mksquashfs gives the root directory, and no other file, to its own user
        command = ["unshare", "--user", f"--map-user={owner[0]}", f"--map-group={owner[1]}", *command]
    return command


def _start(command: Sequence[str], output: int, messages: IO[bytes], epoch: int | None) -> subprocess.Popen[bytes]:
    environment = {key: value for key, value in os.environ.items() if key != "SOURCE_DATE_EPOCH"}
    if epoch is not None:
        environment["SOURCE_DATE_EPOCH"] = str(max(0, epoch))
    try:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=messages, stderr=messages, env=environment, pass_fds=(output,), bufsize=0
        )
    except OSError as error:
        raise UnsupportedError(f"cannot build an image: cannot run {command[0]}: {os.strerror(error.errno or 0)}") from error


def _fail(command: list[str], status: int, messages: IO[bytes]) -> NoReturn:
    messages.seek(max(0, messages.seek(0, os.SEEK_END) - _OUTPUT))
    output = messages.read().decode(errors="backslashreplace")
    if "-tar" in command and "invalid option" in output:
        raise UnsupportedError("cannot build an image: mksquashfs is older than 4.5; install a later one, or squashfs-tools-ng")
    if output.startswith("unshare: "):
        raise UnsupportedError(
            f"cannot build an image: {output.strip()}; without a user namespace mksquashfs gives the root directory to its own "
            "user: install squashfs-tools-ng"
        )
    program = next(word for word in command if not word.startswith("-") and word != "unshare")
    last = "\n".join(output.strip().splitlines()[-20:])
    done = subprocess.CompletedProcess(command, status, output)
    raise ProcessError(f"{program} ended with status {status}{'' if status else ' too early'}: {last}", done)
