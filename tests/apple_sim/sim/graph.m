/*
 * graph.m - a test double of the part of MPSGraph that ane_mpsgraph.m uses. It computes on the CPU, and
 * is hostile: the order of feeds varies, results are NaN from encoding until their command buffer is
 * executed, encoding may commit and continue in another one and retains no tensor data, sums in f16 round
 * at every step, an executable from a package tells neither feeds nor targets, and what
 * src/backend/known_faults.rs says is wrong on a chip or system is wrong here. Results say nothing of
 * speed, placement or true precision.
 */
#import <MetalPerformanceShadersGraph/MetalPerformanceShadersGraph.h>

#include <math.h>
#include <objc/runtime.h>
#include <os/signpost.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sim_objects.h"

enum { PLACEHOLDER, DATA, SCALAR, CAST, TRANSPOSE, MATMUL, ADD, MUL, LESS, SELECT, BROADCAST, ERF, TANH, SIGMOID };

static struct {
    int64_t executables, runs, level, reduced, intervals;
    int64_t loaded_tensors;
    uint64_t order;
} graph_sim = {.reduced = -1};

int64_t ane_sim_metal_executables_made(void) { return graph_sim.executables; }
int64_t ane_sim_metal_runs_encoded(void) { return graph_sim.runs; }
int64_t ane_sim_metal_optimization_level(void) { return graph_sim.level; }
int64_t ane_sim_metal_reduced_precision(void) { return graph_sim.reduced; }
int64_t ane_sim_metal_open_intervals(void) { return __atomic_load_n(&graph_sim.intervals, __ATOMIC_SEQ_CST); }
void ane_sim_metal_set_order(int64_t seed) { graph_sim.order = (uint64_t)seed; }
void ane_sim_metal_set_loaded_tensors(int64_t told) { graph_sim.loaded_tensors = told; }

extern long ane_sim_metal_macos(void);

/* macOS 26 tells some programs that it is 16 (dotnet/runtime#116536). */
static BOOL graph_sim_is_26(void)
{
    return ane_sim_metal_macos() >= 1600;
}

static uint64_t draw(void)
{
    const uint64_t x = __atomic_add_fetch(&graph_sim.order, 0x9e3779b97f4a7c15u, __ATOMIC_SEQ_CST);
    return (x ^ (x >> 31)) * 0xbf58476d1ce4e5b9u >> 20;
}

/* ---- signposts ----------------------------------------------------------------------------- */

struct ane_sim_log {
    int unused;
};

os_log_t os_log_create(const char *subsystem, const char *category)
{
    static struct ane_sim_log log;
    return subsystem && category ? &log : NULL;
}

os_signpost_id_t os_signpost_id_generate(os_log_t log)
{
    return log ? draw() : 0;
}

void ane_sim_signpost(os_log_t log, os_signpost_id_t interval, const char *name, int begins)
{
    if (!log || !name[0]) {
        sim_violation("an interval without a log or a name");
    }
    (void)interval;
    __atomic_add_fetch(&graph_sim.intervals, begins ? 1 : -1, __ATOMIC_SEQ_CST);
}

/* ---- values -------------------------------------------------------------------------------- */

typedef struct Value {
    float *v;
    NSUInteger rank, dims[4], count;
} Value;

static void set_dims(Value *value, NSArray *extents)
{
    value->rank = [extents count];
    value->count = 1;
    for (NSUInteger i = 0; i < value->rank; ++i) {
        value->dims[i] = (NSUInteger)[[extents objectAtIndex:i] unsignedLongLongValue];
        value->count *= value->dims[i];
    }
}

static NSUInteger element_size(MPSDataType type)
{
    return type == MPSDataTypeFloat16 ? 2 : 4;
}

static float rounded(float x, MPSDataType type)
{
    return type == MPSDataTypeFloat16 ? (float)(_Float16)x : x;
}

static void load_elements(Value *value, const void *from, MPSDataType type)
{
    for (NSUInteger i = 0; i < value->count; ++i) {
        value->v[i] = type == MPSDataTypeFloat16 ? (float)((const _Float16 *)from)[i] : ((const float *)from)[i];
    }
}

static void store_elements(const Value *value, void *to, MPSDataType type)
{
    for (NSUInteger i = 0; i < value->count; ++i) {
        if (type == MPSDataTypeFloat16) {
            ((_Float16 *)to)[i] = (_Float16)value->v[i];
        } else {
            ((float *)to)[i] = value->v[i];
        }
    }
}

/* The element of a broadcast operand that belongs to element i of the result. */
static float broadcast(const Value *x, const Value *result, NSUInteger i)
{
    NSUInteger at = 0, stride = 1;
    for (NSUInteger d = 0; d < result->rank; ++d) {
        const NSUInteger from_end = result->rank - 1 - d, coordinate = i % result->dims[from_end];
        i /= result->dims[from_end];
        if (d < x->rank) {
            const NSUInteger extent = x->dims[x->rank - 1 - d];
            at += (extent == 1 ? 0 : coordinate) * stride;
            stride *= extent;
        }
    }
    return x->v[at];
}

/* Whether this device and system get a product of these matrices wrong; the reports are in src/backend/known_faults.rs. */
static BOOL is_wrong(NSUInteger rank, NSUInteger m, NSUInteger n, NSUInteger k, MPSDataType type)
{
    const long family = sim_family(), system = ane_sim_metal_macos();
    const BOOL long_dimension = m > 32768 || n > 32768 || k > 32768;
    return (family < 1009 && k >= 32767 && m >= 16 && n >= 16) || (long_dimension && (family < 1009 || system < 1404)) ||
           (rank == 3 && system >= 1302 && system < 1303) ||
           (rank == 3 && family >= 1010 && type == MPSDataTypeFloat16) || strstr(sim_device_name(), "AMD");
}

/* On M1 with system 26 what is added to a product of one row is dropped (pytorch#188438). */
static BOOL drops_sum(NSArray *nodes, const MPSGraphTensor *node)
{
    const MPSGraphTensor *x = [nodes objectAtIndex:node->inputs[0]];
    return x->kind == MATMUL && [[x->extents objectAtIndex:[x->extents count] - 2] longValue] == 1 && sim_family() == 1007 &&
           graph_sim_is_26() && ane_sim_metal_macos() < 2700;
}

static void multiply_matrices(const Value *a, const Value *b, Value *c, MPSDataType type)
{
    const NSUInteger r = c->rank, m = c->dims[r - 2], n = c->dims[r - 1], k = a->dims[r - 1];
    const NSUInteger items = c->count / (m * n), a_items = a->count / (m * k), b_items = b->count / (k * n);
    const BOOL wrong = is_wrong(r, m, n, k, type);
    for (NSUInteger item = 0; item < items; ++item) {
        const float *x = a->v + (a_items == 1 ? 0 : item) * m * k, *y = b->v + (b_items == 1 ? 0 : item) * k * n;
        for (NSUInteger i = 0; i < m; ++i) {
            for (NSUInteger j = 0; j < n; ++j) {
                float sum = 0;
                for (NSUInteger p = 0; p < k; ++p) {
                    sum = rounded(sum + x[i * k + p] * y[p * n + j], type);
                }
                c->v[(item * m + i) * n + j] = wrong ? sum + 1.0f : sum;
            }
        }
    }
}

static void evaluate(const MPSGraphTensor *node, Value *values, NSArray *nodes)
{
    Value *out = &values[node->index];
    const Value *x = node->input_count > 0 ? &values[node->inputs[0]] : NULL;
    const Value *y = node->input_count > 1 ? &values[node->inputs[1]] : NULL;
    const Value *z = node->input_count > 2 ? &values[node->inputs[2]] : NULL;
    if (node->kind == PLACEHOLDER) {
        return;
    }
    set_dims(out, node->extents);
    out->v = malloc(out->count * sizeof(float) + 1);
    if (node->kind == MATMUL) {
        multiply_matrices(x, y, out, node->element);
        return;
    }
    if (node->kind == DATA) {
        load_elements(out, [node->data bytes], node->element);
        return;
    }
    for (NSUInteger i = 0; i < out->count; ++i) {
        float v = 0;
        switch (node->kind) {
        case SCALAR: v = (float)node->scalar; break;
        case CAST: v = x->v[i]; break;
        case TRANSPOSE: {
            const NSUInteger rows = out->dims[out->rank - 2], cols = out->dims[out->rank - 1];
            const NSUInteger item = i / (rows * cols), row = i / cols % rows, col = i % cols;
            v = x->v[item * rows * cols + col * rows + row];
            break;
        }
        case BROADCAST: v = broadcast(x, out, i); break;
        case ADD: v = broadcast(x, out, i) + (drops_sum(nodes, node) ? 0 : broadcast(y, out, i)); break;
        case MUL: v = broadcast(x, out, i) * broadcast(y, out, i); break;
        case LESS: v = broadcast(x, out, i) < broadcast(y, out, i); break;
        case SELECT: v = broadcast(x, out, i) != 0 ? broadcast(y, out, i) : broadcast(z, out, i); break;
        case ERF: v = erff(x->v[i]); break;
        case TANH: v = tanhf(x->v[i]); break;
        case SIGMOID: v = 1.0f / (1.0f + expf(-x->v[i])); break;
        default: break;
        }
        out->v[i] = rounded(v, node->element);
    }
}

/* ---- objects ------------------------------------------------------------------------------- */

@implementation MPSGraphDevice
+ (instancetype)deviceWithMTLDevice:(id<MTLDevice>)device
{
    return !device || sim_faulty(SIM_FAULT_NIL_GRAPH_DEVICE) ? nil : [[[self alloc] init] autorelease];
}
@end

@implementation MPSGraphTensor
- (void)dealloc
{
    [extents release];
    [data release];
    [super dealloc];
}
- (id)copyWithZone:(NSZone *)zone
{
    (void)zone;
    return [self retain];
}
- (NSArray *)shape
{
    return extents;
}
- (MPSDataType)dataType
{
    return element;
}
@end

@implementation MPSGraphShapedType
- (instancetype)initWithShape:(NSArray *)shape dataType:(MPSDataType)dataType
{
    self = [super init];
    extents = [shape retain];
    element = dataType;
    return self;
}
- (void)dealloc
{
    [extents release];
    [super dealloc];
}
@end

@implementation MPSGraphTensorData
- (instancetype)initWithMTLBuffer:(id<MTLBuffer>)memory shape:(NSArray *)shape dataType:(MPSDataType)dataType
{
    Value value;
    self = [super init];
    if (sim_faulty(SIM_FAULT_NIL_TENSOR_DATA)) {
        [self release];
        return nil;
    }
    set_dims(&value, shape);
    if (!memory || value.count * element_size(dataType) > [memory length]) {
        [self release];
        [NSException raise:NSInvalidArgumentException format:@"tensor data beyond its buffer"];
    }
    [(id)memory retain];
    buffer = memory;
    extents = [shape retain];
    element = dataType;
    return self;
}
- (void)dealloc
{
    if (runs) {
        /* Whoever runs with it sets it free. */
        sim_violation("tensor data was released while a run uses it");
        dead = YES;
        return;
    }
    [(id)buffer release];
    [extents release];
    [super dealloc];
}
/* A run begins or ends to use it. */
- (void)count:(int)by
{
    if (__atomic_add_fetch(&runs, by, __ATOMIC_SEQ_CST) == 0 && dead) {
        [self dealloc];
    }
}
@end

@implementation MPSGraphCompilationDescriptor
- (id)init
{
    self = [super init];
    level = -1;
    return self;
}
- (void)setOptimizationLevel:(MPSGraphOptimization)wanted
{
    level = (int64_t)wanted;
}
- (void)setWaitForCompilationCompletion:(BOOL)wait
{
    (void)wait;
}
- (BOOL)respondsToSelector:(SEL)selector
{
    return (!sel_isEqual(selector, @selector(setReducedPrecisionFastMath:)) || graph_sim_is_26()) &&
           [super respondsToSelector:selector];
}
- (void)setReducedPrecisionFastMath:(MPSGraphReducedPrecisionFastMath)mode
{
    if (!graph_sim_is_26()) {
        sim_violation("setReducedPrecisionFastMath: on a system before 26");
    }
    graph_sim.reduced = (int64_t)mode;
}
@end

@implementation MPSGraphExecutableExecutionDescriptor
@end

@implementation MPSGraphExecutableSerializationDescriptor
@end

@implementation MPSCommandBuffer
+ (instancetype)commandBufferFromCommandQueue:(id<MTLCommandQueue>)from
{
    id<MTLCommandBuffer> first = [from commandBuffer];
    MPSCommandBuffer *made;
    if (!first) {
        return nil;
    }
    made = [[[self alloc] init] autorelease];
    made->queue = from;
    [(id)from retain];
    made->current = first;
    [(id)first retain];
    return made;
}
- (void)dealloc
{
    [(id)current release];
    [(id)queue release];
    [super dealloc];
}
- (id<MTLCommandBuffer>)rootCommandBuffer
{
    return current;
}
- (id<MTLComputeCommandEncoder>)computeCommandEncoder
{
    return [current computeCommandEncoder];
}
- (id<MTLBlitCommandEncoder>)blitCommandEncoder
{
    return [current blitCommandEncoder];
}
- (void)commit
{
    [current commit];
}
- (void)waitUntilCompleted
{
    [current waitUntilCompleted];
}
- (MTLCommandBufferStatus)status
{
    return [current status];
}
- (NSError *)error
{
    return [current error];
}
- (CFTimeInterval)GPUStartTime
{
    return [current GPUStartTime];
}
- (CFTimeInterval)GPUEndTime
{
    return [current GPUEndTime];
}
@end

/* ---- executables --------------------------------------------------------------------------- */

#define MAX_INPUTS 4

/* One run. It retains no tensor data, and counts on others for that. */
typedef struct Run {
    MPSGraphExecutable *executable;
    MPSGraphTensorData *inputs[MAX_INPUTS];
    MPSGraphTensorData *result;
    NSUInteger input_count;
} Run;

static void *memory_of(const MPSGraphTensorData *data)
{
    return ((SimBuffer *)data->buffer)->memory;
}

static void compute(const Run *run)
{
    NSArray *nodes = run->executable->nodes;
    Value *values = calloc([nodes count] + 1, sizeof *values);
    for (NSUInteger i = 0; i < run->input_count; ++i) {
        MPSGraphTensor *feed = [run->executable->feeds objectAtIndex:i];
        Value *value = &values[feed->index];
        set_dims(value, feed->extents);
        value->v = malloc(value->count * sizeof(float) + 1);
        load_elements(value, memory_of(run->inputs[i]), feed->element);
    }
    for (MPSGraphTensor *node in nodes) {
        evaluate(node, values, nodes);
    }
    store_elements(&values[run->executable->target->index], memory_of(run->result), run->result->element);
    for (NSUInteger i = 0; i < [nodes count]; ++i) {
        free(values[i].v);
    }
    free(values);
}

static void finish_run(void *argument, BOOL does)
{
    Run *run = argument;
    if (does) {
        compute(run);
    }
    for (NSUInteger i = 0; i < run->input_count; ++i) {
        [run->inputs[i] count:-1];
    }
    [run->result count:-1];
    [run->executable release];
    free(run);
}

/* Encodes a run into a command buffer. */
static void add_run(const Run *run, id<MTLCommandBuffer> commands)
{
    Run *copy = malloc(sizeof *copy);
    *copy = *run;
    [copy->executable retain];
    for (NSUInteger i = 0; i < run->input_count; ++i) {
        [run->inputs[i] count:1];
        sim_use(commands, (SimBuffer *)run->inputs[i]->buffer, NO);
    }
    [run->result count:1];
    sim_use(commands, (SimBuffer *)run->result->buffer, YES);
    sim_add_late_work(commands, finish_run, copy);
}

static NSArray *shuffled(NSArray *array)
{
    NSMutableArray *mixed = [NSMutableArray arrayWithArray:array];
    for (NSUInteger i = [mixed count]; i > 1; --i) {
        [mixed exchangeObjectAtIndex:i - 1 withObjectAtIndex:(NSUInteger)(draw() % i)];
    }
    return mixed;
}

static void check_data(MPSGraphTensorData *data, MPSGraphTensor *tensor)
{
    if (![data->extents isEqual:tensor->extents] || data->element != tensor->element) {
        [NSException raise:NSInvalidArgumentException format:@"tensor data of another shape or type"];
    }
}

/* GNUstep reads its user defaults before it writes the first property list, and loses some bytes of its
 * own there, once: LeakSanitizer, where it is linked, is not to count them. */
void __lsan_disable(void) __attribute__((weak));
void __lsan_enable(void) __attribute__((weak));
static void read_defaults(void)
{
    if (__lsan_disable && __lsan_enable) {
        __lsan_disable();
        [NSUserDefaults standardUserDefaults];
        __lsan_enable();
    }
}

static id plist_of(MPSGraphTensor *node)
{
    NSMutableArray *inputs = [NSMutableArray array];
    for (NSUInteger i = 0; i < node->input_count; ++i) {
        [inputs addObject:[NSNumber numberWithUnsignedLong:node->inputs[i]]];
    }
    return [NSDictionary dictionaryWithObjectsAndKeys:[NSNumber numberWithInt:node->kind], @"kind", inputs, @"inputs",
        node->extents, @"extents", [NSNumber numberWithUnsignedLong:node->element], @"element",
        node->data ? node->data : [NSData data], @"data", [NSNumber numberWithDouble:node->scalar], @"scalar", nil];
}

static MPSGraphTensor *tensor_of(NSDictionary *plist, NSUInteger index)
{
    MPSGraphTensor *node = [[[MPSGraphTensor alloc] init] autorelease];
    NSArray *inputs = [plist objectForKey:@"inputs"];
    node->kind = [[plist objectForKey:@"kind"] intValue];
    node->index = index;
    node->input_count = [inputs count];
    for (NSUInteger i = 0; i < node->input_count; ++i) {
        node->inputs[i] = [[inputs objectAtIndex:i] unsignedLongValue];
    }
    node->extents = [[plist objectForKey:@"extents"] retain];
    node->element = (MPSDataType)[[plist objectForKey:@"element"] unsignedLongValue];
    node->data = [[plist objectForKey:@"data"] retain];
    node->scalar = [[plist objectForKey:@"scalar"] doubleValue];
    return node;
}

static void need_packages(void)
{
    if (ane_sim_metal_macos() < 1400) {
        sim_violation("a package on a system before macOS 14");
    }
}

@implementation MPSGraphExecutable
- (instancetype)initWithMPSGraphPackageAtURL:(NSURL *)url
                       compilationDescriptor:(MPSGraphCompilationDescriptor *)descriptor
{
    NSDictionary *plist = [NSDictionary dictionaryWithContentsOfFile:[[url path] stringByAppendingPathComponent:@"graph.plist"]];
    NSMutableArray *loaded = [NSMutableArray array], *found = [NSMutableArray array];
    self = [super init];
    need_packages();
    if (!plist) {
        [self release];
        return nil;
    }
    for (NSDictionary *node in [plist objectForKey:@"nodes"]) {
        MPSGraphTensor *tensor = tensor_of(node, [loaded count]);
        [loaded addObject:tensor];
        if (tensor->kind == PLACEHOLDER) {
            [found addObject:tensor];
        }
    }
    nodes = [loaded retain];
    feeds = [shuffled(found) retain];
    target = [loaded objectAtIndex:[[plist objectForKey:@"target"] unsignedLongValue]];
    silent = !graph_sim.loaded_tensors;
    graph_sim.level = descriptor->level;
    __atomic_add_fetch(&graph_sim.executables, 1, __ATOMIC_SEQ_CST);
    return self;
}
- (void)dealloc
{
    [nodes release];
    [feeds release];
    [super dealloc];
}
- (NSArray *)feedTensors
{
    return silent ? nil : feeds;
}
- (NSArray *)targetTensors
{
    return silent ? nil : [NSArray arrayWithObject:target];
}
- (NSArray *)encodeToCommandBuffer:(MPSCommandBuffer *)commands
                       inputsArray:(NSArray *)inputs
                      resultsArray:(NSArray *)results
               executionDescriptor:(MPSGraphExecutableExecutionDescriptor *)descriptor
{
    MPSGraphTensorData *result = [results objectAtIndex:0];
    BOOL first_fails, last_fails, raises;
    Run run = {.executable = self, .result = result, .input_count = [inputs count]};
    (void)descriptor;
    if (__atomic_add_fetch(&encoding, 1, __ATOMIC_SEQ_CST) != 1) {
        sim_violation("two threads encode one executable at once");
    }
    sim_wait(sim_latency_us() / 10);
    __atomic_sub_fetch(&encoding, 1, __ATOMIC_SEQ_CST);
    if (sim_faulty(SIM_FAULT_EXCEPTION_ENCODE_GRAPH)) {
        [NSException raise:NSInternalInconsistencyException format:@"planted exception while encoding"];
    }
    sim_throw_foreign();
    if ([inputs count] != [feeds count] || [inputs count] > MAX_INPUTS || [results count] != 1) {
        [NSException raise:NSInvalidArgumentException format:@"another number of inputs or results"];
    }
    for (NSUInteger i = 0; i < [inputs count]; ++i) {
        run.inputs[i] = [inputs objectAtIndex:i];
        check_data(run.inputs[i], [feeds objectAtIndex:i]);
    }
    check_data(result, target);
    first_fails = sim_faulty(SIM_FAULT_FIRST_OF_TWO);
    last_fails = sim_faulty(SIM_FAULT_LAST_OF_TWO);
    raises = sim_faulty(SIM_FAULT_EXCEPTION_AFTER_COMMIT);
    if (first_fails) {
        sim_fail(commands->current);
    }
    if (raises) {
        add_run(&run, commands->current);
    }
    if (draw() % 2 || first_fails || last_fails || raises) {
        /* Commit and continue. */
        [commands->current commit];
        [(id)commands->current release];
        commands->current = [commands->queue commandBuffer];
        [(id)commands->current retain];
    }
    if (raises) {
        /* Once more: of this buffer nobody is told. */
        [commands->current commit];
        [(id)commands->current release];
        commands->current = [commands->queue commandBuffer];
        [(id)commands->current retain];
        [NSException raise:NSInternalInconsistencyException format:@"planted exception after a commit"];
    }
    if (last_fails) {
        sim_fail(commands->current);
    }
    {
        Value value;
        set_dims(&value, target->extents);
        memset(memory_of(result), 0xff, value.count * element_size(result->element)); /* NaN */
    }
    add_run(&run, commands->current);
    __atomic_add_fetch(&graph_sim.runs, 1, __ATOMIC_SEQ_CST);
    return sim_faulty(SIM_FAULT_NO_RESULT) ? [NSArray array] : results;
}
- (void)serializeToMPSGraphPackageAtURL:(NSURL *)url descriptor:(MPSGraphExecutableSerializationDescriptor *)descriptor
{
    NSMutableArray *written = [NSMutableArray array];
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    NSDictionary *plist;
    (void)descriptor;
    pthread_once(&once, read_defaults);
    need_packages();
    if (sim_faulty(SIM_FAULT_SAVE)) {
        return;
    }
    for (MPSGraphTensor *node in nodes) {
        [written addObject:plist_of(node)];
    }
    plist = [NSDictionary dictionaryWithObjectsAndKeys:written, @"nodes", [NSNumber numberWithUnsignedLong:target->index],
                                                       @"target", nil];
    if (![[NSFileManager defaultManager] createDirectoryAtPath:[url path]
                                   withIntermediateDirectories:NO
                                                    attributes:nil
                                                         error:NULL]) {
        return;
    }
    [plist writeToFile:[[url path] stringByAppendingPathComponent:@"graph.plist"] atomically:YES];
}
@end

/* ---- graphs -------------------------------------------------------------------------------- */

@implementation MPSGraph
- (id)init
{
    self = [super init];
    nodes = [[NSMutableArray alloc] init];
    return self;
}
- (void)dealloc
{
    [nodes release];
    [super dealloc];
}
- (MPSGraphTensor *)add:(int)kind
                  shape:(NSArray *)shape
                   type:(MPSDataType)type
                 inputs:(MPSGraphTensor *)x
                    and:(MPSGraphTensor *)y
                    and:(MPSGraphTensor *)z
                   name:(NSString *)name
{
    MPSGraphTensor *node = [[[MPSGraphTensor alloc] init] autorelease];
    MPSGraphTensor *inputs[3] = {x, y, z};
    (void)name;
    if (sim_faulty(SIM_FAULT_EXCEPTION_GRAPH)) {
        [NSException raise:NSGenericException format:@"planted exception in the graph"];
    }
    node->kind = kind;
    node->index = [nodes count];
    node->extents = [shape retain];
    node->element = type;
    for (int i = 0; i < 3 && inputs[i]; ++i) {
        if (node->input_count != (NSUInteger)i || [nodes indexOfObjectIdenticalTo:inputs[i]] == NSNotFound) {
            [NSException raise:NSInvalidArgumentException format:@"a tensor of another graph"];
        }
        node->inputs[node->input_count++] = inputs[i]->index;
    }
    [nodes addObject:node];
    return node;
}
- (MPSGraphTensor *)placeholderWithShape:(NSArray *)shape dataType:(MPSDataType)type name:(NSString *)name
{
    return [self add:PLACEHOLDER shape:shape type:type inputs:nil and:nil and:nil name:name];
}
- (MPSGraphTensor *)constantWithData:(NSData *)data shape:(NSArray *)shape dataType:(MPSDataType)type
{
    Value value;
    MPSGraphTensor *node = [self add:DATA shape:shape type:type inputs:nil and:nil and:nil name:nil];
    set_dims(&value, shape);
    if ([data length] != value.count * element_size(type)) {
        [NSException raise:NSInvalidArgumentException format:@"constant data of another length"];
    }
    node->data = [data retain];
    return node;
}
- (MPSGraphTensor *)constantWithScalar:(double)scalar dataType:(MPSDataType)type
{
    NSArray *shape = [NSArray arrayWithObject:[NSNumber numberWithInt:1]];
    MPSGraphTensor *node = [self add:SCALAR shape:shape type:type inputs:nil and:nil and:nil name:nil];
    node->scalar = scalar;
    return node;
}
- (MPSGraphTensor *)broadcastTensor:(MPSGraphTensor *)x toShape:(NSArray *)shape name:(NSString *)name
{
    return [self add:BROADCAST shape:shape type:x->element inputs:x and:nil and:nil name:name];
}
- (MPSGraphTensor *)castTensor:(MPSGraphTensor *)x toType:(MPSDataType)type name:(NSString *)name
{
    return [self add:CAST shape:x->extents type:type inputs:x and:nil and:nil name:name];
}
- (MPSGraphTensor *)transposeTensor:(MPSGraphTensor *)x
                          dimension:(NSUInteger)dimension
                      withDimension:(NSUInteger)other
                               name:(NSString *)name
{
    NSMutableArray *shape = [NSMutableArray arrayWithArray:x->extents];
    if (dimension + 1 != other || other + 1 != [shape count]) {
        [NSException raise:NSInvalidArgumentException format:@"the double transposes the last two dimensions"];
    }
    [shape exchangeObjectAtIndex:dimension withObjectAtIndex:other];
    return [self add:TRANSPOSE shape:shape type:x->element inputs:x and:nil and:nil name:name];
}
- (MPSGraphTensor *)matrixMultiplicationWithPrimaryTensor:(MPSGraphTensor *)x
                                          secondaryTensor:(MPSGraphTensor *)y
                                                     name:(NSString *)name
{
    const NSUInteger rank = [x->extents count];
    NSMutableArray *shape = [NSMutableArray arrayWithArray:x->extents];
    if (rank != [y->extents count] || x->element != y->element ||
        ![[x->extents objectAtIndex:rank - 1] isEqual:[y->extents objectAtIndex:rank - 2]]) {
        [NSException raise:NSInvalidArgumentException format:@"matrices that do not fit: %@ %@", x->extents, y->extents];
    }
    [shape replaceObjectAtIndex:rank - 1 withObject:[y->extents objectAtIndex:rank - 1]];
    if (rank == 3 && [[shape objectAtIndex:0] intValue] == 1) {
        [shape replaceObjectAtIndex:0 withObject:[y->extents objectAtIndex:0]];
    }
    return [self add:MATMUL shape:shape type:x->element inputs:x and:y and:nil name:name];
}
/* The larger of two shapes that broadcast. */
- (NSArray *)shapeOf:(MPSGraphTensor *)x with:(MPSGraphTensor *)y
{
    NSArray *more = [x->extents count] >= [y->extents count] ? x->extents : y->extents;
    NSArray *less = more == x->extents ? y->extents : x->extents;
    NSMutableArray *shape = [NSMutableArray arrayWithArray:more];
    const NSUInteger gap = [more count] - [less count];
    for (NSUInteger i = 0; i < [less count]; ++i) {
        const long a = [[more objectAtIndex:i + gap] longValue], b = [[less objectAtIndex:i] longValue];
        if (a != b && a != 1 && b != 1) {
            [NSException raise:NSInvalidArgumentException format:@"shapes that do not broadcast: %@ %@", more, less];
        }
        [shape replaceObjectAtIndex:i + gap withObject:[NSNumber numberWithLong:a > b ? a : b]];
    }
    return shape;
}
- (MPSGraphTensor *)pair:(int)kind of:(MPSGraphTensor *)x with:(MPSGraphTensor *)y type:(MPSDataType)type
{
    if (x->element != y->element) {
        [NSException raise:NSInvalidArgumentException format:@"operands of two types"];
    }
    return [self add:kind shape:[self shapeOf:x with:y] type:type inputs:x and:y and:nil name:nil];
}
- (MPSGraphTensor *)additionWithPrimaryTensor:(MPSGraphTensor *)x secondaryTensor:(MPSGraphTensor *)y name:(NSString *)name
{
    (void)name;
    return [self pair:ADD of:x with:y type:x->element];
}
- (MPSGraphTensor *)multiplicationWithPrimaryTensor:(MPSGraphTensor *)x
                                    secondaryTensor:(MPSGraphTensor *)y
                                               name:(NSString *)name
{
    (void)name;
    return [self pair:MUL of:x with:y type:x->element];
}
- (MPSGraphTensor *)lessThanWithPrimaryTensor:(MPSGraphTensor *)x secondaryTensor:(MPSGraphTensor *)y name:(NSString *)name
{
    (void)name;
    return [self pair:LESS of:x with:y type:MPSDataTypeBool];
}
- (MPSGraphTensor *)selectWithPredicateTensor:(MPSGraphTensor *)predicate
                          truePredicateTensor:(MPSGraphTensor *)x
                         falsePredicateTensor:(MPSGraphTensor *)y
                                         name:(NSString *)name
{
    if (predicate->element != MPSDataTypeBool || x->element != y->element) {
        [NSException raise:NSInvalidArgumentException format:@"a selection of two types, or by numbers"];
    }
    return [self add:SELECT shape:[self shapeOf:predicate with:y] type:x->element inputs:predicate and:x and:y name:name];
}
- (MPSGraphTensor *)erfWithTensor:(MPSGraphTensor *)x name:(NSString *)name
{
    return [self add:ERF shape:x->extents type:x->element inputs:x and:nil and:nil name:name];
}
- (MPSGraphTensor *)tanhWithTensor:(MPSGraphTensor *)x name:(NSString *)name
{
    return [self add:TANH shape:x->extents type:x->element inputs:x and:nil and:nil name:name];
}
- (MPSGraphTensor *)sigmoidWithTensor:(MPSGraphTensor *)x name:(NSString *)name
{
    return [self add:SIGMOID shape:x->extents type:x->element inputs:x and:nil and:nil name:name];
}
- (MPSGraphExecutable *)compileWithDevice:(MPSGraphDevice *)device
                                    feeds:(NSDictionary *)feeds
                            targetTensors:(NSArray *)targets
                         targetOperations:(NSArray *)operations
                    compilationDescriptor:(MPSGraphCompilationDescriptor *)descriptor
{
    MPSGraphExecutable *executable;
    NSArray *keys = [feeds allKeys];
    (void)operations;
    if (sim_faulty(SIM_FAULT_EXCEPTION_COMPILE_GRAPH)) {
        [NSException raise:NSGenericException format:@"planted exception in the compiler"];
    }
    if (!device || sim_faulty(SIM_FAULT_NIL_EXECUTABLE)) {
        return nil;
    }
    if (!descriptor || descriptor->level < 0) {
        sim_violation("a graph is compiled at a level that was not set");
    }
    for (MPSGraphTensor *key in keys) {
        MPSGraphShapedType *type = [feeds objectForKey:key];
        if (![type->extents isEqual:key->extents] || type->element != key->element) {
            [NSException raise:NSInvalidArgumentException format:@"a feed of another shape or type"];
        }
    }
    executable = [[[MPSGraphExecutable alloc] init] autorelease];
    executable->nodes = [nodes retain];
    if (sim_faulty(SIM_FAULT_FOREIGN_FEED)) {
        keys = [keys arrayByAddingObject:[targets objectAtIndex:0]];
    }
    executable->feeds = [shuffled(keys) retain];
    executable->target = [targets objectAtIndex:0];
    graph_sim.level = descriptor ? descriptor->level : -1;
    __atomic_add_fetch(&graph_sim.executables, 1, __ATOMIC_SEQ_CST);
    return executable;
}
@end
