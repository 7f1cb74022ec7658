#include "io/mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/open_failure.hpp"
#include "core/process.hpp"

namespace atelier::io {
namespace {

// A page that cannot be read (a damaged disk, a file cut short under its mapping) is a SIGBUS at whatever touches it. The handler finds whose
// page it is, says so and ends the process as Error(io) does. It runs in the thread that touched the page, so it calls only what is safe
// in a signal handler and waits for the list's lock, which nobody holds while touching a mapped page.
struct Mapping {
    const std::byte* data;
    std::size_t size;
    std::string path;
};

class Mappings {
  public:
    static Mappings& all() {
        static auto* mappings = new Mappings;  // for ever: threads may read while the process ends
        return *mappings;
    }
    void add(Mapping mapping) {
        const Lock lock(busy_);
        mappings_.push_back(std::move(mapping));
    }
    void remove(const std::byte* data) {
        const Lock lock(busy_);
        std::erase_if(mappings_, [&](const Mapping& m) { return m.data == data; });
    }
    /// The mapping that the address lies in, or nullptr.
    const Mapping* find(const std::byte* address) {
        const Lock lock(busy_);
        for (const Mapping& m : mappings_)
            if (address >= m.data && address < m.data + m.size) return &m;
        return nullptr;
    }

  private:
    struct Lock {
        explicit Lock(std::atomic_flag& flag) : flag(flag) {
            while (flag.test_and_set(std::memory_order_acquire)) {
            }
        }
        ~Lock() { flag.clear(std::memory_order_release); }
        std::atomic_flag& flag;
    };
    Mappings() {
        struct sigaction action {};
        action.sa_sigaction = on_bus_error;
        action.sa_flags = SA_SIGINFO;
        sigaction(SIGBUS, &action, &before_);
    }
    static void on_bus_error(int, siginfo_t* info, void*) {
        Mappings& mappings = all();
        const auto* address = static_cast<const std::byte*>(info->si_addr);
        const Mapping* mapping = mappings.find(address);
        if (mapping == nullptr) {  // not ours: the address is touched, or the signal sent, again under whatever handled it before
            sigaction(SIGBUS, &mappings.before_, nullptr);
            if (info->si_code <= 0) raise(SIGBUS);
            return;
        }
        const Process& me = process();
        say("cannot read "), say(mapping->path), say(" at byte "), say(static_cast<std::size_t>(address - mapping->data));
        say(": its storage is damaged, or the file was cut short while it was mapped [rank "), say(static_cast<std::size_t>(me.rank));
        say(" of "), say(static_cast<std::size_t>(me.world_size)), say(" on "), say(me.host), say("]\n");
        _exit(static_cast<int>(ErrorKind::io));
    }
    static void say(std::string_view text) {
        [[maybe_unused]] const auto written = write(STDERR_FILENO, text.data(), text.size());
    }
    static void say(std::size_t number) {
        char digits[20];  // of 2^64
        char* first = digits + sizeof digits;
        do *--first = static_cast<char>('0' + number % 10);
        while ((number /= 10) > 0);
        say(std::string_view(first, digits + sizeof digits));
    }

    std::atomic_flag busy_;
    std::vector<Mapping> mappings_;
    struct sigaction before_ {};
};

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    const int reason = errno;
    ATELIER_CHECK_KIND(kind_of_failed_open(reason), file >= 0, "cannot open {}: {}", path.string(), std::strerror(reason));
    struct stat info {};
    const bool known = fstat(file, &info) == 0;
    void* address = nullptr;
    if (known && S_ISREG(info.st_mode) && info.st_size > 0) {
        address = mmap(nullptr, static_cast<std::size_t>(info.st_size), PROT_READ, MAP_PRIVATE, file, 0);
    }
    const int error = errno;
    close(file);
    ATELIER_CHECK_IO(known, "cannot look at {}: {}", path.string(), std::strerror(error));
    ATELIER_CHECK_INPUT(S_ISREG(info.st_mode), "{} is not a regular file", path.string());
    ATELIER_CHECK_IO(address != MAP_FAILED, "cannot map {}: {}", path.string(), std::strerror(error));
    data_ = static_cast<const std::byte*>(address);
    size_ = static_cast<std::size_t>(info.st_size);
    if (data_ != nullptr) Mappings::all().add({data_, size_, path.string()});
}

MappedFile::~MappedFile() {
    if (data_ == nullptr) return;
    Mappings::all().remove(data_);
    munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

void MappedFile::release(const std::byte* data, std::size_t bytes) const {
    const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto begin = (reinterpret_cast<std::uintptr_t>(data) + page - 1) / page * page;
    const auto end = (reinterpret_cast<std::uintptr_t>(data) + bytes) / page * page;
    // A hint: where the system refuses it, the pages stay.
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace atelier::io
