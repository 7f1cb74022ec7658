#include "io/safetensors.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "core/convert.hpp"

namespace atelier::io {
namespace {

namespace fs = std::filesystem;

class SafetensorsFile : public ::testing::Test {
  protected:
    void SetUp() override {
        directory_ = fs::temp_directory_path() /
                     ("atelier-safetensors-" + std::to_string(::getpid()) + "-" +
                      ::testing::UnitTest::GetInstance()->current_test_info()->name());
        fs::create_directories(directory_);
    }
    void TearDown() override { fs::remove_all(directory_); }

    fs::path raw(const std::string& header, std::size_t data_bytes, const std::string& name = "x.safetensors") {
        const fs::path path = directory_ / name;
        std::ofstream out(path, std::ios::binary);
        const std::uint64_t size = header.size();
        out.write(reinterpret_cast<const char*>(&size), 8);
        out << header << std::string(data_bytes, '\0');
        return path;
    }
    /// The message of the Error(input) that opening must throw.
    static std::string refusal(const fs::path& path) {
        try {
            Safetensors::open(path);
        } catch (const Error& e) {
            EXPECT_EQ(e.kind(), ErrorKind::input);
            return e.message();
        }
        return "(no error)";
    }
    fs::path directory_;
};

TEST_F(SafetensorsFile, RoundTripInEveryDtype) {
    std::vector<float> values{0.0f, -1.5f, 3.14159f, 65504.0f, 1e-7f, -0.0f};
    std::vector<std::int64_t> ids{1, -2, 3};
    const auto path = directory_ / "a.safetensors";
    write_safetensors(path,
                      {{"f", Tensor::of(values.data(), {2, 3}), DType::f32},
                       {"b", Tensor::of(values.data(), {6}), DType::bf16},
                       {"h", Tensor::of(values.data(), {6}), DType::f16},
                       {"i", Tensor::of(ids.data(), {3}), DType::i64}},
                      {{"format", "pt"}});
    const auto file = Safetensors::open(path);
    EXPECT_EQ(file.metadata().at("format"), "pt");
    EXPECT_EQ(file.floats("f"), values);
    EXPECT_EQ(file.at("f").shape, (Shape{2, 3}));
    EXPECT_EQ(file.integers("i"), ids);
    for (std::size_t k = 0; k < values.size(); ++k) {
        EXPECT_NEAR(file.floats("b")[k], values[k], std::abs(values[k]) / 256) << k;
        EXPECT_NEAR(file.floats("h")[k], values[k], std::abs(values[k]) / 2048 + 6e-8) << k;
    }
    EXPECT_THROW(file.integers("f"), Error);
    EXPECT_THROW(file.at("absent"), Error);
}

TEST_F(SafetensorsFile, RefusesDamage) {
    const std::string good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
    EXPECT_EQ(refusal(raw(good, 8)), "(no error)");
    EXPECT_THAT(refusal(raw(good, 7)), ::testing::HasSubstr("tensor a lies at bytes [0, 8) of 7"));
    EXPECT_THAT(refusal(raw(good, 9)), ::testing::HasSubstr("belong to no tensor"));
    EXPECT_THAT(refusal(raw(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8)),
                ::testing::HasSubstr("takes 12 bytes, found 8"));
    EXPECT_THAT(refusal(raw(R"({"a":{"dtype":"Q4","shape":[2],"data_offsets":[0,8]}})", 8)),
                ::testing::HasSubstr("dtype 'Q4'"));
    EXPECT_THAT(refusal(raw(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}})", 8)),
                ::testing::HasSubstr("impossible shape"));
    EXPECT_THAT(refusal(raw(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                            R"("a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 2)),
                ::testing::HasSubstr("'a' twice"));
    EXPECT_THAT(refusal(raw(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                            R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})", 3)),
                ::testing::HasSubstr("overlap"));
    EXPECT_THAT(refusal(raw("[1]", 0)), ::testing::HasSubstr("not a JSON object"));
    EXPECT_THAT(refusal(directory_ / "missing.safetensors"), ::testing::HasSubstr("cannot open"));

    const fs::path tiny = directory_ / "tiny";
    std::ofstream(tiny) << "abc";
    EXPECT_THAT(refusal(tiny), ::testing::HasSubstr("too few"));
    const fs::path claims = directory_ / "claims";
    std::ofstream(claims, std::ios::binary) << std::string(8, '\x7f') << "{}";
    EXPECT_THAT(refusal(claims), ::testing::HasSubstr("the header claims"));
}

TEST_F(SafetensorsFile, ShardsThroughTheIndex) {
    const std::string a = R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})";
    const std::string b = R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})";
    raw(a, 2, "one.safetensors");
    raw(b, 1, "two.safetensors");
    const auto index = [&](const std::string& map) {
        const fs::path path = directory_ / "x.safetensors.index.json";
        std::ofstream(path) << R"({"metadata":{},"weight_map":)" << map << "}";
        return path;
    };
    EXPECT_EQ(Safetensors::open(index(R"({"a":"one.safetensors","b":"two.safetensors"})")).tensors().size(), 2u);
    EXPECT_THAT(refusal(index(R"({"a":"one.safetensors","b":"three.safetensors"})")),
                ::testing::HasSubstr("which is missing"));
    EXPECT_THAT(refusal(index(R"({"a":"two.safetensors","b":"one.safetensors"})")), ::testing::HasSubstr("found in"));
    EXPECT_THAT(refusal(index(R"({"a":"../one.safetensors"})")), ::testing::HasSubstr("not a file name"));
    EXPECT_THAT(refusal(index(R"({"a":"one.safetensors"})")), ::testing::HasSubstr("(no error)"));
}

TEST_F(SafetensorsFile, RefusesWhatClaimsTooMuch) {
    // A sparse file of 3 GB whose header would be 2 GB: refused before anything of it is read.
    const fs::path large = directory_ / "large.safetensors";
    const std::uint64_t claimed = 2'000'000'000;
    std::ofstream(large, std::ios::binary).write(reinterpret_cast<const char*>(&claimed), 8);
    fs::resize_file(large, 3'000'000'000);
    EXPECT_THAT(refusal(large), ::testing::HasSubstr("the header claims 2000000000 bytes (at most 100000000 may be)"));
    EXPECT_THAT(refusal(raw(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8)), ::testing::HasSubstr("lies at bytes [8, 0) of 8"));
    EXPECT_THAT(refusal(raw(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615]}})", 8)),
                ::testing::HasSubstr("truncated or damaged"));
    EXPECT_THAT(refusal(raw(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}})", 8)), ::testing::HasSubstr("no data_offsets"));
    EXPECT_THAT(refusal(raw(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}})", 4)),
                ::testing::HasSubstr("leave a gap"));
    EXPECT_THAT(refusal(raw(R"({"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}})", 2)), ::testing::HasSubstr("dtype 'F8_E4M3'"));
    EXPECT_THAT(refusal(raw(R"({"a":{"dtype":["F32"],"shape":[2],"data_offsets":[0,8]}})", 8)), ::testing::HasSubstr("dtype ''"));
    EXPECT_THAT(refusal(raw(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8)), ::testing::HasSubstr("that is no size"));
    EXPECT_THAT(refusal(raw(R"({"__metadata__":{"format":3},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 2)),
                ::testing::HasSubstr("metadata format is not a string"));
    EXPECT_THAT(refusal(raw(std::string(200000, '['), 0)), ::testing::HasSubstr("nested more than 128 deep"));
}

TEST_F(SafetensorsFile, ATensorInTwoShardsIsRefused) {
    const std::string a = R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})";
    raw(a, 2, "one.safetensors");
    raw(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2, "two.safetensors");
    const auto index = [&](const std::string& text) {
        const fs::path path = directory_ / "x.safetensors.index.json";
        std::ofstream(path) << text;
        return refusal(path);
    };
    EXPECT_THAT(index(R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})"),
                ::testing::AllOf(::testing::HasSubstr("tensor a stands in"), ::testing::HasSubstr("two.safetensors")));
    EXPECT_THAT(index(R"({"weight_map":{"a":"one.safetensors","a":"two.safetensors"}})"), ::testing::HasSubstr("'a' twice"));
    EXPECT_THAT(index(R"({"weight_map":{"b":"two.safetensors"}})"), ::testing::HasSubstr("lists 1 tensors, its shards hold 2"));
    EXPECT_THAT(index(R"({"weight_map":{"c":"one.safetensors"}})"), ::testing::HasSubstr("which does not hold it"));
    EXPECT_THAT(index(R"({"weight_map":{"a":7}})"), ::testing::HasSubstr("is not a file name"));
    EXPECT_THAT(index(R"({"weight_map":["a"]})"), ::testing::HasSubstr("no weight_map object"));
}

// Any shard size gives the same tensors; the files are what the index says they are.
TEST_F(SafetensorsFile, ShardsOfASetSize) {
    std::vector<float> values(1000);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = 1.0f / static_cast<float>(i + 1);
    std::vector<TensorToWrite> tensors;
    for (int t = 0; t < 5; ++t)
        tensors.push_back({"t" + std::to_string(t), Tensor::of(values.data() + 100 * t, {t == 3 ? 500 : 50}), t % 2 == 0 ? DType::bf16 : DType::f32});
    const std::map<std::string, std::string> metadata{{"format", "pt"}, {"from", "a test"}};
    const auto whole = write_sharded(directory_, "whole", tensors, 1 << 20, metadata);
    EXPECT_THAT(whole, ::testing::ElementsAre("whole.safetensors"));
    const auto cut = write_sharded(directory_, "cut", tensors, 400, metadata);
    ASSERT_THAT(cut, ::testing::ElementsAre("cut-00001-of-00003.safetensors", "cut-00002-of-00003.safetensors", "cut-00003-of-00003.safetensors",
                                            "cut.safetensors.index.json"));
    EXPECT_EQ(fs::file_size(directory_ / cut[1]) % 8, 0u) << "a tensor larger than a shard stands alone";
    const auto a = Safetensors::open_component(directory_, "whole"), b = Safetensors::open_component(directory_, "cut");
    EXPECT_EQ(a.metadata(), metadata);
    EXPECT_EQ(b.metadata(), metadata);
    ASSERT_EQ(b.tensors().size(), 5u);
    for (const auto& [name, t] : a.tensors()) {
        EXPECT_EQ(b.at(name).dtype, t.dtype);
        EXPECT_EQ(std::memcmp(b.at(name).data, t.data, t.bytes()), 0) << name;
    }
    fs::remove(directory_ / cut[1]);
    EXPECT_THAT(refusal(directory_ / cut[3]), ::testing::HasSubstr("cut-00002-of-00003.safetensors, which is missing"));
    EXPECT_THROW(write_sharded(directory_ / "absent", "x", tensors, 400, metadata), Error);
}

TEST_F(SafetensorsFile, ConvertsBetweenFloatsAndMakesNumbersInTheirTurn) {
    const std::vector<std::uint16_t> halves{0x3f80, 0x4000, 0xc040};  // bf16: 1, 2, -3
    const Tensor bf16(const_cast<std::uint16_t*>(halves.data()), DType::bf16, {3});
    int made = 0;
    write_safetensors(directory_ / "x.safetensors",
                      {{"same", bf16, DType::bf16}, {"wide", bf16, DType::f32}, {"half", bf16, DType::f16},
                       {"made", Tensor(nullptr, DType::f32, {2}), DType::bf16, [&](float* out) { out[0] = 5; out[1] = 6; ++made; }}});
    const auto file = Safetensors::open(directory_ / "x.safetensors");
    for (const char* name : {"same", "wide", "half"}) EXPECT_EQ(file.floats(name), (std::vector<float>{1, 2, -3})) << name;
    EXPECT_EQ(file.at("wide").dtype, DType::f32);
    EXPECT_EQ(file.floats("made"), (std::vector<float>{5, 6}));
    EXPECT_EQ(made, 1);
    std::vector<float> part(2);
    to_f32(file.at("wide"), 1, 2, part.data());
    EXPECT_EQ(part, (std::vector<float>{2, -3}));
    EXPECT_THROW(to_f32(file.at("wide"), 2, 2, part.data()), Error);
    std::vector<std::int64_t> integers{1};
    EXPECT_THROW(write_safetensors(directory_ / "y.safetensors", {{"i", Tensor::of(integers.data(), {1}), DType::f32}}), Error);
}

/// Resident bytes of the mappings of a file in this process.
std::size_t resident_of(const fs::path& path) {
    std::ifstream maps("/proc/self/smaps");
    std::size_t kib = 0;
    bool inside = false;
    for (std::string line; std::getline(maps, line);) {
        if (line.find('-') != std::string::npos && line.find(' ') > line.find('-') && line.find(':') > line.find(' '))
            inside = line.ends_with(path.string());
        if (inside && line.starts_with("Rss:")) kib += std::stoul(line.substr(4));
    }
    return kib * 1024;
}

TEST_F(SafetensorsFile, ReadingAPartTouchesThatPartAlone) {
    constexpr std::int64_t numbers = 16 << 20;
    const fs::path path = directory_ / "x.safetensors";
    {
        const std::vector<float> values(numbers, 1.5f);
        write_safetensors(path, {{"a", Tensor::of(values.data(), {numbers}), DType::f32}});
    }
    const auto file = Safetensors::open(path);
    EXPECT_LT(resident_of(path), std::size_t{1} << 20) << "opening reads headers only";
    std::vector<float> part(1000);
    to_f32(file.at("a"), numbers / 2, 1000, part.data());
    EXPECT_EQ(part.back(), 1.5f);
    EXPECT_GT(resident_of(path), 0u);
    EXPECT_LT(resident_of(path), std::size_t{3} << 20);
    EXPECT_EQ(file.floats("a").back(), 1.5f);
    EXPECT_GT(resident_of(path), std::size_t{60} << 20);
    release_pages(file.at("a"));
    EXPECT_LT(resident_of(path), std::size_t{1} << 20);
    EXPECT_EQ(file.floats("a").front(), 1.5f) << "released pages come back";
}

// Every bf16 and half value survives the way up and down; rounding is to nearest even.
TEST_F(SafetensorsFile, APageThatCannotBeReadEndsTheProgramAndNamesTheFile) {
    const auto path = directory_ / "cut.safetensors";
    const std::vector<float> values(1 << 16, 1);
    write_safetensors(path, {{"w", Tensor::of(values.data(), {1 << 16}), DType::f32}});
    const auto read_what_was_cut = [&] {
        const auto file = Safetensors::open(path);
        std::filesystem::resize_file(path, 8192);  // under the mapping
        (void)file.floats("w");
    };
    EXPECT_EXIT(read_what_was_cut(), ::testing::ExitedWithCode(static_cast<int>(ErrorKind::io)), "cannot read .*cut.safetensors at byte 8192: ");
    // Another SIGBUS is what it was before.
    const auto another = [&] {
        const auto file = Safetensors::open(path);
        raise(SIGBUS);
    };
    write_safetensors(path, {{"w", Tensor::of(values.data(), {1 << 16}), DType::f32}});
    const auto ended_otherwise = [](int status) { return WIFSIGNALED(status) || (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != 4); };  // a sanitizer exits
    EXPECT_EXIT(another(), ended_otherwise, "");
}

TEST(Convert, HalvesAreExact) {
    for (std::uint32_t bits = 0; bits < 65536; ++bits) {
        const auto b = static_cast<std::uint16_t>(bits);
        if (!std::isnan(bf16_to_f32(b))) {
            EXPECT_EQ(f32_to_bf16(bf16_to_f32(b)), b);
        }
        if (!std::isnan(f16_to_f32(b))) {
            EXPECT_EQ(f32_to_f16(f16_to_f32(b)), b);
        }
    }
    EXPECT_EQ(f32_to_bf16(1.00390625f), 0x3f80);  // half way, to even
    EXPECT_EQ(f32_to_f16(1.00048828125f), 0x3c00);
    EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
    EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::numeric_limits<float>::quiet_NaN()))));
}

}  // namespace
}  // namespace atelier::io
