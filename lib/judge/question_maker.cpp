#include "judge/question_maker.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "nn/frozen.hpp"

namespace atelier::judge {

std::size_t common_prefix(std::span<const std::int32_t> a, std::span<const std::int32_t> b) {
    return static_cast<std::size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

QuestionMaker::QuestionMaker(const std::filesystem::path& directory, Device device, ops::ProductPrecision precision)
    : directory_(directory),
      tokenizer_(model::Tokenizer::load(directory)),
      processor_(model::ProcessorConfig::load(directory)),
      vlm_(std::make_unique<vlm::Vlm>(vlm::load_config(directory / "config.json"), device, precision)),
      start_of_turn_(tokenizer_.id_of("<|im_start|>")),
      end_of_turn_(tokenizer_.id_of("<|im_end|>")),
      vision_start_(tokenizer_.id_of("<|vision_start|>")),
      vision_end_(tokenizer_.id_of("<|vision_end|>")) {
    const vlm::Config& c = vlm_->config();
    ATELIER_CHECK_INPUT(tokenizer_.size() <= c.text.vocabulary,
                        "{}: the tokenizer has {} tokens, the model's vocabulary {}",
                        directory.string(), tokenizer_.size(), c.text.vocabulary);
    ATELIER_CHECK_INPUT(processor_.patch_elements() == c.vision.patch_elements() &&
                            processor_.merge_size == c.vision.merge,
                        "{}: its patches don't fit the vision tower of {}",
                        processor_.path.string(), directory.string());
}

Bytes QuestionMaker::weight_bytes() const { return nn::frozen_bytes(vlm_->table(), vlm_->device(), vlm_->precision()); }

Question QuestionMaker::make_question(const Conversation& c, const model::VisionInputs* seen) const {
    Question q;
    std::size_t pictures = 0;
    const auto special = [&](std::int32_t id) { q.ids.push_back(id); };
    const auto text = [&](const std::string& what) {
        for (const std::int32_t id : tokenizer_.encode(what)) {
            ATELIER_CHECK_KIND(ErrorKind::reward,
                               id != start_of_turn_ && id != end_of_turn_ && id != vision_start_ &&
                                   id != vision_end_ && id != vlm_->config().image_token,
                               "a question to the judge holds {}, which would forge a turn or a "
                               "picture",
                               tokenizer_.spelling(id));
            q.ids.push_back(id);
        }
    };
    special(start_of_turn_);
    text("system\n" + c.system);
    special(end_of_turn_);
    text("\n");
    special(start_of_turn_);
    // Neighbouring texts make one: where they meet, tokens may join them.
    std::string pending = "user\n";
    for (const Part& part : c.user) {
        pending += part.text;
        if (part.picture == nullptr) continue;
        text(pending);
        pending.clear();
        if (seen == nullptr)
            model::append_patches(
                processor_, model::resize_for_vision(processor_, model::over_white(*part.picture), model::PassOrder::pillow_13),
                q.vision);
        const auto [frames, high, wide] = (seen != nullptr ? *seen : q.vision).image_grid_thw.at(pictures++);
        special(vision_start_);
        q.ids.insert(q.ids.end(),
                     static_cast<std::size_t>(frames * high * wide /
                                              (processor_.merge_size * processor_.merge_size)),
                     vlm_->config().image_token);
        special(vision_end_);
    }
    text(pending);
    special(end_of_turn_);
    text("\n");
    special(start_of_turn_);
    text("assistant\n");
    return q;
}

ScoreTokens QuestionMaker::score_tokens(const Template& asked) const {
    const std::string marker(score_marker);
    ScoreTokens s;
    s.marker = tokenizer_.encode(marker);
    std::vector<std::vector<std::int32_t>> written;
    for (const std::string& token : asked.score_tokens)
        written.push_back(tokenizer_.encode(marker + " " + token));
    const std::size_t shared = common_prefix(written[0], written[1]);
    ATELIER_CHECK_USAGE(shared >= s.marker.size() &&
                            common_prefix(s.marker, written[0]) == s.marker.size(),
                        "{}: score tokens join \"{}\" in this model's tokens", asked.path.string(),
                        marker);
    for (std::size_t i = 0; i < written.size(); ++i) {
        ATELIER_CHECK_USAGE(written[i].size() == shared + 1 &&
                                common_prefix(written[0], written[i]) >= shared,
                            "{}: the score token '{}' is not one token of this model",
                            asked.path.string(), asked.score_tokens[i]);
        s.candidates.push_back(written[i].back());
    }
    s.gap.assign(written[0].begin() + static_cast<std::ptrdiff_t>(s.marker.size()),
                 written[0].end() - 1);
    if (!asked.may_not_apply) return s;
    const std::vector<std::int32_t> absent = tokenizer_.encode(marker + " none");
    const std::size_t at = common_prefix(absent, written[0]);
    ATELIER_CHECK_USAGE(at >= s.marker.size() && at <= shared && at < absent.size(),
                        "{}: \"none\" cannot be told from the scores in this model's tokens",
                        asked.path.string());
    s.none.assign(absent.begin() + static_cast<std::ptrdiff_t>(s.marker.size()), absent.end());
    s.absent = absent[at];
    s.absent_at = at - s.marker.size();
    return s;
}

}  // namespace atelier::judge
