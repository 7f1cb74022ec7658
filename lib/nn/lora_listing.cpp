#include "nn/lora_listing.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <cmath>
#include <memory>
#include <optional>
#include <set>

#include "core/json.hpp"
#include "io/file_io.hpp"
#include "nn/checkpoint_weights.hpp"

namespace atelier::nn {
namespace {

namespace fs = std::filesystem;
using OrderedJson = nlohmann::ordered_json;  // the first pattern that matches counts

constexpr std::string_view prefixes[] = {pipeline_prefix, peft_prefix, comfy_prefix, ""};
constexpr std::string_view alpha_suffix = ".alpha";
struct PairNames {
    std::string_view down, up;
};
constexpr PairNames pairs[] = {{".lora_A.weight", ".lora_B.weight"}, {".lora_down.weight", ".lora_up.weight"}};

/// The weights' file of what the user named.
fs::path weights_file(const fs::path& path) {
    if (!fs::is_directory(path)) return path;
    for (const char* name : {lora_file_name, peft_file_name})
        if (fs::exists(path / name)) return path / name;
    ATELIER_FAIL(ErrorKind::input, "{} holds neither {} nor {}", path.string(), lora_file_name, peft_file_name);
}

/// The prefix that every tensor of the file has.
std::string_view prefix_of(const io::Safetensors& file) {
    for (const std::string_view prefix : prefixes) {
        bool all = !file.tensors().empty();
        for (const auto& [name, stored] : file.tensors()) all = all && name.starts_with(prefix);
        if (all) return prefix;
    }
    ATELIER_FAIL(ErrorKind::input, "{} holds no tensors", file.path().string());
}

/// Of PEFT's patterns: a regular expression for a module's whole name or for what follows a dot of it (peft.utils.get_pattern_key).
class Pattern {
  public:
    Pattern(const std::string& text, const std::string& place) : place_(fmt::format("{}: pattern {}", place, text)) {
        const std::string whole = "^(?:.*\\.)?(?:" + text + ")$";
        int error = 0;
        PCRE2_SIZE offset = 0;
        code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(whole.data()), whole.size(), PCRE2_NEVER_BACKSLASH_C | PCRE2_DOLLAR_ENDONLY, &error,
                                  &offset, nullptr));
        ATELIER_CHECK_INPUT(code_ != nullptr, "{} is no regular expression: {}", place_, message_of(error));
        // Names are short: what tries longer than this would never end.
        pcre2_set_match_limit(limits_.get(), 1'000'000);
    }
    bool matches(const std::string& module) const {
        const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(pcre2_match_data_create(1, nullptr), &pcre2_match_data_free);
        const int found = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(module.data()), module.size(), 0, 0, match.get(), limits_.get());
        ATELIER_CHECK_INPUT(found >= 0 || found == PCRE2_ERROR_NOMATCH, "{} failed on {}: {}", place_, module, message_of(found));
        return found >= 0;
    }

  private:
    static std::string message_of(int error) {
        std::array<PCRE2_UCHAR, 256> text{};
        pcre2_get_error_message(error, text.data(), text.size());
        return reinterpret_cast<const char*>(text.data());
    }
    std::string place_;
    std::unique_ptr<pcre2_code, decltype(&pcre2_code_free)> code_{nullptr, &pcre2_code_free};
    std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> limits_{pcre2_match_context_create(nullptr), &pcre2_match_context_free};
};

/// A value for all modules, and others for those that match.
template <typename T>
class Patterned {
  public:
    Patterned(const OrderedJson& json, const char* key, const char* patterns, const std::string& path) {
        ATELIER_CHECK_INPUT(json.contains(key) && is_positive(json[key]), "{}: its configuration has no positive numbers r and lora_alpha", path);
        usual_ = json[key].get<T>();
        const std::string place = fmt::format("{}: {}", path, patterns);
        if (!json.contains(patterns) || json[patterns].is_null()) return;
        ATELIER_CHECK_INPUT(json[patterns].is_object(), "{} must be an object, found {}", place, json[patterns].dump());
        for (const auto& [pattern, value] : json[patterns].items()) {
            ATELIER_CHECK_INPUT(is_positive(value), "{} must give positive numbers, found {} for {}", place, value.dump(), pattern);
            others_.emplace_back(Pattern(pattern, place), value.template get<T>());
        }
    }
    T of(const std::string& module) const {
        for (const auto& [pattern, value] : others_)
            if (pattern.matches(module)) return value;
        return usual_;
    }

  private:
    static bool is_positive(const OrderedJson& value) {
        return (std::is_integral_v<T> ? value.is_number_integer() : value.is_number()) && value.template get<T>() > 0;
    }
    T usual_;
    std::vector<std::pair<Pattern, T>> others_;
};

/// An adapter's configuration as PEFT writes it.
struct Settings {
    Settings(const OrderedJson& json, const std::string& path)
        : rank(json, "r", "rank_pattern", path), alpha(json, "lora_alpha", "alpha_pattern", path), is_rank_stabilised(is_set(json, "use_rslora")) {
        for (const char* flag : {"use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out"})
            ATELIER_CHECK_INPUT(!is_set(json, flag), "{}: {} = {} is not supported", path, flag, json[flag].dump());
    }
    LoraSize of(const std::string& module) const {
        const std::int64_t r = rank.of(module);
        return {r, alpha.of(module) * (is_rank_stabilised ? std::sqrt(static_cast<double>(r)) : 1.0)};
    }
    static bool is_set(const OrderedJson& json, const char* flag) { return json.contains(flag) && !json[flag].is_null() && json[flag] != false; }
    Patterned<std::int64_t> rank;
    Patterned<double> alpha;
    bool is_rank_stabilised;
};

/// From the file's metadata, or from the file beside it.
std::optional<Settings> read_settings(const io::Safetensors& file) {
    const std::string path = file.path().string();
    const auto parse = [](const std::string& text, const std::string& place) {
        ATELIER_CHECK_INPUT(parse_json(text, place).is_object(), "{} is not a JSON object", place);
        return OrderedJson::parse(text);
    };
    if (const auto found = file.metadata().find(lora_metadata_key); found != file.metadata().end()) {
        const OrderedJson all = parse(found->second, fmt::format("{}: {}", path, lora_metadata_key));
        OrderedJson settings = OrderedJson::object();
        for (const auto& [key, value] : all.items())
            settings[key.starts_with(pipeline_prefix) ? key.substr(pipeline_prefix.size()) : key] = value;
        return Settings(settings, path);
    }
    const fs::path beside = file.path().parent_path() / peft_config_name;
    if (!fs::exists(beside)) return std::nullopt;
    return Settings(parse(io::read_text(beside), beside.string()), beside.string());
}

/// A module's own tensor for it; 0: none.
double own_alpha(const io::Safetensors& file, const std::string& name) {
    if (!file.contains(name)) return 0;
    const io::StoredTensor& stored = file.at(name);
    const std::string where = file.path().string();
    ATELIER_CHECK_INPUT(stored.shape.elements() == 1, "{}: tensor {} must hold one number, found shape {}", where, name, stored.shape.str());
    const float alpha = file.floats(name).front();
    ATELIER_CHECK_INPUT(std::isfinite(alpha) && alpha > 0, "{}: tensor {} must be positive, found {}", where, name, alpha);
    return alpha;
}

}  // namespace

bool holds_lora(const fs::path& directory) { return fs::exists(directory / lora_file_name) || fs::exists(directory / peft_file_name); }

std::int64_t LoraListing::parameters() const {
    std::int64_t count = 0;
    for (const Module& module : modules) count += module.a.shape.elements() + module.b.shape.elements();
    return count;
}

std::string LoraListing::text() const {
    std::vector<LoraSize> sizes;
    for (const Module& module : modules) sizes.push_back(module.size);
    return describe(sizes);
}

LoraListing list_lora(const fs::path& path) {
    LoraListing listing{io::Safetensors::open(weights_file(path)), {}};
    const io::Safetensors& file = listing.file;
    const std::string where = file.path().string();
    const std::string_view prefix = prefix_of(file);
    const std::optional<Settings> settings = read_settings(file);
    ATELIER_CHECK_INPUT(settings || prefix != peft_prefix, "{}: no {} in the file's metadata and no {} beside it, so alpha is unknown", where,
                        lora_metadata_key, peft_config_name);
    std::set<std::string> modules, alphas;
    for (const auto& [name, stored] : file.tensors()) {
        if (name.ends_with(alpha_suffix)) {
            ATELIER_CHECK_INPUT(!settings, "{}: tensor {} and a configuration with lora_alpha: which of the two holds is not said", where, name);
            alphas.insert(name.substr(0, name.size() - alpha_suffix.size()));
            continue;
        }
        bool is_part = false;
        for (const PairNames& pair : pairs) {
            const bool is_up = name.ends_with(pair.up);
            const std::string_view ending = is_up ? pair.up : pair.down;
            if (!name.ends_with(ending) || name.size() <= prefix.size() + ending.size()) continue;
            is_part = true;
            check_dtype(file, stored);
            const std::string stem = name.substr(0, name.size() - ending.size()), module = stem.substr(prefix.size());
            const std::string partner = stem + std::string(is_up ? pair.down : pair.up);
            ATELIER_CHECK_INPUT(file.contains(partner), "{}: {} stands without {}", where, name, partner);
            if (is_up) continue;
            ATELIER_CHECK_INPUT(modules.insert(stem).second, "{}: {} is adapted twice", where, module);
            const io::StoredTensor& other = file.at(partner);
            const Shape &a = stored.shape, &b = other.shape;
            ATELIER_CHECK_INPUT(a.rank() == 2 && b.rank() == 2 && a[0] >= 1 && a[0] == b[1],
                                "{}: {} must have A [rank, in] and B [out, rank], found A {} and B {}", where, module, a.str(), b.str());
            LoraSize size{a[0], static_cast<double>(a[0])};
            if (settings) size = settings->of(module);
            if (const double own = own_alpha(file, stem + std::string(alpha_suffix)); own > 0) size.alpha = own;
            ATELIER_CHECK_INPUT(size.rank == a[0], "{}: {} has rank {} by the configuration, found A {} and B {}", where, module, size.rank, a.str(),
                                b.str());
            listing.modules.push_back({module, size, stored, other});
        }
        ATELIER_CHECK_INPUT(is_part, "{}: tensor {} is no part of a LoRA adapter", where, name);
    }
    for (const std::string& stem : alphas)
        ATELIER_CHECK_INPUT(modules.contains(stem), "{}: tensor {}{} belongs to no module that is adapted", where, stem, alpha_suffix);
    return listing;
}

}  // namespace atelier::nn
