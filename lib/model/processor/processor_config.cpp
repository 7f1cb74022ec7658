#include "model/processor/processor_config.hpp"

#include "model/tokenizer/json_file.hpp"

namespace atelier::model {

namespace {

std::filesystem::path config_file(const std::filesystem::path& path) {
    if (!std::filesystem::is_directory(path)) return path;
    for (const char* name : {"processor_config.json", "preprocessor_config.json"}) {
        if (!std::filesystem::exists(path / name)) continue;
        const nlohmann::json document = read_json(path / name);
        // Older processor_config.json files say nothing about pictures.
        if (std::string_view(name) == "preprocessor_config.json" ||
            document.contains("image_processor")) {
            return path / name;
        }
    }
    ATELIER_FAIL(ErrorKind::input,
                 "{}: expected processor_config.json (with \"image_processor\") or "
                 "preprocessor_config.json, found neither",
                 path.string());
}

std::int64_t positive(const JsonNode& node) {
    const std::int64_t value = node.integer();
    ATELIER_CHECK_INPUT(value > 0 && value <= INT32_MAX,
                        "{}: expected a positive integer, found {}", node.place(), node.found());
    return value;
}

void read_positive(const JsonNode& node, const std::string& key, std::int64_t& value) {
    if (node.has(key)) value = positive(node.at(key));
}

void read_triple(const JsonNode& node, const std::string& key, std::array<double, 3>& values) {
    if (!node.has(key)) return;
    const JsonNode list = node.at(key);
    ATELIER_CHECK_INPUT(list.value().is_array() && list.size() == values.size(),
                        "{}: expected three numbers, found {}", list.place(), list.found());
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = list[i].number();
}

ResizeFilter filter_of(const JsonNode& node) {
    switch (node.integer()) {  // PIL.Image.Resampling
        case 1:
            return ResizeFilter::lanczos;
        case 2:
            return ResizeFilter::bilinear;
        case 3:
            return ResizeFilter::bicubic;
        default:
            ATELIER_FAIL(ErrorKind::input,
                         "{}: expected 1 (Lanczos), 2 (bilinear) or 3 (bicubic), found {}",
                         node.place(), node.found());
    }
}

}  // namespace

ProcessorConfig ProcessorConfig::load(const std::filesystem::path& path) {
    ProcessorConfig config;
    config.path = config_file(path);
    const nlohmann::json document = read_json(config.path);
    const JsonNode root(document, config.path.string());
    root.require("processor_class", {"Qwen3VLProcessor"});
    const JsonNode node = root.has("image_processor") ? root.at("image_processor") : root;

    node.only_known({"image_processor_type",
                     "processor_class",
                     "do_resize",
                     "do_rescale",
                     "do_normalize",
                     "do_convert_rgb",
                     "image_mean",
                     "image_std",
                     "merge_size",
                     "patch_size",
                     "resample",
                     "rescale_factor",
                     "size",
                     "min_pixels",
                     "max_pixels",
                     "temporal_patch_size",
                     "data_format",
                     "default_to_square",
                     "disable_grouping",
                     "return_tensors",
                     "video_processor",
                     "_valid_processor_keys"});
    node.require("image_processor_type", {"Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast",
                                          "Qwen2VLImageProcessorPil"});
    for (const char* key : {"do_resize", "do_rescale", "do_normalize"}) node.require(key, {true});
    node.require("data_format", {"channels_first"});

    if (node.has("size")) {
        const JsonNode size = node.at("size");
        size.only_known({"shortest_edge", "longest_edge", "min_pixels", "max_pixels"});
        for (const char* key : {"shortest_edge", "min_pixels"})
            read_positive(size, key, config.min_pixels);
        for (const char* key : {"longest_edge", "max_pixels"})
            read_positive(size, key, config.max_pixels);
    }
    read_positive(node, "min_pixels", config.min_pixels);
    read_positive(node, "max_pixels", config.max_pixels);
    ATELIER_CHECK_INPUT(
        config.min_pixels <= config.max_pixels,
        "{}: size: expected shortest_edge <= longest_edge (areas in pixels), found {} and {}",
        config.path.string(), config.min_pixels, config.max_pixels);
    read_positive(node, "patch_size", config.patch_size);
    read_positive(node, "temporal_patch_size", config.temporal_patch_size);
    read_positive(node, "merge_size", config.merge_size);
    if (node.has("resample")) config.filter = filter_of(node.at("resample"));
    if (node.has("rescale_factor")) config.rescale_factor = node.at("rescale_factor").number();
    read_triple(node, "image_mean", config.mean);
    read_triple(node, "image_std", config.std);
    for (double value : config.std) {
        ATELIER_CHECK_INPUT(value > 0, "{}: image_std: expected positive numbers, found {}",
                            config.path.string(), value);
    }
    return config;
}

}  // namespace atelier::model
