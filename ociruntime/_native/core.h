/* Part of the init: its few globals, its reports, and the checked access to the program. */
#ifndef OCIRUNTIME_CORE_H
#define OCIRUNTIME_CORE_H
#include <asm/ioctls.h>
#include <asm/mman.h>
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

#include "op_table.h"
#include "sys.h"

#define AT_EMPTY 0x1000 /* AT_EMPTY_PATH */
#define IN_ROOT (RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
#define MAX_PATH 4096
#define MAX_LINKS 40
#define CLOSE_RANGE_CLOEXEC_ 4
#define MS_NOSUID_NODEV_NOEXEC (MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)

static int slots[MAX_SLOTS];
static int control;
static int page; /* the descriptor of `progress`, which the gate hands to the process that starts the container */
static const unsigned char *prog;
static uint32_t prog_len;
static unsigned umask_of_process; /* the caller's, until the plan says otherwise */
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
    end_process(status);
}

/* What happens is also written to a page that the caller shares: it can be read when the socket carries nothing, because the init was
 * killed or a seccomp filter denies the system calls for a report. */
static volatile struct progress *progress;

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
    long err = sys(__NR_sendmsg, control, &m, 0x4000 /* MSG_NOSIGNAL */);
    if (err < 0) {
        if (progress->error == 0)
            progress->error = (int32_t)-err;
        leave(255); /* the caller is gone, or reads the page */
    }
}

static void wait_go(void)
{
    char byte;
    long n = sys(__NR_read, control, &byte, 1);
    if (n < 0)
        progress->error = (int32_t)-n;
    if (n != 1)
        leave(255);
}

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
#endif
