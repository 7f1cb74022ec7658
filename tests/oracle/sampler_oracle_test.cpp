#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "flow/sampler.hpp"
#include "io/safetensors.hpp"
#include "oracle_folder.hpp"

namespace atelier::flow {
namespace {

/// Doubles of an F64 tensor (Safetensors::floats rounds to fp32).
std::vector<double> doubles(const io::Safetensors& file, const std::string& name) {
    const io::StoredTensor& stored = file.at(name);
    std::vector<double> values(static_cast<std::size_t>(stored.shape.elements()));
    EXPECT_EQ(stored.dtype, DType::f64) << name;
    std::memcpy(values.data(), stored.data, stored.bytes());
    return values;
}

struct SamplerCase {
    explicit SamplerCase(const std::filesystem::path& folder)
        : inputs(io::Safetensors::open(folder / "inputs.safetensors")),
          outputs(io::Safetensors::open(folder / "outputs.safetensors")),
          sigmas(inputs.floats("sigmas")),
          x(inputs.floats("x")),
          v(inputs.floats("velocity")),
          noise(inputs.floats("noise")),
          eta(doubles(inputs, "eta")),
          steps(static_cast<std::size_t>(inputs.at("x").shape[0])),
          batch(static_cast<std::size_t>(inputs.at("x").shape[1])),
          n(x.size() / steps / batch) {}
    std::span<const float> sample(const std::vector<float>& values, std::size_t step,
                                  std::size_t b) const {
        return std::span<const float>(values).subspan((step * batch + b) * n, n);
    }
    /// Place of the first number of sample b at `step` for eta number e, in tensors [E, N, B, ...].
    std::size_t at(std::size_t e, std::size_t step, std::size_t b) const {
        return (e * steps + step) * batch + b;
    }

    io::Safetensors inputs, outputs;
    std::vector<float> sigmas, x, v, noise;
    std::vector<double> eta;
    std::size_t steps, batch, n;
};

// Tolerances: those that case.json states for float32.
constexpr double state_tolerance = 2e-6, std_tolerance = 1e-6, log_prob_tolerance = 2e-5;

void check_stochastic(const SamplerCase& data, Sampler sampler) {
    const std::string prefix = name_of(sampler);
    const auto mean = doubles(data.outputs, prefix + ".mean"),
               next = doubles(data.outputs, prefix + ".next"),
               std = doubles(data.outputs, prefix + ".std"),
               log_p = doubles(data.outputs, prefix + ".log_prob");
    const auto valid = data.outputs.integers(prefix + ".log_prob_valid");
    std::vector<float> found(data.n);
    for (std::size_t e = 0; e < data.eta.size(); ++e) {
        for (std::size_t i = 0; i < data.steps; ++i) {
            const Transition t = transition(sampler, data.eta[e], data.sigmas, static_cast<int>(i));
            ASSERT_NEAR(t.std, std[e * data.steps + i], std_tolerance);
            for (std::size_t b = 0; b < data.batch; ++b) {
                const auto x = data.sample(data.x, i, b), v = data.sample(data.v, i, b);
                const std::size_t first = data.at(e, i, b) * data.n;
                step_mean<float>(t, x, v, found);
                for (std::size_t j = 0; j < data.n; ++j)
                    ASSERT_NEAR(found[j], mean[first + j], state_tolerance * (1 + std::abs(x[j])));
                const auto got = step_with_log_prob<float>(t, LogProb::mean, x, v,
                                                           data.sample(data.noise, i, b), found);
                for (std::size_t j = 0; j < data.n; ++j)
                    ASSERT_NEAR(found[j], next[first + j], state_tolerance * (1 + std::abs(x[j])));
                ASSERT_EQ(got.has_value(), valid[data.at(e, i, b)] != 0);
                if (got) {
                    ASSERT_NEAR(*got, log_p[data.at(e, i, b)], log_prob_tolerance);
                    const auto sum = log_prob<float>(t, LogProb::sum, x, v, found);
                    ASSERT_NEAR(*sum, *got * static_cast<double>(data.n),
                                1e-9 * std::abs(*sum) + 1e-12);
                }
            }
        }
    }
}

TEST(SamplerOracle, oracle_steps_and_log_probabilities) {
    const auto cases = testing::oracle_cases("parts", "case-sampler-");
    ASSERT_FALSE(cases.empty());
    for (const auto& folder : cases) {
        SCOPED_TRACE(folder.filename().string());
        const SamplerCase data(folder);
        for (const Sampler sampler : {Sampler::flow_sde, Sampler::dance_sde, Sampler::cps}) {
            SCOPED_TRACE(name_of(sampler));
            ASSERT_NO_FATAL_FAILURE(check_stochastic(data, sampler));
        }
        const auto next = doubles(data.outputs, "ode.next");
        std::vector<float> found(data.n);
        for (std::size_t i = 0; i < data.steps; ++i) {
            for (std::size_t b = 0; b < data.batch; ++b) {
                const auto x = data.sample(data.x, i, b);
                step<float>(transition(Sampler::ode, 0.0, data.sigmas, static_cast<int>(i)), x,
                            data.sample(data.v, i, b), {}, found);
                for (std::size_t j = 0; j < data.n; ++j)
                    ASSERT_NEAR(found[j], next[data.at(0, i, b) * data.n + j],
                                state_tolerance * (1 + std::abs(x[j])));
            }
        }
    }
}

/// What a peer's published step function gave, against ours at the oracle's next state.
/// `mean_tolerance`, `log_tolerance`: float32 error of the peer's own arithmetic (README of the
/// data).
void check_peer(const SamplerCase& data, const io::Safetensors& peers, const std::string& peer,
                Sampler sampler, LogProb kind, double mean_tolerance, double log_tolerance,
                bool constants_missing) {
    const auto log_p = peers.floats(peer + ".log_prob");
    const bool has_mean = peers.contains(peer + ".mean");
    const auto mean = has_mean ? peers.floats(peer + ".mean") : std::vector<float>{};
    const auto next64 = doubles(data.outputs, std::string(name_of(sampler)) + ".next");
    const std::vector<float> next(next64.begin(), next64.end());
    std::vector<float> found(data.n);
    for (std::size_t e = 0; e < data.eta.size(); ++e) {
        for (std::size_t i = 0; i < data.steps; ++i) {
            const Transition t = transition(sampler, data.eta[e], data.sigmas, static_cast<int>(i));
            if (!t.has_log_prob()) continue;
            const double constants =
                constants_missing ? std::log(t.std) + 0.5 * std::log(2.0 * M_PI) : 0.0;
            for (std::size_t b = 0; b < data.batch; ++b) {
                const auto x = data.sample(data.x, i, b), v = data.sample(data.v, i, b);
                const std::size_t first = data.at(e, i, b) * data.n;
                const auto got =
                    log_prob<float>(t, kind, x, v, std::span(next).subspan(first, data.n));
                ASSERT_NEAR(*got + constants, log_p[data.at(e, i, b)],
                            log_tolerance * (1 + std::abs(*got)))
                    << "eta " << data.eta[e] << " step " << i;
                if (!has_mean) continue;
                step_mean<float>(t, x, v, found);
                for (std::size_t j = 0; j < data.n; ++j)
                    ASSERT_NEAR(found[j], mean[first + j], mean_tolerance * (1 + std::abs(x[j])));
            }
        }
    }
}

TEST(SamplerOracle, oracle_peers_published_code) {
    for (const auto& folder : testing::oracle_cases("parts", "case-sampler-")) {
        SCOPED_TRACE(folder.filename().string());
        if (!std::filesystem::exists(folder / "peers.safetensors"))
            continue;  // only the open set has it
        const SamplerCase data(folder);
        const auto peers = io::Safetensors::open(folder / "peers.safetensors");
        const auto check = [&](const char* peer, Sampler sampler, LogProb kind, double mean,
                               bool constants_missing) {
            SCOPED_TRACE(peer);
            if (!peers.contains(std::string(peer) + ".log_prob")) return;
            check_peer(data, peers, peer, sampler, kind, mean, log_prob_tolerance,
                       constants_missing);
        };
        check("flow_grpo", Sampler::flow_sde, LogProb::mean, state_tolerance, false);
        check("flow_cps", Sampler::cps, LogProb::squared_error, state_tolerance, false);
        // It divides by sigma^2, which costs digits at small sigma.
        check("dance_flux", Sampler::dance_sde, LogProb::mean, 1e-5, false);
        check("dance_qwenimage", Sampler::dance_sde, LogProb::mean, 1e-5, false);
        // Its two constant terms were lost (fixed upstream later).
        check("dance_flux_before_fix", Sampler::dance_sde, LogProb::mean, 1e-5, true);

        // Flow-GRPO's std_dev_t is g; the standard deviation is g sqrt(-Delta).
        if (!peers.contains("flow_grpo.std_dev_t")) continue;
        const auto g = peers.floats("flow_grpo.std_dev_t");
        for (std::size_t e = 0; e < data.eta.size(); ++e)
            for (std::size_t i = 0; i < data.steps; ++i) {
                const Transition t =
                    transition(Sampler::flow_sde, data.eta[e], data.sigmas, static_cast<int>(i));
                EXPECT_NEAR(t.std, g[e * data.steps + i] * std::sqrt(-t.delta), std_tolerance);
            }
    }
}

}  // namespace
}  // namespace atelier::flow
