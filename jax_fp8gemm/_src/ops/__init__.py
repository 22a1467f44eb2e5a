# SPDX-License-Identifier: Apache-2.0
"""The public products and quantizers, and the operations that they apply."""
