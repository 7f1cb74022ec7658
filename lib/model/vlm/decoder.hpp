#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/vlm/vlm.hpp"

namespace atelier::vlm {

struct DecoderSize {
    int sequences = 0, prefixes = 0;  ///< held at once
    std::int64_t prefix_tokens = 0;   ///< of a prefix, at most
    std::int64_t own_tokens = 0;      ///< of a sequence after its prefix, at most
};

/// Continues many sequences at once, a token each a step. A sequence's numbers have the same bits in any company. Sequences that
/// begin alike share a prefix, which is held once. Everything is where the Vlm says; states and logits stay there.
class Decoder {
  public:
    Decoder(const Vlm& vlm, const DecoderSize& size, Arena& arena);

    /// Takes what the session holds as a prefix.
    void set_prefix(int prefix, const Session& session);
    /// Takes what the session holds after `prefix` as a sequence, and where its next token stands.
    void set_sequence(int sequence, int prefix, const Session& session);
    /// Puts one token after each of some sequences (each named once): their states before the final norm
    /// [sequences.size(), hidden], valid until the next call.
    Tensor step(const nn::ParameterStore& weights, std::span<const int> sequences, std::span<const std::int32_t> ids);
    /// Logits [rows, vocabulary] of up to size.sequences states [rows, hidden] before the final norm.
    void logits(const nn::ParameterStore& weights, const Tensor& states, const Tensor& out);

    std::int64_t own_length(int sequence) const { return sequences_[static_cast<std::size_t>(sequence)].length; }

  private:
    struct Sequence {
        int prefix = 0;
        std::int64_t length = 0, next_position = 0;
    };
    /// Keys (part 0) or values (part 1) of a layer.
    float* prefix_cache(int prefix, std::size_t layer, int part) const;
    float* own_cache(int sequence, std::size_t layer, int part) const;
    /// The first tokens of one of them.
    Tensor cache(float* begin, std::int64_t tokens) const;

    const Vlm& vlm_;
    DecoderSize size_;
    std::int64_t kv_width_;
    std::vector<std::int64_t> prefix_length_;
    std::vector<Sequence> sequences_;
    Tensor prefix_caches_, own_caches_;  ///< [prefixes or sequences, layers, 2, tokens, kv_width]
    Tensor hidden_, normed_, q_, kv_, attended_, gate_up_, act_, cosine_, sine_, scores_;
    Tensor embedding_rows_, host_cosine_, host_sine_;  ///< on a device: i32 [sequences] there; tables in host memory before they go there
};

}  // namespace atelier::vlm
