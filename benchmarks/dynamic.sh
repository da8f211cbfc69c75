#!/usr/bin/env bash
# Dynamic pruning beside the dense model and a model pruned to the same size, in one run of `optipfair evaluate`:
#
#     benchmarks/dynamic.sh                 # 70 % of the neurons stay; 128 windows of calibration
#     benchmarks/dynamic.sh 50 64           # half of them; 64 windows
#
# SmolLM2-135M-Instruct; calibrated on WikiText-2 validation, and measured on 20 windows of 512 tokens of its
# test text, of each of which the first half is a prompt.
set -euo pipefail

keep=${1:-70}
samples=${2:-128}
root=$(cd "$(dirname "$0")/.." && pwd)
texts=${OPTIPFAIR_TEST_DATA:-$root/../shared/data}/wikitext2
optipfair=${OPTIPFAIR:-$root/.venv/bin/optipfair}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

grep -m 1 "model name" /proc/cpuinfo
"$optipfair" demo-model "$work/model" > "$work/log"
"$optipfair" prune --model-path "$work/model" --output-path "$work/static" --preset recommended \
    --pruning-percentage $((100 - keep)) --calibration "$texts/valid.txt" --num-samples "$samples" \
    --max-length 512 --verify structure --quiet > "$work/log"
"$optipfair" evaluate --model-path "$work/model" --baseline "$work/static" --dynamic-keep "$keep" \
    --text "$texts/test.txt" --num-windows 20 --timing --num-runs 3 --warmup-runs 1 --dtype float32 --quiet
