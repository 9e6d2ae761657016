#!/usr/bin/env bash
# Install into .venv and distil the bundled digits teacher into a one-step student, as good as it can be in four minutes: PID, then
# a correction of what the student draws. Arguments go to `pidistill distill`.
set -eu
. "$(dirname "$0")/scripts/venv.sh"
pidistill distill --preset digits_corrected "$@"
