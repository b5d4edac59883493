#!/bin/bash
#SBATCH --job-name=sora-jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Trains on GPUs under SLURM, one process a GPU, which is how JAX reads SLURM's environment:
#
#     sbatch --nodes 4 --ntasks-per-node 8 --gpus-per-node 8 launch/slurm.sh \
#         sora-jax train --distributed --config configs/dit.py:wan-14b --workdir /shared/run --config.mesh.fsdp=32
#
# Five minutes before its time is over every process is told to save; the job then goes back into the queue and goes on
# from there, as it does after a node failed. `sora-jax` must be on the PATH of every node: make the environment on a
# shared disk with `bash launch/venv.sh /shared/venv train,cuda` and put /shared/venv/bin on the PATH before sbatch.
set -uo pipefail
tries=${TRIES:-20}
[ $# -gt 0 ] || { echo "usage: sbatch launch/slurm.sh COMMAND..." >&2 && exit 2; }
cd "${SLURM_SUBMIT_DIR:-.}" || exit 2 # SLURM runs a copy of this file from elsewhere
[ -f launch/host.sh ] || { echo "slurm.sh: submit it from the root of the checkout, not from $PWD" >&2 && exit 2; }

# srun's exit code is its tasks' highest: of those that are killed because one failed, not that one's
export FINAL=$PWD/.final-$SLURM_JOB_ID
rm -f "$FINAL"
srun --kill-on-bad-exit=1 bash launch/host.sh none "$@"
code=$?
if [ -s "$FINAL" ]; then code=$(head -n 1 "$FINAL"); fi
rm -f "$FINAL"
case $code in
0) echo "done" ;;
1 | 2 | 126 | 127) echo "it failed for good (exit code $code): the reason is above" ;; # as in launch/gke.py
*)
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "$tries" ]; then
        echo "exit code $code, and it was started again $tries times already: giving up"
    else
        echo "exit code $code: back into the queue"
        scontrol requeue "$SLURM_JOB_ID" && exit 0
    fi
    ;;
esac
exit "$code"
