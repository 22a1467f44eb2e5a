# SPDX-License-Identifier: Apache-2.0
# The simulator: engine, a driver that stands for libcuda, and every kernel the planner can choose,
# compiled from the device sources with the simulator's twins of kernels/ptx and kernels/mma.
set(num_parts 8)
set(kernel_tables "")
math(EXPR last_part "${num_parts} - 1")
foreach(part RANGE ${last_part})
  set(table "${CMAKE_CURRENT_BINARY_DIR}/kernel_table_${part}.cc")
  configure_file(csrc/sim/kernels/kernel_table.cc.in "${table}" @ONLY)
  list(APPEND kernel_tables "${table}")
endforeach()

file(GLOB sim_sources CONFIGURE_DEPENDS csrc/sim/*.cc csrc/sim/engine/*.cc)
add_library(jax_fp8gemm_sim SHARED ${sim_sources} ${kernel_tables}
            csrc/sim/kernels/quantize_table.cc csrc/gemm/config_key.cc csrc/quantize/quantize_key.cc)
# The twins come first, so that <ptx/...> and <mma/wgmma_fp8.cuh> mean them.
target_include_directories(jax_fp8gemm_sim PRIVATE csrc/sim/device csrc/kernels csrc)
# Without contraction the promotion rounds twice where a GPU fuses, but the same on every CPU.
target_compile_options(jax_fp8gemm_sim PRIVATE -O2 -ffp-contract=off -Wall -Wextra
                       -Wno-unknown-pragmas)
# Most of a simulated launch is spent here, in loops that only -O3 vectorises.
set_source_files_properties(csrc/sim/engine/mma_math.cc PROPERTIES COMPILE_OPTIONS -O3)
