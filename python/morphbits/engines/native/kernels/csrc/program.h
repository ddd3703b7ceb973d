/* Programs: the elementary operations of one operator, recorded by Python (program.py) and computed here block by block,
 * so that what lies between the first and the last of them stays in the cache (strip-mining). Each operation keeps its own
 * random words, and each element its number: the bytes are those of the separate kernels. Included by kernels.c at the end.
 *
 * A value has the shape of the whole, (rows, inner), or one element a row. */
#ifndef MORPHBITS_PROGRAM_H
#define MORPHBITS_PROGRAM_H

#include <stdlib.h>
#include <string.h>

#include "elementwise.h"
#include "functions.h"
#include "morphbits.h"
#include "narrow.h"
#include "precision.h"
#include "variant.h"

#define PIECE CHUNK

/* Where a value is kept, and until when. */
typedef struct {
    int64_t buffer;    /* -1: in no buffer */
    int64_t one_piece; /* whether its buffer has room for one piece only */
    int64_t end;       /* the first instruction after it that does not go piece by piece together with it */
    int64_t last;      /* the instruction after which its buffer may be used again */
} home;

typedef struct {
    rounding r;         /* of all; its key is not used */
    control base;       /* the thread's own register */
    const program_call *p;
    const home *home;
    char **place;       /* of each value's first element in this block, or piece */
    word_block *block;  /* of sums and partial sums */
    void *columns;
    function_chunk *function;
} program_state;

static int64_t value_size(const instruction *v) { return v->type == FLOAT32 ? 4 : 8; }

static void fill(int64_t type, double value, int64_t n, void *to) {
    const float single = (float)value;
    if (type == FLOAT32) for (int64_t i = 0; i < n; ++i) ((float *)to)[i] = single;
    else for (int64_t i = 0; i < n; ++i) ((double *)to)[i] = value;
}

/* What rounds nothing; the caller's own control register is in force. Masks have all bits of an element set, or none. */
#define EXACT_LOOP(T, U, expression)                                         \
    for (int64_t i = 0; i < n; ++i) {                                        \
        const T x = ((const T *)a)[i], y = b ? ((const T *)b)[i] : 0;        \
        const U u = ((const U *)a)[i], v = b ? ((const U *)b)[i] : 0;        \
        const U w = c ? ((const U *)c)[i] : 0;                               \
        (void)x, (void)y, (void)u, (void)v, (void)w;                         \
        ((U *)out)[i] = expression;                                          \
    }
#define EXACT(name, T, U)                                                                                     \
    static __attribute__((noinline)) void name(int64_t opcode, int64_t n, const void *a, const void *b, const void *c, \
                                               void *out) {                                                   \
        const U sign = (U)1 << (8 * sizeof(U) - 1);                                                           \
        switch (opcode) {                                                                                     \
        case NEGATE: EXACT_LOOP(T, U, u ^ sign) break;                                                        \
        case MAGNITUDE: EXACT_LOOP(T, U, u & ~sign) break;                                                    \
        case GREATER: EXACT_LOOP(T, U, (U)0 - (U)(x > y)) break;                                              \
        case GREATER_EQUAL: EXACT_LOOP(T, U, (U)0 - (U)(x >= y)) break;                                       \
        case LESS: EXACT_LOOP(T, U, (U)0 - (U)(x < y)) break;                                                 \
        case LESS_EQUAL: EXACT_LOOP(T, U, (U)0 - (U)(x <= y)) break;                                          \
        case EQUAL: EXACT_LOOP(T, U, (U)0 - (U)(x == y)) break;                                               \
        case UNEQUAL: EXACT_LOOP(T, U, (U)0 - (U)(x != y)) break;                                             \
        case SELECT: EXACT_LOOP(T, U, (u & v) | (~u & w)) break;                                              \
        case BOTH: EXACT_LOOP(T, U, u & v) break;                                                             \
        case EITHER: EXACT_LOOP(T, U, u | v) break;                                                           \
        case NEITHER: EXACT_LOOP(T, U, ~u) break;                                                             \
        }                                                                                                     \
    }
EXACT(exact_f32, float, uint32_t)
EXACT(exact_f64, double, uint64_t)

/* n elements, a PIECE at most, of a value of the whole, from element `start` on: where a memory operand is broadcast or
 * strided. */
static void fetch(const program_call *p, const instruction *v, int64_t start, int64_t n, char *to) {
    elementwise_call shape = {.dims = (int32_t)p->dims};
    for (int d = 0; d < p->dims; ++d) shape.shape[d] = p->shape[d];
    const int64_t *stride = p->strides + v->a * MAX_DIMS;
    if (v->opcode == FETCH) {
        collect(&shape, stride, start, n, value_size(v), (const char *)v->extra, to);
        return;
    }
    char set[PIECE]; /* FETCH_MASK: bytes of 0 and 1 */
    collect(&shape, stride, start, n, 1, (const char *)v->extra, set);
    if (v->type == FLOAT32) for (int64_t i = 0; i < n; ++i) ((uint32_t *)to)[i] = 0 - (uint32_t)(set[i] != 0);
    else for (int64_t i = 0; i < n; ++i) ((uint64_t *)to)[i] = 0 - (uint64_t)(set[i] != 0);
}

/* Products with a power of two are exact, but where they underflow or overflow, so that no random words are needed. Returns 0
 * where one is not; then nothing in `out`, which is no operand, is of use. */
static int exact_products(const program_state *s, const instruction *v, int64_t n, const void *a, const void *b, void *out) {
#if defined(__AVX512F__)
    if (v->opcode != MUL || v->type != FLOAT32 || !by_instruction(&s->r) || reduced(&s->r)) return 0;
    const instruction *left = s->p->code + v->a, *right = s->p->code + v->b;
    const uint64_t fraction = (UINT64_C(1) << 52) - 1; /* of a constant's float64: zero where it is a power of two */
    const int power = (left->opcode == CONSTANT && !((uint64_t)left->extra & fraction)) ||
                      (right->opcode == CONSTANT && !((uint64_t)right->extra & fraction));
    return power && directed_exact_mul(n, a, b, out);
#else
    (void)s, (void)v, (void)n, (void)a, (void)b, (void)out;
    return 0;
#endif
}

/* Where element `at` of a value of the block lies. */
static char *element_place(const program_state *s, int64_t number, int64_t at) {
    return s->place[number] + (s->home[number].one_piece ? 0 : at * value_size(s->p->code + number));
}

/* n elements of a value, a PIECE at most, from element `at` of the block on, which begins at the value's element `first`. */
static void compute(program_state *s, int64_t number, int64_t first, int64_t at, int64_t n) {
    const program_call *p = s->p;
    const instruction *v = p->code + number;
    const int64_t size = value_size(v);
    const word_block block = block_constants(key_of(p->start, v->draw), 0);
    control_set(v->opcode <= NARROW ? control_with(s->base, s->r.mode, s->r.flush) : s->base);
    const void *given[3] = {NULL, NULL, NULL};
    const int64_t from[3] = {v->a, v->b, v->c};
    for (int i = 0; i < 3 && v->opcode < FETCH; ++i)
        if (from[i] >= 0) given[i] = element_place(s, from[i], at);
    char *out = element_place(s, number, at);
    switch (v->opcode) {
    case ADD: case SUB: case MUL: case DIV: case SQRT: case LEAKY_RELU: case NARROW: {
        const elementwise_call c = {.operation = (int32_t)v->opcode, .type = (int32_t)v->type};
        if (exact_products(s, v, n, given[0], given[1], out)) break;
        chunk(&s->r, s->base, &c, block, (uint32_t)(first + at), n, given[0], given[1], out);
        break;
    }
    case FUNCTION:
        function_of(&s->r, s->base, (int)v->extra, block, (uint32_t)(first + at), n, given[0], given[1], (float *)out, s->function);
        break;
    case WIDEN:
        for (int64_t i = 0; i < n; ++i) ((double *)out)[i] = ((const float *)given[0])[i];
        break;
    case STORE: memcpy((char *)v->extra + (first + at) * size, given[0], (size_t)(n * size)); break;
    case STORE_MASK:
        for (int64_t i = 0; i < n; ++i)
            ((char *)v->extra)[first + at + i] =
                v->type == FLOAT32 ? ((const uint32_t *)given[0])[i] != 0 : ((const uint64_t *)given[0])[i] != 0;
        break;
    case FETCH: case FETCH_MASK: fetch(p, v, first + at, n, out); break;
    case SPREAD: /* a row's value to each element of the row */
        for (int64_t i = 0, row = at / p->inner, column = at % p->inner; i < n; ++row, column = 0) {
            const int64_t left = p->inner - column, run = left < n - i ? left : n - i;
            collect_run(run, s->place[v->a] + row * size, 0, size, out + i * size);
            i += run;
        }
        break;
    default:
        if (v->type == FLOAT32) exact_f32(v->opcode, n, given[0], given[1], given[2], out);
        else exact_f64(v->opcode, n, given[0], given[1], given[2], out);
    }
}

/* The instructions from `begin` to `end` on n elements of a block, which are their elements from `first` on. */
static void compute_pieces(program_state *s, int64_t begin, int64_t end, int64_t first, int64_t n) {
    for (int64_t at = 0; at < n; at += PIECE)
        for (int64_t i = begin; i < end; ++i) {
            const int64_t opcode = s->p->code[i].opcode;
            if (opcode != MEMORY && opcode != CONSTANT) compute(s, i, first, at, n - at < PIECE ? n - at : PIECE);
        }
}

static void add_rows(program_state *s, int64_t number, int64_t first, int64_t rows) {
    const program_call *p = s->p;
    const instruction *v = p->code + number;
    const int64_t n = p->inner, chains = (n + 255) / 256, all = p->total / n;
    const uint64_t keys[] = {key_of(p->start, v->draw), key_of(p->start, v->extra)};
    const int64_t terms[] = {(n + chains - 1) / chains, chains};
    for (int level = 0; level < 2; ++level)
        for (int64_t b = 0; b < terms[level] / 32 + 1; ++b)
            s->block[256 * level + b] = block_constants(keys[level], (uint64_t)b);
    const int up = s->r.mode == DOWNWARD || s->r.mode == RANDOM;
    control_set(control_with(s->base, up ? UPWARD : s->r.mode, s->r.flush));
    const void *x = s->place[v->a];
    void *out = s->place[number];
    if (v->type == FLOAT32) row_sums_f32(&s->r, s->block, rows, n, all, first, x, out, s->columns);
    else row_sums_f64(&s->r, s->block, rows, n, all, first, x, out, s->columns);
}

static void scan_rows(program_state *s, int64_t number, int64_t first, int64_t count) {
    const program_call *p = s->p;
    const instruction *v = p->code + number;
    const int64_t n = p->inner;
    const uint64_t key = key_of(p->start, v->draw);
    for (int64_t b = 0; b < n / 32 + 1; ++b) s->block[b] = block_constants(key, (uint64_t)b);
    const int up = s->r.mode == DOWNWARD || s->r.mode == RANDOM;
    control_set(control_with(s->base, up ? UPWARD : s->r.mode, s->r.flush));
    const void *x = s->place[v->a];
    void *out = s->place[number];
    if (v->type == FLOAT32) row_scans_f32(&s->r, s->block, v->extra == MUL, count / n, n, first / n, x, out, s->columns);
    else row_scans_f64(&s->r, s->block, v->extra == MUL, count / n, n, first / n, x, out, s->columns);
}

/* Whether an instruction is computed piece by piece together with its neighbours, so that what lies between them stays in
 * the first cache; or for all of a block at once. */
static int by_piece(const instruction *v) {
    return v->opcode == MEMORY || v->opcode == CONSTANT || (!v->by_row && v->opcode != SUM && v->opcode != SCAN);
}

/* A buffer for each value that lies in no memory of Python's, used again after the value's last use. Writes how many there
 * are, of a block and of a piece. */
static void buffers(const program_call *p, home *at, int64_t *unused, int64_t *count) {
    int64_t *const pile[] = {unused, unused + p->instructions};
    int64_t spare[] = {0, 0}, end = p->instructions;
    for (int64_t i = end - 1; i >= 0; --i) {
        if (!by_piece(p->code + i)) end = i;
        at[i].end = end;
        at[i].last = i;
    }
    for (int64_t i = 0; i < p->instructions; ++i) {
        const instruction *v = p->code + i;
        const int64_t from[3] = {v->a, v->b, v->c};
        for (int k = 0; k < 3 && v->opcode < FETCH; ++k)
            if (from[k] >= 0) at[from[k]].last = i;
    }
    for (int64_t i = 0; i < p->instructions; ++i) {
        const instruction *v = p->code + i, *reader = p->code + at[i].last;
        at[i].one_piece = v->opcode == CONSTANT || (by_piece(v) && at[i].last < at[i].end);
        if (v->opcode == CONSTANT) at[i].last = p->instructions;
        else if (!at[i].one_piece && by_piece(reader)) at[i].last = at[at[i].last].end - 1; /* when all its pieces are read */
    }
    count[0] = count[1] = 0;
    for (int64_t i = 0; i < p->instructions; ++i) {
        const instruction *v = p->code + i;
        const int none = v->out || v->opcode == MEMORY || v->opcode == STORE || v->opcode == STORE_MASK;
        const int64_t kind = at[i].one_piece = at[i].one_piece && !none;
        const int again = spare[kind] && v->opcode != CONSTANT; /* constants stay */
        at[i].buffer = none ? -1 : again ? pile[kind][--spare[kind]] : count[kind]++;
        for (int64_t j = 0; j <= i; ++j)
            if (at[j].last == i && at[j].buffer >= 0) pile[at[j].one_piece][spare[at[j].one_piece]++] = at[j].buffer;
    }
}

int FN(program)(const rounding *r, const program_call *p) {
    int64_t most = p->total < PIECE ? p->total : PIECE; /* elements of a block */
    int any_sum = 0, width = 4;
    for (int64_t i = 0; i < p->instructions; ++i) {
        any_sum |= p->code[i].opcode == SUM || p->code[i].opcode == SCAN;
        if (p->code[i].type == FLOAT64) width = 8;
    }
    if (p->inner) { /* whole rows: as many as a vector has lanes, or more where they are short */
        const int64_t rows = p->total / p->inner, fit = 16 * PIECE / p->inner;
        int64_t each = fit >= 16 ? fit / 16 * 16 : p->inner >= 4096 ? (fit > 1 ? fit : 1) : 16;
        if (each > rows) each = rows;
        most = each * p->inner;
    }
    home *homes = malloc((sizeof(home) + 2 * sizeof(int64_t)) * (size_t)p->instructions);
    if (!homes) return OUT_OF_MEMORY;
    int64_t count[2];
    buffers(p, homes, (int64_t *)(homes + p->instructions), count);
    const int64_t blocks = (p->total + most - 1) / most, piece = most < PIECE ? most : PIECE;
    const int64_t room[] = {(most / 64 + 2) * 64 * width, (piece / 64 + 2) * 64 * width}; /* in whole lines of the cache */
    const int64_t functions = (sizeof(function_chunk) + 63) / 64 * 64, columns = any_sum ? (p->inner + 16) * VECTOR_BYTES : 0;
    int status = OK;
#pragma omp parallel num_threads(r->threads) if (p->total * p->instructions >= 32768)
    {
        const control saved = control_get();
        program_state s = {.r = *r, .base = saved, .p = p, .home = homes};
        s.place = malloc(sizeof(char *) * (size_t)p->instructions);
        s.block = any_sum ? malloc(sizeof(word_block) * (size_t)(512 + p->inner / 32)) : NULL;
        char *memory = malloc((size_t)(functions + columns + count[0] * room[0] + count[1] * room[1] + 64));
        char *line = (char *)(((uintptr_t)memory + 63) & -(uintptr_t)64); /* aligned_alloc takes longer */
        s.function = (function_chunk *)line, s.columns = line + functions;
        char *const kept[] = {line + functions + columns, line + functions + columns + count[0] * room[0]};
        const int failed = !s.place || !memory || (any_sum && !s.block);
        if (failed) {
#pragma omp atomic write
            status = OUT_OF_MEMORY;
        }
        for (int64_t i = 0; !failed && i < p->instructions; ++i) {
            const instruction *v = p->code + i;
            const home at = homes[i];
            if (at.buffer >= 0) s.place[i] = kept[at.one_piece] + at.buffer * room[at.one_piece];
            if (v->opcode != CONSTANT) continue;
            double value;
            memcpy(&value, &v->extra, 8);
            control_set(control_with(saved, NEAREST, 0));
            fill(v->type, value, piece, s.place[i]);
        }
#pragma omp for schedule(static)
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t start = b * most, here = p->total - start < most ? p->total - start : most;
            for (int64_t i = 0; !failed && i < p->instructions; ++i) {
                const instruction *v = p->code + i;
                const int64_t first = v->by_row ? start / p->inner : start;
                if (v->opcode == MEMORY) s.place[i] = (char *)v->extra + first * value_size(v);
                else if (v->out) s.place[i] = (char *)v->out + first * value_size(v);
            }
            for (int64_t i = 0, end; !failed && i < p->instructions; i = end) {
                const instruction *v = p->code + i;
                const int64_t row = v->by_row && !by_piece(v) ? p->inner : 1, first = start / row, n = here / row;
                end = by_piece(v) ? homes[i].end : i + 1;
                if (v->opcode == SUM) add_rows(&s, i, first, n);
                else if (v->opcode == SCAN) scan_rows(&s, i, first, n);
                else compute_pieces(&s, i, end, first, n);
            }
        }
        control_set(saved);
        free(s.place), free(s.block), free(memory);
    }
    free(homes);
    return status;
}

#endif
