/*
 * sim.m - a test double of the part of Metal that metal_matmul.m uses. Compute work runs late, on
 * another thread, in the kernel emulator: the source that the shim hands over is what is compiled.
 */

#include <dlfcn.h>
#include <objc/runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "emu.h"
#include "sim_objects.h"

NSString *const MTLCommandBufferErrorDomain = @"MTLCommandBufferErrorDomain";

#define MAX_BINDINGS 8
#define MAX_CONSTANTS 32
#define MAX_DISPATCHES 4

typedef int32_t (*DispatchFunction)(const char *, const uint32_t *, uint32_t, const EmuBinding *, uint32_t,
                                    const uint32_t[3], const uint32_t[3], int32_t, uint64_t, EmuReport *);

static struct {
    int32_t fault, after;
    int64_t error_code, macos, latency_us;
    uint64_t max_buffer_bytes, seed;
    int32_t schedule;
    char name[64], compiler[512], directory[512], violation[128];
    int64_t live, libraries, pipelines, buffers, violations, dispatches, in_flight;
} sim = {.macos = 1500, .latency_us = 300, .max_buffer_bytes = 1ull << 32, .name = "Apple M1 (test double)"};

static pthread_mutex_t sim_lock = PTHREAD_MUTEX_INITIALIZER;

BOOL sim_faulty(int32_t fault)
{
    BOOL hit = NO;
    pthread_mutex_lock(&sim_lock);
    if (sim.fault == fault && sim.after-- == 0) {
        sim.fault = SIM_FAULT_NONE;
        hit = YES;
    }
    pthread_mutex_unlock(&sim_lock);
    return hit;
}

void sim_violation(const char *text)
{
    pthread_mutex_lock(&sim_lock);
    ++sim.violations;
    snprintf(sim.violation, sizeof sim.violation, "%s", text);
    pthread_mutex_unlock(&sim_lock);
}

static void count(int64_t *counter, int64_t by)
{
    __atomic_add_fetch(counter, by, __ATOMIC_SEQ_CST);
}

void sim_wait(int64_t us)
{
    if (us) {
        usleep((useconds_t)us);
    }
}

int64_t sim_latency_us(void) { return sim.latency_us; }

/* The runtime of C++, which both platforms' shims may meet below Apple's frameworks. */
extern char _ZTIi;
void *__cxa_allocate_exception(size_t bytes);
void __cxa_throw(void *exception, void *type, void (*destroy)(void *)) __attribute__((noreturn));

void sim_throw_foreign(void)
{
    if (sim_faulty(SIM_FAULT_FOREIGN_OBJECT)) {
        @throw @"planted object";
    }
    if (sim_faulty(SIM_FAULT_CPP_EXCEPTION)) {
        int *thrown = __cxa_allocate_exception(sizeof *thrown);
        *thrown = 1;
        __cxa_throw(thrown, &_ZTIi, NULL);
    }
}

NSError *sim_error(NSString *domain, NSInteger code, NSString *text)
{
    return [NSError errorWithDomain:domain
                               code:code
                           userInfo:[NSDictionary dictionaryWithObject:text forKey:NSLocalizedDescriptionKey]];
}

void ane_sim_metal_set_fault(int32_t fault, int32_t after)
{
    sim.fault = fault;
    sim.after = after;
}
void ane_sim_metal_set_error(int64_t code) { sim.error_code = code; }
void ane_sim_metal_set_device_name(const char *name) { snprintf(sim.name, sizeof sim.name, "%s", name); }
void ane_sim_metal_set_macos(int64_t version) { sim.macos = version; }
void ane_sim_metal_set_latency_us(int64_t latency) { sim.latency_us = latency; }
void ane_sim_metal_set_max_buffer_bytes(uint64_t bytes) { sim.max_buffer_bytes = bytes; }
void ane_sim_metal_set_schedule(int32_t schedule, uint64_t seed)
{
    sim.schedule = schedule;
    sim.seed = seed;
}
void ane_sim_metal_set_compiler(const char *program, const char *directory)
{
    snprintf(sim.compiler, sizeof sim.compiler, "%s", program);
    snprintf(sim.directory, sizeof sim.directory, "%s", directory);
}
int64_t ane_sim_metal_live_objects(void) { return __atomic_load_n(&sim.live, __ATOMIC_SEQ_CST); }
int64_t ane_sim_metal_libraries_compiled(void) { return sim.libraries; }
int64_t ane_sim_metal_pipelines_made(void) { return sim.pipelines; }
int64_t ane_sim_metal_buffers_made(void) { return sim.buffers; }
int64_t ane_sim_metal_violations(void) { return sim.violations; }
const char *ane_sim_metal_last_violation(void) { return sim.violation; }
int64_t ane_sim_metal_dispatches(void) { return sim.dispatches; }
int64_t ane_sim_metal_in_flight(void) { return __atomic_load_n(&sim.in_flight, __ATOMIC_SEQ_CST); }
const char *sim_device_name(void) { return sim.name; }

/* Metal Feature Set Tables; a virtual machine's device is of Apple5 (Metal.jl#309). */
long sim_family(void)
{
    static const struct {
        const char *name;
        long family;
    } families[] = {{"M1", 1007}, {"A14", 1007}, {"M2", 1008}, {"A15", 1008}, {"A16", 1008}, {"M3", 1009}, {"A17", 1009},
                    {"M4", 1009}, {"A18", 1009}, {"M5", 1010}, {"Paravirtual", 1005}};
    for (size_t i = 0; i < sizeof families / sizeof *families; ++i) {
        if (strstr(sim.name, families[i].name)) {
            return families[i].family;
        }
    }
    return 0;
}
long ane_sim_metal_macos(void) { return (long)sim.macos; }

@implementation SimObject
- (id)init
{
    self = [super init];
    count(&sim.live, 1);
    return self;
}
- (void)dealloc
{
    count(&sim.live, -1);
    [super dealloc];
}
@end

@implementation SimBuffer
- (void)dealloc
{
    if (owned) {
        free(memory);
    }
    [super dealloc];
}
- (void *)contents
{
    return memory;
}
- (NSUInteger)length
{
    return bytes;
}
@end

@implementation MTLFunctionConstantValues
- (id)init
{
    self = [super init];
    count(&sim.live, 1);
    return self;
}
- (void)dealloc
{
    count(&sim.live, -1);
    [super dealloc];
}
- (void)setConstantValue:(const void *)value type:(MTLDataType)type atIndex:(NSUInteger)index
{
    if (index >= MAX_CONSTANTS || (type != MTLDataTypeBool && type != MTLDataTypeUInt)) {
        [NSException raise:NSInvalidArgumentException format:@"function constant %u", (unsigned)index];
    }
    types[index] = type;
    values[index] = type == MTLDataTypeBool ? *(const uint8_t *)value : *(const uint32_t *)value;
}
@end

@implementation MTLCompileOptions
- (id)init
{
    self = [super init];
    fastMath = YES; /* Apple's default */
    count(&sim.live, 1);
    return self;
}
- (void)dealloc
{
    count(&sim.live, -1);
    [super dealloc];
}
- (void)setFastMathEnabled:(BOOL)enabled
{
    fastMath = enabled;
}
- (void)setLanguageVersion:(MTLLanguageVersion)wanted
{
    version = wanted;
}
@end

@interface SimFunction : SimObject <MTLFunction> {
@public
    char name[64];
    uint32_t values[MAX_CONSTANTS];
    DispatchFunction dispatch;
}
@end

@implementation SimFunction
@end

@interface SimPipeline : SimFunction <MTLComputePipelineState> {
@public
    NSUInteger width;
}
@end

@implementation SimPipeline
- (NSUInteger)threadExecutionWidth
{
    return width;
}
- (NSUInteger)maxTotalThreadsPerThreadgroup
{
    return 1024;
}
@end

@interface SimLibrary : SimObject <MTLLibrary> {
@public
    void *handle;
}
@end

@implementation SimLibrary
- (void)dealloc
{
    dlclose(handle);
    [super dealloc];
}
- (id<MTLFunction>)newFunctionWithName:(NSString *)name
                        constantValues:(MTLFunctionConstantValues *)constants
                                 error:(NSError **)error
{
    uint32_t (*kernel_count)(void) = (uint32_t(*)(void))dlsym(handle, "emu_kernel_count");
    const char *(*kernel_name)(uint32_t) = (const char *(*)(uint32_t))dlsym(handle, "emu_kernel_name");
    int32_t (*kind)(uint32_t) = (int32_t(*)(uint32_t))dlsym(handle, "emu_constant_kind");
    SimFunction *function;
    BOOL found = NO;
    for (uint32_t i = 0; i < kernel_count(); ++i) {
        found = found || strcmp(kernel_name(i), [name UTF8String]) == 0;
    }
    for (uint32_t i = 0; i < MAX_CONSTANTS && found; ++i) {
        const MTLDataType wanted = kind(i) == 1 ? MTLDataTypeBool : kind(i) == 2 ? MTLDataTypeUInt : (MTLDataType)0;
        if (wanted && constants->types[i] != wanted) {
            *error = sim_error(@"MTLLibraryErrorDomain", 3, @"a function constant has no value of its type");
            return nil;
        }
    }
    if (!found || sim_faulty(SIM_FAULT_NIL_FUNCTION)) {
        *error = sim_error(@"MTLLibraryErrorDomain", 5, @"function not found");
        return nil;
    }
    function = [[SimFunction alloc] init];
    snprintf(function->name, sizeof function->name, "%s", [name UTF8String]);
    memcpy(function->values, constants->values, sizeof function->values);
    function->dispatch = (DispatchFunction)dlsym(handle, "emu_dispatch");
    return function;
}
@end

/* One recorded dispatch. */
typedef struct Dispatch {
    SimPipeline *pipeline;
    SimBuffer *buffers[MAX_BINDINGS];
    NSUInteger offsets[MAX_BINDINGS];
    uint8_t *bytes[MAX_BINDINGS];
    NSUInteger lengths[MAX_BINDINGS];
    MTLSize grid, threads;
} Dispatch;

@class SimCommandBuffer;

@interface SimEncoder : SimObject <MTLComputeCommandEncoder> {
@public
    SimCommandBuffer *owner; /* retained */
    Dispatch state;
    BOOL ended;
}
@end

/* Runs its command buffers in the order in which they were committed. */
@interface SimQueue : SimObject <MTLCommandQueue> {
@public
    int64_t committed, completed;
}
@end

@interface SimCommandBuffer : SimObject <MTLCommandBuffer> {
@public
    SimQueue *queue; /* retained */
    int64_t turn;
    Dispatch dispatches[MAX_DISPATCHES];
    NSUInteger dispatch_count;
    SimLate late;
    void *late_argument;
    BOOL encoding, committed, waited, fails;
    MTLCommandBufferStatus state;
    NSError *failure;
    pthread_t worker;
}
@end

static void release_dispatch(Dispatch *d)
{
    for (int i = 0; i < MAX_BINDINGS; ++i) {
        [d->buffers[i] release];
        free(d->bytes[i]);
    }
    [d->pipeline release];
    memset(d, 0, sizeof *d);
}

@implementation SimEncoder
- (void)dealloc
{
    if (!ended) {
        sim_violation("an encoder was released without endEncoding");
    }
    release_dispatch(&state);
    [owner release];
    [super dealloc];
}
- (void)check
{
    if (ended) {
        sim_violation("an encoder was used after endEncoding");
    }
}
- (void)setComputePipelineState:(id<MTLComputePipelineState>)pipeline
{
    [self check];
    [(id)pipeline retain];
    [state.pipeline release];
    state.pipeline = (SimPipeline *)pipeline;
}
- (void)clear:(NSUInteger)index
{
    [state.buffers[index] release];
    free(state.bytes[index]);
    state.buffers[index] = nil;
    state.bytes[index] = NULL;
}
- (void)setBuffer:(id<MTLBuffer>)buffer offset:(NSUInteger)offset atIndex:(NSUInteger)index
{
    SimBuffer *b = (SimBuffer *)buffer;
    [self check];
    if (index >= MAX_BINDINGS || !b || offset > b->bytes) {
        [NSException raise:NSInvalidArgumentException format:@"setBuffer: at index %u", (unsigned)index];
    }
    [b retain];
    [self clear:index];
    state.buffers[index] = b;
    state.offsets[index] = offset;
}
- (void)setBytes:(const void *)bytes length:(NSUInteger)length atIndex:(NSUInteger)index
{
    [self check];
    if (index >= MAX_BINDINGS || length == 0 || length > 4096) {
        [NSException raise:NSInvalidArgumentException format:@"setBytes: at index %u", (unsigned)index];
    }
    [self clear:index];
    state.bytes[index] = malloc(length);
    memcpy(state.bytes[index], bytes, length);
    state.lengths[index] = length;
    state.offsets[index] = 0;
}
- (void)dispatchThreadgroups:(MTLSize)grid threadsPerThreadgroup:(MTLSize)threads
{
    Dispatch *d = &owner->dispatches[owner->dispatch_count];
    [self check];
    if (sim_faulty(SIM_FAULT_EXCEPTION_ENCODE)) {
        [NSException raise:NSInternalInconsistencyException format:@"planted exception while encoding"];
    }
    sim_throw_foreign();
    if (owner->dispatch_count == MAX_DISPATCHES || !state.pipeline) {
        [NSException raise:NSInvalidArgumentException format:@"dispatchThreadgroups: without a pipeline"];
    }
    *d = state;
    d->grid = grid;
    d->threads = threads;
    [d->pipeline retain];
    for (int i = 0; i < MAX_BINDINGS; ++i) {
        [d->buffers[i] retain];
        if (state.bytes[i]) {
            d->bytes[i] = malloc(state.lengths[i]);
            memcpy(d->bytes[i], state.bytes[i], state.lengths[i]);
        }
    }
    ++owner->dispatch_count;
}
- (void)endEncoding
{
    [self check];
    ended = YES;
    owner->encoding = NO;
}
@end

static BOOL run_dispatch(const Dispatch *d, char *text, size_t room)
{
    EmuBinding bindings[MAX_BINDINGS];
    EmuReport report;
    const uint32_t grid[3] = {(uint32_t)d->grid.width, (uint32_t)d->grid.height, (uint32_t)d->grid.depth};
    const uint32_t threads[3] = {(uint32_t)d->threads.width, (uint32_t)d->threads.height, (uint32_t)d->threads.depth};
    memset(bindings, 0, sizeof bindings);
    for (int i = 0; i < MAX_BINDINGS; ++i) {
        if (d->buffers[i]) {
            bindings[i] = (EmuBinding){d->buffers[i]->memory, d->buffers[i]->bytes, d->offsets[i], NULL};
        } else if (d->bytes[i]) {
            bindings[i] = (EmuBinding){d->bytes[i], d->lengths[i], 0, NULL};
        }
    }
    count(&sim.dispatches, 1);
    if (d->pipeline->dispatch(d->pipeline->name, d->pipeline->values, MAX_CONSTANTS, bindings, MAX_BINDINGS, grid,
                              threads, sim.schedule, sim.seed, &report) == EMU_OK) {
        return YES;
    }
    snprintf(text, room, "the emulator stopped %s: fault %d, %s, buffer %d, byte %llu", d->pipeline->name,
             (int)report.fault, report.text, (int)report.buffer, (unsigned long long)report.byte);
    return NO;
}

/* Runs what was encoded, a while after commit, and after what the queue was given before. */
static void *work(void *argument)
{
    SimCommandBuffer *commands = argument;
    @autoreleasepool {
        char text[512];
        NSError *failure = nil;
        while (__atomic_load_n(&commands->queue->completed, __ATOMIC_SEQ_CST) != commands->turn) {
            usleep(20);
        }
        sim_wait(sim.latency_us);
        if (commands->late) {
            commands->late(commands->late_argument);
            commands->late = NULL;
        }
        for (NSUInteger i = 0; i < commands->dispatch_count && !failure; ++i) {
            if (!run_dispatch(&commands->dispatches[i], text, sizeof text)) {
                failure = sim_error(MTLCommandBufferErrorDomain, MTLCommandBufferErrorPageFault,
                                     [NSString stringWithUTF8String:text]);
            }
        }
        if (commands->fails || sim_faulty(SIM_FAULT_COMMAND_ERROR)) {
            failure = sim_error(MTLCommandBufferErrorDomain, (NSInteger)sim.error_code, @"planted GPU error");
        }
        commands->failure = [failure retain];
        commands->state = failure || sim_faulty(SIM_FAULT_STATUS_ONLY) ? MTLCommandBufferStatusError
                                                                  : MTLCommandBufferStatusCompleted;
        count(&sim.in_flight, -1);
        count(&commands->queue->completed, 1);
        [commands release];
    }
    return NULL;
}

@implementation SimCommandBuffer
- (void)dealloc
{
    if (committed && !waited) {
        pthread_detach(worker);
    }
    for (NSUInteger i = 0; i < dispatch_count; ++i) {
        release_dispatch(&dispatches[i]);
    }
    if (late) {
        sim_violation("encoded work was never committed");
        late(late_argument);
    }
    [failure release];
    [(id)queue release];
    [super dealloc];
}
- (id<MTLComputeCommandEncoder>)computeCommandEncoder
{
    SimEncoder *encoder;
    if (sim_faulty(SIM_FAULT_NIL_ENCODER)) {
        return nil;
    }
    encoder = [[[SimEncoder alloc] init] autorelease];
    encoder->owner = [self retain];
    encoding = YES;
    return encoder;
}
- (void)commit
{
    if (encoding || committed) {
        sim_violation("commit of a command buffer that is being encoded or was committed");
    }
    committed = YES;
    state = MTLCommandBufferStatusCommitted;
    count(&sim.in_flight, 1);
    /* Whoever lets go of it does not wait for it. */
    [self retain];
    turn = __atomic_fetch_add(&queue->committed, 1, __ATOMIC_SEQ_CST);
    pthread_create(&worker, NULL, work, self);
}
- (void)waitUntilCompleted
{
    if (!committed) {
        sim_violation("a wait for a command buffer that was not committed");
        return;
    }
    if (!waited) {
        pthread_join(worker, NULL);
        waited = YES;
    }
}
- (MTLCommandBufferStatus)status
{
    return state;
}
- (NSError *)error
{
    return failure;
}
- (CFTimeInterval)GPUStartTime
{
    return 1.0;
}
- (CFTimeInterval)GPUEndTime
{
    return 1.5;
}
@end

void sim_add_late_work(id<MTLCommandBuffer> commands, SimLate late, void *argument)
{
    SimCommandBuffer *buffer = (SimCommandBuffer *)commands;
    if (buffer->committed || buffer->late) {
        sim_violation("work was encoded into a command buffer that was committed or has work");
    }
    buffer->late = late;
    buffer->late_argument = argument;
}

void sim_fail(id<MTLCommandBuffer> commands)
{
    ((SimCommandBuffer *)commands)->fails = YES;
}

@implementation SimQueue
- (id<MTLCommandBuffer>)commandBuffer
{
    SimCommandBuffer *commands;
    if (sim_faulty(SIM_FAULT_NIL_COMMAND_BUFFER)) {
        return nil;
    }
    commands = [[[SimCommandBuffer alloc] init] autorelease];
    commands->queue = [self retain];
    return commands;
}
@end

@interface SimDevice : SimObject <MTLDevice>
@end

/* Runs the kernel compiler on `source`: a loaded library, or NULL with its output in `log`. */
static void *compile(const char *source, MTLLanguageVersion version, char *log, size_t room)
{
    static int64_t serial;
    /* What was compiled last: most tests open many devices. */
    static char *last_source, last_output[1024];
    static MTLLanguageVersion last_version;
    char folder[700], path[720], command[2400], output[1024] = "";
    size_t length;
    FILE *file;
    if (last_source && last_version == version && strcmp(last_source, source) == 0) {
        return dlopen(last_output, RTLD_NOW | RTLD_LOCAL);
    }
    snprintf(folder, sizeof folder, "%s/source-%d-%lld", sim.directory, (int)getpid(),
             (long long)__atomic_add_fetch(&serial, 1, __ATOMIC_SEQ_CST));
    mkdir(folder, 0700);
    snprintf(path, sizeof path, "%s/source.metal", folder);
    file = fopen(path, "w");
    if (!file) {
        snprintf(log, room, "%s cannot be written", path);
        return NULL;
    }
    fputs(source, file);
    fclose(file);
    snprintf(command, sizeof command, "env -u LD_PRELOAD '%s' '%s' '%s' %u 2>&1", sim.compiler, path, sim.directory,
             (unsigned)((version >> 16) * 100 + (version & 0xffff) * 10));
    file = popen(command, "r");
    length = file ? fread(log, 1, room - 1, file) : 0;
    log[length] = 0;
    unlink(path);
    rmdir(folder);
    if (!file || pclose(file) != 0) {
        return NULL;
    }
    snprintf(output, sizeof output, "%s", log);
    output[strcspn(output, "\n")] = 0;
    free(last_source);
    last_source = strdup(source);
    last_version = version;
    memcpy(last_output, output, sizeof last_output);
    return dlopen(output, RTLD_NOW | RTLD_LOCAL);
}

/* MTLArchitecture, which the shim asks for its name alone. */
@interface SimArchitecture : SimObject {
@public
    NSString *letters;
}
@end

@implementation SimArchitecture
- (NSString *)name
{
    return letters;
}
@end

@implementation SimDevice
- (id)architecture
{
    SimArchitecture *architecture = [[[SimArchitecture alloc] init] autorelease];
    architecture->letters = strstr(sim.name, "Ultra") ? @"applegpu_g14d" : strstr(sim.name, "Max") || strstr(sim.name, "Pro") ? @"applegpu_g16s" : @"applegpu_g13g";
    return architecture;
}
- (BOOL)respondsToSelector:(SEL)selector
{
    return (!sel_isEqual(selector, @selector(architecture)) || sim.macos >= 1400) && [super respondsToSelector:selector];
}
- (NSString *)name
{
    return [NSString stringWithUTF8String:sim.name];
}
- (BOOL)supportsFamily:(MTLGPUFamily)family
{
    if (sim_faulty(SIM_FAULT_EXCEPTION_DEVICE)) {
        [NSException raise:NSGenericException format:@"planted exception at the device"];
    }
    return (long)family <= sim_family() && !sim_faulty(SIM_FAULT_NO_SIMDGROUP_MATRIX);
}
- (BOOL)hasUnifiedMemory
{
    return YES;
}
- (NSUInteger)maxBufferLength
{
    return (NSUInteger)sim.max_buffer_bytes;
}
- (id<MTLCommandQueue>)newCommandQueue
{
    return sim_faulty(SIM_FAULT_NIL_QUEUE) ? nil : [[SimQueue alloc] init];
}
- (id<MTLBuffer>)newBufferWithLength:(NSUInteger)length options:(MTLResourceOptions)options
{
    SimBuffer *buffer;
    (void)options;
    if (sim_faulty(SIM_FAULT_EXCEPTION_BUFFER)) {
        [NSException raise:NSMallocException format:@"planted exception at a buffer"];
    }
    if (length == 0 || length > sim.max_buffer_bytes || sim_faulty(SIM_FAULT_NIL_BUFFER)) {
        return nil;
    }
    count(&sim.buffers, 1);
    buffer = [[SimBuffer alloc] init];
    if (posix_memalign(&buffer->memory, 4096, length) != 0) {
        [buffer release];
        return nil;
    }
    memset(buffer->memory, 0xff, length); /* NaN */
    buffer->bytes = length;
    buffer->owned = YES;
    return buffer;
}
- (id<MTLBuffer>)newBufferWithBytesNoCopy:(void *)pointer
                                   length:(NSUInteger)length
                                  options:(MTLResourceOptions)options
                              deallocator:(void *)deallocator
{
    SimBuffer *buffer;
    (void)options;
    (void)deallocator;
    if ((uintptr_t)pointer % 4096 != 0 || length % 4096 != 0 || length == 0) {
        sim_violation("newBufferWithBytesNoCopy: of what are not whole pages");
        return nil;
    }
    if (sim_faulty(SIM_FAULT_NIL_BUFFER)) {
        return nil;
    }
    buffer = [[SimBuffer alloc] init];
    buffer->memory = pointer;
    buffer->bytes = length;
    return buffer;
}
- (id<MTLLibrary>)newLibraryWithSource:(NSString *)source options:(MTLCompileOptions *)options error:(NSError **)error
{
    static char log[16384];
    static int compiling;
    SimLibrary *library;
    void *handle = NULL;
    if (sim_faulty(SIM_FAULT_EXCEPTION_COMPILE)) {
        [NSException raise:NSGenericException format:@"planted exception in the compiler"];
    }
    if (__atomic_add_fetch(&compiling, 1, __ATOMIC_SEQ_CST) != 1) {
        sim_violation("two threads compile a library of one device at once");
    }
    if (options->fastMath) {
        sim_violation("kernels that propagate NaN were compiled with fast math");
    }
    if (sim_faulty(SIM_FAULT_COMPILER)) {
        NSMutableString *broken = [NSMutableString stringWithString:source];
        [broken appendString:@"\nplanted syntax error;\n"];
        source = broken;
    }
    usleep(2000);
    handle = compile([source UTF8String], options->version, log, sizeof log);
    __atomic_sub_fetch(&compiling, 1, __ATOMIC_SEQ_CST);
    if (!handle) {
        *error = sim_error(@"MTLLibraryErrorDomain", 3, [NSString stringWithUTF8String:log]);
        return nil;
    }
    count(&sim.libraries, 1);
    library = [[SimLibrary alloc] init];
    library->handle = handle;
    return library;
}
- (id<MTLComputePipelineState>)newComputePipelineStateWithFunction:(id<MTLFunction>)function error:(NSError **)error
{
    SimFunction *f = (SimFunction *)function;
    SimPipeline *pipeline;
    if (sim_faulty(SIM_FAULT_NIL_PIPELINE)) {
        *error = sim_error(@"AGXMetal", 2, @"planted pipeline error");
        return nil;
    }
    count(&sim.pipelines, 1);
    pipeline = [[SimPipeline alloc] init];
    memcpy(pipeline->name, f->name, sizeof pipeline->name);
    memcpy(pipeline->values, f->values, sizeof pipeline->values);
    pipeline->dispatch = f->dispatch;
    pipeline->width = sim_faulty(SIM_FAULT_NARROW_SIMD) ? 16 : 32;
    return pipeline;
}
@end

id<MTLDevice> MTLCreateSystemDefaultDevice(void)
{
    return sim_faulty(SIM_FAULT_NO_DEVICE) ? nil : [[SimDevice alloc] init];
}
