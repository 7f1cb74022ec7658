// The backend's functions beside the CPU's, over odd and wide shapes: whole vectors and ragged ones, one warp and many, one chunk of
// rows and many. Each case runs twice on the device and must give the same bits.
#include <gtest/gtest.h>

#include <unistd.h>

#include <filesystem>
#include <functional>
#include <string_view>

#include "core/convert.hpp"
#include "core/host_vectors.hpp"
#include "flow/guidance.hpp"
#include "flow/sampler.hpp"
#include "harness.hpp"
#include "nn/checkpoint_weights.hpp"
#include "nn/sharded.hpp"
#include "nn/streamed.hpp"
#include "ops/cuda/workspaces.hpp"
#include "ops/repeated.hpp"
#include "optim/adamw.hpp"
#include "optim/gradient_norm.hpp"

namespace atelier::ops {
namespace {

using testing::Doubles;
using testing::error_over_rms;
using testing::Floats;

Floats normal(std::int64_t n, std::uint64_t which) {
    Floats v(static_cast<std::size_t>(n));
    fill_normal(random_key(11, RandomUse::test, which), v);
    return v;
}

using Bits = std::vector<std::uint16_t, testing::SharedAllocator<std::uint16_t>>;

Bits rounded(const Floats& x) {
    Bits bits(x.size());
    std::transform(x.begin(), x.end(), bits.begin(), f32_to_bf16);
    return bits;
}

Floats widened(const Bits& bits) {
    Floats x(bits.size());
    std::transform(bits.begin(), bits.end(), x.begin(), bf16_to_f32);
    return x;
}

using Numbers = std::vector<std::int32_t, testing::SharedAllocator<std::int32_t>>;

/// Outputs of one operation where the calling thread's operations run.
using Case = std::function<std::vector<Floats>()>;

// fp32 sums of up to a few thousand terms in two orders.
constexpr double tolerance = 3e-5;

void compare(const char* name, const Case& run, double allowed = tolerance) {
    if (current_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    const std::vector<Floats> found = run(), again = run();
    std::vector<std::vector<float>> expected;
    {
        // Memory is the device's: only where operations run changes.
        atelier::detail::current_device = Device::cpu;
        const std::vector<Floats> by_cpu = [&] {
            std::vector<Floats> kept;
            for (const Floats& f : run()) kept.push_back(f);
            return kept;
        }();
        for (const Floats& f : by_cpu) expected.emplace_back(f.begin(), f.end());
    }
    atelier::detail::current_device = Device::cuda;
    ASSERT_EQ(found.size(), expected.size());
    for (std::size_t i = 0; i < found.size(); ++i) {
        EXPECT_EQ(found[i], again[i]) << name << " output " << i;
        EXPECT_LT(error_over_rms(found[i], Doubles(expected[i].begin(), expected[i].end())), allowed) << name << " output " << i;
    }
}

struct Size {
    std::int64_t rows, width;
};
const std::vector<Size> sizes{{1, 1}, {3, 5}, {7, 132}, {33, 1028}, {2, 4096}, {1100, 20}, {9, 3001}};

TEST(DeviceActivation, AsOnTheCpu) {
    for (const std::int64_t n : {1, 255, 1024, 4099}) {
        const Floats x = normal(n, 1), dy = normal(n, 2);
        for (auto [name, forward, backward] :
             {std::tuple<const char*, decltype(silu)::Function, decltype(silu_backward)::Function>{"silu", silu, silu_backward},
              {"gelu_tanh", gelu_tanh, gelu_tanh_backward},
              {"gelu_erf", gelu_erf, gelu_erf_backward},
              {"tanh", tanh, tanh_backward}})
            compare(name, [&, forward = forward, backward = backward] {
                Floats y(x.size()), dx(x.size());
                forward(x.data(), y.data(), n);
                backward(x.data(), dy.data(), dx.data(), n);
                return std::vector<Floats>{y, dx};
            });
        compare("add", [&] {
            Floats y = dy;
            add(x.data(), y.data(), n);
            return std::vector<Floats>{y};
        });
    }
    for (const Size s : sizes)
        for (const std::int64_t gap : {0, 4, 3})
            compare("swiglu", [&] {
                const std::int64_t stride = 2 * s.width + gap;
                const Floats in = normal(s.rows * stride, 3), dy = normal(s.rows * s.width, 4);
                Floats y(dy.size()), d(in.size());
                swiglu(s.rows, s.width, in.data() + s.width, in.data(), stride, y.data());
                swiglu_backward(s.rows, s.width, in.data() + s.width, in.data(), stride, dy.data(), d.data() + s.width, d.data());
                return std::vector<Floats>{y, d};
            });
}

TEST(DeviceModulation, AsOnTheCpu) {
    for (const Size size : sizes)
        for (const std::int64_t groups : {1, 3}) {
            const ModulationShape s{groups, size.rows, size.width, 4 * size.width, 1e-5f};
            const std::int64_t rows = groups * size.rows, n = rows * size.width, m = groups * s.mod_stride;
            const Floats x = normal(n, 1), scale = normal(m, 2), dy = normal(n, 3), before = normal(n, 4), d_before = normal(m, 5);
            compare("layer_norm_modulate", [&] {
                Floats y(n), mean(rows), inverse(rows), dx = before, dscale = d_before;
                layer_norm_modulate(s, x.data(), scale.data(), y.data(), mean.data(), inverse.data());
                layer_norm_modulate_backward(s, x.data(), scale.data(), mean.data(), inverse.data(), dy.data(), dx.data(), dscale.data());
                return std::vector<Floats>{y, mean, inverse, dx, dscale};
            });
            compare("gate_residual_norm_modulate", [&] {
                Floats y(n), normed(n), mean(rows), inverse(rows), alone(n), normed_alone(n), in_place = x;
                gate_residual_norm_modulate(s, x.data(), scale.data(), before.data(), y.data(), d_before.data(), normed.data(), mean.data(), inverse.data());
                // The two operations that it is, to the bit.
                gate_residual(s, x.data(), scale.data(), before.data(), alone.data());
                EXPECT_EQ(y, alone);
                layer_norm_modulate(s, alone.data(), d_before.data(), normed_alone.data(), mean.data(), inverse.data());
                EXPECT_EQ(normed, normed_alone);
                gate_residual_norm_modulate(s, in_place.data(), scale.data(), before.data(), in_place.data(), d_before.data(), normed.data(), mean.data(),
                                            inverse.data());
                EXPECT_EQ(in_place, y);
                return std::vector<Floats>{y, normed, mean, inverse};
            });
            compare("gate_residual", [&] {
                Floats y(n), dbranch(n), dgate = d_before;
                gate_residual(s, x.data(), scale.data(), before.data(), y.data());
                gate_residual_backward(s, scale.data(), before.data(), dy.data(), dbranch.data(), dgate.data());
                return std::vector<Floats>{y, dbranch, dgate};
            });
        }
}

TEST(DeviceNorm, AsOnTheCpu) {
    for (const Size size : sizes) {
        const std::int64_t n = size.rows * size.width, w = size.width;
        const Floats x = normal(n, 1), weight = normal(w, 2), bias = normal(w, 3), dy = normal(n, 4), before = normal(n, 5);
        const Floats d_weight = normal(w, 6);
        for (const float offset : {0.0f, 1.0f})
            compare("rms_norm", [&] {
                const RmsNormShape s{size.rows, w, 0, 0, 1e-5f, offset};
                Floats y(n), inverse(size.rows), dx = dy, dw = d_weight, alone(n);
                rms_norm(s, x.data(), weight.data(), y.data(), inverse.data());
                rms_norm_backward(s, x.data(), weight.data(), inverse.data(), dx.data(), dx.data(), dw.data());  // in place
                rms_norm_backward(s, x.data(), weight.data(), inverse.data(), dy.data(), alone.data(), nullptr);
                return std::vector<Floats>{y, inverse, dx, dw, alone};
            });
        for (const bool affine : {true, false})
            for (const bool accumulate : {true, false})
                compare("layer_norm", [&] {
                    const LayerNormShape s{size.rows, w, 1e-5f};
                    const float *wp = affine ? weight.data() : nullptr, *bp = affine ? bias.data() : nullptr;
                    Floats y(n), mean(size.rows), inverse(size.rows), dx = before, dw = d_weight, db = d_weight;
                    layer_norm(s, x.data(), wp, bp, y.data(), mean.data(), inverse.data());
                    layer_norm_backward(s, x.data(), wp, mean.data(), inverse.data(), dy.data(), dx.data(), accumulate,
                                        affine ? dw.data() : nullptr, affine ? db.data() : nullptr);
                    return std::vector<Floats>{y, mean, inverse, dx, dw, db};
                });
    }
}

TEST(DeviceRope, AsOnTheCpu) {
    for (auto [rows, positions, heads, dim] : {std::tuple{1, 1, 1, 2}, {70, 35, 3, 128}, {5, 5, 18, 128}, {33, 33, 6, 32}, {9, 3, 5, 18}}) {
        const QkNormRopeShape s{rows, heads, dim, positions, 1e-5f};
        const std::int64_t n = static_cast<std::int64_t>(rows) * 3 * heads * dim;
        const Floats in = normal(n, 1), qw = normal(dim, 2), kw = normal(dim, 3), c = normal(positions * dim / 2, 4);
        const Floats sn = normal(positions * dim / 2, 5), dy = normal(n, 6);
        compare("qk_norm_rope", [&, rows = rows, heads = heads, dim = dim] {
            Floats y(n), inverse(rows * 2 * heads), g = dy, again = dy, elsewhere(n), dq(dim, 1.0f), dk(dim, 1.0f), room(qk_norm_rope_workspace(s));
            qk_norm_rope(s, in.data(), qw.data(), kw.data(), c.data(), sn.data(), y.data(), inverse.data());
            qk_norm_rope_backward(s, in.data(), qw.data(), kw.data(), c.data(), sn.data(), inverse.data(), g.data(), g.data(), dq.data(), dk.data(),
                                  room.data());
            qk_norm_rope_backward(s, in.data(), qw.data(), kw.data(), c.data(), sn.data(), inverse.data(), again.data(), elsewhere.data(), nullptr,
                                  nullptr, room.data());
            return std::vector<Floats>{y, inverse, g, dq, dk, elsewhere};
        });
    }
}

TEST(DeviceRows, AsOnTheCpu) {
    for (const Size size : sizes)
        for (const std::int64_t gap : {0, 3}) {
            const std::int64_t n = size.rows * size.width, stride = size.width + gap;
            const Floats x = normal(n, 1), before = normal(size.rows * stride, 2), b = normal(n, 3);
            Numbers source;
            for (std::int64_t i = 0; i < size.rows; ++i) source.push_back(static_cast<std::int32_t>(i % 3 == 1 ? -1 - i / 2 : size.rows - 1 - i));
            compare("rows", [&] {
                Floats copied = before, added = before, gathered(n), a_out(n), b_out(n), zeros = x;
                copy_columns(size.rows, size.width, x.data(), size.width, copied.data(), stride);
                add_columns(size.rows, size.width, x.data(), size.width, added.data(), stride);
                gather_rows(size.rows, size.width, source.data(), x.data(), b.data(), gathered.data());
                scatter_rows(size.rows, size.width, source.data(), x.data(), a_out.data(), b_out.data());
                fill_zero(zeros.data(), n / 2);
                return std::vector<Floats>{copied, added, gathered, a_out, b_out, zeros};
            });
        }
}

TEST(DeviceRows, AddedWhereTheyAreNamed) {
    for (const Size size : sizes) {
        const std::int64_t n = size.rows * size.width, table_rows = size.rows + 2;
        const Floats x = normal(n, 1), before = normal(table_rows * size.width, 2), share = normal(4 * size.rows, 3);
        Numbers target, source;
        for (std::int64_t i = 0; i < size.rows; ++i) {
            target.push_back(static_cast<std::int32_t>((i * 3 + 1) % table_rows));
            if (table_rows % 3 == 0) target.back() = static_cast<std::int32_t>(table_rows - 1 - i);
            for (std::int64_t k = 0; k < 4; ++k) source.push_back(static_cast<std::int32_t>((i + k * k) % table_rows));
        }
        compare("add_to_rows", [&] {
            Floats added = before, blended = x;
            add_to_rows(size.rows, size.width, target.data(), x.data(), added.data());
            add_blend_of_rows(size.rows, size.width, source.data(), share.data(), before.data(), blended.data());
            return std::vector<Floats>{added, blended};
        });
    }
}

TEST(DevicePicture, AsOnTheCpu) {
    // Height and width, channels in and out: one and odd ones, less and more than a warp's, the autoencoder's ratios.
    for (auto [h, w, in, out] : {std::tuple{1, 1, 1, 1}, {2, 2, 4, 4}, {6, 4, 5, 10}, {4, 6, 12, 24}, {2, 10, 160, 160}, {4, 2, 33, 66}, {2, 2, 1152, 1152}}) {
        const std::int64_t n = std::int64_t{h} * w * in, larger = 4 * std::int64_t{h} * w * out;
        Floats x = normal(n, 1);
        const Floats gamma = normal(in, 2), before = normal(larger, 3);
        if (h * w > 1) std::fill_n(x.begin(), in, 0.0f);  // a pixel of zeros stays one
        compare("channel_norm", [&, h = h, w = w, in = in] {
            Floats y(n), plain = x;
            channel_norm(h * w, in, x.data(), gamma.data(), true, y.data());
            channel_norm(h * w, in, plain.data(), gamma.data(), false, plain.data());  // in place
            return std::vector<Floats>{y, plain};
        });
        compare("upsample_nearest", [&, h = h, w = w, in = in] {
            Floats y(4 * n);
            upsample_nearest(h, w, in, x.data(), y.data());
            return std::vector<Floats>{y};
        });
        for (const std::int64_t frames : {1, 2}) {
            for (const std::int64_t space : {1, 2}) {
                if (h % space != 0 || in * frames * space * space % out != 0) continue;
                compare("add_average_down", [&, h = h, w = w, in = in, out = out] {
                    Floats y(before.begin(), before.begin() + h / space * (w / space) * out);
                    add_average_down(h, w, in, out, frames, space, x.data(), y.data());
                    return std::vector<Floats>{y};
                });
            }
            for (const auto& [from, to] : {std::pair{in, out}, {out, in}})  // a wider picture is narrowed as well
                compare("add_duplicate_up", [&, h = h, w = w, from = from, to = to] {
                    Floats y(before.begin(), before.begin() + 4 * h * w * to);
                    add_duplicate_up(h, w, from, to, frames, before.data(), y.data());
                    return std::vector<Floats>{y};
                });
        }
    }
}

struct AttentionSize {
    int batch, queries, shared, own, heads, kv_heads, dim;
    std::vector<std::int32_t> limits;
};

std::vector<AttentionSize> attention_sizes() {
    return {{2, 19, 37, 19, 2, 2, 32, {}},
            {1, 70, 0, 70, 4, 2, 16, [] {  // text, a picture, text, as a prefix has it
                 std::vector<std::int32_t> v;
                 for (int i = 0; i < 70; ++i) v.push_back(i < 21 || i > 52 ? i + 1 : 53);
                 return v;
             }()},
            {3, 5, 33, 5, 2, 1, 128, {}},
            {4, 9, 20, 9, 1, 1, 16, {}},
            {2, 7, 5, 7, 2, 2, 16, {3, 3, 3, 7, 7, 7, 7}},
            {1, 6, 0, 6, 2, 2, 16, {1, 5, 5, 5, 5, 6}},  // a token of text before a picture: no gradient of the library's for one query with one key
            {2, 6, 0, 6, 4, 2, 16, {1, 5, 5, 5, 5, 6}},
            {1, 1, 0, 1, 2, 2, 16, {}}};
}

/// In a workspace that is planned for `planned` shared keys where that is more.
Case attention_case(const AttentionSize& a, std::int64_t planned = 0) {
    return [a, planned] {
        AttentionShape s;
        s.batch = a.batch, s.queries = a.queries, s.shared_keys = a.shared, s.own_keys = a.own;
        s.heads = a.heads, s.kv_heads = a.kv_heads, s.head_dim = a.dim;
        const std::int64_t q_width = a.heads * a.dim, kv_width = a.kv_heads * a.dim;
        s.q_stride = q_width + 8, s.out_stride = q_width, s.own_stride = s.shared_stride = 2 * kv_width;
        s.scale = 1.0f / std::sqrt(float(a.dim));
        if (!a.limits.empty()) s.own_limit = a.limits.data();
        // Numbers that bf16 holds, so that rounding operands changes nothing.
        const auto round = [](Floats v) {
            for (float& x : v) x = bf16_to_f32(f32_to_bf16(x));
            return v;
        };
        const Floats q = round(normal(a.batch * a.queries * s.q_stride, 1)), sk = round(normal(a.shared * 2 * kv_width + 1, 2));
        const Floats ok = round(normal(a.batch * a.own * 2 * kv_width, 3)), dy = round(normal(a.batch * a.queries * q_width, 4));
        AttentionShape largest = s;
        largest.shared_keys = std::max(s.shared_keys, planned);
        Floats y(dy.size()), lse(a.batch * a.heads * a.queries), room(attention_backward_workspace(largest)), dq(q.size()), ds(sk.size(), 1.0f), down(ok.size());
        const Tensor w = Tensor::of(room.data(), {static_cast<std::int64_t>(room.size())});
        const AttentionKeys shared{sk.data(), sk.data() + kv_width}, own{ok.data(), ok.data() + kv_width};
        Floats alone(y.size());
        attention(s, q.data(), shared, own, alone.data(), nullptr, w);
        attention(s, q.data(), shared, own, y.data(), lse.data(), w);
        EXPECT_EQ(alone, y) << "inference, without sums";
        attention_backward(s, q.data(), shared, own, y.data(), lse.data(), dy.data(), dq.data(), {ds.data(), ds.data() + kv_width},
                           {down.data(), down.data() + kv_width}, w);
        return std::vector<Floats>{y, lse, dq, ds, down};
    };
}

TEST(DeviceAttention, PlainKernelsAsOnTheCpu) {
    for (const AttentionSize& a : attention_sizes()) compare("attention", attention_case(a));
}

TEST(DeviceAttention, DenseCallsAsOnTheCpu) {
    if (current_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    backend().set_product_precision(ProductPrecision::bf16);
    // bf16 rounds by up to 2^-8 twice: the output, which the gradient is taken at, and the gradient itself; the largest of a few
    // thousand numbers is up to 6 times their RMS.
    for (const AttentionSize& a : attention_sizes()) compare("attention", attention_case(a), 6 * 2 * 0x1p-8);
    backend().set_product_precision(ProductPrecision::fp32);
}

// The workspace of the gradient is planned for the longest prefix: every shorter one has room there, as the library's calls are cut for it.
TEST(DeviceAttention, ShorterPrefixesRunInAPlannedWorkspace) {
    if (current_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    backend().set_product_precision(ProductPrecision::bf16);
    // Of three entries one at a time fits with more than 128 keys, all with fewer.
    for (const int planned : {120, 247})
        for (const int shared : {0, 5, 90, 118, 120}) compare("attention", attention_case({3, 10, shared, 10, 1, 1, 16, {}}, planned), 6 * 2 * 0x1p-8);
    backend().set_product_precision(ProductPrecision::fp32);
}

// The cut into calls that fit the planned room, at sizes where a real device has to cut (the emulator cuts the sizes above): by entries, then by heads.
TEST(DeviceAttention, GradientInPartsIsThatOfThePartsAlone) {
    if (current_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    if (std::string_view(backend().device_name) == "emulator") GTEST_SKIP() << "too large for the emulator";
    backend().set_product_precision(ProductPrecision::bf16);
    for (const auto& [batch, queries, shared_keys, heads] : {std::tuple{6, 1024, 300, 32}, {1, 16384, 0, 2}}) {
        constexpr std::int64_t dim = 16;
        const std::int64_t width = heads * dim;
        AttentionShape s;
        s.batch = batch, s.queries = s.own_keys = queries, s.shared_keys = shared_keys, s.heads = s.kv_heads = heads, s.head_dim = dim;
        s.q_stride = s.own_stride = s.shared_stride = 3 * width, s.out_stride = width, s.scale = 0.25f;
        const Floats qkv = normal(batch * queries * 3 * width, 1), shared = normal(shared_keys * 3 * width + 1, 2), d_out = normal(batch * queries * width, 3);
        Floats out(d_out.size()), room(attention_backward_workspace(s));
        const Tensor w = Tensor::of(room.data(), {static_cast<std::int64_t>(room.size())});
        struct Gradients {
            Floats of_qkv, of_shared;
        };
        Gradients whole{Floats(qkv.size()), Floats(shared.size())}, parts = whole;
        const auto run = [&, width = width, heads = heads](const AttentionShape& part, std::int64_t entry, std::int64_t head, Gradients& to) {
            const std::int64_t at = entry * part.queries * 3 * width + head * dim, at_shared = head * dim, at_out = entry * part.queries * width + head * dim;
            const float *q = qkv.data() + at, *of_shared = shared.data() + at_shared;
            const AttentionKeys shared_part{of_shared + width, of_shared + 2 * width}, own_part{q + width, q + 2 * width};
            float *dq = to.of_qkv.data() + at, *d_shared = to.of_shared.data() + at_shared;
            Floats lse(part.batch * part.heads * part.queries);
            attention(part, q, shared_part, own_part, out.data() + at_out, lse.data(), w);
            attention_backward(part, q, shared_part, own_part, out.data() + at_out, lse.data(), d_out.data() + at_out, dq,
                               {d_shared + width, d_shared + 2 * width}, {dq + width, dq + 2 * width}, w);
        };
        run(s, 0, 0, whole);
        const cuda::BackwardCut cut = cuda::backward_cut(s);
        ASSERT_LT(cut.entries * cut.kv_heads, batch * heads) << "not cut";
        AttentionShape part = s;
        part.batch = cut.entries, part.heads = part.kv_heads = cut.kv_heads;
        for (std::int64_t entry = 0; entry < batch; entry += cut.entries)
            for (std::int64_t head = 0; head < heads; head += cut.kv_heads) run(part, entry, head, parts);
        device_memory().synchronise();
        const auto numbers = [](const Floats& f) { return Doubles(f.begin(), f.end()); };
        EXPECT_LT(error_over_rms(whole.of_qkv, numbers(parts.of_qkv)), 0x1p-8) << batch << " x " << queries;
        EXPECT_LT(error_over_rms(whole.of_shared, numbers(parts.of_shared)), 0x1p-8) << batch << " x " << queries;
    }
    backend().set_product_precision(ProductPrecision::fp32);
}

// At the sizes of the real device: here the functions are the host's own, which plan where no device is.
TEST(DeviceAttention, RoomOfTheGradientIsNoLessForMore) {
    const auto at = [](std::int64_t batch, std::int64_t queries, std::int64_t keys, std::int64_t heads, std::int64_t kv_heads) {
        AttentionShape s;
        s.batch = batch, s.queries = s.own_keys = queries, s.shared_keys = keys, s.heads = heads, s.kv_heads = kv_heads, s.head_dim = 128;
        return s;
    };
    const std::vector<std::int64_t> batches{1, 2, 3, 4, 6, 7, 8, 12, 24}, queries{1, 63, 64, 256, 1000, 1024, 2304, 4096, 16384, 40000};
    const std::vector<std::int64_t> keys{0, 1, 20, 64, 128, 300, 1024, 4224, 8500};
    const auto before = [](const std::vector<std::int64_t>& all, std::size_t i) { return all[i == 0 ? 0 : i - 1]; };
    for (const auto& [heads, kv_heads] : {std::pair{32, 32}, {32, 8}, {24, 24}, {4, 1}, {1, 1}})
        for (std::size_t b = 0; b < batches.size(); ++b)
            for (std::size_t q = 0; q < queries.size(); ++q)
                for (std::size_t k = 0; k < keys.size(); ++k) {
                    const AttentionShape s = at(batches[b], queries[q], keys[k], heads, kv_heads);
                    const std::int64_t room = cuda::backward_room(s);
                    const std::string where = ::testing::PrintToString(std::tuple(s.batch, s.queries, s.shared_keys, heads, kv_heads));
                    EXPECT_GE(room, cuda::backward_room(at(before(batches, b), queries[q], keys[k], heads, kv_heads))) << where;
                    EXPECT_GE(room, cuda::backward_room(at(batches[b], before(queries, q), keys[k], heads, kv_heads))) << where;
                    EXPECT_GE(room, cuda::backward_room(at(batches[b], queries[q], before(keys, k), heads, kv_heads))) << where;
                    const std::int64_t padding = 4 * 256, one = cuda::backward_room(at(1, queries[q], keys[k], heads / kv_heads, 1)) - padding;
                    const cuda::BackwardCut cut = cuda::backward_cut(s);
                    EXPECT_LE(cut.entries * cut.kv_heads * one, room - padding) << where;
                    EXPECT_LE(room - padding, std::max(one, std::int64_t{512} << 20)) << where;
                    EXPECT_TRUE(s.batch % cut.entries == 0 && kv_heads % cut.kv_heads == 0 && (cut.entries == 1 || cut.kv_heads == kv_heads)) << where;
                    // The next larger divisor takes too much.
                    for (std::int64_t n = cut.entries + 1; cut.kv_heads == kv_heads && n <= s.batch; ++n)
                        EXPECT_TRUE(s.batch % n != 0 || n * kv_heads * one > room - padding) << where;
                }
    // 6 x 1,024 queries: behind a prefix of 300 tokens five entries take 440 MiB and six too much; behind one of 20 six take 432.
    EXPECT_EQ(cuda::backward_cut(at(6, 1024, 300, 32, 32)).entries, 3);
    EXPECT_EQ(cuda::backward_cut(at(6, 1024, 20, 32, 32)).entries, 6);
}

// Heads wider than the plain kernels take: one of all channels, and two that share a key head. Scores up to a hundred and more.
TEST(DeviceAttention, WideHeadsAsOnTheCpu) {
    for (auto [batch, tokens, heads, dim] : {std::tuple{1, 4, 1, 132}, {2, 36, 2, 160}, {1, 1032, 1, 136}}) {
        // Scores are sums of dim products of unit size, times 3: either side rounds them by up to 8 * 2^-24 sqrt(dim) of their RMS sqrt(dim)
        // (matmul_test.cpp), and a weight moves by as much of itself.
        const double allowed = 2 * 3 * 8 * 0x1p-24 * dim;
        compare("attention", [=] {
            AttentionShape s;
            s.batch = batch, s.queries = s.own_keys = tokens, s.heads = heads, s.kv_heads = 1, s.head_dim = dim;
            s.q_stride = s.out_stride = heads * dim, s.own_stride = 2 * dim, s.scale = 3.0f;
            const Floats q = normal(s.batch * tokens * s.q_stride, 1), kv = normal(s.batch * tokens * s.own_stride, 2);
            Floats y(q.size()), room(attention_workspace(s));
            attention(s, q.data(), {}, {kv.data(), kv.data() + dim}, y.data(), nullptr, Tensor::of(room.data(), {static_cast<std::int64_t>(room.size())}));
            return std::vector<Floats>{y};
        }, allowed);
    }
}

TEST(DeviceProducts, RoundedOperandsAndKeptCopies) {
    if (current_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    const std::int64_t m = 37, n = 24, k = 40;
    const Floats x = normal(m * k, 1);
    Floats w = normal(n * k, 2);
    Floats y(m * n), copied(m * n);
    const auto product = [&](Floats& to) {
        linear(Tensor::of(x.data(), {m, k}), Tensor::of(w.data(), {n, k}), {}, Tensor::of(to.data(), {m, n}));
    };
    const auto expected = [&] {
        Doubles e(static_cast<std::size_t>(m * n));
        for (int i = 0; i < m; ++i)
            for (int j = 0; j < n; ++j)
                for (int l = 0; l < k; ++l)
                    e[i * n + j] += double(bf16_to_f32(f32_to_bf16(x[i * k + l]))) * bf16_to_f32(f32_to_bf16(w[j * k + l]));
        return e;
    };
    backend().set_product_precision(ProductPrecision::bf16);
    product(y);
    EXPECT_LT(error_over_rms(y, expected()), tolerance);
    backend().keep_bf16_copy(w.data(), static_cast<std::int64_t>(w.size()));
    product(copied);
    EXPECT_EQ(copied, y);
    Floats by_rows(m * n);
    linear_rows(Tensor::of(x.data(), {m, k}), Tensor::of(w.data(), {n, k}), Tensor::of(by_rows.data(), {m, n}));
    EXPECT_LT(error_over_rms(by_rows, expected()), tolerance);
    // The copy is what the product takes: it follows the weights when it is told to, and when AdamW writes them.
    const Floats other = normal(n * k, 3);
    std::copy(other.begin(), other.end(), w.begin());
    product(copied);
    EXPECT_EQ(copied, y);
    backend().refresh_bf16_copy(w.data());
    product(copied);
    EXPECT_LT(error_over_rms(copied, expected()), tolerance);
    const Floats g = normal(n * k, 4);
    Floats first(w.size()), second(w.size(), 1.0f);
    backend().adamw(n * k, {1, 0.1f, 0.999f, 0.001f, 0.5f, 1, 1e-8f, 1}, g.data(), w.data(), first.data(), second.data(),
                    backend().bf16_copy_of(w.data()));
    product(copied);
    EXPECT_LT(error_over_rms(copied, expected()), tolerance);
    // Weights that are there in bf16 alone: the same bits.
    const Bits bits = rounded(w);
    const Tensor alone_there(const_cast<std::uint16_t*>(bits.data()), DType::bf16, {n, k}, Device::cuda), rows = Tensor::of(x.data(), {m, k}), kept = Tensor::of(w.data(), {n, k});
    const auto both = [&](std::int64_t size, auto f) {
        Floats with_copy(size, 1.0f), alone(size, 1.0f);
        f(kept, with_copy.data());
        f(alone_there, alone.data());
        EXPECT_EQ(alone, with_copy);
    };
    both(m * n, [&](const Tensor& weight, float* to) { linear(rows, weight, {}, Tensor::of(to, {m, n})); });
    both(m * n, [&](const Tensor& weight, float* to) { linear_rows(rows, weight, Tensor::of(to, {m, n})); });
    both(m * k, [&](const Tensor& weight, float* to) { linear_backward_input(Tensor::of(copied.data(), {m, n}), weight, Tensor::of(to, {m, k}), true); });
    both(m * n, [&](const Tensor& weight, float* to) {
        const bool alone = weight.dtype() == DType::bf16;
        matmul(false, true, 1.0f, {rows.f32(), m, k, k}, {alone ? nullptr : w.data(), n, k, k, alone ? const_cast<std::uint16_t*>(bits.data()) : nullptr}, 1.0f, {to, m, n, n});
    });
    backend().keep_bf16_copy(w.data(), 0);
    EXPECT_EQ(backend().bf16_copy_of(w.data()), nullptr);
    backend().set_product_precision(ProductPrecision::fp32);
    EXPECT_THROW(linear(rows, alone_there, {}, Tensor::of(y.data(), {m, n})), Error);
    EXPECT_THROW(linear_rows(rows, alone_there, Tensor::of(y.data(), {m, n})), Error);
}

/// What an operation writes for a product alone: in bf16 what rounding its fp32 gives. `run(OperandOut)` writes n numbers.
template <typename Run>
void expect_rounded(const char* name, std::int64_t n, Run run) {
    Floats numbers(n, 7.0f);
    run(OperandOut(numbers.data()));
    Bits bits = rounded(Floats(n, 7.0f));  // gaps are left alone
    run(OperandOut(bits.data()));
    EXPECT_EQ(bits, rounded(numbers)) << name << ", " << n << " numbers";
}

TEST(DeviceOperands, AreWhatRoundingTheNumbersGives) {
    if (current_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    for (const Size size : sizes) {
        const std::int64_t n = 2 * size.rows * size.width, w = size.width, stride = 2 * w + 4;
        const ModulationShape s{2, size.rows, w, 4 * w, 1e-5f};
        const Floats x = normal(n, 1), scale = normal(2 * s.mod_stride, 2), dy = normal(n, 3), in = normal(2 * size.rows * stride, 4);
        expect_rounded("layer_norm_modulate", n, [&](OperandOut y) {
            Floats mean(2 * size.rows), inverse(2 * size.rows);
            layer_norm_modulate(s, x.data(), scale.data(), y, mean.data(), inverse.data());
        });
        expect_rounded("gate_residual_backward", n, [&](OperandOut y) {
            Floats d_gate(2 * s.mod_stride);
            gate_residual_backward(s, scale.data(), x.data(), dy.data(), y, d_gate.data());
        });
        expect_rounded("swiglu", n, [&](OperandOut y) { swiglu(2 * size.rows, w, in.data() + w, in.data(), stride, y); });
        expect_rounded("swiglu_backward", std::ssize(in), [&](OperandOut d) {
            swiglu_backward(2 * size.rows, w, in.data() + w, in.data(), stride, dy.data(), d.from(w), d);
        });
    }
    for (auto [rows, positions, heads, dim] : {std::tuple{1, 1, 1, 2}, {70, 35, 3, 128}, {5, 5, 18, 128}, {33, 33, 6, 32}, {9, 3, 5, 18}}) {
        const QkNormRopeShape s{rows, heads, dim, positions, 1e-5f};
        const std::int64_t n = static_cast<std::int64_t>(rows) * 3 * heads * dim;
        const Floats in = normal(n, 1), qw = normal(dim, 2), kw = normal(dim, 3), c = normal(positions * dim / 2, 4);
        const Floats sn = normal(positions * dim / 2, 5), dy = normal(n, 6);
        Floats inverse(static_cast<std::int64_t>(rows) * 2 * heads), room(qk_norm_rope_workspace(s)), d_weights[2];
        expect_rounded("qk_norm_rope", n, [&](OperandOut y) {
            qk_norm_rope(s, in.data(), qw.data(), kw.data(), c.data(), sn.data(), y, inverse.data());
        });
        expect_rounded("qk_norm_rope_backward", n, [&](OperandOut d_in) {
            Floats d_out = dy;
            Floats& d_weight = d_weights[d_in.is_bf16() ? 1 : 0] = Floats(2 * static_cast<std::int64_t>(dim));
            qk_norm_rope_backward(s, in.data(), qw.data(), kw.data(), c.data(), sn.data(), inverse.data(), d_out.data(), d_in, d_weight.data(),
                                  d_weight.data() + dim, room.data());
        });
        EXPECT_EQ(d_weights[0], d_weights[1]);
    }
}

/// What an operation reads in bf16 gives the bits of the same numbers in fp32. `run(operands)` returns its outputs.
template <typename Run>
void expect_read(const char* name, std::vector<Bits> inputs, Run run) {
    std::vector<Floats> numbers;
    std::vector<Operand> wide, narrow;
    for (const Bits& bits : inputs) numbers.push_back(widened(bits)), narrow.emplace_back(bits.data());
    for (const Floats& n : numbers) wide.emplace_back(n.data());
    EXPECT_EQ(run(narrow), run(wide)) << name << ", " << inputs[0].size() << " numbers";
}

TEST(DeviceOperands, AreReadAsTheirNumbers) {
    if (current_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    const auto bits = [](std::int64_t n, std::uint64_t which) { return rounded(normal(n, which)); };
    for (const Size size : sizes) {
        const std::int64_t rows = 2 * size.rows, w = size.width, n = rows * w, stride = 2 * w + 4;
        const ModulationShape s{2, size.rows, w, 4 * w, 1e-5f};
        const Floats x = normal(n, 1), scale = normal(2 * s.mod_stride, 2), before = normal(n, 3), mean = normal(rows, 4), inverse = normal(rows, 5);
        expect_read("layer_norm_modulate_backward", {bits(n, 6)}, [&](const std::vector<Operand>& in) {
            Floats dx = before, d_scale(2 * s.mod_stride);
            layer_norm_modulate_backward(s, x.data(), scale.data(), mean.data(), inverse.data(), in[0], dx.data(), d_scale.data());
            return std::vector{dx, d_scale};
        });
        expect_read("gate_residual", {bits(n, 6)}, [&](const std::vector<Operand>& in) {
            Floats y(n);
            gate_residual(s, x.data(), scale.data(), in[0], y.data());
            return y;
        });
        expect_read("gate_residual_norm_modulate", {bits(n, 6)}, [&](const std::vector<Operand>& in) {
            Floats y(n), m(rows), i(rows);
            Bits normed(n);
            gate_residual_norm_modulate(s, x.data(), scale.data(), in[0], y.data(), scale.data() + w, normed.data(), m.data(), i.data());
            return std::vector{y, widened(normed), m, i};
        });
        expect_read("gate_residual_backward", {bits(n, 6)}, [&](const std::vector<Operand>& in) {
            Floats d_branch(n), d_gate(2 * s.mod_stride);
            gate_residual_backward(s, scale.data(), in[0], before.data(), d_branch.data(), d_gate.data());
            return std::vector{d_branch, d_gate};
        });
        expect_read("swiglu", {bits(rows * stride, 6)}, [&](const std::vector<Operand>& in) {
            Bits y(n);
            swiglu(rows, w, in[0].from(w), in[0], stride, y.data());
            return y;
        });
        expect_read("swiglu_backward", {bits(rows * stride, 6), bits(n, 7)}, [&](const std::vector<Operand>& in) {
            Bits d(rows * stride);
            swiglu_backward(rows, w, in[0].from(w), in[0], stride, in[1], d.data() + w, d.data());
            return d;
        });
    }
    for (auto [rows, positions, heads, dim] : {std::tuple{1, 1, 1, 2}, {70, 35, 3, 128}, {33, 33, 6, 32}, {9, 3, 5, 18}, {5, 5, 3, 256}}) {
        const QkNormRopeShape s{rows, heads, dim, positions, 1e-5f};
        const std::int64_t n = static_cast<std::int64_t>(rows) * 3 * heads * dim;
        const Floats qw = normal(dim, 2), kw = normal(dim, 3), c = normal(positions * dim / 2, 4), sn = normal(positions * dim / 2, 5), dy = normal(n, 6);
        expect_read("qk_norm_rope and its gradient", {bits(n, 1)}, [&](const std::vector<Operand>& in) {
            Floats inverse(static_cast<std::int64_t>(rows) * 2 * heads), room(qk_norm_rope_workspace(s)), d_out = dy, d_in(n), d_weight(2 * dim);
            Bits y(n);
            qk_norm_rope(s, in[0], qw.data(), kw.data(), c.data(), sn.data(), y.data(), inverse.data());
            qk_norm_rope_backward(s, in[0], qw.data(), kw.data(), c.data(), sn.data(), inverse.data(), d_out.data(), d_in.data(), d_weight.data(),
                                  d_weight.data() + dim, room.data());
            return std::vector{widened(y), inverse, d_in, d_weight};
        });
    }
}

// Queries, keys, values and what comes of them in bf16 alone: what the same numbers in fp32 give, whether the library reads them where they
// lie (rows of a multiple of 8 numbers), packed, or a mask of keys takes the plain kernels. (Bits are the algorithm's, which is the library's to
// choose for each layout.)
TEST(DeviceOperands, AttentionTakesThemWhereTheyLie) {
    if (current_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    backend().set_product_precision(ProductPrecision::bf16);
    for (const bool masked : {false, true})
        for (const std::int64_t gap : {0, 8, 4})
            for (const AttentionSize& a : attention_sizes()) {
                if (masked && a.shared + a.own < 4) continue;  // a key is masked and some are left
                AttentionShape s;
                s.batch = a.batch, s.queries = a.queries, s.shared_keys = a.shared, s.own_keys = a.own;
                s.heads = a.heads, s.kv_heads = a.kv_heads, s.head_dim = a.dim;
                const std::int64_t q_width = a.heads * a.dim, kv_width = a.kv_heads * a.dim;
                s.q_stride = s.out_stride = q_width + gap, s.own_stride = s.shared_stride = 2 * kv_width + gap;
                s.scale = 1.0f / std::sqrt(float(a.dim));
                if (!a.limits.empty()) s.own_limit = a.limits.data();
                std::vector<std::uint8_t> shared_valid(a.shared, 1), own_valid(static_cast<std::size_t>(a.batch * a.own), 1);
                if (masked) {
                    (a.shared > 0 ? shared_valid : own_valid)[2] = 0;
                    s.shared_valid = shared_valid.data(), s.own_valid = own_valid.data();
                }
                const Bits q = rounded(normal(a.batch * a.queries * s.q_stride, 1)), sk = rounded(normal(a.shared * s.shared_stride + 1, 2));
                const Bits ok = rounded(normal(a.batch * a.own * s.own_stride, 3));
                const Bits dy_bits = rounded(normal(a.batch * a.queries * s.out_stride, 4));
                const Floats dy = widened(dy_bits);
                const auto run = [&](Operand query, Operand shared, Operand own, OperandOut out, const Operand& result, const Operand& gradient) {
                    Floats lse(a.batch * a.heads * a.queries), room(attention_backward_workspace(s)), dq(q.size()), ds(sk.size(), 1.0f), down(ok.size());
                    const Tensor w = Tensor::of(room.data(), {static_cast<std::int64_t>(room.size())});
                    attention(s, query, {shared, shared.from(kv_width)}, {own, own.from(kv_width)}, out, lse.data(), w);
                    attention_backward(s, query, {shared, shared.from(kv_width)}, {own, own.from(kv_width)}, result, lse.data(), gradient, dq.data(),
                                       {ds.data(), ds.data() + kv_width}, {down.data(), down.data() + kv_width}, w);
                    return std::vector<Floats>{lse, dq, ds, down};
                };
                const Floats wide_q = widened(q), wide_sk = widened(sk), wide_ok = widened(ok);
                Floats wide_y(dy.size());
                Bits y(dy.size());
                run(wide_q.data(), wide_sk.data(), wide_ok.data(), wide_y.data(), wide_y.data(), dy.data());
                const Bits expected = rounded(wide_y);
                const Floats taken = widened(expected);  // the gradient is taken at what is kept
                const auto found = run(q.data(), sk.data(), ok.data(), y.data(), y.data(), dy_bits.data());
                const auto numbers = [](const Floats& f) { return Doubles(f.begin(), f.end()); };
                EXPECT_LT(error_over_rms(widened(y), numbers(taken)), 6 * 0x1p-8) << a.dim << " " << gap << " " << masked;
                const auto from_fp32 = run(wide_q.data(), wide_sk.data(), wide_ok.data(), wide_y.data(), taken.data(), dy.data());
                for (std::size_t i = 0; i < found.size(); ++i)
                    EXPECT_LT(error_over_rms(found[i], numbers(from_fp32[i])), 6 * 2 * 0x1p-8) << i << " of " << a.dim << " " << gap << " " << masked;
            }
    backend().set_product_precision(ProductPrecision::fp32);
}

// Both sides of a product in bf16 alone, each way round: the same rows as what is rounded first, so the same algorithm and bits.
TEST(DeviceOperands, ProductsTakeBothSides) {
    if (current_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    backend().set_product_precision(ProductPrecision::bf16);
    const std::int64_t m = 24, n = 16, k = 40;
    const Floats a = normal(m * k, 1), b = normal(k * n, 2);
    Bits a_bits = rounded(a), b_bits = rounded(b), result(m * n);
    for (const bool ta : {false, true})
        for (const bool tb : {false, true}) {
            const std::int64_t a_rows = ta ? k : m, a_cols = ta ? m : k, b_rows = tb ? n : k, b_cols = tb ? k : n;
            Floats expected(m * n, 1.0f), found(m * n, 1.0f);
            matmul(ta, tb, 0.5f, {const_cast<float*>(a.data()), a_rows, a_cols, a_cols}, {const_cast<float*>(b.data()), b_rows, b_cols, b_cols}, 1.0f,
                   {expected.data(), m, n, n});
            matmul(ta, tb, 0.5f, {nullptr, a_rows, a_cols, a_cols, a_bits.data()}, {nullptr, b_rows, b_cols, b_cols, b_bits.data()}, 1.0f,
                   {found.data(), m, n, n});
            EXPECT_EQ(found, expected) << ta << tb;
            // Rounded by the product itself (the library may take another algorithm): by up to 2^-8 of a number, the largest of which is up to 4
            // times their RMS.
            matmul(ta, tb, 0.5f, {nullptr, a_rows, a_cols, a_cols, a_bits.data()}, {nullptr, b_rows, b_cols, b_cols, b_bits.data()}, 0.0f,
                   {found.data(), m, n, n});
            matmul(ta, tb, 0.5f, {nullptr, a_rows, a_cols, a_cols, a_bits.data()}, {nullptr, b_rows, b_cols, b_cols, b_bits.data()}, 0.0f,
                   {nullptr, m, n, n, result.data()});
            EXPECT_LT(error_over_rms(widened(result), Doubles(found.begin(), found.end())), 4 * 0x1p-8 + tolerance) << ta << tb;
            EXPECT_THROW(matmul(ta, tb, 0.5f, {nullptr, a_rows, a_cols, a_cols, a_bits.data()}, {nullptr, b_rows, b_cols, b_cols, b_bits.data()}, 1.0f,
                                {nullptr, m, n, n, result.data()}),
                         Error);
        }
    backend().set_product_precision(ProductPrecision::fp32);
}

// Few rows and a long sum: parts of it may be made apart, but only the whole is rounded.
TEST(DeviceOperands, ALongSumIsRoundedOnce) {
    if (current_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    backend().set_product_precision(ProductPrecision::bf16);
    const std::int64_t m = 8, n = 64, k = 12288;
    Bits a = rounded(normal(m * k, 1)), b = rounded(normal(n * k, 2)), result(m * n);
    Floats expected(m * n);
    matmul(false, true, 1.0f, {nullptr, m, k, k, a.data()}, {nullptr, n, k, k, b.data()}, 0.0f, {expected.data(), m, n, n});
    matmul(false, true, 1.0f, {nullptr, m, k, k, a.data()}, {nullptr, n, k, k, b.data()}, 0.0f, {nullptr, m, n, n, result.data()});
    // Within half a unit of the last of its 8 digits, and what two orders of fp32 sums of k terms differ by.
    for (std::int64_t i = 0; i < m * n; ++i)
        EXPECT_NEAR(bf16_to_f32(result[i]), expected[i], std::ldexp(1.0f, std::ilogb(expected[i]) - 8) + 8 * 0x1p-24f * static_cast<float>(k));
    backend().set_product_precision(ProductPrecision::fp32);
}

TEST(DeviceCast, NearestEvenNansAndBack) {
    if (current_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    for (const auto& [rows, width, gap] : {std::tuple{1, 1, 0}, {3, 7, 2}, {5, 1032, 8}, {2, 64, 0}, {1, 9003, 5}}) {
        Floats x = normal(rows * (width + gap), 1), back(x.size(), 2.0f), added(x.size(), 2.0f);
        x[0] = NAN;
        if (width > 3) x[1] = INFINITY, x[2] = bf16_to_f32(0x3f80) + 0x1p-8f, x[3] = 3.4e38f;
        if (width > 7) x[4] = 0x1.0p-133f * 1.5f, x[5] = -0x1p-149f, x[6] = -0.0f, x[7] = 0x1.fffp-127f;  // subnormal, and up to the normal
        Bits bits(x.size()), copied(x.size());
        copy_columns(rows, width, x.data(), width + gap, bits.data(), width + gap);
        copy_columns(rows, width, bits.data(), width + gap, copied.data(), width + gap);
        copy_columns(rows, width, bits.data(), width + gap, back.data(), width + gap);
        add_columns(rows, width, bits.data(), width + gap, added.data(), width + gap);
        for (int i = 0; i < rows; ++i)
            for (int j = 0; j < width; ++j) {
                const std::size_t at = static_cast<std::size_t>(i * (width + gap) + j);
                if (at == 0) {  // which NaN is the device's affair (cast.hpp)
                    EXPECT_TRUE(std::isnan(bf16_to_f32(bits[at])) && std::isnan(bf16_to_f32(copied[at])) && std::isnan(back[at]));
                    continue;
                }
                EXPECT_EQ(bits[at], f32_to_bf16(x[at]));
                EXPECT_EQ(copied[at], bits[at]);
                EXPECT_EQ(back[at], bf16_to_f32(bits[at]));
                EXPECT_EQ(added[at], 2.0f + back[at]);
            }
    }
}

TEST(DeviceConvolution, AsOnTheCpu) {
    if (current_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    for (auto [in_c, out_c, h, w, kernel, stride, begin, end] :
         {std::tuple{1, 1, 3, 3, 3, 1, 1, 1}, {5, 7, 6, 4, 3, 1, 1, 1}, {16, 8, 9, 11, 1, 1, 0, 0}, {6, 6, 8, 10, 3, 2, 0, 1}}) {
        const ConvolutionShape s{in_c, out_c, h, w, kernel, stride, begin, end};
        const std::int64_t n_in = h * w * in_c, n_w = out_c * in_c * kernel * kernel, n_out = s.out_height() * s.out_width() * out_c;
        const Floats x = normal(n_in, 1), weights = normal(n_w, 2), bias = normal(out_c, 3), dy = normal(n_out, 4);
        Floats y(n_out), dx(n_in), dw(n_w, 1.0f), db(out_c, 1.0f);
        backend().convolution(s, x.data(), weights.data(), bias.data(), y.data());
        backend().convolution_backward(s, x.data(), weights.data(), dy.data(), dx.data(), dw.data(), db.data());
        const TrainableConvolution by_cpu(s);
        std::vector<float> room(by_cpu.scratch()), ye(n_out), dxe(n_in), dwe(n_w, 1.0f), dbe(out_c, 1.0f);
        by_cpu.forward(x.data(), weights.data(), bias.data(), ye.data(), room.data());
        by_cpu.backward(x.data(), weights.data(), dy.data(), dxe.data(), dwe.data(), dbe.data(), room.data());
        EXPECT_LT(error_over_rms(y, Doubles(ye.begin(), ye.end())), tolerance);
        EXPECT_LT(error_over_rms(dx, Doubles(dxe.begin(), dxe.end())), tolerance);
        EXPECT_LT(error_over_rms(dw, Doubles(dwe.begin(), dwe.end())), tolerance);
        EXPECT_LT(error_over_rms(db, Doubles(dbe.begin(), dbe.end())), tolerance);
    }
}

TEST(DeviceCast, RoundedToStoredTypes) {
    if (current_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    for (const std::int64_t n : {1, 7, 1024, 1031}) {
        Floats x = normal(n, 1), in_place, other(x.size());
        const float odd[] = {0.0f, -0.0f, 1e-7f, -3e-8f, 4e-5f, 6.1e-5f, 65504.0f, 65520.0f, -1e30f, INFINITY, 1.0f + 0x1p-11f, 1.0f + 0x1p-8f};
        std::copy_n(odd, std::min<std::size_t>(std::size(odd), x.size()), x.begin());
        for (const DType dtype : {DType::bf16, DType::f16}) {
            in_place = x;
            backend().round_to(dtype, n, in_place.data(), in_place.data());
            backend().round_to(dtype, n, x.data(), other.data());
            EXPECT_EQ(in_place, other);
            for (std::size_t i = 0; i < x.size(); ++i)
                EXPECT_EQ(other[i], dtype == DType::bf16 ? bf16_to_f32(f32_to_bf16(x[i])) : f16_to_f32(f32_to_f16(x[i]))) << x[i];
        }
        EXPECT_THROW(backend().round_to(DType::i32, n, x.data(), x.data()), Error);
    }
}

TEST(DeviceGuidance, ForwardAndBackwardAsOnTheCpu) {
    if (current_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    for (const auto& [tokens, channels] : {std::pair{1, 1}, {5, 7}, {3, 64}, {2, 300}})
        for (const bool rescale : {false, true}) {
            const auto n = static_cast<std::size_t>(tokens * channels);
            Floats c = normal(tokens * channels, 1), u = normal(tokens * channels, 2), g = normal(tokens * channels, 3);
            std::fill_n(c.begin(), channels, 0.0f), std::fill_n(u.begin(), channels, 0.0f);  // a token whose combination has norm 0
            Floats out(n), dc(n, 0.5f), du(n, 0.25f);
            const flow::Guidance guidance{3.5, rescale};
            std::vector<float> e_out(n), e_dc(n, 0.5f), e_du(n, 0.25f);
            {
                const DeviceScope host(Device::cpu);
                flow::guide<float>(guidance, channels, c, u, e_out);
                flow::guide_backward<float>(guidance, channels, c, u, g, e_dc, e_du);
            }
            flow::guide<float>(guidance, channels, c, u, out);
            flow::guide_backward<float>(guidance, channels, c, u, g, dc, du);
            EXPECT_LT(error_over_rms(dc, Doubles(e_dc.begin(), e_dc.end())), tolerance);
            EXPECT_LT(error_over_rms(du, Doubles(e_du.begin(), e_du.end())), tolerance);
            for (std::size_t i = 0; i < n; ++i) EXPECT_NEAR(out[i], e_out[i], 1e-5 * (1 + std::abs(e_out[i])));
            // The result may lie where an input is.
            Floats over = c;
            flow::guide<float>(guidance, channels, over, u, over);
            EXPECT_EQ(over, out);
        }
}

TEST(DeviceGraph, RepeatedWorkIsRecordedAndFollowsItsInputs) {
    if (current_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    const std::int64_t rows = 5, in = 24, n = 40;
    Floats x = normal(rows * in, 1), y(rows * n), z(rows * n), expected(rows * n);
    const Floats w = normal(n * in, 2);
    const auto work = [&](Floats& product, Floats& result) {
        linear(Tensor::of(x.data(), {rows, in}), Tensor::of(w.data(), {n, in}), {}, Tensor::of(product.data(), {rows, n}));
        silu(product.data(), result.data(), rows * n);
    };
    Repeated repeated;
    for (int i = 0; i < 4; ++i) {
        const Floats other = normal(rows * in, static_cast<unsigned>(10 + i));
        std::copy(other.begin(), other.end(), x.begin());
        repeated.run([&] { work(y, z); });
        device_memory().synchronise();
        Floats product(rows * n);
        work(product, expected);
        device_memory().synchronise();
        EXPECT_EQ(z, expected) << "run " << i;
        if (i == 2) {
            // Scratch memory moves when something larger comes; what was recorded must not go on in the old one.
            Floats wide(512 * 512), sums(512);
            linear_backward_weight(Tensor::of(wide.data(), {512, 512}), Tensor::of(wide.data(), {512, 512}), Tensor::of(wide.data(), {512, 512}),
                                   Tensor::of(sums.data(), {512}));
        }
    }
    bool threw = false;
    Repeated broken;
    for (int i = 0; i < 2; ++i) {
        try {
            broken.run([&] {
                work(y, z);
                if (i == 1) ATELIER_FAIL(ErrorKind::internal, "in the middle of a recording");
            });
        } catch (const Error&) {
            threw = true;
        }
    }
    EXPECT_TRUE(threw);
    repeated.run([&] { work(y, z); });
    device_memory().synchronise();
    EXPECT_EQ(z, expected) << "after a recording that failed";
}

TEST(DeviceHostVectors, PiecesComeAndGoInOrder) {
    if (current_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    for (const auto& [size, piece] : {std::pair{1, 4}, {64, 64}, {1000, 64}, {1000, 999}, {257, 32}}) {
        std::vector<float> a(static_cast<std::size_t>(size)), b(a.size());
        for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i), b[i] = 0.5f * static_cast<float>(i);
        {
            HostVectors vectors({Tensor::of(a.data(), {size}), Tensor::of(b.data(), {size})}, piece);
            for (int round = 0; round < 3; ++round) {
                std::int64_t at = 0;
                vectors.each_piece([&](std::int64_t first, const std::vector<Tensor>& there) {
                    EXPECT_EQ(first, at);
                    at += there[0].elements();
                    add(there[0].f32(), there[1].f32(), there[0].elements());  // b += a
                    add(there[1].f32(), there[0].f32(), there[0].elements());  // a += b
                });
                EXPECT_EQ(at, size);
            }
        }
        for (std::size_t i = 0; i < a.size(); ++i) {
            float ea = static_cast<float>(i), eb = 0.5f * static_cast<float>(i);
            for (int round = 0; round < 3; ++round) eb += ea, ea += eb;
            EXPECT_EQ(a[i], ea) << i << " of " << size;
            EXPECT_EQ(b[i], eb) << i << " of " << size;
        }
    }
}

/// Rows of every kind, in blocks and outside: operands, one whose rows don't begin at multiples of 16 bytes, one that is looked up as well, a vector.
nn::ParameterTable weights_table(int blocks) {
    nn::ParameterTable table;
    table.add({.name = "stem", .shape = {3, 16}, .reader = nn::Reader::products});
    table.add({.name = "embedding", .shape = {5, 8}, .reader = nn::Reader::both});
    for (int b = 0; b < blocks; ++b) {
        table.add({.name = fmt::format("block.{}.matrix", b), .shape = {7, 8 * (b + 1)}, .block = b, .reader = nn::Reader::products});
        table.add({.name = fmt::format("block.{}.narrow", b), .shape = {7, 9 + b}, .block = b, .reader = nn::Reader::products});
        table.add({.name = fmt::format("block.{}.norm", b), .shape = {9}, .block = b});
    }
    table.add({.name = "head", .shape = {2, 3}, .block = blocks, .reader = nn::Reader::products});
    return table;
}

/// A checkpoint of such a table, and its numbers.
class WeightsFile {
  public:
    WeightsFile(const nn::ParameterTable& table, DType dtype, float offset) : numbers_(table.flat_size()), store_(table, numbers_.tensor()) {
        // Not what bf16 can hold, unless it is stored so.
        for (std::int64_t i = 0; i < numbers_.size(); ++i) numbers_.data()[i] = offset + 0.37f * static_cast<float>(i);
        const DeviceScope scope(Device::cpu);  // where these numbers are
        nn::round_to(dtype, numbers_.span());
        std::filesystem::create_directories(directory_);
        nn::save_weights(store_, directory_, "weights", {std::vector<DType>(static_cast<std::size_t>(table.size()), dtype), 1 << 20, {}});
        file_.emplace(io::Safetensors::open(directory_ / "weights.safetensors"));
    }
    ~WeightsFile() { std::filesystem::remove_all(directory_); }
    const io::Safetensors& file() const { return *file_; }
    const nn::ParameterStore& numbers() const { return store_; }

  private:
    std::filesystem::path directory_ = std::filesystem::temp_directory_path() / fmt::format("atelier-weights-{}-{}", getpid(), reinterpret_cast<std::uintptr_t>(this));
    atelier::Numbers numbers_;
    nn::ParameterStore store_;
    std::optional<io::Safetensors> file_;
};

/// A row there against numbers in host memory, or what they round to.
void expect_row(const Tensor& there, const Tensor& expected, bool is_bf16, const std::string& name) {
    SCOPED_TRACE(name);
    ASSERT_EQ(there.dtype(), is_bf16 ? DType::bf16 : DType::f32);
    ASSERT_EQ(there.shape(), expected.shape());
    std::vector<std::byte> bytes(there.bytes());
    device_memory().to_host(bytes.data(), there.raw(), bytes.size());
    for (std::int64_t i = 0; i < expected.elements(); ++i) {
        float value = 0;
        if (is_bf16) {
            std::uint16_t bits = 0;
            std::memcpy(&bits, bytes.data() + 2 * i, 2);
            value = bf16_to_f32(bits);
        } else {
            std::memcpy(&value, bytes.data() + 4 * i, 4);
        }
        ASSERT_EQ(value, is_bf16 ? bf16_to_f32(f32_to_bf16(expected.f32()[i])) : expected.f32()[i]) << i;
    }
}

void expect_rows(const nn::ParameterStore& there, const nn::ParameterStore& expected, bool rounds, int block) {
    const nn::ParameterTable& table = there.table();
    for (int row = 0; row < table.size(); ++row) {
        const nn::ParameterSpec& spec = table.spec(row);
        if (spec.block >= 0 && spec.block != block) continue;
        expect_row(there[row], expected[row], rounds && table.is_operand(row), spec.name);
        if (spec.reader != nn::Reader::products) expect_row(there.numbers(row), expected[row], false, spec.name);
    }
}

TEST(DeviceStreamedWeights, BlocksComeWhenTheyAreAcquired) {
    if (current_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    for (const ProductPrecision precision : {ProductPrecision::fp32, ProductPrecision::bf16})
        for (const int blocks : {1, 2, 5}) {
            const nn::ParameterTable table = weights_table(blocks);
            const nn::Partition partition(table, 1);
            Arena arena("streamed", Workspace::measure([&](Arena& plan) { nn::StreamedWeights(partition, blocks, plan, precision); }));
            nn::StreamedWeights weights(partition, blocks, arena, precision);
            const nn::ParameterStore store(table, weights);
            for (const float offset : {1.0f, 1000.0f}) {
                const WeightsFile stored(table, DType::f32, offset);
                weights.load(stored.file());
                std::vector<int> visits;
                for (int round = 0; round < 2; ++round)
                    for (int b = 0; b < blocks; ++b) visits.push_back(b);
                for (int b = blocks - 1; b >= 0; --b) visits.push_back(b);
                for (const int b : visits) {
                    store.acquire(b);
                    expect_rows(store, stored.numbers(), precision == ProductPrecision::bf16, b);
                    store.release(b);
                }
                EXPECT_THROW(store.at("block.0.norm"), Error) << "a block that isn't acquired";
            }
        }
}

TEST(DeviceFrozenWeights, AsProductsTakeThem) {
    if (current_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    const nn::ParameterTable table = weights_table(2);
    for (const ProductPrecision precision : {ProductPrecision::fp32, ProductPrecision::bf16}) {
        const bool rounds = precision == ProductPrecision::bf16;
        Arena arena("frozen", nn::frozen_bytes(table, Device::cuda, precision));
        nn::FrozenWeights weights(table, arena, Device::cuda, precision);
        const auto check = [&](const nn::ParameterStore& expected) {
            for (const int block : {0, 1, 2}) expect_rows(weights.store(), expected, rounds, block);
        };
        const WeightsFile one(table, DType::f32, 1), two(table, DType::bf16, 100);
        for (const WeightsFile* stored : {&one, &two}) {
            weights.load(stored->file());
            check(stored->numbers());
        }
        const std::vector files{one.file(), two.file()};
        nn::load_mean(table, files, weights);
        const atelier::Numbers mean(table.flat_size());
        nn::load_mean(nn::Partition(table, 1), 0, files, mean.tensor());
        check(nn::ParameterStore(table, mean.tensor()));
        const nn::ParameterStore store = weights.store();
        const auto stem = [&] { return store.numbers(table.find("stem")); };
        if (rounds) {
            EXPECT_THROW(stem(), Error) << "products alone read it";
        } else {
            EXPECT_NO_THROW(stem());
        }
    }
}

using DeviceDoubles = std::vector<double, testing::SharedAllocator<double>>;

TEST(DeviceSampler, StepLogProbabilityAndGradients) {
    if (current_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    const std::vector<float> sigmas{1.0f, 0.8f, 0.5f, 0.0f};
    for (const std::int64_t n : {1, 37, 4096, 9001})
        for (const flow::Sampler sampler : {flow::Sampler::flow_sde, flow::Sampler::cps}) {
            const std::int64_t samples = 3;
            const flow::Transition t = flow::transition(sampler, 0.7, sigmas, 1);
            const Transition f{static_cast<float>(t.on_x), static_cast<float>(t.on_v), static_cast<float>(t.std)};
            const Floats x = normal(samples * n, 1), v = normal(samples * n, 2), noise = normal(samples * n, 3), other = normal(samples * n, 4);
            Floats next(x.size()), mean(x.size()), d(x.size(), 0.5f), d2(x.size(), 0.5f), d3(x.size(), 0.5f);
            DeviceDoubles squares(samples), replayed(samples), guard(samples), differences(samples);
            backend().sampler_step(samples, n, f, x.data(), v.data(), noise.data(), next.data(), squares.data());
            backend().squared_residuals(samples, n, f, x.data(), v.data(), next.data(), replayed.data());
            EXPECT_EQ(squares, replayed);  // replay has the same bits
            backend().sampler_step(samples, n, {f.on_x, f.on_v, 0}, x.data(), v.data(), nullptr, mean.data(), nullptr);
            backend().residual_gradient(samples * n, f, 0.25f, x.data(), v.data(), next.data(), d.data());
            backend().guard_sums(samples, n, f, x.data(), v.data(), next.data(), noise.data(), guard.data());
            backend().squared_differences(samples, n, v.data(), other.data(), differences.data());
            backend().difference_gradient(samples * n, 0.25f, v.data(), other.data(), d2.data());
            backend().difference_gradient(samples * n, 0.25f, noise.data(), nullptr, d3.data());
            const DeviceScope expected_of_the_cpu(Device::cpu);
            for (std::int64_t b = 0; b < samples; ++b) {
                const auto size = static_cast<std::size_t>(n);
                const auto part = [&](const Floats& from) { return std::span<const float>(from.data() + b * n, size); };
                std::vector<float> expected(size);
                flow::step<float>(t, part(x), part(v), part(noise), expected);
                for (std::size_t i = 0; i < size; ++i) {
                    EXPECT_EQ(next[b * n + i], expected[i]);
                    const float m = flow::mean_element(f.on_x, f.on_v, x[b * n + i], v[b * n + i]);
                    EXPECT_EQ(mean[b * n + i], m);
                    EXPECT_EQ(d[b * n + i], std::fma(0.25f, expected[i] - m, 0.5f));
                    EXPECT_EQ(d2[b * n + i], std::fma(0.25f, v[b * n + i] - other[b * n + i], 0.5f));
                    EXPECT_EQ(d3[b * n + i], std::fma(0.25f, noise[b * n + i], 0.5f));
                }
                const double squared = *flow::log_prob<float>(t, flow::LogProb::squared_error, part(x), part(v), part(next));
                EXPECT_NEAR(-squares[b] / double(n), squared, 1e-13 * std::abs(squared));
                const double mse = flow::velocity_mse<float>(part(v), part(other));
                EXPECT_NEAR(differences[b] / double(n), mse, 1e-13 * mse);
                double sum = 0, scale = 1e-30;
                for (std::size_t i = 0; i < size; ++i) {
                    const float e = noise[b * n + i], r = next[b * n + i] - mean[b * n + i];
                    sum += double(e) * double(std::fma(f.std, e, -r));
                    scale += std::abs(double(e) * double(std::fma(f.std, e, -r)));
                }
                EXPECT_NEAR(guard[b], sum, 1e-13 * scale);
            }
        }
}

TEST(DeviceOptimizer, AdamWAndNormAsOnTheCpu) {
    if (current_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    for (const std::int64_t n : {1, 63, 4096, 40003}) {
        const Floats g = normal(n, 1);
        Floats p = normal(n, 2), m = normal(n, 3), v = g;
        for (float& x : v) x = x * x;
        std::vector<float> pe(p.begin(), p.end()), me(m.begin(), m.end()), ve(v.begin(), v.end());
        std::vector<std::uint16_t, testing::SharedAllocator<std::uint16_t>> shadow(g.size());
        const optim::AdamWConfig config;
        const double rate = 1e-2, t = 3;
        backend().adamw(n,
                        {0.5f, float(1 - config.beta1), float(config.beta2), float(1 - config.beta2), float(rate / (1 - std::pow(config.beta1, t))),
                         float(1 / std::sqrt(1 - std::pow(config.beta2, t))), float(config.epsilon), float(1 - rate * config.weight_decay)},
                        g.data(), p.data(), m.data(), v.data(), shadow.data());
        const optim::ParameterRange range{0, n, true};
        atelier::detail::current_device = Device::cpu;
        optim::adamw_step(config, rate, 3, 0.5, std::span(&range, 1), std::vector<float>(g.begin(), g.end()), pe, me, ve);
        const double expected = optim::GradientNorm(n).sum_of_squares(std::vector<float>(g.begin(), g.end()));
        atelier::detail::current_device = Device::cuda;
        for (std::int64_t i = 0; i < n; ++i) {
            EXPECT_NEAR(p[i], pe[i], 1e-6f * std::max(1.0f, std::abs(pe[i])));
            EXPECT_NEAR(m[i], me[i], 1e-6f * std::max(1.0f, std::abs(me[i])));
            EXPECT_NEAR(v[i], ve[i], 1e-6f * std::max(1.0f, std::abs(ve[i])));
            EXPECT_EQ(shadow[i], f32_to_bf16(p[i]));
        }
        DeviceDoubles sum(1);
        backend().sum_of_squares(n, g.data(), sum.data());
        EXPECT_NEAR(sum[0], expected, 1e-13 * expected);
    }
}

}  // namespace
}  // namespace atelier::ops
