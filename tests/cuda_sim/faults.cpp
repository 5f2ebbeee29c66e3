/*
 * The CUDA shim over the emulation: every call of CUDA's fails in turn, and each time the shim says so, leaks nothing,
 * and goes on; a device that is lost; misuse; what is refused. SPDX-License-Identifier: MIT OR Apache-2.0
 */
#include "ane_matmul.h"
#include "sim.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

const ANEShim *shim;
ANEError error{};
unsigned passed;

void must(bool good, const char *what, int line) {
    if (good) return;
    fprintf(stderr, "line %d: not so: %s (%s)\n", line, what, error.message);
    exit(1);
}
#define MUST(condition) must(condition, #condition, __LINE__)

constexpr uint64_t M = 40, N = 64, K = 64;

/* A product with all that a run can have: of whole numbers, so that C is exact. */
struct Kind {
    ANEType a, b, accumulator;
    bool constant, epilogue;
};

ANEMatMulDesc describe(const Kind &kind) {
    ANEMatMulDesc d{};
    d.struct_size = sizeof d;
    d.flags = (kind.constant ? ANE_MATMUL_CONSTANT_B : 0) |
              (kind.epilogue ? ANE_MATMUL_BIAS | ANE_MATMUL_RESIDUAL : 0) | ANE_MATMUL_VARIABLE_M;
    d.batch = 1, d.m = M, d.n = N, d.k = K;
    d.lda = K, d.ldb = N, d.ldc = N + 3, d.ld_residual = N;
    d.stride_a = M * K, d.stride_b = K * N, d.stride_c = M * (N + 3), d.stride_residual = M * N;
    d.type_a = kind.a, d.type_b = kind.b, d.type_accumulator = kind.accumulator, d.type_c = ANE_TYPE_F32;
    d.type_bias = kind.epilogue ? ANE_TYPE_F32 : ANE_TYPE_NONE;
    d.activation = kind.epilogue ? ANE_ACTIVATION_RELU : ANE_ACTIVATION_NONE;
    d.alpha = 1;
    return d;
}

/* The bits of a small whole number. */
void set(ANEType type, void *data, uint64_t i, int value) {
    float wide = static_cast<float>(value);
    uint32_t bits;
    memcpy(&bits, &wide, sizeof bits);
    switch (type) {
    case ANE_TYPE_I8: static_cast<int8_t *>(data)[i] = static_cast<int8_t>(value); break;
    case ANE_TYPE_BF16: static_cast<uint16_t *>(data)[i] = static_cast<uint16_t>(bits >> 16); break;
    default: static_cast<float *>(data)[i] = wide;
    }
}

int a_of(uint64_t i, uint64_t p) { return static_cast<int>((i * 3 + p) % 7) - 3; }
int b_of(uint64_t p, uint64_t j) { return static_cast<int>((p + j * 5) % 9) - 4; }

struct Operands {
    std::vector<char> a = std::vector<char>(M * K * 4), b = std::vector<char>(K * N * 4);
    std::vector<float> bias = std::vector<float>(N, 2), residual = std::vector<float>(M * N, -1);
    std::vector<float> c = std::vector<float>(M * (N + 3), 77);
    uint64_t a_bytes, b_bytes;

    explicit Operands(const Kind &kind) {
        auto size = [](ANEType type) { return type == ANE_TYPE_F32 ? 4u : type == ANE_TYPE_BF16 ? 2u : 1u; };
        for (uint64_t i = 0; i < M * K; i++) set(kind.a, a.data(), i, a_of(i / K, i % K));
        for (uint64_t i = 0; i < K * N; i++) set(kind.b, b.data(), i, b_of(i / N, i % N));
        a_bytes = M * K * size(kind.a), b_bytes = K * N * size(kind.b);
    }

    bool is_right(const Kind &kind, uint64_t rows) const {
        for (uint64_t i = 0; i < M; i++) {
            for (uint64_t j = 0; j < N + 3; j++) {
                float sum = 0;
                for (uint64_t p = 0; p < K && j < N; p++) sum += static_cast<float>(a_of(i, p) * b_of(p, j));
                if (kind.epilogue) sum = sum + 1 > 0 ? sum + 1 : 0;
                bool outside = j >= N || i >= rows;
                if (c[i * (N + 3) + j] != (outside ? 77 : sum)) return false;
            }
        }
        return true;
    }
};

/* Everything once; the first status that is not right. What was made is destroyed. */
struct Scenario {
    Kind kind;
    ANEDevice *device = nullptr;
    ANEConstant *constant = nullptr;
    ANEProduct *product = nullptr;
    ANEMatMulExecutor *executor = nullptr;
    ANEBuffer *a = nullptr, *c = nullptr, *on_device = nullptr, *wrapped = nullptr;
    char *pages = nullptr;

    explicit Scenario(const Kind &chosen) : kind(chosen) {}
    ~Scenario() {
        shim->executor_destroy(executor);
        shim->product_destroy(product);
        shim->constant_destroy(constant);
        for (ANEBuffer *buffer : {a, c, on_device, wrapped}) shim->buffer_destroy(buffer);
        shim->device_close(device);
        free(pages);
    }

#define TRY(call)                                                                                                      \
    if (ANEStatus tried = (call)) return tried
    ANEStatus make(bool from_constant) {
        Operands operands(kind);
        ANEMatMulDesc d = describe(kind);
        ANECompileOptions options{};
        options.struct_size = sizeof options;
        ANEConstants constants{};
        constants.struct_size = sizeof constants;
        uint32_t count = 0;
        TRY(shim->device_count(&count, &error));
        ANEDeviceInfo info{};
        info.struct_size = sizeof info;
        TRY(shim->device_info(0, &info, &error));
        TRY(shim->device_open(0, &device, &error));
        if (kind.constant) {
            const ANEConstantDesc desc = {sizeof desc, kind.b, operands.b.data(), operands.b_bytes, {}};
            if (from_constant) TRY(shim->constant_create(device, &desc, &constant, &error));
            constants.b_constant = constant;
            constants.b = from_constant ? nullptr : operands.b.data();
            constants.b_bytes = operands.b_bytes;
        }
        TRY(shim->compile(device, &d, &constants, &options, &product, &error));
        const ANEExecutorOptions depth = {sizeof depth, 3};
        return shim->executor_create(product, &depth, &executor, &error);
    }

    ANERunArgs args(Operands &operands, uint64_t rows) const {
        ANERunArgs args{};
        args.struct_size = sizeof args;
        args.m = rows;
        args.a = ANEOperand{operands.a.data(), nullptr, 0, rows * (operands.a_bytes / M)};
        if (!kind.constant) args.b = ANEOperand{operands.b.data(), nullptr, 0, operands.b_bytes};
        if (kind.epilogue) {
            args.bias = ANEOperand{operands.bias.data(), nullptr, 0, 4 * N};
            args.residual = ANEOperand{operands.residual.data(), nullptr, 0, 4 * rows * N};
        }
        args.c = ANEOperand{operands.c.data(), nullptr, 0, 4 * ((rows - 1) * (N + 3) + N)};
        return args;
    }

    ANEStatus run(bool *right) {
        ANERunInfo info{};
        info.struct_size = sizeof info;
        for (uint64_t rows : {M, uint64_t(7), M}) {
            Operands operands(kind);
            ANERunArgs some = args(operands, rows);
            some.info = &info;
            TRY(shim->executor_run(executor, &some, &error));
            *right = *right && operands.is_right(kind, rows) && info.device_end_ns >= info.device_start_ns;
        }
        return ANE_STATUS_OK;
    }

    /* Submissions, with A in memory that the host sees, and B and C on the device, less aligned than kernels want. */
    ANEStatus submit(bool *right) {
        Operands operands(kind);
        const uint64_t c_bytes = 4 * operands.c.size();
        TRY(shim->buffer_create(device, ANE_BUFFER_HOST_VISIBLE, operands.a.size(), &a, &error));
        TRY(shim->buffer_create(device, ANE_BUFFER_DEVICE, c_bytes + 4, &c, &error));
        TRY(shim->buffer_write(a, 0, operands.a.data(), operands.a.size(), &error));
        TRY(shim->buffer_write(c, 4, operands.c.data(), c_bytes, &error));
        ANERunArgs some = args(operands, M);
        some.a.data = nullptr, some.a.buffer = a;
        some.c.data = nullptr, some.c.buffer = c, some.c.offset_bytes = 4;
        if (!kind.constant) {
            TRY(shim->buffer_create(device, ANE_BUFFER_DEVICE, operands.b_bytes + 4, &on_device, &error));
            TRY(shim->buffer_write(on_device, 4, operands.b.data(), operands.b_bytes, &error));
            some.b = ANEOperand{nullptr, on_device, 4, operands.b_bytes};
        }
        if (kind.epilogue) {
            pages = static_cast<char *>(aligned_alloc(4096, 4096 * 4));
            memcpy(pages, operands.bias.data(), 4 * N);
            memcpy(pages + 4 * N, operands.residual.data(), 4 * M * N);
            TRY(shim->buffer_wrap(device, pages, 4096 * 4, &wrapped, &error));
            some.bias = ANEOperand{nullptr, wrapped, 0, 4 * N};
            some.residual = ANEOperand{nullptr, wrapped, 4 * N, 4 * M * N};
        }
        ANETicket tickets[3];
        for (ANETicket &ticket : tickets) TRY(shim->executor_submit(executor, &some, &ticket, &error));
        ANETicket fourth;
        MUST(shim->executor_submit(executor, &some, &fourth, &error) != ANE_STATUS_OK);
        ANEStatus status;
        while ((status = shim->executor_wait(executor, tickets[1], 0, nullptr, &error)) == ANE_STATUS_PENDING) {
        }
        if (status != ANE_STATUS_OK) return status;
        TRY(shim->executor_wait(executor, tickets[0], 0, nullptr, &error));
        TRY(shim->buffer_read(c, 4, operands.c.data(), c_bytes, &error));
        *right = *right && operands.is_right(kind, M);
        return ANE_STATUS_OK; /* one is left to executor_destroy */
    }
};

ANEStatus everything(const Kind &kind, bool from_constant) {
    Scenario scenario(kind);
    bool right = true;
    TRY(scenario.make(from_constant));
    TRY(scenario.run(&right));
    TRY(scenario.submit(&right));
    MUST(right);
    return ANE_STATUS_OK;
}

/* Each call fails once. */
void calls_fail(const Kind &kind, bool from_constant) {
    uint64_t before = sim_live();
    sim_fail_at(0);
    MUST(everything(kind, from_constant) == ANE_STATUS_OK);
    uint64_t calls = sim_calls(), told = 0;
    MUST(sim_live() == before && calls > 100);
    for (uint64_t call = 1; call <= calls; call++) {
        error.message[0] = '\0';
        sim_fail_at(call);
        ANEStatus status = everything(kind, from_constant);
        MUST(sim_live() == before);
        if (status == ANE_STATUS_OK) continue; /* it was one of those that destroy */
        told++;
        MUST(status == error.status && error.message[0] != '\0' && error.native_code != 0 && error.domain[0] != '\0');
        MUST(status != ANE_STATUS_PENDING && status != ANE_STATUS_INTERNAL);
    }
    sim_fail_at(0);
    MUST(told > calls * 9 / 10);
    passed++;
}

/* The device ends with each kernel in turn. */
void device_is_lost(const Kind &kind) {
    uint64_t before = sim_live();
    for (uint64_t kernel = 1;; kernel++) {
        sim_lose_at(kernel);
        ANEStatus status = everything(kind, true);
        MUST(sim_live() == before);
        if (status == ANE_STATUS_OK) break;
        MUST(status == ANE_STATUS_RUN_FAILED && strstr(error.message, "start it again") != nullptr);
        MUST(kernel < 1000);
    }
    sim_lose_at(0);
    passed++;
}

void no_device() {
    uint32_t count = 7;
    ANEDevice *device = nullptr;
    sim_set_devices(0);
    MUST(shim->device_count(&count, &error) == ANE_STATUS_NO_DEVICE && strstr(error.message, "no CUDA-capable device"));
    MUST(shim->device_open(0, &device, &error) == ANE_STATUS_NO_DEVICE && device == nullptr);
    sim_set_devices(2);
    MUST(shim->device_count(&count, &error) == ANE_STATUS_OK && count == 2);
    MUST(shim->device_open(2, &device, &error) == ANE_STATUS_NO_DEVICE && device == nullptr);
    MUST(shim->device_open(1, &device, nullptr) == ANE_STATUS_OK);
    shim->device_close(device);
    sim_set_devices(1);
    passed++;
}

void refused(const char *what, ANERefusal refusal, ANEMatMulDesc d, ANEDeviceKind wanted) {
    ANECompileOptions options{};
    options.struct_size = sizeof options;
    options.device = wanted;
    ANEStatus status = shim->supports(nullptr, &d, &options, &error);
    if (status != ANE_STATUS_REFUSED || error.refusal != refusal) fprintf(stderr, "%s: status %d\n", what, status);
    MUST(status == ANE_STATUS_REFUSED && error.refusal == refusal && error.message[0] != '\0');
}

void refusals() {
    const Kind floats = {ANE_TYPE_F32, ANE_TYPE_F32, ANE_TYPE_F32, false, true};
    ANEMatMulDesc d = describe(floats);
    d.flags |= 1u << 30;
    refused("a flag", ANE_REFUSAL_OTHER, d, 0);
    d = describe(floats), d.activation = 99;
    refused("an activation", ANE_REFUSAL_EPILOGUE, d, 0);
    d = describe(floats), d.m = uint64_t(1) << 31;
    refused("a dimension", ANE_REFUSAL_DIMENSION, d, 0);
    d = describe(floats), d.type_b = ANE_TYPE_F64;
    refused("a type", ANE_REFUSAL_ELEMENT_TYPE, d, 0);
    d = describe(floats), d.quant_b = 9;
    refused("a scheme", ANE_REFUSAL_QUANTIZATION, d, 0);
    refused("a device", ANE_REFUSAL_DEVICE, describe(floats), ANE_DEVICE_CPU);
    passed++;
}

/* The contract that a caller breaks: an error, and what was submitted goes on. */
void misuse() {
    const Kind kind = {ANE_TYPE_F32, ANE_TYPE_F32, ANE_TYPE_F32, true, false};
    Scenario scenario(kind);
    Operands operands(kind);
    bool right = true;
    MUST(scenario.make(true) == ANE_STATUS_OK);
    ANERunArgs plain = scenario.args(operands, M), many = plain;
    many.m = M + 1;
    ANETicket ticket = 77;
    ANEMatMulExecutor *executor = nullptr;
    const ANEExecutorOptions deep = {sizeof deep, 100000};
    MUST(shim->executor_create(scenario.product, &deep, &executor, &error) == ANE_STATUS_INVALID_ARGUMENT);
    MUST(shim->executor_run(scenario.executor, &many, &error) == ANE_STATUS_INVALID_ARGUMENT);
    MUST(shim->executor_submit(scenario.executor, &plain, &ticket, &error) == ANE_STATUS_INVALID_ARGUMENT &&
         ticket == 77);
    MUST(scenario.submit(&right) == ANE_STATUS_OK && right); /* one is open */
    MUST(shim->executor_run(scenario.executor, &plain, &error) == ANE_STATUS_INVALID_ARGUMENT);
    for (ANETicket wrong : {0, 1, 2, 99}) {
        MUST(shim->executor_wait(scenario.executor, wrong, UINT64_MAX, nullptr, &error) == ANE_STATUS_INVALID_ARGUMENT);
    }
    MUST(shim->executor_wait(scenario.executor, 3, UINT64_MAX, nullptr, &error) == ANE_STATUS_OK);
    MUST(shim->executor_run(scenario.executor, &plain, nullptr) == ANE_STATUS_OK && operands.is_right(kind, M));
    passed++;
}

} /* namespace */

int main() {
    shim = ane_matmul_shim();
    error.struct_size = sizeof error;
    const Kind kinds[] = {
        {ANE_TYPE_F32, ANE_TYPE_F32, ANE_TYPE_F32, false, true},
        {ANE_TYPE_BF16, ANE_TYPE_BF16, ANE_TYPE_F32, true, true},
        {ANE_TYPE_BF16, ANE_TYPE_F32, ANE_TYPE_F32, true, false},
        {ANE_TYPE_I8, ANE_TYPE_I8, ANE_TYPE_I32, false, true},
        {ANE_TYPE_BF16, ANE_TYPE_I8, ANE_TYPE_F32, true, false},
    };
    no_device();
    refusals();
    misuse();
    for (const Kind &kind : kinds) calls_fail(kind, kind.constant && kind.epilogue);
    for (const Kind &kind : kinds) device_is_lost(kind);
    printf("%u passed, 0 failed\n", passed);
    return 0;
}
