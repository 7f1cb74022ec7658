#include "io/csv.hpp"

#include "core/error.hpp"
#include "io/file_io.hpp"

namespace atelier::io {
namespace {

constexpr std::string_view byte_order_mark = "\xef\xbb\xbf";  // sheets write it first

char separator_of(const std::string& text) {
    int commas = 0, semicolons = 0;
    bool quoted = false;
    for (const char c : text) {
        if (c == '"') quoted = !quoted;
        if (quoted) continue;
        if (c == '\n' || c == '\r') break;
        commas += c == ',' ? 1 : 0;
        semicolons += c == ';' ? 1 : 0;
    }
    return semicolons > commas ? ';' : ',';
}

}  // namespace

std::string to_csv(const CsvRows& rows) {
    std::string text;
    for (const auto& row : rows) {
        for (std::size_t i = 0; i < row.size(); ++i) {
            if (i > 0) text += ',';
            const std::string& field = row[i];
            if (field.find_first_of(",;\"\r\n") == std::string::npos && !field.starts_with(byte_order_mark)) {
                text += field;
                continue;
            }
            text += '"';
            for (const char c : field) text += c == '"' ? std::string("\"\"") : std::string(1, c);
            text += '"';
        }
        text += "\r\n";
    }
    return text;
}

CsvRows parse_csv(const std::string& given, const std::string& place) {
    const std::string text = given.starts_with(byte_order_mark) ? given.substr(byte_order_mark.size()) : given;
    const char separator = separator_of(text);
    CsvRows rows;
    std::vector<std::string> row;
    std::string field;
    bool quoted = false;
    const auto end_row = [&] {
        row.push_back(std::move(field));
        field.clear();
        if (row.size() > 1 || !row[0].empty()) {
            ATELIER_CHECK_INPUT(rows.empty() || row.size() == rows[0].size(),
                                "{}: row {} has {} fields, the first has {}", place,
                                rows.size() + 1, row.size(), rows[0].size());
            rows.push_back(std::move(row));
        }
        row.clear();
    };
    for (std::size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (quoted) {
            if (c != '"') field += c;
            else if (i + 1 < text.size() && text[i + 1] == '"') field += text[++i];
            else quoted = false;
        } else if (c == '"') {
            quoted = true;
        } else if (c == separator) {
            row.push_back(std::move(field));
            field.clear();
        } else if (c == '\n' || c == '\r') {
            if (c == '\r' && i + 1 < text.size() && text[i + 1] == '\n') ++i;
            end_row();
        } else {
            field += c;
        }
    }
    ATELIER_CHECK_INPUT(!quoted, "{}: row {} opens a quote and does not close it", place,
                        rows.size() + 1);
    if (!field.empty() || !row.empty()) end_row();
    return rows;
}

CsvRows read_csv(const std::filesystem::path& path) {
    return parse_csv(read_text(path), path.string());
}

}  // namespace atelier::io
