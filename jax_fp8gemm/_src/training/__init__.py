# SPDX-License-Identifier: Apache-2.0
"""Layers with derivative rules: dot, dot_general and ragged_dot."""
