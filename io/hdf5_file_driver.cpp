#include "io/hdf5_file_driver.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>

#include "io/fletcher32.hpp"
#include "io/hdf5_driver.hpp"

namespace atelier::io::hdf5 {
namespace {

// Bytes after which the kernel is asked to begin with the disk: flushing at the end then waits for the last ones alone.
constexpr std::int64_t writeback_bytes = 8 << 20;

// Bytes that are summed and copied while they are in the processor's cache.
constexpr std::size_t cached_bytes = 256 << 10, checksum_bytes = 4;

// What is at least as large as the first begins at a multiple of the second.
constexpr hsize_t aligned_bytes = 64 << 10, page_bytes = 4096;

// What HDF5 keeps a copy of with a file's access properties.
struct AccessInfo {
    WriteStatus* status;
};

// HDF5's own part first: it is what HDF5 hands back to us.
struct OpenFile {
    H5FD_t base;
    WriteStatus* status;
    int descriptor;
    haddr_t end_allocated, end_written;
    std::int64_t begun;  // bytes whose way to the disk has begun
};

OpenFile& file_of(H5FD_t* file) { return *reinterpret_cast<OpenFile*>(file); }
const OpenFile& file_of(const H5FD_t* file) { return *reinterpret_cast<const OpenFile*>(file); }

H5FD_t* open_file(const char* name, unsigned, hid_t access, haddr_t) {
    const void* info = H5Pget_driver_info(access);
    if (info == nullptr) return nullptr;
    WriteStatus* const status = static_cast<const AccessInfo*>(info)->status;
    const int descriptor = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (descriptor < 0) {
        status->error = errno;
        return nullptr;
    }
    auto* file = new (std::nothrow) OpenFile{};
    if (file == nullptr) {
        close(descriptor);
        return nullptr;
    }
    file->status = status;
    file->descriptor = descriptor;
    return &file->base;
}

herr_t close_file(H5FD_t* file) {
    OpenFile& f = file_of(file);
    if (close(f.descriptor) != 0 && f.status->error == 0) f.status->error = errno;
    delete &f;
    return 0;
}

int compare(const H5FD_t* a, const H5FD_t* b) { return a < b ? -1 : a > b ? 1 : 0; }

herr_t query(const H5FD_t*, unsigned long* flags) {
    *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE | H5FD_FEAT_AGGREGATE_SMALLDATA;
    return 0;
}

haddr_t allocated(const H5FD_t* file, H5FD_mem_t) { return file_of(file).end_allocated; }
herr_t allocate(H5FD_t* file, H5FD_mem_t, haddr_t end) {
    file_of(file).end_allocated = end;
    return 0;
}
haddr_t written(const H5FD_t* file, H5FD_mem_t) { return file_of(file).end_written; }

/// What is read back is what was written, or zero: a failure ends the writing, like one of a write.
herr_t read_bytes(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t address, std::size_t size, void* out) {
    OpenFile& f = file_of(file);
    const int error = read_at(f.descriptor, address, size, out);
    if (error != 0 && f.status->error == 0) f.status->error = error;
    return error == 0 ? 0 : -1;
}

void put(OpenFile& f, haddr_t address, std::size_t size, const void* bytes) {
    f.end_written = std::max(f.end_written, address + size);
    const auto* from = static_cast<const char*>(bytes);
    while (size > 0 && f.status->error == 0) {
        const ssize_t count = pwrite(f.descriptor, from, size, static_cast<off_t>(address));
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) {
            f.status->error = count < 0 ? errno : EIO;
            break;
        }
        from += count;
        address += static_cast<haddr_t>(count);
        size -= static_cast<std::size_t>(count);
    }
}

herr_t write_bytes(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t address, std::size_t size, const void* bytes) {
    OpenFile& f = file_of(file);
    if (bytes != f.status->summed) {
        put(f, address, size, bytes);
    } else {
        const auto* from = static_cast<const char*>(bytes);
        const std::size_t chunk = size - checksum_bytes;
        Fletcher32 sum;
        for (std::size_t at = 0; at < chunk; at += cached_bytes) {
            const std::size_t count = std::min(cached_bytes, chunk - at);
            sum.update(from + at, count);
            put(f, address + at, count, from + at);
        }
        const auto stored = sum.stored();
        put(f, address + chunk, stored.size(), stored.data());
    }
    const auto end = static_cast<std::int64_t>(f.end_written);
    if (end - f.begun >= writeback_bytes) {
        // A hint: what it can't do now the flush at the end does.
        sync_file_range(f.descriptor, f.begun, end - f.begun, SYNC_FILE_RANGE_WRITE);
        f.begun = end;
    }
    return 0;
}

herr_t cut(H5FD_t* file, hid_t, hbool_t) {
    OpenFile& f = file_of(file);
    if (f.end_written == f.end_allocated || f.status->error != 0) return 0;
    if (ftruncate(f.descriptor, static_cast<off_t>(f.end_allocated)) != 0) f.status->error = errno;
    f.end_written = f.end_allocated;
    return 0;
}

hid_t register_driver() {
    static H5FD_class_t driver = describe_driver("atelier", 600, H5F_CLOSE_STRONG);
    driver.fapl_size = sizeof(AccessInfo);
    driver.open = open_file;
    driver.close = close_file;
    driver.cmp = compare;
    driver.query = query;
    driver.get_eoa = allocated;
    driver.set_eoa = allocate;
    driver.get_eof = written;
    driver.read = read_bytes;
    driver.write = write_bytes;
    driver.truncate = cut;
    return H5FDregister(&driver);
}

}  // namespace

hid_t make_write_access(WriteStatus& status) {
    static const hid_t driver = register_driver();
    const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    const AccessInfo info{&status};
    H5Pset_driver(access, driver, &info);
    // Chunks begin at pages: the kernel copies them page by page, and fast only where both sides are aligned.
    H5Pset_alignment(access, aligned_bytes, page_bytes);
    return access;
}

}  // namespace atelier::io::hdf5
