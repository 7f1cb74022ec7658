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
        if (ranks != nullptr)
            sharded_ = std::make_unique<nn::ShardedWeights>(*partition_, *ranks, Tensor(), arena, device, precision);
        else
            weights_ = nn::ParameterStore(vlm().table(), arena, device);
    });
    if (ranks != nullptr) {
        weights_ = nn::ParameterStore(vlm().table(), *sharded_);
        vlm::load_shard(vlm(), *partition_, ranks->rank(), directory, sharded_->shard());
        sharded_->refresh();
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
    if (vlm().device() != Device::cpu && !sharded_) ops::backend().keep_bf16_copy(weights_.data(), 0);
}

Bytes TrainedJudge::weight_bytes(const vlm::Vlm& vlm, const nn::LoraTable* adapter, int ranks) {
    const auto self = comm::make_self();
    const nn::Partition partition(vlm.table(), std::max(1, ranks));
    Bytes bytes = Workspace::measure([&](Arena& arena) {
        if (ranks > 0)
            nn::ShardedWeights(partition, *self, Tensor(), arena, vlm.device(), vlm.precision());
        else
            nn::ParameterStore(vlm.table(), arena, vlm.device());
        if (adapter != nullptr) nn::LoraStore(*adapter, arena, vlm.device());
    });
    // With the rounded copy that products take.
    if (ranks == 0) bytes += nn::rounded_copy_bytes(vlm.table(), vlm.device());
    return bytes;
}

void TrainedJudge::with_numbers(const std::function<void(const nn::ParameterStore&)>& use) const {
    if (sharded_)
        sharded_->with_numbers(use);
    else
        use(weights_);
}

void TrainedJudge::merge() const {
    if (adapter_) nn::merge_lora(adapter_->copy_to(Device::cpu).store(), weights_);
}

void save_judge(const nn::ParameterStore& weights, const std::filesystem::path& source, const std::filesystem::path& directory) {
    for (const auto& entry : std::filesystem::directory_iterator(source)) {
        const std::string name = entry.path().filename().string();
        const bool kept = name.ends_with(".json") || name.ends_with(".jinja");
        if (kept && name != "manifest.json" && name != "report.json" && name.find(".safetensors") == std::string::npos)
            std::filesystem::copy_file(entry.path(), directory / name);
    }
    // In files of 5 GB, as transformers writes them.
    const nn::StorageFormat format{std::vector<DType>(static_cast<std::size_t>(weights.table().size()), DType::f32),
                                   std::uint64_t{5'000'000'000}, {{"format", "pt"}}};
    nn::save_weights(weights, directory, "model", format);
}

}  // namespace atelier::judge
