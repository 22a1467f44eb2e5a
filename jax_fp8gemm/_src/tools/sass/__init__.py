# SPDX-License-Identifier: Apache-2.0
"""Machine code of kernels: disassembly, and facts counted in it."""
