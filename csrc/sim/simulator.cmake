# SPDX-License-Identifier: Apache-2.0
# The simulator: an engine, a driver that stands for libcuda, and in a library of their own, which
# the first simulated kernel loads, all kernels that the heuristics can choose.
option(FP8GEMM_SIM_KERNELS "Build the simulator's kernels: most of the build, for tests only" ON)
set(FP8GEMM_SIM_SAMPLE 0 CACHE STRING "Of products only one kernel in so many, for sanitizers; 0: all")

file(GLOB sim_sources CONFIGURE_DEPENDS csrc/sim/*.cc csrc/sim/engine/*.cc)
add_library(jax_fp8gemm_sim SHARED ${sim_sources})
set_target_properties(jax_fp8gemm_sim PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)
target_link_libraries(jax_fp8gemm_sim PRIVATE ${CMAKE_DL_LIBS})
# Most of a simulated launch is spent here, in loops that only -O3 vectorizes.
set_source_files_properties(csrc/sim/engine/mma_math.cc PROPERTIES COMPILE_OPTIONS -O3)
set(sim_targets jax_fp8gemm_sim)

if(FP8GEMM_SIM_KERNELS)
  # Parts compile in parallel.
  set(num_parts 8)
  math(EXPR last_part "${num_parts} - 1")
  if(FP8GEMM_SIM_SAMPLE)
    set(num_parts ${FP8GEMM_SIM_SAMPLE})
    set(last_part 0)
  endif()
  set(kernel_tables csrc/sim/kernels/quantize_table.cc)
  foreach(part RANGE ${last_part})
    set(table "${CMAKE_CURRENT_BINARY_DIR}/kernel_table_${part}.cc")
    configure_file(csrc/sim/kernels/kernel_table.cc.in "${table}" @ONLY)
    list(APPEND kernel_tables "${table}")
  endforeach()
  add_library(jax_fp8gemm_sim_kernels SHARED ${kernel_tables} csrc/gemm/config_key.cc
              csrc/quantize/quantize_key.cc)
  target_link_libraries(jax_fp8gemm_sim_kernels PRIVATE jax_fp8gemm_sim)
  set_target_properties(jax_fp8gemm_sim_kernels PROPERTIES BUILD_WITH_INSTALL_RPATH ON
                        INSTALL_RPATH "$ORIGIN")
  list(APPEND sim_targets jax_fp8gemm_sim_kernels)
endif()

foreach(target IN LISTS sim_targets)
  # The twins come first, so that <ptx/...> and <mma/wgmma_fp8.cuh> mean them.
  target_include_directories(${target} PRIVATE csrc/sim/device csrc/kernels csrc)
  # Without contraction the promotion rounds twice where a GPU fuses, but the same on every CPU.
  target_compile_options(${target} PRIVATE -O2 -ffp-contract=off -Wall -Wextra
                         -Wno-unknown-pragmas)
endforeach()
install(TARGETS ${sim_targets} LIBRARY DESTINATION jax_fp8gemm)
