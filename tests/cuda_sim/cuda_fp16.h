/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#pragma once
#include <stdint.h>

struct __half {
    uint16_t bits;
};
float __half2float(__half value);
__half __float2half_rn(float value);
