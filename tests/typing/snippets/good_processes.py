"""Uses of run, exec, popen and their asyncio twins, which both checkers accept as they are."""

import asyncio
import subprocess
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, assert_type

import ociruntime as oci
from ociruntime import aio

# run: the text mode decides what a result holds
assert_type(oci.run("image.sif", ["true"]), oci.Result[bytes])
assert_type(oci.run("image.sif", ["true"], text=False), oci.Result[bytes])
assert_type(oci.run("image.sif", ["true"], text=True), oci.Result[str])
assert_type(oci.run("image.sif", ["true"], encoding="utf-8"), oci.Result[str])
assert_type(oci.run("image.sif", ["true"], errors="replace"), oci.Result[str])
result = oci.run(
    oci.Bundle.load("/bundle"),
    ("sh", "-c", "true"),
    input="text",
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout="1m30s",
    env={"A": "1", "B": None},
    user=("uid:gid"),
    mounts=["/data:/data:ro", (Path("data"), "/data", "ro"), oci.spec.Mount(destination="/x", type="tmpfs")],
    memory="512M",
    cpus=0.5,
    network="host",
)
print(result.stdout.splitlines()[0].upper(), result.returncode + 1, result.usage.total / 2)
assert_type(result.signal, int | None)
assert_type(result.oom_killed, bool)
assert_type(result.usage.peak_memory, int)

# arguments as people write them
oci.run("image.sif", [Path("/bin/true"), "argument"], timeout=timedelta(minutes=1), mounts={"data": "/data:ro"})
oci.run("image.sif", ["true"], mounts={Path("data"): "/data:ro"})
paths = {Path("data"): Path("/data")}
oci.run("image.sif", ["true"], mounts=paths)
oci.run("image.sif", ["true"], mounts=[(Path("data"), Path("/data"))])
oci.run("image.sif", ["true"], mounts=[{"destination": "/x", "type": "tmpfs", "source": "tmpfs"}])


def run_all(args: Sequence[str], more: list[str], options: dict[str, Any]) -> None:
    oci.run("image.sif", args, **options)
    oci.Sandbox("image.sif", memory=1).run([*args, *more])


# containers
with oci.Container.create("id", "/bundle", stdin=subprocess.PIPE, stdout=open("/dev/null", "wb")) as container:
    assert_type(container.exec(["true"], text=True), oci.Result[str])
    assert_type(container.exec(["true"], capture_output=True, user=(1, 2)), oci.Result[bytes])
    assert_type(container.popen(["true"]), oci.Process[bytes])
    with container.popen(["true"], stdout=subprocess.PIPE, text=True) as process:
        assert_type(process, oci.Process[str])
        for line in process:
            assert_type(line, str)
        process.stdin.write("text")
    assert_type(process.wait(), int)
    assert_type(process.poll(), int | None)


async def main() -> None:
    assert_type(await aio.run("image.sif", ["true"]), oci.Result[bytes])
    assert_type(await aio.run("image.sif", ["true"], text=True, memory=1 << 20), oci.Result[str])
    async with aio.Container.run("id", "/bundle") as container:
        assert_type(container, aio.Container)
        assert_type(await container.exec(["true"], text=True), oci.Result[str])
        assert_type(await container.popen(["true"]), aio.Process[bytes])
        async with container.popen(["true"], stdout=subprocess.PIPE, text=True) as process:
            async for line in process:
                assert_type(line, str)
        assert_type(await container.wait(), int | None)


asyncio.run(main())
