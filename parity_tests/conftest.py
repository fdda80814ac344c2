"""One core a worker, the CPU, strict frameworks, and shapes checked: set here, before any test
imports a framework.
"""

import os
import signal

# Two workers on two cores: more threads in each only get in the way. Read when the libraries are
# first imported.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
os.environ["JAX_PLATFORMS"] = "cpu"

from jaxtyping import install_import_hook

# The shapes written in annotations are checked at every internal call, in tests only: it has to be
# set before these modules are imported. Public calls are left out (encoder, self_attention, kinds):
# there our own checks speak, and they are compiled and exported.
INTERNAL = ("attention", "call", "dropout", "layers", "layout", "optimizer", "pooling", "positions")
ENCODINGS = ("additive", "angles", "bias", "contextual", "rotary")
install_import_hook(
    [
        "pe_parity.reference",
        "pe_core.model.random",
        *(f"{backend}.{name}" for backend in ("pe_torch", "pe_flax") for name in INTERNAL),
        *(
            f"{backend}.encodings.{name}"
            for backend in ("pe_torch", "pe_flax")
            for name in ENCODINGS
        ),
    ],
    "beartype.beartype",
)

# A job that a shell starts in the background ignores SIGINT, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Iterator

import hypothesis
import jax
import pytest

from pe_flax.program import PROGRAMS

# `make lowest` runs tests that need no torch where there is none.
if "PE_WITHOUT_TORCH" not in os.environ:
    import torch

    torch.set_num_threads(1)
jax.config.update("jax_numpy_rank_promotion", "raise")
# optax's own Adam and cosine schedule mix integers and floats: as oracles they run under
# `jax.numpy_dtype_promotion("standard")`.
jax.config.update("jax_numpy_dtype_promotion", "strict")
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _no_program_outlives_a_patch(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compile anew where a test patches: what was compiled before does not know of it."""
    patched = "monkeypatch" in request.fixturenames
    if patched:
        PROGRAMS.clear()
    yield
    if patched:
        PROGRAMS.clear()
