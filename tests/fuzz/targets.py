"""The fuzz targets, by name: each is a context manager that gives the target, with the files that it needs.

Inputs are valid documents with a few changes, because random bytes do not come far.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import socket
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import ociruntime as oci
from ociruntime import cdi
from ociruntime.errors import SpecError, UnsupportedError
from ociruntime.image import Image
from ociruntime.image.sif import SifBuilder, SifImage
from ociruntime.image.signatures import PAYLOAD_TYPE, verify_sif
from ociruntime.plan.model import UncompiledFilter, encode
from ociruntime.plan.ops import OPS
from ociruntime.rootfs.users import MAX_ID, ContainerRoot, home, resolve
from ociruntime.spec import RuntimeSpec
from ociruntime.supervisor.control import Clients, Connection, Control
from ociruntime.supervisor.logs import LogRecord, read_log
from ociruntime.supervisor.streams import ENCODERS, ContainerStreams, Loop, format_time

from ..support.images import INDEX_TYPE, MANIFEST_TYPE, TAR_TYPE
from ..support.odd_configs import PIECES, copied, lay_over
from ..support.plans import HYBRID, PURE_V2
from . import fuzz_sif
from .driver import Finding, Target

_NUMBERS = (-1, 0, 1, 2, 2**31, 2**32 - 1, 2**32, 2**63, 2**64, 10**400, 1.5, float("inf"), float("nan"))
_TEXTS = (
    "",
    "\0",
    "a\0b",
    "\ud800",
    "\n",
    "..",
    "../..",
    "/",
    "//",
    ".",
    "x" * 300,
    "9" * 5000,
    "-1",
    "\u00b2",
    "a=b",
    "%s",
    "~",
    "\x1b[0m",
    "\u202e",
)
_VALUES: tuple[Any, ...] = (*_NUMBERS, *_TEXTS, None, True, [], {}, [None], {"a": None}, [[]])
_TOKENS = (b"\0", b"\n", b"\r", b"\f", b"\xff", b"\xe2\x80\xa8", b":", b"::::::", b" ", b"..", b"/", b"9" * 30, b"-1", b"{", b"[", b"[" * 3000, b'"', b"\\ud800", b"1e999", b"&a", b"*a", b"!!x", b"---\n")  # fmt: skip


def scratch_directory() -> tempfile.TemporaryDirectory[str]:
    """Return a temporary directory, in memory where that is possible: each input writes files."""
    memory = "/dev/shm"
    return tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with a few changes."""
    out = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        at, size = rng.randrange(len(out) + 1), rng.choice((1, 1, 2, 8, 64))
        match rng.randrange(5):
            case 0:
                out[at : at + size] = rng.randbytes(min(size, len(out) - at))
            case 1:
                del out[at : at + size]
            case 2:
                out[at:at] = rng.choice(_TOKENS)
            case 3:
                out[at:at] = out[at : at + size] * rng.choice((1, 2, 50))
            case 4:
                other = rng.randrange(len(out) + 1)
                out[at:at] = out[other : other + size]
    return bytes(out)


def changed(document: Any, rng: random.Random) -> Any:
    """Return a JSON value with a few changes, at any depth."""
    out: Any = copied(document)
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        around: Any = out
        while isinstance(around, dict | list) and around:
            key: Any = rng.choice(list(around)) if isinstance(around, dict) else rng.randrange(len(around))
            if not isinstance(around[key], dict | list) or not around[key] or rng.random() < 0.2:
                _change(around, key, rng)
                break
            around = around[key]
    return out


def _change(around: Any, key: Any, rng: random.Random) -> None:
    """Remove a member of an object or an item of a list, copy it, or give it another value."""
    kind = rng.randrange(6)
    if kind == 0:
        del around[key]
    elif kind == 1:
        again = copied(around[key])
        if isinstance(around, list):
            around.append(again)
        else:
            around[rng.choice(_TEXTS)] = again
    else:
        around[key] = copied(rng.choice(_VALUES))


def dumped(document: Any, rng: random.Random) -> bytes:
    """Return a changed document as JSON, now and then with damaged bytes."""
    data = json.dumps(changed(document, rng)).encode()
    return damaged(data, rng) if rng.random() < 0.2 else data


# ---- images ----


@contextmanager
def sif() -> Iterator[Target]:
    """SIF files: the headers and descriptors that SifImage reads."""
    whole = fuzz_sif.full_image()
    yield Target(lambda rng: bytes(fuzz_sif.mutate(whole, rng)), fuzz_sif.exercise)


_MEMBERS = (
    "etc",
    "etc/passwd",
    "a",
    "a/b",
    ".wh.a",
    ".wh..wh..opq",
    "a/.wh.b",
    "../x",
    "/abs",
    "a/../../x",
    "./a",
    "",
    ".",
    "..",
    "a//b",
    "b" * 300,
)
_TYPES = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"Z")  # fmt: skip
_ATTRIBUTES = ("user.a", "security.capability", "trusted.overlay.opaque", "trusted.overlay.redirect", "user.overlay.whiteout", "")


def _layer(rng: random.Random) -> bytes:
    """Return a layer with members of any name and type."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as archive:
        for _ in range(rng.randrange(6)):
            member = tarfile.TarInfo(rng.choice(_MEMBERS))
            member.type, member.linkname = rng.choice(_TYPES), rng.choice(_MEMBERS)
            member.mode, member.uid = rng.choice((0, 0o644, 0o7777)), rng.choice((0, 1000, 2**21 - 1))
            if rng.random() < 0.3:
                member.pax_headers = {f"SCHILY.xattr.{rng.choice(_ATTRIBUTES)}": rng.choice(("y", "", "/x"))}
            content = rng.randbytes(rng.choice((0, 1, 600))) if member.type == tarfile.REGTYPE else b""
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _blob(content: bytes, media_type: str) -> tuple[dict[str, Any], str]:
    digest = hashlib.sha256(content).hexdigest()
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}, f"blobs/sha256/{digest}"


def _layout(rng: random.Random) -> bytes:
    """Return an OCI layout in a tar archive. Its documents are changed before their digests are made."""
    files: dict[str, bytes] = {}

    def add(content: bytes, media_type: str) -> dict[str, Any]:
        descriptor, path = _blob(content, media_type)
        files[path] = content
        return descriptor

    layers = [_layer(rng) for _ in range(rng.choice((0, 1, 2, 2)))]
    layers = [damaged(layer, rng) if rng.random() < 0.2 else layer for layer in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["A=b"], "Entrypoint": ["/bin/sh"], "Labels": {"a": "b"}, "User": "1:2", "Volumes": {"/v": {}}},
        "rootfs": {"type": "layers", "diff_ids": [_blob(layer, "")[0]["digest"] for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "config": add(
            dumped(config, rng) if rng.random() < 0.5 else json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"
        ),
        "layers": [add(layer, TAR_TYPE) for layer in layers],
    }
    content = dumped(manifest, rng) if rng.random() < 0.3 else json.dumps(manifest).encode()
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [add(content, MANIFEST_TYPE)]}
    files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    files["index.json"] = dumped(index, rng) if rng.random() < 0.3 else json.dumps(index).encode()
    if rng.random() < 0.3:
        docker = [{"Config": next(iter(files)), "RepoTags": ["a:b"], "Layers": list(files)[: len(layers)]}]
        files["manifest.json"] = dumped(docker, rng)
        if rng.random() < 0.5:
            del files["index.json"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    data = buffer.getvalue()
    return damaged(data, rng) if rng.random() < 0.1 else data


def _use_image(path: str) -> None:
    """Use everything of an image. Each use may be refused."""
    with Image.open(path) as image:
        uses: tuple[Callable[[], object], ...] = (
            lambda: image.config,
            lambda: image.labels,
            lambda: image.metadata,
            lambda: image.definition,
            lambda: repr(image),
            lambda: image._repr_html_(),
            lambda: list(image.files("/", recursive=True)),
            lambda: image.read_bytes("/etc/passwd"),
            image.check_layers,
        )
        for use in uses:
            try:
                use()
            except oci.OCIRuntimeError:
                continue


@contextmanager
def layout() -> Iterator[Target]:
    """OCI layouts and docker archives, in a tar archive and as a directory, with their layers."""
    with scratch_directory() as scratch:
        archive, tree = f"{scratch}/image.tar", f"{scratch}/tree"

        def exercise(data: bytes) -> bool:
            Path(archive).write_bytes(data)
            _use_image(archive)
            before = os.listdir(scratch)
            os.makedirs(f"{tree}/blobs/sha256", exist_ok=True)
            try:
                with tarfile.open(fileobj=io.BytesIO(data)) as members:
                    for member in members:
                        if member.name in ("index.json", "oci-layout") or member.name.startswith("blobs/sha256/"):
                            Path(tree, member.name).write_bytes(getattr(members.extractfile(member), "read", bytes)())
            except (tarfile.TarError, OSError, ValueError, EOFError):
                return True  # it cannot be unpacked by the standard library: only the archive is tried
            try:
                _use_image(tree)
            finally:
                for path in Path(tree).rglob("*"):
                    if path.is_file():
                        path.unlink()
            if os.listdir(scratch) not in (before, [*before, "tree"], ["tree", *before]):
                raise Finding("files were left beside the image")
            return True

        yield Target(_layout, exercise)


@cache
def _signed() -> tuple[bytes, bytes]:
    """Return a SIF file with a group of three objects and a place for a signature, and a public key; and keep the private key."""
    from cryptography.hazmat.primitives import serialization

    public = _private_key().public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    with scratch_directory() as scratch:
        path = Path(scratch, "a.sif")
        builder = SifBuilder(deterministic=True)
        builder.add_labels({"a": "b"})
        builder.add_definition("Bootstrap: scratch\n")
        builder.write(path)
        private = _private_key().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        oci.sign(path, key=private)
        return path.read_bytes(), public


@cache
def _private_key() -> Any:
    from cryptography.hazmat.primitives.asymmetric import ed25519

    return ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))


def _protected(sif: SifImage, objects: tuple[int, ...]) -> list[object]:
    """Return what a signature covers of a file."""
    return [sif.header.uuid] + [(item.name, item.data_type, bytes(sif.read(item))) for item in map(sif.by_id, objects)]


@contextmanager
def signatures() -> Iterator[Target]:
    """Signed SIF files: damaged files, and envelopes and signed messages that are changed; whatever is valid covers what was signed."""
    signed, public = _signed()
    with SifImage.open(io.BytesIO(signed)) as whole:
        (found,) = verify_sif(whole, [public])
        right = _protected(whole, found.objects)
        item = whole.by_id(found.id)
        place, envelope = slice(item.offset, item.offset + item.size), json.loads(whole.read(item))
        index = next(number for number, other in enumerate(whole) if other.id == item.id)
        table = whole.header.descriptors_offset

    def generate(rng: random.Random) -> bytes:
        out = bytearray(signed)
        if rng.random() < 0.3:
            return bytes(fuzz_sif.mutate(out, rng))
        document = copied(envelope)
        if rng.random() < 0.5:  # the message: signed by the right key or not
            message = dumped(json.loads(base64.b64decode(document["payload"])), rng)
            document["payload"] = base64.b64encode(message).decode()
            if rng.random() < 0.7:
                text = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(message), message)
                document["signatures"][0]["sig"] = base64.b64encode(_private_key().sign(text)).decode()
            content = json.dumps(document).encode()
        else:
            content = dumped(document, rng)
        out[place] = content
        fuzz_sif.put(
            out, table + index * fuzz_sif.DESCRIPTOR_SIZE, fuzz_sif.DESCRIPTOR_FIELDS, "size", len(content)
        )  # the last object of the file
        return bytes(out)

    def exercise(data: bytes) -> bool:
        with SifImage.open(io.BytesIO(data)) as image:
            for valid in verify_sif(image, [public]):
                if _protected(image, valid.objects) != right:
                    raise Finding("a signature is valid for what was not signed")
        return True

    yield Target(generate, exercise)


# ---- documents ----


@contextmanager
def config() -> Iterator[Target]:
    """config.json: a valid one reads back as it was written, and is a plan that can be encoded."""
    default: dict[str, Any] = RuntimeSpec.default().to_dict()

    def generate(rng: random.Random) -> bytes:
        document = default
        for piece in rng.sample(PIECES, rng.choice((0, 1, 1, 2, 3))):
            document = lay_over(document, piece)
        return dumped(document, rng)

    def exercise(data: bytes) -> bool:
        spec = RuntimeSpec.loads(data)
        if RuntimeSpec.loads(spec.to_json()) != spec:
            raise Finding("another document is read than was written")
        for host in HYBRID, PURE_V2:
            try:
                plan = oci.Bundle("/bundle", config=data).plan(host=host)
            except (SpecError, UnsupportedError):
                continue
            plan.explain()
            plan.to_json()
            for step in plan.steps:
                if step.op in OPS and step.op != "hook" and not any(isinstance(value, UncompiledFilter) for value in step.values):
                    encode([(1, step.op, step.values)], 0)  # the engine completes hooks and filters
        return True

    yield Target(generate, exercise)


_EDITS: dict[str, Any] = {
    "env": ["A=b"],
    "deviceNodes": [
        {"path": "/dev/a", "hostPath": "/dev/null", "type": "c", "major": 1, "minor": 3, "permissions": "rw", "uid": 0}
    ],
    "mounts": [{"hostPath": "/a", "containerPath": "/b", "options": ["ro"], "type": "bind"}],
    "hooks": [{"hookName": "createContainer", "path": "/bin/a", "args": ["a"], "timeout": 5}],
    "intelRdt": {"closID": "c"},
    "additionalGids": [5],
    "netDevices": [{"hostInterfaceName": "e", "name": "f"}],
}
_CDI = {
    "cdiVersion": "1.1.0",
    "kind": "vendor.com/class",
    "annotations": {"a": "b"},
    "devices": [{"name": "one", "annotations": {"c": "d"}, "containerEdits": _EDITS}, {"name": "two", "containerEdits": {"env": ["C=d"]}}],
    "containerEdits": {"env": ["D=e"]},
}  # fmt: skip


@contextmanager
def cdi_specs() -> Iterator[Target]:
    """CDI specs, as JSON and as YAML."""
    with scratch_directory() as scratch:

        def exercise(data: bytes) -> bool:
            read = False
            for suffix in "json", "yaml":
                path = Path(scratch, f"spec.{suffix}")
                path.write_bytes(data)
                try:
                    spec = cdi._load(str(path))
                    cdi._loaded.clear()
                    list(spec.edits)
                    read = True
                except oci.OCIRuntimeError as error:
                    cdi._one_line(error, str(path))
                finally:
                    path.unlink()
            return read

        yield Target(lambda rng: dumped(_CDI, rng), exercise)


_PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\nbin:x:2:2::/:\n"
_GROUP = b"root:x:0:\napp:x:1000:\nadm:x:4:app,bin\nwheel:x:10:app\n"


@contextmanager
def users() -> Iterator[Target]:
    """passwd and group: ids in their range, and users only of lines that say so."""
    with scratch_directory() as scratch:
        etc = Path(scratch, "etc")
        etc.mkdir()
        root = ContainerRoot(scratch)

        def exercise(data: bytes) -> bool:
            passwd, _, group = data.partition(b"\x1c")
            (etc / "passwd").write_bytes(passwd)
            (etc / "group").write_bytes(group)
            found = False
            for text in "app", "app:adm", "1000", "root", "wheel", "5:adm", "99999999999", "x" * 100, "adm", "":
                try:
                    user = resolve(text, root)
                except oci.BundleError:
                    continue
                found = True
                ids = (user.uid, user.gid, *(user.additional_gids or ()))
                if not all(number is not None and 0 <= number <= MAX_ID for number in ids):
                    raise Finding(f"{text!r} is {user!r}")
                name = text.partition(":")[0].encode()
                if not name.isdigit() and not any(line.startswith(name + b":") for line in passwd.split(b"\n")):
                    raise Finding(f"no line of passwd is about {text!r}, which is {user!r}")
                if not home(user.uid or 0, root).startswith("/"):
                    raise Finding("the home directory is not a path")
            return found

        yield Target(lambda rng: damaged(_PASSWD, rng) + b"\x1c" + damaged(_GROUP, rng), exercise)


# ---- supervisors ----


@contextmanager
def logs() -> Iterator[Target]:
    """Logs in each format: records of the right types, and each entry that was written reads as it was."""
    first = (1_700_000_000_123_456_789, b"stdout", b"a line \xff", True)

    def generate(rng: random.Random) -> bytes:
        log_format = rng.choice(list(ENCODERS))
        encode_entry = ENCODERS[log_format]
        lines = [encode_entry(format_time(first[0]), *first[1:])]
        for _ in range(rng.randrange(4)):
            when = rng.choice((0, 1, 10**9, 10**18, 253402300799 * 10**9))
            lines.append(
                encode_entry(format_time(when), rng.choice((b"stdout", b"stderr")), rng.choice(_TOKENS), rng.random() < 0.3)
            )
        if log_format == "json" and rng.random() < 0.7:
            lines += [dumped(json.loads(lines[-1]), rng) + b"\n" for _ in range(3)]
        return log_format.encode() + b"\n" + lines[0] + damaged(b"".join(lines[1:]), rng)

    with scratch_directory() as scratch:
        path = f"{scratch}/log"

        def exercise(data: bytes) -> bool:
            name, _, content = data.partition(b"\n")
            Path(path).write_bytes(content)
            records: list[LogRecord] = []
            for tail in None, 2:
                with closing(read_log(path, name.decode(), rotated=False, since=None, tail=tail, stream=None)) as items:
                    records = records or [record for record in iter(lambda: next(items), None) if record is not None]
                    if tail is not None:
                        list(iter(lambda: next(items), None))
            for record in records:
                if not (isinstance(record.text, str) and isinstance(record.stream, str) and isinstance(record.partial, bool)):
                    raise Finding(f"{record!r}: values of other types")
                if LogRecord(record.time, "", "").stamp[:4].isdigit() is False:
                    raise Finding(f"{record!r}: not a time")
            wanted = LogRecord(first[0], "stdout", first[2].decode("utf-8", "surrogateescape"), partial=name != b"basic")
            if not records or records[0] != wanted:
                raise Finding(f"{records[:1]} was read instead of {wanted}")
            return len(records) > 1

        yield Target(generate, exercise)


class _Control(Control):
    """Answers requests for a command instead of starting it."""

    def _run(self, command_line: list[str], connection: Connection) -> None:
        connection.answer("not carried out")


_REQUESTS: tuple[dict[str, Any], ...] = (
    {"consoleSize": {"height": 24, "width": 80}},
    {"reopenLog": True},
    {"startContainer": True},
    {"pause": True, "resume": False},
    {"attach": True, "stateChanged": True},
)


def _refused_requests(value: object, fds: list[int]) -> None:
    raise ValueError("refused")


@contextmanager
def control() -> Iterator[Target]:
    """Requests to a supervisor with any descriptors, and attach clients that send input: every connection ends, and none stays."""

    def exercise(data: bytes) -> bool:
        with ExitStack() as stack:
            loop = Loop()
            stack.callback(loop._poll.close)
            streams = ContainerStreams(loop, lambda stream, text: None, lambda: None)
            stack.callback(streams.close)
            for fd in streams.open_pipes(os.geteuid()):
                stack.callback(os.close, fd)
            listeners = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2)]
            for listener in listeners:
                listener.bind("")
                listener.listen()
            open_streams = set(loop._handlers)
            clients = Clients(loop, listeners[0], streams)
            stack.callback(lambda: os.close(clients._listener._spare))

            def attach(value: object, fds: list[int]) -> None:
                if not fds:
                    raise ValueError("no sockets")
                sockets: list[socket.socket] = []
                try:
                    while fds:
                        sockets.append(socket.socket(fileno=fds[0]))
                        del fds[0]
                    clients.add(*sockets)
                except BaseException:
                    for sock in sockets:
                        sock.close()
                    raise

            def resize(value: object, fds: list[int]) -> None:
                if not isinstance(value, dict):
                    raise ValueError("not an object")
                streams.resize(value["height"], value["width"])

            actions = {
                "consoleSize": resize,
                "attach": attach,
                "reopenLog": _refused_requests,
                "stateChanged": lambda value, fds: None,
            }
            control = _Control(loop, listeners[1], actions, lambda operation: [])
            stack.callback(lambda: os.close(control._listener._spare))
            kind, _, request = data.partition(b"\n")
            peer = stack.enter_context(socket.socket(socket.AF_UNIX))
            peer.connect(listeners[0 if kind == b"attach" else 1].getsockname())
            pair = [stack.enter_context(sock) for sock in socket.socketpair()]
            null = os.open(os.devnull, os.O_RDONLY)
            stack.callback(os.close, null)
            fds = {b"sockets": [pair[0].fileno()] * 2, b"file": [null], b"many": [null] * 5}.get(kind, [])
            half = len(request) // 2
            loop.run_once(0)
            for piece in request[:half], request[half:]:
                if piece:
                    try:
                        socket.send_fds(peer, [piece[:60000]], fds)
                    except (BrokenPipeError, ConnectionResetError):
                        break  # it was refused by its first part
                loop.run_once(0)
            peer.shutdown(socket.SHUT_WR)
            for _ in range(5):
                loop.run_once(0)
            clients.send(b"stdout", b"output\n")
            if kind != b"attach" and control.connections:
                raise Finding("a connection stays without a request")
            control.close()
            clients.close()
            for end in control, clients:
                end.stop()
            if control.connections or clients._clients or not set(loop._handlers) <= open_streams:
                raise Finding("descriptors stay in the loop")
            answer = b"" if kind == b"attach" else peer.recv(1 << 16)
            if answer and not isinstance(json.loads(answer).get("error"), str):
                raise Finding(f"the answer is {answer!r:.200}")
            return not answer

    def generate(rng: random.Random) -> bytes:
        return rng.choice((b"attach", b"plain", b"sockets", b"file", b"many")) + b"\n" + dumped(rng.choice(_REQUESTS), rng)

    yield Target(generate, exercise)


TARGETS: dict[str, Callable[[], AbstractContextManager[Target]]] = {
    "sif": sif,
    "layout": layout,
    "signatures": signatures,
    "config": config,
    "cdi": cdi_specs,
    "users": users,
    "logs": logs,
    "control": control,
}
