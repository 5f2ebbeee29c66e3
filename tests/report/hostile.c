/* The reference shim, with markup in every text that the report shows of a shim. */
#define ane_matmul_shim reference_shim
#include "../../examples/shims/reference.c"
#undef ane_matmul_shim
#define MARKUP "</td></table><script>document.title = 'owned'</script><img src=x onerror=alert(1)>"
const ANEShim *ane_matmul_shim(void);

static ANEStatus hostile_info(uint32_t index, ANEDeviceInfo *info, ANEError *err) {
    ANEStatus status = device_info(index, info, err);
    snprintf(info->name, sizeof info->name, "%s", MARKUP);
    return status;
}

static ANEStatus hostile_supports(ANEDevice *device, const ANEMatMulDesc *desc, const ANECompileOptions *options,
                                  ANEError *err) {
    if (desc->m == 3) return refuse(err, ANE_REFUSAL_OTHER, MARKUP);
    return supports(device, desc, options, err);
}

const ANEShim *ane_matmul_shim(void) {
    static ANEShim shim;
    shim = *reference_shim();
    shim.version = MARKUP;
    shim.device_info = hostile_info;
    shim.supports = hostile_supports;
    return &shim;
}
