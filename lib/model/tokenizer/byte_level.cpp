#include "model/tokenizer/byte_level.hpp"

#include <array>

namespace atelier::model {

namespace {

constexpr bool stands_for_itself(int byte) {
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

struct Alphabet {
    std::array<std::uint16_t, 256> code_point{};
    std::array<std::int16_t, 0x180> byte{};  // -1: not in the alphabet
};

constexpr Alphabet make_alphabet() {
    Alphabet alphabet;
    for (auto& entry : alphabet.byte) entry = -1;
    std::uint16_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
        const std::uint16_t code =
            stands_for_itself(byte) ? static_cast<std::uint16_t>(byte) : next++;
        alphabet.code_point[static_cast<std::size_t>(byte)] = code;
        alphabet.byte[code] = static_cast<std::int16_t>(byte);
    }
    return alphabet;
}

constexpr Alphabet alphabet = make_alphabet();

/// Length of the well-formed sequence at `text[0]` as a positive number, or, negated, the length of
/// the maximal invalid part (Unicode table 3-7).
int sequence_length(std::string_view text) {
    const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
    const std::uint8_t lead = byte(0);
    if (lead < 0x80) return 1;
    if (lead < 0xC2 || lead > 0xF4) return -1;
    const int length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    std::uint8_t low = 0x80, high = 0xBF;  // of the second byte
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
    for (int i = 1; i < length; ++i) {
        const auto at = static_cast<std::size_t>(i);
        if (at >= text.size() || byte(at) < low || byte(at) > high) return -i;
        low = 0x80, high = 0xBF;
    }
    return length;
}

}  // namespace

std::string byte_spelling(std::uint8_t byte) {
    const std::uint16_t code = alphabet.code_point[byte];
    if (code < 0x80) return {static_cast<char>(code)};
    return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

std::string bytes_of_spelling(std::string_view spelling) {
    std::string bytes;
    bytes.reserve(spelling.size());
    for (std::size_t i = 0; i < spelling.size();) {
        const auto lead = static_cast<std::uint8_t>(spelling[i]);
        std::uint32_t code = lead;
        if (lead >= 0x80) {  // the alphabet has only one- and two-byte characters
            if (lead < 0xC0 || lead >= 0xE0 || i + 1 >= spelling.size())
                return std::string(spelling);
            code = (lead & 0x1Fu) << 6 | (static_cast<std::uint8_t>(spelling[i + 1]) & 0x3Fu);
        }
        if (code >= alphabet.byte.size() || alphabet.byte[code] < 0) return std::string(spelling);
        bytes.push_back(static_cast<char>(alphabet.byte[code]));
        i += lead < 0x80 ? 1 : 2;
    }
    return bytes;
}

std::string replace_invalid_utf8(std::string_view bytes) {
    std::string text;
    text.reserve(bytes.size());
    while (!bytes.empty()) {
        const int length = sequence_length(bytes);
        const auto taken = static_cast<std::size_t>(length > 0 ? length : -length);
        if (length > 0) {
            text.append(bytes.substr(0, taken));
        } else {
            text.append("\xEF\xBF\xBD");
        }
        bytes.remove_prefix(taken);
    }
    return text;
}

std::size_t find_invalid_utf8(std::string_view bytes) {
    for (std::size_t i = 0; i < bytes.size();) {
        const int length = sequence_length(bytes.substr(i));
        if (length < 0) return i;
        i += static_cast<std::size_t>(length);
    }
    return std::string_view::npos;
}

}  // namespace atelier::model
