#!/usr/bin/env bash
# A built wheel in an empty environment, away from the clone: every laptop recipe is there, checks, and runs.
#   tests/wheel.sh WHEEL
set -euo pipefail
wheel=$(realpath "$1")
constraints=$(realpath "$(dirname "$0")/../constraints.txt")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
unset GENTK_DATA
"${PYTHON:-python3.11}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check -c "$constraints" "$wheel"
gentk=env/bin/gentk
recipes=$(echo env/lib/python*/site-packages/gentk/recipes)
$gentk recipes check --all
$gentk models list
# the sizes are cut, the code is the recipe's own
quick=(--quiet --set train.steps=2 --set train.sample_every=0)
for recipe in $($gentk recipes list --json | env/bin/python -c '
import json, sys
print(*[r["name"] for r in json.load(sys.stdin) if r["size"] == "laptop"])'); do
  task=${recipe%%/*}
  case $task in
    train) cut=("${quick[@]}"); ! grep -q '^measure:' "$recipes/$recipe.yaml" || cut+=(--set measure.n=200 --set measure.preview=0) ;;
    distill) cut=("${quick[@]}" --set measure.n=200 --set measure.preview=0) ;;
    sample) cut=(--quiet -n 4) ;;
    evaluate) cut=(--quiet --set method.n=200) ;;
  esac
  echo "-- gentk $task --recipe $recipe"
  $gentk "$task" --recipe "$recipe" --out "runs/${recipe//\//-}" "${cut[@]}" || {
    code=$?
    # what needs data that no wheel holds says so; that is all that may be missing
    if [[ $code != 3 ]] || ! grep -q 'needs:.*data:' "$recipes/$recipe.yaml"; then exit $code; fi
  }
done
