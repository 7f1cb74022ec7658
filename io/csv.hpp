#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace atelier::io {

/// Rows of fields as RFC 4180 has them: fields with commas, quotes or line ends stand in quotes.
using CsvRows = std::vector<std::vector<std::string>>;

std::string to_csv(const CsvRows& rows);

/// Reads comma- or semicolon-separated text (whichever the first line has more of outside quotes:
/// spreadsheets differ), line ends of any kind, with or without a byte order mark. Empty lines are
/// left out. Throws Error(input) naming `place` for a quote that is not closed or a row that has not
/// as many fields as the first.
CsvRows parse_csv(const std::string& text, const std::string& place);
/// The same of a file.
CsvRows read_csv(const std::filesystem::path& path);

}  // namespace atelier::io
