/*
 * The graphs of the reference shim, included by reference.c: f32, with integers and booleans where they are only moved,
 * interpreted node by node, with the tensors that are computed in one arena for each executor.
 * SPDX-License-Identifier: MIT OR Apache-2.0
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

/* The bytes of an element; of one that is refused, the most that it may have. */
static size_t size_of(ANEType type) {
    switch (type) {
    case ANE_TYPE_BOOL: return 1;
    case ANE_TYPE_F32:
    case ANE_TYPE_I32: return 4;
    default: return 8;
    }
}

static size_t bytes_of(const ANETensor *tensor) {
    return product_of(tensor->dims, tensor->rank) * size_of(tensor->type);
}

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

/* What the operands of a node may be: all f32, or some of other types. */
typedef enum Operands { UNKNOWN_OPERATOR, F32_ALONE, F32_AND_SHAPES, MOVED } Operands;

static Operands operands_of(ANEOperator op) {
    switch (op) {
    case ANE_OP_ADD:
    case ANE_OP_ATTENTION:
    case ANE_OP_DIV:
    case ANE_OP_GELU:
    case ANE_OP_LAYER_NORMALIZATION:
    case ANE_OP_MATMUL:
    case ANE_OP_MUL:
    case ANE_OP_RELU:
    case ANE_OP_SOFTMAX:
    case ANE_OP_SUB: return F32_ALONE;
    case ANE_OP_REDUCE_L2:
    case ANE_OP_REDUCE_MAX:
    case ANE_OP_REDUCE_MEAN:
    case ANE_OP_REDUCE_SUM: return F32_AND_SHAPES;
    case ANE_OP_CAST:
    case ANE_OP_FLATTEN:
    case ANE_OP_GATHER:
    case ANE_OP_IDENTITY:
    case ANE_OP_PAD:
    case ANE_OP_RESHAPE:
    case ANE_OP_SLICE:
    case ANE_OP_SQUEEZE:
    case ANE_OP_TRANSPOSE:
    case ANE_OP_UNSQUEEZE:
    case ANE_OP_WHERE: return MOVED;
    default: return UNKNOWN_OPERATOR;
    }
}

static bool known_attribute(ANEOperator op, const ANEAttribute *attribute) {
    switch (attribute->name) {
    case ANE_ATTR_AXIS:
        return op == ANE_OP_SOFTMAX || op == ANE_OP_FLATTEN || op == ANE_OP_GATHER || op == ANE_OP_LAYER_NORMALIZATION;
    case ANE_ATTR_PERM: return op == ANE_OP_TRANSPOSE;
    case ANE_ATTR_ALLOWZERO: return op == ANE_OP_RESHAPE;
    case ANE_ATTR_APPROXIMATE:
        return op == ANE_OP_GELU &&
               (attribute->integer == ANE_APPROXIMATE_NONE || attribute->integer == ANE_APPROXIMATE_TANH);
    case ANE_ATTR_EPSILON: return op == ANE_OP_LAYER_NORMALIZATION;
    case ANE_ATTR_STASH_TYPE: return op == ANE_OP_LAYER_NORMALIZATION && attribute->integer == ANE_TYPE_F32;
    case ANE_ATTR_TO: return op == ANE_OP_CAST;
    case ANE_ATTR_MODE: return op == ANE_OP_PAD && attribute->integer == ANE_PAD_CONSTANT;
    case ANE_ATTR_KEEPDIMS:
    case ANE_ATTR_NOOP_WITH_EMPTY_AXES: return operands_of(op) == F32_AND_SHAPES;
    case ANE_ATTR_IS_CAUSAL:
    case ANE_ATTR_KV_NUM_HEADS:
    case ANE_ATTR_Q_NUM_HEADS:
    case ANE_ATTR_SCALE: return op == ANE_OP_ATTENTION;
    default: return false;
    }
}

/* Whether an operand of this type is computed, or moved. */
static bool known_type(ANEOperator op, uint32_t operand, ANEType type) {
    bool moved = type == ANE_TYPE_F32 || type == ANE_TYPE_I64 || type == ANE_TYPE_I32 || type == ANE_TYPE_BOOL;
    switch (operands_of(op)) {
    case MOVED: return moved;
    case F32_AND_SHAPES: return type == ANE_TYPE_F32 || (operand == 1 && type == ANE_TYPE_I64);
    default: return type == ANE_TYPE_F32 || (op == ANE_OP_ATTENTION && operand == 3 && type == ANE_TYPE_BOOL);
    }
}

/* ANE_REFUSAL_NONE, or why a node is refused. */
static ANERefusal refusal_of(const ANEGraphDesc *desc, const ANENode *node, const char **why) {
    if (operands_of(node->op) == UNKNOWN_OPERATOR) {
        *why = "the reference shim has no such operator";
        return ANE_REFUSAL_OTHER;
    }
    for (uint32_t i = 0; i < node->attribute_count; i++) {
        if (known_attribute(node->op, attribute_at(desc, node->first_attribute + i))) continue;
        *why = "the reference shim knows no such attribute, or value, of this operator";
        return ANE_REFUSAL_OTHER;
    }
    bool past = node->op == ANE_OP_ATTENTION && node->input_count > 4;
    bool axes = node->op == ANE_OP_PAD && node->input_count > 3;
    if (node->output_count > 1 || past || axes) {
        *why = "the reference shim knows no such input or output of this operator";
        return ANE_REFUSAL_OTHER;
    }
    for (uint32_t i = 0; i < node->input_count + node->output_count; i++) {
        uint32_t index = desc->operands[node->first_operand + i];
        /* A node's output is no input, whatever its place. */
        uint32_t place = i < node->input_count ? i : UINT32_MAX;
        if (index == ANE_GRAPH_NONE || known_type(node->op, place, tensor_at(desc, index)->type)) continue;
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
        size_t room = (SIZE_MAX / 2 - bytes) / size_of(tensor->type);
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
    ANEType type;
    uint32_t rank;
    uint64_t dims[ANE_GRAPH_MAX_RANK]; /* in this run */
    void *data;                        /* written to of a node's output alone; NULL where it is left out, or empty */
} Value;

static uint64_t count_of(Value value) { return product_of(value.dims, value.rank); }

static uint32_t axis_of(int64_t axis, uint32_t rank) { return (uint32_t)(axis < 0 ? axis + rank : axis); }

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

static void elementwise(ANEOperator op, Value x, Value y, Value out) {
    const float *xs = x.data, *ys = y.data;
    float *to = out.data;
    uint64_t x_strides[ANE_GRAPH_MAX_RANK], y_strides[ANE_GRAPH_MAX_RANK];
    broadcast(x.dims, x.rank, out.rank, x_strides);
    broadcast(y.dims, y.rank, out.rank, y_strides);
    uint64_t count = count_of(out);
    for (uint64_t i = 0; i < count; i++) {
        float left = xs[offset(i, out.dims, out.rank, x_strides)];
        float right = ys[offset(i, out.dims, out.rank, y_strides)];
        switch (op) {
        case ANE_OP_ADD: to[i] = left + right; break;
        case ANE_OP_SUB: to[i] = left - right; break;
        case ANE_OP_MUL: to[i] = left * right; break;
        default: to[i] = left / right; break;
        }
    }
}

/* One element to another place. */
static void copy(Value to, uint64_t to_index, Value from, uint64_t from_index) {
    size_t size = size_of(to.type);
    memcpy((char *)to.data + to_index * size, (const char *)from.data + from_index * size, size);
}

static void where(Value condition, Value x, Value y, Value out) {
    const uint8_t *truths = condition.data;
    uint64_t strides[3][ANE_GRAPH_MAX_RANK];
    broadcast(condition.dims, condition.rank, out.rank, strides[0]);
    broadcast(x.dims, x.rank, out.rank, strides[1]);
    broadcast(y.dims, y.rank, out.rank, strides[2]);
    uint64_t count = count_of(out);
    for (uint64_t i = 0; i < count; i++) {
        bool truth = truths[offset(i, out.dims, out.rank, strides[0])] != 0;
        copy(out, i, truth ? x : y, offset(i, out.dims, out.rank, strides[truth ? 1 : 2]));
    }
}

static int64_t integer_at(Value value, uint64_t index) {
    switch (value.type) {
    case ANE_TYPE_I64: return ((const int64_t *)value.data)[index];
    case ANE_TYPE_I32: return ((const int32_t *)value.data)[index];
    case ANE_TYPE_BOOL: return ((const uint8_t *)value.data)[index];
    default: {
        float x = ((const float *)value.data)[index];
        return fabsf(x) < 9e18f ? (int64_t)x : 0;
    }
    }
}

static void cast(Value x, Value out) {
    uint64_t count = count_of(out);
    for (uint64_t i = 0; i < count; i++) {
        bool is_float = x.type == ANE_TYPE_F32;
        float number = is_float ? ((const float *)x.data)[i] : (float)integer_at(x, i);
        switch (out.type) {
        case ANE_TYPE_I64: ((int64_t *)out.data)[i] = integer_at(x, i); break;
        case ANE_TYPE_I32: ((int32_t *)out.data)[i] = (int32_t)integer_at(x, i); break;
        case ANE_TYPE_BOOL: ((uint8_t *)out.data)[i] = is_float ? number != 0 : integer_at(x, i) != 0; break;
        default: ((float *)out.data)[i] = number; break;
        }
    }
}

static ANEStatus gather(Value x, Value indices, uint32_t axis, Value out, ANEError *err) {
    int64_t dim = (int64_t)x.dims[axis];
    uint64_t outer = product_of(x.dims, axis), inner = product_of(x.dims + axis + 1, x.rank - axis - 1);
    uint64_t count = count_of(indices);
    size_t slice = inner * size_of(x.type);
    for (uint64_t i = 0; i < count && slice > 0; i++) {
        int64_t index = integer_at(indices, i);
        if (index < -dim || index >= dim) {
            return report(err, ANE_STATUS_RUN_FAILED, ANE_REFUSAL_NONE, "Gather: an index is out of range");
        }
        if (index < 0) index += dim;
        for (uint64_t o = 0; o < outer; o++) {
            const char *from = (const char *)x.data + (o * (uint64_t)dim + (uint64_t)index) * slice;
            memcpy((char *)out.data + (o * count + i) * slice, from, slice);
        }
    }
    return ANE_STATUS_OK;
}

/* As Python's slices; the result's dims say how many elements there are. */
static void slice(Value x, Value starts, Value axes, Value steps, Value out) {
    int64_t first = 0, strides[ANE_GRAPH_MAX_RANK], stride = 1;
    for (uint32_t d = x.rank; d > 0; stride *= (int64_t)x.dims[--d]) strides[d - 1] = stride;
    for (uint64_t i = 0; i < starts.dims[0]; i++) {
        uint32_t axis = axes.data != NULL ? axis_of(integer_at(axes, i), x.rank) : (uint32_t)i;
        int64_t start = integer_at(starts, i), step = steps.data != NULL ? integer_at(steps, i) : 1;
        int64_t dim = (int64_t)x.dims[axis], last = step < 0 ? dim - 1 : dim;
        if (start < 0) start = start < -dim ? 0 : start + dim;
        first += (start > last ? last : start) * strides[axis];
        if (out.dims[axis] > 1) strides[axis] *= step;
    }
    uint64_t count = count_of(out);
    for (uint64_t i = 0; i < count; i++) {
        int64_t from = first;
        uint64_t rest = i;
        for (uint32_t d = out.rank; d > 0; rest /= out.dims[--d]) {
            from += (int64_t)(rest % out.dims[d - 1]) * strides[d - 1];
        }
        copy(out, i, x, (uint64_t)from);
    }
}

static void pad(Value x, Value pads, Value fill, Value out) {
    uint64_t count = count_of(out);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t rest = i, from = 0, stride = 1;
        bool inside = true;
        for (uint32_t d = out.rank; d > 0; d--) {
            int64_t index = (int64_t)(rest % out.dims[d - 1]) - integer_at(pads, d - 1);
            inside = inside && index >= 0 && index < (int64_t)x.dims[d - 1];
            from += (uint64_t)index * stride;
            stride *= x.dims[d - 1];
            rest /= out.dims[d - 1];
        }
        if (inside) copy(out, i, x, from);
        else if (fill.data != NULL) copy(out, i, fill, 0);
        else memset((char *)out.data + i * size_of(out.type), 0, size_of(out.type));
    }
}

static void reduce(ANEOperator op, Value x, Value axes, bool none, Value out) {
    const float *from = x.data;
    float *to = out.data;
    uint64_t strides[ANE_GRAPH_MAX_RANK], stride = 1, reduced = 1;
    bool gone[ANE_GRAPH_MAX_RANK] = {false}, all = axes.data == NULL || axes.dims[0] == 0;
    for (uint64_t i = 0; !all && i < axes.dims[0]; i++) gone[axis_of(integer_at(axes, i), x.rank)] = true;
    for (uint32_t d = x.rank; d > 0; d--) {
        bool goes = all ? !none : gone[d - 1];
        strides[d - 1] = goes ? 0 : stride;
        if (goes) reduced *= x.dims[d - 1];
        else stride *= x.dims[d - 1];
    }
    uint64_t count = count_of(x), results = count_of(out);
    for (uint64_t i = 0; i < results; i++) to[i] = op == ANE_OP_REDUCE_MAX ? -INFINITY : 0;
    for (uint64_t i = 0; i < count; i++) {
        float *sum = &to[offset(i, x.dims, x.rank, strides)];
        if (op == ANE_OP_REDUCE_MAX) *sum = isnan(from[i]) || from[i] > *sum ? from[i] : *sum;
        else *sum += op == ANE_OP_REDUCE_L2 ? from[i] * from[i] : from[i];
    }
    for (uint64_t i = 0; i < results; i++) {
        if (op == ANE_OP_REDUCE_MEAN) to[i] /= (float)reduced;
        if (op == ANE_OP_REDUCE_L2) to[i] = sqrtf(to[i]);
    }
}

static void layer_normalization(Value x, Value scale, Value bias, uint32_t axis, float epsilon, Value out) {
    const float *from = x.data, *scales = scale.data, *biases = bias.data;
    float *to = out.data;
    uint64_t scale_strides[ANE_GRAPH_MAX_RANK], bias_strides[ANE_GRAPH_MAX_RANK];
    broadcast(scale.dims, scale.rank, x.rank, scale_strides);
    broadcast(bias.dims, bias.rank, x.rank, bias_strides);
    uint64_t n = product_of(x.dims + axis, x.rank - axis), count = count_of(x);
    for (uint64_t first = 0; first < count; first += n) {
        float mean = 0, variance = 0;
        for (uint64_t i = first; i < first + n; i++) mean += from[i] / (float)n;
        for (uint64_t i = first; i < first + n; i++) variance += (from[i] - mean) * (from[i] - mean) / (float)n;
        for (uint64_t i = first; i < first + n; i++) {
            float y = (from[i] - mean) / sqrtf(variance + epsilon) * scales[offset(i, x.dims, x.rank, scale_strides)];
            to[i] = biases == NULL ? y : y + biases[offset(i, x.dims, x.rank, bias_strides)];
        }
    }
}

/* The rows of a head, in batch x heads x sequence x size, or in batch x sequence x heads * size. */
typedef struct Rows {
    float *data;
    uint64_t batch_stride, head_stride, row_stride, heads, length, size;
} Rows;

static Rows rows_of(Value value, int64_t heads) {
    Rows rows = {.data = value.data};
    if (value.rank == 4) {
        rows.heads = value.dims[1], rows.length = value.dims[2], rows.row_stride = rows.size = value.dims[3];
        rows.head_stride = rows.length * rows.size;
        rows.batch_stride = rows.heads * rows.head_stride;
    } else {
        rows.heads = (uint64_t)heads, rows.length = value.dims[1], rows.row_stride = value.dims[2];
        rows.head_stride = rows.size = value.dims[2] / rows.heads;
        rows.batch_stride = rows.length * rows.row_stride;
    }
    return rows;
}

static float *row(Rows rows, uint64_t item, uint64_t head, uint64_t index) {
    return rows.data + item * rows.batch_stride + head * rows.head_stride + index * rows.row_stride;
}

static void attention(Value operands[4], int64_t q_heads, int64_t kv_heads, float scale, bool causal, Value out) {
    Rows q = rows_of(operands[0], q_heads), k = rows_of(operands[1], kv_heads), v = rows_of(operands[2], kv_heads);
    Rows y = rows_of(out, q_heads);
    Value mask = operands[3];
    const uint64_t scores[] = {out.dims[0], q.heads, q.length, k.length};
    uint64_t mask_strides[ANE_GRAPH_MAX_RANK], queries = scores[0] * q.heads * q.length;
    broadcast(mask.dims, mask.rank, 4, mask_strides);
    if (scale == 0) scale = 1 / sqrtf((float)q.size);
    for (uint64_t i = 0; i < queries; i++) {
        uint64_t query = i % q.length, head = i / q.length % q.heads, item = i / q.length / q.heads;
        uint64_t kv_head = head / (q.heads / k.heads);
        float *to = row(y, item, head, query), largest = -INFINITY, sum = 0;
        memset(to, 0, v.size * sizeof *to);
        /* First the largest score, then the sums. */
        for (uint64_t j = 0; j < 2 * k.length; j++) {
            uint64_t key = j % k.length, place = offset(i * k.length + key, scores, 4, mask_strides);
            float score = 0;
            for (uint64_t p = 0; p < q.size; p++) score += row(q, item, head, query)[p] * row(k, item, kv_head, key)[p];
            score *= scale;
            if (causal && key > query) score = -INFINITY;
            if (mask.data != NULL && mask.type == ANE_TYPE_F32) score += ((const float *)mask.data)[place];
            bool boolean = mask.data != NULL && mask.type == ANE_TYPE_BOOL;
            if (boolean && !((const uint8_t *)mask.data)[place]) score = -INFINITY;
            if (j < k.length) {
                largest = fmaxf(largest, score);
                continue;
            }
            float weight = expf(score - largest);
            sum += weight;
            for (uint64_t p = 0; p < v.size; p++) to[p] += weight * row(v, item, kv_head, key)[p];
        }
        for (uint64_t p = 0; p < v.size; p++) to[p] /= sum;
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
        const float *a = (const float *)x.data + offset(item, out.dims, batch_rank, x_strides) * m * k;
        const float *b = (const float *)y.data + offset(item, out.dims, batch_rank, y_strides) * k * n;
        float *c = (float *)out.data + item * m * n;
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
        const float *from = (const float *)x.data + first;
        float *to = (float *)out.data + first;
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
    for (uint64_t i = 0; i < count; i++) copy(out, i, x, offset(i, out.dims, out.rank, strides));
}

static void activate_all(ANEActivation activation, Value x, Value out) {
    const float *from = x.data;
    float *to = out.data;
    uint64_t count = count_of(out);
    for (uint64_t i = 0; i < count; i++) to[i] = activate(activation, from[i]);
}

/* What the operand `i` of a node is in a run of this leading dimension. */
static Value value(const ANEGraphExecutor *executor, const ANENode *node, uint32_t i, uint64_t leading) {
    const ANEGraphDesc *desc = &executor->graph->desc;
    uint32_t index = desc->operands[node->first_operand + i];
    if (index == ANE_GRAPH_NONE) return (Value){.data = NULL};
    const ANETensor *tensor = tensor_at(desc, index);
    Value value = {.type = tensor->type, .rank = tensor->rank, .data = executor->values[index]};
    memcpy(value.dims, tensor->dims, sizeof value.dims);
    if ((desc->flags & ANE_GRAPH_VARIABLE_LEADING) != 0 && tensor->variable_axis >= 0) {
        value.dims[tensor->variable_axis] = leading * tensor->variable_count;
    }
    return value;
}

static int64_t integer_of(const ANEGraphDesc *desc, const ANENode *node, ANEAttributeName name, int64_t otherwise) {
    const ANEAttribute *attribute = find_attribute(desc, node, name);
    return attribute != NULL ? attribute->integer : otherwise;
}

static float number_of(const ANEGraphDesc *desc, const ANENode *node, ANEAttributeName name, float otherwise) {
    const ANEAttribute *attribute = find_attribute(desc, node, name);
    return attribute != NULL ? attribute->number : otherwise;
}

static ANEStatus compute(const ANEGraphExecutor *executor, const ANENode *node, uint64_t leading, ANEError *err) {
    enum { MOST_INPUTS = 5 };
    const ANEGraphDesc *desc = &executor->graph->desc;
    Value in[MOST_INPUTS] = {{.data = NULL}}, out = value(executor, node, node->input_count, leading);
    for (uint32_t i = 0; i < node->input_count && i < MOST_INPUTS; i++) in[i] = value(executor, node, i, leading);
    uint32_t axis = axis_of(integer_of(desc, node, ANE_ATTR_AXIS, node->op == ANE_OP_GATHER ? 0 : -1), in[0].rank);
    const ANEAttribute *perm = find_attribute(desc, node, ANE_ATTR_PERM);
    if (count_of(out) == 0) return ANE_STATUS_OK;
    switch (node->op) {
    case ANE_OP_MATMUL: matmul(in[0], in[1], out); break;
    case ANE_OP_ADD:
    case ANE_OP_SUB:
    case ANE_OP_MUL:
    case ANE_OP_DIV: elementwise(node->op, in[0], in[1], out); break;
    case ANE_OP_WHERE: where(in[0], in[1], in[2], out); break;
    case ANE_OP_CAST: cast(in[0], out); break;
    case ANE_OP_RELU: activate_all(ANE_ACTIVATION_RELU, in[0], out); break;
    case ANE_OP_GELU: {
        bool tanh = integer_of(desc, node, ANE_ATTR_APPROXIMATE, ANE_APPROXIMATE_NONE) == ANE_APPROXIMATE_TANH;
        activate_all(tanh ? ANE_ACTIVATION_GELU_TANH : ANE_ACTIVATION_GELU_ERF, in[0], out);
        break;
    }
    case ANE_OP_SOFTMAX: softmax(in[0], axis, out); break;
    case ANE_OP_LAYER_NORMALIZATION:
        layer_normalization(in[0], in[1], in[2], axis, number_of(desc, node, ANE_ATTR_EPSILON, 1e-5f), out);
        break;
    case ANE_OP_ATTENTION: {
        int64_t q_heads = integer_of(desc, node, ANE_ATTR_Q_NUM_HEADS, 1);
        int64_t kv_heads = integer_of(desc, node, ANE_ATTR_KV_NUM_HEADS, 1);
        bool causal = integer_of(desc, node, ANE_ATTR_IS_CAUSAL, 0) != 0;
        attention(in, q_heads, kv_heads, number_of(desc, node, ANE_ATTR_SCALE, 0), causal, out);
        break;
    }
    case ANE_OP_REDUCE_L2:
    case ANE_OP_REDUCE_MAX:
    case ANE_OP_REDUCE_MEAN:
    case ANE_OP_REDUCE_SUM:
        reduce(node->op, in[0], in[1], integer_of(desc, node, ANE_ATTR_NOOP_WITH_EMPTY_AXES, 0) != 0, out);
        break;
    case ANE_OP_TRANSPOSE: transpose(in[0], perm != NULL ? desc->integers + perm->first : NULL, out); break;
    case ANE_OP_SLICE: slice(in[0], in[1], in[3], in[4], out); break;
    case ANE_OP_PAD: pad(in[0], in[1], in[2], out); break;
    case ANE_OP_GATHER: return gather(in[0], in[1], axis, out, err);
    default: memcpy(out.data, in[0].data, count_of(out) * size_of(out.type)); break; /* the others only rename */
    }
    return ANE_STATUS_OK;
}

/* ---- executors of graphs ------------------------------------------------------------------- */

static ANEStatus interpret(void *argument, uint64_t leading, const ANEOperand *operands, ANEError *err) {
    ANEGraphExecutor *executor = argument;
    const ANEGraphDesc *desc = &executor->graph->desc;
    for (uint32_t i = 0; i < desc->input_count + desc->output_count; i++) {
        executor->values[operand_tensor(desc, i)] = operand(&operands[i]);
    }
    ANEStatus status = ANE_STATUS_OK;
    for (uint32_t i = 0; i < desc->node_count && status == ANE_STATUS_OK; i++) {
        status = compute(executor, node_at(desc, i), leading, err);
    }
    return status;
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
static ANEStatus gather_operands(ANEGraphExecutor *executor, const ANEGraphRunArgs *args, ANEError *err) {
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
    ANEStatus status = gather_operands(executor, args, err);
    return status != ANE_STATUS_OK ? status : run(&executor->queue, args->leading, executor->operands, args->info, err);
}

static ANEStatus graph_executor_submit(ANEGraphExecutor *executor, const ANEGraphRunArgs *args, ANETicket *ticket,
                                       ANEError *err) {
    ANEStatus status = gather_operands(executor, args, err);
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
