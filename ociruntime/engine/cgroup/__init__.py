"""Cgroup directories: made, written, frozen, emptied, measured and removed. Every function takes the container's directories.

A function's module is imported when it is first used: most operations need one or two of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..._lazy import lazy_names

if TYPE_CHECKING:
    from .tasks import StarvationWatch as StarvationWatch
    from .tasks import freeze as freeze
    from .tasks import freezer as freezer
    from .tasks import frozen as frozen
    from .tasks import kill as kill
    from .tasks import processes as processes
    from .tasks import remove as remove
    from .tasks import remove_unused as remove_unused
    from .tasks import signal_all as signal_all
    from .tasks import thaw_killed as thaw_killed
    from .tree import CgroupUsage as CgroupUsage
    from .tree import batch as batch
    from .tree import check_memory as check_memory
    from .tree import container_usage as container_usage
    from .tree import delegate as delegate
    from .tree import enable as enable
    from .tree import give_realtime as give_realtime
    from .tree import joinable as joinable
    from .tree import logged_oom_kill as logged_oom_kill
    from .tree import make as make
    from .tree import memory_limit as memory_limit
    from .tree import missing_parents as missing_parents
    from .tree import oom_kills as oom_kills
    from .tree import remove_parents as remove_parents
    from .tree import too_small as too_small
    from .tree import usage as usage
    from .tree import write as write
    from .tree import write_first as write_first
    from .tree import write_set as write_set

_MODULES = {
    "tasks": "StarvationWatch freeze freezer frozen kill processes remove remove_unused signal_all thaw_killed",
    "tree": "CgroupUsage batch check_memory container_usage delegate enable give_realtime joinable logged_oom_kill make "
    "memory_limit missing_parents oom_kills remove_parents too_small usage write write_first write_set",
}
__getattr__, __dir__, __all__ = lazy_names(__name__, _MODULES)  # pyright: ignore[reportUnsupportedDunderAll]
