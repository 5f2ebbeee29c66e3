/*
 * ane_matmul.h - the C ABI between the Rust crate `ane-matmul` and a shim.
 *
 * A shim is one ANEShim table of functions over some engine (MPSGraph, a Metal kernel, a vendor
 * library). The crate compiles a matrix product once for fixed dimensions and runs it many times:
 *
 *     C = activation(alpha * op(A) op(B) + bias + residual)
 *
 * for each item of a batch, all matrices row-major. op(X) is X or its transpose; bias has n
 * elements and is added to every row; residual has the shape of C. This file is the contract;
 * docs/ABI.md teaches it by example. SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * RULES FOR EVERY SLOT
 *  - Nothing unwinds out of a slot: no C++ exception, no NSException, no longjmp.
 *  - Memory is owned by who allocated it. Pointers passed in are valid for the call only, unless the
 *    slot says otherwise. Strings passed in are NUL-terminated UTF-8.
 *  - `err` may be NULL. When it is not, the caller has set struct_size, log and log_capacity; a shim
 *    writes the rest on every status but ANE_STATUS_OK and ANE_STATUS_PENDING, and nothing beyond
 *    struct_size.
 *  - A create-like slot writes *out only when it returns ANE_STATUS_OK.
 *  - A destroy-like slot accepts NULL, cannot fail, and is called exactly once for each object.
 *  - Objects die in this order: executors before their product, products before the constants that
 *    they were compiled with, and all of them and buffers before their device. No buffer dies while a
 *    submission uses it. The caller keeps to it; a shim need not count references.
 *  - Devices, buffers, constants and products may be used by several threads at once. An executor is
 *    used by one thread at a time, and may be used by different threads one after the other.
 *
 * MEMORY
 *  - Buffers are of two kinds: ANE_BUFFER_HOST_VISIBLE, which the host reads and writes in place, and
 *    ANE_BUFFER_DEVICE, of which it has no address and which it fills and reads by buffer_write and
 *    buffer_read. ANEDeviceInfo says which kind the device computes on without a copy.
 *  - An operand is plain memory of the caller's or lies in a buffer of either kind; a run may mix them.
 *    What one run has written another reads where it lies.
 *  - Constants that several products use are made once, by constant_create. A shim that must compile
 *    them into each product has no ANE_DEVICE_FLAG_CONSTANTS, and gets them as plain memory.
 *
 * SUBMIT AND WAIT
 *  - executor_submit starts a run and returns a ticket; executor_wait ends the ticket. All operands
 *    of a submission lie in buffers. `args` is the caller's again when executor_submit returns.
 *  - From then until executor_wait ends the ticket nobody else touches C or writes to an operand. Other
 *    runs may read the operands.
 *  - An executor has at most as many tickets that were not ended as ANEExecutorOptions.queue_depth says.
 *    The caller keeps to it, and calls executor_run only while there is none.
 *  - Submissions of an executor complete in the order in which they were submitted, those that fail
 *    included. Between executors there is no order. A failure is of its ticket alone, and leaves the
 *    contents of its C undefined.
 *  - A shim may hold submissions back to send several to its device at once, but not beyond
 *    executor_wait, nor once queue_depth of them are there.
 *  - executor_submit may block while a queue that executors of the device share is full. It goes on as
 *    the device completes submissions, which takes no call of anybody's.
 *  - Every submission ends: one whose device is gone or silent fails (ANE_STATUS_NO_DEVICE).
 *    executor_destroy waits for all and ends their tickets: after it the C of each that did not fail is
 *    complete, and buffers may be destroyed.
 *
 * NUMERICS
 *  - Sums are at least as wide as type_accumulator: with ANE_TYPE_F32 every product of two elements
 *    and every partial sum is f32 or wider, in any order; with ANE_TYPE_F16 they may be of any width
 *    from f16 up. Sums of integers are exact modulo 2^32, and nothing saturates on the way.
 *  - Two options allow more; neither implies the other. ANE_OPTION_REDUCED_PRECISION lets operands be
 *    rounded before they are multiplied (to tf32, say), not sums. ANE_OPTION_FAST_MATH lets floating-point
 *    sums and the epilogue be reassociated, approximated and narrower than type_accumulator (f16, with its
 *    range, say), without a bound on the error. What was made use of is said in ANEProductInfo.arithmetic.
 *  - x = activation(alpha * sum + bias + residual) is computed in the accumulator's floating-point
 *    type or wider (f32 after integer sums), and rounded to type_c once, to nearest, ties to even.
 *  - NaN and infinity propagate. alpha is finite; an alpha of 0 is a factor like others, so that
 *    NaN and infinity in A or B give NaN. Results below the smallest normal number may be 0.
 *  - real = scale * (integer - zero_point). Scales are positive and finite.
 *  - ANE_QUANT_A_DYNAMIC_PER_ROW, for each row of A as f32, whose largest magnitude is `largest`:
 *    scale = max(largest / 127, 2^-126), and an element is round(x / scale), to nearest, ties to even,
 *    from -127 to 127. A row with a NaN or an infinity gives NaN in all of its row of C.
 *  - ANE_QUANT_C_STATIC: C = clamp(round(x * (1 / scale_c)) + zero_point_c), with 1 / scale_c
 *    rounded to f32, round to nearest, ties to even, and clamp to the range of type_c: it saturates. NaN
 *    becomes zero_point_c. The residual has the same type, scale and zero point.
 *  - With k = 0 the sum is 0: C is activation(bias + residual).
 *  - The same inputs give the same bits, run after run.
 *
 * VERSIONING
 *  - Every struct begins with its own struct_size, but for ANEOperand, which lies in run arguments and never
 *    grows, and for the elements of a graph's arrays (ANETensor, ANENode and ANEAttribute of ane_graph.h):
 *    ANEGraphDesc has one size for all elements of an array. New members are appended, never inserted; a
 *    reader treats a member that lies beyond the size as zero. Reserved members are zero.
 *  - ANE_MATMUL_ABI_MAJOR changes when an old shim could not work any more: the caller refuses another
 *    major. The minor grows with each addition: the caller accepts any minor. While the major is 0,
 *    nothing is promised yet: the caller refuses another minor too.
 */
#ifndef ANE_MATMUL_H
#define ANE_MATMUL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ANE_MATMUL_ABI_MAJOR 0
#define ANE_MATMUL_ABI_MINOR 2

/* ---- status -------------------------------------------------------------------------------- */

/* The result of a slot. A number that is not listed counts as ANE_STATUS_INTERNAL. */
typedef int32_t ANEStatus;
#define ANE_STATUS_OK 0
#define ANE_STATUS_INVALID_ARGUMENT 1 /* the caller broke the contract; message says how */
#define ANE_STATUS_REFUSED 2          /* the shim does not do this; `refusal` says why */
#define ANE_STATUS_OUT_OF_MEMORY 3    /* host or device memory */
#define ANE_STATUS_NO_DEVICE 4        /* there is no device, or it went away */
#define ANE_STATUS_COMPILE_FAILED 5   /* the engine rejected the product; log may hold its output */
#define ANE_STATUS_RUN_FAILED 6       /* the engine reported a fault after the work was submitted */
#define ANE_STATUS_EXCEPTION 7        /* an exception was caught; domain holds its name */
#define ANE_STATUS_TIMEOUT 8          /* the system or the engine ended work that took too long */
#define ANE_STATUS_BACKGROUND 9       /* the OS denies the GPU to an app in the background (iOS) */
#define ANE_STATUS_IO 10              /* a file could not be read or written; native_code is errno or NSError's */
#define ANE_STATUS_PACKAGE_MISMATCH 11 /* a saved package is damaged or belongs to something else */
#define ANE_STATUS_NOT_IMPLEMENTED 12 /* an optional service that this shim does not offer */
#define ANE_STATUS_INTERNAL 13        /* a fault of the shim's own */
#define ANE_STATUS_PENDING 14         /* of a wait alone: its time is over, and the submission goes on */

/* Why a product is refused, in ANEError.refusal. A number that is not listed counts as OTHER. */
typedef int32_t ANERefusal;
#define ANE_REFUSAL_NONE 0
#define ANE_REFUSAL_ELEMENT_TYPE 1    /* a combination of element types that is not implemented */
#define ANE_REFUSAL_QUANTIZATION 2    /* a quantisation scheme that is not implemented */
#define ANE_REFUSAL_DIMENSION 3       /* a dimension beyond what the engine or the device takes */
#define ANE_REFUSAL_BYTES 4           /* an array beyond what the engine or the device takes */
#define ANE_REFUSAL_LAYOUT 5          /* leading dimensions, strides or transposes */
#define ANE_REFUSAL_BATCH 6           /* batching, or broadcasting within a batch */
#define ANE_REFUSAL_VARIABLE_M 7      /* running with fewer rows than compiled for */
#define ANE_REFUSAL_CONSTANT_B 8      /* B must be constant, or must not be */
#define ANE_REFUSAL_EPILOGUE 9        /* alpha, bias, residual or activation */
#define ANE_REFUSAL_DEVICE 10         /* the requested device cannot be reached through this shim */
#define ANE_REFUSAL_NEURAL_ENGINE_TYPE 11 /* only f16 products are candidates for the Neural Engine */
#define ANE_REFUSAL_OS_VERSION 12     /* needs a later OS */
#define ANE_REFUSAL_HARDWARE 13       /* needs an instruction or feature that this machine lacks */
#define ANE_REFUSAL_VENDOR_FAULT 14   /* the vendor's software is known to give wrong results here */
#define ANE_REFUSAL_THREADS 15        /* the number or kind of threads cannot be honoured */
#define ANE_REFUSAL_PRECISION 16      /* fast math or reduced precision cannot be granted or excluded */
#define ANE_REFUSAL_NOT_BUILT 17      /* left out of this build: platform, feature or SDK */
#define ANE_REFUSAL_QUARANTINED 18    /* gave a wrong result or crashed before */
#define ANE_REFUSAL_OTHER 19

/*
 * Filled by a shim when a slot fails. `domain` and `message` are UTF-8 and NUL-terminated within the
 * array (a reader must survive a character cut at the end). `log` is a buffer of log_capacity bytes,
 * owned by the caller, or NULL: a shim may copy a long text into it (a kernel compiler's output), cut
 * to fit and NUL-terminated, and sets log_length to the length of the whole text without the NUL.
 */
typedef struct ANEError {
    uint32_t struct_size;
    ANEStatus status;    /* the same as the value returned */
    ANERefusal refusal;  /* with ANE_STATUS_REFUSED, else ANE_REFUSAL_NONE */
    uint32_t reserved0;
    int64_t native_code; /* NSError's code, errno, ...; 0 when there is none */
    char domain[64];     /* NSError's domain, an exception's name, "errno", ... or empty */
    char message[512];   /* what happened and, where it helps, what to do */
    char *log;
    uint64_t log_capacity;
    uint64_t log_length;
} ANEError;

/* ---- objects ------------------------------------------------------------------------------- */

typedef struct ANEDevice ANEDevice;
typedef struct ANEBuffer ANEBuffer;
/* What does not change and several products or graphs use: weights on the device. */
typedef struct ANEConstant ANEConstant;
typedef struct ANEProduct ANEProduct;
/* The run context: what one thread uses at a time. */
typedef struct ANEMatMulExecutor ANEMatMulExecutor;
/* A run that was submitted; a number that its executor gives to no other. */
typedef uint64_t ANETicket;

/* ---- description --------------------------------------------------------------------------- */

/* Types of matrix elements. I4 and U4 are packed two to a byte in the description's nibble order. */
typedef int32_t ANEType;
#define ANE_TYPE_NONE 0
#define ANE_TYPE_F64 1
#define ANE_TYPE_F32 2
#define ANE_TYPE_F16 3
#define ANE_TYPE_BF16 4
#define ANE_TYPE_I32 5
#define ANE_TYPE_I8 6
#define ANE_TYPE_U8 7
#define ANE_TYPE_I4 8
#define ANE_TYPE_U4 9

/*
 * RELU: max(x, 0). GELU_ERF: x/2 (1 + erf(x/sqrt 2)). GELU_TANH: x/2 (1 + tanh(sqrt(2/pi)
 * (x + 0.044715 x^3))) (Hendrycks and Gimpel, arXiv:1606.08415). SILU: x / (1 + e^-x). In all of
 * them NaN gives NaN; GELU and SILU of -infinity are 0 (of either sign).
 */
typedef int32_t ANEActivation;
#define ANE_ACTIVATION_NONE 0
#define ANE_ACTIVATION_RELU 1
#define ANE_ACTIVATION_GELU_ERF 2
#define ANE_ACTIVATION_GELU_TANH 3
#define ANE_ACTIVATION_SILU 4
#define ANE_ACTIVATION_SIGMOID 5
#define ANE_ACTIVATION_TANH 6

#define ANE_QUANT_A_NONE 0
#define ANE_QUANT_A_STATIC 1          /* one scale, given when compiled */
#define ANE_QUANT_A_DYNAMIC_PER_ROW 2 /* the shim quantises each row of a float A when it runs */
#define ANE_QUANT_B_NONE 0
#define ANE_QUANT_B_PER_TENSOR 1 /* one scale */
#define ANE_QUANT_B_PER_COLUMN 2 /* n scales */
#define ANE_QUANT_B_PER_GROUP 3  /* ceil(k / group_size) rows of n scales, row-major */
#define ANE_QUANT_C_NONE 0
#define ANE_QUANT_C_STATIC 1 /* one scale, given when compiled: C = round(x / scale) + zero_point_c */
#define ANE_NIBBLE_LOW_FIRST 0   /* element 2i in bits 0-3 of byte i, element 2i+1 in bits 4-7 */
#define ANE_NIBBLE_HIGH_FIRST 1

#define ANE_MATMUL_TRANSPOSE_A 0x1u /* A is stored k x m */
#define ANE_MATMUL_TRANSPOSE_B 0x2u /* B is stored n x k */
#define ANE_MATMUL_CONSTANT_B 0x4u  /* B comes with compile (ANEConstants), never with run */
#define ANE_MATMUL_BIAS 0x8u        /* n elements of type_bias come with every run */
#define ANE_MATMUL_RESIDUAL 0x10u   /* an m x n matrix of type_c comes with every run */
#define ANE_MATMUL_VARIABLE_M 0x20u /* a run may use fewer rows than m */

/*
 * A validated product: the caller has checked for overflow, leading dimensions and overlaps. Leading
 * dimensions and strides count elements. A matrix of the batch starts stride_x elements after the
 * previous one; 0 means that all items share it (never for C). Dimensions may be 0.
 */
typedef struct ANEMatMulDesc {
    uint32_t struct_size;
    uint32_t flags; /* ANE_MATMUL_*; a shim refuses a flag that it does not know */
    uint64_t batch;
    uint64_t m; /* with VARIABLE_M the largest m */
    uint64_t n;
    uint64_t k;
    uint64_t lda;
    uint64_t ldb;
    uint64_t ldc;
    uint64_t ld_residual;
    uint64_t stride_a;
    uint64_t stride_b;
    uint64_t stride_c;
    uint64_t stride_residual;
    ANEType type_a;
    ANEType type_b;
    ANEType type_accumulator;
    ANEType type_c;
    ANEType type_bias;  /* ANE_TYPE_NONE without bias */
    ANEType type_scale; /* ANE_TYPE_NONE without quantisation */
    ANEActivation activation;
    float alpha;
    int32_t quant_a;      /* ANE_QUANT_A_* */
    int32_t quant_b;      /* ANE_QUANT_B_* */
    int32_t zero_point_a; /* subtracted from A's integers before the product */
    int32_t zero_point_b;
    uint32_t group_size;   /* rows of B (along k) to a scale, with ANE_QUANT_B_PER_GROUP */
    int32_t nibble_order;  /* ANE_NIBBLE_*, for 4-bit types */
    int32_t quant_c;       /* ANE_QUANT_C_* */
    int32_t zero_point_c;  /* added to C's integers after scaling */
    uint64_t reserved[3];
} ANEMatMulDesc;

/*
 * Constant operands. Plain memory is valid during the call only: a shim copies what it needs. B and its
 * scales come as plain memory, or as constants of this device where it has ANE_DEVICE_FLAG_CONSTANTS:
 * one of the two is set. `b` is laid out as the description says. content_hash is BLAKE3 over B and
 * the scales with their types and shapes; all zero when the caller did not compute it.
 */
typedef struct ANEConstants {
    uint32_t struct_size;
    uint32_t reserved0;
    const void *b; /* with CONSTANT_B, else NULL */
    uint64_t b_bytes; /* of either */
    ANEConstant *b_constant;
    /*
     * With quant_b, else NULL: elements of type_scale. With a batch they follow one another for each item,
     * or all items share them: the length tells. With a dynamic B, one scale, always as plain memory.
     */
    const void *scales_b;
    uint64_t scales_b_bytes; /* of either */
    ANEConstant *scales_b_constant;
    const void *scale_a; /* one element of type_scale with ANE_QUANT_A_STATIC, else NULL */
    uint64_t scale_a_bytes;
    const void *scale_c; /* one element of type_scale with ANE_QUANT_C_STATIC, else NULL */
    uint64_t scale_c_bytes;
    uint8_t content_hash[32];
} ANEConstants;

/* A device: requested in ANECompileOptions, observed in ANEProductInfo and ANERunInfo. */
typedef int32_t ANEDeviceKind;
#define ANE_DEVICE_UNKNOWN 0 /* as a request: no preference */
#define ANE_DEVICE_CPU 1
#define ANE_DEVICE_GPU 2
#define ANE_DEVICE_NEURAL_ENGINE 3 /* as a request: make it a candidate */
#define ANE_DEVICE_MIXED 4         /* more than one of them; never requested */

#define ANE_OPTION_FAST_MATH 0x1u          /* reassociation, approximations and narrower partial sums are allowed */
#define ANE_OPTION_REDUCED_PRECISION 0x2u  /* operands may be truncated (tf32 and the like) */
#define ANE_OPTION_ALLOW_KNOWN_FAULTS 0x4u /* do not refuse with ANE_REFUSAL_VENDOR_FAULT */

typedef struct ANECompileOptions {
    uint32_t struct_size;
    uint32_t flags; /* ANE_OPTION_*: off unless the user asked */
    ANEDeviceKind device;
    uint32_t threads;        /* CPU threads to use; 0 lets the shim choose */
    uint64_t expected_runs;  /* 0 when unknown */
    uint64_t time_limit_ns;  /* for compile; 0 for none; a shim that cannot keep it ignores it */
    uint64_t reserved[4];
} ANECompileOptions;

/* ---- devices and memory -------------------------------------------------------------------- */

typedef int32_t ANEBufferKind;
#define ANE_BUFFER_HOST_VISIBLE 0 /* the host reads and writes it in place: buffer_contents */
#define ANE_BUFFER_DEVICE 1       /* the host has no address of it: buffer_read and buffer_write */

#define ANE_DEVICE_FLAG_TEST_DOUBLE 0x1u /* not hardware: never to be timed or believed */
#define ANE_DEVICE_FLAG_CONSTANTS 0x2u   /* constant_create uploads once what many products use */

typedef struct ANEDeviceInfo {
    uint32_t struct_size;
    uint32_t flags; /* ANE_DEVICE_FLAG_* */
    ANEDeviceKind kind;
    /* What runs without a copy: ANE_BUFFER_HOST_VISIBLE where memory is unified. */
    ANEBufferKind preferred_buffer;
    uint64_t wrap_alignment; /* buffer_wrap wants address and length in multiples of it; 0: no wrapping */
    uint64_t max_buffer_bytes; /* the largest buffer that buffer_create makes; 0: not known */
    char name[128];    /* UTF-8, "Apple M4 Max" */
    char chip[64];     /* what enters the key of a saved package */
    char os_build[64]; /* "15.2 (24C101)" */
    uint32_t max_queue_depth; /* the most submissions of an executor; 0: executor_submit is not offered */
    uint32_t reserved0;
} ANEDeviceInfo;

/* What constant_create copies, and in which type its elements are. */
typedef struct ANEConstantDesc {
    uint32_t struct_size;
    ANEType type;
    const void *data;
    uint64_t bytes;
    uint8_t content_hash[32]; /* as in ANEConstants */
} ANEConstantDesc;

/* ---- products and runs --------------------------------------------------------------------- */

/* Which arithmetic a product makes use of, beyond that of its description. */
#define ANE_ARITHMETIC_FAST_MATH 0x1u /* what ANE_OPTION_FAST_MATH allows, and with it alone */
#define ANE_ARITHMETIC_TF32 0x2u /* operands rounded to 10 bits of fraction: with ANE_OPTION_REDUCED_PRECISION alone */
#define ANE_ARITHMETIC_BF16 0x4u /* operands rounded to bf16: likewise */
#define ANE_ARITHMETIC_F16 0x8u  /* operands rounded to f16: likewise */

#define ANE_PRODUCT_FLAG_FROM_PACKAGE 0x1u /* loaded, not compiled */

typedef struct ANEProductInfo {
    uint32_t struct_size;
    uint32_t flags; /* ANE_PRODUCT_FLAG_* */
    ANEDeviceKind requested;
    ANEDeviceKind observed; /* ANE_DEVICE_UNKNOWN unless there is evidence */
    uint64_t compile_ns;
    uint64_t bytes_held;     /* memory held by the product, executors and constants not counted */
    uint64_t executor_bytes; /* memory held by an executor with a queue depth of 1 */
    uint32_t arithmetic;     /* ANE_ARITHMETIC_* */
    uint32_t reserved0;
} ANEProductInfo;

typedef struct ANEExecutorOptions {
    uint32_t struct_size;
    uint32_t queue_depth; /* the most submissions at once, at most ANEDeviceInfo.max_queue_depth; 0 where none will be */
} ANEExecutorOptions;

/*
 * An operand of a run: `buffer` with an offset, or `data`. Exactly one of the two is set; an operand
 * that the description does not have, or that has no bytes, is all zero. length_bytes counts from the first element to one
 * past the last that the matrix (or batch) covers, and bounds what a shim may touch.
 */
typedef struct ANEOperand {
    void *data; /* read only, but for C */
    ANEBuffer *buffer;
    uint64_t offset_bytes;
    uint64_t length_bytes;
} ANEOperand;

#define ANE_RUN_FLAG_WITH_COPIES 0x1u /* the times cover copies between host and device too */

/*
 * What a run observed; written by executor_run where ANERunArgs.info is set, and by executor_wait. Zero: not
 * known. Times are of the device's own clock, which counts nanoseconds from an epoch of its own: their
 * difference is how long the device worked, and those of one device can be compared with each other,
 * with no others. The epoch lies before the first run. They cover the kernels, from the start of the first to the end of the last.
 */
typedef struct ANERunInfo {
    uint32_t struct_size;
    ANEDeviceKind observed;
    uint64_t device_start_ns;
    uint64_t device_end_ns;
    uint32_t flags; /* ANE_RUN_FLAG_* */
    uint32_t reserved0;
} ANERunInfo;

/*
 * C does not overlap any other operand. Elements of C between its rows or batch items (where ldc > n)
 * are not written. C is not read.
 */
typedef struct ANERunArgs {
    uint32_t struct_size;
    uint32_t flags; /* zero */
    uint64_t m;     /* rows of this run: the description's m, or fewer with VARIABLE_M */
    ANEOperand a;
    ANEOperand b; /* all zero with CONSTANT_B */
    ANEOperand bias;
    ANEOperand residual;
    ANEOperand c;
    ANERunInfo *info; /* may be NULL; NULL in a submission */
} ANERunArgs;

/* ---- the table ----------------------------------------------------------------------------- */

typedef struct ANEShim {
    uint32_t struct_size;
    uint16_t abi_major; /* ANE_MATMUL_ABI_MAJOR of the header it was built with */
    uint16_t abi_minor;
    const char *name;    /* of the backend: lower-case letters, digits, '-' and '_'; 1 to 32 bytes */
    const char *version; /* of the shim; enters the key of a saved package */

    /* How many devices there are; 0 and ANE_STATUS_OK, or ANE_STATUS_NO_DEVICE and why, where there is none. */
    ANEStatus (*device_count)(uint32_t *count, ANEError *err);
    /* Facts of the device `index`, from 0; device 0 is the default. Opens nothing. The same facts each time;
     * ANE_STATUS_NO_DEVICE beyond the last, as in device_open. */
    ANEStatus (*device_info)(uint32_t index, ANEDeviceInfo *info, ANEError *err);
    ANEStatus (*device_open)(uint32_t index, ANEDevice **out, ANEError *err);
    /* What is initialised once for all products (a kernel library, a driver's context), so that a caller
     * can do and time it apart from compiling. compile does it where it was not called; calling it again
     * is cheap. */
    ANEStatus (*device_prepare)(ANEDevice *device, ANEError *err);
    void (*device_close)(ANEDevice *device);

    /* ANE_STATUS_OK when compile is expected to succeed, else ANE_STATUS_REFUSED and the reason.
     * Cheap: compiles nothing. */
    ANEStatus (*supports)(ANEDevice *device, const ANEMatMulDesc *desc, const ANECompileOptions *options,
                          ANEError *err);

    /* Contents are undefined. Memory that the host sees is at least 64-byte aligned. A device whose memory is
     * unified may give host-visible memory for both kinds. */
    ANEStatus (*buffer_create)(ANEDevice *device, ANEBufferKind kind, uint64_t bytes, ANEBuffer **out, ANEError *err);
    /* Caller memory without a copy, host-visible; it must stay valid and in place until buffer_destroy returns. */
    ANEStatus (*buffer_wrap)(ANEDevice *device, void *data, uint64_t bytes, ANEBuffer **out, ANEError *err);
    /* The address of a host-visible buffer, the same for as long as it lives; NULL of another. */
    void *(*buffer_contents)(ANEBuffer *buffer);
    /* Copies into a buffer, or out of it, of either kind: `bytes` bytes from `offset_bytes` on. Complete when
     * it returns; keeps no pointer. The caller stays within the buffer. */
    ANEStatus (*buffer_write)(ANEBuffer *buffer, uint64_t offset_bytes, const void *data, uint64_t bytes, ANEError *err);
    ANEStatus (*buffer_read)(ANEBuffer *buffer, uint64_t offset_bytes, void *data, uint64_t bytes, ANEError *err);
    void (*buffer_destroy)(ANEBuffer *buffer);

    /* Copies a constant to the device. ANE_STATUS_NOT_IMPLEMENTED without ANE_DEVICE_FLAG_CONSTANTS. */
    ANEStatus (*constant_create)(ANEDevice *device, const ANEConstantDesc *desc, ANEConstant **out, ANEError *err);
    void (*constant_destroy)(ANEConstant *constant);

    /* `constants` is never NULL; its pointers are where the description needs none. */
    ANEStatus (*compile)(ANEDevice *device, const ANEMatMulDesc *desc, const ANEConstants *constants,
                         const ANECompileOptions *options, ANEProduct **out, ANEError *err);
    /* Saves a product at `path`, where nothing exists yet. The caller keeps the key (description,
     * content hash, chip, OS build, shim version) and moves the result into place. */
    ANEStatus (*product_save)(ANEProduct *product, const char *path, ANEError *err);
    /* As compile, from what product_save wrote for the same arguments. ANE_STATUS_PACKAGE_MISMATCH
     * or ANE_STATUS_IO when it cannot be used: the caller then compiles. */
    ANEStatus (*product_load)(ANEDevice *device, const ANEMatMulDesc *desc, const ANEConstants *constants,
                              const ANECompileOptions *options, const char *path, ANEProduct **out,
                              ANEError *err);
    ANEStatus (*product_info)(ANEProduct *product, ANEProductInfo *info, ANEError *err);
    void (*product_destroy)(ANEProduct *product);

    ANEStatus (*executor_create)(ANEProduct *product, const ANEExecutorOptions *options, ANEMatMulExecutor **out,
                                 ANEError *err);
    /* Returns when C is complete; keeps no pointer of the caller's. */
    ANEStatus (*executor_run)(ANEMatMulExecutor *executor, const ANERunArgs *args, ANEError *err);
    /* Starts a run; see SUBMIT AND WAIT. Writes *ticket only when it returns ANE_STATUS_OK: otherwise nothing was
     * started. ANE_STATUS_NOT_IMPLEMENTED where ANEDeviceInfo.max_queue_depth is 0. */
    ANEStatus (*executor_submit)(ANEMatMulExecutor *executor, const ANERunArgs *args, ANETicket *ticket, ANEError *err);
    /* Waits for a submission, for at most timeout_ns: 0 only looks, UINT64_MAX is without end.
     * ANE_STATUS_PENDING when the time is over, and the ticket stays. Any other status ends the ticket:
     * ANE_STATUS_OK when C is complete, else what went wrong with this submission. `info` may be NULL. */
    ANEStatus (*executor_wait)(ANEMatMulExecutor *executor, ANETicket ticket, uint64_t timeout_ns, ANERunInfo *info,
                               ANEError *err);
    void (*executor_destroy)(ANEMatMulExecutor *executor);

    /* Graphs (ane_graph.h), or NULL. */
    const struct ANEGraphTable *graphs;
} ANEShim;

/* Exported by a dynamic library that ANE_MATMUL_SHIM or ShimLibrary::open loads. The table and its
 * strings live as long as the library. */
const ANEShim *ane_matmul_shim(void);

#if defined(__APPLE__) || defined(ANE_MATMUL_APPLE_SHIMS)
/* The shims that the crate builds for Apple targets. In a program that links the crate their names end in its
 * version, ane_mpsgraph_shim_0_1_0, so that two versions of it do not take each other's. */
const ANEShim *ane_mpsgraph_shim(void);
const ANEShim *ane_metal_shim(void);
#endif

/* ---- layout, on 64-bit targets ------------------------------------------------------------- */

#if UINTPTR_MAX == 0xffffffffffffffffu
#if defined(__cplusplus)
#define ANE_STATIC_ASSERT(cond) static_assert(cond, #cond)
#else
#define ANE_STATIC_ASSERT(cond) _Static_assert(cond, #cond)
#endif
ANE_STATIC_ASSERT(sizeof(ANEError) == 624);
ANE_STATIC_ASSERT(offsetof(ANEError, message) == 88);
ANE_STATIC_ASSERT(offsetof(ANEError, log) == 600);
ANE_STATIC_ASSERT(sizeof(ANEMatMulDesc) == 192);
ANE_STATIC_ASSERT(offsetof(ANEMatMulDesc, type_a) == 104);
ANE_STATIC_ASSERT(offsetof(ANEMatMulDesc, quant_a) == 136);
ANE_STATIC_ASSERT(sizeof(ANEConstants) == 120);
ANE_STATIC_ASSERT(sizeof(ANECompileOptions) == 64);
ANE_STATIC_ASSERT(sizeof(ANEDeviceInfo) == 296);
ANE_STATIC_ASSERT(offsetof(ANEDeviceInfo, max_queue_depth) == 288);
ANE_STATIC_ASSERT(sizeof(ANEConstantDesc) == 56);
ANE_STATIC_ASSERT(sizeof(ANEProductInfo) == 48);
ANE_STATIC_ASSERT(sizeof(ANEExecutorOptions) == 8);
ANE_STATIC_ASSERT(sizeof(ANEOperand) == 32);
ANE_STATIC_ASSERT(sizeof(ANERunInfo) == 32);
ANE_STATIC_ASSERT(sizeof(ANERunArgs) == 184);
ANE_STATIC_ASSERT(offsetof(ANERunArgs, a) == 16);
ANE_STATIC_ASSERT(sizeof(ANEShim) == 224);
ANE_STATIC_ASSERT(offsetof(ANEShim, device_open) == 40);
ANE_STATIC_ASSERT(offsetof(ANEShim, executor_destroy) == 208);
#endif

#ifdef __cplusplus
}
#endif

#endif
