# ruff: noqa: B018
"""Slips: both checkers find the one of each line that ends in ``# slip``, and nothing else. mypy names the word after the colon, or the type."""

import ociruntime as oci
from ociruntime import aio

oci.run("image.sif", ["true"], memroy="1M")  # slip: memroy
oci.run("image.sif", ["true"], timeout=[5])  # slip
oci.run("image.sif", "true")  # slip: Args
oci.run("image.sif", "true", text=True)  # slip: Args
oci.run("image.sif", ["true"], mounts=[("data", 1)])  # slip
oci.Sandbox("image.sif", volumes=["data:/data"])  # slip: volumes
oci.Sandbox("image.sif").run("ls")  # slip: Args
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
container.exec("true")  # slip: Args
container.popen("true", text=True)  # slip: Args
container.exec(["true"]).stdout.encode()  # slip
container.popen(["true"], text=True).pid.upper()  # slip


async def main() -> None:
    await aio.run("image.sif", ["true"], memroy=1)  # slip: memroy
    await aio.run("image.sif", "true")  # slip: Args
    (await aio.run("image.sif", ["true"], text=True)).stdout.decode()  # slip
    aio.Container.load("id").exec(["true"]).stdout  # slip
