#!/bin/bash
# The bundled model (sora_jax/assets/tiny), from nothing, on two CPU cores: VAE, tokenizer, latents of the embedded world,
# six trainings of one transformer, each from the one before, which take five hours (small images of one object, images
# and short clips, small images and clips of one object, of two and three, everything with rates that fall to zero, and
# mostly clips so), and half an hour for what mends its pixels.
# Everything lands in runs/tiny (or in the folder given).
# Stop it whenever you like: run again, it goes on where it was. `sora-jax` must be on the PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-runs/tiny}
share=${SHARE:-1} smaller=${SMALLER:-} # a share of the clips, and settings of all trainings, for a test of this script
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1} # large pages: a quarter less time a step on a CPU
mkdir -p "$run"
trap 'exit 130' INT # training answers Ctrl-C by saving and ending well: then nothing more is to be begun

latents() { # latents NAME CLIPS FIRST-SEED FLAG...
    local name=$1 clips=$((($2 + share - 1) / share)) seed=$3
    shift 3
    if [ -e "$run/$name/report.json" ]; then return; fi
    echo "latents: $name"
    sora-jax data latents world --model "$run/vae-model" --clips "$clips" --seed "$seed" --out "$run/$name" "$@"
}

learn() { # learn VARIANT SETS HELD-OUT FLAG...: the training of that variant on these sets
    local variant=$1 sets=$2 held_out=$3
    shift 3
    if [ -e "$run/$variant-model/model.json" ]; then return; fi
    echo "training: $variant"
    # shellcheck disable=SC2086 # settings are words
    sora-jax train --config configs/dit.py:"$variant" --workdir "$run/$variant-dit" "$@" $smaller \
        --config.vae_model="$run/vae-model" --config.tokenizer="$run/tokenizer.model" \
        --config.data.path="$(for set in $sets; do printf ',%s' "$run/$set"; done | cut -c2-)" \
        --config.data.held_out="$run/$held_out"
    sora-jax export "$run/$variant-dit" --out "$run/$variant-model"
}

if [ ! -e "$run/vae-model/model.json" ]; then
    echo "training: the VAE"
    sora-jax train --config configs/vae.py:"${VAE:-tiny}" --workdir "$run/vae"
    sora-jax export "$run/vae" --out "$run/vae-model"
fi
if [ ! -e "$run/tokenizer.model" ]; then
    sora-jax data tokenizer world --clips 20000 --vocab 1024 --out "$run/tokenizer.model"
fi

latents one 40000 7100000 --scene count=1 --max-frames 1 --max-pixels 4096
latents held-out-one 64 100100000 --scene count=1 --max-frames 1 --max-pixels 4096
learn one one held-out-one

latents images 30000 5000000 --max-frames 1
latents one-native 10000 9000000 --scene count=1 --max-frames 1
latents one-short 4500 9500000 --scene count=1 --max-frames 9 --max-pixels 4608
latents short 6000 15000000 --max-frames 17 --max-pixels 2752
latents slow 3000 16000000 --max-frames 33 --max-pixels 1536
latents held-out-short 100 100000000 --scene count=1 --max-frames 9 --max-pixels 4608
if [ ! -e "$run/told-images/report.json" ]; then # some of what it reads are a captioner's words
    sora-jax data build world --clips $(((8000 + share - 1) / share)) --seed 3000000 --max-frames 1 --out "$run/clips"
    sora-jax caption "$run/clips" --captioner tiny --out "$run/told"
    sora-jax data latents "$run/told" --model "$run/vae-model" --out "$run/told-images"
fi
learn short "images one-native told-images one-short short slow" held-out-short --config.init="$run/one-model"

latents small-clips 14000 17000000 --scene count=1 --max-frames 9 --max-pixels 2688
latents small-slow 5000 18000000 --scene count=1 --max-frames 17 --max-pixels 1600
latents held-out-small 100 117000000 --scene count=1 --max-frames 9 --max-pixels 2688
learn small "one small-clips small-slow" held-out-small --config.init="$run/short-model"

latents two 16000 19000000 --scene count=2 --max-frames 1 --max-pixels 4096
latents three 6000 22000000 --scene count=3 --max-frames 1 --max-pixels 4096
latents pair-clips 11000 21000000 --scene count=2 --max-frames 9 --max-pixels 2688
latents held-out-pairs 100 121000000 --scene count=2 --max-frames 9 --max-pixels 2688
learn pairs "two three pair-clips small-clips small-slow" held-out-pairs --config.init="$run/small-model"

latents long 5500 12000000 --max-pixels 4096
latents wide 3500 13000000 --max-frames 9 --max-pixels 12288
latents held-out 120 100000000 --max-pixels 4096
learn tiny "images one-native told-images two three one-short short slow pair-clips long wide" held-out \
    --config.init="$run/pairs-model"

latents clips-long 4000 12000000 --max-pixels 4096
latents clips-long-too 6000 27000000 --max-pixels 4096
latents clips-one 2500 24000000 --scene count=1 --max-frames 17 --max-pixels 6144
latents clips-one-too 2000 28000000 --scene count=1 --max-frames 17 --max-pixels 6144
latents clips-two 3000 25000000 --scene count=2 --max-frames 17 --max-pixels 6144
latents clips-wide 1000 13000000 --max-frames 9 --max-pixels 12288
latents clips-short 2500 15000000 --max-frames 17 --max-pixels 2752
latents clips-pairs 2000 21000000 --scene count=2 --max-frames 9 --max-pixels 2688
latents clips-images 5000 5000000 --max-frames 1
latents clips-two-images 2500 19000000 --scene count=2 --max-frames 1 --max-pixels 4096
sets="long long-too one one-too two wide short pairs two-images images"
learn clips "clips-${sets// / clips-}" held-out --config.init="$run/tiny-model"

if [ ! -e "$run/model/model.json" ]; then
    echo "training: what mends its pixels"
    # shellcheck disable=SC2086 # settings are words
    sora-jax train --config configs/vae.py:mend --workdir "$run/mend" --config.init="$run/clips-model" ${MEND:-}
    sora-jax export "$run/mend" --out "$run/model"
fi
echo "the model: $run/model; what it reaches: sora-jax evaluate world --model $run/model --seeds 60 --steps 20"
