// CUDA's vocabulary, and that of csrc/cuda/device.h, on one CPU thread. A GPU thread is a fiber; the order in which
// fibers go on is shuffled by a seed. A kernel that cannot go on, or that uses a barrier or a shuffle which not all
// threads reach, ends the program with a message, and so does one that gets what it has not acquired. What a kernel
// puts stays hidden from other blocks until it releases.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#if defined(__x86_64__) && !defined(PYTL_SHIM_UCONTEXT)
#define PYTL_SHIM_SWITCH 1  // a switch of our own: swapcontext makes two system calls
#else
#define PYTL_SHIM_SWITCH 0
#include <ucontext.h>
#endif

#if defined(__has_feature)
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(PYTL_SHIM_THREADS)
#define PYTL_SHIM_THREADS 64
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__  // empty: the standard library writes __attribute__((__noinline__))
#define __launch_bounds__(...)
#define __grid_constant__

using cudaStream_t = void*;
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct uint3 {
  unsigned x, y, z;
};
// Those of the running fiber: set at each switch.
inline uint3 threadIdx = {0, 0, 0}, blockIdx = {0, 0, 0}, blockDim = {PYTL_SHIM_THREADS, 1, 1}, gridDim = {1, 1, 1};

namespace pytl::cuda {

constexpr int kThreads = PYTL_SHIM_THREADS;  // a block's
static_assert(kThreads > 0 && kThreads % 32 == 0, "a block consists of whole warps");

namespace shim {

constexpr int kLanes = 32, kWarps = kThreads / kLanes;
constexpr size_t kPage = 4096;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStack = 256 << 10;  // bytes; instrumented frames are larger
#else
constexpr size_t kStack = 64 << 10;
#endif
constexpr uint64_t kPatience = 20000;  // how often each runnable thread may yield before something must have happened

// What tests set, between launches.
inline int resident_blocks = 3;  // what blocks_at_once returns
inline bool cooperative = true;  // what can_launch_together returns

[[noreturn]] void die(const std::string& what);

// ---- the schedule's randomness: splitmix64 ----

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint32_t below(size_t bound) { return static_cast<uint32_t>((uint64_t{next()} * bound) >> 32); }

 private:
  uint32_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<uint32_t>(z >> 32);
  }
  uint64_t state_;
};

inline Random order(1);

inline void seed(unsigned value) { order = Random(value); }

// ---- stacks and the switch between them ----

struct Context {
  const void* stack = nullptr;  // its lowest address
  size_t size = 0;              // bytes
#if PYTL_SHIM_SWITCH
  void* top = nullptr;  // where the registers lie while another context runs
#else
  ucontext_t registers;
#endif
};

inline Context* left = nullptr;  // the context that ran before the present one

#if PYTL_SHIM_SWITCH
// Keeps what the x86-64 ABI has a callee keep. noipa: the callers must not conclude that memory stays as it was.
#if defined(__clang__)
__attribute__((naked, noinline)) inline void switch_stack(void** /*from*/, void* /*to*/) {
#else
__attribute__((naked, noipa)) inline void switch_stack(void** /*from*/, void* /*to*/) {
#endif
  __asm__(
      "pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
      "movq %rsp, (%rdi)\n\tmovq %rsi, %rsp\n\t"
      "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\tret");
}

// As if `entry` had just been called and had pushed nothing yet; it must not return.
inline void prepare(Context& context, void* end, void (*entry)()) {
  void** words = static_cast<void**>(end);
  std::fill(words - 8, words, nullptr);
  words[-2] = reinterpret_cast<void*>(entry);
  context.top = words - 8;
}
#else
inline void prepare(Context& context, void* end, void (*entry)()) {
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = const_cast<void*>(context.stack);
  context.registers.uc_stack.ss_size = static_cast<char*>(end) - static_cast<const char*>(context.stack);
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, entry, 0);
}
#endif

// AddressSanitizer has to know which stack is in use; it also tells the bounds of the one just left.
inline void begin_switch([[maybe_unused]] void** fake_stack, [[maybe_unused]] const Context& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake_stack, to.stack, to.size);
#endif
}
inline void end_switch([[maybe_unused]] void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, &left->stack, &left->size);
#endif
}

inline void change(Context& from, Context& to) {
  void* fake_stack = nullptr;
  begin_switch(&fake_stack, to);
  left = &from;
#if PYTL_SHIM_SWITCH
  switch_stack(&from.top, to.top);
#else
  swapcontext(&from.registers, &to.registers);
#endif
  end_switch(fake_stack);
}

// ---- what has been put and not been released ----

struct Store {
  char* to;
  size_t size, at;  // bytes; where the value lies in the buffer
  int first, last;  // the threads that see it: first <= thread < last
};

// A block's stores in the order of time. A thread's are seen by itself, after a barrier by all that met there.
class StoreBuffer {
 public:
  bool empty() const { return stores_.empty(); }

  void put(void* to, const void* value, size_t size, int thread) {
    stores_.push_back({static_cast<char*>(to), size, bytes_.size(), thread, thread + 1});
    const char* from = static_cast<const char*>(value);
    bytes_.insert(bytes_.end(), from, from + size);
  }

  // Replaces those bytes of a value read at `from` that the thread sees otherwise.
  void overlay(const void* from, void* value, size_t size, int thread) const {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(from), end = begin + size;
    for (const Store& s : stores_) {
      const uintptr_t to = reinterpret_cast<uintptr_t>(s.to);
      const uintptr_t low = std::max(begin, to), high = std::min(end, to + s.size);
      if (low >= high || !sees(s, thread)) continue;
      memcpy(static_cast<char*>(value) + (low - begin), &bytes_[s.at + (low - to)], high - low);
    }
  }

  void hand_over(int first, int last) {
    for (Store& s : stores_)
      if (first <= s.first && s.last <= last) s.first = first, s.last = last;
  }

  // To memory: what the thread sees. visit(address, size) for each.
  template <class Visit>
  void release(int thread, Visit visit) {
    size_t kept = 0;
    for (const Store& s : stores_) {
      if (sees(s, thread))
        memcpy(s.to, &bytes_[s.at], s.size), visit(s.to, s.size);
      else
        stores_[kept++] = s;
    }
    stores_.resize(kept);
    if (kept == 0) bytes_.clear();
  }

  void release_all() {
    hand_over(0, kThreads);
    release(0, [](const char*, size_t) {});
  }

 private:
  static bool sees(const Store& s, int thread) { return s.first <= thread && thread < s.last; }

  std::vector<Store> stores_;
  std::vector<char> bytes_;
};

// ---- threads, warps, blocks, the grid ----

struct Block;
void enter();

enum class Place { running, syncwarp, shuffle, syncthreads, returned };

struct Fiber {
  Fiber() {
    char* map = static_cast<char*>(
        mmap(nullptr, kPage + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (map == MAP_FAILED) throw std::bad_alloc();
    mprotect(map, kPage, PROT_NONE);  // an overflow faults
    context.stack = map + kPage, context.size = kStack;
  }
  ~Fiber() { munmap(static_cast<char*>(const_cast<void*>(context.stack)) - kPage, kPage + kStack); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void place_in(Block* owner, int index) {
    block = owner, thread = index;
    const size_t shift = index % 16 * 256;  // or all stacks would compete for the same lines of the cache
    prepare(context, const_cast<char*>(static_cast<const char*>(context.stack)) + kStack - shift, enter);
  }

  Context context;
  Block* block = nullptr;
  int thread = 0;
  Place place = Place::returned;
  unsigned shuffles = 0;
  uint64_t acquired = 0;  // it sees what other blocks released up to then
};

struct Warp {
  int waiting = 0, at_syncthreads = 0, returned = 0;
  size_t meeting = 0;  // bytes a lane brings to where the lanes wait; 0 for __syncwarp
  // Twice: a lane may enter the next shuffle before another has left this one.
  alignas(16) char values[2][kLanes][16];
};

struct FreeAligned {
  std::align_val_t alignment;
  void operator()(char* memory) const { ::operator delete(memory, alignment); }
};
struct Shared {
  const void* type;
  std::unique_ptr<char, FreeAligned> memory;
};

struct Block {
  Block() {
    for (int t = 0; t < kThreads; t++) fibers[t].place_in(this, t);
  }

  void start(unsigned number) {
    index = number, waiting = 0, returned = 0;
    warps.fill(Warp());
    for (Fiber& f : fibers) f.place = Place::running, f.shuffles = 0, f.acquired = 0;
  }

  unsigned index = 0;
  int waiting = 0, returned = 0;
  std::array<Fiber, kThreads> fibers;
  std::array<Warp, kWarps> warps;
  StoreBuffer stores;
  std::vector<Shared> shared;
};

struct Grid {
  std::function<void()> body;
  std::vector<unsigned> queue;  // blocks not yet started
  int unfinished = 0;           // blocks
  std::vector<Fiber*> runnable;
  std::vector<StoreBuffer> unreleased;  // of blocks that have ended
  uint64_t yields = 0;                  // since a thread returned, arrived or published
  Context launcher;
};

// A word that a block released in this launch, and when.
struct Release {
  const Block* block;
  uint64_t at;
};

inline Grid grid;
inline std::unordered_map<uintptr_t, Release> releases;
inline uint64_t now = 0;                           // counts what releases and what acquires
inline const Warp* slow = nullptr;                 // goes on only when no other warp can
inline std::vector<std::unique_ptr<Block>> slots;  // kept from launch to launch with their fibers
inline Fiber* current = nullptr;
inline std::atomic<bool> busy{false};

// ---- reports ----

inline std::string census() {
  int at[5] = {};
  for (const auto& block : slots)
    for (const Fiber& f : block->fibers) at[static_cast<int>(f.place)]++;
  return std::to_string(at[0]) + " threads running, " + std::to_string(at[1]) + " at __syncwarp, " +
         std::to_string(at[2]) + " at a shuffle, " + std::to_string(at[3]) + " at __syncthreads; " +
         std::to_string(grid.unfinished) + " of " + std::to_string(gridDim.x) + " blocks unfinished, " +
         std::to_string(grid.queue.size()) + " not started";
}

inline void die(const std::string& what) {
  std::fprintf(stderr, "CUDA on the CPU: %s\n", what.c_str());
  if (current)
    std::fprintf(stderr, "  in block %u, thread %d: %s\n", current->block->index, current->thread, census().c_str());
  std::fflush(stderr);
  std::abort();
}

// ---- the scheduler ----

inline Warp& warp() { return current->block->warps[current->thread / kLanes]; }

inline Fiber* take_runnable() {
  const size_t count = grid.runnable.size();
  size_t i = order.below(count);
  const auto warp_of = [](const Fiber* f) { return &f->block->warps[f->thread / kLanes]; };
  if (order.below(512) == 0) slow = order.below(2) ? warp_of(grid.runnable[i]) : nullptr;
  for (size_t k = 0; k < count && warp_of(grid.runnable[i]) == slow; k++) i = (i + 1) % count;
  std::swap(grid.runnable[i], grid.runnable.back());
  Fiber* next = grid.runnable.back();
  grid.runnable.pop_back();
  return next;
}

inline void choose_next() {
  current = take_runnable();
  threadIdx.x = current->thread, blockIdx.x = current->block->index;
}

// The present fiber goes on when something has made it runnable and its turn has come.
inline void wait() {
  Fiber* self = current;
  if (grid.runnable.empty()) {
    if (grid.unfinished > 0) die("deadlock: no thread can go on");
    current = nullptr;
    return change(self->context, grid.launcher);
  }
  choose_next();
  if (current != self) change(self->context, current->context);
}

inline void yield() {
  if (++grid.yields > kPatience * (grid.runnable.size() + 1)) die("deadlock: threads only wait for one another");
  grid.runnable.push_back(current);
  wait();
}

inline void maybe_yield() {
  if (order.below(2)) yield();
}

inline void start_block(Block& block) {
  block.start(grid.queue.back());
  grid.queue.pop_back();
  for (Fiber& f : block.fibers) grid.runnable.push_back(&f);
}

inline void finish_block(Block& block) {
  grid.unfinished--;
  if (!block.stores.empty()) grid.unreleased.push_back(std::move(block.stores));
  block.stores = StoreBuffer();
  block.shared.clear();
  if (!grid.queue.empty()) start_block(block);
}

inline void return_from_kernel() {
  Block& block = *current->block;
  if (block.waiting > 0) die("a thread returns while others wait for it at __syncthreads");
  if (warp().waiting > 0) die("a lane returns while its warp waits for it at __syncwarp or a shuffle");
  current->place = Place::returned;
  warp().returned++;
  grid.yields = 0;
  if (++block.returned == kThreads) finish_block(block);
}

// What a fiber runs, from launch to launch.
inline void enter() {
  end_switch(nullptr);
  for (;;) {
    [&]() noexcept { grid.body(); }();
    return_from_kernel();
    wait();
  }
}

// ---- barriers ----

// The last to come makes all runnable, itself included.
inline void meet(int& waiting, int first, int last, Place place) {
  Block& block = *current->block;
  current->place = place;
  if (++waiting == last - first) {
    waiting = 0;
    if (place == Place::syncthreads)
      for (Warp& w : block.warps) w.at_syncthreads = 0;
    if (place != Place::shuffle) {  // which is no barrier for memory
      block.stores.hand_over(first, last);
      uint64_t acquired = 0;
      for (int t = first; t < last; t++) acquired = std::max(acquired, block.fibers[t].acquired);
      for (int t = first; t < last; t++) block.fibers[t].acquired = acquired;
    }
    for (int t = first; t < last; t++) {
      block.fibers[t].place = Place::running;
      grid.runnable.push_back(&block.fibers[t]);
    }
  }
  wait();
}

inline void meet_block() {
  Warp& w = warp();
  if (current->block->returned > 0) die("__syncthreads after a thread of the block has returned");
  if (w.waiting > 0) die("__syncthreads while other lanes of the warp wait at __syncwarp or a shuffle");
  w.at_syncthreads++;
  meet(current->block->waiting, 0, kThreads, Place::syncthreads);
}

inline void meet_warp(unsigned mask, size_t bytes) {
  Warp& w = warp();
  if (mask != 0xffffffffu) die("__syncwarp or a shuffle with a mask that is not the whole warp");
  if (w.returned > 0) die("__syncwarp or a shuffle after a lane of the warp has returned");
  if (w.at_syncthreads > 0) die("__syncwarp or a shuffle while other lanes of the warp wait at __syncthreads");
  if (w.waiting > 0 && w.meeting != bytes) die("lanes of a warp are at different calls: __syncwarp, or shuffles");
  w.meeting = bytes;
  const int first = current->thread / kLanes * kLanes;
  meet(w.waiting, first, first + kLanes, bytes ? Place::shuffle : Place::syncwarp);
}

template <class T>
T shuffle(unsigned mask, const T& value, int lane) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 16, "a shuffle moves up to 16 plain bytes");
  auto& values = warp().values[current->shuffles++ % 2];
  memcpy(values[current->thread % kLanes], &value, sizeof value);
  meet_warp(mask, sizeof value);
  T result = value;
  memcpy(&result, values[lane & (kLanes - 1)], sizeof result);
  return result;
}

// ---- launches ----

inline void run_grid(int blocks, int resident) {
  gridDim.x = blocks, grid.unfinished = blocks, grid.yields = 0;
  grid.queue.resize(blocks);
  std::iota(grid.queue.begin(), grid.queue.end(), 0u);
  for (int i = blocks - 1; i > 0; i--) std::swap(grid.queue[i], grid.queue[order.below(i + 1)]);
  while (static_cast<int>(slots.size()) < resident) slots.push_back(std::make_unique<Block>());
  for (int b = 0; b < resident; b++) start_block(*slots[b]);
  choose_next();
  change(grid.launcher, current->context);
  for (StoreBuffer& stores : grid.unreleased) stores.release_all();
  grid.unreleased.clear();
}

template <class Call>
void launch(const Call& call, int blocks, int resident) {
  if (blocks <= 0) throw std::runtime_error("CUDA: launching a kernel: invalid configuration argument");
  if (busy.exchange(true)) die("a launch during another one");
  releases.clear(), slow = nullptr;
  grid.body = std::cref(call);
  run_grid(blocks, std::min(resident, blocks));
  grid.body = nullptr;
  busy = false;
}

template <class T>
inline char type_mark = 0;  // its address stands for T

inline char* shared_memory(const void* type, size_t size, size_t alignment) {
  std::vector<Shared>& all = current->block->shared;
  for (Shared& s : all)
    if (s.type == type) return s.memory.get();
  const auto aligned = static_cast<std::align_val_t>(alignment);
  char* memory = static_cast<char*>(::operator new(size, aligned));
  memset(memory, 0xCD, size);
  all.push_back({type, {memory, FreeAligned{aligned}}});
  return memory;
}

template <class T>
void check_address(const T* address) {
  static_assert(std::is_trivially_copyable<T>::value, "plain bytes are moved");
  if (reinterpret_cast<uintptr_t>(address) % alignof(T) != 0) die("put, get, load or store at a misaligned address");
}

// visit(word) for the 8-byte words of some memory.
template <class Visit>
void for_each_word(const void* address, size_t size, Visit visit) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  for (uintptr_t word = begin / 8; word <= (begin + size - 1) / 8; word++) visit(word);
}

inline void release() {
  now++;
  current->block->stores.release(current->thread, [](const char* to, size_t size) {
    for_each_word(to, size, [](uintptr_t word) { releases[word] = {current->block, now}; });
  });
}
inline void acquire() { current->acquired = ++now; }

inline void check_acquired(const void* address, size_t size) {
  for_each_word(address, size, [](uintptr_t word) {
    const auto found = releases.find(word);
    if (found != releases.end() && found->second.block != current->block && found->second.at > current->acquired)
      die("get of what another block released, by a thread that has not acquired it");
  });
}

}  // namespace shim

// ---- what csrc/cuda/device.h has ----

template <class T>
T& shared() {
  static_assert(std::is_trivially_copyable<T>::value, "nothing is constructed in shared memory");
  return *reinterpret_cast<T*>(shim::shared_memory(&shim::type_mark<T>, sizeof(T), alignof(T)));
}

template <class T>
void put(T* to, const T& value) {
  shim::check_address(to);
  const volatile char* bytes = reinterpret_cast<const volatile char*>(to);
  (void)bytes[0], (void)bytes[sizeof(T) - 1];  // a wrong address is to be found here, not where it is released
  shim::current->block->stores.put(to, &value, sizeof value, shim::current->thread);
}

template <class T>
T get(const T* from) {
  shim::check_address(from);
  shim::check_acquired(from, sizeof(T));
  T value = *from;
  shim::current->block->stores.overlay(from, &value, sizeof value, shim::current->thread);
  return value;
}

inline uint32_t arrive(uint32_t* counter) {
  shim::maybe_yield();
  shim::grid.yields = 0;
  shim::release();
  const uint32_t before = (*counter)++;
  shim::acquire();
  shim::maybe_yield();
  return before;
}

inline void publish(uint32_t* flag, uint32_t value) {
  shim::maybe_yield();
  shim::grid.yields = 0;
  shim::release();
  *flag = value;
  shim::maybe_yield();
}

inline uint32_t observe(const uint32_t* flag) {
  shim::maybe_yield();
  shim::acquire();
  return *flag;
}

inline void relax() { shim::yield(); }

enum class Kept { in_l1, in_l2, nowhere };
template <Kept, class T>
T load(const T* from) {
  shim::check_address(from);
  return *from;
}
template <class T>
void store_last(T* to, T value) {
  shim::check_address(to);
  *to = value;
}
inline void compute_anew(uint32_t&) {}

// A few blocks at a time: they must not wait for one another.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int blocks, cudaStream_t, const Arguments&... arguments) {
  shim::launch([&] { kernel(arguments...); }, blocks, 1 + static_cast<int>(shim::order.below(3)));
}

template <class... Parameters>
int blocks_at_once(void (*)(Parameters...)) {
  return shim::resident_blocks;
}

inline bool can_launch_together() { return shim::cooperative; }

template <class... Parameters, class... Arguments>
void launch_together(void (*kernel)(Parameters...), int blocks, cudaStream_t, const Arguments&... arguments) {
  if (!can_launch_together() || blocks > blocks_at_once(kernel))
    throw std::runtime_error("CUDA: launching a kernel of blocks that wait for one another: too many blocks");
  shim::launch([&] { kernel(arguments...); }, blocks, blocks);
}

class DeviceGuard {
 public:
  explicit DeviceGuard(int) {}
  ~DeviceGuard() {}
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
};

}  // namespace pytl::cuda

inline void __syncthreads() { pytl::cuda::shim::meet_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { pytl::cuda::shim::meet_warp(mask, 0); }
template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return pytl::cuda::shim::shuffle(mask, value, lane);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return pytl::cuda::shim::shuffle(mask, value, pytl::cuda::shim::current->thread % 32 ^ lanes);
}
