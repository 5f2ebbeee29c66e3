/*
 * sim.m - a test double of the part of Metal that the shims use. Work runs late, on another thread or when
 * somebody waits, compute work in the kernel emulator: the source that the shim hands over is what is
 * compiled. Where a test asks for it, buffers that the device works on are closed to the host as long as
 * it does.
 */
#define _GNU_SOURCE

#include <dlfcn.h>
#include <objc/runtime.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "emu.h"
#include "matmul_params.h"
#include "sim_objects.h"

NSString *const MTLCommandBufferErrorDomain = @"MTLCommandBufferErrorDomain";

#define MAX_BINDINGS 8
#define MAX_CONSTANTS 32
#define MAX_DISPATCHES 4
#define MAX_USES (MAX_DISPATCHES * MAX_BINDINGS)

typedef int32_t (*DispatchFunction)(const char *, const uint32_t *, uint32_t, const EmuBinding *, uint32_t,
                                    const uint32_t[3], const uint32_t[3], int32_t, uint64_t, EmuReport *);

static struct {
    int32_t fault, after;
    int64_t error_code, macos, latency_us;
    uint64_t max_buffer_bytes, seed;
    int32_t schedule;
    char name[64], compiler[512], directory[512], violation[128];
    int64_t live, libraries, pipelines, buffers, violations, dispatches, in_flight;
    int64_t devices, unified, lazy, hold, guard, queue_limit, blocked, blits;
    int64_t ending; /* threads that have told of a completion and have not let go of it */
} sim = {.macos = 1500,
         .latency_us = 300,
         .max_buffer_bytes = 1ull << 32,
         .name = "Apple M1 (test double)",
         .devices = 1,
         .unified = 1};

static pthread_mutex_t sim_lock = PTHREAD_MUTEX_INITIALIZER;
/* Of queues and of the states of command buffers. */
static pthread_mutex_t queue_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t queue_moved = PTHREAD_COND_INITIALIZER;

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
void ane_sim_metal_set_devices(int64_t devices) { sim.devices = devices; }
void ane_sim_metal_set_unified(int64_t unified) { sim.unified = unified; }
void ane_sim_metal_set_lazy(int64_t lazy) { sim.lazy = lazy; }
void ane_sim_metal_set_guard(int64_t guard) { sim.guard = guard; }
void ane_sim_metal_set_queue_limit(int64_t limit) { sim.queue_limit = limit; }
void ane_sim_metal_set_hold(int64_t hold)
{
    pthread_mutex_lock(&queue_lock);
    sim.hold = hold;
    pthread_cond_broadcast(&queue_moved);
    pthread_mutex_unlock(&queue_lock);
}
@class SimCommandBuffer;

/* A thread that executes a command buffer. */
typedef struct Worker {
    SimCommandBuffer *commands;
    pthread_t thread;
    struct Worker *next;
} Worker;

static Worker *finished; /* under sim_lock */

/* Waits for the last steps of threads that have finished: what they hold counts as a leak otherwise. */
static void reap(void)
{
    Worker *all;
    pthread_mutex_lock(&sim_lock);
    all = finished;
    finished = NULL;
    pthread_mutex_unlock(&sim_lock);
    while (all) {
        Worker *next = all->next;
        pthread_join(all->thread, NULL);
        free(all);
        all = next;
    }
}

int64_t ane_sim_metal_live_objects(void)
{
    while (__atomic_load_n(&sim.ending, __ATOMIC_SEQ_CST)) {
        usleep(20);
    }
    reap();
    return __atomic_load_n(&sim.live, __ATOMIC_SEQ_CST);
}
/* ThreadSanitizer reports threads that nobody joined. */
__attribute__((destructor)) static void reap_the_last(void)
{
    ane_sim_metal_live_objects();
}
int64_t ane_sim_metal_libraries_compiled(void) { return sim.libraries; }
int64_t ane_sim_metal_pipelines_made(void) { return sim.pipelines; }
int64_t ane_sim_metal_buffers_made(void) { return sim.buffers; }
int64_t ane_sim_metal_violations(void) { return sim.violations; }
const char *ane_sim_metal_last_violation(void) { return sim.violation; }
int64_t ane_sim_metal_take_violations(void) { return __atomic_exchange_n(&sim.violations, 0, __ATOMIC_SEQ_CST); }
int64_t ane_sim_metal_dispatches(void) { return sim.dispatches; }
int64_t ane_sim_metal_blocked(void) { return sim.blocked; }
int64_t ane_sim_metal_lazy(void) { return sim.lazy; }
int64_t ane_sim_metal_blits(void) { return sim.blits; }
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

static void raise_if(int32_t fault, const char *where)
{
    if (sim_faulty(fault)) {
        [NSException raise:NSInternalInconsistencyException format:@"planted exception at %s", where];
    }
}

/* The shims' calloc, where they are linked with -Wl,--wrap=calloc. */
void *__real_calloc(size_t count, size_t size) __attribute__((weak));
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size)
{
    return sim_faulty(SIM_FAULT_NO_MEMORY) ? NULL : __real_calloc(count, size);
}

/* ---- memory -------------------------------------------------------------------------------- */

/* Sanitizers know one address of a byte: with them there is no second one, and nothing is closed. */
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define TWO_VIEWS 0
#else
#define TWO_VIEWS 1
#endif

#define MAX_MAPPINGS 16384

/* The host's views of buffers, which the signal handler looks up. */
static struct {
    char *start;
    size_t length;
} mappings[MAX_MAPPINGS];
static pthread_mutex_t memory_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction earlier_action;

/* A touch of closed memory is a violation, and goes on. */
static void on_fault(int number, siginfo_t *info, void *context)
{
    const char *at = info->si_addr;
    (void)context;
    for (int i = 0; i < MAX_MAPPINGS; ++i) {
        char *start = __atomic_load_n(&mappings[i].start, __ATOMIC_SEQ_CST);
        if (start && at >= start && at < start + mappings[i].length) {
            mprotect(start, mappings[i].length, PROT_READ | PROT_WRITE);
            sim_violation("the host touched memory that a command buffer in flight uses");
            return;
        }
    }
    sigaction(number, &earlier_action, NULL);
}

static void install_handler(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &earlier_action);
}

/* Gives a buffer memory that is NaN; NO where there is none. */
static BOOL map_buffer(SimBuffer *buffer, NSUInteger bytes, BOOL private)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    void *device = MAP_FAILED, *host = MAP_FAILED;
    size_t mapped = (bytes + 4095) / 4096 * 4096;
    int file, free_entry = 0;
    if (!TWO_VIEWS) {
        if (posix_memalign(&buffer->memory, 4096, bytes) != 0) {
            return NO;
        }
        buffer->host = private ? NULL : buffer->memory;
        buffer->bytes = bytes;
        memset(buffer->memory, 0xff, bytes);
        return YES;
    }
    pthread_once(&once, install_handler);
    file = memfd_create("buffer", MFD_CLOEXEC);
    if (file >= 0 && ftruncate(file, (off_t)mapped) == 0) {
        device = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        host = private ? NULL : mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    }
    close(file);
    if (device == MAP_FAILED || host == MAP_FAILED) {
        return NO;
    }
    buffer->memory = device;
    buffer->host = host;
    buffer->mapped = mapped;
    buffer->bytes = bytes;
    memset(device, 0xff, bytes);
    pthread_mutex_lock(&memory_lock);
    while (host && free_entry < MAX_MAPPINGS && mappings[free_entry].start) {
        ++free_entry;
    }
    if (host && free_entry < MAX_MAPPINGS) {
        mappings[free_entry].length = mapped;
        __atomic_store_n(&mappings[free_entry].start, host, __ATOMIC_SEQ_CST);
    }
    pthread_mutex_unlock(&memory_lock);
    return YES;
}

static void unmap_buffer(SimBuffer *buffer)
{
    if (!buffer->mapped) {
        free(buffer->wraps ? NULL : buffer->memory);
        return;
    }
    pthread_mutex_lock(&memory_lock);
    for (int i = 0; i < MAX_MAPPINGS; ++i) {
        if (buffer->host && mappings[i].start == buffer->host) {
            __atomic_store_n(&mappings[i].start, NULL, __ATOMIC_SEQ_CST);
        }
    }
    pthread_mutex_unlock(&memory_lock);
    munmap(buffer->memory, buffer->mapped);
    if (buffer->host) {
        munmap(buffer->host, buffer->mapped);
    }
}

/* Counts a command buffer in flight, and closes or opens memory. The caller's own pages are left alone. */
static void count_use(SimBuffer *buffer, BOOL writes, int by)
{
    pthread_mutex_lock(&memory_lock);
    *(writes ? &buffer->writers : &buffer->readers) += by;
    if (sim.guard && buffer->host && buffer->mapped) {
        mprotect(buffer->host, buffer->mapped,
                 buffer->writers ? PROT_NONE : buffer->readers ? PROT_READ : PROT_READ | PROT_WRITE);
    }
    pthread_mutex_unlock(&memory_lock);
}

/* ---- objects ------------------------------------------------------------------------------- */

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
    unmap_buffer(self);
    [super dealloc];
}
- (void *)contents
{
    return host;
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

/* ---- queues and command buffers ------------------------------------------------------------ */

/* One recorded dispatch, or copy where there is no pipeline: from buffer 0 to buffer 1. */
typedef struct Dispatch {
    SimPipeline *pipeline;
    SimBuffer *buffers[MAX_BINDINGS];
    NSUInteger offsets[MAX_BINDINGS];
    uint8_t *bytes[MAX_BINDINGS];
    NSUInteger lengths[MAX_BINDINGS];
    MTLSize grid, threads;
} Dispatch;

typedef struct Use {
    SimBuffer *buffer; /* retained */
    BOOL writes;
} Use;

@interface SimEncoder : SimObject <MTLComputeCommandEncoder, MTLBlitCommandEncoder> {
@public
    SimCommandBuffer *owner; /* retained */
    Dispatch state;
    BOOL ended;
}
@end

/* Runs its command buffers in the order in which they were committed. */
@interface SimQueue : SimObject <MTLCommandQueue> {
@public
    int64_t committed, completed, uncompleted, limit;
    NSMutableArray *pending; /* committed, where command buffers are executed by who waits; under its own lock */
    pthread_mutex_t pending_lock;
}
@end

@interface SimCommandBuffer : SimObject <MTLCommandBuffer> {
@public
    SimQueue *queue; /* retained */
    int64_t turn;
    Dispatch dispatches[MAX_DISPATCHES];
    NSUInteger dispatch_count;
    Use uses[MAX_USES];
    NSUInteger use_count;
    SimLate late;
    void *late_argument;
    BOOL encoding, committed, refused, lazy, fails, early;
    int looks;
    MTLCommandBufferStatus state;
    NSError *failure;
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

void sim_use(id<MTLCommandBuffer> commands, SimBuffer *buffer, BOOL writes)
{
    SimCommandBuffer *owner = (SimCommandBuffer *)commands;
    if (owner->use_count == MAX_USES) {
        [NSException raise:NSInternalInconsistencyException format:@"the double has no room for another use"];
    }
    owner->uses[owner->use_count++] = (Use){[buffer retain], writes};
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
- (Dispatch *)add
{
    if (owner->dispatch_count == MAX_DISPATCHES) {
        [NSException raise:NSInternalInconsistencyException format:@"the double has no room for another dispatch"];
    }
    return &owner->dispatches[owner->dispatch_count++];
}
- (void)dispatchThreadgroups:(MTLSize)grid threadsPerThreadgroup:(MTLSize)threads
{
    Dispatch *d;
    [self check];
    if (sim_faulty(SIM_FAULT_EXCEPTION_ENCODE)) {
        [NSException raise:NSInternalInconsistencyException format:@"planted exception while encoding"];
    }
    sim_throw_foreign();
    if (!state.pipeline) {
        [NSException raise:NSInvalidArgumentException format:@"dispatchThreadgroups: without a pipeline"];
    }
    d = [self add];
    *d = state;
    d->grid = grid;
    d->threads = threads;
    [d->pipeline retain];
    for (int i = 0; i < MAX_BINDINGS; ++i) {
        if (d->buffers[i]) {
            [d->buffers[i] retain];
            sim_use((id<MTLCommandBuffer>)owner, d->buffers[i], i == ANE_METAL_BUFFER_C);
        }
        if (state.bytes[i]) {
            d->bytes[i] = malloc(state.lengths[i]);
            memcpy(d->bytes[i], state.bytes[i], state.lengths[i]);
        }
    }
}
- (void)copyFromBuffer:(id<MTLBuffer>)source
          sourceOffset:(NSUInteger)sourceOffset
              toBuffer:(id<MTLBuffer>)destination
     destinationOffset:(NSUInteger)destinationOffset
                  size:(NSUInteger)size
{
    SimBuffer *from = (SimBuffer *)source, *to = (SimBuffer *)destination;
    Dispatch *d;
    [self check];
    raise_if(SIM_FAULT_EXCEPTION_BLIT, "a copy");
    if (sourceOffset % 4 || destinationOffset % 4 || size % 4) {
        sim_violation("a copy between buffers of what are not whole words, which macOS does not do");
    }
    if (!from || !to || from == to || sourceOffset > from->bytes || size > from->bytes - sourceOffset ||
        destinationOffset > to->bytes || size > to->bytes - destinationOffset) {
        [NSException raise:NSInvalidArgumentException format:@"a copy beyond a buffer"];
    }
    d = [self add];
    d->buffers[0] = [from retain];
    d->buffers[1] = [to retain];
    d->offsets[0] = sourceOffset;
    d->offsets[1] = destinationOffset;
    d->lengths[0] = size;
    sim_use((id<MTLCommandBuffer>)owner, from, NO);
    sim_use((id<MTLCommandBuffer>)owner, to, YES);
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
    if (!d->pipeline) {
        count(&sim.blits, 1);
        memcpy((char *)d->buffers[1]->memory + d->offsets[1], (char *)d->buffers[0]->memory + d->offsets[0], d->lengths[0]);
        return YES;
    }
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

static MTLCommandBufferStatus state_of(SimCommandBuffer *commands)
{
    return __atomic_load_n(&commands->state, __ATOMIC_SEQ_CST);
}

/* Tells of the end of a command buffer. */
static void end_commands(SimCommandBuffer *commands, NSError *failure, BOOL failed)
{
    for (NSUInteger i = 0; i < commands->use_count; ++i) {
        count_use(commands->uses[i].buffer, commands->uses[i].writes, -1);
    }
    commands->failure = [failure retain];
    count(&sim.in_flight, -1);
    pthread_mutex_lock(&queue_lock);
    __atomic_store_n(&commands->state, failed ? MTLCommandBufferStatusError : MTLCommandBufferStatusCompleted,
                     __ATOMIC_SEQ_CST);
    pthread_cond_broadcast(&queue_moved);
    pthread_mutex_unlock(&queue_lock);
}

/* Does the work of a command buffer whose turn it is. */
static void execute(SimCommandBuffer *commands)
{
    @autoreleasepool {
        char text[512];
        NSError *failure = nil;
        if (!commands->early) {
            __atomic_store_n(&commands->state, MTLCommandBufferStatusScheduled, __ATOMIC_SEQ_CST);
            sim_wait(sim.latency_us);
            if (commands->late) {
                commands->late(commands->late_argument, YES);
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
            end_commands(commands, failure, failure || sim_faulty(SIM_FAULT_STATUS_ONLY));
        }
        pthread_mutex_lock(&queue_lock);
        ++commands->queue->completed;
        --commands->queue->uncompleted;
        pthread_cond_broadcast(&queue_moved);
        pthread_mutex_unlock(&queue_lock);
    }
}

/* Executes a command buffer a while after its commit, after what the queue was given before. */
static void *work(void *argument)
{
    Worker *worker = argument;
    SimCommandBuffer *commands = worker->commands;
    pthread_mutex_lock(&queue_lock);
    while (commands->queue->completed != commands->turn || sim.hold) {
        pthread_cond_wait(&queue_moved, &queue_lock);
    }
    pthread_mutex_unlock(&queue_lock);
    count(&sim.ending, commands->early ? 0 : 1);
    execute(commands);
    @autoreleasepool {
        [commands release];
    }
    pthread_mutex_lock(&sim_lock);
    worker->next = finished;
    finished = worker;
    pthread_mutex_unlock(&sim_lock);
    count(&sim.ending, -1);
    return NULL;
}

/* Executes what was committed to a queue of the lazy kind, up to a command buffer, or the first of them. */
static void drain(SimQueue *queue, SimCommandBuffer *last)
{
    BOOL more = YES;
    pthread_mutex_lock(&queue->pending_lock);
    while ([queue->pending count] && more) {
        SimCommandBuffer *commands = [[queue->pending objectAtIndex:0] retain];
        more = commands->early || !last || state_of(last) < MTLCommandBufferStatusCompleted;
        if (more) {
            [queue->pending removeObjectAtIndex:0];
            execute(commands);
            more = last != nil;
        }
        [commands release];
    }
    pthread_mutex_unlock(&queue->pending_lock);
}

@implementation SimCommandBuffer
- (void)dealloc
{
    if (!committed) {
        pthread_mutex_lock(&queue_lock);
        --queue->uncompleted;
        pthread_cond_broadcast(&queue_moved);
        pthread_mutex_unlock(&queue_lock);
    }
    for (NSUInteger i = 0; i < dispatch_count; ++i) {
        release_dispatch(&dispatches[i]);
    }
    for (NSUInteger i = 0; i < use_count; ++i) {
        [uses[i].buffer release];
    }
    if (late) {
        if (!committed && !refused) {
            sim_violation("encoded work was never committed");
        }
        late(late_argument, NO);
    }
    [failure release];
    [(id)queue release];
    [super dealloc];
}
- (SimEncoder *)encoder
{
    SimEncoder *encoder = [[[SimEncoder alloc] init] autorelease];
    if (encoding || committed) {
        sim_violation("an encoder of a command buffer that has one, or was committed");
    }
    encoder->owner = [self retain];
    encoding = YES;
    return encoder;
}
- (id<MTLComputeCommandEncoder>)computeCommandEncoder
{
    return sim_faulty(SIM_FAULT_NIL_ENCODER) ? nil : [self encoder];
}
- (id<MTLBlitCommandEncoder>)blitCommandEncoder
{
    return sim_faulty(SIM_FAULT_NIL_BLIT) ? nil : [self encoder];
}
- (void)commit
{
    refused = YES;
    raise_if(SIM_FAULT_EXCEPTION_COMMIT, "a commit");
    refused = NO;
    if (encoding || committed) {
        sim_violation("commit of a command buffer that is being encoded or was committed");
    }
    committed = YES;
    lazy = sim.lazy != 0;
    early = sim_faulty(SIM_FAULT_EARLY_ERROR);
    count(&sim.in_flight, 1);
    for (NSUInteger i = 0; i < use_count; ++i) {
        count_use(uses[i].buffer, uses[i].writes, 1);
    }
    __atomic_store_n(&state, MTLCommandBufferStatusCommitted, __ATOMIC_SEQ_CST);
    if (early) {
        count(&sim.ending, lazy ? 0 : 1);
        if (late) {
            late(late_argument, NO);
            late = NULL;
        }
        end_commands(self, sim_error(MTLCommandBufferErrorDomain, (NSInteger)sim.error_code, @"planted GPU error"), YES);
    }
    if (lazy) {
        pthread_mutex_lock(&queue->pending_lock);
        turn = queue->committed++;
        [queue->pending addObject:self];
        pthread_mutex_unlock(&queue->pending_lock);
    } else {
        Worker *worker = malloc(sizeof *worker);
        reap();
        /* Whoever lets go of it does not wait for it. */
        worker->commands = [self retain];
        turn = __atomic_fetch_add(&queue->committed, 1, __ATOMIC_SEQ_CST);
        if (pthread_create(&worker->thread, NULL, work, worker) != 0) {
            sim_violation("the double has no thread for a command buffer");
        }
    }
}
- (void)waitUntilCompleted
{
    raise_if(SIM_FAULT_EXCEPTION_WAIT, "a wait");
    if (!committed) {
        sim_violation("a wait for a command buffer that was not committed");
        return;
    }
    if (lazy) {
        drain(queue, self);
    }
    pthread_mutex_lock(&queue_lock);
    while (state_of(self) < MTLCommandBufferStatusCompleted) {
        pthread_cond_wait(&queue_moved, &queue_lock);
    }
    pthread_mutex_unlock(&queue_lock);
}
- (MTLCommandBufferStatus)status
{
    raise_if(SIM_FAULT_EXCEPTION_STATUS, "a look at the status");
    if (lazy && state_of(self) < MTLCommandBufferStatusCompleted && ++looks == 3) {
        drain(queue, self);
    }
    return state_of(self);
}
- (NSError *)error
{
    raise_if(SIM_FAULT_EXCEPTION_ERROR, "an error");
    return state_of(self) < MTLCommandBufferStatusCompleted ? nil : failure;
}
- (CFTimeInterval)GPUStartTime
{
    raise_if(SIM_FAULT_EXCEPTION_TIMES, "the times");
    return 1.0 + (double)turn;
}
- (CFTimeInterval)GPUEndTime
{
    return 1.5 + (double)turn;
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
- (void)dealloc
{
    [pending release];
    pthread_mutex_destroy(&pending_lock);
    [super dealloc];
}
/* Waits for room, as Metal does, but not for ever. */
- (void)reserve
{
    static BOOL waited_in_vain;
    int64_t waits = 0;
    pthread_mutex_lock(&queue_lock);
    while (uncompleted >= limit && !waited_in_vain) {
        struct timespec end;
        count(&sim.blocked, waits == 0);
        pthread_mutex_unlock(&queue_lock);
        drain(self, nil);
        pthread_mutex_lock(&queue_lock);
        clock_gettime(CLOCK_REALTIME, &end);
        end.tv_nsec += 2000000;
        end.tv_sec += end.tv_nsec / 1000000000;
        end.tv_nsec %= 1000000000;
        if (uncompleted >= limit && pthread_cond_timedwait(&queue_moved, &queue_lock, &end) != 0 && ++waits == 10000) {
            sim_violation("a command buffer of a full queue, none of which can complete");
            waited_in_vain = YES;
        }
    }
    ++uncompleted;
    pthread_mutex_unlock(&queue_lock);
}
- (id<MTLCommandBuffer>)commandBuffer
{
    SimCommandBuffer *commands;
    raise_if(SIM_FAULT_EXCEPTION_COMMAND_BUFFER, "a command buffer");
    if (sim_faulty(SIM_FAULT_NIL_COMMAND_BUFFER)) {
        return nil;
    }
    [self reserve];
    commands = [[[SimCommandBuffer alloc] init] autorelease];
    commands->queue = [self retain];
    return commands;
}
@end

/* ---- devices ------------------------------------------------------------------------------- */

@interface SimDevice : SimObject <MTLDevice> {
@public
    int64_t number; /* 0: the default */
}
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
    return number ? [NSString stringWithFormat:@"%s, number %d", sim.name, (int)number] : [NSString stringWithUTF8String:sim.name];
}
- (uint64_t)registryID
{
    return 0x100000 + (uint64_t)number;
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
    raise_if(SIM_FAULT_EXCEPTION_UNIFIED, "the kind of memory");
    return sim.unified != 0;
}
- (NSUInteger)maxBufferLength
{
    return (NSUInteger)sim.max_buffer_bytes;
}
- (id<MTLCommandQueue>)newCommandQueueWithMaxCommandBufferCount:(NSUInteger)most
{
    SimQueue *queue;
    raise_if(SIM_FAULT_EXCEPTION_QUEUE, "a queue");
    if (sim_faulty(SIM_FAULT_NIL_QUEUE)) {
        return nil;
    }
    queue = [[SimQueue alloc] init];
    queue->limit = sim.queue_limit ? sim.queue_limit : (int64_t)most;
    queue->pending = [[NSMutableArray alloc] init];
    pthread_mutex_init(&queue->pending_lock, NULL);
    return queue;
}
- (id<MTLBuffer>)newBufferWithLength:(NSUInteger)length options:(MTLResourceOptions)options
{
    SimBuffer *buffer;
    if (sim_faulty(SIM_FAULT_EXCEPTION_BUFFER)) {
        [NSException raise:NSMallocException format:@"planted exception at a buffer"];
    }
    if (length == 0 || length > sim.max_buffer_bytes || sim_faulty(SIM_FAULT_NIL_BUFFER)) {
        return nil;
    }
    count(&sim.buffers, 1);
    buffer = [[SimBuffer alloc] init];
    if (!map_buffer(buffer, length, options == MTLResourceStorageModePrivate)) {
        [buffer release];
        return nil;
    }
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
    buffer->memory = buffer->host = pointer;
    buffer->bytes = length;
    buffer->wraps = YES;
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

static SimDevice *new_device(int64_t number)
{
    SimDevice *device = [[SimDevice alloc] init];
    device->number = number;
    return device;
}

id<MTLDevice> MTLCreateSystemDefaultDevice(void)
{
    return sim_faulty(SIM_FAULT_NO_DEVICE) ? nil : new_device(0);
}

/* In an order of their own: the default is the last. */
NSArray *MTLCopyAllDevices(void)
{
    NSMutableArray *all = [[NSMutableArray alloc] init];
    if (sim_faulty(SIM_FAULT_EXCEPTION_DEVICES)) {
        [all release];
        [NSException raise:NSInternalInconsistencyException format:@"planted exception at the devices"];
    }
    for (int64_t number = sim.devices; number-- > 0;) {
        SimDevice *device = new_device(number);
        [all addObject:device];
        [device release];
    }
    return all;
}
