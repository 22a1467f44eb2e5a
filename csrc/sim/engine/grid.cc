// SPDX-License-Identifier: Apache-2.0
// Sets up the state of each cluster and runs it.
#include "sim/engine/grid.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include "sim/engine/instructions.h"

namespace fp8gemm::sim {

World world;
Thread* current = nullptr;

namespace {

constexpr uint32_t kSmemAlignment = 1024;
constexpr uint32_t kFirstElectedLane = 5;  // with seed 0; small seeds do not elect lane 0
constexpr int kPoison = 0xff;              // NaN in e4m3, e5m2 and f32

// Exceptions cannot unwind into another stack, so this ends the process instead.
void ThreadMain() noexcept {
  BeginFiber();
  world.kernel->entry(world.params);
  CheckThreadExit();
  LeaveThread();
}

// Clock slots are numbered in the order that vector_clock.h gives.
void NumberClockSlots() {
  const uint32_t num_warpgroups = world.num_warps / kWarpgroupWarps;
  world.grid_slot = 2 * world.num_warps + num_warpgroups;
  world.first_barrier_slot = world.grid_slot + 1;
  world.num_slots = world.first_barrier_slot;
}

void PrepareWarps(Cta& cta) {
  const uint32_t num_warps = world.kernel->threads / kWarpLanes;
  cta.warps = std::vector<Warp>(num_warps);
  cta.warpgroups = std::vector<Warpgroup>(num_warps / kWarpgroupWarps);
  for (uint32_t i = 0; i < cta.warpgroups.size(); ++i) {
    Warpgroup& warpgroup = cta.warpgroups[i];
    warpgroup.cta = &cta;
    warpgroup.index = i;
    warpgroup.slot = world.num_warps + cta.rank * static_cast<uint32_t>(cta.warpgroups.size()) + i;
  }
  for (uint32_t i = 0; i < num_warps; ++i) {
    Warp& warp = cta.warps[i];
    warp.cta = &cta;
    warp.warpgroup = &cta.warpgroups[i / kWarpgroupWarps];
    warp.index = i;
    warp.number = cta.rank * num_warps + i;
    warp.lanes = &world.threads[warp.number * kWarpLanes];
    warp.registers = world.kernel->launch_registers;
    warp.clock.time[warp.number] = kStarted + 1;  // what it does comes after its start
  }
}

void PrepareCta(uint32_t rank, uint32_t block_idx) {
  Cta& cta = world.ctas[rank];
  cta.rank = rank;
  cta.block_idx = block_idx;
  cta.live_threads = world.kernel->threads;
  std::memset(cta.smem, kPoison, world.smem_bytes);
  PrepareWarps(cta);
  cta.barriers = {};
  cta.mbarriers.clear();
  cta.mbarrier_at.assign(world.smem_bytes / 8 + 1, -1);
  cta.free_registers = 0;
  cta.register_waiters.clear();
  cta.remote_arrivals.assign(world.num_warps, 0);
  cta.shadow.Reset(world.smem_bytes);
}

void PrepareThreads() {
  const uint32_t threads_per_cta = world.kernel->threads;
  for (uint32_t i = 0; i < world.threads.size(); ++i) {
    Thread& thread = world.threads[i];
    thread = Thread{};
    thread.cta = &world.ctas[i / threads_per_cta];
    thread.index = i % threads_per_cta;
    thread.number = i;
    thread.warp = &thread.cta->warps[thread.index / kWarpLanes];
    PrepareFiber(thread.fiber, world.stacks.stack(i), FiberStacks::kStackBytes, ThreadMain);
  }
}

// Shared memory is kept from launch to launch: its pages are expensive to map.
void ReserveCtas(uint32_t count) {
  while (world.ctas.size() < count) {
    void* smem = std::aligned_alloc(kSmemAlignment, kMaxSmemBytes);
    if (smem == nullptr) throw std::bad_alloc();
    Cta& cta = world.ctas.emplace_back();
    cta.smem = static_cast<uint8_t*>(smem);
    cta.memory.reset(smem);
  }
}

void PrepareCluster(uint32_t first_block) {
  const uint32_t cluster = world.kernel->cluster;
  world.threads.resize(cluster * world.kernel->threads);
  world.num_warps = cluster * world.kernel->threads / kWarpLanes;
  world.cluster_barrier = {};
  world.grid_dependency_waited = false;
  NumberClockSlots();
  for (uint32_t rank = 0; rank < cluster; ++rank) PrepareCta(rank, first_block + rank);
  PrepareThreads();
}

}  // namespace

GridResult RunGrid(const GridLaunch& launch, const SimOptions& options,
                   std::span<const SimRange> ranges, SimStats& stats) {
  const uint32_t cluster = launch.kernel->cluster;
  world.options = options;
  world.stats = {};
  world.ranges.assign(ranges.begin(), ranges.end());
  world.kernel = launch.kernel;
  world.params = launch.params;
  world.grid = launch.grid;
  world.smem_bytes = launch.smem_bytes;
  world.is_dependent_launch = launch.is_dependent;
  world.mark = launch.mark;
  world.was_interrupted = launch.was_interrupted;
  world.elected_lane = static_cast<uint32_t>((options.seed + kFirstElectedLane) % kWarpLanes);
  world.global_use.clear();
  ClearReport();
  SeedRandom(options.seed);
  ReserveCtas(cluster);
  if (!world.stacks.Reserve(cluster * launch.kernel->threads)) throw std::bad_alloc();

  bool ok = true;
  for (uint32_t first_block = 0; ok && first_block < launch.grid; first_block += cluster) {
    PrepareCluster(first_block);
    ok = RunCluster();
  }
  stats.launches += 1;
  stats.switches += world.stats.switches;
  stats.wgmma += world.stats.wgmma;
  stats.loads += world.stats.loads;
  stats.stores += world.stats.stores;
  stats.bytes_loaded += world.stats.bytes_loaded;
  stats.bytes_stored += world.stats.bytes_stored;
  stats.bank_conflicts += world.stats.bank_conflicts;
  return {ok && !HasHazards(), Report()};
}

}  // namespace fp8gemm::sim
