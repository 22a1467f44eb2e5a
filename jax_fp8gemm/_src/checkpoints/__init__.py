# SPDX-License-Identifier: Apache-2.0
"""Block-quantized checkpoints in the Hugging Face format."""
