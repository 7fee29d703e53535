"""A user without privileges, with a bundle and a state directory, for tests that root runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ociruntime as oci

from ..support.fixture_types import MakeBundle
from ..support.waiting import SLOWER


class User:
    """A user of one test, who has neither a name nor further ids, and to whom no cgroup was delegated.

    Attributes:
        bundle: a bundle of busybox with a user namespace, whose process sleeps.
        state: the state directory.
    """

    def __init__(self, python: str, work: Path, bundle: Path) -> None:
        self.uid = 40000 + os.getpid() % 20000
        self.python, self.work, self.bundle, self.state = python, work, bundle, work / "state"
        self.state.mkdir()
        for path in (self.state, bundle, bundle / "config.json", bundle / "rootfs", *(bundle / "rootfs").iterdir()):
            os.chown(path, self.uid, self.uid)

    def run(self, *words: object, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a program as the user."""
        # Files and no pipes: a container that outlives the program would hold a pipe open.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            done = subprocess.run(
                list(map(str, words)), user=self.uid, group=self.uid, extra_groups=[], cwd="/", stdin=subprocess.DEVNULL,
                env={"PATH": os.environ["PATH"], "HOME": str(self.work)}, stdout=out, stderr=err, timeout=60 * SLOWER, check=False,
            )  # fmt: skip
            out.seek(0)
            err.seek(0)
            result = subprocess.CompletedProcess(done.args, done.returncode, out.read(), err.read())
        assert result.returncode == 0 or not check, result.stdout + result.stderr
        return result

    def script(self, text: str, *args: object) -> str:
        """Run Python code, whose ``sys.argv[1:]`` are ``args``, and return its output."""
        return self.run(self.python, "-P", "-c", text, *args, check=True).stdout

    def command(self, *words: object, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run an ``ociruntime`` command on the user's state directory."""
        return self.run(self.python, "-P", "-m", "ociruntime", "--root", self.state, *words, check=check)

    def configure(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the document of the bundle's config.json."""
        path = self.bundle / "config.json"
        document: dict[str, Any] = oci.RuntimeSpec.load(path).to_dict()
        change(document)
        path.write_text(oci.RuntimeSpec.load(document).to_json())


@contextmanager
def temporary_user(make_bundle: MakeBundle, prefix: str, python: str) -> Iterator[User]:
    """Make the user's bundle and state directory, and delete the containers that are left in it at the end."""
    # Elsewhere than tmp_path, to whose parent every beginning session of pytest bars others.
    with tempfile.TemporaryDirectory(prefix=prefix, dir="/var/tmp") as work:
        os.chmod(work, 0o755)
        uid = 40000 + os.getpid() % 20000
        spec = oci.RuntimeSpec.default(rootless=True, uid=uid, gid=uid)
        assert spec.process is not None
        bundle = make_bundle(spec.evolve(process=spec.process.evolve(args=("sleep", "1000"))), name="of-a-user")
        user = User(python, Path(work), Path(shutil.move(bundle.path, work)))
        try:
            yield user
        finally:
            for directory in [entry for entry in user.state.iterdir() if (entry / "state.json").exists()]:
                user.command("delete", "--force", directory.name)
