/*
 * What the CUDA shim owns, and how it fails: handles that free themselves, and an exception that no slot lets out.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#pragma once
#include "ane_matmul.h"

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <utility>

namespace ane {

/* ---- errors -------------------------------------------------------------------------------- */

struct Failure {
    ANEStatus status;
    ANERefusal refusal;
    int64_t code;
    const char *domain;
    std::string message;
};

[[noreturn]] inline void refuse(ANERefusal refusal, const char *message) {
    throw Failure{ANE_STATUS_REFUSED, refusal, 0, "", message};
}

[[noreturn]] inline void invalid(const char *message) {
    throw Failure{ANE_STATUS_INVALID_ARGUMENT, ANE_REFUSAL_NONE, 0, "", message};
}

inline ANEStatus status_of(cudaError_t error) {
    switch (error) {
    case cudaErrorMemoryAllocation: return ANE_STATUS_OUT_OF_MEMORY;
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInitializationError:
    case cudaErrorDevicesUnavailable:
    case cudaErrorSystemNotReady:
    case cudaErrorSystemDriverMismatch: return ANE_STATUS_NO_DEVICE;
    case cudaErrorLaunchTimeout: return ANE_STATUS_TIMEOUT;
    case cudaErrorNoKernelImageForDevice: return ANE_STATUS_COMPILE_FAILED;
    default: return ANE_STATUS_RUN_FAILED;
    }
}

/* What the user can do about it. */
inline const char *advice_of(cudaError_t error) {
    switch (error) {
    case cudaErrorMemoryAllocation: return "; free some of the device's memory, or run fewer products at once";
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver: return "; look at what nvidia-smi says";
    case cudaErrorNoKernelImageForDevice: return "; build the shim for this device (make ARCH=native)";
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure: return "; this process cannot use the device any more: start it again";
    default: return "";
    }
}

inline void check(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return;
    cudaGetLastError(); /* or the next launch would report it once more */
    std::string message = std::string(what) + ": " + cudaGetErrorString(error) + advice_of(error);
    throw Failure{status_of(error), ANE_REFUSAL_NONE, error, "CUDA", message};
}

inline void check(cublasStatus_t status, const char *what) {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    ANEStatus as = status == CUBLAS_STATUS_ALLOC_FAILED ? ANE_STATUS_OUT_OF_MEMORY
                   : status == CUBLAS_STATUS_NOT_INITIALIZED || status == CUBLAS_STATUS_ARCH_MISMATCH
                       ? ANE_STATUS_NO_DEVICE
                       : ANE_STATUS_RUN_FAILED;
    throw Failure{as, ANE_REFUSAL_NONE, status, "cuBLASLt", std::string(what) + ": " + cublasLtGetStatusString(status)};
}

inline ANEStatus report(ANEError *err, const Failure &failure) {
    if (err != nullptr) {
        err->status = failure.status;
        err->refusal = failure.refusal;
        err->native_code = failure.code;
        err->log_length = 0;
        snprintf(err->domain, sizeof err->domain, "%s", failure.domain);
        snprintf(err->message, sizeof err->message, "%s", failure.message.c_str());
    }
    return failure.status;
}

/* Runs a slot's body: what it throws becomes a status. */
template <typename Body> ANEStatus guarded(ANEError *err, Body body) noexcept {
    try {
        return body();
    } catch (const Failure &failure) {
        return report(err, failure);
    } catch (const std::bad_alloc &) {
        return report(err, Failure{ANE_STATUS_OUT_OF_MEMORY, ANE_REFUSAL_NONE, 0, "", "the host has no memory left"});
    } catch (const std::exception &exception) {
        return report(err, Failure{ANE_STATUS_EXCEPTION, ANE_REFUSAL_NONE, 0, "std::exception", exception.what()});
    } catch (...) {
        return report(err, Failure{ANE_STATUS_EXCEPTION, ANE_REFUSAL_NONE, 0, "", "an unknown exception"});
    }
}

/* ---- handles ------------------------------------------------------------------------------- */

/* A handle that Destroy frees; it moves, and is not copied. */
template <typename T, auto Destroy> class Owned {
  public:
    Owned() = default;
    explicit Owned(T handle) : handle_(handle) {}
    Owned(Owned &&other) noexcept : handle_(std::exchange(other.handle_, T())) {}
    Owned &operator=(Owned &&other) noexcept {
        std::swap(handle_, other.handle_);
        return *this;
    }
    ~Owned() {
        if (handle_ != T()) Destroy(handle_);
    }
    T get() const { return handle_; }

  private:
    T handle_ = T();
};

using DeviceMemory = Owned<void *, cudaFree>;
using PinnedMemory = Owned<void *, cudaFreeHost>;
using WrappedMemory = Owned<void *, cudaHostUnregister>;
using Stream = Owned<cudaStream_t, cudaStreamDestroy>;
using Event = Owned<cudaEvent_t, cudaEventDestroy>;
using Lt = Owned<cublasLtHandle_t, cublasLtDestroy>;
using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Operation = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

inline DeviceMemory device_memory(uint64_t bytes) {
    void *data = nullptr;
    check(cudaMalloc(&data, bytes > 0 ? bytes : 1), "allocating memory of the device");
    return DeviceMemory(data);
}

inline PinnedMemory pinned_memory(uint64_t bytes) {
    void *data = nullptr;
    check(cudaHostAlloc(&data, bytes > 0 ? bytes : 1, cudaHostAllocPortable), "allocating pinned memory");
    return PinnedMemory(data);
}

inline Stream new_stream() {
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
    return Stream(stream);
}

inline Event new_event(unsigned flags) {
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, flags), "making an event");
    return Event(event);
}

} /* namespace ane */
