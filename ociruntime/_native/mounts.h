/* Part of the init: attaching mounts, hiding paths, devices, and the change of root. */
#ifndef OCIRUNTIME_MOUNTS_H
#define OCIRUNTIME_MOUNTS_H
#include "paths.h"

static long attach(long mnt, long target)
{
    return sys(__NR_move_mount, mnt, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}

/* On top of the root of this mount namespace. */
static long attach_at_root(long mnt)
{
    return sys(__NR_move_mount, mnt, "", -100 /* AT_FDCWD */, "/", MOVE_MOUNT_F_EMPTY_PATH);
}

/* Take a mount off again; what was copied of it stays. */
static long detach(int mnt)
{
    long err = sys(__NR_fchdir, mnt);
    if (err >= 0)
        err = sys(__NR_umount2, ".", 2 /* MNT_DETACH */);
    return err < 0 ? err : sys(__NR_chdir, "/");
}

/* The mount point; "like" is the slot of what will be mounted on it, or none. */
static long find_target(int root, const char *path, uint64_t kind, uint64_t like, unsigned mode)
{
    int file = (kind & TARGET_FILE) != 0, no_link = (kind & TARGET_NO_LINK) != 0;
    struct statfs_ fs;
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
        err = statfs_of((int)fd, &fs);
        if (err >= 0 && fs.type == PROC_SUPER_MAGIC)
            err = -EXDEV;
    }
    if (err < 0)
        sys(__NR_close, fd);
    return err < 0 ? err : fd;
}

/* What a bind mount was to show is a symbolic link: make the same one. One that is there must be the same. Anything else is mounted. */
static long copy_link(const struct op_copy_link *o)
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

static long set_attrs(int fd, unsigned flags, uint64_t set, uint64_t clear, uint64_t propagation, uint64_t userns)
{
    struct mount_attr a = { set, clear, propagation, userns };
    return sys(__NR_mount_setattr, fd, "", AT_EMPTY | flags, &a, sizeof a);
}

/* By mount(2), which takes longer options than fsconfig: for a moment on a place of this mount namespace, from which it is copied. */
static long mount_whole(const struct op_mount *o)
{
    const char *place = text(o->place);
    long mnt, err = sys(__NR_mount, text(o->source), place, text(o->fstype), o->flags, text(o->data));
    if (err < 0)
        return err;
    mnt = sys(__NR_open_tree, -100 /* AT_FDCWD */, place, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    err = sys(__NR_umount2, place, 2 /* MNT_DETACH */);
    if (err < 0 && mnt >= 0) {
        sys(__NR_close, mnt);
        return err;
    }
    return keep(o->out, mnt);
}

/* A tmpfs that is empty, read-only and not attached. */
static long empty_dir(void)
{
    long mnt, err, fs = sys(__NR_fsopen, "tmpfs", FSOPEN_CLOEXEC);
    if (fs < 0)
        return fs;
    err = sys(__NR_fsconfig, fs, FSCONFIG_SET_STRING, "size", "0", 0);
    if (err >= 0)
        err = sys(__NR_fsconfig, fs, FSCONFIG_SET_STRING, "mode", "0555", 0);
    if (err >= 0)
        err = sys(__NR_fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0);
    mnt = err < 0 ? err : sys(__NR_fsmount, fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY | MS_NOSUID_NODEV_NOEXEC);
    sys(__NR_close, fs);
    return mnt;
}

/* Hide a path: a directory under an empty one, anything else under what is in "null", which was proven to be the null device. What does
 * not exist needs no hiding. One empty filesystem serves all directories: the first gets it, the others copies of that mount. */
static long mask(int root, const char *path, int null)
{
    static int empty = -1;
    struct statx st;
    long mnt, mode, err, target = in_root(root, path, O_PATH);

    if (target == -ENOENT || target == -ENOTDIR)
        return 0;
    if (target < 0)
        return target;
    mode = mode_of((int)target, &st);
    if (mode < 0)
        mnt = mode;
    else if ((mode & S_IFMT) == S_IFDIR && empty < 0)
        mnt = empty = (int)empty_dir();
    else
        mnt = sys(__NR_open_tree, (mode & S_IFMT) == S_IFDIR ? empty : null, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY);
    err = mnt < 0 ? mnt : attach(mnt, target);
    if (mnt >= 0 && mnt != empty)
        sys(__NR_close, mnt);
    sys(__NR_close, target);
    return err;
}

/* Make a path read-only by a mount over itself; only what was asked for changes, the mount's other attributes stay. */
static long make_readonly(int root, const char *path)
{
    struct statfs_ fs;
    long mnt, err, target = in_root(root, path, O_PATH);

    if (target == -ENOENT || target == -ENOTDIR)
        return 0;
    if (target < 0)
        return target;
    mnt = sys(__NR_open_tree, target, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY | 0x8000 /* AT_RECURSIVE */);
    err = mnt < 0 ? mnt : set_attrs((int)mnt, 0x8000, MOUNT_ATTR_RDONLY, 0, 0, 0);
    if (err >= 0)
        err = attach(mnt, target);
    if (err >= 0)
        err = statfs_of((int)mnt, &fs);
    if (err >= 0 && !(fs.flags & 1 /* ST_RDONLY */))
        err = -EXDEV;
    if (mnt >= 0)
        sys(__NR_close, mnt);
    sys(__NR_close, target);
    return err;
}

static long pivot(int root)
{
    long err = sys(__NR_fchdir, root);
    if (err >= 0)
        err = sys(__NR_pivot_root, ".", "."); /* the old root now lies on top of the new one */
    if (err >= 0)
        err = sys(__NR_umount2, ".", 2 /* MNT_DETACH */);
    if (err >= 0)
        err = sys(__NR_chdir, "/");
    return err;
}

/* Make a device node. One that is there already must be the same device; where its mode differs it is made anew, as chmod cannot be told
 * of the node itself, and its owner is changed by a descriptor that was proven to be the device. */
static long make_device(int dir, const struct op_mknod *o)
{
    struct statx st;
    const char *name = text(o->name);
    unsigned mode = (unsigned)o->mode;
    unsigned dev = (unsigned)((o->dev >> 32 & 0xfff) << 8 | (o->dev & 0xff) | (o->dev & 0xfff00) << 12);

    for (int tries = 0;; tries++) {
        long fd, err = sys(__NR_mknodat, dir, name, mode, dev);
        if (err < 0 && err != -EEXIST)
            return err;
        err = sys(__NR_statx, dir, name, 0x100 /* AT_SYMLINK_NOFOLLOW */, STATX_BASIC_STATS, &st);
        if (err < 0)
            return err;
        if (!is_device(&st, mode, o->dev))
            return -EEXIST; /* something else has this name */
        if ((st.stx_mode & 07777) != (mode & 07777)) {
            err = tries ? -EPERM : sys(__NR_unlinkat, dir, name, 0);
            if (err < 0)
                return err;
            continue;
        }
        if (st.stx_uid == o->uid && st.stx_gid == o->gid)
            return 0;
        fd = sys(__NR_openat, dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
            return fd;
        err = prove_device((int)fd, mode, o->dev);
        if (err >= 0)
            err = sys(__NR_fchownat, fd, "", o->uid, o->gid, AT_EMPTY);
        sys(__NR_close, fd);
        return err;
    }
}

/* The spec's links in /dev are a default: what the image or a mount has under that name stays. */
static long make_link(int dir, const struct op_symlink *o)
{
    long err = sys(__NR_symlinkat, text(o->target), dir, text(o->name));
    return err == -EEXIST ? 0 : err;
}

static long write_file(int dir, struct ref where, struct ref data)
{
    const char *path = text(where);
    struct open_how how = { .flags = O_WRONLY | O_CLOEXEC | O_NOFOLLOW,
                            .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV };
    long n, fd = path[0] ? sys(__NR_openat2, dir, path, &how, sizeof how) : dir;

    if (fd < 0)
        return fd;
    n = sys(__NR_write, fd, prog + data.off, data.len);
    if (path[0])
        sys(__NR_close, fd);
    if (n < 0)
        return n;
    return (uint32_t)n == data.len ? 0 : -EIO;
}

/* Copy the tree below one directory into another, for tmpcopyup. */
static long copy_tree(int from, int to, int depth);

struct dirent64_ { uint64_t ino; int64_t off; unsigned short reclen; unsigned char type; char name[]; };

static long copy_entry(int from, int to, const char *name, int depth)
{
    struct statx st;
    long err = sys(__NR_statx, from, name, 0x100 /* AT_SYMLINK_NOFOLLOW */, STATX_BASIC_STATS, &st);
    unsigned kind = st.stx_mode & S_IFMT, perm = st.stx_mode & 07777;

    if (err < 0)
        return err;
    if (kind == S_IFLNK) {
        char target[MAX_PATH];
        long n = sys(__NR_readlinkat, from, name, target, sizeof target - 1);
        if (n < 0)
            return n;
        target[n] = 0;
        err = sys(__NR_symlinkat, target, to, name);
    } else if (kind == S_IFDIR) {
        long out, in;
        err = sys(__NR_mkdirat, to, name, perm);
        if (err < 0)
            return err;
        in = sys(__NR_openat, from, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        out = sys(__NR_openat, to, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        err = in < 0 ? in : out < 0 ? out : copy_tree((int)in, (int)out, depth + 1);
        if (in >= 0)
            sys(__NR_close, in);
        if (out >= 0)
            sys(__NR_close, out);
    } else if (kind == S_IFREG) {
        long n = 1, in = sys(__NR_openat, from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        long out = in < 0 ? in : sys(__NR_openat, to, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, perm);
        while (out >= 0 && n > 0)
            n = sys(__NR_sendfile, out, in, 0, 1 << 20);
        err = out < 0 ? out : n;
        if (in >= 0)
            sys(__NR_close, in);
        if (out >= 0)
            sys(__NR_close, out);
    } else
        err = sys(__NR_mknodat, to, name, st.stx_mode,
                  (st.stx_rdev_major & 0xfff) << 8 | (st.stx_rdev_minor & 0xff) | (st.stx_rdev_minor & 0xfff00) << 12);
    if (err >= 0)
        err = sys(__NR_fchownat, to, name, st.stx_uid, st.stx_gid, 0x100);
    if (err >= 0 && kind != S_IFLNK)
        err = sys(__NR_fchmodat, to, name, perm);
    return err;
}

static long copy_tree(int from, int to, int depth)
{
    char buf[2048] __attribute__((aligned(8)));
    long n;
    if (depth > 64)
        return -ELOOP;
    while ((n = sys(__NR_getdents64, from, buf, sizeof buf)) > 0)
        for (long at = 0; at < n;) {
            struct dirent64_ *d = (struct dirent64_ *)(buf + at);
            int dot = d->name[0] == '.' && (!d->name[1] || (d->name[1] == '.' && !d->name[2]));
            long err = dot ? 0 : copy_entry(from, to, d->name, depth);
            if (err < 0)
                return err;
            at += d->reclen;
        }
    return n;
}

/* The mode of one directory for another. */
static long mode_like(int source, int target)
{
    struct statx st;
    long mode = mode_of(source, &st);
    return mode < 0 ? mode : sys(__NR_fchmodat, target, ".", mode & 07777);
}

static long set_xattr(int dir, const struct op_setxattr *o)
{
    long err, fd = sys(__NR_openat, dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return fd;
    err = sys(__NR_fsetxattr, fd, text(o->name), prog + o->value.off, o->value.len, 0);
    sys(__NR_close, fd);
    return err;
}

static long copy_up(int source, int target)
{
    long in = sys(__NR_openat, source, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), out, err;
    if (in < 0)
        return in;
    out = sys(__NR_openat, target, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    err = out < 0 ? out : copy_tree((int)in, (int)out, 0);
    sys(__NR_close, in);
    if (out >= 0)
        sys(__NR_close, out);
    return err;
}
#endif
