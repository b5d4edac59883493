"""Sweeps: members run, what failed does not stop the rest, what is done is not run again; and a run's report."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath
from PIL import Image

from sora_jax.errors import InputError
from sora_jax.evaluate import report, scaling

ROOT = Path(__file__).parent.parent
SWEEP = """
CONFIG = "configs/dit.py:smoke"
def sweep(add):
    for width in (32, 64):
        add(f"width{width}", {"dit.width": width, "dit.heads": width // 32})
"""
# stands for another machine: counts its calls, and fails for one member until told that it is well
ELSEWHERE = """
here=$(dirname "$0"); echo "$@" >>"$here/calls"
if [ "$1" = width64 ] && [ ! -e "$here/well" ]; then echo "no such slice" >&2; exit 3; fi
echo '{"step": 5, "loss": 0.5, "digest": "0", "skipped": 0}'
"""


def sweep(*flags: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "launch/sweep.py", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def written(tmp_path):
    (tmp_path / "sweep.py").write_text(SWEEP)
    (tmp_path / "elsewhere.sh").write_text(ELSEWHERE)
    return tmp_path


def test_a_member_that_fails_does_not_stop_the_rest_and_runs_again(written):
    flags = [written / "sweep.py", "--out", written / "out", "--on", f"bash {written}/elsewhere.sh {{name}}"]
    first = sweep(*flags, "--config.steps=5")
    assert first.returncode == 1
    assert re.search(r"width32 .*0\.5000", first.stdout)
    assert "exit code 3: no such slice" in first.stdout
    (written / "well").touch()
    again = sweep(*flags, "--config.steps=5")
    assert again.returncode == 0, again.stderr
    calls = [line.split()[0] for line in (written / "calls").read_text().splitlines()]
    assert calls == ["width32", "width64", "width64"]
    other = sweep(*flags, "--config.steps=5", "--config.opt.lr=9")
    assert other.returncode == 2 and "is of other settings" in other.stderr and "Traceback" not in other.stderr
    results = json.loads((written / "out" / "results.json").read_text())
    assert results["width64"] | {"dit.width": 64, "loss": 0.5} == results["width64"]


def test_a_member_that_was_stopped_is_not_done(written):
    """Told to stop, training saves and ends well; and what is elsewhere may keep its words to itself."""
    flags = [written / "sweep.py", "--out", written / "out", "--on", f"bash {written}/elsewhere.sh {{name}}"]
    (written / "well").touch()
    stopped = sweep(*flags, "--config.steps=6")
    assert stopped.returncode == 1
    assert stopped.stdout.count("stopped at step 5 of 6") == 2
    (written / "elsewhere.sh").write_text("echo 12:10:00 done")
    silent = sweep(*flags, "--config.steps=6")
    assert silent.returncode == 1
    assert silent.stdout.count("it ended without a result") == 2 and "Traceback" not in silent.stderr
    for width in (32, 64):
        lines = [{"step": 6, "loss": 0.25, "skipped": 0}, {"step": 6, "eval/loss": 0.75}]
        (written / "out" / f"width{width}").mkdir()
        (written / "out" / f"width{width}" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = sweep(*flags, "--config.steps=6")
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r" 6 +0\.2500 +0\.7500", done.stdout)) == 2
    assert "done before" in sweep(*flags, "--config.steps=6").stderr


def test_a_dry_run_prints_commands_that_train_takes(written):
    dry = sweep(written / "sweep.py", "--out", written / "out", "--dry-run", "--config.steps=7")
    assert dry.returncode == 0
    assert len(dry.stdout.splitlines()) == 2
    assert "--config.dit.width=32 --config.dit.heads=1 --config.steps=7" in dry.stdout
    assert not (written / "out").exists()


@pytest.mark.parametrize(
    "text, said",
    [
        (SWEEP.replace("dit.width", "dit.widht"), "did you mean dit.width?"),
        (SWEEP.replace('f"width{width}"', '"same"'), "'same' twice"),
        ("CONFIG = 1", "is not a sweep"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, text, said):
    (tmp_path / "sweep.py").write_text(text)
    told = sweep(tmp_path / "sweep.py", "--out", tmp_path / "out")
    assert told.returncode == 2
    assert said in told.stderr
    assert "Traceback" not in told.stderr
    assert not (tmp_path / "out").exists()


def test_the_committed_sweeps_are_sound(tmp_path):
    for path in sorted((ROOT / "configs" / "sweeps").glob("*.py")):
        dry = sweep(path, "--out", tmp_path, "--dry-run")
        assert dry.returncode == 0, dry.stderr


def run_of(folder: Path, lines: list[dict]) -> Path:
    folder.mkdir()
    config = {"task": "dit", "steps": 40, "dit": {"width": 8}, "prompts": ["<a & b>"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3')
    return folder


def test_a_report_shows_every_metric_and_is_whole(tmp_path):
    lines = [{"step": 10 * i, "loss": 1 / (i + 1), "loss_t0": 0.1, "odd_one": i, "psnr": None} for i in range(4)]
    workdir = run_of(tmp_path / "run", [*lines, {"step": 30, "eval/loss": 0.5}])
    titles = [title for title, _ in report.figures(report.metrics(workdir / "metrics.jsonl"))]
    assert titles == ["loss, and held out", "loss by noise level, quarters from clean (t0) to noise (t3)", "others"]
    (workdir / "samples").mkdir()
    (workdir / "samples/0000010.txt").write_text("a <star>")
    Image.new("RGB", (8, 8)).save(workdir / "samples/0000020.png")
    page = report.write(workdir).read_text()
    assert page.count("<svg") == 3 and "<pre>a &lt;star&gt;</pre>" in page and 'alt="samples at 0000020"' in page
    assert "step 30 of 40" in page
    assert "held out 0.5000 at step 30" in page
    assert "&lt;a &amp; b&gt;" in page, "what the config says is text, not HTML"
    assert not re.search(r'(src|href)="(?!data:|#)', page), "nothing is fetched"


def test_a_report_of_a_run_in_a_bucket(bucket):
    run_of(bucket / "run", [{"step": 10, "loss": 0.5}])
    (bucket / "run/checkpoints/10/params").mkdir(parents=True)
    (bucket / "run/checkpoints/10/params/weights").write_bytes(bytes(3 * 10**6))
    (bucket / "run/samples").mkdir()
    Image.new("RGB", (8, 8)).save(bucket / "run/samples/0000010.png")
    report.write("gs://bucket/run")
    page = (bucket / "run/report.html").read_text()
    assert 'alt="samples at 0000010"' in page and "step 10 of 40" in page
    assert report.saved(epath.Path("gs://bucket/run/checkpoints"))[0][:2] == (10, 0.003)


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        report.write(tmp_path)
    with pytest.raises(InputError, match="no metrics yet"):
        report.write(run_of(tmp_path / "run", []))


def trainings(folder: Path, losses: dict[str, tuple[float, float]]) -> Path:
    """A sweep's folder with trainings of these computes and losses, of ten steps each."""
    for name, (compute, loss) in losses.items():
        (folder / name).mkdir(parents=True)
        (folder / f"{name}.json").write_text(json.dumps({"step": 10, "loss": loss}))
        lines = [{"step": 5, "flops_per_second": compute / 20, "seconds_per_step": 2.0, "eval/loss": 9.0}]
        lines.append(lines[0] | {"step": 10, "eval/loss": loss})
        (folder / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_law_of_sizes_predicts_the_largest(tmp_path, capsys):
    loss = lambda compute: 40 * compute**-0.12
    sizes = {f"w{n}": (n * 1e12, loss(n * 1e12)) for n in (1, 2, 4, 8, 16)}
    told = scaling.evaluate(trainings(tmp_path / "law", sizes), seeds=0, picture=None)
    assert told["b"] == pytest.approx(0.12) and told["predicted"]["loss"] == pytest.approx(loss(16e12))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == told
    assert "w16: predicted" in scaling.table(told)
    ahead = scaling.evaluate(tmp_path / "law", seeds=0, expected=64e12)  # which nobody has run yet
    assert ahead["expected"]["loss"] == pytest.approx(loss(64e12)) and len(ahead["fitted"]) == 5
    with pytest.raises(InputError, match="not beyond"):
        scaling.evaluate(tmp_path / "law", seeds=0, expected=1e12)
    bent = sizes | {"w16": (16e12, 0.5)}  # one that is better than the law does not bend it
    told = scaling.evaluate(trainings(tmp_path / "bent", bent), seeds=0)
    assert told["b"] == pytest.approx(0.12) and told["predicted"]["measured"] == 0.5
    rows = scaling.members(tmp_path / "law")
    scaling.draw(rows, told, tmp_path / "law.png")
    assert (tmp_path / "law.png").stat().st_size > 5000
    with pytest.raises(InputError, match="3 make a law"):
        scaling.members(trainings(tmp_path / "two", dict(list(sizes.items())[:2])))


@pytest.mark.parametrize("path", sorted((ROOT / "configs/sweeps").glob("*.py")), ids=lambda path: path.stem)
def test_every_sweep_has_settings_that_its_config_knows(path):
    told = sweep(path, "--out", "nowhere", "--dry-run")
    assert told.returncode == 0 and len(told.stdout.splitlines()) >= 2, told.stderr
