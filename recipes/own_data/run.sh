#!/bin/sh
exec "${PYTHON:-python}" "$(dirname "$0")/../recipe.py" own_data "$@"
