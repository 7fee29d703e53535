/* The init's files: device nodes, links and small files in the container's tree, and copies of directories. */
#include "init.h"

#define MAX_DEPTH 64
#define COPY_BLOCK (1 << 20)

/* Make a device node. One that exists must be the same device. With another mode it is made anew, as chmod cannot be confined to
 * the node; its owner is changed by a descriptor that was proven to be the device. */
long make_device(int dir, const struct op_mknod *o)
{
    struct statx st;
    const char *name = text(o->name);
    unsigned mode = (unsigned)o->mode;
    unsigned dev = device_number(o->dev >> 32, o->dev & 0xffffffff);

    for (int tries = 0;; tries++) {
        long fd, err = sys(__NR_mknodat, dir, name, mode, dev);
        if (err < 0 && err != -EEXIST)
            return err;
        err = stat_at(dir, name, AT_SYMLINK_NOFOLLOW, &st);
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
            err = sys(__NR_fchownat, fd, "", o->uid, o->gid, AT_EMPTY_PATH);
        sys(__NR_close, fd);
        return err;
    }
}

/* Make one of the links in /dev that the runtime spec names. What the image or a mount has under that name stays. */
long make_link(int dir, const struct op_symlink *o)
{
    long err = sys(__NR_symlinkat, text(o->target), dir, text(o->name));
    return err == -EEXIST ? 0 : err;
}

/* Write to a file in a directory, or, without a path, to the descriptor. */
long write_file(int dir, struct ref where, struct ref data)
{
    const char *path = text(where);
    const uint64_t resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
    long n, fd = path[0] ? open_path(dir, path, O_WRONLY | O_NOFOLLOW, 0, resolve) : dir;

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

/* As getdents64(2) writes it. */
struct entry {
    uint64_t ino;
    int64_t off;
    unsigned short size;
    unsigned char type;
    char name[];
};

static long copy_entry(int from, int to, const char *name, int depth)
{
    struct statx st;
    unsigned kind, perm;
    long err = stat_at(from, name, AT_SYMLINK_NOFOLLOW, &st);

    if (err < 0)
        return err;
    kind = st.stx_mode & S_IFMT;
    perm = st.stx_mode & 07777;
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
            n = sys(__NR_sendfile, out, in, 0, COPY_BLOCK);
        err = out < 0 ? out : n;
        if (in >= 0)
            sys(__NR_close, in);
        if (out >= 0)
            sys(__NR_close, out);
    } else
        err = sys(__NR_mknodat, to, name, st.stx_mode, device_number(st.stx_rdev_major, st.stx_rdev_minor));
    if (err >= 0)
        err = sys(__NR_fchownat, to, name, st.stx_uid, st.stx_gid, AT_SYMLINK_NOFOLLOW);
    if (err >= 0 && kind != S_IFLNK)
        err = sys(__NR_fchmodat, to, name, perm);
    return err;
}

static long copy_tree(int from, int to, int depth)
{
    char buf[2048] __attribute__((aligned(8)));
    long n;
    if (depth > MAX_DEPTH)
        return -ELOOP;
    while ((n = sys(__NR_getdents64, from, buf, sizeof buf)) > 0)
        for (long at = 0; at < n;) {
            struct entry *d = (struct entry *)(buf + at);
            int dot = d->name[0] == '.' && (!d->name[1] || (d->name[1] == '.' && !d->name[2]));
            long err = dot ? 0 : copy_entry(from, to, d->name, depth);
            if (err < 0)
                return err;
            at += d->size;
        }
    return n;
}

/* Give a directory the mode of what is at a path in the root, if anything is: the step that opens the path reports its errors. */
long mode_like(int root, const char *path, int target)
{
    struct statx st;
    long mode, fd = in_root(root, path, O_PATH);
    if (fd < 0)
        return 0;
    mode = mode_of((int)fd, &st);
    sys(__NR_close, fd);
    return mode < 0 ? mode : sys(__NR_fchmodat, target, ".", mode & 07777);
}

/* Set an extended attribute of a directory. */
long set_xattr(int dir, const struct op_setxattr *o)
{
    long err, fd = sys(__NR_openat, dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return fd;
    err = sys(__NR_fsetxattr, fd, text(o->name), prog + o->value.off, o->value.len, 0);
    sys(__NR_close, fd);
    return err;
}

/* Copy the files of one directory into another. */
long copy_up(int source, int target)
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
