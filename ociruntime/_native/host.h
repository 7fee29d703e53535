/* The functions of host.c; the declarations between the marks are read by packaging/native.py for cffi. */
#ifndef OCIRUNTIME_HOST_H
#define OCIRUNTIME_HOST_H
#include <stdint.h>

/* cdef begins */
struct oci_launch {
    uint64_t flags;   /* CLONE_NEW*, beside what every launch has */
    int cgroup;       /* a v2 cgroup's directory to start in, or -1 */
    int init;         /* the sealed memfd that holds the init */
    int control;      /* fds[3] once more: for reports before all descriptors are in place */
    int preserve;     /* how many descriptors from 3 on are the process's own */
    const int *kept;  /* those of them that are open, and inherited */
    int n_kept;
    int n_inputs;
    int *fds;         /* stdin, stdout, stderr, control, program, inputs...: changed by the launch */
    int pid, pidfd;   /* the result */
};
struct oci_report {   /* as the init sends it, with room for the kernel's own words and a NUL */
    uint32_t kind, step;
    int32_t value;
    uint32_t reserved;
    char words[1009];
};
/* Operations of oci_cgroups: the first byte of each text, which ends with a NUL. What follows it is a path, or the value to write.
 * NEW checks that a cgroup does not exist, while its parent does. MAKE_CPUSET gives the cgroup the CPUs and memory nodes of its
 * parent if it has none. REMOVE removes nothing else than a cgroup without children and processes; it may not exist. OPEN opens a
 * file for the WRITE operations behind it. */
enum {
    OCI_CGROUP_NEW = 'n',
    OCI_CGROUP_MAKE = 'm',
    OCI_CGROUP_MAKE_CPUSET = 'c',
    OCI_CGROUP_REMOVE = 'r',
    OCI_CGROUP_OPEN = 'o',
    OCI_CGROUP_WRITE = 'w'
};
int oci_launch(struct oci_launch *l);
int oci_launch_files(const char *program, size_t size, size_t page, int *fds);
int oci_receive(int control, struct oci_report *report, int *passed);
int oci_user_namespace(const char *uid_map, const char *gid_map);
int oci_fsopen(const char *fstype);
int oci_fsconfig(int fs, unsigned cmd, const char *key, const char *value, int aux);
int oci_fsmount(int fs, unsigned attrs);
int oci_open_tree(int dir, const char *path, unsigned flags);
int oci_copy_mount(int mounts, int users, int dir);
int oci_ask(int fd);
int oci_move_mount(int from, const char *from_path, int to, const char *to_path, unsigned flags);
int oci_mount_setattr(int fd, unsigned flags, uint64_t set, uint64_t clear, uint64_t propagation);
int oci_mount(const char *fstype, const char *target, uint64_t flags, const char *data);
int oci_umount(const char *path, int flags);
int oci_openat2(int dir, const char *path, uint64_t flags, uint64_t resolve);
int oci_forget(int fd, uint64_t begin, uint64_t size);
int oci_syncfs(int fd);
int oci_make_cgroup(const char *path);
int oci_cgroups(const char *ops, int count);
int oci_bpf(int cmd, void *attr, unsigned size);
int oci_inotify(const char *path, unsigned mask);
int64_t oci_birth(int fd);
int oci_has_openat2(void);
/* cdef ends */
#endif
