#include "stage/trainer.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "comm/device_communicator.hpp"
#include "core/numbers.hpp"
#include "nn/lora_file.hpp"
#include "ops/backend.hpp"
#include "rl/ema.hpp"
#include "stage/shard_writer.hpp"

namespace atelier::stage {
namespace {

// Numbers of a state in host memory that are on the device at a time, of each vector: 64 MiB.
constexpr std::int64_t piece_of_host_state = 1 << 24;

nn::Partition partition_of(const nn::ParameterTable& table, int zero, comm::Communicator& world) {
    return nn::Partition(table, zero == 0 ? 1 : world.size());
}

}  // namespace

TrainingRanks::TrainingRanks(const Context& c) : world_(*c.world), is_sharded_(c.config.integer("compute.zero") == 3) {
    if (c.device() == Device::cuda) on_device_ = comm::make_on_device(*c.world, ops::load_backend().compute_stream());
}

Trainer::Trainer(const TrainedModel& model, const std::filesystem::path& policy, const Settings& settings, comm::Communicator& ranks)
    : weights_(model.weights),
      sharded_weights_(model.sharded),
      trained_(weights_.lora() != nullptr ? weights_.lora()->values() : weights_),
      settings_(settings),
      world_(ranks),
      partition_(partition_of(trained_.table(), settings.zero, ranks)),
      shard_(settings.zero == 0 ? 0 : ranks.rank()),
      pieces_(partition_.pieces(shard_)),
      frozen_(model.frozen),
      state_(TrainingState::load(policy, partition_, shard_, settings.state_on_host ? Device::cpu : device())),
      arena_("gradients", 0),
      norm_(partition_.shard_size()) {
    optim::check_config(settings.adamw);
    const int zero = settings.zero;
    ATELIER_CHECK_USAGE(weights_.lora() == nullptr || zero <= 1, "compute.zero = {}: an adapter's gradients are not cut over ranks; 0 or 1", zero);
    ATELIER_CHECK((sharded_weights_ != nullptr) == (zero == 3), "the model's weights and compute.zero = {} don't fit", zero);
    arena_ = Arena::of("gradients", [&](Arena& arena) {
        const std::int64_t size = trained_.table().flat_size();
        if (weights_.lora() != nullptr) {
            adapter_gradients_ = std::make_unique<nn::LoraStore>(weights_.lora()->table(), arena, device());
            gradients_ = nn::ParameterStore(weights_.table(), *adapter_gradients_);
            flat_gradient_ = adapter_gradients_->values().flat();
        } else if (zero >= 2) {
            sharded_gradients_ = std::make_unique<nn::ShardedGradients>(partition_, ranks, arena, device());
            gradients_ = nn::ParameterStore(weights_.table(), *sharded_gradients_);
        } else {
            gradients_ = nn::ParameterStore(weights_.table(), arena, device());
            flat_gradient_ = gradients_.flat();
        }
        ATELIER_CHECK(zero >= 2 || flat_gradient_.elements() == size, "gradients of another size");
        own_gradient_ = zero == 0 ? flat_gradient_ : zero == 1 ? arena.take_f32({partition_.shard_size()}, device()) : Tensor();
        if (zero == 1 || zero == 2) {
            own_weights_ = arena.take_f32({partition_.shard_size()}, device());
            bounce_ = arena.take_f32({partition_.largest_segment()}, device());
        }
    });
    if (zero >= 2) own_gradient_ = sharded_gradients_->shard();
    if (zero == 1 || zero == 2)
        for (const auto& p : pieces_)
            transfer(trained_.flat().slice(p.global, p.global + p.count), own_weights_.slice(p.local, p.local + p.count));
    const Tensor own = own_weights();
    // An adapter is stored as it is.
    if (settings_.storage.is_exact() || weights_.lora() != nullptr)
        state_.master = {};
    else if (state_.master.empty())
        state_.master = Numbers(own, state_.device());
    if (settings.ema > 0 && state_.ema.empty()) state_.ema = Numbers(own, state_.device());
    if (state_.device() != device()) {
        std::vector<Tensor> vectors;
        for (const Numbers* n : {&state_.m, &state_.v, &state_.ema, &state_.master})
            if (!n->empty()) vectors.push_back(n->tensor());
        host_state_ = std::make_unique<HostVectors>(std::move(vectors), piece_of_host_state);
    }
    ranges_ = decay_ranges(host_state_ ? host_state_->piece() : partition_.shard_size());
}

/// Decay or not, run by run, for AdamW over the shard, in pieces of so many numbers; padding and what is frozen don't decay.
std::vector<std::vector<optim::ParameterRange>> Trainer::decay_ranges(std::int64_t piece) const {
    std::vector<std::vector<optim::ParameterRange>> pieces(1);
    std::int64_t at = 0, begin = 0;  // of the shard, of the piece
    const auto add = [&](std::int64_t end, bool decay) {
        while (end > at) {
            if (at == begin + piece) begin = at, pieces.emplace_back();
            const std::int64_t stop = std::min(end, begin + piece);
            pieces.back().push_back({at - begin, stop - begin, decay});
            at = stop;
        }
    };
    for (const auto& p : pieces_) {
        add(p.local, false);
        add(p.local + p.count, partition_.table().spec(p.row).decay && !is_frozen(p));
    }
    add(partition_.shard_size(), false);
    return pieces;
}

Tensor Trainer::own_weights() const {
    switch (settings_.zero) {
        case 0: return trained_.flat();
        case 3: return sharded_weights_->shard();
        default: return own_weights_;
    }
}

TrainerBytes trainer_bytes(const nn::ParameterTable& model, const nn::LoraTable* adapter, int zero, int ranks, bool averages,
                           bool has_master, Device device, ops::ProductPrecision precision, bool state_on_host) {
    const nn::ParameterTable& trained = adapter != nullptr ? adapter->table() : model;
    const nn::Partition partition(trained, zero == 0 ? 1 : ranks);
    const std::int64_t shard = partition.shard_size();
    const auto on = [](Device where, std::int64_t n) {
        const std::size_t bytes = static_cast<std::size_t>(n) * sizeof(float);
        return where == Device::cpu ? Bytes(bytes) : Bytes(0, bytes);
    };
    TrainerBytes b;
    if (adapter != nullptr) {
        b.gradients = Workspace::measure([&](Arena& arena) { nn::LoraStore(*adapter, arena, device); });
    } else if (zero <= 1) {
        b.gradients = on(device, trained.flat_size());
    } else {
        const auto self = comm::make_self();
        b.gradients = Workspace::measure([&](Arena& arena) { nn::ShardedGradients(partition, *self, arena, device); });
    }
    if (zero == 1) b.gradients += on(device, shard);
    if (zero == 1 || zero == 2) b.gradients += on(device, shard + partition.largest_segment());
    // On a device the communicator between devices has room of its own.
    if (device == Device::cpu)
        b.gradients += comm::sum_bytes(ranks, static_cast<std::size_t>(zero == 0 ? trained.flat_size() : partition.largest_segment()));
    else if (ranks > 1)
        b.collectives = comm::device_sum_bytes + comm::device_channel_bytes;
    const std::int64_t vectors = 2 + (averages ? 1 : 0) + (has_master ? 1 : 0);
    const bool streams = device != Device::cpu && state_on_host;
    b.optimizer = on(streams ? Device::cpu : device, vectors * shard);
    if (streams) b.optimizer += Bytes(0, HostVectors::device_bytes(static_cast<std::size_t>(vectors), shard, piece_of_host_state));
    b.publishing = std::min(TrainingState::piece_bytes, on(Device::cpu, shard).host);
    b.snapshot = on(Device::cpu, (vectors + 1) * shard) + b.publishing;
    if (zero > 0 && (averages || (zero == 3 && nn::keeps_bf16(device, precision))))
        b.window = nn::window_bytes(partition, device, ops::ProductPrecision::fp32);
    if (zero > 0 && averages && streams) b.window += Bytes(0, Numbers::bytes(shard));
    return b;
}

TrainerBytes Trainer::planned() const {
    return trainer_bytes(weights_.table(), weights_.lora() == nullptr ? nullptr : &weights_.lora()->table(), settings_.zero, world_.size(),
                         !state_.ema.empty(), !state_.master.empty(), device(),
                         sharded_weights_ != nullptr && sharded_weights_->rounds() ? ops::ProductPrecision::bf16 : ops::ProductPrecision::fp32,
                         host_state_ != nullptr);
}

void Trainer::zero_gradients() {
    if (sharded_gradients_)
        sharded_gradients_->zero();
    else
        clear(flat_gradient_);
}

void Trainer::reduce_gradients() {
    if (settings_.zero == 0) return world_.sum(numbers(flat_gradient_));
    if (sharded_gradients_) return sharded_gradients_->reduce();
    for (const auto& s : partition_.segments()) {
        const std::int64_t count = s.end - s.begin, all = s.share * partition_.ranks();
        transfer(flat_gradient_.slice(s.begin, s.end), bounce_.slice(0, count));
        clear(bounce_.slice(count, all));
        world_.sum_shares(numbers(bounce_, 0, all), numbers(own_gradient_, s.local, s.share));
    }
}

double Trainer::gradient_norm() {
    // Padding holds zeros.
    double sum = norm_.sum_of_squares(numbers(own_gradient_));
    if (settings_.zero > 0) world_.sum(std::span(&sum, 1));
    if (!std::isfinite(sum)) {
        const Numbers host(own_gradient_, Device::cpu);
        const std::int64_t at = optim::first_non_finite(host.span());
        std::string place = "in another rank's shard";
        for (const auto& p : pieces_)
            if (at >= p.local && at < p.local + p.count) place = fmt::format("element {} of {}", p.first + at - p.local, partition_.table().spec(p.row).name);
        ATELIER_FAIL(ErrorKind::numeric, "the gradient of update {} is not finite ({})", state_.update + 1, place);
    }
    return std::sqrt(sum);
}

void Trainer::spread_weights() {
    if (settings_.zero == 3) return sharded_weights_->refresh();
    if (settings_.zero > 0)
        for (const auto& s : partition_.segments()) {
            world_.gather_shares(std::as_bytes(numbers(own_weights_, s.local, s.share)),
                                 std::as_writable_bytes(numbers(bounce_, 0, s.share * partition_.ranks())));
            transfer(bounce_.slice(0, s.end - s.begin), trained_.flat().slice(s.begin, s.end));
        }
}

void Trainer::refresh_copy() {
    if (device() == Device::cuda && trained_.residence() == nullptr) ops::backend().refresh_bf16_copy(trained_.data());
}

void Trainer::update_piece(std::int64_t first, const std::vector<optim::ParameterRange>& ranges, double rate, double scale, const Tensor& m,
                           const Tensor& v, const Tensor& ema, const Tensor& master) {
    const std::int64_t count = m.elements();
    const Tensor own = own_weights().slice(first, first + count), &updated = master.empty() ? own : master;
    optim::adamw_step(settings_.adamw, rate, state_.update, scale, ranges, numbers(own_gradient_, first, count), numbers(updated), numbers(m),
                      numbers(v));
    if (!ema.empty()) rl::ema_update(numbers(ema), numbers(updated), rl::ema_decay(settings_.ema, state_.update - 1, true));
    if (!master.empty()) transfer(master, own);
}

void Trainer::round_weights() {
    for (const auto& p : pieces_)
        nn::round_to(settings_.storage.dtypes[static_cast<std::size_t>(p.row)], numbers(own_weights(), p.local, p.count));
}

double Trainer::step(double rate) {
    const DeviceScope scope(device());
    reduce_gradients();
    for (const auto& p : pieces_)
        if (is_frozen(p)) clear(own_gradient_.slice(p.local, p.local + p.count));
    const double norm = gradient_norm(), clip = optim::clip_scale(norm, settings_.max_grad_norm);
    ++state_.update;
    if (host_state_) {
        std::size_t piece = 0;
        const bool averages = !state_.ema.empty(), rounds = !state_.master.empty();
        host_state_->each_piece([&](std::int64_t first, const std::vector<Tensor>& there) {
            update_piece(first, ranges_[piece++], rate, clip, there[0], there[1], averages ? there[2] : Tensor(), rounds ? there.back() : Tensor());
        });
    } else {
        update_piece(0, ranges_[0], rate, clip, state_.m.tensor(), state_.v.tensor(), state_.ema.tensor(), state_.master.tensor());
    }
    if (!state_.master.empty()) round_weights();
    spread_weights();
    if (own_weights_.empty() && state_.master.empty()) return norm;
    refresh_copy();
    return norm;
}

void Trainer::save(const std::filesystem::path& config_source, const std::filesystem::path& directory, const Context& c,
                   io::Manifest& manifest) const {
    const auto save_all = [&](const nn::ParameterStore& values) { save_weights(values, config_source, directory, "", manifest); };
    if (sharded_weights_ != nullptr)
        sharded_weights_->with_numbers(save_all);
    else
        save_all(trained_);
    if (settings_.ema > 0) save_average(config_source, directory, manifest);
    // Each rank's own file is in its own memory still: it digests it, and puts it on disk.
    std::map<std::string, io::FileDigest> mine;
    if (settings_.zero > 0 || world_.is_root()) {
        const std::string name = state_.save(directory, partition_, shard_, c);
        mine[name] = io::digest_file(directory / name);
        io::flush_file(directory / name);
    }
    for (const auto& [name, digest] : gather_digests(world_, mine)) manifest.outputs[name] = digest;
}

void Trainer::save_average(const std::filesystem::path& config_source, const std::filesystem::path& directory, io::Manifest& manifest) const {
    if (settings_.zero == 0)
        return save_weights(nn::ParameterStore(trained_.table(), state_.ema.tensor()), config_source, directory, "ema/", manifest);
    // Ranks exchange numbers where the model is.
    const Numbers there = host_state_ ? Numbers(state_.ema.tensor(), device()) : Numbers();
    std::unique_ptr<nn::ShardedWeights> average;
    const Arena arena = Arena::of("moving average", [&](Arena& taken) {
        average.reset();
        average = std::make_unique<nn::ShardedWeights>(partition_, world_, host_state_ ? there.tensor() : state_.ema.tensor(), taken, device());
    });
    average->refresh();
    save_weights(nn::ParameterStore(trained_.table(), *average), config_source, directory, "ema/", manifest);
    average.reset();
}

void Trainer::save_weights(const nn::ParameterStore& values, const std::filesystem::path& config_source,
                           const std::filesystem::path& directory, const std::string& prefix, io::Manifest& manifest) const {
    if (!world_.is_root()) return nn::attend_saving(values);
    const auto to = directory / prefix;
    io::make_directories(to);
    std::vector<std::string> names;
    if (weights_.lora() != nullptr) {
        const nn::LoraAdapter adapter(weights_.lora()->table());
        for (int row = 0; row < values.table().size(); ++row)
            transfer(values[row], adapter.store().values()[row]);
        names = nn::save_lora(adapter.store(), to, nn::LoraLayout::diffusers);
    } else {
        names = dit::save(values, config_source, to, settings_.storage);
    }
    for (const std::string& name : names) manifest.outputs[prefix + name] = {};
}

std::function<void()> Trainer::prepare_state(const std::filesystem::path& directory, const Context& c) {
    if (settings_.zero == 0 && !world_.is_root()) return {};
    struct Copy {
        TrainingState state;
        Numbers weights;
    };
    const auto copy = std::make_shared<const Copy>(Copy{state_.copy_to(Device::cpu), Numbers(own_weights(), Device::cpu)});
    return [this, copy, directory, &c] {
        const std::string name = copy->state.save(directory, partition_, shard_, c, copy->weights.tensor());
        io::flush_file(directory / name);
    };
}

void Trainer::restore(const std::filesystem::path& directory) {
    const TrainingState stored = TrainingState::load(directory, partition_, shard_);
    state_.update = stored.update;
    for (const auto member : {&TrainingState::m, &TrainingState::v, &TrainingState::ema, &TrainingState::master})
        if (!(state_.*member).empty()) transfer((stored.*member).tensor(), (state_.*member).tensor());
    TrainingState::load_weights(directory, partition_, shard_, own_weights());
    spread_weights();
    refresh_copy();
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
