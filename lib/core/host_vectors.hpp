#pragma once

#include <algorithm>
#include <vector>

#include "core/numbers.hpp"

namespace atelier {

/// Vectors of one length in host memory that a device works on piece by piece: while it computes with a piece the next comes and the
/// last goes back. Two pieces of each vector are in the device's memory at a time.
class HostVectors {
  public:
    /// Pins the vectors (fp32, host memory, one length), which must outlive this, and takes the device's memory.
    HostVectors(std::vector<Tensor> vectors, std::int64_t piece)
        : vectors_(std::move(vectors)),
          piece_(std::min(piece, vectors_[0].elements())),
          room_(static_cast<std::int64_t>(2 * vectors_.size()) * piece_, Device::cuda),
          on_device_(vectors_.size()) {
        for (const Tensor& v : vectors_) {
            ATELIER_CHECK(v.device() == Device::cpu && v.elements() == vectors_[0].elements(), "vectors of one length in host memory are needed");
            device_memory().pin(v.raw(), v.bytes());
        }
    }
    ~HostVectors() {
        for (const Tensor& v : vectors_) device_memory().unpin(v.raw());
    }
    HostVectors(const HostVectors&) = delete;
    HostVectors& operator=(const HostVectors&) = delete;

    std::int64_t piece() const { return piece_; }
    /// Bytes of the device's memory.
    static std::size_t device_bytes(std::size_t vectors, std::int64_t numbers, std::int64_t piece) {
        return 2 * vectors * static_cast<std::size_t>(std::min(piece, numbers)) * sizeof(float) + Arena::device_alignment;
    }

    /// Calls work(first, on the device: each vector's numbers [first, first + count)) for one piece after another. When it returns the
    /// host's memory holds what `work` left.
    template <typename Work>
    void each_piece(Work work) {
        DeviceMemory& memory = device_memory();
        const std::int64_t size = vectors_[0].elements();
        memory.uploads_after_compute();
        upload(0);
        for (std::int64_t at = 0; at < size; at += piece_) {
            memory.compute_after_uploads();
            memory.uploads_after_downloads();
            if (at + piece_ < size) upload(at + piece_);
            for (std::size_t i = 0; i < vectors_.size(); ++i) on_device_[i] = slot(i, at);
            work(at, on_device_);
            memory.downloads_after_compute();
            for (std::size_t i = 0; i < vectors_.size(); ++i)
                memory.start_download(vectors_[i].f32() + at, on_device_[i].raw(), on_device_[i].bytes());
        }
        memory.finish_downloads();
    }

  private:
    /// Where numbers from `first` on of a vector are.
    Tensor slot(std::size_t vector, std::int64_t first) const {
        const std::int64_t count = std::min(piece_, vectors_[0].elements() - first);
        const std::int64_t at = (static_cast<std::int64_t>(2 * vector) + first / piece_ % 2) * piece_;
        return room_.tensor().slice(at, at + count);
    }
    void upload(std::int64_t first) {
        for (std::size_t i = 0; i < vectors_.size(); ++i) {
            const Tensor to = slot(i, first);
            device_memory().start_upload(to.raw(), vectors_[i].f32() + first, to.bytes());
        }
    }
    std::vector<Tensor> vectors_;
    std::int64_t piece_;
    Numbers room_;
    std::vector<Tensor> on_device_;
};

}  // namespace atelier
