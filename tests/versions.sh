#!/bin/sh
# The default suite with the lowest and with the newest allowed versions of torch, torchvision, lightning, jsonargparse
# and timm, each in a new virtual environment. Downloads several GB and takes about half an hour; not in CI.
#
#   sh tests/versions.sh                          both
#   sh tests/versions.sh lowest                   one of them
#   sh tests/versions.sh newest -m slow           further words are options of pytest
#
# PYTHON chooses the interpreter, VERSIONS the folder of the environments, which are kept there and used again; without
# it they go to a temporary folder. The exit status is 0 if all suites passed.
set -u
cd "$(dirname "$0")/.."

which="lowest newest"
case "${1:-}" in lowest | newest) which=$1 && shift ;; esac

constraints() { # of "lowest" or "newest", a line for each package
    "${PYTHON:-python3}" - "$1" <<'PY'
import re, sys
from pathlib import Path

for name in ("torch", "torchvision", "lightning", "jsonargparse", "timm"):
    [lower, upper] = re.findall(
        rf'^    "{name}(?:\[\w+\])?>=([\d.]+)(,<[\d.]+)?"', Path("pyproject.toml").read_text(), re.MULTILINE
    )[0]
    print(f"{name}=={lower}" if sys.argv[1] == "lowest" else f"{name}>={lower}{upper}")
PY
}

if [ -z "${VERSIONS:-}" ]; then
    VERSIONS=$(mktemp -d)
    trap 'rm -rf "$VERSIONS"' EXIT
fi
failed=""
for set in $which; do
    env="$VERSIONS/$set"
    mkdir -p "$env" && constraints "$set" >"$env.txt" || exit 1
    [ -x "$env/bin/python" ] || "${PYTHON:-python3}" -m venv "$env" || exit 1
    "$env/bin/pip" install --quiet --upgrade --upgrade-strategy eager -c "$env.txt" -e ".[test]" || exit 1
    echo "== $set: $("$env/bin/pip" list --format freeze | grep -E '^(torch|torchvision|lightning|jsonargparse|timm)=' | tr '\n' ' ')"
    "$env/bin/python" -m pytest "$@" || failed="$failed $set"
done
[ -z "$failed" ] || { echo "failed with the versions:$failed" && exit 1; }
