#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "judge/question_maker.hpp"
#include "nn/frozen.hpp"
#include "nn/lora_file.hpp"
#include "nn/sharded.hpp"

namespace atelier::judge {

/// What of a judge is trained.
struct TrainedParts {
    bool vision = true;   ///< the vision tower; frozen otherwise
    bool mergers = true;  ///< what brings its pictures into the text: mergers, deepstack
    bool text = true;     ///< the language model and its head
    nn::LoraConfig lora;  ///< rank 0: the parts' own weights; else an adapter beside them, the weights stay
    std::uint64_t seed = 0;  ///< of the adapter
};

/// A judge (judge_model.hpp) whose weights, or an adapter beside them, are trained.
class TrainedJudge : public QuestionMaker {
  public:
    /// `ranks`: that the weights are cut over; null: they are all here. `device`, `precision`: where they are and passes run, of a backend that is
    /// loaded, and of its products. Throws Error(usage) for an adapter of what is no product, and where nothing is trained. Collective where there
    /// are ranks.
    TrainedJudge(const std::filesystem::path& directory, const TrainedParts& parts, comm::Communicator* ranks = nullptr,
                 Device device = Device::cpu, ops::ProductPrecision precision = ops::ProductPrecision::fp32);
    ~TrainedJudge();
    TrainedJudge(const TrainedJudge&) = delete;
    TrainedJudge& operator=(const TrainedJudge&) = delete;

    /// As passes take them: with the adapter beside them.
    const nn::ParameterStore& weights() const { return weights_; }
    /// Null: they are all here.
    nn::ShardedWeights* sharded_weights() const { return sharded_.get(); }
    /// Null: the weights themselves are trained.
    const nn::LoraAdapter* adapter() const { return adapter_ ? &*adapter_ : nullptr; }
    /// Whether a row of what is trained is frozen.
    const std::vector<bool>& frozen() const { return frozen_; }
    /// Writes a judge's directory: weights in fp32, the adapter added to them, and the other files of the one that it is from. The root writes;
    /// collective where weights are cut over ranks.
    void save(const std::filesystem::path& directory, bool is_root) const;

    /// Of weights cut over so many ranks (0: not cut) and of the adapter, where the model runs, without making any.
    static Bytes weight_bytes(const vlm::Vlm& vlm, const nn::LoraTable* adapter, int ranks);

  private:
    void save_merged(const std::filesystem::path& directory, const nn::StorageFormat& format) const;
    std::optional<nn::Partition> partition_;
    // Behind the weights; none: they are a flat vector.
    std::unique_ptr<nn::ShardedWeights> sharded_;
    std::unique_ptr<nn::FrozenWeights> base_;
    Arena arena_;
    std::optional<nn::LoraAdapter> adapter_;
    nn::ParameterStore weights_;
    std::vector<bool> frozen_;
};

}  // namespace atelier::judge
