"""Hooks: when each one runs, and what it is given (config.md#posix-platform-hooks).

Hooks of the runtime namespace are steps of the host; the init runs those of the container namespace. The hooks that `start` and
`delete` run are stored with the state (`CompiledHooks.stored`), so that neither reads the config again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from .ops import Sync

if TYPE_CHECKING:
    from ..spec import Hook, RuntimeSpec
    from .model import PlanBuilder

_ATTRIBUTES: Final = {
    "prestart": "prestart",
    "createRuntime": "create_runtime",
    "createContainer": "create_container",
    "startContainer": "start_container",
    "poststart": "poststart",
    "poststop": "poststop",
}
_AT_CREATE: Final = ("prestart", "createRuntime", "createContainer")
_IN_CONTAINER: Final = ("createContainer", "startContainer")


class HookProgram(NamedTuple):
    """A hook as it is executed. state.json has a list of the same values."""

    path: str
    args: Sequence[str]
    env: Sequence[str]
    timeout: int
    """Unit: seconds. 0 means no timeout."""
    position: int = 0
    """Where it is among the hooks of its kind, from 0 on."""

    def describe(self, kind: str) -> str:
        """Return the hook in one line, its kind first."""
        command = " ".join((self.path, *self.args[1:]))
        limit = f" ({self.timeout} s)" if self.timeout else ""
        return f"{kind} {command if len(command) <= 80 else command[:77] + '...'}{limit}"


class CompiledHooks(NamedTuple):
    """The hooks of a config by their kinds, without empty kinds."""

    programs: dict[str, tuple[HookProgram, ...]]
    state: int
    """The slot of the state document, which is the stdin of hooks in the container."""
    output: int
    """The slot of the file that receives the output of hooks in the container."""

    @property
    def at_create(self) -> bool:
        """Whether hooks run before the root is entered, which needs all mounts attached earlier."""
        return any(kind in self.programs for kind in _AT_CREATE)

    def stored(self) -> dict[str, list[HookProgram]]:
        """Return the hooks that run after create."""
        kinds = ("startContainer", "poststart", "poststop")
        return {kind: list(self.programs[kind]) for kind in kinds if kind in self.programs}


def compile_hooks(builder: PlanBuilder, spec: RuntimeSpec) -> CompiledHooks:
    """Return the hooks of a config, and add the inputs that hooks in the container need."""
    programs = dict(_programs(spec)) if spec.hooks is not None else {}
    state = output = -1
    if any(kind in programs for kind in _IN_CONTAINER):
        state = builder.add_input("state", "state of the container, for its hooks")
        output = builder.add_input("output", "output of hooks in the container")
    return CompiledHooks(programs, state, output)


def _programs(spec: RuntimeSpec) -> Iterator[tuple[str, tuple[HookProgram, ...]]]:
    """Yield the hooks of each kind. A startContainer hook without an environment gets that of the process, as with runc."""
    for kind, attribute in _ATTRIBUTES.items():
        entries: tuple[Hook, ...] = getattr(spec.hooks, attribute) or ()
        default = spec.process.env if kind == "startContainer" and spec.process is not None else None
        programs = (
            HookProgram(
                hook.path,
                tuple(hook.args or (hook.path,)),
                tuple((default if hook.env is None else hook.env) or ()),
                hook.timeout or 0,
                index,
            )
            for index, hook in enumerate(entries)
        )
        if entries:
            yield kind, tuple(programs)


def compile_create_hooks(builder: PlanBuilder, hooks: CompiledHooks, root: int) -> None:
    """Run the hooks of create, after everything is mounted and before the host's tree is out of reach."""
    builder.add("sync", Sync.HOST, text="wait until the caller has run its hooks")
    for kind in ("prestart", "createRuntime"):
        for program in hooks.programs.get(kind, ()):
            builder.add_host("hook", kind, *program, text=program.describe(kind))
    if hooks.state >= 0:
        _write_state(builder)
    _run_in_container(builder, hooks, "createContainer", root)


def compile_hook_state(builder: PlanBuilder, hooks: CompiledHooks) -> None:
    """Write the state for the hooks of start, unless it was written for a hook of create."""
    if hooks.state >= 0 and not hooks.at_create:
        _write_state(builder)


def _write_state(builder: PlanBuilder) -> None:
    builder.add_host("hook_state", text="state with the container's pid, for its hooks")


def compile_start_hooks(builder: PlanBuilder, hooks: CompiledHooks, root: int) -> None:
    """Run the hooks of start with the credentials of the process, as their paths are resolved in the image."""
    _run_in_container(builder, hooks, "startContainer", root)


def _run_in_container(builder: PlanBuilder, hooks: CompiledHooks, kind: str, root: int) -> None:
    for program in hooks.programs.get(kind, ()):
        path, args, env, timeout, _ = program
        builder.add("hook", root, path, args, env, hooks.state, hooks.output, timeout * 1000, text=program.describe(kind))
