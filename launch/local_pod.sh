#!/bin/bash
# A pod on this machine: N processes of four virtual devices each, joined as a pod's hosts are, for trying what a pod does.
#   bash launch/local_pod.sh 2 --config configs/dit.py:smoke --workdir runs/pod --config.data.rows=8
# Where one process dies, all are ended and started again from the last checkpoint; after RETRIES failures with no new
# checkpoint between them the pod gives up and says why. SIGTERM or Ctrl-C reaches all: they save at the same step and
# exit 0. What a restart would not mend (codes 1, 2, 126, 127, as in gke.py) is not tried again. What hosts other than the first say is in WORKDIR-hostI.log.
set -uo pipefail
hosts=${1:?say how many processes: bash launch/local_pod.sh 2 --config FILE.py:VARIANT --workdir DIR}
shift
devices=${DEVICES:-4} retries=${RETRIES:-3} python=${PYTHON:-python}
workdir=
for ((i = 1; i <= $#; i++)); do
    case ${!i} in
    --workdir) j=$((i + 1)) && workdir=${!j-} ;;
    --workdir=*) workdir=${!i#--workdir=} ;;
    esac
done
[ -n "$workdir" ] || { echo "local_pod.sh: give --workdir DIR, where the checkpoints go" >&2; exit 2; }
mkdir -p "$(dirname "$workdir")" || exit 2

newest() { # the last complete checkpoint's step
    find "$workdir/checkpoints" -maxdepth 1 -name '[0-9]*' ! -name '*[!0-9]*' -printf '%f\n' 2>/dev/null | sort -n | tail -1
}

failures=0 stopping=
while :; do
    before=$(newest)
    port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])') || exit 2
    pids=()
    for ((i = 0; i < hosts; i++)); do
        command=("$python" -m sora_jax.cli train --distributed "$@")
        export JAX_PLATFORMS=cpu JAX_COORDINATOR_ADDRESS=localhost:$port JAX_NUM_PROCESSES=$hosts JAX_PROCESS_ID=$i
        export XLA_FLAGS="--xla_force_host_platform_device_count=$devices"
        if [ "$i" = 0 ]; then "${command[@]}" & else "${command[@]}" >>"$workdir-host$i.log" 2>&1 & fi
        pids+=($!)
    done
    trap 'stopping=1; kill -TERM "${pids[@]}" 2>/dev/null' TERM INT
    code=0
    while [ ${#pids[@]} -gt 0 ]; do
        wait -n "${pids[@]}"
        ended=$?
        alive=()
        for pid in "${pids[@]}"; do kill -0 "$pid" 2>/dev/null && alive+=("$pid"); done
        if [ ${#alive[@]} = ${#pids[@]} ]; then continue; fi # a signal woke us, nobody has ended
        pids=(${alive[@]+"${alive[@]}"})
        if [ "$ended" != 0 ] && [ "$code" = 0 ]; then
            code=$ended
            echo "local_pod.sh: a process ended with code $code: ending the others" >&2
            [ ${#pids[@]} = 0 ] || kill -KILL "${pids[@]}" 2>/dev/null
        fi
    done
    trap - TERM INT
    [ "$code" = 0 ] && exit 0
    case $code in 1 | 2 | 126 | 127) exit "$code" ;; esac
    [ -z "$stopping" ] || exit "$code"
    if [ "$(newest)" = "$before" ]; then failures=$((failures + 1)); else failures=1; fi
    if [ "$failures" -gt "$retries" ]; then
        echo "local_pod.sh: $failures failures in a row at checkpoint ${before:-none} (last code $code): giving up; see $workdir-host*.log" >&2
        exit 1
    fi
    after=$(newest)
    echo "local_pod.sh: starting again from checkpoint ${after:-none} (failure $failures, gives up after $retries in a row)" >&2
done
