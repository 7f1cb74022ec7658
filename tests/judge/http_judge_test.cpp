// The judge over HTTP against a server that misbehaves on request.
#include "judge/http_judge.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "core/error.hpp"
#include "io/image/png.hpp"
#include "judge/answer.hpp"
#include "reward/pool.hpp"
#include "server.hpp"

namespace atelier::judge {
namespace {

using atelier::testing::Asked;
using atelier::testing::completion;
using atelier::testing::JudgeServer;
using atelier::testing::Reply;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

const std::string secret = "sk-Te5t/0123456789+abcdef";

std::vector<Template> templates(const std::vector<std::string>& dimensions) {
    std::vector<Template> list;
    for (const std::string& name : dimensions) {
        Template t;
        t.dimension = name;
        t.kind = "t2i";
        t.system = "You judge.";
        t.question = "Asked: {prompt}";
        t.rubric = "How is its " + name + "?";
        t.level = {"bad", "poor", "fair", "good", "excellent"};
        t.answer = "Reason, then Score: N.";
        list.push_back(t);
    }
    return list;
}

HttpJudgeConfig config_of(const std::string& url) {
    HttpJudgeConfig c;
    c.url = url;
    c.model = "judge";
    c.retries = 2;
    c.backoff_seconds = 0.01;
    c.longest_wait_seconds = 2;
    c.http.total_seconds = 5;
    c.http.connect_seconds = 1;
    c.http.key = secret;
    c.breaker = {5, 0.05, 0.5};
    return c;
}

std::unique_ptr<reward::Scorer> make(const HttpJudgeConfig& c,
                                     const std::vector<std::string>& dimensions = {"alignment"}) {
    return make_http_judge(c, {{"t2i", templates(dimensions)}});
}

reward::Request request(std::uint64_t sample = 0) {
    reward::Request r;
    r.sample_id = sample;
    r.kind = "t2i";
    r.prompt = "a red cat";
    r.height = 2;
    r.width = 3;
    r.picture = {255, 0, 0, 255, 0, 0, 0, 0,   0, 255, 0, 255,
                 0,   0, 9, 255, 9, 9, 9, 255, 9, 0,   0, 255};
    r.picture[20] = static_cast<std::uint8_t>(sample);
    r.noise_key = {sample, 7};
    return r;
}

Reply good() { return {200, {}, completion("It is red.\nScore: 4", {0, 0, 0.1, 0.6, 0.2}).dump(), 0, false}; }

/// The message of a failure; "" if the sample was scored.
std::string why(const reward::Scorer& judge) {
    try {
        judge.score(request(), 0);
    } catch (const Error& e) {
        EXPECT_EQ(e.kind(), ErrorKind::reward);
        return e.message();
    }
    return "";
}

double seconds_of(const std::function<void()>& what) {
    const auto begin = std::chrono::steady_clock::now();
    what();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

TEST(HttpJudge, SaysWhatIsJudgedAndReadsTheExpectedScore) {
    std::mutex mutex;
    std::vector<Asked> asked;
    const JudgeServer server([&](const Asked& a) {
        const std::lock_guard lock(mutex);
        asked.push_back(a);
        return good();
    });
    const auto judge = make(config_of(server.url() + "/"), {"alignment", "portrait"});
    EXPECT_THAT(judge->dimensions("t2i"), ::testing::ElementsAre("alignment", "portrait"));
    const auto verdicts = judge->score(request(), 0);
    ASSERT_EQ(verdicts.size(), 2u);
    EXPECT_NEAR(verdicts.at("portrait").score, (0.3 + 2.4 + 1.0) / 0.9, 1e-12);
    EXPECT_EQ(verdicts.at("portrait").reason, "It is red.");
    ASSERT_EQ(asked.size(), 2u);
    for (const Asked& a : asked) {
        EXPECT_EQ(a.authorization, "Bearer " + secret);
        EXPECT_EQ(a.body.at("model"), "judge");
        EXPECT_EQ(a.body.at("logprobs"), true);
        EXPECT_EQ(a.body.at("top_logprobs"), 20);
        EXPECT_THAT(a.text(), AllOf(HasSubstr("You judge."), HasSubstr("Asked: a red cat\nHow is its "),
                                    HasSubstr("5: excellent\nReason, then Score: N.")));
        ASSERT_EQ(a.pictures().size(), 1u);
        const io::Image seen = io::decode_png(a.pictures()[0], "sent");
        EXPECT_EQ(seen.width, 3);
        EXPECT_EQ(seen.height, 2);
        EXPECT_EQ(seen.channels, 3);
        EXPECT_EQ(seen.at(1, 0)[0], 255) << "what is transparent is seen over white";
        EXPECT_EQ(seen.at(2, 0)[1], 255);
    }
}

TEST(HttpJudge, ScoresDoNotDependOnOrderOrCompany) {
    const JudgeServer server([&](const Asked& a) {
        const auto picture = a.pictures().at(0);
        const double s = static_cast<double>(testing::hash_of(picture.data(), picture.size()) % 5 + 1);
        Reply reply = good();
        std::vector<double> p(5, 0.1);
        p[static_cast<std::size_t>(s) - 1] = 0.5;
        reply.body = completion(fmt::format("Seed {}.\nScore: {}", a.body.at("seed").get<std::int64_t>(), s), p).dump();
        reply.delay_seconds = 0.002 * static_cast<double>((a.number * 7) % 11);
        return reply;
    });
    std::vector<reward::Verdicts> before;
    for (const int workers : {1, 7, 32}) {
        const auto judge = make(config_of(server.url()), {"alignment", "portrait"});
        reward::Pool pool(*judge, {workers, 64, 2});
        std::vector<std::future<reward::Outcome>> futures;
        for (std::uint64_t i = 0; i < 24; ++i) futures.push_back(pool.submit(request(i)));
        std::vector<reward::Verdicts> now;
        for (auto& f : futures) now.push_back(f.get().verdicts);
        for (std::size_t i = 0; i < before.size(); ++i)
            for (const auto& [name, v] : now[i]) {
                EXPECT_EQ(v.score, before[i].at(name).score);
                EXPECT_EQ(v.reason, before[i].at(name).reason);
            }
        before = now;
    }
}

TEST(HttpJudge, NoMoreInFlightThanAllowed) {
    const JudgeServer server([&](const Asked&) {
        Reply r = good();
        r.delay_seconds = 0.03;
        return r;
    });
    HttpJudgeConfig c = config_of(server.url());
    c.http.in_flight = 3;
    const auto judge = make(c, {"alignment", "aesthetics", "portrait"});
    reward::Pool pool(*judge, {16, 64, 0});
    std::vector<std::future<reward::Outcome>> futures;
    for (std::uint64_t i = 0; i < 16; ++i) futures.push_back(pool.submit(request(i)));
    for (auto& f : futures) EXPECT_FALSE(f.get().failed);
    EXPECT_EQ(server.requests(), 48);
    EXPECT_EQ(server.most_at_once(), 3);
}

/// The first answer is `bad`, further ones are good.
struct Trouble {
    const char* name;
    Reply bad;
    const char* says;  ///< in the failure's message where nothing but bad answers come
};
void PrintTo(const Trouble& t, std::ostream* out) { *out << t.name; }

class HttpTrouble : public ::testing::TestWithParam<Trouble> {};

TEST_P(HttpTrouble, IsAskedAgain) {
    const JudgeServer server([&](const Asked& a) { return a.repetition == 0 ? GetParam().bad : good(); });
    HttpJudgeConfig c = config_of(server.url());
    if (GetParam().bad.delay_seconds > 0) c.http.total_seconds = 1;
    EXPECT_EQ(why(*make(c)), "");
    EXPECT_EQ(server.requests(), 2);
}

TEST_P(HttpTrouble, FailsWithItsReasonWhenItStays) {
    const JudgeServer server([&](const Asked&) { return GetParam().bad; });
    HttpJudgeConfig c = config_of(server.url());
    if (GetParam().bad.delay_seconds > 0) c.http.total_seconds = 1;
    const auto judge = make(c);
    EXPECT_THAT(why(*judge), AllOf(HasSubstr(GetParam().says), HasSubstr("attempt 3")));
    EXPECT_EQ(server.requests(), 3);
    // In a pool: absent with the reason, never a number.
    reward::Pool pool(*judge, {1, 4, 2});
    const auto outcome = pool.submit(request()).get();
    EXPECT_TRUE(outcome.failed);
    EXPECT_FALSE(outcome.verdicts.at("alignment").present);
    EXPECT_THAT(outcome.verdicts.at("alignment").reason, HasSubstr(GetParam().says));
}

INSTANTIATE_TEST_SUITE_P(
    All, HttpTrouble,
    ::testing::Values(
        Trouble{"server_error", {500, {}, "out of memory", 0, false}, "HTTP 500: out of memory"},
        Trouble{"unavailable", {503, {}, "", 0, false}, "HTTP 503"},
        Trouble{"too_many", {429, {"Retry-After: 0"}, "slow down", 0, false}, "HTTP 429: slow down"},
        Trouble{"cut", {200, {}, completion("It is red.\nScore: 4").dump(), 0, true}, "no answer"},
        Trouble{"slow", {200, {}, "{}", 3, false}, "no answer: Timeout"},
        Trouble{"half_a_json", {200, {}, "{\"choices\": [", 0, false}, "is no JSON"},
        Trouble{"no_completion", {200, {}, "{\"a\": 1}", 0, false}, "no chat completion"},
        Trouble{"no_score", {200, {}, completion("It is red.").dump(), 0, false}, "holds no score"},
        Trouble{"wrong_score", {200, {}, completion("It is red.\nScore: 6").dump(), 0, false}, "score 6 is none of"},
        Trouble{"no_reason", {200, {}, completion("Score: 4").dump(), 0, false}, "gives no reason"},
        Trouble{"refusal", {200, {}, R"({"choices": [{"message": {"content": null, "refusal": "I must not."}}]})", 0, false},
                "refused: I must not."}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(HttpJudge, WhatTheServerWillNeverAnswerIsAskedOnce) {
    for (const int status : {301, 400, 401, 404, 413, 422}) {
        const JudgeServer server([&](const Asked&) {
            return Reply{status, {"Location: http://127.0.0.1:1/v1"}, "picture refused", 0, false};
        });
        EXPECT_THAT(why(*make(config_of(server.url()))),
                    HasSubstr(fmt::format("HTTP {}: picture refused", status)));
        EXPECT_EQ(server.requests(), 1) << status;
    }
}

TEST(HttpJudge, WaitsAsLongAsTheServerAsks) {
    const JudgeServer server([&](const Asked& a) {
        return a.repetition == 0 ? Reply{429, {"Retry-After: 1"}, "", 0, false} : good();
    });
    const auto judge = make(config_of(server.url()));
    EXPECT_GE(seconds_of([&] { EXPECT_EQ(why(*judge), ""); }), 1.0);
    const JudgeServer slow([&](const Asked&) { return Reply{429, {"retry-after: 3600"}, "", 0, false}; });
    EXPECT_THAT(why(*make(config_of(slow.url()))), HasSubstr("asks to wait 3600 s"));
    EXPECT_EQ(slow.requests(), 1);
}

TEST(RetryAfter, SecondsAndDates) {
    EXPECT_EQ(parse_retry_after(" 12\r\n", 0), 12.0);
    EXPECT_EQ(parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT", 1445412470), 10.0);
    EXPECT_EQ(parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT", 1445412490), 0.0);
    for (const char* bad : {"", "soon", "-3", "inf", "12 s"}) EXPECT_FALSE(parse_retry_after(bad, 0)) << bad;
}

TEST(HttpJudge, AnOutageThatEndsCostsNoSample) {
    std::atomic<bool> up{false};
    const JudgeServer server([&](const Asked&) { return up ? good() : Reply{502, {}, "restarting", 0, false}; });
    HttpJudgeConfig c = config_of(server.url());
    c.retries = 1;
    c.breaker = {2, 0.05, 20};
    const auto judge = make(c);
    reward::Pool pool(*judge, {4, 64, 0});
    std::vector<std::future<reward::Outcome>> futures;
    for (std::uint64_t i = 0; i < 8; ++i) futures.push_back(pool.submit(request(i)));
    const double down = seconds_of([] { std::this_thread::sleep_for(std::chrono::milliseconds(600)); });
    const int while_down = server.requests();
    up = true;
    int failed = 0;
    for (auto& f : futures) failed += f.get().failed ? 1 : 0;
    // Those that failed before the circuit opened had their attempts.
    EXPECT_LE(failed, 2);
    EXPECT_LE(while_down, 12 + down / 0.05) << "a server that is out of order is left alone";
}

TEST(HttpJudge, ALongOutageEndsAllAtOnce) {
    HttpJudgeConfig c = config_of("http://127.0.0.1:1/v1");  // nobody listens there
    const auto judge = make(c);
    int given_up = 0;
    EXPECT_LT(seconds_of([&] {
                  for (int i = 0; i < 20; ++i) {
                      const std::string message = why(*judge);
                      EXPECT_NE(message, "");
                      given_up += message.find("out of order for judge.outage") != std::string::npos ? 1 : 0;
                  }
              }),
              5.0);
    EXPECT_GT(given_up, 10) << "others are trials";
}

TEST(HttpJudge, AServerThatComesBackAfterTheOutageIsUsedAgain) {
    std::atomic<bool> up{false};
    const JudgeServer server([&](const Asked&) { return up ? good() : Reply{502, {}, "restarting", 0, false}; });
    HttpJudgeConfig c = config_of(server.url());
    c.retries = 1;
    c.breaker = {1, 0.05, 0.2};
    const auto judge = make(c);
    std::string message;
    for (int i = 0; i < 100 && message.find("out of order for judge.outage") == std::string::npos; ++i) message = why(*judge);
    EXPECT_THAT(message, HasSubstr("out of order for judge.outage"));
    const int before = server.requests();
    up = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    EXPECT_EQ(why(*judge), "");
    EXPECT_EQ(server.requests(), before + 1);
}

TEST(HttpJudge, ADimensionThatFailsTakesTheSampleWithItAndSaysSo) {
    const JudgeServer server([&](const Asked& a) {
        return a.text().find("portrait") == std::string::npos ? good() : Reply{400, {}, "no faces", 0, false};
    });
    EXPECT_THAT(why(*make(config_of(server.url()), {"alignment", "portrait"})),
                AllOf(HasSubstr("portrait: HTTP 400: no faces"), Not(HasSubstr("alignment"))));
}

TEST(HttpJudge, InterruptedWhileItWaits) {
    const JudgeServer server([&](const Asked&) { return Reply{200, {}, "", 60, false}; });
    const JudgeServer busy([&](const Asked&) { return Reply{429, {"Retry-After: 60"}, "", 0, false}; });
    for (const std::string& url : {server.url(), busy.url()}) {
        HttpJudgeConfig c = config_of(url);
        c.http.total_seconds = 100;
        c.longest_wait_seconds = 100;
        const auto judge = make(c);
        EXPECT_LT(seconds_of([&] {
                      reward::Pool pool(*judge, {2, 8, 0});
                      for (std::uint64_t i = 0; i < 4; ++i) pool.submit(request(i));
                      std::this_thread::sleep_for(std::chrono::milliseconds(100));
                  }),
                  5.0);
    }
}

TEST(HttpJudge, TheKeyStandsNowhere) {
    // Servers that repeat the key: in errors, in broken answers, in reasons, cut or whole.
    std::vector<Reply> replies{
        {401, {}, "Incorrect API key provided: " + secret, 0, false},
        {500, {}, std::string(190, 'x') + secret, 0, false},
        {200, {}, "no JSON: " + secret, 0, false},
        {200, {}, completion("Key " + secret).dump(), 0, false},
        {200, {}, completion("Key " + secret + "\nScore: " + secret).dump(), 0, false},
        {200, {}, R"({"choices": [{"message": {"refusal": ")" + secret + "\"}}]}", 0, false}};
    std::string escaped;  // as JSON may write it
    for (const char ch : secret) escaped += ch == '/' ? "\\/" : std::string(1, ch);
    replies.push_back({200, {}, R"({"choices": [{"message": {"refusal": ")" + escaped + "\"}}]}", 0, false});
    for (const Reply& reply : replies) {
        const JudgeServer server([&](const Asked&) { return reply; });
        HttpJudgeConfig c = config_of(server.url());
        c.retries = 0;
        const std::string message = why(*make(c));
        EXPECT_NE(message, "");
        EXPECT_THAT(message, Not(HasSubstr("0123456789")));
        EXPECT_THAT(message, Not(HasSubstr("sk-Te5t")));
    }
    const JudgeServer server([&](const Asked&) {
        return Reply{200, {}, completion("Key " + secret + " is fine.\nScore: 4", {0, 0, 0, 0.9, 0.1}).dump(), 0, false};
    });
    EXPECT_THAT(make(config_of(server.url()))->score(request(), 0).at("alignment").reason,
                ::testing::StartsWith("Key [key] is fine."));
}

TEST(HttpJudge, AKeyThatMayBeAWordOfAnAnswerIsRefused) {
    HttpJudgeConfig c = config_of("http://127.0.0.1:1/v1");
    for (const char* key : {"1", "none", "EMPTY", "7letter"}) {
        c.http.key = key;
        try {
            make(c);
            ADD_FAILURE() << key;
        } catch (const Error& e) {
            EXPECT_EQ(e.kind(), ErrorKind::usage);
            EXPECT_THAT(e.message(), AllOf(HasSubstr("judge.key_variable: the key has fewer than 8 characters"), Not(HasSubstr("7letter")), Not(HasSubstr("EMPTY"))));
        }
    }
    c.http.key = "8letters";
    EXPECT_NO_THROW(make(c));
    // Without a key nothing is taken out.
    const JudgeServer server([&](const Asked&) { return Reply{200, {}, completion("No face.\nScore: none").dump(), 0, false}; });
    HttpJudgeConfig open = config_of(server.url());
    open.http.key.clear();
    auto asked = templates({"portrait"});
    asked[0].may_not_apply = true;
    EXPECT_FALSE(make_http_judge(open, {{"t2i", asked}})->score(request(), 0).at("portrait").present);
}

TEST(HttpJudge, RefusesUrlsThatAreNoneOrHoldSecrets) {
    for (const char* url : {"", "ftp://a/v1", "file:///etc/passwd", "http://user:word@host/v1"})
        EXPECT_THROW(make(config_of(url)), Error) << url;
}

}  // namespace
}  // namespace atelier::judge
