#pragma once

#include "core/process.hpp"
#include "identity/face_embedder.hpp"

namespace atelier::identity {

/// What libatelier_opencv.so gives under the name atelier_opencv_embedder; the caller owns it. `process`: the program's, for errors.
using OpenCvEntry = FaceEmbedder* (*)(const Process& process, const OpenCvModels& models);

}  // namespace atelier::identity
