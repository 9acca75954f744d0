#!/bin/sh
# A published network, made sparse: from its file and a folder of recordings to packages and a report.
#
#   sh recipes/published/run.sh --weights campplus_cn_en_common.pt --audio /data/recordings --target 0.8
#
# Options and their defaults; SETTING=VALUE behind them goes to every training run. Paths are absolute, or
# relative to the folder of the project.
set -eu

stage=1                         # 1 evaluate as published, 2 make sparse, 3 write packages, 4 compare
stop_stage=4
weights=                        # file of the published network
audio=                          # folder of recordings, without labels, in any layout
trials=                         # trial lists "label enrollment test", paths below --audio; their recordings are not trained on
target="0.8"                    # fractions of zeros
steps=2000                      # optimizer steps of each target
out=runs/published
nproc=1                         # processes that train a network together, one per GPU
smoke=false                     # --smoke: 20 short steps, into OUT/smoke: does everything run?
dry_run=false                   # --dry-run: print the commands, run none
. "$(dirname "$0")/../common.sh"

[ -n "$weights" ] && [ -n "$audio" ] || fail "--weights and --audio are needed: the network's file, and recordings"
for fraction in $target; do
    case $fraction in 0.*) ;; *) fail "--target must be fractions of zeros such as 0.8, got $fraction" ;; esac
done
data="data=audio data.root=$audio"
if [ -n "$trials" ]; then data="$data data.trial_lists=[$(echo $trials | tr ' ' ,)]"; fi
# The loss is the cosine distance to the embeddings of the network as it is published. No labels are needed.
common="init_from=$weights teacher=self head=none $data"

if [ "$stage" -le 1 ] && [ "$stop_stage" -ge 1 ]; then
    train "$out/runs/published" $common target_sparsity=0 $(smoke_settings) "$@" trainer.max_steps=0
fi
for fraction in $target; do
    if [ "$stage" -le 2 ] && [ "$stop_stage" -ge 2 ]; then
        train "$out/runs/sparse_$fraction" $common target_sparsity="$fraction" trainer.max_steps="$steps" \
            $(smoke_settings) "$@"
    fi
done

if [ "$stage" -le 3 ] && [ "$stop_stage" -ge 3 ]; then
    [ "$dry_run" = true ] || mkdir -p "$out/packages"
    for name in published $(printf 'sparse_%s ' $target); do
        run sv-sparse export "$out/runs/$name" --output "$out/packages/$name.safetensors"
    done
fi
if [ "$stage" -le 4 ] && [ "$stop_stage" -ge 4 ]; then
    run sv-sparse compare "$out/runs/published" $(printf "$out/runs/sparse_%s " $target) --out "$out/table"
    run python recipes/published/packages.py "$out"/packages/*.safetensors --out "$out/table/packages.md"
fi
