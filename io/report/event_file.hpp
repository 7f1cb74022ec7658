#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace atelier::io {

/// One point of a curve.
struct Scalar {
    std::string tag;         ///< the curve's name; what stands before a slash is TensorBoard's heading
    std::int64_t step = 0;
    double wall_time = 0;    ///< seconds since 1970
    double value = 0;
};

/// TensorBoard's event file: records of length, masked CRC-32C of it, a protobuf message `Event`, and its masked CRC-32C
/// (github.com/tensorflow/tensorboard: compat/proto/event.proto, summary.proto; lib/io/record_writer.h of TensorFlow). In the order given, so that
/// more points at the end are more bytes at the end. It begins with the start of a session: a reader that has read an older file of the directory
/// forgets its points.
std::string event_file(std::span<const Scalar> scalars);

}  // namespace atelier::io
