// SPDX-License-Identifier: Apache-2.0
// Runs every kernel in the simulator over instructions whose layouts are CuTe's.
//
// The simulator's kernels take wgmma, stmatrix and TMA stores from this program. Here each wgmma
// has its descriptors compared with CuTe's and gets a result that says where in the tile CuTe has
// each register; stmatrix writes where CuTe's traits say; and what a TMA store would read, found by
// CuTe's layout of its box, must be the element of the result that belongs there. Whatever kernel
// and simulator could have misread together thus meets an independent reading.
//
// Usage: cute_kernels SIMULATOR_LIBRARY FAULT [KEY...]: all kernels, or those. FAULT is one of
// kFaults.
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>

#include "checks.h"
#include "cute_layouts.h"
#include "gemm/candidates.h"
#include "gemm/config_key.h"
#include "kernel_launches.h"
#include "sim/device/entry_points.h"
#include "sim/tensor_map.h"

namespace truth {
namespace {

// What this program reads wrongly on CuTe's side, to show that it is compared.
enum class Fault {
  kNone,
  kFragmentRow,
  kFragmentColumn,
  kDescriptor,
  kKStep,
  kStmatrix,
  kBox,
  kSwizzle
};
constexpr const char* kFaults[] = {"none",       "fragment_row", "fragment_column",
                                   "descriptor", "k_step",       "stmatrix",
                                   "box",        "swizzle"};
Fault fault;
bool Has(Fault one) { return fault == one; }

// What the registers of a wgmma hold, or is in the scales or the accumulator, and so appears in
// the result.
enum class Probe { kRow, kColumn, kRowScale, kColumnScale, kAccumulatorRow, kAccumulatorColumn };

constexpr uint32_t kKSteps = kBlockK / kMmaK;

struct Counts {
  uint64_t kernels = 0, descriptors = 0, stored = 0, copied = 0;
};
Counts counts;

// The launch that is running.
struct Launch {
  GemmConfig config;
  GemmProblem problem;
  Operands* operands;
  Probe probe;
  // CuTe's answers, found beforehand: simulated threads have little stack.
  std::vector<uint64_t> a_descriptors;  // [stage][row block of 64][K step]
  std::vector<uint64_t> b_descriptors;  // [stage][K step]
  std::vector<cute_says::Element> fragments;
  std::vector<cute_says::MatrixPlace> matrix_places;  // [lane][register]
  std::vector<uint32_t> box;
  std::map<uint32_t, uint32_t> wgmma_of;     // CTA and thread: issued so far
  std::map<uint32_t, uint32_t> stmatrix_of;  // the same
  std::map<std::pair<uint32_t, uint32_t>, std::vector<std::array<uint32_t, 5>>> matrices;
  uint64_t elements = 0;  // of the result that were seen
};
Launch* launch;

template <typename... Args>
[[noreturn]] void Differs(const char* what, const char* format, Args... args) {
  std::fprintf(stderr, "%s: %s: ", ConfigKey(launch->config).c_str(), what);
  std::fprintf(stderr, format, args...);
  std::fprintf(stderr, "\n");
  std::_Exit(1);
}

// The simulator's own function, which one of this program hides.
template <typename Function>
Function* Hidden(Function*, const char* mangled) {
  void* const found = dlsym(RTLD_NEXT, mangled);
  if (found == nullptr) checks::Fail(__FILE__, __LINE__, mangled);
  return reinterpret_cast<Function*>(found);
}

// ---- What the result must be --------------------------------------------------------------------

float RowScale(int64_t row) { return 1 + row % 251; }
float ColumnScale(int64_t column) {
  const bool is_1d1d = launch->config.scaling == Scaling::k1D1D;
  return 1 + (is_1d1d ? column % 251 : column / kScaleBlockN);
}

float Expected(int64_t row, int64_t column) {
  switch (launch->probe) {
    case Probe::kRow: return row % launch->config.block_m;
    case Probe::kColumn: return column % launch->config.block_n;
    case Probe::kRowScale: return RowScale(row);
    case Probe::kColumnScale: return ColumnScale(column);
    case Probe::kAccumulatorRow: return row % 256;
    case Probe::kAccumulatorColumn: return column % 256;
  }
  return -1;
}

float FromOutput(const void* element) {
  uint32_t bits = 0;
  std::memcpy(&bits, element, element_bytes(launch->config.d_type));
  if (launch->config.d_type == OutType::kF16) return sim::F16ToF32(bits);
  if (launch->config.d_type == OutType::kBF16) bits <<= 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

void ToOutput(float value, void* element) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (launch->config.d_type == OutType::kBF16) bits = sim::PackBf16x2(0, value);
  if (launch->config.d_type == OutType::kF16) bits = sim::PackF16x2(0, value);
  std::memcpy(element, &bits, element_bytes(launch->config.d_type));
}

// One 32-bit word of shared memory holds elements (row, column) and, of 16-bit types, the next.
void CheckWord(uint32_t address, int64_t row, int64_t column, const char* what) {
  const uint32_t word = sim::LoadSharedU32(address);
  const uint32_t bytes = element_bytes(launch->config.d_type);
  for (uint32_t i = 0; i < 4 / bytes; ++i) {
    const float got = FromOutput(reinterpret_cast<const uint8_t*>(&word) + i * bytes);
    const float wanted = Expected(row, column + i);
    ++launch->elements;
    if (got == wanted) continue;
    Differs(what, "element (%ld, %ld) is %g where probe %d needs %g", long(row), long(column + i),
            got, int(launch->probe), wanted);
  }
}

uint32_t BoxOffset(uint32_t row, uint32_t column) {
  return launch->box[row * d_box_columns(launch->config) + column];
}

}  // namespace
}  // namespace truth

// ---- Instructions -------------------------------------------------------------------------------

namespace fp8gemm::sim {

using namespace truth;

#pragma GCC visibility push(default)

void Wgmma(float* d, uint32_t n, uint32_t, uint32_t, uint64_t a_desc, uint64_t b_desc,
           bool scale_d) {
  // Not used with swizzles: "assumed 1" in CuTe, 0 here.
  constexpr uint64_t kLeadingByteOffset = uint64_t{0x3fff} << 16;
  const GemmConfig& config = launch->config;
  const uint32_t thread = ThreadIdx();
  const uint32_t issued = launch->wgmma_of[BlockIdx() << 16 | thread]++;
  const uint32_t k_step = issued % kKSteps;
  const uint32_t slice = issued / kKSteps % config.row_slices();
  const uint32_t stage = issued / kKSteps / config.row_slices() % config.num_stages;
  const uint32_t row_block = thread / kWarpgroupThreads * config.row_slices() + slice;
  const uint32_t row_blocks = config.num_consumers * config.row_slices();
  const uint64_t a_wanted =
      launch->a_descriptors[(stage * row_blocks + row_block) * kKSteps + k_step];
  const uint64_t b_wanted = launch->b_descriptors[stage * kKSteps + k_step];
  if (n != config.block_n || scale_d != (k_step != 0)) Differs("wgmma", "n %u, step %u", n, k_step);
  if (((a_desc ^ a_wanted) & ~kLeadingByteOffset) != 0) {
    Differs("descriptor of A", "%016lx, CuTe %016lx", long(a_desc), long(a_wanted));
  }
  if (((b_desc ^ b_wanted) & ~kLeadingByteOffset) != 0) {
    Differs("descriptor of B", "%016lx, CuTe %016lx", long(b_desc), long(b_wanted));
  }
  counts.descriptors += 2;
  const cute_says::Element* elements =
      launch->fragments.data() + thread % kWarpgroupThreads * (n / 2);
  for (uint32_t i = 0; i < n / 2; ++i) {
    const int row = Has(Fault::kFragmentRow) ? elements[i].row ^ 8 : elements[i].row;
    const int column = Has(Fault::kFragmentColumn) ? elements[i].column ^ 1 : elements[i].column;
    const bool from_scales =
        launch->probe == Probe::kRowScale || launch->probe == Probe::kColumnScale;
    d[i] = launch->probe == Probe::kRow      ? row_block * kMmaM + row
           : launch->probe == Probe::kColumn ? column
                                             : from_scales;
  }
}

// Lanes do not wait for each other here: the last one to come writes for all.
void StoreMatrixX4(uint32_t address, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3) {
  const uint32_t thread = ThreadIdx();
  const uint32_t issued = launch->stmatrix_of[BlockIdx() << 16 | thread]++;
  auto& lanes = launch->matrices[{BlockIdx() << 16 | thread / kWarpThreads, issued}];
  lanes.resize(kWarpThreads);
  lanes[thread % kWarpThreads] = {m0, m1, m2, m3, address};
  for (const auto& lane : lanes) {
    if (lane[4] == 0) return;
  }
  for (uint32_t lane = 0; lane < kWarpThreads; ++lane) {
    for (uint32_t i = 0; i < 4; ++i) {
      const cute_says::MatrixPlace place =
          launch->matrix_places[4 * lane + (Has(Fault::kStmatrix) ? i ^ 1 : i)];
      StoreSharedU32(lanes[place.address_lane][4] + place.byte, lanes[lane][i]);
    }
  }
  launch->matrices.erase({BlockIdx() << 16 | thread / kWarpThreads, issued});
}

void TmaStore2d(const TensorMap* map, uint32_t src, int32_t x, int32_t y) {
  static const auto hidden = Hidden(&TmaStore2d, "_ZN7fp8gemm3sim10TmaStore2dEPKNS_9TensorMapEjii");
  const SimTensorMap& decoded = *reinterpret_cast<const SimTensorMap*>(map);
  const uint32_t word_columns = 4 / element_bytes(launch->config.d_type);
  const uint64_t before = launch->elements;
  for (uint32_t row = 0; row < decoded.box[1] && y + row < decoded.dims[1]; ++row) {
    for (uint32_t column = 0; column < decoded.box[0] && x + column < decoded.dims[0];
         column += word_columns) {
      CheckWord(src + BoxOffset(row, column), y + row, x + column, "TMA store");
    }
  }
  counts.stored += launch->elements - before;
  hidden(map, src, x, y);
}

void CopySharedToGlobal16(void* dst, uint32_t src) {
  static const auto hidden =
      Hidden(&CopySharedToGlobal16, "_ZN7fp8gemm3sim20CopySharedToGlobal16EPvj");
  const GemmConfig& config = launch->config;
  const SmemLayout layout = make_smem_layout(config);
  const uint32_t element = element_bytes(config.d_type);
  const int64_t index = (static_cast<uint8_t*>(dst) - launch->operands->d.data()) / element;
  const int64_t row = index / launch->problem.n;
  const int64_t column = index % launch->problem.n;
  const uint32_t tile_row = row % config.block_m;
  const uint32_t tile_column = column % config.block_n;
  const uint32_t slab = tile_row / config.consumer_rows() * d_slabs(config) +
                        tile_row / kMmaM % config.row_slices() % d_slabs(config);
  const uint32_t box = DynamicSmem() + layout.d + slab * layout.d_slab_bytes +
                       tile_column / d_box_columns(config) * d_box_bytes(config);
  const uint32_t wanted = box + BoxOffset(tile_row % kMmaM, tile_column % d_box_columns(config));
  if (src != wanted) Differs("copied chunk", "address %#x, CuTe %#x", src, wanted);
  for (uint32_t byte = 0; byte < 16; byte += 4) {
    CheckWord(src + byte, row, column + byte / element, "copied chunk");
  }
  counts.copied += 16 / element;
  hidden(dst, src);
}

#pragma GCC visibility pop

}  // namespace fp8gemm::sim

// ---- Launches -----------------------------------------------------------------------------------

namespace truth {
namespace {

void FillOperands() {
  const GemmProblem& problem = launch->problem;
  Operands& operands = *launch->operands;
  // Only what the last K block adds counts: the others have scales of zero.
  const int64_t k_block = operands.k_blocks - 1;
  const bool is_1d1d = problem.scaling == Scaling::k1D1D;
  for (int64_t row = 0; row < problem.m; ++row) {
    operands.sfa[k_block * problem.sfa_pitch() + row] =
        launch->probe == Probe::kRowScale ? RowScale(row) : 1;
  }
  for (int64_t column = 0; column < problem.n; ++column) {
    const int64_t index = is_1d1d ? k_block * problem.sfb_pitch() + column
                                  : column / kScaleBlockN * operands.k_blocks + k_block;
    operands.sfb[index] = launch->probe == Probe::kColumnScale ? ColumnScale(column) : 1;
  }
  if (!problem.accumulate || launch->probe < Probe::kAccumulatorRow) return;
  const uint32_t bytes = element_bytes(problem.d_type);
  for (int64_t i = 0; i < problem.m * problem.n; ++i) {
    ToOutput(Expected(i / problem.n, i % problem.n), operands.c.data() + i * bytes);
  }
}

void AskCute(const GemmConfig& config, Launch& asked) {
  const SmemLayout layout = make_smem_layout(config);
  const uint32_t row_blocks = config.num_consumers * config.row_slices();
  for (uint32_t stage = 0; stage < config.num_stages; ++stage) {
    const uint32_t a = sim::DynamicSmem() + layout.a + stage * layout.a_stage_bytes;
    const uint32_t b = sim::DynamicSmem() + layout.b + stage * layout.b_stage_bytes;
    for (uint32_t i = 0; i < row_blocks * kKSteps; ++i) {
      const uint64_t descriptor = cute_says::DescriptorOfA(a, i / kKSteps, i % kKSteps);
      asked.a_descriptors.push_back(descriptor ^ uint64_t{Has(Fault::kDescriptor)} << 32);
    }
    for (uint32_t k_step = 0; k_step < kKSteps; ++k_step) {
      asked.b_descriptors.push_back(
          cute_says::DescriptorOfB(b, config.block_n, k_step ^ Has(Fault::kKStep)));
    }
  }
  asked.fragments = cute_says::Fragments(config.block_n);
  for (uint32_t i = 0; i < kWarpThreads * 4; ++i) {
    asked.matrix_places.push_back(cute_says::StmatrixPlace(i / 4, i % 4));
  }
  int span_bytes = d_swizzle_bytes(config);
  if (Has(Fault::kBox)) span_bytes = span_bytes == 128 ? 64 : 128;
  const int columns = d_box_columns(config);
  asked.box = element_bytes(config.d_type) == 4
                  ? cute_says::BoxOffsets<float>(span_bytes, columns)
                  : cute_says::BoxOffsets<uint16_t>(span_bytes, columns);
}

void RunProbe(const DriverApi& api, const GemmConfig& config, Probe probe) {
  const GemmProblem problem = ProblemFor(config);
  Operands operands(problem, config);
  Launch running;
  running.config = config;
  running.problem = problem;
  running.operands = &operands;
  running.probe = probe;
  AskCute(config, running);
  launch = &running;
  FillOperands();
  LaunchKernel(api, config, problem, operands);
  if (running.elements != uint64_t(problem.m * problem.n)) {
    Differs("result", "%lu elements were stored", long(running.elements));
  }
}

void RunKernel(const DriverApi& api, const GemmConfig& config) {
  for (const Probe probe : {Probe::kRow, Probe::kColumn, Probe::kRowScale, Probe::kColumnScale}) {
    RunProbe(api, config, probe);
  }
  if (config.accumulate) {
    RunProbe(api, config, Probe::kAccumulatorRow);
    RunProbe(api, config, Probe::kAccumulatorColumn);
  }
  ++counts.kernels;
}

// The simulator's swizzle, by which its TMA and its wgmma find what they read and write.
int CompareSwizzles() {
  int addresses = 0;
  for (const int span_bytes : {32, 64, 128}) {
    const int read_as = Has(Fault::kSwizzle) && span_bytes == 128 ? 64 : span_bytes;
    for (uint32_t address = 0; address < kMaxSmemBytes; address += 16, ++addresses) {
      const uint32_t got = sim::SwizzleAddress(address, span_bytes);
      const uint32_t wanted = cute_says::Swizzled(address, read_as);
      if (got == wanted) continue;
      std::fprintf(stderr, "swizzle of %d bytes: %#x, CuTe %#x\n", span_bytes, got, wanted);
      std::_Exit(1);
    }
  }
  return addresses;
}

}  // namespace
}  // namespace truth

int main(int argc, char** argv) {
  using namespace truth;
  CHECK(argc >= 3);
  const std::string wanted = argv[2];
  const auto named = std::find(std::begin(kFaults), std::end(kFaults), wanted);
  CHECK(named != std::end(kFaults));
  fault = static_cast<Fault>(named - kFaults);
  const int addresses = CompareSwizzles();
  const DriverApi& api = QuietSimulator(argv[1]);
  std::vector<GemmConfig> configs;
  for (int i = 3; i < argc; ++i) configs.push_back(ParseConfigKey(argv[i]));
  if (argc == 3) configs = AllCandidates();
  for (const GemmConfig& config : configs) RunKernel(api, config);
  std::printf("kernels %lu descriptors %lu stored %lu copied %lu swizzled %d\n", counts.kernels,
              counts.descriptors, counts.stored, counts.copied, addresses);
}
