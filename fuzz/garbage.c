/*
 * A shim that keeps to the letter of the contract and to nothing else: statuses, messages, logs, device
 * and product information are whatever the fuzzer's bytes say. Objects are allocated, so that a sanitizer
 * sees which are used too late, freed twice or never; a caller that breaks the contract ends the process.
 */
#define _POSIX_C_SOURCE 200112L
#include "ane_graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The devices that there are at most, whatever device_count says. */
#define DEVICES 4

static const uint8_t *plan;
static size_t plan_length, plan_at;

/* What was last said of each device: how many submissions an executor takes, and what it is. */
static uint32_t told_depth[DEVICES], told_flags[DEVICES];

void garbage_plan(const uint8_t *bytes, size_t length) {
    plan = bytes;
    plan_length = length;
    plan_at = 0;
}

/* What the caller guarantees. */
static void demand(int kept, const char *rule) {
    if (kept) return;
    fprintf(stderr, "the caller broke the contract: %s\n", rule);
    abort();
}

static void *allocate(size_t bytes) {
    void *memory = calloc(1, bytes);
    if (memory == NULL) abort();
    return memory;
}

static uint8_t next(void) { return plan_at < plan_length ? plan[plan_at++] : 0; }

static void fill(void *memory, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) ((uint8_t *)memory)[i] = next();
}

static int32_t number(void) {
    int32_t value;
    fill(&value, sizeof value);
    return value;
}

/* One of the first `known` numbers, or any. */
static int32_t some(int32_t known) {
    uint8_t kind = next();
    return kind < 240 ? kind % known : number();
}

static uint64_t wide(void) { return next() < 128 ? next() : (uint64_t)(uint32_t)number() << 32 | (uint32_t)number(); }

/* A failure, with an error that holds anything that a shim may write. */
static ANEStatus failed(ANEStatus status, ANEError *err) {
    if (err == NULL) return status;
    err->status = number();
    err->refusal = next() < 128 ? next() % 24 : number();
    err->native_code = number();
    fill(err->domain, next() % (sizeof err->domain + 1));
    fill(err->message, next() * 4 % (sizeof err->message + 1));
    if (err->log != NULL) {
        size_t room = next() * 64u;
        fill(err->log, room < err->log_capacity ? room : err->log_capacity);
        err->log_length = next() < 128 ? room : UINT64_MAX - next();
    }
    return status;
}

/* Success, a known status, or any number. */
static ANEStatus answer(ANEError *err) {
    uint8_t kind = next();
    if (kind < 160) return ANE_STATUS_OK;
    ANEStatus status = kind < 250 ? kind % 16 : number();
    return status == ANE_STATUS_OK || status == ANE_STATUS_PENDING ? status : failed(status, err);
}

/* As `answer`, and whether there is an object. */
static ANEStatus make(void **object, size_t bytes, ANEError *err) {
    ANEStatus status = answer(err);
    *object = NULL;
    if (status == ANE_STATUS_OK && next() <= 250) *object = allocate(bytes); /* else success without an object */
    return status;
}

/* ---- devices ------------------------------------------------------------------------------- */

struct ANEDevice {
    uint32_t flags, max_queue_depth;
    long children;
};

static ANEStatus device_count(uint32_t *count, ANEError *err) {
    uint8_t kind = next();
    *count = kind < 250 ? (kind + 1u) % (DEVICES + 2) : (uint32_t)number();
    return answer(err);
}

static ANEStatus device_info(uint32_t index, ANEDeviceInfo *info, ANEError *err) {
    if (index >= DEVICES) return failed(ANE_STATUS_NO_DEVICE, err);
    uint32_t size = info->struct_size;
    info->struct_size = next() > 250 ? (uint32_t)number() : size;
    info->flags = (uint32_t)some(4);
    info->kind = some(5);
    info->preferred_buffer = some(2);
    info->wrap_alignment = next() < 128 ? 1ull << next() % 64 : wide();
    info->max_buffer_bytes = wide();
    fill(info->name, next() % (sizeof info->name + 1));
    fill(info->chip, next() % (sizeof info->chip + 1));
    fill(info->os_build, next() % (sizeof info->os_build + 1));
    info->max_queue_depth = (uint32_t)some(5);
    info->reserved0 = (uint32_t)number();
    told_flags[index] = info->flags;
    told_depth[index] = info->max_queue_depth;
    return answer(err);
}

static ANEStatus device_open(uint32_t index, ANEDevice **out, ANEError *err) {
    if (index >= DEVICES) return failed(ANE_STATUS_NO_DEVICE, err);
    ANEDevice *device;
    ANEStatus status = make((void **)&device, sizeof *device, err);
    if (device == NULL) return status;
    *device = (ANEDevice){told_flags[index], told_depth[index], 0};
    *out = device;
    return status;
}

static ANEStatus device_prepare(ANEDevice *device, ANEError *err) {
    demand(device->children >= 0, "a device is prepared while it is open");
    return answer(err);
}

static void device_close(ANEDevice *device) {
    if (device == NULL) return;
    demand(device->children == 0, "what was made on a device dies before it");
    free(device);
}

static ANEStatus supports(ANEDevice *device, const ANEMatMulDesc *desc, const ANECompileOptions *options,
                          ANEError *err) {
    demand(device->children >= 0 && desc->struct_size == sizeof *desc && options->struct_size == sizeof *options,
           "structs begin with their size");
    return answer(err);
}

/* ---- memory -------------------------------------------------------------------------------- */

struct ANEBuffer {
    ANEDevice *device;
    uint8_t *data;
    void *seen; /* what the host is told of its address */
    uint64_t bytes;
    int owned;
    long in_flight;
};

static ANEStatus make_buffer(ANEDevice *device, void *data, uint64_t bytes, int owned, int hidden,
                             ANEBuffer **out, ANEError *err) {
    ANEBuffer *buffer;
    ANEStatus status = make((void **)&buffer, sizeof *buffer, err);
    if (buffer == NULL) {
        if (owned) free(data);
        return status;
    }
    uint8_t kind = next();
    *buffer = (ANEBuffer){.device = device, .data = data, .bytes = bytes, .owned = owned};
    /* Unified memory may be seen whatever was asked for; a little is not there, or not aligned. */
    buffer->seen = kind > 250 || (hidden && kind < 200) ? NULL : kind > 240 ? (uint8_t *)data + 8 : data;
    device->children++;
    *out = buffer;
    return status;
}

static ANEStatus buffer_create(ANEDevice *device, ANEBufferKind kind, uint64_t bytes, ANEBuffer **out,
                               ANEError *err) {
    void *data;
    demand(kind == ANE_BUFFER_HOST_VISIBLE || kind == ANE_BUFFER_DEVICE, "a buffer is of one of two kinds");
    if (bytes > 1 << 20 || posix_memalign(&data, 64, bytes) != 0) return failed(ANE_STATUS_OUT_OF_MEMORY, err);
    return make_buffer(device, data, bytes, 1, kind == ANE_BUFFER_DEVICE, out, err);
}

static ANEStatus buffer_wrap(ANEDevice *device, void *data, uint64_t bytes, ANEBuffer **out, ANEError *err) {
    return make_buffer(device, data, bytes, 0, 0, out, err);
}

static void *buffer_contents(ANEBuffer *buffer) { return buffer->seen; }

static uint8_t *within(ANEBuffer *buffer, uint64_t offset_bytes, uint64_t bytes) {
    demand(offset_bytes <= buffer->bytes && bytes <= buffer->bytes - offset_bytes,
           "the caller stays within the buffer");
    return buffer->data + offset_bytes;
}

static ANEStatus buffer_write(ANEBuffer *buffer, uint64_t offset_bytes, const void *data, uint64_t bytes,
                              ANEError *err) {
    uint8_t *to = within(buffer, offset_bytes, bytes);
    demand(buffer->in_flight == 0, "nobody writes to an operand of a submission");
    ANEStatus status = answer(err);
    /* A failure may have written some of it. */
    if (status != ANE_STATUS_OK) bytes = next() < bytes ? next() % (bytes + 1) : 0;
    if (bytes > 0) memcpy(to, data, bytes);
    return status;
}

static ANEStatus buffer_read(ANEBuffer *buffer, uint64_t offset_bytes, void *data, uint64_t bytes, ANEError *err) {
    const uint8_t *from = within(buffer, offset_bytes, bytes);
    ANEStatus status = answer(err);
    if (status != ANE_STATUS_OK) bytes = next() < bytes ? next() % (bytes + 1) : 0;
    if (bytes > 0) memcpy(data, from, bytes);
    return status;
}

static void buffer_destroy(ANEBuffer *buffer) {
    if (buffer == NULL) return;
    demand(buffer->in_flight == 0, "no buffer dies while a submission uses it");
    buffer->device->children--;
    if (buffer->owned) free(buffer->data);
    free(buffer);
}

struct ANEConstant {
    ANEDevice *device;
    uint64_t bytes;
    long products;
};

/* Every byte that a caller says is readable is read. */
static uint32_t sum(const void *data, uint64_t bytes) {
    uint32_t total = 0;
    for (uint64_t i = 0; i < bytes; i++) total = total * 31 + ((const uint8_t *)data)[i];
    return total;
}

static volatile uint32_t sink;

static ANEStatus constant_create(ANEDevice *device, const ANEConstantDesc *desc, ANEConstant **out, ANEError *err) {
    demand((device->flags & ANE_DEVICE_FLAG_CONSTANTS) != 0, "constants are made where the device takes them");
    demand(desc->struct_size == sizeof *desc, "structs begin with their size");
    sink = sum(desc->data, desc->bytes);
    ANEConstant *constant;
    ANEStatus status = make((void **)&constant, sizeof *constant, err);
    if (constant == NULL) return status;
    *constant = (ANEConstant){device, desc->bytes, 0};
    device->children++;
    *out = constant;
    return status;
}

static void constant_destroy(ANEConstant *constant) {
    if (constant == NULL) return;
    demand(constant->products == 0, "products die before the constants that they were compiled with");
    constant->device->children--;
    free(constant);
}

/* ---- products ------------------------------------------------------------------------------ */

struct ANEProduct {
    ANEDevice *device;
    ANEConstant *constants[2];
    ANEMatMulDesc desc;
    long executors;
};

/* Of an operand that comes as plain memory or as a constant: one of the two is set, or none. */
static void check_constant(ANEDevice *device, const void *data, ANEConstant *constant, uint64_t bytes) {
    demand(data == NULL || constant == NULL, "memory or a constant, not both");
    if (constant != NULL) {
        demand((device->flags & ANE_DEVICE_FLAG_CONSTANTS) != 0 && constant->device == device,
               "a constant is of this device, which takes them");
        demand(constant->bytes == bytes, "b_bytes is of either");
    } else {
        demand(data != NULL || bytes == 0, "what has bytes lies somewhere");
        sink = sum(data, bytes);
    }
}

static ANEStatus compile(ANEDevice *device, const ANEMatMulDesc *desc, const ANEConstants *constants,
                         const ANECompileOptions *options, ANEProduct **out, ANEError *err) {
    demand(desc->struct_size == sizeof *desc && constants->struct_size == sizeof *constants &&
               options->struct_size == sizeof *options,
           "structs begin with their size");
    check_constant(device, constants->b, constants->b_constant, constants->b_bytes);
    check_constant(device, constants->scales_b, constants->scales_b_constant, constants->scales_b_bytes);
    if ((desc->flags & ANE_MATMUL_CONSTANT_B) == 0)
        demand(constants->b == NULL && constants->b_constant == NULL, "B comes with every run, or is constant");
    ANEProduct *product;
    ANEStatus status = make((void **)&product, sizeof *product, err);
    if (product == NULL) return status;
    *product = (ANEProduct){device, {constants->b_constant, constants->scales_b_constant}, *desc, 0};
    for (int i = 0; i < 2; i++)
        if (product->constants[i] != NULL) product->constants[i]->products++;
    device->children++;
    *out = product;
    return status;
}

static ANEStatus product_save(ANEProduct *product, const char *path, ANEError *err) {
    demand(product->executors >= 0 && path[0] != 0, "a path");
    return answer(err);
}

static ANEStatus product_load(ANEDevice *device, const ANEMatMulDesc *desc, const ANEConstants *constants,
                              const ANECompileOptions *options, const char *path, ANEProduct **out, ANEError *err) {
    demand(path[0] != 0, "a path");
    return compile(device, desc, constants, options, out, err);
}

static ANEStatus product_info(ANEProduct *product, ANEProductInfo *info, ANEError *err) {
    demand(product->executors >= 0, "a product that lives");
    info->flags = (uint32_t)some(2);
    info->requested = some(5);
    info->observed = some(5);
    info->compile_ns = wide();
    info->bytes_held = wide();
    info->executor_bytes = wide();
    info->arithmetic = next() < 200 ? 0 : (uint32_t)some(16);
    info->reserved0 = (uint32_t)number();
    return answer(err);
}

static void product_destroy(ANEProduct *product) {
    if (product == NULL) return;
    demand(product->executors == 0, "executors die before their product");
    for (int i = 0; i < 2; i++)
        if (product->constants[i] != NULL) product->constants[i]->products--;
    product->device->children--;
    free(product);
}

/* ---- runs ---------------------------------------------------------------------------------- */

/* One that was not waited for. Its operands are touched when it completes: in a wait, or at the executor's end. */
typedef struct Submission {
    struct Submission *later;
    ANETicket ticket;
    ANERunArgs args;
    uint32_t contents; /* of the operands and C, which nobody touches meanwhile */
    int complete;
} Submission;

struct ANEMatMulExecutor {
    ANEProduct *product;
    uint32_t queue_depth, count;
    ANETicket last;
    Submission *first; /* in the order in which they were submitted */
};

static uint8_t *operand(ANEDevice *device, const ANEOperand *operand) {
    if (operand->buffer == NULL) {
        demand(operand->offset_bytes == 0, "an offset is in a buffer");
        demand(operand->data != NULL || operand->length_bytes == 0, "what has bytes lies somewhere");
        return operand->data;
    }
    demand(operand->data == NULL, "a buffer or memory, not both");
    demand(operand->buffer->device == device, "a buffer is of this device");
    return within(operand->buffer, operand->offset_bytes, operand->length_bytes);
}

static uint32_t sum_of(ANEDevice *device, const ANERunArgs *args) {
    const ANEOperand *inputs[] = {&args->a, &args->b, &args->bias, &args->residual};
    uint32_t total = 0;
    for (int i = 0; i < 4; i++) total = total * 31 + sum(operand(device, inputs[i]), inputs[i]->length_bytes);
    return total;
}

/* Reads all operands and writes C. */
static void compute(ANEDevice *device, const ANERunArgs *args) {
    sink = sum_of(device, args);
    uint8_t *c = operand(device, &args->c);
    if (args->c.length_bytes > 0) memset(c, next(), args->c.length_bytes);
}

static void observe(ANERunInfo *info) {
    if (info == NULL) return;
    info->observed = some(5);
    info->device_start_ns = wide();
    info->device_end_ns = wide();
    info->flags = (uint32_t)some(2);
    info->reserved0 = (uint32_t)number();
}

static void check_args(const ANEMatMulExecutor *executor, const ANERunArgs *args) {
    const ANEMatMulDesc *desc = &executor->product->desc;
    demand(args->struct_size == sizeof *args && args->flags == 0, "structs begin with their size");
    demand(args->m == desc->m || ((desc->flags & ANE_MATMUL_VARIABLE_M) != 0 && args->m < desc->m),
           "a run has the rows that were compiled for");
    demand((desc->flags & ANE_MATMUL_CONSTANT_B) == 0 || (args->b.data == NULL && args->b.buffer == NULL),
           "a constant B never comes with a run");
}

static ANEStatus executor_create(ANEProduct *product, const ANEExecutorOptions *options, ANEMatMulExecutor **out,
                                 ANEError *err) {
    demand(options->struct_size == sizeof *options, "structs begin with their size");
    demand(options->queue_depth <= product->device->max_queue_depth, "queue_depth is at most max_queue_depth");
    ANEMatMulExecutor *executor;
    ANEStatus status = make((void **)&executor, sizeof *executor, err);
    if (executor == NULL) return status;
    *executor = (ANEMatMulExecutor){.product = product, .queue_depth = options->queue_depth, .last = wide()};
    product->executors++;
    *out = executor;
    return status;
}

static ANEStatus executor_run(ANEMatMulExecutor *executor, const ANERunArgs *args, ANEError *err) {
    demand(executor->count == 0, "executor_run is called while there is no submission");
    check_args(executor, args);
    compute(executor->product->device, args);
    observe(args->info);
    return answer(err);
}

/* Which of the operands lie in buffers, and so are in use. */
static void use(const ANERunArgs *args, int change) {
    const ANEOperand *all[] = {&args->a, &args->b, &args->bias, &args->residual, &args->c};
    for (int i = 0; i < 5; i++)
        if (all[i]->buffer != NULL) all[i]->buffer->in_flight += change;
}

static uint32_t state(const ANEMatMulExecutor *executor, const ANERunArgs *args) {
    ANEDevice *device = executor->product->device;
    return sum_of(device, args) * 31 + sum(operand(device, &args->c), args->c.length_bytes);
}

static ANEStatus executor_submit(ANEMatMulExecutor *executor, const ANERunArgs *args, ANETicket *ticket,
                                 ANEError *err) {
    const ANEOperand *all[] = {&args->a, &args->b, &args->bias, &args->residual, &args->c};
    demand(executor->product->device->max_queue_depth > 0, "submissions are for who takes them");
    demand(executor->count < executor->queue_depth, "an executor has at most queue_depth tickets");
    check_args(executor, args);
    demand(args->info == NULL, "info is NULL in a submission");
    for (int i = 0; i < 5; i++)
        demand(all[i]->buffer != NULL || all[i]->length_bytes == 0, "operands of a submission lie in buffers");
    uint32_t contents = state(executor, args);
    ANEStatus status = answer(err);
    if (status != ANE_STATUS_OK) return status;
    Submission *new = allocate(sizeof *new), **at = &executor->first;
    *new = (Submission){.ticket = ++executor->last, .args = *args, .contents = contents};
    while (*at != NULL) at = &(*at)->later;
    *at = new;
    executor->count++;
    use(args, 1);
    *ticket = new->ticket;
    return status;
}

/* Those that were submitted before it too. */
static void complete_to(ANEMatMulExecutor *executor, const Submission *last) {
    for (Submission *at = executor->first; at != NULL; at = at == last ? NULL : at->later) {
        demand(state(executor, &at->args) == at->contents, "nobody touches the operands of a submission");
        if (at->complete) continue;
        compute(executor->product->device, &at->args);
        at->complete = 1;
        at->contents = state(executor, &at->args);
    }
}

static void end(ANEMatMulExecutor *executor, Submission **at) {
    Submission *ended = *at;
    *at = ended->later;
    executor->count--;
    use(&ended->args, -1);
    free(ended);
}

static ANEStatus executor_wait(ANEMatMulExecutor *executor, ANETicket ticket, uint64_t timeout_ns, ANERunInfo *info,
                               ANEError *err) {
    Submission **at = &executor->first;
    while (*at != NULL && (*at)->ticket != ticket) at = &(*at)->later;
    demand(*at != NULL, "a ticket that was not waited for");
    if (next() < 128) complete_to(executor, *at);
    ANEStatus status = answer(err);
    if (status == ANE_STATUS_PENDING && timeout_ns == UINT64_MAX) status = ANE_STATUS_RUN_FAILED;
    if (status == ANE_STATUS_PENDING) return status;
    complete_to(executor, *at);
    end(executor, at);
    observe(info);
    return status;
}

static void executor_destroy(ANEMatMulExecutor *executor) {
    if (executor == NULL) return;
    complete_to(executor, NULL);
    while (executor->first != NULL) end(executor, &executor->first);
    executor->product->executors--;
    free(executor);
}

/* ---- graphs -------------------------------------------------------------------------------- */

enum { MOST_OPERANDS = 8 };

struct ANEGraph {
    ANEDevice *device;
    ANEConstant **constants;
    uint32_t tensor_count, node_count, input_count, output_count;
    /* Of inputs, then outputs: all bytes, and those for each leading index, where they vary. */
    uint64_t bytes[2][MOST_OPERANDS], each[2][MOST_OPERANDS];
    uint64_t most; /* of a variable leading dimension; else 0 */
    long executors;
};

struct ANEGraphExecutor {
    ANEGraph *graph;
};

static uint64_t bytes_of(const ANETensor *tensor) {
    static const uint8_t bits[] = {[ANE_TYPE_F32] = 32, [ANE_TYPE_I64] = 64, [ANE_TYPE_BOOL] = 8};
    demand(tensor->type > 0 && tensor->type < (int)sizeof bits && bits[tensor->type] != 0, "these types were described");
    demand(tensor->rank <= ANE_GRAPH_MAX_RANK, "at most ANE_GRAPH_MAX_RANK dims");
    uint64_t bytes = bits[tensor->type] / 8;
    for (uint32_t axis = 0; axis < tensor->rank; axis++) bytes *= tensor->dims[axis];
    return bytes;
}

/* Reads all of a description. */
static void check_graph(ANEDevice *device, const ANEGraphDesc *desc) {
    demand(desc->struct_size == sizeof *desc && desc->tensor_size == sizeof(ANETensor) &&
               desc->node_size == sizeof(ANENode) && desc->attribute_size == sizeof(ANEAttribute),
           "structs begin with their size, and elements have theirs");
    demand((desc->flags & ~ANE_GRAPH_VARIABLE_LEADING) == 0, "there is one flag");
    uint8_t *written = allocate(desc->tensor_count + 1);
    for (uint32_t i = 0; i < desc->tensor_count; i++) {
        const ANETensor *tensor = &desc->tensors[i];
        sink = (uint32_t)strlen(tensor->name);
        uint64_t bytes = bytes_of(tensor);
        if ((tensor->flags & ANE_TENSOR_INITIALIZER) != 0) {
            demand((tensor->data == NULL) != (tensor->constant == NULL) && tensor->bytes == bytes,
                   "an initializer has its bytes in one place");
            check_constant(device, tensor->data, tensor->constant, bytes);
            written[i] = 1;
        } else {
            demand(tensor->data == NULL && tensor->constant == NULL, "other tensors have no contents");
        }
        int varies = tensor->variable_axis >= 0;
        demand(!varies || ((uint32_t)tensor->variable_axis < tensor->rank && (desc->flags & ANE_GRAPH_VARIABLE_LEADING)),
               "an axis varies that there is, where one may");
    }
    for (uint32_t i = 0; i < desc->input_count; i++) {
        demand(desc->inputs[i] < desc->tensor_count, "indices lie within their arrays");
        written[desc->inputs[i]] = 1;
    }
    for (uint32_t i = 0; i < desc->integer_count; i++) sink += (uint32_t)desc->integers[i];
    for (uint32_t i = 0; i < desc->node_count; i++) {
        const ANENode *node = &desc->nodes[i];
        sink = (uint32_t)strlen(node->name);
        demand((uint64_t)node->first_operand + node->input_count + node->output_count <= desc->operand_count &&
                   (uint64_t)node->first_attribute + node->attribute_count <= desc->attribute_count,
               "indices lie within their arrays");
        const uint32_t *operands = desc->operands + node->first_operand;
        for (uint32_t j = 0; j < node->input_count; j++)
            demand(operands[j] == ANE_GRAPH_NONE || (operands[j] < desc->tensor_count && written[operands[j]]),
                   "a node reads what was written before");
        for (uint32_t j = node->input_count; j < node->input_count + node->output_count; j++) {
            demand(operands[j] < desc->tensor_count && !written[operands[j]], "each tensor is written once");
            written[operands[j]] = 1;
        }
        for (uint32_t j = 0; j < node->attribute_count; j++) {
            const ANEAttribute *attribute = &desc->attributes[node->first_attribute + j];
            demand(attribute->kind != ANE_ATTRIBUTE_INTS ||
                       (uint64_t)attribute->first + attribute->count <= desc->integer_count,
                   "indices lie within their arrays");
        }
    }
    for (uint32_t i = 0; i < desc->output_count; i++)
        demand(desc->outputs[i] < desc->tensor_count && written[desc->outputs[i]] == 1, "outputs are written, each once");
    free(written);
}

static ANEStatus graph_supports(ANEDevice *device, const ANEGraphDesc *desc, const ANECompileOptions *options,
                                ANENodeRefusal *refusals, uint32_t capacity, uint32_t *count, ANEError *err) {
    demand(options->struct_size == sizeof *options, "structs begin with their size");
    check_graph(device, desc);
    uint8_t kind = next();
    if (kind < 128) return answer(err);
    *count = kind < 250 ? kind % (desc->node_count + 1) : (uint32_t)number();
    for (uint32_t i = 0; i < *count && i < capacity; i++) {
        demand(refusals[i].struct_size == sizeof *refusals, "structs begin with their size");
        refusals[i].node = next() < 240 ? i : (uint32_t)number();
        refusals[i].reason = next() < 128 ? next() % 24 : number();
        fill(refusals[i].message, next() % (sizeof refusals[i].message + 1));
    }
    return failed(next() < 200 ? ANE_STATUS_REFUSED : some(16), err);
}

static ANEStatus graph_compile(ANEDevice *device, const ANEGraphDesc *desc, const ANECompileOptions *options,
                               ANEGraph **out, ANEError *err) {
    demand(options->struct_size == sizeof *options, "structs begin with their size");
    check_graph(device, desc);
    demand(desc->input_count <= MOST_OPERANDS && desc->output_count <= MOST_OPERANDS, "as few were described");
    ANEGraph *graph;
    ANEStatus status = make((void **)&graph, sizeof *graph, err);
    if (graph == NULL) return status;
    *graph = (ANEGraph){.device = device,
                        .constants = allocate((desc->tensor_count + 1) * sizeof(ANEConstant *)),
                        .tensor_count = desc->tensor_count,
                        .node_count = desc->node_count,
                        .input_count = desc->input_count,
                        .output_count = desc->output_count};
    for (uint32_t i = 0; i < desc->tensor_count; i++) {
        graph->constants[i] = desc->tensors[i].constant;
        if (graph->constants[i] != NULL) graph->constants[i]->products++;
    }
    for (int of = 0; of < 2; of++) {
        for (uint32_t i = 0; i < (of == 0 ? desc->input_count : desc->output_count); i++) {
            const ANETensor *tensor = &desc->tensors[(of == 0 ? desc->inputs : desc->outputs)[i]];
            graph->bytes[of][i] = bytes_of(tensor);
            if (tensor->variable_axis < 0) continue;
            demand(tensor->variable_axis == 0 && tensor->variable_count == 1, "operands vary along axis 0 by 1");
            graph->most = tensor->dims[0];
            graph->each[of][i] = tensor->dims[0] == 0 ? 0 : graph->bytes[of][i] / tensor->dims[0];
        }
    }
    device->children++;
    *out = graph;
    return status;
}

static ANEStatus graph_save(ANEGraph *graph, const char *path, ANEError *err) {
    demand(graph->executors >= 0 && path[0] != 0, "a path");
    return answer(err);
}

static ANEStatus graph_load(ANEDevice *device, const ANEGraphDesc *desc, const ANECompileOptions *options,
                            const char *path, ANEGraph **out, ANEError *err) {
    demand(path[0] != 0, "a path");
    return graph_compile(device, desc, options, out, err);
}

static ANEStatus graph_info(ANEGraph *graph, ANEGraphInfo *info, ANEError *err) {
    demand(graph->executors >= 0, "a graph that lives");
    info->flags = (uint32_t)some(2);
    info->requested = some(5);
    info->observed = some(5);
    info->compile_ns = wide();
    info->bytes_held = wide();
    info->executor_bytes = wide();
    info->arithmetic = next() < 200 ? 0 : (uint32_t)some(16);
    info->reserved0 = (uint32_t)number();
    return answer(err);
}

static ANEStatus graph_node_info(ANEGraph *graph, uint32_t node, ANENodeInfo *info, ANEError *err) {
    demand(node < graph->node_count, "a node that there is");
    info->fused_into = next() < 200 ? next() % graph->node_count : (uint32_t)number();
    info->planned = some(5);
    info->supported = (uint32_t)number();
    fill(&info->cost, sizeof info->cost);
    return answer(err);
}

static void graph_destroy(ANEGraph *graph) {
    if (graph == NULL) return;
    demand(graph->executors == 0, "executors die before their graph");
    for (uint32_t i = 0; i < graph->tensor_count; i++)
        if (graph->constants[i] != NULL) graph->constants[i]->products--;
    graph->device->children--;
    free(graph->constants);
    free(graph);
}

static ANEStatus graph_executor_create(ANEGraph *graph, const ANEExecutorOptions *options, ANEGraphExecutor **out,
                                       ANEError *err) {
    demand(options->struct_size == sizeof *options, "structs begin with their size");
    ANEGraphExecutor *executor;
    ANEStatus status = make((void **)&executor, sizeof *executor, err);
    if (executor == NULL) return status;
    executor->graph = graph;
    graph->executors++;
    *out = executor;
    return status;
}

static ANEStatus graph_executor_run(ANEGraphExecutor *executor, const ANEGraphRunArgs *args, ANEError *err) {
    const ANEGraph *graph = executor->graph;
    demand(args->struct_size == sizeof *args && args->flags == 0, "structs begin with their size");
    demand(args->leading <= graph->most, "a run has no more than was compiled for");
    for (int of = 0; of < 2; of++) {
        for (uint32_t i = 0; i < (of == 0 ? graph->input_count : graph->output_count); i++) {
            const ANEOperand *at = &(of == 0 ? args->inputs : args->outputs)[i];
            uint64_t each = graph->each[of][i], bytes = each > 0 ? each * args->leading : graph->bytes[of][i];
            demand(at->length_bytes == bytes, "an operand has the bytes of its type");
            uint8_t *start = operand(graph->device, at);
            if (of == 0) sink = sum(start, bytes);
            else if (bytes > 0) memset(start, next(), bytes);
        }
    }
    return answer(err);
}

static ANEStatus graph_executor_submit(ANEGraphExecutor *executor, const ANEGraphRunArgs *args, ANETicket *ticket,
                                       ANEError *err) {
    demand(executor == NULL && args == NULL && ticket == NULL, "graphs are not submitted");
    return failed(ANE_STATUS_INTERNAL, err);
}

static ANEStatus graph_executor_wait(ANEGraphExecutor *executor, ANETicket ticket, uint64_t timeout_ns,
                                     ANERunInfo *info, ANEError *err) {
    demand(executor == NULL && ticket == timeout_ns && info == NULL, "no ticket of a graph was given out");
    return failed(ANE_STATUS_INTERNAL, err);
}

static void graph_executor_destroy(ANEGraphExecutor *executor) {
    if (executor == NULL) return;
    executor->graph->executors--;
    free(executor);
}

const ANEGraphTable *garbage_graphs(void);
const ANEGraphTable *garbage_graphs(void) {
    static const ANEGraphTable table = {
        .struct_size = sizeof(ANEGraphTable),
        .graph_supports = graph_supports,
        .graph_compile = graph_compile,
        .graph_save = graph_save,
        .graph_load = graph_load,
        .graph_info = graph_info,
        .graph_node_info = graph_node_info,
        .graph_destroy = graph_destroy,
        .graph_executor_create = graph_executor_create,
        .graph_executor_run = graph_executor_run,
        .graph_executor_submit = graph_executor_submit,
        .graph_executor_wait = graph_executor_wait,
        .graph_executor_destroy = graph_executor_destroy,
    };
    return &table;
}

/* ---- the table ----------------------------------------------------------------------------- */

/* What src/shim.rs says of the layout. */
_Static_assert(sizeof(ANEShim) == 224 && offsetof(ANEShim, name) == 8, "SIZE and NAME");
_Static_assert(offsetof(ANEShim, device_count) == 24 && offsetof(ANEShim, executor_destroy) == 24 + 8 * 23,
               "FUNCTIONS");
_Static_assert(offsetof(ANEShim, graphs) == 216, "GRAPHS");
_Static_assert(sizeof(ANEGraphTable) == 112 && offsetof(ANEGraphTable, package_format) == 8, "GRAPH_SIZE and POINTERS");
const ANEShim *garbage_shim(void);
const ANEShim *garbage_shim(void) {
    static const ANEShim shim = {
        .struct_size = sizeof(ANEShim),
        .abi_major = ANE_MATMUL_ABI_MAJOR,
        .abi_minor = ANE_MATMUL_ABI_MINOR,
        .name = "garbage",
        .version = "1",
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
    };
    return &shim;
}
