#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace atelier {

/// What went wrong, as the exit code of the process (documented in docs/errors.md).
enum class ErrorKind : int {
    internal = 1,     ///< a bug: a broken invariant
    usage = 2,        ///< command line or configuration
    input = 3,        ///< a file that is missing, damaged or of the wrong kind
    io = 4,           ///< the file system refused: full, read-only, gone
    numeric = 5,      ///< NaN or infinity where none may be
    reward = 6,       ///< too many absent rewards
    busy = 7,         ///< another job is writing the same stage
    rank = 8,         ///< another rank failed or died
    reward_gap = 9,   ///< the scorer has left the truth behind: the reward is being hacked
    requeue = 75,     ///< stopped by a signal after publishing what is complete; run again to continue
};

/// The one exception type. `what()` says expression, place, rank, host and the message.
class Error : public std::runtime_error {
  public:
    Error(ErrorKind kind, const std::string& message, const char* expression, const char* file,
          int line);
    ErrorKind kind() const { return kind_; }
    int exit_code() const { return static_cast<int>(kind_); }
    /// The message alone, without place.
    const std::string& message() const { return message_; }

  private:
    ErrorKind kind_;
    std::string message_;
};

[[noreturn]] void throw_error(ErrorKind kind, const std::string& message, const char* expression,
                              const char* file, int line);

}  // namespace atelier

/// Throws Error(kind) with the formatted message if the condition is false. The message names the
/// file or key, the expected, the found, and what to do about it.
#define ATELIER_CHECK_KIND(kind, condition, ...)                                              \
    do {                                                                                      \
        if (!(condition)) [[unlikely]]                                                        \
            ::atelier::throw_error(kind, ::fmt::format(__VA_ARGS__), #condition, __FILE__,    \
                                   __LINE__);                                                 \
    } while (false)

/// A broken invariant of our own.
#define ATELIER_CHECK(condition, ...) \
    ATELIER_CHECK_KIND(::atelier::ErrorKind::internal, condition, __VA_ARGS__)
/// Input data (files) that is not as it must be.
#define ATELIER_CHECK_INPUT(condition, ...) \
    ATELIER_CHECK_KIND(::atelier::ErrorKind::input, condition, __VA_ARGS__)
/// Command line or configuration.
#define ATELIER_CHECK_USAGE(condition, ...) \
    ATELIER_CHECK_KIND(::atelier::ErrorKind::usage, condition, __VA_ARGS__)
/// The operating system refused.
#define ATELIER_CHECK_IO(condition, ...) \
    ATELIER_CHECK_KIND(::atelier::ErrorKind::io, condition, __VA_ARGS__)
#define ATELIER_FAIL(kind, ...) \
    ::atelier::throw_error(kind, ::fmt::format(__VA_ARGS__), nullptr, __FILE__, __LINE__)
