/*
 * What tests ask of the emulation.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#pragma once
#include "cuda_runtime.h"

/* Lets the call with this number, counted from 1 on from now, fail; 0: none. Calls that free things do not count. */
void sim_fail_at(uint64_t call);
/* How many there were since. */
uint64_t sim_calls();
/* Ends the device when the kernel with this number starts, counted likewise: all that follows fails; 0: none. */
void sim_lose_at(uint64_t kernel);
/* How many objects live: memory, streams, events and what describes products. */
uint64_t sim_live();
/* How many devices there are from now on. At first, one, or what ANE_CUDA_SIM_DEVICES says. */
void sim_set_devices(int count);
