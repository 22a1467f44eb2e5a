# SPDX-License-Identifier: Apache-2.0
"""Times the package beside its peers on one machine and records everything: see README.md."""
