"""The shared dropout against the frameworks' own, forward and backward, as a ratio.

Run it with `python -m benchmarks.dropout_masks [--rounds 100]`.

Ours gives the same mask in NumPy, torch and JAX; the peers are `torch.nn.functional.dropout`, and
`jax.random.bernoulli` as `nnx.Dropout` uses it. Contestants alternate; the figure is the median in
milliseconds.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import torch

import pe_flax.dropout
import pe_torch.dropout
from benchmarks.training_step import Step, medians

RATE = 0.1
SHAPES = ((32, 10, 64), (32, 10, 720), (32, 128, 2048))


def torch_steps(shape: tuple[int, ...]) -> dict[str, Step]:
    """Return our step and torch's."""
    module = pe_torch.dropout.Dropout(RATE, num_layers=1)
    x = torch.randn(shape, requires_grad=True)
    ones, numbers = torch.ones(shape), iter(range(1 << 30))

    def step(dropped: torch.Tensor) -> None:
        x.grad = None
        dropped.backward(ones)

    return {
        "ours": lambda: step(module.begin(next(numbers)).drop(x, "input", 0)),  # type: ignore[union-attr]
        "F.dropout": lambda: step(torch.nn.functional.dropout(x, RATE)),
    }


def flax_steps(shape: tuple[int, ...]) -> dict[str, Step]:
    """Return our step and JAX's."""
    x, numbers = jnp.ones(shape), iter(range(1 << 30))

    def compiled(native: bool) -> Step:
        module = pe_flax.dropout.Dropout(RATE, num_layers=1, native=native)

        def total(x: jax.Array, number: jax.Array) -> jax.Array:
            masks = module.begin(number)
            assert masks is not None
            return (masks.drop(x, "input", 0) ** 2).sum()

        step = jax.jit(jax.value_and_grad(total))
        return lambda: jax.block_until_ready(step(x, jnp.uint32(next(numbers))))

    return {"ours": compiled(False), "jax.random.bernoulli": compiled(True)}


def main() -> None:
    """Print a line for each framework and shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    print(
        f"torch {torch.__version__} with {torch.get_num_threads()} threads, jax "
        f"{jax.__version__}; rate {RATE}"
    )
    print("framework    elements  ours ms  peer ms  ours/peer  peer")
    for framework, make in (("torch", torch_steps), ("flax", flax_steps)):
        for shape in SHAPES:
            found = medians(make(shape), options.rounds)
            peer = next(name for name in found if name != "ours")
            count = shape[0] * shape[1] * shape[2]
            print(
                f"{framework:9s}  {count:10,}  {found['ours']:7.3f}  {found[peer]:7.3f}  "
                f"{found['ours'] / found[peer]:9.2f}  {peer}"
            )


if __name__ == "__main__":
    main()
