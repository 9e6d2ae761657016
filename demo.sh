#!/usr/bin/env bash
# Install into .venv and distil the bundled digits teacher into a one-step student. Arguments go to `pidistill distill`.
set -eu
. "$(dirname "$0")/scripts/venv.sh"
pidistill distill "$@"
