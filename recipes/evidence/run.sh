#!/bin/sh
PYTHONPATH="$(dirname "$0")/..${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python}" -m evidence "$@"
