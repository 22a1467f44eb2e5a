# SPDX-License-Identifier: Apache-2.0
"""Gates and ratchets that tests put on the static facts about compiled Hopper kernels.

`disassemble` -> `kernel_facts` -> `kernel_failures`, `ratchet_failures`. Needs no GPU: the cubin's
ELF is read in Python and its instructions come from `nvdisasm` (wheel nvidia-cuda-nvdisasm).
"""

from _sass.gates import Expected as Expected
from _sass.gates import gate_failures as gate_failures
from _sass.gates import log_failures as log_failures
from _sass.ratchets import Golden as Golden
from _sass.ratchets import ratchet_failures as ratchet_failures
from _sass.rules import kernel_failures as kernel_failures
from jax_fp8gemm._src.tools.sass.cubin import Cubin as Cubin
from jax_fp8gemm._src.tools.sass.cubin import parse_cubin as parse_cubin
from jax_fp8gemm._src.tools.sass.disassembly import Instruction as Instruction
from jax_fp8gemm._src.tools.sass.disassembly import disassemble as disassemble
from jax_fp8gemm._src.tools.sass.disassembly import find_nvdisasm as find_nvdisasm
from jax_fp8gemm._src.tools.sass.facts import KernelFacts as KernelFacts
from jax_fp8gemm._src.tools.sass.facts import LoopFacts as LoopFacts
from jax_fp8gemm._src.tools.sass.facts import kernel_facts as kernel_facts
