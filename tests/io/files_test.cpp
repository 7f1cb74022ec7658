// Publishing, manifests, locks and trajectory shards: what was published stays whole, and damage is named.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <fstream>
#include <functional>

#include "core/error.hpp"
#include "core/philox.hpp"
#include "io/csv.hpp"
#include "io/file_io.hpp"
#include "io/fletcher32.hpp"
#include "io/hdf5.hpp"
#include "io/lookup.hpp"
#include "io/manifest.hpp"
#include "io/metrics.hpp"
#include "io/publish.hpp"
#include "io/trajectory.hpp"
#include "io/trajectory_index.hpp"

namespace atelier::io {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

TEST(FileNames, AreMadeOfAnyText) {
    EXPECT_EQ(file_name_of("t2i-0001_a.B"), "t2i-0001_a.B");
    EXPECT_EQ(file_name_of("a/b#1 ?%\xc3\xa9"), "a%2Fb%231%20%3F%25%C3%A9");
    EXPECT_EQ(file_name_of("."), "%2E");
    EXPECT_EQ(file_name_of(".."), "%2E%2E");
    EXPECT_EQ(file_name_of("../.."), "..%2F..");
    const std::string long_text(300, '/');
    EXPECT_EQ(file_name_of(long_text).size(), 200u);
    EXPECT_NE(file_name_of(long_text), file_name_of(long_text + "/"));
}

class Files : public ::testing::Test {
  protected:
    void SetUp() override {
        directory_ = fs::temp_directory_path() / fmt::format("atelier-files-{}-{}", getpid(),
                                                             ::testing::UnitTest::GetInstance()->current_test_info()->name());
        fs::create_directories(directory_);
    }
    void TearDown() override { fs::remove_all(directory_); }
    template <typename Function>
    static std::string refusal(ErrorKind kind, Function f) {
        try {
            f();
        } catch (const Error& e) {
            EXPECT_EQ(static_cast<int>(e.kind()), static_cast<int>(kind)) << e.what();
            return e.message();
        }
        return "(no error)";
    }
    static std::string text_of(const fs::path& path) {
        std::ifstream in(path, std::ios::binary);
        return {std::istreambuf_iterator<char>(in), {}};
    }
    int temporaries() const {
        int n = 0;
        for (const auto& e : fs::recursive_directory_iterator(directory_)) n += e.path().filename().string().starts_with(".tmp-");
        return n;
    }
    fs::path directory_;
};

TrajectoryShard make_shard(std::int64_t samples, bool teacher = false) {
    TrajectoryShard shard;
    shard.header = {"run", teacher ? "teacher_dump" : "rollout", "t2i", "flow_sde", "conditional", "mean", "config", "model", "v1",
                    "2025-01-01T00:00:00Z", 3, 1, 2, 0.7, 4.0};
    shard.prompts.id = {"a", "b"};
    shard.prompts.text = {"zwölf Kreise", ""};
    shard.prompts.negative = {"", ""};
    shard.prompts.category = {"general", "portrait"};
    shard.prompts.task = {"t2i", "t2i"};
    shard.prompts.attributes = {"{}", "{\"x\":1}"};
    shard.prompts.images = {{1, 2, 3, std::vector<std::uint8_t>(24, 7)}};
    TrajectorySamples s;
    s.height = 2, s.width = 3, s.channels = 4, s.steps = 5, s.trained = 2, s.picture_height = 32, s.picture_width = 48;
    const auto n = static_cast<std::size_t>(samples);
    for (std::size_t i = 0; i < n; ++i) {
        s.sample_id.push_back(100 + i);
        s.prompt.push_back(i % 2);
        s.member.push_back(static_cast<std::uint32_t>(i / 2));
        s.noise_key.insert(s.noise_key.end(), {i, ~std::uint64_t{i}});
        s.trained_step.insert(s.trained_step.end(), {0, 3});
    }
    s.sigma.resize(n * 6), s.is_sde.resize(n * 5), s.x.resize(n * 2 * 24), s.x_next.resize(n * 2 * 24), s.log_prob.resize(n * 2);
    s.latents.resize(n * 24), s.picture.resize(n * 32 * 48 * 4, 9), s.status.resize(n);
    if (teacher) s.teacher_velocity.resize(n * 2 * 24);
    std::uint64_t stream = 0;
    for (auto* v : {&s.sigma, &s.x, &s.x_next, &s.log_prob, &s.latents, &s.teacher_velocity}) fill_normal(random_key(1, RandomUse::test, ++stream), *v);
    if (!teacher) {
        s.reward["alignment"] = {std::vector<float>(n, 3.5f), std::vector<float>(n, 0.25f), std::vector<std::uint8_t>(n, 1), std::vector<std::string>(n, "grün, ja")};
        s.truth["alignment"] = {std::vector<float>(n, 2.5f), std::vector<float>(n, 0.0f), std::vector<std::uint8_t>(n, 1), std::vector<std::string>(n, "no")};
        s.total.assign(n, 1.0f);
        s.advantage.assign(n, -0.5f);
    }
    shard.shapes.push_back(s);
    return shard;
}

TEST_F(Files, ShardsComeBackAsTheyWere) {
    for (bool teacher : {false, true}) {
        const auto path = directory_ / "shard.h5";
        const auto shard = make_shard(6, teacher);
        write_trajectory(path, shard);
        const auto back = read_trajectory(path, "config");
        EXPECT_EQ(back.header.eta, 0.7);
        EXPECT_EQ(back.prompts.text, shard.prompts.text);
        EXPECT_EQ(back.prompts.images[0].rgba, shard.prompts.images[0].rgba);
        const auto &a = back.shapes.at(0), &b = shard.shapes[0];
        EXPECT_EQ(a.x, b.x);
        EXPECT_EQ(a.x_next, b.x_next);
        EXPECT_EQ(a.log_prob, b.log_prob);
        EXPECT_EQ(a.noise_key, b.noise_key);
        EXPECT_EQ(a.picture, b.picture);
        EXPECT_EQ(a.teacher_velocity, b.teacher_velocity);
        EXPECT_EQ(a.reward.size(), b.reward.size());
        if (!teacher) {
            EXPECT_EQ(a.reward.at("alignment").reason, b.reward.at("alignment").reason);
            EXPECT_EQ(a.truth.at("alignment").score, b.truth.at("alignment").score) << "apart from the reward";
            EXPECT_EQ(a.truth.at("alignment").reason, b.truth.at("alignment").reason);
        }
    }
}

TEST_F(Files, ShardsThatDoNotFitAreRefusedByName) {
    const auto path = directory_ / "shard.h5";
    write_trajectory(path, make_shard(4));
    EXPECT_THAT(refusal(ErrorKind::input, [&] { read_trajectory(path, "other"); }), HasSubstr("another configuration"));
    EXPECT_THAT(refusal(ErrorKind::input, [&] { read_trajectory(directory_ / "none.h5"); }), HasSubstr("is missing"));
    // Truncated at many lengths: never read as whole.
    const std::string bytes = text_of(path);
    for (int part = 0; part < 20; ++part) {
        std::ofstream(directory_ / "short.h5", std::ios::binary) << bytes.substr(0, bytes.size() * part / 20);
        EXPECT_NE(refusal(ErrorKind::input, [&] { read_trajectory(directory_ / "short.h5"); }), "(no error)") << part;
    }
    // Without one of its datasets, or with one of another shape.
    hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
    H5Ldelete(file, "/shape-2x3/log_prob", H5P_DEFAULT);
    H5Fclose(file);
    EXPECT_THAT(refusal(ErrorKind::input, [&] { read_trajectory(path); }), HasSubstr("/shape-2x3/log_prob is missing"));
    auto wrong = make_shard(4);
    wrong.shapes[0].log_prob.pop_back();
    EXPECT_THROW(write_trajectory(path, wrong), Error);
}

TEST_F(Files, FlippedBitsInTheDataAreSeen) {
    const auto path = directory_ / "shard.h5";
    const auto shard = make_shard(6);
    write_trajectory(path, shard);
    const std::string bytes = text_of(path);
    // A key that meets no damage on which HDF5 loses memory, as 9 does: it gives up what it took for a dataset whose layout it cannot read.
    Random random(random_key(10, RandomUse::test));
    int refused = 0, same = 0;
    for (int trial = 0; trial < 60; ++trial) {
        std::string broken = bytes;
        broken[random.below(broken.size())] ^= static_cast<char>(1 << random.below(8));
        std::ofstream(directory_ / "flip.h5", std::ios::binary) << broken;
        try {
            const auto back = read_trajectory(directory_ / "flip.h5");
            // Bits that hold no data (free space, time stamps) may flip unseen; numbers may not.
            EXPECT_EQ(back.shapes.at(0).x, shard.shapes[0].x);
            EXPECT_EQ(back.shapes.at(0).log_prob, shard.shapes[0].log_prob);
            EXPECT_EQ(back.shapes.at(0).picture, shard.shapes[0].picture);
            ++same;
        } catch (const Error&) {
            ++refused;
        }
    }
    EXPECT_GT(refused, 20);
}

TEST_F(Files, PublishedFilesAreWholeOrAbsent) {
    const auto path = directory_ / "a.txt";
    publish_text(path, "one");
    publish_text(path, "two");
    EXPECT_EQ(text_of(path), "two");
    EXPECT_THROW(publish_file(path, [](const fs::path& p) {
                     std::ofstream(p) << "half";
                     ATELIER_FAIL(ErrorKind::numeric, "broken");
                 }),
                 Error);
    EXPECT_EQ(text_of(path), "two");
    publish_directory(directory_ / "d", [](const fs::path& p) { std::ofstream(p / "x") << "1"; });
    publish_directory(directory_ / "d", [](const fs::path& p) { std::ofstream(p / "y") << "2"; });
    EXPECT_FALSE(fs::exists(directory_ / "d/x"));
    EXPECT_EQ(text_of(directory_ / "d/y"), "2");
    EXPECT_EQ(temporaries(), 0);
}

TEST_F(Files, AKilledWriterLeavesTheOldFileAndATemporaryToRemove) {
    const auto path = directory_ / "a.txt";
    publish_text(path, "old");
    const pid_t child = fork();
    if (child == 0) {
        publish_file(path, [](const fs::path& p) {
            std::ofstream(p) << "half";
            kill(getpid(), SIGKILL);
        });
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status));
    EXPECT_EQ(text_of(path), "old");
    EXPECT_EQ(temporaries(), 1);
    EXPECT_EQ(remove_temporaries(directory_), 1);
    EXPECT_EQ(temporaries(), 0);
}

// Where a directory could not be exchanged with its successor and the writer died between two renames.
TEST_F(Files, ADirectoryThatWasRenamedAwayComesBack) {
    publish_directory(directory_ / "d", [](const fs::path& p) { std::ofstream(p / "x") << "1"; });
    fs::rename(directory_ / "d", directory_ / ".tmp-displaced-d");
    EXPECT_EQ(remove_temporaries(directory_, "d"), 0);
    EXPECT_EQ(text_of(directory_ / "d/x"), "1");
    fs::copy(directory_ / "d", directory_ / ".tmp-displaced-d");
    EXPECT_EQ(remove_temporaries(directory_), 1);
    EXPECT_TRUE(fs::exists(directory_ / "d/x"));
}

TEST_F(Files, TextsAreReadWholeOrNotAtAll) {
    EXPECT_THAT(refusal(ErrorKind::input, [&] { read_text(directory_ / "none"); }), HasSubstr("none is missing"));
    EXPECT_THAT(refusal(ErrorKind::io, [&] { read_text(directory_); }), HasSubstr("cannot read"));
    // A directory in the file's place stands for a read that fails: records must not be taken for absent.
    fs::create_directory(directory_ / "metrics.jsonl");
    EXPECT_THAT(refusal(ErrorKind::io, [&] { put_metrics(directory_ / "metrics.jsonl", {{"stage", "x"}}); }), HasSubstr("metrics.jsonl"));
}

TEST_F(Files, TheSameNumbersMakeTheSameFile) {
    const std::vector<float> values(100, 2.0f);
    const auto write = [&](const char* name) {
        auto file = hdf5::File::create(directory_ / name);
        file.write("/a/b", Tensor::of(values.data(), {100}));
        file.write_strings("/a/c", std::vector<std::string>{"x", "y"});
        file.close();
    };
    write("one.h5");
    sleep(2);  // HDF5's time stamps count seconds
    write("two.h5");
    EXPECT_EQ(text_of(directory_ / "one.h5"), text_of(directory_ / "two.h5"));
}

// No small file system can be mounted everywhere tests run, so the limit on a file's size stands in for a full disk.
TEST_F(Files, AFullDiskPublishesNothing) {
    const auto path = directory_ / "shard.h5";
    publish_file(path, [](const fs::path& p) { write_trajectory(p, make_shard(2)); });
    const FileDigest before = digest_file(path);
    const pid_t child = fork();
    if (child == 0) {
        signal(SIGXFSZ, SIG_IGN);
        const rlimit limit{40000, 40000};
        setrlimit(RLIMIT_FSIZE, &limit);
        try {
            publish_file(path, [](const fs::path& p) { write_trajectory(p, make_shard(64)); });
        } catch (const Error& e) {
            _exit(e.exit_code());
        }
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_EQ(WEXITSTATUS(status), static_cast<int>(ErrorKind::io));
    EXPECT_EQ(digest_file(path), before);
    EXPECT_EQ(temporaries(), 0);
}

TEST_F(Files, ManifestIsCompleteOnlyWhileItsOutputsMatch) {
    EXPECT_FALSE(is_complete(directory_));
    publish_text(directory_ / "out.txt", "result");
    Manifest m;
    m.stage = "rollout";
    m.outputs["out.txt"] = {};
    m.facts["samples"] = 8;
    publish_manifest(directory_, m);
    EXPECT_TRUE(is_complete(directory_));
    EXPECT_EQ(read_manifest(directory_).facts["samples"], 8);
    std::ofstream(directory_ / "out.txt") << "changed";
    EXPECT_THAT(refusal(ErrorKind::input, [&] { is_complete(directory_); }), HasSubstr("does not match its manifest"));
    std::ofstream(directory_ / manifest_name) << R"({"schema": "atelier.manifest", "stage": 5})";
    EXPECT_THAT(refusal(ErrorKind::input, [&] { is_complete(directory_); }), HasSubstr("is damaged"));
}

TEST_F(Files, ASecondWriterIsRefusedAndADeadOneIsNot) {
    {
        const DirectoryLock lock(directory_);
        EXPECT_THAT(refusal(ErrorKind::busy, [&] { DirectoryLock second(directory_); }), HasSubstr("is being written by process"));
    }
    const pid_t child = fork();
    if (child == 0) {
        static const DirectoryLock held(directory_);
        kill(getpid(), SIGKILL);
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_NO_THROW(DirectoryLock again(directory_));
}

TEST_F(Files, UnwritableDirectoriesAreNamed) {
    EXPECT_THAT(refusal(ErrorKind::io, [] { make_directories("/proc/atelier/run"); }), HasSubstr("/proc/atelier/run"));
    EXPECT_THAT(refusal(ErrorKind::io, [] { hdf5::File::create("/proc/atelier.h5").close(); }), HasSubstr("/proc/atelier.h5"));
}

TEST_F(Files, AnIndexShowsAllShardsAsOne) {
    std::vector<std::string> names;
    std::vector<float> x;
    for (int i = 0; i < 3; ++i) {
        auto shard = make_shard(2 + 2 * i);
        for (float& value : shard.shapes[0].x) value += static_cast<float>(i);
        if (i == 1) shard.shapes[0].reward["extra"] = shard.shapes[0].reward["alignment"];
        names.push_back(fmt::format("shard-{:05}.h5", i));
        write_trajectory(directory_ / names.back(), shard);
        x.insert(x.end(), shard.shapes[0].x.begin(), shard.shapes[0].x.end());
    }
    publish_trajectory_index(directory_, names);
    const auto all = read_trajectory(directory_ / trajectory_index_name, "config");
    EXPECT_EQ(all.prompts.id.size(), 6u);
    EXPECT_EQ(all.prompts.images.at(2).prompt, 5u);
    EXPECT_EQ(all.prompts.images.at(2).rgba, std::vector<std::uint8_t>(24, 7));
    const TrajectorySamples& s = all.shapes.at(0);
    EXPECT_EQ(s.samples(), 12);
    EXPECT_EQ(s.x, x);
    EXPECT_EQ(s.prompt, (std::vector<std::uint32_t>{0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 4, 5}));
    EXPECT_EQ(s.reward.size(), 1u) << "a dimension that some shards lack is left out";
    EXPECT_EQ(s.reward.at("alignment").reason.at(11), "grün, ja");
    EXPECT_EQ(s.truth.at("alignment").reason.at(11), "no");

    auto other = make_shard(2);
    other.shapes[0].channels = 2;
    other.shapes[0].x.resize(other.shapes[0].x.size() / 2), other.shapes[0].x_next.resize(other.shapes[0].x_next.size() / 2);
    other.shapes[0].latents.resize(other.shapes[0].latents.size() / 2);
    write_trajectory(directory_ / names[1], other);
    EXPECT_THAT(refusal(ErrorKind::input, [&] { publish_trajectory_index(directory_, names); }), HasSubstr("shard-00001.h5"));
}

// HDF5 itself gives zeros for the part of a virtual dataset whose file it cannot open, or where there is no such dataset.
TEST_F(Files, AVirtualDatasetWithADamagedPartIsRefused) {
    const std::vector<std::string> parts{"a.h5", "b.h5"};
    const float values[] = {1, 2};
    const auto write = [&](const std::string& name, const std::function<void(hdf5::File&)>& fill) {
        auto file = hdf5::File::create(directory_ / name);
        fill(file);
        file.close();
    };
    for (const std::string& part : parts) write(part, [&](hdf5::File& file) { file.write("/values", Tensor::of(values, {2})); });
    write("all.h5", [&](hdf5::File& file) { file.write_virtual("/values", parts); });
    const auto read = [&] { return hdf5::File::open(directory_ / "all.h5").read<float>("/values", {4}); };
    EXPECT_EQ(read(), (std::vector<float>{1, 2, 1, 2}));

    write("b.h5", [](hdf5::File&) {});
    EXPECT_THAT(refusal(ErrorKind::input, read), HasSubstr("b.h5: dataset /values is missing"));
    fs::resize_file(directory_ / "a.h5", fs::file_size(directory_ / "a.h5") / 2);
    EXPECT_THAT(refusal(ErrorKind::input, read), HasSubstr("a.h5 is no complete HDF5 file"));
    fs::remove(directory_ / "a.h5");
    EXPECT_THAT(refusal(ErrorKind::input, read), HasSubstr("a.h5, which is missing"));
}

/// The samples of make_shard() on a grid of another shape.
TrajectorySamples on_shape(std::int64_t samples, std::int64_t height, std::int64_t width, std::uint64_t first_id) {
    TrajectorySamples s = make_shard(samples).shapes[0];
    s.height = height, s.width = width, s.picture_height = 16 * height, s.picture_width = 16 * width;
    const auto n = static_cast<std::size_t>(samples * height * width);
    for (auto* states : {&s.x, &s.x_next}) states->resize(n * 2 * 4);
    s.latents.resize(n * 4);
    s.picture.assign(n * 256 * 4, 9);
    std::uint64_t stream = 100 * static_cast<std::uint64_t>(height) + first_id;
    for (auto* v : {&s.x, &s.x_next, &s.latents}) fill_normal(random_key(1, RandomUse::test, ++stream), *v);
    for (std::uint64_t& id : s.sample_id) id = first_id++;
    return s;
}

TEST_F(Files, OneShardHoldsSeveralShapes) {
    auto shard = make_shard(2);
    shard.shapes = {on_shape(2, 6, 10, 0), on_shape(4, 10, 6, 2), on_shape(2, 8, 8, 6)};
    write_trajectory(directory_ / "shard.h5", shard);
    const auto back = read_trajectory(directory_ / "shard.h5", "config");
    ASSERT_EQ(back.shapes.size(), 3u);
    for (const TrajectorySamples& s : back.shapes) {
        const auto& was = *std::find_if(shard.shapes.begin(), shard.shapes.end(), [&](const TrajectorySamples& each) { return each.height == s.height; });
        EXPECT_EQ(s.width, was.width);
        EXPECT_EQ(s.sample_id, was.sample_id);
        EXPECT_EQ(s.x, was.x);
        EXPECT_EQ(s.latents, was.latents);
        EXPECT_EQ(s.picture_width, 16 * s.width);
    }
}

TEST_F(Files, AnIndexOfShardsOfDifferentShapes) {
    // Some shapes are in all shards, some in one; dimensions differ too.
    std::vector<std::string> names;
    std::map<std::pair<std::int64_t, std::int64_t>, std::vector<float>> x;
    std::map<std::pair<std::int64_t, std::int64_t>, std::vector<std::uint32_t>> prompts;
    for (std::uint32_t i = 0; i < 3; ++i) {
        auto shard = make_shard(2);
        shard.shapes = {on_shape(2, 6, 10, 10 * i)};
        if (i != 1) shard.shapes.push_back(on_shape(4, 10, 6, 10 * i + 2));
        if (i == 2) shard.shapes.push_back(on_shape(2, 8, 8, 10 * i + 6));
        for (TrajectorySamples& s : shard.shapes) {
            auto& all = x[{s.height, s.width}];
            all.insert(all.end(), s.x.begin(), s.x.end());
            for (const std::uint32_t p : s.prompt) prompts[{s.height, s.width}].push_back(2 * i + p);
        }
        names.push_back(fmt::format("shard-{:05}.h5", i));
        write_trajectory(directory_ / names.back(), shard);
    }
    publish_trajectory_index(directory_, names);
    const auto all = read_trajectory(directory_ / trajectory_index_name, "config");
    ASSERT_EQ(all.shapes.size(), 3u);
    for (const TrajectorySamples& s : all.shapes) {
        EXPECT_EQ(s.x, (x[{s.height, s.width}]));
        EXPECT_EQ(s.prompt, (prompts[{s.height, s.width}]));
    }
}

TEST_F(Files, ManyShardsGetAnIndexOfIndices) {
    std::vector<std::string> names;
    std::vector<float> x;
    std::vector<std::uint32_t> prompts;
    for (std::uint32_t i = 0; i < 5; ++i) {
        auto shard = make_shard(2);
        for (float& value : shard.shapes[0].x) value += static_cast<float>(i);
        shard.prompts.id[0] = fmt::format("p{}", i);
        if (i == 3) shard.prompts.images.clear();
        for (const std::uint32_t p : shard.shapes[0].prompt) prompts.push_back(2 * i + p);
        names.push_back(fmt::format("shard-{:05}.h5", i));
        write_trajectory(directory_ / names.back(), shard);
        x.insert(x.end(), shard.shapes[0].x.begin(), shard.shapes[0].x.end());
    }
    EXPECT_THAT(publish_trajectory_index(directory_, names, 3, 5),  // two shards of two samples each: a third would be six samples
                testing::ElementsAre("trajectories-00000.h5", "trajectories-00001.h5", "trajectories-00002.h5", "trajectories.h5"));
    const auto all = read_trajectory(directory_ / trajectory_index_name, "config"), one = read_trajectory(directory_ / "trajectories-00001.h5");
    EXPECT_THAT(all.prompts.id, testing::ElementsAre("p0", testing::_, "p1", testing::_, "p2", testing::_, "p3", testing::_, "p4", testing::_));
    EXPECT_EQ(all.prompts.images.at(3).prompt, 9u);
    EXPECT_EQ(all.prompts.images.at(3).rgba, std::vector<std::uint8_t>(24, 7));
    EXPECT_EQ(all.shapes.at(0).x, x);
    EXPECT_EQ(all.shapes.at(0).prompt, prompts);
    EXPECT_EQ(all.shapes.at(0).reward.at("alignment").reason.size(), 10u);
    EXPECT_EQ(one.shapes.at(0).prompt, (std::vector<std::uint32_t>(prompts.begin(), prompts.begin() + 4)));
    EXPECT_EQ(one.shapes.at(0).x, (std::vector<float>(x.begin() + static_cast<std::ptrdiff_t>(x.size() * 2 / 5), x.begin() + static_cast<std::ptrdiff_t>(x.size() * 4 / 5))));

    // As HDF5 itself reads it.
    const auto others = [&] {
        const hdf5::Handle file(H5Fopen((directory_ / trajectory_index_name).c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose),
            set(H5Dopen2(file.id(), "/shape-2x3/x", H5P_DEFAULT), H5Dclose);
        std::vector<float> values(x.size());
        EXPECT_GE(H5Dread(set.id(), H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), 0);
        return values;
    };
    EXPECT_EQ(others(), x);
    std::filesystem::remove(directory_ / names[3]);
    const auto without = others();
    const auto third = static_cast<std::ptrdiff_t>(x.size() * 3 / 5), fourth = static_cast<std::ptrdiff_t>(x.size() * 4 / 5);
    EXPECT_TRUE(std::equal(without.begin(), without.begin() + third, x.begin())) << "the rest is read";
    EXPECT_TRUE(std::all_of(without.begin() + third, without.begin() + fourth, [](float v) { return std::isnan(v); })) << "no number where there is none";
    EXPECT_THAT(refusal(ErrorKind::input, [&] { read_trajectory(directory_ / trajectory_index_name); }), HasSubstr("shard-00003.h5, which is missing"));
}

TEST_F(Files, WhatAnIndexRefersToStaysInsideToo) {
    const std::string outside = (directory_ / "outside.h5").string();
    const fs::path inside = directory_ / "run";
    fs::create_directory(inside);
    {
        auto file = hdf5::File::create(outside);
        const std::vector<float> secret{1, 2};
        file.write("/x", Tensor::of(secret.data(), {2}));
        file.close();
    }
    const auto make = [&](const char* name, const std::function<void(hid_t)>& put) {
        const hdf5::Handle file(H5Fcreate((inside / name).c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose);
        put(file.id());
    };
    const auto map = [](hid_t file, const char* source, const char* dataset) {
        const hsize_t two = 2;
        const hdf5::Handle space(H5Screate_simple(1, &two, nullptr), H5Sclose), creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
        H5Pset_virtual(creation.id(), space.id(), source, dataset, space.id());
        const hdf5::Handle set(H5Dcreate2(file, "x", H5T_IEEE_F32LE, space.id(), H5P_DEFAULT, creation.id(), H5P_DEFAULT), H5Dclose);
    };
    make("leads-out.h5", [&](hid_t file) { map(file, outside.c_str(), "/x"); });
    make("links-out.h5", [&](hid_t file) { H5Lcreate_external(outside.c_str(), "/x", file, "x", H5P_DEFAULT, H5P_DEFAULT); });
    make("maps.h5", [&](hid_t file) { map(file, "leads-out.h5", "/x"); });
    make("links.h5", [&](hid_t file) { H5Lcreate_external("links-out.h5", "/x", file, "x", H5P_DEFAULT, H5P_DEFAULT); });
    make("maps-itself.h5", [&](hid_t file) { map(file, "maps-itself.h5", "/x"); });
    for (const char* name : {"leads-out.h5", "links-out.h5", "maps.h5", "links.h5", "maps-itself.h5"}) {
        const auto file = hdf5::File::open(inside / name);
        EXPECT_NE(refusal(ErrorKind::input, [&] { (void)file.read<float>("/x", {2}); }), "(no error)") << name;
    }
}

TEST_F(Files, ElementsThatOnlyFitModulo64BitsAreRefused) {
    const fs::path path = directory_ / "wide.h5";
    for (const std::vector<hsize_t>& extents : {std::vector<hsize_t>{16, hsize_t{1} << 60}, {0, 16, hsize_t{1} << 60}, {hsize_t{1} << 61}}) {
        {
            const hdf5::Handle file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose);
            const int rank = static_cast<int>(extents.size());
            const std::vector<hsize_t> chunk(extents.size(), 1), growing(extents.size(), H5S_UNLIMITED);
            const hdf5::Handle space(H5Screate_simple(rank, extents.data(), growing.data()), H5Sclose), creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
            H5Pset_chunk(creation.id(), rank, chunk.data());
            const hdf5::Handle set(H5Dcreate2(file.id(), "x", H5T_IEEE_F32LE, space.id(), H5P_DEFAULT, creation.id(), H5P_DEFAULT), H5Dclose);
            ASSERT_TRUE(set.valid());
        }
        const auto file = hdf5::File::open(path);
        EXPECT_THAT(refusal(ErrorKind::input, [&] { (void)file.extents("/x"); }), HasSubstr("larger than any file"));
    }
}

TEST_F(Files, RowsAreWrittenPieceByPiece) {
    const auto path = directory_ / "rows.h5";
    std::vector<float> values(3 * 700'000);
    fill_normal(random_key(1, RandomUse::test), values);
    const Shape shape{700'000, 3};
    EXPECT_EQ(hdf5::File::chunk_rows(DType::f32, shape), (1 << 20) / 12);
    {
        auto file = hdf5::File::create(path);
        file.make_dataset("/group/values", DType::f32, shape);
        for (std::int64_t first = 0; first < 700'000; first += 123'457) {
            const std::int64_t count = std::min<std::int64_t>(123'457, 700'000 - first);
            file.write_rows("/group/values", first, Tensor::of(values.data() + 3 * first, {count, 3}));
        }
        file.close();
    }
    const auto file = hdf5::File::open(path);
    EXPECT_EQ(file.read<float>("/group/values", {700'000, 3}), values);
    EXPECT_EQ(file.read_rows<float>("/group/values", 123'450, 20), (std::vector<float>(values.begin() + 3 * 123'450, values.begin() + 3 * 123'470)));
}

TEST_F(Files, ChecksumsAreHdf5sOwn) {
    // Of HDF5's documented algorithm, word by word.
    const auto reference = [](const std::vector<std::uint8_t>& bytes) {
        std::uint32_t sum = 0, sums = 0;
        for (std::size_t i = 0; i < bytes.size(); i += 2) {
            sum += static_cast<std::uint32_t>(bytes[i] << 8 | (i + 1 < bytes.size() ? bytes[i + 1] : 0));
            sum = (sum & 0xffff) + (sum >> 16);
            sums += sum;
            sums = (sums & 0xffff) + (sums >> 16);
        }
        return sums << 16 | sum;
    };
    Random random(random_key(1, RandomUse::test));
    for (const std::size_t size : {0, 1, 2, 3, 511, 512, 513, 4096, 8191, 8192, 8193, 100'001})
        for (const int kind : {0, 1, 2}) {
            std::vector<std::uint8_t> bytes(size);
            for (auto& b : bytes) b = kind == 0 ? 0 : kind == 1 ? 255 : static_cast<std::uint8_t>(random.next_u32());
            Fletcher32 whole;
            whole.update(bytes.data(), size);
            EXPECT_EQ(whole.value(), reference(bytes)) << size << " " << kind;
            for (const std::size_t piece : {1000, 20'000}) {
                Fletcher32 parts;
                for (std::size_t at = 0; at < size; at += piece) parts.update(bytes.data() + at, std::min(piece, size - at));
                EXPECT_EQ(parts.value(), whole.value()) << size << " " << kind << " " << piece;
            }
        }
    // HDF5's own filter accepts them.
    std::vector<float> values(1'000'003);
    fill_normal(random_key(2, RandomUse::test), values);
    {
        auto file = hdf5::File::create(directory_ / "sums.h5");
        file.write("/x", Tensor::of(values.data(), {1'000'003}));
        file.close();
    }
    {
        const hdf5::Handle file(H5Fopen((directory_ / "sums.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose), set(H5Dopen2(file.id(), "/x", H5P_DEFAULT), H5Dclose);
        std::vector<float> found(values.size());
        ASSERT_GE(H5Dread(set.id(), H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, found.data()), 0);
        EXPECT_EQ(found, values);
    }
    EXPECT_EQ(hdf5::File::open(directory_ / "sums.h5").read<float>("/x", {-1}), values);
}

TEST_F(Files, RowsThatBeginAndEndWithinChunks) {
    // Chunks of many rows, of a few, of one; the last one may not be full.
    for (const std::int64_t per_row : {1, 3, 40'001, 300'000}) {
        const auto path = directory_ / "rows.h5";
        const std::int64_t chunk = std::max<std::int64_t>((1 << 20) / (per_row * 4), 1);
        for (const std::int64_t rows : {2 * chunk, 2 * chunk + 1, chunk + chunk / 2 + 1}) {
            std::vector<float> values(static_cast<std::size_t>(rows * per_row));
            for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
            auto made = hdf5::File::create(path);
            made.write("/x", Tensor::of(values.data(), {rows, per_row}));
            made.close();
            ASSERT_EQ(hdf5::File::chunk_rows(DType::f32, {rows, per_row}), chunk);
            const auto file = hdf5::File::open(path);
            const auto all = file.rows<float>("/x");
            for (const std::int64_t first : {std::int64_t{0}, std::int64_t{1}, chunk - 1, chunk + 1})
                for (const std::int64_t end : {first, first + 1, chunk, chunk + 1, 2 * chunk - 1, 2 * chunk, rows - 1, rows}) {
                    if (first > end || end > rows) continue;
                    const std::vector<float> expected(values.begin() + first * per_row, values.begin() + end * per_row);
                    EXPECT_TRUE(all.read(first, end - first) == expected) << per_row << " " << rows << ": " << first << " to " << end;
                }
            EXPECT_THAT(refusal(ErrorKind::input, [&] { (void)all.read(rows - 1, 2); }), HasSubstr(fmt::format("of /x with {} rows", rows)));
        }
    }
}

TEST_F(Files, ChecksumsOfChunksThatAreReadInPartAreCompared) {
    const auto path = directory_ / "rows.h5";
    const std::int64_t chunk = (1 << 20) / 4, rows = 3 * chunk;
    std::vector<float> values(static_cast<std::size_t>(rows));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
    auto made = hdf5::File::create(path);
    made.write("/x", Tensor::of(values.data(), {rows}));
    made.close();
    // A flipped bit in one number: every read that touches its chunk sees it, whichever of the chunk's rows are asked for.
    const std::int64_t damaged = chunk + 7;
    std::string bytes = text_of(path);
    const std::string number(reinterpret_cast<const char*>(values.data() + damaged), 8);
    const std::size_t at = bytes.find(number);
    ASSERT_NE(at, std::string::npos);
    bytes[at] = static_cast<char>(bytes[at] ^ 1);
    std::ofstream(path, std::ios::binary) << bytes;
    const auto file = hdf5::File::open(path);
    const std::vector<std::pair<std::int64_t, std::int64_t>> touching{{0, chunk + 1}, {chunk - 1, chunk + 1}, {chunk + 100, chunk + 200}, {chunk + 100, rows}, {1, rows}};
    for (const auto& range : touching)
        EXPECT_THAT(refusal(ErrorKind::input, [&] { (void)file.read_rows<float>("/x", range.first, range.second - range.first); }),
                    HasSubstr("its checksum does not fit"))
            << range.first << " to " << range.second;
    EXPECT_EQ(file.read_rows<float>("/x", 1, chunk - 1), std::vector<float>(values.begin() + 1, values.begin() + chunk));
    EXPECT_EQ(file.read_rows<float>("/x", 2 * chunk + 1, chunk - 1), std::vector<float>(values.begin() + 2 * chunk + 1, values.end()));
}

TEST_F(Files, AFileThatIsNotClosedLeavesNothing) {
    {
        auto file = hdf5::File::create(directory_ / "rows.h5");
        file.write("/x", Tensor::of(std::vector<float>(100, 1.0f).data(), {100}));
    }
    EXPECT_TRUE(fs::is_empty(directory_));
}

TEST_F(Files, TheDigestIsOfWhatWasPublished) {
    const FileDigest digest = publish_file(directory_ / "shard.h5", [&](const fs::path& temporary) { write_trajectory(temporary, make_shard(4)); });
    EXPECT_EQ(digest, digest_file(directory_ / "shard.h5"));
    // A manifest is JSON as the library writes it, also what is written without it.
    for (const std::size_t outputs : {0u, 1u, 3u}) {
        Manifest many;
        many.facts = {{"peak_resident_kib", {{"peak_resident_kib", 1}}}, {"text", "\n \"peak_resident_kib\":"}};
        for (std::size_t i = 0; i < outputs; ++i) many.outputs["a \"name\" " + std::to_string(i)] = {i, "hash"};
        publish_manifest(directory_, many);
        const std::string text = read_text(directory_ / manifest_name);
        EXPECT_EQ(nlohmann::json::parse(text).dump(1) + "\n", text);
        EXPECT_EQ(read_manifest(directory_).outputs, many.outputs);
        EXPECT_EQ(read_facts(directory_), many.facts);
    }
    // A manifest takes a digest that it is given, and sees what doesn't fit it.
    Manifest m;
    m.outputs["shard.h5"] = digest;
    publish_manifest(directory_, m);
    EXPECT_TRUE(is_complete(directory_));
    m.outputs["shard.h5"].hash = std::string(32, '0');
    publish_manifest(directory_, m);
    EXPECT_THAT(refusal(ErrorKind::input, [&] { is_complete(directory_); }), HasSubstr("does not match its manifest"));
}

TEST_F(Files, PartsOfAShard) {
    const auto path = directory_ / "shard.h5";
    const auto shard = make_shard(4, true);
    write_trajectory(path, shard);
    const auto scores = read_trajectory(path, "", TrajectoryParts::scores).shapes.at(0), training = read_trajectory(path, "", TrajectoryParts::training).shapes.at(0);
    EXPECT_TRUE(scores.x.empty() && scores.latents.empty() && scores.picture.empty());
    const auto heads = read_trajectory(path, "", TrajectoryParts::scores).prompts.images, references = read_trajectory(path, "", TrajectoryParts::scores_and_references).prompts.images;
    EXPECT_EQ(references, shard.prompts.images);
    ASSERT_EQ(heads.size(), references.size());
    EXPECT_TRUE(heads[0].rgba.empty());
    EXPECT_EQ(heads[0].prompt, references[0].prompt);
    EXPECT_EQ(heads[0].width, references[0].width);
    EXPECT_EQ(heads[0].height, references[0].height);
    EXPECT_EQ(scores.log_prob, shard.shapes[0].log_prob);
    EXPECT_EQ(training.teacher_velocity, shard.shapes[0].teacher_velocity);
    EXPECT_TRUE(training.picture.empty());
    const auto summary = read_trajectory(path, "", TrajectoryParts::summary).shapes.at(0);
    EXPECT_TRUE(summary.x.empty() && summary.x_next.empty() && summary.teacher_velocity.empty());
    EXPECT_EQ(summary.log_prob, shard.shapes[0].log_prob);
    EXPECT_EQ(summary.latents, shard.shapes[0].latents);
    EXPECT_EQ(summary.picture, shard.shapes[0].picture);
}

TEST_F(Files, APictureOfAnotherShapeIsRefusedWhateverIsRead) {
    const auto path = directory_ / "shard.h5";
    const std::vector<std::pair<std::vector<hsize_t>, std::string>> shapes{
        {{4}, "[4]"}, {{4, 2, 2}, "[4, 2, 2]"}, {{4, 2, 2, 3}, "[4, 2, 2, 3]"}, {{3, 2, 2, 4}, "[3, 2, 2, 4]"}, {{4, 1, 1, 1, 1, 1, 4}, "[4, 1, 1, 1, 1, 1, 4]"}};
    for (const auto& [dims, text] : shapes) {
        write_trajectory(path, make_shard(4));
        {
            const hdf5::Handle file(H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT), H5Fclose);
            const hdf5::Handle space(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr), H5Sclose);
            const char* name = "/shape-2x3/picture";
            H5Ldelete(file.id(), name, H5P_DEFAULT);
            const hdf5::Handle set(H5Dcreate2(file.id(), name, H5T_STD_U8LE, space.id(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Dclose);
            const std::vector<std::uint8_t> bytes(64);
            ASSERT_GE(H5Dwrite(set.id(), H5T_STD_U8LE, H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data()), 0);
        }
        for (const auto parts : {TrajectoryParts::all, TrajectoryParts::training, TrajectoryParts::summary, TrajectoryParts::scores_and_references, TrajectoryParts::scores})
            EXPECT_THAT(refusal(ErrorKind::input, [&] { read_trajectory(path, "", parts); }),
                        HasSubstr("dataset /shape-2x3/picture must have shape [4, any, any, 4], found " + text));
    }
}

TEST_F(Files, AnAttributeIsOneValue) {
    const fs::path path = directory_ / "many.h5";
    hdf5::File::create(path).close();
    {
        const hsize_t three = 3;
        const hdf5::Handle file(H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT), H5Fclose), space(H5Screate_simple(1, &three, nullptr), H5Sclose);
        const hdf5::Handle text(H5Tcopy(H5T_C_S1), H5Tclose);
        H5Tset_size(text.id(), H5T_VARIABLE);
        for (const auto& [name, type] : {std::pair("number", H5T_STD_I64LE), std::pair("text", text.id())})
            const hdf5::Handle attribute(H5Acreate2(file.id(), name, type, space.id(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
    }
    const auto file = hdf5::File::open(path);
    EXPECT_THAT(refusal(ErrorKind::input, [&] { (void)file.integer_attribute("/", "number"); }), HasSubstr("number of / is not one value"));
    EXPECT_THAT(refusal(ErrorKind::input, [&] { (void)file.number_attribute("/", "number"); }), HasSubstr("number of / is not one value"));
    EXPECT_THAT(refusal(ErrorKind::input, [&] { (void)file.text_attribute("/", "text"); }), HasSubstr("text of / is not one value"));
}

TEST_F(Files, MetricsOfAStageThatRanAgainReplaceTheirLine) {
    const auto path = directory_ / "metrics.jsonl";
    for (int loss : {1, 2, 3})
        for (int iteration : {1, 2}) put_metrics(path, {{"stage", "grpo"}, {"policy", "t2i"}, {"iteration", iteration}, {"loss", loss * iteration}});
    put_metrics(path, {{"stage", "grpo"}, {"policy", "edit"}, {"iteration", 1}, {"loss", 9}});
    std::ifstream in(path);
    std::vector<int> losses;
    for (std::string line; std::getline(in, line);) losses.push_back(nlohmann::json::parse(line)["loss"]);
    EXPECT_EQ(losses, (std::vector<int>{3, 6, 9}));
    std::ofstream(path, std::ios::app) << "not json\n";
    EXPECT_THAT(refusal(ErrorKind::input, [&] { put_metrics(path, {{"stage", "x"}}); }), HasSubstr("metrics.jsonl:4"));
}

TEST(Csv, WhatIsWrittenIsRead) {
    const CsvRows rows{{"id", "reason", "score"}, {"a", "two, \"red\"\r\nlines", "4.5"}, {"b", "", "x;y"}};
    EXPECT_EQ(parse_csv(to_csv(rows), "t"), rows);
    // As spreadsheets give it back: byte order mark, semicolons, other line ends, an empty last line.
    EXPECT_EQ(parse_csv("\xef\xbb\xbfid;score\n\"a;\"\"b\";4,5\n\n", "t"), (CsvRows{{"id", "score"}, {"a;\"b", "4,5"}}));
    EXPECT_EQ(parse_csv("a,b\rc,", "t"), (CsvRows{{"a", "b"}, {"c", ""}}));
    EXPECT_TRUE(parse_csv("", "t").empty());
    EXPECT_THROW(parse_csv("a,b\nc\n", "t"), Error);
    EXPECT_THROW(parse_csv("a,\"b\n", "t"), Error);
}

}  // namespace
}  // namespace atelier::io
