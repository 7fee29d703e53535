/* The init's mounts: attaching them, hiding paths, and the change of root. */
#include <asm/statfs.h>
#include <linux/magic.h>

#include "init.h"

#include <sys/statvfs.h> /* last: behind a header of glibc <linux/stat.h> defines no types of files */

#define MAX_OPTION 256 /* of a string for fsconfig(2), with its NUL */

/* Attach a mount on what a descriptor names. */
long attach(long mnt, long target)
{
    return sys(__NR_move_mount, mnt, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}

/* Attach a mount on top of the root of this mount namespace. */
long attach_at_root(long mnt)
{
    return sys(__NR_move_mount, mnt, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH);
}

/* Take a mount off again; what was copied of it stays. */
long detach(int mnt)
{
    long err = sys(__NR_fchdir, mnt);
    if (err >= 0)
        err = sys(__NR_umount2, ".", MNT_DETACH);
    return err < 0 ? err : sys(__NR_chdir, "/");
}

/* Open the mount point, made where it is missing. "like" is the slot of what will be mounted on it, or none. */
long find_target(int root, const char *path, uint64_t kind, uint64_t like, unsigned mode)
{
    int file = (kind & TARGET_FILE) != 0, no_link = (kind & TARGET_NO_LINK) != 0;
    struct statfs fs = { 0 };
    struct statx st;
    long err, fd;

    if (like != NO_SLOT) { /* what is mounted here says what its mount point must be */
        long type = mode_of(fd_of(like), &st);
        if (type < 0)
            return type;
        file = (type & S_IFMT) != S_IFDIR;
    }
    fd = make_target(root, path, file, no_link, mode);
    if (fd < 0)
        return fd;
    err = check_type((int)fd, file);
    if (err == -ELOOP && kind & TARGET_LINK && file)
        err = 0;
    if (err >= 0 && !(kind & TARGET_IN_PROC)) {
        err = sys(__NR_fstatfs, (int)fd, &fs);
        if (err >= 0 && fs.f_type == PROC_SUPER_MAGIC)
            err = -EXDEV;
    }
    if (err < 0)
        sys(__NR_close, fd);
    return err < 0 ? err : fd;
}

/* Make the same symbolic link where the source of a bind mount is one; a link that exists must be the same. Mount anything else. */
long copy_link(const struct op_copy_link *o)
{
    char wanted[MAX_PATH], there[MAX_PATH];
    struct statx st;
    long err, n, mode = mode_of(fd_of(o->mount), &st);

    if (mode < 0)
        return mode;
    if ((mode & S_IFMT) != S_IFLNK) {
        long target = find_target(fd_of(o->root), text(o->path), 0, o->mount, 0755);
        if (target < 0)
            return target;
        err = attach(fd_of(o->mount), target);
        sys(__NR_close, target);
        return err;
    }
    n = sys(__NR_readlinkat, fd_of(o->mount), "", wanted, sizeof wanted - 1);
    if (n < 0)
        return n;
    wanted[n] = 0;
    err = sys(__NR_symlinkat, wanted, fd_of(o->dir), text(o->name));
    if (err != -EEXIST)
        return err;
    if (sys(__NR_readlinkat, fd_of(o->dir), text(o->name), there, sizeof there - 1) != n)
        return -EEXIST;
    for (long i = 0; i < n; i++)
        if (there[i] != wanted[i])
            return -EEXIST;
    return 0;
}

/* Mount by mount(2), which takes longer options than fsconfig(2): on a place of this mount namespace, from which it is copied. */
long mount_whole(const struct op_mount *o)
{
    const char *place = text(o->place);
    long mnt, err = sys(__NR_mount, text(o->source), place, text(o->fstype), o->flags, text(o->data));
    if (err < 0)
        return err;
    mnt = sys(__NR_open_tree, AT_FDCWD, place, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    err = sys(__NR_umount2, place, MNT_DETACH);
    if (err < 0 && mnt >= 0) {
        sys(__NR_close, mnt);
        return err;
    }
    return keep(o->out, mnt);
}

/* Set an option of a filesystem to the paths of descriptors in procfs, with colons between them. The paths do not depend on what
 * the directories are called, or whether they have a path at all. */
long configure_layers(const struct op_fsconfig_fds *o)
{
    static const char prefix[] = "/proc/self/fd/";
    char value[MAX_OPTION], digits[12];
    size_t at = 0;
    unsigned count = o->slots.len / sizeof(uint32_t);

    if (count == 0 || o->slots.len % sizeof(uint32_t))
        return -EPROTO;
    for (unsigned i = 0; i < count; i++) {
        uint32_t slot;
        size_t n = 0;
        int fd;
        memcpy(&slot, prog + o->slots.off + i * sizeof slot, sizeof slot);
        fd = slot < MAX_SLOTS ? slots[slot] : -1;
        if (fd < 0)
            return -EBADF;
        do
            digits[n++] = (char)('0' + fd % 10);
        while (fd /= 10);
        if (at + 1 + sizeof prefix + n > sizeof value)
            return -ENAMETOOLONG;
        if (i)
            value[at++] = ':';
        memcpy(value + at, prefix, sizeof prefix - 1);
        at += sizeof prefix - 1;
        while (n)
            value[at++] = digits[--n];
    }
    value[at] = 0;
    return sys(__NR_fsconfig, fd_of(o->fs), FSCONFIG_SET_STRING, text(o->key), value, 0);
}

/* Make a tmpfs that is empty, read-only and not attached. */
static long empty_dir(void)
{
    const unsigned attrs = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    long mnt, err, fs = sys(__NR_fsopen, "tmpfs", FSOPEN_CLOEXEC);
    if (fs < 0)
        return fs;
    err = sys(__NR_fsconfig, fs, FSCONFIG_SET_STRING, "size", "0", 0);
    if (err >= 0)
        err = sys(__NR_fsconfig, fs, FSCONFIG_SET_STRING, "mode", "0555", 0);
    if (err >= 0)
        err = sys(__NR_fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0);
    mnt = err < 0 ? err : sys(__NR_fsmount, fs, FSMOUNT_CLOEXEC, attrs);
    sys(__NR_close, fs);
    return mnt;
}

/* Whether two descriptors name the same file in the same mount. */
static int is_same_place(long a, long b)
{
    struct statx first, second;
    return mode_of((int)a, &first) >= 0 && mode_of((int)b, &second) >= 0 && first.stx_mask & second.stx_mask & STATX_MNT_ID &&
           first.stx_mnt_id == second.stx_mnt_id && first.stx_ino == second.stx_ino;
}

/* Prove that a path leads to the root of a mount now. */
static long prove_place(int root, const char *path, long mnt)
{
    long err, found = in_root(root, path, O_PATH);
    if (found < 0)
        return found;
    err = is_same_place(found, mnt) ? 0 : -EXDEV;
    sys(__NR_close, found);
    return err;
}

/* Hide a path, if it exists: a directory under an empty one, anything else under "null", which was proven to be the null device.
 * All directories share one empty filesystem: the first gets the mount, the others copies of it. */
long mask(int root, const char *path, int null)
{
    static int empty = -1;
    struct statx st;
    long mnt, mode, err, target = in_root(root, path, O_PATH);

    if (target == -ENOENT || target == -ENOTDIR)
        return 0;
    if (target < 0)
        return target;
    mode = is_same_place(target, root) ? -EBUSY : mode_of((int)target, &st);
    if (mode < 0)
        mnt = mode;
    else if ((mode & S_IFMT) == S_IFDIR && empty < 0)
        mnt = empty = (int)empty_dir();
    else
        mnt =
            sys(__NR_open_tree, (mode & S_IFMT) == S_IFDIR ? empty : null, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
    err = mnt < 0 ? mnt : attach(mnt, target);
    if (err >= 0)
        err = prove_place(root, path, mnt);
    if (mnt >= 0 && mnt != empty)
        sys(__NR_close, mnt);
    sys(__NR_close, target);
    return err;
}

/* Make a path read-only with all that is below it: a mount itself where the kernel lets it change, else by a mount over the path.
 * Only this attribute changes. */
long make_readonly(int root, const char *path)
{
    struct mount_attr readonly = { .attr_set = MOUNT_ATTR_RDONLY };
    struct statfs fs = { 0 };
    long mnt, err, found, target = in_root(root, path, O_PATH);

    if (target == -ENOENT || target == -ENOTDIR)
        return 0;
    if (target < 0)
        return target;
    err = sys(__NR_mount_setattr, target, "", AT_EMPTY_PATH | AT_RECURSIVE, &readonly, sizeof readonly);
    if (err < 0 && !is_same_place(target, root)) {
        mnt = sys(__NR_open_tree, target, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE);
        err = mnt < 0 ? mnt : sys(__NR_mount_setattr, mnt, "", AT_EMPTY_PATH | AT_RECURSIVE, &readonly, sizeof readonly);
        if (err >= 0)
            err = attach(mnt, target);
        if (mnt >= 0)
            sys(__NR_close, mnt);
    }
    sys(__NR_close, target);
    if (err < 0)
        return err;
    found = in_root(root, path, O_PATH);
    if (found < 0)
        return found;
    err = sys(__NR_fstatfs, (int)found, &fs);
    sys(__NR_close, found);
    return err < 0 ? err : fs.f_flags & ST_RDONLY ? 0 : -EXDEV;
}

/* Change the root, and detach the old one. */
long pivot(int root)
{
    long err = sys(__NR_fchdir, root);
    if (err >= 0)
        err = sys(__NR_pivot_root, ".", "."); /* the old root now lies on top of the new one */
    if (err >= 0)
        err = sys(__NR_umount2, ".", MNT_DETACH);
    if (err >= 0)
        err = sys(__NR_chdir, "/");
    return err;
}
