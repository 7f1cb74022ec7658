#include "stage/training_state.hpp"

#include <algorithm>
#include <charconv>
#include <optional>

#include "io/hdf5.hpp"

namespace atelier::stage {
namespace {

namespace fs = std::filesystem;

constexpr auto piece_numbers = static_cast<std::int64_t>(TrainingState::piece_bytes / sizeof(float));

/// Runs of a shard that are numbers of the flat vector, neighbours put together.
struct Run {
    std::int64_t local, global, count;
};
std::vector<Run> runs_of(const nn::Partition& partition, int rank) {
    std::vector<Run> runs;
    for (const auto& p : partition.pieces(rank)) {
        if (!runs.empty() && runs.back().global + runs.back().count == p.global && runs.back().local + runs.back().count == p.local)
            runs.back().count += p.count;
        else
            runs.push_back({p.local, p.global, p.count});
    }
    return runs;
}

/// The runs that a file holds, and where each begins in its vectors.
struct Stored {
    io::hdf5::File file;
    std::vector<Run> runs;  ///< local: place in the file's vectors
};

Stored open_stored(const fs::path& path, std::int64_t flat_size) {
    Stored s{io::hdf5::File::open(path), {}};
    const auto pieces = s.file.read<std::int64_t>("/piece", {-1, 2});
    std::int64_t at = 0;
    for (std::size_t i = 0; i < pieces.size(); i += 2) {
        ATELIER_CHECK_INPUT(pieces[i] >= 0 && pieces[i + 1] >= 0 && pieces[i] <= flat_size - pieces[i + 1],
                            "{}: it says that it holds {} numbers from {} on of {}: it is of another model", path.string(), pieces[i + 1],
                            pieces[i], flat_size);
        s.runs.push_back({at, pieces[i], pieces[i + 1]});
        at += pieces[i + 1];
    }
    const std::int64_t stated = s.file.integer_attribute("/", "flat_size");
    ATELIER_CHECK_INPUT(stated == flat_size, "{} is of a flat vector of {} numbers, this model's has {}", path.string(), stated, flat_size);
    return s;
}

/// Fills a shard's vector from all files; what no file holds, or two hold, is an error.
void gather(const std::vector<Stored>& files, const std::string& name, const std::vector<Run>& wanted, const Tensor& shard,
            const fs::path& policy) {
    std::vector<std::optional<io::hdf5::File::Rows<float>>> numbers(files.size());  // of files that hold what is wanted
    for (const Run& w : wanted) {
        std::vector<std::pair<std::int64_t, std::int64_t>> found;
        for (std::size_t file = 0; file < files.size(); ++file)
            for (const Run& r : files[file].runs) {
                const std::int64_t from = std::max(w.global, r.global), to = std::min(w.global + w.count, r.global + r.count);
                if (from >= to) continue;
                if (!numbers[file]) numbers[file] = files[file].file.rows<float>("/" + name);
                for (std::int64_t at = from; at < to; at += piece_numbers) {
                    const auto part = numbers[file]->read(r.local + (at - r.global), std::min(piece_numbers, to - at));
                    const auto count = static_cast<std::int64_t>(part.size()), to_place = w.local + (at - w.global);
                    transfer(Tensor::of(part.data(), {count}), shard.slice(to_place, to_place + count));
                }
                found.emplace_back(from, to);
            }
        std::sort(found.begin(), found.end());
        std::int64_t at = w.global;
        for (const auto& [from, to] : found) {
            ATELIER_CHECK_INPUT(from >= at, "{}: numbers [{}, {}) of {} are in two files", policy.string(), from, std::min(at, to), name);
            if (from > at) break;
            at = to;
        }
        ATELIER_CHECK_INPUT(at == w.global + w.count, "{}: the training state has a hole: number {} of {} is in none of its {} files",
                            policy.string(), at, name, files.size());
    }
}

}  // namespace

std::string TrainingState::name_of_shard(int rank, int ranks) {
    return ranks == 1 ? file_name : fmt::format("training-{:05}-of-{:05}.h5", rank, ranks);
}

std::vector<fs::path> TrainingState::files(const fs::path& policy) {
    if (policy.empty()) return {};
    if (fs::exists(policy / file_name)) return {policy / file_name};
    std::vector<fs::path> found;
    int ranks = 0;
    if (fs::is_directory(policy))
        for (const auto& entry : fs::directory_iterator(policy)) {
            constexpr std::string_view before = "-of-";
            const std::string name = entry.path().filename().string();
            const std::size_t at = name.find(before);
            if (!name.starts_with("training-") || at == std::string::npos) continue;
            int of = 0;
            std::from_chars(name.data() + at + before.size(), name.data() + name.size(), of);
            ranks = std::max(ranks, of);
        }
    for (int rank = 0; rank < ranks; ++rank) {
        found.push_back(policy / name_of_shard(rank, ranks));
        ATELIER_CHECK_INPUT(fs::exists(found.back()), "{} is missing: the training state was written by {} ranks", found.back().string(), ranks);
    }
    return found;
}

TrainingState TrainingState::load(const fs::path& policy, const nn::Partition& partition, int rank, Device device) {
    const std::int64_t size = partition.shard_size();
    TrainingState s;
    s.m = Numbers(size, device);
    s.v = Numbers(size, device);
    std::vector<Stored> stored;
    for (const fs::path& path : files(policy)) stored.push_back(open_stored(path, partition.table().flat_size()));
    if (stored.empty()) return s;
    s.update = stored[0].file.integer_attribute("/", "update");
    for (const Stored& other : stored)
        ATELIER_CHECK_INPUT(other.file.integer_attribute("/", "update") == s.update, "{} is of update {}, {} of update {}",
                            other.file.path().string(), other.file.integer_attribute("/", "update"), stored[0].file.path().string(), s.update);
    const auto wanted = runs_of(partition, rank);
    gather(stored, "m", wanted, s.m.tensor(), policy);
    gather(stored, "v", wanted, s.v.tensor(), policy);
    if (stored[0].file.exists("/ema")) {
        s.ema = Numbers(size, device);
        gather(stored, "ema", wanted, s.ema.tensor(), policy);
    }
    if (stored[0].file.exists("/master")) {
        s.master = Numbers(size, device);
        gather(stored, "master", wanted, s.master.tensor(), policy);
    }
    return s;
}

TrainingState TrainingState::copy_to(Device device) const {
    TrainingState copy;
    copy.update = update;
    for (const auto member : {&TrainingState::m, &TrainingState::v, &TrainingState::ema, &TrainingState::master})
        if (!(this->*member).empty()) copy.*member = Numbers((this->*member).tensor(), device);
    return copy;
}

void TrainingState::load_weights(const fs::path& directory, const nn::Partition& partition, int rank, const Tensor& weights) {
    std::vector<Stored> stored;
    for (const fs::path& path : files(directory)) stored.push_back(open_stored(path, partition.table().flat_size()));
    gather(stored, "weights", runs_of(partition, rank), weights, directory);
}

std::string TrainingState::save(const fs::path& directory, const nn::Partition& partition, int rank, const Context& c,
                                const Tensor& weights) const {
    auto file = io::hdf5::File::create(directory / name_of_shard(rank, partition.ranks()));
    file.set_attribute("/", "schema", std::string("atelier.training"));
    file.set_attribute("/", "schema_version", std::int64_t{2});
    file.set_attribute("/", "update", update);
    file.set_attribute("/", "iteration", c.iteration);
    file.set_attribute("/", "config_hash", c.config.hash());
    file.set_attribute("/", "flat_size", partition.table().flat_size());
    const auto runs = runs_of(partition, rank);
    std::vector<std::int64_t> pieces;
    std::int64_t count = 0;
    for (const Run& r : runs) {
        pieces.insert(pieces.end(), {r.global, r.count});
        count += r.count;
    }
    file.write("/piece", Tensor::of(pieces.data(), {static_cast<std::int64_t>(runs.size()), 2}));
    std::vector<float> piece(static_cast<std::size_t>(std::min(count, piece_numbers)));
    const auto write = [&](const std::string& what, const Tensor& values) {
        if (values.empty()) return;
        file.make_dataset(what, DType::f32, {count});
        std::int64_t written = 0, filled = 0;
        const auto put = [&] {
            if (filled > 0) file.write_rows(what, written, Tensor::of(piece.data(), {filled}));
            written += filled;
            filled = 0;
        };
        for (const Run& r : runs)
            for (std::int64_t at = 0; at < r.count;) {
                const std::int64_t n = std::min(r.count - at, piece_numbers - filled);
                transfer(values.slice(r.local + at, r.local + at + n), Tensor::of(piece.data() + filled, {n}));
                at += n;
                filled += n;
                if (filled == piece_numbers) put();
            }
        put();
    };
    write("/m", m.tensor());
    write("/v", v.tensor());
    write("/ema", ema.tensor());
    write("/master", master.tensor());
    write("/weights", weights);
    file.close();
    return name_of_shard(rank, partition.ranks());
}

}  // namespace atelier::stage
