# SPDX-License-Identifier: Apache-2.0
"""What users pass in: block-scaled arrays, and the rules that arguments obey."""
