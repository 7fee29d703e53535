"""`ContainerProvisioner`: kernels of Jupyter that run in containers of an image. It needs the extra `notebook`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import struct
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets import Dict, Unicode
from typing_extensions import override

from ..errors import UnsupportedError
from ..files import replace_file
from ..image.registry import staging
from ..options import SandboxKeywords, check_keywords
from ..presets import Preset, parse_preset
from ..process import Process
from ..rootfs.users import CALLER
from ..sandbox import Sandbox
from ..store import StateStore, make_directory

if TYPE_CHECKING:
    import subprocess

__all__ = ["ContainerProvisioner"]

_DIRECTORY: Final = ".kernels"
"""Where the files of kernels are, in the state directory."""
_CONNECTION_FILE: Final = "/run/ociruntime-kernel.json"
_SOCKETS: Final = "/run/ociruntime-kernel"
"""The connection file and the directory of the sockets in the container."""
_SOCKET: Final = "k"
"""Begins the names of the sockets, which end with ``-1`` to ``-5``."""
_MAX_SOCKET_PATH: Final = 107 - len("-00000")
_ACL: Final = struct.pack("<I" + 3 * "HHI", 2, *(field for tag in (0x01, 0x04, 0x20) for field in (tag, 0o7, 0xFFFFFFFF)))
"""The extended attribute of a default ACL (acl(5)) that gives every user all rights to new files, whatever the umask is."""


class ContainerProvisioner(LocalProvisioner):
    """Runs a kernel in a container of an image, for kernel specs with ``ociruntime`` as their ``provisioner_name``.

    The container is a `Sandbox`: it is removed with the kernel, and killed by the kernel of the host when the process of Jupyter
    ends, however that ends. A restart makes a new one. The program in ``argv`` is one of the image; ``{connection_file}`` there
    becomes the path of the file in the container.

    In the network of the host, the kernel listens where Jupyter says, which is TCP by default. With any other network, Jupyter and
    the kernel are connected by Unix sockets in a directory that both have (the transport ``ipc``), so that no port is forwarded.
    """

    image = Unicode(help="The image file, or the directory of a root filesystem.").tag(config=True)
    options = Dict(
        help="Keywords of ociruntime.Sandbox, as network, mounts, env, memory or gpus. By default nothing limits disk and pids, "
        "and the user is the caller, with an empty home directory in memory unless the caller is root."
    ).tag(config=True)

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._files = ExitStack()
        self._place = ""
        self._sandbox: Sandbox | None = None

    @override
    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Choose how Jupyter and the kernel are connected, and return the arguments of `launch_kernel`.

        Raises:
            TypeError, ValueError: an option is not a keyword of `Sandbox`, or its preset does not exist.
            UnsupportedError: the path of the state directory is too long for sockets, or it can have no access control lists.
            StateError: the state directory cannot be used.
        """
        manager = self.parent
        assert manager is not None, "a kernel manager makes it"
        if not self._place:
            self._place = self._make_place()
        if not _is_host_network(_sandbox_options(self.options)):
            manager.transport = "ipc"
            manager.ip = f"{self._place}/sockets/{_SOCKET}"
        return await super().pre_launch(**kwargs)

    def _make_place(self) -> str:
        """Make the directory for the connection file and the sockets. Raises as `pre_launch`."""
        store = StateStore(self.options.get("state_root"))
        parent = f"{store.directory}/{_DIRECTORY}"
        make_directory(store.directory)
        make_directory(parent, link=False)
        with ExitStack() as stack:
            place = stack.enter_context(staging(parent, ""))
            sockets = f"{place}/sockets"
            if len(os.fsencode(f"{sockets}/{_SOCKET}")) > _MAX_SOCKET_PATH:
                raise UnsupportedError(
                    f"{sockets}: too long for the path of a Unix socket; give a shorter state_root in kernel.json"
                )
            # Only this user reaches it, through the directory above. In the container it is for any user that the kernel may have.
            os.mkdir(sockets)
            os.chmod(sockets, 0o777)
            try:
                os.setxattr(sockets, "system.posix_acl_default", _ACL)
            except OSError as error:
                reason = os.strerror(error.errno or 0).lower()
                message = f"{sockets}: cannot set an access control list: {reason}; give another state_root in kernel.json"
                raise UnsupportedError(message) from error
            self._files = stack.pop_all()
        return place

    @override
    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the kernel in a new container. Raises as `Sandbox` and `Sandbox.popen`; nothing is left then."""
        self._close_sandbox()
        manager = self.parent
        assert manager is not None
        document = json.loads(Path(manager.connection_file).read_bytes())
        if document["transport"] == "ipc":
            document["ip"] = f"{_SOCKETS}/{_SOCKET}"
        replace_file(f"{self._place}/connection.json", json.dumps(document).encode(), mode=0o644)
        program = self.kernel_spec.argv[0]  # the manager makes the Python of the host of it
        args = [program, *(word.replace(manager.connection_file, _CONNECTION_FILE) for word in cmd[1:])]
        given = kwargs.get("env", {})
        env = {name: given[name] for name in (*self.kernel_spec.env, "JPY_SESSION_NAME") if name in given}
        env["JPY_PARENT_PID"] = "1"  # ipykernel need not look whether Jupyter is alive: the container ends with it
        # In a thread, because layers may have to be extracted first.
        try:
            process = await asyncio.to_thread(self._start, args, env, kwargs)
        except BaseException:
            self._remove_place()  # because not every client calls cleanup then
            raise
        self.process = cast("subprocess.Popen[Any]", process)  # with the methods that the base class calls
        self.pid = self.pgid = process.pid
        self.cwd = kwargs.get("cwd")
        return self.connection_info

    def _start(self, args: list[str], env: dict[str, str], kwargs: dict[str, Any]) -> Process[Any]:
        options = _sandbox_options(self.options)
        mounts: Any = options.get("mounts") or []
        options["mounts"] = [
            *(mounts.items() if isinstance(mounts, dict) else mounts),
            f"{self._place}/connection.json:{_CONNECTION_FILE}:ro",
            f"{self._place}/sockets:{_SOCKETS}",
        ]
        self._sandbox = Sandbox(self.image, **options)
        try:
            cwd = kwargs.get("cwd")
            if "cwd" in options or cwd is None or not self._sandbox.exists(cwd):
                cwd = None
            return self._sandbox.popen(args, env=env, cwd=cwd, stdout=kwargs.get("stdout"), stderr=kwargs.get("stderr"))
        except BaseException:
            self._close_sandbox()
            raise

    @override
    async def send_signal(self, signum: int) -> None:
        """Send a signal to the process group of the kernel, to which the programs belong that a cell runs."""
        if self.process is not None and self.process.poll() is None:
            try:
                os.killpg(self.process.pid, signum)
            except OSError:
                self.process.send_signal(signum)

    @override
    async def kill(self, restart: bool = False) -> None:
        """Kill every process of the container."""
        if self._sandbox is not None and not self._sandbox.closed:
            self._sandbox.kill()

    @override
    async def terminate(self, restart: bool = False) -> None:
        """Ask the kernel to end."""
        await self.send_signal(signal.SIGTERM)

    @override
    async def cleanup(self, restart: bool = False) -> None:
        """Remove the container, and unless the kernel is restarted also the directory of the sockets."""
        self._close_sandbox()
        if not restart:
            self._remove_place()
        await super().cleanup(restart)

    def _remove_place(self) -> None:
        self._place = ""
        self._files.close()

    def _close_sandbox(self) -> None:
        sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            sandbox.close()


def _sandbox_options(options: dict[str, Any]) -> SandboxKeywords:
    """Return the keywords of the sandbox for the options of a kernel spec, which are JSON. Raises TypeError, ValueError."""
    check_keywords("Sandbox", options, SandboxKeywords)
    given: dict[str, Any] = {"disk": -1, "pids": -1, "user": CALLER, **options}
    preset = given.get("preset")
    if isinstance(preset, dict):
        members: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in preset.items()}
        given["preset"] = Preset(**members)
    elif preset is None and "user" not in options and os.geteuid() != 0:
        given["preset"] = Preset(home="empty")
    return cast("SandboxKeywords", given)


def _is_host_network(options: SandboxKeywords) -> bool:
    preset = parse_preset(options.get("preset"))
    return (options.get("network") or (preset.network if preset is not None else None)) == "host"
