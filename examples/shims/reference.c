/*
 * A shim to start from: f32 products and graphs on one thread of the CPU, correct before fast, every slot
 * filled. docs/ABI.md walks through it; graphs are in reference_graph.c. Build it as a dynamic library:
 *
 *     cc -std=c11 -O2 -fPIC -shared -Iinclude examples/shims/reference.c -o libreference.so -lm -pthread
 *     ANE_MATMUL_SHIM=./libreference.so ane-matmul compare
 *
 * What follows is for tests. ANE_REFERENCE_MEMORY has words, in any order, with spaces or commas between: with `device`
 * ANE_BUFFER_DEVICE is memory apart from the host's, which faults when anybody else touches it, and with `embed` the
 * device takes no constants.
 *
 * It misbehaves on demand: ANE_REFERENCE_FAULT=KIND[%N][@SLOT], read when the device is opened (by the slots that
 * need none at each call). With %N it does so in one of N calls, in an order that looks random. A device is not opened
 * with a word that there is not. KIND is one of
 *     abort, exit, fail, flood, hang, print, slow:NS    at any slot; NS are nanoseconds
 *     wrong          at run and work: a wrong result
 *     lose:NS        at work: falls silent, until a watchdog ends the submission, NS after it was submitted
 *     reorder:NS     at work: computes what was submitted last first, and takes NS for each; they complete in their
 *                    order all the same, so that it is no fault
 *     known          a vendor's known fault, refused by supports unless it is allowed
 *     tf32           products claim to round their operands to tf32
 * and SLOT one of
 *     count, info, open, prepare, close      of devices
 *     supports, compile, executor            of products and graphs
 *     buffer, read, write, constant          buffer_create and so on
 *     run (the default), submit, wait        wait: as it ends a ticket
 *     work                                   what the worker does for a submission
 *     first                                  of the runs and submissions of an executor
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#define _DEFAULT_SOURCE 1 /* MAP_ANONYMOUS, and POSIX */
#define _DARWIN_C_SOURCE 1
#include "ane_matmul.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { DEVICES = 2, MAX_QUEUE_DEPTH = 64 };

typedef struct Fault {
    char kind[16]; /* empty: none */
    char slot[16];
    long long ns;
    unsigned one_in;
    atomic_uint calls; /* at the slot */
} Fault;

struct ANEDevice {
    Fault fault;
    bool apart;  /* ANE_BUFFER_DEVICE is memory of its own */
    bool embeds; /* takes no constants */
    uint64_t opened_ns;
};
struct ANEBuffer {
    ANEDevice *device;
    void *data;
    enum { OWNED, WRAPPED, APART } memory;
    /* Of memory that is apart: */
    size_t bytes;
    unsigned users; /* who work on it right now; guarded by the lock */
    pthread_mutex_t lock;
};
struct ANEConstant {
    void *data;
};
struct ANEProduct {
    ANEDevice *device;
    ANEMatMulDesc desc;
    ANEDeviceKind requested;
    const float *b; /* the constant B, or NULL */
    void *copy;     /* of it, unless it is an ANEConstant */
    uint64_t copy_bytes;
    bool loaded; /* from a package */
};

/* ---- errors and faults --------------------------------------------------------------------- */

static ANEStatus report(ANEError *err, ANEStatus status, ANERefusal refusal, const char *message) {
    if (err != NULL) {
        err->status = status;
        err->refusal = refusal;
        err->native_code = 0;
        err->domain[0] = '\0';
        err->log_length = 0;
        snprintf(err->message, sizeof err->message, "%s", message);
    }
    return status;
}

static ANEStatus refuse(ANEError *err, ANERefusal refusal, const char *message) {
    return report(err, ANE_STATUS_REFUSED, refusal, message);
}

static ANEStatus invalid(ANEError *err, const char *message) {
    return report(err, ANE_STATUS_INVALID_ARGUMENT, ANE_REFUSAL_NONE, message);
}

static ANEStatus no_memory(ANEError *err, const char *message) {
    return report(err, ANE_STATUS_OUT_OF_MEMORY, ANE_REFUSAL_NONE, message);
}

static ANEStatus no_device(ANEError *err, const char *message) {
    return report(err, ANE_STATUS_NO_DEVICE, ANE_REFUSAL_NONE, message);
}

static uint64_t clock_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void wait_ns(long long ns) {
    struct timespec time = {ns / 1000000000, ns % 1000000000};
    while (nanosleep(&time, &time) != 0) {
    }
}

static void read_fault(Fault *fault) {
    memset(fault, 0, sizeof *fault);
    const char *text = getenv("ANE_REFERENCE_FAULT");
    if (text == NULL) return;
    strcpy(fault->slot, "run");
    sscanf(text, "%15[a-z0-9]:%lld", fault->kind, &fault->ns);
    const char *at = strchr(text, '@'), *one_in = strchr(text, '%');
    if (one_in != NULL) fault->one_in = (unsigned)strtoul(one_in + 1, NULL, 10);
    if (at != NULL) snprintf(fault->slot, sizeof fault->slot, "%s", at + 1);
}

/* ANE_STATUS_OK if the first `length` bytes of `word` are one of some words, which a NULL ends. */
static ANEStatus one_of(const char *const *words, const char *variable, const char *word, size_t length,
                        ANEError *err) {
    char message[512];
    int end = snprintf(message, sizeof message, "%s: unknown word `%.*s`; one of", variable,
                       (int)(length < 40 ? length : 40), word);
    for (; *words != NULL; words++) {
        if (strlen(*words) == length && memcmp(*words, word, length) == 0) return ANE_STATUS_OK;
        end += snprintf(message + end, sizeof message - (size_t)end, " %s", *words);
    }
    return invalid(err, message);
}

/* ANE_STATUS_OK if both variables have no other words than those that the comment at the top lists. */
static ANEStatus check_words(ANEError *err) {
    static const char *const kinds[] = {"abort", "exit", "fail", "flood", "hang", "print", "slow",
                                        "wrong", "lose", "reorder", "known", "tf32", NULL};
    static const char *const slots[] = {"count", "info", "open", "prepare", "close", "supports", "compile", "executor",
                                        "buffer", "read", "write", "constant", "run", "submit", "wait", "work", "first",
                                        NULL};
    static const char *const form[] = {"KIND[:NS][%N][@SLOT]", NULL};
    static const char *const memory[] = {"device", "embed", NULL};
    ANEStatus status = ANE_STATUS_OK;
    const char *words = getenv("ANE_REFERENCE_MEMORY"), *fault = getenv("ANE_REFERENCE_FAULT");
    while (words != NULL && *(words += strspn(words, " ,")) != '\0' && status == ANE_STATUS_OK) {
        size_t length = strcspn(words, " ,");
        status = one_of(memory, "ANE_REFERENCE_MEMORY", words, length, err);
        words += length;
    }
    if (fault == NULL || *fault == '\0' || status != ANE_STATUS_OK) return status;
    size_t length = strcspn(fault, ":%@");
    status = one_of(kinds, "ANE_REFERENCE_FAULT", fault, length, err);
    fault += length;
    if (*fault == ':') fault += 1 + strspn(fault + 1, "0123456789");
    if (*fault == '%') fault += 1 + strspn(fault + 1, "0123456789");
    if (status != ANE_STATUS_OK || *fault == '\0') return status;
    return *fault == '@' ? one_of(slots, "ANE_REFERENCE_FAULT", fault + 1, strlen(fault + 1), err)
                         : one_of(form, "ANE_REFERENCE_FAULT", fault, strlen(fault), err);
}

/* Whether this call at a slot is one that misbehaves. */
static bool due(Fault *fault, const char *slot) {
    if (strcmp(fault->slot, slot) != 0) return false;
    if (fault->one_in <= 1) return true;
    uint32_t mixed = (atomic_fetch_add(&fault->calls, 1) + 1) * 2654435761u; /* Knuth's multiplicative hash */
    mixed = (mixed ^ mixed >> 15) * 2246822519u;                             /* and a step of xxHash's */
    return (mixed >> 16) % fault->one_in == 0;
}

static bool is_kind(const Fault *fault, const char *kind) { return strcmp(fault->kind, kind) == 0; }

/* ANE_STATUS_OK unless a fault is planted at this slot that fails it. */
static ANEStatus misbehave(Fault *fault, const char *slot, ANEError *err) {
    /* These two ask for themselves: a call is counted once. */
    if (is_kind(fault, "wrong") || is_kind(fault, "lose") || !due(fault, slot)) return ANE_STATUS_OK;
    if (is_kind(fault, "fail")) {
        ANEStatus status = strcmp(slot, "work") == 0 ? ANE_STATUS_RUN_FAILED : ANE_STATUS_INTERNAL;
        return report(err, status, ANE_REFUSAL_NONE, "planted fault");
    }
    if (is_kind(fault, "abort")) abort();
    if (is_kind(fault, "exit")) exit(3);
    for (int i = 0; i < 30000 && is_kind(fault, "flood"); i++) {
        puts("a framework prints far too much");
        fputs("and complains about it\n", stderr);
    }
    if (is_kind(fault, "print")) {
        puts("a framework prints");
        fflush(stdout);
    }
    while (is_kind(fault, "hang")) wait_ns(1000000000);
    if (is_kind(fault, "slow") || is_kind(fault, "reorder")) wait_ns(fault->ns);
    return ANE_STATUS_OK;
}

/* ---- devices ------------------------------------------------------------------------------- */

static bool memory_is(const char *word) {
    const char *words = getenv("ANE_REFERENCE_MEMORY");
    return words != NULL && strstr(words, word) != NULL;
}

static ANEStatus device_count(uint32_t *count, ANEError *err) {
    Fault fault;
    read_fault(&fault);
    *count = DEVICES;
    return misbehave(&fault, "count", err);
}

/* Two of a kind, so that there is one to choose. */
static ANEStatus device_info(uint32_t index, ANEDeviceInfo *info, ANEError *err) {
    Fault fault;
    read_fault(&fault);
    ANEStatus status = misbehave(&fault, "info", err);
    if (status != ANE_STATUS_OK) return status;
    if (index >= DEVICES) return no_device(err, "there is no such device");
    info->flags = memory_is("embed") ? 0 : ANE_DEVICE_FLAG_CONSTANTS;
    info->kind = ANE_DEVICE_CPU;
    info->preferred_buffer = memory_is("device") ? ANE_BUFFER_DEVICE : ANE_BUFFER_HOST_VISIBLE;
    info->wrap_alignment = 1;
    info->max_buffer_bytes = SIZE_MAX / 2;
    info->max_queue_depth = MAX_QUEUE_DEPTH;
    snprintf(info->name, sizeof info->name, "reference shim, one thread, plain C%s", index == 0 ? "" : ", once more");
    return ANE_STATUS_OK;
}

static ANEStatus device_open(uint32_t index, ANEDevice **out, ANEError *err) {
    if (index >= DEVICES) return no_device(err, "there is no such device");
    ANEStatus status = check_words(err);
    if (status != ANE_STATUS_OK) return status;
    ANEDevice *device = calloc(1, sizeof *device);
    if (device == NULL) return no_memory(err, "no memory for a device");
    read_fault(&device->fault);
    device->apart = memory_is("device");
    device->embeds = memory_is("embed");
    device->opened_ns = clock_ns();
    status = misbehave(&device->fault, "open", err);
    if (status != ANE_STATUS_OK) {
        free(device);
        return status;
    }
    *out = device;
    return ANE_STATUS_OK;
}

/* There is nothing to prepare: an engine loads its kernels here. */
static ANEStatus device_prepare(ANEDevice *device, ANEError *err) { return misbehave(&device->fault, "prepare", err); }

static void device_close(ANEDevice *device) {
    if (device == NULL) return;
    (void)misbehave(&device->fault, "close", NULL);
    free(device);
}

/* What is asked of the device, by products and graphs alike. */
static ANEStatus supports_options(ANEDevice *device, const ANECompileOptions *options, ANEError *err) {
    if (options->device != ANE_DEVICE_UNKNOWN && options->device != ANE_DEVICE_CPU) {
        return refuse(err, ANE_REFUSAL_DEVICE, "the reference shim runs on the CPU only");
    }
    if (is_kind(&device->fault, "known") && !(options->flags & ANE_OPTION_ALLOW_KNOWN_FAULTS)) {
        return refuse(err, ANE_REFUSAL_VENDOR_FAULT, "products are wrong here (planted)");
    }
    return ANE_STATUS_OK;
}

static ANEStatus supports(ANEDevice *device, const ANEMatMulDesc *desc, const ANECompileOptions *options,
                          ANEError *err) {
    const uint32_t known = ANE_MATMUL_TRANSPOSE_A | ANE_MATMUL_TRANSPOSE_B | ANE_MATMUL_CONSTANT_B |
                           ANE_MATMUL_BIAS | ANE_MATMUL_RESIDUAL | ANE_MATMUL_VARIABLE_M;
    ANEStatus status = misbehave(&device->fault, "supports", err);
    if (status != ANE_STATUS_OK) return status;
    if ((desc->flags & ~known) != 0) return refuse(err, ANE_REFUSAL_OTHER, "a flag of a later header");
    bool f32 = desc->type_a == ANE_TYPE_F32 && desc->type_b == ANE_TYPE_F32 && desc->type_c == ANE_TYPE_F32 &&
               desc->type_accumulator == ANE_TYPE_F32 &&
               (desc->type_bias == ANE_TYPE_F32 || (desc->flags & ANE_MATMUL_BIAS) == 0);
    if (!f32) return refuse(err, ANE_REFUSAL_ELEMENT_TYPE, "the reference shim runs f32 only; convert the operands");
    if (desc->quant_a != 0 || desc->quant_b != 0 || desc->quant_c != 0) {
        return refuse(err, ANE_REFUSAL_QUANTIZATION, "the reference shim does not run quantised operands");
    }
    if (desc->activation < ANE_ACTIVATION_NONE || desc->activation > ANE_ACTIVATION_TANH) {
        return refuse(err, ANE_REFUSAL_EPILOGUE, "an activation of a later header");
    }
    return supports_options(device, options, err);
}

/* ---- buffers and constants ----------------------------------------------------------------- */

static ANEStatus make_buffer(ANEDevice *device, ANEBuffer with, ANEBuffer **out, ANEError *err) {
    ANEBuffer *buffer = malloc(sizeof *buffer);
    if (buffer == NULL) return no_memory(err, "no memory for a buffer");
    *buffer = with;
    buffer->device = device;
    pthread_mutex_init(&buffer->lock, NULL);
    *out = buffer;
    return ANE_STATUS_OK;
}

static ANEStatus buffer_create(ANEDevice *device, ANEBufferKind kind, uint64_t bytes, ANEBuffer **out, ANEError *err) {
    ANEStatus status = misbehave(&device->fault, "buffer", err);
    if (status != ANE_STATUS_OK) return status;
    if (bytes > SIZE_MAX / 2) return no_memory(err, "no memory for a buffer");
    size_t size = ((size_t)bytes / 64 + 1) * 64;
    if (device->apart && kind == ANE_BUFFER_DEVICE) {
        void *data = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (data == MAP_FAILED) return no_memory(err, "no memory for a buffer");
        status = make_buffer(device, (ANEBuffer){.data = data, .memory = APART, .bytes = size}, out, err);
        if (status != ANE_STATUS_OK) munmap(data, size);
        return status;
    }
    void *data = aligned_alloc(64, size);
    if (data == NULL) return no_memory(err, "no memory for a buffer");
    status = make_buffer(device, (ANEBuffer){.data = data, .memory = OWNED}, out, err);
    if (status != ANE_STATUS_OK) free(data);
    return status;
}

static ANEStatus buffer_wrap(ANEDevice *device, void *data, uint64_t bytes, ANEBuffer **out, ANEError *err) {
    (void)bytes;
    return make_buffer(device, (ANEBuffer){.data = data, .memory = WRAPPED}, out, err);
}

static void *buffer_contents(ANEBuffer *buffer) { return buffer->memory == APART ? NULL : buffer->data; }

/* Memory that is apart faults but between these two. The caller writes nowhere that another thread does. */
static ANEStatus open_memory(ANEBuffer *buffer, ANEError *err) {
    if (buffer == NULL || buffer->memory != APART) return ANE_STATUS_OK;
    pthread_mutex_lock(&buffer->lock);
    bool good = buffer->users > 0 || mprotect(buffer->data, buffer->bytes, PROT_READ | PROT_WRITE) == 0;
    if (good) buffer->users++;
    pthread_mutex_unlock(&buffer->lock);
    return good ? ANE_STATUS_OK : no_memory(err, "the memory of a buffer cannot be opened");
}

static void close_memory(ANEBuffer *buffer) {
    if (buffer == NULL || buffer->memory != APART) return;
    pthread_mutex_lock(&buffer->lock);
    if (--buffer->users == 0) mprotect(buffer->data, buffer->bytes, PROT_NONE);
    pthread_mutex_unlock(&buffer->lock);
}

static ANEStatus buffer_write(ANEBuffer *buffer, uint64_t offset_bytes, const void *data, uint64_t bytes,
                              ANEError *err) {
    ANEStatus status = misbehave(&buffer->device->fault, "write", err);
    if (status == ANE_STATUS_OK) status = open_memory(buffer, err);
    if (status != ANE_STATUS_OK) return status;
    if (bytes > 0) memcpy((char *)buffer->data + offset_bytes, data, bytes);
    close_memory(buffer);
    return ANE_STATUS_OK;
}

static ANEStatus buffer_read(ANEBuffer *buffer, uint64_t offset_bytes, void *data, uint64_t bytes, ANEError *err) {
    ANEStatus status = misbehave(&buffer->device->fault, "read", err);
    if (status == ANE_STATUS_OK) status = open_memory(buffer, err);
    if (status != ANE_STATUS_OK) return status;
    if (bytes > 0) memcpy(data, (char *)buffer->data + offset_bytes, bytes);
    close_memory(buffer);
    return ANE_STATUS_OK;
}

static void buffer_destroy(ANEBuffer *buffer) {
    if (buffer == NULL) return;
    if (buffer->memory == OWNED) free(buffer->data);
    if (buffer->memory == APART) munmap(buffer->data, buffer->bytes);
    pthread_mutex_destroy(&buffer->lock);
    free(buffer);
}

static void constant_destroy(ANEConstant *constant) {
    if (constant != NULL) free(constant->data);
    free(constant);
}

static ANEStatus constant_create(ANEDevice *device, const ANEConstantDesc *desc, ANEConstant **out, ANEError *err) {
    ANEStatus status = misbehave(&device->fault, "constant", err);
    if (status != ANE_STATUS_OK) return status;
    if (device->embeds) {
        return report(err, ANE_STATUS_NOT_IMPLEMENTED, ANE_REFUSAL_NONE, "this device takes no constants");
    }
    ANEConstant *constant = calloc(1, sizeof *constant);
    if (constant != NULL) constant->data = malloc(desc->bytes + 1); /* malloc(0) may be NULL */
    if (constant == NULL || constant->data == NULL) {
        constant_destroy(constant);
        return no_memory(err, "no memory for a constant");
    }
    if (desc->bytes > 0) memcpy(constant->data, desc->data, desc->bytes);
    *out = constant;
    return ANE_STATUS_OK;
}

/* ---- products ------------------------------------------------------------------------------ */

static void product_destroy(ANEProduct *product) {
    if (product != NULL) free(product->copy);
    free(product);
}

/* A product with room for a copy of the constant B, unless there is none or it is on the device already. */
static ANEStatus make_product(ANEDevice *device, const ANEMatMulDesc *desc, const ANEConstants *constants,
                              const ANECompileOptions *options, ANEProduct **out, ANEError *err) {
    ANEStatus status = supports(device, desc, options, err);
    if (status != ANE_STATUS_OK) return status;
    ANEProduct *product = calloc(1, sizeof *product);
    if (product == NULL) return no_memory(err, "no memory for the product");
    if (constants->b_constant != NULL) {
        product->b = constants->b_constant->data;
    } else if ((desc->flags & ANE_MATMUL_CONSTANT_B) != 0) {
        product->copy_bytes = constants->b_bytes;
        product->b = product->copy = malloc(product->copy_bytes + 1);
        if (product->copy == NULL) {
            product_destroy(product);
            return no_memory(err, "no memory for the constant B");
        }
    }
    product->device = device;
    product->requested = options->device;
    memcpy(&product->desc, desc, desc->struct_size < sizeof *desc ? desc->struct_size : sizeof *desc);
    *out = product;
    return ANE_STATUS_OK;
}

static ANEStatus compile(ANEDevice *device, const ANEMatMulDesc *desc, const ANEConstants *constants,
                         const ANECompileOptions *options, ANEProduct **out, ANEError *err) {
    ANEProduct *product;
    ANEStatus status = misbehave(&device->fault, "compile", err);
    if (status == ANE_STATUS_OK) status = make_product(device, desc, constants, options, &product, err);
    if (status != ANE_STATUS_OK) return status;
    if (product->copy_bytes > 0) memcpy(product->copy, constants->b, product->copy_bytes);
    *out = product;
    return ANE_STATUS_OK;
}

/* A package is one file: the description, then the copy of B. The caller keeps the rest of the key. */
static ANEStatus product_save(ANEProduct *product, const char *path, ANEError *err) {
    FILE *file = fopen(path, "wbx");
    bool good = file != NULL && fwrite(&product->desc, sizeof product->desc, 1, file) == 1 &&
                (product->copy_bytes == 0 || fwrite(product->copy, product->copy_bytes, 1, file) == 1);
    if (file != NULL) good = fclose(file) == 0 && good;
    return good ? ANE_STATUS_OK : report(err, ANE_STATUS_IO, ANE_REFUSAL_NONE, "the package cannot be written");
}

static ANEStatus product_load(ANEDevice *device, const ANEMatMulDesc *desc, const ANEConstants *constants,
                              const ANECompileOptions *options, const char *path, ANEProduct **out, ANEError *err) {
    ANEProduct *product;
    ANEMatMulDesc saved;
    FILE *file = fopen(path, "rb");
    if (file == NULL) return report(err, ANE_STATUS_IO, ANE_REFUSAL_NONE, "there is no package to read");
    ANEStatus status = make_product(device, desc, constants, options, &product, err);
    if (status == ANE_STATUS_OK) {
        bool good = fread(&saved, sizeof saved, 1, file) == 1 && memcmp(&saved, &product->desc, sizeof saved) == 0 &&
                    (product->copy_bytes == 0 || fread(product->copy, product->copy_bytes, 1, file) == 1) &&
                    fgetc(file) == EOF;
        if (good) {
            product->loaded = true;
            *out = product;
        } else {
            product_destroy(product);
            status = report(err, ANE_STATUS_PACKAGE_MISMATCH, ANE_REFUSAL_NONE, "the package is of another product");
        }
    }
    fclose(file);
    return status;
}

/* ---- runs and submissions ------------------------------------------------------------------ */

/* Computes what its executor is for. `extent` is the number of rows, or a graph's leading dimension. */
typedef ANEStatus (*Work)(void *executor, uint64_t extent, const ANEOperand *operands, ANEError *err);

typedef enum Stage { QUEUED, WORKING, COMPUTED, COMPLETE } Stage;

typedef struct Submission {
    ANETicket ticket; /* 0: this place is free */
    Stage stage;
    uint64_t submitted_ns;
    uint64_t extent;
    ANEOperand *operands;
    ANEStatus status;
    ANERunInfo info;
    ANEError error;
} Submission;

/*
 * How the executors of products and of graphs run: at once, on the thread that calls, or by a worker that takes
 * one submission after the other. The lock guards tickets and stages; what else a submission holds is the
 * worker's until it is COMPUTED, and then the caller's.
 */
typedef struct Queue {
    ANEDevice *device;
    Work work;
    void *executor;
    bool ran;
    uint32_t operand_count; /* the last is what a planted fault spoils */
    uint32_t depth;
    Submission *submissions; /* as many as `depth` */
    ANEOperand *operands;    /* theirs */
    ANETicket last_ticket;
    bool has_worker, closing;
    pthread_t worker;
    pthread_mutex_t lock;
    pthread_cond_t submitted, completed;
} Queue;

/* Where an operand lies; in memory that is apart, while it is open. */
static void *operand(const ANEOperand *operand) {
    return operand->buffer == NULL ? operand->data : (char *)operand->buffer->data + operand->offset_bytes;
}

/* Runs once, here and now. */
static ANEStatus perform(Queue *queue, const char *slot, uint64_t extent, const ANEOperand *operands, ANERunInfo *info,
                         ANEError *err) {
    Fault *fault = &queue->device->fault;
    ANEStatus status = misbehave(fault, slot, err);
    if (status == ANE_STATUS_OK && !queue->ran) status = misbehave(fault, "first", err);
    if (status != ANE_STATUS_OK) return status;
    queue->ran = true;
    uint32_t opened = 0;
    while (opened < queue->operand_count && status == ANE_STATUS_OK) {
        status = open_memory(operands[opened].buffer, err);
        if (status == ANE_STATUS_OK) opened++;
    }
    uint64_t start_ns = clock_ns();
    if (status == ANE_STATUS_OK) status = queue->work(queue->executor, extent, operands, err);
    uint64_t end_ns = clock_ns();
    const ANEOperand *last = &operands[queue->operand_count - 1];
    if (status == ANE_STATUS_OK && is_kind(fault, "wrong") && last->length_bytes >= sizeof(float) && due(fault, slot)) {
        float *c = operand(last);
        c[0] += 1 + fabsf(c[0]);
    }
    while (opened > 0) close_memory(operands[--opened].buffer);
    if (info != NULL && status == ANE_STATUS_OK) {
        info->observed = ANE_DEVICE_CPU;
        info->device_start_ns = start_ns - queue->device->opened_ns;
        info->device_end_ns = end_ns - queue->device->opened_ns;
        info->flags = 0;
    }
    return status;
}

/* The first that was submitted of those that have come no further than `stage`, or NULL. */
static Submission *first_up_to(Queue *queue, Stage stage) {
    Submission *first = NULL;
    for (Submission *one = queue->submissions; one < queue->submissions + queue->depth; one++) {
        if (one->ticket == 0 || one->stage > stage) continue;
        if (first == NULL || one->ticket < first->ticket) first = one;
    }
    return first;
}

/* What the worker turns to next, or NULL. */
static Submission *next_queued(Queue *queue) {
    Submission *next = first_up_to(queue, QUEUED);
    if (next == NULL || !is_kind(&queue->device->fault, "reorder") || !due(&queue->device->fault, "work")) return next;
    for (Submission *one = queue->submissions; one < queue->submissions + queue->depth; one++) {
        if (one->ticket > next->ticket && one->stage == QUEUED) next = one;
    }
    return next;
}

/* What a device does: it may fail, be wrong, or say nothing any more, until a watchdog gives it up. */
static ANEStatus work_on(Queue *queue, Submission *submission) {
    Fault *fault = &queue->device->fault;
    if (is_kind(fault, "lose") && due(fault, "work")) {
        long long silent_ns = (long long)(submission->submitted_ns - clock_ns()) + fault->ns;
        if (silent_ns > 0) wait_ns(silent_ns);
        return no_device(&submission->error, "the device fell silent (planted)");
    }
    return perform(queue, "work", submission->extent, submission->operands, &submission->info, &submission->error);
}

static void *worker(void *argument) {
    Queue *queue = argument;
    pthread_mutex_lock(&queue->lock);
    for (;;) {
        Submission *submission = next_queued(queue);
        if (submission == NULL) {
            if (queue->closing) break;
            pthread_cond_wait(&queue->submitted, &queue->lock);
            continue;
        }
        submission->stage = WORKING;
        pthread_mutex_unlock(&queue->lock);
        submission->status = work_on(queue, submission);
        pthread_mutex_lock(&queue->lock);
        submission->stage = COMPUTED;
        /* In the order of tickets, whatever the order of computing was. */
        Submission *first;
        while ((first = first_up_to(queue, COMPUTED)) != NULL && first->stage == COMPUTED) first->stage = COMPLETE;
        pthread_cond_signal(&queue->completed);
    }
    pthread_mutex_unlock(&queue->lock);
    return NULL;
}

static ANEStatus open_queue(Queue *queue, ANEDevice *device, Work work, void *executor, uint32_t operand_count,
                            const ANEExecutorOptions *options, ANEError *err) {
    if (options->queue_depth > MAX_QUEUE_DEPTH) return invalid(err, "the queue is deeper than max_queue_depth");
    memset(queue, 0, sizeof *queue);
    queue->device = device;
    queue->work = work;
    queue->executor = executor;
    queue->operand_count = operand_count;
    queue->depth = options->queue_depth;
    queue->submissions = calloc(queue->depth + 1, sizeof *queue->submissions); /* calloc(0) may be NULL */
    queue->operands = calloc((size_t)queue->depth * operand_count + 1, sizeof *queue->operands);
    if (queue->submissions == NULL || queue->operands == NULL) {
        free(queue->submissions);
        free(queue->operands);
        return no_memory(err, "no memory for the queue of an executor");
    }
    for (uint32_t i = 0; i < queue->depth; i++) {
        queue->submissions[i].operands = queue->operands + (size_t)i * operand_count;
        queue->submissions[i].error.struct_size = sizeof(ANEError);
    }
    pthread_mutex_init(&queue->lock, NULL);
    pthread_cond_init(&queue->submitted, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
#ifndef __APPLE__
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
#endif
    pthread_cond_init(&queue->completed, &attributes);
    pthread_condattr_destroy(&attributes);
    return ANE_STATUS_OK;
}

/* What a queue holds for one submission. */
static uint64_t submission_bytes(uint32_t operand_count) {
    return sizeof(Submission) + operand_count * sizeof(ANEOperand);
}

/* Submissions that were not ended are worked off, and nobody asks for them any more. */
static void close_queue(Queue *queue) {
    if (queue->has_worker) {
        pthread_mutex_lock(&queue->lock);
        queue->closing = true;
        pthread_cond_signal(&queue->submitted);
        pthread_mutex_unlock(&queue->lock);
        pthread_join(queue->worker, NULL);
    }
    pthread_cond_destroy(&queue->completed);
    pthread_cond_destroy(&queue->submitted);
    pthread_mutex_destroy(&queue->lock);
    free(queue->submissions);
    free(queue->operands);
}

/* The place of a ticket, or with 0 a free one; NULL where there is none. The lock is held. */
static Submission *place_of(Queue *queue, ANETicket ticket) {
    for (uint32_t i = 0; i < queue->depth; i++) {
        if (queue->submissions[i].ticket == ticket) return &queue->submissions[i];
    }
    return NULL;
}

static ANEStatus run(Queue *queue, uint64_t extent, const ANEOperand *operands, ANERunInfo *info, ANEError *err) {
    pthread_mutex_lock(&queue->lock);
    bool open = false;
    for (uint32_t i = 0; i < queue->depth; i++) open = open || queue->submissions[i].ticket != 0;
    pthread_mutex_unlock(&queue->lock);
    if (open) return invalid(err, "a run while submissions of this executor were not waited for");
    return perform(queue, "run", extent, operands, info, err);
}

static ANEStatus submit(Queue *queue, uint64_t extent, const ANEOperand *operands, const ANERunInfo *info,
                        ANETicket *ticket, ANEError *err) {
    ANEStatus status = misbehave(&queue->device->fault, "submit", err);
    if (status != ANE_STATUS_OK) return status;
    if (info != NULL) return invalid(err, "a submission's ANERunInfo comes with executor_wait");
    for (uint32_t i = 0; i < queue->operand_count; i++) {
        if (operands[i].data != NULL) return invalid(err, "an operand of a submission lies in no buffer");
    }
    if (!queue->has_worker && pthread_create(&queue->worker, NULL, worker, queue) != 0) {
        return no_memory(err, "no thread for the submissions of an executor");
    }
    queue->has_worker = true;
    pthread_mutex_lock(&queue->lock);
    Submission *submission = place_of(queue, 0);
    if (submission != NULL) {
        submission->stage = QUEUED;
        submission->submitted_ns = clock_ns();
        submission->extent = extent;
        if (queue->operand_count > 0) memcpy(submission->operands, operands, queue->operand_count * sizeof *operands);
        *ticket = submission->ticket = ++queue->last_ticket;
        pthread_cond_signal(&queue->submitted);
    }
    pthread_mutex_unlock(&queue->lock);
    return submission != NULL ? ANE_STATUS_OK : invalid(err, "more submissions than the queue of this executor holds");
}

/* Waits for a signal, for at most `ns`, or for a shorter time; UINT64_MAX is without end. */
static void wait_for_signal(pthread_cond_t *condition, pthread_mutex_t *lock, uint64_t ns) {
    const uint64_t second = 1000000000;
    if (ns == UINT64_MAX) {
        pthread_cond_wait(condition, lock);
        return;
    }
    if (ns > 3600 * second) ns = 3600 * second;
#ifdef __APPLE__
    struct timespec time = {(time_t)(ns / second), (long)(ns % second)};
    pthread_cond_timedwait_relative_np(condition, lock, &time);
#else
    ns += clock_ns();
    struct timespec time = {(time_t)(ns / second), (long)(ns % second)};
    pthread_cond_timedwait(condition, lock, &time);
#endif
}

static ANEStatus wait_for(Queue *queue, ANETicket ticket, uint64_t timeout_ns, ANERunInfo *info, ANEError *err) {
    uint64_t started_ns = clock_ns();
    pthread_mutex_lock(&queue->lock);
    Submission *submission = ticket == 0 ? NULL : place_of(queue, ticket);
    while (submission != NULL && submission->stage != COMPLETE) {
        uint64_t waited_ns = clock_ns() - started_ns;
        if (timeout_ns != UINT64_MAX && waited_ns >= timeout_ns) break;
        uint64_t left_ns = timeout_ns == UINT64_MAX ? UINT64_MAX : timeout_ns - waited_ns;
        wait_for_signal(&queue->completed, &queue->lock, left_ns);
    }
    if (submission == NULL || submission->stage != COMPLETE) {
        pthread_mutex_unlock(&queue->lock);
        if (submission == NULL) return invalid(err, "no such ticket, or it was ended before");
        return report(err, ANE_STATUS_PENDING, ANE_REFUSAL_NONE, "the submission is not complete yet");
    }
    ANEStatus status = submission->status;
    if (status != ANE_STATUS_OK) report(err, status, submission->error.refusal, submission->error.message);
    if (status == ANE_STATUS_OK && info != NULL) {
        info->observed = submission->info.observed;
        info->device_start_ns = submission->info.device_start_ns;
        info->device_end_ns = submission->info.device_end_ns;
        info->flags = submission->info.flags;
    }
    submission->ticket = 0;
    pthread_mutex_unlock(&queue->lock);
    return status != ANE_STATUS_OK ? status : misbehave(&queue->device->fault, "wait", err);
}

/* ---- executors of products ----------------------------------------------------------------- */

struct ANEMatMulExecutor {
    ANEProduct *product;
    Queue queue;
};

/* The operands of a run, in this order. */
enum { A, B, BIAS, RESIDUAL, C, OPERANDS };

static float activate(ANEActivation activation, float x) {
    switch (activation) {
    case ANE_ACTIVATION_RELU: return x < 0 ? 0 : x; /* NaN stays NaN */
    case ANE_ACTIVATION_GELU_ERF: return x == -INFINITY ? 0 : 0.5f * x * erfcf(-x * 0.70710678f);
    case ANE_ACTIVATION_GELU_TANH:
        return x == -INFINITY ? 0 : x / (1 + expf(-1.5957691f * (x + 0.044715f * x * x * x)));
    case ANE_ACTIVATION_SILU: return x == -INFINITY ? 0 : x / (1 + expf(-x));
    case ANE_ACTIVATION_SIGMOID: return 1 / (1 + expf(-x));
    case ANE_ACTIVATION_TANH: return tanhf(x);
    default: return x;
    }
}

static ANEStatus multiply(void *executor, uint64_t m, const ANEOperand *operands, ANEError *err) {
    (void)err;
    const ANEProduct *product = ((ANEMatMulExecutor *)executor)->product;
    const ANEMatMulDesc *d = &product->desc;
    const float *a = operand(&operands[A]);
    const float *b = product->b != NULL ? product->b : operand(&operands[B]);
    const float *bias = operand(&operands[BIAS]);
    const float *residual = operand(&operands[RESIDUAL]);
    float *c = operand(&operands[C]);
    /* The distances between rows and between columns of op(A) and op(B). */
    bool ta = (d->flags & ANE_MATMUL_TRANSPOSE_A) != 0, tb = (d->flags & ANE_MATMUL_TRANSPOSE_B) != 0;
    uint64_t a_row = ta ? 1 : d->lda, a_col = ta ? d->lda : 1, b_row = tb ? 1 : d->ldb, b_col = tb ? d->ldb : 1;
    for (uint64_t item = 0; item < d->batch; item++) {
        for (uint64_t i = 0; i < m; i++) {
            for (uint64_t j = 0; j < d->n; j++) {
                float sum = 0;
                for (uint64_t p = 0; p < d->k; p++) {
                    float left = a[item * d->stride_a + i * a_row + p * a_col];
                    float right = b[item * d->stride_b + p * b_row + j * b_col];
                    sum += left * right;
                }
                float x = d->alpha * sum;
                if ((d->flags & ANE_MATMUL_BIAS) != 0) x += bias[j];
                if ((d->flags & ANE_MATMUL_RESIDUAL) != 0) {
                    x += residual[item * d->stride_residual + i * d->ld_residual + j];
                }
                c[item * d->stride_c + i * d->ldc + j] = activate(d->activation, x);
            }
        }
    }
    return ANE_STATUS_OK;
}

static ANEStatus executor_create(ANEProduct *product, const ANEExecutorOptions *options, ANEMatMulExecutor **out,
                                 ANEError *err) {
    ANEStatus status = misbehave(&product->device->fault, "executor", err);
    if (status != ANE_STATUS_OK) return status;
    ANEMatMulExecutor *executor = malloc(sizeof *executor);
    if (executor == NULL) return no_memory(err, "no memory for an executor");
    executor->product = product;
    status = open_queue(&executor->queue, product->device, multiply, executor, OPERANDS, options, err);
    if (status != ANE_STATUS_OK) {
        free(executor);
        return status;
    }
    *out = executor;
    return ANE_STATUS_OK;
}

static ANEStatus executor_run(ANEMatMulExecutor *executor, const ANERunArgs *args, ANEError *err) {
    const ANEOperand operands[OPERANDS] = {args->a, args->b, args->bias, args->residual, args->c};
    if (args->m > executor->product->desc.m) return invalid(err, "more rows than compiled for");
    return run(&executor->queue, args->m, operands, args->info, err);
}

static ANEStatus executor_submit(ANEMatMulExecutor *executor, const ANERunArgs *args, ANETicket *ticket,
                                 ANEError *err) {
    const ANEOperand operands[OPERANDS] = {args->a, args->b, args->bias, args->residual, args->c};
    if (args->m > executor->product->desc.m) return invalid(err, "more rows than compiled for");
    return submit(&executor->queue, args->m, operands, args->info, ticket, err);
}

static ANEStatus executor_wait(ANEMatMulExecutor *executor, ANETicket ticket, uint64_t timeout_ns, ANERunInfo *info,
                               ANEError *err) {
    return wait_for(&executor->queue, ticket, timeout_ns, info, err);
}

static void executor_destroy(ANEMatMulExecutor *executor) {
    if (executor != NULL) close_queue(&executor->queue);
    free(executor);
}

static uint32_t arithmetic_of(const ANEDevice *device) {
    return is_kind(&device->fault, "tf32") ? ANE_ARITHMETIC_TF32 : 0;
}

static ANEStatus product_info(ANEProduct *product, ANEProductInfo *info, ANEError *err) {
    (void)err;
    info->flags = product->loaded ? ANE_PRODUCT_FLAG_FROM_PACKAGE : 0;
    info->requested = product->requested;
    info->observed = ANE_DEVICE_CPU;
    info->bytes_held = sizeof *product + product->copy_bytes;
    info->executor_bytes = sizeof(ANEMatMulExecutor) + submission_bytes(OPERANDS);
    info->arithmetic = arithmetic_of(product->device);
    return ANE_STATUS_OK;
}

/* ---- the table ----------------------------------------------------------------------------- */

#include "reference_graph.c"

const ANEShim *ane_matmul_shim(void) {
    static const ANEShim shim = {
        .struct_size = sizeof(ANEShim),
        .abi_major = ANE_MATMUL_ABI_MAJOR,
        .abi_minor = ANE_MATMUL_ABI_MINOR,
        .name = "reference",
        .version = "1.0",
        .device_count = device_count,
        .device_info = device_info,
        .device_open = device_open,
        .device_prepare = device_prepare,
        .device_close = device_close,
        .supports = supports,
        .buffer_create = buffer_create,
        .buffer_wrap = buffer_wrap,
        .buffer_contents = buffer_contents,
        .buffer_write = buffer_write,
        .buffer_read = buffer_read,
        .buffer_destroy = buffer_destroy,
        .constant_create = constant_create,
        .constant_destroy = constant_destroy,
        .compile = compile,
        .product_save = product_save,
        .product_load = product_load,
        .product_info = product_info,
        .product_destroy = product_destroy,
        .executor_create = executor_create,
        .executor_run = executor_run,
        .executor_submit = executor_submit,
        .executor_wait = executor_wait,
        .executor_destroy = executor_destroy,
        .graphs = &graph_table,
    };
    return &shim;
}
