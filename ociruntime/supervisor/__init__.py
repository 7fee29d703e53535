"""The supervisor: one small process for each supervised container. It is the parent of the init process and owns its streams.

`process` and the modules that it imports run in the supervisor, and import little. `client` belongs to the processes that create
and use the container. Both sides share `protocol`.
"""
