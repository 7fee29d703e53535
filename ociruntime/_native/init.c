/* The init: carries out a plan inside the new namespaces and becomes the container's process.
 *
 * It is a freestanding static program: no libc, no environment, no allocation. It is executed from a sealed memfd with two
 * arguments, the numbers of its control socket and of the first descriptor behind that. There the program lies (see plan/ops.py),
 * in a sealed memfd too. It is mapped read-only, and every structure in it is checked before it is used. Reports go over the
 * control socket, and after the gate over the connection that has opened it.
 */
#include <linux/close_range.h>
#include <linux/ioprio.h>
#include <linux/keyctl.h>
#include <linux/mman.h>
#include <linux/prctl.h>
#include <linux/resource.h>
#include <linux/sched.h>
#include <linux/sched/types.h>

#include "init.h"

#define MAX_PROGRAM (64u << 20)

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#define guard_end(end) ASAN_POISON_MEMORY_REGION(end, -(uintptr_t)(end) & 4095) /* the rest of the mapped page */
#else
#define guard_end(end) ((void)0)
#endif

int slots[MAX_SLOTS];
const unsigned char *prog;
uint32_t prog_len;
unsigned process_umask;
int kernel_log = -1;

#if !__STDC_HOSTED__
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
#endif

size_t length(const char *s)
{
    size_t n = 0;
    while (s[n])
        n++;
    return n;
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

const char *text(struct ref r)
{
    return (const char *)prog + r.off;
}

/* Whether an operation has the shape of its code: its size is right, and every member points into the program. */
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

int fd_of(uint64_t slot)
{
    return slot == NO_SLOT ? AT_FDCWD : slots[slot];
}

/* Put a new descriptor into its slot. */
long keep(uint64_t slot, long fd)
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

#define ARGS(name) const struct op_##name *o = (const void *)h

static long carry_out(const struct head *h)
{
    switch (h->code) {
    case OP_OPEN: {
        ARGS(open);
        return keep(o->out, open_path(fd_of(o->dir), text(o->path), o->flags, o->mode, o->resolve));
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
    case OP_FSPICK: {
        ARGS(fspick);
        return keep(o->out, sys(__NR_fspick, fd_of(o->dir), text(o->path), o->flags | FSPICK_CLOEXEC));
    }
    case OP_FSCONFIG: {
        ARGS(fsconfig);
        int plain = o->cmd == FSCONFIG_SET_FLAG || o->cmd >= FSCONFIG_CMD_CREATE;
        kernel_log = fd_of(o->fs);
        return sys(__NR_fsconfig, fd_of(o->fs), o->cmd, o->cmd >= FSCONFIG_CMD_CREATE ? 0 : text(o->key),
                   plain ? 0 : text(o->value), 0);
    }
    case OP_FSCONFIG_FDS: {
        ARGS(fsconfig_fds);
        kernel_log = fd_of(o->fs);
        return configure_layers(o);
    }
    case OP_FSMOUNT: {
        ARGS(fsmount);
        kernel_log = fd_of(o->fs);
        return keep(o->out, sys(__NR_fsmount, fd_of(o->fs), FSMOUNT_CLOEXEC, o->attrs));
    }
    case OP_MOUNT: {
        ARGS(mount);
        return mount_whole(o);
    }
    case OP_MOUNT_SETATTR: {
        ARGS(mount_setattr);
        int fd = fd_of(o->fd), root = fd == AT_FDCWD;
        struct mount_attr a = { o->set, o->clear, o->propagation, o->userns == NO_SLOT ? 0 : (uint64_t)fd_of(o->userns) };
        return sys(__NR_mount_setattr, fd, root ? "/" : "", (root ? 0 : AT_EMPTY_PATH) | o->flags, &a, sizeof a);
    }
    case OP_MOVE_MOUNT: {
        ARGS(move_mount);
        return o->target == NO_SLOT ? attach_at_root(fd_of(o->mount)) : attach(fd_of(o->mount), fd_of(o->target));
    }
    case OP_DETACH: {
        ARGS(detach);
        return detach(fd_of(o->mount));
    }
    case OP_COPY_LINK: {
        ARGS(copy_link);
        return copy_link(o);
    }
    case OP_TARGET: {
        ARGS(target);
        return keep(o->out, find_target(fd_of(o->root), text(o->path), o->kind, o->like, (unsigned)o->mode));
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
    case OP_PROVE_DEV: {
        ARGS(prove_dev);
        return prove_device(fd_of(o->fd), (unsigned)o->mode, o->dev);
    }
    case OP_PROVE_PROC: {
        ARGS(prove_proc);
        return prove_proc(fd_of(o->fd));
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
        return write_file(fd_of(o->dir), o->path, o->data);
    }
    case OP_LABEL: {
        ARGS(label);
        return write_file(fd_of(o->dir), o->path, o->data);
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
        struct rlimit64 limit = { o->soft, o->hard };
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
    case OP_JOIN: {
        ARGS(join);
        return join(fd_of(o->fd), o->type, fd_of(o->own), text(o->name));
    }
    case OP_CHROOT: {
        ARGS(chroot);
        long err = sys(__NR_fchdir, fd_of(o->root));
        return err < 0 ? err : sys(__NR_chroot, ".");
    }
    case OP_HOOK: {
        ARGS(hook);
        return run_hook(h->step, o);
    }
    case OP_FORK: {
        ARGS(fork);
        return go_on_in_child(h->step, o->flags);
    }
    case OP_CLOSE_ALL:
        return close_all();
    case OP_KEEP_PAGE:
        return keep_page();
    case OP_FORK_LAST:
        return fork_last(h->step);
    case OP_GUARD: {
        ARGS(guard);
        return guard(fd_of(o->ended));
    }
    case OP_TAKE_TERMINAL:
        return take_terminal();
    case OP_SETSID:
        return sys(__NR_setsid);
    case OP_KEYRING: {
        ARGS(keyring);
        return sys(__NR_keyctl, KEYCTL_JOIN_SESSION_KEYRING, o->name.len > 1 ? text(o->name) : 0);
    }
    case OP_SETGROUPS: {
        ARGS(setgroups);
        long err = sys(__NR_setgroups, o->gids.len / 4, prog + o->gids.off);
        return err == -EPERM && o->optional ? 0 : err;
    }
    case OP_SETRESGID: {
        ARGS(setresgid);
        return sys(__NR_setresgid, o->gid, o->gid, o->gid);
    }
    case OP_SETRESUID: {
        ARGS(setresuid);
        return sys(__NR_setresuid, o->uid, o->uid, o->uid);
    }
    case OP_OWN_STDIO: {
        ARGS(own_stdio);
        return own_stdio(o->uid);
    }
    case OP_DIE_WITH: {
        ARGS(die_with);
        return die_with(fd_of(o->parent));
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
        process_umask = (unsigned)o->mask;
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
        return o->attr.len < SCHED_ATTR_SIZE_VER0 ? -EINVAL : sys(__NR_sched_setattr, 0, prog + o->attr.off, 0);
    }
    case OP_IOPRIO: {
        ARGS(ioprio);
        return sys(__NR_ioprio_set, IOPRIO_WHO_PROCESS, 0, o->value);
    }
    case OP_AFFINITY: {
        ARGS(affinity);
        return o->mask.len ? sys(__NR_sched_setaffinity, 0, o->mask.len, prog + o->mask.off) : allow_every_cpu();
    }
    case OP_MEMPOLICY: {
        ARGS(mempolicy);
        /* The kernel takes one bit less than this number. */
        return sys(__NR_set_mempolicy, o->mode, o->nodes.len ? prog + o->nodes.off : 0, o->nodes.len ? o->nodes.len * 8ul + 1 : 0);
    }
    case OP_SECCOMP: {
        ARGS(seccomp);
        return load_filter(o);
    }
    case OP_HANDOUT: {
        ARGS(handout);
        report(REPORT_FD, h->step, 0, fd_of(o->fd));
        wait_go(); /* the agent has it: the next operations may need the agent */
        return 0;
    }
    case OP_LINK_UP: {
        ARGS(link_up);
        return link_up(text(o->name));
    }
    case OP_SOCKET: {
        ARGS(socket);
        return hand_out_socket(h->step, (int)o->family, (int)o->type, (int)o->protocol);
    }
    case OP_CONSOLE: {
        ARGS(console);
        return open_console(h->step, o);
    }
    case OP_MODE_LIKE: {
        ARGS(mode_like);
        return mode_like(fd_of(o->root), text(o->path), fd_of(o->target));
    }
    case OP_SETXATTR: {
        ARGS(setxattr);
        return set_xattr(fd_of(o->dir), o);
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
        return wait_for_start(h->step, fd_of(o->listener));
    }
    case OP_REAP: {
        ARGS(reap);
        return reap(o->childless != 0);
    }
    case OP_GIVE: {
        ARGS(give);
        report(REPORT_FD, h->step, 0, fd_of(o->fd));
        return 0;
    }
    case OP_PROFILE: {
        ARGS(profile);
        return start_stamps(o->steps);
    }
    case OP_SERVE: {
        ARGS(serve);
        serve(fd_of(o->peer), fd_of(o->end), fd_of(o->proc));
    }
    case OP_INHERIT: {
        ARGS(inherit);
        return sys(__NR_dup3, fd_of(o->fd), o->number, 0);
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

/* Map a descriptor, or end. */
static void *map(int fd, size_t size, int protection)
{
    long at = sys(__NR_mmap, 0, size, protection, MAP_SHARED, fd, 0);
    if ((unsigned long)at > -4096ul)
        leave(255);
    return (void *)at;
}

static int is_program(const struct program *p)
{
    return p->magic == PROGRAM_MAGIC && p->len == prog_len && p->inputs <= MAX_SLOTS;
}

/* Carry out one operation after the other. A program that does not end in exec ends here. */
static _Noreturn void run(const struct program *p)
{
    for (uint32_t i = 0, at = sizeof *p; i < p->ops; i++) {
        const struct head *h = (const void *)(prog + at);
        progress->step = prog_len - at < sizeof *h ? 0 : h->step;
        stamp(progress->step);
        long err = well_formed(h, prog_len - at) ? carry_out(h) : -EPROTO;
        if (err < 0) {
            progress->error = (int32_t)-err;
            report(REPORT_ERROR, progress->step, (int32_t)-err, -1);
            leave(255);
        }
        kernel_log = -1;
        at += h->len;
    }
    leave(0);
}

/* argv: the name, the control socket, the program's descriptor; behind that come the page of the progress and the inputs. */
static _Noreturn void init_main(int argc, const char *const *argv)
{
    const struct program *p;
    struct statx st;
    int memfd;

    if (argc != 3)
        leave(255);
    control = number(argv[1]);
    memfd = number(argv[2]);
    page = memfd + 1;
    reset_signals();
    process_umask = (unsigned)sys(__NR_umask, 0);
    sys(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    sys(__NR_prctl, PR_SET_NAME, "oci-init", 0, 0, 0);
    if (sys(__NR_close_range, control, ~0u, CLOSE_RANGE_CLOEXEC) < 0 || mode_of(memfd, &st) < 0 || st.stx_size < sizeof *p ||
        st.stx_size > MAX_PROGRAM)
        leave(255);
    progress = map(page, sizeof *progress, PROT_READ | PROT_WRITE);
    prog_len = (uint32_t)st.stx_size;
    prog = map(memfd, prog_len, PROT_READ);
    guard_end(prog + prog_len);
    p = (const void *)prog;
    for (unsigned i = 0; i < MAX_SLOTS; i++)
        slots[i] = -1;
    if (!is_program(p)) {
        report(REPORT_ERROR, 0, EPROTO, -1);
        leave(255);
    }
    for (uint32_t i = 0; i < p->inputs; i++)
        slots[i] = page + 1 + (int)i;
    run(p);
}

#if __STDC_HOSTED__
/* With the sanitizers it is an ordinary program. They get their options here, as the init has no environment. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0:exitcode=99:handle_segv=1";
}

const char *__ubsan_default_options(void);
const char *__ubsan_default_options(void)
{
    return "print_stacktrace=1:exitcode=99";
}

int main(int argc, char **argv)
{
    init_main(argc, (const char *const *)argv);
}
#else
_Noreturn void enter(long *stack);
_Noreturn void enter(long *stack)
{
    init_main((int)stack[0], (const char *const *)(stack + 1));
}

#if defined(__x86_64__)
__asm__(".global _start\n_start: xor %ebp,%ebp\n mov %rsp,%rdi\n and $-16,%rsp\n call enter\n hlt\n");
#elif defined(__aarch64__)
__asm__(".global _start\n_start: mov x29,#0\n mov x30,#0\n mov x0,sp\n and sp,x0,#-16\n bl enter\n brk #0\n");
#elif defined(__riscv)
__asm__(".global _start\n_start: li s0,0\n mv a0,sp\n andi sp,sp,-16\n call enter\n unimp\n");
#endif
#endif
