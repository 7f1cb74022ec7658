#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "core/error.hpp"
#include "core/json.hpp"

namespace atelier::model {

/// A value of a JSON file together with where it stands, so that every complaint names the file,
/// the key and what was found. A view: the document must outlive it.
class JsonNode {
  public:
    JsonNode(const nlohmann::json& value, std::string place)
        : value_(&value), place_(std::move(place)) {}
    const nlohmann::json& value() const { return *value_; }
    /// "dir/tokenizer.json: model.merges"
    const std::string& place() const { return place_; }
    /// The value as text, cut at 120 bytes.
    std::string found() const;

    /// The key is there and not null.
    bool has(const std::string& key) const;
    /// Throws Error(input) if this is not an object or has no such key.
    JsonNode at(const std::string& key) const;
    std::size_t size() const { return value_->size(); }
    /// Entry `index` of an array.
    JsonNode operator[](std::size_t index) const;

    std::string text() const;
    std::int64_t integer() const;
    double number() const;
    bool flag() const;
    /// `key` as a bool, `otherwise` if absent or null.
    bool flag_or(const std::string& key, bool otherwise) const;

    /// Throws Error(input) unless the value is null or equal to one of `allowed`: for settings that
    /// change the result and have one supported value.
    void require(const std::string& key, std::initializer_list<nlohmann::json> allowed) const;
    /// Throws Error(input) if the object has a key outside `known` whose value is neither null nor
    /// false: a setting that this program doesn't know may change the result.
    void only_known(std::initializer_list<std::string_view> known) const;

  private:
    const nlohmann::json* value_;
    std::string place_;
};

}  // namespace atelier::model
