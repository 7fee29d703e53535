"""What several test files share.

- `cgroups`: containers with limits, and the files of their cgroups
- `fixture_types`: types of the fixtures that are functions
- `generate`: the generated files of the package
- `images`: images of every kind
- `leftovers`: what a test leaves behind, and its removal
- `mounts`: containers with further mounts, and their mount tables
- `places`: places and sizes that several tests name
- `plans`: hosts and configurations that are compiled and not executed
- `private_users`: a user with or without subordinate ids and FUSE, for tests that run as root
- `processes`: processes of the host, and the descriptors and threads of this one
- `terminals`: commands on a terminal
- `users`: users without privileges, and user namespaces
- `waiting`: polling, interruptions and time limits
"""
