// judge_server --ready FILE [--key VARIABLE] [--misbehave] [--delay SECONDS]: a judge whose scores follow from the
// bytes of the picture and the rubric; writes its URL into FILE when it listens, runs until it is
// killed. With --key it refuses requests without that environment variable's value, and repeats what
// it was given, as some servers do. With --misbehave two of three questions go wrong at first. With --delay
// every answer takes so long.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "server.hpp"

using namespace atelier::testing;

std::string value_of(const char* variable) {
    const char* value = std::getenv(variable);
    return value == nullptr ? "" : value;
}

int main(int argc, char** argv) {
    std::string ready, key;
    bool misbehaves = false;
    double delay = 0;
    for (int i = 1; i < argc; ++i) {
        if (std::strcmp(argv[i], "--ready") == 0 && i + 1 < argc) ready = argv[++i];
        else if (std::strcmp(argv[i], "--key") == 0 && i + 1 < argc) key = value_of(argv[++i]);
        else if (std::strcmp(argv[i], "--misbehave") == 0) misbehaves = true;
        else if (std::strcmp(argv[i], "--delay") == 0 && i + 1 < argc) delay = std::atof(argv[++i]);
        else ready.clear(), i = argc;
    }
    if (ready.empty()) {
        std::fputs("judge_server --ready FILE [--key VARIABLE] [--misbehave] [--delay SECONDS]\n", stderr);
        return 2;
    }
    const JudgeServer server([&](const Asked& asked) -> Reply {
        if (!key.empty() && asked.authorization != "Bearer " + key)
            return {401, {}, "wrong key: " + asked.authorization, 0, false};
        const auto pictures = asked.pictures();
        if (pictures.empty()) return {400, {}, "no picture", 0, false};
        const std::string text = asked.text();
        const std::uint64_t hash = hash_of(pictures.back().data(), pictures.back().size()) ^
                                   hash_of(text.data(), text.size());
        std::vector<double> p(5);
        double sum = 0;
        for (std::size_t s = 0; s < 5; ++s) sum += p[s] = 0.05 + static_cast<double>(hash >> (8 * s) & 255);
        for (double& v : p) v *= 0.98 / sum;
        const bool repeats_key = !key.empty() && (hash & 3) == 0;
        const std::string answer =
            "Seen" + (repeats_key ? " with key " + key : std::string()) + ".\nScore: 3";
        Reply reply{200, {}, completion(answer, p).dump(), delay, false};
        if (!misbehaves || asked.repetition > 0) return reply;
        switch (hash >> 40 & 15) {
            case 0: return {500, {}, "broken " + key, 0, false};
            case 1: return {429, {"Retry-After: 0"}, "slow down", 0, false};
            case 2: reply.cut = true; return reply;
            case 3: return {200, {}, "{\"choices\": [", 0, false};
            case 4: return {200, {}, completion("It is fine.\nScore: 9").dump(), 0, false};
            case 5: return {200, {}, completion("Score: 3").dump(), 0, false};
            case 6: return {200, {}, completion("I cannot judge this.").dump(), 0, false};
            case 7: reply.delay_seconds = 30; return reply;
            case 8: return {503, {"Retry-After: 0"}, "", 0, false};
            case 9: return {200, {}, R"({"choices": [{"message": {"refusal": "no", "content": null}}]})", 0, false};
            default: return reply;
        }
    });
    std::ofstream(ready + ".new") << server.url() << '\n';
    std::filesystem::rename(ready + ".new", ready);
    for (;;) ::pause();
}
