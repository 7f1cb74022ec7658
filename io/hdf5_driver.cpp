#include "io/hdf5_driver.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>

namespace atelier::io::hdf5 {

H5FD_class_t describe_driver(const char* name, [[maybe_unused]] int number, H5F_close_degree_t close_degree) {
    H5FD_class_t driver{};
#if H5_VERSION_GE(1, 13, 0)
    driver.version = H5FD_CLASS_VERSION;
    driver.value = static_cast<H5FD_class_value_t>(number);
#endif
    driver.name = name;
    driver.maxaddr = HADDR_MAX;
    driver.fc_degree = close_degree;
    const H5FD_mem_t map[] = H5FD_FLMAP_DICHOTOMY;
    std::copy(std::begin(map), std::end(map), std::begin(driver.fl_map));
    return driver;
}

int read_at(int descriptor, haddr_t address, std::size_t size, void* out) {
    auto* to = static_cast<char*>(out);
    while (size > 0) {
        const ssize_t count = pread(descriptor, to, size, static_cast<off_t>(address));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return errno;
        if (count == 0) {
            std::memset(to, 0, size);
            return 0;
        }
        to += count;
        address += static_cast<haddr_t>(count);
        size -= static_cast<std::size_t>(count);
    }
    return 0;
}

}  // namespace atelier::io::hdf5
