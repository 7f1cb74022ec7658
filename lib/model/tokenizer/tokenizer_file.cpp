#include "model/tokenizer/tokenizer_file.hpp"

#include "model/tokenizer/json_file.hpp"

namespace atelier::model {

namespace {

using nlohmann::json;

void read_added_tokens(const JsonNode& list, TokenizerFile& file) {
    for (std::size_t i = 0; i < list.size(); ++i) {
        const JsonNode node = list[i];
        node.only_known(
            {"id", "content", "special", "normalized", "single_word", "lstrip", "rstrip"});
        for (const char* key : {"single_word", "lstrip", "rstrip"}) node.require(key, {false});
        const std::int64_t id = node.at("id").integer();
        ATELIER_CHECK_INPUT(id >= 0 && id <= INT32_MAX, "{}: expected an id, found {}", node.at("id").place(), id);
        AddedToken token{static_cast<std::int32_t>(id), node.at("content").text(),
                         node.flag_or("special", false), node.flag_or("normalized", true)};
        ATELIER_CHECK_INPUT(!token.content.empty(), "{}: an added token without content",
                            node.place());
        file.added_tokens.push_back(std::move(token));
    }
}

void read_normalizer(const JsonNode& node, TokenizerFile& file) {
    const std::string type = node.at("type").text();
    if (type == "Sequence") {
        const JsonNode list = node.at("normalizers");
        for (std::size_t i = 0; i < list.size(); ++i) read_normalizer(list[i], file);
        return;
    }
    ATELIER_CHECK_INPUT(type == "NFC", "{}: only the normalizer NFC is supported, found \"{}\"",
                        node.at("type").place(), type);
    file.nfc = true;
}

/// [Split …] ByteLevel, in this order. Sets `byte_level` when the last one has been seen.
void read_pre_tokenizer(const JsonNode& node, TokenizerFile& file, bool& byte_level) {
    const std::string type = node.at("type").text();
    ATELIER_CHECK_INPUT(!byte_level,
                        "{}: nothing may follow the ByteLevel pre-tokenizer, found \"{}\"",
                        node.place(), type);
    if (type == "Sequence") {
        const JsonNode list = node.at("pretokenizers");
        for (std::size_t i = 0; i < list.size(); ++i) read_pre_tokenizer(list[i], file, byte_level);
    } else if (type == "Split") {
        node.only_known({"type", "pattern", "behavior"});
        node.require("behavior", {"Isolated"});
        node.require("invert", {false});
        const JsonNode pattern = node.at("pattern").at("Regex");
        file.splits.emplace_back(pattern.text(), pattern.place());
    } else if (type == "ByteLevel") {
        node.only_known({"type", "trim_offsets", "use_regex"});
        node.require("add_prefix_space", {false});
        ATELIER_CHECK_INPUT(
            !node.flag_or("use_regex", true),
            "{}: only use_regex = false (an explicit Split expression) is supported, found {}",
            node.place(), node.found());
        byte_level = true;
    } else {
        ATELIER_FAIL(ErrorKind::input,
                     "{}: only Sequence, Split and ByteLevel are supported, found \"{}\"",
                     node.at("type").place(), type);
    }
}

/// The post-processor may change offsets, but must add no token.
void check_post_processor(const JsonNode& node) {
    const std::string type = node.at("type").text();
    if (type == "ByteLevel") return;
    ATELIER_CHECK_INPUT(
        type == "TemplateProcessing",
        "{}: only null, ByteLevel and an empty TemplateProcessing are supported, found \"{}\"",
        node.at("type").place(), type);
    const JsonNode single = node.at("single");
    const bool plain = single.size() == 1 && single[0].value().contains("Sequence");
    ATELIER_CHECK_INPUT(
        plain, "{}: only the sequence itself, without added tokens, is supported, found {}",
        single.place(), single.found());
}

void read_model(const JsonNode& model, TokenizerFile& file) {
    model.only_known({"type", "vocab", "merges", "continuing_subword_prefix", "end_of_word_suffix"});
    model.require("type", {"BPE"});
    for (const char* key : {"dropout", "unk_token"}) model.require(key, {});
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
        model.require(key, {""});
    for (const char* key : {"fuse_unk", "byte_fallback", "ignore_merges"})
        model.require(key, {false});

    const JsonNode vocabulary = model.at("vocab");
    ATELIER_CHECK_INPUT(vocabulary.value().is_object(),
                        "{}: expected an object of token → id, found {}", vocabulary.place(),
                        vocabulary.found());
    file.vocabulary.reserve(vocabulary.size());
    for (const auto& [spelling, id] : vocabulary.value().items()) {
        ATELIER_CHECK_INPUT(id.is_number_integer() && id.get<std::int64_t>() >= 0 &&
                                id.get<std::int64_t>() <= INT32_MAX,
                            "{}: expected an id for \"{}\", found {}", vocabulary.place(), spelling,
                            id.dump());
        file.vocabulary.emplace(spelling, id.get<std::int32_t>());
    }

    const JsonNode merges = model.at("merges");
    ATELIER_CHECK_INPUT(merges.value().is_array(), "{}: expected an array, found {}",
                        merges.place(), merges.found());
    file.merges.reserve(merges.size());
    for (const json& merge : merges.value()) {
        const std::size_t rank = file.merges.size();
        if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
            file.merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
            continue;
        }
        const std::string text = merge.is_string() ? merge.get<std::string>() : std::string();
        const std::size_t space = text.find(' ');
        ATELIER_CHECK_INPUT(
            space != std::string::npos && text.find(' ', space + 1) == std::string::npos,
            "{}: expected [\"a\", \"b\"] or \"a b\", found {}", merges[rank].place(),
            merges[rank].found());
        file.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
    }
}

void check_tokenizer_config(const std::filesystem::path& path) {
    if (!std::filesystem::exists(path)) return;
    const json document = read_json(path);
    const JsonNode node(document, path.string());
    for (const char* key : {"add_prefix_space", "add_bos_token", "add_eos_token",
                            "split_special_tokens", "clean_up_tokenization_spaces"}) {
        node.require(key, {false});
    }
}

}  // namespace

TokenizerFile read_tokenizer_file(const std::filesystem::path& path) {
    TokenizerFile file;
    file.path = std::filesystem::is_directory(path) ? path / "tokenizer.json" : path;
    const json document = read_json(file.path);
    const JsonNode root(document, file.path.string());
    // Padding and truncation are what a call that saved the file asked for; each call of transformers sets its own.
    root.only_known({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
                     "decoder", "model"});
    if (root.has("added_tokens")) read_added_tokens(root.at("added_tokens"), file);
    if (root.has("normalizer")) read_normalizer(root.at("normalizer"), file);
    bool byte_level = false;
    if (root.has("pre_tokenizer")) read_pre_tokenizer(root.at("pre_tokenizer"), file, byte_level);
    ATELIER_CHECK_INPUT(byte_level, "{}: pre_tokenizer: expected a ByteLevel step, found none",
                        file.path.string());
    if (root.has("post_processor")) check_post_processor(root.at("post_processor"));
    const JsonNode decoder = root.at("decoder");
    decoder.at("type");
    decoder.require("type", {"ByteLevel"});
    read_model(root.at("model"), file);
    check_tokenizer_config(file.path.parent_path() / "tokenizer_config.json");
    return file;
}

}  // namespace atelier::model
