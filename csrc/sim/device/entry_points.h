// SPDX-License-Identifier: Apache-2.0
// The instructions of the simulated GPU, as the device headers of this folder call them. Each is
// executed by the current simulated thread. Kept light: every kernel includes it.
#pragma once
#include <shared/gemm_params.h>

#pragma GCC visibility push(default)  // kernels are in another library
namespace fp8gemm::sim {

uint32_t ThreadIdx();
uint32_t BlockIdx();
uint32_t GridDim();
uint32_t ShflWarpIdx();
uint32_t DynamicSmem();

uint32_t ClusterCtaRank();
void StoreAsyncV4F32(uint32_t address, uint32_t bar, uint32_t cta_rank, float x, float y, float z,
                     float w);
void ClusterArrive();
void ClusterArriveRelaxed();
void ClusterWait();
void GridDependencyWait();

uint32_t VoteBallot(bool predicate);
uint32_t ShflUp(uint32_t value, uint32_t delta);
uint32_t ShflIdx(uint32_t value, uint32_t source);
uint32_t ReduxMax(uint32_t value);
bool ElectSync();
void BarWarpSync();
void BarrierSync(uint32_t id, uint32_t threads);
void SetMaxRegisters(bool increase, uint32_t registers);

float LoadSharedF32(uint32_t address);
uint32_t LoadSharedU32(uint32_t address);
void LoadSharedV2F32(uint32_t address, float& x, float& y);
void LoadSharedV4F32(uint32_t address, float (&values)[4]);
void StoreSharedF32(uint32_t address, float value);
void StoreSharedV2F32(uint32_t address, float x, float y);
void StoreMatrixX4(uint32_t address, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3);
void LoadSharedV2U32(uint32_t address, uint32_t& x, uint32_t& y);
void StoreSharedU32(uint32_t address, uint32_t value);
void StoreSharedV2U32(uint32_t address, uint32_t x, uint32_t y);
void StoreSharedV4U32(uint32_t address, uint32_t x, uint32_t y, uint32_t z, uint32_t w);
void CopySharedToGlobal16(void* dst, uint32_t src);
// `bytes` at an address that is a multiple of them.
void LoadGlobal(void* to, const void* address, uint32_t bytes);
void LoadGlobalReadOnly(void* to, const void* address, uint32_t bytes);
void StoreGlobal(void* address, const void* from, uint32_t bytes);

uint32_t PackBf16x2(float high, float low);
uint32_t PackF16x2(float high, float low);
float F16ToF32(uint32_t half);
uint32_t PackE4m3x2(float high, float low);
uint32_t PackE5m2x2(float high, float low);
uint32_t E4m3x2ToF16x2(uint32_t pair);

void MbarrierInit(uint32_t bar, uint32_t count);
void FenceMbarrierInit();
void MbarrierArrive(uint32_t bar);
void MbarrierArriveExpectTx(uint32_t bar, uint32_t tx_bytes);
void MbarrierArriveCluster(uint32_t bar, uint32_t cta_rank);
void MbarrierWaitParity(uint32_t bar, uint32_t parity);
void MbarrierWaitParityCluster(uint32_t bar, uint32_t parity);

void PrefetchTensorMap(const TensorMap* map);
void TmaLoad2d(const TensorMap* map, uint32_t bar, uint32_t dst, int32_t x, int32_t y);
void TmaLoad2dMulticast(const TensorMap* map, uint32_t bar, uint32_t dst, int32_t x, int32_t y,
                        uint32_t cta_mask);
void TmaStore2d(const TensorMap* map, uint32_t src, int32_t x, int32_t y);
void BulkCommitGroup();
void BulkWaitGroupRead(uint32_t max_pending);
void FenceProxyAsync();

void WgmmaFence();
void WgmmaCommitGroup();
void WgmmaWaitGroup(uint32_t max_pending);
// `d` holds the n / 2 accumulators of this thread; types are values of Fp8Type.
void Wgmma(float* d, uint32_t n, uint32_t a_type, uint32_t b_type, uint64_t a_desc, uint64_t b_desc,
           bool scale_d);

}  // namespace fp8gemm::sim
#pragma GCC visibility pop
