#include "pipeline/pipeline.hpp"

#include <nlohmann/json.hpp>

#include "core/numbers.hpp"
#include "model/tokenizer/json_file.hpp"
#include "ops/backend.hpp"

namespace atelier::pipeline {
namespace {

namespace fs = std::filesystem;
using model::JsonNode;

void check_component(const JsonNode& index, const std::string& name, const std::string& expected) {
    const JsonNode entry = index.at(name);
    ATELIER_CHECK_INPUT(entry.value().is_array() && entry.size() == 2 && entry[1].text() == expected,
                        "{} must be {}, found {}", entry.place(), expected, entry.found());
}

/// Pipeline directories hold the tokenizer in processor/ or in tokenizer/ beside it.
fs::path tokenizer_directory(const fs::path& directory) {
    for (const char* name : {"processor", "tokenizer"})
        if (fs::exists(directory / name / "tokenizer.json")) return directory / name;
    ATELIER_FAIL(ErrorKind::input, "{} holds neither processor/tokenizer.json nor tokenizer/tokenizer.json",
                 directory.string());
}

bool holds_adapter(const fs::path& directory) { return fs::exists(directory / nn::lora_file_name); }

/// Where the weights of a transformer are that may be given as an adapter to the model's own.
fs::path component_of(const fs::path& model, const fs::path& transformer) {
    return holds_adapter(transformer) ? model / "transformer" : transformer;
}

nlohmann::json read_index(const fs::path& directory) {
    ATELIER_CHECK_INPUT(fs::is_directory(directory), "{} is not a directory: a diffusers model directory was expected",
                        directory.string());
    return read_json(directory / "model_index.json");
}

/// Throws Error(input) unless the index names the components that this class knows.
nlohmann::json read_checked_index(const fs::path& directory) {
    auto json = read_index(directory);
    const JsonNode index(json, (directory / "model_index.json").string() + ": ");
    ATELIER_CHECK_INPUT(index.at("_class_name").text() == "QwenImage21Pipeline", "{} must be QwenImage21Pipeline, found {}",
                        index.at("_class_name").place(), index.at("_class_name").found());
    check_component(index, "processor", "Qwen3VLProcessor");
    check_component(index, "scheduler", "FlowMatchEulerDiscreteScheduler");
    check_component(index, "text_encoder", "Qwen3VLForConditionalGeneration");
    check_component(index, "transformer", "QwenImage21Transformer2DModel");
    check_component(index, "vae", "AutoencoderKLQwenImage21");
    return json;
}

}  // namespace

void check_model_directory(const fs::path& directory) {
    read_checked_index(directory);
    tokenizer_directory(directory);
    dit::open_weights(directory / "transformer");
    vlm::open_weights(directory / "text_encoder");
    io::Safetensors::open_component(directory / "vae", dit::weights_stem);
}

Pipeline::Pipeline(const fs::path& directory, const fs::path& transformer, const Placement& placement)
    : directory_(directory),
      transformer_directory_(transformer.empty() ? directory / "transformer" : transformer),
      processor_((read_checked_index(directory), ProcessorConfig::load(directory / "processor"))),
      tokenizer_(Tokenizer::load(tokenizer_directory(directory))),
      arena_("weights", 0),
      ranks_(placement.ranks) {
    const auto json = read_index(directory);
    const JsonNode index(json, (directory / "model_index.json").string() + ": ");
    if (index.has("sample_sigmas")) {
        const JsonNode list = index.at("sample_sigmas");
        for (std::size_t i = 0; i < list.size(); ++i) sample_sigmas_.push_back(list[i].number());
    }
    schedule_ = flow::read_schedule_config(directory / "scheduler" / "scheduler_config.json");
    const Device device = placement.device;
    if (device == Device::cuda) ops::load_backend().set_product_precision(placement.precision);
    dit_ = std::make_unique<dit::Dit>(dit::load_config(component_of(directory, transformer_directory_) / "config.json"), device, placement.precision,
                                      placement.takes_adapter || holds_adapter(transformer_directory_));
    vlm_ = std::make_unique<vlm::Vlm>(vlm::load_config(directory / "text_encoder" / "config.json"), device, placement.precision);
    vae_ = std::make_unique<vae::Vae>(vae::load_config(directory / "vae" / "config.json"), device);
    ATELIER_CHECK_INPUT(vlm_->config().text.hidden == dit_->config().context_dim,
                        "{}: the text encoder gives states of width {}, the transformer takes context_in_dim {}",
                        directory.string(), vlm_->config().text.hidden, dit_->config().context_dim);
    ATELIER_CHECK_INPUT(vae_->config().z == dit_->config().in_channels && dit_->config().out_channels == dit_->config().in_channels,
                        "{}: the VAE has {} latent channels, the transformer takes {} and gives {}", directory.string(),
                        vae_->config().z, dit_->config().in_channels, dit_->config().out_channels);
    ATELIER_CHECK_INPUT(vae_->config().factor() == model::pixels_per_latent,
                        "{}: the pipeline needs a VAE of {} pixels per latent, found {}", directory.string(),
                        model::pixels_per_latent, vae_->config().factor());

    partition_ = std::make_unique<nn::Partition>(dit_->table(), ranks_ == nullptr ? 1 : ranks_->size());
    const bool streams = placement.text_encoder_on_host && device != Device::cpu;
    if (streams) streamed_partition_ = std::make_unique<nn::Partition>(vlm_->table(), 1);
    const auto stores = [&](Arena& arena) {
        if (ranks_ != nullptr) {
            sharded_ = std::make_unique<nn::ShardedWeights>(*partition_, *ranks_, Tensor(), arena, device, placement.precision);
            dit_weights_ = std::make_unique<nn::ParameterStore>(dit_->table(), *sharded_);
        } else if (placement.weights_change) {
            dit_weights_ = std::make_unique<nn::ParameterStore>(dit_->table(), arena, device);
        } else {
            frozen_dit_ = std::make_unique<nn::FrozenWeights>(dit_->table(), arena, device, placement.precision);
            dit_weights_ = std::make_unique<nn::ParameterStore>(frozen_dit_->store());
        }
        if (streams) {
            streamed_ = std::make_unique<nn::StreamedWeights>(*streamed_partition_, vlm_->encoding_blocks(), arena, placement.precision);
            vlm_weights_ = std::make_unique<nn::ParameterStore>(vlm_->table(), *streamed_);
        } else {
            frozen_vlm_ = std::make_unique<nn::FrozenWeights>(vlm_->table(), arena, device, placement.precision);
            vlm_weights_ = std::make_unique<nn::ParameterStore>(frozen_vlm_->store());
        }
        vae_weights_ = std::make_unique<nn::ParameterStore>(vae_->table(), arena, device);
    };
    arena_ = Arena::of("weights", stores);
    load_transformer(transformer_directory_);
    if (streamed_)
        vlm::load(*vlm_, *streamed_, directory / "text_encoder");
    else
        vlm::load(*vlm_, *frozen_vlm_, directory / "text_encoder");
    vae::load(*vae_weights_, directory / "vae");
    codec_ = std::make_unique<vae::Codec>(*vae_, *vae_weights_);
}

void Pipeline::load_transformer(const fs::path& directory) {
    const fs::path component = component_of(directory_, directory);
    // Checked before the weights change.
    std::unique_ptr<nn::LoraAdapter> adapter;
    ATELIER_CHECK_USAGE(!sharded_ || !holds_adapter(directory), "{} is an adapter: weights that are cut over ranks take none", directory.string());
    if (holds_adapter(directory)) adapter = std::make_unique<nn::LoraAdapter>(nn::load_lora(directory / nn::lora_file_name, dit_->table()));
    if (component != loaded_) {
        loaded_.clear();
        if (sharded_) {
            read_shard(component, own_weights());
            weights_were_changed();
        } else if (frozen_dit_) {
            read_frozen(component, *frozen_dit_);
        } else {
            dit::load(*dit_weights_, component);
            if (dit_->rounds_operands()) nn::round_to(DType::bf16, numbers(own_weights()));
        }
        loaded_ = component;
    }
    drop_adapter();
    if (adapter) set_adapter(std::move(*adapter));
    transformer_directory_ = directory;
}

Pipeline::~Pipeline() {
    if (keeps_copy()) ops::backend().keep_bf16_copy(dit_weights_->data(), 0);
}

Bytes Pipeline::weight_bytes() const {
    return arena_.bytes() + (adapter_ ? adapter_->bytes() : Bytes()) + (keeps_copy() ? nn::rounded_copy_bytes(dit_->table(), dit_->device()) : Bytes());
}

Bytes frozen_bytes(const vlm::Vlm& text_encoder, const vae::Vae& autoencoder, bool text_encoder_on_host) {
    const Device device = text_encoder.device();
    const bool streams = text_encoder_on_host && device != Device::cpu;
    return Workspace::measure([&](Arena& arena) {
        if (streams)
            nn::StreamedWeights(nn::Partition(text_encoder.table(), 1), text_encoder.encoding_blocks(), arena, text_encoder.precision());
        else
            nn::FrozenWeights(text_encoder.table(), arena, device, text_encoder.precision());
        nn::ParameterStore(autoencoder.table(), arena, autoencoder.device());
    });
}

Tensor Pipeline::own_weights() const { return sharded_ ? sharded_->shard() : dit_weights_->flat(); }

void Pipeline::read_shard(const fs::path& directory, const Tensor& shard) const {
    nn::load_shard(*partition_, ranks_ == nullptr ? 0 : ranks_->rank(), dit::open_weights(directory), shard);
    if (dit_->rounds_operands()) nn::round_to(DType::bf16, numbers(shard));
}

void Pipeline::read_frozen(const fs::path& directory, nn::FrozenWeights& weights) const {
    weights.load(dit::open_weights(directory));
    if (dit_->rounds_operands()) nn::round_to(DType::bf16, numbers(weights.store().flat()));
}

void Pipeline::load_mean(std::span<const fs::path> directories) {
    std::vector<io::Safetensors> files;
    for (const fs::path& directory : directories) files.push_back(dit::open_weights(directory));
    if (frozen_dit_)
        nn::load_mean(dit_->table(), files, *frozen_dit_);
    else
        nn::load_mean(*partition_, ranks_ == nullptr ? 0 : ranks_->rank(), files, own_weights());
    weights_were_changed();
}

void Pipeline::weights_were_changed() {
    loaded_.clear();
    if (dit_->rounds_operands()) nn::round_to(DType::bf16, numbers(own_weights()));
    if (sharded_)
        sharded_->refresh();
    else if (keeps_copy())
        ops::backend().refresh_bf16_copy(dit_weights_->data());
}

void Pipeline::set_adapter(nn::LoraAdapter adapter) {
    ATELIER_CHECK_USAGE(dit_->result_dtype() == DType::f32, "a model that was opened for no adapter is given one");
    drop_adapter();
    const bool is_there = adapter.store().values().device() == dit_->device();
    adapter_ = std::make_unique<nn::LoraAdapter>(is_there ? std::move(adapter) : adapter.copy_to(dit_->device()));
    *dit_weights_ = dit_weights_->with_lora(&adapter_->store());
}

void Pipeline::drop_adapter() {
    *dit_weights_ = dit_weights_->with_lora(nullptr);
    adapter_.reset();
}

flow::Schedule Pipeline::schedule(int steps, std::int64_t tokens) const {
    if (steps == 0 && !sample_sigmas_.empty()) return flow::make_schedule(schedule_, sample_sigmas_, tokens);
    return flow::make_schedule(schedule_, steps == 0 ? 40 : steps, tokens);
}

std::shared_ptr<const ReferenceInputs> Pipeline::prepare(std::span<const io::Image> images,
                                                         std::int64_t output_resolution) const {
    if (images.empty()) return nullptr;
    return std::make_shared<const ReferenceInputs>(model::prepare_references(processor_, images, output_resolution));
}

std::shared_ptr<const ReferenceInputs> Pipeline::outline(std::span<const model::PictureSize> sizes, std::int64_t output_resolution) const {
    if (sizes.empty()) return nullptr;
    return std::make_shared<const ReferenceInputs>(model::outline_references(processor_, sizes, output_resolution));
}

void Pipeline::reserve_session(std::int64_t tokens, std::int64_t patches) {
    if (session_ && tokens <= session_tokens_ && patches <= session_patches_) return;
    session_tokens_ = std::max(session_tokens_, tokens);
    session_patches_ = std::max(session_patches_, patches);
    session_.reset();
    session_arena_.reset();  // given back before the larger one is taken
    session_arena_ = std::make_unique<Arena>(Arena::of("text encoder", [&](Arena& arena) {
        session_ = std::make_unique<vlm::Session>(*vlm_, session_tokens_, session_patches_, arena);
    }));
}

EncodedPrompt Pipeline::reserve(const std::string& prompt, const std::shared_ptr<const ReferenceInputs>& references) {
    const model::PromptInputs inputs = model::build_prompt(tokenizer_, processor_, prompt, references);
    reserve_session(inputs.tokens(), references ? references->vision.patches : 0);
    EncodedPrompt out;
    out.tokens = inputs.tokens() - inputs.drop_idx;
    out.image_slot.assign(inputs.image_mask.begin() + inputs.drop_idx, inputs.image_mask.end());
    if (!references) return out;
    for (const model::ReferencePicture& picture : references->references) {
        out.references.push_back({picture.latent_height, picture.latent_width});
        codec_->reserve({picture.latent_height * model::pixels_per_latent, picture.latent_width * model::pixels_per_latent, 0});
    }
    return out;
}

EncodedPrompt Pipeline::encode_states(const std::string& prompt, const std::shared_ptr<const ReferenceInputs>& references) {
    const model::PromptInputs inputs = model::build_prompt(tokenizer_, processor_, prompt, references);
    const std::int64_t patches = references ? references->vision.patches : 0;
    reserve_session(inputs.tokens(), patches);
    const Tensor pixels = patches == 0 ? Tensor()
                                       : Tensor::of(references->vision.pixel_values.data(),
                                                    {patches, references->vision.patch_elements});
    const Tensor states = session_->encode(*vlm_weights_, inputs.input_ids, pixels,
                                           references ? std::span<const vlm::GridThw>(references->vision.image_grid_thw)
                                                      : std::span<const vlm::GridThw>());
    EncodedPrompt out;
    out.tokens = inputs.tokens() - inputs.drop_idx;
    const std::int64_t width = dit_->config().context_dim;
    out.states.resize(static_cast<std::size_t>(out.tokens * width));
    transfer(states.slice(inputs.drop_idx, inputs.tokens()), Tensor::of(out.states.data(), {out.tokens, width}));
    out.image_slot.assign(inputs.image_mask.begin() + inputs.drop_idx, inputs.image_mask.end());
    if (references)
        for (const model::ReferencePicture& picture : references->references) out.references.push_back({picture.latent_height, picture.latent_width});
    return out;
}

EncodedPrompt Pipeline::encode(const std::string& prompt, const std::shared_ptr<const ReferenceInputs>& references) {
    EncodedPrompt out = encode_states(prompt, references);
    if (!references) return out;
    for (std::size_t i = 0; i < out.references.size(); ++i) {
        const model::ReferencePicture& picture = references->references[i];
        std::vector<float> latents(static_cast<std::size_t>(out.references[i].tokens() * vae_->config().z));
        codec_->encode(picture.vae_input.data(), picture.latent_height * model::pixels_per_latent,
                       picture.latent_width * model::pixels_per_latent, latents.data());
        out.reference_latents.insert(out.reference_latents.end(), latents.begin(), latents.end());
    }
    return out;
}

EncodedPrompt Pipeline::encode_negative(const std::string& negative, const std::shared_ptr<const ReferenceInputs>& references,
                                        const EncodedPrompt& conditional) {
    if (!references) {
        constexpr std::size_t most = 8;  // a task has one; requests may each have another
        if (const auto known = negatives_.find(negative); known != negatives_.end()) return known->second;
        if (negatives_.size() == most) negatives_.clear();
        return negatives_[negative] = encode_states(negative, nullptr);
    }
    EncodedPrompt out = encode_states(negative, references);
    ATELIER_CHECK(out.references == conditional.references, "the prompts have {} and {} references, or others", conditional.references.size(),
                  out.references.size());
    out.reference_latents = conditional.reference_latents;
    return out;
}

}  // namespace atelier::pipeline
