"""Several processes are one: they train the same model, save one checkpoint, stop together, go on as another number."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from sora_jax.train import checkpoint
from tests.training import ROOT, STEPS, lines, start, train, wait_until, whole  # noqa: F401 (fixtures)

HOSTS = 2


def pod(start, workdir, **changes):  # noqa: F811
    """Two processes of four devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [start(workdir, devices=4, pod=(port, HOSTS, i), **changes) for i in range(HOSTS)]


def summary(workdir) -> dict:
    """What the first process prints, after gloo, which connects them, has said that it does; the others print none."""
    said = [workdir.with_suffix(f".out{i}").read_text() for i in range(HOSTS)]
    assert '{"step"' not in said[1]
    return json.loads(said[0].splitlines()[-1])


def assert_same(workdir, other):
    for name in ("params", "ema"):
        a, b = (checkpoint.restore(w / "checkpoints", {name: None})[0] for w in (workdir, other))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), a, b)


@pytest.mark.slow  # and where compiling takes two processes 30 s apart, gloo gives up
def test_two_processes_are_one(whole, start, tmp_path):  # noqa: F811
    """SIGTERM to one stops both at the same step; one process goes on from there, and ends where one alone had."""
    workdir = tmp_path / "run"
    processes = pod(start, workdir, data__pause=0.05)
    wait_until(lambda: (workdir / "checkpoints" / "8").is_dir(), processes[0])
    processes[1].terminate()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    step = summary(workdir)["step"]
    assert 8 <= step < STEPS and checkpoint.steps(workdir / "checkpoints")[-1] == step
    _, cursors = checkpoint.restore(workdir / "checkpoints")
    assert [cursor["step"] for cursor in cursors] == [step] * HOSTS
    assert train(workdir)["step"] == STEPS
    assert_same(workdir, whole[0])
    assert [line["step"] for line in lines(workdir)] == sorted(line["step"] for line in lines(workdir))


@pytest.mark.slow
def test_a_pod_goes_on_where_one_process_stopped(start, tmp_path):  # noqa: F811
    changes = dict(opt__schedule="constant", opt__name="adamw")
    train(tmp_path / "one", steps=4, **changes)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    processes = pod(start, tmp_path / "two", steps=6, **changes)
    train(tmp_path / "one", steps=6, **changes)
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    assert summary(tmp_path / "two")["step"] == 6
    assert_same(tmp_path / "two", tmp_path / "one")


LOCAL_POD = ["bash", str(ROOT / "launch" / "local_pod.sh"), str(HOSTS), "--config", str(ROOT / "configs/dit.py:smoke")]
SMALL = ["--config.data.rows=4", "--config.picture_every=0", "--config.mesh.context=2"]


def local_pod(*arguments, **variables):
    return subprocess.Popen(
        [*LOCAL_POD, *SMALL, *arguments],
        env={**os.environ, "PYTHON": sys.executable, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_host_costs_one_interval(tmp_path):
    """kill -9 of one of two real processes, three times: each time both begin again from the last checkpoint, and the
    run ends where one that nobody killed does, bit for bit."""
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    out, err = local_pod("--workdir", str(unbroken)).communicate(timeout=900)
    expected = json.loads(out.splitlines()[-1])
    launcher, newest = local_pod("--workdir", str(killed)), lambda: max(checkpoint.steps(killed / "checkpoints") or [0])
    resumed = [0]
    try:
        for time in range(3):
            wait_until(lambda: newest() > resumed[-1], launcher, 900, pause=0.2)
            hosts = subprocess.run(
                ["pgrep", "-P", str(launcher.pid), "-f", "sora_jax.cli"], capture_output=True, text=True, check=True
            ).stdout.split()
            os.kill(int(hosts[time % HOSTS]), signal.SIGKILL)
            resumed.append(newest())
        out, err = launcher.communicate(timeout=900)
    finally:
        launcher.terminate()  # which ends its processes
    assert launcher.returncode == 0, err[-4000:]
    assert json.loads(out.splitlines()[-1]) == expected and expected["step"] == 20
    assert err.count("starting again from checkpoint") == 3
    again = [int(step) for step in re.findall(rf"resuming {killed} from step (\d+)", err)]
    # what was complete when the host was killed; a save may have ended since
    assert len(again) == 3 and all(0 <= step - least <= 5 for step, least in zip(again, resumed[1:]))


@pytest.mark.slow
def test_a_pod_that_always_fails_gives_up(tmp_path):
    """Hosts that are killed whenever they begin: after two failures in a row without progress that is enough."""
    killer = tmp_path / "python"
    killer.write_text(f'#!/bin/bash\n[ "$1" = -c ] && exec {sys.executable} "$@"\nkill -9 $$\n')
    killer.chmod(0o755)
    launcher = local_pod("--workdir", str(tmp_path / "run"), RETRIES="1", PYTHON=str(killer))
    _, err = launcher.communicate(timeout=900)
    assert launcher.returncode == 1 and "2 failures in a row at checkpoint none (last code 137): giving up" in err


@pytest.mark.slow
def test_a_users_mistake_is_told_once(tmp_path):
    launcher = local_pod("--workdir", str(tmp_path / "run"), "--config.data.rows=6")
    _, err = launcher.communicate(timeout=900)
    assert launcher.returncode == 2 and "a batch of 6 rows does not divide over mesh.data x mesh.fsdp = 1 x 4" in err
