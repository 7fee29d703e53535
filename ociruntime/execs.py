"""`Executes`: further programs in a running container, `exec` and `popen`; a part of `Container`."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from typing import Any, Literal, TypeVar, Unpack, overload

    from .options import ExecOptions, PopenOptions
    from .overrides import Args, Env, UserLike
    from .process import Child, Process, Result
    from .spec import Process as ProcessSpec
    from .spec import RuntimeSpec
    from .state import Entry
    from .streams import Stdio, Streams

    C = TypeVar("C", bound=Child)

__all__ = ["Executes"]


class Executes:
    """Runs further programs in a container that runs."""

    _entry: Entry

    if TYPE_CHECKING:

        @property
        def spec(self) -> RuntimeSpec: ...

    if TYPE_CHECKING:

        @overload
        def exec(self, args: Args = ..., *, text: Literal[True], **options: Unpack[ExecOptions]) -> Result[str]: ...
        @overload
        def exec(
            self, args: Args = ..., *, encoding: str, errors: str | None = ..., **options: Unpack[ExecOptions]
        ) -> Result[str]: ...
        @overload
        def exec(self, args: Args = ..., *, errors: str, **options: Unpack[ExecOptions]) -> Result[str]: ...
        @overload
        def exec(self, args: Args = ..., *, text: Literal[False] | None = ..., **options: Unpack[ExecOptions]) -> Result[bytes]: ...
        @overload
        def exec(self, args: Args = ..., *, text: bool | None, **options: Unpack[ExecOptions]) -> Result[Any]: ...

    def exec(
        self,
        args: Args = (),
        *,
        input: bytes | str | None = None,
        capture_output: bool = False,
        stdin: Stdio = None,
        stdout: Stdio = None,
        stderr: Stdio = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        timeout: float | None = None,
        check: bool = False,
        env: Env | None = None,
        cwd: str | os.PathLike[str] | None = None,
        user: UserLike | None = None,
        groups: Sequence[int] | None = None,
        capabilities: Sequence[str] = (),
        no_new_privileges: bool | None = None,
        apparmor_profile: str | None = None,
        selinux_label: str | None = None,
        process: ProcessSpec | Mapping[str, Any] | None = None,
        terminal: bool = False,
        preserve_fds: int = 0,
        cgroup: str | Mapping[str, str] | None = None,
        own_cgroup: bool = True,
    ) -> Result[Any]:
        """Run a further program in the container and wait for it, as `subprocess.run` does.

        It joins the container's namespaces and cgroups, and has environment, user, capabilities, limits and seccomp filter of the
        container's process.

        Args:
            args: the program and its arguments.
            input: bytes for stdin, or text with ``text=True``.
            capture_output: keep stdout and stderr in the result.
            stdin, stdout, stderr: descriptors, files, ``subprocess.PIPE``, ``DEVNULL`` or ``STDOUT``; our own by default.
            text: decode the output, as ``encoding`` and ``errors`` do; by default from UTF-8, what is invalid as surrogates.
            timeout: seconds; then the program and everything that it has started is killed, and the result has the output so far
                and ``timed_out``.
            env: variables over those of the container's process: a mapping, where None removes one, or ``NAME=value`` strings.
            cwd: the working directory in the container.
            user: ``"name"``, ``"name:group"``, ``"uid:gid"``, a uid or ``(uid, gid)``.
            groups: supplementary groups, instead of the user's own.
            capabilities: further ones, in the bounding, effective and permitted sets only.
            no_new_privileges, apparmor_profile, selinux_label: as in the process object (config.md, Process).
            process: a complete process object instead (config.md, Process), or its JSON; ``args``, when not empty, replace its own.
            terminal: give the program a terminal. It is connected with the one that we sit at, from the main thread; or with
                ``capture_output`` what it prints is the result's stdout, and ``input`` is typed.
            preserve_fds: how many descriptors from 3 on the program inherits.
            cgroup: a cgroup that the container has made below its own, for the program to run in: a path from there, or a path for
                each of some controllers (on v1, where every controller may have others).
            own_cgroup: whether the program gets a cgroup of its own below that one, or a mark, by which all that it starts is
                known. Without it, a timeout kills the program alone.

        Raises:
            TypeError: ``args`` is a string.
            ValueError: ``cgroup`` leads out of the container's cgroup, or names a controller that it does not have.
            FileNotFoundError: ``cgroup`` does not exist.
            WrongStatus: the container is not running: it is created, paused, about to end or stopped.
            StepError: a step failed; with errno ENOENT the program is not there.
            ProcessError: with ``check``, when the program does not end with 0.
        """
        from contextlib import closing

        from .errors import LaunchTimeout
        from .interrupts import Held
        from .overrides import seconds, words
        from .process import Deadline, Process, finish
        from .streams import Codec, Streams

        if process is not None:
            from collections.abc import Mapping

            terminal = terminal or bool(process.get("terminal") if isinstance(process, Mapping) else process.terminal)
        interactive = terminal and not capture_output
        if interactive and timeout is not None:
            raise ValueError("who sits at a terminal takes the time that it takes: timeout is for capture_output=True")
        limit, codec = seconds(timeout), Codec.of(text, encoding, errors)
        with Held() as held, Streams.of_run(input, capture_output, stdin, stdout, stderr, codec, terminal) as streams:
            deadline = Deadline(limit)
            try:
                child: Process[Any] = self._launch(
                    Process,
                    args,
                    streams,
                    env=env,
                    cwd=cwd,
                    user=user,
                    groups=groups,
                    capabilities=capabilities,
                    no_new_privileges=no_new_privileges,
                    apparmor_profile=apparmor_profile,
                    selinux_label=selinux_label,
                    process=process,
                    terminal=terminal,
                    preserve_fds=preserve_fds,
                    cgroup=cgroup,
                    own_cgroup=own_cgroup,
                    deadline=deadline.at,
                )
            except LaunchTimeout as error:
                result = deadline.result(error, words(args), streams)
            else:
                with closing(child):
                    if interactive:
                        child.sit(held)
                    result = finish(child, held, limit, child.kill_all)
        if check:
            result.check_returncode()
        return result

    if TYPE_CHECKING:

        @overload
        def popen(self, args: Args = ..., *, text: Literal[True], **options: Unpack[PopenOptions]) -> Process[str]: ...
        @overload
        def popen(
            self, args: Args = ..., *, encoding: str, errors: str | None = ..., **options: Unpack[PopenOptions]
        ) -> Process[str]: ...
        @overload
        def popen(self, args: Args = ..., *, errors: str, **options: Unpack[PopenOptions]) -> Process[str]: ...
        @overload
        def popen(
            self, args: Args = ..., *, text: Literal[False] | None = ..., **options: Unpack[PopenOptions]
        ) -> Process[bytes]: ...
        @overload
        def popen(self, args: Args = ..., *, text: bool | None, **options: Unpack[PopenOptions]) -> Process[Any]: ...

    def popen(
        self,
        args: Args = (),
        *,
        stdin: Stdio = None,
        stdout: Stdio = None,
        stderr: Stdio = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        bufsize: int = -1,
        env: Env | None = None,
        cwd: str | os.PathLike[str] | None = None,
        user: UserLike | None = None,
        groups: Sequence[int] | None = None,
        capabilities: Sequence[str] = (),
        no_new_privileges: bool | None = None,
        apparmor_profile: str | None = None,
        selinux_label: str | None = None,
        process: ProcessSpec | Mapping[str, Any] | None = None,
        terminal: bool = False,
        console_socket: str | os.PathLike[str] | None = None,
        pid_file: str | os.PathLike[str] | None = None,
        preserve_fds: int = 0,
        cgroup: str | Mapping[str, str] | None = None,
        own_cgroup: bool = True,
    ) -> Process[Any]:
        """Start a further program in the container and give its `Process`, as `subprocess.Popen` does.

        Arguments and errors are those of `exec`, and:

        Args:
            bufsize: of the streams: 1 for line buffering of text, 0 for none of bytes.
            terminal: give the program a terminal, whose master is `Process.terminal`.
            console_socket: a listening Unix socket that gets the master of a terminal for the program instead.
            pid_file: gets the pid of the program.
        """
        from .interrupts import Held
        from .process import Process
        from .streams import Codec, Streams

        with Held() as held:
            streams = Streams(stdin, stdout, stderr, codec=Codec.of(text, encoding, errors), bufsize=bufsize)
            try:
                launched: Process[Any] = self._launch(
                    Process,
                    args,
                    streams,
                    env=env,
                    cwd=cwd,
                    user=user,
                    groups=groups,
                    capabilities=capabilities,
                    no_new_privileges=no_new_privileges,
                    apparmor_profile=apparmor_profile,
                    selinux_label=selinux_label,
                    process=process,
                    terminal=terminal,
                    console_socket=console_socket,
                    pid_file=pid_file,
                    preserve_fds=preserve_fds,
                    cgroup=cgroup,
                    own_cgroup=own_cgroup,
                )
            except BaseException:
                streams.close()
                raise
            held.undo = launched.discard
        return launched

    def _launch(
        self,
        cls: type[C],
        args: Args,
        streams: Streams,
        *,
        env: Env | None = None,
        cwd: str | os.PathLike[str] | None = None,
        user: UserLike | None = None,
        groups: Sequence[int] | None = None,
        capabilities: Sequence[str] = (),
        no_new_privileges: bool | None = None,
        apparmor_profile: str | None = None,
        selinux_label: str | None = None,
        process: ProcessSpec | Mapping[str, Any] | None = None,
        terminal: bool = False,
        console_socket: str | os.PathLike[str] | None = None,
        pid_file: str | os.PathLike[str] | None = None,
        preserve_fds: int = 0,
        cgroup: str | Mapping[str, str] | None = None,
        own_cgroup: bool = True,
        deadline: float | None = None,
    ) -> C:
        from .lifecycle.execute import execute
        from .overrides import Overrides, words

        if (terminal or console_socket is not None) and streams.child != [0, 1, 2]:
            from .streams import BESIDE_A_TERMINAL

            raise ValueError(BESIDE_A_TERMINAL)
        if process is None and not args:
            raise ValueError("args is empty: the program to run in the container is needed, or a process object")
        overrides = Overrides(
            args=words(args),
            env=env,
            cwd=cwd,
            user=user,
            groups=groups,
            terminal=True if terminal or console_socket is not None else None,
            no_new_privileges=no_new_privileges,
            apparmor_profile=apparmor_profile,
            selinux_label=selinux_label,
        ).checked()
        began = time.monotonic()
        started = execute(
            self._entry,
            self.spec,
            overrides,
            process=process,
            capabilities=capabilities,
            stdio=streams.child,
            console_socket=console_socket,
            pid_file=pid_file,
            preserve_fds=preserve_fds,
            cgroup=cgroup,
            own_cgroup=own_cgroup,
            deadline=deadline,
        )
        streams.launched()
        if started.terminal is not None:
            streams.use_terminal(started.terminal.fileno())
        return cls(
            started.args,
            started.pid,
            started.pidfd,
            streams,
            first=started.first,
            began=began,
            cgroups=started.cgroups,
            oom_kills=started.oom_kills,
            group=started.group,
            terminal=started.terminal,
        )
