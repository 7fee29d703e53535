/* The init's console: a terminal from the container's own devpts (config.md#process, terminal). */
#include <asm/ioctls.h>
#include <asm/termios.h>
#include <linux/magic.h>
#include <linux/major.h>

#include "init.h"

/* Open the mount point of /dev/console: a file that exists or is made, never what a link of the image leads to. */
static long console_target(int dev)
{
    struct statx st;
    long mode, fd, made = sys(__NR_openat, dev, "console", O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_WRONLY, 0600);

    if (made < 0 && made != -EEXIST)
        return made;
    if (made >= 0)
        sys(__NR_close, made);
    fd = open_path(dev, "console", O_PATH | O_NOFOLLOW, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
    if (fd < 0)
        return fd;
    mode = mode_of((int)fd, &st);
    if (mode >= 0 && ((mode & S_IFMT) == S_IFREG || (mode & S_IFMT) == S_IFCHR))
        return fd;
    sys(__NR_close, fd);
    return mode < 0 ? mode : (mode & S_IFMT) == S_IFLNK ? -ELOOP : -EEXIST;
}

/* Make a terminal of the process's user the standard streams, by descriptors from devpts. The master goes to the caller. */
long open_console(uint32_t step, const struct op_console *o)
{
    struct winsize size = { (unsigned short)o->rows, (unsigned short)o->cols, 0, 0 };
    struct statx st;
    int unlock = 0;
    const uint64_t resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV;
    long peer, err, master = open_path(fd_of(o->devpts), "ptmx", O_RDWR | O_NOCTTY, 0, resolve);

    if (master < 0)
        return master;
    err = prove_fs((int)master, DEVPTS_SUPER_MAGIC);
    if (err >= 0)
        err = sys(__NR_ioctl, master, TIOCSPTLCK, &unlock);
    peer = err < 0 ? err : sys(__NR_ioctl, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (peer < 0)
        return peer;
    err = mode_of((int)peer, &st);
    if (err >= 0 && (st.stx_rdev_major < UNIX98_PTY_SLAVE_MAJOR || st.stx_rdev_major >= UNIX98_PTY_SLAVE_MAJOR + 8))
        err = -ENODEV;
    if (err >= 0 && size.ws_row | size.ws_col)
        err = sys(__NR_ioctl, master, TIOCSWINSZ, &size);
    if (err >= 0)
        err = sys(__NR_fchown, peer, o->uid, -1);
    if (err >= 0 && o->bind) {
        long mnt = sys(__NR_open_tree, peer, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
        long target = mnt < 0 ? mnt : console_target(fd_of(o->dev));
        err = target < 0 ? target : attach(mnt, target);
        if (mnt >= 0)
            sys(__NR_close, mnt);
        if (target >= 0)
            sys(__NR_close, target);
    }
    for (int fd = 0; err >= 0 && fd < 3; fd++)
        err = sys(__NR_dup3, peer, fd, 0);
    if (err >= 0)
        report(REPORT_FD, step, 0, (int)master);
    sys(__NR_close, peer);
    sys(__NR_close, master);
    return err < 0 ? err : 0;
}

/* Make the terminal on the standard streams that of the session. */
long take_terminal(void)
{
    return sys(__NR_ioctl, 0, TIOCSCTTY, 0);
}
