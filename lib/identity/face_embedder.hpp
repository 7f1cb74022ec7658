#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <vector>

#include "io/image/image.hpp"

namespace atelier::identity {

/// A face in a picture.
struct Face {
    double area = 0;               ///< square pixels of its frame
    std::vector<float> embedding;  ///< unit length: the cosine of two says how alike the persons are
};

/// Finds faces and says whose they are. Called from several threads at once; a picture's faces don't depend on what else is asked.
class FaceEmbedder {
  public:
    virtual ~FaceEmbedder() = default;
    /// RGB or RGBA (alpha is ignored), any size that the implementation takes. Throws Error(input) for others, and for embeddings that are
    /// not numbers.
    virtual std::vector<Face> faces(const io::Image& picture) const = 0;
    /// Memory that it holds while `threads` pictures are looked at.
    virtual std::size_t bytes(std::size_t threads) const = 0;
};

/// ONNX models as OpenCV runs them.
struct OpenCvModels {
    std::filesystem::path detector;    ///< of cv::FaceDetectorYN: YuNet, in the version that the OpenCV at hand reads
    std::filesystem::path recogniser;  ///< of cv::FaceRecognizerSF: SFace
    double min_confidence = 0.9;       ///< of a detected face
};
/// Throws Error(usage) in a build without OpenCV, Error(input) for files that it cannot read.
std::unique_ptr<FaceEmbedder> make_opencv_embedder(const OpenCvModels& models);

/// A small network of this engine: convolutions of stride 2 with SiLU, one convolution over what is left; for pictures of one size that
/// show one face in the middle or none, as the miniature's world does. `directory` holds config.json and model.safetensors
/// (assets/mini/recipe/train_identity.py). Throws Error(input) for other files.
std::unique_ptr<FaceEmbedder> make_small_embedder(const std::filesystem::path& directory);

}  // namespace atelier::identity
