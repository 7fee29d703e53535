"""Types of the places in a document. Only type checkers read the stub beside this module, written by `ociruntime.spec.generate`."""

from .edit import At

__all__ = ["At"]
