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

__device__ __forceinline__ void finish_element(const Finish &f, uint64_t item, uint64_t i, uint64_t j, float bias) {
    uint64_t r = item * f.rows + i;
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
            return;
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

__global__ void finish(Finish f) {
    uint64_t j = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x;
    if (j >= f.columns) return;
    float bias = f.bias.data != nullptr ? load(f.bias.type, f.bias.data, j) : 0;
    for (uint64_t item = blockIdx.z; item < f.items; item += gridDim.z) {
        for (uint64_t i = blockIdx.y; i < f.rows; i += gridDim.y) finish_element(f, item, i, j, bias);
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

/* Elements of bf16, with 0 for NaN and infinity: what the first part of a weight has multiplied, the others must not.
 */
__global__ void keep_finite(const __nv_bfloat16 *from, __nv_bfloat16 *to, uint64_t count) {
    uint64_t step = gridDim.x * static_cast<uint64_t>(blockDim.x);
    for (uint64_t i = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x; i < count; i += step) {
        float x = __bfloat162float(from[i]);
        to[i] = isnan(x) || isinf(x) ? __float2bfloat16_rn(0) : from[i];
    }
}

/* How many 16-bit floats one number of a weight is at most the sum of: an integer of 8 bits and a scale of 11 have 19.
 */
constexpr unsigned MOST_PARTS = 3;

/*
 * The numbers that they stand for, in the order in which they are stored: `outer` runs of `inner`, rounded up to `ld`,
 * a multiple of 8, with zeros. They are scaled unless that is left to the epilogue. With several parts each is what the
 * parts before it have left of the number, rounded to the type. A thread to eight.
 */
__global__ void dequantize(Weights w, bool transposed, bool scaled, unsigned items, unsigned outer, unsigned inner,
                           unsigned ld, ANEType type, unsigned parts, void *out) {
    unsigned first = (blockIdx.x * blockDim.x + threadIdx.x) * 8, group = static_cast<unsigned>(w.group);
    if (first >= ld) return;
    uint64_t part_bytes = static_cast<uint64_t>(items) * outer * ld * (type == ANE_TYPE_F32 ? 4 : 2);
    for (unsigned item = blockIdx.z; item < items; item += gridDim.z) {
        for (unsigned x = blockIdx.y; x < outer; x += gridDim.y) {
            float left[8];
            for (unsigned e = 0; e < 8; e++) {
                unsigned y = first + e, p = transposed ? y : x, j = transposed ? x : y;
                left[e] = 0;
                if (y >= inner) continue;
                int integer = load_integer(w.b.type, w.nibble_order, w.b.data, w.b.at(item, p, j)) - w.zero;
                left[e] = static_cast<float>(integer);
                if (!scaled || w.scales.data == nullptr) continue;
                left[e] *= load(w.scales.type, w.scales.data, w.scales.at(item, p / group, j));
            }
            char *to = static_cast<char *>(out);
            uint64_t place = (static_cast<uint64_t>(item) * outer + x) * ld + first;
            for (unsigned part = 0; part < parts; part++, to += part_bytes) {
                if (type == ANE_TYPE_F32) {
                    float4 *wide = reinterpret_cast<float4 *>(to + place * 4);
                    wide[0] = float4{left[0], left[1], left[2], left[3]};
                    wide[1] = float4{left[4], left[5], left[6], left[7]};
                    continue;
                }
                union {
                    __half halves[8];
                    __nv_bfloat16 brains[8];
                    uint4 all;
                } packed;
                packed.all = uint4{0, 0, 0, 0};
                for (unsigned e = 0; e < 8; e++) {
                    if (type == ANE_TYPE_F16) {
                        packed.halves[e] = __float2half_rn(left[e]);
                    } else {
                        packed.brains[e] = __float2bfloat16_rn(left[e]);
                        left[e] -= __bfloat162float(packed.brains[e]);
                    }
                }
                *reinterpret_cast<uint4 *>(to + place * 2) = packed.all;
            }
        }
    }
}

/* Elements of a type as f32. */
__global__ void widen(ANEType type, const void *from, float *to, uint64_t count) {
    uint64_t step = gridDim.x * static_cast<uint64_t>(blockDim.x);
    for (uint64_t i = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x; i < count; i += step) {
        to[i] = load(type, from, i);
    }
}

/* The integer `e` of a word of integers of some bits. */
template <int BITS> __device__ __forceinline__ int from_word(const Weights &w, uint32_t word, int e) {
    if (BITS == 4) return from_nibble(w.b.type, word >> 4 * (w.nibble_order == ANE_NIBBLE_HIGH_FIRST ? e ^ 1 : e));
    uint32_t part = word >> 8 * e;
    return w.b.type == ANE_TYPE_I8 ? static_cast<int8_t>(part) : static_cast<uint8_t>(part);
}

/*
 * A few rows of A, ROWS at once, times weights that are read once, as integers: words of 32 bits, of neighbours in a
 * row. Each thread has the columns of a word, and sums `depth` rows of B; the epilogue adds up what the blocks along k
 * have.
 */
template <int BITS, ANEType TYPE, int ROWS>
__global__ void weights_by_columns(const void *a, unsigned lda, Weights w, unsigned rows, unsigned columns, unsigned k,
                                   unsigned depth, float *sums) {
    constexpr unsigned EACH = 32 / BITS;
    unsigned j = (blockIdx.x * blockDim.x + threadIdx.x) * EACH, row = blockIdx.z * ROWS;
    unsigned first = blockIdx.y * depth, last = first + depth < k ? first + depth : k;
    unsigned group = static_cast<unsigned>(w.group), next = first;
    if (j >= columns) return;
    float sum[ROWS][EACH] = {}, scale[EACH];
    for (unsigned e = 0; e < EACH; e++) scale[e] = 1;
    for (unsigned p = first; p < last; p++) {
        if (p == next) {
            unsigned g = p / group;
            next = (g + 1) * group;
            for (unsigned e = 0; e < EACH && w.scales.data != nullptr; e++) {
                scale[e] = load(w.scales.type, w.scales.data, w.scales.at(0, g, j + e));
            }
        }
        uint32_t word = static_cast<const uint32_t *>(w.b.data)[(p * w.b.row + j) / EACH];
        float x[ROWS];
        for (unsigned i = 0; i < ROWS; i++)
            x[i] = row + i < rows ? load(TYPE, a, (row + i) * static_cast<uint64_t>(lda) + p) : 0;
#pragma unroll
        for (unsigned e = 0; e < EACH; e++) {
            float value = static_cast<float>(from_word<BITS>(w, word, static_cast<int>(e)) - w.zero) * scale[e];
#pragma unroll
            for (unsigned i = 0; i < ROWS; i++) sum[i][e] += x[i] * value;
        }
    }
    for (unsigned i = 0; i < ROWS && row + i < rows; i++) {
        uint64_t place = (blockIdx.y * static_cast<uint64_t>(rows) + row + i) * columns + j;
        for (unsigned e = 0; e < EACH; e++) sums[place + e] = sum[i][e];
    }
}

/* Eight elements, at a multiple of 16 bytes. */
template <ANEType TYPE> __device__ __forceinline__ void load_eight(const void *data, uint64_t i, float *to) {
    union {
        uint4 all[2];
        float floats[8];
        __half halves[8];
        __nv_bfloat16 brains[8];
    } packed;
    if (TYPE == ANE_TYPE_F32) {
        packed.all[0] = static_cast<const uint4 *>(data)[i / 4];
        packed.all[1] = static_cast<const uint4 *>(data)[i / 4 + 1];
    } else {
        packed.all[0] = static_cast<const uint4 *>(data)[i / 8];
    }
    for (int e = 0; e < 8; e++) {
        to[e] = TYPE == ANE_TYPE_F32   ? packed.floats[e]
                : TYPE == ANE_TYPE_F16 ? __half2float(packed.halves[e])
                                       : __bfloat162float(packed.brains[e]);
    }
}

/* The same of weights that are stored transposed: a warp to a column, whose lanes take 128 bits each in turn, which one
 * scale is for. */
template <int BITS, ANEType TYPE, int ROWS>
__global__ void weights_by_rows(const void *a, unsigned lda, Weights w, unsigned rows, unsigned columns, unsigned k,
                                float *sums) {
    constexpr unsigned EACH = 128 / BITS;
    unsigned j = blockIdx.x * blockDim.y + threadIdx.y, row = blockIdx.z * ROWS, group = static_cast<unsigned>(w.group);
    if (j >= columns) return;
    float sum[ROWS] = {};
    for (unsigned p = threadIdx.x * EACH; p < k; p += blockDim.x * EACH) {
        union {
            uint4 all;
            uint32_t words[4];
        } read;
        read.all = static_cast<const uint4 *>(w.b.data)[(j * w.b.column + p) / EACH];
        float part[ROWS] = {};
#pragma unroll
        for (unsigned eight = 0; eight < EACH / 8; eight++) {
            float values[8];
#pragma unroll
            for (int e = 0; e < 8; e++) {
                uint32_t word = read.words[BITS == 4 ? eight : eight * 2 + static_cast<unsigned>(e) / 4];
                values[e] = static_cast<float>(from_word<BITS>(w, word, BITS == 4 ? e : e % 4) - w.zero);
            }
#pragma unroll
            for (unsigned i = 0; i < ROWS; i++) {
                if (row + i >= rows) break;
                float x[8];
                load_eight<TYPE>(a, (row + i) * static_cast<uint64_t>(lda) + p + eight * 8, x);
                for (int e = 0; e < 8; e++) part[i] += x[e] * values[e];
            }
        }
        float scale = w.scales.data == nullptr ? 1 : load(w.scales.type, w.scales.data, w.scales.at(0, p / group, j));
        for (unsigned i = 0; i < ROWS; i++) sum[i] += part[i] * scale;
    }
    for (unsigned i = 0; i < ROWS; i++) {
        for (unsigned step = blockDim.x / 2; step > 0; step /= 2) {
            sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], static_cast<int>(step));
        }
        if (threadIdx.x == 0 && row + i < rows) sums[(row + i) * static_cast<uint64_t>(columns) + j] = sum[i];
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
