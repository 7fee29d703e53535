/* The init as a server of files: it carries out requests of its caller with the rights that it has, one after the other.
 *
 * It has joined the namespaces of a container in which another process may change every path at any moment. So a path is resolved
 * inside the root of its slot, and a file is opened in two steps: with O_PATH, which calls no driver and never blocks, and then,
 * if it is a regular file or a directory, through that descriptor. The caller reads no file of the container itself: a filesystem
 * that a container serves can delay this process, but not the caller.
 */
#include <linux/fs.h>
#include <linux/poll.h>
#include <linux/stat.h>
#include <linux/time_types.h>
#include <sys/socket.h>

#include "init.h"

#define SIGNAL_BYTES sizeof(uint64_t)

static struct {
    struct request head;
    char tail[MAX_PATH + SERVED];
} request;

static struct {
    struct answer head;
    union {
        struct statx status;
        char data[SERVED];
    };
} answer;

/* A request: the name, which ends in NUL, and the bytes behind it. */
struct parts {
    const char *name, *data;
    size_t size;
};

static int split(size_t received, struct parts *p)
{
    const struct request *r = &request.head;
    size_t room;

    if (received < sizeof *r || r->slot >= MAX_SLOTS || r->out >= MAX_SLOTS)
        return 0;
    room = received - sizeof *r;
    if (r->name == 0 || r->name > room || request.tail[r->name - 1] || length(request.tail) != r->name - 1)
        return 0;
    p->name = request.tail;
    p->data = request.tail + r->name;
    p->size = room - r->name;
    return 1;
}

/* Note the status of a file in the answer; its size there is that of the structure. */
static long with_status(long fd, long *size)
{
    long mode = mode_of((int)fd, &answer.status);
    if (mode >= 0) {
        answer.head.status = 1;
        *size = sizeof answer.status;
    }
    return mode;
}

static long keep_with_status(long fd, long *size)
{
    long mode = fd < 0 ? fd : with_status(fd, size);
    if (mode < 0) {
        if (fd >= 0)
            sys(__NR_close, fd);
        return mode;
    }
    return keep(request.head.out, fd);
}

static long open_requested(int dir, const char *name, long *size)
{
    const struct request *r = &request.head;
    const unsigned made = O_CREAT | O_EXCL | O_NOFOLLOW;

    if (!(r->flags & (O_PATH | O_DIRECTORY)) && (r->flags & made) != made)
        return -EPERM;
    return keep_with_status(open_path(dir, name, r->flags, r->mode, r->a), size);
}

/* "self/fd/" and the number of a descriptor. The working directory is the procfs of the caller. */
static void proc_path(int fd, char path[24])
{
    char digits[12];
    int n = 0, at = 8;

    memcpy(path, "self/fd/", 8);
    do
        digits[n++] = (char)('0' + fd % 10);
    while (fd /= 10);
    while (n)
        path[at++] = digits[--n];
    path[at] = 0;
}

static long reopen(int fd, int proc, long *size)
{
    char path[24];
    struct statx st;
    long mode = mode_of(fd, &st);

    if (mode < 0)
        return mode;
    if ((mode & S_IFMT) != S_IFREG && (mode & S_IFMT) != S_IFDIR)
        return -EINVAL;
    proc_path(fd, path);
    return keep_with_status(sys(__NR_openat, proc, path, request.head.flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC), size);
}

/* Go to the next data; return the length of the hole before them. Filesystems without holes have data everywhere. */
static long skip_hole(int fd)
{
    long at = sys(__NR_lseek, fd, 0, SEEK_CUR), data = at < 0 ? at : sys(__NR_lseek, fd, at, SEEK_DATA);

    if (at < 0)
        return at;
    if (data == -ENXIO) { /* there is no more data: at the end, or in a last hole */
        struct statx st;
        long mode = mode_of(fd, &st);
        if (mode < 0)
            return mode;
        data = (uint64_t)at < st.stx_size ? (long)st.stx_size : at;
    }
    if (data <= at)
        return 0;
    data = sys(__NR_lseek, fd, data, SEEK_SET);
    return data < 0 ? data : data - at;
}

/* Read the next bytes, or tell the length of the hole before them. */
static long read_part(int fd, long *size)
{
    uint64_t most = request.head.a < SERVED ? request.head.a : SERVED;
    long n = skip_hole(fd);

    if (n) {
        answer.head.value = n < 0 ? 0 : (uint64_t)n;
        return n < 0 ? n : 0;
    }
    n = sys(__NR_read, fd, answer.data, most);
    if (n > 0)
        *size = n;
    return n;
}

/* Copy the next bytes, or the hole before them, to another file, and tell how many. */
static long copy_part(int from, int to)
{
    long at, end, n = skip_hole(from);

    if (n > 0 && (at = sys(__NR_lseek, to, n, SEEK_CUR)) < 0)
        return at;
    if (n == 0) {
        at = sys(__NR_lseek, from, 0, SEEK_CUR);
        end = sys(__NR_lseek, from, at, SEEK_HOLE);
        if (at < 0 || (n = sys(__NR_lseek, from, at, SEEK_SET)) < 0)
            return at < 0 ? at : n;
        n = end > at && (uint64_t)(end - at) < request.head.a ? end - at : (long)request.head.a;
        n = sys(__NR_sendfile, to, from, 0, n);
    }
    answer.head.value = n < 0 ? 0 : (uint64_t)n;
    return n;
}

static long write_all(int fd, const char *data, size_t size)
{
    while (size) {
        long n = sys(__NR_write, fd, data, size);
        if (n <= 0)
            return n < 0 ? n : -EIO;
        data += n;
        size -= (size_t)n;
    }
    return 0;
}

/* The data as a string. */
static const char *second_name(const struct parts *p)
{
    static char name[MAX_PATH];
    memcpy(name, p->data, p->size);
    name[p->size] = 0;
    return name;
}

static long touch(int fd, const char *name)
{
    struct __kernel_timespec times[2] = { { request.head.a, request.head.b }, { request.head.a, request.head.b } };
    return sys(__NR_utimensat, fd, name[0] ? name : 0, times, name[0] ? AT_SYMLINK_NOFOLLOW : 0);
}

/* The extended attributes of a file, also of one that is open with O_PATH: their names, or one of them. */
static long attributes(int fd, const char *name, long *size)
{
    char path[24];
    long n;

    proc_path(fd, path);
    n = name[0] ? sys(__NR_getxattr, path, name, answer.data, SERVED) : sys(__NR_listxattr, path, answer.data, SERVED);
    if (n > 0)
        *size = n;
    return n;
}

static long set_attribute(int fd, const struct parts *p)
{
    char path[24];
    proc_path(fd, path);
    return sys(__NR_setxattr, path, p->name, p->data, p->size, 0);
}

/* What getdents64(2) fills. */
struct dirent64 {
    uint64_t inode, offset;
    uint16_t length;
    uint8_t type;
    char name[];
};

/* The beginning of an entry in an answer, before its names. */
struct entry {
    uint32_t length, has_more;
    char status[STATUS];
};

/* The sizes of the names of attributes in an entry, and of the directory entries that are read at once: each has 24 bytes or more.
 */
#define ATTRIBUTES 512
#define ENTRIES (SERVED / 32)
_Static_assert(sizeof(struct entry) + 5 + ATTRIBUTES <= 32 * 24 && STATUS <= sizeof(struct statx),
               "the entries fit into an answer");

/* Add an entry of a directory to the answer, unless it has just been removed. */
static long add_entry(int dir, const char *name, long *size)
{
    struct statx st;
    struct entry head;
    char path[24], *to = answer.data + *size;
    size_t name_size = length(name) + 1;
    long mode, n, fd = sys(__NR_openat, dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);

    if (fd < 0)
        return fd == -ENOENT ? 0 : fd;
    if ((size_t)*size + sizeof head + name_size + ATTRIBUTES > SERVED)
        return -EPROTO;
    mode = mode_of((int)fd, &st);
    proc_path((int)fd, path);
    n = sys(__NR_listxattr, path, to + sizeof head + name_size, ATTRIBUTES);
    sys(__NR_close, fd);
    if (mode < 0)
        return mode;
    if (n < 0 && n != -EOPNOTSUPP && n != -ERANGE)
        return n;
    head.length = (uint32_t)(sizeof head + name_size + (n > 0 ? (size_t)n : 0));
    head.has_more = n == -ERANGE;
    memcpy(head.status, &st, STATUS);
    memcpy(to, &head, sizeof head);
    memcpy(to + sizeof head, name, name_size);
    *size += head.length;
    return 0;
}

/* Read the next entries of a directory, with the status of each. */
static long read_entries(int dir, long *size)
{
    static _Alignas(struct dirent64) char entries[ENTRIES];
    const struct dirent64 *e;
    long n = sys(__NR_getdents64, dir, entries, sizeof entries);

    for (long at = 0; at < n; at += e->length) {
        e = (const void *)(entries + at);
        if (e->name[0] != '.' || (e->name[1] && (e->name[1] != '.' || e->name[2]))) {
            long err = add_entry(dir, e->name, size);
            if (err < 0)
                return err;
        }
    }
    answer.head.value = n < 0 ? 0 : (uint64_t)n;
    return n;
}

/* Carry out a request; the size of the answer's data goes to *size. */
static long answer_call(const struct parts *p, int proc, long *size)
{
    const struct request *r = &request.head;
    int fd = slots[r->slot];
    long n;

    if (fd < 0)
        return -EBADF;
    switch (r->call) {
    case CALL_OPEN:
        return open_requested(fd, p->name, size);
    case CALL_REOPEN:
        return reopen(fd, proc, size);
    case CALL_CLOSE:
        slots[r->slot] = -1;
        return sys(__NR_close, fd);
    case CALL_READ:
        return read_part(fd, size);
    case CALL_WRITE:
        return write_all(fd, p->data, p->size);
    case CALL_SKIP:
        n = sys(__NR_lseek, fd, r->a, SEEK_CUR);
        return n < 0 ? n : 0;
    case CALL_TRUNCATE:
        n = sys(__NR_lseek, fd, 0, SEEK_CUR);
        return n < 0 ? n : sys(__NR_ftruncate, fd, n);
    case CALL_LIST:
        n = sys(__NR_getdents64, fd, answer.data, SERVED);
        if (n > 0)
            *size = n;
        return n;
    case CALL_ENTRIES:
        return read_entries(fd, size);
    case CALL_MKDIR:
        return sys(__NR_mkdirat, fd, p->name, r->mode);
    case CALL_REMOVE:
        return sys(__NR_unlinkat, fd, p->name, r->flags);
    case CALL_SYMLINK:
        return p->size < MAX_PATH ? sys(__NR_symlinkat, second_name(p), fd, p->name) : -ENAMETOOLONG;
    case CALL_LINK:
        if (slots[r->out] < 0)
            return -EBADF;
        return p->size < MAX_PATH ? sys(__NR_linkat, slots[r->out], second_name(p), fd, p->name, 0) : -ENAMETOOLONG;
    case CALL_READLINK:
        n = sys(__NR_readlinkat, fd, "", answer.data, SERVED);
        if (n > 0)
            *size = n;
        return n;
    case CALL_CHMOD:
        return sys(__NR_fchmod, fd, r->mode);
    case CALL_TOUCH:
        return touch(fd, p->name);
    case CALL_ATTRIBUTES:
        return attributes(fd, p->name, size);
    case CALL_SET_ATTRIBUTE:
        return set_attribute(fd, p);
    case CALL_CHOWN:
        return sys(__NR_fchownat, fd, p->name, r->a, r->b, AT_SYMLINK_NOFOLLOW);
    case CALL_MKNOD:
        return sys(__NR_mknodat, fd, p->name, r->mode, device_number(r->a >> 32, r->a & 0xffffffff));
    case CALL_CLONE:
        return slots[r->out] < 0 ? -EBADF : sys(__NR_ioctl, slots[r->out], FICLONE, fd);
    case CALL_COPY:
        return slots[r->out] < 0 ? -EBADF : copy_part(fd, slots[r->out]);
    default:
        return -EPROTO;
    }
}

/* Serve until the peer closes its end or the process of "end" has ended. */
_Noreturn void serve(int peer, int end, int proc)
{
    if (sys(__NR_fchdir, proc) < 0) /* descriptors are named by paths relative to it */
        leave(255);
    sys(__NR_close, control); /* tells the caller that all steps are done */
    for (;;) {
        struct pollfd ready[2] = { { peer, POLLIN, 0 }, { end, POLLIN, 0 } };
        struct parts parts;
        long err, size = 0, n = sys(__NR_ppoll, ready, 2, 0, 0, SIGNAL_BYTES);

        if (n < 0 || ready[1].revents)
            leave(0);
        n = sys(__NR_recvfrom, peer, &request, sizeof request, 0, 0, 0);
        if (n <= 0)
            leave(0);
        memset(&answer.head, 0, sizeof answer.head);
        err = split((size_t)n, &parts) ? answer_call(&parts, proc, &size) : -EPROTO;
        if (err < 0) {
            answer.head.error = (int32_t)-err;
            size = 0;
        }
        n = sys(__NR_sendto, peer, &answer, sizeof answer.head + (size_t)size, MSG_NOSIGNAL, 0, 0);
        if (n < 0)
            leave(0);
    }
}
