"""Clips to make datasets of, and builds that are killed."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sora_jax import media
from sora_jax.data import dataset
from sora_jax.errors import InputError


def moving(frames: int, height: int, width: int, fps: float = 8.0) -> media.Video:
    f, y, x = np.ogrid[:frames, :height, :width]
    rgb = np.broadcast_arrays(y * 255 // height, (x * 255 // width + 9 * f) % 256, f * 20 % 256 + 0 * (x + y))
    return media.Video(np.stack(rgb, -1).astype(np.uint8), fps)


def shards_of(out: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.glob("[!.]*array_record*"))}


def start(code: str, *arguments) -> subprocess.Popen:
    command = [sys.executable, "-c", f"import sys; from sora_jax.data import dataset; {code}", *map(str, arguments)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])})


def kill_when(process: subprocess.Popen, out: Path, shards: int):
    while len(list(out.glob("[!.]*array_record*"))) < shards:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "report.json").exists(), "it was killed too late"
    with pytest.raises(InputError, match="not finished"):
        dataset.open_clips(out)
