#include "stage/prompts.hpp"

#include <numeric>
#include <set>
#include <sstream>

#include "core/error.hpp"
#include "core/json.hpp"
#include "io/file_io.hpp"
#include "io/lookup.hpp"

namespace atelier::stage {
namespace {

using Json = nlohmann::json;

std::string text_field(const Json& line, const char* key, const std::string& place) {
    const auto found = line.find(key);
    ATELIER_CHECK_INPUT(found != line.end() && found->is_string(), "{}: no text '{}'", place, key);
    return found->get<std::string>();
}

std::optional<model::PictureSize> size_field(const Json& line, const std::string& place) {
    const auto found = line.find("size");
    if (found == line.end()) return std::nullopt;
    const auto is_side = [](const Json& side) {
        return side.is_number_integer() && side.get<std::int64_t>() >= side_multiple && side.get<std::int64_t>() % side_multiple == 0;
    };
    ATELIER_CHECK_INPUT(found->is_array() && found->size() == 2 && is_side((*found)[0]) && is_side((*found)[1]),
                        "{}: \"size\" must be [height, width], multiples of {} pixels, found {}", place, side_multiple, found->dump());
    return model::PictureSize{.width = (*found)[1], .height = (*found)[0]};
}

}  // namespace

std::vector<Prompt> read_prompts(const std::filesystem::path& file, const std::string& task,
                                 const std::string& kind) {
    ATELIER_CHECK_INPUT(std::filesystem::exists(file), "cannot open the prompt file {}", file.string());
    // Read whole first: a read that fails must not end the list early.
    std::istringstream in(io::read_text(file));
    std::vector<Prompt> prompts;
    std::set<std::string> ids;
    std::string text;
    for (int number = 1; std::getline(in, text); ++number) {
        if (text.empty()) continue;
        const std::string place = fmt::format("{}:{}", file.string(), number);
        const Json line = parse_json(text, place);
        ATELIER_CHECK_INPUT(line.is_object(), "{} is not a JSON object", place);
        Prompt p;
        p.number = prompts.size();
        p.id = text_field(line, "id", place);
        const std::string found = text_field(line, "task", place);
        ATELIER_CHECK_INPUT(found == kind,
                            "{}: a prompt of kind {} in the file of task {}, whose kind is {}",
                            place, found, task, kind);
        p.task = task;
        p.category = text_field(line, "category", place);
        ATELIER_CHECK_INPUT(!p.category.empty() && p.category.find('/') == std::string::npos,
                            "{}: '{}' cannot name a category", place, p.category);
        p.text = text_field(line, "text", place);
        ATELIER_CHECK_INPUT(ids.insert(p.id).second, "{}: id '{}' stands twice", place, p.id);
        p.attributes = line.value("attributes", Json::object()).dump();
        for (const Json& image : line.value("images", Json::array())) {
            ATELIER_CHECK_INPUT(image.is_string(), "{}: images holds {}", place, image.dump());
            const std::filesystem::path relative = image.get<std::string>();
            ATELIER_CHECK_INPUT(io::stays_inside(relative), "{}: picture {} lies outside the prompt file's directory", place,
                                relative.string());
            p.images.push_back(file.parent_path() / relative);
        }
        p.size = size_field(line, place);
        prompts.push_back(std::move(p));
    }
    ATELIER_CHECK_INPUT(!prompts.empty(), "{} holds no prompt", file.string());
    return prompts;
}

std::vector<std::size_t> draw_prompts(std::size_t total, std::size_t count, std::uint64_t seed,
                                      std::uint64_t task, std::uint64_t iteration) {
    ATELIER_CHECK_USAGE(count <= total, "{} prompts an iteration of a pool of {}", count, total);
    Random random(random_key(seed, RandomUse::prompt_choice, task, iteration));
    std::vector<std::size_t> order(total);
    std::iota(order.begin(), order.end(), 0);
    for (std::size_t i = 0; i < count; ++i) std::swap(order[i], order[i + random.below(total - i)]);
    order.resize(count);
    return order;
}

std::uint64_t task_number(const std::string& task) {
    std::uint64_t hash = 0xcbf29ce484222325ull;  // FNV-1a
    for (const char c : task) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
    return hash;
}

}  // namespace atelier::stage
