#include "io/hdf5_read_driver.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <new>
#include <utility>

#include "core/open_failure.hpp"
#include "io/hdf5_driver.hpp"

namespace atelier::io::hdf5 {
namespace {

ReadFailure& failure() {
    thread_local ReadFailure first;
    return first;
}

void note(const char* path, int error) {
    if (failure().error == 0) failure() = {path, error};
}

// HDF5's own part first: it is what HDF5 hands back to us.
struct OpenFile {
    H5FD_t base;
    std::string path;
    int descriptor;
    dev_t device;
    ino_t inode;
    haddr_t size, end_allocated;
};

OpenFile& file_of(H5FD_t* file) { return *reinterpret_cast<OpenFile*>(file); }
const OpenFile& file_of(const H5FD_t* file) { return *reinterpret_cast<const OpenFile*>(file); }

H5FD_t* open_file(const char* name, unsigned flags, hid_t, haddr_t) {
    if ((flags & H5F_ACC_RDWR) != 0) return nullptr;
    const int descriptor = open(name, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
        if (kind_of_failed_open(errno) == ErrorKind::io) note(name, errno);
        return nullptr;
    }
    struct stat info {};
    if (fstat(descriptor, &info) != 0) {
        note(name, errno);
        close(descriptor);
        return nullptr;
    }
    auto* file = new (std::nothrow) OpenFile{.path = name, .descriptor = descriptor, .device = info.st_dev, .inode = info.st_ino,
                                             .size = static_cast<haddr_t>(info.st_size)};
    if (file == nullptr) {
        close(descriptor);
        return nullptr;
    }
    return &file->base;
}

herr_t close_file(H5FD_t* file) {
    const std::unique_ptr<OpenFile> f(&file_of(file));
    close(f->descriptor);  // nothing was written
    return 0;
}

int compare(const H5FD_t* a, const H5FD_t* b) {
    const std::pair left(file_of(a).device, file_of(a).inode), right(file_of(b).device, file_of(b).inode);
    return left < right ? -1 : right < left ? 1 : 0;
}

herr_t query(const H5FD_t*, unsigned long* flags) {
    *flags = H5FD_FEAT_ACCUMULATE_METADATA_READ | H5FD_FEAT_DATA_SIEVE;
    return 0;
}

haddr_t allocated(const H5FD_t* file, H5FD_mem_t) { return file_of(file).end_allocated; }
herr_t allocate(H5FD_t* file, H5FD_mem_t, haddr_t end) {
    file_of(file).end_allocated = end;
    return 0;
}
haddr_t size_of_file(const H5FD_t* file, H5FD_mem_t) { return file_of(file).size; }

herr_t read_bytes(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t address, std::size_t size, void* out) {
    const OpenFile& f = file_of(file);
    const int error = read_at(f.descriptor, address, size, out);
    if (error == 0) return 0;
    note(f.path.c_str(), error);
    return -1;
}

herr_t refuse_to_write(H5FD_t*, H5FD_mem_t, hid_t, haddr_t, std::size_t, const void*) { return -1; }

hid_t register_driver() {
    static H5FD_class_t driver = describe_driver("atelier_read", 601, H5F_CLOSE_WEAK);
    driver.open = open_file;
    driver.close = close_file;
    driver.cmp = compare;
    driver.query = query;
    driver.get_eoa = allocated;
    driver.set_eoa = allocate;
    driver.get_eof = size_of_file;
    driver.read = read_bytes;
    driver.write = refuse_to_write;
    return H5FDregister(&driver);
}

}  // namespace

ReadFailure take_read_failure() { return std::exchange(failure(), {}); }

hid_t make_read_access() {
    static const hid_t driver = register_driver();
    const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_driver(access, driver, nullptr);
    return access;
}

}  // namespace atelier::io::hdf5
