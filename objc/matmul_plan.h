/*
 * matmul_plan.h - from a description to the launches of matmul.metal: which kernel and tile, the
 * function constants, the grid, the parameter block. Plain C without a framework, so that what the
 * shim launches is what the tests launch. SPDX-License-Identifier: MIT OR Apache-2.0
 */
#ifndef ANE_MATMUL_PLAN_H
#define ANE_MATMUL_PLAN_H

#include <stdio.h>
#include <string.h>

#include "ane_matmul.h"
#include "matmul_params.h"

#if ANE_TYPE_F32 != ANE_METAL_F32 || ANE_TYPE_F16 != ANE_METAL_F16 || ANE_TYPE_BF16 != ANE_METAL_BF16
#error "matmul_params.h and ane_matmul.h disagree about element types"
#endif
#if ANE_ACTIVATION_RELU != ANE_METAL_RELU || ANE_ACTIVATION_GELU_ERF != ANE_METAL_GELU_ERF || \
    ANE_ACTIVATION_GELU_TANH != ANE_METAL_GELU_TANH || ANE_ACTIVATION_SILU != ANE_METAL_SILU || \
    ANE_ACTIVATION_SIGMOID != ANE_METAL_SIGMOID || ANE_ACTIVATION_TANH != ANE_METAL_TANH
#error "matmul_params.h and ane_matmul.h disagree about activations"
#endif

/* Dimensions, batch times partitions, and thus every grid, stay below 2^31. */
#define ANE_METAL_MAX_DIMENSION 0x7fffff00u

/* GPU classes, by size: up to 10 cores, up to 40, more. */
#define ANE_METAL_CLASS_SMALL 0  /* M1, ..., A14, A17 Pro, ... */
#define ANE_METAL_CLASS_MEDIUM 1 /* M1 Pro, M1 Max, ... */
#define ANE_METAL_CLASS_LARGE 2  /* Ultra */
#define ANE_METAL_CLASS_COUNT 3

/* The most multiply-adds of one command buffer: 0.2 s on an M1 at half of its 2.6 TFLOPS, and 0.8 s on an A14 at half of
 * its 0.65. The system ends command buffers that run for some five seconds (mlx#3302): longer launches run in parts. */
#ifndef ANE_METAL_MACS_PER_COMMAND_BUFFER
#define ANE_METAL_MACS_PER_COMMAND_BUFFER (1ull << 37)
#endif

/* The class of a device by its architecture ("applegpu_g13s"), by whose last letter MLX chooses
 * tiles (mlx/backend/metal/matmul.cpp): p phones, g base chips, s Pro and Max, d Ultra; where there is none, by its name
 * ("Apple M2 Ultra"). What has no known form counts as small. */
static inline uint32_t ane_metal_device_class(const char *architecture, const char *name)
{
    const size_t length = strlen(architecture);
    if (strncmp(architecture, "applegpu_", 9) == 0) {
        const char letter = architecture[length - 1];
        return letter == 'd' ? ANE_METAL_CLASS_LARGE : letter == 's' ? ANE_METAL_CLASS_MEDIUM : ANE_METAL_CLASS_SMALL;
    }
    if (strstr(name, "Ultra")) {
        return ANE_METAL_CLASS_LARGE;
    }
    /* "A17 Pro" is a phone's. */
    return strstr(name, "Max") || (strstr(name, "Apple M") && strstr(name, "Pro")) ? ANE_METAL_CLASS_MEDIUM
                                                                                   : ANE_METAL_CLASS_SMALL;
}

/* Threadgroups below which k is split, and how many a split aims at: about four per core of the
 * class's smaller members. Our choice, not measured. */
static const uint32_t ane_metal_target_groups[ANE_METAL_CLASS_COUNT] = {32, 64, 192};

typedef struct ANEMetalTile {
    uint32_t bm, bn, bk, wm, wn;
} ANEMetalTile;

#define ANE_METAL_TILE_ROW(bm, bn, bk, wm, wn) {bm, bn, bk, wm, wn},
static const ANEMetalTile ane_metal_tiles[] = {ANE_METAL_TILES(ANE_METAL_TILE_ROW)};
#define ANE_METAL_TILE_COUNT 5

#define ANE_METAL_TILE_64X64 0        /* 64x64x16, four simdgroups of 32x32 */
#define ANE_METAL_TILE_64X64_TALL 1   /* 64x64x16, two simdgroups of 64x32 */
#define ANE_METAL_TILE_64X32 2        /* 64x32x32, four simdgroups of 32x16 */
#define ANE_METAL_TILE_32X64 3        /* 32x64x16, two simdgroups of 32x32 */
#define ANE_METAL_TILE_32X32 4        /* 32x32x16, four simdgroups of 16x16 */

/* Tile choice as data; the first row that fits is taken. Source: the table of MLX's steel GEMM
 * (mlx/backend/metal/matmul.cpp, macro GEMM_TPARAM_MACRO), with its classes g/p, s, d; the row for
 * m or n below 16 is our addition. Not measured. */
#define ANE_METAL_ANY 2
typedef struct ANEMetalTileRule {
    uint8_t device_class; /* or ANE_METAL_CLASS_COUNT for any */
    uint8_t half_width;   /* f16 or bf16 inputs: 1; f32: 0; ANE_METAL_ANY */
    uint8_t nt;           /* A as it is and B transposed: 1; else 0; ANE_METAL_ANY */
    uint8_t large;        /* batch m n of at least 2^20: 1; else 0; ANE_METAL_ANY */
    uint8_t long_k;       /* k of at least 2 max(m, n): 1; else 0; ANE_METAL_ANY */
    uint8_t thin;         /* m or n of at most 16: 1; else 0; ANE_METAL_ANY */
    uint8_t tile;
} ANEMetalTileRule;

static const ANEMetalTileRule ane_metal_tile_rules[] = {
    {ANE_METAL_CLASS_COUNT, ANE_METAL_ANY, ANE_METAL_ANY, ANE_METAL_ANY, ANE_METAL_ANY, 1, ANE_METAL_TILE_32X32},
    {ANE_METAL_CLASS_SMALL, ANE_METAL_ANY, 1, ANE_METAL_ANY, ANE_METAL_ANY, 0, ANE_METAL_TILE_64X32},
    {ANE_METAL_CLASS_SMALL, 1, 0, ANE_METAL_ANY, ANE_METAL_ANY, 0, ANE_METAL_TILE_64X64_TALL},
    {ANE_METAL_CLASS_LARGE, 1, ANE_METAL_ANY, 1, 0, 0, ANE_METAL_TILE_64X64_TALL},
    {ANE_METAL_CLASS_LARGE, 1, 1, 1, 1, 0, ANE_METAL_TILE_64X32},
    {ANE_METAL_CLASS_LARGE, 1, 0, 1, 1, 0, ANE_METAL_TILE_32X64},
    {ANE_METAL_CLASS_LARGE, 1, 1, 0, ANE_METAL_ANY, 0, ANE_METAL_TILE_64X32},
    {ANE_METAL_CLASS_LARGE, 1, 0, 0, ANE_METAL_ANY, 0, ANE_METAL_TILE_64X64_TALL},
    {ANE_METAL_CLASS_LARGE, 0, 1, 0, ANE_METAL_ANY, 0, ANE_METAL_TILE_32X64},
    {ANE_METAL_CLASS_LARGE, 0, 0, 0, ANE_METAL_ANY, 0, ANE_METAL_TILE_64X32},
    {ANE_METAL_CLASS_COUNT, ANE_METAL_ANY, ANE_METAL_ANY, ANE_METAL_ANY, ANE_METAL_ANY, ANE_METAL_ANY,
     ANE_METAL_TILE_64X64},
};

#define ANE_METAL_KERNEL_GEMM 0
#define ANE_METAL_KERNEL_GEMV_ROWS 1
#define ANE_METAL_KERNEL_GEMV_COLUMNS 2
#define ANE_METAL_KERNEL_REDUCE 3

/* One kernel launch: everything but the buffers. */
typedef struct ANEMetalLaunch {
    char function[40];
    uint32_t constants[ANE_METAL_CONSTANT_COUNT];
    uint32_t grid[3];             /* threadgroups */
    uint32_t threads[3];          /* per threadgroup */
    uint32_t threadgroup_bytes;   /* what the kernel declares */
    uint32_t reserved0;
    double row_macs;              /* of the threadgroups of one y and z; 0: the launch is never parted */
    ANEMetalParams params;
} ANEMetalLaunch;

typedef struct ANEMetalPlan {
    uint32_t kernel; /* ANE_METAL_KERNEL_*, of launches[0] */
    uint32_t tile;   /* of gemm */
    uint32_t launch_count; /* 0: C is empty; 2: k is split, and the second launch adds up */
    uint32_t swap_operands; /* gemv: the caller's B is the kernel's matrix A, and its A the vector */
    uint64_t scratch_bytes; /* partial sums between the launches */
    uint64_t macs_per_command_buffer;
    ANEMetalLaunch launches[2];
} ANEMetalPlan;

/* What a test may force; zero leaves the choice to the tables. */
typedef struct ANEMetalOverrides {
    uint32_t tile_plus_one;
    uint32_t partitions; /* 1: do not split */
    uint32_t no_gemv;
    uint32_t no_vectors;
    uint64_t macs_per_command_buffer;
} ANEMetalOverrides;

static inline uint32_t ane_metal_element_bytes(ANEType type)
{
    return type == ANE_TYPE_F32 ? 4 : type == ANE_TYPE_F16 || type == ANE_TYPE_BF16 ? 2 : 0;
}

static inline const char *ane_metal_type_name(ANEType type)
{
    return type == ANE_TYPE_F16 ? "f16" : type == ANE_TYPE_BF16 ? "bf16" : "f32";
}

static inline uint64_t ane_metal_ceil_div(uint64_t a, uint64_t b)
{
    return a / b + (a % b != 0);
}

static inline uint64_t ane_metal_max(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static inline uint32_t ane_metal_choose_tile(const ANEMatMulDesc *desc, uint32_t device_class)
{
    const uint8_t half_width = desc->type_a != ANE_TYPE_F32;
    const uint8_t nt = !(desc->flags & ANE_MATMUL_TRANSPOSE_A) && (desc->flags & ANE_MATMUL_TRANSPOSE_B);
    const uint8_t large = (double)desc->batch * (double)desc->m * (double)desc->n >= 1048576.0;
    const uint8_t long_k = desc->k >= 2 * ane_metal_max(desc->m, desc->n);
    const uint8_t thin = desc->m <= 16 || desc->n <= 16;
    const ANEMetalTileRule *rule = ane_metal_tile_rules;
    for (;; ++rule) {
        if ((rule->device_class == ANE_METAL_CLASS_COUNT || rule->device_class == device_class) &&
            (rule->half_width == ANE_METAL_ANY || rule->half_width == half_width) &&
            (rule->nt == ANE_METAL_ANY || rule->nt == nt) &&
            (rule->large == ANE_METAL_ANY || rule->large == large) &&
            (rule->long_k == ANE_METAL_ANY || rule->long_k == long_k) &&
            (rule->thin == ANE_METAL_ANY || rule->thin == thin)) {
            return rule->tile; /* the last row fits all */
        }
    }
}

/* Partitions of k for a launch of `groups` threadgroups per partition; each gets a multiple of `step`.
 * The condition is MLX's (matmul.cpp: (m/16)(n/16) <= 1024 and k >= max(m, n)), with k of at least
 * 128; the number aims at the class's target. */
static inline uint32_t ane_metal_choose_partitions(const ANEMatMulDesc *desc, uint32_t device_class, uint64_t groups,
                                                   uint32_t step)
{
    const uint64_t target = ane_metal_target_groups[device_class];
    const uint64_t blocks = ane_metal_ceil_div(desc->m, 16) * ane_metal_ceil_div(desc->n, 16);
    uint64_t partitions;
    if (desc->k < 128 || desc->k < ane_metal_max(desc->m, desc->n) || blocks > 1024 || groups * 2 > target) {
        return 1;
    }
    partitions = target / groups;
    if (partitions > 32) {
        partitions = 32;
    }
    /* No partition below four steps. */
    if (partitions > desc->k / (4 * (uint64_t)step)) {
        partitions = desc->k / (4 * (uint64_t)step);
    }
    return partitions < 2 ? 1 : (uint32_t)partitions;
}

/* Whether rows of a matrix can be read four elements at a time. */
static inline uint32_t ane_metal_vectors(uint64_t ld, uint64_t batch, uint64_t stride)
{
    return ld % ANE_METAL_VECTOR == 0 && (batch == 1 || stride % ANE_METAL_VECTOR == 0);
}

/* Items that share B and whose rows follow one another are one product of more rows. */
static inline void ane_metal_fold_batch(ANEMatMulDesc *d)
{
    const uint32_t keep = ANE_MATMUL_TRANSPOSE_A | ANE_MATMUL_VARIABLE_M;
    if (d->batch > 1 && !(d->flags & keep) && d->stride_b == 0 && d->stride_a == d->m * d->lda &&
        d->stride_c == d->m * d->ldc &&
        (!(d->flags & ANE_MATMUL_RESIDUAL) || d->stride_residual == d->m * d->ld_residual) &&
        d->m <= ANE_METAL_MAX_DIMENSION / d->batch) {
        d->m *= d->batch;
        d->batch = 1;
    }
}

/*
 * Plans a run of `rows` rows (desc->m, or fewer with VARIABLE_M) of a product that the caller has
 * found to be within ANE_METAL_MAX_DIMENSION. Which function and constants a plan uses depends on
 * `rows` only in whether it is 1: two pipelines serve a product of variable m.
 */
static inline void ane_metal_plan(const ANEMatMulDesc *description, uint64_t rows, uint32_t device_class,
                                  const ANEMetalOverrides *overrides, ANEMetalPlan *plan)
{
    ANEMatMulDesc d = *description;
    const uint32_t variable = (d.flags & ANE_MATMUL_VARIABLE_M) != 0;
    const uint32_t ta = (d.flags & ANE_MATMUL_TRANSPOSE_A) != 0, tb = (d.flags & ANE_MATMUL_TRANSPOSE_B) != 0;
    const uint32_t bias = (d.flags & ANE_MATMUL_BIAS) != 0, residual = (d.flags & ANE_MATMUL_RESIDUAL) != 0;
    ANEMetalLaunch *launch = &plan->launches[0];
    ANEMetalParams *p = &launch->params;
    uint32_t *fc = launch->constants;
    uint32_t step, partitions, per_group;
    uint64_t m, groups;

    memset(plan, 0, sizeof *plan);
    if (variable && rows == 1) {
        d.m = 1;
    }
    ane_metal_fold_batch(&d);
    m = variable ? rows : d.m;
    if (d.batch == 0 || m == 0 || d.n == 0) {
        return;
    }

    p->m = (ANEMetalU32)m;
    p->n = (ANEMetalU32)d.n;
    p->k = (ANEMetalU32)d.k;
    p->alpha = d.alpha;
    p->lda = d.lda;
    p->ldb = d.ldb;
    p->ldc = d.ldc;
    p->ld_residual = d.ld_residual;
    p->stride_a = d.stride_a;
    p->stride_b = d.stride_b;
    p->stride_c = d.stride_c;
    p->stride_residual = d.stride_residual;
    fc[ANE_METAL_CONSTANT_TYPE_C] = (uint32_t)d.type_c;
    fc[ANE_METAL_CONSTANT_TYPE_BIAS] = bias ? (uint32_t)d.type_bias : ANE_METAL_F32;
    fc[ANE_METAL_CONSTANT_ACTIVATION] = (uint32_t)d.activation;
    fc[ANE_METAL_CONSTANT_HAS_BIAS] = bias;
    fc[ANE_METAL_CONSTANT_HAS_RESIDUAL] = residual;

    if ((d.m == 1 || d.n == 1) && !overrides->no_gemv) {
        /* y = M x: of one row, M is op(B) transposed and x is A; of one column, M is op(A) and x is B. */
        const uint32_t one_row = d.m == 1;
        const uint32_t k_contiguous = one_row ? tb : !ta;
        const uint64_t x_increment = one_row ? (ta ? d.lda : 1) : (tb ? 1 : d.ldb);
        plan->kernel = k_contiguous ? ANE_METAL_KERNEL_GEMV_ROWS : ANE_METAL_KERNEL_GEMV_COLUMNS;
        plan->swap_operands = one_row;
        if (one_row) {
            p->m = (ANEMetalU32)d.n;
            p->lda = d.ldb;
            p->stride_a = d.stride_b;
            p->stride_b = d.stride_a;
            p->ldc = 1;
            p->ld_residual = 1;
            p->bias_increment = 1;
        }
        p->n = 1;
        p->ldb = x_increment;
        fc[ANE_METAL_CONSTANT_VECTOR_A] = ane_metal_vectors(p->lda, d.batch, p->stride_a);
        fc[ANE_METAL_CONSTANT_VECTOR_B] =
            k_contiguous && x_increment == 1 && ane_metal_vectors(0, d.batch, p->stride_b);
        if (k_contiguous) {
            step = ANE_METAL_SIMD_WIDTH * ANE_METAL_VECTOR;
            per_group = ANE_METAL_GEMV_ROWS * ANE_METAL_GEMV_ROWS_SIMDS;
            launch->threads[0] = ANE_METAL_GEMV_ROWS_SIMDS * ANE_METAL_SIMD_WIDTH;
        } else {
            step = 4 * ANE_METAL_GEMV_COLUMNS_SIMDS;
            per_group = ANE_METAL_GEMV_COLUMNS;
            launch->threads[0] = ANE_METAL_GEMV_COLUMNS_SIMDS * ANE_METAL_SIMD_WIDTH;
            launch->threadgroup_bytes = ANE_METAL_GEMV_COLUMNS_SIMDS * ANE_METAL_GEMV_COLUMNS * 4;
        }
        launch->grid[0] = (uint32_t)ane_metal_ceil_div(p->m, per_group);
        launch->grid[1] = 1;
        launch->grid[2] = (uint32_t)d.batch;
        /* With variable m the number of partitions must not depend on the rows of the run. */
        groups = ane_metal_ceil_div(one_row ? d.n : d.m, per_group) * d.batch;
        snprintf(launch->function, sizeof launch->function, "gemv_%s_%s", k_contiguous ? "rows" : "columns",
                 ane_metal_type_name(d.type_a));
    } else {
        const ANEMetalTile *tile;
        const uint32_t bytes = d.type_a == ANE_TYPE_F32 ? 4 : 2, pad = 16 / bytes;
        plan->kernel = ANE_METAL_KERNEL_GEMM;
        plan->tile =
            overrides->tile_plus_one ? overrides->tile_plus_one - 1 : ane_metal_choose_tile(&d, device_class);
        tile = &ane_metal_tiles[plan->tile];
        step = tile->bk;
        fc[ANE_METAL_CONSTANT_TRANSPOSE_A] = ta;
        fc[ANE_METAL_CONSTANT_TRANSPOSE_B] = tb;
        fc[ANE_METAL_CONSTANT_ALIGNED_M] = !variable && m % tile->bm == 0;
        fc[ANE_METAL_CONSTANT_ALIGNED_N] = d.n % tile->bn == 0;
        fc[ANE_METAL_CONSTANT_ALIGNED_K] = d.k % tile->bk == 0;
        fc[ANE_METAL_CONSTANT_VECTOR_A] = ane_metal_vectors(d.lda, d.batch, d.stride_a);
        fc[ANE_METAL_CONSTANT_VECTOR_B] = ane_metal_vectors(d.ldb, d.batch, d.stride_b);
        launch->grid[0] = (uint32_t)ane_metal_ceil_div(d.n, tile->bn);
        launch->grid[1] = (uint32_t)ane_metal_ceil_div(m, tile->bm);
        launch->grid[2] = (uint32_t)d.batch;
        groups = launch->grid[0] * ane_metal_ceil_div(d.m, tile->bm) * d.batch;
        launch->threads[0] = tile->wm * tile->wn * ANE_METAL_SIMD_WIDTH;
        launch->threadgroup_bytes =
            (uint32_t)((ane_metal_max(tile->bm * (tile->bk + pad), tile->bk * (tile->bm + pad)) +
                        ane_metal_max(tile->bn * (tile->bk + pad), tile->bk * (tile->bn + pad))) * bytes +
                       tile->wm * tile->bn * 8 * 4);
        snprintf(launch->function, sizeof launch->function, "gemm_%s_%ux%ux%u_%ux%u", ane_metal_type_name(d.type_a),
                 (unsigned)tile->bm, (unsigned)tile->bn, (unsigned)tile->bk, (unsigned)tile->wm, (unsigned)tile->wn);
    }
    launch->threads[1] = launch->threads[2] = 1;
    if (overrides->no_vectors) {
        fc[ANE_METAL_CONSTANT_VECTOR_A] = fc[ANE_METAL_CONSTANT_VECTOR_B] = 0;
    }

    partitions = overrides->partitions ? overrides->partitions
                                       : ane_metal_choose_partitions(&d, device_class, groups, step);
    plan->launch_count = 1;
    plan->macs_per_command_buffer = overrides->macs_per_command_buffer ? overrides->macs_per_command_buffer
                                                                       : ANE_METAL_MACS_PER_COMMAND_BUFFER;
    if (partitions > 1) {
        ANEMetalLaunch *reduce = &plan->launches[1];
        ANEMetalParams *q = &reduce->params;
        p->k_per_partition = (ANEMetalU32)(ane_metal_ceil_div(ane_metal_ceil_div(d.k, partitions), step) * step);
        if (p->k_per_partition == 0) {
            p->k_per_partition = step;
        }
        p->partitions = partitions;
        fc[ANE_METAL_CONSTANT_PARTIAL] = 1;
        if (plan->kernel == ANE_METAL_KERNEL_GEMM) {
            launch->grid[2] *= partitions;
        } else {
            launch->grid[1] = partitions;
        }
        plan->scratch_bytes = d.batch * partitions * m * d.n * 4;
        plan->launch_count = 2;

        *reduce = *launch;
        snprintf(reduce->function, sizeof reduce->function, "splitk_reduce");
        memset(reduce->constants, 0, sizeof reduce->constants);
        for (uint32_t i = ANE_METAL_CONSTANT_BOOLS; i < ANE_METAL_CONSTANT_COUNT; ++i) {
            reduce->constants[i] = fc[i];
            fc[i] = i == ANE_METAL_CONSTANT_ACTIVATION ? 0 : ANE_METAL_F32;
        }
        reduce->constants[ANE_METAL_CONSTANT_HAS_BIAS] = bias;
        reduce->constants[ANE_METAL_CONSTANT_HAS_RESIDUAL] = residual;
        fc[ANE_METAL_CONSTANT_HAS_BIAS] = fc[ANE_METAL_CONSTANT_HAS_RESIDUAL] = 0;
        q->m = (ANEMetalU32)m;
        q->n = (ANEMetalU32)d.n;
        q->ldc = d.ldc;
        q->ld_residual = d.ld_residual;
        reduce->grid[0] = (uint32_t)ane_metal_ceil_div(d.n, ANE_METAL_REDUCE_COLUMNS);
        reduce->grid[1] = (uint32_t)ane_metal_ceil_div(m, ANE_METAL_REDUCE_ROWS);
        reduce->grid[2] = (uint32_t)d.batch;
        reduce->threads[0] = ANE_METAL_REDUCE_COLUMNS;
        reduce->threads[1] = ANE_METAL_REDUCE_ROWS;
        reduce->threads[2] = 1;
        reduce->threadgroup_bytes = 0;
    } else {
        fc[ANE_METAL_CONSTANT_DIRECT_STORE] =
            plan->kernel == ANE_METAL_KERNEL_GEMM && d.type_c == ANE_TYPE_F32 && fc[ANE_METAL_CONSTANT_ALIGNED_M] &&
            fc[ANE_METAL_CONSTANT_ALIGNED_N] && !bias && !residual && d.activation == ANE_ACTIVATION_NONE &&
            d.alpha == 1.0f;
    }
    launch->row_macs = plan->launch_count == 2 ? p->k_per_partition : p->k;
    if (plan->kernel == ANE_METAL_KERNEL_GEMM) {
        const ANEMetalTile *tile = &ane_metal_tiles[plan->tile];
        launch->row_macs *= (double)launch->grid[0] * tile->bm * tile->bn;
    } else {
        /* Each element of the matrix is read for one multiply-add: 4 bytes at 68 GB/s take as long as 40 of them. */
        launch->row_macs *= (double)p->m * 40;
    }
}

/*
 * The part of a launch that begins at row `first` of threadgroups (z times the grid's y, plus y) and stays within
 * the plan's multiply-adds, or is one row: returns where the next begins, which is the product of the grid's y and
 * z after the last.
 */
static inline uint64_t ane_metal_part(const ANEMetalPlan *plan, uint32_t index, uint64_t first, ANEMetalLaunch *part)
{
    const ANEMetalLaunch *launch = &plan->launches[index];
    const uint64_t height = launch->grid[1], y = first % height, z = first / height;
    const double most = launch->row_macs
                            ? (double)plan->macs_per_command_buffer / launch->row_macs : 1e18;
    uint64_t rows = most < 1 ? 1 : (uint64_t)most;
    *part = *launch;
    part->params.first_y = (ANEMetalU32)y;
    part->params.first_z = (ANEMetalU32)z;
    if (y == 0 && rows >= height) {
        const uint64_t planes = rows / height, left = launch->grid[2] - z;
        part->grid[2] = (uint32_t)(planes < left ? planes : left);
        return first + part->grid[2] * height;
    }
    rows = rows < height - y ? rows : height - y;
    part->grid[1] = (uint32_t)rows;
    part->grid[2] = 1;
    return first + rows;
}

#endif
