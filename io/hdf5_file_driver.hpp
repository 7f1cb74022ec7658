#pragma once

#include <hdf5.h>

#include <cstdint>
#include <filesystem>
#include <string>

// HDF5's way to a file that is being written.
namespace atelier::io::hdf5 {

/// What became of the bytes of a file. HDF5 1.10 crashes when a write fails while it closes a dataset or a file (a full disk): so it never
/// hears of failures. The first one stands here, what follows it is not written, and whoever made the file asks.
struct WriteStatus {
    std::filesystem::path path;
    int error = 0;  ///< errno of the first write that failed; 0: none
    /// What H5Dwrite_chunk is being given: a chunk's bytes, the room for whose checksum behind them stays as it is. The driver, which
    /// HDF5 hands the same address, sums the bytes on their way and writes the sum.
    const void* summed = nullptr;
};

/// Access properties under which H5Fcreate makes a file whose bytes go straight to `status.path`, 8 MiB at a time on their way to the
/// disk while further ones are put together. `status` must outlive the file. The file has HDF5's own format: the usual drivers read it.
hid_t make_write_access(WriteStatus& status);

}  // namespace atelier::io::hdf5
