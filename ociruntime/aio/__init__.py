"""The asyncio twin: `run`, `Container`, `Process` and `Sandbox` under the same names, for use in an event loop.

What only waits, for the end of a process, for output, for events, waits in the loop, by descriptors. What works, as launching or
deleting does for some milliseconds, is done in the loop's own thread pool; a task that is cancelled meanwhile waits for that and
undoes it.
"""

from ..process import Result
from .containers import Container, ContainerFiles, prune, run
from .processes import Attachment, Process, Reader, Writer
from .sandbox import Sandbox, SandboxPool

__all__ = [
    "Attachment",
    "Container",
    "ContainerFiles",
    "Process",
    "Reader",
    "Result",
    "Sandbox",
    "SandboxPool",
    "Writer",
    "prune",
    "run",
]
