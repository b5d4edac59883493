#!/bin/sh
# Prints the newest Python from 3.13 down to 3.11 (3.14 where there is no other) that really runs here: a pyenv shim is on
# the PATH and may still not run, so each is tried. `launch/python.sh 3.11` asks for that one. Exits 1, saying so, when
# there is none.
set -u

try() {  # runs, is the version asked for, and was built with what wheels and archives need
    "$1" -c "import bz2, ctypes, lzma, ssl, sys, venv, zlib; assert '%d.%d' % sys.version_info[:2] == '$2'; print(sys.executable)" 2>/dev/null
}

for version in ${1:-3.13 3.12 3.11 3.14}; do
    for python in "python$version" python3 python /usr/local/bin/python"$version" /usr/bin/python"$version" \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version"*/bin/python "$(uv python find "$version" 2>/dev/null || true)"; do
        try "$python" "$version" && exit 0
    done
done
echo "no Python ${1:-3.11, 3.12 or 3.13} runs here: install one, or uv (https://docs.astral.sh/uv), which brings its own" >&2
exit 1
