#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace atelier::io {

/// Fletcher's checksum as HDF5's filter of that name takes it (H5_checksum_fletcher32: 16-bit words, the first byte the high one, sums
/// modulo 65535, an odd last byte the high one of a word), over bytes that come piece by piece.
class Fletcher32 {
  public:
    /// The next bytes; every piece but the last has an even number of them.
    void update(const void* data, std::size_t bytes);
    /// High half: sum of sums; low half: sum.
    std::uint32_t value() const;
    /// The same as it stands behind a chunk: the lowest byte first.
    std::array<std::byte, 4> stored() const;

  private:
    std::uint64_t sum_ = 0, sums_ = 0;  ///< congruent to the sums; 0 only where all words were
};

}  // namespace atelier::io
