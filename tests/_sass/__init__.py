# SPDX-License-Identifier: Apache-2.0
"""Static facts about compiled Hopper kernels, and the gates and ratchets tests put on them.

`disassemble` -> `kernel_facts` -> `gate_failures` and `ratchet_failures`. Needs no GPU: the cubin's
ELF is read in Python and its instructions come from `nvdisasm` (wheel nvidia-cuda-nvdisasm).
"""

from _sass.elf import Cubin as Cubin
from _sass.elf import parse_cubin as parse_cubin
from _sass.facts import KernelFacts as KernelFacts
from _sass.facts import LoopFacts as LoopFacts
from _sass.facts import kernel_facts as kernel_facts
from _sass.gates import Expected as Expected
from _sass.gates import gate_failures as gate_failures
from _sass.gates import log_failures as log_failures
from _sass.instructions import Instruction as Instruction
from _sass.instructions import disassemble as disassemble
from _sass.instructions import find_nvdisasm as find_nvdisasm
from _sass.ratchets import Golden as Golden
from _sass.ratchets import ratchet_failures as ratchet_failures
