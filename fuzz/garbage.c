/*
 * A shim that keeps to the letter of the contract and to nothing else: statuses, messages, logs, device
 * and product information are whatever the fuzzer's bytes say. Objects are allocated, so that a sanitizer
 * sees which are used too late, freed twice or never.
 */
#include "ane_matmul.h"

#include <stdlib.h>
#include <string.h>

static const uint8_t *plan;
static size_t plan_length, plan_at;

void garbage_plan(const uint8_t *bytes, size_t length) {
    plan = bytes;
    plan_length = length;
    plan_at = 0;
}

static uint8_t next(void) { return plan_at < plan_length ? plan[plan_at++] : 0; }

static void fill(void *memory, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) ((uint8_t *)memory)[i] = next();
}

static int32_t number(void) {
    int32_t value;
    fill(&value, sizeof value);
    return value;
}

/* Success, a known status, or any number; the error then holds anything that a shim may write. */
static ANEStatus answer(ANEError *err) {
    uint8_t kind = next();
    if (kind < 160) return ANE_STATUS_OK;
    ANEStatus status = kind < 250 ? kind % 16 : number();
    if (status == ANE_STATUS_OK || err == NULL) return status;
    err->status = number();
    err->refusal = kind % 2 ? kind % 24 : number();
    err->native_code = number();
    fill(err->domain, next() % (sizeof err->domain + 1));
    fill(err->message, next() * 4 % (sizeof err->message + 1));
    if (err->log != NULL) {
        size_t room = next() * 64u;
        fill(err->log, room < err->log_capacity ? room : err->log_capacity);
        err->log_length = next() < 128 ? room : UINT64_MAX - next();
    }
    return status;
}

static ANEStatus make(void **out, ANEError *err) {
    ANEStatus status = answer(err);
    if (status != ANE_STATUS_OK || next() > 250) return status; /* success without an object */
    *out = malloc(16);
    return *out == NULL ? ANE_STATUS_OUT_OF_MEMORY : ANE_STATUS_OK;
}

static ANEStatus device_open(ANEDevice **out, ANEError *err) { return make((void **)out, err); }

static ANEStatus device_info(ANEDevice *device, ANEDeviceInfo *info, ANEError *err) {
    *(volatile char *)device = 1;
    uint32_t size = info->struct_size;
    fill(info, sizeof *info);
    info->struct_size = next() > 250 ? (uint32_t)number() : size;
    return answer(err);
}

static void device_close(ANEDevice *device) { free(device); }

static ANEStatus supports(ANEDevice *device, const ANEMatMulDesc *desc, const ANECompileOptions *options,
                          ANEError *err) {
    *(volatile char *)device = (char)(desc->flags + options->flags);
    return answer(err);
}

struct ANEBuffer {
    void *data;
    int owned;
};

static ANEStatus buffer(void *data, int owned, ANEBuffer **out, ANEError *err) {
    ANEStatus status = answer(err);
    if (status == ANE_STATUS_OK && next() < 250) {
        *out = malloc(sizeof **out);
        **out = (ANEBuffer){data, owned};
        return status;
    }
    if (owned) free(data);
    return status;
}

static ANEStatus buffer_create(ANEDevice *device, uint64_t bytes, ANEBuffer **out, ANEError *err) {
    (void)device;
    if (bytes > 1 << 20) return ANE_STATUS_OUT_OF_MEMORY;
    return buffer(aligned_alloc(64, (bytes / 64 + 1) * 64), 1, out, err);
}

static ANEStatus buffer_wrap(ANEDevice *device, void *data, uint64_t bytes, ANEBuffer **out, ANEError *err) {
    (void)device;
    (void)bytes;
    return buffer(data, 0, out, err);
}

static void *buffer_contents(ANEBuffer *buffer) {
    uint8_t kind = next();
    if (kind > 250) return NULL;
    return kind > 240 ? (char *)buffer->data + 8 : buffer->data;
}

static void buffer_destroy(ANEBuffer *buffer) {
    if (buffer->owned) free(buffer->data);
    free(buffer);
}

static ANEStatus compile(ANEDevice *device, const ANEMatMulDesc *desc, const ANEConstants *constants,
                         const ANECompileOptions *options, ANEProduct **out, ANEError *err) {
    *(volatile char *)device = (char)(desc->flags + options->flags);
    const volatile char *b = constants->b;
    for (uint64_t i = 0; i < constants->b_bytes; i++) (void)b[i];
    return make((void **)out, err);
}

static ANEStatus product_save(ANEProduct *product, const char *path, ANEError *err) {
    *(volatile char *)product = path[0];
    return answer(err);
}

static ANEStatus product_load(ANEDevice *device, const ANEMatMulDesc *desc, const ANEConstants *constants,
                              const ANECompileOptions *options, const char *path, ANEProduct **out, ANEError *err) {
    (void)path;
    return compile(device, desc, constants, options, out, err);
}

static ANEStatus product_info(ANEProduct *product, ANEProductInfo *info, ANEError *err) {
    *(volatile char *)product = 1;
    fill(info, sizeof *info);
    return answer(err);
}

static void product_destroy(ANEProduct *product) { free(product); }

static ANEStatus executor_create(ANEProduct *product, ANEMatMulExecutor **out, ANEError *err) {
    *(volatile char *)product = 1;
    return make((void **)out, err);
}

static ANEStatus executor_run(ANEMatMulExecutor *executor, const ANERunArgs *args, ANEError *err) {
    *(volatile char *)executor = 1;
    const ANEOperand *inputs[] = {&args->a, &args->b, &args->bias, &args->residual};
    for (int i = 0; i < 4; i++) {
        const volatile char *data = inputs[i]->data;
        for (uint64_t at = 0; data != NULL && at < inputs[i]->length_bytes; at++) (void)data[at];
    }
    if (args->c.data != NULL) memset(args->c.data, next(), args->c.length_bytes);
    if (args->info != NULL) fill(args->info, sizeof *args->info);
    return answer(err);
}

static void executor_destroy(ANEMatMulExecutor *executor) { free(executor); }

const ANEShim *garbage_shim(void);
const ANEShim *garbage_shim(void) {
    static const ANEShim shim = {
        .struct_size = sizeof(ANEShim),
        .abi_major = ANE_MATMUL_ABI_MAJOR,
        .abi_minor = ANE_MATMUL_ABI_MINOR,
        .name = "garbage",
        .version = "1",
        .device_open = device_open,
        .device_info = device_info,
        .device_close = device_close,
        .supports = supports,
        .buffer_create = buffer_create,
        .buffer_wrap = buffer_wrap,
        .buffer_contents = buffer_contents,
        .buffer_destroy = buffer_destroy,
        .compile = compile,
        .product_save = product_save,
        .product_load = product_load,
        .product_info = product_info,
        .product_destroy = product_destroy,
        .executor_create = executor_create,
        .executor_run = executor_run,
        .executor_destroy = executor_destroy,
    };
    return &shim;
}
