"""Rules of the runtime spec about documents, by area: what its text says beyond the schema, and what a host supports."""
