"""The supervisor: one small process for each supervised container, its parent and the owner of its streams.

`client` is the side of who creates a container; everything else runs in the supervisor, imports next to nothing and knows neither
spec nor plan: it is handed a launch that is ready to go.
"""
