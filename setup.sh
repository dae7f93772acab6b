#!/bin/sh
# Makes the environment that the other scripts use: .venv, or the virtual environment that is
# active. Source it (`. ./setup.sh`) from the root of the repository: afterwards $PYTHON is the
# environment's python. REQUIREMENTS names the files to install (default: requirements.txt).

REQUIREMENTS=${REQUIREMENTS:-requirements.txt}

if [ -z "$VIRTUAL_ENV" ]; then
    if [ ! -x .venv/bin/python ]; then
        for PYTHON in python3 python3.13 python3.12 python3.11 python3.10 ""; do
            [ -n "$PYTHON" ] || break
            "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && break
        done
        if [ -z "$PYTHON" ]; then
            echo "setup: no Python 3.10 or newer found; install one, or activate an environment" >&2
            exit 2
        fi
        echo "setup: making .venv with $PYTHON"
        if ! "$PYTHON" -m venv .venv; then
            rm -rf .venv
            exit 2
        fi
    fi
    VIRTUAL_ENV=$PWD/.venv
fi
PYTHON=$VIRTUAL_ENV/bin/python
[ -x "$PYTHON" ] || PYTHON=$VIRTUAL_ENV/Scripts/python.exe # Windows

for FILE in $REQUIREMENTS; do
    # The stamp of a file is its content, kept in the environment after a successful installation.
    STAMP=$VIRTUAL_ENV/.installed-$FILE
    if ! cmp -s "$FILE" "$STAMP"; then
        echo "setup: installing $FILE (the first time this takes minutes)"
        "$PYTHON" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m ensurepip || exit 2
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$FILE" || exit 2
        cp "$FILE" "$STAMP" || echo "setup: $VIRTUAL_ENV cannot be written to; going on" >&2
    fi
done
