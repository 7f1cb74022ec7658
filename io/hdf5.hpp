#pragma once

#include <hdf5.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/tensor.hpp"
#include "io/hdf5_file_driver.hpp"

// A thin layer over HDF5's C library: handles that close themselves, calls that throw Error naming file and dataset, and
// HDF5's own error printing switched off.
namespace atelier::io::hdf5 {

/// Owns an HDF5 identifier of any kind. Destruction never throws.
class Handle {
  public:
    using Closer = herr_t (*)(hid_t);
    Handle() = default;
    Handle(hid_t id, Closer closer) : id_(id), closer_(closer) {}
    ~Handle() { reset(); }
    Handle(Handle&& other) noexcept { swap(other); }
    Handle& operator=(Handle&& other) noexcept {
        swap(other);
        return *this;
    }
    hid_t id() const { return id_; }
    bool valid() const { return id_ >= 0; }
    void reset();

  private:
    void swap(Handle& other) noexcept;
    hid_t id_ = -1;
    Closer closer_ = nullptr;
};

/// Whether several threads may be in the library at a time, on different files.
bool is_thread_safe();

/// Whether a file begins as HDF5's do. Throws Error(io) where it can't be read.
bool is_hdf5(const std::filesystem::path& path);

/// A file opened or created, or a group in it. Paths in it are absolute ("/prompts/text").
class File {
  public:
    /// A new file; what is written to it goes to disk piece by piece. Throws Error(io): no such directory, no right to write.
    static File create(const std::filesystem::path& path);
    ~File();
    File(File&& other) noexcept { swap(other); }
    File& operator=(File&& other) noexcept {
        swap(other);
        return *this;
    }
    /// Throws Error(input): missing, truncated, or no HDF5 file. What a file's datasets refer to lies in the file itself or, for
    /// virtual ones and links, in files of its directory (and what those refer to again, at most so deep as an index of indices
    /// goes); other datasets, compressed ones, and sizes beyond the stored bytes are refused when they are read. Error(io): it
    /// cannot be opened.
    static File open(const std::filesystem::path& path);
    /// Completes a created file. Throws Error(io) for whatever went wrong since it was created: a full disk. A created file that is not
    /// closed leaves nothing.
    void close();

    bool exists(const std::string& name) const;
    std::vector<std::string> children(const std::string& group) const;
    void make_group(const std::string& name);

    void set_attribute(const std::string& object, const std::string& name, const std::string& value);
    void set_attribute(const std::string& object, const std::string& name, std::int64_t value);
    void set_attribute(const std::string& object, const std::string& name, double value);
    bool has_attribute(const std::string& object, const std::string& name) const;
    std::string text_attribute(const std::string& object, const std::string& name) const;
    std::int64_t integer_attribute(const std::string& object, const std::string& name) const;
    double number_attribute(const std::string& object, const std::string& name) const;

    /// Writes a whole dataset: chunked by the first axis, Fletcher-32 on (but for empty ones). Throws Error(io): a full disk.
    void write(const std::string& name, const Tensor& values);
    /// The same by pieces: a dataset of a shape, then its rows from `first` on. Pieces of whole chunks (chunk_rows()) are written once.
    void make_dataset(const std::string& name, DType dtype, const Shape& shape);
    void write_rows(const std::string& name, std::int64_t first, const Tensor& values);
    /// Rows of a chunk of a dataset of that shape: about a megabyte, one row where a row is larger.
    static std::int64_t chunk_rows(DType dtype, const Shape& shape);
    void write_strings(const std::string& name, std::span<const std::string> values);
    /// A virtual dataset: the rows of the same dataset in other files, one after another. `files` are names relative to this
    /// file's directory, where they must be already. Throws Error(input) when they differ in type or in the other axes.
    /// HDF5 opens the files that a read touches and keeps them open until the dataset is closed; for a file that it cannot open it
    /// gives the fill value and no error: NaN, in integers every bit. This class reads such a dataset file by file, or throws.
    void write_virtual(const std::string& name, std::span<const std::string> files);
    /// A link to an object of another file (a name relative to this file's directory).
    void write_link(const std::string& name, const std::string& file, const std::string& target);
    /// Extents of a dataset. Throws Error(input) if there is none, or if they are not the `expected` ones (-1: any extent).
    std::vector<std::int64_t> extents(const std::string& name) const;
    std::vector<std::int64_t> extents(const std::string& name, std::initializer_list<std::int64_t> expected) const;
    /// Reads a whole dataset of `expected` shape (-1: any extent) and dtype. Throws Error(input) naming the dataset, the
    /// expected and the found; checksums are verified.
    template <typename T>
    std::vector<T> read(const std::string& name, std::initializer_list<std::int64_t> expected) const;
    /// Rows [first, first + count) of the first axis.
    template <typename T>
    std::vector<T> read_rows(const std::string& name, std::int64_t first, std::int64_t count) const {
        return rows<T>(name).read(first, count);
    }
    /// The same of many pieces: the dataset is opened and checked once, for which HDF5 looks at each of its chunks. The file must stay open
    /// and where it is.
    template <typename T>
    class Rows;
    template <typename T>
    Rows<T> rows(const std::string& name) const;
    std::vector<std::string> read_strings(const std::string& name) const;

    const std::filesystem::path& path() const { return path_; }

  private:
    File() = default;
    void swap(File& other) noexcept;
    /// Throws what went wrong on the way to the disk.
    void check_written(const std::string& what) const;
    struct Dataset {
        std::string name;
        Handle set;
        std::vector<std::int64_t> extents;
    };
    /// Opens a dataset whose bytes are where they may be, and whose size is no larger than what is stored.
    Dataset dataset(const std::string& name) const;
    /// The same, of a dtype and shape.
    Dataset dataset(const std::string& name, DType dtype, std::span<const std::int64_t> expected) const;
    void check_extents(const Dataset& set, std::span<const std::int64_t> expected) const;
    void read_raw(const Dataset& from, DType dtype, std::int64_t first, std::int64_t count, void* out) const;
    /// Where the rows of a virtual dataset lie. Empty for a dataset that is stored here.
    struct Part {
        std::string file, name;
        std::int64_t first = 0, count = 0;  ///< rows of the virtual dataset
    };
    std::vector<Part> parts(const Dataset& set) const;
    Dataset part_of(const File& source, const Part& part, const Dataset& whole) const;
    void check_storage(const Dataset& set) const;
    /// A file that this one refers to.
    File neighbour(const std::string& file, const std::string& name) const;
    std::filesystem::path path_;
    int depth_ = 0;  ///< how many files referred to each other on the way here
    std::unique_ptr<WriteStatus> status_;  ///< of a file that is being written
    Handle file_;
};

template <typename T>
std::vector<T> File::read(const std::string& name, std::initializer_list<std::int64_t> expected) const {
    const Dataset from = dataset(name, DTypeOf<T>::value, std::span(expected.begin(), expected.size()));
    std::int64_t n = 1;
    for (auto e : from.extents) n *= e;
    std::vector<T> out;
    if (n == 0 || from.extents.empty()) {
        out.resize(static_cast<std::size_t>(n));
        if (n > 0) read_raw(from, DTypeOf<T>::value, 0, 0, out.data());
        return out;
    }
    // A few chunks at a time: the zeros that the vector begins with are in the processor's cache when the file's bytes replace them.
    out.reserve(static_cast<std::size_t>(n));
    const std::int64_t rows = from.extents[0], piece = 8 * chunk_rows(DTypeOf<T>::value, Shape(from.extents));
    for (std::int64_t first = 0; first < rows; first += piece) {
        const std::int64_t count = std::min(piece, rows - first);
        out.resize(static_cast<std::size_t>((first + count) * (n / rows)));
        read_raw(from, DTypeOf<T>::value, first, count, out.data() + first * (n / rows));
    }
    return out;
}

template <typename T>
class File::Rows {
  public:
    std::vector<T> read(std::int64_t first, std::int64_t count) const;

  private:
    friend class File;
    Rows(const File& file, Dataset from) : file_(&file), from_(std::move(from)) {}
    const File* file_;
    Dataset from_;
};

template <typename T>
File::Rows<T> File::rows(const std::string& name) const {
    return {*this, dataset(name, DTypeOf<T>::value, {})};
}

template <typename T>
std::vector<T> File::Rows<T>::read(std::int64_t first, std::int64_t count) const {
    const auto& found = from_.extents;
    ATELIER_CHECK_INPUT(!found.empty() && first >= 0 && first <= found[0] && count >= 0 && count <= found[0] - first,
                        "{}: rows [{}, {}) of {} with {} rows", file_->path().string(), first, first + count, from_.name,
                        found.empty() ? 0 : found[0]);
    std::int64_t per_row = 1;
    for (std::size_t i = 1; i < found.size(); ++i) per_row *= found[i];
    std::vector<T> out(static_cast<std::size_t>(count * per_row));
    if (!out.empty()) file_->read_raw(from_, DTypeOf<T>::value, first, count, out.data());
    return out;
}

}  // namespace atelier::io::hdf5
