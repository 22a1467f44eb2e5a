# SPDX-License-Identifier: Apache-2.0
"""Bugs in what orders the roles: barriers, parities, slots, clusters, registers, launches."""

from mutation.mutant import Mutant

ONE = "1d2d.m64n64.w1.c1x1.e4m3.e4m3.bf16"
TWO = "1d2d.m128n64.w2.c1x1.e4m3.e4m3.bf16"
PAIR_M = "1d2d.m128n64.w2.c2x1.e4m3.e4m3.bf16"
PAIR_N = "1d2d.m128n96.w2.c1x2.e4m3.e4m3.bf16"
COLUMNS = "1d1d.m64n64.w1.c1x1.e4m3.e4m3.f32"
RAGGED_PAIR = "1d2d_ragged.m128n128.w2.c2x1.e4m3.e4m3.bf16"
RAGGED = "1d2d_ragged.m64n64.w1.c1x1.e4m3.e4m3.bf16"
DEPENDENT = "1d2d.m16n32.w1.c1x1.e4m3.e4m3.bf16.pdl"
SPLIT = "1d2d.m64n64.w1.c1x1.e4m3.e4m3.bf16.split2"
SPLIT_16_ROWS = "1d2d.m16n64.w1.c1x1.e4m3.e4m3.bf16.split4"

_WAIT_AND_RELEASE = """\
        finish_multiply<kConfig>(partial);
        if (slice + 1 == kRowSlices) release_stage<kConfig>(smem, pipe.stage, lane);
"""
_RELEASE = "if (slice + 1 == kRowSlices) release_stage<kConfig>(smem, pipe.stage, lane);"
_READ_AGAIN = "\n        if (slice + 1 == kRowSlices) scales.read(smem, pipe.stage, scale_row);"
_LOADER_WAIT = """\
        wait_for_free_slot<kConfig>(smem, pipe.stage, pipe.parity);
        ptx::mbarrier_arrive_expect_tx(full, stage_tx_bytes(kConfig));
"""
_CONSUMER_WAIT = (
    "ptx::mbarrier_wait_parity(smem.full(pipe.stage), pipe.parity);\n      // wgmma is for"
)
_STORE_SCALES = """\
        if (lane == holder) {
          FP8GEMM_UNROLL
          for (uint32_t i = 0; i < kBlocks; ++i) {
            ptx::st_shared_f32(smem.sfb(pipe.stage) + i * sizeof(float), scales[i]);
          }
          ptx::mbarrier_arrive(smem.full(pipe.stage));
"""

MUTANTS = (
    Mutant(
        "slot released before the wgmma wait",
        "fp8_gemm/consumer.cuh",
        _WAIT_AND_RELEASE,
        f"        {_RELEASE}\n        finish_multiply<kConfig>(partial);\n",
        "The producer overwrites operands that the tensor core still reads.",
        (ONE,),
    ),
    Mutant(
        "loader waits for the wrong parity",
        "fp8_gemm/producer.cuh",
        _LOADER_WAIT,
        _LOADER_WAIT.replace("pipe.parity)", "pipe.parity ^ 1)"),
        "The first wait for a free slot is for a phase that nobody completes.",
        (ONE,),
    ),
    Mutant(
        "loader does not wait for a free slot",
        "fp8_gemm/producer.cuh",
        _LOADER_WAIT,
        _LOADER_WAIT.splitlines()[1] + "\n",
        "Loads land in slots that are being read.",
        (ONE,),
    ),
    Mutant(
        "consumer waits for the wrong parity",
        "fp8_gemm/consumer.cuh",
        _CONSUMER_WAIT,
        _CONSUMER_WAIT.replace("pipe.parity", "pipe.parity ^ 1"),
        "The first wait passes at once, before anything has landed.",
        (ONE,),
    ),
    Mutant(
        "consumer does not wait for operands",
        "fp8_gemm/consumer.cuh",
        _CONSUMER_WAIT,
        "// wgmma is for",
        "wgmma reads slots that TMA is still writing.",
        (ONE,),
    ),
    Mutant(
        "parity never turns",
        "fp8_gemm/pipeline.cuh",
        "      parity ^= 1;\n",
        "",
        "From the second round of the ring on, waits are for a phase long past.",
        (ONE,),
    ),
    Mutant(
        "ring one stage too short in counting",
        "fp8_gemm/pipeline.cuh",
        "if (++stage == kStages) {",
        "if (++stage == kStages - (parity == 0 ? 0 : 1)) {",
        "Every second round skips the last stage, whose barriers then lag a phase behind.",
        (ONE,),
    ),
    Mutant(
        "consumer starts each tile at stage 0",
        "fp8_gemm/consumer.cuh",
        "    const uint32_t first_block_columns =",
        "    pipe = {};\n    const uint32_t first_block_columns =",
        "The pipeline position must carry on across tiles, as it does in the loaders.",
        (ONE,),
    ),
    Mutant(
        "empty barrier counts one warp too many",
        "fp8_gemm/pipeline.cuh",
        "kConsumerWarps * kConfig.sharing());",
        "kConsumerWarps * kConfig.sharing() + 1);",
        "No slot ever becomes free.",
        (ONE,),
    ),
    Mutant(
        "empty barrier counts half the warps",
        "fp8_gemm/pipeline.cuh",
        "kConsumerWarps * kConfig.sharing());",
        "kConsumerWarps * kConfig.sharing() / 2);",
        "A slot is free when half the warps are done with it.",
        (TWO,),
    ),
    Mutant(
        "full barrier waits for a scale loader that is not there",
        "fp8_gemm/pipeline.cuh",
        "kConfig.scaling == Scaling::k1D2D ? 2 : 1",
        "2",
        "With 1x128 scales of B one thread arrives, not two.",
        (COLUMNS,),
    ),
    Mutant(
        "full barrier does not wait for the weight scales",
        "fp8_gemm/pipeline.cuh",
        "kConfig.scaling == Scaling::k1D2D ? 2 : 1",
        "1",
        "Consumers read weight scales that may not have been written.",
        (ONE,),
    ),
    Mutant(
        "too few bytes announced",
        "fp8_gemm/producer.cuh",
        "stage_tx_bytes(kConfig));",
        "stage_tx_bytes(kConfig) - kRowBytes);",
        "The phase completes before the last row has landed, or never.",
        (ONE,),
    ),
    Mutant(
        "only one warpgroup releases",
        "fp8_gemm/consumer.cuh",
        "if (lane == 0) ptx::mbarrier_arrive(smem.empty(stage));",
        "if (lane == 0 && ptx::warp_idx() < kWarpgroupWarps) {\n"
        "      ptx::mbarrier_arrive(smem.empty(stage));\n    }",
        "The second consumer's warps are never heard of.",
        (TWO,),
    ),
    Mutant(
        "row scales read after the release",
        "fp8_gemm/consumer.cuh",
        _RELEASE,
        _RELEASE + _READ_AGAIN,
        "The loader may already write the scales of a later block.",
        (ONE,),
    ),
    Mutant(
        "column scales read after the release",
        "fp8_gemm/consumer.cuh",
        _RELEASE,
        _RELEASE + _READ_AGAIN,
        "The loader may already write the scales of a later block.",
        (COLUMNS,),
    ),
    Mutant(
        "weight scales written after the arrival",
        "fp8_gemm/producer.cuh",
        _STORE_SCALES,
        "        if (lane == holder) {\n          ptx::mbarrier_arrive(smem.full(pipe.stage));\n"
        + "\n".join(_STORE_SCALES.splitlines()[1:-1])
        + "\n",
        "An arrival releases what was written before it, not after.",
        (ONE,),
    ),
    Mutant(
        "lanes of the scale loader not kept together",
        "fp8_gemm/producer.cuh",
        "a lane that still waits would miss it.\n        ptx::bar_warp_sync();\n",
        "a lane that still waits would miss it.\n",
        "A lane may sleep through a whole phase of the barrier and wait for the wrong one.",
        (DEPENDENT.removesuffix(".pdl"), ONE),
    ),
    Mutant(
        "weight scales written without waiting for the slot",
        "fp8_gemm/producer.cuh",
        "        wait_for_free_slot<kConfig>(smem, pipe.stage, pipe.parity);\n        // Once",
        "        // Once",
        "Consumers may still read the scales of an earlier block.",
        (ONE,),
    ),
    Mutant(
        "barriers not made visible to TMA",
        "fp8_gemm/pipeline.cuh",
        "  ptx::fence_mbarrier_init_release_cluster();\n",
        "",
        "mbarrier.init must be fenced before the asynchronous proxy may use the barrier.",
        (ONE,),
    ),
    Mutant(
        "no barrier after the initialization",
        "fp8_gemm/sm90_fp8_gemm.cuh",
        "  sync_cluster<kConfig, kConfig.has_group_table()>();\n",
        "",
        "Warps use barriers, and read a group table, that may not exist yet.",
        (ONE, RAGGED),
    ),
    Mutant(
        "group table not released",
        "fp8_gemm/sm90_fp8_gemm.cuh",
        "sync_cluster<kConfig, kConfig.has_group_table()>();",
        "sync_cluster<kConfig, false>();",
        "A relaxed arrival shows others nothing but mbarriers.",
        (RAGGED_PAIR,),
    ),
    Mutant(
        "peer not told of a free slot",
        "fp8_gemm/consumer.cuh",
        "if (lane < kConfig.sharing()) ptx::mbarrier_arrive_cluster(smem.empty(stage), lane);",
        "if (lane == 0) ptx::mbarrier_arrive_cluster(smem.empty(stage), ptx::cluster_ctarank());",
        "Each CTA of a pair writes into both, and must hear from both.",
        (PAIR_M,),
    ),
    Mutant(
        "slot of a pair free when one CTA is done",
        "fp8_gemm/pipeline.cuh",
        "kConsumerWarps * kConfig.sharing());",
        "kConsumerWarps);",
        "Multicast overwrites what the slower CTA of the pair still reads.",
        (PAIR_N,),
    ),
    Mutant(
        "cluster does not meet before it exits",
        "fp8_gemm/sm90_fp8_gemm.cuh",
        "if constexpr (kConfig.sharing() > 1) sync_cluster<kConfig>();",
        "",
        "A peer arrives on the barriers of a CTA that has exited.",
        (PAIR_M, PAIR_N),
    ),
    Mutant(
        "producer keeps its registers",
        "fp8_gemm/sm90_fp8_gemm.cuh",
        "ptx::setmaxnreg_dec<kConfig.producer_registers()>();",
        "{}",
        "The consumers wait for registers that nobody gives up.",
        (TWO,),
    ),
    Mutant(
        "dependent launch does not wait",
        "fp8_gemm/sm90_fp8_gemm.cuh",
        "if constexpr (kConfig.pdl) ptx::griddepcontrol_wait();",
        "",
        "Operands are read that the launch before may still write.",
        (DEPENDENT,),
    ),
    Mutant(
        "split K does not wait for the other CTAs",
        "fp8_gemm/split_k.cuh",
        "  ptx::mbarrier_wait_parity_cluster(smem.summed(consumer), 0);\n",
        "",
        "Partial sums are added that may not have come.",
        (SPLIT,),
    ),
    Mutant(
        "split K expects the sums of one CTA",
        "fp8_gemm/split_k.cuh",
        "kThreads * kConfig.block_n / 2 * sizeof(float);",
        "kThreads * kConfig.block_n / 2 * sizeof(float) / kConfig.split_k;",
        "The barrier completes before all sums have come.",
        (SPLIT,),
    ),
    Mutant(
        "split K expects sums of rows that a small tile does not have",
        "fp8_gemm/split_k.cuh",
        "kBytes = kThreads * kConfig.block_n",
        "kBytes = kWarpgroupThreads * kConfig.block_n",
        "A tile of 16 rows has one warp of sums, and the bytes of four are waited for.",
        (SPLIT_16_ROWS,),
    ),
    Mutant(
        "split K stores into one CTA",
        "fp8_gemm/split_k.cuh",
        "smem.summed(consumer), target, accum[i]",
        "smem.summed(consumer), 0, accum[i]",
        "The other CTAs wait for ever.",
        (SPLIT,),
    ),
    Mutant(
        "split K stores the sums of all CTAs in one place",
        "fp8_gemm/split_k.cuh",
        "smem.partials(consumer, rank, i / 4 % kColumns8, thread);",
        "smem.partials(consumer, target, i / 4 % kColumns8, thread);",
        "Each CTA has a place of its own for its sums.",
        (SPLIT,),
    ),
    Mutant(
        "split K waits at the scope of one CTA",
        "fp8_gemm/split_k.cuh",
        "ptx::mbarrier_wait_parity_cluster",
        "ptx::mbarrier_wait_parity",
        "What other CTAs have written need not be visible after it.",
        (SPLIT,),
    ),
)
