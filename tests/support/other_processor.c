/* What the kernels compute, written to standard output, so that processors can be compared byte by byte.
 * Standard input: float32 arguments. Command line: the numbers of functions (`enum function`). */
#include <stdio.h>
#include <stdlib.h>

#include "morphbits.h"

enum { MOST = 1 << 16 };
static float x[MOST], y[MOST], single[MOST];
static double wide_x[MOST], wide_y[MOST], wide[MOST];

int main(int argc, char **argv) {
    const int64_t n = (int64_t)fread(x, sizeof *x, MOST, stdin);
    for (int64_t i = 0; i < n; ++i) y[i] = x[n - 1 - i], wide_x[i] = x[i] / 3.0, wide_y[i] = y[i] / 7.0;
    for (int mode = NEAREST; mode <= TOWARD_ZERO; ++mode)
        for (int flush = 0; flush < 2; ++flush) {
            const rounding r = {mode, flush, 1, PORTABLE, 77, 24, -126};
            for (int a = 1; a < argc; ++a) {
                const int number = atoi(argv[a]);
                function_call c = {number, FLOAT32, n, x, number == POW ? y : NULL, wide};
                if (wide_portable(&r, &c)) return 1;
                fwrite(wide, sizeof *wide, (size_t)n, stdout);
                c.out = single;
                if (function_portable(&r, &c)) return 1;
                fwrite(single, sizeof *single, (size_t)n, stdout);
            }
            for (int operation = ADD; operation <= LEAKY_RELU; ++operation) {
                elementwise_call c = {.operation = operation, .type = FLOAT32, .dims = 1, .shape = {n}, .stride_a = {1},
                                      .stride_b = {1}, .a = x, .b = operation == SQRT ? NULL : y, .out = single};
                if (elementwise_portable(&r, &c)) return 1;
                fwrite(single, sizeof *single, (size_t)n, stdout);
                c.type = FLOAT64, c.a = wide_x, c.b = operation == SQRT ? NULL : wide_y, c.out = wide;
                if (elementwise_portable(&r, &c)) return 1;
                fwrite(wide, sizeof *wide, (size_t)n, stdout);
            }
        }
    return 0;
}
