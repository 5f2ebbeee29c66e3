/*
 * A shim for CUDA devices: cuBLASLt multiplies, and the kernels of kernels.cuh do what it does not, so that C is
 * rounded once and integers are scaled as the contract says. README.md says how to build it and what it refuses.
 *
 * A run is: copies of what is not on the device yet, kernels, a copy of C to where the device does not reach, all on
 * the stream of its executor. A submission is the same, and an event behind it. SPDX-License-Identifier: MIT OR
 * Apache-2.0
 */
#include "kernels.cuh"
#include "support.hpp"
#include "transfer.hpp"

#include <chrono>
#include <cmath>
#include <map>
#include <memory>

namespace {
using namespace ane;

constexpr uint32_t MAX_QUEUE_DEPTH = 1024;
constexpr uint64_t WORKSPACE_BYTES = 32 << 20; /* the most that a product of cuBLASLt's may use */
constexpr uint64_t ALIGNMENT = 16;             /* of what its kernels read and write */
constexpr uint64_t STAGED_BYTES = 1 << 20;     /* of all operands, where one thread copies them to pinned memory */
constexpr uint64_t DRIVER_BYTES = 64 << 10;    /* of plain memory that is left to the driver */
constexpr uint64_t FEW_ROWS = 16;              /* for which weights are read as integers */

uint64_t rounded(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

uint64_t bits_of(ANEType type) {
    switch (type) {
    case ANE_TYPE_I4:
    case ANE_TYPE_U4: return 4;
    case ANE_TYPE_I8:
    case ANE_TYPE_U8: return 8;
    case ANE_TYPE_F16:
    case ANE_TYPE_BF16: return 16;
    default: return 32;
    }
}

uint64_t bytes_of(ANEType type, uint64_t count) { return (count * bits_of(type) + 7) / 8; }

bool is_float(ANEType type) { return type == ANE_TYPE_F32 || type == ANE_TYPE_F16 || type == ANE_TYPE_BF16; }

cudaDataType_t cuda_type(ANEType type) {
    switch (type) {
    case ANE_TYPE_F16: return CUDA_R_16F;
    case ANE_TYPE_BF16: return CUDA_R_16BF;
    case ANE_TYPE_I32: return CUDA_R_32I;
    case ANE_TYPE_I8: return CUDA_R_8I;
    default: return CUDA_R_32F;
    }
}

} /* namespace */

/* ---- objects ------------------------------------------------------------------------------- */

struct ANEDevice {
    int index = 0;
    unsigned warp = 32, processors = 1;
    std::mutex lock; /* guards what is made when the device is prepared, and the clock */
    bool prepared = false;
    Lt lt;
    Stream stream; /* of what belongs to no executor */
    std::unique_ptr<Transfer> transfer;
    Event epoch;
    double epoch_ns = 1;

    void choose() const { check(cudaSetDevice(index), "choosing the device"); }
};

struct ANEBuffer {
    ANEDevice *device;
    bool on_device;
    char *data;
    DeviceMemory memory;
    PinnedMemory pinned;
    WrappedMemory wrapped;
};

struct ANEConstant {
    DeviceMemory memory;
};

namespace {

/* A product of cuBLASLt's, in our own terms: row-major, and C as wide as `columns`. */
struct Multiplication {
    ANEType type_a, type_b, type_c;
    bool transposed_a, transposed_b;
    uint64_t columns, k;
    uint64_t ld_a, ld_b, ld_c, ld_residual;
    uint64_t item_a, item_b, item_c, item_residual; /* 0: all items share it */
    float alpha;
    bool bias, residual; /* added by it */
    bool tf32;
};

/* What is made for a number of rows. */
struct Plan {
    uint64_t rows = UINT64_MAX;
    Operation operation;
    Layout a, b, c, residual;
    cublasLtMatmulAlgo_t algorithm;
    uint64_t workspace_bytes = 0;
    bool ours = false; /* cuBLASLt has nothing: kernels.cuh has */
};

enum class Kind { FLOATS, INTEGERS, WEIGHTS };

/* The operands of a run, in this order. */
enum { A, B, BIAS, RESIDUAL, C, OPERANDS };

/* Where parts of one allocation lie. */
struct Places {
    uint64_t bytes = 0;

    uint64_t add(uint64_t size) {
        uint64_t place = bytes;
        bytes += rounded(size, 256);
        return place;
    }
};

} /* namespace */

struct ANEProduct {
    ANEDevice *device;
    ANEMatMulDesc desc;
    ANEDeviceKind requested;
    Kind kind;
    bool direct; /* cuBLASLt writes C itself */
    bool packs_a, packs_b, widens_a, widens_b;
    bool few_rows; /* weights are read as integers, where rows are few */
    bool scaled;   /* weights get their scales before they are multiplied */
    ANEType type_dequantized;
    uint32_t arithmetic;
    uint64_t splits, depth; /* of k, with few rows */
    unsigned parts;         /* of which dequantised weights are the sum, ... */
    uint64_t part_elements; /* ... and how long each is */
    Multiplication multiplication;
    /* Constants, on the device. */
    const void *b, *scales;
    DeviceMemory own_b, own_scales, packed_b, column_sums;
    Matrix scales_b; /* a row to each group */
    uint64_t own_bytes;
    float scale_a, scale_c;
    /* Scratch of an executor: copies of operands, and what lies between kernels. */
    Places copies, work;
    uint64_t copy[OPERANDS];
    uint64_t row_sums, row_scales, packed_a, run_packed_b, run_column_sums, wide_a, wide_b, finite_a, dequantized, sums;
    std::mutex lock;
    std::map<uint64_t, cublasLtMatmulHeuristicResult_t> found; /* by rows */
};

namespace {

struct Slot {
    ANETicket ticket = 0; /* 0: free */
    Event start, end, copied;
    const Event *complete = nullptr; /* one of them */
};

/* An operand of a run: where the device reads or writes it, and where the caller has it. */
struct Place {
    void *device = nullptr;
    char *host = nullptr;   /* plain memory */
    char *pinned = nullptr; /* a buffer that the host sees */
    char *buffer = nullptr; /* one on the device, where it is not aligned */
    uint64_t bytes = 0;
};

/* A stream, and what its kernels use in turn. */
struct Lane {
    ANEProduct *product;
    Stream stream;
    DeviceMemory work, copies, workspace, spare;
    uint64_t workspace_bytes = 0;
    PinnedMemory staging; /* of small operands in plain memory */
    Plan plan;

    char *at(uint64_t place) const { return static_cast<char *>(work.get()) + place; }
};

} /* namespace */

/* Submissions are one after the other on its lane, so that they complete in their order. */
struct ANEMatMulExecutor {
    ANEProduct *product;
    Lane lane;
    Event start, end;
    std::vector<Slot> slots;
    ANETicket submitted = 0;
    uint64_t open = 0;
};

namespace {

/* ---- devices ------------------------------------------------------------------------------- */

int count_devices() {
    int count = 0;
    check(cudaGetDeviceCount(&count), "looking for CUDA devices");
    return count;
}

void check_index(uint32_t index) {
    if (index >= static_cast<uint32_t>(count_devices())) {
        throw Failure{ANE_STATUS_NO_DEVICE, ANE_REFUSAL_NONE, 0, "", "there is no such CUDA device"};
    }
}

ANEStatus device_count(uint32_t *count, ANEError *err) {
    return guarded(err, [&] {
        *count = static_cast<uint32_t>(count_devices());
        return ANE_STATUS_OK;
    });
}

ANEStatus device_info(uint32_t index, ANEDeviceInfo *info, ANEError *err) {
    return guarded(err, [&] {
        check_index(index);
        cudaDeviceProp properties;
        int driver = 0;
        check(cudaGetDeviceProperties(&properties, static_cast<int>(index)), "asking for a device's properties");
        check(cudaDriverGetVersion(&driver), "asking for the driver's version");
        info->flags = ANE_DEVICE_FLAG_CONSTANTS;
#ifdef ANE_MATMUL_TEST_DOUBLE
        info->flags |= ANE_DEVICE_FLAG_TEST_DOUBLE;
#endif
        info->kind = ANE_DEVICE_GPU;
        info->preferred_buffer = ANE_BUFFER_DEVICE;
        info->wrap_alignment = 4096;
        info->max_buffer_bytes = properties.totalGlobalMem;
        info->max_queue_depth = MAX_QUEUE_DEPTH;
        snprintf(info->name, sizeof info->name, "%.127s", properties.name);
        snprintf(info->chip, sizeof info->chip, "sm_%d%d", properties.major, properties.minor);
        snprintf(info->os_build, sizeof info->os_build, "CUDA %d, driver for %d", CUDART_VERSION, driver);
        return ANE_STATUS_OK;
    });
}

ANEStatus device_open(uint32_t index, ANEDevice **out, ANEError *err) {
    return guarded(err, [&] {
        check_index(index);
        auto device = std::make_unique<ANEDevice>();
        device->index = static_cast<int>(index);
        int warp = 0, processors = 0;
        check(cudaDeviceGetAttribute(&warp, cudaDevAttrWarpSize, device->index), "asking for a device's properties");
        check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device->index),
              "asking for a device's properties");
        device->warp = static_cast<unsigned>(warp);
        device->processors = static_cast<unsigned>(processors);
        *out = device.release();
        return ANE_STATUS_OK;
    });
}

/* Makes what all products use, once. */
void prepare(ANEDevice *device) {
    std::lock_guard<std::mutex> lock(device->lock);
    device->choose();
    if (device->prepared) return;
    cublasLtHandle_t lt = nullptr;
    check(cublasLtCreate(&lt), "starting cuBLASLt");
    device->lt = Lt(lt);
    device->stream = new_stream();
    device->epoch = new_event(cudaEventDefault);
    check(cudaEventRecord(device->epoch.get(), device->stream.get()), "starting the device's clock");
    check(cudaStreamSynchronize(device->stream.get()), "starting the device's clock");
    unsigned threads = std::max(1u, std::min(8u, std::thread::hardware_concurrency() / 2));
    device->transfer = std::make_unique<Transfer>(device->index, threads);
    device->prepared = true;
}

ANEStatus device_prepare(ANEDevice *device, ANEError *err) {
    return guarded(err, [&] {
        prepare(device);
        return ANE_STATUS_OK;
    });
}

void device_close(ANEDevice *device) {
    if (device != nullptr) cudaSetDevice(device->index);
    delete device;
}

/* The time of an event by the device's clock. Of long times a float has too few digits: the epoch moves on. */
double time_of(ANEDevice *device, cudaEvent_t event) {
    std::lock_guard<std::mutex> lock(device->lock);
    float since = 0;
    check(cudaEventElapsedTime(&since, device->epoch.get(), event), "reading the device's clock");
    double time = device->epoch_ns + static_cast<double>(since) * 1e6;
    if (since > 1000) {
        Event epoch = new_event(cudaEventDefault);
        check(cudaEventRecord(epoch.get(), device->stream.get()), "reading the device's clock");
        check(cudaEventSynchronize(epoch.get()), "reading the device's clock");
        check(cudaEventElapsedTime(&since, device->epoch.get(), epoch.get()), "reading the device's clock");
        device->epoch_ns += static_cast<double>(since) * 1e6;
        device->epoch = std::move(epoch);
    }
    return time;
}

void observe(ANEDevice *device, const Event &start, const Event &end, ANERunInfo *info) {
    if (info == nullptr) return;
    float took = 0;
    check(cudaEventElapsedTime(&took, start.get(), end.get()), "reading the device's clock");
    double start_ns = std::max(time_of(device, start.get()), 1.0);
    info->observed = ANE_DEVICE_GPU;
    info->device_start_ns = static_cast<uint64_t>(start_ns);
    info->device_end_ns = static_cast<uint64_t>(start_ns + static_cast<double>(took) * 1e6);
    info->flags = 0;
}

/* ---- buffers and constants ----------------------------------------------------------------- */

/* Copies to the device, and waits for it. */
void upload(ANEDevice *device, void *to, const void *from, uint64_t bytes) {
    prepare(device);
    cudaStream_t stream = device->stream.get();
    if (bytes > DRIVER_BYTES) {
        device->transfer->upload(to, from, bytes, stream);
    } else if (bytes > 0) {
        check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream), "copying to the device");
    }
    check(cudaStreamSynchronize(stream), "copying to the device");
}

ANEStatus buffer_create(ANEDevice *device, ANEBufferKind kind, uint64_t bytes, ANEBuffer **out, ANEError *err) {
    return guarded(err, [&] {
        prepare(device);
        auto buffer = std::make_unique<ANEBuffer>();
        buffer->device = device;
        buffer->on_device = kind == ANE_BUFFER_DEVICE;
        if (buffer->on_device) {
            buffer->memory = device_memory(bytes);
            buffer->data = static_cast<char *>(buffer->memory.get());
        } else {
            buffer->pinned = pinned_memory(bytes);
            buffer->data = static_cast<char *>(buffer->pinned.get());
        }
        *out = buffer.release();
        return ANE_STATUS_OK;
    });
}

ANEStatus buffer_wrap(ANEDevice *device, void *data, uint64_t bytes, ANEBuffer **out, ANEError *err) {
    return guarded(err, [&] {
        prepare(device);
        auto buffer = std::make_unique<ANEBuffer>();
        buffer->device = device;
        buffer->on_device = false;
        buffer->data = static_cast<char *>(data);
        if (bytes > 0) {
            check(cudaHostRegister(data, bytes, cudaHostRegisterPortable), "pinning the caller's memory");
            buffer->wrapped = WrappedMemory(data);
        }
        *out = buffer.release();
        return ANE_STATUS_OK;
    });
}

void *buffer_contents(ANEBuffer *buffer) { return buffer->on_device ? nullptr : buffer->data; }

ANEStatus buffer_write(ANEBuffer *buffer, uint64_t offset_bytes, const void *data, uint64_t bytes, ANEError *err) {
    return guarded(err, [&] {
        if (buffer->on_device) {
            upload(buffer->device, buffer->data + offset_bytes, data, bytes);
        } else if (bytes > 0) {
            memcpy(buffer->data + offset_bytes, data, bytes);
        }
        return ANE_STATUS_OK;
    });
}

ANEStatus buffer_read(ANEBuffer *buffer, uint64_t offset_bytes, void *data, uint64_t bytes, ANEError *err) {
    return guarded(err, [&] {
        const char *from = buffer->data + offset_bytes;
        if (!buffer->on_device) {
            if (bytes > 0) memcpy(data, from, bytes);
            return ANE_STATUS_OK;
        }
        ANEDevice *device = buffer->device;
        device->choose();
        cudaStream_t stream = device->stream.get();
        if (bytes > DRIVER_BYTES) {
            device->transfer->download(data, from, bytes, Rows{1, bytes, 1, bytes, bytes}, stream);
        } else if (bytes > 0) {
            check(cudaMemcpyAsync(data, from, bytes, cudaMemcpyDeviceToHost, stream), "copying from the device");
            check(cudaStreamSynchronize(stream), "copying from the device");
        }
        return ANE_STATUS_OK;
    });
}

void buffer_destroy(ANEBuffer *buffer) {
    if (buffer != nullptr) cudaSetDevice(buffer->device->index);
    delete buffer;
}

DeviceMemory copy_to_device(ANEDevice *device, const void *data, uint64_t bytes) {
    prepare(device);
    DeviceMemory memory = device_memory(bytes);
    upload(device, memory.get(), data, bytes);
    return memory;
}

ANEStatus constant_create(ANEDevice *device, const ANEConstantDesc *desc, ANEConstant **out, ANEError *err) {
    return guarded(err, [&] {
        auto constant = std::make_unique<ANEConstant>();
        constant->memory = copy_to_device(device, desc->data, desc->bytes);
        *out = constant.release();
        return ANE_STATUS_OK;
    });
}

void constant_destroy(ANEConstant *constant) { delete constant; }

/* ---- what is supported --------------------------------------------------------------------- */

/* Reads the description with its size: what lies beyond it is zero. */
ANEMatMulDesc whole(const ANEMatMulDesc *desc) {
    ANEMatMulDesc copy{};
    memcpy(&copy, desc, std::min<size_t>(desc->struct_size, sizeof copy));
    return copy;
}

/* What computes it; throws where nothing does. */
Kind kind_of(const ANEMatMulDesc &d, const ANECompileOptions &options) {
    const uint32_t known = ANE_MATMUL_TRANSPOSE_A | ANE_MATMUL_TRANSPOSE_B | ANE_MATMUL_CONSTANT_B | ANE_MATMUL_BIAS |
                           ANE_MATMUL_RESIDUAL | ANE_MATMUL_VARIABLE_M;
    if ((d.flags & ~known) != 0) refuse(ANE_REFUSAL_OTHER, "a flag of a later header; use a newer shim");
    if (options.device != ANE_DEVICE_UNKNOWN && options.device != ANE_DEVICE_GPU) {
        refuse(ANE_REFUSAL_DEVICE, "this shim runs on the GPU alone; leave the device open, or ask for it");
    }
    if (d.activation < ANE_ACTIVATION_NONE || d.activation > ANE_ACTIVATION_TANH) {
        refuse(ANE_REFUSAL_EPILOGUE, "an activation of a later header; use a newer shim");
    }
    for (uint64_t size : {d.batch, d.m, d.n, d.k}) {
        if (size > INT32_MAX) refuse(ANE_REFUSAL_DIMENSION, "dimensions end at 2^31 - 1; split the product");
    }
    bool few_c = d.quant_c == ANE_QUANT_C_STATIC && (d.type_c == ANE_TYPE_I8 || d.type_c == ANE_TYPE_U8);
    bool float_c = d.quant_c == ANE_QUANT_C_NONE && is_float(d.type_c);
    bool bias = (d.flags & ANE_MATMUL_BIAS) == 0 || is_float(d.type_bias);
    bool scale = d.type_scale == ANE_TYPE_NONE || is_float(d.type_scale);
    const char *types = "these types are not computed together; convert operands to f32, f16 or bf16";
    if (!bias || !scale) refuse(ANE_REFUSAL_ELEMENT_TYPE, types);
    if (d.type_accumulator == ANE_TYPE_I32) {
        bool integers = d.type_a == ANE_TYPE_I8 || d.type_a == ANE_TYPE_U8;
        bool dynamic = d.quant_a == ANE_QUANT_A_DYNAMIC_PER_ROW;
        bool whole_c = d.type_c == ANE_TYPE_I32 && d.quant_c == ANE_QUANT_C_NONE;
        if (d.type_b != ANE_TYPE_I8 || (dynamic ? !is_float(d.type_a) : !integers) || !(few_c || float_c || whole_c)) {
            refuse(ANE_REFUSAL_ELEMENT_TYPE, types);
        }
        if (d.quant_a > ANE_QUANT_A_DYNAMIC_PER_ROW || d.quant_b > ANE_QUANT_B_PER_COLUMN) {
            refuse(ANE_REFUSAL_QUANTIZATION, "sums of integers take a scale of B for each column at most");
        }
        return Kind::INTEGERS;
    }
    bool sums = d.type_accumulator == ANE_TYPE_F32 || d.type_accumulator == ANE_TYPE_F16;
    if (!sums || !is_float(d.type_a) || !(few_c || float_c)) refuse(ANE_REFUSAL_ELEMENT_TYPE, types);
    if (d.quant_a != ANE_QUANT_A_NONE || d.quant_b > ANE_QUANT_B_PER_GROUP) {
        refuse(ANE_REFUSAL_QUANTIZATION, "a scheme that this shim does not know; dequantise the operand");
    }
    if (is_float(d.type_b)) {
        if (d.quant_b != ANE_QUANT_B_NONE) refuse(ANE_REFUSAL_QUANTIZATION, "floats have no scales");
        return Kind::FLOATS;
    }
    bool weights =
        d.type_b == ANE_TYPE_I8 || d.type_b == ANE_TYPE_U8 || d.type_b == ANE_TYPE_I4 || d.type_b == ANE_TYPE_U4;
    if (!weights) refuse(ANE_REFUSAL_ELEMENT_TYPE, types);
    if (d.quant_b == ANE_QUANT_B_PER_GROUP && d.group_size == 0) invalid("a group of no rows");
    return Kind::WEIGHTS;
}

ANEStatus supports(ANEDevice *device, const ANEMatMulDesc *desc, const ANECompileOptions *options, ANEError *err) {
    (void)device;
    return guarded(err, [&] {
        kind_of(whole(desc), *options);
        return ANE_STATUS_OK;
    });
}

/* ---- kernels ------------------------------------------------------------------------------- */

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream, Arguments... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.stream = stream;
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "starting a kernel");
}

unsigned blocks(uint64_t count, uint64_t each) { return static_cast<unsigned>((count + each - 1) / each); }

/* For kernels that step through rows and items. */
unsigned layers(uint64_t count) { return static_cast<unsigned>(std::min<uint64_t>(count, 65535)); }

/* For kernels that step through what there is. */
unsigned blocks_of_all(const ANEDevice *device, uint64_t count) {
    return static_cast<unsigned>(std::min<uint64_t>(blocks(count, 256), device->processors * 32ull));
}

Matrix matrix(const void *data, ANEType type, uint64_t item, uint64_t ld, bool transposed) {
    return Matrix{data, type, item, transposed ? 1 : ld, transposed ? ld : 1};
}

void launch_sum_rows(const ANEDevice *device, const int8_t *rows, uint64_t items, uint64_t count, uint64_t k,
                     uint64_t ld, uint64_t item, void *sums, cudaStream_t stream) {
    launch(sum_rows, dim3(blocks(items * count, 8)), dim3(device->warp, 8), stream, rows, items, count, k, ld, item,
           static_cast<int32_t *>(sums));
}

/* B as rows of columns, for sums of integers. */
void pack_b(const ANEProduct *p, const void *b, void *packed, void *column_sums, cudaStream_t stream) {
    const ANEMatMulDesc &d = p->desc;
    bool transposed = (d.flags & ANE_MATMUL_TRANSPOSE_B) != 0;
    Matrix rows = matrix(b, d.type_b, d.stride_b, d.ldb, !transposed);
    uint64_t items = d.stride_b == 0 ? 1 : d.batch, k = rounded(d.k, 16), n = rounded(d.n, 16);
    for (uint64_t item = 0; item < items && p->packs_b; item++) {
        rows.data = static_cast<const int8_t *>(b) + item * d.stride_b;
        launch(pack, dim3(blocks(d.n * (k / 16), 256)), dim3(256), stream, rows, 1, d.n, d.k, k, nullptr,
               static_cast<int8_t *>(packed) + item * n * k);
    }
    if (d.zero_point_a != 0 || d.type_a == ANE_TYPE_U8) {
        const Multiplication &m = p->multiplication;
        launch_sum_rows(p->device, static_cast<const int8_t *>(p->packs_b ? packed : b), items, d.n, d.k, m.ld_b,
                        m.item_b, column_sums, stream);
    }
}

/* ---- products of cuBLASLt's ---------------------------------------------------------------- */

/* Row-major matrices are the transposes of column-major ones: op(B)' op(A)' = C'. */
Layout layout(ANEType type, uint64_t rows, uint64_t columns, uint64_t ld, uint64_t batch, uint64_t item) {
    cublasLtMatrixLayout_t made = nullptr;
    check(
        cublasLtMatrixLayoutCreate(&made, cuda_type(type), columns, rows, static_cast<int64_t>(std::max(ld, columns))),
        "describing a matrix");
    Layout owned(made);
    int32_t count = static_cast<int32_t>(batch);
    int64_t stride = static_cast<int64_t>(item);
    check(cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count),
          "describing a matrix");
    check(cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride),
          "describing a matrix");
    return owned;
}

template <typename T> void set(const Operation &operation, cublasLtMatmulDescAttributes_t attribute, T value) {
    check(cublasLtMatmulDescSetAttribute(operation.get(), attribute, &value, sizeof value), "describing a product");
}

template <typename T> void set(const Preference &preference, cublasLtMatmulPreferenceAttributes_t attribute, T value) {
    check(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof value),
          "describing a product");
}

/* The first that cuBLASLt proposes: the same each time, so that results are. */
cublasLtMatmulHeuristicResult_t find_algorithm(const ANEProduct *p, const Plan &plan) {
    cublasLtMatmulPreference_t made = nullptr;
    check(cublasLtMatmulPreferenceCreate(&made), "describing a product");
    Preference preference(made);
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE_BYTES);
    /* Sums of parts of k are f32, whatever C is. */
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    for (auto side : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                      CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
        set(preference, side, static_cast<uint32_t>(ALIGNMENT));
    }
    cublasLtMatmulHeuristicResult_t result{};
    int count = 0;
    cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(p->device->lt.get(), plan.operation.get(), plan.b.get(), plan.a.get(),
                                       plan.residual.get(), plan.c.get(), preference.get(), 1, &result, &count);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE ||
        (status == CUBLAS_STATUS_SUCCESS && count == 0)) {
        result.state = CUBLAS_STATUS_NOT_SUPPORTED;
        return result;
    }
    check(status, "looking for a kernel");
    return result;
}

Plan make_plan(ANEProduct *p, uint64_t rows) {
    const Multiplication &m = p->multiplication;
    uint64_t batch = p->desc.batch;
    bool integers = p->kind == Kind::INTEGERS;
    Plan plan;
    plan.rows = rows;
    cublasLtMatmulDesc_t made = nullptr;
    cublasComputeType_t compute = integers ? CUBLAS_COMPUTE_32I
                                  : m.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32
                                           : CUBLAS_COMPUTE_32F;
    check(cublasLtMatmulDescCreate(&made, compute, integers ? CUDA_R_32I : CUDA_R_32F), "describing a product");
    plan.operation = Operation(made);
    set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, m.transposed_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, m.transposed_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (m.bias) set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    /* Items of what is packed or summed follow one another for the rows of this run. */
    uint64_t item_a = p->packs_a ? rows * m.ld_a : m.item_a, item_c = p->direct ? m.item_c : rows * m.ld_c;
    plan.a = m.transposed_a ? layout(m.type_a, m.k, rows, m.ld_a, batch, item_a)
                            : layout(m.type_a, rows, m.k, m.ld_a, batch, item_a);
    plan.b = m.transposed_b ? layout(m.type_b, m.columns, m.k, m.ld_b, batch, m.item_b)
                            : layout(m.type_b, m.k, m.columns, m.ld_b, batch, m.item_b);
    plan.c = layout(m.type_c, rows, m.columns, m.ld_c, batch, item_c);
    plan.residual = m.residual ? layout(m.type_c, rows, m.columns, m.ld_residual, batch, m.item_residual)
                               : layout(m.type_c, rows, m.columns, m.ld_c, batch, item_c);
    std::lock_guard<std::mutex> lock(p->lock);
    auto found = p->found.find(rows);
    if (found == p->found.end()) found = p->found.emplace(rows, find_algorithm(p, plan)).first;
    plan.ours = found->second.state != CUBLAS_STATUS_SUCCESS;
    plan.algorithm = found->second.algo;
    plan.workspace_bytes = plan.ours ? 0 : found->second.workspaceSize;
    return plan;
}

/* ---- compiling ----------------------------------------------------------------------------- */

float host_scale(ANEType type, const void *scale) {
    if (scale == nullptr) return 1;
    uint16_t half = 0;
    float wide = 0;
    switch (type) {
    case ANE_TYPE_F16: {
        memcpy(&half, scale, sizeof half);
        int exponent = half >> 10 & 31, fraction = half & 1023; /* it is positive and finite */
        return exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                             : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    }
    case ANE_TYPE_BF16: {
        memcpy(&half, scale, sizeof half);
        uint32_t bits = static_cast<uint32_t>(half) << 16;
        memcpy(&wide, &bits, sizeof wide);
        return wide;
    }
    default: memcpy(&wide, scale, sizeof wide); return wide;
    }
}

/* The elements from the first to the last of a matrix in each item. */
uint64_t span(uint64_t batch, uint64_t item, uint64_t rows, uint64_t columns, uint64_t ld) {
    return batch == 0 || rows == 0 || columns == 0 ? 0 : (batch - 1) * item + (rows - 1) * ld + columns;
}

void plan_floats(ANEProduct *p, const ANECompileOptions &options) {
    const ANEMatMulDesc &d = p->desc;
    Multiplication &m = p->multiplication;
    bool reduced = (options.flags & ANE_OPTION_REDUCED_PRECISION) != 0;
    m.type_a = d.type_a;
    m.type_b = d.type_b;
    m.transposed_a = (d.flags & ANE_MATMUL_TRANSPOSE_A) != 0;
    m.transposed_b = (d.flags & ANE_MATMUL_TRANSPOSE_B) != 0;
    m.ld_a = d.lda, m.ld_b = d.ldb, m.item_a = d.stride_a, m.item_b = d.stride_b;
    if (p->kind == Kind::WEIGHTS) {
        /* Integers of 8 bits are 16-bit floats without a rounding. With scales of groups they are the sum of two or
         * three of bf16, which has the range for it. */
        bool exact = d.type_a != ANE_TYPE_F32 && d.quant_b != ANE_QUANT_B_PER_GROUP;
        bool parts = !exact && !reduced && d.type_a == ANE_TYPE_BF16 && d.type_scale != ANE_TYPE_F32;
        bool narrow = d.type_a != ANE_TYPE_F32 && (exact || reduced || parts);
        p->scaled = !exact;
        p->parts = parts ? bits_of(d.type_b) == 4 ? 2 : MOST_PARTS : 1;
        if (narrow && !exact && !parts)
            p->arithmetic |= d.type_a == ANE_TYPE_F16 ? ANE_ARITHMETIC_F16 : ANE_ARITHMETIC_BF16;
        p->type_dequantized = m.type_b = narrow ? d.type_a : ANE_TYPE_F32;
        uint64_t outer = m.transposed_b ? d.n : d.k, inner = m.transposed_b ? d.k : d.n;
        m.ld_b = rounded(std::max<uint64_t>(inner, 1), 8);
        m.item_b = d.stride_b == 0 ? 0 : outer * m.ld_b;
        p->part_elements = (d.stride_b == 0 ? 1 : d.batch) * outer * m.ld_b;
        p->dequantized = p->work.add(bytes_of(m.type_b, p->parts * p->part_elements));
        uint64_t each = (m.transposed_b ? 128 : 32) / bits_of(d.type_b);
        uint64_t group = d.quant_b == ANE_QUANT_B_PER_GROUP ? d.group_size : each;
        p->few_rows = d.batch == 1 && !m.transposed_a && d.lda % 8 == 0 && d.ldb % each == 0 && inner % each == 0 &&
                      (!m.transposed_b || group % each == 0);
        uint64_t threads = std::max<uint64_t>(1, d.n / each), wanted = p->device->processors * 512ull / threads;
        p->splits = m.transposed_b ? 1 : std::max<uint64_t>(1, std::min(wanted, (d.k + 31) / 32));
        p->depth = std::max<uint64_t>(1, (d.k + p->splits - 1) / p->splits);
        p->splits = (d.k + p->depth - 1) / p->depth;
    }
    p->widens_a = m.type_a != ANE_TYPE_F32 && m.type_a != m.type_b;
    p->widens_b = m.type_b != ANE_TYPE_F32 && m.type_a != m.type_b;
    if (p->widens_a || p->widens_b) m.type_a = m.type_b = ANE_TYPE_F32;
    uint64_t span_a =
        m.transposed_a ? span(d.batch, d.stride_a, d.k, d.m, d.lda) : span(d.batch, d.stride_a, d.m, d.k, d.lda);
    uint64_t span_b =
        m.transposed_b ? span(d.batch, d.stride_b, d.n, d.k, d.ldb) : span(d.batch, d.stride_b, d.k, d.n, d.ldb);
    if (p->widens_a) p->wide_a = p->work.add(4 * span_a);
    if (p->widens_b) p->wide_b = p->work.add(4 * span_b);
    if (p->parts > 1) p->finite_a = p->work.add(2 * span_a);
    m.tf32 = reduced && m.type_a == ANE_TYPE_F32;
    if (m.tf32) p->arithmetic |= ANE_ARITHMETIC_TF32;

    /* What is added to f32 sums can be added by cuBLASLt. It would round narrower sums before. It leaves out a product
     * whose alpha is 0. */
    bool bias = (d.flags & ANE_MATMUL_BIAS) != 0, residual = (d.flags & ANE_MATMUL_RESIDUAL) != 0;
    bool same = d.type_c == ANE_TYPE_F32 || (d.type_c == m.type_a && !bias && !residual);
    p->direct = p->scaled && p->parts <= 1 && same && d.quant_c == ANE_QUANT_C_NONE &&
                d.activation == ANE_ACTIVATION_NONE && d.k > 0 && d.alpha != 0 &&
                (!bias || d.type_bias == ANE_TYPE_F32);
    m.columns = d.n, m.k = d.k;
    m.alpha = p->direct ? d.alpha : 1;
    m.bias = p->direct && bias;
    m.residual = p->direct && residual;
    m.ld_residual = d.ld_residual, m.item_residual = d.stride_residual;
    m.type_c = p->direct ? d.type_c : ANE_TYPE_F32;
    m.ld_c = p->direct ? d.ldc : rounded(d.n, 4);
    m.item_c = d.stride_c;
}

void plan_integers(ANEProduct *p) {
    const ANEMatMulDesc &d = p->desc;
    Multiplication &m = p->multiplication;
    bool ta = (d.flags & ANE_MATMUL_TRANSPOSE_A) != 0, tb = (d.flags & ANE_MATMUL_TRANSPOSE_B) != 0;
    uint64_t k = rounded(d.k, 16), n = rounded(d.n, 16);
    /* cuBLASLt takes rows of A and columns of B, of whole words, without gaps of its own. */
    p->packs_a = d.type_a != ANE_TYPE_I8 || ta || d.k % 16 != 0 || d.lda % 16 != 0 || d.stride_a % 16 != 0;
    p->packs_b = !tb || d.k % 16 != 0 || d.n % 16 != 0 || d.ldb % 16 != 0 || d.stride_b % 16 != 0;
    m.type_a = m.type_b = ANE_TYPE_I8;
    m.type_c = ANE_TYPE_I32;
    m.transposed_b = true;
    m.k = k, m.columns = n;
    m.ld_a = p->packs_a ? k : d.lda;
    m.item_a = d.stride_a; /* with packs_a, that of the run's rows */
    m.ld_b = p->packs_b ? k : d.ldb;
    m.item_b = d.stride_b == 0 ? 0 : p->packs_b ? n * k : d.stride_b;
    uint64_t items_b = d.stride_b == 0 ? 1 : d.batch;
    bool zero_a = d.zero_point_a != 0 || d.type_a == ANE_TYPE_U8;
    if (p->packs_a) p->packed_a = p->work.add(d.batch * d.m * k);
    if (d.zero_point_b != 0) p->row_sums = p->work.add(4 * d.batch * d.m);
    if (d.quant_a == ANE_QUANT_A_DYNAMIC_PER_ROW) p->row_scales = p->work.add(4 * d.batch * d.m);
    if ((d.flags & ANE_MATMUL_CONSTANT_B) == 0) {
        if (p->packs_b) p->run_packed_b = p->work.add(items_b * n * k);
        if (zero_a) p->run_column_sums = p->work.add(4 * items_b * d.n);
    }
    p->direct = d.type_c == ANE_TYPE_I32 && !zero_a && d.zero_point_b == 0 && d.n == n && d.ldc % 4 == 0 &&
                d.stride_c % 4 == 0 && d.k > 0;
    m.ld_c = p->direct ? d.ldc : n;
    m.item_c = d.stride_c;
    m.alpha = 1;
}

/* Scales and B on the device, where they are constant. */
void place_constants(ANEProduct *p, const ANEConstants &constants) {
    const ANEMatMulDesc &d = p->desc;
    p->scale_a = host_scale(d.type_scale, constants.scale_a);
    p->scale_c = host_scale(d.type_scale, constants.scale_c);
    p->scales_b = Matrix{nullptr, d.type_scale, 0, 0, 0};
    if (d.quant_b != ANE_QUANT_B_NONE) {
        if (constants.scales_b_constant != nullptr) {
            p->scales = constants.scales_b_constant->memory.get();
        } else {
            p->own_scales = copy_to_device(p->device, constants.scales_b, constants.scales_b_bytes);
            p->scales = p->own_scales.get();
            p->own_bytes += constants.scales_b_bytes;
        }
        p->scales_b.data = p->scales;
        uint64_t groups = 1, across = 1;
        if (d.quant_b != ANE_QUANT_B_PER_TENSOR) across = d.n, p->scales_b.column = 1;
        if (d.quant_b == ANE_QUANT_B_PER_GROUP) groups = (d.k + d.group_size - 1) / d.group_size, p->scales_b.row = d.n;
        uint64_t item_bytes = bytes_of(d.type_scale, groups * across);
        if (constants.scales_b_bytes > item_bytes) p->scales_b.item = groups * across;
    }
    if ((d.flags & ANE_MATMUL_CONSTANT_B) == 0) return;
    const void *b = constants.b_constant != nullptr ? constants.b_constant->memory.get() : nullptr;
    if (b == nullptr) {
        p->own_b = copy_to_device(p->device, constants.b, constants.b_bytes);
        b = p->own_b.get();
        p->own_bytes += constants.b_bytes;
    }
    p->b = b;
    bool empty = d.n == 0 || d.k == 0 || d.batch == 0;
    if (p->kind != Kind::INTEGERS || empty) return;
    uint64_t items = d.stride_b == 0 ? 1 : d.batch, bytes = items * p->multiplication.columns * p->multiplication.k;
    if (p->packs_b) {
        p->packed_b = device_memory(bytes);
        check(cudaMemsetAsync(p->packed_b.get(), 0, bytes, p->device->stream.get()), "packing B");
        p->own_bytes += bytes;
    }
    p->column_sums = device_memory(4 * items * d.n);
    p->own_bytes += 4 * items * d.n;
    pack_b(p, b, p->packed_b.get(), p->column_sums.get(), p->device->stream.get());
    check(cudaStreamSynchronize(p->device->stream.get()), "packing B");
    if (p->packs_b) {
        p->b = p->packed_b.get();
        p->own_bytes -= p->own_b.get() != nullptr ? constants.b_bytes : 0;
        p->own_b = DeviceMemory();
    }
}

/* Whether there is anything to compute, and to multiply. */
bool is_empty(const ANEProduct *p, uint64_t rows) { return p->desc.batch == 0 || rows == 0 || p->desc.n == 0; }
bool multiplies(const ANEProduct *p, uint64_t rows) { return !is_empty(p, rows) && p->desc.k > 0; }
bool reads_integers(const ANEProduct *p, uint64_t rows) { return p->few_rows && rows <= FEW_ROWS; }

ANEStatus compile(ANEDevice *device, const ANEMatMulDesc *desc, const ANEConstants *constants,
                  const ANECompileOptions *options, ANEProduct **out, ANEError *err) {
    return guarded(err, [&] {
        auto product = std::make_unique<ANEProduct>();
        ANEProduct *p = product.get();
        p->device = device;
        p->desc = whole(desc);
        p->kind = kind_of(p->desc, *options);
        p->requested = options->device;
        prepare(device);
        const ANEMatMulDesc &d = p->desc;
        p->scaled = true;
        if (p->kind == Kind::INTEGERS) {
            plan_integers(p);
        } else {
            plan_floats(p, *options);
        }
        const Multiplication &m = p->multiplication;
        if (!p->direct) {
            uint64_t few = p->few_rows ? p->splits * std::min(d.m, FEW_ROWS) * d.n : 0;
            p->sums = p->work.add(4 * std::max(d.batch * d.m * m.ld_c, few));
        } else if (p->few_rows) {
            p->sums = p->work.add(4 * p->splits * std::min(d.m, FEW_ROWS) * d.n);
        }
        bool ta = (d.flags & ANE_MATMUL_TRANSPOSE_A) != 0, tb = (d.flags & ANE_MATMUL_TRANSPOSE_B) != 0;
        uint64_t spans[OPERANDS] = {
            ta ? span(d.batch, d.stride_a, d.k, d.m, d.lda) : span(d.batch, d.stride_a, d.m, d.k, d.lda),
            tb ? span(d.batch, d.stride_b, d.n, d.k, d.ldb) : span(d.batch, d.stride_b, d.k, d.n, d.ldb), d.n,
            span(d.batch, d.stride_residual, d.m, d.n, d.ld_residual), span(d.batch, d.stride_c, d.m, d.n, d.ldc)};
        const ANEType types[OPERANDS] = {d.type_a, d.type_b, d.type_bias, d.type_c, d.type_c};
        const bool has[OPERANDS] = {true, (d.flags & ANE_MATMUL_CONSTANT_B) == 0, (d.flags & ANE_MATMUL_BIAS) != 0,
                                    (d.flags & ANE_MATMUL_RESIDUAL) != 0, true};
        for (int i = 0; i < OPERANDS; i++) p->copy[i] = p->copies.add(has[i] ? bytes_of(types[i], spans[i]) : 0);
        place_constants(p, *constants);
        if (multiplies(p, d.m)) make_plan(p, d.m);
        *out = product.release();
        return ANE_STATUS_OK;
    });
}

ANEStatus not_offered(ANEError *err) {
    return report(err, Failure{ANE_STATUS_NOT_IMPLEMENTED, ANE_REFUSAL_NONE, 0, "",
                               "compiling takes less than a millisecond here: there is nothing to keep"});
}

ANEStatus product_save(ANEProduct *, const char *, ANEError *err) { return not_offered(err); }

ANEStatus product_load(ANEDevice *, const ANEMatMulDesc *, const ANEConstants *, const ANECompileOptions *,
                       const char *, ANEProduct **, ANEError *err) {
    return not_offered(err);
}

ANEStatus product_info(ANEProduct *product, ANEProductInfo *info, ANEError *) {
    info->flags = 0;
    info->requested = product->requested;
    info->observed = ANE_DEVICE_GPU;
    info->bytes_held = sizeof *product + product->own_bytes;
    info->executor_bytes = sizeof(ANEMatMulExecutor) + product->work.bytes + product->copies.bytes;
    info->arithmetic = product->arithmetic;
    return ANE_STATUS_OK;
}

void product_destroy(ANEProduct *product) {
    if (product != nullptr) cudaSetDevice(product->device->index);
    delete product;
}

/* ---- running ------------------------------------------------------------------------------- */

Lane make_lane(ANEProduct *product) {
    Lane lane{};
    lane.product = product;
    lane.stream = new_stream();
    lane.work = device_memory(product->work.bytes);
    if (multiplies(product, product->desc.m)) {
        lane.plan = make_plan(product, product->desc.m);
        lane.workspace_bytes = lane.plan.workspace_bytes;
        lane.workspace = device_memory(lane.workspace_bytes);
    }
    return lane;
}

ANEStatus executor_create(ANEProduct *product, const ANEExecutorOptions *options, ANEMatMulExecutor **out,
                          ANEError *err) {
    return guarded(err, [&] {
        if (options->queue_depth > MAX_QUEUE_DEPTH) invalid("the queue is deeper than max_queue_depth");
        product->device->choose();
        auto executor = std::make_unique<ANEMatMulExecutor>();
        executor->product = product;
        executor->start = new_event(cudaEventDefault);
        executor->end = new_event(cudaEventDefault);
        executor->lane = make_lane(product);
        executor->slots.resize(options->queue_depth);
        for (Slot &slot : executor->slots) {
            slot.start = new_event(cudaEventDefault);
            slot.end = new_event(cudaEventDefault);
            slot.copied = new_event(cudaEventDisableTiming);
        }
        *out = executor.release();
        return ANE_STATUS_OK;
    });
}

void executor_destroy(ANEMatMulExecutor *executor) {
    if (executor == nullptr) return;
    cudaSetDevice(executor->product->device->index);
    cudaStreamSynchronize(executor->lane.stream.get()); /* each C is complete */
    delete executor;
}

char *copy_of(Lane *e, int operand) {
    if (e->copies.get() == nullptr) e->copies = device_memory(e->product->copies.bytes);
    return static_cast<char *>(e->copies.get()) + e->product->copy[operand];
}

char *staged(Lane *e, int operand) {
    if (e->staging.get() == nullptr) e->staging = pinned_memory(e->product->copies.bytes);
    return static_cast<char *>(e->staging.get()) + e->product->copy[operand];
}

Place place_of(Lane *e, const ANEOperand &operand, int which) {
    Place place;
    place.bytes = operand.length_bytes;
    if (place.bytes == 0) return place;
    char *data =
        operand.buffer != nullptr ? operand.buffer->data + operand.offset_bytes : static_cast<char *>(operand.data);
    bool on_device = operand.buffer != nullptr && operand.buffer->on_device;
    if (on_device && reinterpret_cast<uintptr_t>(data) % ALIGNMENT == 0) {
        place.device = data;
        return place;
    }
    (operand.buffer == nullptr ? place.host : on_device ? place.buffer : place.pinned) = data;
    place.device = copy_of(e, which);
    return place;
}

/* Copies what is not where the device reads it. */
void copy_inputs(Lane *e, Place *places) {
    cudaStream_t stream = e->stream.get();
    /* Small operands in plain memory go in one copy, with whatever lies between them. */
    uint64_t first = UINT64_MAX, last = 0;
    if (e->product->copies.bytes <= STAGED_BYTES) {
        for (int i = A; i < C; i++) {
            if (places[i].host == nullptr) continue;
            memcpy(staged(e, i), places[i].host, places[i].bytes);
            first = std::min(first, e->product->copy[i]);
            last = std::max(last, e->product->copy[i] + places[i].bytes);
        }
    }
    if (last > 0) {
        check(cudaMemcpyAsync(static_cast<char *>(e->copies.get()) + first,
                              static_cast<char *>(e->staging.get()) + first, last - first, cudaMemcpyHostToDevice,
                              stream),
              "copying operands to the device");
    }
    for (int i = A; i < C; i++) {
        const Place &place = places[i];
        if (place.host != nullptr && last == 0) {
            if (place.bytes > DRIVER_BYTES) {
                e->product->device->transfer->upload(place.device, place.host, place.bytes, stream);
            } else {
                check(cudaMemcpyAsync(place.device, place.host, place.bytes, cudaMemcpyHostToDevice, stream),
                      "copying an operand to the device");
            }
        }
        if (place.pinned != nullptr) {
            check(cudaMemcpyAsync(place.device, place.pinned, place.bytes, cudaMemcpyHostToDevice, stream),
                  "copying an operand to the device");
        }
        if (place.buffer != nullptr) {
            check(cudaMemcpyAsync(place.device, place.buffer, place.bytes, cudaMemcpyDeviceToDevice, stream),
                  "copying an operand on the device");
        }
    }
}

Rows rows_of_c(const ANEProduct *p, uint64_t rows) {
    const ANEMatMulDesc &d = p->desc;
    uint64_t size = bits_of(d.type_c) / 8;
    return Rows{d.batch, d.stride_c * size, rows, d.ldc * size, d.n * size};
}

/* Copies C to a buffer, on the stream: never what lies between its rows. */
void copy_c(Lane *e, const Place &c, uint64_t rows) {
    cudaStream_t stream = e->stream.get();
    Rows matrix = rows_of_c(e->product, rows);
    char *to = c.pinned != nullptr ? c.pinned : c.buffer;
    const char *from = static_cast<const char *>(c.device);
    cudaMemcpyKind kind = c.pinned != nullptr ? cudaMemcpyDeviceToHost : cudaMemcpyDeviceToDevice;
    if (!matrix.has_gaps()) {
        check(cudaMemcpyAsync(to, from, c.bytes, kind, stream), "copying C");
        return;
    }
    for (uint64_t item = 0; item < matrix.items; item++) {
        uint64_t start = item * matrix.item_bytes, pitch = std::max(matrix.pitch_bytes, matrix.row_bytes);
        check(cudaMemcpy2DAsync(to + start, pitch, from + start, pitch, matrix.row_bytes, matrix.rows, kind, stream),
              "copying C");
    }
}

/* Makes the plan for so many rows the executor's. */
void choose_plan(Lane *e, uint64_t rows) {
    if (e->plan.rows == rows) return;
    Plan plan = make_plan(e->product, rows);
    if (plan.workspace_bytes > e->workspace_bytes) {
        e->workspace_bytes = 0;
        e->workspace = DeviceMemory(); /* waits for what uses it */
        e->workspace = device_memory(plan.workspace_bytes);
        e->workspace_bytes = plan.workspace_bytes;
    }
    e->plan = std::move(plan);
}

/* The sums of a product that cuBLASLt does not take, for the epilogue. */
void multiply_ourselves(Lane *e, uint64_t rows, const void *a, const void *b, Finish *f) {
    ANEProduct *p = e->product;
    const Multiplication &m = p->multiplication;
    if (p->direct) {
        /* There is no room for sums. */
        if (e->spare.get() == nullptr) e->spare = device_memory(4 * p->desc.batch * p->desc.m * m.columns);
        f->ld = m.columns;
    }
    void *sums = p->direct ? e->spare.get() : e->at(p->sums);
    uint64_t item_a = p->packs_a ? rows * m.ld_a : m.item_a, count = p->desc.batch * rows * m.columns;
    launch(multiply, dim3(blocks_of_all(p->device, count)), dim3(256), e->stream.get(),
           matrix(a, m.type_a, item_a, m.ld_a, m.transposed_a), matrix(b, m.type_b, m.item_b, m.ld_b, m.transposed_b),
           p->desc.batch, rows, m.columns, m.k, p->kind == Kind::INTEGERS, f->ld, sums);
    f->sums = sums;
}

/* The product alone, of what lies on the device. */
void multiply_by_library(Lane *e, const void *a, const void *b, const Place *places, bool adds, void *out) {
    ANEProduct *p = e->product;
    const Multiplication &m = p->multiplication;
    bool integers = p->kind == Kind::INTEGERS;
    if (m.bias) set(e->plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, places[BIAS].device);
    const float alpha = m.alpha, beta = m.residual || adds ? 1 : 0;
    const int32_t one = 1, zero = 0;
    const void *residual = m.residual ? places[RESIDUAL].device : out;
    check(cublasLtMatmul(p->device->lt.get(), e->plan.operation.get(),
                         integers ? static_cast<const void *>(&one) : &alpha, b, e->plan.b.get(), a, e->plan.a.get(),
                         integers ? static_cast<const void *>(&zero) : &beta, residual, e->plan.residual.get(), out,
                         e->plan.c.get(), &e->plan.algorithm, e->workspace.get(), e->workspace_bytes, e->stream.get()),
          "multiplying");
}

/* A and B as cuBLASLt takes them, from what they are. */
const void *packed_a(Lane *e, uint64_t rows, const void *a, Finish *f) {
    ANEProduct *p = e->product;
    const ANEMatMulDesc &d = p->desc;
    cudaStream_t stream = e->stream.get();
    Matrix from = matrix(a, d.type_a, d.stride_a, d.lda, (d.flags & ANE_MATMUL_TRANSPOSE_A) != 0);
    float *scales = nullptr;
    if (d.quant_a == ANE_QUANT_A_DYNAMIC_PER_ROW) {
        scales = reinterpret_cast<float *>(e->at(p->row_scales));
        launch(row_scales, dim3(blocks(d.batch * rows, 8)), dim3(p->device->warp, 8), stream, from, d.batch, rows, d.k,
               scales);
        f->row_scales = scales;
    }
    const Multiplication &m = p->multiplication;
    const void *packed = a;
    if (p->packs_a) {
        packed = e->at(p->packed_a);
        launch(pack, dim3(blocks(d.batch * rows * (m.k / 16), 256)), dim3(256), stream, from, d.batch, rows, d.k, m.k,
               scales, reinterpret_cast<int8_t *>(e->at(p->packed_a)));
    }
    if (d.zero_point_b != 0) {
        f->row_sums = reinterpret_cast<const int32_t *>(e->at(p->row_sums));
        launch_sum_rows(p->device, static_cast<const int8_t *>(packed), d.batch, rows, d.k, m.ld_a,
                        p->packs_a ? rows * m.ld_a : m.item_a, e->at(p->row_sums), stream);
    }
    return packed;
}

const void *packed_b(Lane *e, const void *b, Finish *f) {
    ANEProduct *p = e->product;
    const ANEMatMulDesc &d = p->desc;
    f->column_sums_item = d.stride_b == 0 ? 0 : d.n;
    if ((d.flags & ANE_MATMUL_CONSTANT_B) != 0) {
        f->column_sums = static_cast<const int32_t *>(p->column_sums.get());
        return p->b;
    }
    void *packed = p->packs_b ? e->at(p->run_packed_b) : nullptr, *sums = e->at(p->run_column_sums);
    const Multiplication &m = p->multiplication;
    uint64_t items = d.stride_b == 0 ? 1 : d.batch;
    /* Columns that there are not are zeros. */
    if (p->packs_b && d.n != m.columns) {
        check(cudaMemsetAsync(packed, 0, items * m.columns * m.k, e->stream.get()), "packing B");
    }
    pack_b(p, b, packed, sums, e->stream.get());
    f->column_sums = static_cast<const int32_t *>(sums);
    return p->packs_b ? packed : b;
}

Weights weights_of(const ANEProduct *p, const void *b) {
    const ANEMatMulDesc &d = p->desc;
    uint64_t group = d.quant_b == ANE_QUANT_B_PER_GROUP ? d.group_size : std::max<uint64_t>(1, d.k);
    bool transposed = (d.flags & ANE_MATMUL_TRANSPOSE_B) != 0;
    return Weights{matrix(b, d.type_b, d.stride_b, d.ldb, transposed), d.nibble_order, d.zero_point_b, p->scales_b,
                   group};
}

/* A few rows times weights that stay integers; the sums are those of parts of k. */
template <int BITS, ANEType TYPE, int ROWS>
void launch_weights(Lane *e, uint64_t rows, const void *a, const Weights &weights, float *sums) {
    const ANEProduct *p = e->product;
    const ANEMatMulDesc &d = p->desc;
    unsigned tall = blocks(rows, ROWS);
    if (p->multiplication.transposed_b) {
        launch(weights_by_rows<BITS, TYPE, ROWS>, dim3(blocks(d.n, 4), 1, tall), dim3(p->device->warp, 4),
               e->stream.get(), a, d.lda, weights, rows, d.n, d.k, sums);
    } else {
        dim3 grid(blocks(d.n / (32 / BITS), 64), static_cast<unsigned>(p->splits), tall);
        launch(weights_by_columns<BITS, TYPE, ROWS>, grid, dim3(64), e->stream.get(), a, d.lda, weights, rows, d.n, d.k,
               p->depth, sums);
    }
}

template <int BITS, ANEType TYPE>
void launch_weights_of(Lane *e, uint64_t rows, const void *a, const Weights &weights, float *sums) {
    if (rows == 1) {
        launch_weights<BITS, TYPE, 1>(e, rows, a, weights, sums);
    } else {
        launch_weights<BITS, TYPE, 4>(e, rows, a, weights, sums);
    }
}

void multiply_integers(Lane *e, uint64_t rows, const void *a, const void *b, Finish *f) {
    ANEProduct *p = e->product;
    const ANEMatMulDesc &d = p->desc;
    Weights weights = weights_of(p, b);
    float *sums = reinterpret_cast<float *>(e->at(p->sums));
    bool few = bits_of(d.type_b) == 4;
    switch (d.type_a) {
    case ANE_TYPE_F16:
        (few ? launch_weights_of<4, ANE_TYPE_F16> : launch_weights_of<8, ANE_TYPE_F16>)(e, rows, a, weights, sums);
        break;
    case ANE_TYPE_BF16:
        (few ? launch_weights_of<4, ANE_TYPE_BF16> : launch_weights_of<8, ANE_TYPE_BF16>)(e, rows, a, weights, sums);
        break;
    default: (few ? launch_weights_of<4, ANE_TYPE_F32> : launch_weights_of<8, ANE_TYPE_F32>)(e, rows, a, weights, sums);
    }
    f->sums = sums;
    f->ld = d.n;
    f->splits = static_cast<uint32_t>(p->splits);
    f->scales = Matrix{}; /* they have them */
}

const void *widened(Lane *e, ANEType type, const void *from, uint64_t count, uint64_t place) {
    float *to = reinterpret_cast<float *>(e->at(place));
    launch(widen, dim3(blocks_of_all(e->product->device, count)), dim3(256), e->stream.get(), type, from, to, count);
    return to;
}

/* All kernels of a run. */
void compute(Lane *e, uint64_t rows, const Place *places) {
    ANEProduct *p = e->product;
    const ANEMatMulDesc &d = p->desc;
    cudaStream_t stream = e->stream.get();
    const void *a = places[A].device, *b = p->b != nullptr ? p->b : places[B].device;
    void *out = places[C].device;
    if (is_empty(p, rows)) return;

    Finish f{};
    f.items = d.batch, f.rows = rows, f.columns = d.n, f.k = d.k;
    f.type_sums = p->kind == Kind::INTEGERS ? ANE_TYPE_I32 : ANE_TYPE_F32;
    f.ld = p->multiplication.ld_c;
    f.splits = 1;
    f.alpha = d.alpha;
    f.zero_a = d.type_a == ANE_TYPE_U8 ? d.zero_point_a - 128 : d.zero_point_a; /* `pack` has subtracted it */
    f.zero_b = d.zero_point_b;
    f.scale_a = p->scale_a;
    if (p->kind == Kind::INTEGERS || !p->scaled) f.scales = p->scales_b;
    f.bias = Matrix{places[BIAS].device, d.type_bias, 0, 0, 1};
    f.residual = Matrix{places[RESIDUAL].device, d.type_c, d.stride_residual, d.ld_residual, 1};
    f.activation = d.activation;
    f.quantized = d.quant_c == ANE_QUANT_C_STATIC;
    f.zero_c = d.zero_point_c;
    f.scale_c = p->scale_c;
    f.inverse_c = 1 / p->scale_c;
    f.c = Matrix{nullptr, d.type_c, d.stride_c, d.ldc, 1};
    f.out = out;

    bool finishes = !p->direct;
    if (p->kind == Kind::INTEGERS) {
        if (d.k > 0) {
            a = packed_a(e, rows, a, &f);
            b = packed_b(e, b, &f);
        } else {
            f.zero_a = f.zero_b = 0;
        }
    }
    if (!multiplies(p, rows)) {
        f.sums = nullptr;
    } else if (p->kind == Kind::WEIGHTS && reads_integers(p, rows)) {
        multiply_integers(e, rows, a, b, &f);
        finishes = true;
    } else {
        if (p->kind == Kind::WEIGHTS) {
            const Multiplication &m = p->multiplication;
            uint64_t items = d.stride_b == 0 ? 1 : d.batch, outer = m.transposed_b ? d.n : d.k,
                     inner = m.transposed_b ? d.k : d.n;
            dim3 grid(blocks(m.ld_b, 8 * 64), layers(outer), layers(items));
            launch(dequantize, grid, dim3(64), stream, weights_of(p, b), m.transposed_b, p->scaled, items, outer, inner,
                   m.ld_b, p->type_dequantized, p->parts, e->at(p->dequantized));
            b = e->at(p->dequantized);
        }
        if (p->widens_a) a = widened(e, d.type_a, a, places[A].bytes / (bits_of(d.type_a) / 8), p->wide_a);
        if (p->widens_b) {
            uint64_t rows_b = p->multiplication.transposed_b ? d.n : d.k,
                     columns_b = p->multiplication.transposed_b ? d.k : d.n;
            b = widened(e, d.type_b, b, span(d.batch, d.stride_b, rows_b, columns_b, d.ldb), p->wide_b);
        }
        choose_plan(e, rows);
        if (e->plan.ours) {
            multiply_ourselves(e, rows, a, b, &f);
            finishes = true;
        } else {
            void *sums = p->direct ? out : e->at(p->sums);
            multiply_by_library(e, a, b, places, false, sums);
            if (p->parts > 1) {
                uint64_t count = places[A].bytes / 2;
                launch(keep_finite, dim3(blocks_of_all(p->device, count)), dim3(256), stream,
                       static_cast<const __nv_bfloat16 *>(a), reinterpret_cast<__nv_bfloat16 *>(e->at(p->finite_a)),
                       count);
                a = e->at(p->finite_a);
            }
            for (unsigned part = 1; part < p->parts; part++) {
                b = static_cast<const char *>(b) + bytes_of(p->type_dequantized, p->part_elements);
                multiply_by_library(e, a, b, places, true, sums);
            }
            f.sums = sums;
        }
    }
    if (!finishes) return;
    unsigned threads = static_cast<unsigned>(std::min<uint64_t>(256, rounded(d.n, p->device->warp)));
    /* Enough blocks for the whole device, and rows for each: what a column has in common is loaded once. */
    unsigned across = blocks(d.n, threads), deep = layers(d.batch);
    uint64_t tall = std::max<uint64_t>(1, p->device->processors * 32ull / across / deep);
    launch(finish, dim3(across, layers(std::min(rows, tall)), deep), dim3(threads), stream, f);
}

/* Puts a run on the stream, and C where it belongs unless that is plain memory. Returns where C is. */
Place enqueue(Lane *e, const ANERunArgs &args, const Event *start, const Event *end) {
    ANEProduct *p = e->product;
    if (args.m > p->desc.m) invalid("more rows than compiled for");
    const ANEOperand *operands[OPERANDS] = {&args.a, &args.b, &args.bias, &args.residual, &args.c};
    Place places[OPERANDS];
    for (int i = 0; i < OPERANDS; i++) places[i] = place_of(e, *operands[i], i);
    copy_inputs(e, places);
    if (start != nullptr) check(cudaEventRecord(start->get(), e->stream.get()), "reading the device's clock");
    compute(e, args.m, places);
    if (end != nullptr) check(cudaEventRecord(end->get(), e->stream.get()), "reading the device's clock");
    if (places[C].pinned != nullptr || places[C].buffer != nullptr) copy_c(e, places[C], args.m);
    return places[C];
}

ANEStatus executor_run(ANEMatMulExecutor *executor, const ANERunArgs *args, ANEError *err) {
    return guarded(err, [&] {
        if (executor->open > 0) invalid("a run while submissions of this executor were not waited for");
        ANEProduct *p = executor->product;
        p->device->choose();
        Lane *e = &executor->lane;
        cudaStream_t stream = e->stream.get();
        try {
            bool timed = args->info != nullptr;
            Place c = enqueue(e, *args, timed ? &executor->start : nullptr, timed ? &executor->end : nullptr);
            Rows rows = rows_of_c(p, args->m);
            if (c.host != nullptr && p->copies.bytes <= STAGED_BYTES) {
                check(cudaMemcpyAsync(staged(e, C), c.device, c.bytes, cudaMemcpyDeviceToHost, stream), "copying C");
                check(cudaStreamSynchronize(stream), "running");
                copy_rows(c.host, staged(e, C), 0, c.bytes, rows);
            } else if (c.host != nullptr) {
                p->device->transfer->download(c.host, c.device, c.bytes, rows, stream);
            }
            check(cudaStreamSynchronize(stream), "running");
            observe(p->device, executor->start, executor->end, args->info);
        } catch (...) {
            cudaStreamSynchronize(stream); /* nothing works on the caller's memory any more */
            throw;
        }
        return ANE_STATUS_OK;
    });
}

/* The slot of a ticket, or a free one of 0; NULL where there is none. They are used in turn, unless tickets stay. */
Slot *slot_of(ANEMatMulExecutor *executor, ANETicket ticket, uint64_t likely) {
    uint64_t depth = executor->slots.size();
    for (uint64_t i = 0; i < depth; i++) {
        Slot &slot = executor->slots[(likely + i) % depth];
        if (slot.ticket == ticket) return &slot;
    }
    return nullptr;
}

ANEStatus executor_submit(ANEMatMulExecutor *executor, const ANERunArgs *args, ANETicket *ticket, ANEError *err) {
    return guarded(err, [&] {
        if (args->info != nullptr) invalid("a submission's ANERunInfo comes with executor_wait");
        for (const ANEOperand *operand : {&args->a, &args->b, &args->bias, &args->residual, &args->c}) {
            if (operand->data != nullptr) invalid("an operand of a submission lies in no buffer");
        }
        Slot *slot = slot_of(executor, 0, executor->submitted);
        if (slot == nullptr) invalid("more submissions than the queue of this executor holds");
        executor->product->device->choose();
        Lane &lane = executor->lane;
        try {
            Place c = enqueue(&lane, *args, &slot->start, &slot->end);
            slot->complete = c.pinned != nullptr || c.buffer != nullptr ? &slot->copied : &slot->end;
            if (slot->complete == &slot->copied)
                check(cudaEventRecord(slot->copied.get(), lane.stream.get()), "submitting");
        } catch (...) {
            cudaStreamSynchronize(lane.stream.get()); /* nothing was started */
            throw;
        }
        *ticket = slot->ticket = ++executor->submitted;
        executor->open++;
        return ANE_STATUS_OK;
    });
}

/* Whether an event has come, by a time. */
bool await(const Event &event, bool endless, std::chrono::steady_clock::time_point until) {
    if (endless) {
        check(cudaEventSynchronize(event.get()), "waiting for a submission");
        return true;
    }
    for (unsigned looks = 0;; looks++) {
        cudaError_t state = cudaEventQuery(event.get());
        if (state != cudaErrorNotReady) {
            check(state, "waiting for a submission");
            return true;
        }
        cudaGetLastError();
        if (std::chrono::steady_clock::now() >= until) return false;
        if (looks > 50) std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
}

ANEStatus executor_wait(ANEMatMulExecutor *executor, ANETicket ticket, uint64_t timeout_ns, ANERunInfo *info,
                        ANEError *err) {
    Slot *slot = ticket == 0 ? nullptr : slot_of(executor, ticket, ticket - 1);
    ANEStatus status = guarded(err, [&] {
        if (slot == nullptr) invalid("no such ticket, or it was ended before");
        ANEDevice *device = executor->product->device;
        device->choose();
        bool endless = timeout_ns > static_cast<uint64_t>(INT64_MAX) / 2; /* 146 years */
        auto until = std::chrono::steady_clock::now() + std::chrono::nanoseconds(endless ? 0 : timeout_ns);
        if (!await(*slot->complete, endless, until)) return ANE_STATUS_PENDING;
        observe(device, slot->start, slot->end, info);
        return ANE_STATUS_OK;
    });
    if (slot != nullptr && status != ANE_STATUS_PENDING) {
        slot->ticket = 0;
        executor->open--;
    }
    return status;
}

} /* namespace */

/* ---- the table ----------------------------------------------------------------------------- */

extern "C" __attribute__((visibility("default"))) const ANEShim *ane_matmul_shim(void) {
    static const ANEShim shim = [] {
        ANEShim table{};
        table.struct_size = sizeof table;
        table.abi_major = ANE_MATMUL_ABI_MAJOR;
        table.abi_minor = ANE_MATMUL_ABI_MINOR;
        table.name = "cuda";
        table.version = "1.0";
        table.device_count = device_count;
        table.device_info = device_info;
        table.device_open = device_open;
        table.device_prepare = device_prepare;
        table.device_close = device_close;
        table.supports = supports;
        table.buffer_create = buffer_create;
        table.buffer_wrap = buffer_wrap;
        table.buffer_contents = buffer_contents;
        table.buffer_write = buffer_write;
        table.buffer_read = buffer_read;
        table.buffer_destroy = buffer_destroy;
        table.constant_create = constant_create;
        table.constant_destroy = constant_destroy;
        table.compile = compile;
        table.product_save = product_save;
        table.product_load = product_load;
        table.product_info = product_info;
        table.product_destroy = product_destroy;
        table.executor_create = executor_create;
        table.executor_run = executor_run;
        table.executor_submit = executor_submit;
        table.executor_wait = executor_wait;
        table.executor_destroy = executor_destroy;
        return table;
    }();
    return &shim;
}
