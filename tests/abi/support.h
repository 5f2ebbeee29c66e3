/* What the programs of this folder share: each is linked with a shim, and exits with 0 when all is right. */
#define _DEFAULT_SOURCE 1
#define _DARWIN_C_SOURCE 1
#include "ane_matmul.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const ANEShim *shim;
static _Thread_local ANEError error = {.struct_size = sizeof error};

static inline void must(bool good, const char *what, int line) {
    if (good) return;
    fprintf(stderr, "line %d: not so: %s\n", line, what);
    exit(1);
}
#define MUST(condition) must(condition, #condition, __LINE__)

static inline void must_give(ANEStatus expected, ANEStatus status, const char *call, int line) {
    if (status == expected) return;
    fprintf(stderr, "line %d: status %d, not %d: %s: %s\n", line, (int)status, (int)expected, call,
            status == ANE_STATUS_OK ? "" : error.message);
    exit(1);
}
#define GIVES(expected, call) must_give(expected, call, #call, __LINE__)
#define OK(call) GIVES(ANE_STATUS_OK, call)

/* What hangs ends by a signal. */
static inline void start(void) {
    alarm(120);
    shim = ane_matmul_shim();
}

/* The planted faults and the kinds of memory are the reference shim's alone. */
static inline bool is_reference(void) { return strcmp(shim->name, "reference") == 0; }

/* Opens the first device with a fault of the reference shim's and memory of a kind. */
static inline ANEDevice *open_device(const char *memory, const char *fault) {
    ANEDevice *device = NULL;
    setenv("ANE_REFERENCE_MEMORY", memory, 1);
    setenv("ANE_REFERENCE_FAULT", fault, 1);
    OK(shim->device_open(0, &device, &error));
    return device;
}

static inline ANEDeviceInfo info_of_device(void) {
    ANEDeviceInfo info;
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    OK(shim->device_info(0, &info, &error));
    return info;
}

static const ANECompileOptions compile_options = {.struct_size = sizeof(ANECompileOptions)};

/* The product that they run: M x K times K x N, of whole numbers, so that results are exact. */
enum { M = 7, N = 6, K = 5 };

static inline float element_of_a(unsigned variant, int row, int column) {
    return (float)((variant + row * K + column) % 61) - 30;
}
static inline float element_of_b(int row, int column) { return (float)((row * N + column) % 5) - 2; }

static inline void fill_a(unsigned variant, float *a) {
    for (int i = 0; i < M * K; i++) a[i] = element_of_a(variant, i / K, i % K);
}

static inline void fill_b(float *b) {
    for (int i = 0; i < K * N; i++) b[i] = element_of_b(i / N, i % N);
}

static inline void check_c(unsigned variant, const float *c) {
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < N; j++) {
            float sum = 0;
            for (int p = 0; p < K; p++) sum += element_of_a(variant, i, p) * element_of_b(p, j);
            if (sum == c[i * N + j]) continue;
            fprintf(stderr, "C[%d][%d] of %u is %g, not %g\n", i, j, variant, (double)c[i * N + j], (double)sum);
            exit(1);
        }
    }
}

/* With B constant where one of the two is given. */
static inline ANEProduct *compile_product(ANEDevice *device, const float *b, ANEConstant *b_constant) {
    ANEProduct *product = NULL;
    ANEMatMulDesc desc;
    memset(&desc, 0, sizeof desc);
    desc.struct_size = sizeof desc;
    desc.flags = b != NULL || b_constant != NULL ? ANE_MATMUL_CONSTANT_B : 0;
    desc.batch = 1, desc.m = M, desc.n = N, desc.k = K, desc.lda = K, desc.ldb = N, desc.ldc = N;
    desc.stride_a = M * K, desc.stride_b = K * N, desc.stride_c = M * N;
    desc.type_a = desc.type_b = desc.type_accumulator = desc.type_c = ANE_TYPE_F32;
    desc.alpha = 1;
    ANEConstants constants;
    memset(&constants, 0, sizeof constants);
    constants.struct_size = sizeof constants;
    constants.b = b;
    constants.b_constant = b_constant;
    constants.b_bytes = desc.flags != 0 ? K * N * sizeof(float) : 0;
    OK(shim->supports(device, &desc, &compile_options, &error));
    OK(shim->compile(device, &desc, &constants, &compile_options, &product, &error));
    return product;
}
