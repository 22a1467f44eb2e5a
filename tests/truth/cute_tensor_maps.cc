// SPDX-License-Identifier: Apache-2.0
// Arguments of cuTensorMapEncodeTiled: ours for every kernel, CuTe's `make_tma_atom` for the same
// tiles. Nothing is encoded, so that addresses need no memory behind them.
//
// Usage: cute_tensor_maps FAULT. FAULT is one of kFaults: what is changed in our arguments.
#define CUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL 1  // cuTensorMapEncodeTiled is the one of this file
#define __CUDACC_VER_MAJOR__ 12                   // without a version CuTe encodes nothing
#define __CUDACC_VER_MINOR__ 9

#include <cute/tensor.hpp>  // first: the others need it

#include <cute/atom/copy_traits_sm90_tma.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#undef __CUDACC_VER_MAJOR__
#undef __CUDACC_VER_MINOR__

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "checks.h"
#include "gemm/candidates.h"
#include "gemm/config_key.h"
#include "gemm/sm90_fp8_gemm.h"

namespace truth {

/// What a map is made of, but for the promotion to L2, which is a hint.
struct Arguments {
  unsigned type, rank;
  const void* base;
  uint64_t dims[2], stride_bytes;
  uint32_t box[2], element_strides[2];
  unsigned interleave, swizzle, fill;
};

Arguments from_cute;
std::vector<Arguments> ours;

template <typename... Enums>
Arguments Record(unsigned type, uint32_t rank, void* base, const uint64_t* dims,
                 const uint64_t* strides_bytes, const uint32_t* box, const uint32_t* strides,
                 Enums... interleave_swizzle_fill) {
  const unsigned modes[] = {static_cast<unsigned>(interleave_swizzle_fill)...};
  return {type,
          rank,
          base,
          {dims[0], dims[1]},
          strides_bytes[0],
          {box[0], box[1]},
          {strides[0], strides[1]},
          modes[0],
          modes[1],
          modes[2]};
}

}  // namespace truth

extern "C" ::CUresult cuTensorMapEncodeTiled(::CUtensorMap*, ::CUtensorMapDataType type,
                                             cuuint32_t rank, void* base, const cuuint64_t* dims,
                                             const cuuint64_t* strides_bytes, const cuuint32_t* box,
                                             const cuuint32_t* strides,
                                             ::CUtensorMapInterleave interleave,
                                             ::CUtensorMapSwizzle swizzle, ::CUtensorMapL2promotion,
                                             ::CUtensorMapFloatOOBfill fill) {
  truth::from_cute =
      truth::Record(type, rank, base, dims, strides_bytes, box, strides, interleave, swizzle, fill);
  return ::CUDA_SUCCESS;
}

namespace truth {
namespace {

using namespace cute;
using fp8gemm::GemmBuffers;
using fp8gemm::GemmConfig;
using fp8gemm::GemmKind;
using fp8gemm::GemmProblem;
using fp8gemm::Scaling;
using fp8gemm::TensorMap;

constexpr const char* kFaults[] = {"none", "type", "rows", "pitch", "box", "swizzle"};
std::string fault;

// ---- CuTe's -------------------------------------------------------------------------------------

/// A row-major matrix in global memory, and the part of it that one CTA has in shared memory.
struct Matrix {
  void* base;
  int64_t rows, columns, pitch;
  int tile_rows, tile_columns, share;  // `share` CTAs load the tile together
  int span_bytes;                      // of the swizzle; 0: none
};

template <typename T, int kRows, int kColumns, int kShare, typename Layout>
void Encode(const Matrix& matrix, const Layout& layout) {
  const auto tensor =
      make_tensor(make_gmem_ptr(static_cast<T*>(matrix.base)),
                  make_shape(matrix.rows, matrix.columns), make_stride(matrix.pitch, _1{}));
  using Load = cute::conditional_t<kShare == 1, SM90_TMA_LOAD, SM90_TMA_LOAD_MULTICAST>;
  make_tma_atom(Load{}, tensor, layout, Shape<Int<kRows>, Int<kColumns>>{}, Int<kShare>{});
}

template <typename T, int kSpanBytes>
auto SwizzleAtom() {
  using namespace SM90::GMMA;
  if constexpr (kSpanBytes == 128) return Layout_K_SW128_Atom<T>{};
  if constexpr (kSpanBytes == 64) return Layout_K_SW64_Atom<T>{};
}

template <typename T, int kSpanBytes, int kRows, int kShare, int kColumns = kSpanBytes / sizeof(T)>
void EncodeTile(const Matrix& matrix) {
  using Tile = Shape<Int<kRows>, Int<kColumns>>;
  if constexpr (kSpanBytes == 0) {
    Encode<T, kRows, kColumns, kShare>(matrix, make_layout(Tile{}, LayoutRight{}));
  } else {
    Encode<T, kRows, kColumns, kShare>(matrix, tile_to_shape(SwizzleAtom<T, kSpanBytes>(), Tile{}));
  }
}

// ---- Which tiles there are ----------------------------------------------------------------------
//
// CuTe has tiles as types: those of the table of candidates, found when this is compiled.

/// Up to 64 values, none twice.
struct Values {
  int value[64] = {};
  size_t size = 0;

  constexpr void Add(int added) {
    for (size_t i = 0; i < size; ++i) {
      if (value[i] == added) return;
    }
    value[size++] = added;
  }
};

constexpr int OperandTile(int rows, int share) { return rows * 8 + share; }
constexpr int OutputTile(int type, int rows, int columns, int span_bytes) {
  return ((type * 256 + rows) * 256 + columns) * 256 + span_bytes;
}

template <typename Visit>
constexpr Values ValuesOfConfigs(Visit visit) {
  Values values;
  fp8gemm::ForEachTypeCombination([&](GemmConfig untiled) {
    for (const fp8gemm::TileShape& tile : fp8gemm::TileShapesOf(untiled)) {
      visit(fp8gemm::MakeConfig(untiled, tile), values);
    }
  });
  return values;
}

constexpr Values kOperandTiles = ValuesOfConfigs([](const GemmConfig& config, Values& values) {
  values.Add(OperandTile(config.block_m, config.cluster_n));
  values.Add(OperandTile(config.block_n, config.cluster_m));
});
constexpr Values kOutputTiles = ValuesOfConfigs([](const GemmConfig& config, Values& values) {
  values.Add(OutputTile(int(config.d_type), d_box_rows(config), d_box_columns(config),
                        d_swizzle_bytes(config)));
});
// Boxes of scales: whole tiles, and those with four rows more, for alignment.
constexpr Values kScaleTiles = ValuesOfConfigs([](const GemmConfig& config, Values& values) {
  for (const int rows : {config.block_m, config.block_n}) {
    values.Add(rows);
    if (rows < 256) values.Add(rows + 4);
  }
});

/// Calls visit(Int<value>) for the one of kValues that is `value`.
template <const Values& kValues, typename Visit>
void ForValue(int value, const Visit& visit) {
  bool found = false;
  const auto take = [&](auto each) {
    found = true;
    visit(each);
  };
  [&]<size_t... kIndex>(std::index_sequence<kIndex...>) {
    ((value == kValues.value[kIndex] ? take(Int<kValues.value[kIndex]>{}) : void()), ...);
  }(std::make_index_sequence<kValues.size>());
  CHECK(found);
}

void EncodeOperand(const Matrix& matrix) {
  ForValue<kOperandTiles>(OperandTile(matrix.tile_rows, matrix.share), [&](auto tile) {
    EncodeTile<float_e4m3_t, 128, tile / 8, tile % 8>(matrix);
  });
}

void EncodeOutput(fp8gemm::OutType type, const Matrix& matrix) {
  const int wanted =
      OutputTile(int(type), matrix.tile_rows, matrix.tile_columns, matrix.span_bytes);
  ForValue<kOutputTiles>(wanted, [&](auto tile) {
    constexpr int kType = tile >> 24;
    using T =
        cute::conditional_t<kType == 0, bfloat16_t, cute::conditional_t<kType == 1, half_t, float>>;
    EncodeTile<T, tile % 256, (tile >> 16) % 256, 1, (tile >> 8) % 256>(matrix);
  });
}

void EncodeScales(const Matrix& matrix) {
  ForValue<kScaleTiles>(matrix.tile_columns, [&](auto columns) {
    Encode<float, 1, columns, 1>(matrix, Layout<Shape<_1, decltype(columns)>>{});
  });
}

// ---- Ours ---------------------------------------------------------------------------------------

fp8gemm::CUresult RecordOurs(fp8gemm::CUtensorMap* map, fp8gemm::CUtensorMapDataType type,
                             uint32_t rank, void* base, const uint64_t* dims,
                             const uint64_t* strides_bytes, const uint32_t* box,
                             const uint32_t* strides, fp8gemm::CUtensorMapInterleave interleave,
                             fp8gemm::CUtensorMapSwizzle swizzle, fp8gemm::CUtensorMapL2promotion,
                             fp8gemm::CUtensorMapFloatOOBfill fill) {
  Arguments arguments =
      Record(type, rank, base, dims, strides_bytes, box, strides, interleave, swizzle, fill);
  if (fault == "type") arguments.type ^= 1;
  if (fault == "rows") ++arguments.dims[1];
  if (fault == "pitch") arguments.stride_bytes += 16;
  if (fault == "box") arguments.box[1] *= 2;
  if (fault == "swizzle") arguments.swizzle ^= 1;
  map->opaque[0] = ours.size();
  ours.push_back(arguments);
  return fp8gemm::CUDA_SUCCESS;
}

void Print(const char* whose, const Arguments& each) {
  std::fprintf(stderr,
               "  %s type %u, rank %u, base %p, dims %lu %lu, pitch %lu, box %u %u, steps %u %u, "
               "interleave %u, swizzle %u, fill %u\n",
               whose, each.type, each.rank, each.base, long(each.dims[0]), long(each.dims[1]),
               long(each.stride_bytes), each.box[0], each.box[1], each.element_strides[0],
               each.element_strides[1], each.interleave, each.swizzle, each.fill);
}

void Compare(const GemmConfig& config, const char* operand, const TensorMap& map) {
  const Arguments& a = ours[map.opaque[0]];
  const Arguments& b = from_cute;
  const bool same = a.type == b.type && a.rank == b.rank && a.base == b.base &&
                    std::equal(a.dims, a.dims + 2, b.dims) && a.stride_bytes == b.stride_bytes &&
                    std::equal(a.box, a.box + 2, b.box) &&
                    std::equal(a.element_strides, a.element_strides + 2, b.element_strides) &&
                    a.interleave == b.interleave && a.swizzle == b.swizzle && a.fill == b.fill;
  if (same) return;
  std::fprintf(stderr, "%s: map of %s\n", fp8gemm::ConfigKey(config).c_str(), operand);
  Print("ours", a);
  Print("CuTe", b);
  std::exit(1);
}

void* Address(int index) { return reinterpret_cast<void*>(uint64_t(index + 1) << 44); }

GemmBuffers MakeBuffers() {
  return {.a = Address(0),
          .b = Address(1),
          .sfa = Address(2),
          .sfb = Address(3),
          .d = Address(4),
          .c = Address(5),
          .group_data = Address(6)};
}

void CompareOperands(const fp8gemm::GemmParams& params, const GemmProblem& problem,
                     const GemmConfig& config, const GemmBuffers& buffers) {
  EncodeOperand({.base = buffers.a,
                 .rows = problem.a_rows(),
                 .columns = problem.k,
                 .pitch = problem.k_pitch(),
                 .tile_rows = int(config.block_m),
                 .tile_columns = 128,
                 .share = int(config.cluster_n),
                 .span_bytes = 128});
  Compare(config, "a", params.a);
  EncodeOperand({.base = buffers.b,
                 .rows = problem.b_rows(),
                 .columns = problem.k,
                 .pitch = problem.k_pitch(),
                 .tile_rows = int(config.block_n),
                 .tile_columns = 128,
                 .share = int(config.cluster_m),
                 .span_bytes = 128});
  Compare(config, "b", params.b);
}

void CompareScales(const fp8gemm::GemmParams& params, const GemmProblem& problem,
                   const GemmConfig& config, const GemmBuffers& buffers) {
  const int64_t k_blocks = fp8gemm::ceil_div<int64_t>(problem.k, 128);
  // How many rows come in one box is ours to choose: whole tiles, and what alignment adds.
  const int sfa_rows = ours[params.sfa.opaque[0]].box[0];
  EncodeScales({.base = buffers.sfa,
                .rows = k_blocks,
                .columns = problem.a_rows(),
                .pitch = problem.sfa_pitch(),
                .tile_rows = 1,
                .tile_columns = sfa_rows,
                .share = 1,
                .span_bytes = 0});
  Compare(config, "sfa", params.sfa);
  if (config.scaling != Scaling::k1D1D) return;
  EncodeScales({.base = buffers.sfb,
                .rows = k_blocks,
                .columns = problem.n,
                .pitch = problem.sfb_pitch(),
                .tile_rows = 1,
                .tile_columns = int(config.block_n),
                .share = 1,
                .span_bytes = 0});
  Compare(config, "sfb", params.sfb);
}

void CompareResults(const fp8gemm::GemmParams& params, const GemmProblem& problem,
                    const GemmConfig& config, const GemmBuffers& buffers) {
  Matrix matrix{.base = buffers.d,
                .rows = problem.d_rows(),
                .columns = problem.d_pitch(),
                .pitch = problem.d_pitch(),
                .tile_rows = int(d_box_rows(config)),
                .tile_columns = int(d_box_columns(config)),
                .share = 1,
                .span_bytes = int(d_swizzle_bytes(config))};
  EncodeOutput(config.d_type, matrix);
  Compare(config, "d", params.d);
  if (!config.accumulate) return;
  matrix.base = buffers.c;
  EncodeOutput(config.d_type, matrix);
  Compare(config, "c", params.c);
}

void CompareMaps(const GemmConfig& config, int64_t m, int64_t n, int64_t k) {
  GemmProblem problem;
  problem.kind = config.kind;
  problem.scaling = config.scaling;
  problem.num_groups = config.kind == GemmKind::kDense ? 1 : 3;
  problem.a_type = config.a_type;
  problem.b_type = config.b_type;
  problem.d_type = config.d_type;
  problem.accumulate = config.accumulate;
  problem.m = m;
  problem.n = n;
  problem.k = k;
  fp8gemm::ValidateProblem(problem);
  const GemmBuffers buffers = MakeBuffers();
  fp8gemm::DriverApi api{};
  api.cuTensorMapEncodeTiled = &RecordOurs;
  const auto params = fp8gemm::MakeGemmParams(api, problem, config, buffers, 132);
  CompareOperands(params, problem, config, buffers);
  CompareScales(params, problem, config, buffers);
  CompareResults(params, problem, config, buffers);
}

}  // namespace
}  // namespace truth

int main(int argc, char** argv) {
  CHECK(argc == 2);
  truth::fault = argv[1];
  CHECK(std::find(std::begin(truth::kFaults), std::end(truth::kFaults), truth::fault) !=
        std::end(truth::kFaults));
  int kernels = 0;
  for (const truth::GemmConfig& config : fp8gemm::AllCandidates()) {
    truth::CompareMaps(config, 1003, 1001, 16 * 77);
    truth::CompareMaps(config, 16, 8, 128);
    truth::CompareMaps(config, 100'003, 70'001, 50'001);
    ++kernels;
  }
  std::printf("kernels %d maps %zu\n", kernels, truth::ours.size());
}
