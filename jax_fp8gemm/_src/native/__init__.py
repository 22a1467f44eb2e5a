# SPDX-License-Identifier: Apache-2.0
"""The compiled extension: custom calls, planning, caches and settings."""
