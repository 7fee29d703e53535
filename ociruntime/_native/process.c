/* The init's process: what it does to itself on its way to the program, and the program. */
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/mman.h>
#include <linux/poll.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/signal.h>
#include <linux/time_types.h>
#include <linux/wait.h>

#include "init.h"

#define SIGNAL_BYTES sizeof(uint64_t) /* of a signal set, as the kernel takes it */
#define MAX_CPUS 8192 /* the most that a kernel supports */
#define SIGNAL_BIT(number) (UINT64_C(1) << ((number) - 1))

#ifdef SA_RESTORER
static void never(void)
{
    leave(255);
}
#endif

static void killed(int number)
{
    leave(128 + number);
}

/* Give every signal its default action, also those that the caller ignores: execve would keep that. */
void reset_signals(void)
{
    struct sigaction a = { 0 };
    for (int s = 1; s <= 64; s++)
        sys(__NR_rt_sigaction, s, &a, 0, SIGNAL_BYTES);
}

/* Ending by these signals while the init waits at the gate: the first process of a pid namespace has no default actions. */
void listen_to_signals(void)
{
    static const unsigned char numbers[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM };
    struct sigaction a = { 0 };
    a.sa_handler = killed;
#ifdef SA_RESTORER
    a.sa_flags = SA_RESTORER;
    a.sa_restorer = never;
#endif
    for (unsigned i = 0; i < sizeof numbers; i++)
        sys(__NR_rt_sigaction, numbers[i], &a, 0, SIGNAL_BYTES);
}

void unblock_signals(void)
{
    uint64_t none = 0;
    sys(__NR_rt_sigprocmask, SIG_SETMASK, &none, 0, SIGNAL_BYTES);
}

/* Let the process's user open its standard streams again (/dev/stdout). Pipes and sockets are made for the process. Files, devices
 * and the caller's terminal keep their owner, and what the user namespace does not map cannot be given away. */
long own_stdio(uint64_t uid)
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

/* Be killed with the thread that launched this process. A parent that ended before is found by its pidfd: getppid(2) is 0 in a new
 * pid namespace. */
long die_with(int parent)
{
    struct pollfd end = { parent, POLLIN, 0 };
    struct __kernel_timespec now = { 0, 0 };
    long n, err = sys(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (err < 0)
        return err;
    n = sys(__NR_ppoll, &end, 1, &now, 0, SIGNAL_BYTES);
    return n > 0 ? -ESRCH : n;
}

/* Allow every CPU; the kernel keeps to those of the cgroup, now and when they change. A filter around the runtime may deny the
 * call: then the affinity of the caller stays. */
long allow_every_cpu(void)
{
    unsigned char every[MAX_CPUS / 8];
    long err;
    memset(every, 0xff, sizeof every);
    err = sys(__NR_sched_setaffinity, 0, sizeof every, every);
    return err == -EPERM || err == -ENOSYS ? 0 : err;
}

/* Without a program: the first process of a pid namespace reaps what ends there, until a signal stops it or, with "childless",
 * until no process is left. */
long reap(int childless)
{
    static const uint64_t numbers = SIGNAL_BIT(SIGHUP) | SIGNAL_BIT(SIGINT) | SIGNAL_BIT(SIGTERM) | SIGNAL_BIT(SIGCHLD);
    static const struct __kernel_timespec now = { 0, 0 };
    long number, ended;

    sys(__NR_rt_sigprocmask, SIG_SETMASK, &numbers, 0, SIGNAL_BYTES);
    sys(__NR_munmap, prog, ((size_t)prog_len + 4095) & ~4095ull);
    sys(__NR_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0); /* from here on it is like any process of the container */
    sys(__NR_close_range, 3, ~0u, 0);             /* the end of the connection is the report of success */
    do {
        number = sys(__NR_rt_sigtimedwait, &numbers, 0, 0, SIGNAL_BYTES);
        if (number == -EINTR && (number = sys(__NR_rt_sigtimedwait, &numbers, 0, &now, SIGNAL_BYTES)) == -EAGAIN)
            continue; /* a stop and a continuation interrupt the wait; a filter that answers EINTR does so again */
        while (number == SIGCHLD && (ended = sys(__NR_wait4, -1, 0, WNOHANG, 0)) != 0)
            if (ended < 0) {
                if (childless)
                    leave(0);
                break;
            }
    } while (number == SIGCHLD || number == -EAGAIN);
    leave(number < 0 ? 255 : 0);
}

long set_caps(const struct op_capset *o)
{
    struct __user_cap_header_struct h = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct d[2] = {
        { (uint32_t)o->effective, (uint32_t)o->permitted, (uint32_t)o->inheritable },
        { (uint32_t)(o->effective >> 32), (uint32_t)(o->permitted >> 32), (uint32_t)(o->inheritable >> 32) },
    };
    return sys(__NR_capset, &h, d);
}

long drop_bounding(uint64_t keep_mask, uint64_t last)
{
    for (uint64_t cap = 0; cap <= last && cap < 64; cap++) {
        long err = keep_mask >> cap & 1 ? 0 : sys(__NR_prctl, PR_CAPBSET_DROP, cap, 0, 0, 0);
        if (err < 0)
            return err;
    }
    return 0;
}

long raise_ambient(uint64_t caps)
{
    long err = sys(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    for (uint64_t cap = 0; err >= 0 && cap < 64; cap++)
        if (caps >> cap & 1)
            err = sys(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0);
    return err;
}

long change_dir(const char *path, int create)
{
    if (create) {
        long root = sys(__NR_openat, AT_FDCWD, "/", O_PATH | O_DIRECTORY | O_CLOEXEC);
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
    /* The path of a working directory outside the root does not begin with a slash. */
    char cwd[MAX_PATH];
    long n = sys(__NR_getcwd, cwd, sizeof cwd);
    if (n < 0)
        return n;
    return n > 0 && cwd[0] == '/' ? 0 : -ENOENT;
}

/* Enter a namespace, and prove it by this process's own list of namespaces. */
long join(int fd, uint64_t type, int own, const char *name)
{
    struct statx wanted, now;
    long here, err = sys(__NR_setns, fd, type);

    if (err < 0 && !(err == -EINVAL && type == CLONE_NEWUSER)) /* EINVAL: it is the user namespace of this process */
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

#define NAMESPACES (CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET)

/* Report the child that goes on, with its pid or a pidfd, and leave. A child that the caller does not know would wait for it. */
static _Noreturn void hand_over(uint32_t step, long pid, int32_t value, int pidfd)
{
    if (send_report(REPORT_FORKED, step, value, pidfd) >= 0)
        leave(0);
    sys(__NR_kill, pid, SIGKILL);
    leave(255);
}

/* Go on in a child, in the new or joined namespaces. */
long go_on_in_child(uint32_t step, uint64_t flags)
{
    int pidfd = -1;
    long pid;
    struct clone_args a = {
        .flags = CLONE_PIDFD | CLONE_PARENT | CLONE_PARENT_SETTID | flags,
        .pidfd = (uint64_t)(uintptr_t)&pidfd,
        .parent_tid = (uint64_t)(uintptr_t)&progress->forked, /* for a caller that kills this process before it reads the report */
    };

    if (flags & ~(uint64_t)NAMESPACES)
        return -EINVAL;
    pid = sys(__NR_clone3, &a, sizeof a);
    if (pid < 0)
        return pid;
    if (pid == 0) {
        use_own_page();
        wait_go(); /* the caller knows the new process */
        return 0;
    }
    hand_over(step, pid, 0, pidfd);
}

/* Close every descriptor but the process's own and the control socket. Slots can have numbers below the control socket's. */
long close_all(void)
{
    for (unsigned i = 0; i < MAX_SLOTS; i++) {
        if (slots[i] >= 0)
            sys(__NR_close, slots[i]);
        slots[i] = -1;
    }
    page = -1;
    return sys(__NR_close_range, control + 1, ~0u, 0);
}

/* Go on in a child for the last steps, under the filter. A filter cannot see the flags of clone3(2), so profiles deny it. Its
 * parent is the caller, which opens the pidfd: the pid is the child's until the caller
 * reaps it. */
long fork_last(uint32_t step)
{
    long pid = sys(__NR_clone, CLONE_PARENT | CLONE_PARENT_SETTID, 0, &progress->forked, 0, 0);

    if (pid < 0)
        return pid;
    if (pid == 0) {
        use_own_page();
        wait_go();
        return 0;
    }
    hand_over(step, pid, (int32_t)pid, -1);
}

/* Go on in a child. This process, the first one of a pid namespace, waits for the end of the child or of the process whose pidfd is
 * `ended`. When it ends, or is killed, the kernel kills what is left in the namespace. */
long guard(int ended)
{
    static const struct op_capset none = { 0 };
    struct pollfd ends[2] = { { ended, POLLIN, 0 }, { -1, POLLIN, 0 } };
    long n, pid = sys(__NR_clone, CLONE_PIDFD | SIGCHLD, 0, &ends[1].fd, 0, 0);
    unsigned low, high;

    if (pid <= 0)
        return pid;
    low = (unsigned)(ends[1].fd < ended ? ends[1].fd : ended);
    high = (unsigned)(ends[1].fd < ended ? ended : ends[1].fd);
    if ((low && sys(__NR_close_range, 0, low - 1, 0) < 0) || (high - low > 1 && sys(__NR_close_range, low + 1, high - 1, 0) < 0) ||
        sys(__NR_close_range, high + 1, ~0u, 0) < 0 || set_caps(&none) < 0)
        leave(255);
    do
        n = sys(__NR_ppoll, ends, 2, 0, 0, SIGNAL_BYTES);
    while (n == -EINTR);
    leave(0);
}

/* Load the seccomp filter. */
long load_filter(const struct op_seccomp *o)
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

/* Look for the program, to report a missing one before the container is created. The program's user may reach what the init cannot
 * (EACCES), and execve follows the links of a procfs (ELOOP): only execve can tell whether these exist. */
long lookup(int root, struct list candidates)
{
    const char *at = text(candidates.text);
    long worst = -ENOENT;
    for (uint64_t i = 0; i < candidates.count; i++, at += length(at) + 1) {
        struct statx st;
        long mode, fd = in_root(root, at, O_PATH);
        if (fd == -EACCES || fd == -ELOOP)
            return 0;
        if (fd == -ENOENT || fd == -ENOTDIR)
            continue;
        if (fd < 0)
            return fd;
        mode = mode_of((int)fd, &st);
        sys(__NR_close, fd);
        if (mode >= 0 && (mode & S_IFMT) == S_IFREG && mode & 0111)
            return 0;
        worst = -EACCES;
    }
    return worst;
}

static void fill_vector(struct list l, const char **vector)
{
    const char *at = text(l.text);
    for (uint64_t i = 0; i < l.count; i++, at += length(at) + 1)
        vector[i] = at;
    vector[l.count] = 0;
}

/* Make the vectors of execve(2): the arguments, and behind their end the environment. */
long make_vectors(struct list argv, struct list env, const char ***vectors)
{
    size_t words = argv.count + env.count + 2;
    long at = sys(__NR_mmap, 0, words * sizeof **vectors, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (at == 0)
        return -EPROTO; /* a filter that answers 0 */
    if ((unsigned long)at > -4096ul)
        return at;
    *vectors = (const char **)at;
    fill_vector(argv, *vectors);
    fill_vector(env, *vectors + argv.count + 1);
    return 0;
}

/* Become the program, in the first place where it is found. */
long become(const struct op_exec *o)
{
    const char *at = text(o->candidates.text), **argv;
    long worst = -ENOENT, err = make_vectors(o->argv, o->env, &argv);

    if (err < 0)
        return err;
    reset_signals();
    unblock_signals();
    sys(__NR_umask, process_umask);
    for (uint64_t i = 0; i < o->candidates.count; i++, at += length(at) + 1) {
        err = sys(__NR_execve, at, argv, argv + o->argv.count + 1);
        if (err == -EACCES)
            worst = err;
        else if (err != -ENOENT && err != -ENOTDIR)
            return err ? err : -EPROTO; /* 0 is the answer of a filter: the kernel does not return from a success */
    }
    return worst;
}
