#!/usr/bin/env bash
# Writes requirements/demo.txt and requirements/test.txt anew: what these extras need, in the versions of constraints.txt,
# with the hashes of all files that the package index has of them. torch and what only it needs are left out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools="$(mktemp -d)"
trap 'rm -r "$tools"' EXIT
python3 -m venv "$tools"
"$tools/bin/python" -m pip install --disable-pip-version-check --quiet uv
mkdir -p requirements
for extra in demo test; do
  "$tools/bin/uv" pip compile pyproject.toml <(echo setuptools) --extra "$extra" -c constraints.txt --generate-hashes \
    --universal --python-version 3.11 --no-header --no-annotate --no-strip-markers --quiet -o "$tools/all.txt"
  # an entry is a line with a name, and the lines of its hashes
  awk '/^[a-z]/ { keep = !/^(torch|triton|nvidia-|cuda-)/ } keep' "$tools/all.txt" >"requirements/$extra.txt"
done
