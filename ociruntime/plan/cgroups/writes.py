"""What the modules of one cgroup version have in common: a value for a file, and where in the config it comes from."""

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
    """The members of linux.resources that it follows from, as ``memory.limit``; the first is the one to name in an error."""
    group: str = ""
    """Values of one group depend on each other: the kernel takes them in one order only, and which one depends on what is set."""
    other: tuple[str, str] | None = None
    """A file and a value for kernels that do not have ``file``."""
    optional: bool = False
    """Whether a kernel with neither file does by itself what the value asks for."""


class Writes:
    """Collects writes in the order in which the kernel is to get them."""

    def __init__(self) -> None:
        self.all: list[Write] = []

    def put(self, controller: str, file: str, value: object, *members: str, group: str = "", **more: object) -> None:
        """Add a value, unless it is None. Raises SpecError for a file elsewhere."""
        if value is not None:
            if "/" in file:
                raise SpecError([Problem(f"{ROOT}.{members[0]}", f"{file!r} is not a file of a cgroup", SECTION)])
            text = str(int(value) if isinstance(value, bool) else value)
            self.all.append(Write(controller, file, text, members, group, **more))  # type: ignore[arg-type]


def given(value: int | None) -> int | None:
    """A number that is given: engines send 0 for what is to stay as it is, where the kernel knows no use for 0."""
    return value or None


def throttles(block: BlockIO) -> tuple[tuple[str, str, tuple[ThrottleDevice, ...]], ...]:
    """The four lists of limits, each with its name on v1 and in the config."""
    return (
        ("read_bps", "throttleReadBpsDevice", block.throttle_read_bps_device or ()),
        ("write_bps", "throttleWriteBpsDevice", block.throttle_write_bps_device or ()),
        ("read_iops", "throttleReadIOPSDevice", block.throttle_read_iops_device or ()),
        ("write_iops", "throttleWriteIOPSDevice", block.throttle_write_iops_device or ()),
    )


def rdma(w: Writes, resources: Resources) -> None:
    """rdma has the same file on both versions."""
    for name, device in (resources.rdma or {}).items():
        pairs = (("hca_handle", device.hca_handles), ("hca_object", device.hca_objects))
        text = " ".join(f"{key}={value}" for key, value in pairs if value is not None)
        w.put("rdma", "rdma.max", f"{name} {text}", f"rdma[{name!r}]")
