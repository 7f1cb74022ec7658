#pragma once

#include <string>
#include <string_view>

namespace atelier::io {

/// A text as it stands in HTML, XML and SVG, in attributes too. Control characters, which XML forbids, become spaces.
std::string escape_html(std::string_view text);

/// The name of a file (relative, by io::file_name_of or of our own) as an address in a page: what an address gives a meaning of its own is written %XX.
std::string address_of(std::string_view name);

}  // namespace atelier::io
