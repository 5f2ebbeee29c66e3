/*
 * matmul_params.h - what the Metal kernels (matmul.metal) and the code that launches them share:
 * the parameter block, buffer and function-constant indices, and the data type numbers. The host
 * part (the plan of a launch) is in matmul_plan.h. SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Valid C11, C++ and Metal Shading Language: macros, and one struct of fixed layout.
 */
#ifndef ANE_MATMUL_PARAMS_H
#define ANE_MATMUL_PARAMS_H

#ifdef __METAL_VERSION__
typedef uint ANEMetalU32;
typedef ulong ANEMetalU64;
#else
#include <stdint.h>
typedef uint32_t ANEMetalU32;
typedef uint64_t ANEMetalU64;
#endif

/*
 * The parameter block of every kernel. Leading dimensions and strides count elements.
 *
 * gemm and splitk_reduce: op(A) is m x k, op(B) is k x n, C is m x n.
 * gemv_rows and gemv_columns compute y = M x: `m` is the number of outputs, `n` is 1, A stands for M
 * (lda its leading dimension), B for x (ldb the distance of its elements), C for y (ldc the distance
 * of its elements), and bias_increment is the distance of the biases of two outputs: 0 or 1.
 *
 * With function constant PARTIAL a kernel sums only [p k_per_partition, (p + 1) k_per_partition) for
 * partition p and writes float sums, without epilogue, to C[batch][p][m][n].
 */
typedef struct ANEMetalParams {
    ANEMetalU32 m;
    ANEMetalU32 n;
    ANEMetalU32 k;
    ANEMetalU32 partitions;
    ANEMetalU32 k_per_partition;
    ANEMetalU32 bias_increment;
    float alpha;
    ANEMetalU32 first_y; /* gemm and gemv: where the grid begins, for a launch in parts */
    ANEMetalU32 first_z;
    ANEMetalU32 reserved0;
    ANEMetalU64 lda;
    ANEMetalU64 ldb;
    ANEMetalU64 ldc;
    ANEMetalU64 ld_residual;
    ANEMetalU64 stride_a;
    ANEMetalU64 stride_b;
    ANEMetalU64 stride_c;
    ANEMetalU64 stride_residual;
} ANEMetalParams;

/* Buffer indices. splitk_reduce reads the partial sums where the others read A. */
#define ANE_METAL_BUFFER_A 0
#define ANE_METAL_BUFFER_B 1
#define ANE_METAL_BUFFER_C 2
#define ANE_METAL_BUFFER_BIAS 3
#define ANE_METAL_BUFFER_RESIDUAL 4
#define ANE_METAL_BUFFER_PARAMS 5
#define ANE_METAL_BUFFER_COUNT 6

/* Function constants: bools first, then uints. */
#define ANE_METAL_CONSTANT_TRANSPOSE_A 0
#define ANE_METAL_CONSTANT_TRANSPOSE_B 1
#define ANE_METAL_CONSTANT_ALIGNED_M 2 /* m is a multiple of the tile's rows */
#define ANE_METAL_CONSTANT_ALIGNED_N 3
#define ANE_METAL_CONSTANT_ALIGNED_K 4 /* so is the k of every partition */
#define ANE_METAL_CONSTANT_VECTOR_A 5  /* rows of A as stored start on a multiple of 4 elements */
#define ANE_METAL_CONSTANT_VECTOR_B 6
#define ANE_METAL_CONSTANT_HAS_BIAS 7
#define ANE_METAL_CONSTANT_HAS_RESIDUAL 8
#define ANE_METAL_CONSTANT_PARTIAL 9
#define ANE_METAL_CONSTANT_DIRECT_STORE 10 /* C is f32, tiles are whole, the sums are the result */
#define ANE_METAL_CONSTANT_BOOLS 11
#define ANE_METAL_CONSTANT_TYPE_C 11
#define ANE_METAL_CONSTANT_TYPE_BIAS 12
#define ANE_METAL_CONSTANT_ACTIVATION 13
#define ANE_METAL_CONSTANT_COUNT 14

/* Element types and activations: the numbers of ane_matmul.h (matmul_plan.h asserts it). */
#define ANE_METAL_F32 2
#define ANE_METAL_F16 3
#define ANE_METAL_BF16 4
#define ANE_METAL_RELU 1
#define ANE_METAL_GELU_ERF 2
#define ANE_METAL_GELU_TANH 3
#define ANE_METAL_SILU 4
#define ANE_METAL_SIGMOID 5
#define ANE_METAL_TANH 6

/* Lanes of a simdgroup on every Apple GPU; the host compares threadExecutionWidth with it. */
#define ANE_METAL_SIMD_WIDTH 32
/* Elements of one wide copy: 16 bytes of f32, 8 of f16 and bf16. */
#define ANE_METAL_VECTOR 4

/*
 * The tiles of gemm: X(rows, columns, depth, simdgroups along rows, simdgroups along columns). Which
 * product uses which is decided in matmul_plan.h.
 */
#define ANE_METAL_TILES(X) \
    X(64, 64, 16, 2, 2)    \
    X(64, 64, 16, 1, 2)    \
    X(64, 32, 32, 2, 2)    \
    X(32, 64, 16, 1, 2)    \
    X(32, 32, 16, 2, 2)

/* gemv_rows: a simdgroup sums GEMV_ROWS dot products; a threadgroup has GEMV_ROWS_SIMDS of them. */
#define ANE_METAL_GEMV_ROWS 4
#define ANE_METAL_GEMV_ROWS_SIMDS 4
/* gemv_columns: a lane sums one vector of outputs; the simdgroups of a threadgroup share k. */
#define ANE_METAL_GEMV_COLUMNS (ANE_METAL_SIMD_WIDTH * ANE_METAL_VECTOR)
#define ANE_METAL_GEMV_COLUMNS_SIMDS 8
/* splitk_reduce: a threadgroup of COLUMNS x ROWS threads, each for one element of C. */
#define ANE_METAL_REDUCE_COLUMNS 32
#define ANE_METAL_REDUCE_ROWS 8

#endif
