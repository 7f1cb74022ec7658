#include "requests.hpp"

#include <set>
#include <sstream>

#include "core/error.hpp"
#include "core/json.hpp"
#include "io/file_io.hpp"
#include "io/lookup.hpp"

namespace atelier::generate {
namespace {

using Json = nlohmann::json;

std::string text_of(const Json& line, const char* key, const std::string& place) {
    const auto found = line.find(key);
    ATELIER_CHECK_INPUT(found != line.end() && found->is_string(), "{}: no text '{}'", place, key);
    ATELIER_CHECK_INPUT(found->get_ref<const std::string&>().find('\0') == std::string::npos, "{}: '{}' holds a NUL character", place, key);
    return found->get<std::string>();
}

/// A name that stays within the output directory.
void check_name(const std::string& name, const std::string& place) {
    ATELIER_CHECK_INPUT(!name.empty() && name[0] != '.' && name.find('/') == std::string::npos && name.size() <= 200,
                        "{}: id '{}' cannot name a file", place, name);
}

/// Height and width that a line names, or the command line's.
std::pair<std::int64_t, std::int64_t> size_of(const Json& line, const Options& o, const std::string& place) {
    const auto found = line.find("size");
    if (found == line.end()) return {o.height, o.width};
    const auto is_side = [](const Json& side) { return side.is_number_integer() && side.get<std::int64_t>() > 0; };
    ATELIER_CHECK_INPUT(found->is_array() && found->size() == 2 && is_side((*found)[0]) && is_side((*found)[1]),
                        "{}: \"size\" must be [height, width] in pixels, found {}", place, found->dump());
    return {(*found)[0], (*found)[1]};
}

}  // namespace

std::vector<Request> make_requests(const Options& o) {
    if (!o.prompts) return {{o.prompt, o.negative, o.has_negative, o.images, o.output, o.height, o.width}};
    std::istringstream in(io::read_text(*o.prompts));  // whole first: a read that fails must not end the list early
    std::vector<Request> requests;
    std::set<std::string> ids;
    std::string text;
    for (int number = 1; std::getline(in, text); ++number) {
        if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
        const std::string place = fmt::format("{}:{}", o.prompts->string(), number);
        const Json line = parse_json(text, place);
        ATELIER_CHECK_INPUT(line.is_object(), "{} is not a JSON object", place);
        Request r;
        const std::string id = text_of(line, "id", place);
        check_name(id, place);
        ATELIER_CHECK_INPUT(ids.insert(id).second, "{}: id '{}' stands twice", place, id);
        r.prompt = text_of(line, "text", place);
        r.has_negative = line.contains("negative") && !line["negative"].is_null();
        if (r.has_negative) r.negative = text_of(line, "negative", place);
        if (o.has_negative && !r.has_negative) {
            r.has_negative = true;
            r.negative = o.negative;
        }
        for (const Json& image : line.value("images", Json::array())) {
            ATELIER_CHECK_INPUT(image.is_string(), "{}: images holds {}", place, image.dump());
            const std::filesystem::path relative = image.get<std::string>();
            ATELIER_CHECK_INPUT(io::stays_inside(relative), "{}: picture {} lies outside the prompt file's directory", place, relative.string());
            r.images.push_back(o.prompts->parent_path() / relative);
        }
        const auto [height, width] = size_of(line, o, place);
        r.height = height;
        r.width = width;
        r.output = *o.output_dir / (id + ".png");
        requests.push_back(std::move(r));
    }
    return requests;
}

}  // namespace atelier::generate
