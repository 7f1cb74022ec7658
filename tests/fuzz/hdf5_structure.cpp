// Our HDF5 files with objects replaced: other types and shapes, sizes that no file has, groups, links and storage that lead
// elsewhere, compressed nothing, values that name what isn't there. The bytes are a program: which file and which parts of it are read, then
// four bytes a change.
// (HDF5's own parser on damaged bytes is the library's affair: stages check a file's hash before they open it.)
#include <hdf5.h>

#include <algorithm>
#include <array>

#include "fuzz/target.hpp"
#include "io/hdf5.hpp"
#include "io/trajectory.hpp"
#include "judge/labels.hpp"
#include "nn/sharded.hpp"
#include "stage/curated.hpp"
#include "stage/training_state.hpp"

namespace atelier::fuzz {
namespace {

namespace fs = std::filesystem;
using io::hdf5::Handle;

void write_good_trajectory(const fs::path& path) {
    io::TrajectoryShard shard;
    shard.prompts.id = {"a"};
    for (auto* column : {&shard.prompts.text, &shard.prompts.negative, &shard.prompts.category, &shard.prompts.task}) *column = {"x"};
    shard.prompts.attributes = {"{}"};
    shard.prompts.images = {{0, 1, 2, std::vector<std::uint8_t>(8, 7)}};
    io::TrajectorySamples s;
    s.height = 1, s.width = 2, s.channels = 3, s.steps = 2, s.trained = 1, s.picture_height = 2, s.picture_width = 2;
    s.sample_id = {1, 2}, s.prompt = {0, 0}, s.member = {0, 1}, s.noise_key = {1, 2, 3, 4};
    s.sigma = {1, 0.5, 0, 1, 0.5, 0}, s.is_sde = {1, 0, 1, 0}, s.trained_step = {0, 0};
    s.x.assign(12, 1), s.x_next.assign(12, 2), s.log_prob = {-1, -2}, s.latents.assign(12, 3), s.picture.assign(32, 4);
    s.reward["alignment"] = {{1, 2}, {0.5, 0.5}, {1, 1}, {"because", "therefore"}};
    s.total = {1, 2}, s.advantage = {-1, 1}, s.status = {0, 0};
    shard.shapes = {s};
    io::write_trajectory(path, shard);
}

void write_good_labels(const fs::path& path) {
    judge::LabelledSample s;
    s.id = "a", s.kind = "t2i", s.dimension = "alignment", s.category = "general", s.prompt = "p", s.rationale = "r";
    s.picture = std::make_shared<const judge::LabelledPicture>(io::Image(2, 2, 3, 9));
    s.sources = {s.picture};
    s.scores = {{"anna", 4.5}, {"ben", 2}};
    judge::write_labels(path, {s});
}

void write_good_prompts(const fs::path& path) {
    stage::Curated c;
    c.config_hash = "h", c.pool_hash = "p";
    c.number = {0, 1}, c.id = {"a", "b"}, c.text = {"x", "y"}, c.category = {"g", "g"}, c.verdict = {"kept", "too even"};
    c.kept = {1, 0}, c.mean = {1, 2}, c.range = {3, 4};
    c.weights["g"] = c.mean_std["g"] = {{"alignment", 1.0}};
    stage::write_curated(path, c);
}

const nn::ParameterTable& model() {
    static const nn::ParameterTable table = [] {
        nn::ParameterTable t;
        t.add({"a.weight", {3, 5}});
        t.add({"b.weight", {4}});
        return t;
    }();
    return table;
}

void write_good_state(const fs::path& path) {
    const std::int64_t pieces[] = {0, 15, 16, 4};
    const float values[19] = {1, 2, 3};
    auto file = io::hdf5::File::create(path);
    file.set_attribute("/", "schema", std::string("atelier.training"));
    file.set_attribute("/", "schema_version", std::int64_t{2});
    file.set_attribute("/", "update", std::int64_t{7});
    file.set_attribute("/", "iteration", std::int64_t{1});
    file.set_attribute("/", "config_hash", std::string("h"));
    file.set_attribute("/", "flat_size", model().flat_size());
    file.write("/piece", Tensor::of(pieces, {2, 2}));
    for (const char* name : {"/m", "/v", "/ema"}) file.write(name, Tensor::of(values, {19}));
    file.close();
}

struct Kind {
    std::string file;
    void (*write)(const fs::path&);
    void (*read)(const fs::path&, int parts);
};
const std::array<Kind, 4> kinds{{
    {"shard.h5", write_good_trajectory,
     [](const fs::path& p, int parts) {
         constexpr std::array<io::TrajectoryParts, 5> kept{io::TrajectoryParts::all, io::TrajectoryParts::training, io::TrajectoryParts::scores, io::TrajectoryParts::scores_and_references,
                                                           io::TrajectoryParts::summary};
         const auto shard = io::read_trajectory(p, {}, kept[static_cast<std::size_t>(parts)]);
         for (const auto& s : shard.shapes) {
             const auto states = parts < 2 ? s.samples() * s.trained * s.tokens() * s.channels : 0;
             if (s.x.size() != static_cast<std::size_t>(states)) std::abort();
         }
     }},
    {"labels.h5", write_good_labels, [](const fs::path& p, int) { (void)judge::read_labels(p); }},
    {"prompts.h5", write_good_prompts, [](const fs::path& p, int) { (void)stage::read_curated(p).kept_numbers(); }},
    {"training.h5", write_good_state,
     [](const fs::path& p, int) {
         const nn::Partition whole(model(), 1);
         (void)stage::TrainingState::load(p.parent_path(), whole, 0);
     }},
}};

/// Names of all objects of a file.
std::vector<std::string> objects(const fs::path& path) {
    const Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose);
    std::vector<std::string> names;
    H5Lvisit(
        file.id(), H5_INDEX_NAME, H5_ITER_INC,
        [](hid_t, const char* name, const H5L_info_t*, void* out) -> herr_t {
            static_cast<std::vector<std::string>*>(out)->push_back(std::string("/") + name);
            return 0;
        },
        &names);
    return names;
}

void put(hid_t file, const std::string& name, hid_t type, hid_t space, hid_t creation) {
    const Handle set(H5Dcreate2(file, name.c_str(), type, space, H5P_DEFAULT, creation, H5P_DEFAULT), H5Dclose);
}

/// One change; what HDF5 itself refuses to make is no change.
void change(hid_t file, const std::vector<std::string>& names, std::span<const std::uint8_t, 4> code) {
    const std::string& name = names[code[1] % names.size()];
    const std::array<hid_t, 8> types{H5T_IEEE_F32LE, H5T_IEEE_F64LE, H5T_STD_I64LE, H5T_STD_U64LE,
                                     H5T_STD_U32LE,  H5T_STD_U8LE,   H5T_STD_I32BE, H5T_C_S1};
    constexpr std::array<hsize_t, 8> sizes{0, 1, 2, 3, 7, 1ull << 20, 1ull << 40, 1ull << 61};
    const hid_t type = types[code[2] % types.size()];
    const hsize_t dims[3] = {sizes[code[3] % 8], sizes[code[3] / 8 % 8], sizes[code[3] / 64]};
    const int rank = code[2] / 8 % 4;
    const Handle space(rank == 0 ? H5Screate(H5S_SCALAR) : H5Screate_simple(rank, dims, nullptr), H5Sclose);
    const Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    const hsize_t chunk[3] = {1, 1, 1}, large_chunk[3] = {1 << 20, 1, 1};
    const auto remove = [&] { H5Ldelete(file, name.c_str(), H5P_DEFAULT); };
    switch (code[0] % 11) {
        case 0: remove(); break;
        case 1:
            remove();
            if (rank > 0 && code[2] >= 128) H5Pset_chunk(creation.id(), rank, chunk);
            H5Pset_alloc_time(creation.id(), H5D_ALLOC_TIME_INCR);
            put(file, name, type, space.id(), creation.id());
            break;
        case 2:
            remove();
            H5Lcreate_external(code[2] % 2 == 0 ? "../outside.h5" : "outside.h5", "/data", file, name.c_str(), H5P_DEFAULT, H5P_DEFAULT);
            break;
        case 3:
            remove();
            Handle(H5Gcreate2(file, name.c_str(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Gclose).reset();
            break;
        case 4:
            remove();
            H5Pset_virtual(creation.id(), space.id(), code[3] % 2 == 0 ? "../outside.h5" : "outside.h5", "/data", space.id());
            put(file, name, type, space.id(), creation.id());
            break;
        case 5:
            remove();
            H5Pset_external(creation.id(), "/etc/hostname", 0, H5F_UNLIMITED);
            put(file, name, type, space.id(), creation.id());
            break;
        case 6: {
            const Handle set(H5Dopen2(file, name.c_str(), H5P_DEFAULT), H5Dclose), all(H5Dget_space(set.id()), H5Sclose);
            const hssize_t n = H5Sget_simple_extent_npoints(all.id());
            if (!set.valid() || n <= 0 || n > 64) break;
            const Handle own(H5Dget_type(set.id()), H5Tclose);
            if (H5Tis_variable_str(own.id()) > 0) break;
            const std::vector<std::uint64_t> values(64, code[2] < 128 ? code[2] * 0x0101010101010101ull : code[3]);
            H5Dwrite(set.id(), own.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data());
            break;
        }
        case 7: {
            remove();
            const Handle text(H5Tcopy(H5T_C_S1), H5Tclose);
            H5Tset_size(text.id(), code[2] % 2 == 0 ? H5T_VARIABLE : 3);
            put(file, name, text.id(), space.id(), creation.id());
            break;
        }
        case 8: {
            const char* attributes[] = {"schema", "schema_version", "config_hash", "run_id", "eta", "iteration", "update", "flat_size", "height", "inputs_hash"};
            const char* attribute = attributes[code[1] % std::size(attributes)];
            H5Adelete(file, attribute);
            if (code[2] >= 200) break;
            const Handle made(H5Acreate2(file, attribute, type, space.id(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
            break;
        }
        case 9:
            remove();
            H5Lcreate_soft(code[2] % 2 == 0 ? name.c_str() : "/", file, name.c_str(), H5P_DEFAULT, H5P_DEFAULT);
            break;
        default:
            remove();
            if (rank > 0) H5Pset_chunk(creation.id(), rank, large_chunk);
            H5Pset_deflate(creation.id(), 9);
            put(file, name, type, space.id(), creation.id());
    }
}

}  // namespace

void run_one(std::span<const std::uint8_t> bytes) {
    static const std::vector<std::vector<std::string>> names = [] {
        std::vector<std::vector<std::string>> all;
        for (const Kind& kind : kinds) {
            kind.write(scratch() / ("good-" + kind.file));
            all.push_back(objects(scratch() / ("good-" + kind.file)));
        }
        return all;
    }();
    if (bytes.empty() || bytes.size() > 1 + 4 * 16) return;
    const std::size_t which = bytes[0] % kinds.size();
    const int parts = bytes[0] / 16 % 5;
    const fs::path path = scratch() / kinds[which].file;
    fs::copy_file(scratch() / ("good-" + kinds[which].file), path, fs::copy_options::overwrite_existing);
    {
        const Handle file(H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT), H5Fclose);
        for (std::size_t at = 1; at + 4 <= bytes.size(); at += 4) change(file.id(), names[which], bytes.subspan(at).first<4>());
    }
    read_or_refuse([&] { kinds[which].read(path, parts); });
}

}  // namespace atelier::fuzz
