"""`Temporary`: the bundle of an image or a plain root filesystem, for the life of one container."""

from __future__ import annotations

import os
from pathlib import Path

from .bundle import Bundle, fill
from .errors import BundleError
from .overrides import Overrides
from .rootfs.layers import PREFIX, mount_over


class Temporary:
    """A bundle that `create` makes and that goes with its container: its path is known, and recorded, before it exists.

    Args:
        image: a SIF file, or a directory that is a root filesystem, which stays as it is: what is written goes with the bundle.
    """

    def __init__(self, image: Path, overrides: Overrides) -> None:
        import tempfile

        self.path = Path(os.path.realpath(tempfile.gettempdir()), f"{PREFIX}{os.urandom(8).hex()}")
        self._image = image
        self._overrides = overrides

    @property
    def undo(self) -> list[str]:
        """What undoes it, for the state (see `ociruntime.engine.undo`)."""
        return ["bundle", str(self.path)]

    def make(self) -> Bundle:
        """Mount the root filesystem and give the bundle. Raises SifError, BundleError, OSError."""
        bundle = self._cover() if self._image.is_dir() else self._mount()
        return bundle.with_overrides(self._overrides)

    def _mount(self) -> Bundle:
        from .image.sif import SifImage

        with SifImage.open(self._image) as image:
            self.path.mkdir(mode=0o700)
            fill(self.path, image)
        return Bundle.load(self.path)

    def _cover(self) -> Bundle:
        from .spec import RuntimeSpec

        if not self._overrides.args:
            raise BundleError(f"{self._image} is a plain root filesystem: args must say what to run in it")
        self.path.mkdir(mode=0o700)
        mount_over(Path(os.path.abspath(self._image)), self.path)
        return Bundle.from_dir(self.path, RuntimeSpec.default())
