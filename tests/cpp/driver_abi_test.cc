// SPDX-License-Identifier: Apache-2.0
// Compares the library's driver declarations with a real cuda.h, at compile time.
#include <cuda.h>

#include <cstddef>
#include <type_traits>

#include "driver/driver.h"

namespace ours = fp8gemm;

#define SAME_VALUE(name) \
  static_assert(static_cast<unsigned>(ours::name) == static_cast<unsigned>(::name), #name)
#define SAME_TYPE_LAYOUT(name)                                           \
  static_assert(sizeof(ours::name) == sizeof(::name), "size of " #name); \
  static_assert(alignof(ours::name) == alignof(::name), "alignment of " #name)
#define SAME_OFFSET(type, member) \
  static_assert(offsetof(ours::type, member) == offsetof(::type, member), #type "::" #member)

SAME_VALUE(CUDA_SUCCESS);
SAME_VALUE(CUDA_ERROR_INVALID_VALUE);
SAME_VALUE(CUDA_ERROR_OUT_OF_MEMORY);
SAME_VALUE(CUDA_ERROR_INVALID_DEVICE);
SAME_VALUE(CUDA_ERROR_INVALID_IMAGE);
SAME_VALUE(CUDA_ERROR_INVALID_CONTEXT);
SAME_VALUE(CUDA_ERROR_NO_BINARY_FOR_GPU);
SAME_VALUE(CUDA_ERROR_INVALID_PTX);
SAME_VALUE(CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
SAME_VALUE(CUDA_ERROR_INVALID_SOURCE);
SAME_VALUE(CUDA_ERROR_INVALID_HANDLE);
SAME_VALUE(CUDA_ERROR_NOT_FOUND);
SAME_VALUE(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
SAME_VALUE(CUDA_ERROR_LAUNCH_FAILED);
SAME_VALUE(CUDA_ERROR_NOT_SUPPORTED);
SAME_VALUE(CUDA_ERROR_INVALID_CLUSTER_SIZE);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
SAME_VALUE(CU_FUNC_ATTRIBUTE_NUM_REGS);
SAME_VALUE(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
SAME_VALUE(CU_TENSOR_MAP_DATA_TYPE_UINT8);
SAME_VALUE(CU_TENSOR_MAP_DATA_TYPE_FLOAT16);
SAME_VALUE(CU_TENSOR_MAP_DATA_TYPE_FLOAT32);
SAME_VALUE(CU_TENSOR_MAP_DATA_TYPE_FLOAT64);
SAME_VALUE(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
SAME_VALUE(CU_TENSOR_MAP_INTERLEAVE_NONE);
SAME_VALUE(CU_TENSOR_MAP_SWIZZLE_NONE);
SAME_VALUE(CU_TENSOR_MAP_SWIZZLE_32B);
SAME_VALUE(CU_TENSOR_MAP_SWIZZLE_64B);
SAME_VALUE(CU_TENSOR_MAP_SWIZZLE_128B);
SAME_VALUE(CU_TENSOR_MAP_L2_PROMOTION_NONE);
SAME_VALUE(CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
SAME_VALUE(CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
SAME_VALUE(CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
SAME_VALUE(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);

SAME_TYPE_LAYOUT(CUresult);
SAME_TYPE_LAYOUT(CUdevice);
static_assert(sizeof(ours::CUtensorMap) == sizeof(::CUtensorMap));
static_assert(alignof(ours::CUtensorMap) >= alignof(::CUtensorMap));  // 64 or 128, by version
SAME_TYPE_LAYOUT(CUlaunchAttributeValue);
SAME_OFFSET(CUlaunchAttributeValue, clusterDim.x);
SAME_OFFSET(CUlaunchAttributeValue, clusterDim.y);
SAME_OFFSET(CUlaunchAttributeValue, clusterDim.z);
SAME_OFFSET(CUlaunchAttributeValue, programmaticStreamSerializationAllowed);
SAME_TYPE_LAYOUT(CUlaunchAttribute);
SAME_OFFSET(CUlaunchAttribute, id);
SAME_OFFSET(CUlaunchAttribute, value);
SAME_TYPE_LAYOUT(CUlaunchConfig);
SAME_OFFSET(CUlaunchConfig, gridDimX);
SAME_OFFSET(CUlaunchConfig, gridDimY);
SAME_OFFSET(CUlaunchConfig, gridDimZ);
SAME_OFFSET(CUlaunchConfig, blockDimX);
SAME_OFFSET(CUlaunchConfig, blockDimY);
SAME_OFFSET(CUlaunchConfig, blockDimZ);
SAME_OFFSET(CUlaunchConfig, sharedMemBytes);
SAME_OFFSET(CUlaunchConfig, hStream);
SAME_OFFSET(CUlaunchConfig, attrs);
SAME_OFFSET(CUlaunchConfig, numAttrs);

// Two parameters travel alike when both are pointers, or both are integers or enums of one size.
template <typename A, typename B>
inline constexpr bool kSameParameter =
    sizeof(A) == sizeof(B) && std::is_pointer_v<A> == std::is_pointer_v<B>;

template <typename... A>
struct Parameters {};

template <typename A, typename B>
inline constexpr bool kSameParameters = false;
template <typename... A, typename... B>
  requires(sizeof...(A) == sizeof...(B))
inline constexpr bool kSameParameters<Parameters<A...>, Parameters<B...>> =
    (kSameParameter<A, B> && ...);

template <typename Result, typename... A>
Parameters<Result, A...> ParametersOf(Result (*)(A...));

#define SAME_FUNCTION(name)                                                     \
  static_assert(kSameParameters<decltype(ParametersOf(ours::DriverApi{}.name)), \
                                decltype(ParametersOf(&::name))>,               \
                #name)

SAME_FUNCTION(cuInit);
SAME_FUNCTION(cuDriverGetVersion);
SAME_FUNCTION(cuGetErrorName);
SAME_FUNCTION(cuGetErrorString);
SAME_FUNCTION(cuCtxGetDevice);
SAME_FUNCTION(cuDeviceGetAttribute);
SAME_FUNCTION(cuDeviceGetName);
SAME_FUNCTION(cuLibraryLoadData);
SAME_FUNCTION(cuLibraryUnload);
SAME_FUNCTION(cuLibraryGetKernel);
SAME_FUNCTION(cuKernelGetFunction);
SAME_FUNCTION(cuFuncGetAttribute);
SAME_FUNCTION(cuOccupancyMaxActiveClusters);
SAME_FUNCTION(cuKernelSetAttribute);
SAME_FUNCTION(cuLaunchKernelEx);
SAME_FUNCTION(cuTensorMapEncodeTiled);
