# Sourced by demo.sh and test.sh: make .venv beside the README, once, and put it first in PATH.
# $1: extras to install, such as "[dev]", or nothing.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
stamp=".venv/installed${1:-}"
if [ ! "$stamp" -nt pyproject.toml ]; then
    for python in python3 python3.13 python3.12 python3.11 none; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    done
    if [ "$python" = none ]; then
        echo "error: Python 3.11 or newer was not found" >&2
        exit 1
    fi
    echo "installing into .venv with $("$python" --version) (once; torch takes a minute or more)" >&2
    [ -x .venv/bin/python ] || "$python" -m venv .venv || exit 1
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${1:-}" || exit 1
    touch "$stamp"
fi
PATH="$PWD/.venv/bin:$PATH"
