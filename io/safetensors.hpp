#pragma once

#include <filesystem>
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
/// are Error(input) naming the file and the tensor.
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

/// A tensor to write. `values` are fp32 numbers converted to `dtype` (f32, bf16 or f16, rounded to
/// nearest even) on writing; integer and byte tensors are written as they are.
struct TensorToWrite {
    std::string name;
    Tensor values;
    DType dtype = DType::f32;
};

/// Writes one file: header padded to 8 bytes, tensors in the given order. Not atomic: the caller
/// writes to a temporary name and publishes it. Throws Error(io).
void write_safetensors(const std::filesystem::path& path, const std::vector<TensorToWrite>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace atelier::io
