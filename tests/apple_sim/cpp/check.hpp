// check.hpp - declarations, with real address spaces, of the part of the Metal standard library that
// the kernels may use. Nothing here runs: clang only checks types against it, as C++14.
#pragma once

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;
typedef __bf16 bfloat;

#define EMU_DEVICE __attribute__((address_space(1)))
#define EMU_CONSTANT __attribute__((address_space(2)))
#define EMU_THREADGROUP __attribute__((address_space(3)))
#undef INFINITY
#define INFINITY __builtin_huge_valf()

namespace metal {

template <typename T, uint N>
using vec = T __attribute__((ext_vector_type(N)));
typedef vec<float, 4> float4;
typedef vec<half, 4> half4;
typedef vec<uint, 2> uint2;
typedef vec<uint, 3> uint3;
struct ulong2 {
    ulong2(ulong x, ulong y);
};

enum class mem_flags { mem_none, mem_device, mem_threadgroup };
mem_flags operator|(mem_flags, mem_flags);
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);

float simd_sum(float);
template <typename T>
T min(T, T);
template <typename T>
T max(T, T);
float fabs(float);
namespace precise {
float exp(float);
float tanh(float);
}

template <typename T, int Cols, int Rows>
struct simdgroup_matrix;
template <>
struct simdgroup_matrix<float, 8, 8> {
    float opaque[2];
};
template <>
struct simdgroup_matrix<half, 8, 8> {
    half opaque[2];
};
template <>
struct simdgroup_matrix<bfloat, 8, 8> {
    bfloat opaque[2];
};

template <typename T, int Cols, int Rows>
simdgroup_matrix<T, Cols, Rows> make_filled_simdgroup_matrix(T value);
template <typename T>
void simdgroup_load(simdgroup_matrix<T, 8, 8> &d, const EMU_DEVICE T *src, ulong elements_per_row = 8,
                    ulong2 origin = ulong2(0, 0), bool transpose = false);
template <typename T>
void simdgroup_load(simdgroup_matrix<T, 8, 8> &d, const EMU_THREADGROUP T *src, ulong elements_per_row = 8,
                    ulong2 origin = ulong2(0, 0), bool transpose = false);
template <typename T>
void simdgroup_store(simdgroup_matrix<T, 8, 8> a, EMU_DEVICE T *dst, ulong elements_per_row = 8,
                     ulong2 origin = ulong2(0, 0), bool transpose = false);
template <typename T>
void simdgroup_store(simdgroup_matrix<T, 8, 8> a, EMU_THREADGROUP T *dst, ulong elements_per_row = 8,
                     ulong2 origin = ulong2(0, 0), bool transpose = false);
template <typename D, typename T>
void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8> &d, simdgroup_matrix<T, 8, 8> &a,
                                   simdgroup_matrix<T, 8, 8> &b, simdgroup_matrix<D, 8, 8> &c);

} // namespace metal
