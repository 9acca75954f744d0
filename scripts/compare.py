"""Finished runs, a sweep's for instance, in one table: what was asked, what came out, what it cost.

The same as ``sv-sparse compare``::

    python train.py -m model=ecapa_512 optim=adabreg,linbreg target_sparsity=0.75,0.9
    python scripts/compare.py runs/*ecapa_512* --out compared
"""

import sys

from sv_sparse.commands.main import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
