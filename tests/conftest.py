"""What every test shares: eight virtual CPU devices, quiet libraries, and one cache of compilations."""

import os
import sys
from pathlib import Path

import pytest

# Before anything imports JAX. Subprocesses inherit all of it.
os.environ["JAX_PLATFORMS"] = "cpu"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).parent.parent
# What one process compiled the next need not: most of a test's time is XLA's.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
sys.path.insert(0, str(ROOT))


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """gs://bucket, which is the folder it gives: what TensorFlow would do in a bucket it does there."""
    import tensorflow as tf
    from etils.epath import backend

    class Gfile:
        def __getattr__(self, name):
            inside = lambda path: os.fspath(path).replace("gs://bucket", str(tmp_path))
            call = getattr(tf.io.gfile, name)
            return lambda path, *rest, **how: call(inside(path), *map(inside, rest), **how)

    monkeypatch.setattr(backend._TfBackend, "gfile", Gfile())
    return tmp_path
