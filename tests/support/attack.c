/*
 * A program that takes as much of one resource as it gets: `attack RESOURCE MOST [DIRECTORY]`.
 *
 * It prints how much it took, at most MOST, and what the kernel said then. The units are MiB, or files, queues and processes.
 * Processes can be such that wait for no signal, stopped, traced, in vfork, dead but not reaped, or in namespaces of their own.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { UNIT = 1 << 20 };

static char block[UNIT];
static const char *directory = "/";

static const char *name_of(const char *kind, long number)
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/%s-%ld", directory, kind, number);
    return path;
}

static int take_file(long number)
{
    int fd = open(name_of("file", number), O_CREAT | O_WRONLY | O_EXCL, 0600);
    return fd < 0 ? -1 : close(fd);
}

static int take_link(long number)
{
    static char first[4096];
    if (number == 0) {
        strcpy(first, name_of("link", 0));
        return take_file(0) || rename(name_of("file", 0), first);
    }
    return link(first, name_of("link", number));
}

static int take_symlink(long number)
{
    return symlink("a target of some length, which the kernel keeps in memory of its own", name_of("symlink", number));
}

static int write_block(int fd)
{
    ssize_t written = 0;
    for (size_t done = 0; done < UNIT; done += (size_t)written)
        if ((written = write(fd, block, UNIT - done)) <= 0)
            return -1;
    return 0;
}

static int take_disk(long number)
{
    static int fd = -1;
    if (number == 0)
        fd = open(name_of("big", 0), O_CREAT | O_WRONLY | O_EXCL, 0600);
    return fd < 0 ? -1 : write_block(fd);
}

static int touch(void *memory)
{
    return memory == MAP_FAILED ? -1 : (memset(memory, 1, UNIT), 0);
}

static int take_private(long number)
{
    (void)number;
    return touch(mmap(NULL, UNIT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

static int take_shared(long number)
{
    (void)number;
    return touch(mmap(NULL, UNIT, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
}

static int take_memfd(long number)
{
    static int fd = -1;
    if (number == 0)
        fd = memfd_create("attack", 0);
    return fd < 0 ? -1 : write_block(fd);
}

static int take_sysv(long number)
{
    (void)number;
    int id = shmget(IPC_PRIVATE, UNIT, IPC_CREAT | 0600);
    return id < 0 ? -1 : touch(shmat(id, NULL, 0));
}

static int take_queue(long number)
{
    (void)number;
    static struct {
        long type;
        char text[8000];
    } message = { .type = 1 };
    int id = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
    if (id < 0)
        return -1;
    while (msgsnd(id, &message, sizeof message.text, IPC_NOWAIT) == 0)
        continue;
    return errno == EAGAIN ? 0 : -1;
}

static int take_process(long number)
{
    (void)number;
    pid_t pid = fork();
    if (pid == 0) {
        pause();
        _exit(0);
    }
    return pid < 0 ? -1 : 0;
}

/* Wait until a child has stopped, as it does when it has what it wants. */
static int wait_for(pid_t pid, int options)
{
    int status;
    return pid < 0 || waitpid(pid, &status, options) != pid ? -1 : 0;
}

static int take_stopped(long number)
{
    (void)number;
    pid_t pid = fork();
    if (pid == 0)
        for (;;)
            raise(SIGSTOP);
    return wait_for(pid, WUNTRACED);
}

static int take_traced(long number)
{
    (void)number;
    pid_t pid = fork();
    if (pid == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
            _exit(1);
        for (;;)
            raise(SIGSTOP);
    }
    return wait_for(pid, 0);
}

static int take_zombie(long number)
{
    (void)number;
    siginfo_t info;
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    return pid < 0 ? -1 : waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT);
}

/* Read the byte by which a child says that it has what it wants. */
static int is_ready(const int *ends)
{
    char byte;
    close(ends[1]);
    ssize_t got = read(ends[0], &byte, 1);
    close(ends[0]);
    return got == 1 ? 0 : -1;
}

static int take_vfork(long number)
{
    (void)number;
    int ends[2];
    if (pipe(ends) < 0)
        return -1;
    pid_t pid = fork();
    if (pid == 0) {
        if (vfork() == 0)
            for (write(ends[1], "x", 1), close(ends[1]);;)
                pause(); /* the parent waits for it in the kernel */
        _exit(1);
    }
    return pid < 0 ? -1 : is_ready(ends);
}

static int take_namespace(long number)
{
    (void)number;
    int ends[2];
    if (pipe(ends) < 0)
        return -1;
    pid_t pid = fork();
    if (pid == 0) {
        if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID) < 0)
            _exit(1);
        for (int count = 0; count < 6; count++) /* each doubles the mounts */
            if (mount("/", directory, NULL, MS_BIND | MS_REC, NULL) < 0)
                _exit(1);
        for (write(ends[1], "x", 1), close(ends[1]);;)
            pause();
    }
    return pid < 0 ? -1 : is_ready(ends);
}

static int take_key(long number)
{
    return syscall(SYS_add_key, "user", name_of("key", number), "x", 1, -4 /* KEY_SPEC_USER_KEYRING */) < 0 ? -1 : 0;
}

static int take_watch(long number)
{
    static int fd = -1;
    if (number == 0)
        fd = inotify_init1(0);
    return fd < 0 || take_file(number) < 0 || inotify_add_watch(fd, name_of("file", number), IN_ALL_EVENTS) < 0 ? -1 : 0;
}

static int take_descriptor(long number)
{
    (void)number;
    return open("/", O_RDONLY | O_DIRECTORY) < 0 ? -1 : 0;
}

static int take_core(long number)
{
    (void)number;
    if (chdir(directory) < 0)
        return -1;
    memset(block, 1, UNIT);
    return raise(SIGSEGV);
}

static const struct {
    const char *name;
    int (*take)(long number);
} RESOURCES[] = {
    { "file", take_file },           { "link", take_link },       { "symlink", take_symlink },       { "disk", take_disk },
    { "private", take_private },     { "shared", take_shared },   { "memfd", take_memfd },           { "sysv", take_sysv },
    { "queue", take_queue },         { "process", take_process }, { "descriptor", take_descriptor }, { "core", take_core },
    { "stopped", take_stopped },     { "traced", take_traced },   { "zombie", take_zombie },         { "vfork", take_vfork },
    { "namespace", take_namespace }, { "key", take_key },         { "watch", take_watch },
};

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    long most = atol(argv[2]), number = 0;
    if (argc > 3)
        directory = argv[3];
    memset(block, 1, UNIT);
    for (size_t index = 0; index < sizeof RESOURCES / sizeof *RESOURCES; index++) {
        if (strcmp(RESOURCES[index].name, argv[1]) != 0)
            continue;
        errno = 0;
        while (number < most && RESOURCES[index].take(number) == 0)
            number++;
        printf("%ld %s\n", number, number < most ? strerror(errno) : "enough");
        return 0;
    }
    return 2;
}
