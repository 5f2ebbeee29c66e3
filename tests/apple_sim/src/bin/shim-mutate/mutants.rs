//! The faults. Each text stands once in its file.

/// A fault: an edit of a file.
pub struct Mutant {
    /// What it is.
    pub name: &'static str,
    /// The file of `objc`.
    pub file: &'static str,
    /// What is replaced.
    pub text: &'static str,
    /// What it becomes.
    pub replacement: &'static str,
}

const fn metal(name: &'static str, text: &'static str, replacement: &'static str) -> Mutant {
    Mutant { name, file: "matmul.metal", text, replacement }
}

const fn plan(name: &'static str, text: &'static str, replacement: &'static str) -> Mutant {
    Mutant { name, file: "matmul_plan.h", text, replacement }
}

const fn shim(name: &'static str, text: &'static str, replacement: &'static str) -> Mutant {
    Mutant { name, file: "metal_matmul.m", text, replacement }
}

const fn support(name: &'static str, text: &'static str, replacement: &'static str) -> Mutant {
    Mutant { name, file: "shim_support.h", text, replacement }
}

const fn graph(name: &'static str, text: &'static str, replacement: &'static str) -> Mutant {
    Mutant { name, file: "ane_mpsgraph.m", text, replacement }
}

/// All of them.
pub const MUTANTS: &[Mutant] = &[
    metal(
        "missing barrier after the tiles are loaded",
        "thread_index, b_tile);\n        }\n        threadgroup_barrier(mem_flags::mem_threadgroup);\n\n",
        "thread_index, b_tile);\n        }\n\n",
    ),
    metal(
        "missing barrier before the next tiles",
        "            }\n        }\n        threadgroup_barrier(mem_flags::mem_threadgroup);\n    }\n\n    if (direct_store)",
        "            }\n        }\n    }\n\n    if (direct_store)",
    ),
    metal(
        "barrier of device memory",
        "thread_index, b_tile);\n        }\n        threadgroup_barrier(mem_flags::mem_threadgroup)",
        "thread_index, b_tile);\n        }\n        threadgroup_barrier(mem_flags::mem_device)",
    ),
    metal(
        "missing barrier before a strip is read",
        "        simdgroup_barrier(mem_flags::mem_threadgroup);\n        for (uint e = lane",
        "        for (uint e = lane",
    ),
    metal(
        "missing barrier before a strip is reused",
        "            }\n        }\n        simdgroup_barrier(mem_flags::mem_threadgroup);\n    }\n}\n\n// ---- gemv",
        "            }\n        }\n    }\n}\n\n// ---- gemv",
    ),
    metal(
        "missing barrier in gemv_columns",
        "    threadgroup_barrier(mem_flags::mem_threadgroup);\n\n    const uint column = simd",
        "\n    const uint column = simd",
    ),
    metal("wide load over the edge", "wide && column + VECTOR <= columns", "wide && column < columns"),
    metal(
        "wide load whatever the alignment",
        "if (wide && column + VECTOR <= columns)",
        "if (column + VECTOR <= columns)",
    ),
    metal("off by one in the column tail", "if (column + e < columns)", "if (column + e <= columns)"),
    metal(
        "off by one in the row tail",
        "        if (row < rows) {\n            if (wide",
        "        if (row <= rows) {\n            if (wide",
    ),
    metal(
        "no zeros where nothing exists",
        "*(threadgroup vec<T, VECTOR> *)(tile + row * LD + column) = value;",
        "if (row < rows) {\n            *(threadgroup vec<T, VECTOR> *)(tile + row * LD + column) = value;\n        }",
    ),
    metal("off by one row stored", "(aligned_m || tile_row < rows)", "(aligned_m || tile_row <= rows)"),
    metal(
        "off by one column stored",
        "(aligned_n || tile_column < columns)",
        "(aligned_n || tile_column <= columns)",
    ),
    metal(
        "wrong stride of the transposed A",
        "a_tile + kk * LD_M + row, LD_M, ulong2(0, 0), true",
        "a_tile + kk * LD_M + row, LD_K, ulong2(0, 0), true",
    ),
    metal(
        "transposed B read as it is",
        "b_tile + column * LD_K + kk, LD_K, ulong2(0, 0), true",
        "b_tile + column * LD_K + kk, LD_K, ulong2(0, 0), false",
    ),
    metal(
        "n instead of C's leading dimension",
        "finish(strip[e], p.alpha, c, item * p.stride_c + row * p.ldc + column",
        "finish(strip[e], p.alpha, c, item * p.stride_c + row * p.n + column",
    ),
    metal(
        "epilogue before the last k tile",
        "for (uint k = k_begin; k < k_end; k += BK)",
        "for (uint k = k_begin; k + BK < k_end; k += BK)",
    ),
    metal(
        "C read with beta = 0",
        "float x = alpha * sum;",
        "float x = alpha * sum + 0.0f * read_element(c, type_c, c_index);",
    ),
    metal(
        "swapped grid axes",
        "const uint first_row = (p.first_y + group.y) * BM;\n    const uint first_column = group.x * BN;",
        "const uint first_row = (p.first_y + group.x) * BM;\n    const uint first_column = group.y * BN;",
    ),
    metal(
        "a partition is left out of the reduction",
        "for (uint i = 0; i < p.partitions; ++i)",
        "for (uint i = 0; i + 1 < p.partitions; ++i)",
    ),
    metal(
        "partitions of the wrong plane",
        "const ulong plane_size = ulong(p.m) * p.n;",
        "const ulong plane_size = ulong(p.m) * p.m;",
    ),
    metal(
        "a partition that runs to the end of k",
        "const uint k_end = partial ? min(p.k, k_begin + p.k_per_partition) : p.k;\n    const uint first_row",
        "const uint k_end = p.k;\n    const uint first_row",
    ),
    metal(
        "accumulation in half",
        "float sums[ANE_METAL_GEMV_ROWS] = {0.0f",
        "half sums[ANE_METAL_GEMV_ROWS] = {0.0f",
    ),
    metal(
        "operands of the multiply in half",
        "const float x_value = float(x[k * p.ldb]);",
        "const float x_value = float(half(x[k * p.ldb]));",
    ),
    metal("every part from the first row", "(p.first_y + group.y) * BM", "group.y * BM"),
    metal(
        "every part from the first plane",
        "const uint z = p.first_z + group.z;",
        "const uint z = group.z;",
    ),
    metal(
        "every part of gemv_rows from the first item",
        "p.m - first);\n    const uint partition = p.first_y + group.y, item = p.first_z + group.z;",
        "p.m - first);\n    const uint partition = group.y, item = group.z;",
    ),
    metal("ReLU that hides NaN", "return x < 0.0f ? 0.0f : x;", "return x > 0.0f ? x : 0.0f;"),
    metal(
        "SiLU of minus infinity",
        "return x == -INFINITY ? 0.0f : x * logistic(x);",
        "return x * logistic(x);",
    ),
    metal(
        "alpha on the bias",
        "x += read_element(bias, type_bias, bias_index);",
        "x += alpha * read_element(bias, type_bias, bias_index);",
    ),
    metal("A's stride for B's items", "b += item * p.stride_b;\n\n", "b += item * p.stride_a;\n\n"),
    metal(
        "too small an array for the transposed A",
        "constexpr uint A_SIZE = BM * LD_K > BK * LD_M ? BM * LD_K : BK * LD_M;",
        "constexpr uint A_SIZE = BK * LD_M;",
    ),
    metal(
        "rows that are padded by one element",
        "constexpr uint PAD = 16 / sizeof(T);",
        "constexpr uint PAD = 1;",
    ),
    metal(
        "simd_sum of some lanes",
        "        const float sum = simd_sum(sums[r]);\n        if (lane == r) {",
        "        if (lane == r) {\n            const float sum = simd_sum(sums[r]);",
    ),
    metal("a lane of gemv_rows beyond k", "index + VECTOR <= end)", "index < end)"),
    plan(
        "k per partition rounded down",
        "ane_metal_ceil_div(ane_metal_ceil_div(d.k, partitions), step) * step",
        "(d.k / partitions / step * step)",
    ),
    plan(
        "grid rounded down",
        "launch->grid[1] = (uint32_t)ane_metal_ceil_div(m, tile->bm);",
        "launch->grid[1] = (uint32_t)(m / tile->bm ? m / tile->bm : 1);",
    ),
    plan(
        "aligned by the wrong side of the tile",
        "fc[ANE_METAL_CONSTANT_ALIGNED_N] = d.n % tile->bn == 0;",
        "fc[ANE_METAL_CONSTANT_ALIGNED_N] = d.n % tile->bm == 0 || d.n % 8 == 0;",
    ),
    plan("vectors of rows on two elements", "return ld % ANE_METAL_VECTOR == 0 &&", "return ld % 2 == 0 &&"),
    plan("direct store in spite of alpha", " &&\n            d.alpha == 1.0f;", ";"),
    plan(
        "direct store of edge tiles",
        "d.type_c == ANE_TYPE_F32 && fc[ANE_METAL_CONSTANT_ALIGNED_M] &&",
        "d.type_c == ANE_TYPE_F32 &&",
    ),
    plan(
        "batch folded over a gap",
        "d->stride_b == 0 && d->stride_a == d->m * d->lda &&",
        "d->stride_b == 0 &&",
    ),
    plan("one bias for a row of outputs", "            p->bias_increment = 1;\n", ""),
    plan(
        "scratch of one item",
        "plan->scratch_bytes = d.batch * partitions * m * d.n * 4;",
        "plan->scratch_bytes = partitions * m * d.n * 4;",
    ),
    plan(
        "a part of one plane too many",
        "planes < left ? planes : left",
        "planes + 1 < left ? planes + 1 : left + 1",
    ),
    plan(
        "the next part begins a row late",
        "    part->grid[1] = (uint32_t)rows;\n    part->grid[2] = 1;\n    return first + rows;",
        "    part->grid[1] = (uint32_t)rows;\n    part->grid[2] = 1;\n    return first + rows + 1;",
    ),
    plan(
        "rows of the next plane",
        "rows = rows < height - y ? rows : height - y;",
        "rows = rows < height ? rows : height;",
    ),
    plan("the vector's increment forgotten", "p->ldb = x_increment;", "p->ldb = 1;"),
    support(
        "a wait that does not wait",
        "        for (id<MTLCommandBuffer> commands in slot->commands) {\n            [commands waitUntilCompleted];\n        }\n    }\n    return YES;",
        "    }\n    return YES;",
    ),
    support("ignored status", "[commands status] == MTLCommandBufferStatusCompleted && !error ?", "!error ?"),
    support(
        "ignored error",
        "return [commands status] == MTLCommandBufferStatusCompleted && !error ?",
        "return YES ?",
    ),
    shim(
        "an encoder is not ended after an exception",
        "        [encoder endEncoding];\n        if (status != ANE_STATUS_OK) {\n            return status;\n        }\n",
        "        if (status != ANE_STATUS_OK) {\n            return status;\n        }\n        [encoder endEncoding];\n",
    ),
    support("leaked staging", "        [slot->staging[i] release];\n", ""),
    support("leaked scratch", "    [slot->scratch release];\n", ""),
    shim("leaked constant B", "            [product->constant_b release];\n", ""),
    shim(
        "leaked pipelines of a product",
        "                [product->pipelines[i / 2][i % 2] release];\n",
        "                (void)i;\n",
    ),
    shim(
        "leaked function",
        "function = [[device->library newFunctionWithName:name constantValues:constants error:&error] autorelease];",
        "function = [device->library newFunctionWithName:name constantValues:constants error:&error];",
    ),
    shim(
        "leaked pipeline",
        "pipeline = [[device->device newComputePipelineStateWithFunction:function error:&error] autorelease];",
        "pipeline = [device->device newComputePipelineStateWithFunction:function error:&error];",
    ),
    shim("leaked library", "            [device->library release];\n", ""),
    shim("leaked queue", "            [device->queue release];\n", ""),
    shim("leaked device", "            [device->device release];\n", ""),
    shim("leaked pipeline cache", "            [device->pipelines release];\n", ""),
    support(
        "leaked buffer",
        "CONTAINED(NULL, ignored, [buffer->buffer release])",
        "CONTAINED(NULL, ignored, (void)buffer->buffer)",
    ),
    shim(
        "leaked compile options",
        "options = [[[MTLCompileOptions alloc] init] autorelease];",
        "options = [[MTLCompileOptions alloc] init];",
    ),
    shim(
        "leaked constant values",
        "[[[MTLFunctionConstantValues alloc] init] autorelease]",
        "[[MTLFunctionConstantValues alloc] init]",
    ),
    shim(
        "a product that fails to compile is not destroyed",
        "        metal_product_destroy(product);\n        return status;\n    }\n    product->compile_ns",
        "        return status;\n    }\n    product->compile_ns",
    ),
    shim(
        "over-released pipeline",
        "product->pipelines[set][i] = [pipeline retain];",
        "product->pipelines[set][i] = pipeline;",
    ),
    support("what is no NSException leaves a call", "@catch (...)", "@catch (NSString * object)"),
    support(
        "no autorelease pool",
        "    @autoreleasepool {                                          \\\n",
        "    {                                                           \\\n",
    ),
    support(
        "an exception leaves a start",
        "CONTAINED(err, status, status = start_run(executor, slot, args, err))",
        "status = start_run(executor, slot, args, err);",
    ),
    support("missing length check", "if (operand->length_bytes < layout->bytes) {", "if (0) {"),
    support(
        "missing range check of a buffer",
        "if (operand->offset_bytes > buffer->bytes || layout->bytes > buffer->bytes - operand->offset_bytes) {",
        "if (0) {",
    ),
    support(
        "range check that overflows",
        "operand->offset_bytes > buffer->bytes || layout->bytes > buffer->bytes - operand->offset_bytes",
        "operand->offset_bytes + layout->bytes > buffer->bytes",
    ),
    support(
        "buffer of another device",
        "if (buffer->device != device) {",
        "if (buffer->device != device && 0) {",
    ),
    shim(
        "swapped operands",
        "*a = &bound[plan->swap_operands ? B : A], *b = &bound[plan->swap_operands ? A : B];",
        "*a = &bound[A], *b = &bound[B];",
    ),
    support(
        "staged C is not copied back",
        "    if (slot->copies_c) {\n",
        "    if (slot->copies_c && slot->c.buffer) {\n",
    ),
    support(
        "what lies between C's rows is written",
        "    repack(host, layout, [slot->staging[C] contents], &slot->c_staged, layout);\n",
        "    memcpy(host, [slot->staging[C] contents], (size_t)layout->bytes);\n",
    ),
    shim(
        "swapped axes of the launch",
        "{launch->grid[0], launch->grid[1], launch->grid[2]}",
        "{launch->grid[1], launch->grid[0], launch->grid[2]}",
    ),
    shim("ignored offset", "bound->offset = (NSUInteger)operand->offset_bytes;", "bound->offset = 0;"),
    shim(
        "operands off the vectors' alignment",
        "operand->offset_bytes % OPERAND_ALIGNMENT == 0 && layout->bytes",
        "operand->offset_bytes % 4 == 0 && layout->bytes",
    ),
    shim("fast math", "[options setFastMathEnabled:NO];", "[options setFastMathEnabled:YES];"),
    shim("no pipeline cache", "        [device->pipelines setObject:pipeline forKey:key];\n", ""),
    shim(
        "pipelines confused by a short key",
        "        [key appendFormat:@\" %u\", (unsigned)launch->constants[i]];\n",
        "",
    ),
    shim(
        "no lock around the pipelines",
        "    @synchronized(device->pipelines) {\n        pipeline =",
        "    {\n        pipeline =",
    ),
    support(
        "staging made in every run",
        "    if (!slot->staging[which]) {\n        slot->staging[which] = new",
        "    {\n        slot->staging[which] = new",
    ),
    shim(
        "out is written on failure",
        "    product->desc = *desc;\n",
        "    product->desc = *desc;\n    *out = product;\n",
    ),
    support(
        "an error beyond its struct_size",
        "    memcpy(err, &e, err->struct_size < sizeof e ? err->struct_size : sizeof e);\n    return status;",
        "    memcpy(err, &e, sizeof e);\n    return status;",
    ),
    support(
        "a log beyond its capacity",
        "snprintf(e.log, (size_t)e.log_capacity, \"%s\", log);",
        "snprintf(e.log, (size_t)e.log_capacity + 1, \"%s\", log);",
    ),
    shim("constant B of any length", "    if (bytes < layout->bytes) {\n", "    if (0) {\n"),
    shim(
        "a constant is released while a product uses it",
        "product->constant_b = [shared->buffer retain];",
        "product->constant_b = shared->buffer;",
    ),
    shim("a constant of another type", " || shared->type != product->desc.type_b", ""),
    shim("a constant of another device's", " || shared->device != product->device", ""),
    shim(
        "leaked constant",
        "CONTAINED(NULL, ignored, [constant->buffer release])",
        "CONTAINED(NULL, ignored, (void)constant->buffer)",
    ),
    shim(
        "a constant counts as the product's",
        "        product->constant_b = [shared->buffer retain];\n",
        "        product->constant_b = [shared->buffer retain];\n        product->own_b_bytes = layout->bytes;\n",
    ),
    shim(
        "parts are committed when all are encoded",
        "        [commands commit];\n    }\n    return ANE_STATUS_OK;",
        "        if (index == plan->launch_count) {\n            for (id<MTLCommandBuffer> each in slot->commands) {\n                [each commit];\n            }\n        }\n    }\n    return ANE_STATUS_OK;",
    ),
    shim(
        "the last part alone is asked",
        "        [slot->commands addObject:commands];\n",
        "        [slot->commands removeAllObjects];\n        [slot->commands addObject:commands];\n",
    ),
    shim(
        "staging shared between slots",
        "    status = stage(product->device, slot, which,",
        "    slot = &executor->slots[0];\n    status = stage(product->device, slot, which,",
    ),
    shim(
        "the other pipelines for one row",
        "return (desc->flags & ANE_MATMUL_VARIABLE_M) && m == 1 && desc->m != 1;",
        "return (desc->flags & ANE_MATMUL_VARIABLE_M) && m == 0 && desc->m != 1;",
    ),
    shim(
        "an Intel Mac is not refused",
        "if (![device->device supportsFamily:MTLGPUFamilyApple7]) {",
        "if (![device->device supportsFamily:MTLGPUFamilyApple7] && 0) {",
    ),
    shim(
        "the width of a simdgroup is not asked",
        "if ([pipeline threadExecutionWidth] != ANE_METAL_SIMD_WIDTH ||",
        "if (",
    ),
    support("background is any failure", "            status = ANE_STATUS_BACKGROUND;\n", ""),
    support(
        "a device that was taken away is any failure",
        "        case MTLCommandBufferErrorAccessRevoked:\n            status = ANE_STATUS_NO_DEVICE;\n",
        "        case MTLCommandBufferErrorAccessRevoked:\n",
    ),
    support(
        "a device that was removed is any failure",
        "up to 27 only */\n            status = ANE_STATUS_NO_DEVICE;\n",
        "up to 27 only */\n",
    ),
    support(
        "any index is the default device",
        "return [all objectAtIndex:index];",
        "return [all objectAtIndex:0];",
    ),
    support(
        "the default device twice",
        "if ([other registryID] != [first registryID]) {",
        "if ([other registryID]) {",
    ),
    support(
        "leaked default device",
        "[MTLCreateSystemDefaultDevice() autorelease]",
        "MTLCreateSystemDefaultDevice()",
    ),
    support("leaked devices", "[MTLCopyAllDevices() autorelease]", "MTLCopyAllDevices()"),
    support(
        "as many command buffers as Metal gives",
        "#define QUEUE_COMMAND_BUFFERS 1024u",
        "#define QUEUE_COMMAND_BUFFERS 64u",
    ),
    support(
        "a copy is not waited for",
        "    [commands commit];\n    [commands waitUntilCompleted];\n    return outcome_of(commands, err);",
        "    [commands commit];\n    return ANE_STATUS_OK;",
    ),
    support(
        "an encoder of a copy is not ended after an exception",
        "    [encoder endEncoding];\n    if (status != ANE_STATUS_OK) {\n        return status;\n    }\n    [commands commit];",
        "    if (status != ANE_STATUS_OK) {\n        return status;\n    }\n    [encoder endEncoding];\n    [commands commit];",
    ),
    support(
        "private memory where it is unified",
        "kind == ANE_BUFFER_DEVICE && ![device->device hasUnifiedMemory]",
        "kind == ANE_BUFFER_DEVICE",
    ),
    support(
        "no private memory",
        "kind == ANE_BUFFER_DEVICE && ![device->device hasUnifiedMemory]",
        "kind > ANE_BUFFER_DEVICE && ![device->device hasUnifiedMemory]",
    ),
    support(
        "a private buffer of part of a word",
        "length = (length + 3) / 4 * 4;",
        "length = (length + 0) / 1 * 1;",
    ),
    support("other bytes of a word are lost", "if (to || skipped || words != part) {", "if (to) {"),
    support(
        "other threads' bytes of a word are lost",
        "        @synchronized(buffer->buffer) {\n",
        "        {\n",
    ),
    support(
        "a range of a buffer that overflows",
        "offset > buffer->bytes || bytes > buffer->bytes - offset",
        "offset + bytes > buffer->bytes",
    ),
    support(
        "C stays in a copy of private memory",
        "return buffer && !buffer->contents ? transfer(",
        "return buffer && !buffer->contents && !layout ? transfer(",
    ),
    support(
        "C of a staged submission is not copied back",
        "    if (slot->copies_c) {\n",
        "    if (slot->copies_c && !slot->c.buffer) {\n",
    ),
    support("a copy of C outlives its run", "    slot->copies_c = NO;\n", ""),
    support(
        "the status of another ticket",
        "        status = outcome_of(commands, err);\n        if",
        "        status = outcome_of([executor->slots[0].commands lastObject], err);\n        (void)commands;\n        if",
    ),
    support("an error sticks to the next ticket", "        [slot->commands removeAllObjects];\n", ""),
    support(
        "destroyed without copying C back",
        "                finish(executor, &executor->slots[i], UINT64_MAX, NULL, NULL);\n",
        "                end_slot(executor, &executor->slots[i]);\n",
    ),
    support(
        "destroyed without waiting",
        "            if (executor->slots[i].ticket) {\n                finish(executor, &executor->slots[i], UINT64_MAX, NULL, NULL);\n            }\n",
        "",
    ),
    support(
        "what a start that fails committed is not waited for",
        "                if ([commands status] >= MTLCommandBufferStatusCommitted) {\n",
        "                if (0) {\n",
    ),
    support(
        "what was not committed is waited for",
        "                if ([commands status] >= MTLCommandBufferStatusCommitted) {\n",
        "                {\n",
    ),
    support(
        "one slot more than the depth",
        "slots = options->queue_depth ? options->queue_depth : 1;",
        "slots = options->queue_depth + 1;",
    ),
    support(
        "an executor deeper than the device says",
        "options->queue_depth > MAX_QUEUE_DEPTH",
        "options->queue_depth > MAX_QUEUE_DEPTH + 1",
    ),
    support(
        "a submission to an executor without depth",
        "Slot *slot = executor->depth ? slot_of(executor, 0) : NULL;",
        "Slot *slot = slot_of(executor, 0);",
    ),
    support(
        "older submissions are not waited for",
        "if (!slot->ticket || slot->ticket > ticket) {",
        "if (slot->ticket != ticket) {",
    ),
    support(
        "a command buffer that failed goes on for ever",
        "[commands status] < MTLCommandBufferStatusCompleted",
        "[commands status] != MTLCommandBufferStatusCompleted",
    ),
    support(
        "a ticket ends while its submission goes on",
        "    if (status != ANE_STATUS_PENDING) {\n        end_slot(executor, slot);\n    }\n",
        "    end_slot(executor, slot);\n",
    ),
    support(
        "a ticket is given twice",
        "slot->ticket = ++executor->last_ticket;",
        "slot->ticket = 1 + (ANETicket)(slot - executor->slots);",
    ),
    support(
        "the times of the first command buffer alone",
        "[(id<MTLCommandBuffer>)[slot->commands lastObject] GPUEndTime]",
        "[(id<MTLCommandBuffer>)[slot->commands objectAtIndex:0] GPUEndTime]",
    ),
    support(
        "a run while submissions are open",
        "        if (executor->slots[i].ticket) {\n            return FAIL",
        "        if (0) {\n            return FAIL",
    ),
    support("plain memory in a submission", "args->info || args->a.data ||", "args->info ||"),
    support(
        "an exception leaves a wait",
        "CONTAINED(err, status, status = await_run(executor, slot, timeout_ns, info, err))",
        "status = await_run(executor, slot, timeout_ns, info, err);",
    ),
    support("leaked list of command buffers", "    [slot->commands release];\n", ""),
    support("leaked tensor data of staging", "        [slot->tensors[i] release];\n", ""),
    support(
        "an interval of a run is left open",
        "    os_signpost_interval_end(executor->device->log, slot->interval, \"run\");\n",
        "    (void)executor;\n",
    ),
    support(
        "a run of any number of rows",
        "if (args->m > d->m || (args->m != d->m && !(d->flags & ANE_MATMUL_VARIABLE_M))) {",
        "if (args->m > d->m) {",
    ),
    shim("bf16 whatever the OS", "return os_at_least(1400, 1700);", "return os_at_least(1300, 1600);"),
    graph(
        "feeds in an assumed order",
        "const int which = product->feeds[i];\n        data =",
        "const int which = i < 2 ? (int)i : (int)i + 1;\n        data =",
    ),
    graph("the feed of a package of any shape", "![[feed shape] isEqual:product->shapes[A]] || ", ""),
    graph("the feed of a package of any type", " || [feed dataType] != operand_type(&product->desc, A)", ""),
    graph(
        "a result of a package of any type",
        " && [(MPSGraphTensor *)[targets objectAtIndex:0] dataType] == data_type(product->desc.type_c)",
        "",
    ),
    graph("packages of several operands", "if (expected_feeds(d) != 1) {", "if (expected_feeds(d) == 0) {"),
    graph("a package must tell its feeds", "    if (feeds) {\n", "    {\n"),
    graph(
        "what was committed before an exception is not waited for",
        "        wait_for_committed(slot, product->device->queue);\n",
        "        (void)wait_for_committed;\n",
    ),
    graph(
        "a feed that nobody made is passed over",
        "if (which == OPERANDS || product->feed_count == OPERANDS) {\n            return NO;",
        "if (which == OPERANDS || product->feed_count == OPERANDS) {\n            continue;",
    ),
    graph(
        "the last command buffer is not waited for",
        "    if (last != first) {\n        [slot->commands addObject:last];\n    }\n",
        "    (void)last;\n",
    ),
    graph(
        "the first command buffer is not asked",
        "    if (last != first) {\n        [slot->commands addObject:last];",
        "    if (last != first) {\n        [slot->commands replaceObjectAtIndex:0 withObject:last];",
    ),
    graph(
        "no lock while encoding",
        "    @synchronized(product->executable) {\n        commands =",
        "    {\n        commands =",
    ),
    graph(
        "a command buffer is held while waiting for the lock",
        "    @synchronized(product->executable) {\n        commands = [MPSCommandBuffer commandBufferFromCommandQueue:product->device->queue];\n",
        "    commands = [MPSCommandBuffer commandBufferFromCommandQueue:product->device->queue];\n    @synchronized(product->executable) {\n",
    ),
    graph(
        "tensor data is not kept until the ticket ends",
        "        [slot->held addObject:data];\n",
        "        (void)slot->held;\n",
    ),
    graph(
        "staging shared between slots",
        "        *status = stage(product->device, slot, which,",
        "        slot = &executor->slots[0];\n        *status = stage(product->device, slot, which,",
    ),
    graph("long sums on any GPU", "d->n >= 16 && !apple9) {", "d->n >= 16 && 0) {"),
    graph("long dimensions before macOS 14.4", "!(apple9 && os_at_least(1404, 1704))", "!apple9"),
    graph("long dimensions on M1", "!(apple9 && os_at_least(1404, 1704))", "!os_at_least(1404, 1704)"),
    graph("batches on macOS 13.2", "os_at_least(1302, 1603) && !", "os_at_least(1302, 1603) && 0 && !"),
    graph("f16 batches on M5", "supportsFamily:FAMILY_APPLE10]) {", "supportsFamily:FAMILY_APPLE10] && 0) {"),
    graph(
        "a bias of one row on M1",
        "supportsFamily:FAMILY_APPLE8]) {",
        "supportsFamily:FAMILY_APPLE8] && 0) {",
    ),
    graph("any GPU of AMD", "location != NSNotFound) {", "location == 1) {"),
    graph(
        "faults that nobody may allow",
        "options->flags & ANE_OPTION_ALLOW_KNOWN_FAULTS",
        "options->flags & 0",
    ),
    graph(
        "casts are not counted",
        "packed[i].element_bytes < sum_bytes ? 2 : 1;",
        "packed[i].element_bytes > sum_bytes ? 2 : 1;",
    ),
    graph(
        "the levels are swapped",
        "product->level0 ? MPSGraphOptimizationLevel0 : MPSGraphOptimizationLevel1",
        "product->level0 ? MPSGraphOptimizationLevel1 : MPSGraphOptimizationLevel0",
    ),
    graph(
        "the level is left to the system",
        "    [descriptor setOptimizationLevel:product->level0 ? MPSGraphOptimizationLevel0 : MPSGraphOptimizationLevel1];\n",
        "    (void)product;\n",
    ),
    graph(
        "ReLU hides NaN",
        "return zero_below(graph, x, 0, x, type);",
        "return [graph selectWithPredicateTensor:[graph lessThanWithPrimaryTensor:[graph constantWithScalar:0 dataType:type] secondaryTensor:x name:nil] truePredicateTensor:x falsePredicateTensor:[graph constantWithScalar:0 dataType:type] name:nil];",
    ),
    graph(
        "SiLU of minus infinity is NaN",
        "secondaryTensor:[graph sigmoidWithTensor:x name:nil] name:nil];\n        return zero_below(graph, x, lowest, y, type);",
        "secondaryTensor:[graph sigmoidWithTensor:x name:nil] name:nil];\n        return y;",
    ),
    graph(
        "f16 is not applied",
        "return type == ANE_TYPE_F16 ? MPSDataTypeFloat16 : MPSDataTypeFloat32;",
        "(void)type;\n    return MPSDataTypeFloat32;",
    ),
    graph(
        "sums in the type of A",
        "const MPSDataType type = data_type(d->type_accumulator);",
        "const MPSDataType type = data_type(d->type_a);",
    ),
    graph(
        "swapped shape",
        ": [NSArray arrayWithObjects:rows, cols, nil];",
        ": [NSArray arrayWithObjects:cols, rows, nil];",
    ),
    graph(
        "A is not transposed",
        "factor(graph, feeds[A], (d->flags & ANE_MATMUL_TRANSPOSE_A) != 0,",
        "factor(graph, feeds[A], NO,",
    ),
    graph("alpha below one is forgotten", "if (d->alpha != 1.0f) {", "if (d->alpha > 1.0f) {"),
    graph("leak: the executable", "            [product->executable release];\n", ""),
    graph("leak: shapes", "                [product->shapes[i] release];\n", "                (void)i;\n"),
    graph(
        "leak: tensor data of the caller's buffer",
        "data = [tensor_data(product, which, operand->buffer->buffer) autorelease];",
        "data = tensor_data(product, which, operand->buffer->buffer);",
    ),
    graph(
        "leak: the graph",
        "graph = [[[MPSGraph alloc] init] autorelease];",
        "graph = [[MPSGraph alloc] init];",
    ),
    graph("leak: the graph's device", "            [device->graph_device release];\n", ""),
    graph(
        "over-release: the executable",
        "            [product->executable release];\n",
        "            [product->executable release];\n            [product->executable release];\n",
    ),
    graph(
        "a buffer is used from its start",
        "if (operand->buffer && operand->offset_bytes == 0 && same_layout",
        "if (operand->buffer && same_layout",
    ),
    graph("a buffer is used with any leading dimension", "(l->rows <= 1 || l->ld == packed->ld) && ", ""),
    graph(
        "constant B of any length",
        "(constants->b_bytes < layouts[B].bytes || (!constants->b && layouts[B].bytes))",
        "(!constants->b && layouts[B].bytes)",
    ),
    graph(
        "f32 sums for the Neural Engine",
        "d->type_a != ANE_TYPE_F16 || d->type_accumulator != ANE_TYPE_F16 ||",
        "d->type_a != ANE_TYPE_F16 ||",
    ),
    graph(
        "any dimension for the Neural Engine",
        "options->device == ANE_DEVICE_NEURAL_ENGINE && dimensions[i] > NEURAL_ENGINE_MAX_DIMENSION",
        "options->device == ANE_DEVICE_MIXED && dimensions[i] > NEURAL_ENGINE_MAX_DIMENSION",
    ),
    graph(
        "arrays of 2^31 bytes",
        "most = most < MAX_ARRAY_BYTES ? most : MAX_ARRAY_BYTES;",
        "(void)MAX_ARRAY_BYTES;",
    ),
    graph(
        "a setter of system 26 is sent to all",
        "if ([descriptor respondsToSelector:@selector(setReducedPrecisionFastMath:)]) {",
        "if (os_at_least(1300, 1600)) {",
    ),
    graph("any number of multiply-adds", "(double)d->k > MAX_MACS) {", "(double)d->k > 8 * MAX_MACS) {"),
    graph(
        "a buffer between the first and the last is not waited for",
        "        [last waitUntilCompleted];\n",
        "",
    ),
    graph(
        "fast math unless asked for",
        "fast ? MPSGraphReducedPrecisionFastMathAllowFP16Intermediates",
        "!fast ? MPSGraphReducedPrecisionFastMathAllowFP16Intermediates",
    ),
    graph(
        "fast math for reduced precision",
        "options->flags & ANE_OPTION_FAST_MATH",
        "options->flags & ANE_OPTION_REDUCED_PRECISION",
    ),
    graph(
        "fast math that is not told",
        "product->arithmetic = fast ? ANE_ARITHMETIC_FAST_MATH : 0;",
        "product->arithmetic = 0;",
    ),
    graph(
        "any alpha with sums in f16",
        "d->type_accumulator == ANE_TYPE_F16 && !is_normal_f16(d->alpha)",
        "d->type_accumulator == ANE_TYPE_F16 && is_normal_f16(d->alpha) > 1",
    ),
    graph(
        "packages on any system",
        "return SDK_HAS_PACKAGES && os_at_least(1400, 1700);",
        "return os_at_least(1300, 1600);",
    ),
    graph(
        "a package that was not written",
        "return exists(path) ? ANE_STATUS_OK : FAIL(err",
        "return YES ? ANE_STATUS_OK : FAIL(err",
    ),
    graph(
        "an encoding without results",
        "return encoded == 1 ? ANE_STATUS_OK",
        "return encoded < 2 ? ANE_STATUS_OK",
    ),
    graph(
        "an interval is left open on failure",
        "    os_signpost_interval_end(device->log, interval, \"compile\");\n    if (status",
        "    if (status == ANE_STATUS_OK) {\n        os_signpost_interval_end(device->log, interval, \"compile\");\n    }\n    if (status",
    ),
];

#[cfg(test)]
mod tests {
    use super::MUTANTS;

    #[test]
    fn every_fault_can_be_planted() {
        for mutant in MUTANTS {
            let path = apple_sim::compile::objc_dir().join(mutant.file);
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text.matches(mutant.text).count(), 1, "{}: {}", mutant.file, mutant.name);
        }
    }
}
