#pragma once

#include <memory>
#include <span>

#include "judge/native_judge.hpp"
#include "reward/scorer.hpp"
#include "stage/context.hpp"

namespace atelier::stage {

/// The scorer that [reward] scorer names, for the kinds of the configuration's tasks. Throws
/// Error(usage) naming the key for settings that don't fit, a template that isn't right, or a key
/// variable that the environment lacks.
std::unique_ptr<reward::Scorer> make_scorer(const Context& context);

/// The settings of [judge] for a judge of this directory that runs on `device`.
judge::NativeJudgeConfig native_judge_config(const Context& context, const std::filesystem::path& directory, Device device);
/// What the scorer asks a judge, by kind. Throws Error(usage), Error(input).
std::map<std::string, std::vector<judge::Template>> judge_templates(const config::Config& config);

/// Every dimension that the configured scorer knows for a kind, lowest tier first, without making the scorer. Throws Error(usage),
/// Error(input) for the judge's templates.
std::vector<std::string> scored_dimensions(const config::Config& config, const std::string& kind);

/// The tier of each of them, by name: its template's; a measure has one of its own, above those before it. Throws as scored_dimensions().
std::map<std::string, std::int64_t> dimension_tiers(const config::Config& config, const std::string& kind);

/// The scorer that [reward] truth names; null: none.
std::unique_ptr<reward::Scorer> make_truth(const config::Config& config);

/// What of the configuration can be checked before a run is made of it: above all that no secret
/// stands where the name of an environment variable, or a plain URL, belongs. Throws Error(usage)
/// without repeating what it found.
void check_scorer(const config::Config& config);

/// Before a run is made: the scorer's files are there, and a native judge can be asked: its weights are there, a sample's dimensions fit
/// `judge.answers`, a question without a prompt about the largest picture that is configured, and a source as large as it is shown, fits
/// `judge.context`; weights and shares name what
/// there is (check_weights). Reads no weight. Throws Error(input) or Error(usage).
void check_scorer_files(const Context& context);

/// What a manifest names as the scorer's inputs: the judge's templates, every file of its weights, its configuration, tokenizer and
/// processor, the networks of identity. Each file is read by one rank, and not at all where stated_digest() knows it; the same on every
/// rank. Collective.
std::map<std::string, io::FileDigest> scorer_inputs(const Context& context);

/// Hash of what prompts' pictures and scores are made from beside configuration and weights: the scorer's inputs; of each prompt id, task,
/// category, text, attributes, size, and the bytes of its reference pictures. Stands in shards (inputs_hash), so that those of another
/// judge or of other pictures are told apart. Throws Error(input) for a picture that is missing.
std::string inputs_hash(const std::map<std::string, io::FileDigest>& scorer, std::span<const Prompt> prompts);

}  // namespace atelier::stage
