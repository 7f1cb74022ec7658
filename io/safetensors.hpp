#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.hpp"
#include "io/mapped_file.hpp"

namespace atelier::io {

/// One tensor of a safetensors file: where its bytes lie in the mapping.
struct StoredTensor {
    std::string name;
    DType dtype = DType::f32;
    Shape shape;
    const std::byte* data = nullptr;        ///< in the mapped file, not aligned
    std::shared_ptr<const MappedFile> file;  ///< keeps the mapping alive
    std::size_t bytes() const { return static_cast<std::size_t>(shape.elements()) * size_of(dtype); }
};

/// Tensors of one safetensors file or of a sharded set (`*.safetensors.index.json`), memory-mapped.
///
/// Every header is checked before any tensor is handed out: length within the file, known dtypes,
/// offsets in range, without overlap or gap, sizes that match the shapes, no name twice. Errors
/// are Error(input) naming the file and the tensor. Opening touches headers only.
class Safetensors {
  public:
    /// `path`: a .safetensors file, or an index file.
    static Safetensors open(const std::filesystem::path& path);
    /// The weights of a component directory: `<stem>.safetensors`, else `<stem>.safetensors.index.json`.
    static Safetensors open_component(const std::filesystem::path& directory, const std::string& stem);

    bool contains(const std::string& name) const { return tensors_.contains(name); }
    /// Throws Error(input) if there is no such tensor.
    const StoredTensor& at(const std::string& name) const;
    const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
    const std::map<std::string, std::string>& metadata() const { return metadata_; }
    const std::filesystem::path& path() const { return path_; }

    /// Numbers as fp32 (from f32, f64, bf16, f16, integers): for inputs and tests.
    std::vector<float> floats(const std::string& name) const;
    std::vector<std::int64_t> integers(const std::string& name) const;

  private:
    void add_file(const std::filesystem::path& path);
    std::filesystem::path path_;
    std::map<std::string, StoredTensor> tensors_;
    std::map<std::string, std::string> metadata_;
};

/// Converts `stored` to fp32 into `out` (stored.shape.elements() numbers).
void to_f32(const StoredTensor& stored, float* out);
/// The same for elements [first, first + count) alone: no other byte of the file is touched.
void to_f32(const StoredTensor& stored, std::int64_t first, std::int64_t count, float* out);
/// The tensor's pages of the mapping are not needed any more: they leave this process's memory and are read again when
/// touched. What a process has loaded then counts once.
void release_pages(const StoredTensor& stored);

/// A tensor to write. Floating `values` are converted to another floating `dtype` through fp32, rounded to nearest even;
/// integer and byte tensors are written as they are. `values` need not be aligned (a mapped file).
struct TensorToWrite {
    std::string name;
    Tensor values;
    DType dtype = DType::f32;
    /// Where the numbers don't exist yet: gives `values.elements()` fp32 numbers when the tensor's turn comes; `values` then only
    /// says shape and dtype f32.
    std::function<void(float* out)> make = {};
};

/// Writes one file: header padded to 8 bytes, tensors in the given order. Not atomic: the caller
/// writes to a temporary name and publishes it. Throws Error(io).
void write_safetensors(const std::filesystem::path& path, const std::vector<TensorToWrite>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

/// Writes `<stem>.safetensors` into a directory or, where the tensors take more than `shard_bytes`, `<stem>-00001-of-0000N.safetensors`
/// and so on with `<stem>.safetensors.index.json`, as diffusers and transformers name them. A tensor larger than a shard has one of
/// its own. The bytes of the tensors don't depend on the shard size. Returns the names written. Not atomic. Throws Error(io).
std::vector<std::string> write_sharded(const std::filesystem::path& directory, const std::string& stem,
                                       const std::vector<TensorToWrite>& tensors, std::uint64_t shard_bytes,
                                       const std::map<std::string, std::string>& metadata = {});

}  // namespace atelier::io
