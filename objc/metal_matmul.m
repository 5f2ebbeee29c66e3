/*
 * metal_matmul.m - the C ABI of ane_matmul.h over the kernels of matmul.metal.
 *
 * What to launch is planned in matmul_plan.h; this file owns Metal's objects. Manual retain/release,
 * no blocks, no classes of its own. Compile with the directory of ane_metal_source.h (made by
 * metal_source.rs) in the include path. SPDX-License-Identifier: MIT OR Apache-2.0
 */
#import <Foundation/Foundation.h>
#import <Metal/Metal.h>

#include <os/log.h>
#include <os/signpost.h>

#include "ane_matmul.h"
#include "ane_metal_source.h"
#include "matmul_plan.h"

/* Wide loads want operands on 16 bytes; an operand elsewhere goes through a buffer of the executor's. */
#define OPERAND_ALIGNMENT 16u

#if __has_feature(objc_arc)
#error "metal_matmul.m is written for manual retain/release: compile it with -fno-objc-arc"
#endif

struct ANEDevice {
    id<MTLDevice> device;
    id<MTLCommandQueue> queue;
    os_log_t log;
    id<MTLLibrary> library; /* guarded by @synchronized (pipelines), as is what is in pipelines */
    NSMutableDictionary *pipelines;
    uint32_t device_class;
};

#define SHIM_DEVICE_FLAGS ANE_DEVICE_FLAG_CONSTANTS
#include "shim_support.h"

struct ANEConstant {
    ANEDevice *device;
    id<MTLBuffer> buffer;
    uint64_t bytes;
    ANEType type;
};

struct ANEProduct {
    ANEDevice *device;
    ANEMatMulDesc desc;
    id<MTLBuffer> constant_b;
    uint64_t own_b_bytes; /* of constant_b, unless it is a constant of the device's */
    /* Of a run with all rows and, with variable m, of a run with one row. */
    id<MTLComputePipelineState> pipelines[2][2];
    ANEDeviceKind requested;
    uint64_t compile_ns;
    uint64_t scratch_bytes;
    uint64_t staging_bytes[OPERANDS];
};

/* ---- questions ----------------------------------------------------------------------------- */

/* Metal 3.1, with bfloat: macOS 14 and iOS 17 (Metal Shading Language Specification, 1.2 and 2.1). */
static BOOL os_has_bf16(void)
{
    return os_at_least(1400, 1700);
}

static BOOL is_float_type(ANEType type)
{
    return element_bytes(type) != 0;
}

static ANEStatus check_support(ANEDevice *device, const ANEMatMulDesc *d, const ANECompileOptions *options,
                               ANEError *err)
{
    const uint32_t known = ANE_MATMUL_TRANSPOSE_A | ANE_MATMUL_TRANSPOSE_B | ANE_MATMUL_CONSTANT_B | ANE_MATMUL_BIAS |
                           ANE_MATMUL_RESIDUAL | ANE_MATMUL_VARIABLE_M;
    static const char *const names[OPERANDS] = {"A", "B", "C", "the bias", "the residual"};
    const uint64_t most = [device->device maxBufferLength];
    Layout layouts[OPERANDS];
    ANEMetalPlan plan;
    ANEMetalOverrides overrides;
    if (d->struct_size < sizeof *d || options->struct_size < sizeof *options) {
        return FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "a struct is smaller than in this version of the ABI");
    }
    if (d->flags & ~known) {
        return REFUSE(err, ANE_REFUSAL_OTHER, "the description has flags that this shim does not know (0x%x)",
                      (unsigned)(d->flags & ~known));
    }
    if (options->device != ANE_DEVICE_UNKNOWN && options->device != ANE_DEVICE_GPU) {
        return REFUSE(err, ANE_REFUSAL_DEVICE, "a Metal kernel runs on the GPU only: request the GPU or no device");
    }
    if (d->quant_a != ANE_QUANT_A_NONE || d->quant_b != ANE_QUANT_B_NONE || d->quant_c != ANE_QUANT_C_NONE) {
        return REFUSE(err, ANE_REFUSAL_QUANTIZATION, "the Metal kernels have no quantised form");
    }
    if (!is_float_type(d->type_a) || d->type_b != d->type_a || !is_float_type(d->type_c) ||
        ((d->flags & ANE_MATMUL_BIAS) && !is_float_type(d->type_bias))) {
        return REFUSE(err, ANE_REFUSAL_ELEMENT_TYPE,
                      "the Metal kernels take A and B of one type, and f32, f16 or bf16 throughout");
    }
    if (d->type_accumulator != ANE_TYPE_F32) {
        return REFUSE(err, ANE_REFUSAL_ELEMENT_TYPE, "the Metal kernels sum in f32: describe an f32 accumulator");
    }
    if (d->activation < ANE_ACTIVATION_NONE || d->activation > ANE_ACTIVATION_TANH) {
        return REFUSE(err, ANE_REFUSAL_EPILOGUE, "activation %d is not known to this shim", (int)d->activation);
    }
    if ((d->type_a == ANE_TYPE_BF16 || d->type_c == ANE_TYPE_BF16 ||
         ((d->flags & ANE_MATMUL_BIAS) && d->type_bias == ANE_TYPE_BF16)) && !os_has_bf16()) {
        return REFUSE(err, ANE_REFUSAL_OS_VERSION, "bf16 in Metal kernels needs macOS 14 or iOS 17");
    }
    if (d->m > ANE_METAL_MAX_DIMENSION || d->n > ANE_METAL_MAX_DIMENSION || d->k > ANE_METAL_MAX_DIMENSION ||
        d->batch > ANE_METAL_MAX_DIMENSION / 32) {
        return REFUSE(err, ANE_REFUSAL_DIMENSION, "m, n and k may be up to %u, the batch up to %u",
                      ANE_METAL_MAX_DIMENSION, ANE_METAL_MAX_DIMENSION / 32);
    }
    if (!layouts_of(d, d->m, layouts)) {
        return REFUSE(err, ANE_REFUSAL_BYTES, "the size of an operand overflows 64 bits");
    }
    for (int i = 0; i < OPERANDS; ++i) {
        if (layouts[i].bytes > most) {
            return REFUSE(err, ANE_REFUSAL_BYTES, "%s takes %llu bytes; a buffer of this device holds %llu", names[i],
                          (unsigned long long)layouts[i].bytes, (unsigned long long)most);
        }
    }
    memset(&overrides, 0, sizeof overrides);
    ane_metal_plan(d, d->m, device->device_class, &overrides, &plan);
    if (plan.scratch_bytes > most) {
        return REFUSE(err, ANE_REFUSAL_BYTES, "the partial sums take more than a buffer of this device holds");
    }
    return ANE_STATUS_OK;
}

/* ---- device -------------------------------------------------------------------------------- */

static void metal_device_close(ANEDevice *device)
{
    if (device) {
        ANEStatus ignored;
        CONTAINED(NULL, ignored, {
            [device->pipelines release];
            [device->library release];
            [device->queue release];
            [device->device release];
        })
        (void)ignored;
        free(device);
    }
}

/* MTLDevice.architecture.name: macOS 14, iOS 17, asked in a way that earlier SDKs take; else nothing. */
static NSString *architecture_of(id<MTLDevice> device)
{
    const SEL architecture = @selector(architecture);
    return [device respondsToSelector:architecture] ? [[device performSelector:architecture] performSelector:@selector(name)]
                                                    : @"";
}

static ANEStatus open_device(ANEDevice *device, uint32_t index, ANEError *err)
{
    ANEStatus status = open_queue(device, index, "metal", err);
    if (status != ANE_STATUS_OK) {
        return status;
    }
    /* simdgroup_matrix: Metal Feature Set Tables, "SIMD-scoped matrix multiply operations". */
    if (![device->device supportsFamily:MTLGPUFamilyApple7]) {
        return REFUSE(err, ANE_REFUSAL_HARDWARE,
                      "%s has no simdgroup_matrix, which the kernels are built on: it needs an Apple GPU of M1 or A14 "
                      "or later. MPSGraph and Accelerate work here",
                      text_of([device->device name]));
    }
    device->pipelines = [[NSMutableDictionary alloc] init];
    if (!device->pipelines) {
        return FAIL(err, ANE_STATUS_OUT_OF_MEMORY, "no memory for a device");
    }
    device->device_class = ane_metal_device_class(text_of(architecture_of(device->device)), text_of([device->device name]));
    return ANE_STATUS_OK;
}

static ANEStatus metal_device_open(uint32_t index, ANEDevice **out, ANEError *err)
{
    ANEDevice *device = calloc(1, sizeof *device);
    ANEStatus status = ANE_STATUS_INTERNAL;
    if (!device) {
        return FAIL(err, ANE_STATUS_OUT_OF_MEMORY, "no memory for a device");
    }
    CONTAINED(err, status, status = open_device(device, index, err))
    if (status != ANE_STATUS_OK) {
        metal_device_close(device);
        return status;
    }
    *out = device;
    return ANE_STATUS_OK;
}

static ANEStatus metal_supports(ANEDevice *device, const ANEMatMulDesc *desc, const ANECompileOptions *options,
                                ANEError *err)
{
    ANEStatus status = ANE_STATUS_INTERNAL;
    CONTAINED(err, status, status = check_support(device, desc, options, err))
    return status;
}

/* ---- compile ------------------------------------------------------------------------------- */

/* The library, compiled at first use; nil with `err` filled. */
static id<MTLLibrary> library_of(ANEDevice *device, ANEError *err)
{
    MTLCompileOptions *options;
    NSString *source;
    NSError *error = nil;
    if (device->library) {
        return device->library;
    }
    options = [[[MTLCompileOptions alloc] init] autorelease];
    /* NaN and infinity must propagate. */
    [options setFastMathEnabled:NO];
    [options setLanguageVersion:(MTLLanguageVersion)(os_has_bf16() ? (3 << 16) + 1 : 3 << 16)];
    source = [NSString stringWithUTF8String:ane_metal_source];
    device->library = [device->device newLibraryWithSource:source options:options error:&error];
    if (!device->library) {
        const char *log = error ? text_of([error localizedDescription]) : "";
        report(err, ANE_STATUS_COMPILE_FAILED, ANE_REFUSAL_NONE, error, log,
               "the Metal compiler rejected the kernels: %.300s", log);
    }
    return device->library;
}

/* The pipeline of a launch, owned by the device; nil with `err` filled. The number of pipelines is
 * bounded by functions and constants: no dimension enters the key. */
static id<MTLComputePipelineState> pipeline_of(ANEDevice *device, const ANEMetalLaunch *launch, ANEError *err)
{
    NSString *name = [NSString stringWithUTF8String:launch->function];
    NSMutableString *key = [NSMutableString stringWithString:name];
    MTLFunctionConstantValues *constants = [[[MTLFunctionConstantValues alloc] init] autorelease];
    id<MTLComputePipelineState> pipeline;
    id<MTLFunction> function;
    NSError *error = nil;
    for (NSUInteger i = 0; i < ANE_METAL_CONSTANT_COUNT; ++i) {
        const BOOL is_bool = i < ANE_METAL_CONSTANT_BOOLS;
        const bool flag = launch->constants[i] != 0;
        [constants setConstantValue:is_bool ? (const void *)&flag : &launch->constants[i]
                               type:is_bool ? MTLDataTypeBool : MTLDataTypeUInt
                            atIndex:i];
        [key appendFormat:@" %u", (unsigned)launch->constants[i]];
    }
    @synchronized(device->pipelines) {
        pipeline = [device->pipelines objectForKey:key];
        if (pipeline) {
            return pipeline;
        }
        if (!library_of(device, err)) {
            return nil;
        }
        function = [[device->library newFunctionWithName:name constantValues:constants error:&error] autorelease];
        if (function) {
            pipeline = [[device->device newComputePipelineStateWithFunction:function error:&error] autorelease];
        }
        if (!pipeline) {
            const char *log = error ? text_of([error localizedDescription]) : "";
            report(err, ANE_STATUS_COMPILE_FAILED, ANE_REFUSAL_NONE, error, log, "Metal made no pipeline of %s: %.300s",
                   launch->function, log);
            return nil;
        }
        if ([pipeline threadExecutionWidth] != ANE_METAL_SIMD_WIDTH ||
            [pipeline maxTotalThreadsPerThreadgroup] < launch->threads[0] * launch->threads[1]) {
            FAIL(err, ANE_STATUS_COMPILE_FAILED,
                 "%s needs simdgroups of %u lanes and threadgroups of %u threads; this device has %lu and %lu",
                 launch->function, ANE_METAL_SIMD_WIDTH, (unsigned)(launch->threads[0] * launch->threads[1]),
                 (unsigned long)[pipeline threadExecutionWidth], (unsigned long)[pipeline maxTotalThreadsPerThreadgroup]);
            return nil;
        }
        [device->pipelines setObject:pipeline forKey:key];
    }
    return pipeline;
}

static ANEStatus prepare_device(ANEDevice *device, ANEError *err)
{
    @synchronized(device->pipelines) {
        return library_of(device, err) ? ANE_STATUS_OK : ANE_STATUS_COMPILE_FAILED;
    }
}

static ANEStatus metal_device_prepare(ANEDevice *device, ANEError *err)
{
    ANEStatus status = ANE_STATUS_INTERNAL;
    CONTAINED(err, status, status = prepare_device(device, err))
    return status;
}

static void metal_constant_destroy(ANEConstant *constant)
{
    if (constant) {
        ANEStatus ignored;
        CONTAINED(NULL, ignored, [constant->buffer release])
        (void)ignored;
        free(constant);
    }
}

static ANEStatus make_constant(ANEConstant *constant, const void *data, ANEError *err)
{
    constant->buffer = new_buffer(constant->device, constant->bytes, err);
    if (!constant->buffer) {
        return ANE_STATUS_OUT_OF_MEMORY;
    }
    if (constant->bytes) {
        memcpy([constant->buffer contents], data, (size_t)constant->bytes);
    }
    return ANE_STATUS_OK;
}

static ANEStatus metal_constant_create(ANEDevice *device, const ANEConstantDesc *desc, ANEConstant **out, ANEError *err)
{
    ANEConstant *constant;
    ANEStatus status = ANE_STATUS_INTERNAL;
    if (desc->struct_size < sizeof *desc || (!desc->data && desc->bytes)) {
        return FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "a constant without data, or a struct that is smaller than in this version of the ABI");
    }
    constant = calloc(1, sizeof *constant);
    if (!constant) {
        return FAIL(err, ANE_STATUS_OUT_OF_MEMORY, "no memory for a constant");
    }
    constant->device = device;
    constant->bytes = desc->bytes;
    constant->type = desc->type;
    CONTAINED(err, status, status = make_constant(constant, desc->data, err))
    if (status != ANE_STATUS_OK) {
        metal_constant_destroy(constant);
        return status;
    }
    *out = constant;
    return ANE_STATUS_OK;
}

/* Gives the product B: a constant of the device's, or a copy of plain memory. */
static ANEStatus take_constant_b(ANEProduct *product, const ANEConstants *constants, const Layout *layout, ANEError *err)
{
    const ANEConstant *shared = constants->b_constant;
    const uint64_t bytes = shared ? shared->bytes : constants->b_bytes;
    if (shared ? constants->b != NULL || shared->device != product->device || shared->type != product->desc.type_b
               : !constants->b && layout->bytes) {
        return FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "constant B is plain memory, or a constant of its type on this device");
    }
    if (bytes < layout->bytes) {
        return FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "constant B has %llu bytes, not the %llu of the description",
                    (unsigned long long)bytes, (unsigned long long)layout->bytes);
    }
    if (shared) {
        product->constant_b = [shared->buffer retain];
        return ANE_STATUS_OK;
    }
    product->constant_b = new_buffer(product->device, layout->bytes, err);
    if (!product->constant_b) {
        return ANE_STATUS_OUT_OF_MEMORY;
    }
    product->own_b_bytes = layout->bytes;
    repack([product->constant_b contents], layout, constants->b, layout, layout);
    return ANE_STATUS_OK;
}

static void plan_run(const ANEProduct *product, uint64_t m, ANEMetalPlan *plan)
{
    ANEMetalOverrides overrides;
    memset(&overrides, 0, sizeof overrides);
    ane_metal_plan(&product->desc, m, product->device->device_class, &overrides, plan);
}

/* Which of the product's pipelines a run of m rows uses. */
static int pipeline_set(const ANEMatMulDesc *desc, uint64_t m)
{
    return (desc->flags & ANE_MATMUL_VARIABLE_M) && m == 1 && desc->m != 1;
}

static ANEStatus compile_product(ANEProduct *product, const ANEConstants *constants, const ANECompileOptions *options,
                                 ANEError *err)
{
    const ANEMatMulDesc *d = &product->desc;
    const uint64_t counts[2] = {d->m, 1};
    const int sets = (d->flags & ANE_MATMUL_VARIABLE_M) && d->m > 1 ? 2 : 1;
    Layout layouts[OPERANDS];
    ANEStatus status = check_support(product->device, d, options, err);
    if (status != ANE_STATUS_OK) {
        return status;
    }
    product->requested = options->device;
    layouts_of(d, d->m, layouts);
    for (int i = 0; i < OPERANDS; ++i) {
        product->staging_bytes[i] = layouts[i].bytes;
    }
    for (int set = 0; set < sets; ++set) {
        ANEMetalPlan plan;
        plan_run(product, counts[set], &plan);
        if (plan.scratch_bytes > product->scratch_bytes) {
            product->scratch_bytes = plan.scratch_bytes;
        }
        for (uint32_t i = 0; i < plan.launch_count; ++i) {
            id<MTLComputePipelineState> pipeline = pipeline_of(product->device, &plan.launches[i], err);
            if (!pipeline) {
                return ANE_STATUS_COMPILE_FAILED;
            }
            product->pipelines[set][i] = [pipeline retain];
        }
    }
    if (d->flags & ANE_MATMUL_CONSTANT_B) {
        product->staging_bytes[B] = 0;
        status = take_constant_b(product, constants, &layouts[B], err);
    }
    return status;
}

static void metal_product_destroy(ANEProduct *product)
{
    if (product) {
        ANEStatus ignored;
        CONTAINED(NULL, ignored, {
            for (int i = 0; i < 4; ++i) {
                [product->pipelines[i / 2][i % 2] release];
            }
            [product->constant_b release];
        })
        (void)ignored;
        free(product);
    }
}

static ANEStatus metal_compile(ANEDevice *device, const ANEMatMulDesc *desc, const ANEConstants *constants,
                               const ANECompileOptions *options, ANEProduct **out, ANEError *err)
{
    const uint64_t start_ns = now_ns();
    ANEProduct *product;
    ANEStatus status = ANE_STATUS_INTERNAL;
    if (desc->struct_size < sizeof *desc || constants->struct_size < sizeof *constants) {
        return FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "a struct is smaller than in this version of the ABI");
    }
    product = calloc(1, sizeof *product);
    if (!product) {
        return FAIL(err, ANE_STATUS_OUT_OF_MEMORY, "no memory for a product");
    }
    product->device = device;
    product->desc = *desc;
    CONTAINED(err, status, status = compile_product(product, constants, options, err))
    if (status != ANE_STATUS_OK) {
        metal_product_destroy(product);
        return status;
    }
    product->compile_ns = now_ns() - start_ns;
    *out = product;
    return ANE_STATUS_OK;
}

static ANEStatus metal_product_save(ANEProduct *product, const char *path, ANEError *err)
{
    (void)product;
    (void)path;
    return FAIL(err, ANE_STATUS_NOT_IMPLEMENTED, "the Metal shim saves no products; it compiles in every process");
}

static ANEStatus metal_product_load(ANEDevice *device, const ANEMatMulDesc *desc, const ANEConstants *constants,
                                    const ANECompileOptions *options, const char *path, ANEProduct **out,
                                    ANEError *err)
{
    (void)device;
    (void)desc;
    (void)constants;
    (void)options;
    (void)out;
    return metal_product_save(NULL, path, err);
}

static ANEStatus metal_product_info(ANEProduct *product, ANEProductInfo *info, ANEError *err)
{
    ANEProductInfo i;
    (void)err;
    /* `arithmetic` is 0: the kernels are compiled without fast math and multiply operands as they are. */
    memset(&i, 0, sizeof i);
    i.struct_size = info->struct_size;
    i.requested = product->requested;
    i.compile_ns = product->compile_ns;
    i.bytes_held = sizeof *product + product->own_b_bytes;
    i.executor_bytes = sizeof(ANEMatMulExecutor) + sizeof(Slot) + product->scratch_bytes;
    for (int o = 0; o < OPERANDS; ++o) {
        i.executor_bytes += product->staging_bytes[o];
    }
    memcpy(info, &i, info->struct_size < sizeof i ? info->struct_size : sizeof i);
    return ANE_STATUS_OK;
}

/* ---- run ----------------------------------------------------------------------------------- */

static ANEStatus metal_executor_create(ANEProduct *product, const ANEExecutorOptions *options, ANEMatMulExecutor **out,
                                       ANEError *err)
{
    return create_executor(product->device, product, &product->desc, product->scratch_bytes, options, out, err);
}

/* An operand where the kernels find it. The command buffer retains it (MTLCommandQueue.makeCommandBuffer()). */
typedef struct Bound {
    id<MTLBuffer> buffer;
    NSUInteger offset;
} Bound;

static ANEStatus bind_operand(ANEMatMulExecutor *executor, Slot *slot, int which, const ANEOperand *operand,
                              const Layout *layout, Bound *bound, ANEError *err)
{
    static const char *const names[OPERANDS] = {"A", "B", "C", "bias", "residual"};
    const ANEProduct *product = executor->product;
    ANEStatus status = check_operand(product->device, names[which], operand, layout, err);
    if (status != ANE_STATUS_OK) {
        return status;
    }
    if (operand->buffer && operand->offset_bytes % OPERAND_ALIGNMENT == 0 && layout->bytes) {
        bound->buffer = operand->buffer->buffer;
        bound->offset = (NSUInteger)operand->offset_bytes;
        return ANE_STATUS_OK;
    }
    status = stage(product->device, slot, which, operand, layout, layout, product->staging_bytes[which], err);
    bound->buffer = slot->staging[which];
    return status;
}

static void encode_launch(id<MTLComputeCommandEncoder> encoder, id<MTLComputePipelineState> pipeline,
                          const ANEMetalPlan *plan, uint32_t index, const ANEMetalLaunch *launch,
                          const Bound bound[OPERANDS], id<MTLBuffer> scratch)
{
    const Bound *a = &bound[plan->swap_operands ? B : A], *b = &bound[plan->swap_operands ? A : B];
    const MTLSize grid = {launch->grid[0], launch->grid[1], launch->grid[2]};
    const MTLSize threads = {launch->threads[0], launch->threads[1], launch->threads[2]};
    const BOOL last = index + 1 == plan->launch_count;
    [encoder setComputePipelineState:pipeline];
    if (index == 0) {
        [encoder setBuffer:a->buffer offset:a->offset atIndex:ANE_METAL_BUFFER_A];
        [encoder setBuffer:b->buffer offset:b->offset atIndex:ANE_METAL_BUFFER_B];
    } else {
        [encoder setBuffer:scratch offset:0 atIndex:ANE_METAL_BUFFER_A];
    }
    [encoder setBuffer:last ? bound[C].buffer : scratch offset:last ? bound[C].offset : 0 atIndex:ANE_METAL_BUFFER_C];
    if (launch->constants[ANE_METAL_CONSTANT_HAS_BIAS]) {
        [encoder setBuffer:bound[BIAS].buffer offset:bound[BIAS].offset atIndex:ANE_METAL_BUFFER_BIAS];
    }
    if (launch->constants[ANE_METAL_CONSTANT_HAS_RESIDUAL]) {
        [encoder setBuffer:bound[RESIDUAL].buffer offset:bound[RESIDUAL].offset atIndex:ANE_METAL_BUFFER_RESIDUAL];
    }
    [encoder setBytes:&launch->params length:sizeof launch->params atIndex:ANE_METAL_BUFFER_PARAMS];
    [encoder dispatchThreadgroups:grid threadsPerThreadgroup:threads];
}

/* Commits a plan, in command buffers that each stay within its multiply-adds. Each is committed before the next is
 * made: see QUEUE_COMMAND_BUFFERS. */
static ANEStatus commit_plan(ANEMatMulExecutor *executor, Slot *slot, const ANEMetalPlan *plan, int set,
                             const Bound bound[OPERANDS], ANEError *err)
{
    ANEProduct *product = executor->product;
    uint32_t index = 0;
    uint64_t first = 0;
    while (index < plan->launch_count) {
        id<MTLCommandBuffer> commands = [product->device->queue commandBuffer];
        id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
        ANEStatus status = ANE_STATUS_OK;
        if (!commands || !encoder) {
            return FAIL(err, ANE_STATUS_OUT_OF_MEMORY, "Metal made no command buffer or encoder");
        }
        CONTAINED(err, status, {
            BOOL ended = YES;
            /* Launches of one serial encoder see each other's writes. */
            while (ended && index < plan->launch_count) {
                const ANEMetalLaunch *launch = &plan->launches[index];
                ANEMetalLaunch part;
                first = ane_metal_part(plan, index, first, &part);
                encode_launch(encoder, product->pipelines[set][index], plan, index, &part, bound, slot->scratch);
                ended = first == (uint64_t)launch->grid[1] * launch->grid[2];
                if (ended) {
                    ++index;
                    first = 0;
                }
            }
        })
        /* An encoder that dies without it aborts the process. */
        [encoder endEncoding];
        if (status != ANE_STATUS_OK) {
            return status;
        }
        [slot->commands addObject:commands];
        [commands commit];
    }
    return ANE_STATUS_OK;
}

static ANEStatus start_run(ANEMatMulExecutor *executor, Slot *slot, const ANERunArgs *args, ANEError *err)
{
    ANEProduct *product = executor->product;
    const ANEMatMulDesc *d = &product->desc;
    const ANEOperand *operands[OPERANDS] = {&args->a, &args->b, &args->c, &args->bias, &args->residual};
    Layout layouts[OPERANDS];
    Bound bound[OPERANDS];
    ANEMetalPlan plan;
    ANEStatus status = ANE_STATUS_OK;
    plan_run(product, args->m, &plan);
    layouts_of(d, args->m, layouts);
    memset(bound, 0, sizeof bound);
    if (!plan.launch_count) {
        return ANE_STATUS_OK;
    }
    for (int i = 0; i < OPERANDS; ++i) {
        if (i == B && product->constant_b) {
            bound[B].buffer = product->constant_b;
        } else if (i < BIAS || layouts[i].bytes) {
            status = bind_operand(executor, slot, i, operands[i], &layouts[i], &bound[i], err);
        }
        if (status != ANE_STATUS_OK) {
            return status;
        }
    }
    slot->observed = ANE_DEVICE_GPU;
    return commit_plan(executor, slot, &plan, pipeline_set(d, args->m), bound, err);
}

/* ---- table --------------------------------------------------------------------------------- */

const ANEShim *ane_metal_shim(void)
{
    static const ANEShim shim = {
        .struct_size = sizeof(ANEShim),
        .abi_major = ANE_MATMUL_ABI_MAJOR,
        .abi_minor = ANE_MATMUL_ABI_MINOR,
        .name = "metal",
        .version = "1.0.0",
        .device_count = shim_device_count,
        .device_info = shim_device_info,
        .device_open = metal_device_open,
        .device_prepare = metal_device_prepare,
        .device_close = metal_device_close,
        .supports = metal_supports,
        .buffer_create = shim_buffer_create,
        .buffer_wrap = shim_buffer_wrap,
        .buffer_contents = shim_buffer_contents,
        .buffer_write = shim_buffer_write,
        .buffer_read = shim_buffer_read,
        .buffer_destroy = shim_buffer_destroy,
        .constant_create = metal_constant_create,
        .constant_destroy = metal_constant_destroy,
        .compile = metal_compile,
        .product_save = metal_product_save,
        .product_load = metal_product_load,
        .product_info = metal_product_info,
        .product_destroy = metal_product_destroy,
        .executor_create = metal_executor_create,
        .executor_run = shim_executor_run,
        .executor_submit = shim_executor_submit,
        .executor_wait = shim_executor_wait,
        .executor_destroy = shim_executor_destroy,
    };
    return &shim;
}
