"""What a user of the model writes: both checkers accept it and know each type."""

from typing import assert_type

import ociruntime as oci
from ociruntime.spec import (
    BlockIO,
    Change,
    Diff,
    Features,
    FrozenJson,
    Hook,
    IDMapping,
    Linux,
    Memory,
    Mount,
    Namespace,
    NamespaceType,
    Problems,
    ProcessSpec,
    Resources,
    RuntimeSpec,
    Scheduler,
    SchedulerPolicy,
    StateDocument,
    TimeOffset,
    User,
    diff,
)

spec = RuntimeSpec.load("config.json")
assert_type(spec, RuntimeSpec)
assert_type(oci.RuntimeSpec.default(rootless=True), RuntimeSpec)

# reading, at every level
assert_type(spec.hostname, str | None)
if spec.linux is not None and spec.linux.resources is not None and spec.linux.resources.memory is not None:
    assert_type(spec.linux.resources.memory.limit, int | None)
if spec.windows is not None:
    assert_type(spec.windows.layer_folders, tuple[str, ...])
for mount in spec.mounts or ():
    assert_type(mount.uid_mappings, tuple[IDMapping, ...] | None)
for namespace in (spec.linux.namespaces if spec.linux else None) or ():
    assert_type(namespace.type, NamespaceType)
assert_type(spec.extensions["x"], FrozenJson)

# making
process = ProcessSpec(cwd="/", args=("sh",), user=User(uid=0, gid=0), scheduler=Scheduler(policy=SchedulerPolicy.SCHED_BATCH))
linux = Linux(
    namespaces=(Namespace(type=NamespaceType.PID), Namespace(type=NamespaceType("of-the-future"))),
    resources=Resources(memory=Memory(limit=1 << 30), block_io=BlockIO(weight=100)),
    time_offsets={"monotonic": TimeOffset(secs=1)},
)
made = RuntimeSpec(oci_version="1.3.0", process=process, linux=linux)

# changing
assert_type(made.evolve(hostname="x", linux=None), RuntimeSpec)
assert_type(process.evolve(args=("ls",)), ProcessSpec)
assert_type(made.at.linux.resources.memory.limit.set(1 << 20), RuntimeSpec)
assert_type(made.at.linux.resources.memory.limit.get(), int | None)
assert_type(made.at.linux.resources.memory.limit.update(lambda old: (old or 0) * 2), RuntimeSpec)
assert_type(made.at.mounts.append(Mount(destination="/x", type="tmpfs")), RuntimeSpec)
assert_type(made.at.mounts[0].options.append("ro"), RuntimeSpec)
assert_type(made.at.linux.resources.memory.evolve(limit=1, swap=2), RuntimeSpec)
assert_type(made.at.linux.time_offsets["boottime"].secs.set(5), RuntimeSpec)
assert_type(made.at.hooks.poststop.append(Hook(path="/bin/true")), RuntimeSpec)
assert_type(linux.at.resources.pids.limit.set(5), Linux)
assert_type(made.with_args(["sh", "-c", "true"]), RuntimeSpec)
assert_type(made.with_mount(Mount(destination="/x")).with_env(A="1", B=None).with_caps("kill"), RuntimeSpec)
assert_type(made.merge({"hostname": "y"}), RuntimeSpec)
assert_type(diff(made, spec), Diff)
changes: tuple[Change, ...] = diff(made, spec)

# checking
for problem in made.problems(oci.Host.probe()):
    assert_type(problem.path, str)
assert_type(made.validate(), Problems)
problems: tuple[oci.Problem, ...] = made.validate()

# the other documents
features = Features.load(b"{}")
if features.linux is not None and features.linux.cgroup is not None:
    assert_type(features.linux.cgroup.v2, bool | None)
assert_type(StateDocument.loads("{}").pid, int | None)
