/*
 * sim_objects.h - what the parts of the double share: faults, counters, and the objects of Metal that
 * MPSGraph works with.
 */
#ifndef ANE_SIM_OBJECTS_H
#define ANE_SIM_OBJECTS_H

#import <MetalPerformanceShaders/MetalPerformanceShaders.h>

#include <pthread.h>

#include "sim.h"

BOOL sim_faulty(int32_t fault);
void sim_violation(const char *text);
NSError *sim_error(NSString *domain, NSInteger code, NSString *text);
const char *sim_device_name(void);
/* The Apple GPU family of the device, by its name: 1007 is Apple7. */
long sim_family(void);
/* Throws what is no NSException, where one is planted. */
void sim_throw_foreign(void);
/* How long the device takes at least; 0 for endurance runs. */
int64_t sim_latency_us(void);
void sim_wait(int64_t us);

@interface SimBuffer : SimObject <MTLBuffer> {
@public
    void *memory; /* as the device sees it */
    void *host;   /* as the host does; NULL where it does not */
    size_t mapped; /* 0: memory of the caller's, or a sanitizer's */
    BOOL wraps;
    NSUInteger bytes;
    int readers, writers; /* command buffers in flight */
}
@end

/* Work that is done late, or dropped; either way `late` frees its argument. */
typedef void (*SimLate)(void *argument, BOOL does);

/* The command buffer reads or writes a buffer. Where buffers are guarded, from its commit until it completes the host
 * may not write to what it reads, nor touch what it writes: that is a violation. */
void sim_use(id<MTLCommandBuffer> commands, SimBuffer *buffer, BOOL writes);
void sim_add_late_work(id<MTLCommandBuffer> commands, SimLate late, void *argument);
/* This command buffer will complete with an error. */
void sim_fail(id<MTLCommandBuffer> commands);

#endif
