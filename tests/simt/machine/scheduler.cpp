// Launching a grid and choosing, again and again, who runs next.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <numeric>

#include "state.hpp"

namespace simt {

const Position* self = nullptr;

Settings& settings() { return machine().settings; }
const std::string& error() { return machine().error; }
const Counters& counters() { return machine().counters; }
void reseed(std::uint64_t seed) {
  machine().settings.seed = seed;
  machine().launches_of_seed = 0;
}
void* running_stack_top() { return self ? machine().running->stack.end() : nullptr; }

namespace {

constexpr std::size_t stack_bytes = 128 * 1024;
constexpr std::size_t fixed_limit = 48 * 1024;

cudaError_t reject(cudaError_t code, const char* format, ...) __attribute__((format(printf, 2, 3)));
cudaError_t reject(cudaError_t code, const char* format, ...) {
  va_list args;
  va_start(args, format);
  char text[300];
  std::vsnprintf(text, sizeof text, format, args);
  machine().error = text;
  va_end(args);
  return code;
}

cudaError_t check(const Shape& s) {
  const Settings& d = machine().settings;
  const unsigned long long threads = 1ull * s.block.x * s.block.y * s.block.z;
  if (threads == 0 || threads > 1024 || s.block.z > 64)
    return reject(cudaErrorInvalidConfiguration, "a block has 1 to 1024 threads, not %llu", threads);
  if (!s.grid.x || !s.grid.y || !s.grid.z || s.grid.x > 0x7fffffffu || s.grid.y > 65535 || s.grid.z > 65535)
    return reject(cudaErrorInvalidConfiguration, "no grid of %u x %u x %u", s.grid.x, s.grid.y, s.grid.z);
  if (s.dynamic_shared && s.dynamic_shared + fixed_beside_dynamic > d.shared_optin)
    return reject(cudaErrorInvalidValue, "%zu bytes of shared memory asked for beside the kernel's own, %zu there",
                  s.dynamic_shared, d.shared_optin);
  if (s.cluster > 1 && d.cc < 90) return reject(cudaErrorNotSupported, "clusters need compute capability 9.0");
  if (s.cluster > d.max_cluster) return reject(cudaErrorClusterOutOfResources, "no room for clusters of %u blocks", s.cluster);
  if (s.cluster == 0 || s.grid.x % s.cluster)
    return reject(cudaErrorInvalidConfiguration, "clusters of %u do not divide a grid of %u", s.cluster, s.grid.x);
  return cudaSuccess;
}

void to_scheduler(Thread& t) {
  self = nullptr;
  Fiber::swap(t.fiber, machine().scheduler);
}

void enter(void* argument) {
  Machine& m = machine();
  Thread& t = *static_cast<Thread*>(argument);
  m.body(m.argument);
  leave(t);
  t.waits = Waits::gone;
  to_scheduler(t);
}

// Builds a cluster's threads once per launch; start() then puts a place in the grid under it.
void build(Cluster& c) {
  Machine& m = machine();
  const Shape& s = m.shape;
  const unsigned threads = s.block.x * s.block.y * s.block.z;
  c.blocks.resize(s.cluster);
  for (unsigned rank = 0; rank < s.cluster; ++rank) {
    Block& b = c.blocks[rank];
    b.cluster = &c;
    b.fixed = Region(fixed_limit, "the block's static shared memory");
    b.dynamic = Region(s.dynamic_shared, "the block's dynamic shared memory");
    b.threads.resize(threads);
    b.warps.resize((threads + 31) / 32);
    for (unsigned i = 0; i < threads; ++i) {
      Thread& t = b.threads[i];
      t.block = &b;
      t.warp = &b.warps[i / 32];
      t.warp->lanes[i % 32] = &t;
      t.warp->size = int(i % 32) + 1;
      t.at.thread = {i % s.block.x, i / s.block.x % s.block.y, i / s.block.x / s.block.y};
      t.at.block_dim = s.block;
      t.at.grid_dim = s.grid;
      t.at.lane = int(i % 32);
      t.at.warp = int(i / 32);
      t.at.cluster_rank = int(rank);
      t.at.cluster_size = int(s.cluster);
      if (m.stacks.empty()) {
        t.stack = Region(stack_bytes, "a thread's stack");
      } else {
        t.stack = std::move(m.stacks.back());
        m.stacks.pop_back();
      }
    }
  }
}

void start(Cluster& c, std::uint64_t index) {
  Machine& m = machine();
  const Shape& s = m.shape;
  const unsigned across = s.grid.x / s.cluster;
  const unsigned char poison = poison_byte(m.random());
  c.busy = true;
  c.arrived = c.gone = c.syncs = 0;
  for (Block& b : c.blocks) {
    const unsigned rank = unsigned(&b - c.blocks.data());
    const dim3 place{unsigned(index % across) * s.cluster + rank, unsigned(index / across % s.grid.y),
                     unsigned(index / across / s.grid.y)};
    b.arrived = b.gone = 0;
    for (Warp& w : b.warps) w.ready = w.waiting = w.gone = 0;
    b.fixed.allow();
    b.dynamic.allow();
    std::memset(b.fixed.begin(), poison, m.fixed_used);
    for (const auto& [tag, v] : m.variables) draw_fence(b, v);
    std::memset(b.dynamic.begin(), poison, b.dynamic.size());
    for (Thread& t : b.threads) {
      t.at.block = place;
      // Stacks start on pages: staggered tops keep them out of each other's cache sets.
      const std::size_t stagger = std::size_t(&t - b.threads.data()) % 61 * 192;
      t.fiber.prepare(t.stack.begin(), t.stack.size() - stagger, enter, &t);
      make_ready(t);
    }
  }
  m.counters.threads += std::uint64_t(s.cluster) * c.blocks[0].threads.size();
}

// Anybody may be next; but a random warp is favoured for a while, so that now and then one warp
// runs far ahead of the others, as far as the barriers let it.
Warp& choose_warp() {
  Machine& m = machine();
  const std::uint64_t r = m.random();
  if (m.favourite && m.favourite->ready && (r & 63) != 0) {
    if (r & 0x1c0) return *m.favourite;
    return *m.ready[m.below(m.ready.size())];
  }
  m.favourite = m.ready[m.below(m.ready.size())];
  return *m.favourite;
}

Thread& choose() {
  Machine& m = machine();
  Warp& w = choose_warp();
  const unsigned turn = unsigned(m.random()) & 31u;
  const unsigned turned = turn ? (w.ready >> turn) | (w.ready << (32 - turn)) : w.ready;
  const unsigned lane = (unsigned(__builtin_ctz(turned)) + turn) & 31u;
  w.ready &= ~(1u << lane);
  if (w.ready == 0) {
    m.ready[w.place] = m.ready.back();
    m.ready[w.place]->place = w.place;
    m.ready.pop_back();
  }
  return *w.lanes[lane];
}

Thread& run(Thread& t) {
  Machine& m = machine();
  m.running = &t;
  self = &t.at;
  ++m.counters.switches;
  return t;
}

void finish_if_gone(Block& b) {
  if (b.gone < b.threads.size()) return;
  for (const auto& [tag, v] : machine().variables)
    if (!fence_stands(b, v)) {
      machine().error = std::string("a block wrote past the end of its shared ") + v.name;
      machine().code = cudaErrorIllegalAddress;
    }
  Cluster& c = *b.cluster;
  if (c.blocks.size() > 1) {  // its neighbours may not touch its shared memory any more
    b.fixed.forbid();
    b.dynamic.forbid();
  }
  if (++c.gone == c.blocks.size()) c.busy = false;
}

// Nobody can run and somebody is still there: say who waits where.
void report_deadlock() {
  Machine& m = machine();
  std::string text = "deadlock:";
  for (Cluster& c : m.clusters) {
    if (!c.busy) continue;
    std::map<std::string, std::pair<int, const Thread*>> groups;
    for (Block& b : c.blocks)
      for (Thread& t : b.threads) {
        auto& group = groups[what(t)];
        if (group.first++ == 0) group.second = &t;
      }
    for (const auto& [state, group] : groups)
      text += words("\n  %d x %s, first %s", group.first, state.c_str(), who(*group.second));
    break;
  }
  m.error = text;
  m.code = cudaErrorLaunchFailure;
}

void run_all() {
  Machine& m = machine();
  const Shape& s = m.shape;
  const std::uint64_t total = std::uint64_t(s.grid.x / s.cluster) * s.grid.y * s.grid.z;
  std::vector<std::uint64_t> order(total);
  std::iota(order.begin(), order.end(), 0);
  for (std::uint64_t i = total; i > 1; --i) std::swap(order[i - 1], order[m.below(i)]);

  m.clusters = std::vector<Cluster>(std::min<std::uint64_t>(total, std::uint64_t(std::max(1, m.settings.resident))));
  for (Cluster& c : m.clusters) build(c);
  std::uint64_t next = 0;
  auto refill = [&] {
    for (Cluster& c : m.clusters)
      if (!c.busy && next < total) start(c, order[next++]);
  };
  refill();
  while (!m.ready.empty()) {
    Fiber::swap(m.scheduler, run(choose()).fiber);
    Thread& t = *m.running;
    if (t.waits == Waits::gone && m.code == cudaSuccess) {
      ++t.block->gone;
      finish_if_gone(*t.block);
    }
    if (m.code != cudaSuccess) return;
    if (t.waits == Waits::gone && !t.block->cluster->busy) refill();
  }
  for (const Cluster& c : m.clusters)
    if (c.busy) return report_deadlock();
}

}  // namespace

cudaError_t run_grid(const Shape& shape, void (*body)(void*), void* argument) {
  Machine& m = machine();
  m.error.clear();
  m.code = check(shape);
  if (m.code != cudaSuccess) return m.code;
  install_fault_handler();
  m.random_state = m.settings.seed * 0x2545f4914f6cdd1du + m.launches_of_seed++;
  m.shape = shape;
  m.body = body;
  m.argument = argument;
  m.ready.clear();
  m.favourite = nullptr;
  m.variables.clear();
  m.fixed_used = 0;
  ++m.counters.launches;
  m.counters.device = m.settings.device;
  run_all();
  for (Cluster& c : m.clusters)
    for (Block& b : c.blocks)
      for (Thread& t : b.threads) {
        if (m.code != cudaSuccess) Fiber::abandoned(t.stack.begin(), t.stack.size());
        m.stacks.push_back(std::move(t.stack));
      }
  m.clusters.clear();
  return m.code;
}

void make_ready(Thread& t) {
  Machine& m = machine();
  t.waits = Waits::no;
  Warp& w = *t.warp;
  if (w.ready == 0) {
    w.place = m.ready.size();
    m.ready.push_back(&w);
  }
  w.ready |= 1u << t.at.lane;
}

void switch_away(Thread& t) {
  if (machine().ready.empty()) return to_scheduler(t);
  Thread& next = run(choose());
  if (&next != &t) Fiber::swap(t.fiber, next.fiber);
}

void yield() {
  Thread& t = *machine().running;
  make_ready(t);
  switch_away(t);
}

const char* words(const char* format, ...) {
  static char ring[8][640];
  static unsigned next = 0;
  char* text = ring[next++ % 8];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof ring[0], format, args);
  va_end(args);
  return text;
}

const char* who(const Thread& t) {
  const dim3 i = t.at.thread, b = t.at.block;
  return words("thread (%u,%u,%u) of block (%u,%u,%u)", i.x, i.y, i.z, b.x, b.y, b.z);
}

const char* what(const Thread& t) {
  if (t.waits == Waits::gone) return "has left the kernel";
  if (t.waits == Waits::no) return "runs";
  if (t.waits == Waits::for_warp) return words("waits at %s (%s:%d, mask 0x%08x)", t.site.op, t.site.file, t.site.line, t.mask);
  return words("waits at %s (%s:%d)", t.site.op, t.site.file, t.site.line);
}

void fail_as(const Thread& t, cudaError_t code, const char* text) {
  Machine& m = machine();
  m.error = words("%s: %s", who(t), text);
  m.code = code;
  to_scheduler(*m.running);
  __builtin_unreachable();
}

void fail(cudaError_t code, const char* format, ...) {
  static char text[640];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  fail_as(*machine().running, code, text);
}

}  // namespace simt
