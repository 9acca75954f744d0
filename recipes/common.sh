# Sourced by every run.sh, as parse_options.sh is in Kaldi: reads the options and defines four functions.
#
# Each variable that run.sh has set is an option: nproc=1 becomes --nproc 4. Words with "=" behind the
# options are settings of train.py; they stay in "$@".

fail() {
    echo "error: $*" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
        -h | --help)
            sed '1d; /^set /d; /^\. /,$d; s/^# \{0,1\}//' "$0"
            exit 0
            ;;
        --dry-run | --smoke)
            eval "$(echo "${1#--}" | tr - _)=true"
            shift
            ;;
        --*)
            name=$(echo "${1#--}" | tr - _)
            case $name in *[!a-z0-9_]*) fail "unknown option $1; --help lists them" ;; esac
            eval "[ -n \"\${$name+set}\" ]" || fail "unknown option $1; --help lists them"
            [ $# -ge 2 ] || fail "$1 needs a value"
            eval "$name=\$2"
            shift 2
            ;;
        *) break ;;
    esac
done
for word; do
    case $word in *=*) ;; *) fail "expected SETTING=VALUE behind the options, got $word" ;; esac
done
cd "$(dirname "$0")/../.."

# --smoke tries everything out in minutes, in a folder of its own; a part of the corpus is enough for it.
if [ "$smoke" = true ]; then
    out=$out/smoke
    prepare_options="${prepare_options:-} --allow-partial"
fi

# train.py then continues a run_dir that was started by the same settings, as it does when SLURM requeues a
# job, and refuses other settings.
export SLURM_RESTART_COUNT="${SLURM_RESTART_COUNT:-1}"

# torchrun kills its processes after 30 s by default; a checkpoint on a network disk can take longer.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-100}"

# run COMMAND ...: print a command as a shell reads it, and run it unless this is a dry run.
run() {
    line=
    for word; do
        case $word in
            *[!A-Za-z0-9_./=:,+@*-]*) line="$line '$word'" ;;
            *) line="$line $word" ;;
        esac
    done
    printf '%s\n' "${line# }"
    [ "$dry_run" = true ] || "$@"
}

# train RUN_DIR SETTING=VALUE ...: train a network, unless it is finished. A finished run of other settings is
# no answer to this command: it is refused, as train.py refuses an unfinished one.
train() {
    folder=$1
    shift
    if [ -f "$folder/results.json" ]; then
        if [ -f "$folder/settings.txt" ] && [ "$(cat "$folder/settings.txt")" != "$*" ]; then
            fail "$folder is finished with other settings, $(cat "$folder/settings.txt"); choose another folder"
        fi
        echo "finished: $folder"
        return
    fi
    if [ "$nproc" -gt 1 ]; then
        # SIGUSR1 is the early warning of many schedulers; torchrun passes on no more than it is told to.
        run torchrun --standalone --nproc-per-node="$nproc" \
            --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 train.py run_dir="$folder" "$@"
    else
        run python train.py run_dir="$folder" "$@"
    fi
    # torchrun may end with status 0 when it was asked to stop.
    [ "$dry_run" = true ] && return
    [ -f "$folder/results.json" ] || fail "$folder is not finished"
    printf '%s\n' "$*" > "$folder/settings.txt"
}

# smoke_settings [MODEL]: with --smoke, the settings that make a run of MODEL take seconds.
smoke_settings() {
    [ "$smoke" = true ] || return 0
    case ${1:-} in
        ecapa*) tiny="model.channels=16 model.mfa_channels=24 model.se_channels=8 model.attention_channels=8" ;;
        resnet34) tiny=model.base_channels=16 ;;
        *) tiny= ;;
    esac
    echo $tiny trainer.max_steps=20 trainer.batch_size=4 trainer.crop_seconds=0.3 trainer.num_bn_crops=8 \
        trainer.num_workers=0 trainer.device=cpu trainer.precision=fp32
}
