/* The init: what its units share. A unit that needs more of the kernel's interface includes it itself. */
#ifndef OCIRUNTIME_INIT_H
#define OCIRUNTIME_INIT_H
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/stat.h>
#include <stddef.h>
#include <stdint.h>

#include "op_table.h"
#include "sys.h"

#define IN_ROOT (RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
#define MAX_PATH 4096
/* In no header of the kernel's interface; the one of the C library conflicts with <linux/mount.h>. */
#define MNT_DETACH 2

/* init.c: the program, and the descriptors that its operations name */
extern int slots[MAX_SLOTS];
extern const unsigned char *prog;
extern uint32_t prog_len;
extern unsigned process_umask; /* the caller's, until the plan sets one: the init itself has none, for the modes of the plan */
extern int kernel_log;         /* the filesystem context whose messages explain a failure, or -1 */
size_t length(const char *s);
const char *text(struct ref r);
int fd_of(uint64_t slot);
long keep(uint64_t slot, long fd);
void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int c, size_t n);

/* sockets.c */
extern int control;
extern int page; /* the descriptor of `progress`, which the gate hands to the process that starts the container */
extern volatile struct progress *progress;
_Noreturn void leave(int status);
void report(uint32_t kind, uint32_t step, int32_t value, int fd);
long send_report(uint32_t kind, uint32_t step, int32_t value, int fd);
void wait_go(void);
long keep_page(void);
void use_own_page(void);
long start_stamps(uint64_t steps);
void stamp(uint32_t step);
long wait_for_start(uint32_t step, int listener);
long hand_out_socket(uint32_t step, int family, int type, int protocol);
long link_up(const char *name);

/* paths.c */
long open_path(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve);
long in_root(int root, const char *path, int flags);
long make_target(int root, const char *given, int want_file, int no_link, unsigned mode);
long stat_at(int dir, const char *name, int flags, struct statx *st);
long mode_of(int fd, struct statx *st);
long check_type(int fd, int want_file);
int is_device(const struct statx *st, unsigned mode, uint64_t dev);
unsigned device_number(uint64_t major, uint64_t minor);
long prove_device(int fd, unsigned mode, uint64_t dev);
long prove_fs(int fd, uint64_t magic);
long prove_proc(int fd);

/* files.c */
long make_device(int dir, const struct op_mknod *o);
long make_link(int dir, const struct op_symlink *o);
long write_file(int dir, struct ref where, struct ref data);
long mode_like(int root, const char *path, int target);
long set_xattr(int dir, const struct op_setxattr *o);
long copy_up(int source, int target);

/* mounts.c */
long attach(long mnt, long target);
long attach_at_root(long mnt);
long detach(int mnt);
long find_target(int root, const char *path, uint64_t kind, uint64_t like, unsigned mode);
long copy_link(const struct op_copy_link *o);
long mount_whole(const struct op_mount *o);
long configure_layers(const struct op_fsconfig_fds *o);
long mask(int root, const char *path, int null);
long make_readonly(int root, const char *path);
long pivot(int root);

/* process.c */
void reset_signals(void);
void unblock_signals(void);
void listen_to_signals(void);
long own_stdio(uint64_t uid);
long die_with(int parent);
long reap(int childless);
long allow_every_cpu(void);
long set_caps(const struct op_capset *o);
long drop_bounding(uint64_t keep_mask, uint64_t last);
long raise_ambient(uint64_t caps);
long change_dir(const char *path, int create);
long join(int fd, uint64_t type, int own, const char *name);
long go_on_in_child(uint32_t step, uint64_t flags);
long fork_last(uint32_t step);
long guard(int ended);
long close_all(void);
long load_filter(const struct op_seccomp *o);
long lookup(int root, struct list candidates);
long make_vectors(struct list argv, struct list env, const char ***vectors);
long become(const struct op_exec *o);

/* hooks.c */
long run_hook(uint32_t step, const struct op_hook *o);

/* serve.c */
_Noreturn void serve(int peer, int end, int proc);

/* console.c */
long open_console(uint32_t step, const struct op_console *o);
long take_terminal(void);
#endif
