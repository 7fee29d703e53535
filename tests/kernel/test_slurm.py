"""Slurm with this runtime in oci.conf: ``srun --container``, ``sbatch --container`` and ``scancel``."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
from pathlib import Path

import pytest

import ociruntime as oci

from ..support.clients import Client, needs
from ..support.fixture_types import MakeBundle
from ..support.places import REPO
from ..support.users import give, with_user_namespace
from ..support.waiting import wait_until

pytestmark = [pytest.mark.root, needs("slurmctld", "slurmd", "srun", "munged")]

SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
StateSaveLocation={directory}/controller
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES State=UP
"""


@pytest.fixture
def slurm(client: Client) -> Client:
    """A cluster of this machine, with all its files in the directory of a client."""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = {"controller": first.getsockname()[1], "node": second.getsockname()[1]}
    directory, host = client.path, socket.gethostname().partition(".")[0]
    for name in ("controller", "spool"):
        (directory / name).mkdir()
    key = directory / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    slurm_conf = directory / "slurm.conf"
    slurm_conf.write_text(SLURM_CONF.format(directory=directory, host=host, **ports))
    page = (REPO / "docs/cluster.md").read_text()
    (conf,) = re.findall(r"^RunTimeQuery.*?(?=^```)", page, re.MULTILINE | re.DOTALL)
    script = directory / "ociruntime-slurm"
    (directory / "oci.conf").write_text(conf.replace("/usr/local/sbin/ociruntime-slurm", str(script)))
    (text,) = re.findall(r"^#!/bin/sh\nuser=.*?(?=^```)", page, re.MULTILINE | re.DOTALL)
    script.write_text(text.replace('/usr/bin/ociruntime --root "/tmp/ociruntime-slurm-$user"', str(client.runtime)))
    script.chmod(0o755)
    client.env["SLURM_CONF"] = str(slurm_conf)
    files = {name: f"{directory}/munge.{name}" for name in ("socket", "pid", "log", "seed")}
    client.daemon(
        "munged", "--foreground", "--force", "--key-file", key, "--socket", files["socket"], "--pid-file", files["pid"],
        "--log-file", files["log"], "--seed-file", files["seed"],
    )  # fmt: skip
    wait_until(Path(files["socket"]).exists, "the start of munged", 60)
    client.daemon("slurmctld", "-D")
    client.daemon("slurmd", "-D")
    wait_until(lambda: "idle" in client.run("sinfo", "--noheader"), "the start of Slurm", 60)
    return client


def containers(slurm: Client) -> list[oci.Container]:
    return oci.Container.list(state_root=slurm.state)


def wait_for_jobs(slurm: Client) -> None:
    """Wait until all jobs have ended. ``sbatch --wait`` asks ever less often, up to once in half a minute."""
    wait_until(lambda: slurm.run("squeue", "--noheader") == "", "the end of the jobs", 60)


def test_srun(slurm: Client, bundle: oci.Bundle) -> None:
    """Output, input, environment, exit status and a program that does not exist."""
    srun = ("srun", f"--container={bundle.path}")
    assert slurm.run(*srun, "sh", "-c", "id -u; exit 3", code=3) == "0"
    assert slurm.run(*srun, "cat", input="text") == "text"
    assert slurm.run(*srun, "sh", "-c", "echo $SLURM_JOB_ID").isdigit()
    slurm.run(*srun, "nope", code=127)
    assert containers(slurm) == []


def test_sbatch(slurm: Client, bundle: oci.Bundle) -> None:
    script = slurm.path / "job"
    script.write_text("#!/bin/sh\nbusybox | head -n 1 > /dev/null\necho $SLURM_JOB_ID; exit 4\n")
    output = slurm.path / "output"
    job = slurm.run("sbatch", "--parsable", "--wait", f"--container={bundle.path}", f"--output={output}", script, code=4)
    assert output.read_text().splitlines()[0] == job
    assert containers(slurm) == []


def test_scancel(slurm: Client, bundle: oci.Bundle) -> None:
    job = slurm.run("sbatch", "--parsable", f"--container={bundle.path}", "--output=/dev/null", "--wrap", "sleep 1000")
    wait_until(lambda: [container.status for container in containers(slurm)] == ["running"], "the start of the job", 60)
    slurm.run("scancel", job)
    wait_for_jobs(slurm)
    wait_until(lambda: containers(slurm) == [], "the removal of the container", 60)


def test_jobs_of_a_user(slurm: Client, make_bundle: MakeBundle) -> None:
    """Slurm runs the runtime as the user of the job, and cleans up as root: the bundle and the state directory are the user's."""
    uid = pwd.getpwnam("nobody").pw_uid
    spec = with_user_namespace(oci.RuntimeSpec.default(rootless=True).with_args(["sh"]), uid, 1)
    bundle = give(oci.Bundle.load(shutil.move(make_bundle(spec).path, slurm.path)), uid)
    slurm.become(uid)
    srun = ("srun", f"--container={bundle.path}")
    assert slurm.run(*srun, "sh", "-c", "cat /proc/self/uid_map; exit 3", code=3).split() == ["0", str(uid), "1"]
    assert slurm.run(*srun, "cat", input="text") == "text"
    job = slurm.run("sbatch", "--parsable", f"--container={bundle.path}", "--output=/dev/null", "--wrap", "sleep 1000")
    wait_until(lambda: '"running"' in slurm.run(slurm.runtime, "list", "--format", "json"), "the start of the job", 60)
    slurm.run("scancel", job)
    wait_until(lambda: slurm.run(slurm.runtime, "list", "--quiet") == "", "the removal of the container", 120)


WORK = """
import os, sys, ociruntime as oci
args = ["sh", "-c", "echo $SLURM_ARRAY_TASK_ID"]
oci.run(sys.argv[1], args, state_root=sys.argv[2], preset="hpc", mounts=[], check=True)
"""


def test_a_job_array(slurm: Client, busybox_rootfs: Path) -> None:
    """Each task runs Python, which runs a container with the environment of the task."""
    work, script = slurm.path / "work.py", slurm.path / "job"
    work.write_text(WORK)
    python = slurm.runtime.read_text().splitlines()[1].partition(" -m ")[0]
    script.write_text(f"#!/bin/sh\n{python.replace(' exec', '')} {work} {busybox_rootfs} {slurm.state}\n")
    slurm.run("sbatch", "--array=0-3", f"--output={slurm.path}/out-%a", script)
    wait_for_jobs(slurm)
    assert [(slurm.path / f"out-{number}").read_text() for number in range(4)] == [f"{number}\n" for number in range(4)]
    assert containers(slurm) == []


def test_a_job_array_with_a_bundle(slurm: Client, bundle: oci.Bundle) -> None:
    words = ("--array=0-1", f"--container={bundle.path}", f"--output={slurm.path}/out-%a")
    slurm.run("sbatch", *words, "--wrap", "echo $SLURM_ARRAY_TASK_ID")
    wait_for_jobs(slurm)
    # Slurm logs behind it that the state of a container that has ended is not JSON.
    assert [(slurm.path / f"out-{number}").read_text().splitlines()[0] for number in range(2)] == ["0", "1"]
    assert containers(slurm) == []


def test_the_job_of_the_tutorial(slurm: Client) -> None:
    """The image, the data and the job are those of the page, and so are the commands: typed in a shell, one block after the other."""
    page = (REPO / "docs/tutorials/sif-on-a-cluster.md").read_text()
    before, _, after = page.partition("## Be yourself")
    (session,) = re.findall(r"^```console\n(.*?)^```$", before, re.MULTILINE | re.DOTALL)
    job, submit = re.findall(r"^```sh\n(.*?)^```$", after.partition("## Keep")[0], re.MULTILINE | re.DOTALL)
    assert (submit, "--ntasks=4" in job) == ("sbatch job.sh\n", True)
    work, programs = slurm.path / "work", slurm.path / "bin"
    for directory in (work, programs):
        directory.mkdir()
    shutil.copy(slurm.runtime, programs)
    (work / "job.sh").write_text(job)
    slurm.env["PATH"] = f"{programs}:{slurm.env['PATH']}"
    for commands in (re.sub(r"^[$>] ", "", session, flags=re.MULTILINE), submit):
        slurm.run("sh", "-ec", f"cd {work}\n{commands}")
    wait_for_jobs(slurm)
    parts = [(work / f"project/results/part-{rank}").read_text() for rank in range(4)]
    assert parts == ["125500\n", "124750\n", "125000\n", "125250\n"]
    assert containers(slurm) == []
