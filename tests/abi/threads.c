/*
 * Eight threads with an executor each on one product, and one executor that moves between threads: the ABI's
 * promise, for ThreadSanitizer. Link it with a shim. Exits with 0 when every result is right.
 */
#include "support.h"

enum { THREADS = 8, RUNS = 200 };

static ANEProduct *product;
static ANEMatMulExecutor *moving;
static float a[M * K], b[K * N];

static ANEMatMulExecutor *make_executor(void) {
    ANEMatMulExecutor *executor = NULL;
    const ANEExecutorOptions options = {sizeof options, 0};
    OK(shim->executor_create(product, &options, &executor, &error));
    return executor;
}

static void run(ANEMatMulExecutor *executor) {
    float c[M * N];
    ANERunArgs args;
    memset(&args, 0, sizeof args);
    args.struct_size = sizeof args;
    args.m = M;
    args.a = (ANEOperand){a, NULL, 0, sizeof a};
    args.b = (ANEOperand){b, NULL, 0, sizeof b};
    args.c = (ANEOperand){c, NULL, 0, sizeof c};
    OK(shim->executor_run(executor, &args, &error));
    check_c(0, c);
}

static void *own_executor(void *unused) {
    ANEMatMulExecutor *executor = make_executor();
    for (int i = 0; i < RUNS; i++) run(executor);
    shim->executor_destroy(executor);
    return unused;
}

static void *moved_executor(void *unused) {
    run(moving);
    return unused;
}

int main(void) {
    start();
    fill_a(0, a);
    fill_b(b);
    uint32_t count = 0;
    OK(shim->device_count(&count, &error));
    MUST(count > 0);
    ANEDevice *device = open_device("", "");
    OK(shim->device_prepare(device, &error));
    product = compile_product(device, NULL, NULL);
    moving = make_executor();
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) MUST(pthread_create(&threads[i], NULL, own_executor, NULL) == 0);
    for (int i = 0; i < THREADS; i++) {
        pthread_t mover;
        MUST(pthread_create(&mover, NULL, moved_executor, NULL) == 0);
        pthread_join(mover, NULL);
    }
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    shim->executor_destroy(moving);
    shim->product_destroy(product);
    shim->device_close(device);
    shim->executor_destroy(NULL);
    shim->product_destroy(NULL);
    shim->constant_destroy(NULL);
    shim->buffer_destroy(NULL);
    shim->device_close(NULL);
    puts("1 passed, 0 failed");
    return 0;
}
