"""Root filesystems on the host: mounting them from layers, the records of mounted bundles, and their users and groups."""
