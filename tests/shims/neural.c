/* The reference shim, which takes the Neural Engine as a candidate and says nothing of what it ran on. */
#define ane_matmul_shim reference_shim
#include "../../examples/shims/reference.c"
#undef ane_matmul_shim
const ANEShim *ane_matmul_shim(void);

static ANEStatus any_device(ANEDevice *device, const ANEMatMulDesc *desc, const ANECompileOptions *options,
                            ANEError *err) {
    ANECompileOptions asked = *options;
    asked.device = ANE_DEVICE_UNKNOWN;
    return supports(device, desc, &asked, err);
}

static ANEStatus compile_for_any(ANEDevice *device, const ANEMatMulDesc *desc, const ANEConstants *constants,
                                 const ANECompileOptions *options, ANEProduct **out, ANEError *err) {
    ANECompileOptions asked = *options;
    asked.device = ANE_DEVICE_UNKNOWN;
    return compile(device, desc, constants, &asked, out, err);
}

const ANEShim *ane_matmul_shim(void) {
    static ANEShim shim;
    shim = *reference_shim();
    shim.name = "neural";
    shim.supports = any_device;
    shim.compile = compile_for_any;
    return &shim;
}
