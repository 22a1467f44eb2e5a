// SPDX-License-Identifier: Apache-2.0
// Everything about the cluster that is running. One exists; the driver serializes launches.
#pragma once
#include <array>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "sim/engine/fiber.h"
#include "sim/engine/shadow.h"
#include "sim/engine/vector_clock.h"
#include "sim/options.h"
#include "sim/registry.h"
#include "sim/tensor_map.h"

namespace fp8gemm::sim {

inline constexpr uint32_t kWarpLanes = 32;
inline constexpr uint32_t kWarpgroupWarps = 4;
inline constexpr uint32_t kNamedBarriers = 16;
inline constexpr uint32_t kMaxSmemBytes = 232448;
// Where dynamic shared memory starts in the shared window: the system reserves the first KiB.
inline constexpr uint32_t kSmemBase = 1024;

// What a thread can be stopped in.
enum class Op : uint8_t {
  kNone,
  kElect,
  kShfl,
  kVote,
  kRedux,
  kBarWarpSync,
  kBarrierSync,
  kSetMaxRegistersInc,
  kSetMaxRegistersDec,
  kStoreMatrix,
  kWgmmaFence,
  kWgmma,
  kWgmmaCommit,
  kWgmmaWait,
  kClusterArrive,
  kClusterWait,
  kMbarrierWait,
  kBulkWait,
};

const char* OpName(Op op);

struct Cta;
struct Warp;
struct Warpgroup;

// Groups of TMA stores of one thread.
struct BulkGroups {
  uint32_t in_flight = 0;           // stores that have not read shared memory yet
  uint32_t open_id = 0;             // id of the newest store without a commit; 0: none
  uint32_t waited = 0;              // committed groups that a wait has covered
  std::vector<uint32_t> unread;     // [group] stores that have not read shared memory yet
  std::vector<uint32_t> newest_id;  // [group] id of its newest store
};

struct Mbarrier;

// A lane's wait that has passed, until something the lane did after it may reach other threads.
struct UnpublishedWait {
  Mbarrier* barrier;
  uint32_t phase;  // completed when the wait passed
  uint32_t index;  // of the lane in the barrier's observers
};

struct Thread {
  enum class State : uint8_t { kReady, kBlocked, kDone };

  Fiber fiber;
  Cta* cta = nullptr;
  Warp* warp = nullptr;
  uint32_t index = 0;   // in the CTA
  uint32_t number = 0;  // in the cluster
  State state = State::kReady;

  Op blocked_in = Op::kNone;
  uint32_t wait_address = 0;  // of the mbarrier
  uint32_t wait_value = 0;    // parity, or groups that may stay pending

  uint32_t num_writes = 0;     // generic writes to shared memory
  uint32_t fenced_writes = 0;  // of them, before the last fence.proxy.async
  uint32_t num_inits = 0;      // mbarrier.init
  uint32_t fenced_inits = 0;   // of them, before the last fence.mbarrier_init
  uint32_t num_accesses = 0;   // of shared memory since the warp last met; see BankTrace
  BulkGroups bulk;
  // Phases this lane itself has seen completed; the warp's other lanes learn of them at a barrier.
  std::array<uint32_t, kMaxBarriers> seen_phase = {};
  std::vector<UnpublishedWait> unpublished_waits;

  uint32_t lane() const { return index % kWarpLanes; }
};

// Addresses of the shared-memory accesses of a warp since its lanes last met, by position.
struct BankTrace {
  struct Access {
    uint32_t lanes = 0;
    uint32_t bytes = 0;
    std::array<uint32_t, kWarpLanes> address;
  };
  std::vector<Access> accesses;
  uint32_t used = 0;
};

struct Warp {
  Cta* cta = nullptr;
  Warpgroup* warpgroup = nullptr;
  Thread* lanes = nullptr;
  uint32_t index = 0;   // in the CTA
  uint32_t number = 0;  // in the cluster; also its clock slot
  uint32_t live_lanes = kWarpLanes;

  // Lanes that have reached the current warp-wide operation.
  uint32_t met_lanes = 0;
  Op meeting_op = Op::kNone;
  uint64_t meeting_operand = 0;
  Thread* holder = nullptr;  // waits on behalf of its warp, after the lanes have met

  // Operands of the current warp-wide operation, per lane.
  std::array<float*, kWarpLanes> accumulators;
  std::array<uint32_t, kWarpLanes> matrix_address;
  std::array<std::array<uint32_t, 4>, kWarpLanes> matrix_rows;
  std::array<uint32_t, kWarpLanes> exchange_in;
  std::array<uint32_t, kWarpLanes> exchange_out;

  bool wgmma_fenced = false;
  uint32_t wgmma_group = 0;  // groups committed
  uint32_t wgmma_op = 0;     // operations issued since
  uint32_t registers = 0;    // per thread
  uint32_t num_stores = 0;   // TMA stores issued; the newest one's id
  bool cluster_arrived = false;
  uint32_t cluster_phase = 0;  // the phase it arrived in
  uint32_t cluster_waits = 0;  // phases of the cluster's barrier that it has waited for

  VectorClock clock;
  uint32_t lane_epoch = 1;  // counts what may order the memory accesses of the lanes
  std::array<uint32_t, kMaxBarriers> seen_phase = {};
  BankTrace bank_trace;
};

// A lane that has seen the last completed phase of an mbarrier. The next phase must not complete
// before: the parity would be the old one again, and the lane would wait for ever.
struct PhaseObserver {
  Thread* thread;
  uint32_t published;  // time of its warp at which others could learn that it has; 0: not yet
};

struct Mbarrier {
  uint32_t address = 0;
  uint32_t count = 0;
  int32_t pending = 0;   // arrivals
  int32_t tx_count = 0;  // bytes announced and not landed
  uint32_t phase = 0;    // phases completed
  uint32_t slot = 0;     // clock slot
  Thread* initializer = nullptr;
  uint32_t init_number = 0;
  uint32_t init_clock = 0;
  uint32_t relaxed_phase = 0;  // of the cluster's barrier, from 1: who waits for it sees the init
  uint32_t async_clock = 0;    // phase that ends the last TMA load or st.async signalling it
  bool has_cluster_release = false;  // by st.async
  std::vector<Thread*> waiting;
  std::vector<PhaseObserver> observers;  // of the last completed phase
  VectorClock arriving;                  // what arrivals of the current phase released
  VectorClock released;                  // what waiters acquire
};

// A warp's arrival, as others may know of it.
struct Arrival {
  const Warp* warp;
  uint32_t clock;
};

struct NamedBarrier {
  uint32_t threads = 0;
  uint32_t arrived = 0;
  std::vector<Warp*> waiting;
  std::vector<Arrival> last;  // arrivals of the last completion
  VectorClock arriving;
};

// One accumulator fragment of a warpgroup, from its first wgmma to the last warp's wait.
struct Accumulator {
  uint32_t n = 0;
  uint32_t holders = 0;                                   // warps between first wgmma and wait
  std::array<uint32_t, kWarpgroupWarps> last_group = {};  // newest group that uses it
  std::array<std::array<float*, kWarpLanes>, kWarpgroupWarps> registers;
  alignas(64) std::array<float, 64 * 256> tile;  // (64, n)
};

struct WgmmaOperands {
  uint32_t n;
  uint32_t a_type;  // values of Fp8Type
  uint32_t b_type;
  uint64_t a_desc;
  uint64_t b_desc;
  bool scale_d;

  bool operator==(const WgmmaOperands&) const = default;
};

struct WgmmaOp {
  static constexpr uint32_t kMaxChunks = (64 + 256) * 2;

  WgmmaOperands operands;
  Accumulator* accumulator;
  std::array<uint32_t, kMaxChunks> chunks;  // smem offsets: (64, 2) of A, then (n, 2) of B

  uint32_t num_chunks() const { return (64 + operands.n) * 2; }
};

struct WgmmaGroup {
  std::vector<std::unique_ptr<WgmmaOp>> ops;
  uint32_t committed_warps = 0;
};

// One setmaxnreg of a warp.
struct RegisterChange {
  uint32_t registers;
  uint32_t clock;  // of the warp, then
};

struct Warpgroup {
  Cta* cta = nullptr;
  uint32_t index = 0;  // in the CTA
  uint32_t slot = 0;   // clock slot
  std::deque<WgmmaGroup> groups;
  uint32_t first_group = 0;  // number of groups.front()
  uint32_t done = 0;         // groups finished
  std::vector<Thread*> waiting;
  std::vector<std::unique_ptr<Accumulator>> accumulators;
  std::vector<std::unique_ptr<WgmmaOp>> spare_ops;
  std::array<std::vector<RegisterChange>, kWarpgroupWarps> register_changes;
};

struct Cta {
  uint32_t rank = 0;
  uint32_t block_idx = 0;
  uint32_t live_threads = 0;
  uint8_t* smem = nullptr;  // dynamic shared memory, 1024-aligned
  std::unique_ptr<void, decltype(&std::free)> memory{nullptr, &std::free};  // of it
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
  std::array<NamedBarrier, kNamedBarriers> barriers;
  std::deque<Mbarrier> mbarriers;
  std::vector<int16_t> mbarrier_at;  // [offset / 8], -1: none
  uint32_t free_registers = 0;       // given up by setmaxnreg.dec
  std::vector<Thread*> register_waiters;
  std::vector<uint32_t> remote_arrivals;  // [warp of the cluster] clock of its last arrival here
  Shadow shadow;
};

struct ClusterBarrier {
  uint32_t phase = 0;
  uint32_t arrived = 0;  // warps
  uint32_t exited = 0;   // warps; they count as arrived
  std::vector<Thread*> waiting;
  VectorClock arriving;
  VectorClock released;
};

// Bytes of 16 in global memory, a bit each, that this launch uses in one of two ways.
struct GlobalUse {
  uint16_t read_only = 0;
  uint16_t written = 0;
};

struct World {
  SimOptions options;
  SimStats stats = {};
  std::vector<SimRange> ranges;
  std::unordered_map<uintptr_t, GlobalUse> global_use;  // [address / 16]

  const SimKernel* kernel = nullptr;
  const void* params = nullptr;
  uint32_t grid = 0;
  uint32_t smem_bytes = 0;
  bool is_dependent_launch = false;
  uint64_t mark = 0;
  bool (*was_interrupted)(uint64_t mark) = nullptr;
  uint32_t elected_lane = 0;

  std::deque<Cta> ctas;
  std::vector<Thread> threads;  // [cta][thread]
  ClusterBarrier cluster_barrier;
  FiberStacks stacks;

  uint32_t num_warps = 0;  // of the cluster
  uint32_t num_slots = 0;  // clock slots in use
  uint32_t grid_slot = 0;  // clock slot of griddepcontrol.wait
  uint32_t first_barrier_slot = 0;
  bool grid_dependency_waited = false;

  bool checks_intervals() const { return options.shadow >= kShadowInterval; }
  bool checks_order() const { return options.shadow >= kShadowHappensBefore; }
};

extern World world;
// The simulated thread that runs; nullptr inside asynchronous operations and the scheduler.
extern Thread* current;

}  // namespace fp8gemm::sim
