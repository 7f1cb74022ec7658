// A library for LD_PRELOAD that makes the file system fail, and processes die, at chosen calls. Test only: the programs know nothing of
// it, and it touches only calls on files whose path holds `path`.
//
//   ATELIER_FAULTS   rules, separated by ';', each a list of key=value separated by ',':
//     calls=KIND+KIND    open (for reading, directories too), create (for writing), read, map, stat, write (write, pwrite, fwrite, fflush),
//                        close (of what was open for writing), fsync, rename, exchange (renameat2 with flags), unlink, mkdir
//     at=N | N+ | N%     the N-th of those calls of a process (from 1), all from the N-th on, every N-th
//     do=WHAT            kill: SIGKILL instead of the call; torn: SIGKILL after half of a write; short: half of a write, without error;
//                        an errno's name: the call fails with it; wait:MS: the call is late
//     path=TEXT          part of the file's path (required)
//     rank=R             on this rank only
//   ATELIER_FAULTS_LOG     a file to which each call that a rule fits is appended: "N KIND PATH" before it, and "struck" when the rule acts
//   ATELIER_FAULTS_CLOCK   seconds by which the clock of rank R is ahead, times R (hosts whose clocks disagree)
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <string_view>
#include <vector>

namespace {

struct Rule {
    std::string calls, path;
    long at = 1, wait_ms = 0;
    char repeats = 0;  // 0, '+' or '%'
    int error = 0;
    enum { kill, torn, shorten, fail, wait, count } action = count;
    std::atomic<long> seen{0};
};

constexpr std::pair<std::string_view, int> errors[] = {{"ENOSPC", ENOSPC}, {"EIO", EIO}, {"ESTALE", ESTALE}, {"EACCES", EACCES},
                                                       {"EDQUOT", EDQUOT}, {"EROFS", EROFS}, {"EXDEV", EXDEV}, {"EINTR", EINTR}, {"EINVAL", EINVAL}};

[[noreturn]] void refuse(const std::string& what) {
    std::fprintf(stderr, "ATELIER_FAULTS: %s\n", what.c_str());
    std::_Exit(99);
}

int own_rank() {
    for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK"})
        if (const char* value = std::getenv(name)) return std::atoi(value);
    return 0;
}

void parse_rule(const std::string& text, std::vector<Rule*>& rules) {
    auto* rule = new Rule;
    bool is_ours = true;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = std::min(text.find(',', at), text.size()), equals = text.find('=', at);
        if (equals == std::string::npos || equals >= end) refuse("no key=value: " + text);
        const std::string key = text.substr(at, equals - at), value = text.substr(equals + 1, end - equals - 1);
        if (key == "calls") rule->calls = "+" + value + "+";
        else if (key == "path") rule->path = value;
        else if (key == "rank") is_ours = std::atoi(value.c_str()) == own_rank();
        else if (key == "at") {
            char* rest = nullptr;
            rule->at = std::strtol(value.c_str(), &rest, 10);
            rule->repeats = *rest;
            if (rule->at < 1 || (*rest != 0 && *rest != '+' && *rest != '%')) refuse("at=" + value);
        } else if (key == "do") {
            if (value == "kill") rule->action = Rule::kill;
            else if (value == "torn") rule->action = Rule::torn;
            else if (value == "short") rule->action = Rule::shorten;
            else if (value == "count") rule->action = Rule::count;
            else if (value.starts_with("wait:")) rule->action = Rule::wait, rule->wait_ms = std::atol(value.c_str() + 5);
            else {
                for (const auto& [name, number] : errors)
                    if (value == name) rule->action = Rule::fail, rule->error = number;
                if (rule->error == 0) refuse("do=" + value);
            }
        } else refuse("unknown key " + key);
        at = end + 1;
    }
    if (rule->calls.empty() || rule->path.empty()) refuse("calls and path are needed: " + text);
    if (is_ours) rules.push_back(rule);
}

// Made at the first call and never destroyed: other libraries' destructors close files.
const std::vector<Rule*>& rules() {
    static const std::vector<Rule*>* all = [] {
        auto* made = new std::vector<Rule*>;
        const char* text = std::getenv("ATELIER_FAULTS");
        const std::string given = text == nullptr ? "" : text;
        for (std::size_t at = 0; at < given.size();) {
            const std::size_t end = std::min(given.find(';', at), given.size());
            parse_rule(given.substr(at, end - at), *made);
            at = end + 1;
        }
        return made;
    }();
    return *all;
}

template <typename Function>
Function next(const char* name) {
    auto* found = reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
    if (found == nullptr) std::_Exit(98);
    return found;
}
#define NEXT(name) (next<decltype(&name)>(#name))

void log_call(long number, const char* call, const char* path, bool strikes) {
    static const char* file = std::getenv("ATELIER_FAULTS_LOG");
    if (file == nullptr) return;
    char line[PATH_MAX + 64];
    const int length = std::snprintf(line, sizeof(line), "%ld %s %s%s\n", number, call, path, strikes ? " struck" : "");
    const long out = syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    syscall(SYS_write, out, line, static_cast<std::size_t>(length));
    syscall(SYS_close, out);
}

struct Fault {
    bool fails = false, halves = false, dies_after = false;
};
/// What is to happen to a call; doesn't come back where the process is to die before it. errno is set where it fails.
Fault fault_of(const char* call, const char* path) {
    Fault f;
    if (path == nullptr) return f;
    const int kept = errno;
    const std::string name = "+" + std::string(call) + "+";
    for (Rule* rule : rules()) {
        if (rule->calls.find(name) == std::string::npos || std::strstr(path, rule->path.c_str()) == nullptr) continue;
        const long number = ++rule->seen;
        const bool strikes = rule->action != Rule::count && (rule->repeats == 0     ? number == rule->at
                                                             : rule->repeats == '+' ? number >= rule->at
                                                                                    : number % rule->at == 0);
        log_call(number, call, path, strikes);
        if (!strikes) continue;
        switch (rule->action) {
            case Rule::kill: syscall(SYS_kill, getpid(), SIGKILL); break;
            case Rule::torn: f.halves = f.dies_after = true; break;
            case Rule::shorten: f.halves = true; break;
            case Rule::wait: usleep(static_cast<useconds_t>(rule->wait_ms * 1000)); break;
            case Rule::fail: f.fails = true; errno = rule->error; return f;
            case Rule::count: break;
        }
    }
    errno = kept;
    return f;
}

/// Of a descriptor: what the kernel says; without file (sockets, pipes) nothing fits.
struct Descriptor {
    explicit Descriptor(int file) {
        char link[64];
        std::snprintf(link, sizeof(link), "/proc/self/fd/%d", file);
        const long n = syscall(SYS_readlinkat, AT_FDCWD, link, text, sizeof(text) - 1);
        text[n > 0 ? n : 0] = 0;
    }
    char text[PATH_MAX] = {};
};
bool is_written(int file) { return (fcntl(file, F_GETFL) & O_ACCMODE) != O_RDONLY; }

/// The path that a name relative to an open directory stands for.
struct PathAt {
    PathAt(int directory, const char* name) {
        if (name[0] == '/' || directory == AT_FDCWD) text = name;
        else text = std::string(Descriptor(directory).text) + "/" + name;
    }
    std::string text;
};

const char* kind_of_open(int flags) { return (flags & O_ACCMODE) == O_RDONLY ? "open" : "create"; }

template <typename Call>
ssize_t written(const Fault& f, std::size_t size, Call call) {
    if (f.fails) return -1;
    const ssize_t done = call(f.halves ? (size + 1) / 2 : size);
    if (f.dies_after) syscall(SYS_kill, getpid(), SIGKILL);
    return done;
}

std::time_t ahead() {
    static const std::time_t seconds = [] {
        const char* text = std::getenv("ATELIER_FAULTS_CLOCK");
        return text == nullptr ? 0 : std::atol(text) * own_rank();
    }();
    return seconds;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

#define OPEN_LIKE(name)                                              \
    EXPORT int name(const char* path, int flags, ...) {              \
        va_list list;                                                \
        va_start(list, flags);                                       \
        const mode_t mode = va_arg(list, mode_t);                    \
        va_end(list);                                                \
        if (fault_of(kind_of_open(flags), path).fails) return -1;    \
        return NEXT(name)(path, flags, mode);                        \
    }
OPEN_LIKE(open)
OPEN_LIKE(open64)
#define OPENAT_LIKE(name)                                                                         \
    EXPORT int name(int directory, const char* path, int flags, ...) {                            \
        va_list list;                                                                             \
        va_start(list, flags);                                                                    \
        const mode_t mode = va_arg(list, mode_t);                                                 \
        va_end(list);                                                                             \
        if (fault_of(kind_of_open(flags), PathAt(directory, path).text.c_str()).fails) return -1; \
        return NEXT(name)(directory, path, flags, mode);                                          \
    }
OPENAT_LIKE(openat)
OPENAT_LIKE(openat64)
#define FOPEN_LIKE(name)                                                                     \
    EXPORT std::FILE* name(const char* path, const char* mode) {                             \
        if (fault_of(mode[0] == 'r' && std::strchr(mode, '+') == nullptr ? "open" : "create", path).fails) return nullptr; \
        return NEXT(name)(path, mode);                                                       \
    }
FOPEN_LIKE(fopen)
FOPEN_LIKE(fopen64)
EXPORT DIR* opendir(const char* path) {
    if (fault_of("open", path).fails) return nullptr;
    return NEXT(opendir)(path);
}

EXPORT ssize_t write(int file, const void* data, std::size_t size) {
    return written(fault_of("write", Descriptor(file).text), size, [&](std::size_t n) { return NEXT(write)(file, data, n); });
}
#define PWRITE_LIKE(name, offset_type)                                                                               \
    EXPORT ssize_t name(int file, const void* data, std::size_t size, offset_type at) {                              \
        return written(fault_of("write", Descriptor(file).text), size, [&](std::size_t n) { return NEXT(name)(file, data, n, at); }); \
    }
PWRITE_LIKE(pwrite, off_t)
PWRITE_LIKE(pwrite64, off64_t)
EXPORT ssize_t writev(int file, const iovec* parts, int count) {
    const Fault f = fault_of("write", Descriptor(file).text);
    if (!f.halves && !f.fails) return NEXT(writev)(file, parts, count);
    return written(f, parts[0].iov_len, [&](std::size_t n) { return NEXT(write)(file, parts[0].iov_base, n); });
}
EXPORT std::size_t fwrite(const void* data, std::size_t size, std::size_t count, std::FILE* file) {
    if (file == stdout || file == stderr) return NEXT(fwrite)(data, size, count, file);
    const ssize_t done = written(fault_of("write", Descriptor(fileno(file)).text), size * count,
                                 [&](std::size_t n) { return static_cast<ssize_t>(NEXT(fwrite)(data, 1, n, file)); });
    return done < 0 || size == 0 ? 0 : static_cast<std::size_t>(done) / size;
}
EXPORT int fflush(std::FILE* file) {
    if (file != nullptr && file != stdout && file != stderr && fault_of("write", Descriptor(fileno(file)).text).fails) return EOF;
    return NEXT(fflush)(file);
}

EXPORT int close(int file) {
    // A failed close has closed the file all the same, as on Linux.
    const bool fails = is_written(file) && fault_of("close", Descriptor(file).text).fails;
    const int error = errno, result = NEXT(close)(file);
    if (!fails) return result;
    errno = error;
    return -1;
}
EXPORT int fclose(std::FILE* file) {
    const int number = fileno(file);
    const bool fails = number >= 0 && is_written(number) && fault_of("close", Descriptor(number).text).fails;
    const int error = errno, result = NEXT(fclose)(file);
    if (!fails) return result;
    errno = error;
    return EOF;
}

EXPORT int fsync(int file) { return fault_of("fsync", Descriptor(file).text).fails ? -1 : NEXT(fsync)(file); }
EXPORT int fdatasync(int file) { return fault_of("fsync", Descriptor(file).text).fails ? -1 : NEXT(fdatasync)(file); }

// A rule's path may be part of either name.
static bool rename_fails(const char* call, const std::string& from, const std::string& to) { return fault_of(call, (from + " -> " + to).c_str()).fails; }
EXPORT int rename(const char* from, const char* to) { return rename_fails("rename", from, to) ? -1 : NEXT(rename)(from, to); }
EXPORT int renameat(int from_directory, const char* from, int to_directory, const char* to) {
    return rename_fails("rename", PathAt(from_directory, from).text, PathAt(to_directory, to).text)
               ? -1
               : NEXT(renameat)(from_directory, from, to_directory, to);
}
EXPORT int renameat2(int from_directory, const char* from, int to_directory, const char* to, unsigned flags) {
    return rename_fails(flags == 0 ? "rename" : "exchange", PathAt(from_directory, from).text, PathAt(to_directory, to).text)
               ? -1
               : NEXT(renameat2)(from_directory, from, to_directory, to, flags);
}

EXPORT int unlink(const char* path) { return fault_of("unlink", path).fails ? -1 : NEXT(unlink)(path); }
EXPORT int rmdir(const char* path) { return fault_of("unlink", path).fails ? -1 : NEXT(rmdir)(path); }
EXPORT int remove(const char* path) { return fault_of("unlink", path).fails ? -1 : NEXT(remove)(path); }
EXPORT int unlinkat(int directory, const char* path, int flags) {
    return fault_of("unlink", PathAt(directory, path).text.c_str()).fails ? -1 : NEXT(unlinkat)(directory, path, flags);
}
EXPORT int mkdir(const char* path, mode_t mode) { return fault_of("mkdir", path).fails ? -1 : NEXT(mkdir)(path, mode); }

EXPORT int stat(const char* path, struct stat* out) { return fault_of("stat", path).fails ? -1 : NEXT(stat)(path, out); }
EXPORT int stat64(const char* path, struct stat64* out) { return fault_of("stat", path).fails ? -1 : NEXT(stat64)(path, out); }
EXPORT int lstat(const char* path, struct stat* out) { return fault_of("stat", path).fails ? -1 : NEXT(lstat)(path, out); }
EXPORT int fstat(int file, struct stat* out) { return fault_of("stat", Descriptor(file).text).fails ? -1 : NEXT(fstat)(file, out); }
EXPORT int fstat64(int file, struct stat64* out) { return fault_of("stat", Descriptor(file).text).fails ? -1 : NEXT(fstat64)(file, out); }

EXPORT ssize_t read(int file, void* out, std::size_t size) { return fault_of("read", Descriptor(file).text).fails ? -1 : NEXT(read)(file, out, size); }
EXPORT ssize_t pread(int file, void* out, std::size_t size, off_t at) {
    return fault_of("read", Descriptor(file).text).fails ? -1 : NEXT(pread)(file, out, size, at);
}
EXPORT ssize_t pread64(int file, void* out, std::size_t size, off64_t at) {
    return fault_of("read", Descriptor(file).text).fails ? -1 : NEXT(pread64)(file, out, size, at);
}
#define MMAP_LIKE(name, offset_type)                                                                        \
    EXPORT void* name(void* address, std::size_t size, int protection, int flags, int file, offset_type at) { \
        if (file >= 0 && fault_of("map", Descriptor(file).text).fails) return MAP_FAILED;                   \
        return NEXT(name)(address, size, protection, flags, file, at);                                      \
    }
MMAP_LIKE(mmap, off_t)
MMAP_LIKE(mmap64, off64_t)

EXPORT int clock_gettime(clockid_t clock, timespec* out) {
    const int result = NEXT(clock_gettime)(clock, out);
    if (result == 0 && clock == CLOCK_REALTIME) out->tv_sec += ahead();
    return result;
}
EXPORT int gettimeofday(timeval* out, void* zone) {
    const int result = NEXT(gettimeofday)(out, zone);
    if (result == 0) out->tv_sec += ahead();
    return result;
}
EXPORT std::time_t time(std::time_t* out) {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    if (out != nullptr) *out = now.tv_sec;
    return now.tv_sec;
}
