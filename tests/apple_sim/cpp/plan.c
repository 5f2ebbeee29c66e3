/* plan.c - gives the tests the plan that the shim uses. */
#include "matmul_plan.h"

void emu_plan(const ANEMatMulDesc *desc, uint64_t rows, uint32_t device_class, const ANEMetalOverrides *overrides,
              ANEMetalPlan *plan)
{
    ane_metal_plan(desc, rows, device_class, overrides, plan);
}

uint64_t emu_part(const ANEMetalPlan *plan, uint32_t index, uint64_t first, ANEMetalLaunch *part)
{
    return ane_metal_part(plan, index, first, part);
}

uint32_t emu_device_class(const char *architecture, const char *name)
{
    return ane_metal_device_class(architecture, name);
}
