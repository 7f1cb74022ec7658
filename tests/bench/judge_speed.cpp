// judge_speed MODEL TEMPLATES SAMPLES TOKENS THREADS IDS.json: judgements a second of the engine's own judge: SAMPLES pictures of
// noise, every text-to-image dimension of TEMPLATES, answers of exactly TOKENS tokens of reasoning where the model does not stop
// by itself. Writes the questions' tokens for judge_speed.py, which asks transformers the same.
#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/parallel.hpp"
#include "core/philox.hpp"
#include "judge/native_judge.hpp"
#include "reward/pool.hpp"

int main(int argc, char** argv) {
    using namespace atelier;
    if (argc != 7) return 2;
    const std::string directory = argv[1];
    auto templates = judge::read_templates(argv[2], "t2i");
    const int samples = std::atoi(argv[3]);
    for (judge::Template& t : templates) t.reasoning_tokens = std::atoi(argv[4]);
    set_threads(std::atoi(argv[5]));
    const auto request = [&](int i) {
        reward::Request r;
        r.sample_id = static_cast<std::uint64_t>(i);
        r.kind = "t2i";
        r.prompt = "portrait of a person with light skin , short blond hair without glasses on blue";
        r.height = r.width = 128;
        r.picture.resize(128 * 128 * 4);
        Random random(random_key(1, RandomUse::test, r.sample_id));
        for (auto& byte : r.picture) byte = static_cast<std::uint8_t>(random.below(256));
        r.noise_key = {r.sample_id, 0};
        return r;
    };
    {
        const judge::JudgeModel model(directory);
        nlohmann::json questions = nlohmann::json::array();
        for (int i = 0; i < samples; ++i)
            for (const judge::Template& t : templates) {
                const reward::Request r = request(i);
                io::Image picture(128, 128, 4);
                picture.pixels = r.picture;
                const auto q = model.make_question(judge::make_conversation(t, r.prompt, picture, {}));
                questions.push_back({{"ids", q.ids}, {"grid", q.vision.image_grid_thw}});
            }
        std::ofstream(argv[6]) << questions.dump();
    }
    const int answers = samples * static_cast<int>(templates.size());
    judge::NativeJudgeConfig config;
    config.directory = directory;
    config.answers = answers;
    const judge::NativeJudge native(config, {{"t2i", templates}});
    reward::Pool pool(native, {samples, samples, 0});
    // Twice: the first time kernels are made.
    for (const char* round : {"first", "then"}) {
        std::vector<reward::Request> requests;
        for (int i = 0; i < samples; ++i) requests.push_back(request(i));
        const auto begin = std::chrono::steady_clock::now();
        std::vector<std::future<reward::Outcome>> outcomes;
        for (reward::Request& r : requests) outcomes.push_back(pool.submit(std::move(r)));
        int failed = 0;
        for (auto& f : outcomes) failed += f.get().failed ? 1 : 0;
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        fmt::print("{}: {} judgements in {:.3f} s: {:.1f} a second, {} samples failed\n", round, answers, seconds, answers / seconds, failed);
    }
    return 0;
}
