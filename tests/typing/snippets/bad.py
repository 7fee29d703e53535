# ruff: noqa: B018
"""Slips: both checkers find the one of each line that ends in ``# slip``, and nothing else."""

from ociruntime.spec import Features, Linux, Memory, Mount, Namespace, ProcessSpec, RuntimeSpec, User

spec = RuntimeSpec.default()

spec.process.args  # slip
spec.hostnme  # slip
spec.hostname = "x"  # slip
spec.mounts[0]  # slip
len(spec.domainname)  # slip

ProcessSpec()  # slip
ProcessSpec(cwd=3)  # slip
ProcessSpec(cwd="/", argz=("sh",))  # slip
ProcessSpec(cwd="/", args="sh")  # slip
User(uid="0")  # slip
Namespace(type=5)  # slip
Memory(limit="1g")  # slip
Mount("/x")  # slip

spec.evolve(hostnme="x")  # slip
spec.evolve(hostname=3)  # slip
spec.evolve(oci_version=None)  # slip
Memory().evolve(limit="1g")  # slip
Linux().evolve(namespaces=("pid",))  # slip
spec.with_args("sh", "-c", "true")  # slip

spec.at.linux.resources.memry  # slip
spec.at.linux.resources.memory.limit.set("1g")  # slip
spec.at.linux.resources.memory.evolve(limt=1)  # slip
spec.at.mounts["0"]  # slip
spec.at.mounts.append("tmpfs")  # slip
spec.at.hostname.append("x")  # slip

spec.with_mount("/x")  # slip
spec.with_env(A=1)  # slip
RuntimeSpec.load(5)  # slip
RuntimeSpec.default(rootles=True)  # slip
Features.load(b"{}").linux.cgroup  # slip
