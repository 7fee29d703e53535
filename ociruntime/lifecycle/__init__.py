"""The operations of a container's life, one module each: where plan, engine and state meet (runtime.md, Operations)."""
