/*
 * shim_support.h - what the shims over Apple's frameworks share: errors, containment of exceptions,
 * layouts of operands, devices, buffers, executors. Each shim includes it once, after SHIM_DEVICE_FLAGS
 * and its `struct ANEDevice` with the members `id<MTLDevice> device`, `id<MTLCommandQueue> queue` and
 * `os_log_t log`, and defines start_run; everything here is static, so that two shims live in one
 * program. SPDX-License-Identifier: MIT OR Apache-2.0
 */
#ifndef ANE_SHIM_SUPPORT_H
#define ANE_SHIM_SUPPORT_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <os/log.h>
#include <os/signpost.h>

#include "ane_matmul.h"

/* A queue has room for a fixed number of command buffers that have not completed, 64 unless told otherwise, and
 * `commandBuffer` blocks while it is full (MTLCommandQueue.makeCommandBuffer()). A device's executors share one queue:
 * this is for sixteen of full depth. Beyond it a submission waits for another to complete, which needs nobody's help as
 * long as nobody waits for anything while he holds a command buffer that is not committed (wgpu#8574). */
#define QUEUE_COMMAND_BUFFERS 1024u

/* As many as Metal's own default has command buffers. More do not keep a device busier. */
#define MAX_QUEUE_DEPTH 64u

/* Through how much shared memory a private buffer is read and written at once. */
#define TRANSFER_BYTES (64ull << 20)

/* Between two looks at a submission. */
#define FIRST_PAUSE_NS 20000u
#define LONGEST_PAUSE_NS 1000000u

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
    char *contents; /* NULL: private to the device */
    uint64_t bytes;
};

/* A run, from its start to the end of its ticket. */
typedef struct Slot {
    ANETicket ticket; /* 0: free */
    NSMutableArray *commands; /* its command buffers, in the order in which they were committed */
    NSMutableArray *held;     /* what else lives until they have completed */
    id<MTLBuffer> scratch;           /* what kernels leave for each other */
    id<MTLBuffer> staging[OPERANDS]; /* made when first needed */
    id tensors[OPERANDS];            /* of staging, where the engine wants that */
    BOOL copies_c; /* from staging, at the end */
    ANEOperand c;
    Layout c_layout, c_staged;
    ANEDeviceKind observed;
    os_signpost_id_t interval;
} Slot;

struct ANEMatMulExecutor {
    ANEDevice *device;
    ANEProduct *product;
    const ANEMatMulDesc *desc;
    ANETicket last_ticket;
    uint32_t depth;
    uint32_t slot_count;
    Slot slots[];
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

/* ---- devices ------------------------------------------------------------------------------- */

/* All devices, the default first. Elsewhere than on a Mac there is one. */
static NSArray *all_devices(void)
{
    NSMutableArray *all = [NSMutableArray array];
    id<MTLDevice> first = [MTLCreateSystemDefaultDevice() autorelease];
    if (!first) {
        return all;
    }
    [all addObject:first];
#if TARGET_OS_OSX || defined(ANE_MATMUL_TEST_DOUBLE)
    for (id<MTLDevice> other in [MTLCopyAllDevices() autorelease]) {
        if ([other registryID] != [first registryID]) {
            [all addObject:other];
        }
    }
#endif
    return all;
}

/* A device of all; nil with `err` filled. */
static id<MTLDevice> device_at(uint32_t index, ANEError *err)
{
    NSArray *all = all_devices();
    if (index < [all count]) {
        return [all objectAtIndex:index];
    }
    if ([all count]) {
        FAIL(err, ANE_STATUS_NO_DEVICE, "there is no Metal device %u, only %lu", (unsigned)index, (unsigned long)[all count]);
    } else {
        FAIL(err, ANE_STATUS_NO_DEVICE, "there is no Metal device");
    }
    return nil;
}

static ANEStatus count_devices(uint32_t *count, ANEError *err)
{
    *count = (uint32_t)[all_devices() count];
    return *count ? ANE_STATUS_OK : FAIL(err, ANE_STATUS_NO_DEVICE, "there is no Metal device");
}

static ANEStatus shim_device_count(uint32_t *count, ANEError *err)
{
    ANEStatus status = ANE_STATUS_INTERNAL;
    CONTAINED(err, status, status = count_devices(count, err))
    return status;
}

static ANEStatus fill_device_info(uint32_t index, ANEDeviceInfo *info, ANEError *err)
{
    id<MTLDevice> device = device_at(index, err);
    ANEDeviceInfo i;
    if (!device) {
        return ANE_STATUS_NO_DEVICE;
    }
    memset(&i, 0, sizeof i);
    i.struct_size = info->struct_size;
    i.flags = SHIM_DEVICE_FLAGS;
#ifdef ANE_MATMUL_TEST_DOUBLE
    i.flags |= ANE_DEVICE_FLAG_TEST_DOUBLE;
#endif
    i.kind = ANE_DEVICE_GPU;
    i.preferred_buffer = [device hasUnifiedMemory] ? ANE_BUFFER_HOST_VISIBLE : ANE_BUFFER_DEVICE;
    i.wrap_alignment = (uint64_t)sysconf(_SC_PAGESIZE);
    i.max_buffer_bytes = [device maxBufferLength];
    i.max_queue_depth = MAX_QUEUE_DEPTH;
    snprintf(i.name, sizeof i.name, "%s", text_of([device name]));
    snprintf(i.chip, sizeof i.chip, "%s", i.name);
    snprintf(i.os_build, sizeof i.os_build, "%s",
             text_of([[NSProcessInfo processInfo] operatingSystemVersionString]));
    memcpy(info, &i, info->struct_size < sizeof i ? info->struct_size : sizeof i);
    return ANE_STATUS_OK;
}

static ANEStatus shim_device_info(uint32_t index, ANEDeviceInfo *info, ANEError *err)
{
    ANEStatus status = ANE_STATUS_INTERNAL;
    CONTAINED(err, status, status = fill_device_info(index, info, err))
    return status;
}

/* Fills what all shims have of a device. */
static ANEStatus open_queue(ANEDevice *device, uint32_t index, const char *category, ANEError *err)
{
    device->device = [device_at(index, err) retain];
    if (!device->device) {
        return ANE_STATUS_NO_DEVICE;
    }
    device->queue = [device->device newCommandQueueWithMaxCommandBufferCount:QUEUE_COMMAND_BUFFERS];
    /* The system keeps one log for each name, for the life of the process. */
    device->log = os_log_create("ane-matmul", category);
    return device->queue ? ANE_STATUS_OK : FAIL(err, ANE_STATUS_OUT_OF_MEMORY, "Metal made no command queue");
}

/* ---- command buffers ----------------------------------------------------------------------- */

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
        case MTLCommandBufferErrorAccessRevoked:
            status = ANE_STATUS_NO_DEVICE;
            hint = " (the system takes the GPU from a process that kept it for too long too often)";
            break;
        case 11: /* MTLCommandBufferErrorDeviceRemoved, which macOS alone has, and up to 27 only */
            status = ANE_STATUS_NO_DEVICE;
            break;
        default:
            break;
        }
    }
    return report(err, status, ANE_REFUSAL_NONE, error, NULL, "the GPU did not complete the run: %.350s%s",
                  error ? text_of([error localizedDescription]) : "no error was given", hint);
}

/* What became of a command buffer that has ended. */
static ANEStatus outcome_of(id<MTLCommandBuffer> commands, ANEError *err)
{
    NSError *error = [commands error];
    return [commands status] == MTLCommandBufferStatusCompleted && !error ? ANE_STATUS_OK
                                                                          : report_command_error(err, error);
}

/* Copies between buffers, and waits. Offsets and length are multiples of four, as macOS wants them (MTLBlitCommandEncoder,
 * copy(from:sourceOffset:to:destinationOffset:size:)). */
static ANEStatus blit(ANEDevice *device, id<MTLBuffer> from, uint64_t from_offset, id<MTLBuffer> to, uint64_t to_offset,
                      uint64_t bytes, ANEError *err)
{
    id<MTLCommandBuffer> commands = [device->queue commandBuffer];
    id<MTLBlitCommandEncoder> encoder = [commands blitCommandEncoder];
    ANEStatus status = ANE_STATUS_OK;
    if (!commands || !encoder) {
        return FAIL(err, ANE_STATUS_OUT_OF_MEMORY, "Metal made no command buffer or encoder");
    }
    CONTAINED(err, status, {
        [encoder copyFromBuffer:from
                   sourceOffset:(NSUInteger)from_offset
                       toBuffer:to
              destinationOffset:(NSUInteger)to_offset
                           size:(NSUInteger)bytes];
    })
    /* An encoder that dies without it aborts the process. */
    [encoder endEncoding];
    if (status != ANE_STATUS_OK) {
        return status;
    }
    [commands commit];
    [commands waitUntilCompleted];
    return outcome_of(commands, err);
}

/* ---- buffers ------------------------------------------------------------------------------- */

static void shim_buffer_destroy(ANEBuffer *buffer)
{
    if (buffer) {
        ANEStatus ignored;
        CONTAINED(NULL, ignored, [buffer->buffer release])
        (void)ignored;
        free(buffer);
    }
}

/* A buffer of at least `bytes`, owned by the caller; nil with `err` filled. */
static id<MTLBuffer> new_buffer_of(ANEDevice *device, uint64_t bytes, MTLResourceOptions options, ANEError *err)
{
    id<MTLBuffer> buffer = nil;
    if (bytes <= [device->device maxBufferLength]) {
        /* Metal makes no empty buffers. */
        NSUInteger length = bytes ? (NSUInteger)bytes : 1;
        if (options == MTLResourceStorageModePrivate) {
            length = (length + 3) / 4 * 4; /* blits are of whole words */
        }
        buffer = [device->device newBufferWithLength:length options:options];
    }
    if (!buffer) {
        FAIL(err, ANE_STATUS_OUT_OF_MEMORY, "Metal made no buffer of %llu bytes (the device allows %llu)",
             (unsigned long long)bytes, (unsigned long long)[device->device maxBufferLength]);
    }
    return buffer;
}

static id<MTLBuffer> new_buffer(ANEDevice *device, uint64_t bytes, ANEError *err)
{
    return new_buffer_of(device, bytes, MTLResourceStorageModeShared, err);
}

static ANEStatus make_buffer(ANEDevice *device, ANEBufferKind kind, void *data, uint64_t bytes, ANEBuffer *buffer,
                             ANEError *err)
{
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    const BOOL is_private = kind == ANE_BUFFER_DEVICE && ![device->device hasUnifiedMemory];
    buffer->device = device;
    buffer->bytes = bytes;
    if (data) {
        if ((uintptr_t)data % page != 0 || bytes == 0 || bytes % page != 0) {
            return FAIL(err, ANE_STATUS_INVALID_ARGUMENT,
                        "Metal wraps whole pages: address and length must be multiples of %llu bytes",
                        (unsigned long long)page);
        }
        buffer->buffer = [device->device newBufferWithBytesNoCopy:data
                                                           length:(NSUInteger)bytes
                                                          options:MTLResourceStorageModeShared
                                                      deallocator:nil];
        if (!buffer->buffer) {
            return FAIL(err, ANE_STATUS_OUT_OF_MEMORY, "Metal did not wrap the %llu bytes", (unsigned long long)bytes);
        }
    } else {
        buffer->buffer = new_buffer_of(
            device, bytes, is_private ? MTLResourceStorageModePrivate : MTLResourceStorageModeShared, err);
        if (!buffer->buffer) {
            return ANE_STATUS_OUT_OF_MEMORY;
        }
    }
    buffer->contents = is_private ? NULL : [buffer->buffer contents];
    return ANE_STATUS_OK;
}

static ANEStatus create_buffer(ANEDevice *device, ANEBufferKind kind, void *data, uint64_t bytes, ANEBuffer **out,
                               ANEError *err)
{
    ANEBuffer *buffer = calloc(1, sizeof *buffer);
    ANEStatus status = ANE_STATUS_INTERNAL;
    if (!buffer) {
        return FAIL(err, ANE_STATUS_OUT_OF_MEMORY, "no memory for a buffer");
    }
    CONTAINED(err, status, status = make_buffer(device, kind, data, bytes, buffer, err))
    if (status != ANE_STATUS_OK) {
        shim_buffer_destroy(buffer);
        return status;
    }
    *out = buffer;
    return ANE_STATUS_OK;
}

static ANEStatus shim_buffer_create(ANEDevice *device, ANEBufferKind kind, uint64_t bytes, ANEBuffer **out, ANEError *err)
{
    if (kind != ANE_BUFFER_HOST_VISIBLE && kind != ANE_BUFFER_DEVICE) {
        return FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "there are no buffers of kind %d", (int)kind);
    }
    return create_buffer(device, kind, NULL, bytes, out, err);
}

static ANEStatus shim_buffer_wrap(ANEDevice *device, void *data, uint64_t bytes, ANEBuffer **out, ANEError *err)
{
    if (!data) {
        return FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "there is no memory to wrap");
    }
    return create_buffer(device, ANE_BUFFER_HOST_VISIBLE, data, bytes, out, err);
}

static void *shim_buffer_contents(ANEBuffer *buffer)
{
    return buffer->contents;
}

/* Copies into a private buffer from `from`, or out of it to `to`, where one of them is not NULL. */
static ANEStatus transfer(ANEBuffer *buffer, uint64_t offset, const char *from, char *to, uint64_t bytes, ANEError *err)
{
    ANEDevice *device = buffer->device;
    const uint64_t most = bytes < TRANSFER_BYTES ? bytes : TRANSFER_BYTES;
    /* The words that the first and the last byte are in may reach beyond the range. */
    id<MTLBuffer> staging = [new_buffer(device, most + 8, err) autorelease];
    ANEStatus status = staging ? ANE_STATUS_OK : ANE_STATUS_OUT_OF_MEMORY;
    for (uint64_t at = 0, part; status == ANE_STATUS_OK && at < bytes; at += part) {
        const uint64_t first = (offset + at) / 4 * 4, skipped = offset + at - first;
        uint64_t words;
        char *host = (char *)[staging contents] + skipped;
        part = bytes - at < most ? bytes - at : most;
        words = (skipped + part + 3) / 4 * 4;
        /* A word that is written in part keeps its other bytes, whatever other threads write to those. */
        @synchronized(buffer->buffer) {
            if (to || skipped || words != part) {
                status = blit(device, buffer->buffer, first, staging, 0, words, err);
            }
            if (from && status == ANE_STATUS_OK) {
                memcpy(host, from + at, (size_t)part);
                status = blit(device, staging, 0, buffer->buffer, first, words, err);
            }
        }
        if (to && status == ANE_STATUS_OK) {
            memcpy(to + at, host, (size_t)part);
        }
    }
    return status;
}

static ANEStatus copy_buffer(ANEBuffer *buffer, uint64_t offset, const char *from, char *to, uint64_t bytes, ANEError *err)
{
    if (offset > buffer->bytes || bytes > buffer->bytes - offset) {
        return FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "%llu bytes from %llu on reach beyond a buffer of %llu",
                    (unsigned long long)bytes, (unsigned long long)offset, (unsigned long long)buffer->bytes);
    }
    if (!bytes) {
        return ANE_STATUS_OK;
    }
    if (!buffer->contents) {
        return transfer(buffer, offset, from, to, bytes, err);
    }
    memcpy(from ? buffer->contents + offset : to, from ? from : buffer->contents + offset, (size_t)bytes);
    return ANE_STATUS_OK;
}

static ANEStatus shim_buffer_write(ANEBuffer *buffer, uint64_t offset, const void *data, uint64_t bytes, ANEError *err)
{
    ANEStatus status = ANE_STATUS_INTERNAL;
    CONTAINED(err, status, status = copy_buffer(buffer, offset, data, NULL, bytes, err))
    return status;
}

static ANEStatus shim_buffer_read(ANEBuffer *buffer, uint64_t offset, void *data, uint64_t bytes, ANEError *err)
{
    ANEStatus status = ANE_STATUS_INTERNAL;
    CONTAINED(err, status, status = copy_buffer(buffer, offset, NULL, data, bytes, err))
    return status;
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

/* An operand in the host's memory, or a copy of it there, which lives as long as the pool; NULL with `err` filled. */
static char *host_of(const ANEOperand *operand, uint64_t bytes, ANEStatus *status, ANEError *err)
{
    ANEBuffer *buffer = operand->buffer;
    NSMutableData *copy;
    if (!buffer || buffer->contents) {
        return buffer ? buffer->contents + operand->offset_bytes : operand->data;
    }
    copy = [NSMutableData dataWithLength:(NSUInteger)bytes];
    if (!copy) {
        *status = FAIL(err, ANE_STATUS_OUT_OF_MEMORY, "no memory for a copy of %llu bytes", (unsigned long long)bytes);
        return NULL;
    }
    *status = transfer(buffer, operand->offset_bytes, NULL, [copy mutableBytes], bytes, err);
    return *status == ANE_STATUS_OK ? [copy mutableBytes] : NULL;
}

/* Gives an operand memory of the slot's, in a layout of the engine's: filled, but for C, which is copied at the end. */
static ANEStatus stage(ANEDevice *device, Slot *slot, int which, const ANEOperand *operand, const Layout *layout,
                       const Layout *staged, uint64_t bytes, ANEError *err)
{
    ANEStatus status = ANE_STATUS_OK;
    if (!slot->staging[which]) {
        slot->staging[which] = new_buffer(device, bytes, err);
        if (!slot->staging[which]) {
            return ANE_STATUS_OUT_OF_MEMORY;
        }
        memset([slot->staging[which] contents], 0, (size_t)bytes);
    }
    if (which == C) {
        slot->copies_c = YES;
        slot->c = *operand;
        slot->c_layout = *layout;
        slot->c_staged = *staged;
    } else if (layout->bytes) {
        const char *host = host_of(operand, layout->bytes, &status, err);
        if (host) {
            repack([slot->staging[which] contents], staged, host, layout, layout);
        }
    }
    return status;
}

static ANEStatus copy_c_back(Slot *slot, ANEError *err)
{
    const Layout *layout = &slot->c_layout;
    ANEBuffer *buffer = slot->c.buffer;
    ANEStatus status = ANE_STATUS_OK;
    char *host = host_of(&slot->c, layout->bytes, &status, err);
    if (!host) {
        return status;
    }
    repack(host, layout, [slot->staging[C] contents], &slot->c_staged, layout);
    return buffer && !buffer->contents ? transfer(buffer, slot->c.offset_bytes, host, NULL, layout->bytes, err)
                                       : ANE_STATUS_OK;
}

/* ---- executors ----------------------------------------------------------------------------- */

/* The shim's: encodes a run and commits it. What it committed stands in slot->commands, also where it fails. */
static ANEStatus start_run(ANEMatMulExecutor *executor, Slot *slot, const ANERunArgs *args, ANEError *err);

static void free_slot(Slot *slot)
{
    for (int i = 0; i < OPERANDS; ++i) {
        [slot->tensors[i] release];
        [slot->staging[i] release];
    }
    [slot->scratch release];
    [slot->held release];
    [slot->commands release];
}

static ANEStatus make_slots(ANEMatMulExecutor *executor, uint64_t scratch_bytes, ANEError *err)
{
    for (uint32_t i = 0; i < executor->slot_count; ++i) {
        Slot *slot = &executor->slots[i];
        slot->commands = [[NSMutableArray alloc] init];
        slot->held = [[NSMutableArray alloc] init];
        if (!slot->commands || !slot->held) {
            return FAIL(err, ANE_STATUS_OUT_OF_MEMORY, "no memory for an executor");
        }
        if (scratch_bytes) {
            slot->scratch = new_buffer(executor->device, scratch_bytes, err);
            if (!slot->scratch) {
                return ANE_STATUS_OUT_OF_MEMORY;
            }
        }
    }
    return ANE_STATUS_OK;
}

/* The slot of a ticket, or with ticket 0 a free one; NULL where there is none. */
static Slot *slot_of(ANEMatMulExecutor *executor, ANETicket ticket)
{
    for (uint32_t i = 0; i < executor->slot_count; ++i) {
        if (executor->slots[i].ticket == ticket) {
            return &executor->slots[i];
        }
    }
    return NULL;
}

/* Ends a submission, or a start that failed. What was committed is waited for whatever became of it: the caller's
 * memory may be gone after that. */
static void end_slot(ANEMatMulExecutor *executor, Slot *slot)
{
    ANEStatus ignored;
    CONTAINED(NULL, ignored, {
        for (id<MTLCommandBuffer> commands in slot->commands) {
            CONTAINED(NULL, ignored, {
                if ([commands status] >= MTLCommandBufferStatusCommitted) {
                    [commands waitUntilCompleted];
                }
            })
        }
        [slot->commands removeAllObjects];
        [slot->held removeAllObjects];
    })
    (void)ignored;
    os_signpost_interval_end(executor->device->log, slot->interval, "run");
    slot->ticket = 0;
    slot->copies_c = NO;
    slot->observed = ANE_DEVICE_UNKNOWN;
}

static ANEStatus check_args(const ANEMatMulExecutor *executor, const ANERunArgs *args, ANEError *err)
{
    const ANEMatMulDesc *d = executor->desc;
    if (args->struct_size < sizeof *args || args->flags) {
        return FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "the arguments of the run are not those of this version");
    }
    if (args->m > d->m || (args->m != d->m && !(d->flags & ANE_MATMUL_VARIABLE_M))) {
        return FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "a run of %llu rows; the product was compiled for %llu",
                    (unsigned long long)args->m, (unsigned long long)d->m);
    }
    return ANE_STATUS_OK;
}

/* Starts a run in a free slot, which gets a ticket. */
static ANEStatus start(ANEMatMulExecutor *executor, Slot *slot, const ANERunArgs *args, ANEError *err)
{
    ANEStatus status = ANE_STATUS_INTERNAL;
    slot->interval = os_signpost_id_generate(executor->device->log);
    os_signpost_interval_begin(executor->device->log, slot->interval, "run");
    CONTAINED(err, status, status = start_run(executor, slot, args, err))
    if (status == ANE_STATUS_OK) {
        slot->ticket = ++executor->last_ticket;
    } else {
        end_slot(executor, slot);
    }
    return status;
}

/* A command buffer that failed has ended too: who waits for Completed alone may wait for ever (wgpu#9531). */
static BOOL have_ended(NSArray *all)
{
    for (id<MTLCommandBuffer> commands in all) {
        if ([commands status] < MTLCommandBufferStatusCompleted) {
            return NO;
        }
    }
    return YES;
}

/*
 * Waits for a submission and for all before it: command buffers of a queue begin in order, but one that fails may end
 * before another that began earlier (MTLCommandBuffer.commit() promises no more). NO when the time is over.
 *
 * Metal has no wait with a limit for a command buffer, so that `status` is looked at again and again, with pauses that
 * double up to a millisecond. MTLSharedEvent has one, but a command buffer that the system ends early never signals its
 * event (wgpu#9328); a completion handler would be a block, which this file has none of. Without a limit Metal waits.
 */
static BOOL wait_for(ANEMatMulExecutor *executor, ANETicket ticket, uint64_t timeout_ns)
{
    const uint64_t start_ns = now_ns();
    uint64_t pause_ns = FIRST_PAUSE_NS;
    for (uint32_t i = 0; i < executor->slot_count; ++i) {
        const Slot *slot = &executor->slots[i];
        if (!slot->ticket || slot->ticket > ticket) {
            continue;
        }
        while (timeout_ns != UINT64_MAX && !have_ended(slot->commands)) {
            const uint64_t passed_ns = now_ns() - start_ns;
            if (passed_ns >= timeout_ns) {
                return NO;
            }
            usleep((useconds_t)((pause_ns < timeout_ns - passed_ns ? pause_ns : timeout_ns - passed_ns) / 1000 + 1));
            pause_ns = 2 * pause_ns < LONGEST_PAUSE_NS ? 2 * pause_ns : LONGEST_PAUSE_NS;
        }
        for (id<MTLCommandBuffer> commands in slot->commands) {
            [commands waitUntilCompleted];
        }
    }
    return YES;
}

static ANEStatus await_run(ANEMatMulExecutor *executor, Slot *slot, uint64_t timeout_ns, ANERunInfo *info, ANEError *err)
{
    ANEStatus status = ANE_STATUS_OK;
    if (!wait_for(executor, slot->ticket, timeout_ns)) {
        return FAIL(err, ANE_STATUS_PENDING, "the submission goes on");
    }
    for (id<MTLCommandBuffer> commands in slot->commands) {
        status = outcome_of(commands, err);
        if (status != ANE_STATUS_OK) {
            return status;
        }
    }
    if (slot->copies_c) {
        status = copy_c_back(slot, err);
    }
    if (info && status == ANE_STATUS_OK) {
        /* Of kernels alone: staging is copied by the host, outside them. */
        ANERunInfo seen = {.struct_size = info->struct_size, .observed = slot->observed};
        if ([slot->commands count]) {
            seen.device_start_ns = (uint64_t)([(id<MTLCommandBuffer>)[slot->commands objectAtIndex:0] GPUStartTime] * 1e9);
            seen.device_end_ns = (uint64_t)([(id<MTLCommandBuffer>)[slot->commands lastObject] GPUEndTime] * 1e9);
        }
        memcpy(info, &seen, info->struct_size < sizeof seen ? info->struct_size : sizeof seen);
    }
    return status;
}

/* Waits, and ends the ticket unless the submission goes on. */
static ANEStatus finish(ANEMatMulExecutor *executor, Slot *slot, uint64_t timeout_ns, ANERunInfo *info, ANEError *err)
{
    ANEStatus status = ANE_STATUS_INTERNAL;
    CONTAINED(err, status, status = await_run(executor, slot, timeout_ns, info, err))
    if (status != ANE_STATUS_PENDING) {
        end_slot(executor, slot);
    }
    return status;
}

static void shim_executor_destroy(ANEMatMulExecutor *executor)
{
    if (executor) {
        ANEStatus ignored;
        for (uint32_t i = 0; i < executor->slot_count; ++i) {
            if (executor->slots[i].ticket) {
                finish(executor, &executor->slots[i], UINT64_MAX, NULL, NULL);
            }
            CONTAINED(NULL, ignored, free_slot(&executor->slots[i]))
        }
        (void)ignored;
        free(executor);
    }
}

static ANEStatus create_executor(ANEDevice *device, ANEProduct *product, const ANEMatMulDesc *desc, uint64_t scratch_bytes,
                                 const ANEExecutorOptions *options, ANEMatMulExecutor **out, ANEError *err)
{
    ANEMatMulExecutor *executor;
    ANEStatus status = ANE_STATUS_INTERNAL;
    uint32_t slots;
    if (options->struct_size < sizeof *options || options->queue_depth > MAX_QUEUE_DEPTH) {
        return FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "an executor takes up to %u submissions", MAX_QUEUE_DEPTH);
    }
    slots = options->queue_depth ? options->queue_depth : 1; /* executor_run wants one */
    executor = calloc(1, sizeof *executor + slots * sizeof *executor->slots);
    if (!executor) {
        return FAIL(err, ANE_STATUS_OUT_OF_MEMORY, "no memory for an executor");
    }
    executor->device = device;
    executor->product = product;
    executor->desc = desc;
    executor->depth = options->queue_depth;
    executor->slot_count = slots;
    CONTAINED(err, status, status = make_slots(executor, scratch_bytes, err))
    if (status != ANE_STATUS_OK) {
        shim_executor_destroy(executor);
        return status;
    }
    *out = executor;
    return ANE_STATUS_OK;
}

static ANEStatus shim_executor_run(ANEMatMulExecutor *executor, const ANERunArgs *args, ANEError *err)
{
    Slot *slot = &executor->slots[0];
    ANEStatus status = check_args(executor, args, err);
    if (status != ANE_STATUS_OK) {
        return status;
    }
    for (uint32_t i = 0; i < executor->slot_count; ++i) {
        if (executor->slots[i].ticket) {
            return FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "a run while submissions of its executor have not ended");
        }
    }
    status = start(executor, slot, args, err);
    return status == ANE_STATUS_OK ? finish(executor, slot, UINT64_MAX, args->info, err) : status;
}

static ANEStatus shim_executor_submit(ANEMatMulExecutor *executor, const ANERunArgs *args, ANETicket *ticket, ANEError *err)
{
    Slot *slot = executor->depth ? slot_of(executor, 0) : NULL;
    ANEStatus status = check_args(executor, args, err);
    if (status != ANE_STATUS_OK) {
        return status;
    }
    if (args->info || args->a.data || args->b.data || args->bias.data || args->residual.data || args->c.data) {
        return FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "the operands of a submission lie in buffers, and its info comes with the wait");
    }
    if (!slot) {
        return FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "this executor takes %u submissions at once", (unsigned)executor->depth);
    }
    status = start(executor, slot, args, err);
    if (status == ANE_STATUS_OK) {
        *ticket = slot->ticket;
    }
    return status;
}

static ANEStatus shim_executor_wait(ANEMatMulExecutor *executor, ANETicket ticket, uint64_t timeout_ns, ANERunInfo *info,
                                    ANEError *err)
{
    Slot *slot = ticket ? slot_of(executor, ticket) : NULL;
    return slot ? finish(executor, slot, timeout_ns, info, err)
                : FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "this executor has no ticket %llu, or it has ended",
                       (unsigned long long)ticket);
}

#endif
