#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace atelier::model {

/// The byte-level alphabet of GPT-2: every byte has one printable code point that stands for it in
/// token spellings (bytes 33–126, 161–172 and 174–255 stand for themselves, the 68 others, in
/// order, for U+0100 …).

/// The UTF-8 spelling of `byte`.
std::string byte_spelling(std::uint8_t byte);

/// Bytes that a token's spelling stands for; a spelling with any character outside the alphabet
/// stands for its own UTF-8 bytes.
std::string bytes_of_spelling(std::string_view spelling);

/// `bytes` as valid UTF-8: every maximal invalid part becomes one U+FFFD (Unicode §3.9, the
/// "substitution of maximal subparts").
std::string replace_invalid_utf8(std::string_view bytes);

/// Offset of the first byte that is not valid UTF-8, or npos.
std::size_t find_invalid_utf8(std::string_view bytes);

}  // namespace atelier::model
