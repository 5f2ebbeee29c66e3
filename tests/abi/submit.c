/*
 * SUBMIT AND WAIT of ane_matmul.h, with operands in buffers of both kinds and constants: order, failures, timeouts,
 * executors that end with submissions in flight, many submissions, many threads. What needs a fault runs on the
 * reference shim alone. Link it with a shim. Exits with 0 when all is right.
 */
#include "support.h"

#include <math.h>
#include <sys/wait.h>

/* How many variants of A and of C a buffer holds, and how far they are from each other. */
enum { PLACES = 64, PLACE_BYTES = 256 };
enum { MOST_ROUNDS = 10, THREADS = 4 };

/* A device with a product and its operands. */
typedef struct Bed {
    ANEDevice *device;
    ANEConstant *constant; /* B, or NULL where the product holds it, or it comes with each run */
    ANEProduct *product;
    ANEBuffer *a, *b, *c;
    uint32_t depth;
} Bed;

typedef enum Way { B_WITH_RUNS, B_EMBEDDED, B_CONSTANT } Way;

static void poison(Bed *bed, unsigned place) {
    float nothing[M * N];
    for (int i = 0; i < M * N; i++) nothing[i] = NAN;
    OK(shim->buffer_write(bed->c, place * PLACE_BYTES, nothing, sizeof nothing, &error));
}

static void check(Bed *bed, unsigned place) {
    float c[M * N];
    OK(shim->buffer_read(bed->c, place * PLACE_BYTES, c, sizeof c, &error));
    check_c(place, c);
}

static Bed open_bed(const char *memory, const char *fault, ANEBufferKind kind, Way way) {
    Bed bed = {.device = open_device(memory, fault), .depth = info_of_device().max_queue_depth};
    float a[M * K], b[K * N];
    if (bed.depth > PLACES) bed.depth = PLACES;
    fill_b(b);
    OK(shim->buffer_create(bed.device, kind, PLACES * PLACE_BYTES, &bed.a, &error));
    OK(shim->buffer_create(bed.device, kind, PLACES * PLACE_BYTES, &bed.c, &error));
    for (unsigned place = 0; place < PLACES; place++) {
        fill_a(place, a);
        OK(shim->buffer_write(bed.a, place * PLACE_BYTES, a, sizeof a, &error));
    }
    if (way == B_WITH_RUNS) {
        OK(shim->buffer_create(bed.device, kind, sizeof b, &bed.b, &error));
        OK(shim->buffer_write(bed.b, 0, b, sizeof b, &error));
    }
    if (way == B_CONSTANT) {
        const ANEConstantDesc desc = {.struct_size = sizeof desc, .type = ANE_TYPE_F32, .data = b, .bytes = sizeof b};
        OK(shim->constant_create(bed.device, &desc, &bed.constant, &error));
    }
    bed.product = compile_product(bed.device, way == B_EMBEDDED ? b : NULL, bed.constant);
    memset(b, 0, sizeof b); /* the shim has what it needs of it */
    return bed;
}

static void close_bed(Bed *bed) {
    shim->product_destroy(bed->product);
    shim->constant_destroy(bed->constant);
    shim->buffer_destroy(bed->a);
    shim->buffer_destroy(bed->b);
    shim->buffer_destroy(bed->c);
    shim->device_close(bed->device);
}

static ANEMatMulExecutor *make_executor(Bed *bed, uint32_t depth) {
    ANEMatMulExecutor *executor = NULL;
    const ANEExecutorOptions options = {sizeof options, depth};
    OK(shim->executor_create(bed->product, &options, &executor, &error));
    return executor;
}

static ANERunArgs args_of(Bed *bed, unsigned place) {
    ANERunArgs args;
    memset(&args, 0, sizeof args);
    args.struct_size = sizeof args;
    args.m = M;
    args.a = (ANEOperand){NULL, bed->a, place * PLACE_BYTES, M * K * sizeof(float)};
    if (bed->b != NULL) args.b = (ANEOperand){NULL, bed->b, 0, K * N * sizeof(float)};
    args.c = (ANEOperand){NULL, bed->c, place * PLACE_BYTES, M * N * sizeof(float)};
    return args;
}

/* Submits with arguments that are gone when it returns. */
static ANETicket submit(Bed *bed, ANEMatMulExecutor *executor, unsigned place) {
    ANETicket ticket;
    ANERunArgs *args = malloc(sizeof *args);
    MUST(args != NULL);
    *args = args_of(bed, place);
    OK(shim->executor_submit(executor, args, &ticket, &error));
    memset(args, 0xa5, sizeof *args);
    free(args);
    return ticket;
}

static ANEStatus wait_for(ANEMatMulExecutor *executor, ANETicket ticket, uint64_t timeout_ns) {
    return shim->executor_wait(executor, ticket, timeout_ns, NULL, &error);
}

static void finish(Bed *bed, ANEMatMulExecutor *executor, ANETicket ticket, unsigned place) {
    OK(wait_for(executor, ticket, UINT64_MAX));
    check(bed, place);
}

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* Fills the queue and waits for the last: then all are complete, and right. */
static void in_order(Bed *bed, unsigned rounds) {
    ANEMatMulExecutor *executor = make_executor(bed, bed->depth);
    ANETicket all[MOST_ROUNDS * PLACES];
    for (unsigned round = 0; round < rounds; round++) {
        unsigned before = round * bed->depth;
        ANETicket *tickets = all + before;
        for (unsigned i = 0; i < bed->depth; i++) poison(bed, i);
        for (unsigned i = 0; i < bed->depth; i++) {
            tickets[i] = submit(bed, executor, i);
            for (unsigned j = 0; j < before + i; j++) MUST(all[j] != tickets[i]);
        }
        unsigned last = bed->depth - 1;
        finish(bed, executor, tickets[last], last);
        for (unsigned i = 0; i < last; i++) {
            OK(wait_for(executor, tickets[i], 0));
            check(bed, i);
        }
    }
    shim->executor_destroy(executor);
}

/* Waits for each, the oldest first: none is called complete before it is. */
static void one_by_one(Bed *bed) {
    ANEMatMulExecutor *executor = make_executor(bed, bed->depth);
    ANETicket tickets[PLACES];
    for (unsigned i = 0; i < bed->depth; i++) poison(bed, i);
    for (unsigned i = 0; i < bed->depth; i++) tickets[i] = submit(bed, executor, i);
    for (unsigned i = 0; i < bed->depth; i++) finish(bed, executor, tickets[i], i);
    shim->executor_destroy(executor);
}

/* A run after submissions, with operands in buffers and in plain memory. */
static void runs_between(Bed *bed) {
    ANEMatMulExecutor *executor = make_executor(bed, 1);
    finish(bed, executor, submit(bed, executor, 3), 3);
    float c[M * N];
    ANERunInfo info;
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    ANERunArgs args = args_of(bed, 5);
    args.c = (ANEOperand){c, NULL, 0, sizeof c};
    args.info = &info;
    OK(shim->executor_run(executor, &args, &error));
    check_c(5, c);
    MUST(info.device_start_ns <= info.device_end_ns);
    ANETicket ticket = submit(bed, executor, 4);
    uint64_t run_end_ns = info.device_end_ns;
    OK(shim->executor_wait(executor, ticket, UINT64_MAX, &info, &error));
    check(bed, 4);
    MUST(info.device_start_ns <= info.device_end_ns);
    /* One clock for all of a device. */
    MUST(info.device_start_ns == 0 || run_end_ns <= info.device_start_ns);
    shim->executor_destroy(executor);
}

/* What was submitted is complete when its executor is gone, and nothing writes to its buffers any more. */
static void destroyed_in_flight(Bed *bed) {
    for (unsigned i = 0; i < bed->depth; i++) poison(bed, i);
    ANEMatMulExecutor *executor = make_executor(bed, bed->depth);
    for (unsigned i = 0; i < bed->depth; i++) submit(bed, executor, i);
    shim->executor_destroy(executor);
    for (unsigned i = 0; i < bed->depth; i++) check(bed, i);
}

/* The memory of this process that is in use, or 0 where that is not to be had. */
static long resident_bytes(void) {
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL) return 0;
    if (fscanf(file, "%*d %ld", &pages) != 1) pages = 0;
    fclose(file);
    return pages * sysconf(_SC_PAGESIZE);
}

#if defined(__has_feature)
#define HAS_FEATURE(name) __has_feature(name)
#else
#define HAS_FEATURE(name) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || HAS_FEATURE(address_sanitizer) || \
    HAS_FEATURE(thread_sanitizer)
enum { MEMORY_IS_OURS = 0 };
#else
enum { MEMORY_IS_OURS = 1 };
#endif

/* So many that what each left behind would show. */
static void many(Bed *bed, unsigned count) {
    ANEMatMulExecutor *executor = make_executor(bed, bed->depth);
    ANETicket tickets[PLACES];
    long resident = 0;
    for (unsigned i = 0; i < count + bed->depth; i++) {
        unsigned place = i % bed->depth;
        if (i >= bed->depth) finish(bed, executor, tickets[place], place);
        if (i < count) tickets[place] = submit(bed, executor, place);
        if (i == count / 10) resident = resident_bytes();
    }
    /* 22 bytes for each. */
    MUST(!MEMORY_IS_OURS || resident_bytes() - resident < 2 << 20);
    shim->executor_destroy(executor);
}

typedef struct Share {
    Bed *bed;
    ANEMatMulExecutor *executor; /* that it is given with `ticket` in flight, and leaves with another */
    ANETicket ticket;
    unsigned first, rounds; /* of its places in C */
} Share;

/* An executor of its own, and one that others used before, on operands that all read. */
static void *use_share(void *argument) {
    Share *share = argument;
    Bed *bed = share->bed;
    enum { OWN = PLACES / THREADS };
    uint32_t depth = bed->depth < OWN ? bed->depth : OWN - 1;
    ANEMatMulExecutor *executor = make_executor(bed, depth);
    ANETicket tickets[OWN];
    for (unsigned round = 0; round < share->rounds; round++) {
        for (unsigned i = 0; i < depth; i++) tickets[i] = submit(bed, executor, share->first + i);
        for (unsigned i = 0; i < depth; i++) finish(bed, executor, tickets[i], share->first + i);
    }
    shim->executor_destroy(executor);
    unsigned place = share->first + OWN - 1;
    finish(bed, share->executor, share->ticket, place);
    share->ticket = submit(bed, share->executor, place);
    return NULL;
}

static void in_threads(Bed *bed, unsigned rounds) {
    pthread_t threads[THREADS];
    Share shares[THREADS];
    for (unsigned i = 0; i < PLACES; i++) poison(bed, i);
    for (unsigned i = 0; i < THREADS; i++) {
        unsigned first = i * (PLACES / THREADS);
        ANEMatMulExecutor *executor = make_executor(bed, 1);
        shares[i] = (Share){bed, executor, submit(bed, executor, first + PLACES / THREADS - 1), first, rounds};
        MUST(pthread_create(&threads[i], NULL, use_share, &shares[i]) == 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        finish(bed, shares[i].executor, shares[i].ticket, shares[i].first + PLACES / THREADS - 1);
        shim->executor_destroy(shares[i].executor);
    }
}

/* What every shim does that takes submissions, on one kind of memory. */
static void everything(const char *memory, ANEBufferKind kind, Way way, unsigned count) {
    Bed bed = open_bed(memory, "", kind, way);
    in_order(&bed, MOST_ROUNDS);
    one_by_one(&bed);
    runs_between(&bed);
    destroyed_in_flight(&bed);
    in_threads(&bed, 40);
    many(&bed, count);
    close_bed(&bed);
}

/* ---- the reference shim -------------------------------------------------------------------- */

/* The contract that a caller breaks: an error, and what was submitted goes on. */
static void misuse(void) {
    Bed bed = open_bed("", "", ANE_BUFFER_HOST_VISIBLE, B_WITH_RUNS);
    ANEMatMulExecutor *executor = NULL;
    const ANEExecutorOptions too_deep = {sizeof too_deep, bed.depth + 1};
    GIVES(ANE_STATUS_INVALID_ARGUMENT, shim->executor_create(bed.product, &too_deep, &executor, &error));
    executor = make_executor(&bed, 2);
    ANERunArgs args = args_of(&bed, 9), plain = args, with_info = args, too_many = args;
    float c[M * N];
    ANERunInfo info;
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    plain.c = (ANEOperand){c, NULL, 0, sizeof c};
    with_info.info = &info;
    too_many.m = M + 1;
    ANETicket ticket = 77;
    GIVES(ANE_STATUS_INVALID_ARGUMENT, shim->executor_submit(executor, &plain, &ticket, &error));
    GIVES(ANE_STATUS_INVALID_ARGUMENT, shim->executor_submit(executor, &with_info, &ticket, &error));
    GIVES(ANE_STATUS_INVALID_ARGUMENT, shim->executor_submit(executor, &too_many, &ticket, &error));
    GIVES(ANE_STATUS_INVALID_ARGUMENT, shim->executor_run(executor, &too_many, &error));
    GIVES(ANE_STATUS_INVALID_ARGUMENT, wait_for(executor, 1, UINT64_MAX));
    ANETicket first = submit(&bed, executor, 0), second = submit(&bed, executor, 1);
    MUST(first == 1 && second == 2);
    GIVES(ANE_STATUS_INVALID_ARGUMENT, shim->executor_submit(executor, &args, &ticket, &error));
    MUST(ticket == 77);
    GIVES(ANE_STATUS_INVALID_ARGUMENT, wait_for(executor, 0, 0));
    GIVES(ANE_STATUS_INVALID_ARGUMENT, wait_for(executor, 3, 0));
    finish(&bed, executor, second, 1);
    GIVES(ANE_STATUS_INVALID_ARGUMENT, wait_for(executor, second, UINT64_MAX));
    GIVES(ANE_STATUS_INVALID_ARGUMENT, shim->executor_run(executor, &args, &error));
    ANETicket third = submit(&bed, executor, 2);
    MUST(third == 3);
    finish(&bed, executor, first, 0);
    finish(&bed, executor, third, 2);
    OK(shim->executor_run(executor, &args, &error));
    check(&bed, 9);
    shim->executor_destroy(executor);
    executor = make_executor(&bed, 0);
    GIVES(ANE_STATUS_INVALID_ARGUMENT, shim->executor_submit(executor, &args, &ticket, &error));
    shim->executor_destroy(executor);
    close_bed(&bed);
}

/* Waits of a time that are over before the submission is: in a process of its own, since this one never is. */
static void timeouts(void) {
    pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) {
        alarm(30);
        Bed bed = open_bed("", "hang@work", ANE_BUFFER_HOST_VISIBLE, B_EMBEDDED);
        ANEMatMulExecutor *executor = make_executor(&bed, 2);
        ANETicket tickets[2] = {submit(&bed, executor, 0), submit(&bed, executor, 1)};
        for (int i = 0; i < 2; i++) {
            GIVES(ANE_STATUS_PENDING, wait_for(executor, tickets[i], 0));
            GIVES(ANE_STATUS_PENDING, wait_for(executor, tickets[i], 1000000));
        }
        _exit(0);
    }
    int status = 1;
    MUST(waitpid(child, &status, 0) == child && status == 0);
}

/* Others that complete meanwhile end no wait, with an end or without; nobody is told too early. */
static void slow(void) {
    Bed bed = open_bed("", "slow:1000000@work", ANE_BUFFER_HOST_VISIBLE, B_CONSTANT);
    in_order(&bed, 1);
    one_by_one(&bed);
    destroyed_in_flight(&bed);
    ANEMatMulExecutor *executor = make_executor(&bed, 3);
    for (unsigned i = 0; i < 3; i++) poison(&bed, i);
    ANETicket tickets[3];
    for (unsigned i = 0; i < 3; i++) tickets[i] = submit(&bed, executor, i);
    OK(wait_for(executor, tickets[2], UINT64_MAX - 1));
    for (unsigned i = 0; i < 3; i++) check(&bed, i);
    for (unsigned i = 0; i < 2; i++) OK(wait_for(executor, tickets[i], 0));
    shim->executor_destroy(executor);
    close_bed(&bed);
}

/* Some fail, in their turn; the others are right. */
static void failing(void) {
    Bed bed = open_bed("", "fail%3@work", ANE_BUFFER_HOST_VISIBLE, B_EMBEDDED);
    ANEMatMulExecutor *executor = make_executor(&bed, bed.depth);
    ANETicket tickets[PLACES];
    unsigned failed = 0;
    for (unsigned i = 0; i < bed.depth; i++) tickets[i] = submit(&bed, executor, i);
    for (unsigned i = 0; i < bed.depth; i++) {
        unsigned from_last = bed.depth - 1 - i;
        ANEStatus status = wait_for(executor, tickets[from_last], i == 0 ? UINT64_MAX : 0);
        if (status == ANE_STATUS_RUN_FAILED) {
            failed++;
            MUST(error.status == ANE_STATUS_RUN_FAILED && strcmp(error.message, "planted fault") == 0);
        } else {
            GIVES(ANE_STATUS_OK, status);
            check(&bed, from_last);
        }
    }
    MUST(failed > 0 && failed < bed.depth);
    shim->executor_destroy(executor);
    close_bed(&bed);
}

/* The device says nothing any more: the submission stays open until the watchdog ends it. */
static void lost(void) {
    enum { SILENT_NS = 50000000 };
    Bed bed = open_bed("", "lose:50000000@work", ANE_BUFFER_HOST_VISIBLE, B_EMBEDDED);
    ANEMatMulExecutor *executor = make_executor(&bed, 2);
    uint64_t since_ns = now_ns();
    ANETicket tickets[2] = {submit(&bed, executor, 0), submit(&bed, executor, 1)};
    GIVES(ANE_STATUS_NO_DEVICE, wait_for(executor, tickets[0], UINT64_MAX));
    MUST(now_ns() - since_ns >= SILENT_NS);
    GIVES(ANE_STATUS_NO_DEVICE, wait_for(executor, tickets[1], UINT64_MAX));
    submit(&bed, executor, 0);
    shim->executor_destroy(executor);
    close_bed(&bed);
}

/* Computed in another order, complete in the order of submission all the same. */
static void tempted(void) {
    Bed bed = open_bed("", "reorder:100000@work", ANE_BUFFER_HOST_VISIBLE, B_CONSTANT);
    in_order(&bed, 5);
    one_by_one(&bed);
    destroyed_in_flight(&bed);
    close_bed(&bed);
}

/* A fault at a slot fails that slot alone. */
static void faults(void) {
    float word = 0;
    Bed bed = open_bed("", "fail@submit", ANE_BUFFER_HOST_VISIBLE, B_EMBEDDED);
    ANEMatMulExecutor *executor = make_executor(&bed, 1);
    ANERunArgs args = args_of(&bed, 0);
    ANETicket ticket = 77;
    GIVES(ANE_STATUS_INTERNAL, shim->executor_submit(executor, &args, &ticket, &error));
    MUST(ticket == 77);
    OK(shim->executor_run(executor, &args, &error));
    shim->executor_destroy(executor);
    close_bed(&bed);

    bed = open_bed("", "fail@wait", ANE_BUFFER_HOST_VISIBLE, B_EMBEDDED);
    executor = make_executor(&bed, 1);
    for (unsigned i = 0; i < 2; i++) {
        ticket = submit(&bed, executor, i);
        GIVES(ANE_STATUS_INTERNAL, wait_for(executor, ticket, UINT64_MAX));
        check(&bed, i);
    }
    shim->executor_destroy(executor);
    close_bed(&bed);

    bed = open_bed("", "wrong@work", ANE_BUFFER_HOST_VISIBLE, B_EMBEDDED);
    executor = make_executor(&bed, 1);
    OK(wait_for(executor, submit(&bed, executor, 1), UINT64_MAX));
    float right = 0;
    for (int p = 0; p < K; p++) right += element_of_a(1, 0, p) * element_of_b(p, 0);
    OK(shim->buffer_read(bed.c, PLACE_BYTES, &word, sizeof word, &error));
    MUST(word == right + 1 + fabsf(right));
    shim->executor_destroy(executor);
    ANEProductInfo info;
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    OK(shim->product_info(bed.product, &info, &error));
    MUST(info.arithmetic == 0);
    close_bed(&bed);

    bed = open_bed("", "tf32", ANE_BUFFER_HOST_VISIBLE, B_EMBEDDED);
    OK(shim->product_info(bed.product, &info, &error));
    MUST(info.arithmetic == ANE_ARITHMETIC_TF32);
    close_bed(&bed);

    ANEDevice *device = open_device("", "fail@prepare");
    GIVES(ANE_STATUS_INTERNAL, shim->device_prepare(device, &error));
    shim->device_close(device);
    ANEBuffer *buffer = NULL;
    device = open_device("", "fail@buffer");
    GIVES(ANE_STATUS_INTERNAL, shim->buffer_create(device, ANE_BUFFER_DEVICE, 4, &buffer, &error));
    shim->device_close(device);
    device = open_device("", "fail@write");
    OK(shim->buffer_create(device, ANE_BUFFER_DEVICE, sizeof word, &buffer, &error));
    GIVES(ANE_STATUS_INTERNAL, shim->buffer_write(buffer, 0, &word, sizeof word, &error));
    shim->buffer_destroy(buffer);
    shim->device_close(device);
    device = open_device("", "fail@read");
    OK(shim->buffer_create(device, ANE_BUFFER_DEVICE, sizeof word, &buffer, &error));
    GIVES(ANE_STATUS_INTERNAL, shim->buffer_read(buffer, 0, &word, sizeof word, &error));
    shim->buffer_destroy(buffer);
    shim->device_close(device);
    const ANEConstantDesc desc = {
        .struct_size = sizeof desc, .type = ANE_TYPE_F32, .data = &word, .bytes = sizeof word};
    ANEConstant *constant = NULL;
    device = open_device("", "fail@constant");
    GIVES(ANE_STATUS_INTERNAL, shim->constant_create(device, &desc, &constant, &error));
    shim->device_close(device);
    uint32_t count = 0;
    device = open_device("", "fail@count");
    GIVES(ANE_STATUS_INTERNAL, shim->device_count(&count, &error));
    shim->device_close(device);
}

/* Two devices, memory of their own, and no constants. */
static void devices(void) {
    uint32_t count = 0;
    ANEDevice *device = open_device("", "");
    OK(shim->device_count(&count, &error));
    MUST(count == 2);
    ANEDeviceInfo second;
    memset(&second, 0, sizeof second);
    second.struct_size = sizeof second;
    OK(shim->device_info(1, &second, &error));
    MUST(strcmp(second.name, info_of_device().name) != 0);
    GIVES(ANE_STATUS_NO_DEVICE, shim->device_info(2, &second, &error));
    MUST(info_of_device().preferred_buffer == ANE_BUFFER_HOST_VISIBLE);
    MUST((info_of_device().flags & ANE_DEVICE_FLAG_CONSTANTS) != 0);
    shim->device_close(device);
    OK(shim->device_open(1, &device, &error));
    shim->device_close(device);
    GIVES(ANE_STATUS_NO_DEVICE, shim->device_open(2, &device, &error));

    ANEBuffer *buffer = NULL;
    device = open_device("device", "");
    MUST(info_of_device().preferred_buffer == ANE_BUFFER_DEVICE);
    OK(shim->buffer_create(device, ANE_BUFFER_DEVICE, 0, &buffer, &error));
    MUST(shim->buffer_contents(buffer) == NULL);
    shim->buffer_destroy(buffer);
    OK(shim->buffer_create(device, ANE_BUFFER_HOST_VISIBLE, 0, &buffer, &error));
    MUST(shim->buffer_contents(buffer) != NULL);
    shim->buffer_destroy(buffer);
    shim->device_close(device);

    device = open_device("embed", "");
    MUST((info_of_device().flags & ANE_DEVICE_FLAG_CONSTANTS) == 0);
    float word = 0;
    ANEConstant *constant = NULL;
    const ANEConstantDesc desc = {
        .struct_size = sizeof desc, .type = ANE_TYPE_F32, .data = &word, .bytes = sizeof word};
    GIVES(ANE_STATUS_NOT_IMPLEMENTED, shim->constant_create(device, &desc, &constant, &error));
    shim->device_close(device);
}

int main(void) {
    start();
    if (info_of_device().max_queue_depth == 0) {
        puts("not run: the shim takes no submissions");
        return 0;
    }
    bool constants = (info_of_device().flags & ANE_DEVICE_FLAG_CONSTANTS) != 0;
    everything("", ANE_BUFFER_HOST_VISIBLE, B_WITH_RUNS, 100000);
    everything("", ANE_BUFFER_DEVICE, constants ? B_CONSTANT : B_EMBEDDED, 1000);
    if (is_reference()) {
        everything("device", ANE_BUFFER_DEVICE, B_WITH_RUNS, 10000);
        everything("device", ANE_BUFFER_HOST_VISIBLE, B_CONSTANT, 1000);
        everything("embed", ANE_BUFFER_HOST_VISIBLE, B_EMBEDDED, 1000);
        devices();
        misuse();
        timeouts();
        slow();
        failing();
        lost();
        tempted();
        faults();
    }
    puts("1 passed, 0 failed");
    return 0;
}
