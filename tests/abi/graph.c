/*
 * Graphs, ane_graph.h: an attention head of Add, Gelu, MatMul, Mul, Reshape, Softmax and Transpose, compiled, saved
 * and loaded, run and submitted, of fewer items than it was compiled for; broadcasting; one constant in two graphs;
 * refusals. Results are compared with what this program computes. Link it with a shim that has these operators in
 * f32. Exits with 0 when all is right.
 */
#include "support.h"

#include "ane_graph.h"

#include <math.h>
#include <sys/stat.h>

static const ANEGraphTable *graphs;

/* ---- building graphs ----------------------------------------------------------------------- */

typedef struct Builder {
    uint32_t tensors, nodes, operands, attributes, integers, inputs, outputs;
    ANETensor tensor[32];
    ANENode node[24];
    uint32_t operand[64];
    ANEAttribute attribute[16];
    int64_t integer[32];
    uint32_t input[4], output[4];
    uint32_t flags;
    char name[32][16];
} Builder;

static uint32_t add_tensor(Builder *builder, const char *name, uint32_t rank, const uint64_t *dims) {
    ANETensor *tensor = &builder->tensor[builder->tensors];
    memset(tensor, 0, sizeof *tensor);
    snprintf(builder->name[builder->tensors], sizeof builder->name[0], "%s", name);
    tensor->name = builder->name[builder->tensors];
    tensor->type = ANE_TYPE_F32;
    tensor->rank = rank;
    tensor->variable_axis = -1;
    for (uint32_t i = 0; i < rank; i++) tensor->dims[i] = dims[i];
    return builder->tensors++;
}
#define TENSOR(name, ...) \
    add_tensor(builder, name, sizeof((uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t), (uint64_t[]){__VA_ARGS__})

static uint64_t elements(const ANETensor *tensor) {
    uint64_t count = 1;
    for (uint32_t i = 0; i < tensor->rank; i++) count *= tensor->dims[i];
    return count;
}

/* The tensor is an initializer: plain memory, or a constant of the device. */
static uint32_t contents(Builder *builder, uint32_t index, const void *data, ANEConstant *constant) {
    ANETensor *tensor = &builder->tensor[index];
    tensor->flags = ANE_TENSOR_INITIALIZER;
    tensor->data = constant == NULL ? data : NULL;
    tensor->constant = constant;
    tensor->bytes = elements(tensor) * (tensor->type == ANE_TYPE_I64 ? sizeof(int64_t) : sizeof(float));
    return index;
}

static uint32_t shape(Builder *builder, const char *name, uint32_t count, const int64_t *dims) {
    uint32_t index = add_tensor(builder, name, 1, (uint64_t[]){count});
    builder->tensor[index].type = ANE_TYPE_I64;
    return contents(builder, index, dims, NULL);
}

/* A node with one output. */
static void add_node(Builder *builder, ANEOperator op, uint32_t output, uint32_t inputs, const uint32_t *input) {
    ANENode *node = &builder->node[builder->nodes++];
    *node = (ANENode){"node", op, builder->operands, inputs, 1, builder->attributes, 0};
    for (uint32_t i = 0; i < inputs; i++) builder->operand[builder->operands++] = input[i];
    builder->operand[builder->operands++] = output;
}
#define NODE(op, output, ...) \
    add_node(builder, op, output, sizeof((uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t), (uint32_t[]){__VA_ARGS__})

/* Attributes of the node that was added last. */
static ANEAttribute *add_attribute(Builder *builder, ANEAttributeName name, ANEAttributeKind kind) {
    ANEAttribute *attribute = &builder->attribute[builder->attributes++];
    memset(attribute, 0, sizeof *attribute);
    attribute->name = name;
    attribute->kind = kind;
    builder->node[builder->nodes - 1].attribute_count++;
    return attribute;
}

static void integer_attribute(Builder *builder, ANEAttributeName name, int64_t integer) {
    add_attribute(builder, name, ANE_ATTRIBUTE_INT)->integer = integer;
}

static void integers_attribute(Builder *builder, ANEAttributeName name, uint32_t count, const int64_t *integers) {
    ANEAttribute *attribute = add_attribute(builder, name, ANE_ATTRIBUTE_INTS);
    attribute->first = builder->integers;
    attribute->count = count;
    for (uint32_t i = 0; i < count; i++) builder->integer[builder->integers++] = integers[i];
}

static ANEGraphDesc describe(const Builder *builder) {
    return (ANEGraphDesc){
        .struct_size = sizeof(ANEGraphDesc),
        .flags = builder->flags,
        .tensor_size = sizeof(ANETensor),
        .node_size = sizeof(ANENode),
        .attribute_size = sizeof(ANEAttribute),
        .tensor_count = builder->tensors,
        .node_count = builder->nodes,
        .operand_count = builder->operands,
        .attribute_count = builder->attributes,
        .integer_count = builder->integers,
        .input_count = builder->inputs,
        .output_count = builder->outputs,
        .tensors = builder->tensor,
        .nodes = builder->node,
        .operands = builder->operand,
        .attributes = builder->attribute,
        .integers = builder->integer,
        .inputs = builder->input,
        .outputs = builder->output,
    };
}

/* Compiles it, and forgets all that it was compiled from. */
static ANEGraph *compile(ANEDevice *device, Builder *builder) {
    ANEGraph *graph = NULL;
    ANEGraphDesc desc = describe(builder);
    uint32_t refused = 7;
    OK(graphs->graph_supports(device, &desc, &compile_options, NULL, 0, &refused, &error));
    MUST(refused == 0);
    OK(graphs->graph_compile(device, &desc, &compile_options, &graph, &error));
    memset(builder, 0xa5, sizeof *builder);
    memset(&desc, 0xa5, sizeof desc);
    return graph;
}

static ANEGraphExecutor *make_executor(ANEGraph *graph, uint32_t depth) {
    ANEGraphExecutor *executor = NULL;
    const ANEExecutorOptions options = {sizeof options, depth};
    OK(graphs->graph_executor_create(graph, &options, &executor, &error));
    return executor;
}

static void close_to(const float *found, const double *right, uint64_t count, int line) {
    for (uint64_t i = 0; i < count; i++) {
        if (fabs(found[i] - right[i]) <= 1e-5 * (1 + fabs(right[i]))) continue;
        fprintf(stderr, "line %d: element %d is %g, not %g\n", line, (int)i, (double)found[i], right[i]);
        exit(1);
    }
}
#define CLOSE_TO(found, right, count) close_to(found, right, count, __LINE__)

/* A number from -1 to 1 that looks random. */
static float number(uint32_t seed) { return (float)((seed * 2654435761u >> 8) & 0xffff) / 32768 - 1; }

static void fill(float *data, uint32_t count, uint32_t seed) {
    for (uint32_t i = 0; i < count; i++) data[i] = number(seed * 1000 + i);
}

/* ---- a head of attention ------------------------------------------------------------------- */

enum { ITEMS = 4, S = 5, D = 6 };

/* What does not change, and what a run of all items must give, from x of a seed. */
static float wq[D * D], wk[D * D], wv[D * D], mask[S * S], bias[S * D];
static const float scale = 0.40824829f;
static const int64_t to_rows[] = {-1, D}, to_items[] = {-1, S, D}, to_lines[] = {ITEMS, S * D};

typedef struct Head {
    float x[ITEMS * S * D];
    double weights[ITEMS * S * S], out[ITEMS * S * D];
} Head;

static void fill_constants(void) {
    fill(wq, D * D, 1);
    fill(wk, D * D, 2);
    fill(wv, D * D, 3);
    fill(bias, S * D, 4);
    for (int i = 0; i < S; i++) {
        for (int j = 0; j < S; j++) mask[i * S + j] = j > i ? -INFINITY : 0;
    }
}

static double gelu(double x) { return x / 2 * (1 + erf(x / sqrt(2))); }
static double gelu_tanh(double x) { return x / 2 * (1 + tanh(0.7978845608 * (x + 0.044715 * x * x * x))); }

static void compute_head(Head *head, uint32_t seed, bool tanh) {
    fill(head->x, ITEMS * S * D, seed);
    for (int item = 0; item < ITEMS; item++) {
        const float *x = head->x + item * S * D;
        double q[S][D] = {{0}}, k[S][D] = {{0}}, v[S][D] = {{0}};
        for (int i = 0; i < S; i++) {
            for (int j = 0; j < D; j++) {
                for (int p = 0; p < D; p++) {
                    q[i][j] += x[i * D + p] * wq[p * D + j];
                    k[i][j] += x[i * D + p] * wk[p * D + j];
                    v[i][j] += x[i * D + p] * wv[p * D + j];
                }
            }
        }
        for (int i = 0; i < S; i++) {
            double *weights = head->weights + (item * S + i) * S, *out = head->out + (item * S + i) * D, sum = 0;
            for (int j = 0; j < S; j++) {
                double score = 0;
                for (int p = 0; p < D; p++) score += q[i][p] * k[j][p];
                sum += weights[j] = exp(score * scale + mask[i * S + j]);
            }
            for (int j = 0; j < S; j++) weights[j] /= sum;
            for (int j = 0; j < D; j++) {
                double y = bias[i * D + j];
                for (int p = 0; p < S; p++) y += weights[p] * v[p][j];
                out[j] = tanh ? gelu_tanh(y) : gelu(y);
            }
        }
    }
}

/* A tensor that has `count` elements along `axis` for each item. */
static uint32_t varies(Builder *builder, uint32_t index, int32_t axis, uint64_t count) {
    builder->tensor[index].variable_axis = axis;
    builder->tensor[index].variable_count = count;
    return index;
}
#define ITEMWISE(name, ...) varies(builder, TENSOR(name, ITEMS, __VA_ARGS__), 0, 1)

/* Gelu(softmax(Q K' scale + mask) V + bias), and the softmax; wq may be a constant of the device. Items lie along the
 * first axis, but for Q, which is computed of the rows of all items, and for Gelu, where they lie along the second. */
static void build_head(Builder *builder, ANEConstant *wq_constant, bool tanh) {
    memset(builder, 0, sizeof *builder);
    builder->flags = ANE_GRAPH_VARIABLE_LEADING;
    uint32_t x = ITEMWISE("x", S, D);
    uint32_t query = contents(builder, TENSOR("wq", D, D), wq, wq_constant);
    uint32_t key = contents(builder, TENSOR("wk", D, D), wk, NULL);
    uint32_t value = contents(builder, TENSOR("wv", D, D), wv, NULL);
    uint32_t factor = contents(builder, add_tensor(builder, "scale", 0, NULL), &scale, NULL);
    uint32_t masked = contents(builder, TENSOR("mask", S, S), mask, NULL);
    uint32_t offset = contents(builder, TENSOR("bias", S * D), bias, NULL);
    uint32_t rows = varies(builder, TENSOR("rows", ITEMS * S, D), 0, S);
    uint32_t queries = varies(builder, TENSOR("queries", ITEMS * S, D), 0, S);
    uint32_t q = ITEMWISE("q", S, D), k = ITEMWISE("k", S, D), v = ITEMWISE("v", S, D), kt = ITEMWISE("k'", D, S);
    uint32_t scores = ITEMWISE("scores", S, S), scaled = ITEMWISE("scaled", S, S), sums = ITEMWISE("sums", S, S);
    uint32_t weights = ITEMWISE("weights", S, S), y = ITEMWISE("y", S, D);
    uint32_t lines = ITEMWISE("lines", S * D), biased = ITEMWISE("biased", S * D), out = ITEMWISE("out", S * D);
    uint32_t columns = varies(builder, TENSOR("columns", S * D, ITEMS), 1, 1);
    uint32_t activated = varies(builder, TENSOR("activated", S * D, ITEMS), 1, 1);
    NODE(ANE_OP_RESHAPE, rows, x, shape(builder, "to rows", 2, to_rows));
    NODE(ANE_OP_MATMUL, queries, rows, query);
    NODE(ANE_OP_RESHAPE, q, queries, shape(builder, "to items", 3, to_items));
    NODE(ANE_OP_MATMUL, k, x, key);
    NODE(ANE_OP_MATMUL, v, x, value);
    NODE(ANE_OP_TRANSPOSE, kt, k);
    integers_attribute(builder, ANE_ATTR_PERM, 3, (int64_t[]){0, 2, 1});
    NODE(ANE_OP_MATMUL, scores, q, kt);
    NODE(ANE_OP_MUL, scaled, scores, factor);
    NODE(ANE_OP_ADD, sums, scaled, masked);
    NODE(ANE_OP_SOFTMAX, weights, sums);
    NODE(ANE_OP_MATMUL, y, weights, v);
    NODE(ANE_OP_RESHAPE, lines, y, shape(builder, "to lines", 2, to_lines));
    NODE(ANE_OP_ADD, biased, lines, offset);
    NODE(ANE_OP_TRANSPOSE, columns, biased);
    NODE(ANE_OP_GELU, activated, columns);
    if (tanh) integer_attribute(builder, ANE_ATTR_APPROXIMATE, ANE_APPROXIMATE_TANH);
    NODE(ANE_OP_TRANSPOSE, out, activated);
    builder->input[builder->inputs++] = x;
    builder->output[builder->outputs++] = out;
    builder->output[builder->outputs++] = weights;
}
enum { HEAD_NODES = 16 };

/* Runs of any number of items write what is theirs and nothing behind. */
static void run_head(ANEGraph *graph, bool tanh) {
    Head head;
    ANEGraphExecutor *executor = make_executor(graph, 0);
    for (uint64_t items = ITEMS; items > 0; items--) {
        float out[ITEMS * S * D], weights[ITEMS * S * S];
        compute_head(&head, 10 + (uint32_t)items, tanh);
        for (int i = 0; i < ITEMS * S * D; i++) out[i] = 99;
        for (int i = 0; i < ITEMS * S * S; i++) weights[i] = 99;
        ANERunInfo info = {.struct_size = sizeof info};
        const ANEOperand input = {head.x, NULL, 0, items * S * D * sizeof(float)};
        const ANEOperand outputs[] = {{out, NULL, 0, items * S * D * sizeof(float)},
                                      {weights, NULL, 0, items * S * S * sizeof(float)}};
        const ANEGraphRunArgs args = {sizeof args, 0, items, &input, outputs, &info};
        OK(graphs->graph_executor_run(executor, &args, &error));
        CLOSE_TO(out, head.out, items * S * D);
        CLOSE_TO(weights, head.weights, items * S * S);
        for (uint64_t i = items * S * D; i < ITEMS * S * D; i++) MUST(out[i] == 99);
        for (uint64_t i = items * S * S; i < ITEMS * S * S; i++) MUST(weights[i] == 99);
        MUST(info.device_start_ns <= info.device_end_ns);
    }
    graphs->graph_executor_destroy(executor);
}

/* Submissions of the same graph, on buffers of the device's own memory. */
static void submit_head(ANEDevice *device, ANEGraph *graph, uint32_t depth, uint32_t rounds) {
    enum { PLACES = 4, PLACE_BYTES = 1024 };
    ANEBuffer *x, *out, *weights;
    ANETicket tickets[PLACES];
    Head heads[PLACES];
    if (depth > PLACES) depth = PLACES;
    ANEGraphExecutor *executor = make_executor(graph, depth);
    OK(shim->buffer_create(device, ANE_BUFFER_DEVICE, PLACES * PLACE_BYTES, &x, &error));
    OK(shim->buffer_create(device, ANE_BUFFER_DEVICE, PLACES * PLACE_BYTES, &out, &error));
    OK(shim->buffer_create(device, ANE_BUFFER_DEVICE, PLACES * PLACE_BYTES, &weights, &error));
    for (uint32_t i = 0; i < PLACES; i++) {
        compute_head(&heads[i], 20 + i, false);
        OK(shim->buffer_write(x, i * PLACE_BYTES, heads[i].x, sizeof heads[i].x, &error));
    }
    for (uint32_t round = 0; round < rounds; round++) {
        for (uint32_t i = 0; i < depth; i++) {
            uint64_t items = 1 + (round + i) % ITEMS;
            ANEGraphRunArgs args = {sizeof args, 0, items, NULL, NULL, NULL};
            ANEOperand input = {NULL, x, i * PLACE_BYTES, items * S * D * sizeof(float)};
            ANEOperand outputs[] = {{NULL, out, i * PLACE_BYTES, items * S * D * sizeof(float)},
                                    {NULL, weights, i * PLACE_BYTES, items * S * S * sizeof(float)}};
            args.inputs = &input;
            args.outputs = outputs;
            OK(graphs->graph_executor_submit(executor, &args, &tickets[i], &error));
            memset(&args, 0xa5, sizeof args);
            memset(&input, 0xa5, sizeof input);
            memset(outputs, 0xa5, sizeof outputs);
        }
        /* The last first: then all are complete. */
        for (uint32_t i = depth; i > 0; i--) {
            float found[ITEMS * S * D];
            uint64_t items = 1 + (round + i - 1) % ITEMS, place = (i - 1) * PLACE_BYTES;
            uint64_t timeout_ns = i == depth ? UINT64_MAX : 0;
            OK(graphs->graph_executor_wait(executor, tickets[i - 1], timeout_ns, NULL, &error));
            OK(shim->buffer_read(out, place, found, items * S * D * sizeof(float), &error));
            CLOSE_TO(found, heads[i - 1].out, items * S * D);
            OK(shim->buffer_read(weights, place, found, items * S * S * sizeof(float), &error));
            CLOSE_TO(found, heads[i - 1].weights, items * S * S);
        }
    }
    graphs->graph_executor_destroy(executor);
    shim->buffer_destroy(x);
    shim->buffer_destroy(out);
    shim->buffer_destroy(weights);
}

typedef struct Share {
    ANEDevice *device;
    ANEGraph *graph;
    uint32_t depth;
} Share;

static void *use_share(void *argument) {
    Share *share = argument;
    submit_head(share->device, share->graph, share->depth, 20);
    run_head(share->graph, false);
    return NULL;
}

/* ---- one constant in two graphs ------------------------------------------------------------ */

/* Relu(u wq), u of 3 x D: the second user of wq. */
static void build_small(Builder *builder, ANEConstant *wq_constant) {
    memset(builder, 0, sizeof *builder);
    uint32_t u = TENSOR("u", 3, D), w = contents(builder, TENSOR("wq", D, D), wq, wq_constant);
    uint32_t product = TENSOR("product", 3, D), out = TENSOR("out", 3, D);
    NODE(ANE_OP_MATMUL, product, u, w);
    NODE(ANE_OP_RELU, out, product);
    builder->input[builder->inputs++] = u;
    builder->output[builder->outputs++] = out;
}

static void run_small(ANEGraph *graph) {
    float u[3 * D], out[3 * D];
    double right[3 * D];
    fill(u, 3 * D, 30);
    for (int i = 0; i < 3; i++) {
        for (int j = 0; j < D; j++) {
            double sum = 0;
            for (int p = 0; p < D; p++) sum += u[i * D + p] * wq[p * D + j];
            right[i * D + j] = sum > 0 ? sum : 0;
        }
    }
    ANEGraphExecutor *executor = make_executor(graph, 0);
    const ANEOperand input = {u, NULL, 0, sizeof u}, output = {out, NULL, 0, sizeof out};
    const ANEGraphRunArgs args = {sizeof args, 0, 0, &input, &output, NULL};
    OK(graphs->graph_executor_run(executor, &args, &error));
    CLOSE_TO(out, right, 3 * D);
    graphs->graph_executor_destroy(executor);
}

/* ---- broadcasting -------------------------------------------------------------------------- */

/* Products of matrices, rows and columns, broadcast; sums of which each lacks a dimension of the other. */
static void broadcasting(ANEDevice *device) {
    float a[2][1][3][4], b[5][4][2], v[4], w[5][1], found[5][3][2];
    fill(&a[0][0][0][0], 24, 40);
    fill(&b[0][0][0], 40, 41);
    fill(v, 4, 42);
    fill(&w[0][0], 5, 43);
    Builder graph, *builder = &graph;
    memset(builder, 0, sizeof *builder);
    uint32_t input = TENSOR("a", 2, 1, 3, 4), weights = contents(builder, TENSOR("b", 5, 4, 2), b, NULL);
    uint32_t vector = contents(builder, TENSOR("v", 4), v, NULL);
    uint32_t column = contents(builder, TENSOR("w", 5, 1), w, NULL);
    uint32_t matrices = TENSOR("matrices", 2, 5, 3, 2);
    uint32_t rows = TENSOR("rows", 5, 2), flipped = TENSOR("flipped", 2, 5);
    uint32_t columns = TENSOR("columns", 2, 1, 3), sums = TENSOR("sums", 2, 5, 3);
    uint32_t softened = TENSOR("softened", 2, 5, 3), turned = TENSOR("turned", 5, 3, 2);
    uint32_t line = TENSOR("line", 30), again = TENSOR("again", 5, 3, 2);
    uint32_t to_line = shape(builder, "to line", 1, (int64_t[]){30});
    uint32_t to_matrices = shape(builder, "to matrices", 3, (int64_t[]){5, 3, -1});
    NODE(ANE_OP_MATMUL, matrices, input, weights);
    NODE(ANE_OP_MATMUL, rows, vector, weights);
    NODE(ANE_OP_MATMUL, columns, input, vector);
    NODE(ANE_OP_ADD, sums, columns, column);
    NODE(ANE_OP_SOFTMAX, softened, sums);
    integer_attribute(builder, ANE_ATTR_AXIS, -2);
    NODE(ANE_OP_TRANSPOSE, turned, softened);
    integers_attribute(builder, ANE_ATTR_PERM, 3, (int64_t[]){1, 2, 0});
    NODE(ANE_OP_TRANSPOSE, flipped, rows);
    NODE(ANE_OP_RESHAPE, line, turned, to_line);
    NODE(ANE_OP_RESHAPE, again, line, to_matrices);
    builder->input[builder->inputs++] = input;
    builder->output[builder->outputs++] = matrices;
    builder->output[builder->outputs++] = flipped;
    builder->output[builder->outputs++] = again;

    double right_matrices[2][5][3][2] = {{{{0}}}}, right_flipped[2][5] = {{0}}, right_turned[5][3][2];
    for (int i = 0; i < 2; i++) {
        for (int l = 0; l < 3; l++) {
            double total = 0, sum[5];
            for (int j = 0; j < 5; j++) {
                for (int c = 0; c < 2; c++) {
                    for (int p = 0; p < 4; p++) right_matrices[i][j][l][c] += a[i][0][l][p] * b[j][p][c];
                }
                sum[j] = w[j][0];
                for (int p = 0; p < 4; p++) sum[j] += a[i][0][l][p] * v[p];
                total += exp(sum[j]);
            }
            for (int j = 0; j < 5; j++) right_turned[j][l][i] = exp(sum[j]) / total;
        }
    }
    for (int j = 0; j < 5; j++) {
        for (int c = 0; c < 2; c++) {
            for (int p = 0; p < 4; p++) right_flipped[c][j] += v[p] * b[j][p][c];
        }
    }
    float found_matrices[2][5][3][2], found_flipped[2][5];
    ANEGraph *compiled = compile(device, builder);
    ANEGraphExecutor *executor = make_executor(compiled, 0);
    const ANEOperand in = {a, NULL, 0, sizeof a};
    const ANEOperand out[] = {{found_matrices, NULL, 0, sizeof found_matrices},
                              {found_flipped, NULL, 0, sizeof found_flipped},
                              {found, NULL, 0, sizeof found}};
    const ANEGraphRunArgs args = {sizeof args, 0, 0, &in, out, NULL};
    memset(b, 0, sizeof b);
    OK(graphs->graph_executor_run(executor, &args, &error));
    CLOSE_TO(&found_matrices[0][0][0][0], &right_matrices[0][0][0][0], 60);
    CLOSE_TO(&found_flipped[0][0], &right_flipped[0][0], 10);
    CLOSE_TO(&found[0][0][0], &right_turned[0][0][0], 30);
    graphs->graph_executor_destroy(executor);
    graphs->graph_destroy(compiled);
}

/* ---- refusals ------------------------------------------------------------------------------ */

static void refusals(ANEDevice *device) {
    enum { UNKNOWN = 1000000 };
    Builder head, *builder = &head;
    build_head(builder, NULL, false);
    builder->node[3].op = UNKNOWN;
    builder->node[7].op = UNKNOWN + 1;
    integer_attribute(builder, UNKNOWN, 1);
    ANEGraphDesc desc = describe(builder);
    ANENodeRefusal refused[3];
    ANEGraph *graph = NULL;
    uint32_t count = 7;
    for (uint32_t capacity = 0; capacity <= 3; capacity++) {
        memset(refused, 0, sizeof refused);
        for (int i = 0; i < 3; i++) refused[i].struct_size = sizeof refused[i];
        GIVES(ANE_STATUS_REFUSED,
              graphs->graph_supports(device, &desc, &compile_options, refused, capacity, &count, &error));
        MUST(count == 3 && error.status == ANE_STATUS_REFUSED);
        for (uint32_t i = 0; i < 3; i++) {
            MUST((refused[i].reason == ANE_REFUSAL_OTHER) == (i < capacity));
            MUST((refused[i].message[0] != '\0') == (i < capacity));
            MUST(refused[i].node == (i < capacity ? ((uint32_t[]){3, 7, HEAD_NODES - 1})[i] : 0));
        }
    }
    GIVES(ANE_STATUS_REFUSED, graphs->graph_compile(device, &desc, &compile_options, &graph, &error));
    MUST(graph == NULL);

    /* The graph as a whole. */
    build_head(builder, NULL, false);
    builder->flags = 0x40000000;
    desc = describe(builder);
    GIVES(ANE_STATUS_REFUSED, graphs->graph_supports(device, &desc, &compile_options, refused, 3, &count, &error));
    MUST(count == 0 && error.status == ANE_STATUS_REFUSED);
    if (!is_reference()) return;

    /* No silent other precision. */
    build_head(builder, NULL, false);
    builder->tensor[builder->input[0]].type = ANE_TYPE_F16;
    desc = describe(builder);
    GIVES(ANE_STATUS_REFUSED, graphs->graph_supports(device, &desc, &compile_options, refused, 3, &count, &error));
    MUST(count == 3 && refused[2].node == 4 && refused[0].reason == ANE_REFUSAL_ELEMENT_TYPE);
}

/* The faults of the reference shim that a graph tells of. */
static void faults(void) {
    Builder builder;
    ANENodeRefusal refused;
    uint32_t count = 7;
    build_head(&builder, NULL, false);
    ANEGraphDesc desc = describe(&builder);
    ANEDevice *device = open_device("", "known");
    GIVES(ANE_STATUS_REFUSED, graphs->graph_supports(device, &desc, &compile_options, &refused, 1, &count, &error));
    MUST(count == 0 && error.refusal == ANE_REFUSAL_VENDOR_FAULT);
    shim->device_close(device);

    device = open_device("", "tf32");
    ANEGraph *graph = compile(device, &builder);
    ANEGraphInfo info = {.struct_size = sizeof info};
    OK(graphs->graph_info(graph, &info, &error));
    MUST(info.arithmetic == ANE_ARITHMETIC_TF32);
    const ANEGraphRunArgs args = {sizeof args, 0, ITEMS + 1, NULL, NULL, NULL};
    ANEGraphExecutor *executor = make_executor(graph, 0);
    GIVES(ANE_STATUS_INVALID_ARGUMENT, graphs->graph_executor_run(executor, &args, &error));
    graphs->graph_executor_destroy(executor);
    graphs->graph_destroy(graph);
    shim->device_close(device);
}

/* ---- packages ------------------------------------------------------------------------------ */

static ANEStatus load(ANEDevice *device, Builder *builder, const char *path, ANEGraph **graph) {
    ANEGraphDesc desc = describe(builder);
    return graphs->graph_load(device, &desc, &compile_options, path, graph, &error);
}

/* What cannot be used: the caller compiles then. */
static void cannot_load(ANEDevice *device, Builder *builder, const char *path) {
    ANEGraph *graph = NULL;
    ANEStatus status = load(device, builder, path, &graph);
    MUST(status == ANE_STATUS_PACKAGE_MISMATCH || status == ANE_STATUS_IO);
    MUST(graph == NULL && error.status == status);
}

static void packages(ANEDevice *device, ANEConstant *constant) {
    char folder[] = "/tmp/ane-matmul-XXXXXX", path[sizeof folder + 10];
    Builder first, builder; /* no package depends on addresses */
    build_head(&first, constant, false);
    ANEGraph *graph = compile(device, &first), *loaded = NULL;
    ANEGraphInfo info = {.struct_size = sizeof info};
    MUST(mkdtemp(folder) != NULL);
    snprintf(path, sizeof path, "%s/graph", folder);
    ANEStatus status = graphs->graph_save(graph, path, &error);
    if (status != ANE_STATUS_NOT_IMPLEMENTED) {
        GIVES(ANE_STATUS_OK, status);
        GIVES(ANE_STATUS_IO, graphs->graph_save(graph, path, &error)); /* something exists there */
        OK(graphs->graph_info(graph, &info, &error));
        MUST((info.flags & ANE_PRODUCT_FLAG_FROM_PACKAGE) == 0);
        graphs->graph_destroy(graph);
        build_head(&builder, constant, false);
        OK(load(device, &builder, path, &loaded));
        memset(&builder, 0xa5, sizeof builder);
        run_head(loaded, false);
        OK(graphs->graph_info(loaded, &info, &error));
        MUST((info.flags & ANE_PRODUCT_FLAG_FROM_PACKAGE) != 0);
        graphs->graph_destroy(loaded);
        /* Of another graph, which differs in its attributes, its flags or its shape; nothing; damaged. */
        build_head(&builder, constant, true);
        cannot_load(device, &builder, path);
        build_head(&builder, constant, false);
        builder.flags = 0;
        cannot_load(device, &builder, path);
        build_small(&builder, constant);
        cannot_load(device, &builder, path);
        build_head(&builder, constant, false);
        cannot_load(device, &builder, "/nonexistent/graph");
        struct stat data;
        if (stat(path, &data) == 0 && S_ISREG(data.st_mode)) {
            MUST(truncate(path, data.st_size - 1) == 0);
            cannot_load(device, &builder, path);
        }
    } else {
        graphs->graph_destroy(graph);
    }
    /* A package may be a folder. */
    char command[sizeof folder + 10];
    snprintf(command, sizeof command, "rm -r %s", folder);
    MUST(system(command) == 0);
}

/* ---- all of it ----------------------------------------------------------------------------- */

static void everything(const char *memory) {
    ANEDevice *device = open_device(memory, "");
    uint32_t depth = info_of_device().max_queue_depth;
    Builder builder;
    fill_constants();
    ANEConstant *constant = NULL;
    if ((info_of_device().flags & ANE_DEVICE_FLAG_CONSTANTS) != 0) {
        float copy[D * D];
        memcpy(copy, wq, sizeof copy);
        const ANEConstantDesc desc = {
            .struct_size = sizeof desc, .type = ANE_TYPE_F32, .data = copy, .bytes = sizeof copy};
        OK(shim->constant_create(device, &desc, &constant, &error));
        memset(copy, 0, sizeof copy);
    }

    build_small(&builder, constant);
    ANEGraph *small = compile(device, &builder);
    build_head(&builder, constant, false);
    ANEGraph *head = compile(device, &builder);
    run_small(small);
    run_head(head, false);
    if (depth > 0) submit_head(device, head, depth, 10);

    pthread_t threads[2];
    Share share = {device, head, depth > 0 ? depth : 1};
    for (int i = 0; i < 2 && depth > 0; i++) MUST(pthread_create(&threads[i], NULL, use_share, &share) == 0);
    for (int i = 0; i < 2 && depth > 0; i++) pthread_join(threads[i], NULL);

    /* The head goes, and the other goes on with the constant. */
    ANENodeInfo info = {.struct_size = sizeof info};
    OK(graphs->graph_node_info(head, HEAD_NODES - 1, &info, &error));
    MUST(info.fused_into < HEAD_NODES);
    GIVES(ANE_STATUS_INVALID_ARGUMENT, graphs->graph_node_info(head, HEAD_NODES, &info, &error));
    graphs->graph_destroy(head);
    run_small(small);
    graphs->graph_destroy(small);

    build_head(&builder, NULL, true);
    head = compile(device, &builder);
    run_head(head, true);
    graphs->graph_destroy(head);
    broadcasting(device);
    refusals(device);
    packages(device, constant);
    shim->constant_destroy(constant);
    shim->device_close(device);
}

int main(void) {
    start();
    graphs = shim->graphs;
    if (graphs == NULL || graphs->graph_compile == NULL) {
        puts("not run: the shim compiles no graphs");
        return 0;
    }
    everything("");
    if (is_reference()) {
        everything("device");
        everything("embed");
        faults();
    }
    graphs->graph_destroy(NULL);
    graphs->graph_executor_destroy(NULL);
    puts("1 passed, 0 failed");
    return 0;
}
