#include "model/tokenizer/split.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>

#include "core/error.hpp"

namespace atelier::model {

namespace {

std::string with_unicode_white_space(const std::string& expression) {
    std::string out;
    for (std::size_t i = 0; i < expression.size(); ++i) {
        if (expression[i] != '\\' || i + 1 == expression.size()) {
            out += expression[i];
            continue;
        }
        const char escaped = expression[++i];
        if (escaped == 's') {
            out += "\\p{White_Space}";
        } else if (escaped == 'S') {
            out += "\\P{White_Space}";
        } else {
            out += {'\\', escaped};
        }
    }
    return out;
}

std::string message_of(int error) {
    std::array<PCRE2_UCHAR, 256> text{};
    pcre2_get_error_message(error, text.data(), text.size());
    return reinterpret_cast<const char*>(text.data());
}

}  // namespace

SplitExpression::SplitExpression(const std::string& expression, std::string place)
    : place_(std::move(place)) {
    const std::string translated = with_unicode_white_space(expression);
    int error = 0;
    PCRE2_SIZE offset = 0;
    pcre2_code* code =
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                      PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
    ATELIER_CHECK_INPUT(code != nullptr,
                        "{}: expected a regular expression, found {} ({} at offset {})", place_,
                        expression, message_of(error), offset);
    code_ = std::shared_ptr<const void>(code, [](const void* p) {
        pcre2_code_free(static_cast<pcre2_code*>(const_cast<void*>(p)));
    });
    // Without JIT (an architecture that PCRE2 has none for) the same matches come out, slower.
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
}

void SplitExpression::split(std::string_view text, std::vector<std::string_view>& pieces) const {
    const auto* code = static_cast<const pcre2_code*>(code_.get());
    const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
        pcre2_match_data_create_from_pattern(code, nullptr), &pcre2_match_data_free);
    std::size_t taken = 0;   // everything before is in `pieces`
    std::size_t search = 0;  // where the next match may begin
    while (search < text.size()) {
        const int found =
            pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), search,
                        search == 0 ? 0 : PCRE2_NO_UTF_CHECK, match.get(), nullptr);
        if (found == PCRE2_ERROR_NOMATCH) break;
        ATELIER_CHECK_INPUT(found >= 0,
                            "{}: the split expression failed at byte {} of a text of {} bytes: {}",
                            place_, search, text.size(), message_of(found));
        const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(match.get());
        if (ends[0] > taken) pieces.push_back(text.substr(taken, ends[0] - taken));
        if (ends[1] > ends[0]) {
            pieces.push_back(text.substr(ends[0], ends[1] - ends[0]));
            search = taken = ends[1];
        } else {  // an empty match takes nothing: go on after the next character
            taken = search = ends[0];
            do {
                ++search;
            } while (search < text.size() &&
                     (static_cast<unsigned char>(text[search]) & 0xC0) == 0x80);
        }
    }
    if (taken < text.size()) pieces.push_back(text.substr(taken));
}

}  // namespace atelier::model
