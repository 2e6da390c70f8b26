#!/usr/bin/env bash
# What a GPU shows, in four commands of less than ten minutes each, with nothing idle between:
#
#   benchmarks/gpu.sh prepare     here, where there is a network: wheels and pairs into .gpu/, which git ignores
#   benchmarks/gpu.sh 1           there: installs the wheels, then one step of every row with --tiny
#   benchmarks/gpu.sh 2           DPO and reward models at 0.5B in bf16
#   benchmarks/gpu.sh 3           PPO, and the rollout against generate
#   benchmarks/gpu.sh 4           quantised gradients, the sharding code, peaks of memory
#   benchmarks/gpu.sh page        the tables of docs/scale.md from what they wrote
#
# prepare takes PAIRS=FILE, of Anthropic's HH. 1 to 4 reach no network and no GPU but the first. With DRY=1 they run on
# the CPU with --tiny and install nothing. Results: benchmarks/results/gpu/, and a copy in $OUT where that is set.
set -euo pipefail
cd "$(dirname "$0")/.."
GPU_FOLDER=.gpu
RESULTS=${RESULTS:-benchmarks/results/gpu}
PYTHON=${PYTHON:-python3}
TRL_PYTHON=${TRL_PYTHON:-$GPU_FOLDER/trl-python}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
export PYTHONPATH="$PWD/$GPU_FOLDER/site:$PWD${PYTHONPATH:+:$PYTHONPATH}"

PACKAGES=(accelerate datasets datasketch dill hf-xet httpcore2 httpx2 huggingface_hub multiprocess peft pydantic
      pydantic_core annotated-types typing-inspection tokenizers transformers trl truststore xxhash)
# With the versions of constraints.txt; a package that is not in it is left out.

prepare() {
  mkdir -p $GPU_FOLDER/wheels $GPU_FOLDER/trl
  local to="--only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 --platform manylinux2014_x86_64"
  local wanted=()
  for name in "${PACKAGES[@]}"; do
    line=$(grep -i "^${name//_/[-_]}==" constraints.txt || true)
    [ -z "$line" ] || wanted+=("$line")
  done
  env -u HF_HUB_OFFLINE "$PYTHON" -m pip download --quiet --no-deps $to --platform any --dest $GPU_FOLDER/wheels "${wanted[@]}"
  env -u HF_HUB_OFFLINE "$PYTHON" -m pip download --quiet --no-deps $to --platform any --dest $GPU_FOLDER/wheels bitsandbytes==0.50.2
  env -u HF_HUB_OFFLINE "$PYTHON" -m pip download --quiet --no-deps --dest $GPU_FOLDER/trl trl==1.12.0
  "$PYTHON" benchmarks/gpu_wheel.py $GPU_FOLDER/wheels
  [ -z "${PAIRS:-}" ] || cp "$PAIRS" $GPU_FOLDER/
  du -sh $GPU_FOLDER
}

pairs() { ls $GPU_FOLDER/*.jsonl.gz 2>/dev/null | head -1; }

# Options of every benchmark: on the GPU, or with DRY=1 on the CPU at its smallest.
common() {
  if [ -n "${DRY:-}" ]; then echo "--tiny --threads 1 --repeats 1"; return; fi
  echo "--size 0.5b --device cuda --bf16 --repeats $1 --seconds $2 $([ -z "$(pairs)" ] || echo --pairs "$(pairs)")"
}

trl() { [ ! -x "$TRL_PYTHON" ] || echo "--trl-python $TRL_PYTHON"; }
copy_results() { [ -z "${OUT:-}" ] || cp "$RESULTS"/*.json "$OUT"/; }

PREFERENCE=dpo:trl,dpo:trl-best,dpo:ours,dpo:trl:lora,dpo:trl-best:lora,dpo:ours:lora,reward:trl-best,reward:ours
PPO=trl-best,full,lora,lora-4,lora-shared,lora-4-shared
ROLLOUT=generate,generate-static,ours,generate-4,generate-static-4,ours-4
[ -n "${DRY:-}" ] || ROLLOUT=$ROLLOUT,generate-by-32,generate-by-128,generate-by-32-4,generate-by-128-4

first() {
  if [ -z "${DRY:-}" ]; then
    "$PYTHON" -m pip install --quiet --no-index --no-deps --target $GPU_FOLDER/site $GPU_FOLDER/wheels/*.whl
    "$PYTHON" -m pip install --quiet --no-index --no-deps --target $GPU_FOLDER/trl112 $GPU_FOLDER/trl/*.whl
    printf '#!/bin/sh\nPYTHONPATH=%s exec %s "$@"\n' "$PWD/$GPU_FOLDER/trl112" "$PYTHON" >$GPU_FOLDER/trl-python
    chmod +x $GPU_FOLDER/trl-python
    nvidia-smi
  fi
  "$PYTHON" -c 'import torch, transformers, trl, peft, datasets, pydantic, rlhf; print(torch.__version__, transformers.__version__, trl.__version__, torch.cuda.is_available())'
  local out; out=$(mktemp -d)
  local tiny="--tiny --repeats 1 --threads 1 $([ -n "${DRY:-}" ] || echo --device cuda --bf16)"
  "$PYTHON" benchmarks/preference.py $tiny --count 16 --rows $PREFERENCE --out "$out/preference.json"
  "$PYTHON" benchmarks/ppo.py $tiny --episodes 8 --rows $PPO $(trl) --out "$out/ppo.json"
  "$PYTHON" benchmarks/rollout.py $tiny --rows ${ROLLOUT%%,generate-by*} --out "$out/rollout.json"
  "$PYTHON" benchmarks/gpu_checks.py $tiny --out "$out/gpu_checks.json"
}

case "${1:-}" in
  prepare) prepare ;;
  1) first ;;
  2) "$PYTHON" benchmarks/preference.py $(common 2 480) --count "$([ -n "${DRY:-}" ] && echo 16 || echo 2000)" \
       --rows $PREFERENCE --out "$RESULTS/preference.json"; copy_results ;;
  3) "$PYTHON" benchmarks/ppo.py $(common 2 360) --drop 1 $([ -n "${DRY:-}" ] || echo --episodes 384) --rows $PPO \
       $(trl) --out "$RESULTS/ppo.json"
     "$PYTHON" benchmarks/rollout.py $(common 3 90) $([ -n "${DRY:-}" ] || echo --batch 128 --limit 128) \
       --rows $ROLLOUT --out "$RESULTS/rollout.json"; copy_results ;;
  4) "$PYTHON" benchmarks/gpu_checks.py $(common 1 480) --out "$RESULTS/gpu_checks.json"; copy_results ;;
  page) "$PYTHON" benchmarks/gpu_page.py --results "$RESULTS" --page docs/scale.md ;;
  *) sed -n '2,13p' "$0"; exit 2 ;;
esac
