"""``python -m ociruntime``."""

from .cli import main

raise SystemExit(main())
