/* The init's sockets: its reports, the gate, and what the network namespace needs. */
#include <linux/if.h>
#include <linux/mman.h>
#include <linux/sockios.h>
#include <linux/time_types.h>
#include <sys/socket.h>

#include "init.h"

#define KERNEL_WORDS 512
/* In <linux/time.h>, which conflicts with <sys/socket.h>. */
#define CLOCK_MONOTONIC 1
#define MAX_STEPS 65536 /* more than the number of a step can be */

int control;
int page;
/* The caller shares this page and can read it when the socket carries nothing: when the init was killed, or when a seccomp filter
 * denies the system calls for a report. */
volatile struct progress *progress;
static int page_is_kept;
static uint32_t stamped; /* the steps below this number get the time at which they begin */

_Noreturn void leave(int status)
{
    end_process(status);
}

/* Send one message: the report, the kernel's own words if there are any, a descriptor if there is one. An error is on the page. */
long send_report(uint32_t kind, uint32_t step, int32_t value, int fd)
{
    struct report r = { kind, step, value, 0 };
    char words[KERNEL_WORDS];
    struct iovec parts[2] = { { &r, sizeof r }, { words, 0 } };
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof fd)];
    } along = { .head = { .cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
    struct msghdr message = { .msg_iov = parts, .msg_iovlen = 2 };
    long err;

    if (fd >= 0) {
        memcpy(CMSG_DATA(&along.head), &fd, sizeof fd);
        message.msg_control = &along;
        message.msg_controllen = sizeof along;
    }
    if (kind == REPORT_ERROR && kernel_log >= 0) {
        long n = sys(__NR_read, kernel_log, words, sizeof words);
        if (n > 0)
            parts[1].iov_len = (size_t)n;
    }
    err = sys(__NR_sendmsg, control, &message, MSG_NOSIGNAL);
    if (err < 0 && progress->error == 0)
        progress->error = (int32_t)-err; /* if the caller is not gone, it reads the page */
    return err;
}

void report(uint32_t kind, uint32_t step, int32_t value, int fd)
{
    if (send_report(kind, step, value, fd) < 0)
        leave(255);
}

/* Wait for the caller's byte. */
void wait_go(void)
{
    char byte;
    long n = sys(__NR_read, control, &byte, 1);
    if (n < 0)
        progress->error = (int32_t)-n;
    if (n != 1)
        leave(255);
}

/* Do not share the page of the progress with children. */
long keep_page(void)
{
    page_is_kept = 1;
    return sys(__NR_madvise, progress, sizeof *progress, MADV_DONTFORK);
}

/* In a child: write to a page of its own where its parent keeps the shared one. */
void use_own_page(void)
{
    static volatile struct progress own;
    if (page_is_kept) {
        progress = &own;
        stamped = 0;
    }
}

/* Map the whole page of the progress, which has room for the times of these steps if the caller wants them. */
long start_stamps(uint64_t steps)
{
    struct statx st;
    uint64_t size = sizeof *progress + steps * sizeof *progress->stamps;
    long err = mode_of(page, &st), at;

    if (err < 0)
        return err;
    if (steps > MAX_STEPS || st.stx_size < size)
        return -EINVAL;
    at = sys(__NR_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_SHARED, page, 0);
    if ((unsigned long)at > -4096ul)
        return at;
    progress = (void *)at; /* another mapping of the same page */
    stamped = (uint32_t)steps;
    stamp(progress->step);
    return 0;
}

/* Note when a step begins, by CLOCK_MONOTONIC in nanoseconds. */
void stamp(uint32_t step)
{
    struct __kernel_timespec now;
    if (step < stamped && sys(__NR_clock_gettime, CLOCK_MONOTONIC, &now) == 0)
        progress->stamps[step] = now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Wait for a connection, which gets the reports from then on. The listener is closed, so that a second one cannot come. */
long wait_for_start(uint32_t step, int listener)
{
    long peer;
    /* The pages of the program can be read again from the memfd: a waiting container needs next to no memory. */
    sys(__NR_madvise, prog, ((size_t)prog_len + 4095) & ~4095ull, MADV_DONTNEED);
    listen_to_signals();
    unblock_signals();
    sys(__NR_close, control); /* last, as it tells the caller that all this is done */
    peer = sys(__NR_accept4, listener, 0, 0, SOCK_CLOEXEC);
    if (peer < 0) {
        progress->error = (int32_t)-peer;
        leave(255);
    }
    sys(__NR_close, listener);
    control = (int)peer;
    report(REPORT_FD, step, 0, page);
    return sys(__NR_close, page);
}

/* A socket of the container's network namespace, for the caller. */
long hand_out_socket(uint32_t step, int family, int type, int protocol)
{
    long fd = sys(__NR_socket, family, type | SOCK_CLOEXEC, protocol);
    if (fd < 0)
        return fd;
    report(REPORT_FD, step, 0, (int)fd);
    wait_go();
    return sys(__NR_close, fd);
}

/* Bring a network device up that has no other flags to keep: the loopback of a new namespace. */
long link_up(const char *name)
{
    struct ifreq request = { .ifr_flags = IFF_UP };
    size_t n = length(name);
    long err, fd;

    if (n >= sizeof request.ifr_name)
        return -ENAMETOOLONG;
    memcpy(request.ifr_name, name, n);
    fd = sys(__NR_socket, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return fd;
    err = sys(__NR_ioctl, fd, SIOCSIFFLAGS, &request);
    sys(__NR_close, fd);
    return err;
}
