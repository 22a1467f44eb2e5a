// SPDX-License-Identifier: Apache-2.0
// Parameters of launches whose matrices have more than 2^31 elements, without the matrices; that
// making them allocates nothing; and the division that kernels do with some of them.
//
// Usage: gemm_params_test SIMULATOR_LIBRARY
#include <cstdlib>
#include <cstring>
#include <new>

#include "checks.h"
#include "driver/error.h"
#include "gemm/candidates.h"
#include "gemm/cost_model.h"
#include "gemm/sm90_fp8_gemm.h"
#include "quantize/quantize_problem.h"
#include "sim/tensor_map.h"
#include "sim_library.h"

namespace {
int num_allocations = 0;
}  // namespace

void* operator new(size_t bytes) {
  ++num_allocations;
  return std::malloc(bytes);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace fp8gemm {
namespace {

static_assert(kMaxExtent == (int64_t{1} << 31) - 1 - 512);
constexpr int kNumSms = 132;

// Address that no program has, and that leaves room for terabytes behind it.
void* Address(int index) { return reinterpret_cast<void*>(uint64_t(index + 1) << 44); }

// A tensor map as the simulator's driver encoded it.
sim::SimTensorMap Decoded(const TensorMap& map) {
  sim::SimTensorMap decoded;
  std::memcpy(&decoded, &map, sizeof decoded);
  return decoded;
}

void CheckMap(const TensorMap& map, int index, int64_t columns, int64_t rows, int64_t pitch_bytes) {
  const sim::SimTensorMap decoded = Decoded(map);
  CHECK(decoded.base == Address(index) && decoded.rank == 2);
  CHECK(decoded.dims[0] == uint64_t(columns) && decoded.dims[1] == uint64_t(rows));
  CHECK(decoded.strides_bytes[0] == uint64_t(pitch_bytes));
}

// The bands are all of the minor dimension, and as long as the other one.
void CheckRaster(const GemmParams& params) {
  const bool along_n = params.raster_along_n != 0;
  const uint64_t minor = along_n ? params.cluster_tiles_n : params.cluster_tiles_m;
  const uint64_t major = along_n ? params.cluster_tiles_m : params.cluster_tiles_n;
  const uint64_t width = params.raster_width.divisor;
  CHECK(params.band_tiles.divisor == width * major);
  const uint64_t last = minor - params.whole_bands * width;
  CHECK(last < width && (last == 0 || params.last_band_width.divisor == last));
}

// Around multiples of divisors of every size, and at the ends of what a dividend can be.
void TestFastDivisor() {
  const auto check = [](uint32_t divisor) {
    const FastDivisor fast = fast_divisor(divisor);
    CHECK(fast.divisor == divisor);
    constexpr uint64_t kEnd = uint64_t{1} << 31;
    for (uint64_t quotient = 0; quotient * divisor < kEnd; quotient += quotient / 8 + 1) {
      for (const int64_t offset : {-1, 0, 1}) {
        const uint64_t x = quotient * divisor + offset;
        if (x < kEnd) CHECK(fast.quotient(x) == x / divisor);
      }
    }
    CHECK(fast.quotient(kEnd - 1) == (kEnd - 1) / divisor);
    const uint64_t last = (kEnd - 1) / divisor * divisor;  // the last multiple, maybe 0
    if (last > 0) CHECK(fast.quotient(last - 1) == (last - 1) / divisor);
  };
  for (uint32_t divisor = 1; divisor <= 5000; ++divisor) check(divisor);
  for (uint32_t power = 12; power <= 31; ++power) {
    for (const int32_t offset : {-3, -1, 0, 1, 3}) {
      const uint32_t divisor = (uint32_t{1} << power) + offset;
      if (divisor <= uint32_t{1} << 31) check(divisor);
    }
  }
}

// Every candidate for `problem`, which is valid: maps, and what the kernel counts in 32 bits.
void TestProblem(const DriverApi& api, const GemmProblem& problem) {
  ValidateProblem(problem);
  const int64_t k_blocks = ceil_div<int64_t>(problem.k, 128);
  const int64_t a_rows = problem.a_rows();
  const int64_t b_rows = problem.b_rows();
  const GemmBuffers buffers{.a = Address(0),
                            .b = Address(1),
                            .sfa = Address(2),
                            .sfb = Address(3),
                            .d = Address(4),
                            .c = Address(4),
                            .group_data = Address(5)};
  const int64_t k_pitch = align_up<int64_t>(problem.k, 16);
  const int64_t sfa_pitch = align_up<int64_t>(a_rows, 4);
  const int64_t sfb_pitch = align_up<int64_t>(b_rows, 4);
  const int64_t d_pitch = align_up<int64_t>(problem.n, problem.d_type == OutType::kF32 ? 4 : 8);
  const int64_t d_pitch_bytes = d_pitch * element_bytes(problem.d_type);
  int candidates = 0;
  for (const TileShape& shape : TileShapesOf(problem.untiled_config())) {
    const GemmConfig config = MakeConfig(problem.untiled_config(), shape);
    if (BrokenRule(config) != nullptr || config.split_k > 1) continue;
    ++candidates;
    const int before = num_allocations;
    const int64_t clusters = ResidentClusters(kNumSms, config.cluster_size());
    const GemmParams params = MakeGemmParams(api, problem, config, buffers, clusters);
    const unsigned grid = Grid(problem, config, clusters);
    CHECK(num_allocations == before);
    CheckMap(params.a, 0, problem.k, a_rows, k_pitch);
    CheckMap(params.b, 1, problem.k, b_rows, k_pitch);
    CheckMap(params.sfa, 2, a_rows, k_blocks, 4 * sfa_pitch);
    if (problem.scaling == Scaling::k1D1D) {
      CheckMap(params.sfb, 3, problem.n, k_blocks, 4 * sfb_pitch);
    } else {
      CHECK(params.sfb_blocks == Address(3));
    }
    CheckMap(params.d, 4, d_pitch, problem.d_rows(), d_pitch_bytes);
    if (problem.accumulate) CheckMap(params.c, 4, d_pitch, problem.d_rows(), d_pitch_bytes);
    CHECK(params.d_base == Address(4) && params.d_pitch_bytes == uint64_t(d_pitch_bytes));
    CHECK(params.m == uint64_t(problem.m) && params.n == uint64_t(problem.n));
    CHECK(params.k_blocks == uint64_t(k_blocks));
    const int64_t tile_rows = int64_t{config.block_m} * config.cluster_m;
    const int64_t tile_columns = int64_t{config.block_n} * config.cluster_n;
    CHECK(params.cluster_tiles_m == uint64_t(ceil_div(problem.m, tile_rows)));
    CHECK(params.cluster_tiles_n == uint64_t(ceil_div(problem.n, tile_columns)));
    // tile_scheduler.cuh: the last row and column of a tile, tiles in all, and those of a band.
    const uint64_t tiles = uint64_t{params.cluster_tiles_m} * params.cluster_tiles_n;
    CHECK(params.cluster_tiles_m * tile_rows <= INT32_MAX);
    CHECK(params.cluster_tiles_n * tile_columns <= INT32_MAX);
    const uint64_t ends = problem.kind == GemmKind::kRagged
                              ? (params.num_groups + 1) * uint64_t{params.cluster_tiles_n}
                              : tiles * (problem.d_rows() / problem.m - 1);
    CHECK(tiles + ends + kNumSms < uint64_t{1} << 31);
    CheckRaster(params);
    CHECK(params.tiles_together.divisor ==
          (problem.kind == GemmKind::kKGrouped ? uint64_t{params.cluster_tiles_m} : 1) *
              params.cluster_tiles_n);
    CHECK(grid >= 1 && grid <= kNumSms);
  }
  CHECK(candidates > 0);
}

// The few that an H100 or H200 holds, and what of them a launch takes.
void TestClusters() {
  CHECK(ResidentClusters(132, 1) == 132 && ResidentClusters(132, 2) == 66);
  CHECK(ResidentClusters(132, 4) == 31 && ResidentClusters(132, 8) == 15);
  CHECK(ResidentClusters(114, 4) == 28 && ResidentClusters(1, 8) == 1);
  const GemmProblem problem{.m = 4096, .n = 4096, .k = 4096};
  for (const TileShape& shape : TileShapesOf(problem.untiled_config())) {
    const GemmConfig config = MakeConfig(problem.untiled_config(), shape);
    if (config.split_k > 1) continue;
    const unsigned size = config.cluster_size();
    CHECK(Grid(problem, config, 31) == 31 * size);
    CHECK(Grid(problem, config, 1'000'000) * config.block_m * config.block_n ==
          unsigned(align_up(problem.m, int64_t{config.block_m} * config.cluster_m)) *
              unsigned(align_up(problem.n, int64_t{config.block_n} * config.cluster_n)));
  }
}

GemmProblem Problem(GemmKind kind, int64_t groups, int64_t m, int64_t n, int64_t k) {
  GemmProblem problem;
  problem.kind = kind;
  problem.scaling = kind == GemmKind::kKGrouped ? Scaling::k1D1D : Scaling::k1D2D;
  problem.num_groups = groups;
  problem.m = m;
  problem.n = n;
  problem.k = k;
  return problem;
}

// More than 2^31 elements in each matrix, and at the ends of what is allowed.
void TestLarge(const DriverApi& api) {
  GemmProblem dense = Problem(GemmKind::kDense, 1, 100'003, 70'001, 50'001);
  TestProblem(api, dense);
  dense.scaling = Scaling::k1D1D;
  dense.d_type = OutType::kF32;
  dense.accumulate = true;
  TestProblem(api, dense);
  TestProblem(api, Problem(GemmKind::kDense, 1, kMaxExtent, 8, 16));
  TestProblem(api, Problem(GemmKind::kDense, 1, 8, kMaxExtent, 16));
  TestProblem(api, Problem(GemmKind::kDense, 1, 8, 8, kMaxExtent));
  TestProblem(api, Problem(GemmKind::kDense, 1, 270'000, 1'000'000, 128));  // 2^30 tiles, nearly
  TestProblem(api, Problem(GemmKind::kRagged, 256, 1'000'001, 7168, 20'480));
  TestProblem(api, Problem(GemmKind::kContiguous, 256, 1'000'064, 7168, 20'480));
  TestProblem(api, Problem(GemmKind::kMasked, 256, 8192, 7168, 20'480));
  TestProblem(api, Problem(GemmKind::kMasked, 512, kMaxExtent / 512, 8, 16));
  TestProblem(api, Problem(GemmKind::kMasked, 512, 8, kMaxExtent / 512, 16));
  TestProblem(api, Problem(GemmKind::kKGrouped, 256, 7168, 4096, 1'000'064));
  TestProblem(api, Problem(GemmKind::kKGrouped, 512, kMaxExtent / 512, 8, 128));
}

void TestRefused() {
  const auto message = [](const GemmProblem& problem) {
    return CHECK_THROWS(UnsupportedError, ValidateProblem(problem));
  };
  const int64_t part = kMaxExtent / 512 + 1;
  CHECK_CONTAINS(message(Problem(GemmKind::kDense, 1, kMaxExtent + 1, 8, 8)), "m must be from 1");
  CHECK_CONTAINS(message(Problem(GemmKind::kMasked, 512, part, 8, 8)), "rows of all groups of a");
  CHECK_CONTAINS(message(Problem(GemmKind::kRagged, 512, 8, part, 8)), "rows of all groups of b");
  CHECK_CONTAINS(message(Problem(GemmKind::kKGrouped, 512, part, 8, 8)), "rows of all groups of d");
  CHECK_CONTAINS(message(Problem(GemmKind::kDense, 1, kMaxExtent, 272, 8)), "16x16 tiles");
  // 512 rows, each of a matrix of its own: 2^24 tiles of 64x64 in each.
  CHECK_CONTAINS(message(Problem(GemmKind::kKGrouped, 512, 1, 1 << 30, 128)), "16x16 tiles");
}

// The grid of a quantizer is a product of three extents, which must not wrap before it is checked.
void TestQuantizers() {
  QuantizeProblem problem{.config = {.layout = QuantizeLayout::kBlocks},
                          .batches = 3,
                          .rows = 300'000,
                          .columns = 100'000,
                          .num_groups = 0};
  ValidateQuantizeProblem(problem);
  CHECK(problem.grid(1) == int64_t{3} * 2344 * 782);
  problem.batches = problem.rows = problem.columns = kMaxExtent;
  CHECK_CONTAINS(CHECK_THROWS(UnsupportedError, ValidateQuantizeProblem(problem)),
                 "blocks of rows of all batches");
  problem.batches = 1;
  CHECK_CONTAINS(CHECK_THROWS(UnsupportedError, ValidateQuantizeProblem(problem)),
                 "the number of warps");
  problem.config.layout = QuantizeLayout::kRows;
  CHECK_CONTAINS(CHECK_THROWS(UnsupportedError, ValidateQuantizeProblem(problem)),
                 "the number of warps");
  problem.columns = 128;
  ValidateQuantizeProblem(problem);
  problem.config.layout = QuantizeLayout::kKGrouped;
  problem.num_groups = 512;
  CHECK_CONTAINS(CHECK_THROWS(UnsupportedError, ValidateQuantizeProblem(problem)),
                 "columns of the result");
  problem.rows = kMaxExtent - 127 * 512;
  ValidateQuantizeProblem(problem);
  CHECK(problem.out_columns() > INT32_MAX - 1024);
}

}  // namespace
}  // namespace fp8gemm

int main(int argc, char** argv) {
  TakeSimLibrary(argc, argv);
  fp8gemm::TestFastDivisor();
  fp8gemm::TestClusters();
  fp8gemm::TestLarge(fp8gemm::SimDriver());
  fp8gemm::TestRefused();
  fp8gemm::TestQuantizers();
}
