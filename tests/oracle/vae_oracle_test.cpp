// The autoencoder against values that diffusers computed in float64: decoding, encoding, every stage.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "core/parallel.hpp"
#include "io/safetensors.hpp"
#include "model/vae/training.hpp"
#include "model/vae/vae.hpp"
#include "../ops/test_device.hpp"
#include "oracle_folder.hpp"

namespace atelier::vae {
namespace {

namespace fs = std::filesystem;

struct Model {
    explicit Model(Device device = testing::test_device())
        : vae(load_config(directory() / "config.json"), device),
          weights(workspace.build([&](Arena& arena) { return nn::ParameterStore(vae.table(), arena, device); })), codec(vae, weights) {
        load(weights, directory());
    }
    static fs::path directory() { return testing::oracle_folder() / "parts" / "model-vae"; }
    Vae vae;
    Workspace workspace{"vae"};
    nn::ParameterStore weights;
    Codec codec;
};

struct Case {
    explicit Case(const std::string& name)
        : folder(testing::oracle_folder() / "parts" / name), info(nlohmann::json::parse(std::ifstream(folder / "case.json"))),
          in(io::Safetensors::open(folder / "inputs.safetensors")), out(io::Safetensors::open(folder / "outputs.safetensors")) {}
    double tolerance(const std::string& name) const { return info["tolerance"][name]["atol"].get<double>(); }
    fs::path folder;
    nlohmann::json info;
    io::Safetensors in, out;
};

/// Entry b of [B, C, 1, H, W] as [H, W, C].
std::vector<float> channels_last(const std::vector<float>& v, std::int64_t b, std::int64_t c, std::int64_t pixels) {
    std::vector<float> r(c * pixels);
    for (std::int64_t k = 0; k < c; ++k)
        for (std::int64_t p = 0; p < pixels; ++p) r[p * c + k] = v[(b * c + k) * pixels + p];
    return r;
}

double worst(const float* a, const std::vector<float>& b) {
    double w = 0;
    for (std::size_t i = 0; i < b.size(); ++i) w = std::max(w, std::abs(double(a[i]) - b[i]));
    return w;
}

void check_decode(const std::string& name) {
    SCOPED_TRACE(name);
    Model model;
    const Case c(name);
    const Shape shape = c.in.at("latents").shape;
    const std::int64_t batch = shape[0], z = shape[1], h = shape[3], w = shape[4], f = model.vae.config().factor();
    const std::int64_t pixels = h * w * f * f, channels = model.vae.config().channels;
    auto packed = c.in.floats("packed_latents");
    const auto image = c.out.floats("image"), unclamped = c.out.floats("unclamped"), raw = c.out.floats("vae_input");
    const auto bytes = c.out.integers("image_u8");
    std::vector<float> first;
    for (int n : {1, 2}) {
        set_threads(n);
        std::vector<float> pictures(batch * pixels * channels);
        model.codec.decode(Tensor::of(packed.data(), {batch, h * w, z}), h, w,
                           Tensor::of(pictures.data(), {batch, h * f, w * f, channels}));
        for (std::int64_t b = 0; b < batch; ++b)
            EXPECT_LE(worst(pictures.data() + b * pixels * channels, channels_last(image, b, channels, pixels)), c.tolerance("image"));
        std::vector<std::uint8_t> u8(pictures.size());
        to_bytes(pictures.data(), static_cast<std::int64_t>(pictures.size()), u8.data());
        for (std::size_t i = 0; i < u8.size(); ++i) ASSERT_LE(std::abs(u8[i] - bytes[i]), 1) << i;
        if (n == 1) first = pictures;
        EXPECT_EQ(pictures, first) << "on " << n << " threads";
    }
    set_threads(1);
    std::uint8_t byte = 0;
    for (const float broken : {NAN, INFINITY}) EXPECT_THROW(to_bytes(&broken, 1, &byte), Error);
    for (std::int64_t b = 0; b < batch; ++b) {
        std::vector<float> picture(pixels * channels);
        model.codec.decode_raw(channels_last(raw, b, z, h * w).data(), h, w, picture.data());
        EXPECT_LE(worst(picture.data(), channels_last(unclamped, b, channels, pixels)), c.tolerance("unclamped"));
    }
}

TEST(vae_oracle, DecodeSquare) { check_decode("case-vae-decode-square"); }
TEST(vae_oracle, DecodeBatch) { check_decode("case-vae-decode-batch"); }

// The memory that a plan of a size names is what a codec takes, and the same picture has the same bits after another size.
TEST(vae_oracle, PlannedBytesAndTheSameBitsTwice) {
    Model model;
    std::vector<float> latents(12 * model.vae.config().z), first(48 * 64 * model.vae.config().channels), again(first.size()), other(first.size());
    for (std::size_t i = 0; i < latents.size(); ++i) latents[i] = std::sin(static_cast<float>(i));
    model.codec.decode_raw(latents.data(), 3, 4, first.data());
    const std::vector<PictureUse> uses{{48, 64, 1}, {64, 48, 1}};
    EXPECT_EQ(model.codec.bytes(), planned_bytes(model.vae, std::span(uses).first(1)));
    model.codec.decode_raw(latents.data(), 4, 3, other.data());
    EXPECT_EQ(model.codec.bytes(), planned_bytes(model.vae, uses));
    model.codec.decode_raw(latents.data(), 3, 4, again.data());
    EXPECT_EQ(again, first);
    // Pictures of a batch run side by side, each with memory of its own, as many as there are threads.
    set_threads(2);
    for (const std::int64_t batch : {1, 2, 5}) {
        Codec codec(model.vae, model.weights);
        std::vector<float> all, pictures(static_cast<std::size_t>(batch) * first.size());
        for (std::int64_t b = 0; b < batch; ++b)
            for (const float v : latents) all.push_back(v + static_cast<float>(b));
        const auto decode = [&](Codec& with, std::int64_t from, std::int64_t count, float* out) {
            with.decode(Tensor::of(all.data() + from * static_cast<std::int64_t>(latents.size()), {count, 12, model.vae.config().z}), 3, 4,
                        Tensor::of(out, {count, 48, 64, model.vae.config().channels}));
        };
        decode(codec, 0, batch, pictures.data());
        EXPECT_EQ(codec.bytes(), planned_bytes(model.vae, std::array{PictureUse{48, 64, batch}}));
        for (std::int64_t b = 0; b < batch; ++b) {
            decode(model.codec, b, 1, again.data());
            EXPECT_TRUE(std::equal(again.begin(), again.end(), pictures.begin() + b * static_cast<std::int64_t>(again.size()))) << b << " of " << batch;
        }
    }
    set_threads(1);
}

TEST(vae_oracle, EncodeBatch) {
    Model model;
    const Case c("case-vae-encode-batch");
    const Shape shape = c.in.at("image").shape;
    const std::int64_t z = model.vae.config().z, f = model.vae.config().factor(), h = shape[3], w = shape[4];
    const std::int64_t tokens = h * w / (f * f);
    const auto image = c.in.floats("image");
    const auto mean = c.out.floats("mean"), logvar = c.out.floats("logvar"), latents = c.out.floats("latents");
    for (std::int64_t b = 0; b < shape[0]; ++b) {
        std::vector<float> found(tokens * z), posterior(tokens * 2 * z);
        model.codec.encode(image.data() + b * shape[1] * h * w, h, w, found.data());
        EXPECT_LE(worst(found.data(), channels_last(latents, b, z, tokens)), c.tolerance("latents"));
        model.codec.encode_raw(channels_last(image, b, shape[1], h * w).data(), h, w, posterior.data());
        std::vector<float> means, variances;
        for (std::int64_t t = 0; t < tokens; ++t) {
            means.insert(means.end(), &posterior[t * 2 * z], &posterior[t * 2 * z] + z);
            variances.insert(variances.end(), &posterior[t * 2 * z] + z, &posterior[t * 2 * z] + 2 * z);
        }
        EXPECT_LE(worst(means.data(), channels_last(mean, b, z, tokens)), c.tolerance("mean"));
        EXPECT_LE(worst(variances.data(), channels_last(logvar, b, z, tokens)), c.tolerance("logvar"));
    }
}

TEST(vae_oracle, EveryStage) {
    Model model;
    const Case c("case-vae-taps");
    const Shape shape = c.in.at("image").shape;
    const std::int64_t h = shape[3], w = shape[4], z = model.vae.config().z, f = model.vae.config().factor();
    const auto image = c.in.floats("image");
    std::set<std::string> seen;
    const Observer compare = [&](const std::string& name, const float* value, std::int64_t height, std::int64_t width, std::int64_t channels) {
        ASSERT_TRUE(c.out.contains(name)) << name;
        EXPECT_LE(worst(value, channels_last(c.out.floats(name), 0, channels, height * width)), c.tolerance(name)) << name;
        seen.insert(name);
    };
    std::vector<float> posterior(h * w / (f * f) * 2 * z), picture(h * w * shape[1]);
    model.codec.encode_raw(channels_last(image, 0, shape[1], h * w).data(), h, w, posterior.data(), compare);
    const auto mode = channels_last(c.out.floats("mode"), 0, z, h * w / (f * f));
    model.codec.decode_raw(mode.data(), h / f, w / f, picture.data(), compare);
    EXPECT_EQ(seen.size(), 2 * (2 + model.vae.config().multipliers.size()));
}

/// Tensors whose gradient of the case's loss is off. `broken` changes the gradients before they are compared.
std::size_t wrong_gradients(const std::function<void(const nn::ParameterStore&)>& broken = {}) {
    const Case c("case-vae-gradients");
    Model model(Device::cpu);
    Workspace workspace("gradients");
    const nn::ParameterStore gradients = workspace.build([&](Arena& arena) { return nn::ParameterStore(model.vae.table(), arena); });
    const Shape shape = c.in.at("image").shape;
    const std::int64_t batch = shape[0], channels = shape[1], h = shape[shape.rank() - 2], w = shape[shape.rank() - 1];
    const std::int64_t z = model.vae.config().z, f = model.vae.config().factor(), tokens = h * w / (f * f), pixels = h * w;
    const auto image = c.in.floats("image"), noise = c.in.floats("noise"), reconstruction = c.out.floats("reconstruction");
    TrainingPass pass(model.vae, h, w);
    const double elements = static_cast<double>(batch * pixels * channels), latents_in_all = static_cast<double>(batch * tokens * z);
    constexpr double kl_weight = 0.01;
    double l2 = 0, kl = 0;
    for (std::int64_t b = 0; b < batch; ++b) {
        auto picture = channels_last(image, b, channels, pixels);
        const auto drawn = channels_last(noise, b, z, tokens);
        const Tensor posterior = pass.encode(model.weights, Tensor::of(picture.data(), {pixels, channels}));
        std::vector<float> latents(tokens * z), d_latents(tokens * z), d_posterior(2 * tokens * z);
        for (std::int64_t i = 0; i < tokens * z; ++i) {
            const double mean = posterior.f32()[i / z * 2 * z + i % z], logvar = posterior.f32()[i / z * 2 * z + z + i % z];
            latents[i] = static_cast<float>(mean + std::exp(logvar / 2) * drawn[i]);
            kl += (mean * mean + std::exp(logvar) - 1 - logvar) / 2 / latents_in_all;
        }
        const Tensor found = pass.decode(model.weights, Tensor::of(latents.data(), {tokens, z}));
        EXPECT_LE(worst(found.f32(), channels_last(reconstruction, b, channels, pixels)), c.tolerance("reconstruction"));
        std::vector<float> d_picture(picture.size());
        for (std::size_t i = 0; i < picture.size(); ++i) {
            const double off = double(found.f32()[i]) - picture[i];
            l2 += off * off / elements;
            d_picture[i] = static_cast<float>(2 * off / elements);
        }
        pass.decode_backward(model.weights, gradients, Tensor::of(d_picture.data(), {pixels, channels}), Tensor::of(d_latents.data(), {tokens, z}));
        for (std::int64_t i = 0; i < tokens * z; ++i) {
            const std::int64_t at = i / z * 2 * z + i % z;
            const double mean = posterior.f32()[at], logvar = posterior.f32()[at + z];
            d_posterior[at] = static_cast<float>(d_latents[i] + kl_weight * mean / latents_in_all);
            d_posterior[at + z] = static_cast<float>(d_latents[i] * drawn[i] * std::exp(logvar / 2) / 2 + kl_weight * (std::exp(logvar) - 1) / 2 / latents_in_all);
        }
        pass.encode_backward(model.weights, gradients, Tensor::of(d_posterior.data(), {tokens, 2 * z}));
    }
    EXPECT_NEAR(l2, c.out.floats("l2")[0], c.tolerance("l2"));
    EXPECT_NEAR(kl, c.out.floats("kl")[0], c.tolerance("kl"));
    EXPECT_NEAR(l2 + kl_weight * kl, c.out.floats("loss")[0], c.tolerance("loss"));
    if (broken) broken(gradients);
    const auto expected = io::Safetensors::open(c.folder / "gradients.safetensors");
    const double bound = c.info["gradient_tolerance"]["rtol"].get<double>();
    std::size_t wrong = 0, compared = 0;
    for (int i = 0; i < model.vae.table().size(); ++i) {
        const std::string& name = model.vae.table().spec(i).name;
        const Tensor g = gradients[i];
        if (!expected.contains(name)) {
            EXPECT_EQ(std::count(g.f32(), g.f32() + g.elements(), 0.0f), g.elements()) << name << " has a gradient";
            continue;
        }
        const auto value = expected.floats(name);
        double largest = 0;
        for (float v : value) largest = std::max(largest, std::abs(double(v)));
        ++compared;
        if (worst(g.f32(), value) <= bound * largest) continue;
        ++wrong;
        if (!broken) ADD_FAILURE() << name << ": off by " << worst(g.f32(), value) / largest << " of its largest entry, allowed " << bound;
    }
    EXPECT_EQ(compared, expected.tensors().size());
    return wrong;
}

TEST(vae_oracle, Gradients) { EXPECT_EQ(wrong_gradients(), 0u); }

TEST(vae_oracle, SeesAChangedGradient) {
    const auto change = [](const nn::ParameterStore& g) {
        float* v = g.at("encoder.down_blocks.1.resnets.0.norm2.gamma").f32();
        *std::max_element(v, v + 8) *= 1.01f;
    };
    EXPECT_EQ(wrong_gradients(change), 1u);
}

// A check that cannot fail checks nothing.
TEST(vae_oracle, SeesAChangedWeight) {
    const Case c("case-vae-encode-batch");
    const Shape shape = c.in.at("image").shape;
    const auto image = c.in.floats("image");
    const auto expected = c.out.floats("latents");
    for (int broken : {0, 1}) {
        Model model;
        if (broken == 1) {
            const Tensor gamma = model.weights.at("encoder.down_blocks.1.resnets.0.norm2.gamma").slice(0, 1);
            float value = 0;
            transfer(gamma, Tensor::of(&value, gamma.shape()));
            value *= 1.01f;
            transfer(Tensor::of(&value, gamma.shape()), gamma);
        }
        const std::int64_t tokens = shape[3] * shape[4] / (model.vae.config().factor() * model.vae.config().factor());
        std::vector<float> found(tokens * model.vae.config().z);
        model.codec.encode(image.data(), shape[3], shape[4], found.data());
        EXPECT_EQ(worst(found.data(), channels_last(expected, 0, model.vae.config().z, tokens)) > c.tolerance("latents"), broken == 1);
    }
}

}  // namespace
}  // namespace atelier::vae
