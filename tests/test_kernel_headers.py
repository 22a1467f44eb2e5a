# SPDX-License-Identifier: Apache-2.0
"""What a kernel is compiled from: its cache key holds these headers, and no others."""

import hashlib
import re

import pytest
from _kernels import device_headers
from _nvrtc import find_all

GEMM, QUANTIZER = "1d2d.m128n128.w2.s5.c1x1.e4m3.e4m3.bf16", "quantize_rows.bf16.e4m3.f32"


def one_of_each_family(core) -> list[str]:
    keys = [*core.candidate_configs(), *core.quantize_configs()]
    return list({key.partition(".")[0]: key for key in keys}.values())


def test_only_what_the_device_compiles_is_embedded(extension):
    """The table of candidates is not: a new tile recompiles no kernel."""
    core = extension.core()
    reached = {name for key in one_of_each_family(core) for name in core.kernel_headers(key)}
    assert reached == set(core.embedded_headers())
    assert not [name for name in reached if "candidates" in name or "sim_kernels" in name]


def test_families_of_kernels_do_not_depend_on_each_other(extension):
    core = extension.core()
    gemm, quantizer = (set(core.kernel_headers(key)) for key in (GEMM, QUANTIZER))
    assert "fp8_gemm/consumer.cuh" in gemm and "mma/wgmma_fp8_table.inc" in gemm
    assert "fp8_quantize/quantize_rows.cuh" in quantizer and "warp_scan.cuh" in quantizer
    assert not [name for name in gemm if "quantize" in name]
    assert not [name for name in quantizer if "gemm" in name and name != "shared/gemm_config.h"]


def test_includes_are_written_as_the_cache_key_follows_them(extension):
    """jit/headers.cc looks at the lines that begin with `#include <`."""
    for name, text in extension.core().embedded_headers().items():
        directives = re.findall(r"^.*#\s*include\b.*", text, re.MULTILINE)
        assert [line for line in directives if not line.startswith("#include <")] == [], name


def test_cache_key_has_the_digest_of_each_header(extension):
    core = extension.core()
    for key in (GEMM, QUANTIZER):
        lines = core.cache_key(key).splitlines()
        texts = {name: device_headers()[name] for name in core.kernel_headers(key)}
        assert [line for line in lines if line.startswith("header ")] == [
            f"header {name} {hashlib.sha256(text.encode()).hexdigest()}"
            for name, text in texts.items()
        ]


def test_cache_key_has_the_compiler_and_the_architecture(extension):
    core = extension.core()
    for key in (GEMM, QUANTIZER):
        lines = core.cache_key(key).splitlines()
        assert "option --gpu-architecture=sm_90a" in lines
        (compiler,) = [line for line in lines if line.startswith("nvrtc ")]
        assert re.match(r"nvrtc \d+\.\d+, \S", compiler)


@pytest.mark.slow
def test_every_family_compiles_from_the_headers_of_its_key_alone(extension):
    core, nvrtc = extension.core(), find_all()[0]
    for key in one_of_each_family(core):
        source, headers = core.kernel_source(key), core.kernel_headers(key)
        assert nvrtc.compile(source, core.nvrtc_options(), headers).cubin, key
