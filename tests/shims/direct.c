/* One product of 1x1x1 on the reference shim, called without Rust in between: for benches/abi.rs. */
#include "ane_matmul.h"

#include <string.h>

static float a = 1, b = 1, c;
static ANERunArgs args;
static ANEMatMulExecutor *executor;

int ane_direct_open(void);
int ane_direct_run(void);

int ane_direct_open(void) {
    const ANEShim *shim = ane_matmul_shim();
    ANEDevice *device = NULL;
    ANEProduct *product = NULL;
    ANEMatMulDesc desc;
    ANEConstants constants;
    ANECompileOptions options;
    const ANEExecutorOptions no_queue = {sizeof no_queue, 0};
    memset(&desc, 0, sizeof desc);
    memset(&constants, 0, sizeof constants);
    memset(&options, 0, sizeof options);
    desc.struct_size = sizeof desc;
    constants.struct_size = sizeof constants;
    options.struct_size = sizeof options;
    desc.batch = desc.m = desc.n = desc.k = desc.lda = desc.ldb = desc.ldc = 1;
    desc.type_a = desc.type_b = desc.type_accumulator = desc.type_c = ANE_TYPE_F32;
    desc.alpha = 1;
    args.struct_size = sizeof args;
    args.m = 1;
    args.a = (ANEOperand){&a, NULL, 0, sizeof a};
    args.b = (ANEOperand){&b, NULL, 0, sizeof b};
    args.c = (ANEOperand){&c, NULL, 0, sizeof c};
    return shim->device_open(0, &device, NULL) == ANE_STATUS_OK &&
           shim->compile(device, &desc, &constants, &options, &product, NULL) == ANE_STATUS_OK &&
           shim->executor_create(product, &no_queue, &executor, NULL) == ANE_STATUS_OK;
}

int ane_direct_run(void) { return ane_matmul_shim()->executor_run(executor, &args, NULL); }
