#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/arena.hpp"
#include "flow/guidance.hpp"
#include "flow/schedule.hpp"
#include "io/image/image.hpp"
#include "model/dit/dit.hpp"
#include "model/processor/image_inputs.hpp"
#include "model/processor/processor_config.hpp"
#include "model/processor/prompt.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include "model/vae/vae.hpp"
#include "model/vlm/vlm.hpp"
#include "nn/frozen.hpp"
#include "nn/lora_file.hpp"
#include "nn/sharded.hpp"
#include "nn/streamed.hpp"

namespace atelier::pipeline {

using model::ProcessorConfig;
using model::ReferenceInputs;
using model::Tokenizer;

/// What the transformer takes of one prompt: encoder states without the system turn, image slots, reference latents.
struct EncodedPrompt {
    std::vector<float> states;             ///< [tokens, context_dim]
    std::vector<std::uint8_t> image_slot;  ///< [tokens]
    std::vector<float> reference_latents;  ///< [reference tokens, channels], normalised, packed
    std::vector<dit::Grid> references;
    std::int64_t tokens = 0;
    /// Views as the prefix pass takes them: [tokens, width]; [reference tokens, channels], empty without references.
    Tensor states_tensor(std::int64_t width) const { return Tensor::of(states.data(), {tokens, width}); }
    Tensor references_tensor(std::int64_t channels) const {
        if (reference_latents.empty()) return {};
        return Tensor::of(reference_latents.data(), {static_cast<std::int64_t>(reference_latents.size()) / channels, channels});
    }
};

/// Where a pipeline's weights lie and how it computes.
struct Placement {
    Placement(Device where = Device::cpu) : device(where) {}
    Device device;
    /// The transformer's weights are cut over them (nn/sharded.hpp); spans are of the device's memory (comm/on_device.hpp). Null: not.
    comm::Communicator* ranks = nullptr;
    /// As dit::Dit's; on the CPU in bf16 the transformer's weights are rounded as they are read.
    ops::ProductPrecision precision = ops::ProductPrecision::fp32;
    /// The transformer's weights are trained or merged into: they are a flat vector of fp32 on a device too.
    bool weights_change = false;
    /// As dit::Dit's; so it is too where the transformer's directory holds an adapter.
    bool takes_adapter = false;
    /// With a device: the text encoder's weights stay in pinned host memory and come block by block (nn/streamed.hpp).
    bool text_encoder_on_host = false;
};

/// Bytes of the frozen parts' weights where these are.
Bytes frozen_bytes(const vlm::Vlm& text_encoder, const vae::Vae& autoencoder, bool text_encoder_on_host);

/// Throws Error(input) unless the directory is one that Pipeline opens: its index, a tokenizer, each component's files of weights with their headers.
/// No number is read.
void check_model_directory(const std::filesystem::path& directory);

/// A diffusers directory of class QwenImage21Pipeline, opened: configs, tokenizer, schedule, and the weights of the frozen
/// parts and of the transformer in memory (fp32).
class Pipeline {
  public:
    /// Throws Error(input) naming the file, the key or tensor, the expected and the found. With `transformer` the
    /// transformer is read from there instead (a teacher, a student), as by load_transformer(). Where the weights are cut over ranks each
    /// reads its share alone, and passes are collective. Prompts' states, latents and pictures come and go through host memory.
    explicit Pipeline(const std::filesystem::path& directory, const std::filesystem::path& transformer = {}, const Placement& placement = {});
    ~Pipeline();
    Pipeline(const Pipeline&) = delete;
    Pipeline& operator=(const Pipeline&) = delete;

    const dit::Dit& dit() const { return *dit_; }
    const nn::ParameterStore& dit_weights() const { return *dit_weights_; }
    const vae::Vae& vae() const { return *vae_; }
    vae::Codec& codec() { return *codec_; }
    const flow::ScheduleConfig& schedule_config() const { return schedule_; }
    /// The directory that transformer weights, or the adapter, came from.
    const std::filesystem::path& transformer_directory() const { return transformer_directory_; }
    /// Replaces the transformer's weights: by those of a component directory of the same sizes, or, where a directory holds an
    /// adapter (pytorch_lora_weights.safetensors), by this model's own with that adapter beside them. Weights that are there already
    /// aren't read again.
    void load_transformer(const std::filesystem::path& directory);
    /// The adapter beside the weights, where they are; null: none.
    const nn::LoraAdapter* adapter() const { return adapter_.get(); }
    /// Takes it to where the weights are. Throws Error(usage) where the placement takes none.
    void set_adapter(nn::LoraAdapter adapter);
    /// Null: all weights are in memory.
    nn::ShardedWeights* sharded_weights() const { return sharded_.get(); }
    /// The transformer's numbers that this rank holds, where they are: its shard, or all of them. Empty on a device where they don't change.
    Tensor own_weights() const;
    /// Reads a component directory as this model computes with it: its shard, wherever that lies, or weights that don't change.
    void read_shard(const std::filesystem::path& directory, const Tensor& shard) const;
    void read_frozen(const std::filesystem::path& directory, nn::FrozenWeights& weights) const;
    /// Replaces the transformer's weights by the mean of component directories' (nn::load_mean): no second model is in memory. Collective.
    void load_mean(std::span<const std::filesystem::path> directories);
    /// Bytes of host memory that this takes.
    std::size_t mean_bytes() const { return nn::mean_bytes(*partition_); }
    /// sample_sigmas of model_index.json; empty: none.
    const std::vector<double>& sample_sigmas() const { return sample_sigmas_; }
    const ProcessorConfig& processor() const { return processor_; }
    /// Bytes of all weights in memory (with the device's rounded copy beside a transformer that changes), and of those that are the text encoder's and
    /// the autoencoder's.
    Bytes weight_bytes() const;
    Bytes frozen_bytes() const { return pipeline::frozen_bytes(*vlm_, *vae_, streamed_ != nullptr); }

    /// The schedule of `steps` steps for a target of `tokens` latent tokens; the model's own sample_sigmas, if it has
    /// them and steps is 0. Throws Error(usage).
    flow::Schedule schedule(int steps, std::int64_t tokens) const;

    /// References at the size in which encoder and VAE see them.
    std::shared_ptr<const ReferenceInputs> prepare(std::span<const io::Image> images, std::int64_t output_resolution) const;
    /// The same of pictures of these sizes, without their numbers: what `reserve` takes.
    std::shared_ptr<const ReferenceInputs> outline(std::span<const model::PictureSize> sizes, std::int64_t output_resolution) const;

    /// What `encode` gives, without its numbers: enough to plan what works with it. Prepares the text encoder and the VAE for the
    /// prompt's size.
    EncodedPrompt reserve(const std::string& prompt, const std::shared_ptr<const ReferenceInputs>& references);
    /// Bytes of the text encoder's buffers.
    Bytes encoder_bytes() const { return session_arena_ ? session_arena_->bytes() : Bytes(); }

    /// Tokenises and encodes; the references through the VAE as well.
    EncodedPrompt encode(const std::string& prompt, const std::shared_ptr<const ReferenceInputs>& references);
    /// The same of the negative prompt beside `conditional`, with its images: their latents are taken from there. One without images is the
    /// same beside every prompt, and made once.
    EncodedPrompt encode_negative(const std::string& negative, const std::shared_ptr<const ReferenceInputs>& references, const EncodedPrompt& conditional);
    /// To be called when own_weights() were written to: what follows the weights does so; they are no directory's any more. Collective.
    void weights_were_changed();

  private:
    void drop_adapter();
    /// Whether the device keeps a rounded copy beside the transformer's weights (ops/backend.hpp).
    bool keeps_copy() const { return dit_->device() != Device::cpu && !sharded_ && !frozen_dit_; }
    /// All but the references' latents.
    EncodedPrompt encode_states(const std::string& prompt, const std::shared_ptr<const ReferenceInputs>& references);
    /// A session for prompts of this size at least.
    void reserve_session(std::int64_t tokens, std::int64_t patches);

    std::filesystem::path directory_, transformer_directory_;
    ProcessorConfig processor_;
    Tokenizer tokenizer_;
    flow::ScheduleConfig schedule_;
    std::vector<double> sample_sigmas_;
    std::unique_ptr<dit::Dit> dit_;
    std::unique_ptr<vlm::Vlm> vlm_;
    std::unique_ptr<vae::Vae> vae_;
    Arena arena_;
    std::unique_ptr<nn::ParameterStore> dit_weights_, vlm_weights_, vae_weights_;
    // The transformer's: a flat vector, or one of:
    comm::Communicator* ranks_ = nullptr;
    std::unique_ptr<nn::Partition> partition_;
    std::unique_ptr<nn::ShardedWeights> sharded_;
    std::unique_ptr<nn::FrozenWeights> frozen_dit_;
    // The text encoder's, one of:
    std::unique_ptr<nn::Partition> streamed_partition_;
    std::unique_ptr<nn::StreamedWeights> streamed_;
    std::unique_ptr<nn::FrozenWeights> frozen_vlm_;
    std::unique_ptr<nn::LoraAdapter> adapter_;
    std::filesystem::path loaded_;  ///< component directory that the weights are from; empty: none any more
    std::unique_ptr<vae::Codec> codec_;
    // One session, made again when a longer prompt comes.
    std::unique_ptr<Arena> session_arena_;
    std::unique_ptr<vlm::Session> session_;
    std::int64_t session_tokens_ = 0, session_patches_ = 0;
    std::map<std::string, EncodedPrompt> negatives_;  ///< without images, by their text
};

}  // namespace atelier::pipeline
