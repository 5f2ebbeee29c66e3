/*
 * The emulation of CUDA's runtime and of cuBLASLt: see cuda_runtime.h. What the documentation forbids ends the process,
 * with a message.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#include "sim.h"
#include "cublasLt.h"
#include "cuda_bf16.h"
#include "cuda_fp16.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace {

std::recursive_mutex everything;
using Lock = std::lock_guard<std::recursive_mutex>;

struct Range {
    size_t bytes;
    int device;
};
std::map<const char *, Range> device_ranges, pinned_ranges, wrapped_ranges;
uint64_t objects, calls, fail_at, kernels, lose_at;
bool lost;
int devices = -1;
thread_local int current;

[[noreturn]] void forbidden(const char *what) {
    fprintf(stderr, "cuda_sim: %s\n", what);
    abort();
}

int device_total() {
    if (devices < 0) {
        const char *text = getenv("ANE_CUDA_SIM_DEVICES");
        devices = text != nullptr ? atoi(text) : 1;
    }
    return devices;
}

/* Counts a call; cudaSuccess unless it is one that fails. */
cudaError_t called(cudaError_t as = cudaErrorLaunchFailure) {
    if (++calls == fail_at) return as;
    return lost ? cudaErrorLaunchFailure : cudaSuccess;
}

cublasStatus_t called_lt() {
    if (++calls == fail_at) return CUBLAS_STATUS_INTERNAL_ERROR;
    return lost ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}

bool within(const std::map<const char *, Range> &ranges, const void *data, size_t bytes) {
    const char *at = static_cast<const char *>(data);
    auto after = ranges.upper_bound(at);
    if (after == ranges.begin()) return false;
    const auto &[start, range] = *--after;
    return at + bytes <= start + range.bytes;
}

bool is_pinned(const void *data, size_t bytes) {
    return within(pinned_ranges, data, bytes) || within(wrapped_ranges, data, bytes);
}

void must_be_on_device(const void *data, size_t bytes, const char *what) {
    if (!within(device_ranges, data, bytes)) forbidden(what);
}

} /* namespace */

struct SimStream {
    std::deque<std::function<void()>> work;

    bool step() {
        if (work.empty()) return false;
        auto next = std::move(work.front());
        work.pop_front();
        if (!lost) next();
        return true;
    }
    void drain() {
        while (step()) {
        }
    }
};

namespace {
struct State {
    SimStream *stream = nullptr;
    uint64_t recorded = 0, reached = 0;
    double at_ms = 0;
};

/* Lets an event come. */
bool reach(State &state, uint64_t number) {
    while (state.reached < number && !lost && state.stream->step()) {
    }
    return state.reached >= number || lost;
}
} /* namespace */

struct SimEvent {
    std::shared_ptr<State> state = std::make_shared<State>();
    bool timed;
};

/* ---- what tests ask ------------------------------------------------------------------------ */

void sim_fail_at(uint64_t call) {
    Lock lock(everything);
    calls = 0;
    fail_at = call;
    lost = false;
}
uint64_t sim_calls() {
    Lock lock(everything);
    return calls;
}
void sim_lose_at(uint64_t kernel) {
    Lock lock(everything);
    kernels = 0;
    lose_at = kernel;
    lost = false;
}
uint64_t sim_live() {
    Lock lock(everything);
    return objects;
}
void sim_set_devices(int count) {
    Lock lock(everything);
    devices = count;
}

/* ---- devices ------------------------------------------------------------------------------- */

cudaError_t cudaGetDeviceCount(int *count) {
    Lock lock(everything);
    if (cudaError_t error = called(cudaErrorInitializationError)) return error;
    *count = device_total();
    return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
    Lock lock(everything);
    if (cudaError_t error = called()) return error;
    if (device >= device_total()) return cudaErrorInvalidDevice;
    *properties = cudaDeviceProp{};
    snprintf(properties->name, sizeof properties->name, "CUDA emulated on the host, number %d", device);
    properties->totalGlobalMem = size_t(1) << 32;
    properties->major = 9;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    Lock lock(everything);
    if (cudaError_t error = called()) return error;
    if (device >= device_total()) return cudaErrorInvalidDevice;
    *value = attribute == cudaDevAttrWarpSize ? 1 : 2;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    Lock lock(everything);
    *version = CUDART_VERSION;
    return called();
}

cudaError_t cudaSetDevice(int device) {
    Lock lock(everything);
    if (cudaError_t error = called(cudaErrorDevicesUnavailable)) return error;
    current = device;
    return device < device_total() ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    default: return "an error of the emulation";
    }
}

/* ---- memory -------------------------------------------------------------------------------- */

namespace {
/* NaN, of any type: what nobody wrote shows. */
cudaError_t allocate(std::map<const char *, Range> &ranges, void **data, size_t bytes) {
    if (cudaError_t error = called(cudaErrorMemoryAllocation)) return error;
    if (bytes > size_t(1) << 32) return cudaErrorMemoryAllocation;
    *data = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (*data == nullptr) return cudaErrorMemoryAllocation;
    memset(*data, 0xff, bytes);
    ranges[static_cast<char *>(*data)] = Range{bytes, current};
    objects++;
    return cudaSuccess;
}

void finish_everything();

cudaError_t release(std::map<const char *, Range> &ranges, void *data, bool owned) {
    finish_everything(); /* as the runtime does */
    if (ranges.erase(static_cast<char *>(data)) == 0) forbidden("memory is freed that there is not");
    if (owned) free(data);
    objects--;
    return cudaSuccess;
}

std::vector<SimStream *> streams;
void finish_everything() {
    for (SimStream *stream : streams) stream->drain();
}
} /* namespace */

cudaError_t cudaMalloc(void **data, size_t bytes) {
    Lock lock(everything);
    return allocate(device_ranges, data, bytes);
}
cudaError_t cudaFree(void *data) {
    Lock lock(everything);
    return release(device_ranges, data, true);
}
cudaError_t cudaHostAlloc(void **data, size_t bytes, unsigned) {
    Lock lock(everything);
    return allocate(pinned_ranges, data, bytes);
}
cudaError_t cudaFreeHost(void *data) {
    Lock lock(everything);
    return release(pinned_ranges, data, true);
}
cudaError_t cudaHostRegister(void *data, size_t bytes, unsigned) {
    Lock lock(everything);
    if (cudaError_t error = called(cudaErrorMemoryAllocation)) return error;
    if (reinterpret_cast<uintptr_t>(data) % 4096 != 0 || bytes % 4096 != 0) forbidden("pages are pinned that are none");
    wrapped_ranges[static_cast<char *>(data)] = Range{bytes, current};
    objects++;
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *data) {
    Lock lock(everything);
    return release(wrapped_ranges, data, false);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
    Lock lock(everything);
    if (cudaError_t error = called()) return error;
    if (width > to_pitch || width > from_pitch) return cudaErrorInvalidValue;
    if (width == 0 || height == 0) return cudaSuccess;
    size_t to_bytes = (height - 1) * to_pitch + width, from_bytes = (height - 1) * from_pitch + width;
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (to_device) must_be_on_device(to, to_bytes, "a copy to what is not on the device");
    if (from_device) must_be_on_device(from, from_bytes, "a copy from what is not on the device");
    if (!to_device && within(device_ranges, to, 1)) forbidden("a copy to the host, to memory of the device");
    if (!from_device && within(device_ranges, from, 1)) forbidden("a copy from the host, from memory of the device");
    auto rows = [=](char *out, const char *in) {
        for (size_t row = 0; row < height; row++) memcpy(out + row * to_pitch, in + row * from_pitch, width);
    };
    char *out = static_cast<char *>(to);
    const char *in = static_cast<const char *>(from);
    if (!from_device && !is_pinned(from, from_bytes)) {
        /* The driver has read it when the call returns. */
        std::vector<char> staged(in, in + from_bytes);
        stream->work.push_back([=] { rows(out, staged.data()); });
    } else if (!to_device && !is_pinned(to, to_bytes)) {
        stream->drain();
        if (lost) return cudaErrorLaunchFailure;
        rows(out, in);
    } else {
        stream->work.push_back([=] { rows(out, in); });
    }
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    Lock lock(everything);
    if (cudaError_t error = called()) return error;
    must_be_on_device(to, bytes, "memory is set that is not on the device");
    stream->work.push_back([=] { memset(to, value, bytes); });
    return cudaSuccess;
}

/* ---- streams and events -------------------------------------------------------------------- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    Lock lock(everything);
    if (cudaError_t error = called(cudaErrorMemoryAllocation)) return error;
    *stream = new SimStream;
    streams.push_back(*stream);
    objects++;
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    Lock lock(everything);
    stream->drain();
    for (SimStream *&one : streams) {
        if (one != stream) continue;
        one = streams.back();
        streams.pop_back();
        break;
    }
    delete stream;
    objects--;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    Lock lock(everything);
    if (cudaError_t error = called()) return error;
    stream->drain();
    return lost ? cudaErrorLaunchFailure : cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    Lock lock(everything);
    if (cudaError_t error = called()) return error;
    stream->work.push_back([state = event->state, number = event->state->recorded] { reach(*state, number); });
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    Lock lock(everything);
    if (cudaError_t error = called(cudaErrorMemoryAllocation)) return error;
    *event = new SimEvent;
    (*event)->timed = (flags & cudaEventDisableTiming) == 0;
    objects++;
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    Lock lock(everything);
    delete event;
    objects--;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    Lock lock(everything);
    if (cudaError_t error = called()) return error;
    event->state->stream = stream;
    stream->work.push_back([state = event->state, number = ++event->state->recorded] {
        using namespace std::chrono;
        state->reached = number;
        state->at_ms = duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
    });
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    Lock lock(everything);
    if (cudaError_t error = called()) return error;
    reach(*event->state, event->state->recorded);
    return lost ? cudaErrorLaunchFailure : cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    Lock lock(everything);
    if (cudaError_t error = called()) return error;
    State &state = *event->state;
    if (state.reached < state.recorded) state.stream->step();
    if (lost) return cudaErrorLaunchFailure;
    return state.reached < state.recorded ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    Lock lock(everything);
    if (cudaError_t error = called()) return error;
    for (cudaEvent_t event : {start, end}) {
        if (!event->timed || event->state->recorded == 0) forbidden("the time of an event that has none");
        if (event->state->reached < event->state->recorded) return cudaErrorNotReady;
    }
    *milliseconds = static_cast<float>(end->state->at_ms - start->state->at_ms);
    return cudaSuccess;
}

/* ---- kernels ------------------------------------------------------------------------------- */

namespace {
bool starts() {
    if (++kernels == lose_at) lost = true;
    return !lost;
}
} /* namespace */

cudaError_t sim_launch(const cudaLaunchConfig_t *config, std::function<void()> thread) {
    Lock lock(everything);
    if (cudaError_t error = called()) return error;
    dim3 grid = config->gridDim, block = config->blockDim;
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535 ||
        block.x * block.y * block.z == 0 || block.x * block.y * block.z > 1024 || block.z > 64) {
        return cudaErrorInvalidValue;
    }
    config->stream->work.push_back([=] {
        if (!starts()) return;
        gridDim = grid;
        blockDim = block;
        for (uint64_t b = 0; b < uint64_t(grid.x) * grid.y * grid.z; b++) {
            blockIdx = dim3(unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y));
            for (unsigned t = 0; t < block.x * block.y * block.z; t++) {
                threadIdx = dim3(t % block.x, t / block.x % block.y, t / block.x / block.y);
                thread();
            }
        }
    });
    return cudaSuccess;
}

float __half2float(__half value) {
    int exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
    float magnitude = exponent == 31  ? (fraction != 0 ? NAN : INFINITY)
                      : exponent == 0 ? std::ldexp(float(fraction), -24)
                                      : std::ldexp(float(fraction + 1024), exponent - 25);
    return value.bits >> 15 ? -magnitude : magnitude;
}

__half __float2half_rn(float value) {
    uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    float magnitude = std::fabs(value);
    if (std::isnan(value)) return __half{uint16_t(sign | 0x7e00)};
    if (magnitude >= 65520) return __half{uint16_t(sign | 0x7c00)};
    if (magnitude < 0x1p-14f) return __half{uint16_t(sign | uint16_t(std::nearbyint(magnitude * 0x1p24f)))};
    int exponent = std::ilogb(magnitude);
    int fraction = int(std::nearbyint(std::ldexp(magnitude, 10 - exponent))); /* 1024 to 2048 */
    return __half{uint16_t(sign | uint16_t(((exponent + 15) << 10) + fraction - 1024))};
}

float __bfloat162float(__nv_bfloat16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

__nv_bfloat16 __float2bfloat16_rn(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (std::isnan(value)) return __nv_bfloat16{uint16_t(bits >> 16 | 0x40)};
    return __nv_bfloat16{uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

/* ---- cuBLASLt ------------------------------------------------------------------------------ */

struct SimLt {
    int device;
};
struct SimLayout {
    cudaDataType_t type;
    uint64_t rows, columns;
    int64_t ld;
    int32_t batch = 1;
    int64_t stride = 0;

    size_t size() const {
        switch (type) {
        case CUDA_R_8I: return 1;
        case CUDA_R_16F:
        case CUDA_R_16BF: return 2;
        default: return 4;
        }
    }
    size_t bytes() const { return (size_t(batch - 1) * size_t(stride) + (columns - 1) * size_t(ld) + rows) * size(); }
};
struct SimOperation {
    cublasComputeType_t compute;
    cublasOperation_t a = CUBLAS_OP_N, b = CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    const float *bias = nullptr;
};
struct SimPreference {
    uint64_t workspace = 0;
    uint32_t reduction = 7, alignment = 256;
};

namespace {
constexpr size_t WORKSPACE = 1024;

float element(const SimLayout &layout, const void *data, size_t i) {
    switch (layout.type) {
    case CUDA_R_16F: return __half2float(static_cast<const __half *>(data)[i]);
    case CUDA_R_16BF: return __bfloat162float(static_cast<const __nv_bfloat16 *>(data)[i]);
    default: return static_cast<const float *>(data)[i];
    }
}

float round_to(cudaDataType_t type, float x) {
    if (type == CUDA_R_16F) return __half2float(__float2half_rn(x));
    if (type == CUDA_R_16BF) return __bfloat162float(__float2bfloat16_rn(x));
    return x;
}

void set_element(const SimLayout &layout, void *data, size_t i, float x) {
    switch (layout.type) {
    case CUDA_R_16F: static_cast<__half *>(data)[i] = __float2half_rn(x); break;
    case CUDA_R_16BF: static_cast<__nv_bfloat16 *>(data)[i] = __float2bfloat16_rn(x); break;
    default: static_cast<float *>(data)[i] = x;
    }
}

float to_tf32(float x) {
    uint32_t bits;
    if (std::isnan(x) || std::isinf(x)) return x;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x1000) & ~0x1fffu;
    memcpy(&x, &bits, sizeof x);
    return x;
}

struct Job {
    SimOperation operation;
    SimLayout a, b, c, d;
    const void *data_a, *data_b, *data_c;
    void *data_d;
    float alpha, beta;
    int32_t integer_alpha, integer_beta;

    uint64_t k() const { return operation.a == CUBLAS_OP_N ? a.columns : a.rows; }
    size_t at(const SimLayout &layout, int32_t item, uint64_t row, uint64_t column) const {
        return size_t(item) * size_t(layout.stride) + column * size_t(layout.ld) + row;
    }
    size_t at_a(int32_t item, uint64_t i, uint64_t p) const {
        return operation.a == CUBLAS_OP_N ? at(a, item, i, p) : at(a, item, p, i);
    }
    size_t at_b(int32_t item, uint64_t p, uint64_t j) const {
        return operation.b == CUBLAS_OP_N ? at(b, item, p, j) : at(b, item, j, p);
    }

    void run() const {
        for (int32_t item = 0; item < d.batch; item++) {
            if (operation.compute == CUBLAS_COMPUTE_32I) {
                integers(item);
            } else {
                floats(item);
            }
        }
    }
    void integers(int32_t item) const {
        for (uint64_t j = 0; j < d.columns; j++) {
            for (uint64_t i = 0; i < d.rows; i++) {
                uint32_t sum = 0;
                for (uint64_t p = 0; p < k(); p++) {
                    sum += uint32_t(int32_t(static_cast<const int8_t *>(data_a)[at_a(item, i, p)]) *
                                    static_cast<const int8_t *>(data_b)[at_b(item, p, j)]);
                }
                static_cast<uint32_t *>(data_d)[at(d, item, i, j)] = sum;
            }
        }
    }
    void floats(int32_t item) const {
        bool narrow = operation.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
        std::vector<float> left(d.rows * k()), right(k());
        for (uint64_t i = 0; i < d.rows && alpha != 0; i++) {
            for (uint64_t p = 0; p < k(); p++) {
                float x = element(a, data_a, at_a(item, i, p));
                left[i * k() + p] = narrow ? to_tf32(x) : x;
            }
        }
        for (uint64_t j = 0; j < d.columns; j++) {
            for (uint64_t p = 0; p < k() && alpha != 0; p++) {
                float y = element(b, data_b, at_b(item, p, j));
                right[p] = narrow ? to_tf32(y) : y;
            }
            for (uint64_t i = 0; i < d.rows; i++) {
                float sum = 0; /* left out with an alpha of 0 */
                for (uint64_t p = 0; p < k() && alpha != 0; p++) sum += left[i * k() + p] * right[p];
                /* Rounded before anything is added, as cuBLASLt does. */
                float x = round_to(d.type, alpha * sum);
                if (operation.epilogue == CUBLASLT_EPILOGUE_BIAS) x += operation.bias[i];
                if (beta != 0) x += beta * element(c, data_c, at(c, item, i, j));
                set_element(d, data_d, at(d, item, i, j), x);
            }
        }
    }
};

template <typename T> cublasStatus_t make(T **out, T value) {
    Lock lock(everything);
    if (cublasStatus_t status = called_lt()) return status;
    *out = new T(value);
    objects++;
    return CUBLAS_STATUS_SUCCESS;
}
template <typename T> cublasStatus_t end(T *object) {
    Lock lock(everything);
    delete object;
    objects--;
    return CUBLAS_STATUS_SUCCESS;
}
template <typename T> void take(T *to, const void *value, size_t bytes) {
    if (bytes != sizeof *to) forbidden("an attribute of another size");
    memcpy(to, value, bytes);
}
} /* namespace */

const char *cublasLtGetStatusString(cublasStatus_t status) {
    return status == CUBLAS_STATUS_INTERNAL_ERROR ? "CUBLAS_STATUS_INTERNAL_ERROR" : "a status of the emulation";
}
cublasStatus_t cublasLtCreate(cublasLtHandle_t *lt) { return make(lt, SimLt{current}); }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t lt) { return end(lt); }
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType_t type, uint64_t rows,
                                          uint64_t columns, int64_t ld) {
    if (ld < int64_t(rows)) return CUBLAS_STATUS_INVALID_VALUE;
    SimLayout made{};
    made.type = type, made.rows = rows, made.columns = columns, made.ld = ld, made.batch = 1;
    return make(layout, made);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { return end(layout); }
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void *value,
                                                size_t bytes) {
    Lock lock(everything);
    if (cublasStatus_t status = called_lt()) return status;
    if (attribute == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT) take(&layout->batch, value, bytes);
    if (attribute == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET) take(&layout->stride, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *operation, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
    if ((compute == CUBLAS_COMPUTE_32I) != (scale == CUDA_R_32I)) forbidden("a factor of another type");
    SimOperation made;
    made.compute = compute;
    return make(operation, made);
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t operation) { return end(operation); }
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes) {
    Lock lock(everything);
    if (cublasStatus_t status = called_lt()) return status;
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA: take(&operation->a, value, bytes); break;
    case CUBLASLT_MATMUL_DESC_TRANSB: take(&operation->b, value, bytes); break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE: take(&operation->epilogue, value, bytes); break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: take(&operation->bias, value, bytes); break;
    }
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    return make(preference, SimPreference());
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) { return end(preference); }
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void *value,
                                                    size_t bytes) {
    Lock lock(everything);
    if (cublasStatus_t status = called_lt()) return status;
    switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: take(&preference->workspace, value, bytes); break;
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: take(&preference->reduction, value, bytes); break;
    default: take(&preference->alignment, value, bytes);
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t operation,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t *results, int *count) {
    Lock lock(everything);
    if (cublasStatus_t status = called_lt()) return status;
    *count = 0;
    if (a->batch != d->batch || b->batch != d->batch || c->batch != d->batch || d->rows != c->rows || a->rows == 0) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (preference->reduction & 4) forbidden("parts of a sum may be rounded to the type of C");
    if (d->rows == 13 && d->columns == 13) return CUBLAS_STATUS_NOT_SUPPORTED; /* so that there are some */
    if (operation->compute == CUBLAS_COMPUTE_32I) {
        uint64_t k = operation->a == CUBLAS_OP_N ? a->columns : a->rows;
        bool words = d->rows % 4 == 0 && k % 4 == 0 && a->ld % 4 == 0 && b->ld % 4 == 0 && d->ld % 4 == 0;
        if (operation->a != CUBLAS_OP_T || operation->b != CUBLAS_OP_N || !words) return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    bool mixed = a->type != b->type || (a->type == CUDA_R_32F && d->type != CUDA_R_32F);
    bool narrower = d->type != CUDA_R_32F && d->type != a->type && operation->compute != CUBLAS_COMPUTE_32I;
    if (mixed || narrower) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (wanted > 0) {
        results[0] = cublasLtMatmulHeuristicResult_t{};
        results[0].algo.data[0] = preference->alignment;
        results[0].workspaceSize = WORKSPACE;
        *count = 1;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t operation, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t layout_a, const void *b, cublasLtMatrixLayout_t layout_b,
                              const void *beta, const void *c, cublasLtMatrixLayout_t layout_c, void *d,
                              cublasLtMatrixLayout_t layout_d, const cublasLtMatmulAlgo_t *algorithm, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
    Lock lock(everything);
    if (cublasStatus_t status = called_lt()) return status;
    for (const void *data : {a, b, c, static_cast<const void *>(d)}) {
        if (reinterpret_cast<uintptr_t>(data) % algorithm->data[0] != 0)
            forbidden("an operand is less aligned than promised");
    }
    if (workspace_bytes < WORKSPACE) return CUBLAS_STATUS_INVALID_VALUE;
    must_be_on_device(workspace, WORKSPACE, "the workspace is not on the device");
    must_be_on_device(a, layout_a->bytes(), "an operand goes beyond its memory");
    must_be_on_device(b, layout_b->bytes(), "an operand goes beyond its memory");
    must_be_on_device(c, layout_c->bytes(), "an operand goes beyond its memory");
    must_be_on_device(d, layout_d->bytes(), "a result goes beyond its memory");
    if (operation->epilogue == CUBLASLT_EPILOGUE_BIAS) {
        must_be_on_device(operation->bias, layout_d->rows * 4, "a bias goes beyond its memory");
    }
    Job job{*operation, *layout_a, *layout_b, *layout_c, *layout_d, a, b, c, d, 0, 0, 0, 0};
    if (operation->compute == CUBLAS_COMPUTE_32I) {
        memcpy(&job.integer_alpha, alpha, 4);
        memcpy(&job.integer_beta, beta, 4);
        if (job.integer_alpha != 1 || job.integer_beta != 0) forbidden("factors of integers are not emulated");
    } else {
        memcpy(&job.alpha, alpha, 4);
        memcpy(&job.beta, beta, 4);
    }
    stream->work.push_back([=] {
        if (!starts()) return;
        memset(workspace, 0xff, WORKSPACE);
        job.run();
    });
    return CUBLAS_STATUS_SUCCESS;
}
