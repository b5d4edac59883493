#!/bin/sh
# launch/parity.sh DIR: makes the environment DIR with the peers that tests/parity/ compares ours with, on Python 3.11 and
# with pip, which finds the CPU build of torch where one lies; nothing while pyproject.toml has not changed since.
set -eu
dir=$1
cd "$(dirname "$0")/.."
if [ -f "$dir/.stamp" ] && [ ! pyproject.toml -nt "$dir/.stamp" ] && "$dir/bin/python" -c "" 2>/dev/null; then exit 0; fi
python=$(sh launch/python.sh 3.11)
echo "making $dir with pip and $python (once, some minutes)" >&2
rm -rf "$dir"
"$python" -m venv "$dir"
extra=$("$python" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["parity"], sep="\n")')
# torch first and alone: what needs it is content with what is there
echo "$extra" | grep '^torch' | xargs "$dir/bin/python" -m pip install --quiet --disable-pip-version-check
echo "$extra" | xargs "$dir/bin/python" -m pip install --quiet --disable-pip-version-check
touch "$dir/.stamp"
