"""Tests run under the harshest settings that a user might have, and none depends on the time."""

import math
import os

# The last flag counts, so a process that is given another number has that.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2 " + os.environ.get(
    "XLA_FLAGS", ""
)

import jax
import pytest
from hypothesis import HealthCheck, settings

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# A program that many tests need is compiled once. Each worker has a folder of its own, because JAX
# may read a file that another process has written half; the processes that tests start have none.
if folder := os.environ.get("TESTS_COMPILED"):
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    jax.config.update("jax_compilation_cache_dir", os.path.join(folder, worker))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# A busy machine is no failure: neither an example nor making one has a deadline.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch):
    """A block waits for its batches and no call is too long, so that each has a known length."""
    from solstice._engine import _block_size

    monkeypatch.setattr(_block_size, "PATIENCE", math.inf)
    monkeypatch.setattr(_block_size, "SECONDS_PER_CALL", math.inf)
