// SPDX-License-Identifier: Apache-2.0
// Text of hazards.
#include "sim/engine/report.h"

#include <cstdarg>
#include <cstdio>

#include "sim/engine/scheduler.h"
#include "sim/engine/world.h"

namespace fp8gemm::sim {
namespace {

constexpr int kMaxReported = 8;
// A kernel this wrong has nothing more to tell.
constexpr int kMaxHazards = 1000;

std::string report;
int num_hazards = 0;
bool aborted = false;

void AddHazard(const char* format, va_list arguments) {
  if (++num_hazards > kMaxHazards) aborted = true;
  if (num_hazards > kMaxReported) return;
  char text[512];
  std::vsnprintf(text, sizeof text, format, arguments);
  char who[96];
  if (current != nullptr) {
    std::snprintf(who, sizeof who, "HAZARD block %u (cta %u of its cluster) warp %u lane %u: ",
                  current->cta->block_idx, current->cta->rank, current->warp->index,
                  current->lane());
  } else {
    std::snprintf(who, sizeof who, "HAZARD in an asynchronous operation: ");
  }
  AppendReport(std::string(who) + text);
}

}  // namespace

const char* OpName(Op op) {
  switch (op) {
    case Op::kNone: return "nothing";
    case Op::kElect: return "elect.sync";
    case Op::kShfl: return "shfl.sync";
    case Op::kVote: return "vote.sync";
    case Op::kRedux: return "redux.sync";
    case Op::kBarWarpSync: return "bar.warp.sync";
    case Op::kBarrierSync: return "barrier.sync";
    case Op::kSetMaxRegistersInc: return "setmaxnreg.inc";
    case Op::kSetMaxRegistersDec: return "setmaxnreg.dec";
    case Op::kStoreMatrix: return "stmatrix";
    case Op::kWgmmaFence: return "wgmma.fence";
    case Op::kWgmma: return "wgmma.mma_async";
    case Op::kWgmmaCommit: return "wgmma.commit_group";
    case Op::kWgmmaWait: return "wgmma.wait_group";
    case Op::kClusterArrive: return "barrier.cluster.arrive";
    case Op::kClusterWait: return "barrier.cluster.wait";
    case Op::kMbarrierWait: return "mbarrier.try_wait";
    case Op::kBulkWait: return "cp.async.bulk.wait_group.read";
  }
  return "";
}

void Hazard(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  AddHazard(format, arguments);
  va_end(arguments);
}

void Fatal(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  AddHazard(format, arguments);
  va_end(arguments);
  Abort();
  LeaveThread();
}

void AppendReport(const std::string& line) {
  report += line;
  report += '\n';
}

std::string SmemName(uint32_t address) {
  char text[32];
  std::snprintf(text, sizeof text, "%#x", address);
  std::string name = text;
  const uint32_t offset = address - kSmemBase;
  if (world.kernel->describe_smem == nullptr || offset >= world.smem_bytes) return name;
  const char* region = world.kernel->describe_smem(offset);
  if (region != nullptr) name += " (" + std::string(region) + ")";
  return name;
}

std::string BitRanges(uint64_t bits) {
  std::string text;
  for (uint32_t i = 0; i < 64; ++i) {
    if ((bits >> i & 1) == 0) continue;
    const uint32_t first = i;
    while (i + 1 < 64 && (bits >> (i + 1) & 1) != 0) ++i;
    if (!text.empty()) text += ',';
    text += std::to_string(first);
    if (i > first) text += "-" + std::to_string(i);
  }
  return text;
}

void ClearReport() {
  report.clear();
  num_hazards = 0;
  aborted = false;
}

const std::string& Report() { return report; }
bool HasHazards() { return num_hazards > 0; }
bool IsAborted() { return aborted; }
void Abort() { aborted = true; }

}  // namespace fp8gemm::sim
