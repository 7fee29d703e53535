/* The init: carries out a plan inside the new namespaces and becomes the container's process.
 *
 * It is a freestanding static program: no libc, no environment, no allocation, no text of its own. It is executed from a sealed memfd
 * with two arguments, the number of its control socket and of the first free descriptor behind it. The program (see plan/ops.py) lies
 * in a sealed memfd too and is mapped read-only; every structure in it is checked before it is used. Reports go out over the control
 * socket, and after the gate over the connection of whoever opened it.
 */
#include "task.h"

/* Wait until somebody connects; from then on that connection is where reports go. Nobody can come second: the listener is closed. */
static long gate(uint32_t step, int listener)
{
    long peer;
    /* What was read of the program so far can come back from the memfd: a waiting container costs next to nothing. */
    sys(__NR_madvise, prog, ((size_t)prog_len + 4095) & ~4095ull, 4 /* MADV_DONTNEED */);
    listen_to_signals();
    unblock_signals();
    sys(__NR_close, control); /* last, as it tells the caller that all this is done */
    peer = sys(__NR_accept4, listener, 0, 0, 02000000 /* SOCK_CLOEXEC */);
    if (peer < 0) {
        progress->error = (int32_t)-peer;
        leave(255);
    }
    sys(__NR_close, listener);
    control = (int)peer;
    report(REPORT_FD, step, 0, page);
    return sys(__NR_close, page);
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

static long become(const struct op_exec *o)
{
    size_t words = o->argv.count + o->env.count + 2;
    const char *at = text(o->candidates.text);
    long worst = -ENOENT;
    const char **argv = (const char **)sys(__NR_mmap, 0, words * sizeof *argv, 3, 0x22, -1, 0);

    if (argv == 0)
        return -EPROTO; /* a filter that answers 0 */
    if ((unsigned long)argv > -4096ul)
        return (long)argv;
    pointers(o->argv, argv);
    pointers(o->env, argv + o->argv.count + 1);
    reset_signals();
    unblock_signals();
    sys(__NR_umask, umask_of_process);
    for (uint64_t i = 0; i < o->candidates.count; i++, at += length(at) + 1) {
        long err = sys(__NR_execve, at, argv, argv + o->argv.count + 1);
        if (err == -EACCES)
            worst = err;
        else if (err != -ENOENT && err != -ENOTDIR)
            return err ? err : -EPROTO; /* 0 is the answer of a filter: the kernel does not return from a success */
    }
    return worst;
}

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
    case OP_FSPICK: {
        ARGS(fspick);
        return keep(o->out, sys(__NR_fspick, fd_of(o->dir), text(o->path), o->flags | FSPICK_CLOEXEC));
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
    case OP_MOUNT: {
        ARGS(mount);
        return mount_whole(o);
    }
    case OP_MOUNT_SETATTR: {
        ARGS(mount_setattr);
        int fd = fd_of(o->fd);
        struct mount_attr a = { o->set, o->clear, o->propagation, o->userns == NO_SLOT ? 0 : (uint64_t)fd_of(o->userns) };
        return sys(__NR_mount_setattr, fd, fd == -100 ? "/" : "", (fd == -100 ? 0 : AT_EMPTY) | o->flags, &a, sizeof a);
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
        return sys(__NR_madvise, progress, 4096, MADV_DONTFORK);
    case OP_FORK_LAST:
        return fork_last(h->step);
    case OP_TAKE_TERMINAL:
        return sys(__NR_ioctl, 0, TIOCSCTTY, 0);
    case OP_SETSID:
        return sys(__NR_setsid);
    case OP_KEYRING: {
        ARGS(keyring);
        return sys(__NR_keyctl, 1 /* KEYCTL_JOIN_SESSION_KEYRING */, o->name.len > 1 ? text(o->name) : 0);
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
        umask_of_process = (unsigned)o->mask;
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
        /* The kernel takes one bit less than it is told of. */
        return sys(__NR_set_mempolicy, o->mode, o->nodes.len ? prog + o->nodes.off : 0, o->nodes.len ? o->nodes.len * 8ul + 1 : 0);
    }
    case OP_SECCOMP: {
        ARGS(seccomp);
        return load_filter(o);
    }
    case OP_HANDOUT: {
        ARGS(handout);
        report(REPORT_FD, h->step, 0, fd_of(o->fd));
        wait_go(); /* until whoever gets it has it: what comes next may need them */
        return 0;
    }
    case OP_LINK_UP: {
        ARGS(link_up);
        return link_up(text(o->name));
    }
    case OP_NETLINK: {
        long fd = sys(__NR_socket, 16 /* AF_NETLINK */, 3 /* SOCK_RAW */ | O_CLOEXEC, 0 /* NETLINK_ROUTE */);
        if (fd < 0)
            return fd;
        report(REPORT_FD, h->step, 0, (int)fd);
        wait_go();
        return sys(__NR_close, fd);
    }
    case OP_CONSOLE: {
        ARGS(console);
        return open_console(h->step, o);
    }
    case OP_MODE_LIKE: {
        ARGS(mode_like);
        return mode_like(fd_of(o->source), fd_of(o->target));
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
        return gate(h->step, fd_of(o->listener));
    }
    case OP_REAP:
        return reap();
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

/* argv: name, control socket, number of the program's descriptor; behind that come the page for the progress and the inputs. */
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
    umask_of_process = (unsigned)sys(__NR_umask, 0); /* what is made on the way has the mode that the plan says */
    sys(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    sys(__NR_prctl, PR_SET_NAME, "oci-init", 0, 0, 0);
    if (sys(__NR_close_range, control, ~0u, CLOSE_RANGE_CLOEXEC_) < 0 || mode_of(memfd, &st) < 0 || st.stx_size < sizeof *p ||
        st.stx_size > 64u << 20)
        leave(255);
    page = memfd + 1;
    progress = (volatile struct progress *)sys(__NR_mmap, 0, sizeof *progress, 3 /* PROT_READ | PROT_WRITE */, 1 /* MAP_SHARED */, page, 0);
    if ((unsigned long)progress > -4096ul)
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
        slots[i] = page + 1 + (int)i;
    for (uint32_t i = 0, at = sizeof *p; i < p->ops; i++) {
        const struct head *h = (const void *)(prog + at);
        progress->step = prog_len - at < sizeof *h ? 0 : h->step;
        long err = well_formed(h, prog_len - at) ? carry_out(h) : -EPROTO;
        if (err < 0) {
            progress->error = (int32_t)-err;
            report(REPORT_ERROR, progress->step, (int32_t)-err, -1);
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
