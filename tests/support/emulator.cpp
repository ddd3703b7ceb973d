/* The GPU's kernels on a processor: the same source, one thread after the other, each until it waits for the others.
 * A barrier that is missing shows: the first thread of a block runs on before the others have written what it reads, and it
 * overwrites what they have not read yet; `backwards` takes the threads and blocks in the opposite order. */
#include <ucontext.h>

#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

static struct index3 { unsigned x, y, z; } threadIdx, blockIdx, gridDim;

static const int BLOCK = 256;
static ucontext_t scheduler, fiber[BLOCK];
static bool finished[BLOCK];
static void (*kernel)(void **);
static void **kernel_arguments;

static void __syncthreads() { swapcontext(&fiber[threadIdx.x], &scheduler); }
static void atomicMin(unsigned long long *to, unsigned long long x) { *to = x < *to ? x : *to; }

/* The rounding direction of the thread, one of <cfenv>'s; returns the one before. */
static inline int set_direction(int direction) {
#if defined(__SSE2__) /* the same, without the x87 unit, which nothing here uses */
    const unsigned control = _mm_getcsr();
    _mm_setcsr((control & ~_MM_ROUND_MASK) | (unsigned)direction << 3);
    return (control & _MM_ROUND_MASK) >> 3;
#else
    const int before = std::fegetround();
    std::fesetround(direction);
    return before;
#endif
}

/* An operation with its direction, by the control register; inlined, gcc takes two directions for one operation. */
#define IN_DIRECTIONS(T, name, parameters, result)                                                                  \
    template <int direction> __attribute__((noinline)) static T in_direction_##name parameters {                    \
        const int saved = set_direction(direction);                                                                 \
        volatile T out = result;                                                                                    \
        set_direction(saved);                                                                                       \
        return out;                                                                                                 \
    }                                                                                                               \
    static const auto name##_rn = in_direction_##name<FE_TONEAREST>, name##_ru = in_direction_##name<FE_UPWARD>,     \
                      name##_rd = in_direction_##name<FE_DOWNWARD>, name##_rz = in_direction_##name<FE_TOWARDZERO>;
#define ARITHMETIC(T, prefix, multiply_add, root)                                                   \
    IN_DIRECTIONS(T, prefix##add, (volatile T a, volatile T b), a + b)                              \
    IN_DIRECTIONS(T, prefix##sub, (volatile T a, volatile T b), a - b)                              \
    IN_DIRECTIONS(T, prefix##mul, (volatile T a, volatile T b), a * b)                              \
    IN_DIRECTIONS(T, prefix##div, (volatile T a, volatile T b), a / b)                              \
    IN_DIRECTIONS(T, prefix##sqrt, (volatile T a), root(a))                                         \
    IN_DIRECTIONS(T, multiply_add, (volatile T a, volatile T b, volatile T c), std::fma((T)a, (T)b, (T)c))
ARITHMETIC(float, __f, __fmaf, sqrtf)
ARITHMETIC(double, __d, __fma, sqrt)
IN_DIRECTIONS(float, __double2float, (volatile double a), (float)a)

#include "gpu.cu"

template <auto function> struct launch;
template <typename... A, void (*function)(A...)> struct launch<function> {
    template <size_t... i> static void call(void **arguments, std::index_sequence<i...>) {
        function(*(A *)arguments[i]...);
    }
    static void run(void **arguments) { call(arguments, std::index_sequence_for<A...>()); }
};

#define KERNEL(...) {#__VA_ARGS__, launch<__VA_ARGS__>::run}
static const std::map<std::string, void (*)(void **)> kernels = {
    KERNEL(elementwise<float>), KERNEL(elementwise<double>),
    KERNEL(reduction<float>), KERNEL(reduction<double>),
    KERNEL(least<float>), KERNEL(least<double>),
    KERNEL(convolution<float, PLAIN, false>), KERNEL(convolution<float, PLAIN, true>),
    KERNEL(convolution<float, DIRECTIONS, false>), KERNEL(convolution<float, DIRECTIONS, true>),
    KERNEL(convolution<float, ANY, true>), KERNEL(convolution<double, ANY, true>),
    KERNEL(contraction<float, PLAIN, false>), KERNEL(contraction<float, PLAIN, true>),
    KERNEL(contraction<float, DIRECTIONS, false>), KERNEL(contraction<float, DIRECTIONS, true>),
    KERNEL(contraction<float, ANY, true>), KERNEL(contraction<double, ANY, true>),
};

static void one_thread() {
    kernel(kernel_arguments);
    finished[threadIdx.x] = true;
}

/* 0, or 1: no such kernel; 2: some threads of a block have returned while others wait for them. */
extern "C" int emulate(const char *name, const int64_t *grid, void **arguments, int backwards) {
    const size_t stack = 256 * 1024;
    static std::vector<char> stacks(stack * BLOCK);
    const auto found = kernels.find(name);
    if (found == kernels.end()) return 1;
    kernel = found->second;
    kernel_arguments = arguments;
    const bool waits = std::strncmp(name, "con", 3) == 0; /* convolution, contraction: threads wait for each other */
    gridDim = {(unsigned)grid[0], (unsigned)grid[1], (unsigned)grid[2]};
    const int64_t blocks = grid[0] * grid[1] * grid[2];
    for (int64_t i = 0; i < blocks; ++i) {
        const int64_t block = backwards ? blocks - 1 - i : i;
        blockIdx = {(unsigned)(block % grid[0]), (unsigned)(block / grid[0] % grid[1]), (unsigned)(block / grid[0] / grid[1])};
        for (int j = 0; j < BLOCK && !waits; ++j) {
            threadIdx.x = backwards ? BLOCK - 1 - j : j;
            kernel(arguments);
        }
        for (int t = 0; t < BLOCK && waits; ++t) {
            finished[t] = false;
            getcontext(&fiber[t]);
            fiber[t].uc_stack.ss_sp = &stacks[stack * t];
            fiber[t].uc_stack.ss_size = stack;
            fiber[t].uc_link = &scheduler;
            makecontext(&fiber[t], one_thread, 0);
        }
        for (int waiting = waits ? BLOCK : 0; waiting;) {
            int done = 0;
            for (int j = 0; j < BLOCK; ++j) {
                threadIdx.x = backwards ? BLOCK - 1 - j : j;
                swapcontext(&scheduler, &fiber[threadIdx.x]);
                done += finished[threadIdx.x];
            }
            if (done != 0 && done != waiting) return 2;
            waiting -= done;
        }
    }
    return 0;
}
