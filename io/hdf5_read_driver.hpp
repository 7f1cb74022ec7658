#pragma once

#include <hdf5.h>

#include <string>

// HDF5's way to files that are read. HDF5 says that a call has failed, but not why: what the system said stands here.
namespace atelier::io::hdf5 {

/// What the system refused: opening a file that may be there, or reading it.
struct ReadFailure {
    std::string path;
    int error = 0;  ///< errno; 0: nothing was refused
};

/// The first one on the calling thread since it was taken last; taking it forgets it.
ReadFailure take_read_failure();

/// Access properties under which H5Fopen reads a file, and the files that its links and virtual datasets lead to.
hid_t make_read_access();

}  // namespace atelier::io::hdf5
