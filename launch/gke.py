"""Prints the Kubernetes manifest that trains on TPU slices with GKE, and on stderr what it costs.

    python launch/gke.py --topology v6e:16x16 --slices 4 --image IMAGE --bucket gs://BUCKET \\
        -- sora-jax train --distributed --config configs/dit.py:wan-14b --workdir gs://BUCKET/run > run.yaml
    kubectl apply -f run.yaml

`--nodes --cluster C --project P --zone Z` prints instead the gcloud commands that make the node pools it runs on.
Nothing is created by this program. All that depends on the chip comes from the table in sora_jax/pod/chips.py.
"""

import argparse
import json
import math
import re
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from sora_jax.errors import InputError
from sora_jax.pod.chips import Chip, cost, hosts, show, topology

# Codes that a restart cannot mend: an exception, a user's mistake, a command that is not there. Others start again:
# 134 a host that lost its peers, 137 killed, 143 told to stop (launch/host.sh), nodes that vanish with no code at all.
FINAL_CODES = [1, 2, 126, 127]
GRACE = {True: 25, False: 600}  # seconds from SIGTERM to SIGKILL; GKE gives pods on spot nodes no more than 25


def manifest(
    chip: Chip,
    shape: tuple[int, ...],
    slices: int,
    *,
    name: str,
    image: str,
    bucket: str,
    command: list[str],
    spot: bool = False,
    max_restarts: int = 100,
    grace: int | None = None,
    service_account: str = "default",
) -> str:
    """One JobSet as YAML: a job a slice, a pod a host. Strings are JSON, which YAML reads as they are.

    `bucket` is mounted as /data, out of which datasets and models are read, and keeps the compiled programs (COMMAND's
    own workdir should be there too, as gs://), so that a restart begins at once;
    `grace` is seconds between SIGTERM and SIGKILL.
    """
    each = min(math.prod(shape), chip.chips_per_host)
    run = ["bash", "launch/host.sh", chip.name, *command]
    name_of, _, folder = bucket.removeprefix("gs://").strip("/").partition("/")
    options = "implicit-dirs" + (f",only-dir={folder}" if folder else "")
    on_spot = '\n                cloud.google.com/gke-spot: "true"' if spot else ""
    return f"""\
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: {json.dumps(name)}
  annotations:
    # One job has a whole node pool, that is, a whole slice, to itself.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: {max_restarts}
    rules:
      - name: final
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: {slices}
      template:
        spec:
          parallelism: {hosts(chip, shape)}
          completions: {hosts(chip, shape)}
          completionMode: Indexed
          backoffLimit: 0  # a slice that lost a host is of no use: all start again from the last checkpoint
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: {FINAL_CODES}
          template:
            metadata:
              annotations:
                gke-gcsfuse/volumes: "true"
            spec:
              restartPolicy: Never
              hostNetwork: true
              dnsPolicy: ClusterFirstWithHostNet
              serviceAccountName: {json.dumps(service_account)}
              terminationGracePeriodSeconds: {GRACE[spot] if grace is None else grace}
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: {json.dumps(chip.gke)}
                cloud.google.com/gke-tpu-topology: {json.dumps(show(shape))}{on_spot}
              tolerations:
                - key: google.com/tpu
                  operator: Exists
                - key: cloud.google.com/gke-spot
                  operator: Exists
              containers:
                - name: train
                  image: {json.dumps(image)}
                  securityContext:
                    privileged: true
                  ports:
                    - containerPort: 8471  # TPU hosts among themselves
                    - containerPort: 8482  # jax.distributed
                  env:
                    - name: JAX_COMPILATION_CACHE_DIR
                      value: {json.dumps(bucket.rstrip("/") + "/jax-cache")}
                  # host.sh is process 1 (exec form, no shell around it): SIGTERM reaches it, and it hands it to Python.
                  command: {json.dumps(run)}
                  resources:
                    limits:
                      google.com/tpu: {each}
                  volumeMounts:
                    - name: shm
                      mountPath: /dev/shm
                    - name: data
                      mountPath: /data
              volumes:
                - name: data
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes:
                      bucketName: {json.dumps(name_of)}
                      mountOptions: {json.dumps(options)}
                      hostNetworkPodKSA: "true"  # the pod's account, for it shares the network of its host
                - name: shm
                  emptyDir:
                    medium: Memory
"""


def node_pools(
    chip: Chip, shape: tuple[int, ...], slices: int, *, cluster: str, project: str, zone: str, spot: bool
) -> list[list[str]]:
    """The gcloud commands that make one node pool a slice."""
    region = zone.rpartition("-")[0]
    where = ["--project", project]
    several = hosts(chip, shape) > 1
    commands, placed = [], ["--tpu-topology", show(shape)] if several else []  # one host has its machine's shape
    if several and chip.name == "tpu7x":  # takes it from a workload policy
        policy = f"tpu7x-{show(shape)}"
        create = ["gcloud", "compute", "resource-policies", "create", "workload-policy", policy, *where]
        create += ["--region", region, "--type", "HIGH_THROUGHPUT", "--accelerator-topology", show(shape)]
        commands, placed = [create], ["--placement-policy", policy]
    machine = chip.machine if math.prod(shape) > 1 else chip.machine.removesuffix("4t") + "1t"
    for i in range(slices):
        create = ["gcloud", "container", "node-pools", "create", f"{chip.name}-{show(shape)}-{i}", *where]
        create += ["--cluster", cluster, "--location", region, "--node-locations", zone, "--machine-type", machine]
        commands.append([*create, *placed, "--num-nodes", str(hosts(chip, shape)), *(["--spot"] if spot else [])])
    return commands


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", required=True, help="chip and shape of one slice, as v6e:16x16")
    parser.add_argument("--slices", type=int, default=1, metavar="N")
    parser.add_argument("--spot", action="store_true", help="nodes that may be taken away, for less")
    parser.add_argument("--price", type=float, metavar="USD", help="a chip and hour, where yours is not the list price")
    parser.add_argument("--nodes", action="store_true", help="print the commands that make the node pools, no manifest")
    parser.add_argument("--cluster", help="with --nodes")
    parser.add_argument("--project", help="with --nodes")
    parser.add_argument("--zone", help="with --nodes")
    parser.add_argument("--name", default="sora-jax")
    parser.add_argument("--image", help="what launch/Dockerfile builds")
    parser.add_argument("--bucket", help="gs://BUCKET[/FOLDER]")
    parser.add_argument("--max-restarts", type=int, default=100, metavar="N")
    parser.add_argument("--grace", type=int, metavar="SECONDS", help="to save in after SIGTERM (600; on spot nodes 25)")
    parser.add_argument("--service-account", default="default", help="of Kubernetes, with the right to the bucket")
    parser.add_argument("command", nargs="*", help="after --")
    args = parser.parse_args(arguments)

    chip, shape = topology(args.topology)
    if args.slices < 1:
        raise InputError(f"--slices {args.slices}: give 1 or more")
    print(f"gke.py: {cost(chip, shape, args.slices, args.price, args.spot)}", file=sys.stderr)
    if args.nodes:
        missing = [f"--{key}" for key in ("cluster", "project", "zone") if not getattr(args, key)]
        if missing:
            raise InputError(f"--nodes also needs {', '.join(missing)}")
        where = dict(cluster=args.cluster, project=args.project, zone=args.zone)
        for command in node_pools(chip, shape, args.slices, spot=args.spot, **where):
            print(shlex.join(command))
        return
    missing = [f"--{key}" for key in ("image", "bucket") if not getattr(args, key)]
    if missing or not args.command:
        wanted = [*missing, *([] if args.command else ["the command after --"])]
        raise InputError(f"a manifest also needs {', '.join(wanted)}")
    if not re.fullmatch(r"gs://[a-z0-9][\w.-]+(/.*)?", args.bucket):
        raise InputError(
            f"--bucket {args.bucket!r} is no bucket: give one such as gs://my-bucket or gs://my-bucket/folder"
        )
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", args.name):
        raise InputError(f"--name {args.name!r}: at most 40 small letters, digits and hyphens, a letter first")
    options = {
        key: getattr(args, key) for key in ("name", "image", "bucket", "command", "spot", "max_restarts", "grace")
    }
    print(manifest(chip, shape, args.slices, service_account=args.service_account, **options), end="")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"gke.py: {error}", file=sys.stderr)
        sys.exit(2)
