#include "io/safetensors.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <set>

#include "core/convert.hpp"
#include "core/json.hpp"
#include "io/file_io.hpp"
#include "io/lookup.hpp"

namespace atelier::io {
namespace {

using Json = nlohmann::json;

// The format's own limit on headers.
constexpr std::uint64_t max_header_bytes = 100'000'000;

std::optional<DType> dtype_from(const std::string& name) {
    if (name == "F32") return DType::f32;
    if (name == "F64") return DType::f64;
    if (name == "BF16") return DType::bf16;
    if (name == "F16") return DType::f16;
    if (name == "I64") return DType::i64;
    if (name == "I32") return DType::i32;
    if (name == "U64") return DType::u64;
    if (name == "U32") return DType::u32;
    if (name == "U8" || name == "BOOL") return DType::u8;
    return std::nullopt;
}

const char* format_name(DType dtype) {
    switch (dtype) {
        case DType::f32: return "F32";
        case DType::f64: return "F64";
        case DType::bf16: return "BF16";
        case DType::f16: return "F16";
        case DType::i64: return "I64";
        case DType::i32: return "I32";
        case DType::u64: return "U64";
        case DType::u32: return "U32";
        case DType::u8: return "U8";
    }
    return "?";
}

Json parse_object(std::string_view text, const std::filesystem::path& path, const char* what) {
    Json json = parse_json(text, fmt::format("{}: {}", path.string(), what));
    ATELIER_CHECK_INPUT(json.is_object(), "{}: {} is not a JSON object", path.string(), what);
    return json;
}

Shape read_shape(const Json& entry, const std::string& name, const std::filesystem::path& path) {
    const auto found = entry.find("shape");
    ATELIER_CHECK_INPUT(found != entry.end() && found->is_array() && found->size() <= Shape::max_rank,
                        "{}: tensor {} has no shape of at most {} axes", path.string(), name, Shape::max_rank);
    std::vector<std::int64_t> extents;
    std::int64_t elements = 1;
    for (const Json& extent : *found) {
        ATELIER_CHECK_INPUT(extent.is_number_unsigned(), "{}: tensor {} has a shape entry {} that is no size",
                            path.string(), name, extent.dump());
        extents.push_back(extent.get<std::int64_t>());
        ATELIER_CHECK_INPUT(extents.back() >= 0 && !__builtin_mul_overflow(elements, extents.back(), &elements) &&
                                elements <= std::numeric_limits<std::int64_t>::max() / 8,
                            "{}: tensor {} has an impossible shape {}", path.string(), name, found->dump());
    }
    return Shape(std::span<const std::int64_t>(extents));
}

}  // namespace

Safetensors Safetensors::open(const std::filesystem::path& path) {
    Safetensors result;
    result.path_ = path;
    if (path.extension() != ".json") {
        result.add_file(path);
        return result;
    }
    const MappedFile file(path);
    ATELIER_CHECK_INPUT(file.bytes().size() <= max_header_bytes, "{}: {} bytes are too many for an index", path.string(),
                        file.bytes().size());
    const Json index = parse_object(
        std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()), path, "the index");
    const auto map = index.find("weight_map");
    ATELIER_CHECK_INPUT(map != index.end() && map->is_object(), "{}: no weight_map object", path.string());
    std::set<std::string> shards;
    for (const auto& [name, shard] : map->items()) {
        ATELIER_CHECK_INPUT(shard.is_string(), "{}: the shard of tensor {} is not a file name", path.string(), name);
        const auto text = shard.get<std::string>();
        ATELIER_CHECK_INPUT(!text.empty() && text.find('/') == std::string::npos && text != "..",
                            "{}: tensor {} lies in '{}', which is not a file name in the same directory",
                            path.string(), name, text);
        shards.insert(text);
    }
    for (const std::string& shard : shards) {
        const auto file_path = path.parent_path() / shard;
        ATELIER_CHECK_INPUT(is_file(file_path), "{} names the shard {}, which is missing",
                            path.string(), file_path.string());
        result.add_file(file_path);
    }
    for (const auto& [name, shard] : map->items()) {
        const auto found = result.tensors_.find(name);
        ATELIER_CHECK_INPUT(found != result.tensors_.end(), "{} says tensor {} lies in {}, which does not hold it",
                            path.string(), name, shard.get<std::string>());
        ATELIER_CHECK_INPUT(found->second.file->path().filename() == shard.get<std::string>(),
                            "{} says tensor {} lies in {}, found in {}", path.string(), name,
                            shard.get<std::string>(), found->second.file->path().string());
    }
    ATELIER_CHECK_INPUT(result.tensors_.size() == map->size(),
                        "{} lists {} tensors, its shards hold {}", path.string(), map->size(),
                        result.tensors_.size());
    return result;
}

Safetensors Safetensors::open_component(const std::filesystem::path& directory, const std::string& stem) {
    const auto single = directory / (stem + ".safetensors");
    if (std::filesystem::exists(single)) return open(single);
    const auto index = directory / (stem + ".safetensors.index.json");
    ATELIER_CHECK_INPUT(std::filesystem::exists(index), "{} holds neither {} nor {}", directory.string(),
                        single.filename().string(), index.filename().string());
    return open(index);
}

void Safetensors::add_file(const std::filesystem::path& path) {
    auto file = std::make_shared<const MappedFile>(path);
    const auto bytes = file->bytes();
    ATELIER_CHECK_INPUT(bytes.size() >= 8, "{}: {} bytes are too few for a safetensors file", path.string(),
                        bytes.size());
    std::uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, bytes.data(), 8);
    ATELIER_CHECK_INPUT(header_bytes <= max_header_bytes && header_bytes <= bytes.size() - 8,
                        "{}: the header claims {} bytes (at most {} may be), the file has {}: truncated, or no safetensors file",
                        path.string(), header_bytes, max_header_bytes, bytes.size());
    const Json header = parse_object(
        std::string(reinterpret_cast<const char*>(bytes.data()) + 8, header_bytes), path, "the header");
    const std::uint64_t data_bytes = bytes.size() - 8 - header_bytes;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
    for (const auto& [name, entry] : header.items()) {
        if (name == "__metadata__") {
            ATELIER_CHECK_INPUT(entry.is_object(), "{}: __metadata__ is not an object", path.string());
            for (const auto& [key, value] : entry.items()) {
                ATELIER_CHECK_INPUT(value.is_string(), "{}: metadata {} is not a string", path.string(), key);
                metadata_[key] = value.get<std::string>();
            }
            continue;
        }
        ATELIER_CHECK_INPUT(entry.is_object(), "{}: tensor {} is not described by an object", path.string(), name);
        const std::string dtype_name = entry.value("dtype", Json("")).is_string() ? entry.value("dtype", "") : "";
        const auto dtype = dtype_from(dtype_name);
        ATELIER_CHECK_INPUT(dtype.has_value(), "{}: tensor {} has dtype '{}', which is not read here", path.string(),
                            name, dtype_name);
        const Shape shape = read_shape(entry, name, path);
        const auto offsets = entry.find("data_offsets");
        ATELIER_CHECK_INPUT(offsets != entry.end() && offsets->is_array() && offsets->size() == 2 &&
                                (*offsets)[0].is_number_unsigned() && (*offsets)[1].is_number_unsigned(),
                            "{}: tensor {} has no data_offsets [begin, end]", path.string(), name);
        const auto begin = (*offsets)[0].get<std::uint64_t>(), end = (*offsets)[1].get<std::uint64_t>();
        ATELIER_CHECK_INPUT(begin <= end && end <= data_bytes,
                            "{}: tensor {} lies at bytes [{}, {}) of {}: the file is truncated or damaged",
                            path.string(), name, begin, end, data_bytes);
        const auto expected = static_cast<std::uint64_t>(shape.elements()) * size_of(*dtype);
        ATELIER_CHECK_INPUT(end - begin == expected, "{}: tensor {} of shape {} and dtype {} takes {} bytes, found {}",
                            path.string(), name, shape.str(), dtype_name, expected, end - begin);
        ATELIER_CHECK_INPUT(!tensors_.contains(name), "tensor {} stands in {} and in {}", name,
                            tensors_[name].file->path().string(), path.string());
        ranges.emplace_back(begin, end);
        tensors_[name] = StoredTensor{name, *dtype, shape, bytes.data() + 8 + header_bytes + begin, file};
    }
    std::sort(ranges.begin(), ranges.end());
    std::uint64_t at = 0;
    for (const auto& [begin, end] : ranges) {
        ATELIER_CHECK_INPUT(begin == at, "{}: tensors {} at byte {} of the data", path.string(),
                            begin < at ? "overlap" : "leave a gap", std::min(at, begin));
        at = end;
    }
    ATELIER_CHECK_INPUT(at == data_bytes, "{}: {} bytes of data belong to no tensor", path.string(), data_bytes - at);
}

const StoredTensor& Safetensors::at(const std::string& name) const {
    const auto found = tensors_.find(name);
    ATELIER_CHECK_INPUT(found != tensors_.end(), "{} holds no tensor {}", path_.string(), name);
    return found->second;
}

namespace {

template <typename From, typename Function>
void convert(const std::byte* data, std::int64_t count, float* out, Function function) {
    for (std::int64_t i = 0; i < count; ++i) {
        From value;
        std::memcpy(&value, data + static_cast<std::size_t>(i) * sizeof(From), sizeof(From));
        out[i] = function(value);
    }
}

/// `n` numbers of a dtype to fp32.
void numbers_to_f32(DType dtype, const std::byte* data, std::int64_t n, float* out) {
    const auto plain = [](auto v) { return static_cast<float>(v); };
    switch (dtype) {
        case DType::f32: std::memcpy(out, data, static_cast<std::size_t>(n) * sizeof(float)); return;
        case DType::f64: return convert<double>(data, n, out, plain);
        case DType::bf16: return convert<std::uint16_t>(data, n, out, bf16_to_f32);
        case DType::f16: return convert<std::uint16_t>(data, n, out, f16_to_f32);
        case DType::i64: return convert<std::int64_t>(data, n, out, plain);
        case DType::i32: return convert<std::int32_t>(data, n, out, plain);
        case DType::u64: return convert<std::uint64_t>(data, n, out, plain);
        case DType::u32: return convert<std::uint32_t>(data, n, out, plain);
        case DType::u8: return convert<std::uint8_t>(data, n, out, plain);
    }
}

bool is_floating(DType dtype) {
    return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16 || dtype == DType::f64;
}

}  // namespace

void to_f32(const StoredTensor& stored, float* out) { to_f32(stored, 0, stored.shape.elements(), out); }

void to_f32(const StoredTensor& stored, std::int64_t first, std::int64_t count, float* out) {
    ATELIER_CHECK(first >= 0 && count >= 0 && first + count <= stored.shape.elements(),
                  "elements [{}, {}) of {} of shape {}", first, first + count, stored.name, stored.shape.str());
    numbers_to_f32(stored.dtype, stored.data + static_cast<std::size_t>(first) * size_of(stored.dtype), count, out);
}

void release_pages(const StoredTensor& stored) { stored.file->release(stored.data, stored.bytes()); }

std::vector<float> Safetensors::floats(const std::string& name) const {
    const StoredTensor& stored = at(name);
    std::vector<float> out(static_cast<std::size_t>(stored.shape.elements()));
    to_f32(stored, out.data());
    return out;
}

std::vector<std::int64_t> Safetensors::integers(const std::string& name) const {
    const StoredTensor& stored = at(name);
    const auto count = static_cast<std::size_t>(stored.shape.elements());
    std::vector<std::int64_t> out(count);
    const auto read = [&]<typename T>(T) {
        for (std::size_t i = 0; i < count; ++i) {
            T value;
            std::memcpy(&value, stored.data + i * sizeof(T), sizeof(T));
            out[i] = static_cast<std::int64_t>(value);
        }
    };
    switch (stored.dtype) {
        case DType::i64: read(std::int64_t{}); break;
        case DType::i32: read(std::int32_t{}); break;
        case DType::u64: read(std::uint64_t{}); break;
        case DType::u32: read(std::uint32_t{}); break;
        case DType::u8: read(std::uint8_t{}); break;
        default:
            ATELIER_FAIL(ErrorKind::input, "{}: tensor {} holds {}, integers were expected", path_.string(), name,
                         name_of(stored.dtype));
    }
    return out;
}

namespace {

std::uint64_t bytes_written(const TensorToWrite& t) {
    return static_cast<std::uint64_t>(t.values.elements()) * size_of(t.dtype);
}

/// Writes numbers in another floating dtype, a piece at a time.
template <typename Put>
void put_converted(const std::byte* data, DType from, std::int64_t count, DType to, Put put) {
    constexpr std::int64_t piece = 1 << 18;
    std::vector<float> floats;
    std::vector<std::uint16_t> halves;
    for (std::int64_t at = 0; at < count; at += piece) {
        const std::int64_t n = std::min(piece, count - at);
        floats.resize(static_cast<std::size_t>(n));
        numbers_to_f32(from, data + static_cast<std::size_t>(at) * size_of(from), n, floats.data());
        if (to == DType::f32) {
            put(floats.data(), floats.size() * sizeof(float));
            continue;
        }
        halves.resize(floats.size());
        for (std::size_t i = 0; i < halves.size(); ++i)
            halves[i] = to == DType::bf16 ? f32_to_bf16(floats[i]) : f32_to_f16(floats[i]);
        put(halves.data(), halves.size() * 2);
    }
}

}  // namespace

void write_safetensors(const std::filesystem::path& path, const std::vector<TensorToWrite>& tensors,
                       const std::map<std::string, std::string>& metadata) {
    nlohmann::ordered_json header = nlohmann::ordered_json::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    std::uint64_t at = 0;
    for (const TensorToWrite& t : tensors) {
        ATELIER_CHECK(!header.contains(t.name), "tensor {} is to be written twice to {}", t.name, path.string());
        const bool converts = is_floating(t.values.dtype()) && is_floating(t.dtype) && t.dtype != DType::f64;
        ATELIER_CHECK((converts || t.values.dtype() == t.dtype) && (!t.make || t.values.dtype() == DType::f32),
                      "tensor {} of {} cannot be written as {}", t.name, name_of(t.values.dtype()), name_of(t.dtype));
        const std::uint64_t size = bytes_written(t);
        nlohmann::ordered_json shape = nlohmann::ordered_json::array();
        for (auto extent : t.values.shape().extents()) shape.push_back(extent);
        header[t.name] = {{"dtype", format_name(t.dtype)}, {"shape", shape}, {"data_offsets", {at, at + size}}};
        at += size;
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    const std::uint64_t header_bytes = text.size();

    OutputFile file(path);
    const auto put = [&](const void* data, std::size_t bytes) { file.write(data, bytes); };
    put(&header_bytes, 8);
    put(text.data(), text.size());
    std::vector<float> made;
    for (const TensorToWrite& t : tensors) {
        const std::byte* data = static_cast<const std::byte*>(t.values.raw());
        if (t.make) {
            made.resize(static_cast<std::size_t>(t.values.elements()));
            t.make(made.data());
            data = reinterpret_cast<const std::byte*>(made.data());
        }
        if (t.values.dtype() == t.dtype)
            put(data, t.values.bytes());
        else
            put_converted(data, t.values.dtype(), t.values.elements(), t.dtype, put);
    }
    file.close();
}

std::vector<std::string> write_sharded(const std::filesystem::path& directory, const std::string& stem,
                                       const std::vector<TensorToWrite>& tensors, std::uint64_t shard_bytes,
                                       const std::map<std::string, std::string>& metadata) {
    std::vector<std::vector<TensorToWrite>> shards(1);
    std::uint64_t total = 0, in_shard = 0;
    for (const TensorToWrite& t : tensors) {
        const std::uint64_t size = bytes_written(t);
        if (!shards.back().empty() && in_shard + size > shard_bytes) {
            shards.emplace_back();
            in_shard = 0;
        }
        shards.back().push_back(t);
        in_shard += size;
        total += size;
    }
    if (shards.size() == 1) {
        const std::string name = stem + ".safetensors";
        write_safetensors(directory / name, shards[0], metadata);
        return {name};
    }
    std::vector<std::string> names;
    nlohmann::ordered_json map = nlohmann::ordered_json::object();
    for (std::size_t i = 0; i < shards.size(); ++i) {
        names.push_back(fmt::format("{}-{:05}-of-{:05}.safetensors", stem, i + 1, shards.size()));
        write_safetensors(directory / names.back(), shards[i], metadata);
        for (const TensorToWrite& t : shards[i]) map[t.name] = names.back();
    }
    names.push_back(stem + ".safetensors.index.json");
    write_text(directory / names.back(), nlohmann::ordered_json{{"metadata", {{"total_size", total}}}, {"weight_map", map}}.dump(2) + "\n");
    return names;
}

}  // namespace atelier::io
