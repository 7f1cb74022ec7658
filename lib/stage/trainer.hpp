#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <vector>

#include "comm/on_device.hpp"
#include "core/host_vectors.hpp"
#include "nn/lora.hpp"
#include "optim/adamw.hpp"
#include "optim/gradient_norm.hpp"
#include "stage/training_state.hpp"

namespace atelier::stage {

/// What a trainer holds on each of `ranks`, and what publishing takes beside it.
struct TrainerBytes {
    Bytes gradients;  ///< with what cuts and sums them
    Bytes optimizer;
    Bytes publishing;  ///< the state's way to its file
    Bytes window;      ///< what weights and average are gathered in on their way to theirs
    Bytes snapshot;    ///< a copy of state and weights that is written beside the next updates
    std::size_t collectives = 0;  ///< of the device: room for sums over several, and NCCL's own
};
/// `device`, `precision`: the model's; `state_on_host`: as Trainer::Settings.
TrainerBytes trainer_bytes(const nn::ParameterTable& model, const nn::LoraTable* adapter, int zero, int ranks, bool averages,
                           bool has_master, Device device, ops::ProductPrecision precision, bool state_on_host);

/// The ranks that train one policy: a communicator for numbers where compute.device says that they are.
class TrainingRanks {
  public:
    /// Throws Error(usage) where there is no such device. Collective.
    explicit TrainingRanks(const Context& context);
    comm::Communicator& all() const { return on_device_ ? *on_device_ : world_; }
    /// The ranks that a trained transformer's weights are cut over; null: each has all (compute.zero below 3).
    comm::Communicator* sharded() const { return is_sharded_ ? &all() : nullptr; }

  private:
    comm::Communicator& world_;
    std::unique_ptr<comm::Communicator> on_device_;
    bool is_sharded_;
};

/// A model as it is trained.
struct TrainedModel {
    nn::ParameterStore weights;             ///< as the passes take them; where an adapter is beside them that is what is trained
    nn::ShardedWeights* sharded = nullptr;  ///< the weights where they are cut over the ranks
    std::vector<bool> frozen;               ///< of each row of what is trained; empty: none is
};

/// Gradients, their norm and AdamW over one flat vector, that of all weights or of their adapter: what GRPO, distillation and the judge's
/// training share.
///
/// `zero` says what is cut over the ranks (ZeRO): 0 nothing, 1 the optimizer's state, 2 gradients too, 3 weights too. From 2 on
/// passes are collective: every rank must make the same ones.
class Trainer {
  public:
    struct Settings {
        optim::AdamWConfig adamw;
        double max_grad_norm = 1;
        double ema = 0;  ///< decay; 0: no moving average
        nn::StorageFormat storage;
        int zero = 0;
        /// Where AdamW's memory (and the moving average, and the weights before they are rounded) is: with the model, or, for a model
        /// on a device, in host memory; updates are made on the device either way and have the same bits.
        bool state_on_host = false;
    };
    /// Continues from the state kept beside `policy` (empty: nothing is learnt yet). With zero = 3 the model is sharded. `ranks`: of numbers
    /// where the model is. Throws Error(usage) for an adapter with zero above 1.
    Trainer(const TrainedModel& model, const std::filesystem::path& policy, const Settings& settings, comm::Communicator& ranks);
    /// As the passes take them.
    const nn::ParameterStore& gradients() const { return gradients_; }
    /// Parameters that are trained.
    std::int64_t count() const { return trained_.table().count(); }
    /// Whether every rank must make the same passes.
    bool is_collective() const { return settings_.zero >= 2; }
    void zero_gradients();
    /// Sums the gradients over ranks in rank order, clips, updates. Returns the norm before clipping. Throws Error(numeric) for a
    /// gradient that is not finite. Afterwards the weights are what would be stored. Collective.
    double step(double rate);
    /// What it holds, and what `save` and prepare_state() take beside that.
    TrainerBytes planned() const;
    std::int64_t updates() const { return state_.update; }

    /// Writes a transformer's weights, the moving average's (ema/) and the state to a directory, each rank its part. On rank 0 names all
    /// files in the manifest, with the digests of the states'. Collective.
    void save(const std::filesystem::path& config_source, const std::filesystem::path& directory, const Context& context,
              io::Manifest& manifest) const;

    /// Copies this rank's part of the state and its weights; the result writes the copy to a file, flushed, beside whatever comes next.
    /// Empty where another rank has it.
    std::function<void()> prepare_state(const std::filesystem::path& directory, const Context& context);
    /// Goes back to the state of such files. Collective.
    void restore(const std::filesystem::path& directory);

  private:
    Device device() const { return weights_.device(); }
    Tensor own_weights() const;  ///< the shard that AdamW's result goes to
    /// Updates numbers [first, first + count) of the shard, all of it on the model's device.
    void update_piece(std::int64_t first, const std::vector<optim::ParameterRange>& ranges, double rate, double scale, const Tensor& m,
                      const Tensor& v, const Tensor& ema, const Tensor& master);
    void round_weights();
    /// The copy of the weights that products take (ops/backend.hpp) follows what AdamW itself didn't write.
    void refresh_copy();
    bool is_frozen(const nn::Partition::Piece& piece) const { return !frozen_.empty() && frozen_[static_cast<std::size_t>(piece.row)]; }
    std::vector<std::vector<optim::ParameterRange>> decay_ranges(std::int64_t piece) const;
    void reduce_gradients();
    double gradient_norm();
    void spread_weights();
    void save_weights(const nn::ParameterStore& values, const std::filesystem::path& config_source, const std::filesystem::path& directory,
                      const std::string& prefix, io::Manifest& manifest) const;
    void save_average(const std::filesystem::path& config_source, const std::filesystem::path& directory, io::Manifest& manifest) const;
    nn::ParameterStore weights_;
    nn::ShardedWeights* sharded_weights_;
    nn::ParameterStore trained_;  ///< the weights, or their adapter's numbers
    Settings settings_;
    comm::Communicator& world_;
    nn::Partition partition_;
    int shard_ = 0;  ///< which of the partition's this rank has
    std::vector<nn::Partition::Piece> pieces_;
    std::vector<bool> frozen_;  ///< rows; empty: none
    TrainingState state_;
    Arena arena_;
    std::unique_ptr<nn::LoraStore> adapter_gradients_;
    std::unique_ptr<nn::ShardedGradients> sharded_gradients_;
    nn::ParameterStore gradients_;
    Tensor flat_gradient_;        ///< zero <= 1: of everything
    Tensor own_gradient_;         ///< this rank's shard of the sum
    Tensor own_weights_;          ///< zero 1 and 2: this rank's shard
    Tensor bounce_;               ///< zero 1 and 2: all ranks' shares of a segment
    /// The state's vectors where they are in host memory and the model isn't, and what of `ranges_` lies in each piece of them.
    std::unique_ptr<HostVectors> host_state_;
    std::vector<std::vector<optim::ParameterRange>> ranges_;  ///< decay or not, of each piece; one piece without host_state_
    optim::GradientNorm norm_;
};

/// Publishes a directory that every rank writes a part of: `write` gets the temporary name on all ranks, `finish` on rank 0 after
/// all of them. Collective.
void publish_together(comm::Communicator& world, const std::filesystem::path& directory,
                      const std::function<void(const std::filesystem::path&)>& write,
                      const std::function<void(const std::filesystem::path&)>& finish);

}  // namespace atelier::stage
