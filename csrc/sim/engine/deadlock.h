// SPDX-License-Identifier: Apache-2.0
// What every thread waits for when none can go on.
#pragma once

namespace fp8gemm::sim {

void ReportDeadlock();

}  // namespace fp8gemm::sim
