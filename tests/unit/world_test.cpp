// The world's measures against pictures whose truth is known: true ones, damaged ones, and what a policy finds when a reward
// pays for what isn't there.
#include <gtest/gtest.h>

#include <cmath>

#include "core/error.hpp"
#include "world/draw.hpp"
#include "world/flaws.hpp"
#include "world/measure.hpp"
#include "world/shown.hpp"

namespace atelier::world {
namespace {

using Bytes = std::vector<std::uint8_t>;
constexpr std::array<std::string_view, 4> categories{"general", "portrait", "landscape", "typography"};

Random random_for(std::uint64_t i) { return Random(random_key(5, RandomUse::test, i)); }

Bytes blank(Colour c) {
    Bytes p(side * side * 4, 255);
    for (int i = 0; i < side * side; ++i)
        for (int k = 0; k < 3; ++k) p[i * 4 + k] = static_cast<std::uint8_t>(c[k]);
    return p;
}
Bytes noise(std::uint64_t seed) {
    Bytes p(side * side * 4, 255);
    Random random = random_for(1000 + seed);
    for (int i = 0; i < side * side; ++i)
        for (int k = 0; k < 3; ++k) p[i * 4 + k] = static_cast<std::uint8_t>(random.below(256));
    return p;
}
/// The right half is the picture's own corner colour.
Bytes half(Bytes p) {
    for (int y = 0; y < side; ++y)
        for (int x = side / 2; x < side; ++x)
            for (int k = 0; k < 3; ++k) p[(y * side + x) * 4 + k] = p[k];
    return p;
}
Bytes blurred(const Bytes& p, int radius) {
    Bytes q = p;
    for (int y = 0; y < side; ++y)
        for (int x = 0; x < side; ++x)
            for (int k = 0; k < 3; ++k) {
                int sum = 0, n = 0;
                for (int dy = -radius; dy <= radius; ++dy)
                    for (int dx = -radius; dx <= radius; ++dx)
                        if (x + dx >= 0 && x + dx < side && y + dy >= 0 && y + dy < side) sum += p[((y + dy) * side + x + dx) * 4 + k], ++n;
                q[(y * side + x) * 4 + k] = static_cast<std::uint8_t>(sum / n);
            }
    return q;
}
Bytes noisy(Bytes p, double deviation) {
    Random random = random_for(77);
    for (std::size_t i = 0; i < p.size(); ++i)
        if (i % 4 != 3) p[i] = static_cast<std::uint8_t>(std::clamp(p[i] + deviation * random.normal(), 0.0, 255.0));
    return p;
}

TEST(World, ScenesAndEditsSurviveJson) {
    for (std::uint64_t i = 0; i < 200; ++i) {
        Random random = random_for(i);
        const Scene scene = random_scene(categories[i % 4], random);
        EXPECT_EQ(draw(scene_from_json(to_json(scene))), draw(scene));
        const Edit edit = random_edit(i % 2 == 0 ? "general" : "portrait", random);
        EXPECT_EQ(draw(edit_from_json(to_json(edit)).result), draw(edit.result));
        EXPECT_NE(draw(edit.source), draw(edit.result));
    }
    EXPECT_THROW(scene_from_json({{"category", "poem"}}), Error);
    EXPECT_THROW(scene_from_json({{"category", "typography"}, {"word", "NO"}, {"background", "white"}, {"colour", "red"}}), Error);
    EXPECT_THROW(measure(nlohmann::json::object(), Bytes(5)), Error);
}

TEST(World, TruePicturesScoreHigh) {
    for (std::uint64_t i = 0; i < 400; ++i) {
        Random random = random_for(i);
        const Scene scene = random_scene(categories[i % 4], random);
        for (const auto& [name, m] : measure(to_json(scene), draw(scene))) {
            EXPECT_EQ(m.present, name != "portrait" || scene.category == "portrait");
            if (m.present) {
                EXPECT_GE(m.score, 4.7) << name << ": " << m.reason << " " << to_json(scene);
            }
        }
        const Edit edit = random_edit(i % 2 == 0 ? "general" : "portrait", random);
        for (const auto& [name, m] : measure(to_json(edit), draw(edit.result)))
            if (m.present) {
                EXPECT_GE(m.score, 4.7) << name << ": " << m.reason << " " << to_json(edit);
            }
    }
}

TEST(World, NothingIsPaidForWhatIsNotThere) {
    double worst_wrong = 0, mean_other = 0;
    int others = 0;
    for (std::uint64_t i = 0; i < 200; ++i) {
        Random random = random_for(i);
        const Scene scene = random_scene(categories[i % 4], random);
        const Bytes truth = draw(scene);
        const Colour corner{double(truth[0]), double(truth[1]), double(truth[2])};
        const auto alignment = [&](const Bytes& p) { return measure_alignment(p, scene).score; };
        for (const Bytes& empty : {blank(corner), blank({128, 128, 128}), noise(i)}) {
            worst_wrong = std::max(worst_wrong, alignment(empty));
            EXPECT_LT(alignment(empty), 1.6) << to_json(scene);
            EXPECT_LT(measure_aesthetics(empty).score, 1.6);
            EXPECT_LT(measure_portrait(empty, scene).score, 1.6);
        }
        EXPECT_LT(alignment(half(truth)), 4.0) << to_json(scene);
        const Scene other = random_scene(categories[(i + 1) % 4], random);
        EXPECT_LT(alignment(draw(other)), 3.0) << to_json(scene) << to_json(other);
        mean_other += alignment(draw(other));
        ++others;
    }
    EXPECT_LT(mean_other / others, 1.5);
}

TEST(World, EditsThatWereNotMadeScoreLow) {
    for (std::uint64_t i = 0; i < 200; ++i) {
        Random random = random_for(i);
        const Edit edit = random_edit(i % 2 == 0 ? "general" : "portrait", random);
        const Bytes source = draw(edit.source);
        const Colour corner{double(source[0]), double(source[1]), double(source[2])};
        EXPECT_LT(measure_instruction(source, edit).score, 1.2) << "source unchanged " << to_json(edit);
        for (const Bytes& empty : {blank(corner), blank({128, 128, 128}), noise(i)}) {
            EXPECT_LT(measure_instruction(empty, edit).score, 2.0) << to_json(edit);
            EXPECT_LT(measure_identity(empty, edit).score, 1.6);
        }
        const Edit other = random_edit(i % 2 == 0 ? "portrait" : "general", random);
        EXPECT_LT(measure_instruction(draw(other.source), edit).score, 2.0) << to_json(edit) << to_json(other);
        if (edit.source.category == "portrait") {
            EXPECT_GE(measure_identity(source, edit).score, 4.7);
            Edit stranger = edit;
            stranger.source.face.skin = edit.source.face.skin == "dark" ? "light" : "dark";
            EXPECT_LT(measure_identity(draw(stranger.source), edit).score, 2.0);
        }
    }
}

TEST(World, ScoresFallWithDamage) {
    double previous_blur = 6, previous_noise = 6;
    for (int step = 0; step < 5; ++step) {
        double blur = 0, grain = 0;
        int n = 0;
        for (std::uint64_t i = 0; i < 40; ++i) {
            Random random = random_for(i);
            const Scene scene = random_scene(categories[i % 4], random);
            const Bytes truth = draw(scene);
            blur += (measure_alignment(blurred(truth, 2 * step), scene).score + measure_aesthetics(blurred(truth, 2 * step)).score) / 2;
            grain += measure_aesthetics(noisy(truth, 4.0 * step)).score;
            ++n;
        }
        EXPECT_LT(blur / n, previous_blur);
        EXPECT_LE(grain / n, previous_noise);
        previous_blur = blur / n;
        previous_noise = grain / n;
    }
    EXPECT_LT(previous_blur, 3.5);
    EXPECT_LT(previous_noise, 1.5);
}

// What a judge learns from: the flaws are seen by the measures that they are meant for, and a near miss is one.
TEST(Flaws, LowerTheirMeasures) {
    double whole = 0, missed = 0, person = 0, other = 0, half_way = 0;
    std::array<double, flaw_count> looks{};
    int n = 0, persons = 0;
    for (std::uint64_t i = 0; i < 64; ++i, ++n) {
        Random random = random_for(i);
        const Scene scene = random_scene(categories[i % 4], random);
        const Bytes truth = draw(scene);
        const Scene near = near_miss(scene, random);
        EXPECT_NE(to_json(near), to_json(scene));
        EXPECT_EQ(to_json(scene_from_json(to_json(near))), to_json(near)) << "a scene of this world";
        whole += measure_alignment(truth, scene).score;
        missed += measure_alignment(draw(near), scene).score;
        for (int f = 0; f < flaw_count; ++f) {
            EXPECT_EQ(spoil(truth, static_cast<Flaw>(f), 0.7, random).size(), truth.size());
            looks[static_cast<std::size_t>(f)] += measure_aesthetics(spoil(truth, static_cast<Flaw>(f), 0.7, random)).score;
        }
        if (scene.category != "portrait") continue;
        const Edit edit{"glasses", scene, scene, ""};
        person += measure_identity(truth, edit).score;
        Random same = random;  // the same other person
        half_way += measure_identity(draw(other_person(scene, 0.5, same)), edit).score;
        other += measure_identity(draw(other_person(scene, 1, random)), edit).score;
        ++persons;
    }
    EXPECT_GT(whole / n, 4.9);
    EXPECT_LT(missed / n, 3.5);
    for (const Flaw f : {Flaw::blurred, Flaw::blotched, Flaw::grainy}) EXPECT_LT(looks[static_cast<std::size_t>(f)] / n, 4.7) << static_cast<int>(f);
    EXPECT_GT(person / persons, 4.9);
    EXPECT_LT(half_way, person);
    EXPECT_LT(other, half_way);
}

// What a picture shows is found from what was asked for instead.
TEST(Flaws, AreSeenInWhatAPictureShows) {
    std::array<int, 4> same{}, found{};
    constexpr int each = 24;
    for (std::uint64_t i = 0; i < 4 * each; ++i) {
        Random random = random_for(i);
        const Scene asked = random_scene(categories[i % 4], random), near = near_miss(asked, random);
        same[i % 4] += caption(scene_shown(draw(asked), asked), false) == caption(asked, false);
        found[i % 4] += caption(scene_shown(draw(near), asked), false) == caption(near, false);
    }
    for (std::size_t c = 0; c < 4; ++c) {
        EXPECT_EQ(same[c], each) << categories[c];
        EXPECT_GE(found[c], each - 3) << categories[c];
    }
}

TEST(Flaws, DependOnTheirKeyAndEndWithTheirStrength) {
    Random scenes = random_for(3);
    const Bytes truth = draw(random_scene("general", scenes)), black = blank({0, 0, 0});
    for (int f = 0; f < flaw_count; ++f) {
        Random a = random_for(7), b = random_for(7);
        EXPECT_EQ(spoil(truth, static_cast<Flaw>(f), 0.5, a), spoil(truth, static_cast<Flaw>(f), 0.5, b));
    }
    Random random = random_for(8);
    EXPECT_EQ(spoil(truth, Flaw::faded, 0, random), truth);
    EXPECT_EQ(blend(truth, black, 0), truth);
    EXPECT_EQ(blend(truth, black, 1), black);
    EXPECT_THROW(spoil(Picture(truth).first(100), Flaw::faded, 0.5, random), Error);
}

}  // namespace
}  // namespace atelier::world
