"""Train a speaker-verification network to a target sparsity: python train.py model=ecapa target_sparsity=0.9."""

import sys

from sv_sparse.commands.train import main

if __name__ == "__main__":
    main(sys.argv[1:])
