// What stages share: scores to advantages, curated prompts on disk, the jobs of a configuration.
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <set>
#include <sstream>

#include "core/json.hpp"
#include "io/csv.hpp"
#include "io/file_io.hpp"
#include "io/hdf5.hpp"
#include "io/image/png.hpp"
#include "io/manifest.hpp"
#include "io/metrics.hpp"
#include "io/trajectory.hpp"
#include "io/trajectory_index.hpp"
#include "model/processor/image_inputs.hpp"
#include "model/processor/resize.hpp"
#include "nn/lora_file.hpp"
#include "ops/cuda/open_device.hpp"
#include "stage/curate.hpp"
#include "stage/dag.hpp"
#include "stage/evaluate.hpp"
#include "stage/evaluation_report.hpp"
#include "stage/inspect.hpp"
#include "stage/label_sheet.hpp"
#include "stage/picture_sizes.hpp"
#include "stage/plan_checks.hpp"
#include "stage/rerun.hpp"
#include "stage/retention.hpp"
#include "stage/run_model.hpp"
#include "stage/run_report.hpp"
#include "stage/schema.hpp"
#include "stage/scorers.hpp"
#include "stage/scoring.hpp"
#include "stage/shard_writer.hpp"
#include "stage/trainer.hpp"
#include "stage/training_state.hpp"
#include "stage/truth_gap.hpp"

namespace {
bool hdf5_lacks_threads = false;
}
/// Stands before the library's: what it says, or that it is not safe for threads.
extern "C" herr_t H5is_library_threadsafe(hbool_t* safe) {
    static const auto library = reinterpret_cast<herr_t (*)(hbool_t*)>(dlsym(RTLD_NEXT, "H5is_library_threadsafe"));
    const herr_t status = library(safe);
    if (hdf5_lacks_threads) *safe = 0;
    return status;
}

namespace atelier::stage {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

io::TrajectorySamples group(std::map<std::string, std::vector<float>> scores) {  // NaN: absent
    io::TrajectorySamples s;
    const std::size_t n = scores.begin()->second.size();
    s.sample_id.resize(n);
    s.status.assign(n, 0);
    for (auto& [name, values] : scores) {
        io::RewardColumn& c = s.reward[name];
        for (const float v : values) c.present.push_back(std::isnan(v) ? 0 : 1);
        c.score = values;
    }
    return s;
}

const std::vector<std::string> tiers{"alignment", "aesthetics", "portrait"};
const float absent = std::nanf("");

TEST(Scores, TiersAreGatedAndAbsentDimensionsLeftOut) {
    const auto s =
        group({{"alignment", {2, 4}}, {"aesthetics", {5, 5}}, {"portrait", {absent, absent}}});
    const auto open = gated_scores(s, tiers, 0), gated = gated_scores(s, tiers, 3, {{"alignment", 0}, {"aesthetics", 1}, {"portrait", 2}});
    EXPECT_THAT(open.dimensions, ElementsAre("alignment", "aesthetics"));
    EXPECT_THAT(open.scores, ElementsAre(2, 5, 4, 5));
    EXPECT_THAT(gated.scores, ElementsAre(2, 2, 4, 5))
        << "a picture that shows something else earns nothing by being pretty";
}

TEST(Scores, DimensionsOfOneTierDoNotGateEachOther) {
    const std::vector<std::string> names{"alignment", "aesthetics", "light", "portrait"};
    const auto s = group({{"alignment", {4, 4}}, {"aesthetics", {2, 4}}, {"light", {5, 1}}, {"portrait", {5, 5}}});
    EXPECT_THAT(gated_scores(s, names, 3, {{"alignment", 0}, {"aesthetics", 1}, {"light", 1}, {"portrait", 2}}).scores,
                ElementsAre(4, 2, 5, 2, 4, 4, 1, 1));
    EXPECT_THAT(gated_scores(s, names, 3, {{"alignment", 0}, {"aesthetics", 1}, {"light", 2}, {"portrait", 3}}).scores,
                ElementsAre(4, 2, 2, 2, 4, 4, 1, 1));
}

TEST(TruthGap, IsTakenWhereBothHaveAScore) {
    auto s = group({{"alignment", {4, 5, 2}}, {"aesthetics", {3, absent, 3}}, {"style", {1, 1, 1}}});
    s.truth = group({{"alignment", {3, 5, absent}}, {"aesthetics", {1, 2, 3.5f}}, {"portrait", {2, 2, 2}}}).reward;
    const auto [truth, gap] = compare_with_truth(s);
    EXPECT_THAT(truth.at("alignment"), ElementsAre(3, 5));
    EXPECT_THAT(truth.at("portrait"), ElementsAre(2, 2, 2)) << "what the judge isn't asked is told all the same";
    EXPECT_EQ(gap.size(), 3u);
    EXPECT_THAT(gap.at("alignment"), ElementsAre(1, 0));
    EXPECT_THAT(gap.at("aesthetics"), ElementsAre(2, -0.5));
    EXPECT_THAT(gap.at("all"), ElementsAre(1.5, 0, -0.5));
    s.truth.clear();
    EXPECT_TRUE(compare_with_truth(s).second.empty());
    s.truth["alignment"] = s.reward.at("alignment");
    s.truth["alignment"].score[0] = absent;
    EXPECT_THROW(compare_with_truth(s), Error);
}

TEST(Advantages, WeighDimensionsAndHearNothingOfThoseWithoutSpread) {
    auto s = group({{"alignment", {1, 2, 3, 4}}, {"aesthetics", {4.0f, 4.01f, 4.02f, 4.0f}}});
    set_advantages(gated_scores(s, tiers, 0), {{"alignment", 1.0}, {"aesthetics", 3.0}}, 0.1, s);
    EXPECT_FLOAT_EQ(s.total[0], (1 + 3 * 4.0f) / 4);
    const float unit = 1.0f / std::sqrt(1.25f);
    for (int i = 0; i < 4; ++i)  // a quarter of the weights speaks
        EXPECT_NEAR(s.advantage[static_cast<std::size_t>(i)], (static_cast<float>(i) - 1.5f) * unit / 4, 1e-3);
}

TEST(Advantages, AGroupWithoutSpreadIsDropped) {
    auto s = group({{"alignment", {3, 3, 3}}});
    set_advantages(gated_scores(s, tiers, 0), {}, 0.1, s);
    EXPECT_THAT(s.status, ElementsAre(2, 2, 2));
    EXPECT_THAT(s.advantage, ElementsAre(0, 0, 0));
}

TEST(Advantages, ASampleWithoutScoresHasNoTotalAndNoAdvantage) {
    auto s = group({{"alignment", {1, absent, 5}}});
    s.status[1] = static_cast<std::uint8_t>(io::SampleStatus::reward_absent);
    set_advantages(gated_scores(s, tiers, 0), {}, 0.1, s);
    EXPECT_TRUE(std::isnan(s.total[1]));
    EXPECT_EQ(s.advantage[1], 0);
    EXPECT_THAT(s.status, ElementsAre(0, 1, 0));
}

class Run : public ::testing::Test {
  protected:
    void SetUp() override {
        directory_ = fs::temp_directory_path() /
                     fmt::format("atelier-stage-{}-{}", getpid(),
                                 ::testing::UnitTest::GetInstance()->current_test_info()->name());
        fs::create_directories(directory_);
    }
    void TearDown() override { fs::remove_all(directory_); }
    Context context(const std::vector<std::string>& set) {
        return {{directory_},
                config::Config::resolve(fs::path(ATELIER_SOURCE_DIR) / "configs/mini.toml", set,
                                        schema()),
                nullptr,
                "",
                1};
    }
    fs::path directory_;
};

nn::ParameterTable blocks_table() {
    nn::ParameterTable t;
    t.add({"stem", {40, 5}});
    for (int b = 0; b < 3; ++b) t.add({.name = fmt::format("block.{}", b), .shape = {7, 9}, .block = b});
    t.add({"head", {2, 3}});
    return t;
}

std::vector<float> list(const Numbers& n) { return {n.span().begin(), n.span().end()}; }

float moment(std::int64_t global) { return static_cast<float>(global) * 0.5f; }

/// One rank's state whose numbers say their place.
TrainingState state_of(const nn::Partition& partition, int rank) {
    TrainingState s;
    s.update = 12;
    for (auto* v : {&s.m, &s.v, &s.ema}) *v = Numbers(partition.shard_size());
    for (const auto& p : partition.pieces(rank))
        for (std::int64_t i = 0; i < p.count; ++i) {
            const std::int64_t at = p.local + i;
            s.m.data()[at] = moment(p.global + i), s.v.data()[at] = 2 * moment(p.global + i), s.ema.data()[at] = -moment(p.global + i);
        }
    return s;
}

TEST_F(Run, TrainingStateGoesFromAnyNumberOfRanksToAny) {
    const nn::ParameterTable table = blocks_table();
    const Context c = context({});
    for (const int writers : {1, 2, 5})
        for (const int readers : {1, 2, 3}) {
            const fs::path to = directory_ / fmt::format("{}-{}", writers, readers);
            fs::create_directories(to);
            const nn::Partition written(table, writers), read(table, readers);
            for (int rank = 0; rank < writers; ++rank) state_of(written, rank).save(to, written, rank, c);
            EXPECT_EQ(TrainingState::files(to).size(), static_cast<std::size_t>(writers));
            for (int rank = 0; rank < readers; ++rank) {
                const TrainingState s = TrainingState::load(to, read, rank), expected = state_of(read, rank);
                EXPECT_EQ(s.update, 12);
                EXPECT_EQ(list(s.m), list(expected.m));
                EXPECT_EQ(list(s.v), list(expected.v));
                EXPECT_EQ(list(s.ema), list(expected.ema));
                EXPECT_TRUE(s.master.empty());
            }
        }
}

TEST_F(Run, TrainingStateLargerThanAPieceComesBack) {
    nn::ParameterTable table;
    table.add({"large", {3, 1'500'001}});
    table.add({"small", {5}});
    const Context c = context({});
    const nn::Partition written(table, 2), read(table, 1);
    ASSERT_GT(table.flat_size() * static_cast<std::int64_t>(sizeof(float)), static_cast<std::int64_t>(TrainingState::piece_bytes));
    for (int rank = 0; rank < 2; ++rank) state_of(written, rank).save(directory_, written, rank, c);
    const TrainingState s = TrainingState::load(directory_, read, 0), expected = state_of(read, 0);
    EXPECT_EQ(list(s.m), list(expected.m));
    EXPECT_EQ(list(s.ema), list(expected.ema));
}

TEST_F(Run, TheMeanOfCheckpointsIsThatOfWholeModels) {
    nn::ParameterTable table = blocks_table();
    table.add({"longer than a piece", {5, 900'001}});
    std::vector<io::Safetensors> files;
    std::vector<float> expected(static_cast<std::size_t>(table.flat_size()));
    const float share = 1.0f / 3;
    for (int f = 0; f < 3; ++f) {
        Arena arena("weights", static_cast<std::size_t>(table.flat_size()) * sizeof(float) + 4096);
        const nn::ParameterStore store(table, arena);
        Random random(random_key(1, RandomUse::test, static_cast<std::uint64_t>(f)));
        for (std::int64_t i = 0; i < table.flat_size(); ++i) store.data()[i] = static_cast<float>(random.below(1000)) / 7 - 50;
        nn::StorageFormat format;
        format.shard_bytes = 1 << 30;
        format.dtypes.assign(static_cast<std::size_t>(table.size()), f == 0 ? DType::bf16 : DType::f32);
        const fs::path directory = directory_ / std::to_string(f);
        fs::create_directories(directory);
        nn::save_weights(store, directory, "weights", format);
        files.push_back(io::Safetensors::open(directory / "weights.safetensors"));
        nn::load_weights(store, files.back());
        for (std::size_t i = 0; i < expected.size(); ++i) expected[i] = (f == 0 ? 0.0f : expected[i]) + share * store.data()[i];
    }
    for (const int ranks : {1, 3}) {
        const nn::Partition partition(table, ranks);
        for (int rank = 0; rank < ranks; ++rank) {
            const Numbers shard(partition.shard_size());
            nn::load_mean(partition, rank, files, shard.tensor());
            for (const auto& p : partition.pieces(rank))
                for (std::int64_t i = 0; i < p.count; ++i)
                    ASSERT_EQ(shard.data()[p.local + i], expected[static_cast<std::size_t>(p.global + i)]) << ranks << " ranks, number " << p.global + i;
        }
    }
    EXPECT_EQ(nn::mean_bytes(nn::Partition(table, 1)), std::size_t{2} << 24) << "no more than two pieces, however large the model is";
}

io::TrajectoryShard small_shard(std::uint64_t id) {
    io::TrajectoryShard shard;
    io::TrajectoryPrompts& p = shard.prompts;
    p.id = p.text = p.negative = p.category = p.task = p.attributes = {"a"};
    io::TrajectorySamples s;
    s.height = s.width = 2, s.channels = 1, s.steps = 1, s.picture_height = s.picture_width = 32;
    s.sample_id = {id}, s.prompt = s.member = {0}, s.noise_key = {1, 2}, s.sigma = {1, 0}, s.is_sde = {0}, s.status = {0};
    s.latents.resize(4), s.picture.resize(32 * 32 * 4);
    shard.shapes.push_back(s);
    return shard;
}

TEST_F(Run, ShardsAreWrittenInOrderBesideTheWork) {
    ShardWriter writer;
    for (std::uint64_t i = 0; i < 9; ++i) writer.put(directory_ / fmt::format("shard-{}.h5", i), small_shard(i));
    writer.finish();
    ASSERT_EQ(writer.digests().size(), 9u);
    auto before = fs::file_time_type::min();
    for (std::uint64_t i = 0; i < 9; ++i) {
        const fs::path path = directory_ / fmt::format("shard-{}.h5", i);
        EXPECT_EQ(io::read_trajectory(path).shapes.at(0).sample_id.at(0), i);
        EXPECT_EQ(writer.digests().at(path.filename().string()), io::digest_file(path));
        EXPECT_GE(fs::last_write_time(path), before);
        before = fs::last_write_time(path);
    }
    const auto world = comm::make_self();
    EXPECT_EQ(gather_digests(*world, writer.digests()), writer.digests());
    EXPECT_GT(writer.seconds(), 0);
}

TEST_F(Run, AnHdf5WithoutThreadsWritesAtOnceAndTheLogSaysSoOnce) {
    hdf5_lacks_threads = true;
    ::testing::internal::CaptureStderr();
    for (std::uint64_t i = 0; i < 2; ++i) {
        ShardWriter writer;
        const fs::path path = directory_ / fmt::format("shard-{}.h5", i);
        writer.put(path, small_shard(i));
        EXPECT_TRUE(fs::exists(path));
        writer.finish();
        EXPECT_EQ(writer.digests().at(path.filename().string()), io::digest_file(path));
    }
    const std::string said = ::testing::internal::GetCapturedStderr();
    hdf5_lacks_threads = false;
    const std::string words = "not built for several threads";
    EXPECT_THAT(said, HasSubstr(words));
    EXPECT_EQ(said.find(words), said.rfind(words));
}

TEST_F(Run, AShardThatCannotBeWrittenIsSaidAndEndsTheWriting) {
    ShardWriter writer;
    const auto put_all = [&] {
        writer.put(directory_ / "none" / "shard-0.h5", small_shard(0));
        for (std::uint64_t i = 1; i < 9; ++i) writer.put(directory_ / fmt::format("shard-{}.h5", i), small_shard(i));
        writer.finish();
    };
    try {
        put_all();
        ADD_FAILURE() << "nothing was thrown";
    } catch (const Error& e) {
        EXPECT_EQ(e.kind(), ErrorKind::io);
        EXPECT_THAT(e.message(), HasSubstr("none"));
    }
    EXPECT_THROW(writer.finish(), Error) << "it stays failed";
    EXPECT_TRUE(writer.digests().empty());
    EXPECT_TRUE(fs::is_empty(directory_));
}

/// The first of two ranks, of which the other's gradients are zeros, or not finite.
class FirstOfTwo final : public comm::Communicator {
  public:
    bool other_is_finite = true;
    int rank() const override { return 0; }
    int size() const override { return 2; }
    void barrier() override {}
    void broadcast(std::span<std::byte>, int) override {}
    void sum(std::span<float>) override {}
    void sum(std::span<double> values) override {
        if (!other_is_finite) values[0] = NAN;
    }
    void gather_shares(std::span<const std::byte>, std::span<std::byte>) override {}
    void start_gather_shares(std::span<const std::byte>, std::span<std::byte>) override {}
    void finish_gather() override {}
    void sum_shares(std::span<const float> all, std::span<float> mine) override { std::copy_n(all.begin(), mine.size(), mine.begin()); }
    double max(double value) override { return value; }
    std::vector<std::vector<std::byte>> gather(std::span<const std::byte>) override { return {}; }
    std::unique_ptr<comm::Communicator> split(int) override { return nullptr; }
    std::unique_ptr<comm::Mailbox> mailbox() override { return nullptr; }
    void abort(int) override { std::abort(); }
};

TEST(Trainer, AGradientThatIsNotFiniteIsNamed) {
    const nn::ParameterTable table = blocks_table();
    const Numbers weights(table.flat_size());
    FirstOfTwo world;
    for (const int zero : {0, 1}) {
        Trainer trainer({nn::ParameterStore(table, weights.tensor()), nullptr, {}}, {}, {{}, 1, 0, {}, zero}, world);
        const auto why = [&] {
            try {
                trainer.step(1e-3);
            } catch (const Error& e) {
                EXPECT_EQ(e.kind(), ErrorKind::numeric);
                return e.message();
            }
            return std::string("(no error)");
        };
        for (const auto& [name, element] : {std::pair("stem", 3), std::pair("block.1", 5), std::pair("head", 0)}) {
            trainer.zero_gradients();
            trainer.gradients()[table.find(name)].f32()[element] = INFINITY;
            EXPECT_EQ(why(), fmt::format("the gradient of update 1 is not finite (element {} of {})", element, name));
        }
        trainer.zero_gradients();
        world.other_is_finite = zero == 0;
        EXPECT_EQ(why(), zero == 0 ? "(no error)" : "the gradient of update 1 is not finite (in another rank's shard)");
    }
}

TEST_F(Run, ASummaryIsKeptOfShardsWhoseStatesAreNotRead) {
    io::TrajectoryShard shard;
    shard.prompts.id = {"a"};
    for (auto* column : {&shard.prompts.text, &shard.prompts.negative, &shard.prompts.category, &shard.prompts.task}) *column = {"x"};
    shard.prompts.attributes = {"{}"};
    io::TrajectorySamples s;
    s.height = 1, s.width = 2, s.channels = 3, s.steps = 2, s.trained = 1, s.picture_height = 2, s.picture_width = 2;
    s.sample_id = {1, 2}, s.prompt = {0, 0}, s.member = {0, 1}, s.noise_key = {1, 2, 3, 4};
    s.sigma = {1, 0.5, 0, 1, 0.5, 0}, s.is_sde = {1, 0, 1, 0}, s.trained_step = {0, 0};
    s.x.assign(12, 1), s.x_next.assign(12, 2), s.teacher_velocity.assign(12, 5), s.log_prob = {-1, -2}, s.log_prob_guided = {-3, -4};
    s.latents.assign(12, 3), s.picture.assign(32, 4);
    s.reward["alignment"] = {{1, 2}, {0.5, 0.5}, {1, 1}, {"because", "therefore"}};
    s.total = {1, 2}, s.advantage = {-1, 1}, s.status = {0, 0};
    shard.shapes = {s};
    const fs::path rollout = directory_ / "rollout", path = rollout / "shard-00000.h5", expected = directory_ / "expected.h5";
    fs::create_directories(rollout);
    io::write_trajectory(path, shard);
    io::drop_states(shard.shapes[0]);
    io::write_trajectory(expected, shard);
    io::Manifest manifest;
    manifest.outputs[path.filename().string()] = {};
    for (const std::string& name : io::publish_trajectory_index(rollout, std::vector{path.filename().string()})) manifest.outputs[name] = {};
    io::publish_manifest(rollout, manifest);
    {
        const io::hdf5::Handle file(H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT), H5Fclose);
        for (const char* name : {"/shape-1x2/x", "/shape-1x2/x_next"}) ASSERT_GE(H5Ldelete(file.id(), name, H5P_DEFAULT), 0);
    }
    EXPECT_THROW(io::read_trajectory(path), Error);
    // Who gives up the states did not make the samples.
    nlohmann::json made = read_json(rollout / io::manifest_name);
    made["host"] = "elsewhere", made["world_size"] = 7, made["finished_utc"] = "2025-01-31T12:00:00Z";
    io::write_text(rollout / io::manifest_name, made.dump(1));
    retain(context({"storage.keep=all"}), rollout);
    EXPECT_FALSE(gave_up_trajectories(rollout));
    retain(context({"storage.keep=summary"}), rollout);
    EXPECT_TRUE(gave_up_trajectories(rollout));
    const io::Manifest kept = io::read_manifest(rollout);
    EXPECT_EQ(std::tie(kept.host, kept.world_size, kept.finished_utc), std::make_tuple("elsewhere", 7, "2025-01-31T12:00:00Z"));
    EXPECT_EQ(io::seconds_of(kept.finished_utc), 1738324800);
    EXPECT_THROW(io::seconds_of("2025-01-31 12:00"), Error);
    EXPECT_EQ(io::digest_file(path), io::digest_file(expected));
    EXPECT_TRUE(io::is_complete(rollout));
    EXPECT_EQ(io::read_trajectory(rollout / io::trajectory_index_name, {}, io::TrajectoryParts::summary).shapes.at(0).picture, s.picture);
    retain(context({"storage.keep=nothing"}), rollout);
    EXPECT_FALSE(fs::exists(path));
}

TEST_F(Run, TrainingStateWithAHoleIsRefused) {
    const nn::ParameterTable table = blocks_table();
    const Context c = context({});
    const nn::Partition two(table, 2), one(table, 1);
    const auto refusal = [&] {
        try {
            TrainingState::load(directory_, one, 0);
        } catch (const Error& e) {
            EXPECT_EQ(e.kind(), ErrorKind::input);
            return e.message();
        }
        return std::string("(no error)");
    };
    for (int rank = 0; rank < 2; ++rank) state_of(two, rank).save(directory_, two, rank, c);
    EXPECT_EQ(refusal(), "(no error)");
    fs::rename(directory_ / "training-00001-of-00002.h5", directory_ / "kept");
    EXPECT_THAT(refusal(), HasSubstr("training-00001-of-00002.h5 is missing: the training state was written by 2 ranks"));
    // Rank 0's numbers under rank 1's name: rank 1's are in none, rank 0's in two.
    fs::copy(directory_ / "training-00000-of-00002.h5", directory_ / "training-00001-of-00002.h5");
    EXPECT_THAT(refusal(), HasSubstr("are in two files"));
    fs::remove(directory_ / "training-00001-of-00002.h5");
    {
        // A file that holds nothing.
        auto file = io::hdf5::File::create(directory_ / "training-00001-of-00002.h5");
        file.set_attribute("/", "update", std::int64_t{12});
        file.set_attribute("/", "flat_size", table.flat_size());
        const std::vector<std::int64_t> none{0, 0};
        const std::vector<float> number{0};
        file.write("/piece", Tensor::of(none.data(), {1, 2}));
        for (const char* name : {"/m", "/v", "/ema"}) file.write(name, Tensor::of(number.data(), {1}));
        file.close();
    }
    EXPECT_THAT(refusal(), HasSubstr("the training state has a hole"));
    fs::remove(directory_ / "training-00001-of-00002.h5");
    fs::rename(directory_ / "kept", directory_ / "training-00001-of-00002.h5");
    nn::ParameterTable other = blocks_table();
    other.add({"more", {64}});
    const nn::Partition larger(other, 1);
    EXPECT_THROW(TrainingState::load(directory_, larger, 0), Error);
    fs::resize_file(directory_ / "training-00000-of-00002.h5", 1000);
    EXPECT_THAT(refusal(), HasSubstr("training-00000-of-00002.h5"));
}

TEST_F(Run, CuratedPromptsComeBackAsTheyWere) {
    Curated c;
    c.config_hash = "c", c.pool_hash = "p";
    c.number = {4, 7, 9};
    c.id = {"a", "b", "c"}, c.text = {"ein Stern", "", "x"},
    c.category = {"general", "portrait", "general"}, c.verdict = {"kept", "no_reward", "kept"};
    c.kept = {1, 0, 1};
    c.mean = {3, 0, 4}, c.range = {1, 0, 2};
    c.weights["general"] = {{"alignment", 0.75}, {"aesthetics", 0.25}};
    c.mean_std["general"] = {{"alignment", 1.5}, {"aesthetics", 0.5}};
    write_curated(directory_ / "t2i.h5", c);
    const Curated back = read_curated(directory_ / "t2i.h5");
    EXPECT_THAT(back.kept_numbers(), ElementsAre(4, 9));
    EXPECT_EQ(back.text, c.text);
    EXPECT_EQ(back.verdict, c.verdict);
    EXPECT_EQ(back.weights, c.weights);
    EXPECT_EQ(back.mean_std, c.mean_std);
}

TEST_F(Run, JobsComeAfterWhatTheyNeed) {
    const auto c = context({"grpo.iterations=3", "task.edit.iterations=2", "distill.rounds=2"});
    const auto jobs = pipeline_jobs(c);
    std::set<std::string> before, outputs;
    for (const Job& job : jobs) {
        for (const std::string& name : job.after)
            EXPECT_TRUE(before.contains(name)) << job.name << " comes before " << name;
        EXPECT_TRUE(before.insert(job.name).second) << job.name << " stands twice";
        EXPECT_TRUE(outputs.insert(job.output).second) << job.output << " is written twice";
    }
    // Two curations; 3 + 2 + 3 iterations of two jobs; two rounds of two dumps and a distillation;
    // the evaluation.
    EXPECT_EQ(jobs.size(), 2u + 16u + 6u + 1u);
    const auto find = [&](const std::string& name) {
        return *std::find_if(jobs.begin(), jobs.end(),
                             [&](const Job& j) { return j.name == name; });
    };
    EXPECT_THAT(find("rollout-t2i-0002").after, ElementsAre("grpo-t2i-0001"));
    EXPECT_THAT(find("rollout-mix-0001").after, ElementsAre("curate-edit", "curate-t2i"));
    EXPECT_THAT(find("teacher-dump-t2i-01").after, ElementsAre("grpo-edit-0002", "grpo-t2i-0003"));
    EXPECT_THAT(find("teacher-dump-t2i-02").after, ElementsAre("distill-01"));
    EXPECT_THAT(find("evaluate").after, ElementsAre("distill-02", "grpo-mix-0003"));
    EXPECT_THAT(to_dot(jobs), HasSubstr("\"distill-02\" -> \"evaluate\";"));
}

TEST_F(Run, PartsOfThePipelineCanBeLeftOut) {
    const auto names = [&](const std::vector<std::string>& set) {
        std::string all;
        for (const Job& job : pipeline_jobs(context(set))) all += job.name + " ";
        return all;
    };
    EXPECT_EQ(names({"grpo.iterations=1", "pipeline.teachers=false", "curate.enabled=false"}),
              "rollout-mix-0001 grpo-mix-0001 evaluate ");
    EXPECT_THROW(names({"pipeline.teachers=false", "pipeline.mix=false"}), Error);
}

std::string refusal(ErrorKind kind, const std::function<void()>& action) {
    try {
        action();
    } catch (const Error& e) {
        EXPECT_EQ(e.kind(), kind);
        return e.message();
    }
    return "(no error)";
}

TEST_F(Run, PinnedWeightsAreReadAndMistakesNamed) {
    const auto c = context({"task.t2i.weights=[\"general/alignment=2.5\"]"});
    EXPECT_EQ(pinned_weights(c, "t2i").at("general").at("alignment"), 2.5);
    for (const char* bad : {"general/alignment", "alignment=1", "general/alignment=-1", "general/alignment=x", "general/alignment=1abc",
                            "general/alignment=", "general/alignment=inf", "general/alignment=nan", "general/alignment=1e999"})
        EXPECT_THAT(refusal(ErrorKind::usage, [&] { pinned_weights(context({fmt::format("task.t2i.weights=[\"{}\"]", bad)}), "t2i"); }),
                    AllOf(HasSubstr("task.t2i.weights"), HasSubstr(bad)));
    EXPECT_THAT(refusal(ErrorKind::usage, [&] { asked_shares(context({R"(task.t2i.shares=["a/b=1", "a/b=2"])"}), "t2i"); }), HasSubstr("twice"));
}

TEST_F(Run, WeightsAndSharesNameWhatThereIs) {
    std::ofstream(directory_ / "p.jsonl") << R"({"id":"a","task":"t2i","category":"general","text":"x"})" << '\n'
                                          << R"({"id":"b","task":"t2i","category":"own","text":"x"})" << '\n';
    const auto check = [&](const std::string& set) {
        const Context c = context({"task.t2i.train=" + (directory_ / "p.jsonl").string(), set});
        return refusal(ErrorKind::usage, [&] { check_weights(c, "t2i"); });
    };
    EXPECT_EQ(check(R"(task.t2i.shares=["general/alignment=0", "own/portrait=2"])"), "(no error)");
    EXPECT_THAT(check(R"(task.t2i.weights=["general/alignement=1"])"),
                AllOf(HasSubstr("task.t2i.weights"), HasSubstr("general/alignement=1"), HasSubstr("alignment, aesthetics, portrait")));
    EXPECT_THAT(check(R"(task.t2i.shares=["owned/alignment=1"])"),
                AllOf(HasSubstr("task.t2i.shares"), HasSubstr("owned/alignment=1"), HasSubstr("general, own")));
    EXPECT_THAT(scored_dimensions(context({}).config, "edit"), ElementsAre("instruction", "identity"));
    EXPECT_THAT(scored_dimensions(context({"reward.scorer=http", "judge.templates=" ATELIER_SOURCE_DIR "/configs/judge"}).config, "t2i"),
                ElementsAre("alignment", "aesthetics", "portrait"));
}

TEST_F(Run, CurationWeighsEveryDimensionOfACategory) {
    std::ofstream out(directory_ / "p.jsonl");
    for (int i = 0; i < 2; ++i) out << R"({"id":"p)" << i << R"(","task":"t2i","category":"general","text":"x"})" << '\n';
    out.close();
    Context c = context({"task.t2i.train=" + (directory_ / "p.jsonl").string(), R"(task.t2i.shares=["general/aesthetics=0"])",
                         "reward.min_spread=0.3"});
    c.policy = "t2i";
    PoolScores scores{4, tiers, {}};
    for (int i = 0; i < 2; ++i) {  // no sample has a portrait; aesthetics alone tells members apart in the second
        auto s = group({{"alignment", i == 0 ? std::vector<float>{1, 2, 3, 4} : std::vector<float>{3, 3, 3, 3.2f}}, {"aesthetics", {5, 1, 5, 1}}});
        scores.add(gated_scores(s, tiers, 0));
    }
    nlohmann::json shares;
    const Curated curated = choose_prompts(c, PromptPool(directory_ / "p.jsonl", "t2i", "t2i"), scores, shares);
    const auto& weights = curated.weights.at("general");
    EXPECT_EQ(weights.at("aesthetics"), 0) << "no share was asked for";
    EXPECT_EQ(weights.at("alignment"), 1);
    EXPECT_EQ(weights.at("portrait"), 1) << "the mean of the others'";
    EXPECT_THAT(curated.verdict, ElementsAre("kept", "range_too_small"));
    EXPECT_FLOAT_EQ(curated.range[0], 3) << "alignment alone makes the total";
    auto s = group({{"alignment", {1, 2, 3, 4}}, {"aesthetics", {5, 1, 5, 1}}});
    set_advantages(gated_scores(s, tiers, 0), weights, 0.3, s);
    EXPECT_THAT(s.total, ElementsAre(1, 2, 3, 4));
    EXPECT_LT(s.advantage[0], s.advantage[1]);
}

Prompt numbered(std::uint64_t number, const std::string& task = "t2i") {
    Prompt p;
    p.number = number;
    p.id = fmt::format("{}-{}", task, number);
    p.task = task;
    return p;
}

std::string text_of(model::PictureSize size) { return fmt::format("{}x{}", size.height, size.width); }

TEST_F(Run, SizesAreDrawnByMeaning) {
    Context c = context({"task.t2i.sizes=[[128, 128], [96, 160], [160, 96]]"});
    std::map<std::string, int> counts;
    int changed = 0;
    for (std::uint64_t number = 0; number < 600; ++number) {
        c.policy = "t2i", c.iteration = 1;
        const auto size = picture_size(c, numbered(number));
        ++counts[text_of(size)];
        EXPECT_EQ(picture_size(c, numbered(number)), size);
        c.policy = "mix";  // whoever draws
        EXPECT_EQ(picture_size(c, numbered(number)), size);
        c.iteration = 2;
        changed += picture_size(c, numbered(number)) == size ? 0 : 1;
    }
    ASSERT_EQ(counts.size(), 3u);
    for (const auto& [size, count] : counts) EXPECT_NEAR(count, 200, 50) << size;
    EXPECT_NEAR(changed, 400, 50) << "each iteration draws anew";
    EXPECT_EQ(target_grid(c, numbered(0)).tokens() * 256, picture_size(c, numbered(0)).height * picture_size(c, numbered(0)).width);
}

TEST_F(Run, WhoSaysTheSizeOfAPicture) {
    io::write_png(directory_ / "wide.png", io::Image(200, 100, 3));
    io::write_png(directory_ / "square.png", io::Image(50, 50, 3));
    Prompt edit = numbered(3, "edit");
    edit.images = {directory_ / "square.png", directory_ / "wide.png"};
    EXPECT_EQ(text_of(picture_size(context({}), numbered(3))), "128x128");
    EXPECT_EQ(text_of(picture_size(context({"sampling.height=64"}), numbered(3))), "64x128");
    EXPECT_EQ(text_of(picture_size(context({"sampling.height=64"}), edit)), "96x192") << "the last picture's ratio, as diffusers does";
    EXPECT_EQ(text_of(picture_size(context({"task.edit.sizes=[[160, 96]]"}), edit)), "160x96");
    edit.size = model::PictureSize{.width = 64, .height = 32};
    EXPECT_EQ(text_of(picture_size(context({"task.edit.sizes=[[160, 96]]"}), edit)), "32x64");
    for (const char* bad : {"[[100, 128]]", "[[128, 128], [0, 32]]", "[[-32, 32]]"})
        EXPECT_THROW(configured_sizes(context({std::string("task.t2i.sizes=") + bad}).config, "t2i"), Error) << bad;
    EXPECT_THROW(configured_sizes(context({"sampling.width=100"}).config, "t2i"), Error);
    EXPECT_EQ(configured_sizes(context({}).config, "t2i").size(), 1u);

    std::ofstream(directory_ / "p.jsonl") << R"({"id":"a","task":"t2i","category":"general","text":"x","size":[96, 160]})" << '\n';
    EXPECT_EQ(text_of(*read_prompts(directory_ / "p.jsonl", "t2i", "t2i").at(0).size), "96x160");
    for (const char* bad : {"[96]", "[96, 100]", "\"96x160\"", "[96.0, 160]", "[0, 32]"}) {
        std::ofstream(directory_ / "p.jsonl") << R"({"id":"a","task":"t2i","category":"general","text":"x","size":)" << bad << "}\n";
        EXPECT_THROW(read_prompts(directory_ / "p.jsonl", "t2i", "t2i"), Error) << bad;
    }
}

TEST_F(Run, HasTheModelThatItBeganWith) {
    const fs::path model = directory_ / "model", weights = model / "vae" / "weights.safetensors";
    fs::create_directories(model / "vae");
    const auto put = [](const fs::path& file, const std::string& text) { std::ofstream(file) << text; };
    put(model / "model_index.json", "{}");
    put(weights, "abc");
    Context c = context({"run.model=" + model.string()});
    const auto world = comm::make_self();
    c.world = world.get();
    const auto refusal = [&] {
        try {
            require_same_model(c);
        } catch (const Error& e) {
            return std::string(e.what());
        }
        return std::string("none");
    };
    EXPECT_EQ(refusal(), "none");
    const std::string recorded = io::read_text(directory_ / "model.json");
    put(model / "vae" / "README.md", "what no stage reads");
    EXPECT_EQ(refusal(), "none");
    EXPECT_EQ(io::read_text(directory_ / "model.json"), recorded);
    fs::last_write_time(weights, fs::last_write_time(weights) + std::chrono::hours(1));
    EXPECT_EQ(refusal(), "none") << "the same bytes, copied anew";
    EXPECT_NE(io::read_text(directory_ / "model.json"), recorded) << "not to be read again";
    put(weights, "abd");
    fs::last_write_time(weights, fs::last_write_time(weights) + std::chrono::hours(2));
    EXPECT_THAT(refusal(), AllOf(HasSubstr("vae/weights.safetensors"), HasSubstr("was changed")));
    put(weights, "abc");
    EXPECT_EQ(refusal(), "none");
    put(model / "vae" / "config.json", "{}");
    EXPECT_THAT(refusal(), AllOf(HasSubstr("vae/config.json"), HasSubstr("was added")));
    fs::remove(model / "vae" / "config.json");
    fs::remove(weights);
    EXPECT_THAT(refusal(), AllOf(HasSubstr("vae/weights.safetensors"), HasSubstr("is gone")));
}

TEST_F(Run, SizesStandTogetherAndNothingIsLost) {
    Context c = context({"task.t2i.sizes=[[128, 128], [96, 160], [160, 96], [64, 64]]"});
    const auto world = comm::make_self();
    c.world = world.get();
    std::vector<Prompt> prompts;
    for (std::uint64_t number = 0; number < 50; ++number) prompts.push_back(numbered(number));
    put_sizes_together(c, prompts);
    std::set<std::uint64_t> numbers;
    std::set<std::string> seen;
    for (std::size_t i = 0; i < prompts.size(); ++i) {
        numbers.insert(prompts[i].number);
        const auto grid = target_grid(c, prompts[i]);
        if (i == 0) continue;
        const auto before = target_grid(c, prompts[i - 1]);
        EXPECT_GE(before.tokens(), grid.tokens());
        if (text_of(picture_size(c, prompts[i])) == text_of(picture_size(c, prompts[i - 1])))
            EXPECT_LT(prompts[i - 1].number, prompts[i].number);
        else
            EXPECT_TRUE(seen.insert(text_of(picture_size(c, prompts[i]))).second) << "a size comes twice";
    }
    EXPECT_EQ(numbers.size(), 50u);
}

TEST_F(Run, TheScheduleFollowsTheSize) {
    flow::ScheduleConfig schedule;
    schedule.use_dynamic_shifting = true;
    rl::SamplingSpec spec;
    spec.schedule = flow::make_schedule(schedule, 8, 64);
    spec.trained_steps = {0, 1};
    const auto larger = on_grid(spec, schedule, {16, 16});
    EXPECT_EQ(larger.trained_steps, spec.trained_steps);
    EXPECT_EQ(larger.target.tokens(), 256);
    EXPECT_EQ(larger.schedule.steps(), 8);
    EXPECT_GT(larger.schedule.sigmas[4], spec.schedule.sigmas[4]);
    EXPECT_EQ(larger.schedule.sigmas, flow::make_schedule(schedule, 8, 256).sigmas);
}

TEST_F(Run, PromptsOfAnotherKindAreRefused) {
    std::ofstream(directory_ / "p.jsonl")
        << R"({"id":"a","task":"edit","category":"general","text":"x","images":["a.png"]})" << '\n';
    EXPECT_EQ(read_prompts(directory_ / "p.jsonl", "mine", "edit").at(0).task, "mine");
    EXPECT_THROW(read_prompts(directory_ / "p.jsonl", "t2i", "t2i"), Error);
    std::ofstream(directory_ / "q.jsonl")
        << R"({"id":"a","task":"edit","category":"a/b","text":"x","images":["a.png"]})" << '\n';
    EXPECT_THAT(refusal(ErrorKind::input, [&] { read_prompts(directory_ / "q.jsonl", "edit", "edit"); }), HasSubstr("a/b"));
    const auto line = [&](const std::string& id, const std::string& category, const std::string& text) {
        std::ofstream(directory_ / "p.jsonl") << fmt::format(R"({{"id":"{}","task":"t2i","category":"{}","text":"{}"}})", id, category, text) << '\n';
        return refusal(ErrorKind::input, [&] { read_prompts(directory_ / "p.jsonl", "t2i", "t2i"); });
    };
    EXPECT_EQ(line("a", "general", ""), "(no error)");
    EXPECT_THAT(line("", "general", "x"), HasSubstr("the id is empty"));
    EXPECT_THAT(line("a\\u0000b", "general", "x"), HasSubstr("'id' holds a NUL"));
    EXPECT_THAT(line("a", "general", "x\\u0000y"), HasSubstr("'text' holds a NUL"));
    for (const char* bad : {"", ".", "..", "a\\nb"}) EXPECT_THAT(line("a", bad, "x"), HasSubstr("cannot name a category")) << bad;
}

TEST_F(Run, APromptHasTheFieldsOfAPrompt) {
    const auto read = [&](const std::string& kind, const std::string& more) {
        std::ofstream(directory_ / "p.jsonl") << "\n" << R"({"id":"a","category":"general","text":"x","task":")" << kind << '"' << more << "}\n";
        return refusal(ErrorKind::input, [&] { read_prompts(directory_ / "p.jsonl", kind, kind); });
    };
    EXPECT_EQ(read("t2i", ""), "(no error)");
    EXPECT_EQ(read("t2i", R"(,"images":[],"attributes":{"a":1},"size":[32,32])"), "(no error)");
    EXPECT_EQ(read("edit", R"(,"images":["a.png"])"), "(no error)");
    EXPECT_THAT(read("edit", R"(,"image":["a.png"])"), AllOf(HasSubstr("p.jsonl:2"), HasSubstr("unknown field \"image\""), HasSubstr("images")));
    EXPECT_THAT(read("t2i", R"(,"images":null)"), AllOf(HasSubstr("p.jsonl:2"), HasSubstr("\"images\" must be a list")));
    EXPECT_THAT(read("t2i", R"(,"attributes":null)"), HasSubstr("\"attributes\" must be an object"));
    for (const char* none : {"", R"(,"images":[])"})
        EXPECT_THAT(read("edit", none), AllOf(HasSubstr("p.jsonl:2"), HasSubstr("an edit without pictures")));
}

TEST_F(Run, APoolGivesThePromptsOfItsLines) {
    const fs::path file = directory_ / "p.jsonl";
    {
        std::ofstream out(file);
        for (int i = 0; i < 200; ++i)
            out << R"({"id":"p)" << i << R"(","task":"t2i","category":"general","text":"x)" << i << "\"}\n" << (i % 14 == 0 ? " \t\r\n" : i % 7 == 0 ? "\n" : "");
    }
    PromptPool pool(file, "t2i", "t2i");
    ASSERT_EQ(pool.size(), 200u);
    EXPECT_EQ(pool.at(7).text, "x7");
    EXPECT_EQ(pool.at(7).number, 7u);
    EXPECT_EQ(pool.find("p150"), std::optional<std::size_t>(150));
    EXPECT_FALSE(pool.find("p200"));
    const std::vector<std::uint64_t> wanted{150, 3, 7};
    pool.keep(wanted);
    ASSERT_EQ(pool.size(), 3u);
    EXPECT_EQ(pool.at(0).id, "p150");
    EXPECT_EQ(pool.at(0).number, 150u) << "what random keys are made from";
    EXPECT_EQ(pool.find("p7"), std::optional<std::size_t>(2));
    EXPECT_FALSE(pool.find("p8"));

    std::ofstream(file, std::ios::app) << R"({"id":"p5","task":"t2i","category":"general","text":"x"})" << '\n';
    try {
        PromptPool(file, "t2i", "t2i");
        FAIL();
    } catch (const Error& e) {  // 200 prompts and the 29 empty lines between them
        EXPECT_THAT(e.what(), testing::HasSubstr("p.jsonl:230: id 'p5' stands twice"));
    }
}

/// The message of the Error that it throws.
std::string refusal_of(const std::function<void()>& f, ErrorKind kind = ErrorKind::usage) {
    try {
        f();
    } catch (const Error& e) {
        EXPECT_EQ(e.kind(), kind) << e.message();
        return e.message();
    }
    return "(no error)";
}

TEST_F(Run, StagesAreMadeAgainWhereWhatTheyNeedIsThere) {
    const Context c = context({"grpo.iterations=3", "distill.rounds=2", "pipeline.mix=false"});
    const auto jobs = pipeline_jobs(c);
    const auto publish = [&](const fs::path& output, const nlohmann::json& facts) {
        fs::create_directories(directory_ / output);
        io::Manifest m;
        m.facts = facts;
        io::publish_manifest(directory_ / output, m);
    };
    const auto again = [&](const std::vector<std::string>& names) {
        std::vector<std::string> paths;
        for (const fs::path& path : outputs_made_again(c.run, jobs, names)) paths.push_back(path.string());
        return paths;
    };
    for (const Job& job : jobs) publish(job.output, nlohmann::json::object());
    // What comes after goes first, and with an output, complete or not, what was kept beside it.
    fs::create_directories(directory_ / "opd/round-02/updates");
    fs::remove(directory_ / "opd/round-02/student/manifest.json");
    EXPECT_THAT(again({"distill-02"}), ElementsAre("eval", "opd/round-02/student", "opd/round-02/updates"));
    fs::remove_all(directory_ / "opd/round-02/student");
    EXPECT_THAT(again({"distill-02"}), ElementsAre("eval", "opd/round-02/updates"));
    EXPECT_THAT(again({"evaluate"}), ElementsAre("eval"));
    EXPECT_EQ(again({"curate-t2i"}).size(), 1 + 6 + 2 + 1 + 2 + 1 + 1u) << "curation, three iterations, dumps, a student, dumps, updates, eval";
    EXPECT_THAT(refusal_of([&] { again({"rollout-t2i-0009"}); }), HasSubstr("no stage rollout-t2i-0009"));

    // As after storage.states = 1.
    for (const char* policy : {"t2i", "edit"})
        for (const char* iteration : {"1", "2"}) publish(fmt::format("{}/iter-000{}/policy", policy, iteration), {{"optimizer_state", "given up"}});
    publish("opd/round-01/student", {{"optimizer_state", "given up"}});
    publish("opd/round-02/student", nlohmann::json::object());
    EXPECT_THAT(refusal_of([&] { again({"rollout-t2i-0003"}); }),
                ::testing::AllOf(HasSubstr("grpo-t2i-0003 cannot be made again: t2i/iter-0002/policy has given up its optimizer's state (storage.states)"),
                                 ::testing::EndsWith("--from grpo-t2i-0001")));
    EXPECT_THAT(refusal_of([&] { again({"teacher-dump-edit-02"}); }), ::testing::EndsWith("--from distill-01"));
    EXPECT_THAT(again({"grpo-t2i-0001"}), ::testing::Contains("t2i/iter-0001/policy"));
    EXPECT_THAT(again({"distill-01"}), ElementsAre("eval", "opd/round-02/student", "opd/round-02/updates", "opd/round-02/teacher-t2i",
                                                   "opd/round-02/teacher-edit", "opd/round-01/student"));

    // With storage.keep = summary updates have nothing to train on either: both tasks' dumps, or a policy's rollout, are named.
    for (const Job& job : jobs)
        if (job.stage == "rollout" || job.stage == "teacher-dump") publish(job.output, {{"kept", "summary"}});
    EXPECT_THAT(refusal_of([&] { again({"distill-02"}); }),
                ::testing::AllOf(HasSubstr("has given up its trajectories (storage.keep)"), ::testing::EndsWith("--from teacher-dump-edit-01,teacher-dump-t2i-01")));
    EXPECT_THAT(refusal_of([&] { again({"grpo-edit-0002"}); }), ::testing::EndsWith("--from rollout-edit-0001"));
    EXPECT_EQ(again({"teacher-dump-t2i-01", "teacher-dump-edit-01"}).size(), 8u);
    EXPECT_THAT(again({"rollout-edit-0001"}), ::testing::Contains("edit/iter-0003/policy"));
}

TEST(Devices, EachRankOfAHostHasItsOwn) {
    using ops::cuda::device_of_rank;
    EXPECT_EQ(device_of_rank(3, 8), 3);
    EXPECT_EQ(device_of_rank(3, 1), 0) << "the launcher shows it its own";
    EXPECT_THAT(refusal_of([] { device_of_rank(8, 8); }), HasSubstr("rank 8 of its host (from 0), which shows 8 devices"));
}

TEST_F(Run, WhatEveryJobWouldRefuseIsRefusedWhenItIsPlanned) {
    const auto settings = [&](const std::string& set) { return refusal_of([&] { check_settings(context({set})); }); };
    for (const char* good : {"slurm.grpo.time=90", "slurm.grpo.time=01:30", "slurm.grpo.time=00:01:01", "slurm.grpo.time=2-0", "slurm.grpo.time=1-12:30:00",
                             "slurm.grpo.time=UNLIMITED", "slurm.grpo.time=\"0\"", "slurm.grpo.memory=64G", "slurm.grpo.memory=\"4000\"", "slurm.grpo.memory=64GB"})
        EXPECT_EQ(settings(good), "(no error)") << good;
    for (const char* bad : {"", "1:2:3:4", "4h", "1-", "-1", "1::2"})
        EXPECT_THAT(settings(fmt::format("slurm.grpo.time=\"{}\"", bad)), HasSubstr(fmt::format("slurm.grpo.time = \"{}\": minutes, ", bad)));
    for (const char* bad : {"", "G", "64 G", "64X", "1.5G"})
        EXPECT_THAT(settings(fmt::format("slurm.evaluate.memory=\"{}\"", bad)), HasSubstr(fmt::format("slurm.evaluate.memory = \"{}\": a number", bad)));
    EXPECT_THAT(settings("slurm.curate.time=00:01:00"), HasSubstr("more than slurm.stop_early = 60 seconds"));
    EXPECT_THAT(settings("slurm.launcher=\"\""), HasSubstr("slurm.launcher is empty"));
    EXPECT_EQ(refusal_of([&] { check_settings(context({"curate.mean_low=4", "curate.mean_high=2"})); }), "curate.mean_low = 4 is above curate.mean_high = 2");
    for (const char* bad : {"grpo.learning_rate=inf", "grpo.learning_rate=nan", "sampling.guidance_scale=inf"})
        EXPECT_THAT(settings(bad), HasSubstr("a finite number was expected")) << bad;
    EXPECT_THAT(settings("grpo.iterations=99999999999"), HasSubstr("must lie in"));
    for (const char* taken : {"failed", "eval", "logs", "opd", "prompts", "judge", "eval-x", "mix"}) {
        const std::string task = fmt::format("task.{}.", taken);
        const Context c = context({task + "kind=t2i", task + "train=a", task + "heldout=b"});
        EXPECT_THAT(refusal_of([&] { pipeline_jobs(c); }), HasSubstr(fmt::format("a task cannot be named {}", taken)));
    }
    EXPECT_THAT(settings("compute.dtype=bf16"), HasSubstr("checkpoint.dtype = bf16 (found f32)"));

    const auto files = [&](const std::vector<std::string>& set) { return refusal_of([&] { check_files(context(set)); }); };
    EXPECT_EQ(files({}), "(no error)");
    EXPECT_THAT(files({"rollout.micro_batch=3"}), HasSubstr("8 members (rollout.group_size) cannot be cut into micro-batches of 3 (rollout.micro_batch)"));
    EXPECT_THAT(files({"steps.count=9"}), HasSubstr("steps.count must lie in [1, 8] (steps with noise), found 9"));
    EXPECT_THAT(files({"steps.window_begin=7"}), HasSubstr("from step 7"));
    EXPECT_THAT(files({"grpo.ratio_norm=true"}), HasSubstr("grpo.ratio_norm needs the trained policy's own mean"));
    EXPECT_THAT(files({"grpo.ratio_norm=true", "sampling.guidance_train=guided", "sampling.log_prob=sum"}), HasSubstr("sampling.log_prob = mean"));
    EXPECT_THAT(files({"grpo.kl=gaussian"}), HasSubstr("grpo.kl_beta = 0: a weight above 0"));
    EXPECT_THAT(files({"distill.loss=kl", "distill.eta=0"}), HasSubstr("no step of the")) << "before teachers are trained";
    EXPECT_EQ(files({"distill.loss=kl", "distill.eta=0.5"}), "(no error)");
    EXPECT_THAT(files({"distill.sampler=cps", "distill.eta=1.2"}), HasSubstr("eta of cps"));
    EXPECT_EQ(files({"distill.sampler=cps", "distill.eta=1.2", "pipeline.teachers=false", "pipeline.mix=true"}), "(no error)") << "nobody distils";
    EXPECT_THAT(files({"rollout.prompts_per_iteration=100000"}), HasSubstr("100000 prompts of task"));
    EXPECT_THAT(files({"curate.prompts=3"}), HasSubstr("its pool has 3 at most"));
    EXPECT_EQ(files({"curate.prompts=3", "curate.enabled=false", "rollout.prompts_per_iteration=3"}), "(no error)") << "nothing is drawn to be curated";
    EXPECT_THAT(files({"grpo.kl_beta=0.1"}), HasSubstr("grpo.kl_beta = 0.1 with grpo.kl = none"));
    const auto missing = [&](const std::string& set) { return refusal_of([&] { check_files(context({set})); }, ErrorKind::input); };
    const fs::path pool = directory_ / "pool.jsonl";
    const auto with_line = [&](const std::string& line) {
        std::ofstream(pool) << line << '\n';
        return missing("task.edit.heldout=\"" + pool.string() + "\"");
    };
    const std::string edit = R"({"id":"a","task":"edit","category":"general","text":"x","images":["a.png"])";
    EXPECT_THAT(with_line(edit + "}"), AllOf(HasSubstr("pool.jsonl: prompt 'a': "), HasSubstr("a.png is missing")));
    std::ofstream(directory_ / "a.png") << "\xff\xd8\xff\xe0 a photograph, and long enough";
    EXPECT_THAT(with_line(edit + "}"), HasSubstr("a.png is no PNG"));
    io::write_png(directory_ / "a.png", io::Image(8, 8, 3));
    EXPECT_THAT(with_line(edit + "}"), AllOf(HasSubstr("pool.jsonl: prompt 'a': "), HasSubstr("scene"))) << "what the world's measures go by";
    EXPECT_THAT(with_line(edit + R"(,"size":[65536,64]})"), HasSubstr("32768 at most"));
    EXPECT_THAT(missing("task.edit.heldout=\"\""), HasSubstr("task.edit.heldout = \"\": a file of prompts"));
    EXPECT_THAT(missing("task.t2i.train=none.jsonl"), HasSubstr("/none.jsonl\": a file of prompts"));
    EXPECT_THAT(missing("run.model=none"), HasSubstr("/none\": a diffusers model directory"));
    // Configuration files are no weights.
    const fs::path model = directory_ / "model";
    fs::copy(fs::path(ATELIER_SOURCE_DIR) / "assets/mini/base", model, fs::copy_options::recursive);
    fs::remove(model / "vae/diffusion_pytorch_model.safetensors");
    EXPECT_THAT(missing("run.model=" + model.string()), HasSubstr("vae holds neither diffusion_pytorch_model.safetensors nor"));

    const auto jobs = [&](const std::string& set) { return refusal_of([&] { pipeline_jobs(context({set})); }); };
    EXPECT_THAT(jobs("slurm.options=[\"--qos\", \"low\"]"), HasSubstr("slurm.options has \"low\": an option of sbatch with its value"));
    EXPECT_THAT(jobs("slurm.grpo.options=exclusive"), HasSubstr("slurm.grpo.options has \"exclusive\""));
    EXPECT_THAT(jobs("slurm.grpo.partition=\"a\\tb\""), HasSubstr("slurm.grpo.partition = "));
    EXPECT_THAT(jobs("slurm.setup=\"module load a\\nmodule load b\""), HasSubstr("one line without tabs"));
    const std::string settings_of_jobs =
        slurm_settings(context({"slurm.partition=gpu", "slurm.options=--qos=low", "slurm.evaluate.partition=cpu", "slurm.evaluate.options=--mem-bind=none",
                                "slurm.setup=\"module load openmpi && ulimit -l unlimited\""}).config);
    EXPECT_THAT(settings_of_jobs, HasSubstr("\npartition\tgpu\n"));
    EXPECT_THAT(settings_of_jobs, HasSubstr("\nsetup\tmodule load openmpi && ulimit -l unlimited\n"));
    EXPECT_THAT(settings_of_jobs, ::testing::EndsWith("\noption\t--qos=low\noption.evaluate\t--partition=cpu\noption.evaluate\t--mem-bind=none\n"));

    const auto resources = [&](const std::vector<std::string>& set) {
        const Context c = context(set);
        return refusal_of([&] { check_resources(c, pipeline_jobs(c)); });
    };
    const std::string cuda = "compute.device=cuda";
    EXPECT_EQ(resources({}), "(no error)");
    EXPECT_THAT(resources({"slurm.grpo.nodes=2"}), HasSubstr("slurm.grpo.nodes = 2: at most slurm.grpo.ranks = 1"));
    EXPECT_THAT(resources({"reward.ranks=1"}), HasSubstr("slurm.curate.ranks = 1: more than reward.ranks = 1"));
    EXPECT_THAT(resources({cuda}), HasSubstr("slurm.curate.gpus_per_node = 0: at least 1"));
    EXPECT_EQ(resources({cuda, "slurm.options=--gres=gpu:8"}), "(no error)");
    EXPECT_NE(resources({cuda, "slurm.grpo.options=--gres=gpu:8"}), "(no error)") << "of one stage alone";
    std::vector<std::string> set{cuda};
    for (const char* stage : stages_with_resources) {
        set.push_back(fmt::format("slurm.{}.gpus_per_node=1", stage));
        set.push_back(fmt::format("slurm.{}.nodes=1", stage));
    }
    EXPECT_THAT(resources(set), HasSubstr("slurm.distill.gpus_per_node = 1: at least 2 was expected"));
    set.push_back("slurm.distill.gpus_per_node=2");
    EXPECT_THAT(resources(set), HasSubstr("slurm.evaluate.gpus_per_node = 1: at least 2 was expected"));
    set.insert(set.end(), {"reward.ranks=1", "slurm.curate.ranks=2", "slurm.rollout.ranks=2"});
    EXPECT_EQ(resources(set), "(no error)") << "a judge that measures needs no GPU";
}

TEST_F(Run, ExperimentsDifferFromTheMiniatureInWhatTheySay) {
    const auto mini = context({"pipeline.mix=false"}).config;
    for (const char* guidance : {"conditional", "guided", "none"}) {
        const auto file = fs::path(ATELIER_SOURCE_DIR) / "configs/experiments" / fmt::format("guidance-{}.toml", guidance);
        const auto experiment = config::Config::resolve(file, {}, schema());
        EXPECT_EQ(experiment.text("sampling.guidance_train"), guidance);
        EXPECT_EQ(experiment.differences(mini, true).size(), std::string(guidance) == "conditional" ? 0u : 1u) << guidance;
        EXPECT_TRUE(experiment.differences(mini, false).empty());
    }
}

TEST_F(Run, WhatWasMadeFromOtherWeightsIsNamedBeforeARunGoesOn) {
    const auto with = [&](int iterations, const std::vector<std::string>& set = {}) {
        std::vector<std::string> all{fmt::format("grpo.iterations={}", iterations), "distill.rounds=2", "distill.start=base"};
        all.insert(all.end(), set.begin(), set.end());
        return context(all);
    };
    const auto publish = [&](const fs::path& output, const std::map<std::string, std::string>& inputs, const std::string& weights = "") {
        fs::create_directories(directory_ / output);
        io::Manifest m;
        for (const auto& [name, hash] : inputs) m.inputs[name] = {0, hash};
        if (!weights.empty()) {
            io::write_text(directory_ / output / nn::lora_file_name, weights);
            m.outputs[nn::lora_file_name] = {};
        }
        io::publish_manifest(directory_ / output, m);
        return weights.empty() ? "" : io::digest_bytes(weights.data(), weights.size());
    };
    // Two iterations, two rounds; every policy's weights are its name.
    std::map<std::string, std::string> last;
    for (const std::string policy : {"t2i", "edit", "mix"})
        for (const char* i : {"1", "2"}) {
            publish(policy + "/iter-000" + i + "/rollout", last.contains(policy) ? std::map<std::string, std::string>{{"policy", last[policy]}} : std::map<std::string, std::string>{});
            last[policy] = publish(policy + "/iter-000" + i + "/policy", {}, policy + i);
        }
    for (const char* round : {"1", "2"}) {
        for (const std::string task : {"t2i", "edit"})
            publish(fmt::format("opd/round-0{}/teacher-{}", round, task), {{"teacher", last[task]}, {"student", last.contains("student") ? last["student"] : "base"}});
        last["student"] = publish(fmt::format("opd/round-0{}/student", round), {}, std::string("student") + round);
    }
    publish("eval", {{"base", "base"}, {"teacher-t2i", last["t2i"]}, {"teacher-edit", last["edit"]}, {"mix", last["mix"]}, {"student", last["student"]}});
    const auto refusal = [](const Context& c, const std::vector<std::string>& names = {}) {
        return refusal_of([&] { require_current(c, pipeline_jobs(c), names); });
    };
    EXPECT_EQ(refusal(with(2)), "(no error)");
    const std::string more = refusal(with(3));
    EXPECT_THAT(more, HasSubstr("was made from another teacher than "));
    EXPECT_THAT(more, HasSubstr("/iter-0003/policy (still to be made); nothing was changed"));
    EXPECT_THAT(more, ::testing::EndsWith("--from teacher-dump-edit-01,teacher-dump-t2i-01")) << "the evaluation comes after them";
    EXPECT_THAT(refusal(with(2, {"distill.start=average"})), HasSubstr("teacher-dump-edit-01 was made from another student than edit/iter-0002/policy and t2i/iter-0002/policy; "));
    EXPECT_EQ(refusal(with(3), {"teacher-dump-edit-01", "teacher-dump-t2i-01"}), "(no error)") << "what comes after them is made again with them";
    EXPECT_THAT(refusal(with(3), {"teacher-dump-edit-01"}), HasSubstr("teacher-dump-t2i-01")) << "one of two";
    EXPECT_THAT(refusal(with(2, {"mix.iterations=3"})), HasSubstr("evaluate was made from another mix than mix/iter-0003/policy"));
    EXPECT_EQ(refusal(with(2, {"mix.iterations=3"}), {"evaluate"}), "(no error)");
    EXPECT_THAT(refusal(with(1)), HasSubstr("iter-0001/policy; nothing was changed")) << "fewer";
    // A policy that is gone is made again as it was, the last one too; so is not an evaluation without a model that there is now.
    for (const char* policy : {"t2i/iter-0001/policy", "t2i/iter-0002/policy", "opd/round-01/student", "opd/round-02/student"}) {
        fs::rename(directory_ / policy, directory_ / "away");
        EXPECT_EQ(refusal(with(2)), "(no error)") << policy;
        fs::rename(directory_ / "away", directory_ / policy);
    }
    fs::remove(directory_ / "t2i/iter-0001/policy" / nn::lora_file_name);
    EXPECT_EQ(refusal(with(2)), "(no error)") << "weights that were given up by hand";
    publish("eval", {{"base", "base"}, {"teacher-t2i", last["t2i"]}, {"teacher-edit", last["edit"]}, {"mix", last["mix"]}});
    EXPECT_THAT(refusal(with(2)), HasSubstr("evaluate was made without student; nothing was changed. It is made again, with all that comes after it, by --from evaluate"));
    publish("eval", {{"base", "base"}, {"teacher-t2i", last["t2i"]}, {"teacher-edit", last["edit"]}, {"mix", last["mix"]}, {"student", last["student"]}});
    // Weights that somebody made again.
    publish("t2i/iter-0001/policy", {}, "another");
    EXPECT_THAT(refusal(with(2)), HasSubstr("rollout-t2i-0002 was made from another policy than t2i/iter-0001/policy; nothing was changed"));
    EXPECT_THAT(refusal(with(2)), ::testing::EndsWith("--from rollout-t2i-0002")) << "all others come after it";
    EXPECT_EQ(with(2).config.hash(), with(3, {"task.t2i.iterations=5", "reward.max_absent=0.5", "reward.gap_stop=1"}).config.hash());
}

TEST_F(Run, TheGapsCurveHasAPanelForEachPolicy) {
    EXPECT_EQ(gap_curve(directory_ / "none"), "");
    std::ofstream out(directory_ / "metrics.jsonl");
    out << R"({"stage":"curate","policy":"t2i","iteration":0})" << '\n';
    for (const char* policy : {"t2i", "edit"})
        for (int i : {2, 1, 3})
            out << nlohmann::json{{"stage", "grpo"}, {"policy", policy}, {"iteration", i}, {"reward", {{"a", {{"mean", 2.0 + i}}}}},
                                  {"truth", {{"a", {{"mean", 3.0}}}}}, {"gap", {{"a", {{"mean", i - 1.0}}}, {"all", {{"mean", i - 0.5}}}}}}
                       .dump()
                << '\n';
    out.close();
    const std::string svg = gap_curve(directory_ / "metrics.jsonl");
    EXPECT_THAT(svg, HasSubstr("t2i"));
    EXPECT_THAT(svg, HasSubstr("edit"));
    EXPECT_THAT(svg, HasSubstr("gap +2.50, at first +0.50")) << "sorted by iteration; of samples that both scored";
}

TEST_F(Run, ItsPageShowsWhatIsCompleteAndTakesNoTextForMarkup) {
    const Context c = context({"grpo.iterations=2", "distill.rounds=1", "pipeline.mix=false"});
    io::write_text(c.run.config(), c.config.to_toml());
    const auto publish = [&](const fs::path& output) {
        fs::create_directories(output);
        io::publish_manifest(output, c.new_manifest("x"));
    };
    const auto update = [](int iteration, double reward) {
        return nlohmann::json{{"stage", "grpo"}, {"policy", "t2i"}, {"iteration", iteration}, {"loss", 0.5}, {"reward", {{"total", {{"mean", reward}, {"low", 1.0}, {"high", 4.0}}}}}};
    };
    const auto page = [&] {
        publish_report(c.run);
        return io::read_text(c.run.report() / "index.html");
    };
    const auto events = [&](int number) { return c.run.tensorboard() / "t2i" / fmt::format("events.out.tfevents.{:010}.atelier", number); };
    EXPECT_THAT(page(), HasSubstr("0 of 14 stages complete"));
    EXPECT_FALSE(fs::exists(events(1)));

    for (int i : {1, 2}) io::put_metrics(c.run.metrics(), update(i, 2.0 + i));
    publish(c.run.policy("t2i", 1));
    EXPECT_THAT(page(), HasSubstr("1 of 14 stages complete"));
    EXPECT_THAT(page(), HasSubstr("total at 1: 3 [1, 4]"));
    EXPECT_THAT(page(), ::testing::Not(HasSubstr("total at 2"))) << "an update that is being made again";
    const std::string first = io::read_text(events(1));
    publish(c.run.policy("t2i", 2));
    EXPECT_THAT(page(), HasSubstr("total at 2: 4 [1, 4]"));
    EXPECT_TRUE(io::read_text(events(1)).starts_with(first));
    EXPECT_GT(fs::file_size(events(1)), first.size()) << "the file that TensorBoard reads grows";
    EXPECT_FALSE(fs::exists(events(2)));
    io::put_metrics(c.run.metrics(), update(2, 3.5));
    const std::string before = io::read_text(events(1));
    EXPECT_THAT(page(), HasSubstr("total at 2: 3.5 [1, 4]"));
    EXPECT_EQ(io::read_text(events(1)), before);
    EXPECT_TRUE(fs::exists(events(2))) << "made again: a newer file";
    const std::string same = page();
    EXPECT_EQ(page(), same);
    EXPECT_FALSE(fs::exists(events(3)));

    fs::create_directories(directory_ / "failed");
    io::write_text(directory_ / "failed/distill-01.txt", "<script>alert(1)</script>");
    EXPECT_THAT(page(), HasSubstr("&lt;script&gt;alert(1)"));
    EXPECT_THAT(page(), ::testing::Not(HasSubstr("<script")));
    // What is damaged is said in its place, and the rest is shown.
    io::write_text(c.run.policy("t2i", 2) / "manifest.json", "{");
    fs::create_directories(directory_ / "eval-early");
    io::publish_manifest(directory_ / "eval-early", c.new_manifest("evaluate"));
    const std::string damaged = page();
    EXPECT_THAT(damaged, HasSubstr("1 of 14 stages complete"));
    EXPECT_THAT(damaged, HasSubstr("iter-0002/policy/manifest.json"));
    EXPECT_THAT(damaged, HasSubstr("eval-early/summary.json"));
    EXPECT_THAT(damaged, HasSubstr("total at 1: 3 [1, 4]"));
}

TEST_F(Run, InputsOfAShardAreThePromptsTheirPicturesAndTheScorersFiles) {
    io::write_png(directory_ / "a.png", io::Image(8, 8, 3));
    Prompt p = numbered(3, "edit");
    p.text = "x", p.category = "general", p.attributes = "{}", p.images = {directory_ / "a.png"};
    const std::map<std::string, io::FileDigest> scorer{{"judge/edit/identity", {1, "aa"}}};
    std::set<std::string> hashes;
    const auto is_new = [&](const Prompt& prompt, const std::map<std::string, io::FileDigest>& by) {
        EXPECT_EQ(inputs_hash(by, std::span(&prompt, 1)), inputs_hash(by, std::span(&prompt, 1)));
        return hashes.insert(inputs_hash(by, std::span(&prompt, 1))).second;
    };
    EXPECT_TRUE(is_new(p, scorer));
    EXPECT_FALSE(is_new(p, scorer));
    EXPECT_TRUE(is_new(p, {{"judge/edit/identity", {1, "ab"}}})) << "another template";
    for (std::string* text : {&p.id, &p.text, &p.category, &p.attributes}) {
        *text += "y";
        EXPECT_TRUE(is_new(p, scorer)) << *text;
    }
    p.size = model::PictureSize{.width = 64, .height = 32};
    EXPECT_TRUE(is_new(p, scorer));
    p.size = model::PictureSize{.width = 32, .height = 64};
    EXPECT_TRUE(is_new(p, scorer));
    io::Image other(8, 8, 3);
    other.pixels[5] = 1;
    io::write_png(directory_ / "a.png", other);
    EXPECT_TRUE(is_new(p, scorer)) << "another reference picture under the same name";
    p.images.push_back(directory_ / "none.png");
    EXPECT_THROW(is_new(p, scorer), Error);
}

TEST_F(Run, TheScorersFilesAreAllThatAJudgeIsReadFrom) {
    const auto world = comm::make_self();
    const fs::path judge = directory_ / "judge";
    fs::create_directories(judge);
    const std::vector<float> numbers{1, 2, 3};
    const Tensor values = Tensor::of(numbers.data(), {3});
    const auto written = io::write_sharded(judge, "model", {{.name = "first", .values = values}, {.name = "second", .values = values}}, 16);
    ASSERT_EQ(written.size(), 3u) << "two shards and their index";
    for (const char* name : {"config.json", "tokenizer.json", "preprocessor_config.json", "generation_config.json"}) std::ofstream(judge / name) << "{ }";
    Context c = context({"reward.scorer=judge", "judge.directory=" + judge.string(),
                         "judge.templates=" + (fs::path(ATELIER_SOURCE_DIR) / "configs/judge").string()});
    c.world = world.get();
    const auto before = scorer_inputs(c);
    EXPECT_TRUE(before.contains("judge/t2i/alignment"));
    EXPECT_FALSE(before.contains("judge/generation_config.json"));
    std::vector<std::string> read = written;
    read.insert(read.end(), {"config.json", "tokenizer.json", "preprocessor_config.json"});
    for (const std::string& name : read) {
        ASSERT_TRUE(before.contains("judge/" + name)) << name;
        EXPECT_EQ(before.at("judge/" + name), io::digest_file(judge / name));
    }
    const fs::path shard = judge / written[0];
    ASSERT_TRUE(shard.string().ends_with(".safetensors"));
    std::fstream file(shard, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(fs::file_size(shard)) - 1);
    file.put('\x41');  // the sign and exponent of the last number, a 3
    file.close();
    const auto after = scorer_inputs(c);
    EXPECT_NE(after, before) << "another number in a shard, the index as before";
    EXPECT_NE(inputs_hash(after, {}), inputs_hash(before, {}));
    fs::remove(judge / "model.safetensors.index.json");
    EXPECT_FALSE(scorer_inputs(c).contains("judge/config.json")) << "without weights there is no judge yet";
}

TEST(Sources, OfLabelsAreShownInTheSameWay) {
    const auto large = std::make_shared<const judge::LabelledPicture>(io::Image(403, 302, 3)), small = std::make_shared<const judge::LabelledPicture>(io::Image(64, 64, 3));
    std::vector<judge::LabelledSample> labels(2);
    labels[0].sources = {large, small};
    labels[1].sources = {large};
    show_sources(labels, 128);
    EXPECT_EQ(labels[0].sources[1], small);
    EXPECT_EQ(labels[0].sources[0], labels[1].sources[0]) << "one picture stays one";
    const io::Image shown = labels[0].sources[0]->load(), expected = shown_source(large->load(), 128);
    EXPECT_EQ(labels[0].sources[0]->width(), expected.width);
    EXPECT_EQ(shown.pixels, expected.pixels);
}

TEST(Sources, AreShownAsTheModelSeesThemWhereTheyAreLarger) {
    Random random(random_key(3, RandomUse::test, 0));
    const auto drawn = [&](int width, int height) {
        io::Image image(width, height, 3);
        for (auto& byte : image.pixels) byte = static_cast<std::uint8_t>(random.below(256));
        return image;
    };
    const auto expect_as_it_is = [&](int width, int height) {
        const io::Image image = drawn(width, height), shown = shown_source(image, 128);
        EXPECT_EQ(shown.width, width);
        EXPECT_EQ(shown.channels, 3);
        EXPECT_EQ(shown.pixels, image.pixels);
    };
    expect_as_it_is(128, 128);
    expect_as_it_is(64, 128);
    expect_as_it_is(32, 32);
    for (const auto& [width, height] : {std::pair(403, 302), std::pair(302, 403), std::pair(129, 128)}) {
        const io::Image image = drawn(width, height), shown = shown_source(image, 128);
        const auto seen = model::reference_size({width, height}, 128);
        EXPECT_EQ(shown.width, seen.width);
        EXPECT_EQ(shown.height, seen.height);
        const io::Image expected = model::resize(model::with_alpha(image), static_cast<int>(seen.width), static_cast<int>(seen.height),
                                                 model::ResizeFilter::lanczos, model::PassOrder::pillow_13);
        EXPECT_EQ(shown.pixels, expected.pixels) << width << " x " << height;
    }
    EXPECT_THROW(shown_source(io::Image(4000, 2, 3), 128), Error);
}

TEST_F(Run, TiersAreTheTemplatesAndEachMeasuresOwn) {
    EXPECT_EQ(dimension_tiers(context({}).config, "t2i"), (Tiers{{"alignment", 0}, {"aesthetics", 1}, {"portrait", 2}}));
    const fs::path asked = directory_ / "judge";
    fs::copy(fs::path(ATELIER_SOURCE_DIR) / "configs/judge", asked);
    std::string portrait = io::read_text(asked / "t2i-portrait.toml");
    const auto at = portrait.find("tier = 2");
    ASSERT_NE(at, std::string::npos);
    std::ofstream(asked / "t2i-portrait.toml") << portrait.replace(at, 8, "tier = 1");
    const auto judged = [&](const std::string& kind, const std::vector<std::string>& more = {}) {
        std::vector<std::string> set{"reward.scorer=judge", "judge.templates=" + asked.string()};
        set.insert(set.end(), more.begin(), more.end());
        return dimension_tiers(context(set).config, kind);
    };
    EXPECT_EQ(judged("t2i"), (Tiers{{"alignment", 0}, {"aesthetics", 1}, {"portrait", 1}}));
    EXPECT_EQ(judged("edit"), (Tiers{{"instruction", 0}, {"identity", 1}}));
    EXPECT_EQ(judged("edit", {"reward.identity=small", "identity.network=x"}), (Tiers{{"instruction", 0}, {"identity", 1}}));
}

TEST_F(Run, EvaluationShardsOfOtherInputsAreMadeAnew) {
    const auto world = comm::make_self();
    Context c = context({});
    c.world = world.get();
    EvaluatedTask task;
    task.prompts = {numbered(0)};
    const std::vector<std::string> inputs = evaluation_inputs(c, task, {{"judge/t2i/alignment", {1, "aa"}}});
    ASSERT_EQ(inputs.size(), 1u);
    const EvaluationUnit unit{0, "base", false, "weights", inputs[0]};
    const fs::path own = directory_ / "own", other = directory_ / "other";
    fs::create_directories(own), fs::create_directories(other);
    io::TrajectoryShard shard = small_shard(0);
    shard.header.config_hash = c.config.hash(), shard.header.model_hash = "weights", shard.header.inputs_hash = inputs[0];
    const auto write = [&](const fs::path& to) { io::write_trajectory(to / "shard-00000.h5", shard); };
    EXPECT_FALSE(find_evaluation_shard(c, own, task, unit));
    EXPECT_FALSE(adopt_evaluation_shard(c, other, own, task, unit));
    write(other);
    EXPECT_TRUE(adopt_evaluation_shard(c, other, own, task, unit));
    EXPECT_TRUE(find_evaluation_shard(c, own, task, unit));
    const auto found = find_evaluation_shard(c, own, task, unit);
    EXPECT_EQ(found->absent, 0);
    EXPECT_EQ(found->digest, io::digest_file(own / "shard-00000.h5"));
    fs::remove(own / "shard-00000.h5");
    shard.shapes[0].status = {static_cast<std::uint8_t>(io::SampleStatus::reward_absent)};
    fs::remove(other / "shard-00000.h5");
    write(other);
    EXPECT_EQ(find_evaluation_shard(c, other, task, unit)->absent, 1);
    EXPECT_FALSE(adopt_evaluation_shard(c, other, own, task, unit)) << "another evaluation asks again";
    EXPECT_FALSE(fs::exists(own / "shard-00000.h5"));
    EXPECT_TRUE(find_evaluation_shard(c, other, task, unit)) << "its own goes on with it";
    shard.shapes[0].status = {0};
    fs::remove(other / "shard-00000.h5");
    write(other);
    EXPECT_TRUE(adopt_evaluation_shard(c, other, own, task, unit));
    EvaluationUnit rejudged = unit;
    rejudged.inputs_hash = evaluation_inputs(c, task, {{"judge/t2i/alignment", {1, "ab"}}})[0];
    EXPECT_FALSE(find_evaluation_shard(c, own, task, rejudged));
    EXPECT_FALSE(fs::exists(own / "shard-00000.h5"));
    EXPECT_FALSE(adopt_evaluation_shard(c, other, own, task, rejudged));
    EXPECT_FALSE(fs::exists(own / "shard-00000.h5"));
    EXPECT_TRUE(fs::exists(other / "shard-00000.h5"));
    write(own);
    {  // as versions wrote it that didn't say what it was made from
        const io::hdf5::Handle file(H5Fopen((own / "shard-00000.h5").c_str(), H5F_ACC_RDWR, H5P_DEFAULT), H5Fclose);
        ASSERT_GE(H5Adelete(file.id(), "inputs_hash"), 0);
    }
    EXPECT_EQ(io::read_trajectory(own / "shard-00000.h5").header.inputs_hash, "");
    EXPECT_FALSE(find_evaluation_shard(c, own, task, unit));
}

TEST_F(Run, FurtherModelsHaveNamesAndADirectoryOfTheirOwn) {
    const auto world = comm::make_self();
    Context c = context({});
    c.world = world.get();
    const auto candidates = candidates_of(c, {"mine=/a", "v2_b=/b"});
    ASSERT_EQ(candidates.size(), 4u);  // the base without and with guidance, and these
    EXPECT_EQ(candidates[3].name, "v2_b");
    const auto refused = [&](const std::vector<std::string>& models) { return refusal(ErrorKind::usage, [&] { candidates_of(c, models); }); };
    for (const char* taken : {"base", "base-guided", "student", "mix", "teacher-t2i", "teacher-edit"})
        EXPECT_THAT(refused({std::string(taken) + "=/a"}), HasSubstr("another model's name already")) << taken;
    EXPECT_THAT(refused({"mine=/a", "mine=/b"}), HasSubstr("another model's name already"));
    for (const char* bad : {"../a", "a/b", "..", "table.txt", "a b"})
        EXPECT_THAT(refused({std::string(bad) + "=/a"}), HasSubstr("letters, digits")) << bad;
    EXPECT_THAT(refused({"=/a"}), HasSubstr("NAME=DIRECTORY"));
    EXPECT_THAT(refused({"limit-6=/a"}), HasSubstr("--limit")) << "the directory of an evaluation of six";
    EXPECT_EQ(evaluation_directory(c, candidates_of(c, {}), 0), directory_ / "eval");
    EXPECT_EQ(evaluation_directory(c, candidates_of(c, {}), 6), directory_ / "eval-limit-6");
    EXPECT_EQ(evaluation_directory(c, candidates, 6), directory_ / "eval-mine+v2_b-limit-6");
}

// Killed between two renames, where a file system cannot exchange names: the pipeline sees no rollout and asks for one.
TEST_F(Run, ARolloutThatWasRenamedAwayIsNotDrawnAgain) {
    const auto world = comm::make_self();
    Context c = context({});
    c.world = world.get();
    c.policy = "t2i";
    const fs::path rollout = c.run.rollout("t2i", 1), displaced = rollout.parent_path() / ".tmp-displaced-rollout";
    fs::create_directories(displaced);
    io::publish_manifest(displaced, c.new_manifest("rollout"));
    EXPECT_TRUE(begin_stage(c, rollout, rollout).is_complete);
    EXPECT_FALSE(fs::exists(displaced));
}

/// small_shard() with a scored picture of one colour, and where asked a reference of another.
io::TrajectoryShard shard_to_label(std::uint8_t colour, int reference = -1) {
    io::TrajectoryShard shard = small_shard(0);
    io::TrajectorySamples& s = shard.shapes.at(0);
    std::fill(s.picture.begin(), s.picture.end(), colour);
    s.reward["alignment"] = {{4}, {0}, {1}, {"seen"}};
    s.total = {4}, s.advantage = {0};
    if (reference >= 0) shard.prompts.images.push_back({0, 8, 8, std::vector<std::uint8_t>(8 * 8 * 4, static_cast<std::uint8_t>(reference))});
    return shard;
}

/// A sheet of a shard in which a person gave every row a score; its labels.csv.
fs::path filled_sheet(const fs::path& directory, const io::TrajectoryShard& shard, const std::string& person) {
    fs::create_directories(directory / "shards");
    io::write_trajectory(directory / "shards" / "shard-00000.h5", shard);
    EXPECT_EQ(write_label_sheet(directory / "shards", directory), 1);
    io::CsvRows rows = io::read_csv(directory / "labels.csv");
    for (std::size_t i = 1; i < rows.size(); ++i) rows[i][9] = person, rows[i][10] = "3";  // annotator, score
    io::write_text(directory / "labels.csv", io::to_csv(rows));
    return directory / "labels.csv";
}

TEST_F(Run, AnIdOfLabelSheetsStandsForOnePicture) {
    const fs::path anna = filled_sheet(directory_ / "anna", shard_to_label(10, 90), "anna"), labels = directory_ / "labels.h5";
    std::ostringstream out;
    const auto combined = [&](const fs::path& other) { read_label_sheets({anna, other}, labels, out); };
    combined(filled_sheet(directory_ / "ben", shard_to_label(10, 90), "ben"));  // copies of the pictures
    const auto samples = judge::read_labels(labels);
    ASSERT_EQ(samples.size(), 1u);
    EXPECT_EQ(samples[0].scores.size(), 2u);
    const auto says_both = [&](const std::string& picture, const std::string& person) {
        return AllOf(HasSubstr((directory_ / person / picture).string()), HasSubstr((directory_ / "anna" / picture).string()));
    };
    const fs::path student = filled_sheet(directory_ / "student", shard_to_label(11, 90), "ben"),
                   source = filled_sheet(directory_ / "source", shard_to_label(10, 91), "ben");
    EXPECT_THAT(refusal(ErrorKind::input, [&] { combined(student); }), says_both("pictures/shard-00000-a-00.png", "student"));
    EXPECT_THAT(refusal(ErrorKind::input, [&] { combined(source); }), says_both("pictures/shard-00000-source-0.png", "source"));
    io::CsvRows rows = io::read_csv(student);
    rows[1][2] = "aesthetics";
    io::write_text(student, io::to_csv(rows));
    EXPECT_THAT(refusal(ErrorKind::input, [&] { combined(student); }), says_both("pictures/shard-00000-a-00.png", "student"))
        << "of another dimension";
    rows[1][6].clear();
    io::write_text(student, io::to_csv(rows));
    EXPECT_THAT(refusal(ErrorKind::input, [&] { combined(student); }), HasSubstr("has 0 source pictures, and 1 in"));
}

TEST_F(Run, PromptIdsOfAnyTextNamePictures) {
    io::TrajectoryShard shard = shard_to_label(10, 90);
    for (const auto& [id, name] : {std::pair("a/b#1", "shard-00000-a%2Fb%231-00.png"), std::pair("..", "shard-00000-..-00.png")}) {
        shard.prompts.id = {id};
        const fs::path sheet = filled_sheet(directory_ / name, shard, "anna"), exported = directory_ / name / "exported";
        EXPECT_TRUE(fs::exists(sheet.parent_path() / "pictures" / name)) << name;
        EXPECT_EQ(export_pictures(sheet.parent_path() / "shards", exported), 1);
        EXPECT_TRUE(fs::exists(exported / name)) << name;
        const auto line = nlohmann::json::parse(io::read_text(exported / "samples.jsonl"));
        EXPECT_EQ(line["prompt"], id);
        EXPECT_EQ(line["picture"], name);
        std::ostringstream out;
        read_label_sheets({sheet}, directory_ / "labels.h5", out);
        EXPECT_EQ(judge::read_labels(directory_ / "labels.h5").at(0).id, fmt::format("shard-00000-{}-00", id));
    }
    EXPECT_THAT(io::read_text(directory_ / "shard-00000-a%2Fb%231-00.png" / "index.html"),
                AllOf(HasSubstr("<img src=\"pictures/shard-00000-a%252Fb%25231-00.png\" alt=\"shard-00000-a/b#1-00\">"),
                      HasSubstr("<img src=\"pictures/shard-00000-source-0.png\"")));
}

TEST(Labels, AgreementIsOverWhatWasScoredTwice) {
    const auto picture = std::make_shared<const judge::LabelledPicture>(io::Image(8, 8, 3));
    std::vector<judge::LabelledSample> samples;
    const double none = std::nan("");  // "it does not apply"
    for (const auto& scores : std::vector<std::vector<double>>{{1, 2}, {4, 4}, {3}, {5, none}}) {
        judge::LabelledSample s;
        s.id = fmt::format("{}", samples.size()), s.kind = "t2i", s.dimension = "alignment", s.picture = picture;
        for (const double score : scores) s.scores.emplace_back(fmt::format("person-{}", s.scores.size()), score);
        samples.push_back(s);
    }
    std::ostringstream out;
    describe_labels(samples, "labels.h5", out);
    EXPECT_THAT(out.str(), HasSubstr("t2i/alignment: 4 pictures, agreement of annotators (Krippendorff's alpha) 0."));
    EXPECT_THAT(out.str(), HasSubstr(" over the 2 with two scores or more\n"));
}

TEST(Evaluation, IsTheSameByWhatItWasMadeFrom) {
    io::Manifest complete, asked;
    complete.config_hash = asked.config_hash = "c";
    complete.inputs = asked.inputs = {{"base", {0, "w"}}};
    asked.facts = {{"limit", 0}};
    complete.facts = {{"limit", 0}, {"device_memory", {{"planned", 1}, {"peak", 2}}}};
    EXPECT_TRUE(is_same_evaluation(complete, asked)) << "what it took doesn't matter";
    asked.facts["limit"] = 6;
    EXPECT_FALSE(is_same_evaluation(complete, asked));
    asked.facts["limit"] = 0;
    asked.inputs["judge/t2i/alignment"] = {1, "t"};
    EXPECT_FALSE(is_same_evaluation(complete, asked));
    complete.facts = nlohmann::json::object();
    EXPECT_FALSE(is_same_evaluation(complete, asked));
}

/// Twelve edit prompts with one reference and two models' pictures each.
EvaluatedTask task_with_pictures(const fs::path& reference, int width, int height) {
    EvaluatedTask task;
    task.models.resize(2);
    for (std::uint64_t i = 0; i < sheet_rows; ++i) {
        task.prompts.push_back(numbered(i, "edit"));
        task.prompts.back().images = {reference};
        for (auto& samples : task.models) samples.push_back({io::Image(width, height, 4, 255), {}, {}});
    }
    return task;
}

TEST_F(Run, ReferencesOnAContactSheetAreNoLargerThanTheModelsPictures) {
    const fs::path reference = directory_ / "reference.png", path = directory_ / "sheet.png";
    io::write_png(reference, io::Image(3000, 1500, 3, 100));
    EvaluatedTask task = task_with_pictures(reference, 32, 64);
    ASSERT_EQ(shown_prompts(task).size(), 12u);
    write_contact_sheet(path, {"base", "mine"}, task);
    const io::Image sheet = io::read_png(path);
    EXPECT_EQ(sheet.width, 4 + 3 * (32 + 4));
    EXPECT_EQ(task.models[0][0].picture.height, 64) << "models' pictures stay";
    int shown = 0;  // rows of the reference's colour in the first column
    for (int y = 0; y < sheet.height; ++y) shown += *sheet.at(4 + 16, y) == 100 ? 1 : 0;
    EXPECT_EQ(shown, 12 * 16) << "with their aspect";
}

TEST_F(Run, ASheetThatNoPngCouldHoldIsMadeOfSmallerPictures) {
    const fs::path reference = directory_ / "reference.png", path = directory_ / "sheet.png";
    io::write_png(reference, io::Image(16, 3000, 3));
    EvaluatedTask task = task_with_pictures(reference, 32, 2800);
    write_contact_sheet(path, {"base", "mine"}, task);
    const auto [width, height] = io::read_png_size(path);
    EXPECT_LE(height, io::max_png_side);
    EXPECT_GT(height, io::max_png_side - 2 * 12);
    EXPECT_LE(width, 4 + 3 * (32 + 4));
    EXPECT_LT(task.models[1][11].picture.height, 2800);
}

TEST(Evaluation, PicturesWithoutAnyScoreAreLeftOutAndCounted) {
    const auto sample = [](std::map<std::string, double> scores) { return EvaluatedSample{{}, std::move(scores), {}}; };
    EvaluatedTask task;
    task.prompts = {numbered(0), numbered(1), numbered(2)};
    for (Prompt& p : task.prompts) p.category = "general";
    task.models = {{sample({{"a", 4}, {"b", 2}}), sample({}), sample({{"a", 3}})}, {sample({{"a", 5}}), sample({{"a", 1}}), sample({})}};
    EXPECT_EQ(task.models[0][0].total(), 3);
    EXPECT_FALSE(task.models[0][1].total());
    const auto summary = evaluation_summary({"base", "mine"}, {{"t2i", task}});
    EXPECT_EQ(summary["models"]["base"]["t2i/total"]["n"], 2);
    EXPECT_EQ(summary["models"]["base"]["t2i/total"]["mean"], 3);
    EXPECT_EQ(summary["models"]["mine"]["t2i/total"]["mean"], 3);
    EXPECT_EQ(summary["gain"]["mine"]["t2i/total"]["n"], 1);
    EXPECT_EQ(summary["gain"]["mine"]["t2i/total"]["mean"], 1) << "of what both have";
    EXPECT_GT(summary["elo"]["mine"]["elo"], summary["elo"]["base"]["elo"]) << "the one picture that both have a score of";
    EXPECT_EQ(summary["elo_regularised"], true);
    EXPECT_THAT(evaluation_table(summary, {"base", "mine"}), HasSubstr("Elo: half a win each way was added to every pair of models"));
    EXPECT_EQ(summary["without_score"]["base"]["t2i"], 1);
    EXPECT_THAT(evaluation_table(summary, {"base", "mine"}), HasSubstr("1 pictures of mine for t2i have no score"));
    task.models[0][2].scores["a"] = 4, task.models[1][2].scores["a"] = 2;  // each wins once
    const auto mixed = evaluation_summary({"base", "mine"}, {{"t2i", task}});
    EXPECT_EQ(mixed["elo_regularised"], false);
    EXPECT_EQ(evaluation_table(mixed, {"base", "mine"}).find("half a win"), std::string::npos);
    for (auto& samples : task.models)
        for (EvaluatedSample& s : samples) s.scores.clear();
    const auto none = evaluation_summary({"base", "mine"}, {{"t2i", task}});
    EXPECT_TRUE(none["elo"].empty());
    EXPECT_FALSE(none.contains("elo_regularised"));
    EXPECT_TRUE(none["models"]["base"].empty());
    EXPECT_THAT(evaluation_table(none, {"base", "mine"}), HasSubstr("3 pictures of base"));
}

// A picture without a face has no score of it, and a higher mean of the others than one whose face is poor.
TEST(Evaluation, WhatOnePictureLacksDecidesNothing) {
    EvaluatedTask task;
    task.prompts = {numbered(0), numbered(1)};
    for (Prompt& p : task.prompts) p.category = "portrait";
    const EvaluatedSample with_face{{}, {{"alignment", 4}, {"portrait", 2}}, {}}, without{{}, {{"alignment", 3.5}}, {}}, of_nothing{{}, {{"other", 5}}, {}};
    task.models = {{with_face, with_face}, {without, of_nothing}};
    const auto summary = evaluation_summary({"base", "mine"}, {{"t2i", task}});
    EXPECT_EQ(summary["models"]["base"]["t2i/total"]["mean"], 3);
    EXPECT_EQ(summary["gain"]["mine"]["t2i/total"]["mean"], -0.5);
    EXPECT_EQ(summary["gain"]["mine"]["t2i/total"]["n"], 1) << "two pictures with nothing in common are not compared";
    EXPECT_LT(summary["elo"]["mine"]["elo"], summary["elo"]["base"]["elo"]);
}

}  // namespace
}  // namespace atelier::stage
