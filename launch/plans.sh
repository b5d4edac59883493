#!/bin/bash
# The committed plans, launch/plans/*.json: each compiles one step for chips that are not here and takes minutes of one
# core. What is there already is not made again. `launch/plans.sh v5p-131k` makes that one; `sora-jax` must be on the PATH
# with the extras tpu and train.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p launch/plans
chosen=${1:-}

plan() { # plan NAME FLAG...
    local name=$1 out=launch/plans/$1.json
    shift
    if [ -n "$chosen" ] && [ "$chosen" != "$name" ] || [ -e "$out" ]; then return; fi
    echo "$name" >&2
    sora-jax plan "$@" --json >"$out.part"
    python3 -m json.tool --indent 1 "$out.part" >"$out"
    rm "$out.part"
}

wan=(--config configs/dit.py:wan-14b --tokens 1e12)
plan v5p-131k "${wan[@]}" --topology v5p:8x8x8 --mesh fsdp=64,context=8 --row 131072 --rows 64
plan v6e-131k "${wan[@]}" --topology v6e:16x16 --mesh fsdp=32,context=8 --row 131072 --rows 32 --config.dit.keep=nothing
plan v6e-4-slices-131k "${wan[@]}" --topology v6e:16x16 --slices 4 --mesh data=4,fsdp=32,context=8 --row 131072 \
    --rows 128 --config.dit.keep=nothing
plan tpu7x-131k "${wan[@]}" --topology tpu7x:4x4x8 --mesh fsdp=32,context=8 --row 131072 --rows 32
plan v5p-4-slices-131k "${wan[@]}" --topology v5p:8x8x8 --slices 4 --mesh data=4,fsdp=64,context=8 --row 131072 --rows 256
plan v5p-1m "${wan[@]}" --topology v5p:8x8x8 --mesh fsdp=8,context=64,ring=8 --row 1048576 --rows 8
# a minute of 1080p at 24 frames a second: 361 latent frames of 120 x 68 patches, filled up to a multiple of 128 x 128
plan v5p-sample-minute --config configs/dit.py:wan-14b --task sample --topology v5p:4x4x8 \
    --mesh fsdp=1,context=128,ring=32 --row 2949120 --rows 1
plan v5p-decode-minute --config configs/vae.py:wan --task vae-decode --topology v5p:2x2x4 --mesh fsdp=16 --size 1920x1080
# what MaxDiffusion has published steps of: see tests/benchmarks/bench_plan.py
plan maxdiffusion-v5p --config configs/dit.py:wan-14b --topology v5p:2x2x1 --mesh fsdp=1,context=4 --row 75600 --rows 1 \
    --config.dit.keep=nothing --config.data.text_row=512
plan maxdiffusion-tpu7x --config configs/dit.py:wan-14b --topology tpu7x:4x4x4 --mesh fsdp=32,context=4 --row 75600 \
    --rows 32 --config.dit.keep=nothing --config.data.text_row=512
