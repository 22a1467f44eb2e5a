# SPDX-License-Identifier: Apache-2.0
"""What the training examples share: text, a training loop with a progress bar, and the comparison.

The text is the source of the Python standard library: real data on every machine.
"""

import argparse
import pathlib
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

VOCABULARY = 256  # bytes
MAX_DIFFERENCE = 0.02  # of the loss on text not seen, relative


def arguments(description: str, **defaults: int) -> argparse.Namespace:
    """Reads the options of an example: an int for each of `defaults`, and the folder for plots."""
    parser = argparse.ArgumentParser(description=description)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--out", type=pathlib.Path, default="out", help="folder for plots")
    return parser.parse_args()


def library_text(max_bytes: int = 4_000_000) -> np.ndarray:
    """Returns the source of the standard library's modules as bytes, one after the other."""
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    modules = sorted(folder.glob("*.py"), key=lambda path: path.name[::-1])  # topics mixed
    return np.frombuffer(b"\n".join(map(pathlib.Path.read_bytes, modules))[:max_bytes], np.uint8)


def batches(steps: int, batch: int, length: int, *, unseen: bool = False) -> list[np.ndarray]:
    """Returns `(batch, length + 1)` pieces of the text; `unseen` ones from its last tenth."""
    text = library_text()
    split = len(text) * 9 // 10
    text = text[split:] if unseen else text[:split]
    starts = np.random.default_rng(0).integers(len(text) - length, size=(steps, batch))
    return [text[s[:, None] + np.arange(length + 1)].astype(np.int32) for s in starts]


def progress(items: Iterable, label: str, note: Callable[[], str] = str) -> Iterator:
    """Yields the items and shows on stderr how far it is; `note` says what to show beside.

    In a terminal a bar that grows, in a file five lines.
    """
    items = list(items)
    is_terminal = sys.stderr.isatty()
    start = time.perf_counter()
    for done, item in enumerate(items, 1):
        yield item
        bar = "#" * (30 * done // len(items))
        seconds = time.perf_counter() - start
        line = f"{label:>9} [{bar:<30}] {seconds:4.0f} s {note()}"
        if is_terminal:
            print(f"\r{line}", end="" if done < len(items) else "\n", file=sys.stderr)
        elif 5 * done // len(items) > 5 * (done - 1) // len(items):
            print(line, file=sys.stderr)


def train(loss, parameters, optimizer: optax.GradientTransformation, data, unseen, label: str):
    """Trains and returns the parameters, the loss of every step, and that of `unseen`.

    `loss(parameters, tokens)` gets tokens of shape `(batch, length + 1)`.
    """

    @jax.jit
    def step(parameters, state, tokens):
        value, gradient = jax.value_and_grad(loss)(parameters, tokens)
        updates, state = optimizer.update(gradient, state, parameters)
        return optax.apply_updates(parameters, updates), state, value

    state = optimizer.init(parameters)
    losses: list[float] = []
    for tokens in progress(data, label, lambda: f"loss {losses[-1]:.3f}"):
        parameters, state, value = step(parameters, state, tokens)
        losses.append(float(value))
    evaluate = jax.jit(loss)
    return parameters, losses, float(np.mean([evaluate(parameters, tokens) for tokens in unseen]))


def normalize(x: jax.Array) -> jax.Array:
    """Scales each position to a mean square of 1."""
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-6)).astype(x.dtype)


def adam(steps: int, peak: float = 4e-3) -> optax.GradientTransformation:
    """Returns the optimizer that all examples use."""
    schedule = optax.warmup_cosine_decay_schedule(0, peak, min(20, steps // 4), steps, peak / 10)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))


def compare(title: str, file: pathlib.Path, runs: dict[str, tuple[list[float], float]]) -> None:
    """Prints the losses of bfloat16 and FP8 on text not seen, and plots the curves side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(runs), sharey=True, figsize=(10, 4))
    for axis, (name, (losses, final)) in zip(axes, runs.items(), strict=True):
        print(f"{name:>9}: loss {losses[0]:.3f} -> {losses[-1]:.3f}, on unseen text {final:.4f}")
        axis.plot(losses, linewidth=1)
        axis.axhline(final, color="black", linestyle=":", label=f"unseen text: {final:.3f}")
        axis.set(title=name, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_ylabel("loss, nats per byte")
    figure.suptitle(title)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    (_, reference), (_, final) = runs.values()
    difference = final / reference - 1
    print(f"difference: {difference:+.2%} (limit {MAX_DIFFERENCE:.0%}), curves in {file}")
    if abs(difference) > MAX_DIFFERENCE:
        sys.exit("The losses differ by more than the limit.")
