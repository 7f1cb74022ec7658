// Rates at which trajectory shards are published and read, beside those of the same number of plain bytes on the same disk.
//   shard_rates DIRECTORY [REPEATS] [SAMPLES]
// A shard of samples of 1024 x 1024 pictures (64 x 64 latent tokens of 64 channels, 8 trained steps), 21 MiB each, as publish_file() and
// write_trajectory() write it (Fletcher-32 on, chunked by sample, digest taken, flushed) and read_trajectory() reads it; against write()
// of 1 MiB pieces and fsync(), and read() of such pieces into memory. Files are out of the page cache before they are read. The four take turns;
// medians and the ratios of medians are printed, and processor time.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>

#include "core/error.hpp"
#include "core/philox.hpp"
#include "core/process.hpp"
#include "io/publish.hpp"
#include "io/trajectory.hpp"

namespace {

using namespace atelier;
namespace fs = std::filesystem;

constexpr std::size_t piece = 1 << 20;

io::TrajectoryShard make_shard(std::int64_t samples) {
    io::TrajectoryShard shard;
    shard.header.run_id = "bench";
    shard.header.stage = "rollout";
    io::TrajectoryPrompts& p = shard.prompts;
    p.id = p.text = p.negative = p.category = p.task = {"a"};
    p.attributes = {"{}"};
    io::TrajectorySamples s;
    s.height = s.width = 64, s.channels = 64, s.steps = 10, s.trained = 8, s.picture_height = s.picture_width = 1024;
    const auto n = static_cast<std::size_t>(samples), state = static_cast<std::size_t>(s.tokens() * s.channels);
    s.sample_id.resize(n), s.prompt.resize(n), s.member.resize(n), s.noise_key.resize(2 * n), s.status.resize(n);
    s.sigma.resize(n * 11), s.is_sde.resize(n * 10), s.trained_step.resize(n * 8), s.log_prob.resize(n * 8);
    s.x.resize(n * 8 * state), s.x_next.resize(n * 8 * state), s.latents.resize(n * state);
    std::uint64_t stream = 0;
    for (auto* v : {&s.x, &s.x_next, &s.latents}) {
        // Bits that no layer can shrink; made once and repeated, since they are many.
        std::vector<float> block(1 << 20);
        fill_normal(random_key(1, RandomUse::test, ++stream), block);
        for (std::size_t i = 0; i < v->size(); ++i) (*v)[i] = block[i % block.size()];
    }
    s.picture.assign(n * 1024 * 1024 * 4, 100);
    shard.shapes.push_back(std::move(s));
    return shard;
}

struct Seconds {
    double wall = 0, processor = 0;
};

double processor_seconds() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    const auto of = [](const timeval& t) { return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec); };
    return of(usage.ru_utime) + of(usage.ru_stime);
}

template <typename F>
Seconds seconds(F f) {
    const auto begin = std::chrono::steady_clock::now();
    const double before = processor_seconds();
    f();
    return {std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), processor_seconds() - before};
}

void write_plain(const fs::path& path, std::uint64_t bytes, const std::vector<float>& from) {
    const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    ATELIER_CHECK_IO(file >= 0, "cannot create {}", path.string());
    const auto* data = reinterpret_cast<const char*>(from.data());
    for (std::uint64_t at = 0; at < bytes;) {
        const std::size_t count = std::min<std::uint64_t>(piece, bytes - at);
        const auto source = at % (from.size() * sizeof(float) - piece);
        const ssize_t written = write(file, data + source, count);
        ATELIER_CHECK_IO(written > 0, "cannot write {}: {}", path.string(), std::strerror(errno));
        at += static_cast<std::uint64_t>(written);
    }
    ATELIER_CHECK_IO(fsync(file) == 0, "cannot flush {}", path.string());
    close(file);
}

void read_plain(const fs::path& path) {
    const std::size_t bytes = fs::file_size(path);
    const std::unique_ptr<char[]> buffer(new char[bytes]);
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    ATELIER_CHECK_IO(file >= 0, "cannot open {}", path.string());
    for (std::size_t at = 0; at < bytes;) {
        const ssize_t count = read(file, buffer.get() + at, std::min(piece, bytes - at));
        ATELIER_CHECK_IO(count > 0, "cannot read {}", path.string());
        at += static_cast<std::size_t>(count);
    }
    close(file);
}

void drop_from_cache(const fs::path& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    fsync(file);
    posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    close(file);
}

Seconds median(const std::vector<Seconds>& values) {
    std::vector<double> wall, processor;
    for (const Seconds& s : values) wall.push_back(s.wall), processor.push_back(s.processor);
    std::sort(wall.begin(), wall.end());
    std::sort(processor.begin(), processor.end());
    return {wall[wall.size() / 2], processor[processor.size() / 2]};
}

void run(const fs::path& directory, int repeats, std::int64_t samples) {
    const io::TrajectoryShard shard = make_shard(samples);
    const fs::path ours = directory / "shard-rates.h5", plain = directory / "shard-rates.bin";
    std::uint64_t bytes = 0;
    std::vector<Seconds> write_ours, write_other, read_ours, read_other;
    for (int i = 0; i <= repeats; ++i) {  // the first turn only warms up
        const Seconds w = seconds([&] {
            io::publish_file(ours, [&](const fs::path& temporary) { io::write_trajectory(temporary, shard); });
        });
        bytes = fs::file_size(ours);
        const Seconds wp = seconds([&] { write_plain(plain, bytes, shard.shapes[0].x); });
        drop_from_cache(ours);
        drop_from_cache(plain);
        const Seconds r = seconds([&] { io::read_trajectory(ours); });
        const Seconds rp = seconds([&] { read_plain(plain); });
        if (i == 0) continue;
        write_ours.push_back(w), write_other.push_back(wp), read_ours.push_back(r), read_other.push_back(rp);
        std::cerr << fmt::format("{}: write {:.3f} s, plain {:.3f} s; read {:.3f} s, plain {:.3f} s\n", i, w.wall, wp.wall, r.wall, rp.wall);
    }
    fs::remove(ours);
    fs::remove(plain);
    const double mib = static_cast<double>(bytes) / (1 << 20);
    const auto row = [&](const char* what, const std::vector<Seconds>& shards, const std::vector<Seconds>& others) {
        const Seconds a = median(shards), b = median(others);
        std::cout << fmt::format("{:<6} {:>8.0f} MiB/s, the disk {:>8.0f} MiB/s, ratio {:.2f}; processor {:.3f} s and {:.3f} s\n", what, mib / a.wall,
                                 mib / b.wall, b.wall / a.wall, a.processor, b.processor);
    };
    std::cout << fmt::format("{:.0f} MiB, {} turns\n", mib, repeats);
    row("write", write_ours, write_other);
    row("read", read_ours, read_other);
}

}  // namespace

int main(int argc, char** argv) {
    try {
        if (argc < 2) {
            std::cerr << "shard_rates DIRECTORY [REPEATS] [SAMPLES]\n";
            return static_cast<int>(ErrorKind::usage);
        }
        run(argv[1], argc > 2 ? std::atoi(argv[2]) : 7, argc > 3 ? std::atoi(argv[3]) : 12);
        return 0;
    } catch (...) {
        return report_failure("shard_rates");
    }
}
