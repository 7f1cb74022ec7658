#include "model/tokenizer/tokenizer.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>

#include "core/error.hpp"
#include "model/tokenizer/byte_level.hpp"

namespace atelier::model {

namespace {

std::array<std::int32_t, 256> byte_tokens(const TokenizerFile& file) {
    std::array<std::int32_t, 256> tokens{};
    for (std::size_t byte = 0; byte < tokens.size(); ++byte) {
        const auto it = file.vocabulary.find(byte_spelling(static_cast<std::uint8_t>(byte)));
        ATELIER_CHECK_INPUT(it != file.vocabulary.end(),
                            "{}: model.vocab: byte 0x{:02x} (\"{}\") has no token; a byte-level "
                            "vocabulary has all 256",
                            file.path.string(), byte,
                            byte_spelling(static_cast<std::uint8_t>(byte)));
        tokens[byte] = it->second;
    }
    return tokens;
}

std::string nfc(std::string_view text) {
    const bool ascii = std::all_of(text.begin(), text.end(),
                                   [](char c) { return static_cast<signed char>(c) >= 0; });
    if (ascii) return std::string(text);
    utf8proc_uint8_t* mapped = nullptr;
    const auto length =
        utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                     static_cast<utf8proc_ssize_t>(text.size()), &mapped,
                     static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(mapped, &std::free);
    ATELIER_CHECK(length >= 0, "NFC of a text of {} bytes failed: {}", text.size(),
                  utf8proc_errmsg(length));
    return {reinterpret_cast<const char*>(mapped), static_cast<std::size_t>(length)};
}

}  // namespace

void Tokenizer::AddedTokenFinder::add(const std::string& content, std::int32_t id) {
    auto& list = by_first_byte_[content.front()];
    list.emplace_back(content, id);
    std::stable_sort(list.begin(), list.end(),
                     [](const auto& a, const auto& b) { return a.first.size() > b.first.size(); });
}

template <typename OnText, typename OnToken>
void Tokenizer::AddedTokenFinder::cut(std::string_view text, OnText&& on_text,
                                      OnToken&& on_token) const {
    std::size_t begin = 0;
    for (std::size_t i = 0; i < text.size();) {
        const auto list = by_first_byte_.find(text[i]);
        const std::pair<std::string, std::int32_t>* found = nullptr;
        if (list != by_first_byte_.end()) {
            for (const auto& token : list->second) {
                if (text.substr(i).starts_with(token.first)) {
                    found = &token;
                    break;
                }
            }
        }
        if (!found) {
            ++i;
            continue;
        }
        if (i > begin) on_text(text.substr(begin, i - begin));
        on_token(found->second);
        begin = i += found->first.size();
    }
    if (begin < text.size()) on_text(text.substr(begin));
}

Tokenizer Tokenizer::load(const std::filesystem::path& path) {
    return Tokenizer(read_tokenizer_file(path));
}

Tokenizer::Tokenizer(const TokenizerFile& file)
    : path_(file.path), nfc_(file.nfc), encoder_(byte_tokens(file)), ids_(file.vocabulary) {
    std::int32_t largest = 0;
    for (const auto& [spelling, id] : file.vocabulary) largest = std::max(largest, id);
    for (const AddedToken& token : file.added_tokens) largest = std::max(largest, token.id);
    const auto limit =
        static_cast<std::int64_t>(file.vocabulary.size() + file.added_tokens.size()) * 4 + 65536;
    ATELIER_CHECK_INPUT(largest < limit, "{}: expected ids below {}, found {}", path_.string(),
                        limit, largest);
    spellings_.resize(static_cast<std::size_t>(largest) + 1);
    special_.resize(spellings_.size());

    const auto name = [&](const std::string& spelling, std::int32_t id) {
        std::string& slot = spellings_[static_cast<std::size_t>(id)];
        ATELIER_CHECK_INPUT(slot.empty() || slot == spelling,
                            "{}: id {} has two tokens: \"{}\" and \"{}\"", path_.string(), id, slot,
                            spelling);
        slot = spelling;
    };
    for (const auto& [spelling, id] : file.vocabulary) name(spelling, id);
    for (const AddedToken& token : file.added_tokens) {
        name(token.content, token.id);
        const auto [entry, is_new] = ids_.try_emplace(token.content, token.id);
        ATELIER_CHECK_INPUT(entry->second == token.id,
                            "{}: added_tokens: \"{}\": expected id {} as elsewhere, found {}",
                            path_.string(), token.content, entry->second, token.id);
        special_[static_cast<std::size_t>(token.id)] = token.special;
        if (token.normalized) {
            normalised_tokens_.add(normalised(token.content), token.id);
        } else {
            raw_tokens_.add(token.content, token.id);
        }
    }
    for (const auto& [expression, place] : file.splits) splits_.emplace_back(expression, place);
    for (std::size_t rank = 0; rank < file.merges.size(); ++rank) {
        const std::string &left = file.merges[rank].first, &right = file.merges[rank].second;
        const auto id = [&](const std::string& spelling) {
            const auto it = file.vocabulary.find(spelling);
            ATELIER_CHECK_INPUT(
                it != file.vocabulary.end(),
                "{}: model.merges[{}] (\"{}\" + \"{}\"): \"{}\" is not in model.vocab",
                path_.string(), rank, left, right, spelling);
            return it->second;
        };
        ATELIER_CHECK_INPUT(encoder_.add_merge(id(left), id(right), id(left + right)),
                            "{}: model.merges[{}]: \"{}\" + \"{}\" stands there twice",
                            path_.string(), rank, left, right);
    }
}

std::string Tokenizer::normalised(std::string_view text) const {
    return nfc_ ? nfc(text) : std::string(text);
}

std::vector<std::string_view> Tokenizer::split(std::string_view text) const {
    std::vector<std::string_view> pieces;
    if (!text.empty()) pieces.push_back(text);
    for (const SplitExpression& expression : splits_) {
        std::vector<std::string_view> finer;
        for (std::string_view piece : pieces) expression.split(piece, finer);
        pieces = std::move(finer);
    }
    return pieces;
}

void Tokenizer::encode_plain(std::string_view text, std::vector<std::int32_t>& ids) const {
    for (std::string_view piece : split(text)) encoder_.encode(piece, ids);
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
    const std::size_t invalid = find_invalid_utf8(text);
    ATELIER_CHECK_INPUT(
        invalid == std::string_view::npos,
        "a text of {} bytes is not valid UTF-8: byte 0x{:02x} at offset {}; convert it to UTF-8",
        text.size(), static_cast<std::uint8_t>(text[invalid]), invalid);
    std::vector<std::int32_t> ids;
    const auto take = [&](std::int32_t id) { ids.push_back(id); };
    raw_tokens_.cut(
        text,
        [&](std::string_view piece) {
            normalised_tokens_.cut(
                normalised(piece), [&](std::string_view plain) { encode_plain(plain, ids); }, take);
        },
        take);
    return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special) const {
    std::string bytes;
    for (std::int32_t id : ids) {
        if (id < 0 || id >= size() || (skip_special && special_[static_cast<std::size_t>(id)]))
            continue;
        bytes += bytes_of_spelling(spellings_[static_cast<std::size_t>(id)]);
    }
    return replace_invalid_utf8(bytes);
}

std::int32_t Tokenizer::id_of(std::string_view spelling) const {
    const auto it = ids_.find(std::string(spelling));
    ATELIER_CHECK_INPUT(it != ids_.end(), "{}: has no token \"{}\"", path_.string(), spelling);
    return it->second;
}

const std::string& Tokenizer::spelling(std::int32_t id) const {
    static const std::string none;
    return id < 0 || id >= size() ? none : spellings_[static_cast<std::size_t>(id)];
}

}  // namespace atelier::model
