// kernel.hpp - what a translated kernel file is compiled with: the part of the Metal standard library
// that the kernels use, and the glue that registers and calls them.
//
// Access checks come from -fsanitize=thread: the compiler inserts a call before each load and store.
// Functions here are exempt and report the accesses of simdgroup operations themselves.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;
typedef __bf16 bfloat;

#define EMU_EXEMPT __attribute__((no_sanitize("thread")))
// Neither inlined nor merged, so that the return address is the kernel's line.
#define EMU_COLLECTIVE __attribute__((no_sanitize("thread"), noinline, nomerge))

namespace emu {

enum class Kind { buffer, thread_position_in_grid, threadgroup_position_in_grid, thread_position_in_threadgroup,
                  thread_index_in_threadgroup, simdgroup_index_in_threadgroup, thread_index_in_simdgroup };

struct Parameter {
    Kind kind;
    uint index;          // of a buffer
    const bool *present; // its function constant, or null
};

struct Builtins {
    uint thread_in_grid[3], group[3], thread_in_group[3], thread_index, simd, lane;
};

using Thunk = void (*)(void *const *buffers, const Builtins &);

struct Kernel {
    const char *name;
    Thunk thunk;
    const Parameter *parameters;
    const bool *writable; // by parameter: a pointer to what is not const
    uint parameter_count;
};

struct Constant {
    uint index;
    int kind; // 1 bool, 2 uint
    void *value;
};

extern const Kernel kernels[];
extern const uint kernel_count;
extern const Constant constants[];
extern const uint constant_count;

extern "C" {
// nomerge: two barriers on two branches must stay two.
__attribute__((nomerge)) void emu_threadgroup_barrier(uint flags);
__attribute__((nomerge)) void emu_simdgroup_barrier(uint flags);
__attribute__((nomerge)) float emu_simd_sum(float value);
// True for the lane that performs an operation for its simdgroup.
bool emu_collective(uint kind, const void *pointer, uint64_t stride, uint flags, const void *return_address);
void emu_collective_access(const void *pointer, uint size, bool write);
void *emu_threadgroup_array(uint id, uint64_t bytes, uint64_t alignment, const char *name);
}

template <typename T, size_t N>
struct ArrayOf {
    typedef T type[N];
};

template <typename T, size_t N>
EMU_EXEMPT T (&threadgroup_array(uint id, const char *name))[N]
{
    return *static_cast<T(*)[N]>(emu_threadgroup_array(id, sizeof(T) * N, alignof(T), name));
}

} // namespace emu

namespace metal {

template <typename T, uint N>
using vec = T __attribute__((ext_vector_type(N)));
typedef vec<float, 4> float4;
typedef vec<half, 4> half4;
typedef vec<uint, 2> uint2;
typedef vec<uint, 3> uint3;
struct ulong2 {
    ulong x, y;
    ulong2(ulong x, ulong y) : x(x), y(y) {}
};

enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
EMU_EXEMPT inline mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(uint(a) | uint(b)); }

template <typename T>
EMU_EXEMPT inline T min(T a, T b) { return b < a ? b : a; }
template <typename T>
EMU_EXEMPT inline T max(T a, T b) { return a < b ? b : a; }
EMU_EXEMPT inline float fabs(float x) { return std::fabs(x); }
namespace precise {
EMU_EXEMPT inline float exp(float x) { return std::exp(x); }
EMU_EXEMPT inline float tanh(float x) { return std::tanh(x); }
}

#define threadgroup_barrier(flags) emu::emu_threadgroup_barrier(uint(flags))
#define simdgroup_barrier(flags) emu::emu_simdgroup_barrier(uint(flags))
#define simd_sum(value) emu::emu_simd_sum(value)

// All elements live in the lane that performs the operations; element (r, c) at r * Cols + c.
template <typename T, int Cols, int Rows>
struct simdgroup_matrix {
    static_assert(Cols == 8 && Rows == 8, "simdgroup matrices are 8 x 8");
    T element[64];
};

template <typename T, int Cols, int Rows>
EMU_COLLECTIVE simdgroup_matrix<T, Cols, Rows> make_filled_simdgroup_matrix(T value)
{
    simdgroup_matrix<T, Cols, Rows> m;
    if (emu::emu_collective(1, nullptr, 0, 0, __builtin_return_address(0))) {
        for (T &x : m.element) {
            x = value;
        }
    }
    return m;
}

template <typename T>
EMU_COLLECTIVE void simdgroup_load(simdgroup_matrix<T, 8, 8> &d, const T *src, ulong elements_per_row = 8,
                               ulong2 origin = ulong2(0, 0), bool transpose = false)
{
    if (emu::emu_collective(2, src, elements_per_row, transpose, __builtin_return_address(0))) {
        for (ulong r = 0; r < 8; ++r) {
            for (ulong c = 0; c < 8; ++c) {
                const T *p = src + (origin.y + r) * elements_per_row + origin.x + c;
                emu::emu_collective_access(p, sizeof(T), false);
                d.element[transpose ? c * 8 + r : r * 8 + c] = *p;
            }
        }
    }
}

template <typename T>
EMU_COLLECTIVE void simdgroup_store(const simdgroup_matrix<T, 8, 8> &a, T *dst, ulong elements_per_row = 8,
                                ulong2 origin = ulong2(0, 0), bool transpose = false)
{
    if (emu::emu_collective(3, dst, elements_per_row, transpose, __builtin_return_address(0))) {
        for (ulong r = 0; r < 8; ++r) {
            for (ulong c = 0; c < 8; ++c) {
                T *p = dst + (origin.y + r) * elements_per_row + origin.x + c;
                emu::emu_collective_access(p, sizeof(T), true);
                *p = a.element[transpose ? c * 8 + r : r * 8 + c];
            }
        }
    }
}

// Products of half or bfloat are exact in float; the sum over the 8 is in float.
template <typename D, typename T, typename U>
EMU_COLLECTIVE void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8> &d, const simdgroup_matrix<T, 8, 8> &a,
                                              const simdgroup_matrix<U, 8, 8> &b, const simdgroup_matrix<D, 8, 8> &c)
{
    if (emu::emu_collective(4, nullptr, 0, 0, __builtin_return_address(0))) {
        D sums[64];
        for (int i = 0; i < 64; ++i) {
            sums[i] = c.element[i];
        }
        for (int r = 0; r < 8; ++r) {
            for (int k = 0; k < 8; ++k) {
                const D x = D(a.element[r * 8 + k]);
                for (int n = 0; n < 8; ++n) {
                    sums[r * 8 + n] = D(sums[r * 8 + n] + x * D(b.element[k * 8 + n]));
                }
            }
        }
        for (int i = 0; i < 64; ++i) {
            d.element[i] = sums[i];
        }
    }
}

} // namespace metal

namespace emu {

template <typename A>
EMU_EXEMPT A argument(const Parameter &p, void *const *buffers, const Builtins &b)
{
    if constexpr (std::is_pointer_v<A>) {
        return static_cast<A>(buffers[p.index]);
    } else if constexpr (std::is_reference_v<A>) {
        return *static_cast<std::remove_reference_t<A> *>(buffers[p.index]);
    } else {
        const uint *v = p.kind == Kind::thread_position_in_grid          ? b.thread_in_grid
            : p.kind == Kind::threadgroup_position_in_grid   ? b.group
            : p.kind == Kind::thread_position_in_threadgroup ? b.thread_in_group
            : p.kind == Kind::thread_index_in_threadgroup    ? &b.thread_index
            : p.kind == Kind::simdgroup_index_in_threadgroup ? &b.simd
                                                             : &b.lane;
        if constexpr (std::is_arithmetic_v<A>) {
            return A(v[0]);
        } else if constexpr (sizeof(A) == sizeof(uint) * 2) {
            A a;
            a[0] = v[0];
            a[1] = v[1];
            return a;
        } else {
            A a;
            a[0] = v[0];
            a[1] = v[1];
            a[2] = v[2];
            return a;
        }
    }
}

template <typename F>
struct Signature;
template <typename... A>
struct Signature<void(A...)> {
    static constexpr uint count = sizeof...(A);
    static constexpr bool writable[sizeof...(A) + 1] = {
        (std::is_pointer_v<A> && !std::is_const_v<std::remove_pointer_t<A>>)..., false};
    template <void (*F)(A...), const Parameter *P, size_t... I>
    EMU_EXEMPT static void call(void *const *buffers, const Builtins &b, std::index_sequence<I...>)
    {
        F(argument<A>(P[I], buffers, b)...);
    }
    template <void (*F)(A...), const Parameter *P>
    EMU_EXEMPT static void thunk(void *const *buffers, const Builtins &b)
    {
        call<F, P>(buffers, b, std::index_sequence_for<A...>());
    }
};

template <typename F, F *f, const Parameter *P, size_t N>
constexpr Kernel entry(const char *name, const Parameter (&)[N])
{
    static_assert(Signature<F>::count == N);
    return {name, Signature<F>::template thunk<f, P>, P, Signature<F>::writable, uint(N)};
}

} // namespace emu
