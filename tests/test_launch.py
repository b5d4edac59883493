"""launch/: what is rendered is valid, what is scripted does what it says, and nothing is created unasked.

The cloud itself is stood in for by a `gcloud` that keeps "hosts" as folders and runs on them what ssh would; every
command it was given is then parsed by the real gcloud where there is one. `srun` and `scontrol` likewise.
"""

import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from sora_jax.pod import plan
from sora_jax.pod.chips import CHIPS, show, topology
from sora_jax.train import configs

ROOT = Path(__file__).parents[1]
TRAIN = ["sora-jax", "train", "--config", "configs/dit.py:wan-14b", "--workdir", "gs://bucket/run it's"]


def tool(name: str) -> str | None:
    """A program on the PATH, or installed beside this Python."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def run(*command, **options):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, timeout=120, **options)


def gke(*arguments):
    return run(sys.executable, "launch/gke.py", *arguments)


# --- every script ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", sorted(ROOT.glob("launch/*.sh")), ids=lambda path: path.name)
def test_scripts_are_sound(script):
    shell = script.read_text().partition("\n")[0].rpartition("/")[2]
    assert run(shell, "-n", script).stderr == ""
    if not tool("shellcheck"):
        pytest.skip("shellcheck is not installed (extra `test`)")
    assert run(tool("shellcheck"), script).stdout == ""


def test_the_image_holds_what_hosts_run():
    text = (ROOT / "launch/Dockerfile").read_text()
    sources = [word for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for word in line.split()]
    kept = {line[1:] for line in (ROOT / "launch/Dockerfile.dockerignore").read_text().split() if line.startswith("!")}
    assert set(sources) == kept and {"sora_jax", "launch", "configs"} <= kept
    assert all((ROOT / source).exists() for source in sources)


def test_the_readmes_trainings_divide_over_their_chips():
    """What each command asks of a mesh and of rows, by the trainer's own checks; whether it fits, a plan says."""
    text = (ROOT / "launch/README.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^ {4}(.*sora-jax train .*)$", text, re.M)
    assert len(commands) == 6
    for line in commands:
        words = shlex.split(
            line.partition("sora-jax train ")[2].replace('"', "").partition(" > ")[0].partition(" | ")[0]
        )
        config = words[words.index("--config") + 1]
        settings = [word.removeprefix("--config.").replace("$lr", "1e-4") for word in words if "--config." in word]
        config = configs.read(config, settings)
        sizes = dict(config.mesh) | {"ulysses": config.mesh.context // config.mesh.ring}
        plan.check(config, SimpleNamespace(shape=sizes), "train")
        if at := re.search(r"(?:--topology |--tpu-type )(\S+)", line):
            slices = re.search(r"slices (\d+)", line)
            slices = int(slices[1]) if slices else 1
            chips = math.prod(topology(at[1].replace("v6e-", "v6e:"))[1]) * slices
        else:
            chips, slices = 8 * int(re.search(r"--nodes (\d+)", line)[1]) if "--nodes" in line else 256, 1
        assert math.prod(config.mesh[axis] for axis in ("data", "fsdp", "context", "tensor")) == chips, line
        assert config.mesh.data % slices == 0, line


# --- GKE -------------------------------------------------------------------------------------------------------------

JOBS = [("v6e:16x16", 4), ("v5p:8x8x8", 1), ("tpu7x:4x4x8", 2), ("v6e:1x1", 1), ("v4:2x2x1", 1), ("v5e:4x4", 1)]


@pytest.mark.parametrize("name, slices", JOBS)
def test_the_manifest_asks_for_the_slices_and_restarts_what_a_restart_can_mend(name, slices):
    made = gke("--topology", name, "--slices", slices, "--image", "i:1", "--bucket", "gs://bucket", "--", *TRAIN)
    assert made.returncode == 0, made.stderr
    jobset = yaml.safe_load(made.stdout)
    chip, shape = topology(name)

    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(jobset) == {"apiVersion", "kind", "metadata", "spec"}
    pool = "cloud.google.com/gke-nodepool"
    assert jobset["metadata"]["annotations"] == {"alpha.jobset.sigs.k8s.io/exclusive-topology": pool}
    assert (
        set(jobset["spec"]) == {"failurePolicy", "replicatedJobs"}
        and jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    )
    (job,) = jobset["spec"]["replicatedJobs"]
    assert set(job) == {"name", "replicas", "template"} and job["replicas"] == slices

    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    chips = spec["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    assert chips == math.prod(shape) and spec["completions"] == spec["parallelism"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": chip.gke,
        "cloud.google.com/gke-tpu-topology": show(shape),
    }
    assert container["command"] == ["bash", "launch/host.sh", chip.name, *TRAIN]  # as it was typed, quotes and all
    assert pod["hostNetwork"] and pod["terminationGracePeriodSeconds"] >= 300 and pod["restartPolicy"] == "Never"
    assert {"name": "shm", "emptyDir": {"medium": "Memory"}} in pod["volumes"]
    (data,) = [volume["csi"] for volume in pod["volumes"] if volume["name"] == "data"]
    assert data["driver"] == "gcsfuse.csi.storage.gke.io" and data["volumeAttributes"]["bucketName"] == "bucket"
    assert {"name": "data", "mountPath": "/data"} in container["volumeMounts"]
    assert job["template"]["spec"]["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    (rule,) = spec["podFailurePolicy"]["rules"]
    final = rule["onExitCodes"]["values"]
    assert (rule["action"], rule["onExitCodes"]["operator"], spec["backoffLimit"]) == ("FailJob", "In", 0)
    assert 2 in final and not {0, 134, 137, 143} & set(final)


@pytest.mark.parametrize("spot", [(), ("--spot",)])
def test_kubernetes_takes_the_jobs(spot):
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (extra `test`)")
    made = gke("--topology", "v6e:16x16", "--image", "i:1", "--bucket", "gs://bucket/a", *spot, "--", *TRAIN)
    (job,) = yaml.safe_load(made.stdout)["spec"]["replicatedJobs"]
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, **job["template"]}
    validate.validate(whole, "1.33", strict=True)
    pod = whole["spec"]["template"]["spec"]
    assert (pod["nodeSelector"].get("cloud.google.com/gke-spot") == "true") == bool(spot)
    assert not spot or pod["terminationGracePeriodSeconds"] <= 25  # no more is given there
    del whole["spec"]["template"]["spec"]["containers"][0]["name"]
    with pytest.raises(validate.ValidationError):
        validate.validate(whole, "1.33", strict=True)


def test_money_is_shown_before_anything():
    said = gke("--topology", "v6e:16x16", "--slices", 4, "--image", "i", "--bucket", "gs://bucket", "--", "true").stderr
    assert "1,024 chips" in said and "$2,764.80 an hour" in said and "$66,355 a day" in said
    said = gke("--topology", "tpu7x:4x4x8", "--image", "i", "--bucket", "gs://bucket", "--", "true").stderr
    assert "no public price of tpu7x" in said and "--price" in said


@pytest.mark.parametrize(
    "arguments, way_out",
    [
        (["--topology", "v6e:3x5"], "the nearest is v6e:4x4"),
        (["--topology", "h100:8"], "the chips are v4"),
        (["--topology", "v6e:4x4", "--slices", "0"], "--slices 0"),
        (["--topology", "v6e:4x4"], "--image, --bucket, the command after --"),
        (["--topology", "v6e:4x4", "--nodes", "--zone", "us-east5-b"], "--cluster, --project"),
        (["--topology", "v6e:4x4", "--image", "i", "--bucket", "/tmp/x", "--", "true"], "gs://my-bucket"),
        (["--topology", "v6e:4x4", "--image", "i", "--bucket", "gs://bucket", "--name", "A b", "--", "true"], "'A b'"),
    ],
)
def test_a_mistake_is_one_sentence_and_prints_no_manifest(arguments, way_out):
    made = gke(*arguments)
    last = made.stderr.splitlines()[-1]
    assert made.returncode == 2 and made.stdout == "" and way_out in last and "Traceback" not in made.stderr


# --- one host --------------------------------------------------------------------------------------------------------

SAVES = """
import signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
print("ready", flush=True)
for _ in range(600):
    time.sleep(0.05)
    if told:
        time.sleep(0.5)
        print("saved", len(told), flush=True)
        sys.exit(int(sys.argv[1]))
"""


def host(*command, chip="none"):
    return ["bash", str(ROOT / "launch/host.sh"), chip, *map(str, command)]


@pytest.mark.parametrize("code", [0, 2, 134])
def test_a_host_ends_as_its_command_does(code):
    assert run(*host("bash", "-c", f"exit {code}")).returncode == code


@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize("code, means", [(0, 143), (2, 2)])
def test_sigterm_reaches_python_once_and_stopped_is_not_finished(group, code, means):
    process = subprocess.Popen(
        host(sys.executable, "-c", SAVES, code), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGTERM) if group else process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "saved 1\n" and process.wait(30) == means


def test_a_host_gives_libtpu_the_flags_of_its_chip_and_yours_last():
    environment = os.environ | {"LIBTPU_INIT_ARGS": "--mine=1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    flags = run(*host("printenv", "LIBTPU_INIT_ARGS", chip="v6e"), env=environment).stdout.split()
    assert flags == [f"--{flag}" for flag in CHIPS["v6e"].flags] + ["--mine=1"]
    assert run(*host("true", chip="v9"), env=environment).returncode == 2


# --- queued resources ------------------------------------------------------------------------------------------------

GCLOUD = r"""#!/bin/bash
# $CLOUD/state is the queued resource's; $CLOUD/hosts/NODE.0 and .1 are the homes of a node's two hosts
printf '%s\x1f' "$@" >>"$CLOUD/calls"; printf '\x1e' >>"$CLOUD/calls"
gone() { # every process of every host
    for home in "$CLOUD"/hosts/*; do [ ! -e "$home/run.session" ] || pkill -KILL -s "$(cat "$home/run.session")"; done
}
case "$3 $4" in
"queued-resources create")
    [ ! -e "$CLOUD/no-quota" ] || { echo "Quota limit exceeded" >&2; exit 1; }
    echo ACTIVE >"$CLOUD/state"
    [[ "$*" =~ node-prefix ]] && nodes="$5-0 $5-1" || nodes=$5
    for node in $nodes; do
        for i in 0 1; do
            home=$CLOUD/hosts/$node.$i
            mkdir -p "$home/.venv-sora/bin" && ln -s "$PYTHON" "$home/.venv-sora/bin/python"
            touch "$home/.venv-sora/.stamp" && mkdir -p "$home/.local/bin" && ln -s /bin/true "$home/.local/bin/uv"
        done
    done ;;
"queued-resources describe")
    if [ -e "$CLOUD/take-at" ] && [ "$(cat "$CLOUD/step" 2>/dev/null || echo 0)" -ge "$(cat "$CLOUD/take-at")" ]; then
        rm "$CLOUD/take-at"; gone; echo SUSPENDED >"$CLOUD/state"
    fi
    if [ -e "$CLOUD/expired" ]; then
        [ "$(cat "$CLOUD/expired")" != once ] || rm "$CLOUD/expired"
        echo "ERROR: There was a problem refreshing your current auth tokens" >&2; exit 1
    fi
    [ -e "$CLOUD/state" ] || { echo "ERROR: NOT_FOUND: Resource 'projects/p/x' was not found" >&2; exit 1; }
    cat "$CLOUD/state" ;;
"queued-resources delete") gone; rm -rf "$CLOUD/state" "$CLOUD/hosts" ;;
"tpu-vm scp") for home in "$CLOUD/hosts/${6%%:*}".*; do cp "$5" "$home/${6#*:}" || exit 1; done ;;
"tpu-vm ssh")
    worst=0
    for home in "$CLOUD/hosts/$5".*; do
        if [[ "$home $9" =~ \.1\ .*setsid && -e "$CLOUD/deaf" ]]; then # once a host cannot be told to begin
            rm "$CLOUD/deaf"; worst=255; continue
        fi
        (cd "$home" && HOME=$home bash -c "$9") || worst=$?
    done
    exit $worst ;;
*) echo "no such command: $*" >&2; exit 2 ;;
esac
"""
# The "training": host 0 counts in the bucket, both end when it is at 8. It takes its SIGTERM as the trainer does, and
# counts when both have begun, as collectives do.
COUNT = r"""
trap 'sed -i \$d "$CLOUD/began"; exit 0' TERM # who is told while it waits for the other has not begun
echo "$(cat "$CLOUD/step" 2>/dev/null || echo 0)" >>"$CLOUD/began"
while [ $(($(wc -l <"$CLOUD/began") % 2)) = 1 ]; do sleep 0.05; done
trap 'echo saved >>"$CLOUD/saves"; exit 0' TERM
while step=$(cat "$CLOUD/step" 2>/dev/null || echo 0) && [ "$step" -lt 8 ]; do
    case $PWD in *.0/sora_jax) echo $((step + 1)) >"$CLOUD/step.new" && mv "$CLOUD/step.new" "$CLOUD/step" ;; esac
    [ "$step" != "${ABORT:-none}" ] || ! mkdir "$CLOUD/aborted" 2>/dev/null || exit 134 # mkdir: one of both, once
    [ "$step" != "${EXPIRE:-none}" ] || ! mkdir "$CLOUD/expiring" 2>/dev/null || echo once >"$CLOUD/expired"
    [ "$step" != "${FAIL:-none}" ] || { echo "the reason"; exit 2; }
    sleep 0.3
done
"""


@pytest.fixture
def cloud(tmp_path):
    """Runs launch/queued.sh in a cloud of folders; `.calls()` are the commands it was given."""
    if not (shutil.which("pkill") and shutil.which("setsid")):
        pytest.skip("pkill and setsid are needed")
    folder, programs = tmp_path / "cloud", tmp_path / "bin"
    folder.mkdir(), programs.mkdir()
    (programs / "gcloud").write_text(GCLOUD)
    (programs / "gcloud").chmod(0o755)
    (folder / "count.sh").write_text(COUNT)
    environment = os.environ | {"CLOUD": str(folder), "PYTHON": sys.executable, "POLL": "0.2"}
    environment["PATH"] = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"

    class Cloud:
        path = folder

        def queued(self, *arguments, stdin="", **more):
            command = ["bash", "launch/queued.sh", "--zone", "us-east5-b", "--project", "p", *arguments]
            return run(*command, input=stdin, env=environment | more)

        def train(self, *arguments, **more):
            return self.queued(*arguments, "--yes", "--", "bash", folder / "count.sh", "a b", **more)

        def calls(self):
            return [call.split("\x1f")[:-1] for call in (folder / "calls").read_text().split("\x1e")[:-1]]

        def made(self):
            return sum(call[2:4] == ["queued-resources", "create"] for call in self.calls())

    yield Cloud()
    run(programs / "gcloud", "compute", "tpus", "queued-resources", "delete", env=environment)


def test_nothing_is_created_before_the_cost_is_shown_and_agreed_to(cloud):
    ran = cloud.queued("--topology", "v6e:16x16", "--slices", "4", "--", "true", stdin="n\n")
    assert ran.returncode == 2 and "$2,764.80 an hour" in ran.stdout and not (cloud.path / "calls").exists()


@pytest.mark.parametrize(
    "arguments, way_out",
    [
        (["--topology", "v6e:3x5", "--", "true"], "the nearest is v6e:4x4"),
        (["--topology", "tpu7x:4x4x8", "--", "true"], "launch/gke.py"),
        (["--topology", "v6e:4x4"], "the command to run"),
        (["--topology", "v6e:4x4", "--price", "cheap", "--", "true"], "--price cheap"),
        (["--topology", "v6e:4x4", "--slices", "two", "--", "true"], "--slices"),
        (["--preemptible"], "--preemptible"),
    ],
)
def test_queued_mistakes_are_one_sentence(cloud, arguments, way_out):
    ran = cloud.queued(*arguments)
    assert ran.returncode == 2 and way_out in ran.stderr and ran.stderr.count("\n") == 1
    assert not (cloud.path / "calls").exists()


def test_without_quota_it_is_not_tried_again(cloud):
    (cloud.path / "no-quota").touch()
    ran = cloud.train("--topology", "v6e:4x4")
    assert ran.returncode == 1 and cloud.made() == 1 and "Quota limit exceeded" in ran.stderr
    assert "nothing was created" in ran.stdout and "billed" not in ran.stdout


def test_a_slice_that_is_taken_away_is_made_again_and_training_goes_on(cloud):
    (cloud.path / "take-at").write_text("3")
    ran = cloud.train("--topology", "v6e:4x4", "--spot")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (cloud.path / "step").read_text() == "8\n" and cloud.made() == 2
    began = list(map(int, (cloud.path / "began").read_text().split()))
    assert len(began) == 4 and min(began[2:]) >= 3  # two hosts, twice; the second time from where the first had come
    assert not (cloud.path / "state").exists()  # nothing is left that costs
    assert all("--spot" in call for call in cloud.calls() if call[3] == "create")


def test_a_host_that_aborts_starts_all_again_on_the_same_slice(cloud):
    ran = cloud.train("--topology", "v6e:4x4", ABORT="2")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "ended with 134" in ran.stdout and cloud.made() == 1
    assert "saved" in (cloud.path / "saves").read_text()  # the other was told, and let finish
    assert (cloud.path / "step").read_text() == "8\n"


def test_what_gcloud_cannot_say_is_not_taken_for_gone(cloud):
    ran = cloud.train("--topology", "v6e:4x4", EXPIRE="3")
    assert ran.returncode == 0 and "auth tokens" in ran.stderr, ran.stdout + ran.stderr
    assert (cloud.path / "step").read_text() == "8\n" and cloud.made() == 1
    (cloud.path / "state").write_text("ACTIVE")
    (cloud.path / "expired").touch()
    ran = cloud.queued("--down")
    assert ran.returncode == 1 and "is gone" not in ran.stdout and (cloud.path / "state").exists()


def test_where_one_host_cannot_be_told_to_begin_none_goes_on_without_it(cloud):
    (cloud.path / "deaf").touch()
    ran = cloud.train("--topology", "v6e:4x4")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (cloud.path / "step").read_text() == "8\n" and cloud.made() == 1
    assert (cloud.path / "began").read_text().count("\n") == 2  # who began alone was told


def test_what_no_restart_mends_ends_it_and_the_reason_is_shown(cloud):
    ran = cloud.train("--topology", "v6e:4x4", FAIL="1")
    assert ran.returncode == 1 and "the reason" in ran.stdout and cloud.made() == 1
    assert not (cloud.path / "state").exists()


def test_failing_again_and_again_gives_up_and_says_what_is_still_billed(cloud):
    (cloud.path / "count.sh").write_text("exit 134")
    ran = cloud.train("--topology", "v6e:4x4", "--tries", "2")
    assert ran.returncode == 1 and "2 failures in a row" in ran.stdout and "--down" in ran.stdout
    assert (cloud.path / "state").exists()
    assert cloud.queued("--down").returncode == 0 and not (cloud.path / "state").exists()


# --- gcloud itself ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_gcloud_parses_every_command(cloud, tmp_path):
    """With no account configured, gcloud parses its flags before it says so: exit 1, not 2."""
    real = shutil.which("gcloud")
    if real is None:
        pytest.skip("gcloud is not installed")
    assert cloud.train("--topology", "v5p:2x2x2", "--slices", "2", "--spot").returncode == 0
    commands = {" ".join(call[2:4]): call for call in cloud.calls()}
    assert len(commands) == 5
    for name in ("v6e:16x16", "tpu7x:4x4x8", "tpu7x:1x1x1"):
        where = ["--cluster", "c", "--project", "p", "--zone", "us-east5-b"]
        for line in gke("--topology", name, "--nodes", "--spot", *where).stdout.splitlines():
            commands[line] = shlex.split(line)[1:]
    readme = (ROOT / "launch/README.md").read_text().replace("\\\n", " ")
    for line in re.findall(r"^ {4}(gcloud (?!auth|config).*)$", readme, re.M):
        commands[line] = shlex.split(line.partition(" #")[0])[1:]
    environment = os.environ | {"CLOUDSDK_CONFIG": str(tmp_path / "none"), "CLOUDSDK_CORE_PROJECT": "p"}

    def parse(command):
        return run(real, *command, "--quiet", env=environment)

    assert parse([*commands["queued-resources create"], "--no-such-flag"]).returncode == 2
    for command in commands.values():
        told = parse(command)
        assert told.returncode == 1 and "active account" in told.stderr, (command, told.stderr)


@pytest.mark.slow
def test_xpk_takes_the_command_of_the_readme(tmp_path):
    if not tool("xpk"):
        pytest.skip("xpk is not installed")
    readme = (ROOT / "launch/README.md").read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^ {4}(xpk workload create .*)$", readme, re.M)
    wanted = [*shlex.split(command)[1:], "--dry-run", "--output-manifest-file", tmp_path / "run.yaml"]
    made = run(tool("xpk"), *wanted, env=os.environ | {"HOME": str(tmp_path)})
    assert made.returncode == 0, made.stdout[-2000:]
    jobset = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0


# --- SLURM -----------------------------------------------------------------------------------------------------------


SRUN = r"""#!/bin/bash
# two tasks, of which the second runs until it is killed, as --kill-on-bad-exit does; the highest code is srun's
shift
"$@" && code=0 || code=$?
[ $code = 0 ] || { bash launch/host.sh none sleep 60 & sleep 0.5; kill -TERM $!; wait $!; other=$?; }
[ "${other:-0}" -le $code ] || code=$other
exit $code
"""


@pytest.mark.parametrize(
    "code, restarts, ends, requeued",
    [(0, 0, 0, False), (2, 0, 2, False), (143, 0, 0, True), (137, 19, 0, True), (137, 20, 143, False)],
)
def test_slurm_requeues_what_was_stopped_and_no_more(tmp_path, code, restarts, ends, requeued):
    for name, text in {
        "srun": SRUN,
        "scontrol": '#!/bin/bash\necho "$@" >"$CALLED"',
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLED": str(tmp_path / "called")}
    environment |= {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts), "SLURM_SUBMIT_DIR": str(ROOT)}
    ran = run("bash", "launch/slurm.sh", "bash", "-c", f"exit {code}", env=environment)
    assert ran.returncode == ends, ran.stderr
    assert not list(ROOT.glob(".final-*"))
    called = tmp_path / "called"
    assert called.exists() == requeued and (not requeued or called.read_text() == "requeue 7\n")
