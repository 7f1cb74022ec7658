#include "io/hdf5.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>
#include <string_view>
#include <utility>

#include "io/fletcher32.hpp"
#include "io/hdf5_read_driver.hpp"

namespace atelier::io::hdf5 {
namespace {

/// HDF5 prints its own stack of errors, in each thread until it is told not to; ours says what matters.
void be_quiet() {
    thread_local const bool quiet = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
    static_cast<void>(quiet);
}

/// Throws what the system has refused to open or to read for HDF5 on this thread.
void throw_what_was_refused() {
    const ReadFailure refused = take_read_failure();
    ATELIER_CHECK_IO(refused.error == 0, "cannot read {}: {}", refused.path, std::strerror(refused.error));
}

// What a file does not hold is the file's fault (input) only if the system gave what it was asked for (io).
#define ATELIER_CHECK_READ(condition, ...)                                                                      \
    do {                                                                                                        \
        if (!(condition)) [[unlikely]] {                                                                        \
            throw_what_was_refused();                                                                           \
            throw_error(ErrorKind::input, fmt::format(__VA_ARGS__), #condition, __FILE__, __LINE__);            \
        }                                                                                                       \
    } while (false)

// Chunks of about a megabyte of whole rows: one row where a row is larger.
constexpr std::int64_t chunk_bytes = 1 << 20;

hid_t type_of(DType dtype) {
    switch (dtype) {
        case DType::f32: return H5T_IEEE_F32LE;
        case DType::f64: return H5T_IEEE_F64LE;
        case DType::i64: return H5T_STD_I64LE;
        case DType::i32: return H5T_STD_I32LE;
        case DType::u64: return H5T_STD_U64LE;
        case DType::u32: return H5T_STD_U32LE;
        case DType::u8: return H5T_STD_U8LE;
        default: ATELIER_FAIL(ErrorKind::internal, "{} is not written to HDF5", name_of(dtype));
    }
}

/// Properties of a new dataset: no time stamps, so that the same numbers make the same file.
Handle dataset_properties() {
    Handle properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    H5Pset_obj_track_times(properties.id(), false);
    return properties;
}

Handle string_type() {
    Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
    H5Tset_size(type.id(), H5T_VARIABLE);
    H5Tset_cset(type.id(), H5T_CSET_UTF8);
    return type;
}

/// Texts are converted in two buffers, by default of a megabyte of fresh memory each, however few texts there are.
Handle text_transfer(std::size_t count) {
    Handle properties(H5Pcreate(H5P_DATASET_XFER), H5Pclose);
    H5Pset_buffer(properties.id(), std::clamp<std::size_t>(count * sizeof(hvl_t), 4096, 1 << 20), nullptr, nullptr);
    return properties;
}

}  // namespace

void Handle::swap(Handle& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(closer_, other.closer_);
}

void Handle::reset() {
    if (id_ >= 0 && closer_ != nullptr) closer_(id_);
    id_ = -1;
}

bool is_thread_safe() {
    hbool_t safe = 0;
    return H5is_library_threadsafe(&safe) >= 0 && safe != 0;
}

File File::create(const std::filesystem::path& path) {
    be_quiet();
    File f;
    f.path_ = path;
    auto status = std::make_unique<WriteStatus>();
    const Handle access(make_write_access(*status), H5Pclose);
    f.file_ = Handle(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.id()), H5Fclose);
    ATELIER_CHECK_IO(f.file_.valid(), "cannot create {}: {}", path.string(), std::strerror(status->error));
    f.status_ = std::move(status);
    return f;
}

File::~File() {
    file_.reset();
    if (!status_) return;
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
}

void File::swap(File& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(status_, other.status_);
    std::swap(file_, other.file_);
}

void File::check_written(const std::string& what) const {
    ATELIER_CHECK_IO(status_->error == 0, "cannot write {} to {}: {}", what, path_.string(), std::strerror(status_->error));
}

bool is_hdf5(const std::filesystem::path& path) {
    constexpr std::string_view signature = "\x89HDF\r\n\x1a\n";
    std::ifstream in(path, std::ios::binary);
    std::string begin(signature.size(), '\0');
    in.read(begin.data(), static_cast<std::streamsize>(begin.size()));
    ATELIER_CHECK_IO(!in.bad() && in.rdbuf()->is_open(), "cannot read {}", path.string());
    return in.gcount() == static_cast<std::streamsize>(signature.size()) && begin == signature;
}

File File::open(const std::filesystem::path& path) {
    be_quiet();
    File f;
    f.path_ = path;
    ATELIER_CHECK_INPUT(std::filesystem::exists(path), "{} is missing", path.string());
    take_read_failure();
    const Handle access(make_read_access(), H5Pclose);
    f.file_ = Handle(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.id()), H5Fclose);
    ATELIER_CHECK_READ(f.file_.valid(), "{} is no complete HDF5 file: truncated, damaged or of another kind", path.string());
    return f;
}

void File::close() {
    if (status_) ATELIER_CHECK_IO(H5Fflush(file_.id(), H5F_SCOPE_GLOBAL) >= 0, "cannot complete {}", path_.string());
    file_.reset();
    if (!status_) return;
    check_written("the end");
    status_.reset();
}

namespace {

/// A name in a file is data: it may lead to no other directory.
bool is_neighbour(const std::string& file) { return !file.empty() && file != "." && file != ".." && file.find('/') == std::string::npos; }

void check_neighbour(const std::string& file, const std::string& name, const std::filesystem::path& path) {
    ATELIER_CHECK_INPUT(is_neighbour(file), "{}: {} lies in '{}', which is no file of the same directory", path.string(), name, file);
}

/// Links are followed into files of the same directory alone, however many lead on from there.
hid_t link_access() {
    static const hid_t access = [] {  // the library closes it
        const hid_t properties = H5Pcreate(H5P_LINK_ACCESS);
        H5Pset_elink_cb(
            properties,
            [](const char*, const char*, const char* file, const char*, unsigned*, hid_t, void*) -> herr_t {
                return is_neighbour(file) ? 0 : -1;
            },
            nullptr);
        return properties;
    }();
    return access;
}

void check_link(hid_t file, const std::string& name, const std::filesystem::path& path) {
    if (name == "/") return;  // the root is no link
    H5L_info_t link{};
    ATELIER_CHECK_READ(H5Lget_info(file, name.c_str(), &link, link_access()) >= 0, "{}: the link {} is damaged", path.string(), name);
    if (link.type != H5L_TYPE_EXTERNAL) return;
    std::vector<char> value(link.u.val_size);
    unsigned flags = 0;
    const char *target_file = "", *target = nullptr;
    ATELIER_CHECK_READ(H5Lget_val(file, name.c_str(), value.data(), value.size(), link_access()) >= 0 &&
                            H5Lunpack_elink_val(value.data(), value.size(), &flags, &target_file, &target) >= 0,
                        "{}: the link {} is damaged", path.string(), name);
    check_neighbour(target_file, name, path);
}

std::string virtual_text(ssize_t (*get)(hid_t, std::size_t, char*, std::size_t), hid_t creation, std::size_t i) {
    std::string text(static_cast<std::size_t>(std::max<ssize_t>(get(creation, i, nullptr, 0), 0)) + 1, '\0');
    get(creation, i, text.data(), text.size());
    text.pop_back();
    return text;
}

/// Rows [first, first + count) that a selection takes whole. Nothing if it takes anything else.
std::optional<std::pair<hsize_t, hsize_t>> whole_rows(hid_t space) {
    std::array<hsize_t, H5S_MAX_RANK> extent{}, low{}, high{};
    const int rank = H5Sget_simple_extent_dims(space, extent.data(), nullptr);
    if (rank < 1 || H5Sget_select_npoints(space) <= 0 || H5Sget_select_bounds(space, low.data(), high.data()) < 0) return std::nullopt;
    hssize_t points = static_cast<hssize_t>(high[0] - low[0] + 1);
    for (std::size_t i = 1; i < static_cast<std::size_t>(rank); ++i)
        if (__builtin_mul_overflow(points, extent[i], &points)) return std::nullopt;
    if (points != H5Sget_select_npoints(space)) return std::nullopt;
    return std::pair(low[0], high[0] - low[0] + 1);
}

// Virtual datasets are read part by part, by this code: an index of indices refers to indices, and these to shards.
constexpr int deepest = 2;

}  // namespace

File File::neighbour(const std::string& file, const std::string& name) const {
    check_neighbour(file, name, path_);
    ATELIER_CHECK_INPUT(depth_ < deepest, "{}: {} lies in {}: files refer to each other deeper than an index of indices does", path_.string(), name,
                        file);
    ATELIER_CHECK_INPUT(std::filesystem::exists(path_.parent_path() / file), "{}: {} lies in {}, which is missing", path_.string(), name, file);
    File source = open(path_.parent_path() / file);
    source.depth_ = depth_ + 1;
    return source;
}

std::vector<File::Part> File::parts(const Dataset& whole) const {
    const Handle creation(H5Dget_create_plist(whole.set.id()), H5Pclose);
    std::vector<Part> found;
    if (H5Pget_layout(creation.id()) != H5D_VIRTUAL || std::count(whole.extents.begin(), whole.extents.end(), 0) > 0) return found;
    std::size_t count = 0;
    H5Pget_virtual_count(creation.id(), &count);
    std::int64_t next = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const Handle own(H5Pget_virtual_vspace(creation.id(), i), H5Sclose), theirs(H5Pget_virtual_srcspace(creation.id(), i), H5Sclose);
        const auto rows = whole_rows(own.id());
        // All of the other dataset, whose size it doesn't know, or as many rows from its beginning: part_of() compares.
        const auto source = H5Sget_select_type(theirs.id()) == H5S_SEL_ALL ? rows : whole_rows(theirs.id());
        ATELIER_CHECK_INPUT(rows && source && static_cast<std::int64_t>(rows->first) == next && source->second == rows->second,
                            "{}: {} is not put together row by row", path_.string(), whole.name);
        found.push_back({virtual_text(H5Pget_virtual_filename, creation.id(), i), virtual_text(H5Pget_virtual_dsetname, creation.id(), i), next,
                         static_cast<std::int64_t>(rows->second)});
        next += found.back().count;
    }
    ATELIER_CHECK_INPUT(!whole.extents.empty() && next == whole.extents[0], "{}: {} has rows that lie in no file", path_.string(), whole.name);
    return found;
}

File::Dataset File::part_of(const File& source, const Part& part, const Dataset& whole) const {
    Dataset found = source.dataset(part.name);
    const Handle own(H5Dget_type(whole.set.id()), H5Tclose), theirs(H5Dget_type(found.set.id()), H5Tclose);
    ATELIER_CHECK_INPUT(H5Tequal(own.id(), theirs.id()) > 0 && found.extents.size() == whole.extents.size() && found.extents[0] == part.count &&
                            std::equal(found.extents.begin() + 1, found.extents.end(), whole.extents.begin() + 1),
                        "{}: {} of {} is not what {} maps", source.path_.string(), part.name, part.file, path_.string());
    return found;
}

/// A dataset lies in its file, or, if it is virtual, in files of the same directory; it isn't compressed; it is no larger than what
/// is stored; its bytes, and those of a part of it, can be counted.
void File::check_storage(const Dataset& set) const {
    const auto& name = set.name;
    const Handle creation(H5Dget_create_plist(set.set.id()), H5Pclose), space(H5Dget_space(set.set.id()), H5Sclose), type(H5Dget_type(set.set.id()), H5Tclose);
    ATELIER_CHECK_INPUT(H5Pget_external_count(creation.id()) == 0, "{}: {} lies in other files", path_.string(), name);
    for (int i = 0; i < H5Pget_nfilters(creation.id()); ++i) {
        unsigned flags = 0, settings = 0;
        std::size_t none = 0;
        const auto filter = H5Pget_filter2(creation.id(), static_cast<unsigned>(i), &flags, &none, nullptr, 0, nullptr, &settings);
        ATELIER_CHECK_INPUT(filter == H5Z_FILTER_FLETCHER32, "{}: {} is compressed (filter {}), which no file of ours is", path_.string(), name,
                            static_cast<int>(filter));
    }
    // HDF5 counts elements modulo 2^64. An extent of zero hides what the others' product is.
    auto bytes = static_cast<std::int64_t>(H5Tget_size(type.id()));
    for (const std::int64_t extent : set.extents)
        ATELIER_CHECK_INPUT(extent >= 0 && !__builtin_mul_overflow(bytes, std::max<std::int64_t>(extent, 1), &bytes),
                            "{}: {} is larger than any file", path_.string(), name);
    if (H5Pget_layout(creation.id()) == H5D_VIRTUAL) {  // as large as its parts, each of which is checked in turn
        for (const Part& part : parts(set)) part_of(neighbour(part.file, name), part, set);
        return;
    }
    // What the file says that it stores for the dataset, but no more than the file has.
    const Handle file(H5Iget_file_id(set.set.id()), H5Fclose);
    hsize_t stored = 0;
    ATELIER_CHECK_READ(H5Fget_filesize(file.id(), &stored) >= 0, "{}: {} is in no file", path_.string(), name);
    stored = std::min(stored, H5Dget_storage_size(set.set.id()));
    const hssize_t elements = H5Sget_simple_extent_npoints(space.id());
    const hsize_t most = stored / std::max<std::size_t>(H5Tget_size(type.id()), 1);
    ATELIER_CHECK_READ(elements >= 0 && static_cast<hsize_t>(elements) <= most, "{}: {} has {} elements, and bytes for {} at most", path_.string(),
                       name, elements, most);
}

bool File::exists(const std::string& name) const {
    take_read_failure();
    // HDF5 wants every part of a path to be asked for in turn.
    for (std::size_t at = name.find('/', 1);; at = name.find('/', at + 1)) {
        const std::string part = name.substr(0, at);
        if (H5Lexists(file_.id(), part.c_str(), link_access()) <= 0) {
            throw_what_was_refused();
            return false;
        }
        check_link(file_.id(), part, path_);
        if (at == std::string::npos) return true;
    }
}

std::vector<std::string> File::children(const std::string& group) const {
    const Handle g(exists(group) ? H5Oopen(file_.id(), group.c_str(), link_access()) : -1, H5Oclose);
    ATELIER_CHECK_READ(g.valid() && H5Iget_type(g.id()) == H5I_GROUP, "{} has no group {}", path_.string(), group);
    std::vector<std::string> names;
    const herr_t listed = H5Literate(
        g.id(), H5_INDEX_NAME, H5_ITER_INC, nullptr,
        [](hid_t, const char* name, const H5L_info_t*, void* out) -> herr_t {
            static_cast<std::vector<std::string>*>(out)->emplace_back(name);
            return 0;
        },
        &names);
    ATELIER_CHECK_READ(listed >= 0, "{}: group {} is damaged", path_.string(), group);
    return names;
}

void File::make_group(const std::string& name) {
    if (exists(name)) return;
    const Handle properties(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
    H5Pset_create_intermediate_group(properties.id(), 1);
    const Handle g(H5Gcreate2(file_.id(), name.c_str(), properties.id(), H5P_DEFAULT, H5P_DEFAULT), H5Gclose);
    ATELIER_CHECK_IO(g.valid(), "cannot write group {} to {}", name, path_.string());
}

namespace {
void put_attribute(hid_t file, const std::filesystem::path& path, const std::string& object, const std::string& name, hid_t type,
                   const void* value) {
    const Handle o(H5Oopen(file, object.c_str(), H5P_DEFAULT), H5Oclose), space(H5Screate(H5S_SCALAR), H5Sclose);
    const Handle a(H5Acreate2(o.id(), name.c_str(), type, space.id(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
    ATELIER_CHECK_IO(a.valid() && H5Awrite(a.id(), type, value) >= 0, "cannot write attribute {} of {} to {}", name, object,
                     path.string());
}
Handle open_attribute(hid_t file, const std::filesystem::path& path, const std::string& object, const std::string& name) {
    take_read_failure();
    const Handle o(H5Oopen(file, object.c_str(), H5P_DEFAULT), H5Oclose);
    Handle a(o.valid() && H5Aexists(o.id(), name.c_str()) > 0 ? H5Aopen(o.id(), name.c_str(), H5P_DEFAULT) : -1, H5Aclose);
    ATELIER_CHECK_READ(a.valid(), "{}: {} has no attribute {}", path.string(), object, name);
    const Handle space(H5Aget_space(a.id()), H5Sclose);
    ATELIER_CHECK_INPUT(H5Sget_simple_extent_npoints(space.id()) == 1, "{}: attribute {} of {} is not one value", path.string(), name, object);
    return a;
}
}  // namespace

void File::set_attribute(const std::string& object, const std::string& name, const std::string& value) {
    const Handle type = string_type();
    const char* text = value.c_str();
    put_attribute(file_.id(), path_, object, name, type.id(), &text);
}
void File::set_attribute(const std::string& object, const std::string& name, std::int64_t value) {
    put_attribute(file_.id(), path_, object, name, H5T_STD_I64LE, &value);
}
void File::set_attribute(const std::string& object, const std::string& name, double value) {
    put_attribute(file_.id(), path_, object, name, H5T_IEEE_F64LE, &value);
}

bool File::has_attribute(const std::string& object, const std::string& name) const {
    take_read_failure();
    const htri_t found = H5Aexists_by_name(file_.id(), object.c_str(), name.c_str(), H5P_DEFAULT);
    if (found <= 0) throw_what_was_refused();
    return found > 0;
}

std::string File::text_attribute(const std::string& object, const std::string& name) const {
    const Handle a = open_attribute(file_.id(), path_, object, name), found(H5Aget_type(a.id()), H5Tclose), type = string_type();
    ATELIER_CHECK_INPUT(H5Tis_variable_str(found.id()) > 0, "{}: attribute {} of {} is no text", path_.string(), name, object);
    char* text = nullptr;
    ATELIER_CHECK_READ(H5Aread(a.id(), type.id(), &text) >= 0 && text != nullptr, "{}: attribute {} of {} is damaged",
                        path_.string(), name, object);
    std::string value(text);
    H5free_memory(text);
    return value;
}
std::int64_t File::integer_attribute(const std::string& object, const std::string& name) const {
    const Handle a = open_attribute(file_.id(), path_, object, name);
    std::int64_t value = 0;
    ATELIER_CHECK_READ(H5Aread(a.id(), H5T_NATIVE_INT64, &value) >= 0, "{}: attribute {} of {} is no integer", path_.string(), name,
                        object);
    return value;
}
double File::number_attribute(const std::string& object, const std::string& name) const {
    const Handle a = open_attribute(file_.id(), path_, object, name);
    double value = 0;
    ATELIER_CHECK_READ(H5Aread(a.id(), H5T_NATIVE_DOUBLE, &value) >= 0, "{}: attribute {} of {} is no number", path_.string(), name,
                        object);
    return value;
}

std::int64_t File::chunk_rows(DType dtype, const Shape& shape) {
    const std::int64_t row = shape.elements() * static_cast<std::int64_t>(size_of(dtype)) / shape[0];
    return std::clamp<std::int64_t>(chunk_bytes / std::max<std::int64_t>(row, 1), 1, shape[0]);
}

void File::make_dataset(const std::string& name, DType dtype, const Shape& shape) {
    std::vector<hsize_t> dims;
    for (auto e : shape.extents()) dims.push_back(static_cast<hsize_t>(e));
    const Handle space(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr), H5Sclose);
    const Handle links(H5Pcreate(H5P_LINK_CREATE), H5Pclose), properties = dataset_properties();
    H5Pset_create_intermediate_group(links.id(), 1);
    if (shape.elements() > 0 && !dims.empty()) {
        std::vector<hsize_t> chunk = dims;
        chunk[0] = static_cast<hsize_t>(chunk_rows(dtype, shape));
        H5Pset_chunk(properties.id(), static_cast<int>(chunk.size()), chunk.data());
        H5Pset_fletcher32(properties.id());
    }
    const Handle set(H5Dcreate2(file_.id(), name.c_str(), type_of(dtype), space.id(), links.id(), properties.id(), H5P_DEFAULT), H5Dclose);
    ATELIER_CHECK_IO(set.valid(), "cannot write dataset {} to {}", name, path_.string());
}

namespace {

/// How a dataset that make_dataset() made lies on disk.
struct Chunks {
    std::vector<hsize_t> extent;  ///< of the dataset
    std::int64_t rows = 0;        ///< of a chunk
    std::size_t bytes = 0;        ///< of a chunk, without its checksum
    std::size_t row_bytes() const { return bytes / static_cast<std::size_t>(rows); }
};

/// Nothing for a dataset of another layout: not chunked by whole rows, or with other filters than Fletcher-32.
std::optional<Chunks> chunks_of(hid_t set, hid_t type) {
    const Handle properties(H5Dget_create_plist(set), H5Pclose), space(H5Dget_space(set), H5Sclose);
    const int rank = H5Sget_simple_extent_ndims(space.id());
    if (rank < 1 || H5Pget_layout(properties.id()) != H5D_CHUNKED || H5Pget_nfilters(properties.id()) != 1) return std::nullopt;
    unsigned flags = 0;
    std::size_t count = 0;
    if (H5Pget_filter2(properties.id(), 0, &flags, &count, nullptr, 0, nullptr, nullptr) != H5Z_FILTER_FLETCHER32) return std::nullopt;
    Chunks c;
    std::vector<hsize_t> chunk(static_cast<std::size_t>(rank));
    c.extent.resize(chunk.size());
    H5Sget_simple_extent_dims(space.id(), c.extent.data(), nullptr);
    H5Pget_chunk(properties.id(), rank, chunk.data());
    if (!std::equal(chunk.begin() + 1, chunk.end(), c.extent.begin() + 1)) return std::nullopt;
    c.rows = static_cast<std::int64_t>(chunk[0]);
    c.bytes = H5Tget_size(type);
    for (const hsize_t e : chunk) c.bytes *= e;
    return c;
}

/// Writes whole chunks, each with its checksum, past HDF5's filters: these copy every byte twice more and sum it one by one.
bool write_chunks(hid_t set, const Chunks& c, std::int64_t first, std::int64_t count, const std::byte* from, WriteStatus& status) {
    std::vector<std::byte> last;
    std::array<hsize_t, H5S_MAX_RANK> offset{};
    for (std::int64_t row = first; row < first + count; row += c.rows) {
        const std::byte* chunk = from;
        const std::int64_t left = (first + count - row) * static_cast<std::int64_t>(c.row_bytes());
        // The driver sums what it is given in place; a chunk with nothing behind it has no room for the sum, and may not be full.
        if (left >= static_cast<std::int64_t>(c.bytes + 4)) {
            status.summed = chunk;
        } else {
            last.assign(c.bytes + 4, std::byte{0});
            std::memcpy(last.data(), from, static_cast<std::size_t>(std::min(left, static_cast<std::int64_t>(c.bytes))));
            status.summed = chunk = last.data();
        }
        offset[0] = static_cast<hsize_t>(row);
        const bool written = H5Dwrite_chunk(set, H5P_DEFAULT, 0, offset.data(), c.bytes + 4, chunk) >= 0;
        status.summed = nullptr;
        if (!written) return false;
        from += c.bytes;
    }
    return true;
}

/// Reads rows by whole chunks past HDF5's filters, and checks their sums. False: this dataset is to be read by HDF5's own means, which also
/// says whether it is damaged.
bool read_chunks(hid_t set, const Chunks& c, std::int64_t first, std::int64_t count, std::byte* out) {
    std::vector<std::byte> staged;
    std::array<hsize_t, H5S_MAX_RANK> offset{};
    std::int64_t skipped = first % c.rows;  // of the first chunk
    for (std::int64_t row = first - skipped; row < first + count; row += c.rows, skipped = 0) {
        offset[0] = static_cast<hsize_t>(row);
        hsize_t stored = 0;
        if (H5Dget_chunk_storage_size(set, offset.data(), &stored) < 0 || stored != c.bytes + 4) return false;
        // Into its place, where the checksum behind it falls on what the next chunk brings; the last one's place is not large enough, nor
        // that of a first one of which rows are skipped.
        const bool fits = skipped == 0 && (first + count - row - c.rows) * static_cast<std::int64_t>(c.row_bytes()) >= 4;
        if (!fits) staged.resize(c.bytes + 4);
        std::byte* to = fits ? out : staged.data();
        std::uint32_t mask = 0;
        if (H5Dread_chunk(set, H5P_DEFAULT, offset.data(), &mask, to) < 0 || mask != 0) return false;
        Fletcher32 sum;
        sum.update(to, c.bytes);
        if (std::memcmp(sum.stored().data(), to + c.bytes, 4) != 0) return false;
        const std::size_t filled = static_cast<std::size_t>(std::min(c.rows, first + count - row) - skipped) * c.row_bytes();
        if (!fits) std::memcpy(out, to + static_cast<std::size_t>(skipped) * c.row_bytes(), filled);
        out += filled;
    }
    return true;
}

}  // namespace

void File::write_rows(const std::string& name, std::int64_t first, const Tensor& values) {
    {
        const Handle set(H5Dopen2(file_.id(), name.c_str(), H5P_DEFAULT), H5Dclose), space(H5Dget_space(set.id()), H5Sclose);
        const auto chunks = chunks_of(set.id(), type_of(values.dtype()));
        const std::int64_t count_of_rows = values.shape().rank() > 0 ? values.size(0) : 0;
        if (chunks && first % chunks->rows == 0 &&
            (count_of_rows % chunks->rows == 0 || first + count_of_rows == static_cast<std::int64_t>(chunks->extent[0]))) {
            ATELIER_CHECK_IO(write_chunks(set.id(), *chunks, first, count_of_rows, static_cast<const std::byte*>(values.raw()), *status_),
                             "cannot write dataset {} to {}", name, path_.string());
            return check_written(name);
        }
        std::vector<hsize_t> start(static_cast<std::size_t>(values.shape().rank()), 0), count;
        for (auto e : values.shape().extents()) count.push_back(static_cast<hsize_t>(e));
        if (!start.empty()) {
            start[0] = static_cast<hsize_t>(first);
            H5Sselect_hyperslab(space.id(), H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr);
        }
        const Handle memory(H5Screate_simple(static_cast<int>(count.size()), count.data(), nullptr), H5Sclose);
        ATELIER_CHECK_IO(H5Dwrite(set.id(), type_of(values.dtype()), memory.id(), space.id(), H5P_DEFAULT, values.raw()) >= 0,
                         "cannot write dataset {} to {}", name, path_.string());
    }
    check_written(name);
}

void File::write(const std::string& name, const Tensor& values) {
    make_dataset(name, values.dtype(), values.shape());
    if (values.elements() > 0) write_rows(name, 0, values);
}

void File::write_strings(const std::string& name, std::span<const std::string> values) {
    const hsize_t n = values.size();
    const Handle type = string_type(), space(H5Screate_simple(1, &n, nullptr), H5Sclose), links(H5Pcreate(H5P_LINK_CREATE), H5Pclose), properties = dataset_properties();
    H5Pset_create_intermediate_group(links.id(), 1);
    const Handle set(H5Dcreate2(file_.id(), name.c_str(), type.id(), space.id(), links.id(), properties.id(), H5P_DEFAULT), H5Dclose);
    const Handle transfer = text_transfer(values.size());
    std::vector<const char*> texts;
    for (const std::string& v : values) texts.push_back(v.c_str());
    ATELIER_CHECK_IO(set.valid() && (n == 0 || H5Dwrite(set.id(), type.id(), H5S_ALL, H5S_ALL, transfer.id(), texts.data()) >= 0),
                     "cannot write dataset {} to {}", name, path_.string());
}

void File::write_virtual(const std::string& name, std::span<const std::string> files) {
    ATELIER_CHECK(!files.empty(), "virtual dataset {} without files", name);
    std::vector<std::vector<hsize_t>> extents;
    Handle type;
    hsize_t rows = 0;
    for (const std::string& file : files) {
        const File source = open(path_.parent_path() / file);
        const Dataset part = source.dataset(name);
        const auto& found = part.extents;
        Handle own(H5Dget_type(part.set.id()), H5Tclose);
        if (type.valid())
            ATELIER_CHECK_INPUT(H5Tequal(own.id(), type.id()) > 0 && std::equal(found.begin() + 1, found.end(), extents[0].begin() + 1, extents[0].end(),
                                                                                [](std::int64_t a, hsize_t b) { return static_cast<hsize_t>(a) == b; }),
                                "{}: dataset {} differs in type or shape from that of {}", source.path_.string(), name, files[0]);
        else
            type = std::move(own);
        extents.emplace_back(found.begin(), found.end());
        rows += extents.back().at(0);
    }
    std::vector<hsize_t> all = extents[0];
    all[0] = rows;
    const Handle space(H5Screate_simple(static_cast<int>(all.size()), all.data(), nullptr), H5Sclose);
    const Handle links(H5Pcreate(H5P_LINK_CREATE), H5Pclose), properties = dataset_properties();
    H5Pset_create_intermediate_group(links.id(), 1);
    if (const auto kind = H5Tget_class(type.id()); kind == H5T_FLOAT || kind == H5T_INTEGER) {  // all ones: NaN, or the largest number
        constexpr std::array<unsigned char, 8> missing{255, 255, 255, 255, 255, 255, 255, 255};
        H5Pset_fill_value(properties.id(), type.id(), missing.data());
    }
    std::vector<hsize_t> start(all.size(), 0);
    for (std::size_t i = 0; i < files.size(); ++i) {
        const Handle source(H5Screate_simple(static_cast<int>(all.size()), extents[i].data(), nullptr), H5Sclose);
        H5Sselect_hyperslab(space.id(), H5S_SELECT_SET, start.data(), nullptr, extents[i].data(), nullptr);
        ATELIER_CHECK_IO(H5Pset_virtual(properties.id(), space.id(), files[i].c_str(), name.c_str(), source.id()) >= 0,
                         "cannot map {} of {} into {}", name, files[i], path_.string());
        start[0] += extents[i][0];
    }
    H5Sselect_all(space.id());
    const Handle set(H5Dcreate2(file_.id(), name.c_str(), type.id(), space.id(), links.id(), properties.id(), H5P_DEFAULT), H5Dclose);
    ATELIER_CHECK_IO(set.valid(), "cannot write dataset {} to {}", name, path_.string());
}

void File::write_link(const std::string& name, const std::string& file, const std::string& target) {
    const Handle properties(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
    H5Pset_create_intermediate_group(properties.id(), 1);
    ATELIER_CHECK_IO(H5Lcreate_external(file.c_str(), target.c_str(), file_.id(), name.c_str(), properties.id(), H5P_DEFAULT) >= 0,
                     "cannot write the link {} to {}", name, path_.string());
}

File::Dataset File::dataset(const std::string& name) const {
    take_read_failure();
    Handle set(H5Oopen(file_.id(), name.c_str(), link_access()), H5Oclose);
    if (!set.valid()) {
        throw_what_was_refused();
        ATELIER_CHECK_INPUT(exists(name), "{}: dataset {} is missing", path_.string(), name);
    }
    ATELIER_CHECK_INPUT(set.valid() && H5Iget_type(set.id()) == H5I_DATASET, "{}: {} is no dataset, or leads nowhere", path_.string(), name);
    const Handle space(H5Dget_space(set.id()), H5Sclose);
    std::vector<hsize_t> dims(static_cast<std::size_t>(std::max(0, H5Sget_simple_extent_ndims(space.id()))));
    H5Sget_simple_extent_dims(space.id(), dims.data(), nullptr);
    Dataset found{name, std::move(set), {dims.begin(), dims.end()}};
    check_storage(found);
    return found;
}

std::vector<std::int64_t> File::extents(const std::string& name) const { return dataset(name).extents; }

std::vector<std::int64_t> File::extents(const std::string& name, std::initializer_list<std::int64_t> expected) const {
    const Dataset d = dataset(name);
    check_extents(d, {expected.begin(), expected.size()});
    return d.extents;
}

File::Dataset File::dataset(const std::string& name, DType dtype, std::span<const std::int64_t> expected) const {
    Dataset d = dataset(name);
    const Handle type(H5Dget_type(d.set.id()), H5Tclose);
    ATELIER_CHECK_INPUT(H5Tequal(type.id(), type_of(dtype)) > 0, "{}: dataset {} does not hold {}", path_.string(), name,
                        name_of(dtype));
    if (!expected.empty()) check_extents(d, expected);
    return d;
}

void File::check_extents(const Dataset& set, std::span<const std::int64_t> expected) const {
    const auto& found = set.extents;
    bool fits = expected.size() == found.size();
    std::string wanted, seen;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        fits = fits && (expected[i] < 0 || expected[i] == found[i]);
        wanted += fmt::format("{}{}", i == 0 ? "" : ", ", expected[i] < 0 ? std::string("any") : std::to_string(expected[i]));
    }
    for (std::size_t i = 0; i < found.size(); ++i) seen += fmt::format("{}{}", i == 0 ? "" : ", ", found[i]);
    ATELIER_CHECK_INPUT(fits, "{}: dataset {} must have shape [{}], found [{}]", path_.string(), set.name, wanted, seen);
}

void File::read_raw(const Dataset& from, DType dtype, std::int64_t first, std::int64_t count, void* out) const {
    const auto& [name, set, dims] = from;
    if (const auto of_others = parts(from); !of_others.empty()) {
        const std::size_t row = static_cast<std::size_t>(Shape(dims).elements() / dims[0]) * size_of(dtype);
        for (const Part& part : of_others) {
            const std::int64_t begin = std::max(first, part.first), end = std::min(first + count, part.first + part.count);
            if (begin >= end) continue;
            const File source = neighbour(part.file, name);
            source.read_raw(part_of(source, part, from), dtype, begin - part.first, end - begin,
                            static_cast<std::byte*>(out) + static_cast<std::size_t>(begin - first) * row);
        }
        return;
    }
    const Handle space(H5Dget_space(set.id()), H5Sclose);
    if (const auto chunks = chunks_of(set.id(), type_of(dtype)); chunks && read_chunks(set.id(), *chunks, first, count, static_cast<std::byte*>(out)))
        return;
    take_read_failure();
    Handle memory;
    if (!dims.empty()) {
        std::vector<hsize_t> start(dims.size(), 0), extent(dims.begin(), dims.end());
        start[0] = static_cast<hsize_t>(first);
        extent[0] = static_cast<hsize_t>(count);
        H5Sselect_hyperslab(space.id(), H5S_SELECT_SET, start.data(), nullptr, extent.data(), nullptr);
        memory = Handle(H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr), H5Sclose);
    } else {
        memory = Handle(H5Screate(H5S_SCALAR), H5Sclose);
    }
    ATELIER_CHECK_READ(H5Dread(set.id(), type_of(dtype), memory.id(), space.id(), H5P_DEFAULT, out) >= 0,
                       "{}: dataset {} cannot be read (its checksum does not fit, or its bytes are missing)", path_.string(), name);
}

std::vector<std::string> File::read_strings(const std::string& name) const {
    const Dataset from = dataset(name);
    const auto& set = from.set;
    const auto& found = from.extents;
    const Handle kind(H5Dget_type(set.id()), H5Tclose), type = string_type();
    ATELIER_CHECK_INPUT(H5Tis_variable_str(kind.id()) > 0 && found.size() == 1, "{}: dataset {} is no list of texts",
                        path_.string(), name);
    if (const auto of_others = parts(from); !of_others.empty()) {
        std::vector<std::string> values;
        for (const Part& part : of_others)
            for (std::string& value : neighbour(part.file, name).read_strings(part.name)) values.push_back(std::move(value));
        return values;
    }
    std::vector<char*> texts(static_cast<std::size_t>(found[0]), nullptr);
    if (texts.empty()) return {};
    const Handle transfer = text_transfer(texts.size());
    take_read_failure();
    ATELIER_CHECK_READ(H5Dread(set.id(), type.id(), H5S_ALL, H5S_ALL, transfer.id(), texts.data()) >= 0, "{}: dataset {} is damaged",
                       path_.string(), name);
    std::vector<std::string> values;
    for (char* text : texts) {
        values.emplace_back(text == nullptr ? "" : text);
        H5free_memory(text);
    }
    return values;
}

}  // namespace atelier::io::hdf5
