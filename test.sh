#!/usr/bin/env bash
# Install into .venv with the development extras, then lint, type-check and test. Arguments go to pytest.
set -eu
. "$(dirname "$0")/scripts/venv.sh" "[dev]"
ruff check .
mypy
python -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"  # a file's tests share what they make
