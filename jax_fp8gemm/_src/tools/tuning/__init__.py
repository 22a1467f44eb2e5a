# SPDX-License-Identifier: Apache-2.0
"""Measuring configurations on a GPU, and what times them."""
