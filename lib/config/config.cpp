#include "config/config.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <sstream>
#include <toml++/toml.h>

#include "core/error.hpp"
#include "io/file_io.hpp"
#include "io/lookup.hpp"

namespace atelier::config {
namespace {

constexpr std::string_view task_prefix = "task.";
constexpr int deepest_extends = 8;
// Tasks name directories and jobs, and are bare keys of TOML.
constexpr std::string_view letters_of_tasks = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-";

/// "task.t2i.kind" -> "task.*.kind"; others as they are.
std::string pattern_of(const std::string& name) {
    if (!name.starts_with(task_prefix)) return name;
    const auto dot = name.find('.', task_prefix.size());
    return dot == std::string::npos ? name : "task.*" + name.substr(dot);
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
    std::vector<std::size_t> row(b.size() + 1);
    for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
    for (std::size_t i = 1; i <= a.size(); ++i) {
        std::size_t diagonal = row[0];
        row[0] = i;
        for (std::size_t j = 1; j <= b.size(); ++j) {
            const std::size_t up = row[j];
            row[j] = std::min({up + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
            diagonal = up;
        }
    }
    return row[b.size()];
}

const char* type_name(const Value& v) {
    static constexpr const char* names[] = {"true or false", "an integer", "a number", "a text", "a list of texts",
                                            "a list of pairs of integers"};
    return names[v.index()];
}

std::string quoted(const std::string& text) {
    std::ostringstream out;
    out << toml::value<std::string>(text);
    return out.str();
}

std::string to_text(const Value& v) {
    struct {
        std::string operator()(bool b) const { return b ? "true" : "false"; }
        std::string operator()(std::int64_t i) const { return std::to_string(i); }
        std::string operator()(double d) const {
            std::string s = fmt::format("{}", d);  // shortest text that reads back to the same number
            return s.find_first_of(".eEn") == std::string::npos ? s + ".0" : s;
        }
        std::string operator()(const std::string& s) const { return quoted(s); }
        std::string operator()(const std::vector<std::string>& list) const {
            std::vector<std::string> parts;
            for (const std::string& s : list) parts.push_back(quoted(s));
            return fmt::format("[{}]", fmt::join(parts, ", "));
        }
        std::string operator()(const Pairs& pairs) const {
            std::vector<std::string> parts;
            for (const auto& [a, b] : pairs) parts.push_back(fmt::format("[{}, {}]", a, b));
            return fmt::format("[{}]", fmt::join(parts, ", "));
        }
    } visitor;
    return std::visit(visitor, v);
}

bool is_list_of_pairs(const toml::array& list) {
    return std::all_of(list.begin(), list.end(), [](const toml::node& entry) {
        const toml::array* pair = entry.as_array();
        return pair != nullptr && pair->size() == 2 && pair->is_homogeneous(toml::node_type::integer);
    });
}

/// The node as a value of the key's type. Integers serve where numbers are asked for.
Value convert(const toml::node& node, const Value& like, const std::string& name, const std::string& origin) {
    if (std::holds_alternative<bool>(like) && node.is_boolean()) return node.as_boolean()->get();
    if (std::holds_alternative<std::int64_t>(like) && node.is_integer()) return node.as_integer()->get();
    if (std::holds_alternative<double>(like) && node.is_number()) return node.value<double>().value();
    if (std::holds_alternative<std::string>(like) && node.is_string()) return node.as_string()->get();
    if (std::holds_alternative<std::vector<std::string>>(like) && node.is_array() &&
        (node.as_array()->empty() || node.as_array()->is_homogeneous(toml::node_type::string))) {
        std::vector<std::string> list;
        for (const auto& entry : *node.as_array()) list.push_back(entry.value<std::string>().value());
        return list;
    }
    if (std::holds_alternative<std::vector<std::string>>(like) && node.is_string()) return std::vector{node.as_string()->get()};
    if (std::holds_alternative<Pairs>(like) && node.is_array() && is_list_of_pairs(*node.as_array())) {
        Pairs pairs;
        for (const auto& entry : *node.as_array()) {
            const toml::array& pair = *entry.as_array();
            pairs.push_back({pair[0].value<std::int64_t>().value(), pair[1].value<std::int64_t>().value()});
        }
        return pairs;
    }
    std::ostringstream found;
    node.visit([&](const auto& n) { found << n; });
    ATELIER_FAIL(ErrorKind::usage, "{}: {} must be {}, found {}", origin, name, type_name(like), found.str());
}

}  // namespace

struct Reader {
    Config& config;
    std::string file;
    /// Whether any key of the schema stands below this section.
    bool is_section(const std::string& name) const {
        const std::string pattern = pattern_of(name + ".x");
        const std::string prefix = pattern.substr(0, pattern.size() - 1);
        if (name == "task") return true;
        return std::any_of(config.schema_.begin(), config.schema_.end(), [&](const Key& k) { return k.name.starts_with(prefix); });
    }
    const Key& key_for(const std::string& name, const std::string& origin) const {
        const std::string pattern = pattern_of(name);
        for (const Key& key : config.schema_)
            if (key.name == pattern) return key;
        const auto nearest = std::min_element(config.schema_.begin(), config.schema_.end(), [&](const Key& a, const Key& b) {
            return edit_distance(a.name, pattern) < edit_distance(b.name, pattern);
        });
        ATELIER_FAIL(ErrorKind::usage, "{}: unknown key {}; the nearest known one is {}", origin, name, nearest->name);
    }
    void table(const toml::table& t, const std::string& prefix) const {
        for (const auto& [k, node] : t) {
            const std::string name = prefix + std::string(k.str());
            const std::string origin = fmt::format("{}:{}", file, node.source().begin.line);
            if (prefix.empty() && name == "extends") continue;
            if (node.is_table() && is_section(name)) {
                table(*node.as_table(), name + ".");
                continue;
            }
            const Key& key = key_for(name, origin);
            config.set(name, located(key, convert(node, key.fallback, name, origin), std::filesystem::path(file).parent_path()), origin);
        }
    }
    /// Paths made absolute from `directory`.
    static Value located(const Key& key, Value value, const std::filesystem::path& directory) {
        if (!key.is_path) return value;
        const auto absolute = [&](std::string& text) {
            if (!text.empty()) text = std::filesystem::absolute(directory / text).lexically_normal().string();
        };
        if (auto* list = std::get_if<std::vector<std::string>>(&value))
            for (std::string& text : *list) absolute(text);
        else
            absolute(std::get<std::string>(value));
        return value;
    }
};

const Key& Config::key_of(const std::string& name) const {
    const std::string pattern = pattern_of(name);
    return *std::find_if(schema_.begin(), schema_.end(), [&](const Key& k) { return k.name == pattern; });
}

void Config::set(const std::string& name, Value value, const std::string& origin) {
    const Key* key = &key_of(name);
    double number = 0;
    if (const auto* i = std::get_if<std::int64_t>(&value)) number = static_cast<double>(*i);
    if (const auto* d = std::get_if<double>(&value)) number = *d;
    ATELIER_CHECK_USAGE(std::isfinite(number), "{}: {} is {}: a finite number was expected", origin, name, number);
    ATELIER_CHECK_USAGE(number >= key->low && number <= key->high, "{}: {} must lie in [{}, {}], found {}", origin, name, key->low,
                        key->high, to_text(value));
    if (const auto* text = std::get_if<std::string>(&value); text != nullptr && !key->choices.empty())
        ATELIER_CHECK_USAGE(std::find(key->choices.begin(), key->choices.end(), *text) != key->choices.end(),
                            "{}: {} must be one of {}, found \"{}\"", origin, name, fmt::join(key->choices, ", "), *text);
    if (name.starts_with(task_prefix)) {  // a task mentioned for the first time gets all its keys
        const std::string section = name.substr(0, name.find('.', task_prefix.size()) + 1);
        const std::string_view task = std::string_view(section).substr(task_prefix.size(), section.size() - task_prefix.size() - 1);
        ATELIER_CHECK_USAGE(!task.empty() && task.find_first_not_of(letters_of_tasks) == task.npos,
                            "{}: '{}' cannot name a task, which has letters, digits, _ and - alone", origin, task);
        for (const Key& k : schema_)
            if (k.name.starts_with("task.*."))
                entries_.try_emplace(section + k.name.substr(7), Entry{k.fallback, "default"});
    }
    entries_[name] = Entry{std::move(value), origin};
}

void Config::read_file(const std::filesystem::path& file, int depth) {
    ATELIER_CHECK_USAGE(depth < deepest_extends, "{}: `extends` goes {} files deep: does a file extend itself?", file.string(), depth);
    ATELIER_CHECK_USAGE(io::is_file(file), "configuration file {} is missing", file.string());
    toml::table table;
    try {
        table = toml::parse(io::read_text(file), file.string());  // whole or not at all
    } catch (const toml::parse_error& e) {
        ATELIER_FAIL(ErrorKind::usage, "{}:{}: {}", file.string(), e.source().begin.line, std::string(e.description()));
    }
    if (const toml::node* base = table.get("extends")) {
        const auto name = base->value<std::string>();
        ATELIER_CHECK_USAGE(name.has_value(), "{}:{}: extends must be a text", file.string(), base->source().begin.line);
        read_file(file.parent_path() / *name, depth + 1);
    }
    Reader{*this, file.string()}.table(table, "");
}

Config Config::resolve(const std::filesystem::path& file, std::span<const std::string> overrides, const std::vector<Key>& schema) {
    Config c;
    c.schema_ = schema;
    for (const Key& key : c.schema_)
        if (!key.name.starts_with("task.*.")) c.entries_[key.name] = Entry{key.fallback, "default"};
    c.read_file(file, 0);
    for (const std::string& text : overrides) {
        const auto equals = text.find('=');
        ATELIER_CHECK_USAGE(equals != std::string::npos && equals > 0, "--set {}: section.key=value was expected", text);
        const std::string name = text.substr(0, equals), value = text.substr(equals + 1), origin = "--set " + text;
        const Reader reader{c, "--set"};
        const Key& key = reader.key_for(name, origin);
        const bool is_text = std::holds_alternative<std::string>(key.fallback) && !value.starts_with('"');
        const bool is_list_of_one = std::holds_alternative<std::vector<std::string>>(key.fallback) && value.find_first_of("\"[") != 0 && !value.empty();
        if (is_text || is_list_of_one) {  // a bare word
            c.set(name, Reader::located(key, convert(toml::value<std::string>(value), key.fallback, name, origin), {}), origin);
            continue;
        }
        try {
            const toml::table parsed = toml::parse("value = " + value);
            c.set(name, Reader::located(key, convert(*parsed.get("value"), key.fallback, name, origin), {}), origin);
        } catch (const toml::parse_error&) {
            ATELIER_FAIL(ErrorKind::usage, "{}: {} must be {}, found {}", origin, name, type_name(key.fallback), value);
        }
    }
    return c;
}

const Value& Config::at(const std::string& name) const {
    const auto found = entries_.find(name);
    ATELIER_CHECK(found != entries_.end(), "the configuration has no key {}", name);
    return found->second.value;
}

bool Config::flag(const std::string& name) const { return std::get<bool>(at(name)); }
std::int64_t Config::integer(const std::string& name) const { return std::get<std::int64_t>(at(name)); }
double Config::number(const std::string& name) const { return std::get<double>(at(name)); }
const std::string& Config::text(const std::string& name) const { return std::get<std::string>(at(name)); }
const std::vector<std::string>& Config::list(const std::string& name) const { return std::get<std::vector<std::string>>(at(name)); }
const Pairs& Config::pairs(const std::string& name) const { return std::get<Pairs>(at(name)); }

std::vector<std::string> Config::tasks() const {
    std::vector<std::string> names;
    for (const auto& [name, entry] : entries_) {
        if (!name.starts_with(task_prefix)) continue;
        const std::string task = name.substr(task_prefix.size(), name.find('.', task_prefix.size()) - task_prefix.size());
        if (names.empty() || names.back() != task) names.push_back(task);
    }
    return names;
}

std::vector<std::pair<std::string, std::vector<std::pair<std::string, const Config::Entry*>>>> Config::sections() const {
    std::map<std::string, std::vector<std::pair<std::string, const Entry*>>> by_section;
    for (const auto& [name, entry] : entries_) {
        const auto dot = name.rfind('.');
        by_section[name.substr(0, dot)].emplace_back(name.substr(dot + 1), &entry);
    }
    return {by_section.begin(), by_section.end()};
}

std::string Config::to_toml() const { return to_toml(false); }

std::string Config::to_toml(bool only_what_changes_results) const {
    std::string out;
    for (const auto& [section, entries] : sections()) {
        std::string lines;
        for (const auto& [key, entry] : entries)
            if (!only_what_changes_results || key_of(section + "." + key).changes_results) lines += fmt::format("{} = {}\n", key, to_text(entry->value));
        if (!lines.empty()) out += fmt::format("{}[{}]\n{}", out.empty() ? "" : "\n", section, lines);
    }
    return out;
}

std::string Config::describe() const {
    std::string out;
    for (const auto& [section, entries] : sections()) {
        out += fmt::format("{}[{}]\n", out.empty() ? "" : "\n", section);
        for (const auto& [name, entry] : entries) {
            const Key* key = &key_of(section + "." + name);
            out += fmt::format("{} = {}  # {}{}{} ({})\n", name, to_text(entry->value), key->meaning,
                               key->unit.empty() ? "" : fmt::format(", {}", key->unit),
                               key->choices.empty() ? "" : fmt::format(": {}", fmt::join(key->choices, " | ")), entry->origin);
        }
    }
    return out;
}

std::string Config::hash() const {
    const std::string text = to_toml(true);
    const XXH128_hash_t h = XXH3_128bits(text.data(), text.size());
    return fmt::format("{:016x}{:016x}", h.high64, h.low64);
}

std::vector<std::string> Config::differences(const Config& other, bool that_change_results) const {
    std::vector<std::string> found;
    std::map<std::string, const Entry*> theirs;
    for (const auto& [name, entry] : other.entries_) theirs[name] = &entry;
    for (const auto& [name, entry] : entries_) {
        const auto before = theirs.find(name);
        const bool is_there = before != theirs.end();
        if (key_of(name).changes_results == that_change_results && (!is_there || before->second->value != entry.value))
            found.push_back(fmt::format("{} = {}, was {}", name, to_text(entry.value), is_there ? to_text(before->second->value) : "not there"));
        if (is_there) theirs.erase(before);
    }
    for (const auto& [name, entry] : theirs)
        if (key_of(name).changes_results == that_change_results) found.push_back(fmt::format("{} is not there, was {}", name, to_text(entry->value)));
    return found;
}

}  // namespace atelier::config
