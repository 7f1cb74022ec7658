#include "judge/trained_judge.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "nn/checkpoint_weights.hpp"
#include "ops/backend.hpp"

namespace atelier::judge {
namespace {

bool is_trained(const TrainedParts& parts, const std::string& name) {
    if (!name.starts_with("model.visual.")) return parts.text;
    return name.find("merger") != std::string::npos ? parts.mergers : parts.vision;
}

}  // namespace

TrainedJudge::TrainedJudge(const std::filesystem::path& directory, const TrainedParts& parts, comm::Communicator* ranks, Device device,
                           ops::ProductPrecision precision)
    : QuestionMaker(directory, device, precision), arena_("judge's weights", 0) {
    if (ranks != nullptr) partition_.emplace(vlm().table(), ranks->size());
    arena_ = Arena::of("judge's weights", [&](Arena& arena) {
        if (ranks != nullptr) {
            sharded_ = std::make_unique<nn::ShardedWeights>(*partition_, *ranks, Tensor(), arena, device, precision);
            weights_ = nn::ParameterStore(vlm().table(), *sharded_);
        } else if (parts.lora.rank > 0) {
            base_ = std::make_unique<nn::FrozenWeights>(vlm().table(), arena, device, precision);
            weights_ = base_->store();
        } else {
            weights_ = nn::ParameterStore(vlm().table(), arena, device);
        }
    });
    if (sharded_) {
        vlm::load_shard(vlm(), *partition_, ranks->rank(), directory, sharded_->shard());
        sharded_->refresh();
    } else if (base_) {
        vlm::load(vlm(), *base_, directory);
    } else {
        vlm::load(vlm(), weights_, directory);
    }
    if (parts.lora.rank > 0) {
        nn::LoraAdapter drawn(vlm().table(), parts.lora);
        for (const int row : {vlm().embedding, vlm().position_embedding})
            ATELIER_CHECK_USAGE(!drawn.store().adapts(row), "{} is no product: it takes no adapter", vlm().table().spec(row).name);
        nn::initialise(drawn.store(), parts.seed);
        adapter_.emplace(device == Device::cpu ? std::move(drawn) : drawn.copy_to(device));
        weights_ = weights_.with_lora(&adapter_->store());
    }
    const nn::ParameterTable& table = adapter_ ? adapter_->table().table() : vlm().table();
    for (const nn::ParameterSpec& spec : table.specs()) frozen_.push_back(!is_trained(parts, spec.name));
    ATELIER_CHECK_USAGE(std::count(frozen_.begin(), frozen_.end(), false) > 0,
                        "nothing is trained: all parts that reward_train.vision, .mergers, .text and .lora_targets leave are frozen");
}

TrainedJudge::~TrainedJudge() {
    if (vlm().device() != Device::cpu && weights_.residence() == nullptr) ops::backend().keep_bf16_copy(weights_.data(), 0);
}

Bytes TrainedJudge::weight_bytes(const vlm::Vlm& vlm, const nn::LoraTable* adapter, int ranks) {
    const Device device = vlm.device();
    const auto self = comm::make_self();
    const nn::Partition partition(vlm.table(), std::max(1, ranks));
    const bool is_flat = ranks == 0 && adapter == nullptr;
    const Bytes bytes = Workspace::measure([&](Arena& arena) {
        if (ranks > 0)
            nn::ShardedWeights(partition, *self, Tensor(), arena, device, vlm.precision());
        else if (is_flat)
            nn::ParameterStore(vlm.table(), arena, device);
        else
            nn::FrozenWeights(vlm.table(), arena, device, vlm.precision());
        if (adapter != nullptr) nn::LoraStore(*adapter, arena, device);
    });
    // With the rounded copy that products take.
    return is_flat ? bytes + nn::rounded_copy_bytes(vlm.table(), device) : bytes;
}

void TrainedJudge::save(const std::filesystem::path& to, bool is_root) const {
    // In files of 5 GB, as transformers writes them.
    const nn::StorageFormat format{std::vector<DType>(static_cast<std::size_t>(vlm().table().size()), DType::f32),
                                   std::uint64_t{5'000'000'000}, {{"format", "pt"}}};
    const auto save_all = [&](const nn::ParameterStore& weights) {
        if (is_root)
            nn::save_weights(weights, to, vlm::weights_stem, format);
        else
            nn::attend_saving(weights);
    };
    if (sharded_)
        sharded_->with_numbers(save_all);
    else if (!adapter_)
        save_all(weights_);
    else if (is_root)
        save_merged(to, format);
    if (!is_root) return;
    for (const auto& entry : std::filesystem::directory_iterator(directory())) {
        const std::string name = entry.path().filename().string();
        const bool kept = name.ends_with(".json") || name.ends_with(".jinja");
        if (kept && name != "manifest.json" && name != "report.json" && name.find(".safetensors") == std::string::npos)
            std::filesystem::copy_file(entry.path(), to / name);
    }
}

// What they were before they were rounded, if they were, is in the files alone.
void TrainedJudge::save_merged(const std::filesystem::path& to, const nn::StorageFormat& format) const {
    const io::Safetensors stored = vlm::open_weights(directory());
    std::vector<std::pair<nn::LoraAdapter, float>> adapters;
    adapters.emplace_back(adapter_->copy_to(Device::cpu), 1.0f);
    io::write_sharded(to, vlm::weights_stem, nn::merged_tensors(vlm().table(), stored, adapters, format.dtypes), format.shard_bytes, format.metadata);
}

}  // namespace atelier::judge
