/*
 * The kernels of the CUDA shim: what surrounds the products that cuBLASLt computes. They use no shared memory, and
 * exchange values within a warp alone, of which the launch says the size (blockDim.x).
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#pragma once
#include "ane_matmul.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <math.h>
#include <stdint.h>

namespace ane {

/* ---- elements ------------------------------------------------------------------------------ */

__device__ __forceinline__ float load(ANEType type, const void *data, uint64_t i) {
    switch (type) {
    case ANE_TYPE_F16: return __half2float(static_cast<const __half *>(data)[i]);
    case ANE_TYPE_BF16: return __bfloat162float(static_cast<const __nv_bfloat16 *>(data)[i]);
    case ANE_TYPE_I32: return static_cast<float>(static_cast<const int32_t *>(data)[i]);
    case ANE_TYPE_I8: return static_cast<const int8_t *>(data)[i];
    case ANE_TYPE_U8: return static_cast<const uint8_t *>(data)[i];
    default: return static_cast<const float *>(data)[i];
    }
}

__device__ __forceinline__ void store(ANEType type, void *data, uint64_t i, float x) {
    switch (type) {
    case ANE_TYPE_F16: static_cast<__half *>(data)[i] = __float2half_rn(x); break;
    case ANE_TYPE_BF16: static_cast<__nv_bfloat16 *>(data)[i] = __float2bfloat16_rn(x); break;
    case ANE_TYPE_I8: static_cast<int8_t *>(data)[i] = static_cast<int8_t>(x); break;
    case ANE_TYPE_U8: static_cast<uint8_t *>(data)[i] = static_cast<uint8_t>(x); break;
    default: static_cast<float *>(data)[i] = x;
    }
}

/* An integer of 4 bits: `nibble` has it in its lowest. */
__device__ __forceinline__ int from_nibble(ANEType type, uint32_t nibble) {
    int value = static_cast<int>(nibble & 15);
    return type == ANE_TYPE_I4 && value > 7 ? value - 16 : value;
}

__device__ __forceinline__ int load_integer(ANEType type, int32_t nibble_order, const void *data, uint64_t i) {
    const uint8_t *bytes = static_cast<const uint8_t *>(data);
    if (type == ANE_TYPE_I8) return static_cast<const int8_t *>(data)[i];
    if (type == ANE_TYPE_U8) return bytes[i];
    bool high = ((i & 1) != 0) == (nibble_order == ANE_NIBBLE_LOW_FIRST);
    return from_nibble(type, high ? bytes[i / 2] >> 4 : bytes[i / 2]);
}

__device__ __forceinline__ float activate(ANEActivation activation, float x) {
    switch (activation) {
    case ANE_ACTIVATION_RELU: return x < 0 ? 0 : x; /* NaN stays NaN */
    case ANE_ACTIVATION_GELU_ERF: return x == -INFINITY ? 0 : 0.5f * x * erfcf(-x * 0.70710678f);
    case ANE_ACTIVATION_GELU_TANH:
        return x == -INFINITY ? 0 : x / (1 + expf(-1.5957691f * (x + 0.044715f * x * x * x)));
    case ANE_ACTIVATION_SILU: return x == -INFINITY ? 0 : x / (1 + expf(-x));
    case ANE_ACTIVATION_SIGMOID: return 1 / (1 + expf(-x));
    case ANE_ACTIVATION_TANH: return tanhf(x);
    default: return x;
    }
}

/* A matrix of each item, with the distances between elements, in elements. */
struct Matrix {
    const void *data;
    ANEType type;
    uint64_t item, row, column;

    __device__ __forceinline__ uint64_t at(uint64_t i, uint64_t r, uint64_t c) const {
        return i * item + r * row + c * column;
    }
};

/* ---- the epilogue -------------------------------------------------------------------------- */

/*
 * C = activation(alpha * sum + bias + residual), rounded once. Sums of integers are first freed of their zero points
 * and scaled: by a scale for all rows or one each, and by one for all columns or one each.
 */
struct Finish {
    uint64_t items, rows, columns, k;
    const void *sums; /* f32 or i32, or NULL where every sum is 0; items of rows of `ld` elements */
    ANEType type_sums;
    uint64_t ld;
    uint32_t splits; /* of k, whose sums follow one another: they are added up */
    float alpha;
    int32_t zero_a, zero_b;
    const int32_t *row_sums; /* of A's integers, with zero_b */
    const int32_t *column_sums;
    uint64_t column_sums_item; /* from one item to the next */
    float scale_a;
    const float *row_scales; /* in place of scale_a */
    Matrix scales;           /* of B; no data: 1 */
    Matrix bias, residual;   /* no data: none */
    ANEActivation activation;
    int32_t quantized, zero_c;
    float scale_c, inverse_c;
    Matrix c;
    void *out;
};

__global__ void finish(Finish f) {
    uint64_t j = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x;
    if (j >= f.columns) return;
    float bias = f.bias.data != nullptr ? load(f.bias.type, f.bias.data, j) : 0;
    for (uint64_t r = blockIdx.y; r < f.items * f.rows; r += gridDim.y) {
        uint64_t item = r / f.rows, i = r % f.rows;
        float x = 0;
        if (f.type_sums == ANE_TYPE_I32) {
            uint32_t sum = 0; /* modulo 2^32 */
            if (f.sums != nullptr) sum = static_cast<const uint32_t *>(f.sums)[r * f.ld + j];
            if (f.zero_b != 0) sum -= static_cast<uint32_t>(f.zero_b) * static_cast<uint32_t>(f.row_sums[r]);
            if (f.zero_a != 0) {
                uint32_t column = static_cast<uint32_t>(f.column_sums[item * f.column_sums_item + j]);
                uint32_t both = static_cast<uint32_t>(f.k) * static_cast<uint32_t>(f.zero_b);
                sum -= static_cast<uint32_t>(f.zero_a) * (column - both);
            }
            if (f.c.type == ANE_TYPE_I32) {
                static_cast<uint32_t *>(f.out)[f.c.at(item, i, j)] = sum;
                continue;
            }
            float scale = f.scales.data != nullptr ? load(f.scales.type, f.scales.data, f.scales.at(item, 0, j)) : 1;
            float row_scale = f.row_scales != nullptr ? f.row_scales[r] : f.scale_a;
            x = static_cast<float>(static_cast<int32_t>(sum)) * (row_scale * (f.alpha * scale));
        } else if (f.sums != nullptr) {
            uint64_t split = f.items * f.rows * f.ld;
            for (uint32_t s = 0; s < f.splits; s++) x += static_cast<const float *>(f.sums)[s * split + r * f.ld + j];
            if (f.scales.data != nullptr) x *= load(f.scales.type, f.scales.data, f.scales.at(item, 0, j));
            x *= f.alpha;
        }
        if (f.bias.data != nullptr) x += bias;
        if (f.residual.data != nullptr) {
            float residual = load(f.residual.type, f.residual.data, f.residual.at(item, i, j));
            x += f.quantized ? f.scale_c * (residual - static_cast<float>(f.zero_c)) : residual;
        }
        x = activate(f.activation, x);
        if (f.quantized) {
            float lowest = f.c.type == ANE_TYPE_I8 ? -128 : 0, zero = static_cast<float>(f.zero_c);
            x = isnan(x) ? zero : fminf(fmaxf(rintf(x * f.inverse_c) + zero, lowest), lowest + 255);
        }
        store(f.c.type, f.out, f.c.at(item, i, j), x);
    }
}

/* ---- integers ------------------------------------------------------------------------------ */

/* The scale of each row of a float matrix: max(largest / 127, 2^-126), or NaN for a row with a NaN or an infinity. A
 * warp to a row. */
__global__ void row_scales(Matrix a, uint64_t items, uint64_t rows, uint64_t k, float *scales) {
    uint64_t r = blockIdx.x * static_cast<uint64_t>(blockDim.y) + threadIdx.y;
    if (r >= items * rows) return;
    float largest = 0;
    for (uint64_t p = threadIdx.x; p < k; p += blockDim.x) {
        float x = fabsf(load(a.type, a.data, a.at(r / rows, r % rows, p)));
        largest = x <= largest ? largest : x; /* NaN and infinity stay */
        if (isnan(x)) largest = INFINITY;
    }
    for (unsigned step = blockDim.x / 2; step > 0; step /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, static_cast<int>(step)));
    }
    if (threadIdx.x == 0) scales[r] = isinf(largest) ? NAN : fmaxf(largest / 127, 1.17549435e-38f);
}

/*
 * Rows of integers of 8 bits, `padded` of them each (a multiple of 16), with zeros after the k that there are. What is
 * float is divided by the scale of its row; of u8 128 is subtracted. Each thread writes 16: neighbours those of one row
 * where elements of a row are neighbours, and of one column otherwise.
 */
__global__ void pack(Matrix a, uint64_t items, uint64_t rows, uint64_t k, uint64_t padded, const float *scales,
                     int8_t *out) {
    uint64_t chunks = padded / 16, count = items * rows * chunks;
    uint64_t t = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x;
    if (t >= count) return;
    uint64_t r = a.column == 1 ? t / chunks : t % (items * rows);
    uint64_t chunk = a.column == 1 ? t % chunks : t / (items * rows);
    uint64_t item = r / rows, i = r % rows;
    union {
        int8_t bytes[16];
        uint4 all;
    } packed;
    for (int e = 0; e < 16; e++) {
        uint64_t p = chunk * 16 + static_cast<uint64_t>(e);
        float x = 0;
        if (p < k) {
            x = load(a.type, a.data, a.at(item, i, p));
            if (scales != nullptr) x = rintf(x / scales[r]);
            if (isnan(x)) x = 0; /* its row is NaN by its scale */
            if (a.type == ANE_TYPE_U8) x -= 128;
        }
        packed.bytes[e] = static_cast<int8_t>(x);
    }
    reinterpret_cast<uint4 *>(out)[r * chunks + chunk] = packed.all;
}

/* The sums of rows of integers, `ld` from one to the next, and `item` from one item's first to that of the next; a warp
 * to a row. */
__global__ void sum_rows(const int8_t *a, uint64_t items, uint64_t rows, uint64_t k, uint64_t ld, uint64_t item,
                         int32_t *sums) {
    uint64_t r = blockIdx.x * static_cast<uint64_t>(blockDim.y) + threadIdx.y;
    if (r >= items * rows) return;
    int32_t sum = 0;
    for (uint64_t p = threadIdx.x; p < k; p += blockDim.x) sum += a[r / rows * item + r % rows * ld + p];
    for (unsigned step = blockDim.x / 2; step > 0; step /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, static_cast<int>(step));
    }
    if (threadIdx.x == 0) sums[r] = sum;
}

/* ---- weights ------------------------------------------------------------------------------- */

/* Integers of 8 or 4 bits with scales, `group` rows of B to one. */
struct Weights {
    Matrix b; /* rows along k */
    int32_t nibble_order, zero;
    Matrix scales; /* a row to each group; no data: 1 */
    uint64_t group;
};

__device__ __forceinline__ float scale_of(const Weights &w, uint64_t item, uint64_t p, uint64_t j) {
    return w.scales.data == nullptr ? 1 : load(w.scales.type, w.scales.data, w.scales.at(item, p / w.group, j));
}

/* The numbers that they stand for, in the order in which they are stored: `outer` runs of `inner`, of which neighbours
 * are neighbours. They are scaled unless that is left to the epilogue. */
__global__ void dequantize(Weights w, bool transposed, bool scaled, uint64_t items, uint64_t outer, uint64_t inner,
                           uint64_t ld, ANEType type, void *out) {
    uint64_t count = items * outer * inner, step = gridDim.x * static_cast<uint64_t>(blockDim.x);
    for (uint64_t t = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x; t < count; t += step) {
        uint64_t y = t % inner, x = t / inner % outer, item = t / inner / outer;
        uint64_t p = transposed ? y : x, j = transposed ? x : y;
        int integer = load_integer(w.b.type, w.nibble_order, w.b.data, w.b.at(item, p, j)) - w.zero;
        float value = static_cast<float>(integer);
        store(type, out, (item * outer + x) * ld + y, scaled ? value * scale_of(w, item, p, j) : value);
    }
}

/* Elements of a type as f32. */
__global__ void widen(ANEType type, const void *from, float *to, uint64_t count) {
    uint64_t step = gridDim.x * static_cast<uint64_t>(blockDim.x);
    for (uint64_t i = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x; i < count; i += step) {
        to[i] = load(type, from, i);
    }
}

/* Rows of A that a thread of the next two multiplies with what it has read of B. */
constexpr int ROWS_AT_ONCE = 4;

/*
 * A few rows of A times weights that are read once, as integers: 32 bits at a time, 4 or 8 integers, of as many columns.
 * Each thread sums `depth` rows of B; the epilogue adds up what the blocks along k have.
 */
__global__ void weights_by_columns(Matrix a, Weights w, uint64_t rows, uint64_t columns, uint64_t k, uint64_t depth,
                                   float *sums) {
    const int bits = w.b.type == ANE_TYPE_I8 || w.b.type == ANE_TYPE_U8 ? 8 : 4, each = 32 / bits;
    uint64_t j = (blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x) * static_cast<uint64_t>(each);
    uint64_t first = blockIdx.y * depth, last = first + depth < k ? first + depth : k;
    uint64_t row = blockIdx.z * static_cast<uint64_t>(ROWS_AT_ONCE);
    if (j >= columns) return;
    float sum[ROWS_AT_ONCE][8] = {}, scale[8] = {};
    uint64_t group = UINT64_MAX;
    for (uint64_t p = first; p < last; p++) {
        if (p / w.group != group) {
            group = p / w.group;
            for (int e = 0; e < each; e++) scale[e] = scale_of(w, 0, p, j + static_cast<uint64_t>(e));
        }
        uint32_t word = static_cast<const uint32_t *>(w.b.data)[(p * w.b.row + j) / static_cast<uint64_t>(each)];
        float x[ROWS_AT_ONCE];
        for (int i = 0; i < ROWS_AT_ONCE; i++) {
            x[i] = row + static_cast<uint64_t>(i) < rows ? load(a.type, a.data, a.at(0, row + static_cast<uint64_t>(i), p)) : 0;
        }
#pragma unroll
        for (int e = 0; e < 8; e++) {
            if (e >= each) break;
            int shift = bits == 4 && w.nibble_order == ANE_NIBBLE_HIGH_FIRST ? 4 * (e ^ 1) : bits * e;
            uint32_t part = word >> shift;
            int integer = bits == 4 ? from_nibble(w.b.type, part)
                          : w.b.type == ANE_TYPE_I8 ? static_cast<int8_t>(part) : static_cast<uint8_t>(part);
            float value = static_cast<float>(integer - w.zero) * scale[e];
            for (int i = 0; i < ROWS_AT_ONCE; i++) sum[i][e] += x[i] * value;
        }
    }
    for (int i = 0; i < ROWS_AT_ONCE && row + static_cast<uint64_t>(i) < rows; i++) {
#pragma unroll
        for (int e = 0; e < 8; e++) {
            if (e < each) sums[(blockIdx.y * rows + row + static_cast<uint64_t>(i)) * columns + j + static_cast<uint64_t>(e)] = sum[i][e];
        }
    }
}

/* The same of weights that are stored transposed: a warp to a column, whose lanes take 32 bits each in turn. */
__global__ void weights_by_rows(Matrix a, Weights w, uint64_t rows, uint64_t columns, uint64_t k, float *sums) {
    const int bits = w.b.type == ANE_TYPE_I8 || w.b.type == ANE_TYPE_U8 ? 8 : 4, each = 32 / bits;
    uint64_t j = blockIdx.x * static_cast<uint64_t>(blockDim.y) + threadIdx.y;
    uint64_t row = blockIdx.z * static_cast<uint64_t>(ROWS_AT_ONCE), width = static_cast<uint64_t>(each);
    if (j >= columns) return;
    float sum[ROWS_AT_ONCE] = {};
    for (uint64_t p = threadIdx.x * width; p < k; p += blockDim.x * width) {
        uint32_t word = static_cast<const uint32_t *>(w.b.data)[(j * w.b.column + p) / width];
        float scale = scale_of(w, 0, p, j);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            if (e >= each) break;
            int shift = bits == 4 && w.nibble_order == ANE_NIBBLE_HIGH_FIRST ? 4 * (e ^ 1) : bits * e;
            uint32_t part = word >> shift;
            int integer = bits == 4 ? from_nibble(w.b.type, part)
                          : w.b.type == ANE_TYPE_I8 ? static_cast<int8_t>(part) : static_cast<uint8_t>(part);
            float value = static_cast<float>(integer - w.zero) * scale;
            for (int i = 0; i < ROWS_AT_ONCE; i++) {
                if (row + static_cast<uint64_t>(i) >= rows) break;
                sum[i] += load(a.type, a.data, a.at(0, row + static_cast<uint64_t>(i), p + static_cast<uint64_t>(e))) * value;
            }
        }
    }
    for (int i = 0; i < ROWS_AT_ONCE; i++) {
        for (unsigned step = blockDim.x / 2; step > 0; step /= 2) {
            sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], static_cast<int>(step));
        }
        if (threadIdx.x == 0 && row + static_cast<uint64_t>(i) < rows) sums[(row + static_cast<uint64_t>(i)) * columns + j] = sum[i];
    }
}

/* ---- where cuBLASLt has nothing ------------------------------------------------------------ */

/* One sum to a thread: of f32, or of integers of 8 bits. For what no kernel of cuBLASLt's takes. */
__global__ void multiply(Matrix a, Matrix b, uint64_t items, uint64_t rows, uint64_t columns, uint64_t k, bool integers,
                         uint64_t ld, void *sums) {
    uint64_t count = items * rows * columns, step = gridDim.x * static_cast<uint64_t>(blockDim.x);
    for (uint64_t t = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x; t < count; t += step) {
        uint64_t j = t % columns, r = t / columns, item = r / rows, i = r % rows;
        float sum = 0;
        int32_t integer = 0;
        for (uint64_t p = 0; p < k; p++) {
            uint64_t left = a.at(item, i, p), right = b.at(item, p, j);
            if (integers) {
                integer += static_cast<const int8_t *>(a.data)[left] * static_cast<const int8_t *>(b.data)[right];
            } else {
                sum += load(a.type, a.data, left) * load(b.type, b.data, right);
            }
        }
        if (integers) {
            static_cast<int32_t *>(sums)[r * ld + j] = integer;
        } else {
            static_cast<float *>(sums)[r * ld + j] = sum;
        }
    }
}

} /* namespace ane */
