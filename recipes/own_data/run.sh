#!/bin/sh
# Dense and 90 % sparse on your own recordings: run.sh ROOT TRIALS [SETTING=VALUE ...]
set -eu
if [ $# -lt 2 ]; then
    echo "usage: run.sh ROOT TRIALS [SETTING=VALUE ...]" >&2
    exit 2
fi
quoted() { realpath "$1" | sed "s/'/\\\\'/g"; }
root=$(quoted "$1")
trials=$(quoted "$2")
shift 2
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" train.py -m data=folder "data.root='$root'" "data.trials='$trials'" target_sparsity=0,0.9 name=own_data "$@"
