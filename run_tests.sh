#!/bin/sh
# Sets up the environment, then runs the tests; arguments go to pytest:
#   sh run_tests.sh -x tests/test_boxes.py

cd "$(dirname "$0")" || exit 2
REQUIREMENTS="requirements.txt requirements-dev.txt"
. ./setup.sh
exec "$PYTHON" -m pytest "$@"
