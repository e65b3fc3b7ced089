#!/usr/bin/env bash
# What of docs/results.md wants a GPU, in one go: several processes share the card, each does one thing after the other.
#
#     bash experiments/one_gpu.sh WORK MODEL
#
# WORK holds data/ (data.py), pool.jsonl and human.jsonl (table_prm.py), pb.jsonl, prmbench.jsonl and candidates.jsonl
# (cpmi prepare processbench, prmbench, qwen-eval); MODEL is a folder with a checkpoint. Everything lands in WORK, with
# the wall time of each command in WORK/times.txt; what is there goes on, or is skipped. The first reader is impatient:
# what the tables need most comes first.
set -uo pipefail
work=$1 model=$2
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$work"/{levels,log}
cd "$work" || exit

# run NAME COMMAND...: once; its output in log/NAME, its time in times.txt.
run() {
    local name=$1
    shift
    [ -e "log/$name.ok" ] && return
    local start=$EPOCHREALTIME
    if "$@" > "log/$name" 2>&1; then touch "log/$name.ok"; else echo "$name failed" >> times.txt; fi
    awk "BEGIN { printf \"%s %.1f s\\n\", \"$name\", $EPOCHREALTIME - $start }" >> times.txt
}

cpmi() { python3 -m cpmi "$@"; }

one="--template-set cues --templates 1"

# train NAME TARGETS OPTIONS...: adapters, and what they say of ProcessBench.
train() {
    local name=$1 targets=$2
    shift 2
    run "train-$name" cpmi train "$targets" --base-model "$model" --tune lora --forward-size 16 --held-out 0.05 "$@" --output "prm-$name"
    run "score-pb-$name" cpmi score pb.jsonl --prm "prm-$name" --output "scored/pb-$name"
}

rolled() {
    run mc-gsm8k cpmi label data/gsm8k.jsonl --limit 100 --method mc --rollouts 16 --max-tokens 512 --batch-size 100 --model "hf:$model" --output mc-gsm8k
    run mc-math cpmi label data/math.jsonl --limit 50 --method mc --rollouts 16 --max-tokens 768 --batch-size 50 --model "hf:$model" --output mc-math
}

levels() {
    run "levels-$1" python3 "$here/levels.py" "data/$1.jsonl" --model "hf:$model" --at-a-time 16 --output "levels/$1-$(basename "$model").jsonl" "${@:2}"
}

labeled() {
    run label-posterior cpmi label pool.jsonl $one --model "hf:$model" --batch-size 64 --output labels-posterior
    run targets-posterior cpmi targets labels-posterior --trajectories pool.jsonl --output targets-posterior.jsonl
    train posterior targets-posterior.jsonl
    run score-prmbench cpmi score prmbench.jsonl --prm prm-posterior --output scored/prmbench-posterior
    run score-bon cpmi score candidates.jsonl --prm prm-posterior --output scored/bon-posterior
    run label-cpmi cpmi label pool.jsonl --limit 3000 --method cpmi $one --model "hf:$model" --batch-size 64 --output labels-cpmi
    run targets-cpmi cpmi targets labels-cpmi --trajectories pool.jsonl --output targets-cpmi.jsonl
    train cpmi targets-cpmi.jsonl
}

shown() {
    levels gsm8k --templates 2 --contexts marginal cumulative leave-one-out
    levels math --templates 2 --contexts marginal cumulative
    for set in olympiadbench omnimath prm800k mr-math bbm; do levels $set --templates 1 --contexts marginal; done
}

references() {
    run targets-human cpmi targets human.jsonl --from-labels --output targets-human.jsonl
    run features-human cpmi train targets-human.jsonl --base-model "$model" --features features --held-out 0.05 --output head-human
    run features-pb cpmi score pb.jsonl --prm head-human --features features --output scored/pb-head-human
    run label-outcome cpmi label pool.jsonl --method outcome --output labels-outcome
    run targets-outcome cpmi targets labels-outcome --trajectories pool.jsonl --normalizer identity --output targets-outcome.jsonl
    run features-pool cpmi train targets-outcome.jsonl --base-model "$model" --features features --held-out 0.05 --output head-outcome
    train human targets-human.jsonl
    train outcome targets-outcome.jsonl
}

rm -f done
rolled & shown & labeled & references & wait
touch done
