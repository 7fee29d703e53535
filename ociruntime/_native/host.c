/* What the calling process needs of the kernel beyond Python: the launch of the init, and the mount API. Every function returns the
 * kernel's value, or -errno; none prints, allocates or keeps state. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/close_range.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <linux/stat.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host.h"
#include "op_table.h"
#include "sys.h"

#define CHILD_STACK 32768

static _Noreturn void give_up(int control, long err)
{
    struct report r = { REPORT_ERROR, 0, (int32_t)-err, 0 };
    sys(__NR_sendto, control, &r, sizeof r, MSG_NOSIGNAL, 0, 0);
    end_process(127);
}

static char *decimal(char *end, unsigned n)
{
    *--end = 0;
    do
        *--end = (char)('0' + n % 10);
    while (n /= 10);
    return end;
}

static long result(long ret)
{
    return ret < 0 ? -errno : ret;
}

/* Make a file in memory that cannot be changed, and open it for reading. */
static long sealed_file(const char *name, const char *content, size_t size)
{
    char path[64];
    long ret = 0;
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0)
        return -errno;
    while (size > 0 && (ret = result(write(fd, content, size))) > 0) {
        content += ret;
        size -= (size_t)ret;
    }
    if (ret >= 0)
        ret = result(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE));
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (ret >= 0)
        ret = result(open(path, O_RDONLY | O_CLOEXEC));
    close(fd);
    return ret;
}

/* Make what a launch needs: both ends of the control socket, the caller's first, the progress page and the program. */
int oci_launch_files(const char *program, size_t size, size_t page, int *fds)
{
    long err = result(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds));

    if (err < 0)
        return (int)err;
    err = fds[2] = memfd_create("oci-progress", MFD_CLOEXEC);
    if (err < 0)
        err = -errno;
    else
        err = result(ftruncate(fds[2], (off_t)page));
    if (err >= 0)
        err = fds[3] = (int)sealed_file("oci-plan", program, size);
    if (err < 0)
        for (int i = 0; i < 3; i++)
            if (fds[i] >= 0)
                close(fds[i]);
    return err < 0 ? (int)err : 0;
}

/* Runs between clone3 and execveat, on a stack of its own in the memory of the caller, whose thread waits: raw system calls only,
 * and nothing is written but this stack and the launch structure. */
static void child(void *arg)
{
    struct oci_launch *l = arg;
    int base = 3 + l->preserve, count = 5 + l->n_inputs, top = base + 2 + l->n_inputs;
    char numbers[2][12], *argv[4] = { (char *)"oci-init", 0, 0, 0 }, *envp[1] = { 0 };
    long err;

    for (int i = 0; i < l->n_kept; i++)
        if ((err = sys(__NR_fcntl, l->kept[i], F_SETFD, 0)) < 0)
            give_up(l->control, err);
    /* Move all descriptors out of the way first: one may have the number that another must get. */
    if ((err = sys(__NR_fcntl, l->init, F_DUPFD_CLOEXEC, top)) < 0)
        give_up(l->control, err);
    l->init = (int)err;
    for (int i = 0; i < count; i++) {
        if ((err = sys(__NR_fcntl, l->fds[i], F_DUPFD_CLOEXEC, top)) < 0)
            give_up(l->control, err);
        l->fds[i] = (int)err;
    }
    for (int i = 0; i < count; i++)
        if ((err = sys(__NR_dup3, l->fds[i], i < 3 ? i : base + i - 3, 0)) < 0)
            give_up(l->fds[3], err);
    if ((err = sys(__NR_close_range, top, ~0u, CLOSE_RANGE_CLOEXEC)) < 0)
        give_up(base, err);
    argv[1] = decimal(numbers[0] + sizeof numbers[0], (unsigned)base);
    argv[2] = decimal(numbers[1] + sizeof numbers[1], (unsigned)base + 1);
    give_up(base, sys(__NR_execveat, l->init, "", argv, envp, AT_EMPTY_PATH));
}

#if defined(__x86_64__)
/* clone3 with a stack for the child, which calls run(arg) on it and shares this process's memory. */
static long clone_child(struct clone_args *a, void (*run)(void *), void *arg, char *stack)
{
    long ret;
    register void *r12 __asm__("r12") = (void *)run;
    register void *r13 __asm__("r13") = arg;

    a->flags |= CLONE_VM;
    a->stack = (uint64_t)(uintptr_t)stack;
    a->stack_size = CHILD_STACK;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "mov %%r13, %%rdi\n\t"
                     "call *%%r12\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(ret)
                     : "a"(__NR_clone3), "D"(a), "S"(sizeof *a), "r"(r12), "r"(r13)
                     : "rcx", "r11", "memory");
    return ret;
}
#else
/* Without an entry for this architecture the child gets a copy of the memory, which takes longer with a big heap. */
static long clone_child(struct clone_args *a, void (*run)(void *), void *arg, char *stack)
{
    long ret = sys(__NR_clone3, a, sizeof *a);
    (void)stack;
    if (ret == 0)
        run(arg);
    return ret;
}
#endif

int oci_launch(struct oci_launch *l)
{
    sigset_t all, before;
    struct clone_args a = { 0 };
    char stack[CHILD_STACK] __attribute__((aligned(16)));
    long ret;

    l->pidfd = -1;
    l->pid = 0;
    a.flags = l->flags | CLONE_VFORK | CLONE_PIDFD;
    a.pidfd = (uint64_t)(uintptr_t)&l->pidfd;
    a.exit_signal = SIGCHLD;
    if (l->cgroup >= 0) {
        a.flags |= CLONE_INTO_CGROUP;
        a.cgroup = (uint64_t)l->cgroup;
    }
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    ret = clone_child(&a, child, l, stack);
    pthread_sigmask(SIG_SETMASK, &before, 0);
    if (ret > 0)
        l->pid = (int)ret;
    return ret < 0 ? (int)ret : 0;
}

/* Lives until it is killed, or until its creator is gone, and the other end of the pipe with it. */
static void linger(void *arg)
{
    const int *ends = arg;
    char byte;
    sys(__NR_close, ends[1]);
    while (sys(__NR_read, ends[0], &byte, 1) == -EINTR)
        ;
    end_process(0);
}

static long write_map(pid_t pid, const char *file, const char *map)
{
    char path[64];
    long err;
    int fd;

    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, file);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    err = result(write(fd, map, strlen(map)));
    close(fd);
    return err;
}

/* Make a user namespace with these maps and without processes, for mounts, and return its descriptor. Its first process shares this
 * process's memory and ends before this returns. */
int oci_user_namespace(const char *uid_map, const char *gid_map)
{
    char path[64], stack[CHILD_STACK] __attribute__((aligned(16)));
    struct clone_args a = { .flags = CLONE_NEWUSER | CLONE_PIDFD };
    sigset_t all, before;
    siginfo_t end;
    int ends[2], pidfd = -1;
    long pid, ret;

    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    a.pidfd = (uint64_t)(uintptr_t)&pidfd;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid = clone_child(&a, linger, ends, stack);
    pthread_sigmask(SIG_SETMASK, &before, 0);
    ret = pid;
    if (pid > 0)
        ret = write_map((pid_t)pid, "uid_map", uid_map);
    if (ret >= 0)
        ret = write_map((pid_t)pid, "gid_map", gid_map);
    if (ret >= 0) {
        snprintf(path, sizeof path, "/proc/%d/ns/user", (int)pid);
        ret = result(open(path, O_RDONLY | O_CLOEXEC));
    }
    close(ends[1]);
    close(ends[0]);
    if (pid > 0) {
        syscall(__NR_pidfd_send_signal, pidfd, SIGKILL, 0, 0);
        while (waitid(P_PIDFD, (id_t)pidfd, &end, WEXITED | __WALL) < 0 && errno == EINTR)
            ;
        close(pidfd);
    }
    return (int)ret;
}

/* Receive one report and return its size, 0 at the end of the connection. "passed" gets the descriptor that comes along, or -1. It
 * is not a Python call, as a report is a C structure, and an interruption between two lines of Python would lose the descriptor. */
int oci_receive(int control, struct oci_report *report, int *passed)
{
    struct iovec part = { report, offsetof(struct oci_report, words) + sizeof report->words - 1 };
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } along;
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &along, .msg_controllen = sizeof along };
    ssize_t size = recvmsg(control, &message, MSG_CMSG_CLOEXEC);
    struct cmsghdr *head = size < 0 ? NULL : CMSG_FIRSTHDR(&message);

    *passed = -1;
    if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS)
        memcpy(passed, CMSG_DATA(head), sizeof *passed);
    return (int)result(size);
}

int oci_fsopen(const char *fstype)
{
    return (int)result(syscall(__NR_fsopen, fstype, FSOPEN_CLOEXEC));
}

int oci_fsconfig(int fs, unsigned cmd, const char *key, const char *value, int aux)
{
    return (int)result(syscall(__NR_fsconfig, fs, cmd, key, value, aux));
}

int oci_fsmount(int fs, unsigned attrs)
{
    return (int)result(syscall(__NR_fsmount, fs, FSMOUNT_CLOEXEC, attrs));
}

int oci_open_tree(int dir, const char *path, unsigned flags)
{
    return (int)result(syscall(__NR_open_tree, dir, path, flags));
}

struct copy {
    int mounts, users, dir;
    volatile int *made;
};

static void copy_mount(void *arg)
{
    const struct copy *c = arg;
    long err = sys(__NR_setns, c->users, CLONE_NEWUSER);
    if (err >= 0)
        err = sys(__NR_setns, c->mounts, CLONE_NEWNS);
    if (err >= 0)
        err = sys(__NR_open_tree, c->dir, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
    *c->made = (int)err;
    end_process(0);
}

/* Copy a mount of another mount namespace, whose user namespace is "users", and return the descriptor of the detached copy. A
 * process that shares this one's descriptors enters the namespaces, so that the caller stays where it is. */
int oci_copy_mount(int mounts, int users, int dir)
{
    char stack[CHILD_STACK] __attribute__((aligned(16)));
    struct clone_args a = { .flags = CLONE_FILES | CLONE_VFORK | CLONE_PIDFD };
    volatile int *made = mmap(0, sizeof *made, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct copy c = { mounts, users, dir, made };
    sigset_t all, before;
    siginfo_t end;
    int pidfd = -1;
    long ret;

    if (made == MAP_FAILED)
        return -errno;
    *made = -ECHILD;
    a.pidfd = (uint64_t)(uintptr_t)&pidfd;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    ret = clone_child(&a, copy_mount, &c, stack);
    pthread_sigmask(SIG_SETMASK, &before, 0);
    if (ret > 0) {
        while (waitid(P_PIDFD, (id_t)pidfd, &end, WEXITED | __WALL) < 0 && errno == EINTR)
            ;
        close(pidfd);
        ret = *made;
    }
    munmap((void *)made, sizeof *made);
    return (int)ret;
}

/* Start a process that asks a filesystem for the status of a file, and return its pidfd. One in user space may never answer, and
 * only SIGKILL ends the wait. The process shares the descriptors of this one, so that it keeps none of them open, and ends with
 * this thread. It sends no signal; wait for it with __WALL. */
int oci_ask(int fd)
{
    int pidfd = -1;
    struct clone_args a = { .flags = CLONE_FILES | CLONE_PIDFD, .pidfd = (uint64_t)(uintptr_t)&pidfd };
    struct statx found;
    sigset_t all, before;
    long ret;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    ret = sys(__NR_clone3, &a, sizeof a);
    if (ret == 0) {
        sys(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        sys(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &found);
        end_process(0);
    }
    pthread_sigmask(SIG_SETMASK, &before, 0);
    return ret < 0 ? (int)ret : pidfd;
}

int oci_move_mount(int from, const char *from_path, int to, const char *to_path, unsigned flags)
{
    return (int)result(syscall(__NR_move_mount, from, from_path, to, to_path, flags));
}

int oci_mount_setattr(int fd, unsigned flags, uint64_t set, uint64_t clear, uint64_t propagation)
{
    struct mount_attr attr = { .attr_set = set, .attr_clr = clear, .propagation = propagation };
    return (int)result(syscall(__NR_mount_setattr, fd, "", flags | AT_EMPTY_PATH, &attr, sizeof attr));
}

/* Mount by mount(2), whose options may be longer than those of fsconfig(2). */
int oci_mount(const char *fstype, const char *target, uint64_t flags, const char *data)
{
    return (int)result(syscall(__NR_mount, fstype, target, fstype, flags, data));
}

int oci_umount(const char *path, int flags)
{
    return (int)result(syscall(__NR_umount2, path, flags));
}

int oci_openat2(int dir, const char *path, uint64_t flags, uint64_t resolve)
{
    struct open_how how = { .flags = flags, .resolve = resolve };
    return (int)result(syscall(__NR_openat2, dir, path, &how, sizeof how));
}

/* Write everything of the filesystem that a file lies on to its device. */
int oci_syncfs(int fd)
{
    return (int)result(syncfs(fd));
}

/* Make a cgroup whose files every user of the container can read, whatever the umask. */
static long make_cgroup(const char *path)
{
    struct stat st;
    long err;

    if (mkdir(path, 0755) < 0)
        return -errno;
    err = result(stat(path, &st));
    if (err >= 0 && (st.st_mode & 07777) != 0755)
        err = result(chmod(path, 0755));
    if (err < 0)
        rmdir(path);
    return err;
}

int oci_make_cgroup(const char *path)
{
    return (int)make_cgroup(path);
}

/* Read a file of a cpuset and return the size of its content, 0 for an empty set. */
static long read_set(const char *directory, size_t length, const char *file, char *set, size_t size)
{
    char path[PATH_MAX];
    long n;
    int fd;

    if ((size_t)snprintf(path, sizeof path, "%.*s/%s", (int)length, directory, file) >= sizeof path)
        return -ENAMETOOLONG;
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    n = result(read(fd, set, size));
    close(fd);
    return n == (long)size ? -EFBIG : n == 1 && set[0] == '\n' ? 0 : n;
}

/* Give a new v1 cgroup the CPUs and memory nodes of its parent, which must have some. */
static long inherit_cpuset(const char *path)
{
    static const char *const files[] = { "cpuset.cpus", "cpuset.mems" };
    char set[4096], file[PATH_MAX];

    for (int i = 0; i < 2; i++) {
        long n = read_set(path, strlen(path), files[i], set, sizeof set);
        int fd;
        if (n != 0) {
            if (n < 0)
                return n;
            continue;
        }
        n = read_set(path, (size_t)(strrchr(path, '/') - path), files[i], set, sizeof set);
        if (n <= 0)
            return n < 0 ? n : -ENODATA;
        snprintf(file, sizeof file, "%s/%s", path, files[i]);
        fd = open(file, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0)
            return -errno;
        n = result(write(fd, set, (size_t)n));
        close(fd);
        if (n < 0)
            return n;
    }
    return 0;
}

/* Remove a cgroup that has no children and no processes, and nothing else: its parent must be a directory of a cgroup filesystem,
 * whose entries are cgroups unless something is mounted on them, and the kernel does not remove those. */
static long remove_cgroup(const char *path)
{
    const char *name = strrchr(path, '/');
    char parent[PATH_MAX];
    struct statfs found;
    long ret;
    int fd;

    if (!name || name == path || (size_t)(name - path) >= sizeof parent)
        return -EINVAL;
    memcpy(parent, path, (size_t)(name - path));
    parent[name - path] = 0;
    fd = open(parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ret = result(fstatfs(fd, &found));
    if (ret >= 0 && found.f_type != CGROUP_SUPER_MAGIC && found.f_type != CGROUP2_SUPER_MAGIC)
        ret = -EXDEV;
    if (ret >= 0)
        ret = result(unlinkat(fd, name + 1, AT_REMOVEDIR));
    close(fd);
    return ret;
}

/* Whether a cgroup does not exist, while its parent does. */
static long is_new(const char *path)
{
    const char *name = strrchr(path, '/');
    char parent[PATH_MAX];
    struct stat st;

    if (!name || name == path || (size_t)(name - path) >= sizeof parent)
        return -EINVAL;
    if (stat(path, &st) == 0)
        return -EEXIST;
    if (errno != ENOENT)
        return -errno;
    memcpy(parent, path, (size_t)(name - path));
    parent[name - path] = 0;
    return result(stat(parent, &st));
}

static long write_value(int fd, const char *value)
{
    long n = result(write(fd, value, strlen(value)));
    return n < 0 ? n : (size_t)n == strlen(value) ? 0 : -EIO;
}

/* Carry out operations on cgroups until one fails. Return how many were. */
int oci_cgroups(const char *ops, int count)
{
    int done = 0, file = -1;

    for (long err = 0; done < count; done++, ops += strlen(ops) + 1) {
        const char *operand = ops + 1;
        switch (*ops) {
        case OCI_CGROUP_NEW:
            err = is_new(operand);
            break;
        case OCI_CGROUP_MAKE:
            err = make_cgroup(operand);
            break;
        case OCI_CGROUP_MAKE_CPUSET:
            err = make_cgroup(operand);
            if (err >= 0 && (err = inherit_cpuset(operand)) < 0)
                rmdir(operand);
            break;
        case OCI_CGROUP_OPEN:
            if (file >= 0)
                close(file);
            err = file = open(operand, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
            break;
        case OCI_CGROUP_WRITE:
            err = write_value(file, operand);
            break;
        case OCI_CGROUP_REMOVE:
            err = remove_cgroup(operand);
            if (err == -ENOENT)
                err = 0;
            break;
        default:
            err = -EINVAL;
        }
        if (err < 0)
            break;
    }
    if (file >= 0)
        close(file);
    return done;
}

/* Open an inotify descriptor that watches one file. */
int oci_inotify(const char *path, unsigned mask)
{
    int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (fd < 0 || inotify_add_watch(fd, path, mask) >= 0)
        return (int)result(fd);
    int err = -errno;
    close(fd);
    return err;
}

/* Give the memory of a part of a memfd back. */
int oci_forget(int fd, uint64_t begin, uint64_t size)
{
    return (int)result(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)begin, (off_t)size));
}

int oci_bpf(int cmd, void *attr, unsigned size)
{
    return (int)result(syscall(__NR_bpf, cmd, attr, size));
}

/* When a file was made, in nanoseconds since 1970; 0 where the filesystem does not record it. */
int64_t oci_birth(int fd)
{
    struct statx found;
    if (syscall(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_BTIME, &found) < 0)
        return -errno;
    return found.stx_mask & STATX_BTIME ? found.stx_btime.tv_sec * INT64_C(1000000000) + found.stx_btime.tv_nsec : 0;
}

/* Whether this process has openat2(2): a kernel before 5.6 does not, and a seccomp filter can hide it. */
int oci_has_openat2(void)
{
    return syscall(__NR_openat2, -1, NULL, NULL, 0) >= 0 || errno != ENOSYS;
}
