/* The init: carries out a plan inside the new namespaces and becomes the container's process.
 *
 * It is a freestanding static program: no libc, no environment, no allocation, no text of its own. It is executed from a sealed memfd
 * with two arguments, the number of its control socket and of the first free descriptor behind it. The program (see plan/ops.py) lies
 * in a sealed memfd too and is mapped read-only; every structure in it is checked before it is used. Reports go out over the control
 * socket, and after the gate over the connection of whoever opened it.
 */
#include <asm/ioctls.h>
#include <asm/termbits.h>
#include <asm/termios.h>
#include <linux/capability.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/magic.h>
#include <linux/major.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/signal.h>
#include <linux/stat.h>
#include <linux/un.h>
#include <stddef.h>
#include <stdint.h>

#include "ops.h"
#include "sys.h"

#define AT_EMPTY 0x1000 /* AT_EMPTY_PATH */
#define IN_ROOT (RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
#define MAX_PATH 4096
#define MAX_LINKS 40
#define CLOSE_RANGE_CLOEXEC_ 4
#define MS_NOSUID_NODEV_NOEXEC (MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)

static int slots[MAX_SLOTS];
static int control;
static const unsigned char *prog;
static uint32_t prog_len;
static int kernel_log = -1; /* the filesystem context whose messages explain a failure */

/* The compiler may call these for structures. */
void *memcpy(void *to, const void *from, size_t n)
{
    char *t = to;
    const char *f = from;
    while (n--)
        *t++ = *f++;
    return to;
}

void *memset(void *to, int c, size_t n)
{
    char *t = to;
    while (n--)
        *t++ = (char)c;
    return to;
}

static size_t length(const char *s)
{
    size_t n = 0;
    while (s[n])
        n++;
    return n;
}

static _Noreturn void leave(int status)
{
    for (;;)
        sys(__NR_exit_group, status);
}

/* ---- reports -------------------------------------------------------------------------------------------------------------------- */

struct iovec_ { void *base; size_t len; };
struct msghdr_ { void *name; int namelen; struct iovec_ *iov; size_t iovlen; void *ctl; size_t ctllen; int flags; };
struct fdmsg { size_t len; int level, type, fd, pad; };

/* One message: the report, the kernel's words when there are any, a descriptor when there is one. */
static void report(uint32_t kind, uint32_t step, int32_t value, int fd)
{
    struct report r = { kind, step, value, 0 };
    char words[512];
    struct iovec_ iov[2] = { { &r, sizeof r }, { words, 0 } };
    struct fdmsg cm = { offsetof(struct fdmsg, pad), 1 /* SOL_SOCKET */, 1 /* SCM_RIGHTS */, fd, 0 };
    struct msghdr_ m = { 0, 0, iov, 2, 0, 0, 0 };

    if (fd >= 0) {
        m.ctl = &cm;
        m.ctllen = sizeof cm;
    }
    if (kind == REPORT_ERROR && kernel_log >= 0) {
        long n = sys(__NR_read, kernel_log, words, sizeof words);
        if (n > 0)
            iov[1].len = (size_t)n;
    }
    if (sys(__NR_sendmsg, control, &m, 0x4000 /* MSG_NOSIGNAL */) < 0)
        leave(255); /* whoever asked for this container is gone, and it never ran */
}

static void wait_go(void)
{
    char byte;
    if (sys(__NR_read, control, &byte, 1) != 1)
        leave(255);
}

/* ---- checked access to the program ------------------------------------------------------------------------------------------------ */

static int inside(struct ref r)
{
    return r.off <= prog_len && r.len <= prog_len - r.off;
}

static int is_text(struct ref r)
{
    if (!inside(r) || r.len == 0 || prog[r.off + r.len - 1] != 0)
        return 0;
    return length((const char *)prog + r.off) == r.len - 1;
}

static int is_list(struct list l)
{
    uint64_t seen = 0;
    if (!inside(l.text) || (l.text.len && prog[l.text.off + l.text.len - 1] != 0))
        return 0;
    for (uint32_t i = 0; i < l.text.len; i++)
        seen += prog[l.text.off + i] == 0;
    return seen == l.count;
}

static const char *text(struct ref r)
{
    return (const char *)prog + r.off;
}

/* By the shape of its code: the size is right, and every member points into the program. */
static int well_formed(const struct head *h, uint32_t room)
{
    const unsigned char *at = (const unsigned char *)(h + 1);
    uint32_t need = sizeof *h;

    if (room < sizeof *h || h->code == 0 || h->code > OP_LAST || h->len > room)
        return 0;
    for (const unsigned char *k = SHAPES[h->code]; *k != END; k++) {
        uint32_t size = *k == LIST ? sizeof(struct list) : 8;
        need += size;
        if (need > h->len)
            return 0;
        if (*k == SLOT && *(const uint64_t *)at >= MAX_SLOTS && *(const uint64_t *)at != NO_SLOT)
            return 0;
        if (*k == STR && !is_text(*(const struct ref *)at))
            return 0;
        if (*k == DATA && !inside(*(const struct ref *)at))
            return 0;
        if (*k == LIST && !is_list(*(const struct list *)at))
            return 0;
        at += size;
    }
    return need == h->len;
}

static int fd_of(uint64_t slot)
{
    return slot == NO_SLOT ? -100 /* AT_FDCWD */ : slots[slot];
}

static long keep(uint64_t slot, long fd)
{
    if (fd < 0)
        return fd;
    if (slot == NO_SLOT)
        return sys(__NR_close, fd);
    if (slots[slot] >= 0)
        sys(__NR_close, slots[slot]);
    slots[slot] = (int)fd;
    return 0;
}

/* ---- paths in the root --------------------------------------------------------------------------------------------------------------- */

static long in_root(int root, const char *path, int flags)
{
    struct open_how how = { .flags = (unsigned)flags | O_CLOEXEC, .resolve = IN_ROOT };
    long fd;
    int tries = 0;
    do /* the kernel asks for another try when a rename went on meanwhile */
        fd = sys(__NR_openat2, root, path, &how, sizeof how);
    while (fd == -EAGAIN && ++tries < 1000);
    return fd;
}

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

/* Open a path in the root, making what is missing of it: directories, and at its end a directory or an empty file. Each part is made
 * through the descriptor of the directory before it; a link that leads nowhere yet is followed inside the root. */
static long make_target(int root, const char *given, int want_file, unsigned mode)
{
    char path[MAX_PATH], link[MAX_PATH];
    size_t n = length(given);
    int links = 0;

    if (n >= sizeof path)
        return -ENAMETOOLONG;
    memcpy(path, given, n + 1);
restart:
    for (size_t at = 0;;) {
        size_t start, end;
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
        fd = in_root(root, start == end && end == 0 ? "." : path, O_PATH);
        if (fd == -ENOENT) {
            long made, dir;
            size_t rest = end + (saved != 0);
            int last = 1;
            for (size_t i = rest; saved && path[i]; i++)
                last &= path[i] == '/';
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
            fd = in_root(root, path, O_PATH);
        }
        path[end] = saved;
        if (fd < 0)
            return fd;
        if (!saved)
            return fd;
        size_t i = end;
        while (path[i] == '/')
            i++;
        if (!path[i])
            return fd;
        sys(__NR_close, fd);
    }
}

static long mode_of(int fd, struct statx *st)
{
    long err = sys(__NR_statx, fd, "", AT_EMPTY, STATX_BASIC_STATS, st);
    return err < 0 ? err : st->stx_mode;
}

static long check_type(int fd, int want_file)
{
    struct statx st;
    long mode = mode_of(fd, &st);
    if (mode < 0)
        return mode;
    if (!want_file && (mode & S_IFMT) != S_IFDIR)
        return -ENOTDIR;
    if (want_file && (mode & S_IFMT) == S_IFDIR)
        return -EISDIR;
    return 0;
}

static long prove_null(int fd)
{
    struct statx st;
    long mode = mode_of(fd, &st);
    if (mode < 0)
        return mode;
    if ((mode & S_IFMT) != S_IFCHR || st.stx_rdev_major != 1 || st.stx_rdev_minor != 3)
        return -EBADF;
    return 0;
}

static long prove_fs(int fd, uint64_t magic)
{
    struct { long type, words[63]; } fs;
    long err = sys(__NR_fstatfs, fd, &fs);
    if (err < 0)
        return err;
    return (uint64_t)fs.type == magic ? 0 : -EXDEV;
}

static long attach(long mnt, long target)
{
    return sys(__NR_move_mount, mnt, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}

static long set_attrs(int fd, unsigned flags, uint64_t set, uint64_t clear, uint64_t propagation, uint64_t userns)
{
    struct mount_attr a = { set, clear, propagation, userns };
    return sys(__NR_mount_setattr, fd, "", AT_EMPTY | flags, &a, sizeof a);
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

/* Hide a path: a directory under an empty one, anything else under the null device. What does not exist needs no hiding. */
static long mask(int root, const char *path, int null)
{
    struct statx st;
    long mnt, err, mode, target = in_root(root, path, O_PATH);

    if (target == -ENOENT || target == -ENOTDIR)
        return 0;
    if (target < 0)
        return target;
    mode = mode_of((int)target, &st);
    if (mode < 0)
        err = mode;
    else if ((mode & S_IFMT) == S_IFDIR) {
        mnt = empty_dir();
        err = mnt < 0 ? mnt : attach(mnt, target);
        if (mnt >= 0)
            sys(__NR_close, mnt);
    } else {
        err = prove_null(null);
        if (err >= 0) {
            mnt = sys(__NR_open_tree, null, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY);
            err = mnt < 0 ? mnt : attach(mnt, target);
            if (mnt >= 0)
                sys(__NR_close, mnt);
        }
    }
    sys(__NR_close, target);
    return err;
}

/* Make a path read-only by a mount over itself; only what was asked for changes, the mount's other attributes stay. */
static long make_readonly(int root, const char *path)
{
    long mnt, err, target = in_root(root, path, O_PATH);

    if (target == -ENOENT || target == -ENOTDIR)
        return 0;
    if (target < 0)
        return target;
    mnt = sys(__NR_open_tree, target, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY | 0x8000 /* AT_RECURSIVE */);
    err = mnt < 0 ? mnt : set_attrs((int)mnt, 0x8000, MOUNT_ATTR_RDONLY, 0, 0, 0);
    if (err >= 0)
        err = attach(mnt, target);
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

static long make_device(int dir, const struct op_mknod *o)
{
    struct statx st;
    const char *name = text(o->name);
    unsigned dev = (unsigned)((o->dev >> 32 & 0xfff) << 8 | (o->dev & 0xff) | (o->dev & 0xfff00) << 12);
    long mode, fd, err = sys(__NR_mknodat, dir, name, o->mode & ~07777ull, dev);

    if (err < 0 && err != -EEXIST)
        return err;
    fd = sys(__NR_openat, dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return fd;
    mode = mode_of((int)fd, &st);
    if (mode < 0)
        err = mode;
    else if ((mode & S_IFMT) != (o->mode & S_IFMT) ||
             ((mode & S_IFMT) != S_IFIFO && (st.stx_rdev_major != o->dev >> 32 || st.stx_rdev_minor != (o->dev & 0xffffffff))))
        err = -EEXIST; /* something else has this name */
    else {
        /* The name was just proven to be the device, in a directory that only this container reaches. */
        err = sys(__NR_fchownat, fd, "", o->uid, o->gid, AT_EMPTY);
        if (err >= 0)
            err = sys(__NR_fchmodat, dir, name, o->mode & 07777);
    }
    sys(__NR_close, fd);
    return err;
}

/* The spec's links in /dev are a default: what the image or a mount has under that name stays. */
static long make_link(int dir, const struct op_symlink *o)
{
    long err = sys(__NR_symlinkat, text(o->target), dir, text(o->name));
    return err == -EEXIST ? 0 : err;
}

static long write_file(int dir, const struct op_write *o)
{
    const char *path = text(o->path);
    struct open_how how = { .flags = O_WRONLY | O_CLOEXEC | O_NOFOLLOW,
                            .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV };
    long n, fd = path[0] ? sys(__NR_openat2, dir, path, &how, sizeof how) : dir;

    if (fd < 0)
        return fd;
    n = sys(__NR_write, fd, prog + o->data.off, o->data.len);
    if (path[0])
        sys(__NR_close, fd);
    if (n < 0)
        return n;
    return (uint32_t)n == o->data.len ? 0 : -EIO;
}

/* ---- process -------------------------------------------------------------------------------------------------------------------------- */

struct action { void (*handler)(int); unsigned long flags; void (*restorer)(void); unsigned long mask; };

static void never(void)
{
    leave(255);
}

static void killed(int number)
{
    leave(128 + number);
}

/* Every signal as execve would have it in a fresh login: default action. What the caller ignored stays ignored over execve otherwise. */
static void reset_signals(void)
{
    struct action a = { 0, 0, 0, 0 };
    for (int s = 1; s <= 64; s++)
        sys(__NR_rt_sigaction, s, &a, 0, 8);
}

/* While it waits at the gate, the first process of a pid namespace would not hear these: it has no default actions. */
static void listen_to_signals(void)
{
    static const unsigned char asked[] = { 1, 2, 3, 15 }; /* HUP INT QUIT TERM */
    struct action a = { killed, 0x04000000 /* SA_RESTORER */, never, 0 };
    for (unsigned i = 0; i < sizeof asked; i++)
        sys(__NR_rt_sigaction, asked[i], &a, 0, 8);
}

static void unblock_signals(void)
{
    uint64_t none = 0;
    sys(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &none, 0, 8);
}

static long set_caps(const struct op_capset *o)
{
    struct __user_cap_header_struct h = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct d[2] = {
        { (uint32_t)o->effective, (uint32_t)o->permitted, (uint32_t)o->inheritable },
        { (uint32_t)(o->effective >> 32), (uint32_t)(o->permitted >> 32), (uint32_t)(o->inheritable >> 32) },
    };
    return sys(__NR_capset, &h, d);
}

static long drop_bounding(uint64_t keep_mask, uint64_t last)
{
    for (uint64_t cap = 0; cap <= last && cap < 64; cap++) {
        long err = keep_mask >> cap & 1 ? 0 : sys(__NR_prctl, PR_CAPBSET_DROP, cap, 0, 0, 0);
        if (err < 0)
            return err;
    }
    return 0;
}

static long raise_ambient(uint64_t caps)
{
    long err = sys(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    for (uint64_t cap = 0; err >= 0 && cap < 64; cap++)
        if (caps >> cap & 1)
            err = sys(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0);
    return err;
}

static long change_dir(const char *path, int create)
{
    if (create) {
        long root = sys(__NR_openat, -100, "/", O_PATH | O_DIRECTORY | O_CLOEXEC);
        long fd = root < 0 ? root : make_target((int)root, path, 0, 0755);
        if (root >= 0)
            sys(__NR_close, root);
        if (fd < 0)
            return fd;
        long err = sys(__NR_fchdir, fd);
        sys(__NR_close, fd);
        if (err < 0)
            return err;
    } else {
        long err = sys(__NR_chdir, path);
        if (err < 0)
            return err;
    }
    /* A working directory outside the root shows as a path that does not start with a slash. */
    char cwd[MAX_PATH];
    long n = sys(__NR_getcwd, cwd, sizeof cwd);
    if (n < 0)
        return n;
    return cwd[0] == '/' ? 0 : -ENOENT;
}

static long go_on_in_child(uint32_t step, uint64_t flags)
{
    int pidfd = -1;
    long pid;
    struct clone_args a = { .flags = CLONE_PIDFD | CLONE_PARENT | flags, .pidfd = (uint64_t)(uintptr_t)&pidfd };

    pid = sys(__NR_clone3, &a, sizeof a);
    if (pid < 0)
        return pid;
    if (pid == 0) {
        wait_go(); /* until whoever waits knows the new process */
        return 0;
    }
    report(REPORT_FORKED, step, 0, pidfd);
    leave(0);
}

static long load_filter(const struct op_seccomp *o)
{
    struct sock_fprog f = { (unsigned short)(o->filter.len / sizeof(struct sock_filter)),
                            (struct sock_filter *)(uintptr_t)(prog + o->filter.off) };
    long fd;
    if (o->filter.len % sizeof(struct sock_filter) || o->filter.len / sizeof(struct sock_filter) > BPF_MAXINSNS)
        return -EINVAL;
    fd = sys(__NR_seccomp, SECCOMP_SET_MODE_FILTER, o->flags, &f);
    if (fd < 0 || !(o->flags & SECCOMP_FILTER_FLAG_NEW_LISTENER))
        return fd;
    return keep(o->out, fd);
}

/* The terminal comes from the container's own devpts, by descriptor; its master goes out with a report. */
static long open_console(uint32_t step, const struct op_console *o)
{
    struct winsize size = { (unsigned short)o->rows, (unsigned short)o->cols, 0, 0 };
    struct statx st;
    int unlock = 0;
    struct open_how how = { .flags = O_RDWR | O_NOCTTY | O_CLOEXEC, .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV };
    long peer, err, master = sys(__NR_openat2, fd_of(o->devpts), "ptmx", &how, sizeof how);

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
    if (err >= 0 && o->bind) {
        long mnt = sys(__NR_open_tree, peer, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY);
        long target = mnt < 0 ? mnt : make_target(fd_of(o->dev), "console", 1, 0);
        err = target < 0 ? target : attach(mnt, target);
        if (mnt >= 0)
            sys(__NR_close, mnt);
        if (target >= 0)
            sys(__NR_close, target);
    }
    if (err >= 0)
        err = sys(__NR_ioctl, peer, TIOCSCTTY, 0);
    for (int fd = 0; err >= 0 && fd < 3; fd++)
        err = sys(__NR_dup3, peer, fd, 0);
    if (err >= 0)
        report(REPORT_FD, step, 0, (int)master);
    sys(__NR_close, peer);
    sys(__NR_close, master);
    return err < 0 ? err : 0;
}

/* ---- the gate and the end ---------------------------------------------------------------------------------------------------------------- */

/* Wait until somebody connects; from then on that connection is where reports go. Nobody can come second: the listener is closed. */
static long gate(int listener)
{
    long peer;
    sys(__NR_close, control);
    /* What was read of the program so far can come back from the memfd: a waiting container costs next to nothing. */
    sys(__NR_madvise, prog, ((size_t)prog_len + 4095) & ~4095ull, 4 /* MADV_DONTNEED */);
    listen_to_signals();
    unblock_signals();
    do
        peer = sys(__NR_accept4, listener, 0, 0, 02000000 /* SOCK_CLOEXEC */);
    while (peer == -EINTR || peer == -ECONNABORTED);
    if (peer < 0)
        leave(255);
    sys(__NR_close, listener);
    control = (int)peer;
    return 0;
}

static long lookup(int root, struct list l)
{
    const char *at = text(l.text);
    long worst = -ENOENT;
    for (uint64_t i = 0; i < l.count; i++, at += length(at) + 1) {
        struct statx st;
        long mode, fd = in_root(root, at, O_PATH);
        if (fd == -EACCES)
            worst = fd;
        if (fd < 0)
            continue;
        mode = mode_of((int)fd, &st);
        sys(__NR_close, fd);
        if (mode >= 0 && (mode & S_IFMT) == S_IFREG && mode & 0111)
            return 0;
        worst = -EACCES;
    }
    return worst;
}

static long pointers(struct list l, const char **to)
{
    const char *at = text(l.text);
    for (uint64_t i = 0; i < l.count; i++, at += length(at) + 1)
        to[i] = at;
    to[l.count] = 0;
    return 0;
}

static long become(const struct op_exec *o)
{
    size_t words = o->argv.count + o->env.count + 2;
    const char *at = text(o->candidates.text);
    long worst = -ENOENT;
    const char **argv = (const char **)sys(__NR_mmap, 0, words * sizeof *argv, 3, 0x22, -1, 0);

    if ((unsigned long)argv > -4096ul)
        return (long)argv;
    pointers(o->argv, argv);
    pointers(o->env, argv + o->argv.count + 1);
    reset_signals();
    unblock_signals();
    for (uint64_t i = 0; i < o->candidates.count; i++, at += length(at) + 1) {
        long err = sys(__NR_execve, at, argv, argv + o->argv.count + 1);
        if (err == -EACCES)
            worst = err;
        else if (err != -ENOENT && err != -ENOTDIR)
            return err;
    }
    return worst;
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

/* ---- the switch ---------------------------------------------------------------------------------------------------------------------------- */

#define ARGS(name) const struct op_##name *o = (const void *)h

static long carry_out(const struct head *h)
{
    switch (h->code) {
    case OP_OPEN: {
        ARGS(open);
        struct open_how how = { .flags = o->flags | O_CLOEXEC, .mode = o->mode, .resolve = o->resolve };
        return keep(o->out, sys(__NR_openat2, fd_of(o->dir), text(o->path), &how, sizeof how));
    }
    case OP_CLOSE: {
        ARGS(close);
        if (o->fd == NO_SLOT)
            return -EBADF;
        long err = sys(__NR_close, fd_of(o->fd));
        slots[o->fd] = -1;
        return err;
    }
    case OP_OPEN_TREE: {
        ARGS(open_tree);
        return keep(o->out, sys(__NR_open_tree, fd_of(o->dir), text(o->path), o->flags | OPEN_TREE_CLOEXEC));
    }
    case OP_FSOPEN: {
        ARGS(fsopen);
        return keep(o->out, sys(__NR_fsopen, text(o->fstype), FSOPEN_CLOEXEC));
    }
    case OP_FSCONFIG: {
        ARGS(fsconfig);
        int plain = o->cmd == FSCONFIG_SET_FLAG || o->cmd >= FSCONFIG_CMD_CREATE;
        kernel_log = fd_of(o->fs);
        return sys(__NR_fsconfig, fd_of(o->fs), o->cmd, o->cmd >= FSCONFIG_CMD_CREATE ? 0 : text(o->key), plain ? 0 : text(o->value), 0);
    }
    case OP_FSMOUNT: {
        ARGS(fsmount);
        kernel_log = fd_of(o->fs);
        return keep(o->out, sys(__NR_fsmount, fd_of(o->fs), FSMOUNT_CLOEXEC, o->attrs));
    }
    case OP_MOUNT_SETATTR: {
        ARGS(mount_setattr);
        int fd = fd_of(o->fd);
        struct mount_attr a = { o->set, o->clear, o->propagation, o->userns == NO_SLOT ? 0 : (uint64_t)fd_of(o->userns) };
        return sys(__NR_mount_setattr, fd, fd == -100 ? "/" : "", (fd == -100 ? 0 : AT_EMPTY) | o->flags, &a, sizeof a);
    }
    case OP_MOVE_MOUNT: {
        ARGS(move_mount);
        return attach(fd_of(o->mount), fd_of(o->target));
    }
    case OP_TARGET: {
        ARGS(target);
        struct statx st;
        long err, fd, file = o->kind == 1;
        if (o->like != NO_SLOT) { /* what is mounted here says what its mount point must be */
            long mode = mode_of(fd_of(o->like), &st);
            if (mode < 0)
                return mode;
            file = (mode & S_IFMT) != S_IFDIR;
        }
        fd = make_target(fd_of(o->root), text(o->path), (int)file, (unsigned)o->mode);
        err = fd < 0 ? fd : check_type((int)fd, (int)file);
        if (err < 0 && fd >= 0)
            sys(__NR_close, fd);
        return err < 0 ? err : keep(o->out, fd);
    }
    case OP_PIVOT_ROOT: {
        ARGS(pivot_root);
        return pivot(fd_of(o->root));
    }
    case OP_MASK: {
        ARGS(mask);
        return mask(fd_of(o->root), text(o->path), fd_of(o->null));
    }
    case OP_READONLY: {
        ARGS(readonly);
        return make_readonly(fd_of(o->root), text(o->path));
    }
    case OP_PROVE_NULL: {
        ARGS(prove_null);
        return prove_null(fd_of(o->fd));
    }
    case OP_PROVE_FS: {
        ARGS(prove_fs);
        return prove_fs(fd_of(o->fd), o->magic);
    }
    case OP_MKNOD: {
        ARGS(mknod);
        return make_device(fd_of(o->dir), o);
    }
    case OP_SYMLINK: {
        ARGS(symlink);
        return make_link(fd_of(o->dir), o);
    }
    case OP_MKDIR: {
        ARGS(mkdir);
        long err = sys(__NR_mkdirat, fd_of(o->dir), text(o->name), o->mode);
        return err == -EEXIST ? 0 : err;
    }
    case OP_WRITE: {
        ARGS(write);
        return write_file(fd_of(o->dir), o);
    }
    case OP_SETHOSTNAME: {
        ARGS(sethostname);
        return sys(__NR_sethostname, text(o->name), o->name.len - 1);
    }
    case OP_SETDOMAINNAME: {
        ARGS(setdomainname);
        return sys(__NR_setdomainname, text(o->name), o->name.len - 1);
    }
    case OP_RLIMIT: {
        ARGS(rlimit);
        struct { uint64_t soft, hard; } limit = { o->soft, o->hard };
        return sys(__NR_prlimit64, 0, o->resource, &limit, 0);
    }
    case OP_UNSHARE: {
        ARGS(unshare);
        return sys(__NR_unshare, o->flags);
    }
    case OP_SETNS: {
        ARGS(setns);
        return sys(__NR_setns, fd_of(o->fd), o->flags);
    }
    case OP_FORK: {
        ARGS(fork);
        return go_on_in_child(h->step, o->flags);
    }
    case OP_SETSID:
        return sys(__NR_setsid);
    case OP_KEYRING: {
        ARGS(keyring);
        return sys(__NR_keyctl, 1 /* KEYCTL_JOIN_SESSION_KEYRING */, text(o->name));
    }
    case OP_SETGROUPS: {
        ARGS(setgroups);
        return sys(__NR_setgroups, o->gids.len / 4, prog + o->gids.off);
    }
    case OP_SETRESGID: {
        ARGS(setresgid);
        return sys(__NR_setresgid, o->gid, o->gid, o->gid);
    }
    case OP_SETRESUID: {
        ARGS(setresuid);
        return sys(__NR_setresuid, o->uid, o->uid, o->uid);
    }
    case OP_BOUNDING: {
        ARGS(bounding);
        return drop_bounding(o->keep, o->last);
    }
    case OP_CAPSET: {
        ARGS(capset);
        return set_caps(o);
    }
    case OP_AMBIENT: {
        ARGS(ambient);
        return raise_ambient(o->caps);
    }
    case OP_PRCTL: {
        ARGS(prctl);
        return sys(__NR_prctl, o->option, o->a, o->b, 0, 0);
    }
    case OP_UMASK: {
        ARGS(umask);
        sys(__NR_umask, o->mask);
        return 0;
    }
    case OP_PERSONALITY: {
        ARGS(personality);
        return sys(__NR_personality, o->persona);
    }
    case OP_CHDIR: {
        ARGS(chdir);
        return change_dir(text(o->path), o->create != 0);
    }
    case OP_SCHEDULER: {
        ARGS(scheduler);
        return o->attr.len < 48 ? -EINVAL : sys(__NR_sched_setattr, 0, prog + o->attr.off, 0);
    }
    case OP_IOPRIO: {
        ARGS(ioprio);
        return sys(__NR_ioprio_set, 1 /* IOPRIO_WHO_PROCESS */, 0, o->value);
    }
    case OP_AFFINITY: {
        ARGS(affinity);
        return sys(__NR_sched_setaffinity, 0, o->mask.len, prog + o->mask.off);
    }
    case OP_MEMPOLICY: {
        ARGS(mempolicy);
        return sys(__NR_set_mempolicy, o->mode, o->nodes.len ? prog + o->nodes.off : 0, o->nodes.len * 8ul);
    }
    case OP_SECCOMP: {
        ARGS(seccomp);
        return load_filter(o);
    }
    case OP_HANDOUT: {
        ARGS(handout);
        report(REPORT_FD, h->step, 0, fd_of(o->fd));
        return 0;
    }
    case OP_CONSOLE: {
        ARGS(console);
        return open_console(h->step, o);
    }
    case OP_COPYUP: {
        ARGS(copyup);
        return copy_up(fd_of(o->source), fd_of(o->target));
    }
    case OP_LOOKUP: {
        ARGS(lookup);
        return lookup(fd_of(o->root), o->candidates);
    }
    case OP_SYNC: {
        ARGS(sync);
        report(REPORT_SYNC, h->step, (int32_t)o->token, -1);
        wait_go();
        return 0;
    }
    case OP_GATE: {
        ARGS(gate);
        return gate(fd_of(o->listener));
    }
    case OP_EXEC: {
        ARGS(exec);
        return become(o);
    }
    default:
        return -EPROTO;
    }
}

static int number(const char *s)
{
    int n = 0;
    while (*s >= '0' && *s <= '9' && n < 1 << 20)
        n = n * 10 + (*s++ - '0');
    return n;
}

/* argv: name, control socket, number of the program's descriptor; the inputs follow behind that. */
_Noreturn void init_main(long *stack)
{
    long argc = stack[0];
    const char **argv = (const char **)(stack + 1);
    const struct program *p;
    struct statx st;
    int memfd;

    if (argc != 3)
        leave(255);
    control = number(argv[1]);
    memfd = number(argv[2]);
    reset_signals();
    sys(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    sys(__NR_prctl, PR_SET_NAME, "oci-init", 0, 0, 0);
    if (sys(__NR_close_range, control, ~0u, CLOSE_RANGE_CLOEXEC_) < 0 || mode_of(memfd, &st) < 0 || st.stx_size < sizeof *p ||
        st.stx_size > 64u << 20)
        leave(255);
    prog_len = (uint32_t)st.stx_size;
    prog = (const unsigned char *)sys(__NR_mmap, 0, prog_len, 1 /* PROT_READ */, 1 /* MAP_SHARED */, memfd, 0);
    if ((unsigned long)prog > -4096ul)
        leave(255);
    p = (const void *)prog;
    for (unsigned i = 0; i < MAX_SLOTS; i++)
        slots[i] = -1;
    if (p->magic != PROGRAM_MAGIC || p->len != prog_len || p->inputs > MAX_SLOTS) {
        report(REPORT_ERROR, 0, EPROTO, -1);
        leave(255);
    }
    for (uint32_t i = 0; i < p->inputs; i++)
        slots[i] = memfd + 1 + (int)i;
    for (uint32_t i = 0, at = sizeof *p; i < p->ops; i++) {
        const struct head *h = (const void *)(prog + at);
        long err = well_formed(h, prog_len - at) ? carry_out(h) : -EPROTO;
        if (err < 0) {
            report(REPORT_ERROR, prog_len - at < sizeof *h ? 0 : h->step, (int32_t)-err, -1);
            leave(255);
        }
        kernel_log = -1;
        at += h->len;
    }
    /* A program that does not end in exec has nothing left to be. */
    leave(0);
}

#if defined(__x86_64__)
__asm__(".global _start\n_start: xor %ebp,%ebp\n mov %rsp,%rdi\n and $-16,%rsp\n call init_main\n hlt\n");
#elif defined(__aarch64__)
__asm__(".global _start\n_start: mov x29,#0\n mov x30,#0\n mov x0,sp\n and sp,x0,#-16\n bl init_main\n brk #0\n");
#elif defined(__riscv)
__asm__(".global _start\n_start: li s0,0\n mv a0,sp\n andi sp,sp,-16\n call init_main\n unimp\n");
#endif
