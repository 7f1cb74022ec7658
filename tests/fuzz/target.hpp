#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

// What the fuzz targets share. A target is a source file with one function run_one(bytes); it is linked with libFuzzer, or with
// replay_main.cpp, which runs the files of its corpus.
namespace atelier::fuzz {

/// The target's reader on these bytes.
void run_one(std::span<const std::uint8_t> bytes);

/// Runs a reader: to be refused with an Error that blames the input (input, usage, reward) is as good as to be read; any other
/// exception ends the program, as a crash does.
void read_or_refuse(const std::function<void()>& read);

/// Whether refusals are printed: the replay says why, the fuzzer is quiet.
extern bool says_why;

/// A directory in memory, one a process, removed at its end.
const std::filesystem::path& scratch();

/// Makes the bytes the content of a file of the scratch directory.
std::filesystem::path as_file(const std::string& name, std::span<const std::uint8_t> bytes);
std::filesystem::path as_file(const std::string& name, std::string_view text);

std::string as_text(std::span<const std::uint8_t> bytes);

}  // namespace atelier::fuzz
