/* The reference shim, which says of itself that it is a test double of hardware. */
#define ane_matmul_shim reference_shim
#include "../../examples/shims/reference.c"
#undef ane_matmul_shim
const ANEShim *ane_matmul_shim(void);

static ANEStatus double_info(uint32_t index, ANEDeviceInfo *info, ANEError *err) {
    ANEStatus status = device_info(index, info, err);
    info->flags |= ANE_DEVICE_FLAG_TEST_DOUBLE;
    return status;
}

const ANEShim *ane_matmul_shim(void) {
    static ANEShim shim;
    shim = *reference_shim();
    shim.name = "double";
    shim.device_info = double_info;
    return &shim;
}
