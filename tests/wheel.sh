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
    train | distill)
      cut=("${quick[@]}")
      measured='^measure:'
      [[ $task == train ]] || measured='^(measure|base):'  # the distillation recipes that build on others measure
      ! grep -Eq "$measured" "$recipes/$recipe.yaml" || cut+=(--set measure.n=200 --set measure.preview=0)
      ;;
    align) cut=("${quick[@]}" --set measure.n=200 --set measure.preview=0 --set method.warmup=1 --set method.watch.samples=50) ;;
    train-ebm) cut=("${quick[@]}" --set measure.n=100 --set measure.preview=0 --set measure.longer=0) ;;
    sample) cut=(--quiet -n 4) ;;
    evaluate) cut=(--quiet --set method.n=200) ;;
    restore)
      cut=(--quiet -n 4 --steps 3)
      case $recipe in
        */flowdiff/* | */naive/* | */em/* | */ambient/*) cut=("${quick[@]}" --set measure.n=200 --set measure.preview=0) ;;
      esac
      [[ $recipe != */flowdiff/* ]] || cut+=(--set method.warmup=1 --set method.prior_steps=0 --set held.n=8 --set held.preview=0)
      ;;
    purify) cut=(--quiet -n 4 --steps 2 --eot 2 --eval-draws 2 --set attack.queries=4 --set sweep.images=2) ;;
  esac
  echo "-- gentk $task --recipe $recipe"
  $gentk "$task" --recipe "$recipe" --out "runs/${recipe//\//-}" "${cut[@]}" || {
    code=$?
    # what needs data, or a model, that no wheel holds says so; that is all that may be missing
    if [[ $code != 3 ]] || ! grep -Eq 'needs:.*(data:|runs/|mnist_ddpm_cnn)' "$recipes/$recipe.yaml"; then exit $code; fi
  }
done
