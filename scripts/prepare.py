"""The same as sv-sparse prepare: python scripts/prepare.py voxceleb --root PATH --out PREPARED."""

import sys

from sv_sparse.commands.main import main

if __name__ == "__main__":
    main(["prepare", *sys.argv[1:]])
