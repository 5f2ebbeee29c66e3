/*
 * Eight threads with an executor each on one product, and one executor that moves between threads:
 * the ABI's promise, for ThreadSanitizer. Link it with a shim. Exits 0 when every result is right.
 */
#define _POSIX_C_SOURCE 200809L
#include "ane_matmul.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 8, RUNS = 200, M = 7, N = 6, K = 5 };

static const ANEShim *shim;
static ANEProduct *product;
static ANEMatMulExecutor *moving;
static float a[M * K], b[K * N];

static void must(ANEStatus status, const ANEError *error, const char *what) {
    if (status != ANE_STATUS_OK) {
        fprintf(stderr, "%s: status %d: %s\n", what, (int)status, error->message);
        exit(1);
    }
}

static void run(ANEMatMulExecutor *executor) {
    float c[M * N];
    ANEError error;
    memset(&error, 0, sizeof error);
    error.struct_size = sizeof error;
    ANERunArgs args;
    memset(&args, 0, sizeof args);
    args.struct_size = sizeof args;
    args.m = M;
    args.a = (ANEOperand){a, NULL, 0, sizeof a};
    args.b = (ANEOperand){b, NULL, 0, sizeof b};
    args.c = (ANEOperand){c, NULL, 0, sizeof c};
    must(shim->executor_run(executor, &args, &error), &error, "executor_run");
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < N; j++) {
            float sum = 0;
            for (int p = 0; p < K; p++) sum += a[i * K + p] * b[p * N + j];
            if (sum != c[i * N + j]) {
                fprintf(stderr, "C[%d][%d] is %g, not %g\n", i, j, (double)c[i * N + j], (double)sum);
                exit(1);
            }
        }
    }
}

static void *own_executor(void *unused) {
    ANEError error;
    memset(&error, 0, sizeof error);
    error.struct_size = sizeof error;
    ANEMatMulExecutor *executor = NULL;
    must(shim->executor_create(product, &executor, &error), &error, "executor_create");
    for (int i = 0; i < RUNS; i++) run(executor);
    shim->executor_destroy(executor);
    return unused;
}

static void *moved_executor(void *unused) {
    run(moving);
    return unused;
}

int main(void) {
    shim = ane_matmul_shim();
    for (int i = 0; i < M * K; i++) a[i] = (float)(i % 7) - 3;
    for (int i = 0; i < K * N; i++) b[i] = (float)(i % 5) - 2;
    ANEError error;
    memset(&error, 0, sizeof error);
    error.struct_size = sizeof error;
    ANEDevice *device = NULL;
    must(shim->device_open(&device, &error), &error, "device_open");
    ANEMatMulDesc desc;
    memset(&desc, 0, sizeof desc);
    desc.struct_size = sizeof desc;
    desc.batch = 1, desc.m = M, desc.n = N, desc.k = K, desc.lda = K, desc.ldb = N, desc.ldc = N;
    desc.stride_a = M * K, desc.stride_b = K * N, desc.stride_c = M * N;
    desc.type_a = desc.type_b = desc.type_accumulator = desc.type_c = ANE_TYPE_F32;
    desc.alpha = 1;
    ANEConstants constants;
    memset(&constants, 0, sizeof constants);
    constants.struct_size = sizeof constants;
    ANECompileOptions options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    must(shim->supports(device, &desc, &options, &error), &error, "supports");
    must(shim->compile(device, &desc, &constants, &options, &product, &error), &error, "compile");
    must(shim->executor_create(product, &moving, &error), &error, "executor_create");
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        if (pthread_create(&threads[i], NULL, own_executor, NULL) != 0) return 1;
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_t mover;
        if (pthread_create(&mover, NULL, moved_executor, NULL) != 0) return 1;
        pthread_join(mover, NULL);
    }
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    shim->executor_destroy(moving);
    shim->product_destroy(product);
    shim->device_close(device);
    shim->executor_destroy(NULL);
    shim->product_destroy(NULL);
    shim->buffer_destroy(NULL);
    shim->device_close(NULL);
    puts("1 passed, 0 failed");
    return 0;
}
