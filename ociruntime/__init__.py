"""A complete OCI container runtime as a typed Python library.

>>> import ociruntime as oci
>>> oci.RuntimeSpec.default().hostname
'ociruntime'

Names are imported when they are first used, and importing has no side effects.
"""

from __future__ import annotations

from ._lazy import lazy_names

TYPE_CHECKING = False  # for type checkers true; importing typing would take longer than all the rest
if TYPE_CHECKING:
    from . import aio as aio
    from . import errors as errors
    from . import image as image
    from . import spec as spec
    from .bundle import Bundle as Bundle
    from .cdi import CdiDevice as CdiDevice
    from .cdi import devices as devices
    from .container import Container as Container
    from .diagnosis import Availability as Availability
    from .diagnosis import Diagnosis as Diagnosis
    from .diagnosis import Finding as Finding
    from .diagnosis import doctor as doctor
    from .diagnosis import features as features
    from .engine.cgroup.stats import Stats as Stats
    from .ephemeral import close_images as close_images
    from .ephemeral import run as run
    from .errors import BundleError as BundleError
    from .errors import ContainerExists as ContainerExists
    from .errors import ContainerNotFound as ContainerNotFound
    from .errors import HookError as HookError
    from .errors import HostError as HostError
    from .errors import ImageError as ImageError
    from .errors import ImagePathError as ImagePathError
    from .errors import ImagePathNotFound as ImagePathNotFound
    from .errors import LaunchTimeout as LaunchTimeout
    from .errors import OCIRuntimeError as OCIRuntimeError
    from .errors import OCIRuntimeWarning as OCIRuntimeWarning
    from .errors import ProcessError as ProcessError
    from .errors import ProcessTimeout as ProcessTimeout
    from .errors import SifError as SifError
    from .errors import SignatureError as SignatureError
    from .errors import SpecError as SpecError
    from .errors import StateError as StateError
    from .errors import StepError as StepError
    from .errors import UnsupportedError as UnsupportedError
    from .errors import WrongStatus as WrongStatus
    from .files import NotRegularError as NotRegularError
    from .host import Host as Host
    from .image import Image as Image
    from .image import SifImage as SifImage
    from .image import build as build
    from .image import build_sif as build_sif
    from .image import progress_bar as progress_bar
    from .image import pull as pull
    from .image import sign as sign
    from .integrations.magic import load_ipython_extension as load_ipython_extension
    from .lifecycle.files import ContainerFiles as ContainerFiles
    from .lifecycle.files import FileStatus as FileStatus
    from .lifecycle.prune import prune as prune
    from .lifecycle.snapshots import Change as Change
    from .lifecycle.snapshots import Changes as Changes
    from .lifecycle.snapshots import Snapshot as Snapshot
    from .plan import Plan as Plan
    from .plan import Step as Step
    from .presets import CONTAIN as CONTAIN
    from .presets import CONTAINALL as CONTAINALL
    from .presets import HPC as HPC
    from .presets import Preset as Preset
    from .process import Process as Process
    from .process import Result as Result
    from .sandbox import Sandbox as Sandbox
    from .sandbox import SandboxPool as SandboxPool
    from .spec import Problem as Problem
    from .spec import RuntimeSpec as RuntimeSpec
    from .state import LostOutput as LostOutput
    from .state import State as State
    from .stats import Event as Event
    from .stats import Profile as Profile
    from .stats import ProfileStep as ProfileStep
    from .stats import Trace as Trace
    from .stats import Usage as Usage
    from .store import Status as Status
    from .supervisor.client import Attachment as Attachment
    from .supervisor.logs import LogRecord as LogRecord
    from .terminal import Terminal as Terminal

    __version__: str

_get_name, __dir__, __all__ = lazy_names(
    __name__,
    {
        "bundle": "Bundle",
        "cdi": "CdiDevice devices",
        "container": "Container",
        "diagnosis": "Availability Diagnosis Finding doctor features",
        "engine.cgroup.stats": "Stats",
        "errors": "BundleError ContainerExists ContainerNotFound HookError HostError ImageError ImagePathError ImagePathNotFound "
        "LaunchTimeout OCIRuntimeError OCIRuntimeWarning ProcessError ProcessTimeout SifError SignatureError SpecError StateError "
        "StepError UnsupportedError WrongStatus add_tracer remove_tracer",
        "files": "NotRegularError",
        "host": "Host",
        "plan": "Plan Step",
        "presets": "CONTAIN CONTAINALL HPC Preset",
        "process": "Process Result",
        "integrations.magic": "load_ipython_extension",
        "lifecycle.files": "ContainerFiles FileStatus",
        "lifecycle.prune": "prune",
        "lifecycle.snapshots": "Change Changes Snapshot",
        "ephemeral": "close_images run",
        "image": "Image SifImage build build_sif progress_bar pull sign",
        "sandbox": "Sandbox SandboxPool",
        "spec": "Problem RuntimeSpec",
        "state": "LostOutput State",
        "stats": "Event Profile ProfileStep Trace Usage",
        "store": "Status",
        "supervisor.client": "Attachment",
        "supervisor.logs": "LogRecord",
        "terminal": "Terminal",
    },
    submodules="aio errors image spec",
)
__all__ += ["__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """Import a public name; the version is that of the installation, or ``0.0+unknown`` in a tree that is not installed."""
    if name != "__version__":
        return _get_name(name)
    from importlib import metadata

    try:
        globals()[name] = metadata.version(__name__)
    except metadata.PackageNotFoundError:
        globals()[name] = "0.0+unknown"
    return globals()[name]
