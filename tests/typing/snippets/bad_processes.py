# ruff: noqa: B018
"""Slips: both checkers find the one of each line that ends in ``# slip``, and nothing else.

Where a word follows, there is one error with it: a keyword, or for mypy a type.
"""

import ociruntime as oci
from ociruntime import aio

oci.run("image.sif", ["true"], memroy="1M")  # slip: memroy
oci.run("image.sif", ["true"], timeout=[5])  # slip
oci.run("image.sif", ["true"], capture_outpt=True, check=True)  # slip: capture_outpt
oci.run("image.sif", ["true"], text=True, on_stdot=print)  # slip: on_stdot
oci.run("image.sif", "true")  # slip: Args
oci.run("image.sif", "true", text=True)  # slip: Args
oci.run("image.sif", ["true"], mounts=[("data", 1)])  # slip
oci.Sandbox("image.sif", volumes=["data:/data"])  # slip: volumes
oci.Sandbox("image.sif").run("ls")  # slip: Args
oci.Sandbox("image.sif").run(["ls"], environment={"A": "b"}, text=True)  # slip: environment
oci.Sandbox("image.sif").shell("ls", workdir="/", check=True)  # slip: workdir
oci.Sandbox("image.sif").popen(["ls"], shell=True, encoding="utf-8")  # slip: shell
oci.run("image.sif", ["true"], network=5)  # slip
oci.run("image.sif", [1])  # slip
oci.run("image.sif", ["true"], user=1.5)  # slip

text = oci.run("image.sif", ["true"], text=True)
text.stdout.decode()  # slip
text.returncode = 1  # slip
text.oom  # slip
raw: bytes = text.stdout  # slip

container = oci.Container.load("id")
container.exec(["true"], timeuot=1)  # slip: timeuot
container.popen(["true"], tty=True, bufsize=1)  # slip: tty
container.exec("true")  # slip: Args
container.popen("true", text=True)  # slip: Args
container.exec(["true"]).stdout.encode()  # slip
container.popen(["true"], text=True).pid.upper()  # slip


async def main() -> None:
    await aio.run("image.sif", ["true"], memroy=1)  # slip: memroy
    await aio.run("image.sif", ["true"], text=True, timout="1m")  # slip: timout
    await aio.Container.load("id").exec(["true"], timout=1, check=True)  # slip: timout
    aio.Container.load("id").popen(["true"], bufsize=1, text=True)  # slip: bufsize
    await aio.Sandbox("image.sif").run(["true"], timout=1, check=True)  # slip: timout
    await aio.Sandbox("image.sif").shell("true", timout=1, check=True)  # slip: timout
    aio.Sandbox("image.sif").popen(["true"], timeout=1, text=True)  # slip: timeout
    await aio.run("image.sif", "true")  # slip: Args
    (await aio.run("image.sif", ["true"], text=True)).stdout.decode()  # slip
    aio.Container.load("id").exec(["true"]).stdout  # slip
