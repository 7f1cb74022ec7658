#include "model/tokenizer/json_file.hpp"

#include <algorithm>
#include <fstream>

namespace atelier::model {

namespace {

using nlohmann::json;

std::string shortened(const json& value) {
    constexpr std::size_t longest = 120;
    std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
    return text.size() <= longest ? text : text.substr(0, longest) + "…";
}

}  // namespace

std::string JsonNode::found() const { return shortened(*value_); }

bool JsonNode::has(const std::string& key) const {
    if (!value_->is_object()) return false;
    const auto it = value_->find(key);
    return it != value_->end() && !it->is_null();
}

JsonNode JsonNode::at(const std::string& key) const {
    ATELIER_CHECK_INPUT(value_->is_object(), "{}: expected an object with the key \"{}\", found {}",
                        place_, key, found());
    const auto it = value_->find(key);
    ATELIER_CHECK_INPUT(it != value_->end(), "{}: the key \"{}\" is missing", place_, key);
    const bool top = place_.find(": ") == std::string::npos;
    return {*it, place_ + (top ? ": " : ".") + key};
}

JsonNode JsonNode::operator[](std::size_t index) const {
    ATELIER_CHECK_INPUT(value_->is_array() && index < value_->size(),
                        "{}: expected an array with more than {} entries, found {}", place_, index,
                        found());
    return {(*value_)[index], fmt::format("{}[{}]", place_, index)};
}

std::string JsonNode::text() const {
    ATELIER_CHECK_INPUT(value_->is_string(), "{}: expected a string, found {}", place_, found());
    return value_->get<std::string>();
}

std::int64_t JsonNode::integer() const {
    ATELIER_CHECK_INPUT(value_->is_number_integer(), "{}: expected an integer, found {}", place_,
                        found());
    return value_->get<std::int64_t>();
}

double JsonNode::number() const {
    ATELIER_CHECK_INPUT(value_->is_number(), "{}: expected a number, found {}", place_, found());
    return value_->get<double>();
}

bool JsonNode::flag() const {
    ATELIER_CHECK_INPUT(value_->is_boolean(), "{}: expected true or false, found {}", place_,
                        found());
    return value_->get<bool>();
}

bool JsonNode::flag_or(const std::string& key, bool otherwise) const {
    return has(key) ? at(key).flag() : otherwise;
}

void JsonNode::require(const std::string& key, std::initializer_list<json> allowed) const {
    if (!has(key)) return;
    const JsonNode node = at(key);
    if (std::find(allowed.begin(), allowed.end(), node.value()) != allowed.end()) return;
    std::string list;
    for (const json& value : allowed) list += (list.empty() ? "" : " or ") + shortened(value);
    ATELIER_FAIL(ErrorKind::input, "{}: only {} is supported, found {}", node.place(),
                 list.empty() ? "null" : list, node.found());
}

void JsonNode::only_known(std::initializer_list<std::string_view> known) const {
    ATELIER_CHECK_INPUT(value_->is_object(), "{}: expected an object, found {}", place_, found());
    for (const auto& [key, value] : value_->items()) {
        const bool harmless = value.is_null() || (value.is_boolean() && !value.get<bool>());
        ATELIER_CHECK_INPUT(
            harmless || std::find(known.begin(), known.end(), key) != known.end(),
            "{}: the setting is not known to this program and may change the result, found {}",
            at(key).place(), shortened(value));
    }
}

}  // namespace atelier::model
