/*
 * The graphs of the reference shim, included by reference.c: f32, interpreted node by node, with the tensors that
 * are computed in one arena for each executor. SPDX-License-Identifier: MIT OR Apache-2.0
 */
#include "ane_graph.h"

struct ANEGraph {
    ANEDevice *device;
    ANEGraphDesc desc; /* with arrays of its own; of the tensors neither names nor contents */
    ANEDeviceKind requested;
    bool loaded;
    size_t array_bytes, content_bytes, arena_bytes;
    char *arrays;              /* what of the description has no addresses, then its arrays */
    char *contents;            /* copies of the initializers that are not ANEConstants */
    void **initializers;       /* for each tensor what is constant of it, or NULL */
    size_t *places;            /* for each other tensor, where in the arena; inputs and outputs have no place */
};
struct ANEGraphExecutor {
    ANEGraph *graph;
    char *arena;
    void **values;        /* for each tensor its elements during a run; initializers are only read */
    ANEOperand *operands; /* of a run: inputs, then outputs */
    Queue queue;
};

/* ---- reading a graph ----------------------------------------------------------------------- */

static const ANETensor *tensor_at(const ANEGraphDesc *desc, uint32_t index) {
    return (const ANETensor *)((const char *)desc->tensors + (size_t)index * desc->tensor_size);
}

static const ANENode *node_at(const ANEGraphDesc *desc, uint32_t index) {
    return (const ANENode *)((const char *)desc->nodes + (size_t)index * desc->node_size);
}

static const ANEAttribute *attribute_at(const ANEGraphDesc *desc, uint32_t index) {
    return (const ANEAttribute *)((const char *)desc->attributes + (size_t)index * desc->attribute_size);
}

/* A node's attribute, or NULL where it is left out. */
static const ANEAttribute *find_attribute(const ANEGraphDesc *desc, const ANENode *node, ANEAttributeName name) {
    for (uint32_t i = 0; i < node->attribute_count; i++) {
        const ANEAttribute *one = attribute_at(desc, node->first_attribute + i);
        if (one->name == name) return one;
    }
    return NULL;
}

static uint64_t product_of(const uint64_t *dims, uint32_t count) {
    uint64_t product = 1;
    for (uint32_t i = 0; i < count; i++) product *= dims[i];
    return product;
}

static size_t bytes_of(const ANETensor *tensor) { return product_of(tensor->dims, tensor->rank) * sizeof(float); }

static size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }

/* Inputs and outputs, in this order: the tensors that come with a run. */
static uint32_t operand_tensor(const ANEGraphDesc *desc, uint32_t i) {
    return i < desc->input_count ? desc->inputs[i] : desc->outputs[i - desc->input_count];
}

static bool is_operand(const ANEGraphDesc *desc, uint32_t index) {
    for (uint32_t i = 0; i < desc->input_count + desc->output_count; i++) {
        if (operand_tensor(desc, i) == index) return true;
    }
    return false;
}

/* ---- what is supported --------------------------------------------------------------------- */

static bool known_operator(ANEOperator op) {
    switch (op) {
    case ANE_OP_MATMUL:
    case ANE_OP_ADD:
    case ANE_OP_MUL:
    case ANE_OP_RELU:
    case ANE_OP_GELU:
    case ANE_OP_SOFTMAX:
    case ANE_OP_TRANSPOSE:
    case ANE_OP_RESHAPE: return true;
    default: return false;
    }
}

static bool known_attribute(ANEOperator op, const ANEAttribute *attribute) {
    switch (attribute->name) {
    case ANE_ATTR_AXIS: return op == ANE_OP_SOFTMAX;
    case ANE_ATTR_PERM: return op == ANE_OP_TRANSPOSE;
    case ANE_ATTR_ALLOWZERO: return op == ANE_OP_RESHAPE;
    case ANE_ATTR_APPROXIMATE:
        return op == ANE_OP_GELU &&
               (attribute->integer == ANE_APPROXIMATE_NONE || attribute->integer == ANE_APPROXIMATE_TANH);
    default: return false;
    }
}

/* ANE_REFUSAL_NONE, or why a node is refused. */
static ANERefusal refusal_of(const ANEGraphDesc *desc, const ANENode *node, const char **why) {
    if (!known_operator(node->op)) {
        *why = "the reference shim has no such operator";
        return ANE_REFUSAL_OTHER;
    }
    for (uint32_t i = 0; i < node->attribute_count; i++) {
        if (known_attribute(node->op, attribute_at(desc, node->first_attribute + i))) continue;
        *why = "the reference shim knows no such attribute, or value, of this operator";
        return ANE_REFUSAL_OTHER;
    }
    for (uint32_t i = 0; i < node->input_count + node->output_count; i++) {
        if (node->op == ANE_OP_RESHAPE && i == 1) continue; /* the shape: the output's says it too */
        if (tensor_at(desc, desc->operands[node->first_operand + i])->type == ANE_TYPE_F32) continue;
        *why = "the reference shim computes in f32 only; convert the model";
        return ANE_REFUSAL_ELEMENT_TYPE;
    }
    return ANE_REFUSAL_NONE;
}

/* What is refused of a graph as a whole. */
static ANEStatus supports_whole(const ANEGraphDesc *desc, ANEError *err) {
    const uint32_t known = ANE_GRAPH_VARIABLE_LEADING;
    if ((desc->flags & ~known) != 0) return refuse(err, ANE_REFUSAL_OTHER, "a flag of a later header");
    size_t bytes = 0;
    for (uint32_t i = 0; i < desc->tensor_count; i++) {
        const ANETensor *tensor = tensor_at(desc, i);
        size_t room = (SIZE_MAX / 2 - bytes) / sizeof(float);
        for (uint32_t d = 0; d < tensor->rank; d++) room = tensor->dims[d] == 0 ? SIZE_MAX : room / tensor->dims[d];
        if (room == 0) return refuse(err, ANE_REFUSAL_BYTES, "tensors beyond what this machine can address");
        bytes += rounded(bytes_of(tensor));
    }
    return ANE_STATUS_OK;
}

static ANEStatus graph_supports(ANEDevice *device, const ANEGraphDesc *desc, const ANECompileOptions *options,
                                ANENodeRefusal *refusals, uint32_t capacity, uint32_t *count, ANEError *err) {
    *count = 0;
    ANEStatus status = misbehave(&device->fault, "supports", err);
    if (status == ANE_STATUS_OK) status = supports_options(device, options, err);
    if (status != ANE_STATUS_OK) return status;
    for (uint32_t i = 0; i < desc->node_count; i++) {
        const char *why;
        ANERefusal reason = refusal_of(desc, node_at(desc, i), &why);
        if (reason == ANE_REFUSAL_NONE) continue;
        if (*count == 0) status = refuse(err, reason, why);
        if (*count < capacity) {
            refusals[*count].node = i;
            refusals[*count].reason = reason;
            snprintf(refusals[*count].message, sizeof refusals->message, "%s", why);
        }
        ++*count;
    }
    return status != ANE_STATUS_OK ? status : supports_whole(desc, err);
}

/* ---- graphs -------------------------------------------------------------------------------- */

static void graph_destroy(ANEGraph *graph) {
    if (graph != NULL) {
        free(graph->arrays);
        free(graph->contents);
        free(graph->initializers);
        free(graph->places);
    }
    free(graph);
}

/* Copies an array to *end, which moves on, and returns the copy. */
static void *keep(char **end, const void *array, size_t bytes) {
    void *kept = *end;
    if (bytes > 0) memcpy(kept, array, bytes);
    *end += rounded(bytes);
    return kept;
}

/* Copies all arrays into one, and a description without addresses before them. */
static bool copy_arrays(ANEGraph *graph, const ANEGraphDesc *desc) {
    size_t tensor_bytes = (size_t)desc->tensor_count * desc->tensor_size;
    size_t node_bytes = (size_t)desc->node_count * desc->node_size;
    size_t operand_bytes = desc->operand_count * sizeof(uint32_t);
    size_t attribute_bytes = (size_t)desc->attribute_count * desc->attribute_size;
    size_t integer_bytes = desc->integer_count * sizeof(int64_t);
    size_t input_bytes = desc->input_count * sizeof(uint32_t), output_bytes = desc->output_count * sizeof(uint32_t);
    graph->array_bytes = rounded(sizeof *desc) + rounded(tensor_bytes) + rounded(node_bytes) + rounded(operand_bytes) +
                         rounded(attribute_bytes) + rounded(integer_bytes) + rounded(input_bytes) +
                         rounded(output_bytes);
    char *end = graph->arrays = calloc(1, graph->array_bytes);
    if (end == NULL) return false;
    ANEGraphDesc *key = keep(&end, desc, sizeof *desc), *own = &graph->desc;
    key->tensors = NULL;
    key->nodes = NULL;
    key->operands = key->inputs = key->outputs = NULL;
    key->attributes = NULL;
    key->integers = NULL;
    *own = *key;
    own->tensors = keep(&end, desc->tensors, tensor_bytes);
    own->nodes = keep(&end, desc->nodes, node_bytes);
    own->operands = keep(&end, desc->operands, operand_bytes);
    own->attributes = keep(&end, desc->attributes, attribute_bytes);
    own->integers = keep(&end, desc->integers, integer_bytes);
    own->inputs = keep(&end, desc->inputs, input_bytes);
    own->outputs = keep(&end, desc->outputs, output_bytes);
    return true;
}

/* A graph with room for copies of the initializers. */
static ANEStatus make_graph(ANEDevice *device, const ANEGraphDesc *desc, const ANECompileOptions *options,
                            ANEGraph **out, ANEError *err) {
    uint32_t refused;
    ANEStatus status = graph_supports(device, desc, options, NULL, 0, &refused, err);
    if (status != ANE_STATUS_OK) return status;
    ANEGraph *graph = calloc(1, sizeof *graph);
    if (graph == NULL) return no_memory(err, "no memory for the graph");
    graph->device = device;
    graph->requested = options->device;
    for (uint32_t i = 0; i < desc->tensor_count; i++) {
        if (tensor_at(desc, i)->data != NULL) graph->content_bytes += rounded(tensor_at(desc, i)->bytes);
    }
    graph->contents = malloc(graph->content_bytes + 1);
    graph->initializers = calloc(desc->tensor_count + 1, sizeof *graph->initializers);
    graph->places = calloc(desc->tensor_count + 1, sizeof *graph->places);
    bool memory = graph->contents != NULL && graph->initializers != NULL && graph->places != NULL;
    if (!memory || !copy_arrays(graph, desc)) {
        graph_destroy(graph);
        return no_memory(err, "no memory for the graph");
    }
    char *contents = graph->contents;
    for (uint32_t i = 0; i < desc->tensor_count; i++) {
        ANETensor *tensor = (ANETensor *)tensor_at(&graph->desc, i);
        if (tensor->data != NULL) {
            graph->initializers[i] = contents;
            contents += rounded(tensor->bytes);
        } else if (tensor->constant != NULL) {
            graph->initializers[i] = tensor->constant->data;
        } else if (!is_operand(desc, i)) {
            graph->places[i] = graph->arena_bytes;
            graph->arena_bytes += rounded(bytes_of(tensor));
        }
        tensor->name = NULL;
        tensor->data = NULL;
        tensor->constant = NULL;
    }
    for (uint32_t i = 0; i < desc->node_count; i++) ((ANENode *)node_at(&graph->desc, i))->name = NULL;
    *out = graph;
    return ANE_STATUS_OK;
}

static ANEStatus graph_compile(ANEDevice *device, const ANEGraphDesc *desc, const ANECompileOptions *options,
                               ANEGraph **out, ANEError *err) {
    ANEGraph *graph;
    ANEStatus status = misbehave(&device->fault, "compile", err);
    if (status == ANE_STATUS_OK) status = make_graph(device, desc, options, &graph, err);
    if (status != ANE_STATUS_OK) return status;
    char *end = graph->contents;
    for (uint32_t i = 0; i < desc->tensor_count; i++) {
        const ANETensor *tensor = tensor_at(desc, i);
        if (tensor->data != NULL) keep(&end, tensor->data, tensor->bytes);
    }
    *out = graph;
    return ANE_STATUS_OK;
}

/* A package is one file: the description, then the copies of the initializers. The caller keeps the rest of the key. */
static ANEStatus graph_save(ANEGraph *graph, const char *path, ANEError *err) {
    FILE *file = fopen(path, "wbx");
    bool good = file != NULL && fwrite(graph->arrays, 1, graph->array_bytes, file) == graph->array_bytes &&
                fwrite(graph->contents, 1, graph->content_bytes, file) == graph->content_bytes;
    if (file != NULL) good = fclose(file) == 0 && good;
    return good ? ANE_STATUS_OK : report(err, ANE_STATUS_IO, ANE_REFUSAL_NONE, "the package cannot be written");
}

static ANEStatus graph_load(ANEDevice *device, const ANEGraphDesc *desc, const ANECompileOptions *options,
                            const char *path, ANEGraph **out, ANEError *err) {
    ANEGraph *graph;
    FILE *file = fopen(path, "rb");
    if (file == NULL) return report(err, ANE_STATUS_IO, ANE_REFUSAL_NONE, "there is no package to read");
    ANEStatus status = make_graph(device, desc, options, &graph, err);
    if (status == ANE_STATUS_OK) {
        bool good = true;
        for (size_t i = 0; good && i < graph->array_bytes; i++) good = fgetc(file) == (unsigned char)graph->arrays[i];
        good = good && fread(graph->contents, 1, graph->content_bytes, file) == graph->content_bytes &&
               fgetc(file) == EOF;
        if (good) {
            graph->loaded = true;
            *out = graph;
        } else {
            graph_destroy(graph);
            status = report(err, ANE_STATUS_PACKAGE_MISMATCH, ANE_REFUSAL_NONE, "the package is of another graph");
        }
    }
    fclose(file);
    return status;
}

static ANEStatus graph_info(ANEGraph *graph, ANEGraphInfo *info, ANEError *err) {
    const ANEGraphDesc *desc = &graph->desc;
    uint32_t operand_count = desc->input_count + desc->output_count;
    (void)err;
    info->flags = graph->loaded ? ANE_PRODUCT_FLAG_FROM_PACKAGE : 0;
    info->requested = graph->requested;
    info->observed = ANE_DEVICE_CPU;
    info->bytes_held = sizeof *graph + graph->array_bytes + graph->content_bytes +
                       desc->tensor_count * (sizeof *graph->initializers + sizeof *graph->places);
    info->executor_bytes = sizeof(ANEGraphExecutor) + graph->arena_bytes + desc->tensor_count * sizeof(void *) +
                           operand_count * sizeof(ANEOperand) + submission_bytes(operand_count);
    info->arithmetic = arithmetic_of(graph->device);
    return ANE_STATUS_OK;
}

static ANEStatus graph_node_info(ANEGraph *graph, uint32_t node, ANENodeInfo *info, ANEError *err) {
    if (node >= graph->desc.node_count) return invalid(err, "there is no such node");
    info->fused_into = node;
    info->planned = ANE_DEVICE_CPU;
    info->supported = 1u << ANE_DEVICE_CPU;
    info->cost = -1;
    return ANE_STATUS_OK;
}

/* ---- operators ----------------------------------------------------------------------------- */

typedef struct Value {
    uint32_t rank;
    uint64_t dims[ANE_GRAPH_MAX_RANK]; /* in this run */
    float *data;                       /* written to of a node's output alone */
} Value;

/* How far it is from one element to the next along each of `rank` dimensions of the result, with the operand's own
 * at their end; 0 where the operand has one element that counts for all. */
static void broadcast(const uint64_t *dims, uint32_t own_rank, uint32_t rank, uint64_t *strides) {
    uint64_t stride = 1;
    for (uint32_t i = 1; i <= rank; i++) {
        uint64_t dim = i <= own_rank ? dims[own_rank - i] : 1;
        strides[rank - i] = dim == 1 ? 0 : stride;
        stride *= dim;
    }
}

/* Where an operand with these strides has what belongs to the element `index` of the result. */
static uint64_t offset(uint64_t index, const uint64_t *dims, uint32_t rank, const uint64_t *strides) {
    uint64_t offset = 0;
    for (uint32_t i = rank; i > 0; i--) {
        offset += index % dims[i - 1] * strides[i - 1];
        index /= dims[i - 1];
    }
    return offset;
}

static void add_or_multiply(bool add, Value x, Value y, Value out) {
    uint64_t x_strides[ANE_GRAPH_MAX_RANK], y_strides[ANE_GRAPH_MAX_RANK];
    broadcast(x.dims, x.rank, out.rank, x_strides);
    broadcast(y.dims, y.rank, out.rank, y_strides);
    uint64_t count = product_of(out.dims, out.rank);
    for (uint64_t i = 0; i < count; i++) {
        float left = x.data[offset(i, out.dims, out.rank, x_strides)];
        float right = y.data[offset(i, out.dims, out.rank, y_strides)];
        out.data[i] = add ? left + right : left * right;
    }
}

static void matmul(Value x, Value y, Value out) {
    /* One dimension is a row on the left and a column on the right, and not in the result. */
    uint64_t m = x.rank > 1 ? x.dims[x.rank - 2] : 1, k = x.dims[x.rank - 1], n = y.rank > 1 ? y.dims[y.rank - 1] : 1;
    uint32_t batch_rank = out.rank - (x.rank > 1) - (y.rank > 1);
    uint64_t x_strides[ANE_GRAPH_MAX_RANK], y_strides[ANE_GRAPH_MAX_RANK]; /* in matrices */
    broadcast(x.dims, x.rank > 2 ? x.rank - 2 : 0, batch_rank, x_strides);
    broadcast(y.dims, y.rank > 2 ? y.rank - 2 : 0, batch_rank, y_strides);
    uint64_t items = product_of(out.dims, batch_rank);
    for (uint64_t item = 0; item < items; item++) {
        const float *a = x.data + offset(item, out.dims, batch_rank, x_strides) * m * k;
        const float *b = y.data + offset(item, out.dims, batch_rank, y_strides) * k * n;
        float *c = out.data + item * m * n;
        for (uint64_t i = 0; i < m; i++) {
            for (uint64_t j = 0; j < n; j++) {
                float sum = 0;
                for (uint64_t p = 0; p < k; p++) sum += a[i * k + p] * b[p * n + j];
                c[i * n + j] = sum;
            }
        }
    }
}

static void softmax(Value x, uint32_t axis, Value out) {
    uint64_t n = x.dims[axis], stride = product_of(x.dims + axis + 1, x.rank - axis - 1);
    uint64_t slices = product_of(x.dims, axis) * stride;
    for (uint64_t slice = 0; slice < slices; slice++) {
        uint64_t first = slice / stride * n * stride + slice % stride;
        const float *from = x.data + first;
        float *to = out.data + first;
        float largest = -INFINITY, sum = 0;
        for (uint64_t i = 0; i < n; i++) largest = fmaxf(largest, from[i * stride]);
        for (uint64_t i = 0; i < n; i++) sum += to[i * stride] = expf(from[i * stride] - largest);
        for (uint64_t i = 0; i < n; i++) to[i * stride] /= sum;
    }
}

static void transpose(Value x, const int64_t *perm, Value out) {
    uint64_t strides[ANE_GRAPH_MAX_RANK];
    for (uint32_t i = 0; i < x.rank; i++) {
        uint32_t axis = perm != NULL ? (uint32_t)perm[i] : x.rank - 1 - i;
        strides[i] = product_of(x.dims + axis + 1, x.rank - axis - 1);
    }
    uint64_t count = product_of(out.dims, out.rank);
    for (uint64_t i = 0; i < count; i++) out.data[i] = x.data[offset(i, out.dims, out.rank, strides)];
}

static void activate_all(ANEActivation activation, Value x, Value out) {
    uint64_t count = product_of(out.dims, out.rank);
    for (uint64_t i = 0; i < count; i++) out.data[i] = activate(activation, x.data[i]);
}

/* What the operand `i` of a node is in a run of this leading dimension. */
static Value value(const ANEGraphExecutor *executor, const ANENode *node, uint32_t i, uint64_t leading) {
    const ANEGraphDesc *desc = &executor->graph->desc;
    uint32_t index = desc->operands[node->first_operand + i];
    const ANETensor *tensor = tensor_at(desc, index);
    Value value = {.rank = tensor->rank, .data = executor->values[index]};
    memcpy(value.dims, tensor->dims, sizeof value.dims);
    if ((desc->flags & ANE_GRAPH_VARIABLE_LEADING) != 0 && tensor->variable_axis >= 0) {
        value.dims[tensor->variable_axis] = leading * tensor->variable_count;
    }
    return value;
}

static void compute(const ANEGraphExecutor *executor, const ANENode *node, uint64_t leading) {
    const ANEGraphDesc *desc = &executor->graph->desc;
    Value x = value(executor, node, 0, leading), out = value(executor, node, node->input_count, leading);
    Value y = node->input_count > 1 ? value(executor, node, 1, leading) : x;
    const ANEAttribute *axis = find_attribute(desc, node, ANE_ATTR_AXIS);
    const ANEAttribute *perm = find_attribute(desc, node, ANE_ATTR_PERM);
    const ANEAttribute *approximate = find_attribute(desc, node, ANE_ATTR_APPROXIMATE);
    switch (node->op) {
    case ANE_OP_MATMUL: matmul(x, y, out); break;
    case ANE_OP_ADD: add_or_multiply(true, x, y, out); break;
    case ANE_OP_MUL: add_or_multiply(false, x, y, out); break;
    case ANE_OP_RELU: activate_all(ANE_ACTIVATION_RELU, x, out); break;
    case ANE_OP_GELU: {
        bool tanh = approximate != NULL && approximate->integer == ANE_APPROXIMATE_TANH;
        activate_all(tanh ? ANE_ACTIVATION_GELU_TANH : ANE_ACTIVATION_GELU_ERF, x, out);
        break;
    }
    case ANE_OP_SOFTMAX: {
        int64_t along = axis != NULL ? axis->integer : -1;
        softmax(x, (uint32_t)(along < 0 ? along + x.rank : along), out);
        break;
    }
    case ANE_OP_TRANSPOSE: transpose(x, perm != NULL ? desc->integers + perm->first : NULL, out); break;
    case ANE_OP_RESHAPE: activate_all(ANE_ACTIVATION_NONE, x, out); break; /* a copy */
    default: break; /* refused before */
    }
}

/* ---- executors of graphs ------------------------------------------------------------------- */

static ANEStatus interpret(void *argument, uint64_t leading, const ANEOperand *operands, ANEError *err) {
    (void)err;
    ANEGraphExecutor *executor = argument;
    const ANEGraphDesc *desc = &executor->graph->desc;
    for (uint32_t i = 0; i < desc->input_count + desc->output_count; i++) {
        executor->values[operand_tensor(desc, i)] = operand(&operands[i]);
    }
    for (uint32_t i = 0; i < desc->node_count; i++) compute(executor, node_at(desc, i), leading);
    return ANE_STATUS_OK;
}

static void free_executor(ANEGraphExecutor *executor) {
    free(executor->arena);
    free(executor->values);
    free(executor->operands);
    free(executor);
}

static ANEStatus graph_executor_create(ANEGraph *graph, const ANEExecutorOptions *options, ANEGraphExecutor **out,
                                       ANEError *err) {
    const ANEGraphDesc *desc = &graph->desc;
    uint32_t operand_count = desc->input_count + desc->output_count;
    ANEStatus status = misbehave(&graph->device->fault, "executor", err);
    if (status != ANE_STATUS_OK) return status;
    ANEGraphExecutor *executor = calloc(1, sizeof *executor);
    if (executor == NULL) return no_memory(err, "no memory for an executor");
    executor->graph = graph;
    executor->arena = malloc(graph->arena_bytes + 1);
    executor->values = malloc((desc->tensor_count + 1) * sizeof *executor->values);
    executor->operands = malloc((operand_count + 1) * sizeof *executor->operands);
    status = executor->arena == NULL || executor->values == NULL || executor->operands == NULL
                 ? no_memory(err, "no memory for an executor")
                 : open_queue(&executor->queue, graph->device, interpret, executor, operand_count, options, err);
    if (status != ANE_STATUS_OK) {
        free_executor(executor);
        return status;
    }
    for (uint32_t i = 0; i < desc->tensor_count; i++) {
        void *initializer = graph->initializers[i];
        executor->values[i] = initializer != NULL ? initializer : executor->arena + graph->places[i];
    }
    *out = executor;
    return ANE_STATUS_OK;
}

/* Gathers the operands of a run in the executor. */
static ANEStatus gather(ANEGraphExecutor *executor, const ANEGraphRunArgs *args, ANEError *err) {
    const ANEGraphDesc *desc = &executor->graph->desc;
    uint64_t most = 0;
    for (uint32_t i = 0; i < desc->input_count + desc->output_count; i++) {
        const ANETensor *tensor = tensor_at(desc, operand_tensor(desc, i));
        if ((desc->flags & ANE_GRAPH_VARIABLE_LEADING) != 0 && tensor->variable_axis == 0) most = tensor->dims[0];
    }
    if (args->leading > most) return invalid(err, "more of the leading dimension than compiled for");
    for (uint32_t i = 0; i < desc->input_count; i++) executor->operands[i] = args->inputs[i];
    for (uint32_t i = 0; i < desc->output_count; i++) executor->operands[desc->input_count + i] = args->outputs[i];
    return ANE_STATUS_OK;
}

static ANEStatus graph_executor_run(ANEGraphExecutor *executor, const ANEGraphRunArgs *args, ANEError *err) {
    ANEStatus status = gather(executor, args, err);
    return status != ANE_STATUS_OK ? status : run(&executor->queue, args->leading, executor->operands, args->info, err);
}

static ANEStatus graph_executor_submit(ANEGraphExecutor *executor, const ANEGraphRunArgs *args, ANETicket *ticket,
                                       ANEError *err) {
    ANEStatus status = gather(executor, args, err);
    if (status != ANE_STATUS_OK) return status;
    return submit(&executor->queue, args->leading, executor->operands, args->info, ticket, err);
}

static ANEStatus graph_executor_wait(ANEGraphExecutor *executor, ANETicket ticket, uint64_t timeout_ns,
                                     ANERunInfo *info, ANEError *err) {
    return wait_for(&executor->queue, ticket, timeout_ns, info, err);
}

static void graph_executor_destroy(ANEGraphExecutor *executor) {
    if (executor == NULL) return;
    close_queue(&executor->queue);
    free_executor(executor);
}

static const ANEGraphTable graph_table = {
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
