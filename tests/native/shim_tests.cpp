// What tests/native/shim.h promises: barriers, shuffles, shared storage, the schedule, what is seen of a put, and the
// reports on kernels that go wrong.
#include "shim.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <set>
#include <thread>

using namespace pytl::cuda;

namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kSeeds = 200;

int failures = 0, checks = 0;

void expect(bool holds, const std::string& what) {
  checks++;
  if (holds) return;
  if (failures++ < 20) std::printf("failed: %s\n", what.c_str());
}

bool all_are(const std::vector<int>& values, int expected) {
  return std::all_of(values.begin(), values.end(), [&](int v) { return v == expected; });
}

// ---- barriers and shuffles ----

__global__ void rotate_by_barriers(int* wrong) {
  int (&values)[kThreads] = shared<int[kThreads]>();
  for (int round = 0; round < 10; round++) {
    values[threadIdx.x] = round * 1000 + threadIdx.x;
    __syncthreads();
    const int neighbour = (threadIdx.x + 1) % kThreads;
    if (values[neighbour] != round * 1000 + neighbour) ++*wrong;
    __syncthreads();
  }
}

__global__ void miss_a_barrier(int* stale) {
  int (&values)[kThreads] = shared<int[kThreads]>();
  values[threadIdx.x] = 1;
  __syncthreads();
  values[threadIdx.x] = 2;
  if (values[(threadIdx.x + 1) % kThreads] == 1) ++*stale;
}

__global__ void sum_by_shuffles(double* sums) {
  double sum = threadIdx.x;
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAll, sum, lanes);
  sums[threadIdx.x] = sum;
}

__global__ void shuffle_16_bytes(int* wrong) {
  const unsigned t = threadIdx.x, first = t / 32 * 32;
  for (unsigned lane = 0; lane < 32; lane++) {
    const uint4 got = __shfl_sync(kAll, uint4{t, lane, t * lane, 7}, lane);
    if (got.x != first + lane || got.y != lane || got.z != got.x * lane || got.w != 7) ++*wrong;
    if (lane % 3 == 0) __syncwarp();
    if (__shfl_xor_sync(kAll, static_cast<char>(t), 5) != static_cast<char>(first + ((t % 32) ^ 5))) ++*wrong;
  }
}

void test_barriers_and_shuffles() {
  int wrong = 0, stale = 0;
  std::vector<double> sums(kThreads);
  for (int seed = 0; seed < kSeeds; seed++) {
    shim::seed(seed);
    launch(rotate_by_barriers, 4, nullptr, &wrong);
    launch(miss_a_barrier, 1, nullptr, &stale);
    launch(shuffle_16_bytes, 2, nullptr, &wrong);
    launch(sum_by_shuffles, 1, nullptr, sums.data());
    for (int t = 0; t < kThreads; t++) wrong += sums[t] != t / 32 * 32 * 32 + 31 * 16;
  }
  expect(wrong == 0, "barriers and shuffles bring what the other threads have");
  expect(stale > 0, "a missing __syncthreads shows");
}

// ---- indices, shared storage ----

__global__ void take_indices(int* seen) {
  relax();
  seen[blockIdx.x * blockDim.x + threadIdx.x] += gridDim.x;
}

struct Tile {
  alignas(64) unsigned char bytes[1000];
};

__global__ void use_shared(int* wrong) {
  Tile& tile = shared<Tile>();
  long& other = shared<long>();
  for (unsigned i = threadIdx.x; i < sizeof tile.bytes; i += kThreads) *wrong += tile.bytes[i] != 0xCD;
  __syncthreads();
  if (threadIdx.x == 0) memset(tile.bytes, blockIdx.x, sizeof tile.bytes), other = blockIdx.x;
  __syncthreads();
  for (int i = 0; i < 20; i++, relax()) *wrong += tile.bytes[i] != blockIdx.x || other != blockIdx.x;
  *wrong += reinterpret_cast<uintptr_t>(&tile) % alignof(Tile) != 0;
}

void test_indices_and_shared_storage() {
  std::vector<int> seen(7 * kThreads);
  launch(take_indices, 7, nullptr, seen.data());
  expect(all_are(seen, 7), "each thread of each block runs once");
  int wrong = 0;
  for (int seed = 0; seed < 20; seed++) {
    shim::seed(seed);
    launch(use_shared, 5, nullptr, &wrong);
    launch_together(use_shared, 3, nullptr, &wrong);
  }
  expect(wrong == 0, "shared storage is a block's own, aligned, and poisoned at first");
}

// ---- the schedule ----

__global__ void leave_trace(std::vector<int>* trace, uint32_t* counter) {
  for (int i = 0; i < 3; i++) {
    trace->push_back(blockIdx.x * kThreads + threadIdx.x);
    if (i == 0) __syncthreads();
    if (i == 1) arrive(counter);
  }
}

std::vector<int> trace_of(unsigned seed, bool together) {
  std::vector<int> trace;
  uint32_t counter = 0;
  shim::seed(seed);
  if (together)
    launch_together(leave_trace, 3, nullptr, &trace, &counter);
  else
    launch(leave_trace, 6, nullptr, &trace, &counter);
  expect(counter == (together ? 3 : 6) * kThreads, "each arrival is counted");
  return trace;
}

void test_schedule() {
  for (bool together : {false, true}) {
    std::set<std::vector<int>> traces;
    for (int seed = 0; seed < 20; seed++) {
      traces.insert(trace_of(seed, together));
      expect(trace_of(seed, together) == trace_of(seed, together), "one seed, one schedule");
    }
    expect(traces.size() == 20, "other seeds, other schedules");
  }
}

void test_another_thread_can_launch() {
  std::vector<int> before = trace_of(5, true), after;
  std::thread([&] { after = trace_of(5, true); }).join();
  expect(before == after && before == trace_of(5, true), "any thread of the program can launch");
}

// ---- what is seen of a put ----

struct Row {
  double values[5];
  int tag;
};

struct Mailbox {
  Row rows[kThreads] = {};
  uint32_t flag = 0, counter = 0;
};

// Block 0 leaves rows, the others read them; `Way` is how block 0 hands them over.
enum class Way { right, plain_flag, no_barrier, each_arrives };

template <Way way>
__global__ void mail(Mailbox* box, int* stale) {
  const unsigned t = threadIdx.x;
  if (blockIdx.x == 0) {
    put(&box->rows[t], Row{{1, 2, 3, 4, double(t)}, 7});
    if (way == Way::each_arrives) arrive(&box->counter);
    if (way != Way::no_barrier) __syncthreads();
    if (t == 0 && way == Way::plain_flag) box->flag = 1;
    if (t == 0 && way != Way::plain_flag) publish(&box->flag, 1);
    return;
  }
  if (t == 0)
    while (observe(&box->flag) != 1) relax();
  __syncthreads();
  const Row row = get(&box->rows[t]);
  if (row.tag != 7 || row.values[4] != t) ++*stale;
}

// How many rows were read too early.
int stale_after(void (*kernel)(Mailbox*, int*), int blocks, int seed, Mailbox* box) {
  int stale = 0;
  shim::seed(seed);
  launch_together(kernel, blocks, nullptr, box, &stale);
  return stale;
}

template <Way way>
int stale_rows(int seed) {
  Mailbox box;
  const int stale = stale_after(mail<way>, 3, seed, &box);
  for (int t = 0; t < kThreads; t++)
    expect(box.rows[t].tag == 7 && box.rows[t].values[4] == t, "the end of a launch releases everything");
  return stale;
}

// The last lane publishes for its warp; without __syncwarp it knows only of its own row.
template <bool synchronised>
__global__ void mail_by_warp(Mailbox* box, int* stale) {
  const unsigned t = threadIdx.x, lane = t % 32;
  if (blockIdx.x == 0 && t < 32) {
    put(&box->rows[t], Row{{}, 7});
    if (synchronised) __syncwarp();
    if (lane == 31) publish(&box->flag, 1);
  }
  if (blockIdx.x == 1 && t < 32) {
    if (lane == 0)
      while (observe(&box->flag) != 1) relax();
    __syncwarp();
    if (get(&box->rows[t]).tag != 7) ++*stale;
  }
}

template <bool synchronised>
int stale_in_warp(int seed) {
  Mailbox box;
  return stale_after(mail_by_warp<synchronised>, 2, seed, &box);
}

void test_releases() {
  for (int seed = 0; seed < kSeeds; seed++) {
    expect(stale_rows<Way::right>(seed) == 0, "a release after a barrier carries the block's puts");
    expect(stale_rows<Way::each_arrives>(seed) == 0, "each thread's own release carries its puts");
    expect(stale_rows<Way::plain_flag>(seed) == 2 * kThreads, "a flag that is merely stored carries nothing");
    expect(stale_rows<Way::no_barrier>(seed) == 2 * (kThreads - 1), "a release carries nothing without a barrier");
    expect(stale_in_warp<true>(seed) == 0, "a release after __syncwarp carries the warp's puts");
    expect(stale_in_warp<false>(seed) == 31, "a missing __syncwarp before another lane's release shows");
  }
}

// The block that arrives last sums what all have put: right in any order, resident or not.
__global__ void sum_by_last_block(double* sums, uint32_t* counter, double* total) {
  bool& last = shared<bool>();
  if (threadIdx.x == 0) put(&sums[blockIdx.x], blockIdx.x + 1.0), last = arrive(counter) + 1 == gridDim.x;
  __syncthreads();
  if (!last || threadIdx.x != 1) return;
  for (unsigned b = 0; b < gridDim.x; b++) *total += get(&sums[b]);
}

void test_last_block_sums() {
  for (int seed = 0; seed < kSeeds; seed++) {
    std::vector<double> sums(10);
    double total = 0;
    uint32_t counter = 0;
    shim::seed(seed);
    launch(sum_by_last_block, 10, nullptr, sums.data(), &counter, &total);
    expect(total == 55, "the last block sees the sums of all");
  }
}

// Who sees a put of thread 0 of a word, and of a byte in it, before and after the barriers.
__global__ void look_at_puts(uint32_t* word, uint32_t* seen) {
  const unsigned t = threadIdx.x;
  if (t == 0) put(word, 0x11111111u), put(reinterpret_cast<unsigned char*>(word) + 1, static_cast<unsigned char>(0x22));
  for (int i = 0; i < 3; i++) relax();
  seen[t] = get(word);
  __syncwarp();
  seen[kThreads + t] = get(word);
  __syncthreads();
  seen[2 * kThreads + t] = get(word);
  if (*word != 0) seen[0] = 99;
}

void test_scope_of_a_put() {
  uint32_t word = 0;
  std::vector<uint32_t> seen(3 * kThreads);
  launch(look_at_puts, 1, nullptr, &word, seen.data());
  bool right = true;
  for (int t = 0; t < kThreads; t++) {
    right &= seen[t] == (t == 0 ? 0x11112211u : 0u);
    right &= seen[kThreads + t] == (t < 32 ? 0x11112211u : 0u);
    right &= seen[2 * kThreads + t] == 0x11112211u;
  }
  expect(right, "a put is seen by its thread, then its warp, then its block, byte by byte");
  expect(word == 0x11112211u, "the end of a launch writes puts in their order");
}

// ---- reports ----

struct Report {
  bool aborted;
  std::string text;
};

template <class Kernel>
Report report(Kernel kernel, int blocks, bool together, unsigned seed) {
  int ends[2];
  if (pipe(ends) != 0) std::abort();
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    const rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    dup2(ends[1], 2);
    uint32_t words[8] = {};
    shim::seed(seed);
    together ? launch_together(kernel, blocks, nullptr, words + 0) : launch(kernel, blocks, nullptr, words + 0);
    _exit(0);
  }
  close(ends[1]);
  Report result = {};
  char bytes[1024];
  for (ssize_t n; (n = read(ends[0], bytes, sizeof bytes)) > 0;) result.text.append(bytes, n);
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  result.aborted = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
  return result;
}

template <class Kernel>
void expect_report(Kernel kernel, int blocks, bool together, const std::string& what) {
  for (unsigned seed = 0; seed < 4; seed++) {
    const Report r = report(kernel, blocks, together, seed);
    expect(r.aborted && r.text.find(what) != std::string::npos, "\"" + what + "\" is reported; got: " + r.text);
  }
}

__global__ void return_before_barrier(uint32_t*) {
  if (threadIdx.x == 3) return;
  __syncthreads();
}
__global__ void return_before_shuffle(uint32_t*) {
  if (threadIdx.x % 32 == 3) return;
  __shfl_sync(kAll, 1, 0);
}
__global__ void half_a_shuffle(uint32_t*) {
  if (threadIdx.x % 32 < 16) __shfl_sync(kAll, 1, 0);
  __syncthreads();
}
__global__ void partial_mask(uint32_t*) { __shfl_sync(0xffffu, 1, 0); }
__global__ void two_calls(uint32_t*) {
  if (threadIdx.x % 32 < 16)
    __shfl_sync(kAll, 1, 0);
  else
    __syncwarp();
}
// One warp waits at the block's barrier for the other, and that one for a flag which is set after the barrier.
__global__ void wait_in_a_circle(uint32_t* flag) {
  if (threadIdx.x >= 32) {
    while (observe(flag) == 0) relax();
  }
  __syncthreads();
  publish(flag, 1);
}
__global__ void wait_in_a_warp(uint32_t* flag) {
  while (__shfl_sync(kAll, observe(flag), 0) == 0) relax();
}
// One more block than can be resident under a plain launch.
__global__ void wait_for_all_blocks(uint32_t* counter) {
  if (threadIdx.x == 0) {
    arrive(counter);
    while (observe(counter) < gridDim.x) relax();
  }
  __syncthreads();
}
__global__ void launch_within(uint32_t* counter) { launch(wait_for_all_blocks, 1, nullptr, counter); }
__global__ void put_misaligned(uint32_t* word) {
  put(reinterpret_cast<uint32_t*>(reinterpret_cast<char*>(word) + 1), 1u);
}
__global__ void load_misaligned(uint32_t* word) {
  load<Kept::in_l2>(reinterpret_cast<const uint32_t*>(reinterpret_cast<char*>(word) + 1));
}
// A shuffle is no barrier: lane 0 has acquired what the other block released, and the other lanes have not.
__global__ void read_after_a_shuffle(uint32_t* words) {
  if (blockIdx.x == 0 && threadIdx.x == 0) put(&words[4], 7u), publish(&words[0], 1);
  if (blockIdx.x == 1 && threadIdx.x < 32) {
    if (threadIdx.x == 0)
      while (observe(&words[0]) != 1) relax();
    __shfl_sync(kAll, 0, 0);
    get(&words[4]);
  }
}
__global__ void do_nothing(uint32_t*) {}

void test_reports() {
  expect_report(return_before_barrier, 1, false, "__syncthreads");
  expect_report(return_before_shuffle, 1, false, "lane");
  expect_report(half_a_shuffle, 1, false, "other lanes of the warp wait");
  expect_report(partial_mask, 1, false, "not the whole warp");
  expect_report(two_calls, 1, false, "different calls");
  expect_report(wait_in_a_circle, 1, false, "deadlock");
  expect_report(wait_in_a_warp, 1, false, "deadlock");
  expect_report(wait_for_all_blocks, 4, false, "not started");
  expect_report(launch_within, 1, false, "a launch during another one");
  expect_report(put_misaligned, 1, false, "misaligned");
  expect_report(load_misaligned, 1, false, "misaligned");
  expect_report(read_after_a_shuffle, 2, true, "has not acquired");
  const Report r = report(wait_for_all_blocks, 3, true, 1);
  expect(!r.aborted && r.text.empty(), "blocks launched together can wait for one another");
}

template <class Launch>
bool throws(const Launch& start) {
  try {
    start();
  } catch (const std::runtime_error&) {
    return true;
  }
  return false;
}

void test_limits_of_a_launch() {
  uint32_t word = 0;
  expect(throws([&] { launch(do_nothing, 0, nullptr, &word); }), "a launch of no blocks throws");
  expect(throws([&] { launch_together(do_nothing, 4, nullptr, &word); }), "too many blocks to run together throw");
  shim::resident_blocks = 9;
  expect(blocks_at_once(do_nothing) == 9, "how many run at once can be set");
  expect(!throws([&] { launch_together(wait_for_all_blocks, 9, nullptr, &word); }), "and as many run together");
  shim::resident_blocks = 3, shim::cooperative = false;
  expect(throws([&] { launch_together(do_nothing, 1, nullptr, &word); }), "without cooperative launches it throws");
  shim::cooperative = true;
}

// ---- speed ----

__global__ void meet_often(float* out) {
  float value = threadIdx.x;
  for (int i = 0; i < 60; i++) {
    value = 0.5f * (value + __shfl_xor_sync(kAll, value, 1 << i % 5));
    if (i % 15 == 0) __syncthreads();
  }
  out[blockIdx.x * kThreads + threadIdx.x] = value;
}

void print_speed() {
  std::vector<float> out(3 * kThreads);
  const int launches = 500;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < launches; i++) launch_together(meet_often, 3, nullptr, out.data());
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf("%.0f launches a second of 3 blocks, each thread at 60 shuffles and 4 barriers\n",
              launches / seconds.count());
}

}  // namespace

int main() {
  test_barriers_and_shuffles();
  test_indices_and_shared_storage();
  test_schedule();
  test_another_thread_can_launch();
  test_releases();
  test_last_block_sums();
  test_scope_of_a_put();
  test_reports();
  test_limits_of_a_launch();
  print_speed();
  std::printf("%d passed, %d failed\n", checks - failures, failures);
  return failures > 0;
}
