#include "stage/trainer.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "nn/lora_file.hpp"
#include "rl/ema.hpp"

namespace atelier::stage {
namespace {

std::span<float> numbers(const Tensor& t) { return {t.f32(), static_cast<std::size_t>(t.elements())}; }

std::span<float> numbers(const Tensor& t, std::int64_t first, std::int64_t count) {
    return {t.f32() + first, static_cast<std::size_t>(count)};
}

/// Decay or not, run by run, for AdamW over a shard; padding doesn't decay.
std::vector<optim::ParameterRange> decay_ranges(const nn::Partition& partition, const std::vector<nn::Partition::Piece>& pieces) {
    std::vector<optim::ParameterRange> ranges;
    std::int64_t at = 0;
    const auto add = [&](std::int64_t end, bool decay) {
        if (end > at) ranges.push_back({at, end, decay});
        at = end;
    };
    for (const auto& p : pieces) {
        add(p.local, false);
        add(p.local + p.count, partition.table().spec(p.row).decay);
    }
    add(partition.shard_size(), false);
    return ranges;
}

nn::Partition partition_of(const nn::ParameterTable& table, int zero, comm::Communicator& world) {
    return nn::Partition(table, zero == 0 ? 1 : world.size());
}

}  // namespace

Trainer::Trainer(pipeline::Pipeline& model, const std::filesystem::path& policy, const Settings& settings, comm::Communicator& world)
    : model_(model),
      weights_(model.dit_weights()),
      trained_(weights_.lora() != nullptr ? weights_.lora()->values() : weights_),
      settings_(settings),
      world_(world),
      partition_(partition_of(trained_.table(), settings.zero, world)),
      shard_(settings.zero == 0 ? 0 : world.rank()),
      pieces_(partition_.pieces(shard_)),
      state_(TrainingState::load(policy, partition_, shard_)),
      arena_("gradients", 0),
      ranges_(decay_ranges(partition_, pieces_)),
      norm_(partition_.shard_size()) {
    optim::check_config(settings.adamw);
    const int zero = settings.zero;
    ATELIER_CHECK_USAGE(weights_.lora() == nullptr || zero <= 1, "compute.zero = {}: an adapter's gradients are not cut over ranks; 0 or 1", zero);
    ATELIER_CHECK((model.sharded_weights() != nullptr) == (zero == 3), "the model's weights and compute.zero = {} don't fit", zero);
    const auto plan = [&](Arena& arena) {
        const std::int64_t size = trained_.table().flat_size();
        if (weights_.lora() != nullptr) {
            adapter_gradients_ = std::make_unique<nn::LoraStore>(weights_.lora()->table(), arena);
            gradients_ = nn::ParameterStore(weights_.table(), *adapter_gradients_);
            flat_gradient_ = adapter_gradients_->values().flat();
        } else if (zero >= 2) {
            sharded_gradients_ = std::make_unique<nn::ShardedGradients>(partition_, world, arena);
            gradients_ = nn::ParameterStore(weights_.table(), *sharded_gradients_);
        } else {
            gradients_ = nn::ParameterStore(weights_.table(), arena);
            flat_gradient_ = gradients_.flat();
        }
        ATELIER_CHECK(zero >= 2 || flat_gradient_.elements() == size, "gradients of another size");
        own_gradient_ = zero == 0 ? flat_gradient_ : zero == 1 ? arena.take_f32({partition_.shard_size()}) : Tensor();
        if (zero == 1 || zero == 2) {
            own_weights_ = arena.take_f32({partition_.shard_size()});
            bounce_ = arena.take_f32({partition_.largest_segment()});
        }
    };
    arena_ = Arena("gradients", Workspace::measure(plan));
    plan(arena_);
    if (zero >= 2) own_gradient_ = Tensor::of(sharded_gradients_->shard().data(), {partition_.shard_size()});
    if (zero == 1 || zero == 2)
        for (const auto& p : pieces_) std::copy_n(trained_.data() + p.global, p.count, own_weights_.f32() + p.local);
    const std::span<const float> own = own_weights();
    // An adapter is stored as it is.
    if (settings_.storage.is_exact() || weights_.lora() != nullptr)
        state_.master = {};
    else if (state_.master.empty())
        state_.master.assign(own.begin(), own.end());
    if (settings.ema > 0 && state_.ema.empty()) state_.ema.assign(own.begin(), own.end());
}

std::span<float> Trainer::own_weights() {
    switch (settings_.zero) {
        case 0: return numbers(trained_.flat());
        case 3: return model_.sharded_weights()->shard();
        default: return numbers(own_weights_);
    }
}

TrainerBytes trainer_bytes(const nn::ParameterTable& model, const nn::LoraTable* adapter, int zero, int ranks, bool averages,
                           bool has_master) {
    const nn::ParameterTable& trained = adapter != nullptr ? adapter->table() : model;
    const nn::Partition partition(trained, zero == 0 ? 1 : ranks);
    const auto numbers = [](std::int64_t n) { return static_cast<std::size_t>(n) * sizeof(float); };
    TrainerBytes b;
    if (adapter != nullptr) {
        b.gradients = Workspace::measure([&](Arena& arena) { nn::LoraStore(*adapter, arena); });
    } else if (zero <= 1) {
        b.gradients = numbers(trained.flat_size());
    } else {
        const auto self = comm::make_self();
        b.gradients = Workspace::measure([&](Arena& arena) { nn::ShardedGradients(partition, *self, arena); });
    }
    if (zero == 1) b.gradients += numbers(partition.shard_size());
    if (zero == 1 || zero == 2) b.gradients += numbers(partition.shard_size() + partition.largest_segment());
    b.gradients += comm::sum_bytes(ranks, static_cast<std::size_t>(zero == 0 ? trained.flat_size() : partition.largest_segment()));
    const std::int64_t vectors = 2 + (averages ? 1 : 0) + (has_master ? 1 : 0);
    b.optimizer = numbers(vectors * partition.shard_size());
    b.publishing = std::min(TrainingState::piece_bytes, numbers(partition.shard_size()));
    b.snapshot = numbers((vectors + 1) * partition.shard_size()) + b.publishing;
    return b;
}

TrainerBytes Trainer::planned() const {
    return trainer_bytes(weights_.table(), weights_.lora() == nullptr ? nullptr : &weights_.lora()->table(), settings_.zero, world_.size(),
                         !state_.ema.empty(), !state_.master.empty());
}

void Trainer::zero_gradients() {
    if (sharded_gradients_)
        sharded_gradients_->zero();
    else
        std::fill_n(flat_gradient_.f32(), flat_gradient_.elements(), 0.0f);
}

void Trainer::reduce_gradients() {
    if (settings_.zero == 0) return world_.sum(numbers(flat_gradient_));
    if (sharded_gradients_) return sharded_gradients_->reduce();
    for (const auto& s : partition_.segments()) {
        const auto all = numbers(bounce_, 0, s.share * partition_.ranks());
        std::fill(std::copy_n(flat_gradient_.f32() + s.begin, s.end - s.begin, all.begin()), all.end(), 0.0f);
        world_.sum_shares(all, numbers(own_gradient_, s.local, s.share));
    }
}

double Trainer::gradient_norm() {
    // Padding holds zeros.
    double sum = norm_.sum_of_squares(numbers(own_gradient_));
    if (settings_.zero > 0) world_.sum(std::span(&sum, 1));
    ATELIER_CHECK_KIND(ErrorKind::numeric, std::isfinite(sum), "the gradient of update {} is not finite (number {} of this rank's shard)",
                       state_.update + 1, optim::first_non_finite(numbers(own_gradient_)));
    return std::sqrt(sum);
}

void Trainer::spread_weights() {
    if (settings_.zero == 3) return model_.sharded_weights()->refresh();
    if (settings_.zero == 0) return;
    for (const auto& s : partition_.segments()) {
        const auto all = numbers(bounce_, 0, s.share * partition_.ranks());
        world_.gather_shares(numbers(own_weights_, s.local, s.share), all);
        std::copy_n(all.begin(), s.end - s.begin, trained_.data() + s.begin);
    }
}

double Trainer::step(double rate) {
    reduce_gradients();
    const double norm = gradient_norm();
    const bool rounds = !state_.master.empty();
    const std::span<float> own = own_weights(), updated = rounds ? std::span<float>(state_.master) : own;
    ++state_.update;
    optim::adamw_step(settings_.adamw, rate, state_.update, optim::clip_scale(norm, settings_.max_grad_norm), ranges_, numbers(own_gradient_),
                      updated, state_.m, state_.v);
    if (settings_.ema > 0) rl::ema_update(state_.ema, updated, rl::ema_decay(settings_.ema, state_.update - 1, true));
    if (rounds) {
        std::copy(updated.begin(), updated.end(), own.begin());
        for (const auto& p : pieces_)
            nn::round_to(settings_.storage.dtypes[static_cast<std::size_t>(p.row)],
                         own.subspan(static_cast<std::size_t>(p.local), static_cast<std::size_t>(p.count)));
    }
    spread_weights();
    return norm;
}

void Trainer::save(const std::filesystem::path& config_source, const std::filesystem::path& directory, const Context& c,
                   io::Manifest& manifest) const {
    save_weights(trained_, config_source, directory, "", manifest);
    if (settings_.ema > 0) save_average(config_source, directory, manifest);
    if (settings_.zero > 0 || world_.is_root()) state_.save(directory, partition_, shard_, c);
    for (int rank = 0; rank < partition_.ranks(); ++rank) manifest.outputs[TrainingState::name_of_shard(rank, partition_.ranks())] = {};
}

void Trainer::save_average(const std::filesystem::path& config_source, const std::filesystem::path& directory, io::Manifest& manifest) const {
    if (settings_.zero == 0)
        return save_weights(nn::ParameterStore(trained_.table(), state_.ema.data()), config_source, directory, "ema/", manifest);
    const std::span<float> shard(const_cast<float*>(state_.ema.data()), state_.ema.size());
    const auto plan = [&](Arena& arena) { return nn::ShardedWeights(partition_, world_, shard, arena); };
    Arena arena("moving average", Workspace::measure(plan));
    nn::ShardedWeights average = plan(arena);
    average.refresh();
    save_weights(nn::ParameterStore(trained_.table(), average), config_source, directory, "ema/", manifest);
}

void Trainer::save_weights(const nn::ParameterStore& values, const std::filesystem::path& config_source,
                           const std::filesystem::path& directory, const std::string& prefix, io::Manifest& manifest) const {
    if (!world_.is_root()) return nn::attend_saving(values);
    const auto to = directory / prefix;
    io::make_directories(to);
    std::vector<std::string> names;
    if (weights_.lora() != nullptr) {
        const nn::LoraAdapter adapter(weights_.table(), weights_.lora()->table().config());
        for (int row = 0; row < values.table().size(); ++row)
            std::copy_n(values[row].f32(), values[row].elements(), adapter.store().values()[row].f32());
        names = nn::save_lora(adapter.store(), to, nn::LoraLayout::diffusers);
    } else {
        names = dit::save(values, config_source, to, settings_.storage);
    }
    for (const std::string& name : names) manifest.outputs[prefix + name] = {};
}

std::function<void()> Trainer::prepare_state(const std::filesystem::path& directory, const Context& c) {
    if (settings_.zero == 0 && !world_.is_root()) return {};
    const std::span<const float> own = own_weights();
    struct Copy {
        TrainingState state;
        std::vector<float> weights;
    };
    const auto copy = std::make_shared<const Copy>(Copy{state_, {own.begin(), own.end()}});
    return [this, copy, directory, &c] {
        const std::string name = copy->state.save(directory, partition_, shard_, c, copy->weights);
        io::flush_file(directory / name);
    };
}

void Trainer::restore(const std::filesystem::path& directory) {
    state_ = TrainingState::load(directory, partition_, shard_);
    const auto weights = TrainingState::load_weights(directory, partition_, shard_);
    std::copy(weights.begin(), weights.end(), own_weights().begin());
    spread_weights();
}

void publish_together(comm::Communicator& world, const std::filesystem::path& directory,
                      const std::function<void(const std::filesystem::path&)>& write,
                      const std::function<void(const std::filesystem::path&)>& finish) {
    if (!world.is_root()) {
        const auto name = world.gather({}).at(0);
        write(std::string(reinterpret_cast<const char*>(name.data()), name.size()));
        world.barrier();
        return;
    }
    io::publish_directory(directory, [&](const std::filesystem::path& temporary) {
        const std::string name = temporary.string();
        world.gather(std::as_bytes(std::span(name)));
        write(temporary);
        world.barrier();
        finish(temporary);
    });
}

}  // namespace atelier::stage
