// Identity by face embeddings: the table, the verdict, the scorer around another one, the miniature's network against torch's numbers,
// and OpenCV's classes with two tiny models (make_models.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <thread>

#include "core/error.hpp"
#include "identity/identity_scorer.hpp"
#include "io/image/png.hpp"
#include "world/draw.hpp"

namespace atelier::identity {
namespace {

constexpr bool has_opencv = ATELIER_TEST_OPENCV;
const std::filesystem::path source_dir = ATELIER_SOURCE_DIR, data = source_dir / "tests/identity/data";

TEST(ScoreTable, IsLinearBetweenItsEntries) {
    const ScoreTable table({"0=1", "0.4=3", "0.8=5"}, "identity.table");
    EXPECT_DOUBLE_EQ(table.score(-1), 1);
    EXPECT_DOUBLE_EQ(table.score(0), 1);
    EXPECT_DOUBLE_EQ(table.score(0.2), 2);
    EXPECT_DOUBLE_EQ(table.score(0.4), 3);
    EXPECT_DOUBLE_EQ(table.score(0.7), 4.5);
    EXPECT_DOUBLE_EQ(table.score(0.8), 5);
    EXPECT_DOUBLE_EQ(table.score(1), 5);
}

TEST(ScoreTable, SaysWhichEntryIsWrong) {
    for (const auto& entries : std::vector<std::vector<std::string>>{
             {}, {"0=1"}, {"0=1", "x=2"}, {"0=1", "0.5"}, {"0=1", "0=2"}, {"0=3", "0.5=2"}, {"0=1", "0.5=6"}, {"0=1", "2=5"}, {"0=1", "nan=2"}, {"0=1 ", "1=5"}})
        EXPECT_THAT([&] { ScoreTable(entries, "identity.table"); },
                    testing::Throws<Error>(testing::Property(&Error::message, testing::HasSubstr("identity.table"))));
}

Face face(double area, std::vector<float> embedding) { return {area, std::move(embedding)}; }

TEST(IdentityVerdict, PairsTheLargestFaceWithTheOneMostLikeIt) {
    const ScoreTable table({"0=1", "1=5"}, "identity.table");
    const std::vector<Face> sources{face(10, {0, 1}), face(400, {1, 0})}, result{face(900, {0, 1}), face(100, {0.6f, 0.8f})};
    const auto verdict = identity_verdict(sources, result, table);
    EXPECT_TRUE(verdict.present);
    EXPECT_NEAR(verdict.score, 1 + 4 * 0.6, 1e-6);
    EXPECT_THAT(verdict.reason, testing::HasSubstr("0.600"));
    const auto nobody = identity_verdict({}, result, table);
    EXPECT_FALSE(nobody.present);
    EXPECT_EQ(nobody.reason, "no face in the source");
    const auto lost = identity_verdict(sources, {}, table);
    EXPECT_TRUE(lost.present);
    EXPECT_EQ(lost.score, 1);
    EXPECT_EQ(lost.reason, "the face was lost");
}

/// A face wherever the first pixel is red: whose it is says the second.
class FirstPixel final : public FaceEmbedder {
  public:
    std::vector<Face> faces(const io::Image& p) const override {
        if (p.pixels[0] != 255) return {};
        return {face(p.width * p.height, p.pixels[static_cast<std::size_t>(p.channels)] != 0 ? std::vector<float>{1, 0} : std::vector<float>{0, 1})};
    }
    std::size_t bytes(std::size_t threads) const override { return 1000 * threads; }
};

class Plain final : public reward::Scorer {
  public:
    explicit Plain(std::vector<std::string> edit) : edit_(std::move(edit)) {}
    const std::vector<std::string>& dimensions(const std::string& kind) const override { return kind == "edit" ? edit_ : t2i_; }
    reward::Verdicts score(const reward::Request& r, int) const override {
        reward::Verdicts verdicts;
        for (const std::string& name : dimensions(r.kind)) verdicts[name] = {true, 2, "plain"};
        return verdicts;
    }

  private:
    std::vector<std::string> edit_, t2i_{"alignment"};
};

reward::Request edit_request(std::uint8_t red, std::uint8_t who) {
    reward::Request r{1, "edit", "{}", 1, 2, {red, 0, 0, 255, who, 0, 0, 255}};
    auto sources = std::make_shared<std::vector<io::Image>>();
    sources->emplace_back(2, 1, 3);
    sources->back().pixels = {255, 0, 0, 1, 0, 0};
    r.sources = sources;
    return r;
}

TEST(IdentityScorer, ReplacesOneDimensionOfEdits) {
    for (const std::vector<std::string>& inner : {std::vector<std::string>{"instruction", "identity"}, {"instruction"}}) {
        const auto scorer = make_identity_scorer(std::make_unique<Plain>(inner), std::make_unique<FirstPixel>(), ScoreTable({"0=1.5", "1=5"}, ""));
        EXPECT_THAT(scorer->dimensions("edit"), testing::ElementsAre("instruction", "identity"));
        EXPECT_THAT(scorer->dimensions("t2i"), testing::ElementsAre("alignment"));
        auto verdicts = scorer->score(edit_request(255, 1), 0);
        EXPECT_EQ(verdicts.at("instruction").score, 2);
        EXPECT_EQ(verdicts.at("identity").score, 5);
        EXPECT_EQ(scorer->score(edit_request(255, 0), 0).at("identity").score, 1.5);
        EXPECT_EQ(scorer->score(edit_request(0, 0), 0).at("identity").reason, "the face was lost");
        auto without = edit_request(255, 1);
        without.sources = nullptr;
        EXPECT_FALSE(scorer->score(without, 0).at("identity").present);
        without.kind = "t2i";
        EXPECT_EQ(scorer->score(without, 0).count("identity"), 0u);
        EXPECT_EQ(scorer->bytes(3, 0), 3000u);
    }
}

// ---- the miniature's network -------------------------------------------------------------------------------------------------------

io::Image picture_of(const world::Scene& scene) {
    io::Image image(world::side, world::side, 4);
    image.pixels = world::draw(scene);
    return image;
}

double cosine(const Face& a, const Face& b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.embedding.size(); ++i) sum += static_cast<double>(a.embedding[i]) * b.embedding[i];
    return sum;
}

TEST(SmallEmbedder, GivesTorchsNumbers) {
    const auto embedder = make_small_embedder(source_dir / "assets/mini/identity");
    std::ifstream file(data / "small.txt");  // by dump_small.py: the picture, its embedding
    std::string picture;
    int pictures = 0;
    while (file >> picture) {
        const auto faces = embedder->faces(io::read_png(source_dir / "assets/mini/prompts/images" / picture));
        int count = 0;
        file >> count;
        ASSERT_EQ(faces.size(), count > 0 ? 1u : 0u) << picture;
        for (int i = 0; i < count; ++i) {
            double expected = 0;
            file >> expected;
            EXPECT_NEAR(faces[0].embedding.at(static_cast<std::size_t>(i)), expected, 2e-5) << picture << " " << i;
        }
        ++pictures;
    }
    EXPECT_GE(pictures, 4);
}

TEST(SmallEmbedder, KnowsAPersonThroughEdits) {
    const auto embedder = make_small_embedder(source_dir / "assets/mini/identity");
    double same = 0, other = 0;
    constexpr int people = 40;
    for (int i = 0; i < people; ++i) {
        Random random(random_key(77, RandomUse::test, static_cast<std::uint64_t>(i)));
        const world::Edit edit = world::random_edit("portrait", random);
        const auto source = embedder->faces(picture_of(edit.source)), result = embedder->faces(picture_of(edit.result)),
                   stranger = embedder->faces(picture_of(world::random_scene("portrait", random)));
        ASSERT_TRUE(source.size() == 1 && result.size() == 1 && stranger.size() == 1);
        same += cosine(source[0], result[0]) / people;
        other += cosine(source[0], stranger[0]) / people;
        EXPECT_TRUE(embedder->faces(picture_of(world::random_scene("general", random))).empty()) << i;
    }
    EXPECT_GT(same, 0.9);
    EXPECT_LT(other, 0.6);
}

TEST(SmallEmbedder, NamesWhatIsWrong) {
    EXPECT_THAT([] { make_small_embedder(data / "nothing"); }, testing::Throws<Error>(testing::Property(&Error::exit_code, 3)));
    const auto embedder = make_small_embedder(source_dir / "assets/mini/identity");
    EXPECT_THROW(embedder->faces(io::Image(64, 128, 4)), Error);
}

// ---- OpenCV ------------------------------------------------------------------------------------------------------------------------

/// Dark, with bright "faces", one cell of 16 x 16 pixels each: quarters of other colours, which the variants permute.
io::Image opencv_picture(const std::vector<std::pair<int, int>>& corners, int variant, int side = 128) {
    io::Image image(side, side, 4, 20);
    for (const auto& [x0, y0] : corners)
        for (int y = 0; y < 16; ++y)
            for (int x = 0; x < 16; ++x) {
                std::uint8_t* p = image.at(x0 + x, y0 + y);
                const int quarter = y / 8 * 2 + x / 8;
                for (int c = 0; c < 3; ++c) p[c] = c == (quarter + variant) % 3 ? 110 : 255;
                p[3] = 255;
            }
    return image;
}

TEST(OpenCvEmbedder, FindsFacesAndTellsThemApart) {
    if (!has_opencv) {
        EXPECT_THAT([] { make_opencv_embedder({"a", "b"}); },
                    testing::Throws<Error>(testing::Property(&Error::message, testing::HasSubstr("this build was made without it"))));
        GTEST_SKIP() << "built without OpenCV";
    }
    const auto embedder = make_opencv_embedder({data / "detector.onnx", data / "recogniser.onnx", 0.5});
    const auto one = embedder->faces(opencv_picture({{48, 48}}, 0));
    ASSERT_EQ(one.size(), 1u);
    EXPECT_NEAR(one[0].area, 32 * 32, 1);
    EXPECT_EQ(one[0].embedding.size(), 16u);
    EXPECT_TRUE(embedder->faces(opencv_picture({}, 0)).empty());
    EXPECT_EQ(embedder->faces(opencv_picture({{0, 0}, {80, 64}}, 0)).size(), 2u);
    EXPECT_EQ(embedder->faces(opencv_picture({{160, 64}}, 0, 256)).size(), 1u) << "pictures of any size";
    const auto same = embedder->faces(opencv_picture({{16, 80}}, 0)), other = embedder->faces(opencv_picture({{48, 48}}, 2));
    ASSERT_TRUE(same.size() == 1 && other.size() == 1);
    EXPECT_GT(cosine(one[0], same[0]), 0.999) << "wherever it stands";
    EXPECT_LT(cosine(one[0], other[0]), 0.99);
    // From several threads at once: the same.
    std::vector<std::vector<Face>> found(4);
    std::vector<std::thread> threads;
    for (auto& faces : found) threads.emplace_back([&] { faces = embedder->faces(opencv_picture({{48, 48}}, 0)); });
    for (std::thread& thread : threads) thread.join();
    for (const auto& faces : found) {
        ASSERT_EQ(faces.size(), 1u);
        EXPECT_EQ(faces[0].embedding, one[0].embedding);
    }
}

TEST(OpenCvEmbedder, NamesAFileThatIsNoModel) {
    if (!has_opencv) GTEST_SKIP() << "built without OpenCV";
    EXPECT_THAT([] { make_opencv_embedder({data / "detector.onnx", data / "nothing.onnx"}); },
                testing::Throws<Error>(testing::Property(&Error::message, testing::HasSubstr("nothing.onnx"))));
    EXPECT_THAT([] { make_opencv_embedder({data / "small.txt", data / "recogniser.onnx"}); },
                testing::Throws<Error>(testing::Property(&Error::exit_code, 3)));
}

}  // namespace
}  // namespace atelier::identity
