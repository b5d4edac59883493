#!/bin/bash
# launch/host.sh CHIP COMMAND...: one host of a slice runs COMMAND, with the XLA flags of its chip (`none`: no TPU).
# Every launcher here starts its hosts with it. SIGTERM is handed on, so that training saves; a command that ends well
# only because it was told to stop is not finished, so that is 143 here and the launcher starts it again.
set -uom pipefail # m: COMMAND is its own process group, so a signal to all of us reaches it once, from here
chip=$1
shift
cd "$(dirname "$0")/.." || exit 126
if [ "$chip" != none ]; then
    # What you set yourself comes last and wins.
    flags=$(python -m sora_jax.pod.chips "$chip") || exit 2
    export LIBTPU_INIT_ARGS="$flags ${LIBTPU_INIT_ARGS:-}"
fi
told=no
child=
tell() {
    told=early # before there is a COMMAND to tell
    if [ -n "$child" ]; then told=yes && kill -TERM "$child" 2>/dev/null; fi
}
trap tell TERM INT
"$@" &
child=$!
[ "$told" != early ] || tell
while :; do
    wait "$child" && code=0 || code=$? # a signal ends the wait, not the child
    kill -0 "$child" 2>/dev/null || break
done
if [ "$told" != no ] && [ "$code" = 0 ]; then code=143; fi
case $code in 1 | 2 | 126 | 127) [ -z "${FINAL:-}" ] || echo "$code" >"$FINAL" ;; esac # nothing that a restart would mend
exit "$code"
