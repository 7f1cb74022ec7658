#pragma once

#include <filesystem>
#include <vector>

#include "nn/parameters.hpp"
#include "optim/adamw.hpp"
#include "optim/gradient_norm.hpp"
#include "stage/context.hpp"

namespace atelier::stage {

/// AdamW's memory of one policy and the moving average of its weights, in the flat layout of the
/// parameter table: what makes a policy continue as if it had never stopped. Kept beside the
/// weights as training.h5.
struct TrainingState {
    static constexpr const char* file_name = "training.h5";
    std::int64_t update = 0;  ///< optimizer steps made
    std::vector<float> m, v;  ///< [flat size]
    std::vector<float> ema;   ///< [flat size], or empty without moving average
    /// Reads it from a policy's directory; the base has none: nothing learnt yet. Throws
    /// Error(input).
    static TrainingState load(const std::filesystem::path& policy, std::int64_t size);
    /// Throws Error(io).
    void save(const std::filesystem::path& directory, const Context& context) const;
};

/// Decay or not, range by range, for AdamW.
std::vector<optim::ParameterRange> decay_ranges(const nn::ParameterTable& table);

/// Gradients, their norm and AdamW over one flat weight vector: what GRPO and distillation share.
class Trainer {
  public:
    struct Settings {
        optim::AdamWConfig adamw;
        double max_grad_norm = 1;
        double ema = 0;  ///< decay; 0: no moving average
    };
    /// Continues from the state kept beside `policy`.
    Trainer(const nn::ParameterStore& weights, const std::filesystem::path& policy,
            const Settings& settings, comm::Communicator& world);
    const nn::ParameterStore& gradients() const { return gradients_; }
    void zero_gradients();
    /// Sums the gradients over ranks in rank order, clips, updates. Returns the norm before
    /// clipping. Throws Error(numeric) for a gradient that is not finite.
    double step(double rate);
    /// What it holds, and what `save` takes beside that.
    std::size_t bytes() const;
    std::size_t publishing_bytes() const;
    std::int64_t updates() const { return state_.update; }

    /// Writes weights (fp32), the moving average's (ema/) and the state to a directory, and names
    /// them in the manifest.
    void save(const std::filesystem::path& config_source, const std::filesystem::path& directory,
              const Context& context, io::Manifest& manifest) const;

  private:
    const nn::ParameterStore& weights_;
    Settings settings_;
    comm::Communicator& world_;
    TrainingState state_;
    Arena arena_;
    nn::ParameterStore gradients_;
    std::vector<optim::ParameterRange> ranges_;
    optim::GradientNorm norm_;
};

}  // namespace atelier::stage
