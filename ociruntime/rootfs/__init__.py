"""How a root filesystem becomes mounted on the host: squashfs in a file, through a loop device, under an overlay."""
