"""Values for files of controllers, and what both cgroup versions share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ...errors import Problem, SpecError

if TYPE_CHECKING:
    from ...spec import BlockIO, Resources, ThrottleDevice

SECTION: Final = "config-linux.md#control-groups"
ROOT: Final = "$.linux.resources"


class Write(NamedTuple):
    """One value for one file of one controller."""

    controller: str
    file: str
    value: str
    members: tuple[str, ...]
    """The members of linux.resources that it follows from, such as ``memory.limit``; errors name the first one."""
    group: str = ""
    """Values of one group depend on each other: the current ones decide in which order the kernel accepts them."""
    other: tuple[str, str] | None = None
    """A file and a value for kernels without ``file``."""
    optional: bool = False
    """Whether a kernel without the files behaves as the value asks for."""


class Writes:
    """Collects writes in the order in which they are written."""

    def __init__(self) -> None:
        self.all: list[Write] = []

    def put(self, controller: str, file: str, value: object, *members: str, group: str = "", **more: object) -> None:
        """Add a value, unless it is None. Raises SpecError: the file is not in the cgroup's directory."""
        if value is not None:
            if "/" in file:
                raise SpecError([Problem(f"{ROOT}.{members[0]}", f"{file!r} is not a file of a cgroup", SECTION)])
            text = str(int(value) if isinstance(value, bool) else value)
            self.all.append(Write(controller, file, text, members, group, **more))  # type: ignore[arg-type]


def nonzero(value: int | None) -> int | None:
    """Return a number that asks for something: engines send 0 to leave a value unchanged that cannot be 0."""
    return value or None


def throttles(block: BlockIO) -> tuple[tuple[str, str, tuple[ThrottleDevice, ...]], ...]:
    """Return the four lists of rates, each with its name on v1 and in the config."""
    return (
        ("read_bps", "throttleReadBpsDevice", block.throttle_read_bps_device or ()),
        ("write_bps", "throttleWriteBpsDevice", block.throttle_write_bps_device or ()),
        ("read_iops", "throttleReadIOPSDevice", block.throttle_read_iops_device or ()),
        ("write_iops", "throttleWriteIOPSDevice", block.throttle_write_iops_device or ()),
    )


def rdma(writes: Writes, resources: Resources) -> None:
    """Add the limits of rdma, which has the same file on both versions."""
    for name, device in (resources.rdma or {}).items():
        pairs = (("hca_handle", device.hca_handles), ("hca_object", device.hca_objects))
        text = " ".join(f"{key}={value}" for key, value in pairs if value is not None)
        writes.put("rdma", "rdma.max", f"{name} {text}", f"rdma[{name!r}]")
