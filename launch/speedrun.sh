#!/bin/bash
# The whole system from nothing, on two CPU cores, in about 15 minutes: the embedded world -> VAE -> latents -> DiT ->
# prompted videos. Everything lands in runs/speedrun (or in the folder given). Stop it whenever you like: run again, it
# goes on where it was. `sora-jax` must be on the PATH, as `make train` sees to.
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-runs/speedrun}
variant=${VARIANT:-speedrun} clips=${CLIPS:-2000} held_out=${HELD_OUT:-64} # smaller ones for a test of this script
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1} # large pages: a quarter less time a step on a CPU
mkdir -p "$run"
trap 'exit 130' INT # training answers Ctrl-C by saving and ending well: then nothing more is to be begun
began=$SECONDS

stage() { # stage NUMBER "what happens" FILE-THAT-SAYS-IT-IS-DONE; true when there is something to do
    if [ -e "$3" ]; then echo "[$1/6] $2: done"; return 1; fi
    echo "[$1/6] $2 ($(((SECONDS - began) / 60)) min so far)"
}

if stage 1 "the VAE learns to see the world" "$run/vae-model/model.json"; then
    sora-jax train --config configs/vae.py:"$variant" --workdir "$run/vae"
    sora-jax export "$run/vae" --out "$run/vae-model"
fi
if stage 2 "the tokenizer learns its words" "$run/tokenizer.model"; then
    sora-jax data tokenizer world --clips 4000 --vocab 1024 --out "$run/tokenizer.model"
fi
if stage 3 "clips become latents" "$run/latents/report.json"; then
    sora-jax data latents world --model "$run/vae-model" --clips "$clips" --max-frames 9 --out "$run/latents"
fi
if stage 4 "so do some that nobody trains on" "$run/held-out/report.json"; then
    sora-jax data latents world --model "$run/vae-model" --clips "$held_out" --seed 100000000 --max-frames 9 \
        --out "$run/held-out"
fi
if stage 5 "the DiT learns to paint them" "$run/model/model.json"; then
    sora-jax train --config configs/dit.py:"$variant" --workdir "$run/dit" \
        --config.vae_model="$run/vae-model" --config.tokenizer="$run/tokenizer.model" \
        --config.data.path="$run/latents" --config.data.held_out="$run/held-out"
    sora-jax export "$run/dit" --out "$run/model"
fi
if stage 6 "prompts become videos" "$run/samples.png"; then
    python - "$run" <<'PYTHON'
import sys

import sora_jax
from sora_jax.media import contact_sheet

run = sys.argv[1]
prompts = {
    "a large red circle moves right": ((96, 64), 9),
    "a large blue square falls and bounces": ((64, 96), 9),
    "a large yellow triangle moves left": ((64, 64), 9),
    "a large green star": ((64, 64), 1),
}
sizes, frames = zip(*prompts.values())
videos = sora_jax.load(f"{run}/model").generate(list(prompts), size=sizes, frames=frames, seed=0)
videos[0].save(f"{run}/sample.mp4")
contact_sheet(videos, list(prompts), f"{run}/samples.png")
PYTHON
fi
echo "$run/sample.mp4"
echo "$run/samples.png"
echo "the model: $run/model; paint with it: sora-jax generate \"a large red circle moves right\" --model $run/model --out a.mp4"
