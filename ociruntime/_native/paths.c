/* The init's paths: opening and making what never leads out of the root, and proving what was found. */
#include <asm/statfs.h>
#include <linux/magic.h>

#include "init.h"

#define MAX_LINKS 40
#define MAX_TRIES 1000
#define PROC_ROOT_INODE 1 /* PROCFS_ROOT_INO of <linux/fs.h>, from Linux 6.17 on */
#define NEEDED_STATUS (STATX_TYPE | STATX_MODE | STATX_UID | STATX_GID | STATX_INO | STATX_SIZE)

/* Open a path; again where the kernel says EAGAIN, as something was renamed or mounted while it followed "..". */
long open_path(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve)
{
    struct open_how how = { .flags = flags | O_CLOEXEC, .mode = mode, .resolve = resolve };
    long fd;
    int tries = 0;
    do
        fd = sys(__NR_openat2, dir, path, &how, sizeof how);
    while (fd == -EAGAIN && ++tries < MAX_TRIES);
    return fd;
}

/* Open a path in the root. */
long in_root(int root, const char *path, int flags)
{
    return open_path(root, path, (unsigned)flags, 0, IN_ROOT);
}

/* Make the last part of a path. */
static long make_component(int dir, const char *name, int last, int want_file, unsigned mode)
{
    if (last && want_file) {
        long fd = sys(__NR_openat, dir, name, O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_WRONLY, 0644);
        if (fd >= 0)
            sys(__NR_close, fd);
        return fd < 0 ? fd : 0;
    }
    return sys(__NR_mkdirat, dir, name, mode);
}

/* Put "link target" in front of "rest"; a relative target starts in the directory that path[0..dir) names. */
static int splice_link(char *path, size_t dir, const char *link, size_t n, const char *rest)
{
    char all[MAX_PATH];
    size_t at = 0, rl = length(rest);
    size_t head = link[0] == '/' ? 0 : dir;
    if (head + n + rl + 3 > sizeof all)
        return -ENAMETOOLONG;
    memcpy(all, path, head);
    at = head;
    if (at && all[at - 1] != '/')
        all[at++] = '/';
    memcpy(all + at, link, n);
    at += n;
    all[at++] = '/';
    memcpy(all + at, rest, rl);
    at += rl;
    while (at && all[at - 1] == '/')
        at--;
    all[at] = 0;
    memcpy(path, all, at + 1);
    return 0;
}

/* Open a path in the root, making what is missing of it: directories, and at its end a directory or an empty file. Each part is
 * made through the descriptor of the directory before it; a link that leads nowhere yet is followed inside the root. With no_link
 * the last part itself is opened: the caller refuses a link there. */
long make_target(int root, const char *given, int want_file, int no_link, unsigned mode)
{
    char path[MAX_PATH], link[MAX_PATH];
    size_t n = length(given);
    int links = 0, last_flags = O_PATH | (no_link ? O_NOFOLLOW : 0);
    long whole = in_root(root, given, last_flags);

    if (whole != -ENOENT)
        return whole;
    if (n >= sizeof path)
        return -ENAMETOOLONG;
    memcpy(path, given, n + 1);
restart:
    for (size_t at = 0;;) {
        size_t start, end, rest;
        int last = 1;
        char saved;
        long fd;

        while (path[at] == '/')
            at++;
        start = at;
        while (path[at] && path[at] != '/')
            at++;
        end = at;
        saved = path[end];
        path[end] = 0;
        rest = end + (saved != 0);
        for (size_t i = rest; saved && path[i]; i++)
            last &= path[i] == '/';
        fd = in_root(root, start == end && end == 0 ? "." : path, last ? last_flags : O_PATH);
        if (fd == -ENOENT) {
            long made, dir;
            char first = path[start];
            path[start] = 0;
            dir = in_root(root, start ? path : ".", O_PATH | O_DIRECTORY);
            path[start] = first;
            if (dir < 0)
                return dir;
            made = make_component((int)dir, path + start, last, want_file, mode);
            if (made == -EEXIST) {
                long len = sys(__NR_readlinkat, dir, path + start, link, sizeof link - 1);
                sys(__NR_close, dir);
                if (len < 0 && len != -EINVAL)
                    return len;
                if (len > 0) {
                    char tail[MAX_PATH];
                    int err;
                    if (++links > MAX_LINKS)
                        return -ELOOP;
                    memcpy(tail, path + rest, saved ? length(path + rest) + 1 : 1);
                    if (!saved)
                        tail[0] = 0;
                    err = splice_link(path, start, link, (size_t)len, tail);
                    if (err)
                        return err;
                    goto restart;
                }
            } else {
                sys(__NR_close, dir);
                if (made < 0)
                    return made;
            }
            fd = in_root(root, path, last ? last_flags : O_PATH);
        }
        path[end] = saved;
        if (fd < 0 || last)
            return fd;
        sys(__NR_close, fd);
    }
}

/* The status of a file, and its mode as the result. A seccomp filter can answer 0 for a call that has filled nothing in. */
long stat_at(int dir, const char *name, int flags, struct statx *st)
{
    long err;
    st->stx_mask = 0;
    err = sys(__NR_statx, dir, name, flags, STATX_BASIC_STATS, st);
    if (err < 0)
        return err;
    return (st->stx_mask & NEEDED_STATUS) == NEEDED_STATUS ? st->stx_mode : -EPROTO;
}

long mode_of(int fd, struct statx *st)
{
    return stat_at(fd, "", AT_EMPTY_PATH, st);
}

long check_type(int fd, int want_file)
{
    struct statx st;
    long mode = mode_of(fd, &st);
    if (mode < 0)
        return mode;
    if ((mode & S_IFMT) == S_IFLNK)
        return -ELOOP;
    if (!want_file && (mode & S_IFMT) != S_IFDIR)
        return -ENOTDIR;
    if (want_file && (mode & S_IFMT) == S_IFDIR)
        return -EISDIR;
    return 0;
}

/* Whether a file is a device. In operations the number of one is major << 32 | minor. */
int is_device(const struct statx *st, unsigned mode, uint64_t dev)
{
    if ((st->stx_mode & S_IFMT) != (mode & S_IFMT))
        return 0;
    return (mode & S_IFMT) == S_IFIFO || (st->stx_rdev_major == dev >> 32 && st->stx_rdev_minor == (dev & 0xffffffff));
}

/* The number as mknod(2) takes it. */
unsigned device_number(uint64_t major, uint64_t minor)
{
    return (unsigned)((major & 0xfff) << 8 | (minor & 0xff) | (minor & 0xfff00) << 12);
}

long prove_device(int fd, unsigned mode, uint64_t dev)
{
    struct statx st;
    long err = mode_of(fd, &st);
    return err < 0 ? err : is_device(&st, mode, dev) ? 0 : -ENODEV;
}

/* Prove the type of the filesystem that a file lies on. */
long prove_fs(int fd, uint64_t magic)
{
    struct statfs fs = { 0 };
    long err = sys(__NR_fstatfs, fd, &fs);
    if (err < 0)
        return err;
    return (uint64_t)fs.f_type == magic ? 0 : -EXDEV;
}

/* Prove the root of a procfs: neither another filesystem nor a part of a procfs. */
long prove_proc(int fd)
{
    struct statx st;
    long err = prove_fs(fd, PROC_SUPER_MAGIC);
    if (err >= 0)
        err = mode_of(fd, &st);
    if (err < 0)
        return err;
    return st.stx_ino == PROC_ROOT_INODE ? 0 : -EXDEV;
}
