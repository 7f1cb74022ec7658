#include "core/json.hpp"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <set>
#include <vector>

#include "core/open_failure.hpp"

namespace atelier {

nlohmann::json parse_json(std::string_view text, const std::string& place) {
    using Json = nlohmann::json;
    std::vector<std::set<std::string>> keys;  // of the objects that are open
    const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
        ATELIER_CHECK_INPUT(depth <= max_json_depth, "{}: nested more than {} deep", place, max_json_depth);
        if (event == Json::parse_event_t::object_start) keys.emplace_back();
        if (event == Json::parse_event_t::object_end) keys.pop_back();
        if (event == Json::parse_event_t::key) {
            const auto& name = parsed.get_ref<const std::string&>();
            ATELIER_CHECK_INPUT(keys.back().insert(name).second, "{} names '{}' twice in one object", place, name);
        }
        return true;
    };
    try {
        return Json::parse(text, check);
    } catch (const Json::exception& e) {
        ATELIER_FAIL(ErrorKind::input, "{}: not valid JSON ({}); is it truncated?", place, e.what());
    }
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
