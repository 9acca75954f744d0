#!/bin/sh
# Demo: synthetic speech, made on the spot; dense and sparse networks in one table, in minutes on a CPU.
#
#   sh recipes/demo/run.sh
#
# Options and their defaults; SETTING=VALUE behind them goes to every training run. Paths are relative to
# the folder of the project.
set -eu

stage=1                         # 1 train, 2 large-margin fine-tuning (only with --lmft true), 3 compare
stop_stage=3
out=runs/demo
models=ecapa_512
optims=adabreg
targets="0 0.75 0.9 0.95 0.99"  # fractions of zeros; 0 is dense
lmft=false
nproc=1                         # processes that train a network together, one per GPU
smoke=false                     # --smoke: tiny networks, 20 steps, into OUT/smoke: does everything run?
dry_run=false                   # --dry-run: print the commands, run none
. "$(dirname "$0")/../common.sh"

for model in $models; do for optim in $optims; do for target in $targets; do
    run_dir=$out/runs/${model}_${optim}_$target
    method=$optim
    # LinBreg without zeros is SGD; its dense baseline has momentum.
    if [ "$optim $target" = "linbreg 0" ]; then method=sgd; fi
    if [ "$stage" -le 1 ] && [ "$stop_stage" -ge 1 ]; then
        train "$run_dir" model="$model" data=demo optim=$method target_sparsity="$target" \
            $(smoke_settings "$model") "$@"
    fi
    if [ "$lmft" = true ] && [ "$stage" -le 2 ] && [ "$stop_stage" -ge 2 ]; then
        train "$run_dir-lmft" experiment=lmft init_from="$run_dir" optim=$method $(smoke_settings) "$@"
    fi
done; done; done

if [ "$stage" -le 3 ] && [ "$stop_stage" -ge 3 ]; then
    run sv-sparse compare "$out"/runs/* --out "$out/table"
fi
