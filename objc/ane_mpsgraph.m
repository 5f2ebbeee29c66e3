/*
 * ane_mpsgraph.m - the C ABI of ane_matmul.h over MPSGraph.
 *
 * A product is one graph, compiled once into an executable for fixed shapes; a run encodes it into a
 * command buffer of the shim's own. Operands are packed arrays: what lies otherwise in the caller's
 * memory is copied row by row into shared buffers of the executor. Manual retain/release, no blocks, no
 * classes of its own. SPDX-License-Identifier: MIT OR Apache-2.0
 */
#import <Foundation/Foundation.h>
#import <Metal/Metal.h>
#import <MetalPerformanceShaders/MetalPerformanceShaders.h>
#import <MetalPerformanceShadersGraph/MetalPerformanceShadersGraph.h>
#ifdef __APPLE__
#include <Availability.h>
#endif
#include <os/log.h>
#include <os/signpost.h>

#include "ane_matmul.h"

#if __has_feature(objc_arc)
#error "ane_mpsgraph.m is written for manual retain/release: compile it with -fno-objc-arc"
#endif

/* SDKs before 26 do not declare this setter and its values (MPSGraph.h of 26); the system may have them. */
#if defined(__APPLE__) && ((TARGET_OS_OSX && __MAC_OS_X_VERSION_MAX_ALLOWED < 260000) || \
                           (!TARGET_OS_OSX && __IPHONE_OS_VERSION_MAX_ALLOWED < 260000))
enum {
    MPSGraphReducedPrecisionFastMathNone = 0,
    MPSGraphReducedPrecisionFastMathAllowFP16Intermediates = 1 << 1,
};
@interface MPSGraphCompilationDescriptor (ANEMatMulSystem26)
- (void)setReducedPrecisionFastMath:(NSUInteger)fastMath;
@end
#endif

/* SDKs before macOS 14 and iOS 17 do not declare packages of executables: a shim of theirs has none. */
#if defined(__APPLE__) && ((TARGET_OS_OSX && __MAC_OS_X_VERSION_MAX_ALLOWED < 140000) || \
                           (!TARGET_OS_OSX && __IPHONE_OS_VERSION_MAX_ALLOWED < 170000))
#define SDK_HAS_PACKAGES 0
#else
#define SDK_HAS_PACKAGES 1
#endif

/* Products beyond it fail or give wrong results on the Neural Engine (stable-diffusion-webui#13527). */
#define NEURAL_ENGINE_MAX_DIMENSION 16384u

/* Arrays of 2^32 bytes and more abort the process (pytorch#143859), temporary ones too (pytorch#154322), and one of
 * 4.1e9 bytes came out as zeros (pytorch#123716). Half of that until somebody measures on a Mac. */
#define MAX_ARRAY_BYTES 0x7fffffffull

/* One command buffer runs a whole product, and the system ends those that run for some five seconds: about as long as
 * 16384^3 takes at 2 TFLOPS. */
#define MAX_MACS 4398046511104.0 /* 2^42 */

/* GPU families by number, for SDKs that do not know the later names (Metal Feature Set Tables). */
#define FAMILY_APPLE8 ((MTLGPUFamily)1008)  /* M2, A15, A16 */
#define FAMILY_APPLE9 ((MTLGPUFamily)1009)  /* M3, M4, A17, A18 */
#define FAMILY_APPLE10 ((MTLGPUFamily)1010) /* M5 */

struct ANEDevice {
    id<MTLDevice> device;
    id<MTLCommandQueue> queue;
    os_log_t log;
    MPSGraphDevice *graph_device;
};

/* Weights are embedded in executables: MPSGraph shares none between them. */
#define SHIM_DEVICE_FLAGS 0
#include "shim_support.h"

static const char *const operand_names[OPERANDS] = {"A", "B", "C", "bias", "residual"};

struct ANEProduct {
    ANEDevice *device;
    ANEMatMulDesc desc;
    MPSGraphExecutable *executable; /* encoding is guarded by @synchronized on it */
    NSArray *shapes[OPERANDS];
    Layout packed[OPERANDS]; /* as the graph sees the operands */
    int feeds[OPERANDS];     /* the operands in the executable's own order */
    NSUInteger feed_count;
    ANEDeviceKind requested;
    BOOL level0;
    BOOL from_package;
    uint32_t arithmetic;
    uint64_t compile_ns;
};

/* ---- questions ----------------------------------------------------------------------------- */

/* The fault of MPSGraph's that a product meets here, with its public report; NULL where none is known. The table of
 * src/backend/known_faults.rs lists them. iOS is taken to have what the macOS of its year has. */
static const char *known_fault(ANEDevice *device, const ANEMatMulDesc *d, const ANECompileOptions *options)
{
    const BOOL apple9 = [device->device supportsFamily:FAMILY_APPLE9];
    if (d->k >= 32767 && d->m >= 16 && d->n >= 16 && !apple9) {
        return "sums of 32767 and more terms are wrong on GPUs before M3 and A17 where m and n are 16 and more "
               "(pytorch#195163)";
    }
    if ((d->m > 32768 || d->n > 32768 || d->k > 32768) && !(apple9 && os_at_least(1404, 1704))) {
        return "products with a dimension over 32768 are wrong before macOS 14.4 and iOS 17.4, and on GPUs before M3 and "
               "A17 (pytorch#116769, pytorch#118830)";
    }
    if (d->batch > 1 && os_at_least(1302, 1603) && !os_at_least(1303, 1604)) {
        return "batched products are wrong on macOS 13.2 and iOS 16.3 (pytorch#95188)";
    }
    if (d->batch > 1 && d->type_a == ANE_TYPE_F16 && [device->device supportsFamily:FAMILY_APPLE10]) {
        return "batched f16 products differ from run to run on M5 (pytorch#180776)";
    }
    if (d->m == 1 && (d->flags & (ANE_MATMUL_BIAS | ANE_MATMUL_RESIDUAL)) && os_at_least(2600, 2600) &&
        !os_at_least(2700, 2700) && ![device->device supportsFamily:FAMILY_APPLE8]) {
        return "what is added to products of one row is dropped on M1 and A14 with system 26 (pytorch#188438)";
    }
    if (options->device == ANE_DEVICE_NEURAL_ENGINE && d->m >= 16384 && d->n >= 16384) {
        return "f16 products of 16384 x 16384 time out on the Neural Engine, and give NaN (pytorch#110975)";
    }
    if ((double)d->batch * (double)d->m * (double)d->n * (double)d->k > MAX_MACS) {
        return "products of over 2^42 multiply-adds may keep the GPU for longer than the system lets them (mlx#3302)";
    }
    if ([[device->device name] rangeOfString:@"AMD"].location != NSNotFound) {
        return "products are wrong on GPUs of AMD (pytorch#178697)";
    }
    return NULL;
}

static BOOL has_packages(void)
{
    return SDK_HAS_PACKAGES && os_at_least(1400, 1700);
}

static BOOL is_float_type(ANEType type)
{
    return type == ANE_TYPE_F32 || type == ANE_TYPE_F16;
}

/* Whether a number becomes neither infinite nor subnormal in f16, which the graph would scale with. */
static BOOL is_normal_f16(float x)
{
    const float size = x < 0 ? -x : x;
    return size == 0 || (size >= 0x1p-14f && size < 65520.0f);
}

static MPSDataType data_type(ANEType type)
{
    return type == ANE_TYPE_F16 ? MPSDataTypeFloat16 : MPSDataTypeFloat32;
}

static MPSDataType operand_type(const ANEMatMulDesc *d, int which)
{
    return data_type(which == A ? d->type_a : which == B ? d->type_b : which == BIAS ? d->type_bias : d->type_c);
}

/* The operands as packed arrays of the whole m. k = 0 becomes one term of zeros. False on overflow. */
static BOOL packed_layouts(const ANEMatMulDesc *d, Layout packed[OPERANDS])
{
    ANEMatMulDesc p = *d;
    uint64_t items;
    p.k = d->k ? d->k : 1;
    p.lda = (d->flags & ANE_MATMUL_TRANSPOSE_A) ? p.m : p.k;
    p.ldb = (d->flags & ANE_MATMUL_TRANSPOSE_B) ? p.k : p.n;
    p.ldc = p.ld_residual = p.n;
    if (__builtin_mul_overflow(p.m, p.k, &items) || __builtin_mul_overflow(p.k, p.n, &items) ||
        __builtin_mul_overflow(p.m, p.n, &items)) {
        return NO;
    }
    p.stride_a = d->batch > 1 && d->stride_a == 0 ? 0 : p.m * p.k;
    p.stride_b = d->batch > 1 && d->stride_b == 0 ? 0 : p.k * p.n;
    p.stride_c = p.m * p.n;
    p.stride_residual = d->batch > 1 && d->stride_residual == 0 ? 0 : p.m * p.n;
    return layouts_of(&p, p.m, packed);
}

static ANEStatus check_types(const ANEMatMulDesc *d, const ANECompileOptions *options, ANEError *err)
{
    const BOOL bias = (d->flags & ANE_MATMUL_BIAS) != 0;
    if (d->quant_a != ANE_QUANT_A_NONE || d->quant_b != ANE_QUANT_B_NONE || d->quant_c != ANE_QUANT_C_NONE) {
        return REFUSE(err, ANE_REFUSAL_QUANTIZATION, "this shim has no quantised form");
    }
    if (!is_float_type(d->type_a) || d->type_b != d->type_a || !is_float_type(d->type_c) ||
        (bias && !is_float_type(d->type_bias))) {
        return REFUSE(err, ANE_REFUSAL_ELEMENT_TYPE, "MPSGraph products take A and B of one type, and f32 or f16 throughout");
    }
    if (d->type_accumulator != ANE_TYPE_F32 && !(d->type_accumulator == ANE_TYPE_F16 && d->type_a == ANE_TYPE_F16)) {
        return REFUSE(err, ANE_REFUSAL_ELEMENT_TYPE, "sums are f32, or f16 where A and B are f16");
    }
    if (options->device == ANE_DEVICE_NEURAL_ENGINE &&
        (d->type_a != ANE_TYPE_F16 || d->type_accumulator != ANE_TYPE_F16 || d->type_c != ANE_TYPE_F16 ||
         (bias && d->type_bias != ANE_TYPE_F16))) {
        return REFUSE(err, ANE_REFUSAL_NEURAL_ENGINE_TYPE,
                      "only products that are f16 throughout, accumulator and output included, are candidates for the "
                      "Neural Engine: describe one, or request the GPU");
    }
    return ANE_STATUS_OK;
}

static ANEStatus check_support(ANEDevice *device, const ANEMatMulDesc *d, const ANECompileOptions *options,
                               ANEError *err)
{
    const uint32_t known = ANE_MATMUL_TRANSPOSE_A | ANE_MATMUL_TRANSPOSE_B | ANE_MATMUL_CONSTANT_B | ANE_MATMUL_BIAS |
                           ANE_MATMUL_RESIDUAL | ANE_MATMUL_VARIABLE_M;
    const uint64_t dimensions[] = {d->batch, d->m, d->n, d->k};
    const uint64_t sum_bytes = element_bytes(d->type_accumulator);
    const char *fault;
    uint64_t most = [device->device maxBufferLength];
    Layout layouts[OPERANDS], packed[OPERANDS];
    ANEStatus status;
    if (d->struct_size < sizeof *d || options->struct_size < sizeof *options) {
        return FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "a struct is smaller than in this version of the ABI");
    }
    if (d->flags & ~known) {
        return REFUSE(err, ANE_REFUSAL_OTHER, "the description has flags that this shim does not know (0x%x)",
                      (unsigned)(d->flags & ~known));
    }
    if (options->device != ANE_DEVICE_UNKNOWN && options->device != ANE_DEVICE_GPU &&
        options->device != ANE_DEVICE_NEURAL_ENGINE) {
        return REFUSE(err, ANE_REFUSAL_DEVICE, "MPSGraph runs on the GPU, with the Neural Engine as a candidate: request one of them");
    }
    status = check_types(d, options, err);
    if (status != ANE_STATUS_OK) {
        return status;
    }
    if (d->type_accumulator == ANE_TYPE_F16 && !is_normal_f16(d->alpha)) {
        return REFUSE(err, ANE_REFUSAL_EPILOGUE, "alpha is too large or too small for sums in f16: describe an f32 accumulator");
    }
    if (d->activation < ANE_ACTIVATION_NONE || d->activation > ANE_ACTIVATION_TANH) {
        return REFUSE(err, ANE_REFUSAL_EPILOGUE, "activation %d is not known to this shim", (int)d->activation);
    }
    for (int i = 0; i < 4; ++i) {
        if (dimensions[i] > INT32_MAX) {
            return REFUSE(err, ANE_REFUSAL_DIMENSION, "batch, m, n and k may be up to %d", INT32_MAX);
        }
        if (options->device == ANE_DEVICE_NEURAL_ENGINE && dimensions[i] > NEURAL_ENGINE_MAX_DIMENSION) {
            return REFUSE(err, ANE_REFUSAL_DIMENSION,
                          "with the Neural Engine as a candidate dimensions may be up to %u (stable-diffusion-webui#13527): "
                          "request the GPU", NEURAL_ENGINE_MAX_DIMENSION);
        }
    }
    if (!layouts_of(d, d->m, layouts) || !packed_layouts(d, packed)) {
        return REFUSE(err, ANE_REFUSAL_BYTES, "the size of an operand overflows 64 bits");
    }
    most = most < MAX_ARRAY_BYTES ? most : MAX_ARRAY_BYTES;
    for (int i = 0; i < OPERANDS; ++i) {
        /* The graph casts to the accumulator's type. Sums of f32 are the widest, so that nothing overflows here. */
        const uint64_t cast = packed[i].bytes && packed[i].element_bytes < sum_bytes ? 2 : 1;
        if (packed[i].bytes > most / cast) {
            return REFUSE(err, ANE_REFUSAL_BYTES, "%s takes %llu bytes%s; MPSGraph and this device allow %llu", operand_names[i],
                          (unsigned long long)packed[i].bytes, cast == 2 ? ", twice that in f32" : "", (unsigned long long)most);
        }
    }
    fault = options->flags & ANE_OPTION_ALLOW_KNOWN_FAULTS ? NULL : known_fault(device, d, options);
    return fault ? REFUSE(err, ANE_REFUSAL_VENDOR_FAULT,
                          "%s; use another backend, or set CompileOptions::allow_known_faults with a self-check", fault)
                 : ANE_STATUS_OK;
}

/* ---- device -------------------------------------------------------------------------------- */

static void mpsgraph_device_close(ANEDevice *device)
{
    if (device) {
        ANEStatus ignored;
        CONTAINED(NULL, ignored, {
            [device->graph_device release];
            [device->queue release];
            [device->device release];
        })
        (void)ignored;
        free(device);
    }
}

static ANEStatus open_device(ANEDevice *device, uint32_t index, ANEError *err)
{
    ANEStatus status = open_queue(device, index, "mpsgraph", err);
    if (status != ANE_STATUS_OK) {
        return status;
    }
    device->graph_device = [[MPSGraphDevice deviceWithMTLDevice:device->device] retain];
    return device->graph_device ? ANE_STATUS_OK : FAIL(err, ANE_STATUS_OUT_OF_MEMORY, "MPSGraph made no device");
}

static ANEStatus mpsgraph_device_open(uint32_t index, ANEDevice **out, ANEError *err)
{
    ANEDevice *device = calloc(1, sizeof *device);
    ANEStatus status = ANE_STATUS_INTERNAL;
    if (!device) {
        return FAIL(err, ANE_STATUS_OUT_OF_MEMORY, "no memory for a device");
    }
    CONTAINED(err, status, status = open_device(device, index, err))
    if (status != ANE_STATUS_OK) {
        mpsgraph_device_close(device);
        return status;
    }
    *out = device;
    return ANE_STATUS_OK;
}

/* MPSGraph tells of nothing that it initialises apart from compiling. */
static ANEStatus mpsgraph_device_prepare(ANEDevice *device, ANEError *err)
{
    (void)device;
    (void)err;
    return ANE_STATUS_OK;
}

static ANEStatus mpsgraph_constant_create(ANEDevice *device, const ANEConstantDesc *desc, ANEConstant **out, ANEError *err)
{
    (void)device;
    (void)desc;
    (void)out;
    return FAIL(err, ANE_STATUS_NOT_IMPLEMENTED, "MPSGraph compiles constants into each product");
}

static void mpsgraph_constant_destroy(ANEConstant *constant)
{
    (void)constant;
}

static ANEStatus mpsgraph_supports(ANEDevice *device, const ANEMatMulDesc *desc, const ANECompileOptions *options,
                                   ANEError *err)
{
    ANEStatus status = ANE_STATUS_INTERNAL;
    CONTAINED(err, status, status = check_support(device, desc, options, err))
    return status;
}

/* ---- the graph ----------------------------------------------------------------------------- */

static NSArray *shape_of(const Layout *l, uint64_t batch)
{
    NSNumber *rows = [NSNumber numberWithUnsignedLongLong:l->rows], *cols = [NSNumber numberWithUnsignedLongLong:l->cols];
    return batch > 1 ? [NSArray arrayWithObjects:[NSNumber numberWithUnsignedLongLong:l->items], rows, cols, nil]
                     : [NSArray arrayWithObjects:rows, cols, nil];
}

/* op(X) in the accumulator's type. */
static MPSGraphTensor *factor(MPSGraph *graph, MPSGraphTensor *stored, BOOL transposed, MPSDataType type, NSUInteger rank)
{
    MPSGraphTensor *x = stored;
    if ([x dataType] != type) {
        x = [graph castTensor:x toType:type name:nil];
    }
    return transposed ? [graph transposeTensor:x dimension:rank - 2 withDimension:rank - 1 name:nil] : x;
}

static MPSGraphTensor *scaled(MPSGraph *graph, MPSGraphTensor *x, double by, MPSDataType type)
{
    return [graph multiplicationWithPrimaryTensor:x secondaryTensor:[graph constantWithScalar:by dataType:type] name:nil];
}

/* x where it is not below `limit`, else 0; NaN stays. */
static MPSGraphTensor *zero_below(MPSGraph *graph, MPSGraphTensor *decides, double limit, MPSGraphTensor *x, MPSDataType type)
{
    MPSGraphTensor *below = [graph lessThanWithPrimaryTensor:decides
                                             secondaryTensor:[graph constantWithScalar:limit dataType:type]
                                                        name:nil];
    return [graph selectWithPredicateTensor:below
                        truePredicateTensor:[graph constantWithScalar:0 dataType:type]
                       falsePredicateTensor:x
                                       name:nil];
}

/* The formulas of ANEActivation in ane_matmul.h. MPSGraph's own ReLU is not documented to keep NaN, and
 * the products below would make NaN of minus infinity: values below the lowest finite number are 0. */
static MPSGraphTensor *activated(MPSGraph *graph, MPSGraphTensor *x, ANEActivation activation, MPSDataType type)
{
    const double lowest = type == MPSDataTypeFloat16 ? -65504.0 : -3.4028234663852886e38;
    MPSGraphTensor *y, *one = [graph constantWithScalar:1 dataType:type];
    switch (activation) {
    case ANE_ACTIVATION_RELU:
        return zero_below(graph, x, 0, x, type);
    case ANE_ACTIVATION_GELU_ERF:
        y = [graph erfWithTensor:scaled(graph, x, 0.70710678118654752, type) name:nil];
        y = [graph additionWithPrimaryTensor:y secondaryTensor:one name:nil];
        y = [graph multiplicationWithPrimaryTensor:scaled(graph, x, 0.5, type) secondaryTensor:y name:nil];
        return zero_below(graph, x, lowest, y, type);
    case ANE_ACTIVATION_GELU_TANH:
        y = [graph multiplicationWithPrimaryTensor:x secondaryTensor:x name:nil];
        y = [graph additionWithPrimaryTensor:scaled(graph, y, 0.044715, type) secondaryTensor:one name:nil];
        y = [graph multiplicationWithPrimaryTensor:scaled(graph, x, 0.79788456080286536, type) secondaryTensor:y name:nil];
        y = [graph additionWithPrimaryTensor:[graph tanhWithTensor:y name:nil] secondaryTensor:one name:nil];
        y = [graph multiplicationWithPrimaryTensor:scaled(graph, x, 0.5, type) secondaryTensor:y name:nil];
        return zero_below(graph, x, lowest, y, type);
    case ANE_ACTIVATION_SILU:
        y = [graph multiplicationWithPrimaryTensor:x secondaryTensor:[graph sigmoidWithTensor:x name:nil] name:nil];
        return zero_below(graph, x, lowest, y, type);
    case ANE_ACTIVATION_SIGMOID:
        return [graph sigmoidWithTensor:x name:nil];
    case ANE_ACTIVATION_TANH:
        return [graph tanhWithTensor:x name:nil];
    default:
        return x;
    }
}

/* Constant B as a packed array. */
static NSData *packed_b(const ANEProduct *product, const ANEConstants *constants)
{
    const ANEMatMulDesc *d = &product->desc;
    Layout layouts[OPERANDS];
    NSMutableData *data = [NSMutableData dataWithLength:(NSUInteger)product->packed[B].bytes];
    layouts_of(d, d->m, layouts);
    repack([data mutableBytes], &product->packed[B], constants->b, &layouts[B], &layouts[B]);
    return data;
}

static MPSGraphTensor *placeholder(const ANEProduct *product, MPSGraph *graph, int which, ANEType type)
{
    return [graph placeholderWithShape:product->shapes[which]
                              dataType:data_type(type)
                                  name:[NSString stringWithUTF8String:operand_names[which]]];
}

/* Builds the graph; fills `feeds` with the placeholders, and returns C. */
static MPSGraphTensor *build_graph(const ANEProduct *product, MPSGraph *graph, const ANEConstants *constants,
                                   MPSGraphTensor *feeds[OPERANDS])
{
    const ANEMatMulDesc *d = &product->desc;
    const NSUInteger rank = d->batch > 1 ? 3 : 2;
    const MPSDataType type = data_type(d->type_accumulator);
    MPSGraphTensor *b, *c;
    feeds[A] = placeholder(product, graph, A, d->type_a);
    if (d->flags & ANE_MATMUL_CONSTANT_B) {
        b = [graph constantWithData:packed_b(product, constants) shape:product->shapes[B] dataType:data_type(d->type_b)];
    } else {
        b = feeds[B] = placeholder(product, graph, B, d->type_b);
    }
    c = [graph matrixMultiplicationWithPrimaryTensor:factor(graph, feeds[A], (d->flags & ANE_MATMUL_TRANSPOSE_A) != 0, type, rank)
                                     secondaryTensor:factor(graph, b, (d->flags & ANE_MATMUL_TRANSPOSE_B) != 0, type, rank)
                                                name:nil];
    if (d->batch > 1 && product->packed[A].items == 1 && product->packed[B].items == 1) {
        c = [graph broadcastTensor:c toShape:product->shapes[C] name:nil];
    }
    if (d->alpha != 1.0f) {
        c = scaled(graph, c, d->alpha, type);
    }
    if (d->flags & ANE_MATMUL_BIAS) {
        feeds[BIAS] = placeholder(product, graph, BIAS, d->type_bias);
        c = [graph additionWithPrimaryTensor:c secondaryTensor:factor(graph, feeds[BIAS], NO, type, rank) name:nil];
    }
    if (d->flags & ANE_MATMUL_RESIDUAL) {
        feeds[RESIDUAL] = placeholder(product, graph, RESIDUAL, d->type_c);
        c = [graph additionWithPrimaryTensor:c secondaryTensor:factor(graph, feeds[RESIDUAL], NO, type, rank) name:nil];
    }
    c = activated(graph, c, d->activation, type);
    return type == data_type(d->type_c) ? c : [graph castTensor:c toType:data_type(d->type_c) name:nil];
}

/* ---- compile ------------------------------------------------------------------------------- */

static MPSGraphCompilationDescriptor *compilation_descriptor(ANEProduct *product, const ANECompileOptions *options)
{
    MPSGraphCompilationDescriptor *descriptor = [[[MPSGraphCompilationDescriptor alloc] init] autorelease];
    /* Level 0 leaves everything on the GPU, level 1 lets the placement pass choose; the default differs
     * between systems (MPSGraph.h). */
    [descriptor setOptimizationLevel:product->level0 ? MPSGraphOptimizationLevel0 : MPSGraphOptimizationLevel1];
    [descriptor setWaitForCompilationCompletion:YES];
    /* From system 26 on, whatever number a program is told. What it allows is f16 between the passes of a kernel
     * (MPSGraph.h), and so for sums: more than ANE_OPTION_REDUCED_PRECISION, which is about operands. */
    if ([descriptor respondsToSelector:@selector(setReducedPrecisionFastMath:)]) {
        const BOOL fast = (options->flags & ANE_OPTION_FAST_MATH) != 0;
        product->arithmetic = fast ? ANE_ARITHMETIC_FAST_MATH : 0;
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wunguarded-availability"
#pragma clang diagnostic ignored "-Wunguarded-availability-new"
        [descriptor setReducedPrecisionFastMath:fast ? MPSGraphReducedPrecisionFastMathAllowFP16Intermediates
                                                     : MPSGraphReducedPrecisionFastMathNone];
#pragma clang diagnostic pop
    }
    return descriptor;
}

/* Finds each of the executable's feeds among the placeholders. The order is the executable's own. */
static BOOL map_feeds(ANEProduct *product, MPSGraphTensor *const placeholders[OPERANDS], NSUInteger expected)
{
    product->feed_count = 0;
    for (MPSGraphTensor *feed in [product->executable feedTensors]) {
        int which = 0;
        while (which < OPERANDS && feed != placeholders[which]) {
            ++which;
        }
        if (which == OPERANDS || product->feed_count == OPERANDS) {
            return NO;
        }
        for (NSUInteger i = 0; i < product->feed_count; ++i) {
            if (product->feeds[i] == which) {
                return NO;
            }
        }
        product->feeds[product->feed_count++] = which;
    }
    return product->feed_count == expected && [[product->executable targetTensors] count] == 1;
}

/* Feeds the executable of a package, whose one operand is A: with one, position is enough. Where it tells its feeds
 * and targets, which is promised of an executable "created with a graph" only (MPSGraphExecutable.h), they must fit. */
static BOOL map_package(ANEProduct *product)
{
    NSArray *feeds = [product->executable feedTensors], *targets = [product->executable targetTensors];
    product->feed_count = 1;
    product->feeds[0] = A;
    if (feeds) {
        MPSGraphTensor *feed = [feeds count] == 1 ? [feeds objectAtIndex:0] : nil;
        if (![[feed shape] isEqual:product->shapes[A]] || [feed dataType] != operand_type(&product->desc, A)) {
            return NO;
        }
    }
    return !targets ||
           ([targets count] == 1 && [(MPSGraphTensor *)[targets objectAtIndex:0] dataType] == data_type(product->desc.type_c));
}

/* Checks the product and fills what does not depend on the executable. */
static ANEStatus prepare(ANEProduct *product, const ANEConstants *constants, const ANECompileOptions *options, ANEError *err)
{
    const ANEMatMulDesc *d = &product->desc;
    Layout layouts[OPERANDS];
    ANEStatus status = check_support(product->device, d, options, err);
    if (status != ANE_STATUS_OK) {
        return status;
    }
    layouts_of(d, d->m, layouts);
    packed_layouts(d, product->packed);
    product->requested = options->device;
    product->level0 = options->device != ANE_DEVICE_NEURAL_ENGINE;
    if ((d->flags & ANE_MATMUL_CONSTANT_B) &&
        (constants->b_bytes < layouts[B].bytes || (!constants->b && layouts[B].bytes))) {
        return FAIL(err, ANE_STATUS_INVALID_ARGUMENT, "constant B has %llu bytes, not the %llu of the description",
                    (unsigned long long)constants->b_bytes, (unsigned long long)layouts[B].bytes);
    }
    for (int i = 0; i < OPERANDS; ++i) {
        product->shapes[i] = i == BIAS ? [[NSArray arrayWithObjects:[NSNumber numberWithUnsignedLongLong:d->n], nil] retain]
                                       : [shape_of(&product->packed[i], d->batch) retain];
    }
    return ANE_STATUS_OK;
}

static NSUInteger expected_feeds(const ANEMatMulDesc *d)
{
    return 1u + !(d->flags & ANE_MATMUL_CONSTANT_B) + ((d->flags & ANE_MATMUL_BIAS) != 0) +
           ((d->flags & ANE_MATMUL_RESIDUAL) != 0);
}

/* Whether products of this description are kept in packages. */
static ANEStatus check_package(const ANEMatMulDesc *d, ANEError *err)
{
    if (!has_packages()) {
        return FAIL(err, ANE_STATUS_NOT_IMPLEMENTED, "packages of executables need macOS 14 or iOS 17, and a shim built with an SDK of that or later");
    }
    if (expected_feeds(d) != 1) {
        return FAIL(err, ANE_STATUS_NOT_IMPLEMENTED,
                    "in which order an executable from a package takes several operands is not documented: only products "
                    "with a constant B and neither bias nor residual are kept");
    }
    return ANE_STATUS_OK;
}

static ANEStatus compile_product(ANEProduct *product, const ANEConstants *constants, const ANECompileOptions *options,
                                 ANEError *err)
{
    MPSGraph *graph;
    MPSGraphTensor *placeholders[OPERANDS] = {nil}, *result;
    NSMutableDictionary *feeds;
    ANEStatus status = prepare(product, constants, options, err);
    /* Nothing is computed where C is empty. */
    if (status != ANE_STATUS_OK || !product->packed[C].bytes) {
        return status;
    }
    graph = [[[MPSGraph alloc] init] autorelease];
    result = build_graph(product, graph, constants, placeholders);
    feeds = [NSMutableDictionary dictionary];
    for (int i = 0; i < OPERANDS; ++i) {
        if (placeholders[i]) {
            MPSGraphShapedType *type = [[[MPSGraphShapedType alloc] initWithShape:product->shapes[i]
                                                                        dataType:[placeholders[i] dataType]] autorelease];
            [feeds setObject:type forKey:placeholders[i]];
        }
    }
    product->executable = [[graph compileWithDevice:product->device->graph_device
                                              feeds:feeds
                                      targetTensors:[NSArray arrayWithObject:result]
                                   targetOperations:nil
                              compilationDescriptor:compilation_descriptor(product, options)] retain];
    if (!product->executable) {
        return FAIL(err, ANE_STATUS_COMPILE_FAILED, "MPSGraph made no executable; the system log may say why");
    }
    if (!map_feeds(product, placeholders, expected_feeds(&product->desc))) {
        return FAIL(err, ANE_STATUS_INTERNAL, "the executable's feeds or targets are not those of the graph: report this, with the OS build");
    }
    return ANE_STATUS_OK;
}

#if SDK_HAS_PACKAGES
static NSURL *package_url(const char *path)
{
    return [NSURL fileURLWithPath:[NSString stringWithUTF8String:path] isDirectory:YES];
}
#endif

static BOOL exists(const char *path)
{
    return [[NSFileManager defaultManager] fileExistsAtPath:[NSString stringWithUTF8String:path]];
}

static ANEStatus load_product(ANEProduct *product, const ANEConstants *constants, const ANECompileOptions *options,
                              const char *path, ANEError *err)
{
    ANEStatus status = prepare(product, constants, options, err);
    if (status != ANE_STATUS_OK) {
        return status;
    }
    status = check_package(&product->desc, err);
    if (status != ANE_STATUS_OK) {
        return status;
    }
    if (!exists(path)) {
        return FAIL(err, ANE_STATUS_IO, "there is no package at %.400s", path);
    }
#if SDK_HAS_PACKAGES
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wunguarded-availability"
#pragma clang diagnostic ignored "-Wunguarded-availability-new"
    product->executable = [[MPSGraphExecutable alloc] initWithMPSGraphPackageAtURL:package_url(path)
                                                             compilationDescriptor:compilation_descriptor(product, options)];
#pragma clang diagnostic pop
#endif
    if (!product->executable || !map_package(product)) {
        return FAIL(err, ANE_STATUS_PACKAGE_MISMATCH, "the package at %.400s is damaged or of another product", path);
    }
    product->from_package = YES;
    return ANE_STATUS_OK;
}

static void mpsgraph_product_destroy(ANEProduct *product)
{
    if (product) {
        ANEStatus ignored;
        CONTAINED(NULL, ignored, {
            [product->executable release];
            for (int i = 0; i < OPERANDS; ++i) {
                [product->shapes[i] release];
            }
        })
        (void)ignored;
        free(product);
    }
}

/* Compiles, or loads where there is a path. */
static ANEStatus make_product(ANEDevice *device, const ANEMatMulDesc *desc, const ANEConstants *constants,
                              const ANECompileOptions *options, const char *path, ANEProduct **out, ANEError *err)
{
    const uint64_t start_ns = now_ns();
    const os_signpost_id_t interval = os_signpost_id_generate(device->log);
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
    os_signpost_interval_begin(device->log, interval, "compile");
    CONTAINED(err, status, {
        status = path ? load_product(product, constants, options, path, err)
                      : compile_product(product, constants, options, err);
    })
    os_signpost_interval_end(device->log, interval, "compile");
    if (status != ANE_STATUS_OK) {
        mpsgraph_product_destroy(product);
        return status;
    }
    product->compile_ns = now_ns() - start_ns;
    *out = product;
    return ANE_STATUS_OK;
}

static ANEStatus mpsgraph_compile(ANEDevice *device, const ANEMatMulDesc *desc, const ANEConstants *constants,
                                  const ANECompileOptions *options, ANEProduct **out, ANEError *err)
{
    return make_product(device, desc, constants, options, NULL, out, err);
}

static ANEStatus mpsgraph_product_load(ANEDevice *device, const ANEMatMulDesc *desc, const ANEConstants *constants,
                                       const ANECompileOptions *options, const char *path, ANEProduct **out, ANEError *err)
{
    return make_product(device, desc, constants, options, path, out, err);
}

static ANEStatus save_product(ANEProduct *product, const char *path, ANEError *err)
{
    ANEStatus status = check_package(&product->desc, err);
    if (status != ANE_STATUS_OK) {
        return status;
    }
    if (!product->executable) {
        return FAIL(err, ANE_STATUS_NOT_IMPLEMENTED, "an empty product has nothing to save");
    }
#if SDK_HAS_PACKAGES
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wunguarded-availability"
#pragma clang diagnostic ignored "-Wunguarded-availability-new"
    {
        MPSGraphExecutableSerializationDescriptor *descriptor =
            [[[MPSGraphExecutableSerializationDescriptor alloc] init] autorelease];
        @synchronized(product->executable) {
            [product->executable serializeToMPSGraphPackageAtURL:package_url(path) descriptor:descriptor];
        }
    }
#pragma clang diagnostic pop
#endif
    /* It reports nothing. */
    return exists(path) ? ANE_STATUS_OK : FAIL(err, ANE_STATUS_IO, "MPSGraph wrote no package at %.400s", path);
}

static ANEStatus mpsgraph_product_save(ANEProduct *product, const char *path, ANEError *err)
{
    ANEStatus status = ANE_STATUS_INTERNAL;
    CONTAINED(err, status, status = save_product(product, path, err))
    return status;
}

static ANEStatus mpsgraph_product_info(ANEProduct *product, ANEProductInfo *info, ANEError *err)
{
    ANEProductInfo i;
    (void)err;
    memset(&i, 0, sizeof i);
    i.struct_size = info->struct_size;
    i.flags = product->from_package ? ANE_PRODUCT_FLAG_FROM_PACKAGE : 0;
    i.requested = product->requested;
    /* Level 0 is the GPU (MPSGraph.h); what the placement pass chose cannot be asked. */
    i.observed = product->level0 ? ANE_DEVICE_GPU : ANE_DEVICE_UNKNOWN;
    i.compile_ns = product->compile_ns;
    i.bytes_held = sizeof *product + ((product->desc.flags & ANE_MATMUL_CONSTANT_B) ? product->packed[B].bytes : 0);
    i.executor_bytes = sizeof(ANEMatMulExecutor) + sizeof(Slot) + product->packed[C].bytes;
    i.arithmetic = product->arithmetic;
    for (NSUInteger f = 0; f < product->feed_count; ++f) {
        i.executor_bytes += product->packed[product->feeds[f]].bytes;
    }
    memcpy(info, &i, info->struct_size < sizeof i ? info->struct_size : sizeof i);
    return ANE_STATUS_OK;
}

/* ---- run ----------------------------------------------------------------------------------- */

static ANEStatus mpsgraph_executor_create(ANEProduct *product, const ANEExecutorOptions *options, ANEMatMulExecutor **out,
                                          ANEError *err)
{
    return create_executor(product->device, product, &product->desc, 0, options, out, err);
}

static MPSGraphTensorData *tensor_data(const ANEProduct *product, int which, id<MTLBuffer> buffer)
{
    return [[MPSGraphTensorData alloc] initWithMTLBuffer:buffer
                                                   shape:product->shapes[which]
                                                dataType:operand_type(&product->desc, which)];
}

/* Whether a layout of the caller's is the graph's own. */
static BOOL same_layout(const Layout *l, const Layout *packed)
{
    return l->items == packed->items && l->rows == packed->rows && l->cols == packed->cols &&
           (l->rows <= 1 || l->ld == packed->ld) && (l->items <= 1 || l->stride == packed->stride);
}

/* What MPSGraph reads or writes of an operand: the caller's buffer where that has the graph's layout, else one of the
 * slot's. It lives as long as the slot's commands; nil with `err` filled. */
static MPSGraphTensorData *bind_operand(ANEMatMulExecutor *executor, Slot *slot, int which, const ANEOperand *operand,
                                        const Layout *layout, ANEStatus *status, ANEError *err)
{
    const ANEProduct *product = executor->product;
    const Layout *packed = &product->packed[which];
    MPSGraphTensorData *data;
    *status = check_operand(product->device, operand_names[which], operand, layout, err);
    if (*status != ANE_STATUS_OK) {
        return nil;
    }
    if (operand->buffer && operand->offset_bytes == 0 && same_layout(layout, packed)) {
        data = [tensor_data(product, which, operand->buffer->buffer) autorelease];
    } else {
        *status = stage(product->device, slot, which, operand, layout, packed, packed->bytes, err);
        if (*status != ANE_STATUS_OK) {
            return nil;
        }
        if (!slot->tensors[which]) {
            slot->tensors[which] = tensor_data(product, which, slot->staging[which]);
        }
        data = slot->tensors[which];
    }
    if (data) {
        [slot->held addObject:data];
    } else {
        *status = FAIL(err, ANE_STATUS_OUT_OF_MEMORY, "MPSGraph made no tensor data of %s", operand_names[which]);
    }
    return data;
}

/* Waits for what MPSGraph committed before it threw: its caller's memory may be gone after that. Buffers of a queue run
 * in order, so that one more tells of those that nobody else can ask. */
static void wait_for_committed(const Slot *slot, id<MTLCommandQueue> queue)
{
    if ([slot->commands count] &&
        [(id<MTLCommandBuffer>)[slot->commands objectAtIndex:0] status] >= MTLCommandBufferStatusCommitted) {
        id<MTLCommandBuffer> last = [queue commandBuffer];
        [last commit];
        [last waitUntilCompleted];
    }
}

static ANEStatus encode_and_commit(ANEProduct *product, Slot *slot, NSArray *inputs, NSArray *results, ANEError *err)
{
    MPSCommandBuffer *commands;
    id<MTLCommandBuffer> first, last;
    NSUInteger encoded;
    /* Whether one executable may be encoded by two threads at once is not documented. Whoever waits for the lock holds no
     * command buffer: it could be the one that the owner of the lock waits for. */
    @synchronized(product->executable) {
        commands = [MPSCommandBuffer commandBufferFromCommandQueue:product->device->queue];
        first = [commands rootCommandBuffer];
        if (!commands || !first) {
            return FAIL(err, ANE_STATUS_OUT_OF_MEMORY, "Metal made no command buffer");
        }
        /* Whether MPSGraph retains what it is given until the device is done with it is not documented. */
        [slot->held addObject:commands];
        [slot->commands addObject:first];
        encoded = [[product->executable encodeToCommandBuffer:commands
                                                  inputsArray:inputs
                                                 resultsArray:results
                                          executionDescriptor:nil] count];
    }
    /* MPSGraph may commit and continue in another command buffer while it encodes: the first and the last are waited
     * for and tell of errors; those between cannot be asked. */
    last = [commands rootCommandBuffer];
    if (last != first) {
        [slot->commands addObject:last];
    }
    [commands commit];
    return encoded == 1 ? ANE_STATUS_OK
                        : FAIL(err, ANE_STATUS_RUN_FAILED, "MPSGraph encoded %lu results, not one", (unsigned long)encoded);
}

static ANEStatus start_run(ANEMatMulExecutor *executor, Slot *slot, const ANERunArgs *args, ANEError *err)
{
    ANEProduct *product = executor->product;
    const ANEOperand *operands[OPERANDS] = {&args->a, &args->b, &args->c, &args->bias, &args->residual};
    NSMutableArray *inputs = [NSMutableArray arrayWithCapacity:OPERANDS];
    MPSGraphTensorData *data;
    Layout layouts[OPERANDS];
    ANEStatus status;
    layouts_of(&product->desc, args->m, layouts);
    if (!layouts[C].bytes) {
        return ANE_STATUS_OK;
    }
    /* Executables have fixed shapes: fewer rows run as all of them, with what was there before. */
    for (NSUInteger i = 0; i < product->feed_count; ++i) {
        const int which = product->feeds[i];
        data = bind_operand(executor, slot, which, operands[which], &layouts[which], &status, err);
        if (!data) {
            return status;
        }
        [inputs addObject:data];
    }
    data = bind_operand(executor, slot, C, operands[C], &layouts[C], &status, err);
    if (!data) {
        return status;
    }
    slot->observed = product->level0 ? ANE_DEVICE_GPU : ANE_DEVICE_UNKNOWN;
    CONTAINED(err, status, status = encode_and_commit(product, slot, inputs, [NSArray arrayWithObject:data], err))
    if (status != ANE_STATUS_OK) {
        wait_for_committed(slot, product->device->queue);
    }
    return status;
}

/* ---- table --------------------------------------------------------------------------------- */

const ANEShim *ane_mpsgraph_shim(void)
{
    static const ANEShim shim = {
        .struct_size = sizeof(ANEShim),
        .abi_major = ANE_MATMUL_ABI_MAJOR,
        .abi_minor = ANE_MATMUL_ABI_MINOR,
        .name = "mpsgraph",
        .version = "1.0.0",
        .device_count = shim_device_count,
        .device_info = shim_device_info,
        .device_open = mpsgraph_device_open,
        .device_prepare = mpsgraph_device_prepare,
        .device_close = mpsgraph_device_close,
        .supports = mpsgraph_supports,
        .buffer_create = shim_buffer_create,
        .buffer_wrap = shim_buffer_wrap,
        .buffer_contents = shim_buffer_contents,
        .buffer_write = shim_buffer_write,
        .buffer_read = shim_buffer_read,
        .buffer_destroy = shim_buffer_destroy,
        .constant_create = mpsgraph_constant_create,
        .constant_destroy = mpsgraph_constant_destroy,
        .compile = mpsgraph_compile,
        .product_save = mpsgraph_product_save,
        .product_load = mpsgraph_product_load,
        .product_info = mpsgraph_product_info,
        .product_destroy = mpsgraph_product_destroy,
        .executor_create = mpsgraph_executor_create,
        .executor_run = shim_executor_run,
        .executor_submit = shim_executor_submit,
        .executor_wait = shim_executor_wait,
        .executor_destroy = shim_executor_destroy,
    };
    return &shim;
}
