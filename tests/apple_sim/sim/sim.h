/*
 * sim.h - what a test tells the doubles of Metal and MPSGraph, and what it asks them. Process-wide.
 */
#ifndef ANE_METAL_SIM_H
#define ANE_METAL_SIM_H

#include <stdint.h>

/* Where the double can fail; `after` calls succeed first, then one fails. */
enum {
    SIM_FAULT_NONE = 0,
    SIM_FAULT_NO_DEVICE = 1,
    SIM_FAULT_NO_SIMDGROUP_MATRIX = 2, /* an Intel Mac */
    SIM_FAULT_NIL_QUEUE = 3,
    SIM_FAULT_NIL_BUFFER = 4,
    SIM_FAULT_COMPILER = 5, /* an error with a log */
    SIM_FAULT_NIL_FUNCTION = 6,
    SIM_FAULT_NIL_PIPELINE = 7,
    SIM_FAULT_NARROW_SIMD = 8, /* threadExecutionWidth 16 */
    SIM_FAULT_NIL_COMMAND_BUFFER = 9,
    SIM_FAULT_NIL_ENCODER = 10,
    SIM_FAULT_COMMAND_ERROR = 11, /* completes with an error, code by ane_sim_metal_set_error */
    SIM_FAULT_EXCEPTION_ENCODE = 12, /* NSException at dispatch */
    SIM_FAULT_EXCEPTION_BUFFER = 13, /* NSException when a buffer is made */
    SIM_FAULT_EXCEPTION_DEVICE = 14, /* NSException when a device is asked its family */
    SIM_FAULT_EXCEPTION_COMPILE = 15,
    SIM_FAULT_STATUS_ONLY = 16, /* status Error without an NSError */
    SIM_FAULT_NIL_GRAPH_DEVICE = 20,
    SIM_FAULT_NIL_EXECUTABLE = 21,
    SIM_FAULT_NIL_TENSOR_DATA = 22,
    SIM_FAULT_NO_RESULT = 23, /* an encoding that gives no results */
    SIM_FAULT_EXCEPTION_GRAPH = 24, /* NSException while a graph is built */
    SIM_FAULT_EXCEPTION_COMPILE_GRAPH = 25,
    SIM_FAULT_EXCEPTION_ENCODE_GRAPH = 26,
    SIM_FAULT_SAVE = 27, /* serialisation writes nothing */
    SIM_FAULT_FOREIGN_FEED = 28, /* an executable with a feed that nobody made */
    /* MPSGraph commits and continues; the first or the last command buffer completes with an error. */
    SIM_FAULT_FIRST_OF_TWO = 29,
    SIM_FAULT_LAST_OF_TWO = 30,
    /* MPSGraph commits, continues, and then raises an NSException. */
    SIM_FAULT_EXCEPTION_AFTER_COMMIT = 31,
    /* What is thrown while encoding is no NSException: a string, as `@throw` allows, or a C++ `int`. */
    SIM_FAULT_FOREIGN_OBJECT = 32,
    SIM_FAULT_CPP_EXCEPTION = 33,
    /* NSExceptions at other calls. */
    SIM_FAULT_EXCEPTION_WAIT = 40,
    SIM_FAULT_EXCEPTION_STATUS = 41,
    SIM_FAULT_EXCEPTION_COMMIT = 42,
    SIM_FAULT_EXCEPTION_ERROR = 43,
    SIM_FAULT_EXCEPTION_TIMES = 44,
    SIM_FAULT_EXCEPTION_BLIT = 45,
    SIM_FAULT_NIL_BLIT = 46,
    SIM_FAULT_EXCEPTION_DEVICES = 47,
    SIM_FAULT_EXCEPTION_UNIFIED = 48,
    SIM_FAULT_EXCEPTION_QUEUE = 49,
    SIM_FAULT_EXCEPTION_COMMAND_BUFFER = 50,
    SIM_FAULT_NO_MEMORY = 51, /* calloc */
    /* A command buffer ends with an error when it is committed, before those that were committed earlier. */
    SIM_FAULT_EARLY_ERROR = 52,
};

void ane_sim_metal_set_fault(int32_t fault, int32_t after);
void ane_sim_metal_set_error(int64_t code);
void ane_sim_metal_set_device_name(const char *name);
/* 1404 is macOS 14.4. */
void ane_sim_metal_set_macos(int64_t version);
void ane_sim_metal_set_latency_us(int64_t latency);
void ane_sim_metal_set_max_buffer_bytes(uint64_t bytes);
/* How many devices there are, and whether their memory is the host's. */
void ane_sim_metal_set_devices(int64_t devices);
void ane_sim_metal_set_unified(int64_t unified);
/* 0: command buffers are executed by threads; 1: by whoever waits for one, looks at its status for the third time, or
 * wants room in a full queue. */
void ane_sim_metal_set_lazy(int64_t lazy);
int64_t ane_sim_metal_lazy(void);
/* Nothing that is committed begins until it is 0 again. */
void ane_sim_metal_set_hold(int64_t hold);
/* Whether a buffer is closed to the host while it is in use: for tests with one operand in each. */
void ane_sim_metal_set_guard(int64_t guard);
/* The most command buffers that have not completed of queues made from now on; 0: as many as they are made with. */
void ane_sim_metal_set_queue_limit(int64_t limit);
/* Schedule and seed of the emulator. */
void ane_sim_metal_set_schedule(int32_t schedule, uint64_t seed);
/* The program that compiles Metal source (metal-cc), and where to. */
void ane_sim_metal_set_compiler(const char *program, const char *directory);

int64_t ane_sim_metal_live_objects(void);
int64_t ane_sim_metal_libraries_compiled(void);
int64_t ane_sim_metal_pipelines_made(void);
int64_t ane_sim_metal_buffers_made(void);
/* Rules of Metal that were broken: an encoder that died without endEncoding, and the like. */
int64_t ane_sim_metal_violations(void);
const char *ane_sim_metal_last_violation(void);
/* Forgets them; how many there were. */
int64_t ane_sim_metal_take_violations(void);
int64_t ane_sim_metal_dispatches(void);
/* Command buffers that were committed and have not completed. */
int64_t ane_sim_metal_in_flight(void);
/* How often there was no room for a command buffer in its queue. */
int64_t ane_sim_metal_blocked(void);
/* Copies between buffers. */
int64_t ane_sim_metal_blits(void);

/* MPSGraph: executables compiled and loaded, runs encoded, the last optimisation level, the last
 * reduced-precision mode (-1: not set), intervals begun and not ended. */
int64_t ane_sim_metal_executables_made(void);
int64_t ane_sim_metal_runs_encoded(void);
int64_t ane_sim_metal_optimization_level(void);
int64_t ane_sim_metal_reduced_precision(void);
int64_t ane_sim_metal_open_intervals(void);
/* Seed of the order of feeds, and of whether MPSGraph commits and continues. */
void ane_sim_metal_set_order(int64_t seed);
/* Whether an executable from a package tells its feeds and targets: 0, as was reported of Apple's, or 1. */
void ane_sim_metal_set_loaded_tensors(int64_t told);

#endif
