#include "io/safetensors.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <unistd.h>
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

// Every bf16 and half value survives the way up and down; rounding is to nearest even.
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
