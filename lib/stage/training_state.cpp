#include "stage/training_state.hpp"

#include <cmath>

#include "io/hdf5.hpp"
#include "rl/ema.hpp"

namespace atelier::stage {

TrainingState TrainingState::load(const std::filesystem::path& policy, std::int64_t size) {
    TrainingState s;
    s.m.resize(static_cast<std::size_t>(size));
    s.v.resize(static_cast<std::size_t>(size));
    if (!std::filesystem::exists(policy / file_name)) return s;
    const auto file = io::hdf5::File::open(policy / file_name);
    s.update = file.integer_attribute("/", "update");
    s.m = file.read<float>("/m", {size});
    s.v = file.read<float>("/v", {size});
    if (file.exists("/ema")) s.ema = file.read<float>("/ema", {size});
    return s;
}

void TrainingState::save(const std::filesystem::path& directory, const Context& c) const {
    auto file = io::hdf5::File::create(directory / file_name);
    file.set_attribute("/", "schema", std::string("atelier.training"));
    file.set_attribute("/", "update", update);
    file.set_attribute("/", "iteration", c.iteration);
    file.set_attribute("/", "config_hash", c.config.hash());
    const Shape shape{static_cast<std::int64_t>(m.size())};
    file.write("/m", Tensor::of(m.data(), shape));
    file.write("/v", Tensor::of(v.data(), shape));
    if (!ema.empty()) file.write("/ema", Tensor::of(ema.data(), shape));
    file.close();
}

std::vector<optim::ParameterRange> decay_ranges(const nn::ParameterTable& table) {
    std::vector<optim::ParameterRange> ranges;
    for (int i = 0; i < table.size(); ++i) {
        const std::int64_t end = i + 1 < table.size() ? table.offset(i + 1) : table.flat_size();
        ranges.push_back({table.offset(i), end, table.spec(i).decay});
    }
    return ranges;
}

Trainer::Trainer(const nn::ParameterStore& weights, const std::filesystem::path& policy,
                 const Settings& settings, comm::Communicator& world)
    : weights_(weights),
      settings_(settings),
      world_(world),
      state_(TrainingState::load(policy, weights.flat().elements())),
      arena_("gradients", static_cast<std::size_t>(weights.flat().elements()) * sizeof(float) +
                              Arena::alignment),
      gradients_(weights.table(), arena_),
      ranges_(decay_ranges(weights.table())),
      norm_(weights.flat().elements()) {
    optim::check_config(settings.adamw);
    if (settings.ema > 0 && state_.ema.empty())
        state_.ema.assign(weights.data(), weights.data() + weights.flat().elements());
}

std::size_t Trainer::bytes() const {
    return arena_.capacity() + world_.sum_bytes(state_.m.size()) +
           (state_.m.size() + state_.v.size() + state_.ema.size()) * sizeof(float);
}

std::size_t Trainer::publishing_bytes() const {
    // The file is put together in memory; later the moving average stands there as a parameter store.
    return (state_.m.size() + state_.v.size() + state_.ema.size()) * sizeof(float);
}

void Trainer::zero_gradients() {
    std::fill_n(gradients_.data(), gradients_.flat().elements(), 0.0f);
}

double Trainer::step(double rate) {
    const auto size = static_cast<std::size_t>(weights_.flat().elements());
    const std::span<float> gradient(gradients_.data(), size), weights(weights_.data(), size);
    world_.sum(gradient);
    const double norm = std::sqrt(norm_.sum_of_squares(gradient));
    ATELIER_CHECK_KIND(ErrorKind::numeric, std::isfinite(norm),
                       "the gradient of update {} is not finite (number {} of the flat vector)",
                       state_.update + 1, optim::first_non_finite(gradient));
    ++state_.update;
    optim::adamw_step(settings_.adamw, rate, state_.update,
                      optim::clip_scale(norm, settings_.max_grad_norm), ranges_, gradient, weights,
                      state_.m, state_.v);
    if (settings_.ema > 0)
        rl::ema_update(state_.ema, weights, rl::ema_decay(settings_.ema, state_.update - 1, true));
    return norm;
}

void Trainer::save(const std::filesystem::path& config_source,
                   const std::filesystem::path& directory, const Context& c,
                   io::Manifest& manifest) const {
    dit::save(weights_, config_source, directory, DType::f32);
    state_.save(directory, c);
    for (const char* name :
         {"config.json", "diffusion_pytorch_model.safetensors", TrainingState::file_name})
        manifest.outputs[name] = {};
    if (settings_.ema <= 0) return;
    Arena arena("moving average",
                static_cast<std::size_t>(weights_.flat().bytes()) + Arena::alignment);
    const nn::ParameterStore average(weights_.table(), arena);
    std::copy(state_.ema.begin(), state_.ema.end(), average.data());
    std::filesystem::create_directory(directory / "ema");
    dit::save(average, config_source, directory / "ema", DType::f32);
    for (const char* name : {"ema/config.json", "ema/diffusion_pytorch_model.safetensors"})
        manifest.outputs[name] = {};
}

}  // namespace atelier::stage
