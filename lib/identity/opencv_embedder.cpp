#include "core/library.hpp"
#include "identity/opencv_entry.hpp"

namespace atelier::identity {

// OpenCV's networks bring two dozen libraries: only who asks for them loads them.
std::unique_ptr<FaceEmbedder> make_opencv_embedder(const OpenCvModels& models) {
    const auto entry = reinterpret_cast<OpenCvEntry>(
        load_entry("reward.identity = \"opencv\"", "ATELIER_OPENCV_LIBRARY", "libatelier_opencv.so", "atelier_opencv_embedder"));
    return std::unique_ptr<FaceEmbedder>(entry(process(), models));
}

}  // namespace atelier::identity
