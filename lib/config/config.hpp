#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <variant>
#include <vector>

namespace atelier::config {

/// As in [[96, 160], [128, 128]].
using Pairs = std::vector<std::array<std::int64_t, 2>>;

using Value = std::variant<bool, std::int64_t, double, std::string, std::vector<std::string>, Pairs>;

/// One key of the configuration: what stands in its declaration is all that is to say about it.
struct Key {
    std::string name;     ///< "section.key"; "task.*.key" stands for every task
    Value fallback;       ///< its type is the key's type
    std::string meaning;
    std::string unit = "";
    double low = -std::numeric_limits<double>::infinity(), high = std::numeric_limits<double>::infinity();
    std::vector<std::string> choices = {};  ///< of a text; empty: any
    bool is_path = false;  ///< a text, or a list of them, made absolute: relative to the file it stands in, or to the working directory with --set
    /// Whether other results (beyond the rounding of sums in another order) come of another value. False for where, how fast and with what
    /// room a run is made: a run goes on with another one.
    bool changes_results = true;
};

/// Every key with its value and where that came from.
class Config {
  public:
    /// Reads a TOML file over the schema's defaults. `extends = "other.toml"` at its top names a file (relative to it) that is
    /// read first; `overrides` are "section.key=value" (TOML values; bare words are texts, also of a list of one) and win.
    /// Throws Error(usage) naming file and line: unknown keys with the nearest known one, wrong types, values out of range.
    static Config resolve(const std::filesystem::path& file, std::span<const std::string> overrides, const std::vector<Key>& schema);

    bool flag(const std::string& name) const;
    std::int64_t integer(const std::string& name) const;
    double number(const std::string& name) const;
    const std::string& text(const std::string& name) const;
    const std::vector<std::string>& list(const std::string& name) const;
    const Pairs& pairs(const std::string& name) const;
    /// Names of the [task.NAME] sections.
    std::vector<std::string> tasks() const;

    /// The whole as TOML, keys in order; reading it back gives the same configuration.
    std::string to_toml() const;
    /// The same with meaning, unit and origin of every key.
    std::string describe() const;
    /// xxh3-128 of the keys that change results, as to_toml() has them.
    std::string hash() const;
    /// Keys of which `other` has another value, or that only one of them has, as "section.key = 1, was 2"; those that change results, or
    /// those that don't.
    std::vector<std::string> differences(const Config& other, bool that_change_results) const;

  private:
    struct Entry {
        Value value;
        std::string origin;
    };
    const Value& at(const std::string& name) const;
    const Key& key_of(const std::string& name) const;
    void set(const std::string& name, Value value, const std::string& origin);
    void read_file(const std::filesystem::path& file, int depth);
    std::string to_toml(bool only_what_changes_results) const;
    /// Entries by section: a section's own keys before those of its subsections.
    std::vector<std::pair<std::string, std::vector<std::pair<std::string, const Entry*>>>> sections() const;
    std::vector<Key> schema_;
    std::map<std::string, Entry> entries_;
    friend struct Reader;
};

}  // namespace atelier::config
