#!/bin/bash
# Trains on Cloud TPU queued resources (v4, v5e, v5p, v6e), from nothing and back to nothing: create, wait, install this
# checkout on every host, run, tear down. Slices that are taken away (spot, maintenance) are made again and COMMAND runs
# again, which goes on from its last checkpoint. Keep this terminal (tmux): COMMAND itself does not depend on it.
#
#   launch/queued.sh --topology v6e:16x16 --zone us-east5-b [--project P] [--name sora-jax] [--slices 1] [--spot]
#       [--price USD] [--tries 20] [--keep] [--yes] -- sora-jax train --distributed --config ... --workdir gs://BUCKET/run
#   launch/queued.sh --down --zone us-east5-b [--project P] [--name sora-jax]      deletes what is left, and no more
# shellcheck disable=SC2016  # what is in single quotes is for the shells over there
set -euo pipefail
cd "$(dirname "$0")/.."
name=sora-jax slices=1 zone='' project='' topology='' price='' tries=20 spot='' keep='' yes='' down=''
poll=${POLL:-60} # seconds between looks at the slices
refuse() { echo "queued.sh: $*" >&2 && exit 2; }
while [ $# -gt 0 ]; do
    case $1 in
    --topology | --zone | --project | --name | --slices | --price | --tries)
        [ $# -gt 1 ] || refuse "$1 needs a value"
        printf -v "${1#--}" %s "$2"
        shift 2
        ;;
    --spot | --keep | --yes | --down) printf -v "${1#--}" yes && shift ;;
    --) shift && break ;;
    *) refuse "unknown argument $1; the options are at the top of launch/queued.sh" ;;
    esac
done
[ -n "$zone" ] || refuse "--zone is needed: see cloud.google.com/tpu/docs/regions-zones"
[[ $slices =~ ^[1-9][0-9]*$ && $tries =~ ^[1-9][0-9]*$ ]] || refuse "--slices and --tries are whole numbers from 1"
[[ -z $price || $price =~ ^[0-9]+(\.[0-9]+)?$ ]] || refuse "--price $price is no number of USD"
[[ $name =~ ^[a-z][a-z0-9-]{0,38}$ ]] || refuse "--name $name: at most 39 small letters, digits and hyphens"
where=(--zone "$zone" --quiet)
[ -z "$project" ] || where+=(--project "$project")
say() { echo "$(date -u +%H:%M:%S) $*"; }

resource() { # resource VERB ...: of the queued resource
    local verb=$1
    shift
    gcloud compute tpus queued-resources "$verb" "$name" "${where[@]}" "$@"
}
state() { # NONE where there is no such resource, UNKNOWN where gcloud does not say
    local errors
    errors=$(mktemp)
    if ! resource describe --format 'value(state.state)' 2>"$errors"; then
        if grep -qi 'not.found' "$errors"; then echo NONE; else echo UNKNOWN && cat "$errors" >&2; fi
    fi
    rm "$errors"
}
delete() {
    case $(state) in
    NONE) ;;
    UNKNOWN) say "whether $name is there could not be asked: the reason is above" && return 1 ;;
    *) resource delete --force ;;
    esac
}
if [ -n "$down" ]; then
    delete || exit 1
    say "$name is gone" && exit
fi

[ -n "$topology" ] && [ $# -gt 0 ] || refuse "--topology and, after --, the command to run are needed"
topology=${topology,,}
facts=$(python3 -m sora_jax.pod.chips "$topology" "$slices" ${price:+"$price"}) || exit 2
read -r accelerator runtime _ <<<"$facts"
echo "${facts#*$'\n'}${spot:+ (spot: less than that)}"
if [ -z "$yes" ]; then
    read -r -p "create this? [y/N] " answer && [ "$answer" = y ] || refuse "nothing was created"
fi
nodes=("$name")
if [ "$slices" -gt 1 ]; then
    nodes=()
    for ((i = 0; i < slices; i++)); do nodes+=("$name-$i"); done
fi
trap 'say "$name may still run, and be billed: launch/queued.sh --down --name $name ${where[*]}"' EXIT

create() {
    local wanted=(--accelerator-type "$accelerator" --runtime-version "$runtime")
    if [ "$slices" -gt 1 ]; then wanted+=(--node-count "$slices" --node-prefix "$name"); else wanted+=(--node-id "$name"); fi
    if ! { delete && resource create "${wanted[@]}" ${spot:+--spot}; }; then
        [ -n "$made" ] && return 1
        trap - EXIT
        say "nothing was created: the reason is above"
        exit 1
    fi
    made=yes
    say "asked for $slices x $accelerator; waiting"
    until [ "$(state)" = ACTIVE ]; do
        case $(state) in FAILED | SUSPENDED) return 1 ;; esac
        sleep "$poll"
    done
}
every() { # every COMMAND: on all hosts of all slices at once; fails when one does
    local jobs=() ok=0
    for node in "${nodes[@]}"; do
        gcloud compute tpus tpu-vm ssh "$node" --worker all --command "$1" "${where[@]}" &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job" || ok=1; done
    return $ok
}
install() {
    local archive
    archive=$(mktemp --suffix .tar)
    git ls-files -z | tar --null --create --files-from - --file "$archive" || return 1
    for node in "${nodes[@]}"; do
        gcloud compute tpus tpu-vm scp "$archive" "$node:sora_jax.tar" --worker all "${where[@]}" || return 1
    done
    rm "$archive"
    every 'mkdir -p sora_jax && tar -xf sora_jax.tar -C sora_jax && PATH=$HOME/.local/bin:$PATH &&
        { command -v uv >/dev/null || python3 -m pip install --quiet --user uv; } &&
        bash sora_jax/launch/venv.sh ../.venv-sora "train,tpu"'
}
begin() { # in a session of its own, so that it outlives the connection
    local remote='echo $$ >run.session; cd sora_jax; bash launch/host.sh "$@" & echo $! >../run.pid
        wait $!; echo $? >../run.code'
    every "rm -f run.code run.pid && export PATH=\$HOME/.venv-sora/bin:\$PATH &&
        { setsid nohup bash -c $(printf '%q' "$remote") run ${topology%%:*}$(printf ' %q' "$@") >>run.log 2>&1 </dev/null & } &&
        for i in \$(seq 600); do test -e run.pid && exit 0; sleep 0.1; done; exit 1" # begun is what can be halted
}
halt() { # those that still run: let them save, which they cannot where they wait for one that is gone
    every 'test -e run.pid || exit 0; kill -TERM "$(cat run.pid)"; for i in $(seq 60); do test -e run.code && exit 0; sleep 1; done
        pkill -KILL -s "$(cat run.session)"; true' >/dev/null 2>&1 || true
}
codes() { every 'echo "code $(cat run.code 2>/dev/null || echo running)"' 2>/dev/null | sed -n 's/.*code \([0-9a-z]*\)$/\1/p'; }
finish() {
    say "$1"
    if [ -z "$keep" ]; then delete && trap - EXIT || exit 1; fi
    exit "$2"
}

failures=0 unseen=0 ready='' made=''
while :; do
    if [ -z "$ready" ]; then
        create && install && ready=yes
    fi
    # where some hosts could not be told to begin, those that did must not keep their chips from the next try
    if [ -n "$ready" ] && { begin "$@" || { halt && false; }; }; then
        say "running; its output is run.log in the home folder of every host"
        began=$SECONDS again='' unseen=0
        while [ -z "$again" ]; do
            sleep "$poll"
            now=$(state)
            if [ "$now" != ACTIVE ] && [ "$now" != UNKNOWN ]; then
                again="the slices were taken away" ready=''
            elif [ "$now" = UNKNOWN ] || ! seen=$(codes); then
                unseen=$((unseen + 1))
                if [ $unseen -ge 5 ]; then again="hosts do not answer" ready=''; fi
            elif unseen=0 && grep -qxE '1|2|126|127' <<<"$seen"; then # as in launch/gke.py: nothing that a restart would mend
                every 'case $(cat run.code 2>/dev/null) in 1 | 2 | 126 | 127) tail -n 20 run.log ;; esac' || true
                finish "it failed for good: the end of its log is above" 1
            elif grep -qvxE '0|running' <<<"$seen"; then
                again="a host ended with $(grep -m 1 -vxE '0|running' <<<"$seen")" && halt
            elif ! grep -qx running <<<"$seen"; then
                finish "done" 0
            fi
        done
        [ $((SECONDS - began)) -lt 1800 ] || failures=0 # half an hour of training is progress
        say "$again"
    fi
    failures=$((failures + 1))
    [ $failures -lt "$tries" ] || { say "$failures failures in a row: giving up" && exit 1; }
    sleep "$poll"
done
