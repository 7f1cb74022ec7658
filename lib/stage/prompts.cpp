#include "stage/prompts.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <functional>
#include <iterator>
#include <numeric>
#include <string_view>

#include "core/error.hpp"
#include "core/json.hpp"
#include "io/file_io.hpp"
#include "io/image/png.hpp"
#include "io/lookup.hpp"

namespace atelier::stage {
namespace {

using Json = nlohmann::json;

constexpr std::string_view fields[] = {"id", "task", "category", "text", "images", "attributes", "size"};

std::string text_field(const Json& line, const char* key, const std::string& place) {
    const auto found = line.find(key);
    ATELIER_CHECK_INPUT(found != line.end() && found->is_string(), "{}: no text '{}'", place, key);
    // A shard's texts, file names and messages would end there.
    ATELIER_CHECK_INPUT(found->get_ref<const std::string&>().find('\0') == std::string::npos, "{}: '{}' holds a NUL character", place, key);
    return found->get<std::string>();
}

/// A category names a group of an HDF5 file and columns of tables.
bool can_name_category(const std::string& text) {
    return !text.empty() && text != "." && text != ".." && text.size() <= 200 &&
           std::ranges::none_of(text, [](unsigned char c) { return c == '/' || std::iscntrl(c) != 0; });
}

std::optional<model::PictureSize> size_field(const Json& line, const std::string& place) {
    const auto found = line.find("size");
    if (found == line.end()) return std::nullopt;
    const auto is_side = [](const Json& side) {
        return side.is_number_integer() && side.get<std::int64_t>() >= side_multiple && side.get<std::int64_t>() <= io::max_png_side &&
               side.get<std::int64_t>() % side_multiple == 0;
    };
    ATELIER_CHECK_INPUT(found->is_array() && found->size() == 2 && is_side((*found)[0]) && is_side((*found)[1]),
                        "{}: \"size\" must be [height, width], multiples of {} pixels, {} at most, found {}", place, side_multiple, io::max_png_side,
                        found->dump());
    return model::PictureSize{.width = (*found)[1], .height = (*found)[0]};
}

std::uint32_t hash_of(const std::string& id) { return static_cast<std::uint32_t>(std::hash<std::string>()(id)); }

}  // namespace

PromptPool::PromptPool(std::filesystem::path file, std::string task, std::string kind)
    : file_(std::move(file)), task_(std::move(task)), kind_(std::move(kind)) {
    ATELIER_CHECK_INPUT(std::filesystem::exists(file_), "cannot open the prompt file {}", file_.string());
    text_ = io::read_text(file_);
    std::uint32_t place = 1;
    for (std::size_t begin = 0; begin < text_.size(); ++place) {
        const std::size_t end = std::min(text_.find('\n', begin), text_.size());
        if (std::string_view(text_).substr(begin, end - begin).find_first_not_of(" \t\r") != std::string_view::npos) {
            ATELIER_CHECK_INPUT(end - begin <= UINT32_MAX && place < UINT32_MAX, "{}:{}: a line of {} bytes", file_.string(), place, end - begin);
            Line line{begin, static_cast<std::uint32_t>(end - begin), place, static_cast<std::uint32_t>(lines_.size()), 0};
            line.id_hash = hash_of(parse(line).id);
            lines_.push_back(line);
        }
        begin = end + 1;
    }
    ATELIER_CHECK_INPUT(!lines_.empty(), "{} holds no prompt", file_.string());
    check_ids();
}

void PromptPool::check_ids() const {
    std::vector<std::uint32_t> order(lines_.size());
    std::iota(order.begin(), order.end(), 0u);
    std::ranges::stable_sort(order, {}, [&](std::uint32_t i) { return lines_[i].id_hash; });
    for (std::size_t i = 0; i < order.size(); ++i)
        for (std::size_t j = i + 1; j < order.size() && lines_[order[j]].id_hash == lines_[order[i]].id_hash; ++j) {
            const std::string id = parse(lines_[order[j]]).id;
            ATELIER_CHECK_INPUT(id != parse(lines_[order[i]]).id, "{}: id '{}' stands twice", place_of(lines_[order[j]]), id);
        }
}

Prompt PromptPool::at(std::size_t index) const { return parse(lines_.at(index)); }

std::optional<std::size_t> PromptPool::find(const std::string& id) const {
    const std::uint32_t hash = hash_of(id);
    for (std::size_t i = 0; i < lines_.size(); ++i)
        if (lines_[i].id_hash == hash && parse(lines_[i]).id == id) return i;
    return std::nullopt;
}

void PromptPool::keep(std::span<const std::uint64_t> indices) {
    std::vector<Line> kept;
    kept.reserve(indices.size());
    for (const std::uint64_t i : indices) kept.push_back(lines_.at(i));
    lines_ = std::move(kept);
}

std::string PromptPool::place_of(const Line& line) const { return fmt::format("{}:{}", file_.string(), line.place); }

Prompt PromptPool::parse(const Line& of) const {
    const std::string place = place_of(of);
    const Json line = parse_json(std::string_view(text_).substr(of.begin, of.length), place);
    ATELIER_CHECK_INPUT(line.is_object(), "{} is not a JSON object", place);
    Prompt p;
    p.number = of.number;
    p.id = text_field(line, "id", place);
    ATELIER_CHECK_INPUT(!p.id.empty(), "{}: the id is empty", place);
    const std::string found = text_field(line, "task", place);
    ATELIER_CHECK_INPUT(found == kind_, "{}: a prompt of kind {} in the file of task {}, whose kind is {}", place, found, task_, kind_);
    p.task = task_;
    p.category = text_field(line, "category", place);
    ATELIER_CHECK_INPUT(can_name_category(p.category), "{}: '{}' cannot name a category", place, p.category);
    p.text = text_field(line, "text", place);
    for (const auto& [key, value] : line.items())
        ATELIER_CHECK_INPUT(std::ranges::find(fields, key) != std::end(fields), "{}: unknown field \"{}\"; a prompt has {}", place, key,
                            fmt::join(fields, ", "));
    const Json attributes = line.value("attributes", Json::object()), images = line.value("images", Json::array());
    ATELIER_CHECK_INPUT(attributes.is_object(), "{}: \"attributes\" must be an object, found {}", place, attributes.dump());
    ATELIER_CHECK_INPUT(images.is_array(), "{}: \"images\" must be a list of files, found {}", place, images.dump());
    ATELIER_CHECK_INPUT(kind_ != "edit" || !images.empty(), "{}: an edit without pictures: \"images\" must name at least one", place);
    p.attributes = attributes.dump();
    for (const Json& image : images) {
        ATELIER_CHECK_INPUT(image.is_string(), "{}: images holds {}", place, image.dump());
        const std::filesystem::path relative = image.get<std::string>();
        ATELIER_CHECK_INPUT(io::stays_inside(relative), "{}: picture {} lies outside the prompt file's directory", place, relative.string());
        p.images.push_back(file_.parent_path() / relative);
    }
    p.size = size_field(line, place);
    return p;
}

PromptSource source_of(const PromptPool& pool) {
    return {pool.size(), [&pool](std::size_t i) { return pool.at(i); }};
}

PromptSource source_of(const std::vector<Prompt>& prompts) {
    return {prompts.size(), [&prompts](std::size_t i) { return prompts.at(i); }};
}

std::vector<Prompt> read_prompts(const std::filesystem::path& file, const std::string& task,
                                 const std::string& kind) {
    const PromptPool pool(file, task, kind);
    std::vector<Prompt> prompts;
    for (std::size_t i = 0; i < pool.size(); ++i) prompts.push_back(pool.at(i));
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

std::vector<std::size_t> draw_order(std::uint64_t seed, std::uint64_t of, std::uint64_t epoch, std::size_t count) {
    std::vector<std::size_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    Random random(random_key(seed, RandomUse::data_order, of, epoch));
    for (std::size_t i = count; i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
    return order;
}

std::uint64_t task_number(const std::string& task) {
    std::uint64_t hash = 0xcbf29ce484222325ull;  // FNV-1a
    for (const char c : task) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
    return hash;
}

}  // namespace atelier::stage
