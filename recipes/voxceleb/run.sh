#!/bin/sh
# VoxCeleb: from the recordings on a disk to a table of sparse and dense networks, tested on VoxCeleb1.
#
#   sh recipes/voxceleb/run.sh --root /data/voxceleb --lists /data/lists --out exp/voxceleb
#
# Options and their defaults; SETTING=VALUE behind them goes to every training run. Paths are relative to
# the folder of the project.
set -eu

stage=1                         # 1 prepare, 2 train, 3 large-margin fine-tuning, 4 evaluate, 5 compare
stop_stage=5
root=                           # folders of the recordings, in any layout: "/data/vox1 /data/vox2"
lists=                          # trial lists under their published names, or folders of them
noise=                          # folders of MUSAN and RIRS_NOISES, for --schedule wespeaker
out=runs/voxceleb
schedule=paper                  # paper: as in arXiv 2605.07892; wespeaker: augmented, 150 epochs
models="ecapa resnet34"         # wespeaker has ecapa_512 too
optims="adabreg linbreg"
targets="0 0.75 0.9 0.95 0.99"  # fractions of zeros; 0 is dense
trial_lists=vox1_O_cleaned,vox1_E_cleaned,vox1_H_cleaned  # training takes the first
other_trial_sets=               # lists of other corpora, for instance /data/cnceleb/prepared:cnceleb_average
prepare_options=                # --to-flac: convert everything; --allow-partial: accept a part of the corpus
nproc=1                         # processes that train a network together, one per GPU
smoke=false                     # --smoke: tiny networks, 20 steps, into OUT/smoke: does everything run?
dry_run=false                   # --dry-run: print the commands, run none
. "$(dirname "$0")/../common.sh"

case $schedule in
    paper) augment="" sgd=trainer.final_lr_fraction=0.0005 lmft=trainer.precision=fp32 ;;
    wespeaker) augment=augment.noise_dir=$out/noise sgd=optim.lr.dense_start=0.4 lmft=trainer.lr_scale=0.001 ;;
    *) fail "--schedule $schedule: expected paper or wespeaker" ;;
esac

if [ "$stage" -le 1 ] && [ "$stop_stage" -ge 1 ]; then
    [ -n "$root" ] || fail "--root is needed: folders of the recordings"
    run sv-sparse prepare voxceleb --root $root ${lists:+--lists $lists} --out "$out/prepared" $prepare_options
    if [ "$schedule" = wespeaker ] && [ ! -f "$out/noise/index.parquet" ]; then
        [ -n "$noise" ] || fail "--noise is needed: folders of MUSAN and RIRS_NOISES"
        run sv-sparse prepare noise --root $noise --out "$out/noise"
    fi
fi

if [ "$stage" -le 2 ] && [ "$stop_stage" -ge 2 ]; then
    for model in $models; do for optim in $optims; do for target in $targets; do
        method=optim=$optim
        # LinBreg without zeros is SGD; its dense baseline is the published one, with momentum.
        if [ "$optim $target" = "linbreg 0" ]; then method="optim=sgd $sgd"; fi
        experiment=experiment=vox_${model}_paper
        if [ "$schedule" = wespeaker ]; then experiment="experiment=wespeaker model=$model data=voxceleb"; fi
        train "$out/runs/${model}_${schedule}_${optim}_$target" $experiment $method \
            target_sparsity=$target data.prepared_dir="$out/prepared" \
            data.trial_lists="${trial_lists%%,*}" ${augment:+"$augment"} $(smoke_settings "$model") "$@"
    done; done; done
fi

if [ "$stage" -le 3 ] && [ "$stop_stage" -ge 3 ]; then
    for model in $models; do for optim in $optims; do for target in $targets; do
        run_dir=$out/runs/${model}_${schedule}_${optim}_$target
        method=$optim
        if [ "$optim $target" = "linbreg 0" ]; then method=sgd; fi
        train "$run_dir-lmft" experiment=lmft init_from="$run_dir" optim=$method \
            trainer.num_bn_crops=8192 $lmft $(smoke_settings) "$@"
    done; done; done
fi

if [ "$stage" -le 4 ] && [ "$stop_stage" -ge 4 ]; then
    # Embeddings that a run has computed before are read from its cache.
    for results in "$out"/runs/*/results.json; do
        run sv-sparse evaluate "${results%/results.json}" \
            --trial-sets "$out/prepared:$trial_lists" $other_trial_sets
    done
fi

if [ "$stage" -le 5 ] && [ "$stop_stage" -ge 5 ]; then
    run sv-sparse compare "$out"/runs/* --out "$out/table"
fi
