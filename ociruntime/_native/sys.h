/* Raw system calls without libc: used by the init, and by the few instructions between clone3 and execveat, where libc's errno is
 * the caller's. Each returns the kernel's value, or -errno. */
#ifndef OCIRUNTIME_SYS_H
#define OCIRUNTIME_SYS_H
#include <asm/unistd.h>

#if defined(__x86_64__)
static inline long sys6(long n, long a, long b, long c, long d, long e, long f)
{
    long ret;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(ret) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return ret;
}
#elif defined(__aarch64__)
static inline long sys6(long n, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory", "cc");
    return x0;
}
#elif defined(__riscv) && __riscv_xlen == 64
static inline long sys6(long n, long a, long b, long c, long d, long e, long f)
{
    register long a7 __asm__("a7") = n;
    register long a0 __asm__("a0") = a;
    register long a1 __asm__("a1") = b;
    register long a2 __asm__("a2") = c;
    register long a3 __asm__("a3") = d;
    register long a4 __asm__("a4") = e;
    register long a5 __asm__("a5") = f;
    __asm__ volatile("ecall" : "+r"(a0) : "r"(a7), "r"(a1), "r"(a2), "r"(a3), "r"(a4), "r"(a5) : "memory");
    return a0;
}
#else
#error "no system call stub for this architecture: add one in sys.h and an entry point in init.c"
#endif

#define SYS_SELECT(_0, _1, _2, _3, _4, _5, _6, NAME, ...) NAME
#define sys(...) SYS_SELECT(__VA_ARGS__, sys6_, sys5_, sys4_, sys3_, sys2_, sys1_, sys0_)(__VA_ARGS__)
#define sys0_(n) sys6(n, 0, 0, 0, 0, 0, 0)
#define sys1_(n, a) sys6(n, (long)(a), 0, 0, 0, 0, 0)
#define sys2_(n, a, b) sys6(n, (long)(a), (long)(b), 0, 0, 0, 0)
#define sys3_(n, a, b, c) sys6(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define sys4_(n, a, b, c, d) sys6(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define sys5_(n, a, b, c, d, e) sys6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define sys6_(n, a, b, c, d, e, f) sys6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

/* End this process, also under a seccomp filter that denies the system calls for it: the kernel always acts on an invalid
 * instruction, which kills even the first process of a pid namespace. */
static inline _Noreturn void end_process(int status)
{
    sys(__NR_exit_group, status);
    sys(__NR_exit, status);
    for (;;)
        __builtin_trap();
}
#endif
