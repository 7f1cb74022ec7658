#!/usr/bin/env bash
# Breaks the device's sources one line at a time and wants the tests to see it.
#   broken_kernels.sh COMPILER SOURCE_DIR OPS_TEST DEVICE_TEST LIBRARIES... -- OBJECTS...
# Each break is compiled for the emulator, linked with the other objects, and loaded by the tests that should fail.
set -euo pipefail
compiler=$1 source=$2 ops_test=$3 device_test=$4
shift 4
libraries=()
while [[ $1 != -- ]]; do libraries+=("$1"); shift; done
shift
objects=("$@")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export ATELIER_TEST_DEVICE=cuda ATELIER_CUDA_BACKEND=$work/broken.so
seen=0 missed=0

# breaks WHAT COMPILED FILE EXPRESSION TEST FILTER: the sed EXPRESSION on lib/ops/cuda/FILE (COMPILED includes it, or is it).
breaks() {
    local what=$1 compiled=$2 file=$3 expression=$4 test=$5 filter=$6 others=() object schedule failed=
    rm -rf "$work/ops" && mkdir -p "$work/ops" && cp -r "$source/lib/ops/cuda" "$work/ops/cuda"
    sed -i "$expression" "$work/ops/cuda/$file"
    if cmp -s "$work/ops/cuda/$file" "$source/lib/ops/cuda/$file"; then
        echo "$what: the line to break is not in $file any more"
        missed=$((missed + 1))
        return
    fi
    for object in "${objects[@]}"; do [[ $object == */"$compiled".o ]] || others+=("$object"); done
    "$compiler" -std=c++20 -O1 -fPIC -ffp-contract=off -w -DATELIER_EMULATED -DFMT_SHARED -I"$work" -I"$source/lib" -I"$source" -I"$source/tests" \
        -xc++ -c "$work/ops/cuda/$compiled" -o "$work/broken.o"
    "$compiler" -shared -o "$work/broken.so" "$work/broken.o" "${others[@]}" "${libraries[@]}"
    for schedule in ascending descending shuffled; do
        # A crash (a guard page, a thread left at a barrier) counts as seen; no test at all does not.
        if ! ATELIER_EMULATOR_SCHEDULE=$schedule "$test" --gtest_filter="$filter" --gtest_fail_fast >"$work/output" 2>&1; then failed=$schedule; break; fi
        grep -q '1 test from\|[0-9]* tests from' "$work/output" || { echo "$what: no test"; cat "$work/output"; exit 1; }
    done
    if [[ $failed ]]; then
        echo "$what: seen ($failed)"
        seen=$((seen + 1))
    else
        echo "$what: NOT SEEN"
        missed=$((missed + 1))
    fi
}

d=$device_test
breaks "block sum without its first barrier" norm.cu kernel.hpp '0,/^    __syncthreads();/s///' "$d" 'DeviceNorm.*'
breaks "block sum without its last barrier" norm.cu kernel.hpp 's/__syncthreads();  \/\/ the next.*//' "$d" 'DeviceNorm.*'
breaks "warp sum that leaves out a lane" norm.cu kernel.hpp 's/distance > 0; distance \/= 2) value += /distance > 1; distance \/= 2) value += /' "$d" 'DeviceNorm.*'
breaks "column sums that skip chunks" modulation.cu columns.hpp 's/c += column_slots)/c += column_slots + 1)/' "$d" 'DeviceModulation.*'
breaks "column sums without a barrier" modulation.cu columns.hpp 's/__syncthreads();//' "$d" 'DeviceModulation.*'
breaks "modulation without its 1 +" modulation.cu modulation.cu '0,/(1.0f + factor.v\[k\])/s//factor.v[k]/' "$ops_test" 'Modulation.*'
breaks "gradient of the modulation from another row's mean" modulation.cu modulation.cu 's/mu = mean\[row\]/mu = mean[first]/' "$d" 'DeviceModulation.*'
breaks "rows beyond a group's end" modulation.cu modulation.cu 's/first + chunk_rows < s.rows ? first + chunk_rows : s.rows/first + chunk_rows/' "$d" 'DeviceModulation.*'
breaks "gate without a chunk's clamp" modulation.cu modulation.cu 's/sums\[k\] += g.v\[k\] \* b.v\[k\]/sums[k] = g.v[k] * b.v[k]/' "$d" 'DeviceModulation.*'
breaks "tail of an elementwise kernel" activation.cu activation.cu 's/for (std::int64_t j = i; j < n; ++j) y\[j\] = F/for (std::int64_t j = i; j < n - 1; ++j) y[j] = F/' "$d" 'DeviceActivation.*'
breaks "SwiGLU's gradient of the gate" activation.cu activation.cu 's/(1.0f + x \* (1.0f - s));$/(1.0f - x * (1.0f - s));/' "$ops_test" 'Activation.SwigluByRows'
breaks "rotation the wrong way" rope.cu rope.cu 's/a \* angles.c\[n\].v\[k\] - b/a * angles.c[n].v[k] + b/' "$ops_test" 'Rope.QkNormAndRotation'
breaks "positions that do not repeat" rope.cu rope.cu 's/ % static_cast<unsigned>(s.positions)//' "$d" 'DeviceRope.*'
breaks "weights' gradient without a barrier" rope.cu rope.cu 's/^    __syncthreads();//' "$d" 'DeviceRope.*'
breaks "gather from the row before" rows.cu rows.cu '0,/(-1 - from)/s//(-2 - from)/' "$d" 'DeviceRows.*'
breaks "rows written where they are added" rows.cu rows.cu 's/sum.v\[k\] += p.v\[k\]/sum.v[k] = p.v[k]/' "$d" 'DeviceRows.*'
breaks "blend of three rows of four" rows.cu rows.cu 's/ + s\[3\] \* d.v\[k\]//' "$d" 'DeviceRows.*'
breaks "norm of channels that leaves out a lane's second turn" picture.cu picture.cu '0,/j < channels; j += warp_size \* N/s//j < channels; j += channels/' "$d" 'DevicePicture.*'
breaks "norm of channels without a floor" picture.cu picture.cu 's/fmaxf(sqrtf(warp_sum(square)), 1e-12f)/sqrtf(warp_sum(square))/' "$d" 'DevicePicture.*'
breaks "pixels doubled in one direction" picture.cu picture.cu 's/^    store(out + row + channels, p);$//' "$d" 'DevicePicture.*'
breaks "average over the wrong frame" picture.cu picture.cu 's/% s.frames != s.frames - 1/% s.frames != 0/' "$d" 'DevicePicture.*'
breaks "channels spread from the wrong frame" picture.cu picture.cu 's/\* s.frames + s.frames - 1) \* 4/* s.frames) * 4/' "$d" 'DevicePicture.*'
breaks "decoding over a token of the wrong part" decode.cu decode.cu 's/j < first.length ? j : j - first.length/j/' "$ops_test" 'Decode.*'
breaks "decoding's softmax over scores that are not there yet" decode.cu decode.cu '0,/^    __syncthreads();$/s///' "$ops_test" 'Decode.*'
breaks "product of rows that adds up another row's" decode.cu decode.cu 's/(r < count ? r : count - 1) \* k/0 * k/' "$ops_test" 'Decode.*'
breaks "softmax of a row without its top" wide_attention.cu wide_attention.cu 's/expf(p.v\[k\] - top)/expf(p.v[k])/' "$d" 'DeviceAttention.Wide*'
breaks "block of queries over another one's rows" wide_attention.cu wide_attention.cu 's/at = b \* s.queries + first;/at = b * s.queries;/' "$d" 'DeviceAttention.Wide*'
breaks "bf16 rounded up at ties" rows.cu cast.hpp 's/0x7fffu + ((bits >> 16) \& 1u)/0x8000u/' "$d" 'DeviceCast.*'
breaks "attention that sees one key too many" plain_attention.cu plain_attention.cu 's/at + lane < limit)/at + lane <= limit)/' "$d" 'DeviceAttention.Plain*'
breaks "attention over a tile that is still read" plain_attention.cu plain_attention.cu 's/^            __syncwarp();$//; s/^            __syncthreads();$//; /void load_tile/,/^}/s/^    __syncthreads();$//' "$d" 'DeviceAttention.Plain*'
breaks "softmax that forgets its former top" plain_attention.cu plain_attention.cu 's/sum = sum \* kept/sum = sum/' "$d" 'DeviceAttention.Plain*'
breaks "shared keys' gradient written, not added" plain_attention.cu plain_attention.cu 's/\*k = part == 0 ? \*k + dk\[c\] : dk\[c\]/*k = dk[c]/' "$d" 'DeviceAttention.Plain*'
breaks "dense run that leaves out the shared keys' gradient" attention_keys.cu attention_keys.cu 's/s.width, s.batch, true/s.width, 1, true/' "$d" 'DeviceAttention.Dense*'
breaks "packed keys of another entry" attention_keys.cu attention_keys.cu 's/(entry \* s.entry_own + key - s.shared)/(key - s.shared)/' "$d" 'DeviceAttention.Dense*'
breaks "one query with one key without its other heads" attention_keys.cu attention_keys.cu 's/h < group/h < 1/' "$d" 'DeviceAttention.Dense*'
breaks "room of a longer prefix's cut alone" workspaces.cpp workspaces.cpp 's/return std::min(s.batch \* s.kv_heads \* key_head_room(s), room_limit(s))/return backward_cut(s).entries * backward_cut(s).kv_heads * key_head_room(s)/' "$d" 'DeviceAttention.ShorterPrefixes*'
breaks "dense run of the wrong queries" attention.cpp attention.cpp 's/in.q + run.first \* in.q_stride, in.k, in.v, to/in.q, in.k, in.v, to/' "$d" 'DeviceAttention.Dense*'
breaks "gradient of attention by another entry's queries" attention.cpp attention.cpp 's/query = entry \* shape.entry_queries/query = 0/' "$d" 'DeviceAttention.Dense*'
breaks "gradient of attention by another head's keys" attention.cpp attention.cpp 's/key_head = kv \* s.head_dim/key_head = 0/' "$d" 'DeviceAttention.Dense*'
breaks "gradient of attention with another head's statistics" attention.cpp attention.cpp 's/(entry \* s.heads + kv \* group) \* s.queries/entry * s.heads * s.queries/' "$d" 'DeviceAttention.Dense*'
breaks "queries in bf16 read with the strides of a packed copy" attention.cpp attention.cpp 's/q = query.bf16(), q_stride = s.q_stride;/q = query.bf16(), q_stride = p.q_width();/' "$d" 'DeviceOperands.Attention*'
breaks "values left out where the gradient goes to other memory" rope.cu rope.cu 's/copies_v \&\& head/false \&\& head/' "$d" 'DeviceRope.*'
breaks "a picture framed on the wrong side" convolution.cpp convolution.cpp 's/s_.pad_begin \* (inner_row/s_.pad_end * (inner_row/' "$d" 'DeviceConvolution.*'
breaks "product with the operands' flags swapped" matmul.cpp matmul.cpp 's/.transpose_a = tb, .transpose_b = ta/.transpose_a = ta, .transpose_b = tb/' "$ops_test" 'Matmul.*'
breaks "log-probability of a step that was not stored" sampler.cu sampler.cu 's/next - mean);$/fmaf(t.std, noise[i], 0.0f));/' "$d" 'DeviceSampler.*'
breaks "sampler's sum without its last block" sampler.cu sampler.cu 's/b < blocks; b += /b < blocks - 1; b += /' "$d" 'DeviceSampler.*'
breaks "AdamW without weight decay" optimizer.cu optimizer.cu 's/p.v\[k\] \* f.keep/p.v[k]/' "$d" 'DeviceOptimizer.*'
breaks "norm that counts a number twice" optimizer.cu optimizer.cu 's/last = first + norm_block < n ? first + norm_block/last = first + norm_block < n ? first + norm_block + 1/' "$d" 'DeviceOptimizer.*'
breaks "half precision without its subnormals" optimizer.cu cast.hpp 's/magnitude < 0x38800000u)/magnitude < 0x38000000u)/' "$d" 'DeviceCast.Rounded*'
breaks "guidance that rescales by the wrong norm" sampler.cu sampler.cu '0,/sums\[0\] \/ sums\[1\]/s//sums[1] \/ sums[0]/' "$d" 'DeviceGuidance.*'
breaks "guidance whose gradient forgets the token's norm" sampler.cu sampler.cu 's/ + along_c \* c;/;/' "$d" 'DeviceGuidance.*'
echo "$seen passed, $missed failed"
((missed == 0))
