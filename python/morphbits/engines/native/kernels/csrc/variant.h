/* What an instruction set decides: the names of its kernels, and the sizes of its vectors and tiles. */
#ifndef MORPHBITS_VARIANT_H
#define MORPHBITS_VARIANT_H

#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#define FN(name) PASTE(name, VARIANT)

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define MAX_TILE 8
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#define MAX_TILE 4
#else
#define VECTOR_BYTES 16
#define MAX_TILE 4
#endif

#endif
