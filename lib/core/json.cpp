#include "core/json.hpp"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>
#include <vector>

#include "core/open_failure.hpp"

namespace atelier {

namespace {

using Json = nlohmann::json;

/// Puts the value together as it is read. (nlohmann's own parser with a callback looks at all values of an object again whenever one of
/// them ends: a manifest of n files took n² steps.)
class Builder final : public nlohmann::json_sax<Json> {
  public:
    explicit Builder(const std::string& place, std::string_view left_out = {}) : place_(place), left_out_(left_out) {}
    Json take() { return std::move(root_); }

    bool null() override { return put(nullptr); }
    bool boolean(bool value) override { return put(value); }
    bool number_integer(number_integer_t value) override { return put(value); }
    bool number_unsigned(number_unsigned_t value) override { return put(value); }
    bool number_float(number_float_t value, const string_t&) override { return put(value); }
    bool string(string_t& value) override { return put(std::move(value)); }
    bool binary(binary_t& value) override { return put(std::move(value)); }
    bool start_object(std::size_t) override { return open(Json::object()); }
    bool start_array(std::size_t) override { return open(Json::array()); }
    bool end_object() override { return close(); }
    bool end_array() override { return close(); }
    bool key(string_t& name) override {
        if (skips_) return true;
        skips_ = !left_out_.empty() && open_.size() == 1 && name == left_out_;
        if (skips_) return true;
        const auto [place, is_new] = open_.back()->get_ref<Json::object_t&>().emplace(name, nullptr);
        ATELIER_CHECK_INPUT(is_new, "{} names '{}' twice in one object", place_, name);
        value_ = &place->second;
        return true;
    }
    bool parse_error(std::size_t, const std::string&, const Json::exception& e) override {
        ATELIER_FAIL(ErrorKind::input, "{}: not valid JSON ({}); is it truncated?", place_, e.what());
    }

  private:
    /// Where the next value goes.
    Json& place() {
        ATELIER_CHECK_INPUT(static_cast<int>(open_.size()) <= max_json_depth, "{}: nested more than {} deep", place_, max_json_depth);
        if (open_.empty()) return root_;
        if (open_.back()->is_array()) return open_.back()->emplace_back(nullptr);
        return *value_;
    }
    template <typename T>
    bool put(T&& value) {
        if (skips_) {
            skips_ = inside_ > 0;
            return true;
        }
        place() = std::forward<T>(value);
        return true;
    }
    bool open(Json value) {
        if (skips_) {
            ++inside_;
            return true;
        }
        Json& at = place();
        at = std::move(value);
        open_.push_back(&at);
        return true;
    }
    bool close() {
        if (skips_) {
            skips_ = --inside_ > 0;
            return true;
        }
        open_.pop_back();
        return true;
    }
    const std::string& place_;
    std::string_view left_out_;
    bool skips_ = false;       ///< the next value is left out
    std::int64_t inside_ = 0;  ///< of objects and arrays of one that is
    Json root_;
    std::vector<Json*> open_;  ///< objects and arrays, outermost first; what an open one holds doesn't move
    Json* value_ = nullptr;    ///< of the key that was read last
};

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::string& place) {
    return parse_json_without({}, text, place);
}

nlohmann::json parse_json_without(std::string_view left_out, std::string_view text, const std::string& place) {
    Builder builder(place, left_out);
    Json::sax_parse(text, &builder);
    return builder.take();
}

nlohmann::json read_json(const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    const int reason = errno;
    ATELIER_CHECK_KIND(kind_of_failed_open(reason), in.is_open(), "{}: cannot be opened ({}); expected a JSON file", path.string(), std::strerror(reason));
    ATELIER_CHECK_INPUT(!std::filesystem::is_directory(path), "{} is a directory; expected a JSON file", path.string());
    // Not by iterators: they throw what a failed read throws, without the file's name.
    std::string text;
    char piece[1 << 16];
    while (in.read(piece, sizeof(piece)) || in.gcount() > 0) text.append(piece, static_cast<std::size_t>(in.gcount()));
    ATELIER_CHECK_IO(!in.bad(), "{}: cannot be read to its end", path.string());
    return parse_json(text, path.string());
}

}  // namespace atelier
