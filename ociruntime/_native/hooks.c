/* The init's hooks: programs of the config that run in the container's namespaces (config.md#posix-platform-hooks). */
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/mman.h>
#include <linux/poll.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/signal.h>
#include <linux/time_types.h>

#include "init.h"

#define WAIT_MS 100
#define KEPT_OUTPUT 65536

/* In the child. A failure goes to the shared page. */
static _Noreturn void become_hook(const struct op_hook *o, volatile int32_t *failure)
{
    const char **argv = 0;
    long err = make_vectors(o->argv, o->env, &argv);

    if (err >= 0)
        err = sys(__NR_setpgid, 0, 0);
    if (err >= 0)
        err = sys(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (err >= 0)
        err = sys(__NR_lseek, fd_of(o->state), 0, SEEK_SET);
    if (err >= 0) /* begins the output of each hook */
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
        sys(__NR_umask, process_umask);
        err = sys(__NR_execve, text(o->path), argv, argv + o->argv.count + 1);
    }
    *failure = (int32_t)err;
    leave(127);
}

/* Give the memory of a hook's old output back: errors show its end only. The offset is shared with the hook. */
static void forget_output(int output, long *begin)
{
    long end = sys(__NR_lseek, output, 0, SEEK_CUR);
    if (end - *begin > 2 * KEPT_OUTPUT &&
        sys(__NR_fallocate, output, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, *begin, end - KEPT_OUTPUT - *begin) >= 0)
        *begin = end - KEPT_OUTPUT;
}

/* Run a hook and wait for it; report a failure or the end of its time, and end. A filter may be loaded: old system calls only. */
long run_hook(uint32_t step, const struct op_hook *o)
{
    volatile int32_t *failure =
        (volatile int32_t *)sys(__NR_mmap, 0, sizeof *failure, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint64_t left = o->timeout; /* in milliseconds; 0 for no limit */
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
    sys(__NR_setpgid, pid, pid); /* fails when the hook was faster */
    for (;;) {
        uint64_t look = o->timeout && left < WAIT_MS ? left : WAIT_MS;
        struct pollfd p = { pidfd, POLLIN, 0 };
        struct __kernel_timespec t = { 0, (long long)look * 1000000 };
        err = sys(__NR_ppoll, &p, 1, &t, 0, 8); /* restarted by the kernel: no signal has a handler that returns */
        if (err == 0 && t.tv_nsec)
            err = -EPERM; /* a filter that answers 0: the kernel writes back that no time is left */
        if (err < 0) { /* without the wait the hook would have no time limit */
            sys(__NR_kill, -pid, SIGKILL);
            return err;
        }
        if (err > 0)
            break;
        forget_output(fd_of(o->output), &begin);
        if (o->timeout && (left -= look) == 0) {
            late = 1;
            sys(__NR_kill, -pid, SIGKILL);
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
    return sys(__NR_munmap, failure, sizeof *failure);
}
