#!/usr/bin/env bash
# A model of the real architecture with random weights, as large as this machine holds, through rollout, grpo, teacher-dump and distill (with
# an adapter; with all weights cut over two ranks): one prompt group each of text to image and of an edit with two references. Seconds,
# planned and peak memory of a rank; the plan that reads no weight beside them. Fails where a peak is more than 5 % away from its plan.
#   tests/bench/mid_size.sh BIN_DIR WORK [LAYERS] [HEADS] [PARTS] [STEPS]
# From the repository's root; 8 layers of 16 heads (0.46 B parameters; 18: 1.0 B), parts "adapter full", 4 sampling steps without.
# Real: head size 128, mlp ratio 3, rotary axes, vocabulary 151936, the autoencoder's widths, 512 x 512 pictures. Smaller: layers, heads, the
# text encoder (width 128 * HEADS, 3 layers, 4 of its vision tower).
# What such a model draws is noise and the world's measures call all of it bad, so a test server scores the pictures by their bytes:
# groups spread, and the updates train.
# With ATELIER_PYTHON (diffusers) the forward pass of the policy is compared with diffusers' at the same weights.
set -euo pipefail
bin=$1 work=$2 layers=${3:-8} heads=${4:-16} parts=${5:-adapter full} steps=${6:-4}
here=$(dirname "$0")
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_btl=self,tcp OMPI_MCA_btl_tcp_if_include=lo
export OMPI_MCA_mpi_yield_when_idle=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
width=$((128 * heads))
model=$work/model configs=$work/configs
mkdir -p "$work"

if [[ ! -e $model/vae/config.json ]]; then
    rm -rf "$configs" "$model"
    mkdir -p "$configs"
    cp -r assets/mini/base/model_index.json assets/mini/base/processor assets/mini/base/scheduler "$configs"
    for part in transformer text_encoder vae; do
        mkdir "$configs/$part"
        cp "configs/qwen-image-2.1/$part/config.json" "$configs/$part"
    done
    token() { sed -n "s/.*\"$1\": *\([0-9]*\).*/\1/p" assets/mini/base/text_encoder/config.json | head -1; }
    sed -i -e "s/\"num_layers\": [0-9]*/\"num_layers\": $layers/; s/\"num_attention_heads\": [0-9]*/\"num_attention_heads\": $heads/" \
        -e "s/\"context_in_dim\": [0-9]*/\"context_in_dim\": $width/" "$configs/transformer/config.json"
    sed -i -e "s/\"hidden_size\": 4096/\"hidden_size\": $width/; s/\"intermediate_size\": 12288/\"intermediate_size\": $((3 * width))/" \
        -e "s/\"num_attention_heads\": 32/\"num_attention_heads\": $heads/; s/\"num_key_value_heads\": 8/\"num_key_value_heads\": $((heads / 4))/" \
        -e "s/\"num_hidden_layers\": 36/\"num_hidden_layers\": 3/; s/\"out_hidden_size\": 4096/\"out_hidden_size\": $width/" \
        -e "s/\"depth\": 27/\"depth\": 4/; s/\"tie_word_embeddings\": false/\"tie_word_embeddings\": true/" \
        -e "s/^      8,$/      1,/; s/^      16,$/      2,/; s/^      24$/      3/" "$configs/text_encoder/config.json"
    for name in image_token_id video_token_id vision_start_token_id; do
        sed -i "s/\"$name\": [0-9]*/\"$name\": $(token $name)/" "$configs/text_encoder/config.json"
    done
    "$bin/random_model" "$configs" "$model"
fi

rm -f "$work/url"
"$bin/judge_server" --ready "$work/url" & server=$!
trap 'kill $server' EXIT
until [[ -e $work/url ]]; do sleep 0.05; done

# Two references of the picture's size, drawn by the miniature.
mkdir -p "$work/prompts"
for i in 1 2; do
    [[ -e $work/prompts/$i.png ]] || "$bin/atelier-generate" --model assets/mini/base --output-resolution 512 --steps 2 --seed $i --threads 1 \
        --prompt "a blue star left of a green square on gray" --output "$work/prompts/$i.png" 2>/dev/null
done
scene='{"background": "gray", "category": "general", "objects": [{"colour": "blue", "radius": 25, "shape": "star", "x": 64, "y": 64}]}'
for task in t2i edit; do
    images=$([[ $task == edit ]] && echo '["1.png", "2.png"]' || echo '[]')
    attributes=$([[ $task == edit ]] && echo "{\"edit\": \"recolour\", \"source\": $scene, \"result\": $scene}" || echo "$scene")
    printf '{"id": "%s-0", "task": "%s", "category": "general", "text": "one blue star on gray", "images": %s, "attributes": %s}\n' \
        "$task" "$task" "$images" "$attributes" >"$work/prompts/$task.jsonl"
done

plan() {
    rm -rf "$work/$1"
    "$bin/atelier-plan" --config configs/mini.toml --run "$work/$1" --set run.model="$model" --set sampling.height=512 --set sampling.width=512 \
        --set sampling.output_resolution=512 --set sampling.steps="$steps" --set sampling.guidance_scale=1 --set sampling.guidance_train=none \
        --set steps.count=1 --set curate.enabled=false --set rollout.prompts_per_iteration=1 --set rollout.group_size=2 --set rollout.micro_batch=1 \
        --set reward.scorer=http --set judge.url="$(<"$work/url")" --set judge.model=judge --set judge.templates=configs/judge \
        --set reward.min_spread=0 --set reward.gate=0 --set grpo.iterations=1 --set grpo.minibatches=1 --set distill.rounds=1 --set distill.prompts=1 \
        --set distill.group_size=1 --set distill.batch=2 --set distill.epochs=1 --set distill.start=base --set compute.recompute=full \
        --set "task.t2i.train=$work/prompts/t2i.jsonl" --set "task.t2i.heldout=$work/prompts/t2i.jsonl" \
        --set "task.edit.train=$work/prompts/edit.jsonl" --set "task.edit.heldout=$work/prompts/edit.jsonl" --set pipeline.mix=false "${@:2}" >/dev/null
}
apart=0
show() {  # RANKS PROGRAM DIRECTORY SECONDS
    local planned peak
    planned=$(sed -n 's/^ *"planned_kib": *\([0-9]*\).*/\1/p' "$3/manifest.json") peak=$(sed -n 's/^ *"peak_resident_kib": *\([0-9]*\).*/\1/p' "$3/manifest.json")
    awk -v r="$1" -v s="$2" -v p="$planned" -v k="$peak" -v t="$4" \
        'BEGIN { printf "%-28s %d rank(s) %7d s   planned %6.2f GiB   peak %6.2f GiB   peak/planned %.3f\n", s, r, t, p / 1048576, k / 1048576, k / p
            exit k < 0.95 * p || k > 1.05 * p }' || apart=$((apart + 1))
}
stage() {  # RANKS RUN PRODUCT PROGRAM ARGUMENTS...
    local ranks=$1 run=$2 product=$3 program=$4 begin=$SECONDS
    shift 4
    mpirun --oversubscribe --bind-to none -n "$ranks" "$bin/atelier-$program" --run "$work/$run" "$@" >"$work/$run-$program.log" 2>&1 || { tail -20 "$work/$run-$program.log" >&2; exit 1; }
    if [[ $program == grpo || $program == distill ]] && ! tail -1 "$work/$run/metrics.jsonl" | grep -q '"updates":[1-9]'; then
        echo "mid_size: $program trained nothing" >&2
        exit 1
    fi
    show "$ranks" "$run $program ${2:-}" "$work/$run/$product" $((SECONDS - begin))
}
outline() { "$bin/atelier-plan" --run "$work/$1" --memory --ranks "$2" | awk -v want="$3" '$0 ~ "^" want { on = 1 } /^$/ { on = 0 } on && /at once/' | sed "s/^/    without weights, $3:/"; }

all_stages() {  # RUN RANKS
    local task
    for task in t2i edit; do
        stage "$2" "$1" $task/iter-0001/rollout rollout --policy $task --iteration 1
        outline "$1" "$2" "curate, rollout $task"
        stage "$2" "$1" $task/iter-0001/policy grpo --policy $task --iteration 1
        outline "$1" "$2" "grpo $task"
    done
    for task in t2i edit; do stage "$2" "$1" opd/round-01/teacher-$task teacher-dump --task $task --round 1; done
    outline "$1" "$2" "teacher-dump edit"
    stage "$2" "$1" opd/round-01/student distill --round 1
    outline "$1" "$2" distill
}

if [[ $parts == *adapter* ]]; then
    plan adapter --set lora.rank=16 --set compute.threads=2
    all_stages adapter 1
fi
if [[ $parts == *full* ]]; then
    plan full --set compute.zero=3
    all_stages full 2
fi

if [[ -n ${ATELIER_PYTHON:-} ]]; then
    "$ATELIER_PYTHON" "$here/mid_size.py" "$bin" "$model" "$work" "$work/prompts/1.png" "$work/prompts/2.png"
fi
if ((apart)); then
    echo "mid_size: $apart peaks are more than 5 % away from their plan" >&2
    exit 1
fi
