"""The laws of training: killed and resumed is never killed; mistakes and full disks lose nothing."""

# ruff: noqa: F811 (fixtures are imported)

import json
import math
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from sora_jax.errors import InputError
from sora_jax.train import checkpoint, configs, loop, tasks
from sora_jax.train.log import Log
from tests.training import ROOT, SAVE_EVERY, STEPS, alive, get_config, lines, start, train, wait_until, whole  # noqa: F401

# The law of resuming


def test_it_learns_and_keeps_a_record(whole, capsys):
    workdir, summary = whole
    assert summary["step"] == STEPS and summary["skipped"] == 0 and len(summary["digest"]) == 64
    record = [line for line in lines(workdir) if "loss" in line]
    assert [line["step"] for line in record] == list(range(2, STEPS + 1, 2))
    assert record[-1]["loss"] < 0.3 * record[0]["loss"]
    assert record[0]["never"] is None  # a metric that is NaN everywhere is null, not invalid JSON
    assert all(line["tokens_per_second"] > 0 and line["flops_per_second"] > 0 for line in record)
    assert all(0 <= line["goodput"] < 1 for line in record) and record[-1]["goodput"] > 0
    assert [line["step"] for line in lines(workdir) if "eval/bias" in line] == [10, 20, 30]
    assert sorted(path.name for path in (workdir / "samples").iterdir()) == [f"{s:07d}.txt" for s in (10, 20, 30)]
    assert checkpoint.steps(workdir / "checkpoints") == [28, 30]  # keep = 2
    assert list((workdir / "tensorboard").iterdir())


def test_a_finished_run_says_the_same_again(whole, capsys):
    workdir, summary = whole
    assert train(workdir) == summary
    assert json.loads(capsys.readouterr().out) == summary  # one line of JSON is all of stdout


def test_numbers_do_not_depend_on_what_is_saved_logged_or_painted(whole, tmp_path):
    changes = {"save_every": 0, "log_every": 7, "eval_every": 3, "picture_every": 0, "keep": 1, "profile": 5}
    assert train(tmp_path, **changes)["digest"] == whole[1]["digest"]
    assert list((tmp_path / "tensorboard" / "plugins" / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("profile", [8, 29, 30, 99])
def test_a_profile_ends_where_it_is_or_is_never_begun(tmp_path, profile):
    """Resumed within the steps that it would take, one ends with the run, one would begin behind it."""
    train(tmp_path, steps=10, opt__schedule="constant")
    assert train(tmp_path, opt__schedule="constant", profile=profile)["step"] == STEPS
    assert (tmp_path / "tensorboard" / "plugins").exists() == (profile == 29)


def test_a_record_in_a_bucket(bucket):
    workdir = checkpoint.located("gs://bucket/run")
    workdir.mkdir()
    with Log(workdir, 0, 2, 0.0) as record:
        record.numbers(1, {"loss": 0.5})
        record.numbers(2, {"loss": math.nan})
    assert lines(bucket / "run") == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]
    assert len(list((bucket / "run" / "tensorboard").iterdir())) == 1
    with Log(workdir, 1, 2, 0.0):
        pass
    assert lines(bucket / "run") == [{"step": 1, "loss": 0.5}]  # what came after its step will be written again


def test_weights_that_one_device_has_no_room_for_are_not_painted_with(monkeypatch, capsys):
    weights = {"w": np.zeros((1 << 20,), np.float32)}
    assert loop.on_one(weights)["w"].devices() == {jax.local_devices()[0]}
    small = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 9 << 20, "bytes_in_use": 2 << 20})
    monkeypatch.setattr(jax, "local_devices", lambda: [small])
    assert loop.on_one(weights) is None
    assert "no samples: 0.0 GiB" in capsys.readouterr().err


@pytest.mark.parametrize("moment", ["saving", "saved"])
def test_killed_and_resumed_is_never_killed(whole, start, tmp_path, moment):
    """kill -9 in the middle of writing a checkpoint, and just after one; then the run goes on to the same bits."""
    workdir = tmp_path / "run"
    process = start(workdir, data__pause=0.05)
    folder = workdir / "checkpoints"
    if moment == "saving":
        wait_until(lambda: list(folder.glob("8.*tmp*")), process)
    else:
        wait_until(lambda: (folder / "8").is_dir(), process)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert max(checkpoint.steps(folder)) == (4 if moment == "saving" else 8)
    assert train(workdir) == whole[1]
    assert not list(folder.glob("*tmp*"))  # what the kill left is swept away
    steps = [line["step"] for line in lines(workdir) if "loss" in line]
    assert steps == list(range(2, STEPS + 1, 2))  # every line once


@pytest.mark.slow
def test_killed_at_random_moments(whole, start, tmp_path):
    """Killed eight times while it saves at every step: compiling, stepping, writing, deleting an old checkpoint."""
    workdir, rng = tmp_path / "run", np.random.default_rng(0)
    folder = workdir / "checkpoints"
    for target in sorted(rng.choice(STEPS - 6, 8, replace=False)):
        process = start(workdir, data__pause=0.05, save_every=1)
        wait_until(lambda: max(checkpoint.steps(folder), default=0) >= target, process)  # noqa: B023
        time.sleep(rng.uniform(0.0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert train(workdir)["digest"] == whole[1]["digest"]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["vae", "dit", "captioner", "expander"])
def test_the_real_thing_killed_and_resumed(config, tmp_path):
    """The smoke configs through the command line: 20 steps, killed twice, end in the same digest as undisturbed."""

    def command(name):
        line = [sys.executable, "-m", "sora_jax.cli", "train", "--config", f"configs/{config}.py:smoke"]
        return subprocess.Popen([*line, "--workdir", str(tmp_path / name)], cwd=ROOT, stdout=subprocess.PIPE)

    whole = command("whole").communicate()[0]
    assert json.loads(whole)["step"] == 20
    for name in ("5", "10*tmp*"):  # after the first checkpoint, and inside the second or just after
        process = command("killed")
        while not list((tmp_path / "killed" / "checkpoints").glob(name)) and process.poll() is None:
            time.sleep(0.002)
            if checkpoint.steps(tmp_path / "killed" / "checkpoints")[-1:] >= [10]:
                break
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert command("killed").communicate()[0] == whole


def test_sigterm_saves_says_where_it_stopped_and_exits_0(whole, start, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, data__pause=0.05, save_every=0)
    wait_until(lambda: (workdir / "metrics.jsonl").exists() and len(lines(workdir)) > 2, process)
    with pytest.raises(InputError, match="another run is training in"):
        train(workdir)
    process.terminate()
    process.join(300)
    assert process.exitcode == 0
    summary = json.loads(workdir.with_suffix(".out").read_text())
    assert 4 <= summary["step"] < STEPS
    state, cursor = checkpoint.restore(workdir / "checkpoints")
    assert checkpoint.steps(workdir / "checkpoints") == [summary["step"]]
    assert cursor[0]["step"] == summary["step"] and float(state["loss"]) == summary["loss"]
    assert train(workdir) == whole[1]


def test_one_device_is_eight(whole, start, tmp_path):
    """The same weights, to float rounding; and a checkpoint of one mesh goes on on another."""
    workdir = tmp_path / "run"
    process = start(workdir, devices=1, data__pause=0.05)
    wait_until(lambda: (workdir / "checkpoints" / "8").is_dir(), process)
    process.terminate()
    process.join(300)
    assert process.exitcode == 0 and train(workdir)["step"] == STEPS
    for name in ("params", "ema"):
        one, eight = (checkpoint.restore(w / "checkpoints", {name: None})[0] for w in (workdir, whole[0]))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), one, eight)


# A user's mistakes, and the machine's


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"opt__name": "adam"}, "config.opt.name is 'adam'.*did you mean 'adamw'"),
        ({"opt__schedule": "cosin"}, "config.opt.schedule is 'cosin'.*did you mean 'cosine'"),
        ({"keep": 0}, "config.keep is 0"),
        ({"opt__accumulate": 0}, "config.opt.accumulate is 0"),
    ],
)
def test_a_bad_config_is_one_sentence(tmp_path, change, sentence):
    with pytest.raises(InputError, match=sentence):
        train(tmp_path, **change)


@pytest.mark.parametrize(
    "setting, sentence",
    [
        ("dit.keep=all", "config.dit.keep is 'all': choose one of nothing"),
        ("dit.dtype=float8", "config.dit.dtype is 'float8'"),
    ],
)
def test_a_transformer_that_cannot_be_is_one_sentence(setting, sentence):
    with pytest.raises(InputError, match=sentence):
        tasks.make(configs.read("configs/dit.py:smoke", [setting]))


def test_another_model_in_the_workdir(whole, capsys):
    workdir, summary = whole
    with pytest.raises(InputError, match=r"was trained with dit.width = 32, not 64; give another --workdir"):
        train(workdir, dit__width=64)
    assert (
        train(workdir, opt__lr=0.5, dit__remat=True)["digest"] == summary["digest"]
    )  # not the model: allowed, and told
    told = capsys.readouterr().err
    assert "resuming with opt.lr = 0.5 (was 0.01)" in told and "resuming with dit.remat = True (was False)" in told
    train(workdir)
    with pytest.raises(InputError, match="was trained with expert = None, not 'low'"):
        train(workdir, expert="low")


def test_what_stands_still_is_what_it_was(tmp_path):
    """A LoRA goes on with the weights that it was trained beside."""
    config = configs.read("configs/dit.py:tiny,lora=8")
    loop.keep_config(config, tmp_path, resuming=False)
    config.init = "elsewhere"
    with pytest.raises(InputError, match="was trained with init = 'tiny', not 'elsewhere'"):
        loop.keep_config(config, tmp_path, resuming=True)


def test_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write in .*give another --workdir"):
        train(tmp_path / "file" / "run")


def test_a_full_disk_loses_nothing(start, tmp_path):
    """Files are refused beyond a size by the kernel, as a full disk refuses them; that needs no root."""
    workdir, changes = tmp_path / "run", {"opt__schedule": "constant", "opt__name": "adamw", "dit__width": 256}
    train(workdir, steps=8, **changes)
    before = checkpoint.digest(*checkpoint.restore(workdir / "checkpoints"))
    process = start(workdir, devices=1, largest_file=50_000, steps=16, **changes)
    process.join(300)
    assert process.exitcode == 2
    *_, bar, told = workdir.with_suffix(".err").read_text().splitlines()
    assert "loss" in bar and "Traceback" not in workdir.with_suffix(".err").read_text()
    assert told.startswith("sora-jax: could not save a checkpoint in") and "File too large" in told
    assert told.endswith("then run the same command again") and "the checkpoint of step 8 is intact" in told
    assert checkpoint.digest(*checkpoint.restore(workdir / "checkpoints")) == before
    assert train(workdir, steps=16, **changes)["step"] == 16
