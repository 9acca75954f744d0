#!/bin/sh
exec "${PYTHON:-python}" "$(dirname "$0")/../recipe.py" voxceleb "$@"
