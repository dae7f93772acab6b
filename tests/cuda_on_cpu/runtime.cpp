// Runs device code on one CPU thread and watches it. A block's threads are fibers; each runs until
// it waits, so that one that reads what another has yet to write is found by some order of turns.
// Kernels are compiled with -fsanitize=thread and =undefined, and what these call stands here: each
// access is checked against the arrays' bounds and against the accesses of all other threads.
#include "device.h"

#include <link.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <random>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace {

constexpr size_t STACK_BYTES = 64 * 1024, GRAIN = 2;  // bytes of memory with one history

enum class State { ready, at_warp, at_block, ended };

struct Fiber {
    ucontext_t start;
    jmp_buf rest;  // where it goes on; changing places by these costs no system call
    bool started;
    uint3 index;
    State state;
    unsigned lanes;  // what it waits with: a mask, the lane it reads, the bytes it gives
    int source;
    alignas(16) unsigned char value[16];
    unsigned warp_phase;  // how often its whole warp has met
};

struct Visit {
    int64_t block = -1;  // counted over all launches
    unsigned thread, block_phase, warp_phase;
    bool atomic;
};

struct History {
    Visit write, reads[2];  // of two different threads
};

struct Array {
    uintptr_t begin = 0, end = 0;
    std::vector<History> history;
};

std::vector<Fiber> fibers;
unsigned char* stacks;
jmp_buf scheduler;
int current = -1;  // fiber; -1 outside kernels
int64_t block_number, blocks_before;  // of this launch, and in all launches before it
unsigned block_phase;                 // how often its threads have all met
const std::function<void()>* kernel_call;
std::vector<Array> arrays;  // the first is the block's shared memory
uintptr_t arena_begin, arena_end;
char fault[300];

void report(const char* format, ...) {
    if (fault[0]) return;
    va_list values;
    va_start(values, format);
    vsnprintf(fault, sizeof fault, format, values);
    va_end(values);
    if (current < 0) return;
    size_t length = strlen(fault);
    snprintf(fault + length, sizeof fault - length, " (block %ld, thread %d)", long(block_number),
             current);
}

// ---- memory

int64_t this_block() { return blocks_before + block_number; }

// Whether an earlier access to memory that lasts since block `since` has ended for certain.
bool ordered(const Visit& before, int64_t since) {
    if (before.block < since) return true;
    if (before.block != this_block()) return false;
    if (int(before.thread) == current || before.block_phase != block_phase) return true;
    bool same_warp = int(before.thread) / warpSize == current / warpSize;
    return same_warp && before.warp_phase != fibers[current].warp_phase;
}

void remember(History& history, emulator::Access access) {
    bool atomic = access == emulator::Access::atomic;
    Visit now{this_block(), unsigned(current), block_phase, fibers[current].warp_phase, atomic};
    if (access != emulator::Access::read) {
        history.write = now;
        return;
    }
    Visit& first = history.reads[0];
    if (first.block != now.block || first.thread != now.thread) history.reads[1] = first;
    first = now;
}

bool races(const History& history, emulator::Access access, int64_t since) {
    bool both_atomic = access == emulator::Access::atomic && history.write.atomic;
    if (!both_atomic && !ordered(history.write, since)) return true;
    if (access == emulator::Access::read) return false;
    return !ordered(history.reads[0], since) || !ordered(history.reads[1], since);
}

void visit(uintptr_t address, size_t bytes, emulator::Access access) {
    static const char* const VERBS[] = {"reads", "writes", "adds to"};
    const char* verb = VERBS[int(access)];
    for (size_t number = 0; number < arrays.size(); number++) {
        Array& array = arrays[number];
        if (address < array.begin || address >= array.end) continue;
        size_t offset = address - array.begin;
        if (address + bytes > array.end) break;
        const bool shared = number == 0;
        const int64_t since = shared ? this_block() : blocks_before;
        for (size_t at = offset / GRAIN; at <= (offset + bytes - 1) / GRAIN; at++) {
            History& history = array.history[at];
            if (shared && access == emulator::Access::read && history.write.block < since)
                report("a thread reads shared memory that none has written");
            if (races(history, access, since))
                report("race: a thread %s byte %zu of array %zu, and nothing orders it and"
                       " another's access", verb, offset, number);
            remember(history, access);
        }
        return;
    }
    if (address >= arena_begin && address < arena_end)
        report("a thread %s %zu bytes outside all arrays", verb, bytes);
}

Array array_of(uintptr_t begin, size_t bytes) {
    return {begin, begin + bytes, std::vector<History>(bytes / GRAIN + 1)};
}

// The block's shared memory: all thread_local variables of this library.
int find_shared(dl_phdr_info* library, size_t, void* found) {
    auto inside = uintptr_t(&find_shared);
    bool ours = false;
    const ElfW(Phdr)* local = nullptr;
    for (int number = 0; number < library->dlpi_phnum; number++) {
        const auto& part = library->dlpi_phdr[number];
        auto begin = library->dlpi_addr + part.p_vaddr;
        if (part.p_type == PT_LOAD) ours |= inside >= begin && inside < begin + part.p_memsz;
        if (part.p_type == PT_TLS) local = &part;
    }
    if (!ours || !local || !library->dlpi_tls_data) return 0;
    auto begin = uintptr_t(library->dlpi_tls_data);
    *static_cast<Array*>(found) = array_of(begin, local->p_memsz);
    return 1;
}

thread_local volatile int first_use;  // before it there is no such memory

// ---- turns

void enter_fiber() {
    (*kernel_call)();
    fibers[current].state = State::ended;
    _longjmp(scheduler, 1);
}

void prepare(size_t number) {
    Fiber& fiber = fibers[number];
    unsigned at = number;
    fiber.index = {at % blockDim.x, at / blockDim.x % blockDim.y, at / (blockDim.x * blockDim.y)};
    fiber.state = State::ready;
    fiber.warp_phase = 0;
    fiber.started = false;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stacks + number * STACK_BYTES;
    fiber.start.uc_stack.ss_size = STACK_BYTES;
    makecontext(&fiber.start, enter_fiber, 0);
}

void resume(int number) {
    current = number;
    Fiber& fiber = fibers[number];
    threadIdx = fiber.index;
    if (!_setjmp(scheduler)) {
        if (fiber.started) _longjmp(fiber.rest, 1);
        fiber.started = true;
        setcontext(&fiber.start);
    }
    current = -1;
}

void wait_as(State state) {
    Fiber& fiber = fibers[current];
    fiber.state = state;
    if (!_setjmp(fiber.rest)) _longjmp(scheduler, 1);
}

// Lets the lanes of a warp go on that have all met; says whether there were any.
bool release_warp(size_t first) {
    size_t lanes = std::min<size_t>(warpSize, fibers.size() - first);
    unsigned living = 0;
    for (size_t lane = 0; lane < lanes; lane++)
        if (fibers[first + lane].state != State::ended) living |= 1u << lane;
    bool released = false;
    for (size_t lane = 0; lane < lanes; lane++) {
        Fiber& leader = fibers[first + lane];
        if (leader.state != State::at_warp) continue;
        unsigned mask = leader.lanes, met = 0;
        for (size_t other = 0; other < lanes; other++) {
            Fiber& fiber = fibers[first + other];
            if (fiber.state == State::at_warp && fiber.lanes == mask) met |= 1u << other;
        }
        if (!(mask >> lane & 1)) report("lane %zu is not in its own mask %08x", lane, mask);
        if (met != (mask & living)) continue;
        unsigned char given[warpSize][16];
        for (size_t other = 0; other < lanes; other++)
            memcpy(given[other], fibers[first + other].value, 16);
        for (size_t other = 0; other < lanes; other++) {
            if (!(met >> other & 1)) continue;
            Fiber& fiber = fibers[first + other];
            if (!(met >> fiber.source & 1))
                report("lane %zu reads lane %d, which takes no part", other, fiber.source);
            memcpy(fiber.value, given[fiber.source], 16);
            fiber.state = State::ready;
        }
        released = true;
    }
    return released;
}

bool release_block() {
    bool released = false;
    for (Fiber& fiber : fibers)
        if (fiber.state == State::at_warp) return false;
    for (Fiber& fiber : fibers) {
        released |= fiber.state == State::at_block;
        if (fiber.state == State::at_block) fiber.state = State::ready;
    }
    block_phase += released;
    return released;
}

// Forwards, backwards, or another order each round.
void next_order(std::vector<int>& order, unsigned seed, std::mt19937& random) {
    for (size_t at = 0; at < order.size(); at++)
        order[at] = seed == 1 ? int(order.size() - 1 - at) : int(at);
    if (seed > 1) std::shuffle(order.begin(), order.end(), random);
}

void run_block(unsigned seed, std::mt19937& random) {
    block_phase = 0;
    for (size_t number = 0; number < fibers.size(); number++) prepare(number);
    std::vector<int> order(fibers.size());
    while (true) {
        next_order(order, seed, random);
        for (int number : order)
            if (fibers[number].state == State::ready) resume(number);
        bool ended = true, released = false;
        for (Fiber& fiber : fibers) ended &= fiber.state == State::ended;
        if (ended) return;
        for (size_t first = 0; first < fibers.size(); first += warpSize)
            released |= release_warp(first);
        if (!released && !release_block()) {
            report("block %ld: threads wait for others that never come", long(block_number));
            return;
        }
    }
}

}  // namespace

namespace emulator {

void touch(const void* address, size_t bytes, Access access) {
    if (current < 0) return;
    if (access == Access::atomic && uintptr_t(address) % bytes) report("an atomic is not aligned");
    visit(uintptr_t(address), bytes, access);
}

int lane() { return current % warpSize; }

void meet(unsigned lanes, int source, const void* value, void* received, size_t bytes) {
    Fiber& fiber = fibers[current];
    fiber.lanes = lanes;
    fiber.source = source;
    memcpy(fiber.value, value, bytes);
    wait_as(State::at_warp);
    memcpy(received, fiber.value, bytes);
}

const char* launch(dim3 grid, dim3 block, unsigned seed, const std::function<void()>& kernel) {
    size_t threads = size_t(block.x) * block.y * block.z;
    if (threads > 1024 || grid.y > 65535 || grid.z > 65535) return "no such grid on a GPU";
    if (arrays.empty() || !arrays[0].begin) return "the shared memory was not found";
    fault[0] = 0;
    gridDim = grid;
    blockDim = block;
    kernel_call = &kernel;
    fibers = std::vector<Fiber>(threads);
    void* memory = mmap(nullptr, threads * STACK_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return "no memory for stacks";
    stacks = static_cast<unsigned char*>(memory);
    std::mt19937 random(seed);
    const int64_t blocks = int64_t(grid.x) * grid.y * grid.z;
    for (block_number = 0; block_number < blocks && !fault[0]; block_number++) {
        unsigned at = block_number;
        blockIdx = {at % grid.x, at / grid.x % grid.y, at / (grid.x * grid.y)};
        run_block(seed, random);
    }
    blocks_before += blocks;
    munmap(stacks, threads * STACK_BYTES);
    return fault[0] ? fault : nullptr;
}

}  // namespace emulator

void __syncthreads() { wait_as(State::at_block); }

void __syncwarp(unsigned lanes) {
    emulator::exchange(lanes, 0, emulator::lane());
    fibers[current].warp_phase++;
}

extern "C" {

// Kernels may touch the arrays named from now on, and nothing else of the arena.
void watch_arena(uintptr_t begin, size_t bytes) {
    first_use = 1;
    arrays.resize(1);
    if (!arrays[0].begin) dl_iterate_phdr(find_shared, &arrays[0]);
    arena_begin = begin;
    arena_end = begin + bytes;
}

void watch_array(uintptr_t begin, size_t bytes) { arrays.push_back(array_of(begin, bytes)); }

// ---- what -fsanitize=thread calls

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}

#define ACCESSES(bytes)                                                                          \
    void __tsan_read##bytes(void* at) { emulator::touch(at, bytes, emulator::Access::read); }    \
    void __tsan_write##bytes(void* at) { emulator::touch(at, bytes, emulator::Access::write); }  \
    void __tsan_unaligned_read##bytes(void* at) { __tsan_read##bytes(at); }                      \
    void __tsan_unaligned_write##bytes(void* at) { __tsan_write##bytes(at); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

void __tsan_read_range(void* at, size_t bytes) {
    emulator::touch(at, bytes, emulator::Access::read);
}
void __tsan_write_range(void* at, size_t bytes) {
    emulator::touch(at, bytes, emulator::Access::write);
}

// ---- what -fsanitize=undefined calls

struct Place {
    const char* file;
    unsigned line, column;
};

#define UNDEFINED(name, what)                                                               \
    void __ubsan_handle_##name(Place* place) {                                              \
        report("%s in %s, line %u", what, place->file, place->line);                        \
    }
UNDEFINED(type_mismatch_v1, "a pointer that is null or not aligned")
UNDEFINED(float_cast_overflow, "a number too large for an integer, or NaN,")
UNDEFINED(add_overflow, "overflow of +")
UNDEFINED(sub_overflow, "overflow of -")
UNDEFINED(mul_overflow, "overflow of *")
UNDEFINED(negate_overflow, "overflow of -")
UNDEFINED(divrem_overflow, "division by zero")
UNDEFINED(shift_out_of_bounds, "a shift out of bounds")
UNDEFINED(out_of_bounds, "an index out of bounds")
UNDEFINED(pointer_overflow, "a pointer beyond all memory")
}
