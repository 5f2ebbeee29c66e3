/*
 * faults.metal - kernels with one fault each, to show that the checker finds it and says where: the
 * report must name the line of the comment `fault: <kernel>`. The kernels `fine_...` have none.
 * All run as two threadgroups of 64 threads over 64 floats in (a) and 128 floats out (c).
 */
#include <metal_stdlib>
#include <metal_simdgroup_matrix>

using namespace metal;

#define PARAMETERS                                            \
    device const float *a [[buffer(0)]],                      \
    device float *c [[buffer(1)]],                            \
    uint3 group [[threadgroup_position_in_grid]],             \
    uint simd [[simdgroup_index_in_threadgroup]],             \
    uint lane [[thread_index_in_simdgroup]]

#define INDEX simd * 32 + lane
#define OUT c[group.x * 64 + index]

[[kernel]] void fine_exchange(PARAMETERS)
{
    threadgroup float shared[64];
    const uint index = INDEX;
    shared[index] = a[index];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    OUT = shared[63 - index];
}

[[kernel]] void fine_simd_exchange(PARAMETERS)
{
    threadgroup float shared[64];
    const uint index = INDEX;
    shared[index] = a[index];
    simdgroup_barrier(mem_flags::mem_threadgroup);
    OUT = shared[simd * 32 + 31 - lane];
}

[[kernel]] void fine_matrix(PARAMETERS)
{
    threadgroup float shared[128];
    const uint index = INDEX;
    simdgroup_matrix<float, 8, 8> m;
    simdgroup_load(m, a, 8, ulong2(0, 0), false);
    simdgroup_store(m, shared + simd * 64, 8, ulong2(0, 0), false);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    OUT = shared[simd * 64 + lane];
}

[[kernel]] void fine_device_exchange(PARAMETERS)
{
    const uint index = INDEX;
    OUT = a[index];
    threadgroup_barrier(mem_flags::mem_device);
    const float other = c[group.x * 64 + 63 - index];
    threadgroup_barrier(mem_flags::mem_device);
    OUT = other;
}

[[kernel]] void missing_barrier(PARAMETERS)
{
    threadgroup float shared[64];
    const uint index = INDEX;
    shared[index] = 0.0f;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    shared[index] = a[index]; // fault: missing_barrier
    OUT = shared[63 - index]; // fault: missing_barrier
    shared[63 - index] = 0.0f; // fault: missing_barrier
}

[[kernel]] void barrier_of_the_other_memory(PARAMETERS)
{
    threadgroup float shared[64];
    const uint index = INDEX;
    shared[index] = 0.0f;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    shared[index] = a[index]; // fault: barrier_of_the_other_memory
    threadgroup_barrier(mem_flags::mem_device);
    OUT = shared[63 - index]; // fault: barrier_of_the_other_memory
}

[[kernel]] void barrier_of_no_memory(PARAMETERS)
{
    threadgroup float shared[64];
    const uint index = INDEX;
    shared[index] = 0.0f;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    shared[index] = a[index]; // fault: barrier_of_no_memory
    threadgroup_barrier(mem_flags::mem_none);
    OUT = shared[63 - index]; // fault: barrier_of_no_memory
}

[[kernel]] void simdgroup_barrier_for_a_threadgroup(PARAMETERS)
{
    threadgroup float shared[64];
    const uint index = INDEX;
    shared[index] = 0.0f;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    shared[index] = a[index]; // fault: simdgroup_barrier_for_a_threadgroup
    simdgroup_barrier(mem_flags::mem_threadgroup);
    OUT = shared[63 - index]; // fault: simdgroup_barrier_for_a_threadgroup
}

[[kernel]] void barrier_missing_before_reuse(PARAMETERS)
{
    threadgroup float shared[64];
    const uint index = INDEX;
    float sum = 0.0f;
    for (uint i = 0; i < 2; ++i) {
        shared[index] = a[index]; // fault: barrier_missing_before_reuse
        threadgroup_barrier(mem_flags::mem_threadgroup);
        sum += shared[63 - index]; // fault: barrier_missing_before_reuse
    }
    OUT = sum;
}

[[kernel]] void two_writers(PARAMETERS)
{
    threadgroup float shared[64];
    const uint index = INDEX;
    shared[index / 2] = a[index]; // fault: two_writers
    OUT = 0.0f;
}

[[kernel]] void matrix_store_read_at_once(PARAMETERS)
{
    threadgroup float shared[128];
    const uint index = INDEX;
    simdgroup_matrix<float, 8, 8> m;
    simdgroup_load(m, a, 8, ulong2(0, 0), false);
    for (uint i = lane; i < 64; i += 32) {
        shared[simd * 64 + i] = 0.0f;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_store(m, shared + simd * 64, 8, ulong2(0, 0), false); // fault: matrix_store_read_at_once
    OUT = shared[simd * 64 + lane]; // fault: matrix_store_read_at_once
}

[[kernel]] void matrix_store_over_a_write(PARAMETERS)
{
    threadgroup float shared[128];
    const uint index = INDEX;
    simdgroup_matrix<float, 8, 8> m = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
    shared[simd * 64 + lane] = 0.0f; // fault: matrix_store_over_a_write
    simdgroup_store(m, shared + simd * 64, 8, ulong2(0, 0), false); // fault: matrix_store_over_a_write
    OUT = 0.0f;
}

[[kernel]] void threadgroups_share_an_output(PARAMETERS)
{
    const uint index = INDEX;
    c[group.x * 32 + index] = a[index]; // fault: threadgroups_share_an_output
}

[[kernel]] void threads_share_an_output(PARAMETERS)
{
    const uint index = INDEX;
    c[group.x * 64 + index / 2] = a[index]; // fault: threads_share_an_output
}

[[kernel]] void device_exchange_without_device_barrier(PARAMETERS)
{
    const uint index = INDEX;
    OUT = a[index];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const float other = c[group.x * 64 + 63 - index]; // fault: device_exchange_without_device_barrier
    threadgroup_barrier(mem_flags::mem_device);
    OUT = other;
}

[[kernel]] void read_one_past(PARAMETERS)
{
    const uint index = INDEX;
    OUT = a[index + 1]; // fault: read_one_past
}

[[kernel]] void read_before(PARAMETERS)
{
    const uint index = INDEX;
    OUT = a[long(index) - 1]; // fault: read_before
}

[[kernel]] void read_far_away(PARAMETERS)
{
    const uint index = INDEX;
    OUT = a[ulong(index + 1) * 400000000]; // fault: read_far_away
}

[[kernel]] void write_one_past(PARAMETERS)
{
    const uint index = INDEX;
    c[group.x * 64 + index + 1] = a[index]; // fault: write_one_past
    threadgroup_barrier(mem_flags::mem_device);
}

[[kernel]] void matrix_load_past(PARAMETERS)
{
    const uint index = INDEX;
    simdgroup_matrix<float, 8, 8> m;
    simdgroup_load(m, a + 1, 8, ulong2(0, 0), false); // fault: matrix_load_past
    OUT = 0.0f;
}

[[kernel]] void array_one_past(PARAMETERS)
{
    threadgroup float shared[64];
    threadgroup float other[64];
    const uint index = INDEX;
    other[index] = 0.0f;
    shared[index + 1] = a[index]; // fault: array_one_past
    threadgroup_barrier(mem_flags::mem_threadgroup);
    OUT = other[index];
}

[[kernel]] void array_never_written(PARAMETERS)
{
    threadgroup float shared[128];
    const uint index = INDEX;
    shared[index] = a[index];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    OUT = shared[index + 1]; // fault: array_never_written
}

[[kernel]] void array_of_the_group_before(PARAMETERS)
{
    threadgroup float shared[64];
    const uint index = INDEX;
    if (group.x == 0) {
        shared[index] = a[index];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    OUT = shared[index]; // fault: array_of_the_group_before
}

[[kernel]] void misaligned_vector(PARAMETERS)
{
    const uint index = INDEX;
    const float4 v = *(device const vec<float, 4> *)(a + 2); // fault: misaligned_vector
    OUT = v[0];
}

[[kernel]] void misaligned_array_vector(PARAMETERS)
{
    threadgroup float shared[260];
    threadgroup float *tile = shared + 1;
    const uint index = INDEX;
    *(threadgroup vec<float, 4> *)(tile + index * 4) = vec<float, 4>(a[index]); // fault: misaligned_array_vector
    OUT = 0.0f;
}

[[kernel]] void write_to_an_input(PARAMETERS)
{
    const uint index = INDEX;
    device float *input = (device float *)a;
    input[index] = 0.0f; // fault: write_to_an_input
    OUT = 0.0f;
}

[[kernel]] void read_of_an_output(PARAMETERS)
{
    const uint index = INDEX;
    OUT = 0.0f * c[group.x * 64 + index] + a[index]; // fault: read_of_an_output
}

[[kernel]] void half_the_threads_at_a_barrier(PARAMETERS)
{
    const uint index = INDEX;
    if (lane < 16) {
        threadgroup_barrier(mem_flags::mem_threadgroup); // fault: half_the_threads_at_a_barrier
    }
    OUT = a[index];
}

[[kernel]] void a_barrier_on_each_branch(PARAMETERS)
{
    const uint index = INDEX;
    if (simd == 0) {
        threadgroup_barrier(mem_flags::mem_threadgroup); // fault: a_barrier_on_each_branch
    } else {
        threadgroup_barrier(mem_flags::mem_device); // fault: a_barrier_on_each_branch
    }
    OUT = a[index];
}

[[kernel]] void return_before_a_barrier(PARAMETERS)
{
    const uint index = INDEX;
    if (index == 63) {
        return;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup); // fault: return_before_a_barrier
    OUT = a[index];
}

[[kernel]] void half_the_lanes_in_a_sum(PARAMETERS)
{
    const uint index = INDEX;
    float sum = 0.0f;
    if (lane < 16) {
        sum = simd_sum(a[index]); // fault: half_the_lanes_in_a_sum
    }
    OUT = sum;
}

[[kernel]] void a_lane_misses_a_store(PARAMETERS)
{
    simdgroup_matrix<float, 8, 8> m = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
    if (lane != 3 && simd == 0) {
        simdgroup_store(m, c + group.x * 64, 8, ulong2(0, 0), false);
    }
    simdgroup_barrier(mem_flags::mem_none); // fault: a_lane_misses_a_store
}

[[kernel]] void lanes_load_from_different_places(PARAMETERS)
{
    const uint index = INDEX;
    threadgroup float shared[256];
    for (uint i = index; i < 256; i += 64) {
        shared[i] = 0.0f;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_matrix<float, 8, 8> m;
    simdgroup_load(m, shared + lane, 8, ulong2(0, 0), false);
    threadgroup_barrier(mem_flags::mem_threadgroup); // fault: lanes_load_from_different_places
    OUT = 0.0f;
}

[[kernel]] void too_much_threadgroup_memory(PARAMETERS)
{
    threadgroup float shared[8000];
    threadgroup float other[193]; // fault: too_much_threadgroup_memory
    const uint index = INDEX;
    shared[index] = a[index];
    other[index] = a[index];
    OUT = 0.0f;
}

[[kernel]] void buffer_not_bound(PARAMETERS,
                                 device const float *missing [[buffer(2)]])
{
    const uint index = INDEX;
    OUT = missing[index];
}
