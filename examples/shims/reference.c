/*
 * A shim to start from: f32 products on one thread of the CPU, correct before fast, every slot
 * filled. docs/ABI.md walks through it. Build it as a dynamic library:
 *
 *     cc -std=c11 -O2 -fPIC -shared -Iinclude examples/shims/reference.c -o libreference.so -lm
 *     ANE_MATMUL_SHIM=./libreference.so ane-matmul compare
 *
 * For tests it misbehaves on demand: ANE_REFERENCE_FAULT=KIND[%N][@SLOT], read when the device is
 * opened, with KIND one of fail, abort, exit, hang, print, flood, wrong, known (a vendor's known fault, refused
 * by supports unless it is allowed), slow:NANOSECONDS and SLOT one of open, supports, compile, executor, first (run of an executor), run (the default), close. With %N it does
 * so in one of N calls, in an order that looks random. SPDX-License-Identifier: MIT OR Apache-2.0
 */
#define _POSIX_C_SOURCE 200809L
#include "ane_matmul.h"

#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct ANEDevice {
    char fault[16]; /* empty: none */
    char slot[16];
    long long cost_ns;
    unsigned one_in;
    atomic_uint calls; /* at the slot */
};
struct ANEBuffer {
    void *data;
    bool owned;
};
struct ANEProduct {
    ANEDevice *device;
    ANEMatMulDesc desc;
    ANEDeviceKind requested;
    float *b; /* a copy of the constant B, or NULL */
    uint64_t b_bytes;
    bool loaded; /* from a package */
};
struct ANEMatMulExecutor {
    ANEProduct *product;
    bool ran;
};

/* ---- errors and faults --------------------------------------------------------------------- */

static ANEStatus report(ANEError *err, ANEStatus status, ANERefusal refusal, const char *message) {
    if (err != NULL) {
        err->status = status;
        err->refusal = refusal;
        err->native_code = 0;
        err->domain[0] = '\0';
        err->log_length = 0;
        snprintf(err->message, sizeof err->message, "%s", message);
    }
    return status;
}

static ANEStatus refuse(ANEError *err, ANERefusal refusal, const char *message) {
    return report(err, ANE_STATUS_REFUSED, refusal, message);
}

static void wait_ns(long long ns) {
    struct timespec time = {ns / 1000000000, ns % 1000000000};
    while (nanosleep(&time, &time) != 0) {
    }
}

/* Whether this call at a slot is one that misbehaves. */
static bool due(ANEDevice *device, const char *slot) {
    if (strcmp(device->slot, slot) != 0) return false;
    if (device->one_in <= 1) return true;
    uint32_t mixed = atomic_fetch_add(&device->calls, 1) * 2654435761u; /* Knuth's multiplicative hash */
    return (mixed >> 16) % device->one_in == 0;
}

/* ANE_STATUS_OK unless a fault is planted at this slot that fails it. */
static ANEStatus misbehave(ANEDevice *device, const char *slot, ANEError *err) {
    if (!due(device, slot)) return ANE_STATUS_OK;
    if (strcmp(device->fault, "fail") == 0) {
        return report(err, ANE_STATUS_INTERNAL, ANE_REFUSAL_NONE, "planted fault");
    }
    if (strcmp(device->fault, "abort") == 0) abort();
    if (strcmp(device->fault, "exit") == 0) exit(3);
    for (int i = 0; i < 30000 && strcmp(device->fault, "flood") == 0; i++) {
        puts("a framework prints far too much");
        fputs("and complains about it\n", stderr);
    }
    if (strcmp(device->fault, "print") == 0) {
        puts("a framework prints");
        fflush(stdout);
    }
    while (strcmp(device->fault, "hang") == 0) wait_ns(1000000000);
    if (strcmp(device->fault, "slow") == 0) wait_ns(device->cost_ns);
    return ANE_STATUS_OK;
}

/* ---- device -------------------------------------------------------------------------------- */

static ANEStatus device_open(ANEDevice **out, ANEError *err) {
    ANEDevice *device = calloc(1, sizeof *device);
    if (device == NULL) return report(err, ANE_STATUS_OUT_OF_MEMORY, ANE_REFUSAL_NONE, "no memory for a device");
    const char *fault = getenv("ANE_REFERENCE_FAULT");
    if (fault != NULL) {
        strcpy(device->slot, "run");
        sscanf(fault, "%15[a-z]:%lld", device->fault, &device->cost_ns);
        const char *at = strchr(fault, '@'), *one_in = strchr(fault, '%');
        if (one_in != NULL) device->one_in = (unsigned)strtoul(one_in + 1, NULL, 10);
        if (at != NULL) snprintf(device->slot, sizeof device->slot, "%s", at + 1);
    }
    ANEStatus status = misbehave(device, "open", err);
    if (status != ANE_STATUS_OK) {
        free(device);
        return status;
    }
    *out = device;
    return ANE_STATUS_OK;
}

static ANEStatus device_info(ANEDevice *device, ANEDeviceInfo *info, ANEError *err) {
    (void)device;
    (void)err;
    info->flags = ANE_DEVICE_FLAG_UNIFIED_MEMORY;
    info->kind = ANE_DEVICE_CPU;
    info->wrap_alignment = 1;
    info->max_buffer_bytes = SIZE_MAX / 2;
    snprintf(info->name, sizeof info->name, "reference shim, one thread, plain C");
    return ANE_STATUS_OK;
}

static void device_close(ANEDevice *device) {
    if (device == NULL) return;
    (void)misbehave(device, "close", NULL);
    free(device);
}

static ANEStatus supports(ANEDevice *device, const ANEMatMulDesc *desc, const ANECompileOptions *options,
                          ANEError *err) {
    const uint32_t known = ANE_MATMUL_TRANSPOSE_A | ANE_MATMUL_TRANSPOSE_B | ANE_MATMUL_CONSTANT_B |
                           ANE_MATMUL_BIAS | ANE_MATMUL_RESIDUAL | ANE_MATMUL_VARIABLE_M;
    ANEStatus status = misbehave(device, "supports", err);
    if (status != ANE_STATUS_OK) return status;
    if ((desc->flags & ~known) != 0) return refuse(err, ANE_REFUSAL_OTHER, "a flag of a later header");
    bool f32 = desc->type_a == ANE_TYPE_F32 && desc->type_b == ANE_TYPE_F32 && desc->type_c == ANE_TYPE_F32 &&
               desc->type_accumulator == ANE_TYPE_F32 &&
               (desc->type_bias == ANE_TYPE_F32 || (desc->flags & ANE_MATMUL_BIAS) == 0);
    if (!f32) return refuse(err, ANE_REFUSAL_ELEMENT_TYPE, "the reference shim runs f32 only; convert the operands");
    if (desc->quant_a != 0 || desc->quant_b != 0 || desc->quant_c != 0) {
        return refuse(err, ANE_REFUSAL_QUANTIZATION, "the reference shim does not run quantised operands");
    }
    if (desc->activation < ANE_ACTIVATION_NONE || desc->activation > ANE_ACTIVATION_TANH) {
        return refuse(err, ANE_REFUSAL_EPILOGUE, "an activation of a later header");
    }
    if (options->device != ANE_DEVICE_UNKNOWN && options->device != ANE_DEVICE_CPU) {
        return refuse(err, ANE_REFUSAL_DEVICE, "the reference shim runs on the CPU only");
    }
    if (strcmp(device->fault, "known") == 0 && !(options->flags & ANE_OPTION_ALLOW_KNOWN_FAULTS)) {
        return refuse(err, ANE_REFUSAL_VENDOR_FAULT, "products are wrong here (planted)");
    }
    return ANE_STATUS_OK;
}

/* ---- buffers ------------------------------------------------------------------------------- */

static ANEStatus make_buffer(void *data, bool owned, ANEBuffer **out, ANEError *err) {
    ANEBuffer *buffer = data == NULL ? NULL : malloc(sizeof *buffer);
    if (buffer == NULL) {
        if (owned) free(data);
        return report(err, ANE_STATUS_OUT_OF_MEMORY, ANE_REFUSAL_NONE, "no memory for a buffer");
    }
    *buffer = (ANEBuffer){data, owned};
    *out = buffer;
    return ANE_STATUS_OK;
}

static ANEStatus buffer_create(ANEDevice *device, uint64_t bytes, ANEBuffer **out, ANEError *err) {
    (void)device;
    if (bytes > SIZE_MAX - 64) return report(err, ANE_STATUS_OUT_OF_MEMORY, ANE_REFUSAL_NONE, "no memory for a buffer");
    return make_buffer(aligned_alloc(64, ((size_t)bytes / 64 + 1) * 64), true, out, err);
}

static ANEStatus buffer_wrap(ANEDevice *device, void *data, uint64_t bytes, ANEBuffer **out, ANEError *err) {
    (void)device;
    (void)bytes;
    return make_buffer(data, false, out, err);
}

static void *buffer_contents(ANEBuffer *buffer) { return buffer->data; }

static void buffer_destroy(ANEBuffer *buffer) {
    if (buffer != NULL && buffer->owned) free(buffer->data);
    free(buffer);
}

/* ---- products ------------------------------------------------------------------------------ */

static void product_destroy(ANEProduct *product) {
    if (product != NULL) free(product->b);
    free(product);
}

/* A product with room for the constant B, which is NULL where there is none. */
static ANEStatus make_product(ANEDevice *device, const ANEMatMulDesc *desc, uint64_t b_bytes,
                              const ANECompileOptions *options, ANEProduct **out, ANEError *err) {
    ANEStatus status = supports(device, desc, options, err);
    if (status != ANE_STATUS_OK) return status;
    ANEProduct *product = calloc(1, sizeof *product);
    bool constant = (desc->flags & ANE_MATMUL_CONSTANT_B) != 0;
    if (product != NULL && constant) product->b = malloc(b_bytes + 1);
    if (product == NULL || (constant && product->b == NULL)) {
        free(product);
        return report(err, ANE_STATUS_OUT_OF_MEMORY, ANE_REFUSAL_NONE, "no memory for the product");
    }
    product->device = device;
    product->requested = options->device;
    product->b_bytes = constant ? b_bytes : 0;
    memcpy(&product->desc, desc, desc->struct_size < sizeof *desc ? desc->struct_size : sizeof *desc);
    *out = product;
    return ANE_STATUS_OK;
}

static ANEStatus compile(ANEDevice *device, const ANEMatMulDesc *desc, const ANEConstants *constants,
                         const ANECompileOptions *options, ANEProduct **out, ANEError *err) {
    ANEStatus status = misbehave(device, "compile", err);
    if (status == ANE_STATUS_OK) status = make_product(device, desc, constants->b_bytes, options, out, err);
    if (status == ANE_STATUS_OK && constants->b_bytes > 0) memcpy((*out)->b, constants->b, constants->b_bytes);
    return status;
}

/* A package is one file: the description, then the constant B. The caller keeps the rest of the key. */
static ANEStatus product_save(ANEProduct *product, const char *path, ANEError *err) {
    FILE *file = fopen(path, "wbx");
    bool good = file != NULL && fwrite(&product->desc, sizeof product->desc, 1, file) == 1 &&
                (product->b_bytes == 0 || fwrite(product->b, product->b_bytes, 1, file) == 1);
    if (file != NULL) good = fclose(file) == 0 && good;
    return good ? ANE_STATUS_OK : report(err, ANE_STATUS_IO, ANE_REFUSAL_NONE, "the package cannot be written");
}

static ANEStatus product_load(ANEDevice *device, const ANEMatMulDesc *desc, const ANEConstants *constants,
                              const ANECompileOptions *options, const char *path, ANEProduct **out, ANEError *err) {
    ANEMatMulDesc saved;
    FILE *file = fopen(path, "rb");
    if (file == NULL) return report(err, ANE_STATUS_IO, ANE_REFUSAL_NONE, "there is no package to read");
    ANEStatus status = make_product(device, desc, constants->b_bytes, options, out, err);
    if (status == ANE_STATUS_OK) {
        ANEProduct *product = *out;
        bool good = fread(&saved, sizeof saved, 1, file) == 1 && memcmp(&saved, &product->desc, sizeof saved) == 0 &&
                    (product->b_bytes == 0 || fread(product->b, product->b_bytes, 1, file) == 1) && fgetc(file) == EOF;
        product->loaded = true;
        if (!good) {
            product_destroy(product);
            *out = NULL;
            status = report(err, ANE_STATUS_PACKAGE_MISMATCH, ANE_REFUSAL_NONE, "the package is of another product");
        }
    }
    fclose(file);
    return status;
}

static ANEStatus product_info(ANEProduct *product, ANEProductInfo *info, ANEError *err) {
    (void)err;
    info->requested = product->requested;
    info->observed = ANE_DEVICE_CPU;
    info->flags = product->loaded ? ANE_PRODUCT_FLAG_FROM_PACKAGE : 0;
    info->bytes_held = sizeof *product + product->b_bytes;
    info->executor_bytes = sizeof(ANEMatMulExecutor);
    return ANE_STATUS_OK;
}

/* ---- running ------------------------------------------------------------------------------- */

static float activate(ANEActivation activation, float x) {
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

static float *operand(const ANEOperand *operand) {
    if (operand->buffer == NULL) return operand->data;
    return (float *)((char *)operand->buffer->data + operand->offset_bytes);
}

static ANEStatus executor_create(ANEProduct *product, ANEMatMulExecutor **out, ANEError *err) {
    ANEStatus status = misbehave(product->device, "executor", err);
    if (status != ANE_STATUS_OK) return status;
    ANEMatMulExecutor *executor = malloc(sizeof *executor);
    if (executor == NULL) return report(err, ANE_STATUS_OUT_OF_MEMORY, ANE_REFUSAL_NONE, "no memory for an executor");
    *executor = (ANEMatMulExecutor){product, false};
    *out = executor;
    return ANE_STATUS_OK;
}

static ANEStatus executor_run(ANEMatMulExecutor *executor, const ANERunArgs *args, ANEError *err) {
    const ANEProduct *product = executor->product;
    const ANEMatMulDesc *d = &product->desc;
    ANEStatus status = misbehave(product->device, "run", err);
    if (status == ANE_STATUS_OK && !executor->ran) status = misbehave(product->device, "first", err);
    if (status != ANE_STATUS_OK) return status;
    executor->ran = true;
    if (args->m > d->m) return report(err, ANE_STATUS_INVALID_ARGUMENT, ANE_REFUSAL_NONE, "more rows than compiled for");
    const float *a = operand(&args->a);
    const float *b = product->b != NULL ? product->b : operand(&args->b);
    const float *bias = operand(&args->bias);
    const float *residual = operand(&args->residual);
    float *c = operand(&args->c);
    /* The distances between rows and between columns of op(A) and op(B). */
    bool ta = (d->flags & ANE_MATMUL_TRANSPOSE_A) != 0, tb = (d->flags & ANE_MATMUL_TRANSPOSE_B) != 0;
    uint64_t a_row = ta ? 1 : d->lda, a_col = ta ? d->lda : 1, b_row = tb ? 1 : d->ldb, b_col = tb ? d->ldb : 1;
    for (uint64_t item = 0; item < d->batch; item++) {
        for (uint64_t i = 0; i < args->m; i++) {
            for (uint64_t j = 0; j < d->n; j++) {
                float sum = 0;
                for (uint64_t p = 0; p < d->k; p++) {
                    sum += a[item * d->stride_a + i * a_row + p * a_col] * b[item * d->stride_b + p * b_row + j * b_col];
                }
                float x = d->alpha * sum;
                if ((d->flags & ANE_MATMUL_BIAS) != 0) x += bias[j];
                if ((d->flags & ANE_MATMUL_RESIDUAL) != 0) {
                    x += residual[item * d->stride_residual + i * d->ld_residual + j];
                }
                c[item * d->stride_c + i * d->ldc + j] = activate(d->activation, x);
            }
        }
    }
    bool written = d->batch > 0 && args->m > 0 && d->n > 0;
    if (written && strcmp(product->device->fault, "wrong") == 0 && due(product->device, "run")) c[0] += 1 + fabsf(c[0]);
    if (args->info != NULL) args->info->observed = ANE_DEVICE_CPU;
    return ANE_STATUS_OK;
}

static void executor_destroy(ANEMatMulExecutor *executor) { free(executor); }

/* ---- the table ----------------------------------------------------------------------------- */

const ANEShim *ane_matmul_shim(void) {
    static const ANEShim shim = {
        .struct_size = sizeof(ANEShim),
        .abi_major = ANE_MATMUL_ABI_MAJOR,
        .abi_minor = ANE_MATMUL_ABI_MINOR,
        .name = "reference",
        .version = "1.0",
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
