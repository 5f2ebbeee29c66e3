/*
 * matmul.metal - the kernels of the `metal` backend:
 *
 *     C = activation(alpha * op(A) op(B) + bias + residual)
 *
 * Sums are float whatever the inputs are. No kernel reads C, or anything outside the operands.
 * Metal 3.0, with bf16 from 3.1 on. SPDX-License-Identifier: MIT OR Apache-2.0
 *
 *   gemm_<type>_<tile>   a threadgroup computes one tile of C with simdgroup_matrix multiplies
 *   gemv_rows_<type>     m = 1 or n = 1, where k is contiguous in the matrix
 *   gemv_columns_<type>  m = 1 or n = 1, where the outputs are contiguous in the matrix
 *   splitk_reduce        adds the partial sums of the others when they split k
 */
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
#include "matmul_params.h"

using namespace metal;

constant bool transpose_a [[function_constant(ANE_METAL_CONSTANT_TRANSPOSE_A)]];
constant bool transpose_b [[function_constant(ANE_METAL_CONSTANT_TRANSPOSE_B)]];
constant bool aligned_m [[function_constant(ANE_METAL_CONSTANT_ALIGNED_M)]];
constant bool aligned_n [[function_constant(ANE_METAL_CONSTANT_ALIGNED_N)]];
constant bool aligned_k [[function_constant(ANE_METAL_CONSTANT_ALIGNED_K)]];
constant bool vector_a [[function_constant(ANE_METAL_CONSTANT_VECTOR_A)]];
constant bool vector_b [[function_constant(ANE_METAL_CONSTANT_VECTOR_B)]];
constant bool has_bias [[function_constant(ANE_METAL_CONSTANT_HAS_BIAS)]];
constant bool has_residual [[function_constant(ANE_METAL_CONSTANT_HAS_RESIDUAL)]];
constant bool partial [[function_constant(ANE_METAL_CONSTANT_PARTIAL)]];
constant bool direct_store [[function_constant(ANE_METAL_CONSTANT_DIRECT_STORE)]];
constant uint type_c [[function_constant(ANE_METAL_CONSTANT_TYPE_C)]];
constant uint type_bias [[function_constant(ANE_METAL_CONSTANT_TYPE_BIAS)]];
constant uint activation [[function_constant(ANE_METAL_CONSTANT_ACTIVATION)]];

#define UNROLL _Pragma("clang loop unroll(full)")

// Elements of one wide copy.
#define VECTOR ANE_METAL_VECTOR

// ---- epilogue ------------------------------------------------------------------------------

// 1 / (1 + e^-x): exact at both infinities, since e^-x becomes 0 or infinity.
static inline float logistic(float x)
{
    return 1.0f / (1.0f + precise::exp(-x));
}

// x Phi(x), by Phi(-|x|) = erfc(z) / 2 with z = |x| / sqrt 2, so that nothing cancels for x < 0.
//
// erfc(z) e^(z^2) is t times a polynomial in t = 1 / (1 + z / 2), interpolated at the 9 Chebyshev
// nodes of z in [0, 10] in double precision; its relative error in float is 2.9e-7. Beyond z = 10,
// erfc(z) is less than 2.1e-45.
static inline float gelu_erf(float x)
{
    const float z = fabs(x) * 0.70710678f;
    if (z > 10.0f) {
        return x > 0.0f ? x : 0.0f;
    }
    const float t = 1.0f / (1.0f + 0.5f * z);
    float s = -0.059714921f;
    s = s * t + 0.28776830f;
    s = s * t - 0.49386364f;
    s = s * t + 0.28569770f;
    s = s * t - 0.031841759f;
    s = s * t + 0.20485365f;
    s = s * t + 0.24257289f;
    s = s * t + 0.28244504f;
    s = s * t + 0.28208268f;
    const float tail = 0.5f * (s * t) * precise::exp(-z * z);
    return x * (x > 0.0f ? 1.0f - tail : tail);
}

// Comparisons are written so that NaN stays NaN; -infinity times 0 must not become NaN.
static inline float activate(float x)
{
    switch (activation) {
    case ANE_METAL_RELU:
        return x < 0.0f ? 0.0f : x;
    case ANE_METAL_GELU_ERF:
        return gelu_erf(x);
    case ANE_METAL_GELU_TANH:
        // (1 + tanh u) / 2 is the logistic function of 2 u; 1.5957691 is 2 sqrt(2 / pi).
        return x == -INFINITY ? 0.0f : x * logistic(1.5957691f * (x + 0.044715f * x * x * x));
    case ANE_METAL_SILU:
        return x == -INFINITY ? 0.0f : x * logistic(x);
    case ANE_METAL_SIGMOID:
        return logistic(x);
    case ANE_METAL_TANH:
        return precise::tanh(x);
    default:
        return x;
    }
}

static inline float read_element(device const uchar *data, uint type, ulong index)
{
    switch (type) {
    case ANE_METAL_F16:
        return float(((device const half *)data)[index]);
#if __METAL_VERSION__ >= 310
    case ANE_METAL_BF16:
        return float(((device const bfloat *)data)[index]);
#endif
    default:
        return ((device const float *)data)[index];
    }
}

static inline void write_element(device uchar *data, uint type, ulong index, float value)
{
    switch (type) {
    case ANE_METAL_F16:
        ((device half *)data)[index] = half(value);
        break;
#if __METAL_VERSION__ >= 310
    case ANE_METAL_BF16:
        ((device bfloat *)data)[index] = bfloat(value);
        break;
#endif
    default:
        ((device float *)data)[index] = value;
        break;
    }
}

// Turns one sum into an element of C. The indices count elements and include the batch.
static inline void finish(float sum, float alpha, device uchar *c, ulong c_index, device const uchar *bias,
                          ulong bias_index, device const uchar *residual, ulong residual_index)
{
    float x = alpha * sum;
    if (has_bias) {
        x += read_element(bias, type_bias, bias_index);
    }
    if (has_residual) {
        x += read_element(residual, type_c, residual_index);
    }
    write_element(c, type_c, c_index, activate(x));
}

// ---- gemm ----------------------------------------------------------------------------------

// Copies the tile at `source` (row-major, ROWS x COLUMNS of which rows x columns exist) to
// threadgroup memory with LD elements to a row, zeros where nothing exists. All THREADS take part.
template <typename T, uint ROWS, uint COLUMNS, uint LD, uint THREADS>
static inline void load_tile(device const T *source, ulong ld, uint rows, uint columns, bool wide, uint thread_index,
                             threadgroup T *tile)
{
    for (uint i = thread_index; i < ROWS * (COLUMNS / VECTOR); i += THREADS) {
        const uint row = i / (COLUMNS / VECTOR);
        const uint column = i % (COLUMNS / VECTOR) * VECTOR;
        device const T *from = source + row * ld + column;
        vec<T, VECTOR> value = vec<T, VECTOR>(T(0.0f));
        if (row < rows) {
            if (wide && column + VECTOR <= columns) {
                value = *(device const vec<T, VECTOR> *)from;
            } else {
                for (uint e = 0; e < VECTOR; ++e) {
                    if (column + e < columns) {
                        value[e] = from[e];
                    }
                }
            }
        }
        *(threadgroup vec<T, VECTOR> *)(tile + row * LD + column) = value;
    }
}

// Threads are simdgroup after simdgroup; grid: x counts tiles along n, y along m, z is the batch, or
// with `partial` batch * partitions + partition. Simdgroup (i, j) of the WM x WN owns the (i, j)
// block of the tile, FM x FN fragments of 8 x 8.
template <typename T, uint BM, uint BN, uint BK, uint WM, uint WN>
[[kernel]] void gemm(device const T *a [[buffer(ANE_METAL_BUFFER_A)]],
                     device const T *b [[buffer(ANE_METAL_BUFFER_B)]],
                     device uchar *c [[buffer(ANE_METAL_BUFFER_C)]],
                     device const uchar *bias [[buffer(ANE_METAL_BUFFER_BIAS), function_constant(has_bias)]],
                     device const uchar *residual [[buffer(ANE_METAL_BUFFER_RESIDUAL), function_constant(has_residual)]],
                     constant ANEMetalParams &p [[buffer(ANE_METAL_BUFFER_PARAMS)]],
                     uint3 group [[threadgroup_position_in_grid]],
                     uint simd [[simdgroup_index_in_threadgroup]],
                     uint lane [[thread_index_in_simdgroup]])
{
    constexpr uint THREADS = WM * WN * ANE_METAL_SIMD_WIDTH;
    constexpr uint FM = BM / (WM * 8);
    constexpr uint FN = BN / (WN * 8);
    // Rows are padded by 16 bytes: they stay aligned, and rows 8 apart fall on other banks.
    constexpr uint PAD = 16 / sizeof(T);
    constexpr uint LD_K = BK + PAD;  // op(A) with k along a row, B transposed
    constexpr uint LD_M = BM + PAD;  // A transposed
    constexpr uint LD_N = BN + PAD;  // B
    constexpr uint A_SIZE = BM * LD_K > BK * LD_M ? BM * LD_K : BK * LD_M;
    constexpr uint B_SIZE = BN * LD_K > BK * LD_N ? BN * LD_K : BK * LD_N;
    constexpr uint STRIP = FN * 8;

    // Arrays of vectors, so that the wide stores are aligned.
    threadgroup vec<T, VECTOR> a_storage[A_SIZE / VECTOR];
    threadgroup vec<T, VECTOR> b_storage[B_SIZE / VECTOR];
    threadgroup float strips[WM * WN * 8 * STRIP];
    threadgroup T *a_tile = (threadgroup T *)a_storage;
    threadgroup T *b_tile = (threadgroup T *)b_storage;

    const uint thread_index = simd * ANE_METAL_SIMD_WIDTH + lane;
    const uint z = p.first_z + group.z;
    const uint item = partial ? z / p.partitions : z;
    const uint partition = partial ? z % p.partitions : 0;
    const uint k_begin = partition * p.k_per_partition;
    const uint k_end = partial ? min(p.k, k_begin + p.k_per_partition) : p.k;
    const uint first_row = (p.first_y + group.y) * BM;
    const uint first_column = group.x * BN;
    const uint rows = aligned_m ? BM : min(BM, p.m - first_row);
    const uint columns = aligned_n ? BN : min(BN, p.n - first_column);
    const uint simd_row = simd / WN * FM * 8;
    const uint simd_column = simd % WN * FN * 8;
    a += item * p.stride_a;
    b += item * p.stride_b;

    simdgroup_matrix<float, 8, 8> sums[FM][FN];
    UNROLL
    for (uint i = 0; i < FM; ++i) {
        UNROLL
        for (uint j = 0; j < FN; ++j) {
            sums[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
        }
    }

    for (uint k = k_begin; k < k_end; k += BK) {
        const uint depth = aligned_k ? BK : min(BK, k_end - k);
        if (transpose_a) {
            load_tile<T, BK, BM, LD_M, THREADS>(a + k * p.lda + first_row, p.lda, depth, rows, vector_a,
                                                thread_index, a_tile);
        } else {
            load_tile<T, BM, BK, LD_K, THREADS>(a + first_row * p.lda + k, p.lda, rows, depth, vector_a,
                                                thread_index, a_tile);
        }
        if (transpose_b) {
            load_tile<T, BN, BK, LD_K, THREADS>(b + first_column * p.ldb + k, p.ldb, columns, depth, vector_b,
                                                thread_index, b_tile);
        } else {
            load_tile<T, BK, BN, LD_N, THREADS>(b + k * p.ldb + first_column, p.ldb, depth, columns, vector_b,
                                                thread_index, b_tile);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);

        UNROLL
        for (uint kk = 0; kk < BK; kk += 8) {
            simdgroup_matrix<T, 8, 8> fragments_a[FM];
            simdgroup_matrix<T, 8, 8> fragments_b[FN];
            // Keeps the loads of one step from being scheduled into the multiplies of another.
            simdgroup_barrier(mem_flags::mem_none);
            UNROLL
            for (uint i = 0; i < FM; ++i) {
                const uint row = simd_row + i * 8;
                if (transpose_a) {
                    simdgroup_load(fragments_a[i], a_tile + kk * LD_M + row, LD_M, ulong2(0, 0), true);
                } else {
                    simdgroup_load(fragments_a[i], a_tile + row * LD_K + kk, LD_K, ulong2(0, 0), false);
                }
            }
            UNROLL
            for (uint j = 0; j < FN; ++j) {
                const uint column = simd_column + j * 8;
                if (transpose_b) {
                    simdgroup_load(fragments_b[j], b_tile + column * LD_K + kk, LD_K, ulong2(0, 0), true);
                } else {
                    simdgroup_load(fragments_b[j], b_tile + kk * LD_N + column, LD_N, ulong2(0, 0), false);
                }
            }
            simdgroup_barrier(mem_flags::mem_none);
            UNROLL
            for (uint i = 0; i < FM; ++i) {
                UNROLL
                for (uint j = 0; j < FN; ++j) {
                    // To and fro, so that consecutive multiplies share an operand.
                    const uint s = i % 2 == 0 ? j : FN - 1 - j;
                    simdgroup_multiply_accumulate(sums[i][s], fragments_a[i], fragments_b[s], sums[i][s]);
                }
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }

    if (direct_store) {
        device float *block = (device float *)c + item * p.stride_c + (first_row + simd_row) * p.ldc + first_column
            + simd_column;
        UNROLL
        for (uint i = 0; i < FM; ++i) {
            UNROLL
            for (uint j = 0; j < FN; ++j) {
                simdgroup_store(sums[i][j], block + i * 8 * p.ldc + j * 8, p.ldc, ulong2(0, 0), false);
            }
        }
        return;
    }

    // Which lane holds which element of a fragment is not documented: the sums pass through memory,
    // 8 rows of the simdgroup's block at a time.
    threadgroup float *strip = strips + simd * 8 * STRIP;
    UNROLL
    for (uint i = 0; i < FM; ++i) {
        UNROLL
        for (uint j = 0; j < FN; ++j) {
            simdgroup_store(sums[i][j], strip + j * 8, STRIP, ulong2(0, 0), false);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        for (uint e = lane; e < 8 * STRIP; e += ANE_METAL_SIMD_WIDTH) {
            const uint tile_row = simd_row + i * 8 + e / STRIP;
            const uint tile_column = simd_column + e % STRIP;
            if ((aligned_m || tile_row < rows) && (aligned_n || tile_column < columns)) {
                const ulong row = first_row + tile_row;
                const ulong column = first_column + tile_column;
                if (partial) {
                    const ulong plane = ulong(item) * p.partitions + partition;
                    ((device float *)c)[(plane * p.m + row) * p.n + column] = strip[e];
                } else {
                    finish(strip[e], p.alpha, c, item * p.stride_c + row * p.ldc + column, bias, column, residual,
                           item * p.stride_residual + row * p.ld_residual + column);
                }
            }
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
}

// ---- gemv ----------------------------------------------------------------------------------

// Writes output `index` of a product of a matrix and a vector.
static inline void finish_gemv(float sum, uint item, uint partition, ulong index, constant ANEMetalParams &p,
                               device uchar *c, device const uchar *bias, device const uchar *residual)
{
    if (partial) {
        const ulong plane = ulong(item) * p.partitions + partition;
        ((device float *)c)[plane * p.m + index] = sum;
    } else {
        finish(sum, p.alpha, c, item * p.stride_c + index * p.ldc, bias, index * p.bias_increment, residual,
               item * p.stride_residual + index * p.ld_residual);
    }
}

// VECTOR elements of a vector from `index` on, of which those from `end` on count as zero.
template <typename T>
static inline float4 load_four(device const T *data, ulong increment, uint index, uint end, bool wide)
{
    float4 value = float4(0.0f);
    if (wide && index + VECTOR <= end) {
        const vec<T, VECTOR> four = *(device const vec<T, VECTOR> *)(data + index);
        for (uint e = 0; e < VECTOR; ++e) {
            value[e] = float(four[e]);
        }
        return value;
    }
    for (uint e = 0; e < VECTOR; ++e) {
        if (index + e < end) {
            value[e] = float(data[(index + e) * increment]);
        }
    }
    return value;
}

// Rows of the matrix `a` are contiguous along k: a simdgroup forms a few dot products with the vector
// `b`. Grid: x counts groups of outputs, y partitions, z is the batch.
template <typename T>
[[kernel]] void gemv_rows(device const T *a [[buffer(ANE_METAL_BUFFER_A)]],
                          device const T *b [[buffer(ANE_METAL_BUFFER_B)]],
                          device uchar *c [[buffer(ANE_METAL_BUFFER_C)]],
                          device const uchar *bias [[buffer(ANE_METAL_BUFFER_BIAS), function_constant(has_bias)]],
                          device const uchar *residual [[buffer(ANE_METAL_BUFFER_RESIDUAL), function_constant(has_residual)]],
                          constant ANEMetalParams &p [[buffer(ANE_METAL_BUFFER_PARAMS)]],
                          uint3 group [[threadgroup_position_in_grid]],
                          uint simd [[simdgroup_index_in_threadgroup]],
                          uint lane [[thread_index_in_simdgroup]])
{
    const uint first = (group.x * ANE_METAL_GEMV_ROWS_SIMDS + simd) * ANE_METAL_GEMV_ROWS;
    if (first >= p.m) {
        return;
    }
    const uint count = min(uint(ANE_METAL_GEMV_ROWS), p.m - first);
    const uint partition = p.first_y + group.y, item = p.first_z + group.z;
    const uint k_begin = partition * p.k_per_partition;
    const uint k_end = partial ? min(p.k, k_begin + p.k_per_partition) : p.k;
    device const T *rows = a + item * p.stride_a + first * p.lda;
    device const T *x = b + item * p.stride_b;

    float sums[ANE_METAL_GEMV_ROWS] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (uint k = k_begin + lane * VECTOR; k < k_end; k += ANE_METAL_SIMD_WIDTH * VECTOR) {
        const float4 x_values = load_four<T>(x, p.ldb, k, k_end, vector_b);
        for (uint r = 0; r < count; ++r) {
            const float4 row_values = load_four<T>(rows + r * p.lda, 1, k, k_end, vector_a);
            sums[r] += row_values[0] * x_values[0] + row_values[1] * x_values[1] + row_values[2] * x_values[2]
                + row_values[3] * x_values[3];
        }
    }
    for (uint r = 0; r < count; ++r) {
        const float sum = simd_sum(sums[r]);
        if (lane == r) {
            finish_gemv(sum, item, partition, first + r, p, c, bias, residual);
        }
    }
}

// Outputs are contiguous along a row of the matrix `a`, which is k x m as stored: a lane sums a few
// columns, and the simdgroups of a threadgroup take the rows in turn. Grid as in gemv_rows.
template <typename T>
[[kernel]] void gemv_columns(device const T *a [[buffer(ANE_METAL_BUFFER_A)]],
                             device const T *b [[buffer(ANE_METAL_BUFFER_B)]],
                             device uchar *c [[buffer(ANE_METAL_BUFFER_C)]],
                             device const uchar *bias [[buffer(ANE_METAL_BUFFER_BIAS), function_constant(has_bias)]],
                             device const uchar *residual [[buffer(ANE_METAL_BUFFER_RESIDUAL), function_constant(has_residual)]],
                             constant ANEMetalParams &p [[buffer(ANE_METAL_BUFFER_PARAMS)]],
                             uint3 group [[threadgroup_position_in_grid]],
                             uint simd [[simdgroup_index_in_threadgroup]],
                             uint lane [[thread_index_in_simdgroup]])
{
    threadgroup float simd_sums[ANE_METAL_GEMV_COLUMNS_SIMDS * ANE_METAL_GEMV_COLUMNS];
    const uint first = group.x * ANE_METAL_GEMV_COLUMNS;
    const uint partition = p.first_y + group.y, item = p.first_z + group.z;
    const uint k_begin = partition * p.k_per_partition;
    const uint k_end = partial ? min(p.k, k_begin + p.k_per_partition) : p.k;
    device const T *columns = a + item * p.stride_a;
    device const T *x = b + item * p.stride_b;

    float4 sums = float4(0.0f);
    for (uint k = k_begin + simd; k < k_end; k += ANE_METAL_GEMV_COLUMNS_SIMDS) {
        const float x_value = float(x[k * p.ldb]);
        sums += x_value * load_four<T>(columns + k * p.lda, 1, first + lane * VECTOR, p.m, vector_a);
    }
    for (uint e = 0; e < VECTOR; ++e) {
        simd_sums[simd * ANE_METAL_GEMV_COLUMNS + lane * VECTOR + e] = sums[e];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const uint column = simd * ANE_METAL_SIMD_WIDTH + lane;
    if (column < ANE_METAL_GEMV_COLUMNS && first + column < p.m) {
        float sum = 0.0f;
        for (uint s = 0; s < ANE_METAL_GEMV_COLUMNS_SIMDS; ++s) {
            sum += simd_sums[s * ANE_METAL_GEMV_COLUMNS + column];
        }
        finish_gemv(sum, item, partition, first + column, p, c, bias, residual);
    }
}

// ---- split k -------------------------------------------------------------------------------

// Adds the partial sums of an element in the order of the partitions: the result does not depend on
// which threadgroup came first. Grid: x counts threadgroups along n, y along m, z is the batch.
[[kernel]] void splitk_reduce(device const float *sums [[buffer(ANE_METAL_BUFFER_A)]],
                              device uchar *c [[buffer(ANE_METAL_BUFFER_C)]],
                              device const uchar *bias [[buffer(ANE_METAL_BUFFER_BIAS), function_constant(has_bias)]],
                              device const uchar *residual [[buffer(ANE_METAL_BUFFER_RESIDUAL), function_constant(has_residual)]],
                              constant ANEMetalParams &p [[buffer(ANE_METAL_BUFFER_PARAMS)]],
                              uint3 position [[thread_position_in_grid]])
{
    const ulong row = position.y;
    const ulong column = position.x;
    if (row >= p.m || column >= p.n) {
        return;
    }
    const ulong plane_size = ulong(p.m) * p.n;
    device const float *element = sums + position.z * p.partitions * plane_size + row * p.n + column;
    float sum = 0.0f;
    for (uint i = 0; i < p.partitions; ++i) {
        sum += element[i * plane_size];
    }
    finish(sum, p.alpha, c, position.z * p.stride_c + row * p.ldc + column, bias, column, residual,
           position.z * p.stride_residual + row * p.ld_residual + column);
}

// ---- instances -----------------------------------------------------------------------------

#define INSTANCE(name, ...) template [[host_name(name)]] [[kernel]] decltype(__VA_ARGS__) __VA_ARGS__;

#define GEMM_INSTANCE(type, name, bm, bn, bk, wm, wn) \
    INSTANCE("gemm_" name "_" #bm "x" #bn "x" #bk "_" #wm "x" #wn, gemm<type, bm, bn, bk, wm, wn>)
#define GEMV_INSTANCES(type, name)                      \
    INSTANCE("gemv_rows_" name, gemv_rows<type>)        \
    INSTANCE("gemv_columns_" name, gemv_columns<type>)

#define GEMM_F32(...) GEMM_INSTANCE(float, "f32", __VA_ARGS__)
ANE_METAL_TILES(GEMM_F32)
GEMV_INSTANCES(float, "f32")

#define GEMM_F16(...) GEMM_INSTANCE(half, "f16", __VA_ARGS__)
ANE_METAL_TILES(GEMM_F16)
GEMV_INSTANCES(half, "f16")

#if __METAL_VERSION__ >= 310
#define GEMM_BF16(...) GEMM_INSTANCE(bfloat, "bf16", __VA_ARGS__)
ANE_METAL_TILES(GEMM_BF16)
GEMV_INSTANCES(bfloat, "bf16")
#endif
