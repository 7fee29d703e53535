"""``python -m ociruntime``."""

from .cli import script

script()
