/* Part of the init: what it does to itself on its way to the process. */
#ifndef OCIRUNTIME_TASK_H
#define OCIRUNTIME_TASK_H
#include "mounts.h"

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

/* Let a user open his own standard streams again (/dev/stdout). Pipes and sockets are made for him; a file, a device or the caller's
 * terminal is somebody else's, whatever its name was, and what the user namespace does not map cannot be given away. */
static long own_stdio(uint64_t uid)
{
    for (int fd = 0; fd < 3; fd++) {
        struct statx st;
        long err, mode = mode_of(fd, &st);

        if (mode == -EBADF)
            continue;
        if (mode < 0)
            return mode;
        if (st.stx_uid == uid || ((mode & S_IFMT) != S_IFIFO && (mode & S_IFMT) != S_IFSOCK))
            continue;
        err = sys(__NR_fchown, fd, uid, -1);
        if (err < 0 && err != -EPERM && err != -EROFS)
            return err;
    }
    return 0;
}

/* To be killed with the thread that launched us. Who is gone before the kernel knows of this is found by his pidfd: getppid() is 0 in a
 * pid namespace of our own. */
static long die_with(int parent)
{
    struct { int fd; short events, revents; } wait = { parent, 1 /* POLLIN */, 0 };
    struct { int64_t seconds, nanoseconds; } now = { 0, 0 };
    long n, err = sys(__NR_prctl, PR_SET_PDEATHSIG, 9 /* SIGKILL */, 0, 0, 0);
    if (err < 0)
        return err;
    n = sys(__NR_ppoll, &wait, 1, &now, 0, 8);
    return n > 0 ? -ESRCH : n;
}

/* Without a program: the first process of a pod, which reaps what ends in its pid namespace, until it is asked to stop. */
static long reap(void)
{
    static const uint64_t wanted = 1ull << (1 - 1) | 1ull << (2 - 1) | 1ull << (15 - 1) | 1ull << (17 - 1); /* HUP INT TERM CHLD */
    static const struct { long seconds, nanoseconds; } now = { 0, 0 };
    long number;

    sys(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &wanted, 0, 8);
    sys(__NR_munmap, prog, ((size_t)prog_len + 4095) & ~4095ull);
    sys(__NR_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0); /* from here on it is like any process of the container */
    sys(__NR_close_range, 3, ~0u, 0);             /* whoever started it learns by this that all went well */
    do {
        number = sys(__NR_rt_sigtimedwait, &wanted, 0, 0, 8);
        if (number == -EINTR && (number = sys(__NR_rt_sigtimedwait, &wanted, 0, &now, 8)) == -EAGAIN)
            continue; /* a stop and a continuation interrupt the wait; a filter that answers EINTR does so again */
        while (number == 17 && sys(__NR_wait4, -1, 0, 1 /* WNOHANG */, 0) > 0)
            ;
    } while (number == 17 || number == -EAGAIN);
    leave(number < 0 ? 255 : 0);
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
        long fd = root < 0 ? root : make_target((int)root, path, 0, 0, 0755);
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

/* Enter a namespace, and prove by our own list of them that we are in it. */
static long join(int fd, uint64_t type, int own, const char *name)
{
    struct statx wanted, now;
    long here, err = sys(__NR_setns, fd, type);

    if (err < 0 && !(err == -EINVAL && type == CLONE_NEWUSER)) /* nobody may enter again the user namespace that he is in */
        return err;
    here = sys(__NR_openat, own, name, O_RDONLY | O_CLOEXEC);
    if (here < 0)
        return here;
    if (mode_of(fd, &wanted) < 0 || mode_of((int)here, &now) < 0 || wanted.stx_ino != now.stx_ino ||
        wanted.stx_dev_major != now.stx_dev_major || wanted.stx_dev_minor != now.stx_dev_minor)
        err = err < 0 ? err : -EXDEV;
    else
        err = 0;
    sys(__NR_close, here);
    return err;
}

static long go_on_in_child(uint32_t step, uint64_t flags)
{
    int pidfd = -1;
    long pid;
    struct clone_args a = {
        .flags = CLONE_PIDFD | CLONE_PARENT | CLONE_PARENT_SETTID | flags,
        .pidfd = (uint64_t)(uintptr_t)&pidfd,
        .parent_tid = (uint64_t)(uintptr_t)&progress->forked, /* for a caller that kills us before it has the report */
    };

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

/* Close every descriptor but the process's own and the control socket. Slots can have numbers below those of the process. */
static long close_all(void)
{
    for (unsigned i = 0; i < MAX_SLOTS; i++) {
        if (slots[i] >= 0)
            sys(__NR_close, slots[i]);
        slots[i] = -1;
    }
    page = -1;
    return sys(__NR_close_range, control + 1, ~0u, 0);
}

/* Go on in a child for the last steps, under the filter: clone3 cannot be filtered by its flags, so profiles deny it. The child does
 * not have the page of the progress. Its parent is the caller, which opens the pidfd: until the caller reaps it, the pid is its own. */
static long fork_last(uint32_t step)
{
    static volatile struct progress unshared;
    long pid = sys(__NR_clone, CLONE_PARENT | CLONE_PARENT_SETTID, 0, &progress->forked, 0, 0);

    if (pid < 0)
        return pid;
    if (pid == 0) {
        progress = &unshared;
        wait_go();
        return 0;
    }
    report(REPORT_FORKED, step, (int32_t)pid, -1);
    leave(0);
}

static long pointers(struct list l, const char **to)
{
    const char *at = text(l.text);
    for (uint64_t i = 0; i < l.count; i++, at += length(at) + 1)
        to[i] = at;
    to[l.count] = 0;
    return 0;
}

struct pollfd_ { int fd; short events, revents; };
struct timespec_ { long sec, nsec; };

static _Noreturn void become_hook(const struct op_hook *o, volatile int32_t *failure)
{
    const char *at = text(o->argv.text);
    size_t words = o->argv.count + o->env.count + 2;
    const char **argv = (const char **)sys(__NR_mmap, 0, words * sizeof *argv, 3, 0x22, -1, 0);
    long err = (unsigned long)argv > -4096ul ? (long)argv : 0;

    if (err >= 0) {
        pointers(o->argv, argv);
        pointers(o->env, argv + o->argv.count + 1);
        at = text(o->path);
        err = sys(__NR_setpgid, 0, 0);
    }
    if (err >= 0)
        err = sys(__NR_prctl, PR_SET_PDEATHSIG, 9, 0, 0, 0);
    if (err >= 0)
        err = sys(__NR_lseek, fd_of(o->state), 0, 0);
    if (err >= 0) /* what each writes begins behind a NUL */
        err = sys(__NR_write, fd_of(o->output), "", 1);
    if (err >= 0)
        err = sys(__NR_fchdir, fd_of(o->cwd));
    for (int fd = 0; err >= 0 && fd < 3; fd++)
        err = sys(__NR_dup3, fd_of(fd ? o->output : o->state), fd, 0);
    if (err >= 0)
        err = sys(__NR_close_range, 3, ~0u, 0);
    if (err >= 0) {
        reset_signals();
        unblock_signals();
        sys(__NR_umask, umask_of_process); /* ours is none, for the modes of the plan */
        err = sys(__NR_execve, at, argv, argv + o->argv.count + 1);
    }
    *failure = (int32_t)err;
    leave(127);
}

#define HOOK_LOOK_MS 100
#define HOOK_KEPT 65536

/* Give the memory of a hook's old output back: only the end will be told. The offset is shared with the hook. */
static void forget_output(int output, long *begin)
{
    long end = sys(__NR_lseek, output, 0, 1 /* SEEK_CUR */);
    if (end - *begin > 2 * HOOK_KEPT && sys(__NR_fallocate, output, 3 /* PUNCH_HOLE | KEEP_SIZE */, *begin, end - HOOK_KEPT - *begin) >= 0)
        *begin = end - HOOK_KEPT;
}

/* Run a program and wait for it; when it fails or takes too long, say so and end. Only plain system calls: a filter may be loaded. */
static long run_hook(uint32_t step, const struct op_hook *o)
{
    volatile int32_t *failure = (volatile int32_t *)sys(__NR_mmap, 0, 4096, 3, 0x21 /* MAP_SHARED | MAP_ANONYMOUS */, -1, 0);
    uint64_t left = o->timeout; /* in milliseconds; 0 for as long as it takes */
    int pidfd = -1, status = 0, late = 0;
    long err, pid, begin = 0;

    if (failure == 0)
        return -EPROTO; /* a filter that answers 0 */
    if ((unsigned long)failure > -4096ul)
        return (long)failure;
    pid = sys(__NR_clone, CLONE_PIDFD | SIGCHLD, 0, &pidfd, 0, 0);
    if (pid == 0)
        become_hook(o, failure);
    if (pid < 0)
        return pid;
    sys(__NR_setpgid, pid, pid); /* whoever comes first; it is too late only when the hook did it itself */
    for (;;) {
        uint64_t look = o->timeout && left < HOOK_LOOK_MS ? left : HOOK_LOOK_MS;
        struct pollfd_ p = { pidfd, 1 /* POLLIN */, 0 };
        struct timespec_ t = { 0, (long)look * 1000000 };
        err = sys(__NR_ppoll, &p, 1, &t, 0, 8); /* restarted by the kernel: no signal has a handler that returns */
        if (err == 0 && t.nsec)
            err = -EPERM; /* a filter that answers 0: the kernel would have written back that no time is left */
        if (err < 0) { /* without the wait the hook would have no time limit */
            sys(__NR_kill, -pid, 9);
            return err;
        }
        if (err > 0)
            break;
        forget_output(fd_of(o->output), &begin);
        if (o->timeout && (left -= look) == 0) {
            late = 1;
            sys(__NR_kill, -pid, 9);
            break;
        }
    }
    err = sys(__NR_wait4, pid, &status, 0, 0);
    if (err < 0)
        return err;
    sys(__NR_close, pidfd);
    if (*failure || late || status) {
        report(REPORT_HOOK, step, *failure ? *failure : status | late << 16, fd_of(o->output));
        leave(255);
    }
    return sys(__NR_munmap, failure, 4096);
}

/* Bring a network device up that has no other flags to keep: the loopback of a new namespace. */
static long link_up(const char *name)
{
    struct { char name[16]; short flags; char rest[22]; } request = { { 0 }, 1 /* IFF_UP */, { 0 } };
    size_t n = length(name);
    long err, fd;

    if (n >= sizeof request.name)
        return -ENAMETOOLONG;
    memcpy(request.name, name, n);
    fd = sys(__NR_socket, 1 /* AF_UNIX */, 2 /* SOCK_DGRAM */ | O_CLOEXEC, 0);
    if (fd < 0)
        return fd;
    err = sys(__NR_ioctl, fd, 0x8914 /* SIOCSIFFLAGS */, &request);
    sys(__NR_close, fd);
    return err;
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

/* Where /dev/console is mounted: a file that is there or made, never what a link of the image's leads to. */
static long console_target(int dev)
{
    struct open_how how = { .flags = O_PATH | O_NOFOLLOW | O_CLOEXEC, .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS };
    struct statx st;
    long mode, fd, made = sys(__NR_openat, dev, "console", O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_WRONLY, 0600);

    if (made < 0 && made != -EEXIST)
        return made;
    if (made >= 0)
        sys(__NR_close, made);
    fd = sys(__NR_openat2, dev, "console", &how, sizeof how);
    if (fd < 0)
        return fd;
    mode = mode_of((int)fd, &st);
    if (mode >= 0 && ((mode & S_IFMT) == S_IFREG || (mode & S_IFMT) == S_IFCHR))
        return fd;
    sys(__NR_close, fd);
    return mode < 0 ? mode : (mode & S_IFMT) == S_IFLNK ? -ELOOP : -EEXIST;
}

/* The terminal comes from the container's own devpts, by descriptor, and belongs to the process's user; its master goes out with a
 * report. */
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
    if (err >= 0)
        err = sys(__NR_fchown, peer, o->uid, -1);
    if (err >= 0 && o->bind) {
        long mnt = sys(__NR_open_tree, peer, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY);
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
#endif
