/* Both shims without Rust, for scripts/test-apple-types to link rightly and wrongly. */
#include "ane_matmul.h"
int main(void)
{
    return ane_mpsgraph_shim()->abi_major != ane_metal_shim()->abi_major;
}
