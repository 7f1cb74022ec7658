#include "judge/template.hpp"

#include <algorithm>
#include <optional>
#include <set>
#include <toml++/toml.h>

#include "core/error.hpp"
#include "io/file_io.hpp"

namespace atelier::judge {
namespace {

constexpr std::string_view placeholder = "{prompt}";

/// Reads keys of one file and remembers which there were.
class Reader {
  public:
    explicit Reader(const std::filesystem::path& file) : file_(file.string()) {
        try {
            table_ = toml::parse(io::read_text(file), file_);
        } catch (const toml::parse_error& e) {
            ATELIER_FAIL(ErrorKind::usage, "{}:{}: {}", file_, e.source().begin.line,
                         std::string(e.description()));
        }
    }
    template <typename T>
    T get(const std::string& key, const char* type, std::optional<T> otherwise = {}) {
        known_.insert(key);
        const toml::node* node = table_.get(key);
        if (node == nullptr) {
            ATELIER_CHECK_USAGE(otherwise, "{}: {} is missing", file_, key);
            return *otherwise;
        }
        const auto value = node->value_exact<T>();
        ATELIER_CHECK_USAGE(value, "{}:{}: {} must be {}", file_, node->source().begin.line, key,
                            type);
        return *value;
    }
    std::string text(const std::string& key) {
        auto value = get<std::string>(key, "a text");
        ATELIER_CHECK_USAGE(!value.empty(), "{}: {} is empty", file_, key);
        return value;
    }
    std::array<std::string, levels> five(const std::string& key) {
        known_.insert(key);
        const toml::array* list = table_.get_as<toml::array>(key);
        ATELIER_CHECK_USAGE(list != nullptr && list->size() == levels,
                            "{}: {} must be a list of {} texts", file_, key, levels);
        std::array<std::string, levels> texts;
        for (std::size_t i = 0; i < levels; ++i) {
            const auto value = (*list)[i].value_exact<std::string>();
            ATELIER_CHECK_USAGE(value && !value->empty() &&
                                    std::find(texts.begin(), texts.end(), *value) == texts.end(),
                                "{}: entry {} of {} must be a text that stands once", file_, i + 1,
                                key);
            texts[i] = *value;
        }
        return texts;
    }
    bool has(const std::string& key) const { return table_.contains(key); }
    void only_known() const {
        for (const auto& [key, node] : table_)
            ATELIER_CHECK_USAGE(known_.contains(std::string(key.str())), "{}:{}: unknown key {}",
                                file_, node.source().begin.line, std::string(key.str()));
    }

  private:
    std::string file_;
    toml::table table_;
    std::set<std::string> known_;
};

}  // namespace

Template read_template(const std::filesystem::path& file) {
    Reader reader(file);
    Template t;
    t.path = file;
    t.dimension = reader.text("dimension");
    t.kind = reader.text("kind");
    t.tier = reader.get<std::int64_t>("tier", "an integer", std::int64_t{0});
    t.system = reader.text("system");
    t.question = reader.text("question");
    t.rubric = reader.text("rubric");
    t.level = reader.five("levels");
    t.answer = reader.text("answer");
    t.shows_source = reader.get<bool>("shows_source", "true or false", false);
    t.may_not_apply = reader.get<bool>("may_not_apply", "true or false", false);
    if (reader.has("score_tokens")) t.score_tokens = reader.five("score_tokens");
    t.reasoning_tokens = reader.get<std::int64_t>("reasoning_tokens", "an integer",
                                                  t.reasoning_tokens);
    reader.only_known();
    ATELIER_CHECK_USAGE(t.kind == "t2i" || t.kind == "edit", "{}: kind must be t2i or edit, found {}",
                        file.string(), t.kind);
    ATELIER_CHECK_USAGE(t.dimension.find('/') == std::string::npos && t.dimension[0] != '.',
                        "{}: '{}' cannot name a dimension", file.string(), t.dimension);
    ATELIER_CHECK_USAGE(t.question.find(placeholder) != std::string::npos,
                        "{}: question must hold {}", file.string(), placeholder);
    ATELIER_CHECK_USAGE(t.tier >= 0, "{}: tier counts from 0, found {}", file.string(), t.tier);
    ATELIER_CHECK_USAGE(t.reasoning_tokens >= 1 && t.reasoning_tokens <= 65'536, "{}: reasoning_tokens must be 1 to 65536, found {}",
                        file.string(), t.reasoning_tokens);
    for (const std::string& token : t.score_tokens)
        ATELIER_CHECK_USAGE(token.find_first_of(" \t\r\n*`\"'") == std::string::npos,
                            "{}: the score token '{}' is more than a word", file.string(), token);
    return t;
}

std::vector<Template> read_templates(const std::filesystem::path& directory,
                                     const std::string& kind) {
    ATELIER_CHECK_USAGE(std::filesystem::is_directory(directory),
                        "judge.templates: {} is no directory", directory.string());
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(directory))
        if (entry.path().extension() == ".toml") files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    std::vector<Template> found;
    for (const auto& file : files) {
        Template t = read_template(file);
        if (t.kind != kind) continue;
        for (const Template& other : found)
            ATELIER_CHECK_USAGE(other.dimension != t.dimension, "{} and {} both judge {} of {}",
                                other.path.string(), file.string(), t.dimension, kind);
        found.push_back(std::move(t));
    }
    ATELIER_CHECK_USAGE(!found.empty(), "{} holds no template (*.toml) for prompts of kind {}",
                        directory.string(), kind);
    std::stable_sort(found.begin(), found.end(), [](const Template& a, const Template& b) {
        return a.tier != b.tier ? a.tier < b.tier : a.dimension < b.dimension;
    });
    return found;
}

Conversation make_conversation(const Template& asked, const std::string& prompt,
                               const io::Image& picture, const std::vector<io::Image>& sources) {
    Conversation c;
    c.system = asked.system;
    if (asked.shows_source)
        for (const io::Image& source : sources) c.user.push_back({&source, {}});
    c.user.push_back({&picture, {}});
    std::string text = asked.question;
    // The prompt itself may hold the placeholder: it is not looked at again.
    for (auto at = text.find(placeholder); at != std::string::npos;
         at = text.find(placeholder, at + prompt.size()))
        text.replace(at, placeholder.size(), prompt);
    text += "\n" + asked.rubric + "\n";
    for (std::size_t i = 0; i < levels; ++i)
        text += asked.score_tokens[i] + ": " + asked.level[i] + "\n";
    text += asked.answer;
    c.user.push_back({nullptr, std::move(text)});
    return c;
}

}  // namespace atelier::judge
