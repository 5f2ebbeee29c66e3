// runtime.cpp - threads, barriers and the memory checker behind kernel.hpp. Each GPU thread is a
// fiber; threadgroups run one after the other on the caller's thread.
//
// Races are found by epochs, not by luck: every granule of memory remembers who last wrote and read
// it and in which interval between barriers, so that a conflict shows in any schedule in which both
// accesses happen. A barrier begins a new epoch for the address spaces that its flags name.
#include "emu.h"
#include "kernel.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

#include <dlfcn.h>

namespace emu {
namespace {

constexpr uint simd_width = 32, max_threads = 1024, max_simds = max_threads / simd_width;
constexpr uint64_t threadgroup_limit = 32 * 1024;
constexpr uint64_t stack_bytes = 128 * 1024;
constexpr uint granule = 2; // the smallest element
constexpr uint collective_lane = simd_width, many = 0xffff;
// Reserved around the buffers, so that a wrong index lands in what is known to be nobody's.
constexpr uint64_t device_reserve = 1ull << 38, threadgroup_reserve = 1ull << 30, gap = 1 << 20;
constexpr uint64_t threadgroup_base = threadgroup_reserve / 2, threadgroup_room = 128 * 1024;

// An access: who and when. `lane` may be collective_lane; of reads, simd and lane may be `many`.
struct Mark {
    uint64_t group; // serial number; 0: never
    uint32_t epoch, simd_epoch;
    uint16_t simd, lane;
    uint32_t pc;
};

struct Cell {
    Mark write, read;
};

struct Region {
    uint8_t *base;
    uint64_t bytes;
    int buffer;
    bool writable;
    std::vector<uint8_t> initialised, written;
    std::vector<Cell> cells; // of writable regions
    EmuBinding binding;
};

struct ThreadgroupArray {
    bool used;
    uint64_t offset, bytes;
};

enum class State { ready, threadgroup_barrier, simdgroup_barrier, simd_sum, done };

struct Fiber {
    ucontext_t context;
    State state;
    uint32_t pc, flags; // of what it waits for
    float value;
    uint64_t trace; // of the simdgroup operations it went through
    uint32_t operations;
};

struct Simd {
    uint32_t device_epoch, threadgroup_epoch;
    uint32_t order[simd_width];
};

struct Machine {
    std::mutex mutex;
    uint8_t *device = nullptr, *threadgroup = nullptr, *stacks = nullptr;
    uint64_t device_used = 0;
    std::vector<Region> regions;
    std::vector<Cell> threadgroup_cells;
    std::vector<ThreadgroupArray> arrays;
    uint64_t threadgroup_used = 0, threadgroup_declared = 0;
    uint64_t group_serial = 0;
    uint32_t device_epoch = 0, threadgroup_epoch = 0;
    Simd simds[max_simds];
    std::vector<Fiber> fibers;
    ucontext_t scheduler;
    uint32_t current = 0, thread_count = 0, simd_count = 0;
    const Kernel *kernel = nullptr;
    void *pointers[16];
    Builtins builtins;
    uint32_t threads[3], grid[3];
    EmuReport *report = nullptr;
    const void *collective_address = nullptr;
    uint64_t random = 1;
    bool running = false;
};

Machine g;

uint64_t library_base()
{
    static const uint64_t base = [] {
        Dl_info info;
        return dladdr(reinterpret_cast<void *>(&library_base), &info) ? uint64_t(info.dli_fbase) : 0;
    }();
    return base;
}

uint32_t offset_of(const void *pc) { return uint32_t(uint64_t(pc) - library_base()); }

[[noreturn]] void stop()
{
    setcontext(&g.scheduler);
    abort();
}

void set_fault(EmuFault fault, uint32_t pc, const char *text)
{
    EmuReport &r = *g.report;
    if (r.fault != EMU_OK) {
        return;
    }
    r.fault = fault;
    r.pc = pc;
    r.thread = g.current;
    memcpy(r.group, g.builtins.group, sizeof r.group);
    snprintf(r.text, sizeof r.text, "%s", text);
}

[[noreturn]] void fail(EmuFault fault, uint32_t pc, const char *text, int buffer = -1, uint64_t byte = 0,
                       const Mark *other = nullptr)
{
    set_fault(fault, pc, text);
    g.report->buffer = buffer;
    g.report->byte = byte;
    if (other) {
        g.report->other_pc = other->pc;
        g.report->other_thread = other->simd == many || other->lane >= simd_width
            ? other->simd * simd_width
            : other->simd * simd_width + other->lane;
    }
    stop();
}

struct Who {
    uint16_t simd, lane;
    uint32_t epoch, simd_epoch;
};

// Whether an access by `who` is unordered with an earlier one of the same threadgroup.
bool unordered(const Mark &m, const Who &who)
{
    if (m.group != g.group_serial || m.epoch != who.epoch) {
        return false;
    }
    if (m.simd != who.simd) {
        return true;
    }
    return m.simd_epoch == who.simd_epoch && (m.lane != who.lane || m.lane == collective_lane);
}

void note_read(Mark &m, const Who &who, uint32_t pc)
{
    if (m.group == g.group_serial && m.epoch == who.epoch) {
        if (m.simd != who.simd) {
            m.simd = many;
            m.pc = pc;
            return;
        }
        if (m.simd_epoch == who.simd_epoch && m.lane != who.lane) {
            m.lane = many;
            m.pc = pc;
            return;
        }
    }
    m = {g.group_serial, who.epoch, who.simd_epoch, who.simd, who.lane, pc};
}

// Reads of one granule by a whole simdgroup do not conflict with each other; writes do with all.
void check_cell(Cell &cell, bool write, const Who &who, uint32_t pc, EmuFault race, int buffer, uint64_t byte)
{
    if (unordered(cell.write, who)) {
        fail(race, pc, write ? "two unordered writes" : "a read unordered with a write", buffer, byte, &cell.write);
    }
    if (write) {
        if (unordered(cell.read, who)) {
            fail(race, pc, "a write unordered with a read", buffer, byte, &cell.read);
        }
        cell.write = {g.group_serial, who.epoch, who.simd_epoch, who.simd, who.lane, pc};
    } else {
        note_read(cell.read, who, pc);
    }
}

void access_threadgroup(uint64_t at, uint size, bool write, uint lane, uint32_t pc)
{
    const ThreadgroupArray *array = nullptr;
    for (const ThreadgroupArray &a : g.arrays) {
        if (a.used && at >= a.offset && at + size <= a.offset + a.bytes) {
            array = &a;
        }
    }
    if (!array) {
        fail(EMU_OUT_OF_BOUNDS, pc, write ? "write outside the threadgroup array" : "read outside the threadgroup array",
             -1, at);
    }
    const uint16_t simd = uint16_t(g.current / simd_width);
    const Who who{simd, uint16_t(lane), g.threadgroup_epoch, g.simds[simd].threadgroup_epoch};
    for (uint64_t i = at / granule; i < (at + size) / granule; ++i) {
        Cell &cell = g.threadgroup_cells[i];
        if (!write && cell.write.group != g.group_serial) {
            fail(EMU_UNINITIALISED, pc, "read of threadgroup memory that nobody wrote", -1, at - array->offset);
        }
        check_cell(cell, write, who, pc, EMU_RACE_THREADGROUP, -1, i * granule - array->offset);
    }
}

void access_device(const uint8_t *address, uint size, bool write, uint lane, uint32_t pc)
{
    Region *region = nullptr;
    for (Region &r : g.regions) {
        if (address >= r.base && address + size <= r.base + r.bytes) {
            region = &r;
        }
    }
    if (!region) {
        // Name the nearest buffer.
        int buffer = -1;
        uint64_t best = gap / 2, byte = 0;
        for (const Region &r : g.regions) {
            const uint64_t after = uint64_t(address - r.base), before = uint64_t(r.base - address);
            const uint64_t distance = address >= r.base ? (after > r.bytes ? after - r.bytes : 0) : before;
            if (distance < best) {
                best = distance;
                buffer = r.buffer;
                byte = after;
            }
        }
        fail(EMU_OUT_OF_BOUNDS, pc, write ? "write outside the buffer" : "read outside the buffer", buffer, byte);
    }
    const uint64_t at = uint64_t(address - region->base);
    if (write && !region->writable) {
        fail(EMU_WRITE_TO_INPUT, pc, "write to a buffer that is an input", region->buffer, at);
    }
    if (!write) {
        for (uint64_t i = at; i < at + size; ++i) {
            if (region->writable && !region->written[i]) {
                fail(EMU_READ_OF_OUTPUT, pc, "read of an output that this launch did not write", region->buffer, at);
            }
            if (!region->writable && !region->initialised.empty() && !region->initialised[i]) {
                fail(EMU_UNINITIALISED, pc, "read of device memory that nobody wrote", region->buffer, at);
            }
        }
    }
    if (!region->writable) {
        return;
    }
    const uint16_t simd = uint16_t(g.current / simd_width);
    const Who who{simd, uint16_t(lane), g.device_epoch, g.simds[simd].device_epoch};
    for (uint64_t i = at / granule; i < (at + size) / granule; ++i) {
        Cell &cell = region->cells[i];
        // Nothing orders two threadgroups of one launch.
        for (const Mark *m : {&cell.write, &cell.read}) {
            if (m->group != 0 && m->group != g.group_serial && (write || m == &cell.write)) {
                fail(EMU_RACE_DEVICE, pc, "two threadgroups use one element", region->buffer, i * granule, m);
            }
        }
        check_cell(cell, write, who, pc, EMU_RACE_DEVICE, region->buffer, i * granule);
    }
    if (write) {
        memset(&region->written[at], 1, size);
    }
}

bool is_private(const void *pointer)
{
    const auto *address = static_cast<const uint8_t *>(pointer);
    return uint64_t(address - g.threadgroup) >= threadgroup_reserve && uint64_t(address - g.device) >= device_reserve;
}

void access(const void *pointer, uint size, bool write, bool aligned, uint lane, const void *return_address)
{
    if (!g.running || is_private(pointer)) {
        return;
    }
    const auto *address = static_cast<const uint8_t *>(pointer);
    const bool in_threadgroup = uint64_t(address - g.threadgroup) < threadgroup_reserve;
    ++g.report->accesses;
    const uint32_t pc = offset_of(return_address) - 1;
    if ((aligned && uint64_t(address) % size != 0) || uint64_t(address) % granule != 0 || size % granule != 0) {
        fail(EMU_MISALIGNED, pc, "misaligned access");
    }
    if (in_threadgroup) {
        access_threadgroup(uint64_t(address - g.threadgroup) - threadgroup_base, size, write, lane, pc);
    } else {
        access_device(address, size, write, lane, pc);
    }
}

uint32_t lane_of(uint32_t thread) { return thread % simd_width; }

// A copy or fill that the compiler made of several elements.
void access_range(const void *pointer, size_t bytes, bool write, const void *return_address)
{
    if (is_private(pointer)) {
        return;
    }
    for (size_t i = 0; i + granule <= bytes; i += granule) {
        access(static_cast<const char *>(pointer) + i, granule, write, true, lane_of(g.current), return_address);
    }
}

void wait(State state, uint32_t flags, const void *return_address)
{
    Fiber &fiber = g.fibers[g.current];
    fiber.state = state;
    fiber.flags = flags;
    fiber.pc = offset_of(return_address) - 1;
    swapcontext(&fiber.context, &g.scheduler);
}

void fiber_main()
{
    const uint32_t t = g.current;
    Builtins b = g.builtins;
    g.kernel->thunk(g.pointers, b);
    g.fibers[t].state = State::done;
    setcontext(&g.scheduler);
}

bool same_wait(uint32_t first, uint32_t count, State state)
{
    const Fiber &a = g.fibers[first];
    for (uint32_t t = first; t < first + count; ++t) {
        const Fiber &b = g.fibers[t];
        if (b.state != state || b.pc != a.pc || b.flags != a.flags) {
            return false;
        }
    }
    return true;
}

// Lanes of a simdgroup must have gone through the same simdgroup operations when they meet.
bool same_trace(uint32_t first)
{
    const uint32_t count = std::min<uint32_t>(simd_width, g.thread_count - first);
    for (uint32_t t = first + 1; t < first + count; ++t) {
        if (g.fibers[t].trace != g.fibers[first].trace || g.fibers[t].operations != g.fibers[first].operations) {
            g.current = t;
            set_fault(EMU_DIVERGENCE, g.fibers[t].pc, "lanes of a simdgroup disagree about a simdgroup operation");
            return false;
        }
    }
    return true;
}

// Releases a simdgroup whose lanes all wait for the same. False on a fault.
bool resolve_simd(uint32_t simd, bool &progress)
{
    const uint32_t first = simd * simd_width;
    const uint32_t count = std::min<uint32_t>(simd_width, g.thread_count - first);
    const State state = g.fibers[first].state;
    if ((state != State::simdgroup_barrier && state != State::simd_sum) || !same_wait(first, count, state)) {
        return true;
    }
    if (!same_trace(first)) {
        return false;
    }
    if (state == State::simd_sum) {
        // Pairwise, as a tree of shuffles would add.
        float sums[simd_width] = {};
        for (uint32_t i = 0; i < count; ++i) {
            sums[i] = g.fibers[first + i].value;
        }
        for (uint32_t step = 1; step < simd_width; step *= 2) {
            for (uint32_t i = 0; i + step < simd_width; i += 2 * step) {
                sums[i] += sums[i + step];
            }
        }
        for (uint32_t i = 0; i < count; ++i) {
            g.fibers[first + i].value = sums[0];
        }
    } else {
        const uint32_t flags = g.fibers[first].flags;
        g.simds[simd].device_epoch += flags & uint(metal::mem_flags::mem_device) ? 1 : 0;
        g.simds[simd].threadgroup_epoch += flags & uint(metal::mem_flags::mem_threadgroup) ? 1 : 0;
        ++g.report->barriers;
    }
    for (uint32_t t = first; t < first + count; ++t) {
        g.fibers[t].state = State::ready;
    }
    progress = true;
    return true;
}

bool resolve_group(bool &progress)
{
    if (!same_wait(0, g.thread_count, State::threadgroup_barrier)) {
        return true;
    }
    for (uint32_t s = 0; s < g.simd_count; ++s) {
        if (!same_trace(s * simd_width)) {
            return false;
        }
    }
    const uint32_t flags = g.fibers[0].flags;
    g.device_epoch += flags & uint(metal::mem_flags::mem_device) ? 1 : 0;
    g.threadgroup_epoch += flags & uint(metal::mem_flags::mem_threadgroup) ? 1 : 0;
    ++g.report->barriers;
    for (Fiber &fiber : g.fibers) {
        fiber.state = State::ready;
    }
    progress = true;
    return true;
}

uint64_t next_random()
{
    // xorshift64 (Marsaglia 2003).
    g.random ^= g.random << 13;
    g.random ^= g.random >> 7;
    g.random ^= g.random << 17;
    return g.random;
}

// The next ready thread, or thread_count.
uint32_t pick(int32_t schedule, uint64_t seed, uint32_t last)
{
    const uint32_t n = g.thread_count;
    uint32_t start = 0;
    if (schedule == EMU_LOCKSTEP) {
        start = last + 1;
    } else if (schedule == EMU_AHEAD) {
        start = uint32_t(seed % g.simd_count) * simd_width;
    } else if (schedule == EMU_RANDOM) {
        start = uint32_t(next_random() % n);
    }
    for (uint32_t i = 0; i < n; ++i) {
        const uint32_t t = schedule == EMU_REVERSE ? n - 1 - i : (start + i) % n;
        if (g.fibers[t].state == State::ready) {
            return t;
        }
    }
    return n;
}

void set_builtins(uint32_t t)
{
    Builtins &b = g.builtins;
    b.thread_index = t;
    b.simd = t / simd_width;
    b.lane = lane_of(t);
    b.thread_in_group[0] = t % g.threads[0];
    b.thread_in_group[1] = t / g.threads[0] % g.threads[1];
    b.thread_in_group[2] = t / (g.threads[0] * g.threads[1]);
    for (int i = 0; i < 3; ++i) {
        b.thread_in_grid[i] = b.group[i] * g.threads[i] + b.thread_in_group[i];
    }
}

// Runs one threadgroup; false on a fault.
bool run_group(int32_t schedule, uint64_t seed)
{
    ++g.group_serial;
    g.device_epoch = g.threadgroup_epoch = 1;
    memset(g.simds, 0, sizeof g.simds);
    for (ThreadgroupArray &a : g.arrays) {
        a.used = false;
    }
    g.threadgroup_used = g.threadgroup_declared = 0;
    for (uint32_t t = 0; t < g.thread_count; ++t) {
        Fiber &fiber = g.fibers[t];
        fiber.state = State::ready;
        fiber.trace = fiber.operations = 0;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = g.stacks + t * stack_bytes;
        fiber.context.uc_stack.ss_size = stack_bytes;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, fiber_main, 0);
    }
    uint32_t last = g.thread_count - 1;
    for (;;) {
        const uint32_t t = pick(schedule, seed, last);
        if (t == g.thread_count) {
            bool progress = false;
            for (uint32_t s = 0; s < g.simd_count; ++s) {
                if (!resolve_simd(s, progress)) {
                    return false;
                }
            }
            if (!progress && !resolve_group(progress)) {
                return false;
            }
            if (progress) {
                continue;
            }
            for (uint32_t i = 0; i < g.thread_count; ++i) {
                if (g.fibers[i].state != State::done) {
                    g.current = i;
                    set_fault(EMU_DIVERGENCE, g.fibers[i].pc, "a barrier that not all threads reach");
                    return false;
                }
            }
            for (uint32_t s = 0; s < g.simd_count; ++s) {
                if (!same_trace(s * simd_width)) {
                    return false;
                }
            }
            return true;
        }
        last = g.current = t;
        set_builtins(t);
        g.running = true;
        // Control comes back by swapcontext's own return (wait), or by setcontext (end, fault).
        swapcontext(&g.scheduler, &g.fibers[t].context);
        g.running = false;
        if (g.report->fault != EMU_OK) {
            return false;
        }
        if (schedule != EMU_LOCKSTEP && schedule != EMU_RANDOM) {
            // Let the simdgroup go on as soon as its lanes have met.
            bool progress = false;
            if (!resolve_simd(t / simd_width, progress)) {
                return false;
            }
        }
    }
}

bool reserve()
{
    if (g.device) {
        return true;
    }
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *device = mmap(nullptr, device_reserve, PROT_NONE, flags, -1, 0);
    void *threadgroup = mmap(nullptr, threadgroup_reserve, PROT_NONE, flags, -1, 0);
    void *stacks = mmap(nullptr, max_threads * stack_bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (device == MAP_FAILED || threadgroup == MAP_FAILED || stacks == MAP_FAILED) {
        return false;
    }
    g.device = static_cast<uint8_t *>(device);
    g.threadgroup = static_cast<uint8_t *>(threadgroup);
    g.stacks = static_cast<uint8_t *>(stacks);
    mprotect(g.threadgroup + threadgroup_base, threadgroup_room, PROT_READ | PROT_WRITE);
    g.threadgroup_cells.resize(threadgroup_room / granule);
    return true;
}

} // namespace

extern "C" {

void emu_threadgroup_barrier(uint flags) { wait(State::threadgroup_barrier, flags, __builtin_return_address(0)); }

void emu_simdgroup_barrier(uint flags) { wait(State::simdgroup_barrier, flags, __builtin_return_address(0)); }

float emu_simd_sum(float value)
{
    const uint32_t t = g.current;
    g.fibers[t].value = value;
    wait(State::simd_sum, 0, __builtin_return_address(0));
    return g.fibers[t].value;
}

bool emu_collective(uint kind, const void *pointer, uint64_t stride, uint flags, const void *return_address)
{
    g.collective_address = return_address;
    Fiber &fiber = g.fibers[g.current];
    // FNV-1a over what all lanes must agree about.
    for (uint64_t x : {uint64_t(kind), uint64_t(pointer), stride, uint64_t(flags)}) {
        fiber.trace = (fiber.trace ^ x) * 0x100000001b3ull;
    }
    ++fiber.operations;
    return lane_of(g.current) == 0;
}

void emu_collective_access(const void *pointer, uint size, bool write)
{
    access(pointer, size, write, true, collective_lane, g.collective_address);
}

void *emu_threadgroup_array(uint id, uint64_t bytes, uint64_t alignment, const char *name)
{
    if (g.arrays.size() <= id) {
        g.arrays.resize(id + 1);
    }
    ThreadgroupArray &a = g.arrays[id];
    if (!a.used) {
        // 256 bytes of nobody's between arrays.
        a.used = true;
        a.bytes = bytes;
        a.offset = (g.threadgroup_used + 256 + alignment - 1) / alignment * alignment;
        g.threadgroup_used = a.offset + bytes;
        g.threadgroup_declared += bytes;
        if (g.threadgroup_declared > g.report->threadgroup_bytes) {
            g.report->threadgroup_bytes = uint32_t(g.threadgroup_declared);
        }
        if (g.threadgroup_declared > threadgroup_limit) {
            fail(EMU_THREADGROUP_MEMORY, offset_of(__builtin_return_address(0)) - 1, name);
        }
    }
    return g.threadgroup + threadgroup_base + a.offset;
}

#define EMU_ACCESS(n)                                                                                            \
    void __tsan_read##n(void *p) { access(p, n, false, true, lane_of(g.current), __builtin_return_address(0)); } \
    void __tsan_write##n(void *p) { access(p, n, true, true, lane_of(g.current), __builtin_return_address(0)); } \
    void __tsan_unaligned_read##n(void *p)                                                                       \
    {                                                                                                            \
        access(p, n, false, false, lane_of(g.current), __builtin_return_address(0));                             \
    }                                                                                                            \
    void __tsan_unaligned_write##n(void *p)                                                                      \
    {                                                                                                            \
        access(p, n, true, false, lane_of(g.current), __builtin_return_address(0));                              \
    }
EMU_ACCESS(1)
EMU_ACCESS(2)
EMU_ACCESS(4)
EMU_ACCESS(8)
EMU_ACCESS(16)

void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void *) {}
void __tsan_vptr_update(void *, void *) {}

void *__tsan_memcpy(void *to, const void *from, size_t n)
{
    access_range(from, n, false, __builtin_return_address(0));
    access_range(to, n, true, __builtin_return_address(0));
    return memcpy(to, from, n);
}
void *__tsan_memmove(void *to, const void *from, size_t n)
{
    access_range(from, n, false, __builtin_return_address(0));
    access_range(to, n, true, __builtin_return_address(0));
    return memmove(to, from, n);
}
void *__tsan_memset(void *to, int value, size_t n)
{
    access_range(to, n, true, __builtin_return_address(0));
    return memset(to, value, n);
}

// Older libgcc lacks it: round to nearest even, quiet NaN.
__bf16 __truncsfbf2(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint16_t high = uint16_t(bits >> 16);
    if (x != x) {
        high |= 0x40;
    } else {
        high = uint16_t((bits + 0x7fff + (high & 1)) >> 16);
    }
    __bf16 result;
    memcpy(&result, &high, 2);
    return result;
}

uint32_t emu_kernel_count(void) { return kernel_count; }

const char *emu_kernel_name(uint32_t index) { return index < kernel_count ? kernels[index].name : nullptr; }

int32_t emu_constant_kind(uint32_t index)
{
    for (uint i = 0; i < constant_count; ++i) {
        if (constants[i].index == index) {
            return constants[i].kind;
        }
    }
    return 0;
}

static bool launch_fault(EmuReport *report, const char *text, int buffer = -1)
{
    report->fault = EMU_LAUNCH;
    report->buffer = buffer;
    snprintf(report->text, sizeof report->text, "%s", text);
    return false;
}

static bool bind(const EmuBinding *bindings, uint32_t count, EmuReport *report)
{
    g.regions.clear();
    memset(g.pointers, 0, sizeof g.pointers);
    uint64_t used = device_reserve / 2;
    for (uint i = 0; i < g.kernel->parameter_count; ++i) {
        const Parameter &p = g.kernel->parameters[i];
        if (p.kind != Kind::buffer || (p.present && !*p.present)) {
            continue;
        }
        if (p.index >= count || p.index >= 16 || !bindings[p.index].data) {
            return launch_fault(report, "a buffer of the kernel is not bound", int(p.index));
        }
        const EmuBinding &b = bindings[p.index];
        if (b.offset > b.bytes || b.offset % 4 != 0) {
            return launch_fault(report, "a buffer is bound at an impossible offset", int(p.index));
        }
        Region *region = nullptr;
        for (Region &r : g.regions) {
            if (r.binding.data == b.data && r.binding.bytes == b.bytes) {
                region = &r;
            }
        }
        if (!region) {
            Region r{};
            r.bytes = b.bytes;
            r.buffer = int(p.index);
            r.binding = b;
            // Buffers start on a multiple of 256 bytes, which no vector exceeds.
            r.base = g.device + used;
            const uint64_t room = (b.bytes + gap - 1) / 4096 * 4096 + 4096;
            mprotect(r.base, room, PROT_READ | PROT_WRITE);
            memcpy(r.base, b.data, b.bytes);
            used += (room + gap) / 4096 * 4096;
            if (b.initialised) {
                r.initialised.assign(b.initialised, b.initialised + b.bytes);
            }
            g.regions.push_back(std::move(r));
            region = &g.regions.back();
        }
        if (g.kernel->writable[i] && !region->writable) {
            region->writable = true;
            region->written.assign(b.bytes, 0);
            region->cells.assign(b.bytes / granule + 1, Cell{});
        }
        g.pointers[p.index] = region->base + b.offset;
    }
    g.device_used = used - device_reserve / 2;
    return true;
}

static void unbind()
{
    for (const Region &r : g.regions) {
        for (uint64_t i = 0; r.writable && i < r.bytes; ++i) {
            if (r.written[i]) {
                static_cast<uint8_t *>(r.binding.data)[i] = r.base[i];
                if (r.binding.initialised) {
                    r.binding.initialised[i] = 1;
                }
            }
        }
    }
    madvise(g.device + device_reserve / 2, g.device_used, MADV_DONTNEED);
    mprotect(g.device + device_reserve / 2, g.device_used, PROT_NONE);
    g.regions.clear();
}

int32_t emu_dispatch(const char *name, const uint32_t *values, uint32_t value_count, const EmuBinding *bindings,
                     uint32_t binding_count, const uint32_t grid[3], const uint32_t threads[3], int32_t schedule,
                     uint64_t seed, EmuReport *report)
{
    const std::lock_guard<std::mutex> lock(g.mutex);
    memset(report, 0, sizeof *report);
    report->buffer = -1;
    g.report = report;
    g.kernel = nullptr;
    for (uint i = 0; i < kernel_count; ++i) {
        if (strcmp(kernels[i].name, name) == 0) {
            g.kernel = &kernels[i];
        }
    }
    const uint64_t count = uint64_t(threads[0]) * threads[1] * threads[2];
    if (!g.kernel || !reserve() || count == 0 || count > max_threads || !grid[0] || !grid[1] || !grid[2]) {
        launch_fault(report, g.kernel ? "an impossible grid or threadgroup" : "no such kernel");
        return report->fault;
    }
    for (uint i = 0; i < constant_count; ++i) {
        if (constants[i].index >= value_count) {
            launch_fault(report, "a function constant has no value");
            return report->fault;
        }
        if (constants[i].kind == 1) {
            *static_cast<bool *>(constants[i].value) = values[constants[i].index] != 0;
        } else {
            *static_cast<uint32_t *>(constants[i].value) = values[constants[i].index];
        }
    }
    if (!bind(bindings, binding_count, report)) {
        g.regions.clear();
        return report->fault;
    }
    memcpy(g.threads, threads, sizeof g.threads);
    memcpy(g.grid, grid, sizeof g.grid);
    g.thread_count = uint32_t(count);
    g.simd_count = (g.thread_count + simd_width - 1) / simd_width;
    if (g.fibers.size() != g.thread_count) {
        g.fibers = std::vector<Fiber>(g.thread_count);
    }
    g.random = seed * 2 + 1;
    const uint64_t groups = uint64_t(grid[0]) * grid[1] * grid[2];
    for (uint64_t i = 0; i < groups; ++i) {
        const uint64_t at = schedule == EMU_REVERSE ? groups - 1 - i : i;
        g.builtins.group[0] = uint32_t(at % grid[0]);
        g.builtins.group[1] = uint32_t(at / grid[0] % grid[1]);
        g.builtins.group[2] = uint32_t(at / grid[0] / grid[1]);
        if (!run_group(schedule, seed)) {
            break;
        }
    }
    g.running = false;
    unbind();
    return report->fault;
}

} // extern "C"
} // namespace emu
