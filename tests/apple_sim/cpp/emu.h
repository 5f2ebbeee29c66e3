/*
 * emu.h - C interface of a compiled kernel library: Metal kernels as CPU code, with the checker that
 * watches their memory. One library, one dispatch at a time (emu_dispatch locks).
 */
#ifndef METAL_EMU_H
#define METAL_EMU_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a dispatch can be found guilty of. */
typedef enum EmuFault {
    EMU_OK = 0,
    EMU_RACE_THREADGROUP = 1,
    EMU_RACE_DEVICE = 2,
    EMU_OUT_OF_BOUNDS = 3,
    EMU_UNINITIALISED = 4,
    EMU_MISALIGNED = 5,
    EMU_WRITE_TO_INPUT = 6,
    EMU_READ_OF_OUTPUT = 7,
    EMU_DIVERGENCE = 8, /* a barrier or simdgroup operation that not all threads reach alike */
    EMU_THREADGROUP_MEMORY = 9, /* more than 32 KiB */
    EMU_LAUNCH = 10, /* no such kernel, a missing buffer, an impossible geometry */
} EmuFault;

typedef enum EmuSchedule {
    EMU_LOCKSTEP = 0, /* threads take turns */
    EMU_AHEAD = 1,    /* one simdgroup runs as far as the barriers allow; `seed` says which */
    EMU_REVERSE = 2,  /* the last simdgroup first, threadgroups from the last to the first */
    EMU_RANDOM = 3,
} EmuSchedule;

/* A buffer bound to a dispatch. The kernel sees a copy of exactly [data, data + bytes), shared by
 * bindings with the same data and bytes; what it wrote is copied back, byte by byte. */
typedef struct EmuBinding {
    void *data; /* NULL: nothing is bound */
    uint64_t bytes;
    uint64_t offset; /* the kernel's pointer is data + offset */
    uint8_t *initialised; /* one byte per byte of data, updated by writes; NULL: all are */
} EmuBinding;

typedef struct EmuReport {
    int32_t fault;
    int32_t buffer; /* index of the binding, or -1 */
    uint64_t pc;    /* offset in the library of the access or barrier */
    uint64_t other_pc; /* of the access that it conflicts with, or 0 */
    uint64_t byte;  /* offset in the buffer, or in the threadgroup array */
    uint32_t group[3];
    uint32_t thread; /* in the threadgroup */
    uint32_t other_thread;
    uint32_t threadgroup_bytes; /* the most that a threadgroup declared */
    uint64_t accesses;          /* that were checked */
    uint64_t barriers;          /* that were passed, per threadgroup */
    char text[256];
} EmuReport;

typedef struct EmuKernelInfo {
    const char *name;
    uint32_t parameter_count;
    uint32_t reserved0;
} EmuKernelInfo;

uint32_t emu_kernel_count(void);
const char *emu_kernel_name(uint32_t index);
/* Type of a function constant: 1 bool, 2 uint, 0 none with this index. */
int32_t emu_constant_kind(uint32_t index);

/* `constants` has a value for each index below constant_count. Returns report->fault. */
int32_t emu_dispatch(const char *kernel, const uint32_t *constants, uint32_t constant_count,
                     const EmuBinding *bindings, uint32_t binding_count, const uint32_t grid[3],
                     const uint32_t threads[3], int32_t schedule, uint64_t seed, EmuReport *report);

#ifdef __cplusplus
}
#endif

#endif
