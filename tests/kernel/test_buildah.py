"""buildah with this runtime."""

from __future__ import annotations

import pwd

import pytest

from ..support.clients import Client, needs

pytestmark = [pytest.mark.root, needs("buildah")]

CONTAINERFILE = """
FROM localhost/busybox
RUN echo built > /built && id -u > /uid
RUN --mount=type=tmpfs,target=/scratch touch /scratch/file && cat /built
RUN ["sh", "-c", "cat /uid >> /built"]
ENTRYPOINT ["cat", "/built"]
"""


@pytest.mark.parametrize("isolation", ["oci", "rootless"])
def test_build(client: Client, isolation: str) -> None:
    """RUN in a container of this runtime, files of the image that was built, and a RUN that fails, as root and as a user."""
    if isolation == "rootless":
        client.become(pwd.getpwnam("nobody").pw_uid)  # buildah needs a name
    buildah = ("buildah", "--root", client.path / "graph", "--runroot", client.path / "run", "--storage-driver", "vfs")
    configuration = client.path / "containers.conf"
    configuration.write_text("[containers]\ndefault_ulimits = []\n")
    client.env["CONTAINERS_CONF"] = str(configuration)
    options = ("--runtime", client.runtime, "--isolation", isolation, "--network", "none", "--quiet")

    made = client.run(*buildah, "from", "scratch")
    client.run(*buildah, "add", "--quiet", made, client.archive)
    client.run(*buildah, "commit", "--quiet", "--rm", made, "localhost/busybox")

    containerfile = client.path / "Containerfile"
    containerfile.write_text(CONTAINERFILE)
    client.run(*buildah, "build", *options, "--tag", "built", "--file", containerfile, client.path / "state")
    made = client.run(*buildah, "from", "localhost/built")
    run = (*buildah, "run", "--runtime", client.runtime, "--isolation", isolation, "--network", "none", made)
    assert client.run(*run, "cat", "/built") == "built\n0"
    client.run(*run, "sh", "-c", "exit 7", code=7)
    client.run(*run, "nope", code=1)  # buildah keeps the status for itself
    client.run(*buildah, "rm", made)

    containerfile.write_text("FROM localhost/busybox\nRUN false\n")
    client.run(*buildah, "build", *options, "--file", containerfile, client.path / "state", code=1)
