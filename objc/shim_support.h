/*
 * shim_support.h - what the shims over Apple's frameworks share: errors, containment of exceptions,
 * layouts of operands, shared buffers. Each shim includes it once, after its `struct ANEDevice` with
 * the members `id<MTLDevice> device` and `id<MTLCommandQueue> queue`; everything here is static, so
 * that two shims live in one program. SPDX-License-Identifier: MIT OR Apache-2.0
 */
#ifndef ANE_SHIM_SUPPORT_H
#define ANE_SHIM_SUPPORT_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "ane_matmul.h"

/* The operands of a run, in the order of the kernels' buffer indices. */
enum { A, B, C, BIAS, RESIDUAL, OPERANDS };

/* How an operand lies in memory: `items` matrices of rows x cols elements. */
typedef struct Layout {
    uint64_t items, rows, cols, ld, stride, element_bytes;
    uint64_t bytes; /* from the first element to one past the last */
} Layout;

struct ANEBuffer {
    ANEDevice *device;
    id<MTLBuffer> buffer;
    uint64_t bytes;
};

/* ---- errors -------------------------------------------------------------------------------- */

/* Fills the caller's error as far as its struct_size reaches; returns the status. */
static ANEStatus report(ANEError *err, ANEStatus status, ANERefusal refusal, NSError *cause, const char *log,
                        const char *format, ...) __attribute__((format(printf, 6, 7)));

static ANEStatus report(ANEError *err, ANEStatus status, ANERefusal refusal, NSError *cause, const char *log,
                        const char *format, ...)
{
    ANEError e;
    va_list arguments;
    if (!err) {
        return status;
    }
    memset(&e, 0, sizeof e);
    memcpy(&e, err, err->struct_size < sizeof e ? err->struct_size : sizeof e);
    e.status = status;
    e.refusal = refusal;
    e.reserved0 = 0;
    e.native_code = cause ? (int64_t)[cause code] : 0;
    snprintf(e.domain, sizeof e.domain, "%s", cause && [[cause domain] UTF8String] ? [[cause domain] UTF8String] : "");
    va_start(arguments, format);
    vsnprintf(e.message, sizeof e.message, format, arguments);
    va_end(arguments);
    e.log_length = log ? strlen(log) : 0;
    if (log && e.log && e.log_capacity) {
        snprintf(e.log, (size_t)e.log_capacity, "%s", log);
    }
    memcpy(err, &e, err->struct_size < sizeof e ? err->struct_size : sizeof e);
    return status;
}

#define FAIL(err, status, ...) report(err, status, ANE_REFUSAL_NONE, nil, NULL, __VA_ARGS__)
#define REFUSE(err, refusal, ...) report(err, ANE_STATUS_REFUSED, refusal, nil, NULL, __VA_ARGS__)

static const char *text_of(NSString *string)
{
    const char *text = [string UTF8String];
    return text ? text : "(no text)";
}

static ANEStatus report_exception(ANEError *err, NSException *exception)
{
    NSString *name = [exception name];
    NSError *cause = [NSError errorWithDomain:name ? name : @"NSException" code:0 userInfo:nil];
    return report(err, ANE_STATUS_EXCEPTION, ANE_REFUSAL_NONE, cause, NULL, "the framework raised %s: %s", text_of(name),
                  text_of([exception reason]));
}

static ANEStatus report_foreign(ANEError *err)
{
    return FAIL(err, ANE_STATUS_EXCEPTION,
                "the framework threw something other than an NSException: a C++ exception, or another object");
}

/* Runs `statement`, which assigns `status`, with a pool of its own; nothing unwinds out of it, C++ included. */
#define CONTAINED(err, status, statement)                       \
    @autoreleasepool {                                          \
        @try {                                                  \
            statement;                                          \
        } @catch (NSException * exception) {                    \
            status = report_exception(err, exception);          \
        } @catch (...) {                                        \
            status = report_foreign(err);                       \
        }                                                       \
    }

/* ---- questions ----------------------------------------------------------------------------- */

/* Every question about the OS version goes through here: on Linux a test answers it. 1404 is 14.4. macOS 26 tells
 * programs that were linked with an earlier SDK that it is 16 (dotnet/runtime#116536). */
static BOOL os_at_least(long macos, long ios)
{
    long version;
#ifdef ANE_MATMUL_TEST_DOUBLE
    extern long ane_sim_metal_macos(void);
    version = ane_sim_metal_macos();
#else
    const NSOperatingSystemVersion system = [[NSProcessInfo processInfo] operatingSystemVersion];
    version = (long)system.majorVersion * 100 + (long)system.minorVersion;
#endif
#if TARGET_OS_OSX || defined(ANE_MATMUL_TEST_DOUBLE)
    (void)ios;
    return (version >= 1600 && version < 2600 ? version + 1000 : version) >= macos;
#else
    (void)macos;
    return version >= ios;
#endif
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Of the types that a shim may know; 0 of others. */
static uint64_t element_bytes(ANEType type)
{
    return type == ANE_TYPE_F32 ? 4 : type == ANE_TYPE_F16 || type == ANE_TYPE_BF16 ? 2 : 0;
}

static void set_layout(Layout *layout, uint64_t items, uint64_t rows, uint64_t cols, uint64_t ld, uint64_t stride,
                       ANEType type)
{
    *layout = (Layout){stride == 0 && items > 1 ? 1 : items, rows, cols, ld, stride, element_bytes(type), 0};
}

/* The layouts of a run of m rows; an operand that the product lacks has none. False on overflow. */
static BOOL layouts_of(const ANEMatMulDesc *d, uint64_t m, Layout layouts[OPERANDS])
{
    const BOOL ta = (d->flags & ANE_MATMUL_TRANSPOSE_A) != 0, tb = (d->flags & ANE_MATMUL_TRANSPOSE_B) != 0;
    memset(layouts, 0, sizeof(Layout) * OPERANDS);
    set_layout(&layouts[A], d->batch, ta ? d->k : m, ta ? m : d->k, d->lda, d->stride_a, d->type_a);
    set_layout(&layouts[B], d->batch, tb ? d->n : d->k, tb ? d->k : d->n, d->ldb, d->stride_b, d->type_b);
    set_layout(&layouts[C], d->batch, m, d->n, d->ldc, d->stride_c, d->type_c);
    if (d->flags & ANE_MATMUL_BIAS) {
        set_layout(&layouts[BIAS], 1, 1, d->n, d->n, 0, d->type_bias);
    }
    if (d->flags & ANE_MATMUL_RESIDUAL) {
        set_layout(&layouts[RESIDUAL], d->batch, m, d->n, d->ld_residual, d->stride_residual, d->type_c);
    }
    for (int i = 0; i < OPERANDS; ++i) {
        Layout *l = &layouts[i];
        uint64_t items, rows, elements;
        if (l->items == 0 || l->rows == 0 || l->cols == 0) {
            continue;
        }
        if (__builtin_mul_overflow(l->items - 1, l->stride, &items) ||
            __builtin_mul_overflow(l->rows - 1, l->ld, &rows) || __builtin_add_overflow(items, rows, &elements) ||
            __builtin_add_overflow(elements, l->cols, &elements) ||
            __builtin_mul_overflow(elements, l->element_bytes, &l->bytes)) {
            return NO;
        }
    }
    return YES;
}

/* Copies the elements of `extent` from one layout to another, and nothing between rows. */
static void repack(char *to, const Layout *to_layout, const char *from, const Layout *from_layout, const Layout *extent)
{
    const size_t bytes = (size_t)extent->element_bytes, row_bytes = (size_t)extent->cols * bytes;
    if (!extent->bytes) {
        return;
    }
    for (uint64_t item = 0; item < extent->items; ++item) {
        for (uint64_t row = 0; row < extent->rows; ++row) {
            const size_t at = (size_t)(item * to_layout->stride + row * to_layout->ld) * bytes;
            const size_t from_at = (size_t)(item * from_layout->stride + row * from_layout->ld) * bytes;
            memcpy(to + at, from + from_at, row_bytes);
        }
    }
}

/* ---- device and buffers -------------------------------------------------------------------- */

static ANEStatus fill_device_info(ANEDevice *device, ANEDeviceInfo *info)
{
    ANEDeviceInfo i;
    memset(&i, 0, sizeof i);
    i.struct_size = info->struct_size;
    i.flags = [device->device hasUnifiedMemory] ? ANE_DEVICE_FLAG_UNIFIED_MEMORY : 0;
#ifdef ANE_MATMUL_TEST_DOUBLE
    i.flags |= ANE_DEVICE_FLAG_TEST_DOUBLE;
#endif
    i.kind = ANE_DEVICE_GPU;
    i.wrap_alignment = (uint64_t)sysconf(_SC_PAGESIZE);
    i.max_buffer_bytes = [device->device maxBufferLength];
    snprintf(i.name, sizeof i.name, "%s", text_of([device->device name]));
    snprintf(i.chip, sizeof i.chip, "%s", i.name);
    snprintf(i.os_build, sizeof i.os_build, "%s",
             text_of([[NSProcessInfo processInfo] operatingSystemVersionString]));
    memcpy(info, &i, info->struct_size < sizeof i ? info->struct_size : sizeof i);
    return ANE_STATUS_OK;
}

static ANEStatus shim_device_info(ANEDevice *device, ANEDeviceInfo *info, ANEError *err)
{
    ANEStatus status = ANE_STATUS_INTERNAL;
    CONTAINED(err, status, status = fill_device_info(device, info))
    return status;
}

static void shim_buffer_destroy(ANEBuffer *buffer)
{
    if (buffer) {
        ANEStatus ignored;
        CONTAINED(NULL, ignored, [buffer->buffer release])
        (void)ignored;
        free(buffer);
    }
}

/* A shared buffer of at least `bytes`, owned by the caller; nil with `err` filled. */
static id<MTLBuffer> new_buffer(ANEDevice *device, uint64_t bytes, ANEError *err)
{
    id<MTLBuffer> buffer = nil;
    if (bytes <= [device->device maxBufferLength]) {
        /* Metal makes no empty buffers. */
        buffer = [device->device newBufferWithLength:(NSUInteger)(bytes ? bytes : 1)
                                             options:MTLResourceStorageModeShared];
    }
    if (!buffer) {
        FAIL(err, ANE_STATUS_OUT_OF_MEMORY, "Metal made no buffer of %llu bytes (the device allows %llu)",
             (unsigned long long)bytes, (unsigned long long)[device->device maxBufferLength]);
    }
    return buffer;
}

static ANEStatus make_buffer(ANEDevice *device, void *data, uint64_t bytes, ANEBuffer *buffer, ANEError *err)
{
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    buffer->device = device;
    buffer->bytes = bytes;
    if (!data) {
        buffer->buffer = new_buffer(device, bytes, err);
        return buffer->buffer ? ANE_STATUS_OK : ANE_STATUS_OUT_OF_MEMORY;
    }
    if ((uintptr_t)data % page != 0 || bytes == 0 || bytes % page != 0) {
        return FAIL(err, ANE_STATUS_INVALID_ARGUMENT,
                    "Metal wraps whole pages: address and length must be multiples of %llu bytes",
                    (unsigned long long)page);
    }
    buffer->buffer = [device->device newBufferWithBytesNoCopy:data
                                                       length:(NSUInteger)bytes
                                                      options:MTLResourceStorageModeShared
                                                  deallocator:nil];
    return buffer->buffer ? ANE_STATUS_OK
                          : FAIL(err, ANE_STATUS_OUT_OF_MEMORY, "Metal did not wrap the %llu bytes",
                                 (unsigned long long)bytes);
}

static ANEStatus create_buffer(ANEDevice *device, void *data, uint64_t bytes, ANEBuffer **out, ANEError *err)
{
    ANEBuffer *buffer = calloc(1, sizeof *buffer);
    ANEStatus status = ANE_STATUS_INTERNAL;
    if (!buffer) {
        return FAIL(err, ANE_STATUS_OUT_OF_MEMORY, "no memory for a buffer");
    }
    CONTAINED(err, status, status = make_buffer(device, data, bytes, buffer, err))
    if (status != ANE_STATUS_OK) {
        shim_buffer_destroy(buffer);
        return status;
    }
    *out = buffer;
    return ANE_STATUS_OK;
}

static ANEStatus shim_buffer_create(ANEDevice *device, uint64_t bytes, ANEBuffer **out, ANEError *err)
{
    return create_buffer(device, NULL, bytes, out, err);
}

static ANEStatus shim_buffer_wrap(ANEDevice *device, void *data, uint64_t bytes, ANEBuffer **out, ANEError *err)
{
    if (!data) {
        return FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "there is no memory to wrap");
    }
    return create_buffer(device, data, bytes, out, err);
}

static void *shim_buffer_contents(ANEBuffer *buffer)
{
    void *contents = NULL;
    ANEStatus ignored;
    CONTAINED(NULL, ignored, contents = [buffer->buffer contents])
    (void)ignored;
    return contents;
}

/* ---- runs ---------------------------------------------------------------------------------- */

/* Whether an operand of a run is long enough, lies in one place only, and on this device. */
static ANEStatus check_operand(ANEDevice *device, const char *name, const ANEOperand *operand, const Layout *layout,
                               ANEError *err)
{
    if (operand->length_bytes < layout->bytes) {
        return FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "%s has %llu bytes; this run needs %llu", name,
                    (unsigned long long)operand->length_bytes, (unsigned long long)layout->bytes);
    }
    if ((operand->buffer != NULL) == (operand->data != NULL) && layout->bytes) {
        return FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "%s must be either a pointer or a buffer", name);
    }
    if (operand->buffer) {
        ANEBuffer *buffer = operand->buffer;
        if (buffer->device != device) {
            return FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "the buffer of %s belongs to another device", name);
        }
        if (operand->offset_bytes > buffer->bytes || layout->bytes > buffer->bytes - operand->offset_bytes) {
            return FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "%s reaches beyond its buffer of %llu bytes", name,
                        (unsigned long long)buffer->bytes);
        }
    }
    return ANE_STATUS_OK;
}

static ANEStatus report_command_error(ANEError *err, NSError *error)
{
    ANEStatus status = ANE_STATUS_RUN_FAILED;
    const char *hint = "";
    if (error && [[error domain] isEqualToString:MTLCommandBufferErrorDomain]) {
        switch ([error code]) {
        case MTLCommandBufferErrorNotPermitted:
            status = ANE_STATUS_BACKGROUND;
            hint = " (an app in the background may not use the GPU: run when it is active again)";
            break;
        case MTLCommandBufferErrorOutOfMemory:
            status = ANE_STATUS_OUT_OF_MEMORY;
            break;
        case MTLCommandBufferErrorTimeout:
            status = ANE_STATUS_TIMEOUT;
            hint = " (the system ends work that keeps the GPU for seconds: make several products of it)";
            break;
        default:
            break;
        }
    }
    return report(err, status, ANE_REFUSAL_NONE, error, NULL, "the GPU did not complete the run: %.350s%s",
                  error ? text_of([error localizedDescription]) : "no error was given", hint);
}

#endif
