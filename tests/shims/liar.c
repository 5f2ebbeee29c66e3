/*
 * The reference shim, which says of itself what ANE_LIAR names, words in any order: `gpu` (the device that it
 * is and that ran), `time` (timestamps that cover nine tenths of each run), `hour` (of an hour each). What it
 * does besides: `sleep` nine times as long as it worked; `skip` the work; or `replay` the first result, as if
 * another device had worked, while the CPU waits, or with `spin` is busy waiting. It takes no submissions: every run
 * is one of these.
 */
#define ane_matmul_shim reference_shim
#include "../../examples/shims/reference.c"
#undef ane_matmul_shim
const ANEShim *ane_matmul_shim(void);

static const long long DEVICE_NS = 5000; /* what another device takes for any product */

static bool lies(const char *word) {
    const char *words = getenv("ANE_LIAR");
    return words != NULL && strstr(words, word) != NULL;
}

static long long now_ns(void) { return (long long)clock_ns(); }

static ANEStatus said_device(uint32_t index, ANEDeviceInfo *info, ANEError *err) {
    ANEStatus status = device_info(index, info, err);
    if (lies("gpu")) info->kind = ANE_DEVICE_GPU;
    info->max_queue_depth = 0;
    return status;
}

static ANEStatus said_product(ANEProduct *product, ANEProductInfo *info, ANEError *err) {
    ANEStatus status = product_info(product, info, err);
    if (lies("gpu")) info->observed = ANE_DEVICE_GPU;
    return status;
}

/* One product at a time replays. */
static float *replayed;
static size_t replayed_bytes;

static ANEStatus said_run(ANEMatMulExecutor *executor, const ANERunArgs *args, ANEError *err) {
    long long start_ns = now_ns();
    const ANEMatMulDesc *d = &executor->product->desc;
    size_t bytes = (size_t)(args->m * d->ldc) * sizeof(float);
    float *c = operand(&args->c);
    if (lies("replay") && replayed_bytes == bytes) {
        if (lies("spin")) {
            while (now_ns() - start_ns < DEVICE_NS) {
            }
        } else {
            wait_ns(DEVICE_NS);
        }
        memcpy(c, replayed, bytes);
        if (args->info != NULL) args->info->observed = ANE_DEVICE_CPU;
    } else if (!lies("skip")) {
        ANEStatus status = executor_run(executor, args, err);
        if (status != ANE_STATUS_OK) return status;
    }
    if (lies("replay") && replayed_bytes != bytes) {
        float *copy = realloc(replayed, bytes);
        if (copy == NULL) return report(err, ANE_STATUS_OUT_OF_MEMORY, ANE_REFUSAL_NONE, "no memory");
        replayed = memcpy(copy, c, bytes);
        replayed_bytes = bytes;
    }
    if (lies("sleep")) wait_ns(9 * (now_ns() - start_ns));
    if (args->info != NULL) {
        if (lies("gpu")) args->info->observed = ANE_DEVICE_GPU;
        long long device_ns = lies("hour") ? 3600000000000ll : lies("time") ? (now_ns() - start_ns) * 9 / 10 : 0;
        args->info->device_start_ns = device_ns > 0 ? 1000 : 0;
        args->info->device_end_ns = device_ns > 0 ? 1000 + (uint64_t)device_ns : 0;
    }
    return ANE_STATUS_OK;
}

static ANEStatus no_submit(ANEMatMulExecutor *executor, const ANERunArgs *args, ANETicket *ticket, ANEError *err) {
    (void)executor, (void)args, (void)ticket;
    return report(err, ANE_STATUS_NOT_IMPLEMENTED, ANE_REFUSAL_NONE, "a liar takes no submissions");
}

static void said_close(ANEDevice *device) {
    free(replayed);
    replayed = NULL;
    replayed_bytes = 0;
    device_close(device);
}

const ANEShim *ane_matmul_shim(void) {
    static ANEShim shim;
    shim = *reference_shim();
    shim.name = "liar";
    shim.device_info = said_device;
    shim.device_close = said_close;
    shim.product_info = said_product;
    shim.executor_run = said_run;
    shim.executor_submit = no_submit;
    shim.graphs = NULL;
    return &shim;
}
