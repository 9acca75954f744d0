#!/bin/sh
# Dense, 75, 90 and 95 % sparse ECAPA-TDNN on the demo corpus.
set -eu
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" train.py -m model=ecapa data=demo target_sparsity=0,0.75,0.9,0.95 name=demo "$@"
