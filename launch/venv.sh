#!/bin/sh
# launch/venv.sh DIR EXTRAS [VERSION]: makes or refreshes the virtual environment DIR holding this checkout (editable) with
# the extras named ("" for sampling alone). With uv when it is there, with pip otherwise; does nothing while
# pyproject.toml has not changed since.
set -eu
dir=$1 extras=$2 version=${3:-}
cd "$(dirname "$0")/.."
if [ -f "$dir/.stamp" ] && [ ! pyproject.toml -nt "$dir/.stamp" ] && "$dir/bin/python" -c "" 2>/dev/null; then exit 0; fi
what=. && [ -z "$extras" ] || what=".[$extras]"
if command -v uv >/dev/null 2>&1; then
    # No interpreter that runs: uv may fetch one.
    python=$(sh launch/python.sh "$version" 2>/dev/null) || python=${version:-3.13}
    echo "making $dir with uv and $python (once)" >&2
    uv venv --quiet --clear --python "$python" "$dir"
    uv pip install --quiet --python "$dir/bin/python" --editable "$what"
else
    python=$(sh launch/python.sh "$version")
    echo "making $dir with pip and $python (once, some minutes)" >&2
    rm -rf "$dir"
    "$python" -m venv "$dir" || { echo "$python cannot make virtual environments: apt install python3-venv, or install uv" >&2; exit 1; }
    "$dir/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$what"
fi
touch "$dir/.stamp"
