"""The main job, whole, in real processes: `make train` at toy scale, and the README's commands as written."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sora_jax
from sora_jax import media
from sora_jax.data import worlds

ROOT = Path(__file__).parent.parent


@pytest.fixture
def environment(tmp_path):
    """As people have it: one device, and `sora-jax` and `python` on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, line in {"sora-jax": "-m sora_jax.cli", "python": ""}.items():
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {line} "$@"\n')
        (folder / name).chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**{k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}, "PATH": path}


def run(line, env, cwd=ROOT):
    done = subprocess.run(line, env=env, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


@pytest.mark.smoke
def test_from_nothing_to_prompted_videos_and_again(environment, tmp_path):
    """launch/speedrun.sh: world -> VAE -> latents -> DiT -> samples; a second run finds everything done."""
    env = {**environment, "VARIANT": "smoke", "CLIPS": "8", "HELD_OUT": "4"}
    line = ["bash", "launch/speedrun.sh", str(tmp_path / "run")]
    run(line, env)
    assert media.read(tmp_path / "run" / "sample.mp4").frames.shape == (9, 64, 96, 3)
    assert media.probe(tmp_path / "run" / "samples.png")["kind"] == "image"
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert run(line, env).stdout.count(": done") == 6
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}


@pytest.mark.slow
def test_the_recipe_of_the_bundled_model(environment, tmp_path):
    """launch/tiny.sh, with a few clips and steps: each training begins with the model before, and a model comes out."""
    smaller = (
        "--config.steps=2 --config.dit.depth=1 --config.dit.unroll=1 --config.picture_every=0 --config.save_every=2"
    )
    env = {**environment, "VAE": "smoke", "SHARE": "10000", "SMALLER": smaller}
    env["MEND"] = "--config.vae.width=8 --config.steps=2 --config.picture_every=0"
    run(["bash", "launch/tiny.sh", str(tmp_path / "run")], env)
    stages = ("one", "short", "small", "pairs", "tiny", "clips")
    begun = [json.loads((tmp_path / "run" / f"{name}-dit" / "config.json").read_text())["init"] for name in stages]
    assert begun == ["", *(str(tmp_path / "run" / f"{name}-model") for name in stages[:-1])]
    made = sora_jax.load(tmp_path / "run" / "model")
    assert made.dit.depth == 1 and made.vae.mend


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)


@pytest.mark.slow
def test_the_commands_of_the_readme(environment, tmp_path):
    """All of its bash and Python, in order; `my_clips` are a few clips of several sizes, `my_footage` is a film."""
    clips = tmp_path / "my_clips"
    clips.mkdir()
    for seed, size in enumerate([(64, 48), (48, 64), (96, 64), (64, 64)] * 3):
        scene = worlds.sample(seed, size=size, frames=9 if seed % 4 else 1)
        video = media.Video(worlds.render(scene), scene.fps)
        video.save(clips / f"clip{seed}.{'mp4' if seed % 4 else 'png'}")
        (clips / f"clip{seed}.txt").write_text(worlds.captions(scene)[0])
    takes = [worlds.render(worlds.sample(seed, size=(192, 144), frames=17)) for seed in (2, 3, 4)]
    (tmp_path / "my_footage").mkdir()
    media.Video(np.concatenate(takes), 8.0).save(tmp_path / "my_footage" / "film.mp4")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            done = run(["bash", "-c", line], environment, tmp_path)
            json.loads(done.stdout.splitlines()[-1])
    for block in blocks("python"):
        run([sys.executable, "-c", block], environment, tmp_path)
    assert media.probe(tmp_path / "circle.mp4")["frames"] == 17
    assert media.read(tmp_path / "star.png").frames.shape == (1, 112, 64, 3)
    assert np.isfinite(media.read(tmp_path / "mine.mp4").frames.astype(float)).all()
