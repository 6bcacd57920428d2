// What threads do together: warp operations, barriers, shared memory of other blocks; and the
// rules that a GPU leaves to the programmer's care, checked.
#include <cstdio>

#include "state.hpp"

namespace simt {
namespace {

const char* place(const Site& s) { return words("%s (%s:%d)", s.op, s.file, s.line); }
bool same(const Site& a, const Site& b) {
  return a.line == b.line && a.op == b.op && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

// Have all lanes of t's mask come to the same operation? Fails where they never will.
bool all_here(const Thread& t) {
  const Warp& w = *t.warp;
  const unsigned there = w.size == 32 ? ~0u : (1u << w.size) - 1;
  if (t.mask & ~there)
    fail(cudaErrorLaunchFailure, "%s with mask 0x%08x, but the warp has %d threads", place(t.site), t.mask, w.size);
  if (t.mask & w.gone)
    fail(cudaErrorLaunchFailure, "%s with mask 0x%08x, but lanes 0x%08x have left the kernel", place(t.site), t.mask, w.gone);
  if (t.mask & ~w.waiting) return false;
  for (int lane = 0; lane < w.size; ++lane) {
    const Thread& o = *w.lanes[lane];
    if (!(t.mask >> lane & 1)) continue;
    if (o.mask != t.mask)
      fail(cudaErrorLaunchFailure, "the warp disagrees on the mask: 0x%08x at %s, lane %d has 0x%08x at %s", t.mask,
           place(t.site), lane, o.mask, place(o.site));
    if (!same(o.site, t.site) || o.bytes != t.bytes)
      fail(cudaErrorLaunchFailure, "the warp has diverged: %s, but lane %d is at %s", place(t.site), lane, place(o.site));
  }
  return true;
}

// memcpy of what is mostly a word or two, without a call.
void copy(void* to, const void* from, std::size_t bytes) {
  if (bytes == 4) std::memcpy(to, from, 4);
  else if (bytes == 8) std::memcpy(to, from, 8);
  else std::memcpy(to, from, bytes);
}

int source_lane(const Thread& t) {
  switch (t.move) {
    case Move::index: return t.argument & 31;
    case Move::exclusive_or: return (t.at.lane ^ t.argument) & 31;
    case Move::down: return t.at.lane + t.argument < 32 ? t.at.lane + t.argument : t.at.lane;
    default: return t.at.lane;
  }
}

void complete(const Thread& last) {
  Warp& w = *last.warp;
  const unsigned mask = last.mask;
  const std::size_t bytes = last.bytes;
  alignas(16) unsigned char brought[32][64];
  unsigned votes = 0;
  for (int lane = 0; lane < w.size; ++lane) {
    if (!(mask >> lane & 1)) continue;
    copy(brought[lane], w.lanes[lane]->value, bytes);
    if (w.lanes[lane]->move == Move::ballot && w.lanes[lane]->argument) votes |= 1u << lane;
  }
  for (int lane = 0; lane < w.size; ++lane) {
    if (!(mask >> lane & 1)) continue;
    Thread& t = *w.lanes[lane];
    if (t.move == Move::ballot) {
      std::memcpy(t.value, &votes, sizeof votes);
    } else if (t.move != Move::none) {
      const int from = source_lane(t);
      if (!(mask >> from & 1))
        fail_as(t, cudaErrorLaunchFailure,
                words("%s reads lane %d, which is not in mask 0x%08x: the value is undefined", place(t.site), from, mask));
      copy(t.value, brought[from], bytes);
    }
    make_ready(t);
  }
  w.waiting &= ~mask;
}

// A barrier over `expected` threads, of which `gone` have left; `release` wakes those who wait.
template <class Release>
void barrier(Thread& t, Waits kind, Site site, unsigned& arrived, unsigned gone, std::size_t expected, Release release) {
  t.site = site;
  t.waits = kind;
  if (gone) fail(cudaErrorLaunchFailure, "%s, which %u threads left the kernel without reaching", place(site), gone);
  if (++arrived == expected) {
    arrived = 0;
    release();
  }
  switch_away(t);
}

void release_block(const Thread& t, Block& b, Waits kind) {
  for (Thread& o : b.threads) {
    if (o.waits != kind || !same(o.site, t.site))
      fail(cudaErrorLaunchFailure, "%s and %s %s meet at one barrier", place(t.site), who(o), what(o));
    make_ready(o);
  }
}

}  // namespace

void warp_collective(Move move, unsigned mask, int argument, void* value, std::size_t bytes, Site site) {
  Thread& t = *machine().running;
  if (!(mask >> t.at.lane & 1))
    fail(cudaErrorLaunchFailure, "%s with mask 0x%08x by lane %d, which is not in it", place(site), mask, t.at.lane);
  t.site = site;
  t.move = move;
  t.mask = mask;
  t.argument = argument;
  t.bytes = bytes;
  copy(t.value, value, bytes);
  t.waits = Waits::for_warp;
  t.warp->waiting |= 1u << t.at.lane;
  if (all_here(t)) complete(t);
  switch_away(t);
  copy(value, t.value, bytes);
}

void block_barrier(Site site) {
  Thread& t = *machine().running;
  Block& b = *t.block;
  barrier(t, Waits::for_block, site, b.arrived, b.gone, b.threads.size(), [&] { release_block(t, b, Waits::for_block); });
}

void cluster_barrier(Site site) {
  Thread& t = *machine().running;
  Cluster& c = *t.block->cluster;
  unsigned gone = 0;
  for (const Block& b : c.blocks) gone += b.gone;
  barrier(t, Waits::for_cluster, site, c.arrived, gone, c.blocks.size() * t.block->threads.size(), [&] {
    ++c.syncs;
    for (Block& b : c.blocks) release_block(t, b, Waits::for_cluster);
  });
}

void leave(Thread& t) {
  t.warp->gone |= 1u << t.at.lane;
  if (t.warp->waiting)
    for (int lane = 0; lane < t.warp->size; ++lane) {
      const Thread& o = *t.warp->lanes[lane];
      if (o.waits == Waits::for_warp && (o.mask >> t.at.lane & 1))
        fail(cudaErrorLaunchFailure, "left the kernel, but lane %d %s", lane, what(o));
    }
  if (t.block->arrived)
    fail(cudaErrorLaunchFailure, "left the kernel while %u threads of its block wait at block_sync", t.block->arrived);
  if (t.block->cluster->arrived)
    fail(cudaErrorLaunchFailure, "left the kernel while %u threads of its cluster wait at cluster_sync",
         t.block->cluster->arrived);
}

namespace {
constexpr std::size_t fence_bytes = 32;
}
void draw_fence(Block& b, const SharedVariable& v) { std::memset(b.fixed.begin() + v.offset + v.bytes, 0xc5, fence_bytes); }
bool fence_stands(const Block& b, const SharedVariable& v) {
  for (std::size_t i = 0; i < fence_bytes; ++i)
    if (b.fixed.begin()[v.offset + v.bytes + i] != 0xc5) return false;
  return true;
}

void* dynamic_shared_memory() {
  const Block& b = *machine().running->block;
  return b.dynamic.end() - (machine().shape.dynamic_shared + 15) / 16 * 16;  // the end is the guard page
}

void* static_shared_memory(const void* tag, std::size_t bytes, const char* name) {
  Machine& m = machine();
  auto found = m.variables.find(tag);
  if (found == m.variables.end()) {
    const std::size_t taken = (bytes + fence_bytes + 15) / 16 * 16;
    const std::size_t most = m.shape.dynamic_shared ? fixed_beside_dynamic : m.running->block->fixed.size();
    if (m.fixed_used + taken > most)
      fail(cudaErrorInvalidValue, "%s does not fit: a block declares at most %zu bytes of shared memory", name, most);
    found = m.variables.emplace(tag, SharedVariable{m.fixed_used, bytes, name}).first;
    m.fixed_used += taken;
    const unsigned char poison = poison_byte(m.random());
    for (Cluster& c : m.clusters)
      for (Block& b : c.blocks) {
        if (b.gone == b.threads.size()) continue;
        std::memset(b.fixed.begin() + found->second.offset, poison, bytes);
        draw_fence(b, found->second);
      }
  }
  return m.running->block->fixed.begin() + found->second.offset;
}

void* peer_shared_memory(void* mine, int rank) {
  const Thread& t = *machine().running;
  const Block& b = *t.block;
  Cluster& c = *b.cluster;
  if (rank < 0 || std::size_t(rank) >= c.blocks.size())
    fail(cudaErrorLaunchFailure, "dsmem of rank %d in a cluster of %zu", rank, c.blocks.size());
  if (c.blocks.size() > 1 && c.syncs == 0)
    fail(cudaErrorLaunchFailure, "dsmem before any cluster_sync: block %d may not have started", rank);
  auto* p = static_cast<unsigned char*>(mine);
  const Block& other = c.blocks[std::size_t(rank)];
  if (p >= b.dynamic.begin() && p < b.dynamic.end()) return other.dynamic.begin() + (p - b.dynamic.begin());
  if (p >= b.fixed.begin() && p < b.fixed.end()) return other.fixed.begin() + (p - b.fixed.begin());
  fail(cudaErrorLaunchFailure, "dsmem of an address that is not in this block's shared memory");
}

void check_aligned(const void* p, std::size_t alignment, const char* op) {
  if (reinterpret_cast<std::uintptr_t>(p) % alignment)
    fail(cudaErrorMisalignedAddress, "%s at %p, which is not a multiple of %zu", op, p, alignment);
}

}  // namespace simt
