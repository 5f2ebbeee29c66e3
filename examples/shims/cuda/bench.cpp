/*
 * Times the shim through its table, without the crate: operands on the device, in pinned memory, in the caller's own,
 * and many small products in a queue. bench.py runs it, and puts its figures beside torch's.
 *
 *     bench SECONDS    prints `name microseconds-by-wall microseconds-by-device` for each
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#include "ane_matmul.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

const ANEShim *shim;
ANEDevice *device;
double seconds = 0.3;
ANEError error{};

void must(ANEStatus status, const char *what) {
    if (status == ANE_STATUS_OK) return;
    fprintf(stderr, "%s: status %d: %s\n", what, static_cast<int>(status), error.message);
    exit(1);
}

double now_us() {
    using namespace std::chrono;
    return duration<double, std::micro>(steady_clock::now().time_since_epoch()).count();
}

size_t bytes_of(ANEType type, uint64_t count) {
    switch (type) {
    case ANE_TYPE_I4: return (count + 1) / 2;
    case ANE_TYPE_I8: return count;
    case ANE_TYPE_F16:
    case ANE_TYPE_BF16: return 2 * count;
    default: return 4 * count;
    }
}

/* Numbers that are small in every type. */
std::vector<char> numbers(ANEType type, uint64_t count) {
    std::vector<char> data(bytes_of(type, count));
    uint32_t state = 12345;
    auto next = [&] { return state = state * 1664525u + 1013904223u; };
    for (uint64_t i = 0; i < count; i++) {
        float x = static_cast<float>(static_cast<int>(next() >> 24) - 128) / 128;
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        uint16_t half = 0;
        switch (type) {
        case ANE_TYPE_I4:
        case ANE_TYPE_I8: data[i * data.size() / count] = static_cast<char>(next() >> 24); break;
        case ANE_TYPE_BF16:
            half = static_cast<uint16_t>(bits >> 16);
            memcpy(&data[2 * i], &half, 2);
            break;
        case ANE_TYPE_F16:
            /* Fractions of 128 are exact. */
            half = x == 0 ? 0 : static_cast<uint16_t>((bits >> 16 & 0x8000) | ((bits >> 13 & 0x3ffff) - (112u << 10)));
            memcpy(&data[2 * i], &half, 2);
            break;
        default: memcpy(&data[4 * i], &x, sizeof x);
        }
    }
    return data;
}

struct Case {
    const char *name;
    uint64_t m, n, k;
    ANEType a, b, c;
    uint32_t flags;
    ANEActivation activation;
    uint32_t group; /* of weights with scales of f16 */
    uint32_t options;
};

enum Where { RESIDENT, PINNED, HOST };

struct Bench {
    Case c;
    ANEProduct *product = nullptr;
    std::vector<ANEBuffer *> buffers;
    std::vector<std::vector<char>> memory;
    ANERunArgs args{};

    ANEOperand operand(Where where, ANEType type, uint64_t count) {
        memory.push_back(numbers(type, count));
        std::vector<char> &data = memory.back();
        if (where == HOST) return ANEOperand{data.data(), nullptr, 0, data.size()};
        ANEBuffer *buffer = nullptr;
        must(shim->buffer_create(device, where == PINNED ? ANE_BUFFER_HOST_VISIBLE : ANE_BUFFER_DEVICE, data.size(),
                                 &buffer, &error),
             "buffer_create");
        must(shim->buffer_write(buffer, 0, data.data(), data.size(), &error), "buffer_write");
        buffers.push_back(buffer);
        return ANEOperand{nullptr, buffer, 0, data.size()};
    }

    Bench(const Case &made, Where where) : c(made) {
        memory.reserve(8);
        ANEMatMulDesc d{};
        d.struct_size = sizeof d;
        d.flags = c.flags;
        d.batch = 1, d.m = c.m, d.n = c.n, d.k = c.k;
        d.lda = c.k, d.ldc = c.n, d.ld_residual = c.n;
        d.ldb = c.flags & ANE_MATMUL_TRANSPOSE_B ? c.k : c.n;
        d.stride_a = c.m * c.k, d.stride_b = c.k * c.n, d.stride_c = c.m * c.n, d.stride_residual = c.m * c.n;
        d.type_a = c.a, d.type_b = c.b, d.type_c = c.c;
        d.type_accumulator = c.a == ANE_TYPE_I8 ? ANE_TYPE_I32 : ANE_TYPE_F32;
        d.type_bias = c.flags & ANE_MATMUL_BIAS ? ANE_TYPE_F32 : ANE_TYPE_NONE;
        d.activation = c.activation;
        d.alpha = 1;
        std::vector<char> b, scales;
        ANEConstants constants{};
        constants.struct_size = sizeof constants;
        if (c.flags & ANE_MATMUL_CONSTANT_B) {
            b = numbers(c.b, c.k * c.n);
            constants.b = b.data();
            constants.b_bytes = b.size();
        }
        if (c.group > 0) {
            d.quant_b = ANE_QUANT_B_PER_GROUP;
            d.group_size = c.group;
            d.type_scale = ANE_TYPE_F16;
            scales.resize(2 * c.n * ((c.k + c.group - 1) / c.group));
            for (size_t i = 0; i < scales.size(); i += 2) scales[i + 1] = 0x20; /* 2^-7 */
            constants.scales_b = scales.data();
            constants.scales_b_bytes = scales.size();
        }
        ANECompileOptions options{};
        options.struct_size = sizeof options;
        options.flags = c.options;
        must(shim->compile(device, &d, &constants, &options, &product, &error), c.name);
        args.struct_size = sizeof args;
        args.m = c.m;
        args.a = operand(where, c.a, c.m * c.k);
        if (!(c.flags & ANE_MATMUL_CONSTANT_B)) args.b = operand(where, c.b, c.k * c.n);
        if (c.flags & ANE_MATMUL_BIAS) args.bias = operand(where, ANE_TYPE_F32, c.n);
        args.c = operand(where, c.c, c.m * c.n);
    }
    ~Bench() {
        shim->product_destroy(product);
        for (ANEBuffer *buffer : buffers) shim->buffer_destroy(buffer);
    }

    ANEMatMulExecutor *executor(uint32_t depth) {
        ANEMatMulExecutor *made = nullptr;
        const ANEExecutorOptions options = {sizeof options, depth};
        must(shim->executor_create(product, &options, &made, &error), "executor_create");
        return made;
    }

    /* Medians of single runs that are waited for: by the wall, and by the device's clock. */
    void time(const char *suffix) {
        ANEMatMulExecutor *made = executor(0);
        std::vector<double> wall, own;
        ANERunInfo info{};
        info.struct_size = sizeof info;
        double until = now_us() + seconds * 1e6;
        for (int i = 0; i < 3; i++) must(shim->executor_run(made, &args, &error), c.name);
        while (wall.size() < 5 || (now_us() < until && wall.size() < 2000)) {
            args.info = nullptr;
            double start = now_us();
            must(shim->executor_run(made, &args, &error), c.name);
            wall.push_back(now_us() - start);
            args.info = &info;
            must(shim->executor_run(made, &args, &error), c.name);
            own.push_back(static_cast<double>(info.device_end_ns - info.device_start_ns) / 1000);
        }
        args.info = nullptr;
        shim->executor_destroy(made);
        std::sort(wall.begin(), wall.end());
        std::sort(own.begin(), own.end());
        printf("%s%s %.2f %.2f\n", c.name, suffix, wall[wall.size() / 2], own[own.size() / 2]);
        fflush(stdout);
    }
};

/* A thousand products: one after the other, and with several in flight; microseconds for each, and how many of them
 * until the last is submitted. */
void queue(const Case &c) {
    Bench bench(c, RESIDENT);
    auto rate = [&](uint32_t depth) {
        ANEMatMulExecutor *executor = bench.executor(depth);
        std::vector<double> times, submitting;
        std::vector<ANETicket> tickets(depth);
        for (int round = 0; round < 7; round++) {
            double start = now_us();
            for (uint32_t i = 0; i < 1000 + depth; i++) {
                if (depth == 0) {
                    must(shim->executor_run(executor, &bench.args, &error), c.name);
                    continue;
                }
                if (i >= depth)
                    must(shim->executor_wait(executor, tickets[i % depth], UINT64_MAX, nullptr, &error), c.name);
                if (i == 1000) submitting.push_back((now_us() - start) / 1000);
                if (i < 1000) must(shim->executor_submit(executor, &bench.args, &tickets[i % depth], &error), c.name);
            }
            times.push_back((now_us() - start) / 1000);
        }
        shim->executor_destroy(executor);
        std::sort(times.begin(), times.end());
        std::sort(submitting.begin(), submitting.end());
        /* Until the last is submitted, and until all are complete. */
        double part = submitting.empty() ? 0 : submitting[submitting.size() / 2];
        printf("%s,queue=%u %.2f %.2f\n", c.name, depth, times[times.size() / 2], part);
        fflush(stdout);
    };
    for (uint32_t depth : {0u, 16u, 64u, 1000u}) rate(depth);
}

} /* namespace */

int main(int argc, char **argv) {
    shim = ane_matmul_shim();
    error.struct_size = sizeof error;
    if (argc > 1) seconds = atof(argv[1]);
    must(shim->device_open(0, &device, &error), "device_open");
    double start = now_us();
    must(shim->device_prepare(device, &error), "device_prepare");
    printf("prepare %.0f 0\n", now_us() - start);
    const ANEType F32 = ANE_TYPE_F32, F16 = ANE_TYPE_F16, BF16 = ANE_TYPE_BF16, I8 = ANE_TYPE_I8, I4 = ANE_TYPE_I4;
    const uint32_t constant = ANE_MATMUL_CONSTANT_B, transposed = ANE_MATMUL_TRANSPOSE_B, bias = ANE_MATMUL_BIAS;
    const std::vector<Case> floats = {
        {"f32,256x256x256", 256, 256, 256, F32, F32, F32, 0, 0, 0, 0},
        {"f32,512x512x512", 512, 512, 512, F32, F32, F32, 0, 0, 0, 0},
        {"f32,1024x1024x1024", 1024, 1024, 1024, F32, F32, F32, 0, 0, 0, 0},
        {"f32,2048x2048x2048", 2048, 2048, 2048, F32, F32, F32, 0, 0, 0, 0},
        {"f32,4096x4096x4096", 4096, 4096, 4096, F32, F32, F32, 0, 0, 0, 0},
        {"f32,32x3072x768", 32, 3072, 768, F32, F32, F32, 0, 0, 0, 0},
        {"f32,128x4096x4096", 128, 4096, 4096, F32, F32, F32, 0, 0, 0, 0},
    };
    for (const Case &c : floats) {
        {
            Bench(c, RESIDENT).time(",resident");
        }
        {
            Bench(c, PINNED).time(",pinned");
        }
        {
            Bench(c, HOST).time(",host");
        }
    }
    const std::vector<Case> others = {
        {"tf32,4096x4096x4096", 4096, 4096, 4096, F32, F32, F32, 0, 0, 0, ANE_OPTION_REDUCED_PRECISION},
        {"f16,1024x1024x1024", 1024, 1024, 1024, F16, F16, F16, 0, 0, 0, 0},
        {"f16,4096x4096x4096", 4096, 4096, 4096, F16, F16, F16, 0, 0, 0, 0},
        {"bf16,4096x4096x4096", 4096, 4096, 4096, BF16, BF16, BF16, 0, 0, 0, 0},
        {"bf16-bias-gelu,4096x4096x4096", 4096, 4096, 4096, BF16, BF16, BF16, bias, ANE_ACTIVATION_GELU_ERF, 0, 0},
        {"i8,1024x1024x1024", 1024, 1024, 1024, I8, I8, ANE_TYPE_I32, transposed, 0, 0, 0},
        {"i8,4096x4096x4096", 4096, 4096, 4096, I8, I8, ANE_TYPE_I32, transposed, 0, 0, 0},
        {"i8,8192x8192x8192", 8192, 8192, 8192, I8, I8, ANE_TYPE_I32, transposed, 0, 0, 0},
        {"i8-rows,4096x4096x4096", 4096, 4096, 4096, I8, I8, ANE_TYPE_I32, 0, 0, 0, 0},
        {"bf16-constant,1x4096x4096", 1, 4096, 4096, BF16, BF16, BF16, constant | transposed, 0, 0, 0},
        {"bf16-i4,1x4096x4096", 1, 4096, 4096, BF16, I4, BF16, constant | transposed, 0, 128, 0},
        {"bf16-i4,16x4096x4096", 16, 4096, 4096, BF16, I4, BF16, constant | transposed, 0, 128, 0},
        {"bf16-i4,512x4096x4096", 512, 4096, 4096, BF16, I4, BF16, constant | transposed, 0, 128, 0},
        {"bf16-i4-reduced,512x4096x4096", 512, 4096, 4096, BF16, I4, BF16, constant | transposed, 0, 128,
         ANE_OPTION_REDUCED_PRECISION},
        {"bf16-i4-columns,1x4096x4096", 1, 4096, 4096, BF16, I4, BF16, constant, 0, 128, 0},
        {"bf16-i8,1x4096x4096", 1, 4096, 4096, BF16, I8, BF16, constant | transposed, 0, 128, 0},
    };
    for (const Case &c : others) Bench(c, RESIDENT).time(",resident");
    queue({"f32,64x64x64", 64, 64, 64, F32, F32, F32, 0, 0, 0, 0});
    queue({"f32,256x256x256", 256, 256, 256, F32, F32, F32, 0, 0, 0, 0});
    shim->device_close(device);
    return 0;
}
