"""Every public call with wrong values: it succeeds, or its error is of a documented type and names the argument."""

from __future__ import annotations

import asyncio
import inspect
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.image import SifBuilder, sif
from ociruntime.lifecycle import checkpoint
from ociruntime.lifecycle.update import Limits
from ociruntime.overrides import Overrides

from ..support.fixture_types import MakeBundle
from ..support.odd_configs import odd_configs
from ..support.processes import describe_children
from ..support.surface import Call, is_wrong, names, public_calls, wrong_values
from ..support.users import run_tests_as_user
from ..support.waiting import SLOWER

pytestmark = pytest.mark.slow

EXHAUSTIVE = "OCIRUNTIME_EXHAUSTIVE" in os.environ
"""Whether to try all odd configs, which takes minutes."""
MADE_BY_THE_LIBRARY = {
    *(
        "Attachment",
        "Container",
        "ContainerFiles",
        "Snapshot",
        "aio.ContainerFiles",
        "Process",
        "SifImage",
        "At",
        "ObjectReader",
        "Image",
    ),
    *("aio.Attachment", "aio.Container", "aio.Process", "aio.Reader", "aio.Writer", "aio.Attachment.connect"),
    "load_ipython_extension",
}
"""Constructors of values that calls return, which store what they are given, and what IPython calls."""

EXCEPTIONS = {
    r".*\(state_root=None\)": "the default state directory, which tests do not touch",
    r".*\.(load|check|from_image_config)\((source|config)=fifo\)": "a FIFO of a shell's <(...): reading waits for its writer",
    r".*\(die_with_parent=None\)": "the third state, which `run` has as its default",
    r"RuntimeSpec\.without_\w+\(\w+=deep JSON\)": "a KeyError holds the whole key",
    r"At\.update\(change=class\)": "a class is a function, whose own error this is",
    r"(build|pull|Image\.verify)\(progress=(class|function)\)": "a function that is called, whose own error this is",
    r".*\.readinto\(buffer=.*bytes\)": "io's own BufferError",
    r"build\(upper=dots\)": "a directory with much in it, which becomes a layer",
    r"SifImage\.open\(target=bytes\)": "a path as bytes, of a file that does not exist",
    r"sign\(key=fifo\)": "a FIFO of a shell's <(...): reading waits for its writer",
    r"Image\.verify\(keys=generator\)": "names of files, which do not exist",
    r"(aio\.)?(ContainerFiles|Sandbox)\..*\(\w+=bytes\)": "a path as bytes, of a file that does not exist, or that was made before",
    r"(aio\.)?(Container|Sandbox)\.diff_text\(path=missing path\)": "a file that was made before",
    r"(aio\.)?(ContainerFiles|Sandbox)\.put\(source=directory\)": "a directory, where there is a file",
    r"(aio\.)?(ContainerFiles|Sandbox)\.put\(source=dots\)": "a directory with much in it, which is copied",
    r"(aio\.)?(ContainerFiles|Sandbox)\..*\(user=.*\)": "a user whom the container does not have, as for exec",
    r"(aio\.)?run\(image=(dots|directory)\)": "a directory is a root filesystem, where the program is missing",
    r"(aio\.)?(Container\.exec|run|Sandbox\.(run|shell))\(on_std(out|err)=(class|function)\)": "it is called with the output",
}
"""What is as it should be, and not as the test demands: call, parameter and value, with the reason."""
CHANGING = {f"{module}Container.{method}" for module in ("", "aio.") for method in ("kill", "update")}
"""Calls after which other calls need a new container: its process has ended, or has a limit that is too low for them."""
UNAVAILABLE = {"pull", *(f"{module}Container.{method}" for module in ("", "aio.") for method in ("checkpoint", "restore"))}
"""Calls that fail after their arguments were accepted: no registry runs here, and criu is not used."""
FEW = (
    "None",
    "True",
    "-1",
    "huge int",
    "nan",
    "empty",
    "word",
    "NUL",
    "lone surrogate",
    "bytes",
    "fifo",
    "mixed list",
    "dict",
    "object",
)
"""Values for the calls of `ociruntime.aio`, which check most of their arguments by the code of their twins."""
AS_A_USER = (*FEW, "unreadable", "missing path", "directory", "text file", "dots", "closed fd")
"""Values for a user, among them those with which a user fares differently than root."""
CALL_LIMIT = 5
"""Seconds for one call."""
MAX_MESSAGE = 9000
"""Length of a message with a path of PATH_MAX bytes, twice."""


class TooLong(BaseException):
    """A call did not end in time."""


class World:
    """Valid arguments, and an instance of each class. What a call has changed is made again."""

    def __init__(self, directory: Path, make_bundle: MakeBundle, image: Path, prefix: str) -> None:
        self.directory, self.image, self.prefix = directory, image, prefix
        self.rootfs = directory / "small"
        (self.rootfs / "etc").mkdir(parents=True)
        self.bundle = make_bundle(name="short")
        spec = oci.RuntimeSpec.default(rootless=os.geteuid() != 0).with_args(["sleep", "1000"])
        self.bundle.spec = spec
        self.chatty = self.bundle.with_args(["sh", "-c", "while sleep 0.02; do echo x; done"])
        self.spec = spec
        self.state_root = directory / "state"
        self.count = 0
        self.kept: dict[str, Any] = {}
        self.loop = asyncio.new_event_loop()

    def number(self) -> int:
        self.count += 1
        return self.count

    def id(self) -> str:
        return f"{self.prefix}-{self.number()}"

    def new_path(self) -> Path:
        return self.directory / f"new-{self.number()}"

    def new_directory(self) -> Path:
        created = self.new_path()
        created.mkdir()
        return created

    # ---- instances ----

    def instance(self, call: Call) -> Any:
        name = call.name.rpartition(".")[0].replace(".", "_")
        method = call.name.rpartition(".")[2]
        make: Callable[..., Any] = getattr(self, f"make_{name}")
        return make(method)

    def _container(self, key: str, status: str = "running", **options: Any) -> oci.Container:
        found = self.kept.get(key)
        if found is None or not found._entry.path.is_dir() or found.status != status:
            if found is not None:
                self.drop(key)
            found = self.kept[key] = (oci.Container.create if status == "created" else oci.Container.run)(
                self.id(), self.chatty if "supervise" in options else self.bundle, state_root=self.state_root, **options
            )
        return found

    def drop(self, key: str) -> None:
        container = self.kept.pop(key)
        with suppress(oci.ContainerNotFound):
            container.delete(force=True)
        container._close()

    def make_Container(self, method: str) -> oci.Container:
        if method in ("attach", "logs", "reopen_log"):
            return self._container("supervised", supervise=True)
        if method == "attach with a terminal":
            return self._container("terminal", supervise=True, terminal=True)
        if method == "start":
            return self._container("created", "created")
        if method == "resume":
            container = self._container("running")
            container.pause()
            return container
        if method == "wait":
            container = self.kept.get("ended")
            if container is None:
                container = self.kept["ended"] = self._container("to end")
                self.kept.pop("to end")
                container.kill("KILL")
                container.wait()
            return container
        return self._changed() if method in ("changes", "diff_text", "snapshot", "commit") else self._container("running")

    def make_aio_Container(self, method: str) -> oci.aio.Container:
        return oci.aio.Container(self.make_Container(method))

    def make_Snapshot(self, method: str) -> oci.Snapshot:
        return self._changed().snapshot()

    def make_Changes(self, method: str) -> oci.Changes:
        return oci.Changes()

    def _changed(self) -> oci.Container:
        """Return a container with an upper layer of its own."""
        found: oci.Container | None = self.kept.get("changed")
        if found is None:
            found = self.kept["changed"] = oci.Container.run(self.id(), self.bundle.fresh(), state_root=self.state_root)
        return found

    def make_ContainerFiles(self, method: str) -> oci.ContainerFiles:
        files = self._container("running").files
        if method == "remove":
            files.write_text("/tmp/to-remove", "x")
        return files

    def make_aio_ContainerFiles(self, method: str) -> oci.aio.ContainerFiles:
        self.make_ContainerFiles(method)
        return oci.aio.Container(self._container("running")).files

    def make_Process(self, method: str) -> oci.Process[bytes]:
        found = self.kept.get("process")
        if found is not None:
            found.kill()
            found._process.discard()
        short = method in ("wait", "communicate")
        process = (
            self._container("running").popen(
                ["true"] if short else ["sleep", "100"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, terminal=False
            )
            if method != "resize"
            else self._container("running").popen(["sleep", "100"], terminal=True)
        )
        self.kept["process"] = process
        return process

    def make_aio_Process(self, method: str) -> oci.aio.Process[bytes]:
        found = self.kept.get("aio process")
        if found is not None:
            found._process.discard()
        short = method in ("wait", "communicate")
        container = self.make_aio_Container("popen")
        options: dict[str, Any] = (
            {"terminal": True} if method == "resize" else {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        )

        async def make() -> Any:
            return await container.popen(["true"] if short else ["sleep", "100"], **options)

        self.kept["aio process"] = process = self.loop.run_until_complete(make())
        return process

    def make_Attachment(self, method: str) -> oci.Attachment:
        found = self.kept.get("attachment")
        if found is not None:
            found.close()
        self.kept["attachment"] = attachment = self.make_Container(
            "attach with a terminal" if method == "resize" else "attach"
        ).attach()
        return attachment

    def make_aio_Attachment(self, method: str) -> oci.aio.Attachment:
        found = self.kept.get("aio attachment")

        async def make() -> Any:
            if found is not None:
                found.close()
            return await self.make_aio_Container("attach with a terminal" if method == "resize" else "attach").attach()

        self.kept["aio attachment"] = attachment = self.loop.run_until_complete(make())
        return attachment

    def make_aio_Reader(self, method: str) -> Any:
        if "reader container" not in self.kept:

            async def make() -> Any:
                return await oci.aio.Container.run(
                    self.id(),
                    self.bundle_of("sh", "-c", "yes; sleep 100"),
                    state_root=self.state_root,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )

            self.kept["reader container"] = self.loop.run_until_complete(make())
        return self.kept["reader container"].stdout

    def make_aio_Writer(self, method: str) -> Any:
        self.make_aio_Reader(method)
        return self.kept["reader container"].stdin

    def bundle_of(self, *args: str) -> oci.Bundle:
        return self.bundle.with_args(args)

    def make_Terminal(self, method: str) -> oci.Terminal:
        found = self.kept.get("terminal")
        if found is None or found.closed:
            master, slave = os.openpty()
            os.close(self.kept.pop("slave", None) or os.dup(slave))
            self.kept["slave"] = slave
            os.set_blocking(master, False)
            found = self.kept["terminal"] = oci.Terminal(master)
        return found

    def make_Bundle(self, method: str) -> oci.Bundle:
        if method == "umount":
            found = self.kept.get("mounted")
            if found is None or not found.path.exists():
                found = self.kept["mounted"] = oci.Bundle.from_sif(self.image, self.new_path())
            return found
        return self.bundle

    def make_RuntimeSpec(self, method: str) -> oci.RuntimeSpec:
        return self.spec

    def make_ProcessSpec(self, method: str) -> oci.spec.ProcessSpec:
        assert self.spec.process is not None
        return self.spec.process

    def make_Host(self, method: str) -> oci.Host:
        return oci.Host.probe()

    def make_Plan(self, method: str) -> oci.Plan:
        return self.bundle.plan()

    def make_Step(self, method: str) -> oci.Step:
        return self.bundle.plan().steps[0]

    def make_State(self, method: str) -> oci.State:
        return self._container("running").state

    def make_Stats(self, method: str) -> oci.Stats:
        return self._container("running").stats()

    def make_Event(self, method: str) -> oci.Event:
        return oci.Event("stats", 0, stats=self.make_Stats(method))

    def make_Profile(self, method: str) -> oci.Profile:
        return oci.Profile("a run", (oci.ProfileStep(1, "host", "mkdir", "a directory", "Cgroups", 0, 10),))

    def make_Result(self, method: str) -> Any:
        return oci.Result(("true",), 0)

    def make_Sandbox(self, method: str) -> oci.Sandbox:
        serves = method in (
            "connect",
            "wait_for_port",
        )  # in a sandbox of its own: files are copied while no program runs, or all are paused
        key = "server" if serves else "sandbox"
        found = self.kept.get(key)
        if found is None or found.closed or found.container.status != "running":
            if found is not None:
                found.close()
            found = self.kept[key] = oci.Sandbox(self.bundle, state_root=self.state_root)
            if serves:
                found.shell("httpd -p 8080 -h /tmp", check=True)
                found.wait_for_port(8080)
        if method == "remove":
            found.write_text("/tmp/to-remove", "x")
        return found

    def make_SandboxPool(self, method: str) -> oci.SandboxPool:
        found = self.kept.get("pool")
        if method == "close" or found is None:
            if found is not None:
                found.close()
            found = self.kept["pool"] = oci.SandboxPool(self.bundle, size=1, state_root=self.state_root)
        return found

    def make_aio_SandboxPool(self, method: str) -> oci.aio.SandboxPool:
        created = oci.aio.SandboxPool.__new__(oci.aio.SandboxPool)
        created._pool = self.make_SandboxPool(method)
        return created

    def make_aio_Sandbox(self, method: str) -> oci.aio.Sandbox:
        created = oci.aio.Sandbox(self.bundle, state_root=self.state_root)
        created._begun_sandbox = self.make_Sandbox(method)
        return created

    def make_At(self, method: str) -> Any:
        return self.spec.at.process if method == "evolve" else self.spec.at.process.args

    def make_SifImage(self, method: str) -> oci.SifImage:
        found = self.kept.get("sif")
        if found is None or found.closed:
            found = self.kept["sif"] = oci.SifImage.open(self.image)
        return found

    def make_Image(self, method: str) -> oci.image.Image:
        found = self.kept.get("image")
        if found is None or found.closed:
            found = self.kept["image"] = oci.image.Image.open(self.image)
        if method == "verify" and not found.signatures:
            found.close()
            signed = shutil.copy(self.image, self.new_path())
            oci.sign(signed, key=self._keys()[0])
            found = self.kept["image"] = oci.image.Image.open(signed)
        return found

    def make_ObjectReader(self, method: str) -> Any:
        return self.make_SifImage(method).reader(self.make_SifImage(method).descriptors[0])

    def make_SifBuilder(self, method: str) -> SifBuilder:
        builder = SifBuilder(deterministic=True)
        builder.add_definition("Bootstrap: scratch\n")
        return builder

    def _keys(self) -> tuple[bytes, bytes]:
        """Return a private key and its public key."""
        if "keys" not in self.kept:
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
            from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

            key = Ed25519PrivateKey.generate()
            private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            self.kept["keys"] = private, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        keys: tuple[bytes, bytes] = self.kept["keys"]
        return keys

    # ---- arguments ----

    def arguments(self, call: Call) -> dict[str, Any]:
        """Return valid arguments for the required parameters, and for some others."""
        found: dict[str, Any] = {}
        for parameter in call.parameters:
            if parameter.name == "state_root":
                found["state_root"] = self.state_root
            elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
                found[parameter.name] = self.argument(call.name, parameter.name)
        if call.name.endswith((".exec", ".popen")) or call.name in ("run", "aio.run"):
            found["args"] = ["true"]
            found["stdin"] = subprocess.DEVNULL
        if call.name.endswith(("Container.create", "Container.run")):
            found["stdin"] = subprocess.DEVNULL
        if call.name.endswith("Container.delete"):
            found["force"] = True
        if call.name.endswith("Sandbox.wait_for_port"):
            found["timeout"] = 1
        if call.name == "pull":
            found["insecure"] = True
        if call.name == "Image.verify":
            found["keys"] = [self._keys()[1]]
        if call.name.endswith("Reader.read") or call.name == "aio.Attachment.read":
            found["size"] = 1
        return found

    def argument(self, call: str, name: str) -> Any:
        config = self.bundle.path / "config.json"
        known: dict[str, Any] = {
            "args": ["true"],
            "base": self.spec,
            "before": self.spec,
            "after": self.spec,
            "over": {},
            "other": {},
            "buffer": bytearray(10),
            "builder": self.make_SifBuilder(""),
            "bundle": self.bundle,
            "changes": {"a": "b"},
            "change": lambda value: value,
            "config": None if call == "Bundle" else {"Cmd": ["sh"]},
            "container_id": self.id(),
            "controller": "memory",
            "data": b"x",
            "data_type": sif.DataType.GENERIC,
            "destination": "/proc",
            "digest": "sha256:" + "0a" * 32,
            "document": {"Cmd": ["sh"]},
            "env": {"A": "b"},
            "image": self.image,
            "image_path": self.new_path(),
            "item": "sleep" if call.startswith("At") else self.make_SifImage("").descriptors[0],
            "key": self._keys()[0],
            "kind": "added" if call == "Changes.of_kind" else "network",
            "layer": self.make_Image("").layers[0],
            "labels": {"a": "b"},
            "line": "true",
            "message_format": 1,
            "message_kind": 0x100,
            "mount": oci.spec.Mount(destination="/x", type="tmpfs", source="tmpfs"),
            "name": "arm64" if call == "Architecture.from_name" else "object",
            "object_id": 1,
            "port": 8080,
            "privileged": False,
            "offset": 0,
            "overrides": Overrides(),
            "path": "/bin/sh" if call in ("Image.extract", "Image.read_bytes") else self.new_path(),
            "reference": "docker://127.0.0.1:1/name:tag",
            "rootfs_dir": self.rootfs,
            "rows": 24,
            "columns": 80,
            "sbom_format": 1,
            "signal": "CONT",
            "source": self.image if call == "build" else config,
            "target": self.new_path() if call in ("build", "pull") else self.image,
            "to": self.new_path(),
            "tracer": print,
            "text": config.read_text() if call.endswith("loads") else "Bootstrap: scratch\n",
            "value": ("sh",) if call == "At.set" else {"a": 1},
            "version": 2,
        }
        method = call.rpartition(".")[2]
        if "ContainerFiles." in call or ("Sandbox." in call and hasattr(oci.ContainerFiles, method)):
            if name == "path":
                return {"remove": "/tmp/to-remove", "mkdir": f"/tmp/{self.number()}", "listdir": "/etc"}.get(method, "/etc/passwd")
            if method == "put_archive" and name == "source":
                return self._archive()
            ours = io.BytesIO(b"x") if name == "source" else self.new_path()
            theirs = "/etc/passwd" if name == "source" else "/tmp/put" if method == "put" else "/tmp"
            of_container = {"put": "destination", "put_archive": "destination", "get": "source", "get_archive": "source"}
            if method in of_container:
                return theirs if of_container[method] == name else io.BytesIO() if method == "get_archive" else ours
        if method == "diff_text":
            return "/etc/passwd"
        if method == "commit":
            return self.new_path()
        if call in ("RuntimeSpec.from_image_config",):
            return {"Cmd": ["sh"]}
        if call in ("ProcessSpec.load", "ProcessSpec.check"):
            return {"cwd": "/"}
        if call == "ProcessSpec.loads":
            return '{"cwd": "/"}'
        if call == "Container.load" or call == "aio.Container.load":
            return self._container("running").id
        if call == "Image.open":
            return self.image
        if call in ("sign", "add_objects", "remove_objects") and name == "path":
            return shutil.copy(self.image, self.new_path())
        if call == "Bundle.load":
            return self.bundle.path
        if call == "Bundle.from_dir":
            created = self.new_path()
            (created / "rootfs").mkdir(parents=True)
            return created
        if call == "Terminal":
            if "fd" not in self.kept:
                self.kept["fd"] = os.open("/dev/null", os.O_RDWR)
            return self.kept["fd"]
        if name == "data" and call.startswith("aio.Writer"):
            return b"x"
        if name not in known:
            raise AssertionError(f"{call} needs {name}: say in World.argument what is valid")
        return known[name]

    def _archive(self) -> io.BytesIO:
        archive = io.BytesIO()
        tarfile.open(fileobj=archive, mode="w").close()
        archive.seek(0)
        return archive

    # ---- calling ----

    def dispose(self, value: Any) -> None:
        """Take back what a call has made."""
        if isinstance(value, oci.aio.Container):
            value = value._sync
        if isinstance(value, oci.aio.SandboxPool):
            value = value._pool
        if isinstance(value, oci.aio.Sandbox):
            value = value._begun_sandbox
        if isinstance(value, oci.Container):
            if value not in self.kept.values():
                value.delete(force=True)
                value._close()
        elif isinstance(value, oci.Process | oci.aio.Process):
            value._process.discard()
        elif isinstance(value, oci.Sandbox | oci.SandboxPool | socket.socket):
            if value not in self.kept.values():
                value.close()
        elif isinstance(
            value, oci.Attachment | oci.SifImage | oci.image.Image | oci.Terminal | sif.ObjectReader | oci.aio.Attachment
        ):
            if isinstance(value, oci.Terminal) and value.fileno() <= 2:
                value._fd = -1  # a number that was tried is a stream of this process
            elif isinstance(value, oci.Terminal) and value is not self.kept.get("terminal"):
                self.kept.pop("fd", None)
            value.close()
        elif isinstance(value, oci.Bundle) and value not in (self.bundle, self.chatty) and value.path.exists():
            with suppress(oci.BundleError):
                value.umount()

    def call(self, call: Call, arguments: dict[str, Any]) -> None:
        """Call it, use the result and take it back."""
        positional: list[Any] = [self.instance(call)] if call.bound else []
        keywords = dict(arguments)
        spread = any(item.kind is item.VAR_POSITIONAL and item.name in keywords for item in call.parameters)
        for parameter in call.parameters:
            by_place = parameter.kind is parameter.POSITIONAL_ONLY or (spread and parameter.kind is not parameter.KEYWORD_ONLY)
            if parameter.name in keywords and by_place:
                positional.append(keywords.pop(parameter.name))
        if call.name.startswith("aio."):
            self.loop.run_until_complete(self._await(call, positional, keywords))
            if call.name in CHANGING:
                self.drop("running")
            return
        value = call.function(*positional, **keywords)
        if call.name in CHANGING:
            self.drop("running")
        if inspect.isgenerator(value):
            if call.name not in ("Container.events", "Sandbox.events"):
                next(value, None)
            value.close()
        else:
            self.dispose(value)

    async def _await(self, call: Call, positional: list[Any], keywords: dict[str, Any]) -> None:
        value = call.function(*positional, **keywords)
        if hasattr(value, "__await__"):
            reads = call.name.endswith((".read", ".readline"))
            with suppress(TimeoutError if reads else ()):
                value = await (asyncio.wait_for(value, 0.02) if reads else value)
        if inspect.isasyncgen(value):
            with suppress(StopAsyncIteration, TimeoutError):
                await asyncio.wait_for(anext(value), 0.02)
            await value.aclose()
        else:
            self.dispose(value)

    def close(self) -> None:
        """Remove everything."""
        if "reader container" in self.kept:
            self.loop.run_until_complete(self.kept.pop("reader container").delete(force=True))
        for key in ("slave", "fd"):
            with suppress(OSError):  # a terminal has closed it
                os.close(self.kept.pop(key, -1))
        for value in self.kept.values():
            if isinstance(value, oci.Sandbox | oci.SandboxPool):
                value.close()
            elif not isinstance(value, oci.Container):
                self.dispose(value)
        self.loop.run_until_complete(asyncio.sleep(0.01))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        for key in [key for key, value in self.kept.items() if isinstance(value, oci.Container)]:
            self.drop(key)
        assert [c.id for c in oci.Container.list(state_root=self.state_root)] == []


@pytest.fixture
def world(
    tmp_path: Path, make_bundle: MakeBundle, busybox_sif: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "CRIU", "no-criu")
    created = World(tmp_path, make_bundle, busybox_sif, prefix)
    try:
        yield created
    finally:
        created.close()


PROCESS_MEMBERS = dict.fromkeys(("args", "cwd", "user", "env", "rlimits", "terminal"))
KEYWORDS: dict[str, dict[str, Any]] = {
    "Container.update": dict(Limits.__annotations__),
    "aio.Container.update": dict(Limits.__annotations__),
    "Bundle.with_process": PROCESS_MEMBERS,
    "At.evolve": PROCESS_MEMBERS,
    "RuntimeSpec.with_env": {"names": "str | None"},
    "ProcessSpec.with_env": {"names": "str | None"},
}
"""The keywords of calls that take any."""


def judge(call: Call, name: str, annotation: Any, value: Any, error: BaseException | None) -> str:
    """Return what is wrong with the outcome of a call; empty if nothing is."""
    if error is None:
        return "it is accepted" if is_wrong(annotation, value) else ""
    message = str(error)
    if isinstance(error, TooLong):
        return "it does not end"
    if len(message) > MAX_MESSAGE:
        return "the message is too long"
    if isinstance(error, UnicodeError | RecursionError):
        return "bare"
    documented = isinstance(error, TypeError | ValueError | oci.OCIRuntimeError | OSError) or (
        isinstance(error, KeyError) and "KeyError" in (call.function.__doc__ or "")
    )
    if not documented:
        return "bare"
    return "" if names(message, name, value) else "the argument is not named"


def test_wrong_values_are_refused_by_name(world: World, calls: list[Call]) -> None:
    """Each parameter of each call gets every wrong value, the other parameters get valid ones."""
    values = wrong_values(world.directory / "values")
    chosen = AS_A_USER if os.geteuid() != 0 else ()
    faults: list[str] = []
    tried = 0

    def too_long(*_: object) -> None:
        print(describe_children())
        raise TooLong

    previous = signal.signal(signal.SIGALRM, too_long)
    try:
        for call in calls:
            parameters = {p.name: p.annotation for p in call.parameters} | KEYWORDS.get(call.name, {})
            accepted = ""
            if call.name in UNAVAILABLE:
                with pytest.raises((oci.ImageError, oci.UnsupportedError), match=r"pulled|skopeo|criu") as refused:
                    world.call(call, world.arguments(call))
                accepted = str(refused.value)
            elif parameters:
                world.call(call, world.arguments(call))  # it works with valid ones
            given = {what: values[what] for what in chosen or (FEW if call.name.startswith("aio.") else values)}
            for (name, annotation), (what, value) in product(parameters.items(), given.items()):
                if any(re.fullmatch(pattern, f"{call.name}({name}={what})") for pattern in EXCEPTIONS):
                    continue
                tried += 1
                os.chdir(world.new_directory())  # where relative paths lead
                shutil.rmtree(world.directory / "values/missing", ignore_errors=True)
                arguments = {**world.arguments(call), name: value}
                if name in ("console_socket", "log_path", "sync_socket"):
                    arguments.pop("stdin", None)
                error: BaseException | None = None
                signal.setitimer(signal.ITIMER_REAL, CALL_LIMIT * SLOWER)
                try:
                    world.call(call, arguments)
                except (Exception, TooLong) as caught:
                    error = caught.with_traceback(None) if str(caught) != accepted or not accepted else None
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                if wrong := judge(call, name, annotation, value, error):
                    faults.append(f"{call.name}({name}={what}): {wrong}: {type(error).__name__}: {str(error)[:300]}")
    finally:
        signal.signal(signal.SIGALRM, previous)
    print(f"{len(calls)} calls, {tried} cases")
    assert {call.name for call in public_calls()} >= MADE_BY_THE_LIBRARY | UNAVAILABLE
    assert not faults, "\n".join(faults)
    assert tried >= len(chosen or values)


@pytest.mark.filterwarnings("ignore::ociruntime.OCIRuntimeWarning")
def test_odd_configs_are_created_or_refused(world: World) -> None:
    """What has a plan is created, started and deleted, or the kernel refuses it with a step; what has none names a JSON path."""
    bundle = world.directory / "odd"
    shutil.copytree(world.bundle.path, bundle, symlinks=True)
    cases = list(odd_configs(world.bundle.spec.with_args(["true"]), each=None if EXHAUSTIVE else 1))
    faults = []
    for what, document in cases if EXHAUSTIVE else random.Random(1).sample(cases, 150):
        root = document.get("root")
        if isinstance(root, dict) and not os.path.normpath(bundle / str(root.get("path"))).startswith(f"{bundle}/"):
            continue  # directories to mount on would be made on the host
        (bundle / "config.json").write_text(json.dumps(document))
        try:
            container = oci.Container.create(
                world.id(), oci.Bundle.load(bundle), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                state_root=world.state_root,
            )  # fmt: skip
            try:
                container.start()
            finally:
                container.delete(force=True)
        except oci.OCIRuntimeError as error:
            wrong = "no JSON path" if isinstance(error, oci.SpecError | oci.UnsupportedError) and "$" not in str(error) else ""
            if wrong or len(str(error)) > MAX_MESSAGE:
                faults.append(f"{what}: {wrong or 'the message is too long'}: {type(error).__name__}: {str(error)[:300]}")
        except Exception as error:
            faults.append(f"{what}: {type(error).__name__}: {str(error)[:300]}")
    assert not faults, f"{len(faults)}:\n" + "\n".join(faults[:50])
    assert oci.Container.list(state_root=world.state_root) == []


@pytest.mark.root
@pytest.mark.parametrize("file", ["test_wrong_values.py", "test_wrong_command_lines.py"])
def test_as_a_user(user_python: str, prefix: str, file: str) -> None:
    """Everything that is tried here as root is tried as a user too, who may not read every file."""
    run_tests_as_user(user_python, prefix, f"kernel/{file}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_unreadable_files_of_a_directory_are_named(tmp_path: Path) -> None:
    top = tmp_path / "image"
    (top / "open").mkdir(parents=True)
    (top / "open/locked").mkdir(0)
    os.close(os.open(top / "file", os.O_CREAT, 0))
    closed = tmp_path / "closed"
    closed.mkdir(0o555)
    with oci.Image.open(top) as image:
        calls: list[tuple[Path, Callable[[], object]]] = [
            (top / "open/locked", lambda: list(image.files())),
            (top / "open/locked", lambda: image.extract("/open", tmp_path / "copy")),
            (top / "file", lambda: image.read_bytes("/file")),
            (top / "file", lambda: image.extract("/file", tmp_path / "copy")),
            (closed / "copy", lambda: image.extract("/open", closed / "copy")),
        ]
        for path, call in calls:
            with pytest.raises(PermissionError) as caught:
                call()
            assert str(caught.value) == f"[Errno 13] Permission denied: '{path}'"
    assert {path.name for path in tmp_path.iterdir()} == {"image", "closed"}


def _part(call: Call) -> str:
    if call.name.startswith("aio."):
        return "aio"
    if call.name.startswith(("Container", "Process.", "run", "Attachment", "Sandbox")):
        return "containers"
    return "documents and images"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "calls" in metafunc.fixturenames:
        parts: dict[str, list[Call]] = {}
        for call in public_calls():
            if call.name not in MADE_BY_THE_LIBRARY:
                parts.setdefault(_part(call), []).append(call)
        metafunc.parametrize("calls", parts.values(), ids=parts.keys())
