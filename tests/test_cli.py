"""Laws of the command: help at once, one sentence for a mistake, one JSON line for a result. Real processes."""

import json
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

from sora_jax import cli, load, media
from sora_jax.errors import InputError
from sora_jax.train import configs

CONFIG = """
from ml_collections import ConfigDict

def get_config(variant="small"):
    if variant not in ("small", "large"):
        raise ValueError(f"no variant {variant!r}; choose small or large")
    c = ConfigDict({"steps": 10, "name": "x", "crops": ((1, 2), (3, 4))})
    c.opt = ConfigDict({"lr": 1e-3, "name": "adamw", "nesterov": False})
    return c.lock()
"""


def command(*args):
    """A real process, with one device, as people have."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    line = [sys.executable, "-m", "sora_jax.cli", *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, env=env)


def test_help_answers_at_once():
    best = 9.0
    for _ in range(3):  # the best of three, and its processor's time: the machine may be busy
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = command("--help")
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime)
        assert done.returncode == 0 and "generate" in done.stdout
    assert best < 1.0
    assert command("data", "latents", "--help").returncode == 0


def test_a_mistake_ends_the_process_with_2(tmp_path):
    done = command("generate", "a red circle", "--model", tmp_path / "none", "--out", tmp_path / "x.mp4")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"sora-jax: {tmp_path / 'none'} is not a model folder: it has no model.json\n"


def test_mistakes_get_one_sentence(tmp_path, capsys):
    def refused(*args, about):
        try:
            code = cli.main([str(arg) for arg in args])
        except SystemExit as error:  # argparse's own
            code = error.code
        out, err = capsys.readouterr()
        last = err.strip().splitlines()[-1]
        assert code == 2 and out == "" and last.startswith("sora-jax")
        assert about in last

    (tmp_path / "conf.py").write_text(CONFIG)
    paint, train = (
        ("generate", "a red circle"),
        ("train", "--config", tmp_path / "conf.py", "--workdir", tmp_path / "w"),
    )
    refused(*paint, "--out", tmp_path / "x.avocado", about=".avocado")
    refused(*paint, "--out", tmp_path / "missing" / "x.mp4", about="missing")
    refused(*paint, "--out", "gs://bucket/x.mp4", about="only trainings write to gs://bucket/x.mp4: mount the bucket")
    refused("caption", "gs://bucket/clips", "--captioner", "tiny", "--out", tmp_path, about="of gs://bucket/clips and")
    refused(*paint, "--size", "big", "--out", "x.mp4", about="96x64")
    refused(*paint, "--outt", "x.mp4", about="--out")
    refused(*paint, "--out", "x.mp4", "--config.x=3", about="--config.x")
    refused("train", "--config", "configs/none.py", "--workdir", tmp_path / "w", about="configs/none.py")
    refused(*train, "--config.opt.lrr=3", about="did you mean opt.lr?")
    refused(*train, "--config.steps", "many", about="whole number")
    refused(*train, "--confg.steps=3", about="--confg.steps")
    refused("export", tmp_path, "--out", tmp_path / "m", about="config.json")
    refused("data", "tokenizer", tmp_path / "nothing", "--out", tmp_path / "t.model", about="nothing")
    refused("data", "tokenizer", tmp_path / "c.txt", "--out", tmp_path / "no" / "t.model", about="c.txt")
    (tmp_path / "c.txt").write_text("a red circle")
    refused("data", "tokenizer", tmp_path / "c.txt", "--out", tmp_path / "no" / "t.model", about="No such file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.txt", "conf.py"]


def test_settings_take_the_type_of_what_they_replace(tmp_path):
    path = tmp_path / "conf.py"
    path.write_text(CONFIG)
    c = configs.read(str(path), ["steps=20", "opt.lr=3e-4", "opt.nesterov=true", "name=4", "crops=(5,6),(7,8)"])
    assert (c.steps, c.opt.lr, c.opt.nesterov, c.name, c.crops) == (20, 3e-4, True, "4", ((5, 6), (7, 8)))
    assert configs.read(f"{path}:large", ["opt.lr=3"]).opt.lr == 3.0 and c.is_locked
    for spec, setting, about in [
        (path, "opt.lrr=1", "did you mean opt.lr?"),
        (path, "stepss=1", "did you mean steps?"),
        (path, "opt=1", "opt.lr"),
        (path, "opt.lr.x=1", "no key opt.lr.x"),
        (path, "steps=1.5", "whole number"),
        (path, "opt.lr=fast", "a number"),
        (path, "opt.nesterov=maybe", "true or false"),
        (path, "crops=7", "tuple"),
        (path, "steps", "needs a value"),
        (f"{path}:huge", "steps=1", "choose small or large"),
        (tmp_path / "none.py", "steps=1", "no config"),
        (__file__, "steps=1", "get_config"),
    ]:
        with pytest.raises(InputError) as error:
            configs.read(str(spec), [setting])
        assert about in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random model."""
    import jax

    from sora_jax.model import Model, shapes_of
    from sora_jax.models.text import train_tokenizer
    from tests.test_model import CONFIG as config

    where = tmp_path_factory.mktemp("cli")
    model = Model(config, {}, train_tokenizer(["a red circle"], where / "t.model", 320))
    rng = np.random.default_rng(0)
    model.params = jax.tree.map(lambda x: np.asarray(rng.normal(0, 0.2, x.shape), np.float32), shapes_of(model))
    model.save(where / "model")
    return where / "model"


def test_generate_prints_one_json_line(folder, tmp_path, capsys):
    out, sheet = tmp_path / "a.mp4", tmp_path / "a.png"
    done = command(
        "generate", "a red circle", "--size", "20x14", "--frames", 5, "--model", folder, "--out", out, "--sheet", sheet
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["seconds"] > 0 and "painting" in done.stderr
    assert {k: facts[k] for k in ("path", "width", "height", "frames", "fps", "seed")} == {
        "path": str(out), "width": 20, "height": 14, "frames": 5, "fps": 8.0, "seed": 0
    }  # fmt: skip
    assert media.read(out).frames.shape == (5, 14, 20, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.png"]

    # same seed, same bytes, also in another process with other devices
    again = "generate", "a red circle", "--size", "20x14", "--frames", "5", "--model", str(folder), "--out"
    assert cli.main([*again, str(tmp_path / "b.mp4")]) == 0
    assert (tmp_path / "b.mp4").read_bytes() == out.read_bytes()

    capsys.readouterr()
    assert (
        cli.main(["generate", "moves", "--size", "20x14", "--model", str(folder), "--out", str(tmp_path / "x.png")])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["frames"] == 1 and media.probe(tmp_path / "x.png")["kind"] == "image"


def test_the_best_of_several(folder, tmp_path, capsys):
    """What is kept is the candidate that a captioner finds likeliest, as it would be painted among the others."""
    how = "generate", "a red circle", "--size", "20x16", "--frames", "5", "--steps", "2", "--model", str(folder)
    assert cli.main([*how, "--best", "3", "--out", str(tmp_path / "a.gif")]) == 0
    best = json.loads(capsys.readouterr().out)["best"]
    assert len(best["likelihood"]) == 3 and best["kept"] == int(np.argmax(best["likelihood"]))
    model = load(folder)
    painted = model.generate(["a red circle"] * 3, size=(20, 16), frames=5, steps=2)[best["kept"]]
    media.write(painted, tmp_path / "b.gif")
    assert np.array_equal(media.read(tmp_path / "a.gif").frames, media.read(tmp_path / "b.gif").frames)
    how = [word for word in how if word not in ("--frames", "5")]
    assert cli.main([*how, "--best", "2", "--seconds", "60", "--out", str(tmp_path / "c.mp4")]) != 0
    assert "--best chooses among clips of at most" in capsys.readouterr().err and not (tmp_path / "c.mp4").exists()


def test_an_interrupt_is_no_traceback(folder, tmp_path):
    """In the middle of what is one call into XLA."""
    out = tmp_path / "a.mp4"
    line = [
        sys.executable,
        "-m",
        "sora_jax.cli",
        "generate",
        "a red circle",
        "--steps",
        "100000",
        "--model",
        folder,
        "--out",
        out,
    ]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    seen = ""
    while "/100000" not in seen:
        seen += process.stderr.read(16)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130) and "Traceback" not in stderr and not out.exists()
