# SPDX-License-Identifier: Apache-2.0
"""What is timed: published rows, layers of open models, sweeps. Pure data, no JAX."""

import dataclasses
import functools

from jax_fp8gemm._src.native.gemm_problem import Problem


@dataclasses.dataclass(frozen=True)
class BenchCase:
    """One product: `(m, k) @ (n, k).T`, bfloat16 result, or a float32 one that accumulates.

    With groups m, n and k are those of `Problem`: rows of all groups, but of one masked group, and
    K of all groups.

    `published` holds other people's numbers in TFLOPS, by source. They were taken on other machines
    and never enter a ratio that this project claims.
    """

    suite: str
    name: str
    m: int
    n: int
    k: int
    # Or "wgrad": scales per row of both, float32 accumulator; or a kind of `Problem` with groups.
    kind: str = "forward"
    published: tuple[tuple[str, float], ...] = ()
    num_groups: int = 1

    def __str__(self) -> str:
        """Names the case in what a run prints."""
        groups = f", {self.num_groups} groups" if self.num_groups > 1 else ""
        return f"{self.name} {self.m}x{self.n}x{self.k}{groups}"

    @property
    def problem(self) -> Problem:
        """The same in the heuristics' terms."""
        if self.kind == "forward":
            return Problem(self.m, self.n, self.k)
        if self.kind in ("wgrad", "k_grouped"):
            fields = {"scaling": "1d1d", "d_dtype": "float32", "accumulate": True}
            kind = "dense" if self.kind == "wgrad" else self.kind
            return Problem(self.m, self.n, self.k, kind, num_groups=self.num_groups, **fields)
        expected_m = self.m if self.kind == "masked" else 0
        return Problem(
            self.m, self.n, self.k, self.kind, num_groups=self.num_groups, expected_m=expected_m
        )

    @property
    def key(self) -> str:
        """Identifies the case in a record."""
        return f"{self.suite}/{self.name}/{self.num_groups}x{self.m}x{self.n}x{self.k}"

    @property
    def flops(self) -> int:
        """Operations, a multiply-add counted as two."""
        return self.problem.flops

    @property
    def bytes(self) -> int:
        """Bytes of device memory that any kernel must move: operands, scales and result, once."""
        return self.problem.least_bytes


# DeepGEMM's README of 9 April 2025 (H800; M of 64 and 128 measured with a warm cache, February),
# its pull request 86 of 14 April, and cold-cache numbers of third parties in pull requests 68
# (GH200), 94 (H100) and 168 (H800, August 2025).
_DENSE_ROWS = {
    (64, 2112, 7168): {"readme": 206, "pr68": 167, "pr94": 154},
    (64, 24576, 1536): {"readme": 289, "pr68": 258, "pr94": 230},
    (64, 32768, 512): {"readme": 219, "pr68": 188, "pr94": 180},
    (64, 7168, 16384): {"readme": 336, "pr68": 326, "pr94": 290},
    (64, 4096, 7168): {"readme": 287, "pr68": 224, "pr94": 207},
    (64, 7168, 2048): {"readme": 295, "pr68": 213, "pr94": 189},
    (128, 2112, 7168): {"readme": 352, "pr68": 302, "pr94": 282, "pr168": 302},
    (128, 24576, 1536): {"readme": 535, "pr68": 479, "pr94": 435, "pr168": 443},
    (128, 32768, 512): {"readme": 358, "pr68": 322, "pr94": 336, "pr168": 338},
    (128, 7168, 16384): {"readme": 645, "pr68": 635, "pr94": 534, "pr168": 542},
    (128, 4096, 7168): {"readme": 533, "pr68": 419, "pr94": 371, "pr168": 399},
    (128, 7168, 2048): {"readme": 510, "pr68": 394, "pr94": 334, "pr168": 351},
    (4096, 2112, 7168): {"readme": 1127, "pr68": 1087, "pr94": 1058, "pr168": 1296},
    (4096, 24576, 1536): {"readme": 1212, "pr86": 1270, "pr168": 1263},
    (4096, 32768, 512): {"readme": 775, "pr86": 836, "pr168": 938},
    (4096, 7168, 16384): {"readme": 1520, "pr86": 1519, "pr168": 1484, "news": 1550},
    (4096, 4096, 7168): {"readme": 1410, "pr86": 1439, "pr168": 1424},
    (4096, 7168, 2048): {"readme": 1168, "pr86": 1215},
}
# Pull request 95 of 14 May 2025 (H800): weight gradients.
_WGRAD_ROWS = {
    (7168, 2112, 4096): 920,
    (1536, 24576, 4096): 986,
    (512, 32768, 4096): 878,
    (16384, 7168, 4096): 994,
    (7168, 4096, 4096): 942,
    (2048, 7168, 4096): 920,
    (7168, 2112, 8192): 1052,
    (1536, 24576, 8192): 1092,
    (512, 32768, 8192): 1014,
}
# README of 25 March 2025, and issue 160 (August 2025), whose groups were uneven: groups, rows of
# each (of the uneven ones the mean), N, K.
_CONTIGUOUS = {
    (4, 8192, 4096, 7168): {"readme": 1346},
    (4, 8192, 7168, 2048): {"readme": 1214},
    (8, 4096, 4096, 7168): {"readme": 1346},
    (8, 4096, 7168, 2048): {"readme": 1214},
    (4, 8864, 4096, 7168): {"issue160": 1230},
    (4, 9024, 7168, 2048): {"issue160": 1187},
}
# README of 25 February 2025, its cache partly warm; pull request 192 (H100, cold), whose groups had
# 0.7 to 1.3 times so many rows.
_MASKED = {
    (1, 1024, 4096, 7168): {"readme": 1233},
    (1, 1024, 7168, 2048): {"readme": 925},
    (2, 512, 4096, 7168): {"readme": 1040},
    (2, 512, 7168, 2048): {"readme": 916},
    (4, 256, 4096, 7168): {"readme": 932},
    (4, 256, 7168, 2048): {"readme": 815},
    (16, 32, 4096, 7168): {"pr192": 175},
    (16, 32, 7168, 2048): {"pr192": 155},
    (16, 96, 4096, 7168): {"pr192": 521},
    (16, 96, 7168, 2048): {"pr192": 434},
    (16, 160, 4096, 7168): {"pr192": 645},
    (16, 160, 7168, 2048): {"pr192": 634},
}
# Pull request 95, and a user's numbers of an H200 in issue 107: groups, M, N, K of each.
_K_GROUPED = {
    (4, 7168, 4096, 4096): {"pr95": 939, "issue107": 813},
    (4, 2048, 7168, 4096): {"pr95": 900, "issue107": 814},
    (4, 7168, 4096, 8192): {"pr95": 1044, "issue107": 858},
    (4, 2048, 7168, 8192): {"pr95": 1033, "issue107": 873},
    (8, 7168, 4096, 4096): {"pr95": 942, "issue107": 816},
}
_GROUPED_ROWS = {"contiguous": _CONTIGUOUS, "masked": _MASKED, "k_grouped": _K_GROUPED}
# (N, K) of the linear layers of one decoder layer, unsharded; for experts, of one expert.
_MODEL_LAYERS = {
    "deepseek_v3": {
        "attention_in": (2112, 7168),
        "q_up": (24576, 1536),
        "kv_up": (32768, 512),
        "attention_out": (7168, 16384),
        "mlp_up": (36864, 7168),
        "mlp_down": (7168, 18432),
        "expert_up": (4096, 7168),
        "expert_down": (7168, 2048),
    },
    "kimi_k2": {
        "attention_in": (2112, 7168),
        "q_up": (12288, 1536),
        "kv_up": (16384, 512),
        "attention_out": (7168, 8192),
        "expert_up": (4096, 7168),
        "expert_down": (7168, 2048),
    },
    "qwen3_235b": {
        "qkv": (9216, 4096),
        "attention_out": (4096, 8192),
        "expert_up": (3072, 4096),
        "expert_down": (4096, 1536),
    },
    "qwen3_30b": {
        "qkv": (5120, 2048),
        "attention_out": (2048, 4096),
        "expert_up": (1536, 2048),
        "expert_down": (2048, 768),
    },
    "qwen3_32b": {
        "qkv": (10240, 5120),
        "attention_out": (5120, 8192),
        "mlp_up": (51200, 5120),
        "mlp_down": (5120, 25600),
    },
    "llama3_8b": {
        "qkv": (6144, 4096),
        "attention_out": (4096, 4096),
        "mlp_up": (28672, 4096),
        "mlp_down": (4096, 14336),
    },
    "llama3_70b": {
        "qkv": (10240, 8192),
        "attention_out": (8192, 8192),
        "mlp_up": (57344, 8192),
        "mlp_down": (8192, 28672),
    },
}
_MODEL_TOKENS = (1, 32, 512, 4096)
_SWEEP_WEIGHTS = ((7168, 2048), (4096, 7168))


def _deepgemm() -> list[BenchCase]:
    return [
        BenchCase("deepgemm", "dense", m, n, k, published=tuple(published.items()))
        for (m, n, k), published in _DENSE_ROWS.items()
    ]


def _wgrad() -> list[BenchCase]:
    return [
        BenchCase("wgrad", "wgrad", m, n, k, "wgrad", (("pr95", tflops),))
        for (m, n, k), tflops in _WGRAD_ROWS.items()
    ]


def _published_groups(kind: str) -> list[BenchCase]:
    """Returns the rows of one of the tables above; their M, or K, is that of one group."""
    cases = []
    for (groups, m, n, k), published in _GROUPED_ROWS[kind].items():
        rows = groups * m if kind == "contiguous" else m
        depth = groups * k if kind == "k_grouped" else k
        name, numbers = f"{groups}_experts", tuple(published.items())
        cases.append(BenchCase(kind, name, rows, n, depth, kind, numbers, groups))
    return cases


def _groups() -> list[BenchCase]:
    """One to 256 experts without padding: many rows for all of them together, and few."""
    return [
        BenchCase("groups", f"{groups}_experts", rows, 2048, 2048, "ragged", num_groups=groups)
        for rows in (8192, 256)
        for groups in (1, 4, 16, 64, 256)
    ]


def _headline() -> list[BenchCase]:
    """Some rows of every kind, the most telling first: for a run of a few minutes."""
    dense = [c for c in _deepgemm() if c.m in (64, 4096)]
    largest_first = sorted(dense, key=lambda c: -c.flops)
    few_rows = [c for c in _scaling() if c.m in (1, 16)]
    alternating = [c for pair in zip(largest_first[:6], few_rows * 2, strict=False) for c in pair]
    chosen = [
        *dict.fromkeys(alternating),
        *_published_groups("contiguous")[:2],
        *_published_groups("masked")[4:7],
        *_wgrad()[:2],
        *_published_groups("k_grouped")[:1],
        *_groups()[2:4],
        *largest_first[6:],
    ]
    return [dataclasses.replace(case, suite="headline") for case in chosen]


def _models() -> list[BenchCase]:
    seen, cases = set(), []
    for model, layers in _MODEL_LAYERS.items():
        for layer, (n, k) in layers.items():
            for m in _MODEL_TOKENS:
                if (m, n, k) not in seen:
                    seen.add((m, n, k))
                    cases.append(BenchCase("models", f"{model}.{layer}", m, n, k))
    return cases


def _scaling() -> list[BenchCase]:
    return [
        BenchCase("scaling", f"rows_{n}x{k}", 2**power, n, k)
        for n, k in _SWEEP_WEIGHTS
        for power in range(15)
    ]


def _square() -> list[BenchCase]:
    return [BenchCase("square", "square", s, s, s) for s in (1024, 2048, 4096, 8192, 16384)]


def _smoke() -> list[BenchCase]:
    return [
        BenchCase("smoke", "few_rows", 16, 128, 256),
        BenchCase("smoke", "one_tile", 128, 128, 256),
        BenchCase("smoke", "tails", 100, 264, 400),
        BenchCase("smoke", "wgrad", 128, 136, 256, "wgrad"),
        BenchCase("smoke", "ragged", 100, 136, 256, "ragged", num_groups=3),
        BenchCase("smoke", "contiguous", 256, 136, 256, "contiguous", num_groups=2),
        BenchCase("smoke", "masked", 20, 136, 256, "masked", num_groups=3),
        BenchCase("smoke", "k_grouped", 72, 136, 512, "k_grouped", num_groups=2),
    ]


def _small_scaling() -> list[BenchCase]:
    return [BenchCase("small_scaling", "rows_256x256", 4**power, 256, 256) for power in range(5)]


def _small_groups() -> list[BenchCase]:
    return [
        BenchCase("small_groups", f"{groups}_experts", 64, 128, 128, "ragged", num_groups=groups)
        for groups in (1, 4, 16)
    ]


SUITES = {
    "headline": _headline,
    "deepgemm": _deepgemm,
    "models": _models,
    "scaling": _scaling,
    "square": _square,
    "wgrad": _wgrad,
    "contiguous": functools.partial(_published_groups, "contiguous"),
    "masked": functools.partial(_published_groups, "masked"),
    "k_grouped": functools.partial(_published_groups, "k_grouped"),
    "groups": _groups,
    "smoke": _smoke,
    "small_scaling": _small_scaling,
    "small_groups": _small_groups,
}
GPU_SUITES = (
    "deepgemm",
    "contiguous",
    "masked",
    "wgrad",
    "k_grouped",
    "groups",
    "scaling",
    "models",
)
CPU_SUITES = ("smoke", "small_scaling", "small_groups")


def suite(name: str) -> list[BenchCase]:
    """Returns the cases of a suite.

    Raises:
        ValueError: There is no such suite.
    """
    if name not in SUITES:
        raise ValueError(f"there is no suite {name!r}: choose of {', '.join(SUITES)}")
    return SUITES[name]()
