#!/bin/sh
# Evidence: many small runs that answer the questions of docs/results.md, and tables from them.
#
#   sh recipes/evidence/run.sh --root wav --trials "veri_test.txt matched.txt" --train-utterances train_list.txt \
#       --foreign-utterances foreign_list.txt --noise "musan RIRS_NOISES" trainer.precision=bf16
#
# Options and their defaults; SETTING=VALUE behind them goes to every training run. Paths are relative to
# the folder of the project. Without --root, the demo corpus is used.
set -eu

stage=1                         # 1 quality, 2 noise, 3 control, 4 insensitivity, 5 structure,
stop_stage=11                   # 6 foreign, 7 finetuning, 8 search, 9 published, 10 length, 11 tables
root=                           # folder of the recordings
trials=                         # trial lists, "label enrollment test" in each line
train_utterances=               # lines of "speaker path"; by default all speakers that no trial names
foreign_utterances=             # the same, of other sources than the trials are of, for stage 6
noise=                          # folders of MUSAN and RIRS_NOISES, for stage 2
weights=                        # file of a published network, for stage 9
out=runs/evidence
seeds=0,1,2
nproc=1                         # processes that train a network together
smoke=false                     # --smoke: tiny networks, 20 steps, one seed, into OUT/smoke
dry_run=false                   # --dry-run: print the commands, run none
. "$(dirname "$0")/../common.sh"

settings="trainer.epochs=10 trainer.batch_size=64 data.evaluate_untrained=true"
targets=0.9,0.95,0.99           # of the methods that a claim is made about, with every seed
end_targets=0.9,0.99            # of the others
lambdas=1e-4,1e-3,1e-2,1e-1,1,10,100
if [ -n "$root" ]; then
    [ -n "$trials" ] || fail "--trials is needed: trial lists of the recordings in --root"
    settings="$settings data=folder data.root=$root data.trial_lists=[$(echo $trials | tr ' ' ,)]"
    settings="$settings ${train_utterances:+data.train_utterances=$train_utterances}"
else
    settings="$settings data=demo"
fi
if [ "$smoke" = true ]; then
    settings="$settings $(smoke_settings ecapa)"
    seeds=0 targets=0.9 end_targets=0.9 lambdas=1e-2,1
fi

# sweep RUN_NAME SETTING=VALUE,VALUE ...: a Hydra multirun, one run for each combination of values, of
# ECAPA-TDNN with 256 channels unless model= is among the settings. Finished sweeps are noted, so that the
# same call does not repeat them.
sweep() {
    case " $*" in *" model="*) model= ;; *) model=model=ecapa_256 ;; esac
    if grep -qxF -e "$settings $*" "$out/finished_sweeps.txt" 2> /dev/null; then
        echo "finished: $1"
        return
    fi
    run_name=$1
    shift
    run python train.py -m run_dir="$out/runs/$run_name" $model $settings "$@"
    [ "$dry_run" = true ] || echo "$settings $run_name $*" >> "$out/finished_sweeps.txt"
}

# unless_smoke SETTING=VALUE ...: settings of a run's length, unless --smoke sets it.
unless_smoke() {
    [ "$smoke" = true ] || echo "$@"
}

# final_lambda RUN: the lambda that a finished run ended with.
final_lambda() {
    if [ "$dry_run" = true ]; then echo 0.1; return; fi
    python -c 'import json, sys; print("%.4g" % json.load(open(sys.argv[1]))["lambda"])' "$out/runs/$1/results.json"
}

# Quoted, so that Hydra fills in these values for each run.
target='${target_sparsity}'
seed='${seed}'

if [ "$stage" -le 1 ] && [ "$stop_stage" -ge 1 ]; then
    sweep "dense_s$seed" sparsity=dense seed=$seeds "$@"
    sweep "feedback_${target}_s$seed" target_sparsity=$targets seed=$seeds "$@"
    sweep "magnitude_${target}_s$seed" sparsity=gradual_magnitude target_sparsity=$targets seed=$seeds "$@"
    sweep "layerwise_${target}_s$seed" sparsity=gradual_magnitude sparsity.allocation=uniform \
        target_sparsity=$targets seed=$seeds "$@"
    sweep "feedback_${target}_s$seed" target_sparsity=0.75 seed=0 "$@"
    sweep "magnitude_${target}_s$seed" sparsity=gradual_magnitude target_sparsity=0.75 seed=0 "$@"
    sweep "layerwise_${target}_s$seed" sparsity=gradual_magnitude sparsity.allocation=uniform \
        target_sparsity=0.75 seed=0 "$@"
    sweep "quantile_${target}_s$seed" sparsity=quantile target_sparsity=$end_targets seed=0 "$@"
    sweep "linbreg_${target}_s$seed" optim=linbreg target_sparsity=$end_targets seed=0 "$@"
    sweep "proxsgd_${target}_s$seed" optim=proxsgd target_sparsity=$end_targets seed=0 "$@"
    # The best case of a search for a fixed lambda, without the cost of the search. DECISIONS 64
    for oracle_seed in $(echo $seeds | tr , ' '); do
        lambda=$(final_lambda "feedback_0.9_s$oracle_seed")
        sweep "oracle_${target}_s$seed" sparsity=fixed target_sparsity=0.9 seed=$oracle_seed \
            optim.lambda_init="$lambda" "$@"
    done
fi

if [ "$stage" -le 2 ] && [ "$stop_stage" -ge 2 ] && [ -n "$root" ] && [ -n "$noise" ]; then
    [ -f "$out/noise/index.parquet" ] || run sv-sparse prepare noise --root $noise --out "$out/noise"
    run python recipes/evidence/corpus.py noisy --root "$root" --trials $trials --noise "$out/noise" \
        --out "$out/noisy"
    for name in dense feedback_0.9 feedback_0.95 feedback_0.99 magnitude_0.9 magnitude_0.99; do
        for results in "$out/runs/${name}"_s*/results.json; do
            for condition in noise_20dB noise_10dB noise_5dB noise_0dB speech_20dB speech_10dB room; do
                run sv-sparse evaluate "${results%/results.json}" --trial-sets "folder:$out/noisy/$condition"
            done
        done
    done
fi

if [ "$stage" -le 3 ] && [ "$stop_stage" -ge 3 ]; then
    control="trainer.log_interval=1 seed=0"
    for optim in adabreg linbreg; do
        sweep "control_ecapa_512_${optim}_${target}_s$seed" model=ecapa_512 optim=$optim trainer.epochs=4 \
            target_sparsity=0.75,0.9,0.95,0.99 $control $(smoke_settings ecapa) "$@"
    done
    sweep "control_ecapa_adabreg_${target}_s$seed" model=ecapa trainer.epochs=2 target_sparsity=0.9,0.99 \
        $control $(smoke_settings ecapa) "$@"
    [ "$smoke" = true ] || sweep "control_resnet34_adabreg_${target}_s$seed" model=resnet34 trainer.epochs=2 \
        target_sparsity=0.9,0.99 $control "$@"
fi

if [ "$stage" -le 4 ] && [ "$stop_stage" -ge 4 ]; then
    lambda='${optim.lambda_init}'
    sweep "start_${lambda}_s$seed" sparsity=feedback optim.lambda_init=$lambdas target_sparsity=0.9 seed=0 \
        trainer.epochs=5 $(smoke_settings) "$@"
    sweep "fixed_${lambda}_s$seed" sparsity=fixed optim.lambda_init=$lambdas target_sparsity=0.9 seed=0 \
        trainer.epochs=5 $(smoke_settings) "$@"
fi

if [ "$stage" -le 5 ] && [ "$stop_stage" -ge 5 ]; then
    for channels in 128 64; do
        sweep "narrow_${channels}_s$seed" sparsity=dense seed=0 model.channels=$channels \
            model.mfa_channels=$((3 * channels)) model.se_channels=$((channels / 2)) \
            model.attention_channels=$((channels / 2)) "$@"
    done
    run python scripts/benchmark/runtime.py "$out"/runs/dense_s0 "$out"/runs/feedback_*_s0 \
        "$out"/runs/narrow_*_s0 --threads 1 --engines ours torch onnxruntime --json "$out/runtime.json"
fi

if [ "$stage" -le 6 ] && [ "$stop_stage" -ge 6 ] && [ -n "$foreign_utterances" ]; then
    [ -n "$train_utterances" ] || fail "--foreign-utterances needs --train-utterances"
    run python recipes/evidence/corpus.py subset "$train_utterances" "$foreign_utterances" --out "$out/subset.txt"
    for name in foreign subset; do
        case $name in foreign) list=$foreign_utterances ;; subset) list=$out/subset.txt ;; esac
        sweep "${name}_dense_s$seed" sparsity=dense seed=0 data.train_utterances="$list" "$@"
        sweep "${name}_feedback_${target}_s$seed" target_sparsity=$end_targets seed=0 \
            data.train_utterances="$list" "$@"
    done
fi

if [ "$stage" -le 7 ] && [ "$stop_stage" -ge 7 ]; then
    sweep "finetuned_feedback_${target}_s$seed" target_sparsity=$end_targets seed=0 trainer.epochs=5 \
        init_from="$out/runs/dense_s0" $(smoke_settings) "$@"
    sweep "finetuned_magnitude_${target}_s$seed" sparsity=gradual_magnitude target_sparsity=$end_targets \
        seed=0 trainer.epochs=5 init_from="$out/runs/dense_s0" $(smoke_settings) "$@"
fi

if [ "$stage" -le 8 ] && [ "$stop_stage" -ge 8 ]; then
    dense_rate='${optim.lr.dense_start}'
    sparse_rate='${optim.lr.sparse_start}'
    sweep "search_dense_${dense_rate}_s$seed" sparsity=dense seed=0 optim.lr.dense_start=0.001,0.01 "$@"
    sweep "search_sgd_${dense_rate}_s$seed" sparsity=dense optim=sgd seed=0 \
        optim.lr.dense_start=0.03,0.1,0.3,1.0 "$@"
    sweep "search_magnitude_${dense_rate}_s$seed" sparsity=gradual_magnitude target_sparsity=0.9 seed=0 \
        optim.lr.dense_start=0.001,0.01 "$@"
    sweep "search_feedback_${sparse_rate}_s$seed" target_sparsity=0.9 seed=0 optim.lr.sparse_start=0.005,0.02 "$@"
    sweep "search_linbreg_${sparse_rate}_s$seed" optim=linbreg target_sparsity=0.9 seed=0 \
        optim.lr.sparse_start=3.0,30.0 "$@"
    sweep "search_proxsgd_${sparse_rate}_s$seed" optim=proxsgd target_sparsity=0.9 seed=0 \
        optim.lr.sparse_start=0.01,0.03,1.0,10.0 "$@"
fi

# published RUN_NAME SETTING=VALUE ...: train from the published network with itself as the teacher, without labels.
published() {
    run_name=$1
    shift
    train "$out/published/$run_name" init_from="$weights" teacher=self head=none data=audio data.root="$root" \
        data.trial_lists="[$(echo $trials | tr ' ' ,)]" $(smoke_settings) "$@"
}

if [ "$stage" -le 9 ] && [ "$stop_stage" -ge 9 ] && [ -n "$root" ] && [ -n "$weights" ]; then
    untrained=trainer.max_steps=0
    published dense "$@" target_sparsity=0 $untrained
    for fraction in 0.5 0.75 0.8 0.9 0.95; do
        published "oneshot_$fraction" "$@" target_sparsity=$fraction $untrained
    done
    # Short runs that choose, at one target.
    short="target_sparsity=0.8 $(unless_smoke trainer.max_steps=500)"
    published short_l0_feedback "$@" $short
    published short_l0_quantile "$@" $short sparsity=quantile
    published short_l1_feedback "$@" $short sparsity.penalty=l1
    published short_l1_feedback_0.003 "$@" $short sparsity.penalty=l1 optim.lr.pretrained=0.003
    published short_magnitude "$@" $short sparsity=gradual_magnitude
    published short_l0_uniform "$@" $short sparsity=quantile sparsity.allocation=uniform
    published short_l0_erk "$@" $short sparsity=quantile sparsity.allocation=erk
    published short_l0_batch_norm "$@" $short sparsity=quantile trainer.batch_norm=batch
    published short_l0_0.0003 "$@" $short sparsity=quantile optim.lr.pretrained=0.0003
    # The schedule, with a quarter of the crops.
    quarter="target_sparsity=0.8 $(unless_smoke trainer.max_steps=250 trainer.batch_size=16)"
    published quarter_l0_0.001 "$@" $quarter sparsity=quantile
    published quarter_l0_0.003 "$@" $quarter sparsity=quantile optim.lr.pretrained=0.003
    published quarter_l0_ramp_0.3 "$@" $quarter sparsity=quantile optim.lr.pretrained=0.002 \
        sparsity.controller.ramp_start=0 sparsity.controller.ramp_end=0.3
    published quarter_magnitude_0.003 "$@" $quarter sparsity=gradual_magnitude optim.lr.pretrained=0.003
    published exponential_l0 "$@" $short sparsity=quantile trainer.lr_decay=exponential
    published exponential_magnitude "$@" $short sparsity=gradual_magnitude optim.lr.pretrained=0.003 \
        trainer.lr_decay=exponential
    # Long runs of the best and of magnitude pruning.
    for fraction in 0.8 0.9 0.5 0.75 0.95; do
        published "l0_${fraction}_s0" "$@" target_sparsity=$fraction $(unless_smoke trainer.max_steps=2000)
        case $fraction in 0.8 | 0.9)
            published "magnitude_${fraction}_s0" "$@" target_sparsity=$fraction sparsity=gradual_magnitude \
                $(unless_smoke trainer.max_steps=2000) ;;
        esac
    done
    for other_seed in 1 2; do
        published "l0_0.8_s$other_seed" "$@" target_sparsity=0.8 seed=$other_seed \
            $(unless_smoke trainer.max_steps=2000)
    done
fi

if [ "$stage" -le 10 ] && [ "$stop_stage" -ge 10 ]; then
    for epochs in 20 40; do
        length="trainer.lr_decay=linear $(unless_smoke trainer.epochs=$epochs)"
        sweep "epochs${epochs}_dense_s$seed" sparsity=dense seed=$seeds $length "$@"
        sweep "epochs${epochs}_feedback_${target}_s$seed" target_sparsity=$targets seed=$seeds $length "$@"
        sweep "epochs${epochs}_l0_${target}_s$seed" sparsity.init_density=1 target_sparsity=$targets seed=$seeds \
            $length "$@"
        sweep "epochs${epochs}_magnitude_${target}_s$seed" sparsity=gradual_magnitude target_sparsity=$targets \
            seed=$seeds $length "$@"
        sweep "epochs${epochs}_linbreg_${target}_s$seed" optim=linbreg target_sparsity=0.9 seed=$seeds $length "$@"
    done
fi

if [ "$stage" -le 11 ] && [ "$stop_stage" -ge 11 ]; then
    run sv-sparse compare "$out"/runs/* --out "$out/compared"
    if [ -n "$weights" ]; then
        run sv-sparse compare "$out/published/dense" "$out"/published/[!d]* --out "$out/compared_published"
    fi
    run python recipes/evidence/tables.py "$out/runs" --runtime "$out/runtime.json" --out "$out/tables"
fi
