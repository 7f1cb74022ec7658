// Judges that are ranks of their own, over mailboxes in memory: the outcomes of a pool, in any constellation and order; what they say to
// each other, to the bit; failures and the signal to stop.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>

#include "core/error.hpp"
#include "core/signals.hpp"
#include "reward/judge_ranks.hpp"

namespace atelier::reward {
namespace {

/// Mailboxes of several ranks in one process; messages take a while that differs from one to the next.
class Post {
  public:
    explicit Post(int ranks) : boxes_(static_cast<std::size_t>(ranks)) {}
    std::unique_ptr<comm::Mailbox> mailbox(int rank) { return std::make_unique<Box>(*this, rank); }
    std::atomic<bool> is_cut{false};  ///< nothing goes any more

  private:
    struct Letter {
        comm::Mailbox::Message message;
        std::chrono::steady_clock::time_point arrives;
    };
    class Box final : public comm::Mailbox {
      public:
        Box(Post& post, int rank) : post_(post), rank_(rank) {}
        void send(int rank, std::vector<std::byte> bytes) override {
            ATELIER_CHECK_KIND(ErrorKind::rank, !post_.is_cut, "the line is cut");
            const std::lock_guard lock(post_.mutex_);
            auto& box = post_.boxes_.at(static_cast<std::size_t>(rank));
            auto arrives = std::chrono::steady_clock::now() + std::chrono::microseconds(post_.count_++ * 7919 % 3000);
            for (const Letter& earlier : box)  // one sender's letters keep their order
                if (earlier.message.source == rank_) arrives = std::max(arrives, earlier.arrives);
            box.push_back({{rank_, std::move(bytes)}, arrives});
        }
        std::optional<Message> receive() override {
            const std::lock_guard lock(post_.mutex_);
            auto& box = post_.boxes_.at(static_cast<std::size_t>(rank_));
            for (auto letter = box.begin(); letter != box.end(); ++letter) {
                if (letter->arrives > std::chrono::steady_clock::now()) continue;
                Message message = std::move(letter->message);
                box.erase(letter);
                return message;
            }
            return std::nullopt;
        }
        std::size_t sending() override { return 0; }

      private:
        Post& post_;
        int rank_;
    };
    std::mutex mutex_;
    std::vector<std::deque<Letter>> boxes_;
    unsigned count_ = 0;
};

/// Scores by what a request holds, sources included; odd samples fail at first, every seventh always.
class Reading final : public Scorer {
  public:
    explicit Reading(double most = 5) : most_(most) {}
    const std::vector<std::string>& dimensions(const std::string& kind) const override {
        static const std::vector<std::string> t2i{"alignment", "portrait"}, edit{"instruction"};
        return kind == "t2i" ? t2i : edit;
    }
    Verdicts score(const Request& r, int attempt) const override {
        std::this_thread::sleep_for(std::chrono::microseconds(r.sample_id * 6151 % 2000));
        ATELIER_CHECK_KIND(ErrorKind::reward, r.sample_id % 7 != 6 && (r.sample_id % 2 == 0 || attempt > 0), "sample {} fails", r.sample_id);
        double sum = static_cast<double>(r.noise_key.low % 97) + static_cast<double>(r.noise_key.high % 89) + static_cast<double>(r.prompt.size());
        for (const std::uint8_t byte : r.picture) sum += byte;
        if (r.sources)
            for (const io::Image& image : *r.sources)
                for (const std::uint8_t byte : image.pixels) sum += 3 * byte;
        return {{r.kind == "t2i" ? "alignment" : "instruction", {true, 1 + std::fmod(sum / 7, most_ - 1), "seen \xff" + r.attributes}}};
    }

  private:
    double most_;
};

Request request(std::uint64_t sample) {
    Request r{sample, sample % 3 == 0 ? "edit" : "t2i", "{\"n\": " + std::to_string(sample) + "}", 2, 1, {}, std::string(sample % 5, 'x'), nullptr,
              {sample * 0x9e3779b97f4a7c15ull, ~sample}};
    for (std::uint64_t i = 0; i < 8; ++i) r.picture.push_back(static_cast<std::uint8_t>(sample * 31 + i));
    if (r.kind == "edit") {
        auto sources = std::make_shared<std::vector<io::Image>>();
        sources->emplace_back(3, 2, 4, static_cast<std::uint8_t>(sample));
        r.sources = sources;
    }
    return r;
}

struct Constellation {
    int generators, judges, workers, queue;
    std::size_t capacity;
};

std::map<std::uint64_t, Outcome> judged(const Constellation& of, int samples, int exit_code = 0) {
    Post post(of.generators + of.judges);
    std::vector<std::thread> ranks;
    std::vector<int> judges, codes(static_cast<std::size_t>(of.judges), -1);
    for (int j = 0; j < of.judges; ++j) judges.push_back(of.generators + j);
    for (int j = 0; j < of.judges; ++j)
        ranks.emplace_back([&, j] {
            const auto mailbox = post.mailbox(judges[static_cast<std::size_t>(j)]);
            codes[static_cast<std::size_t>(j)] = serve_as_judge(*mailbox, of.generators, {"t2i", "edit"}, {of.workers, of.queue, 1, 0.0001},
                                                                [] { return std::make_unique<Reading>(); }, [](const Scorer&) {});
        });
    std::map<std::uint64_t, Outcome> outcomes;
    std::mutex mutex;
    for (int g = 0; g < of.generators; ++g)
        ranks.emplace_back([&, g] {
            JudgeRanks link(post.mailbox(g), judges, of.capacity);
            link.open();
            EXPECT_THAT(link.dimensions("t2i"), testing::ElementsAre("alignment", "portrait"));
            std::vector<std::pair<std::uint64_t, std::future<Outcome>>> waiting;
            for (int i = g; i < samples; i += of.generators)
                waiting.emplace_back(i, link.submit(request(static_cast<std::uint64_t>(i))));
            for (auto& [sample, outcome] : waiting) {
                const Outcome o = outcome.get();
                const std::lock_guard lock(mutex);
                outcomes[sample] = o;
            }
            link.close(g == 0 ? exit_code : 0);
        });
    for (std::thread& rank : ranks) rank.join();
    for (const int code : codes) EXPECT_EQ(code, exit_code);
    return outcomes;
}

TEST(JudgeRanks, OutcomesAreAPoolsInAnyConstellation) {
    constexpr int samples = 60;
    const Reading scorer;
    std::map<std::uint64_t, Outcome> expected;
    {
        Pool pool(scorer, {3, 64, 1, 0.0001});
        std::vector<std::future<Outcome>> futures;
        for (std::uint64_t i = 0; i < samples; ++i) futures.push_back(pool.submit(request(i)));
        for (std::uint64_t i = 0; i < samples; ++i) expected[i] = futures[i].get();
    }
    for (const Constellation& c : {Constellation{1, 1, 1, 1, 1}, {1, 3, 2, 4, 9}, {2, 1, 4, 8, 4}, {3, 2, 8, 64, 40}}) {
        const auto found = judged(c, samples, 75);
        ASSERT_EQ(found.size(), expected.size());
        for (const auto& [sample, outcome] : expected) {
            const Outcome& other = found.at(sample);
            EXPECT_EQ(other.failed, outcome.failed) << sample;
            EXPECT_EQ(other.attempts, outcome.attempts) << sample;
            ASSERT_EQ(other.verdicts.size(), outcome.verdicts.size());
            for (const auto& [name, verdict] : outcome.verdicts) {
                EXPECT_EQ(other.verdicts.at(name).present, verdict.present);
                EXPECT_EQ(other.verdicts.at(name).score, verdict.score) << "to the bit";
                EXPECT_EQ(other.verdicts.at(name).reason, verdict.reason);
            }
        }
        EXPECT_TRUE(found.at(6).failed && !found.at(6).verdicts.at("instruction").present) << "absent, never a number";
    }
}

TEST(JudgeRanks, AStageThatIsCompleteNeedsNoScorer) {
    Post post(2);
    std::thread generator([&] { JudgeRanks(post.mailbox(0), {1}, 1).close(0); });
    const auto mailbox = post.mailbox(1);
    EXPECT_EQ(serve_as_judge(*mailbox, 1, {"t2i"}, {1, 1, 0}, []() -> std::unique_ptr<Scorer> { throw std::runtime_error("asked for"); },
                             [](const Scorer&) {}),
              0);
    generator.join();
}

TEST(JudgeRanks, ABrokenScorerEndsTheJudge) {
    Post post(2);
    JudgeRanks link(post.mailbox(0), {1}, 4);
    auto outcome = link.submit(request(2));
    const auto mailbox = post.mailbox(1);
    EXPECT_THROW(serve_as_judge(*mailbox, 1, {"t2i"}, {1, 1, 0}, [] { return std::make_unique<Reading>(1e9); }, [](const Scorer&) {}), Error)
        << "a score that is none is no verdict, and no missing one either";
    EXPECT_EQ(outcome.wait_for(std::chrono::milliseconds(20)), std::future_status::timeout);
}

TEST(JudgeRanks, ACutLineIsThrown) {
    Post post(2);
    JudgeRanks link(post.mailbox(0), {1}, 1);
    auto first = link.submit(request(0));
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    post.is_cut = true;
    EXPECT_THROW(
        {
            link.open();
            link.dimensions("t2i");
        },
        Error);
    EXPECT_THROW(first.get(), Error);
    EXPECT_THROW(link.submit(request(1)), Error);
    EXPECT_THROW(link.close(0), Error);
}

TEST(JudgeRanks, AJudgePassesTheSignalOn) {
    ASSERT_FALSE(signal_was_seen());
    Post post(2);
    JudgeRanks link(post.mailbox(0), {1}, 1);
    post.mailbox(1)->send(0, encode({MessageKind::stop}));
    for (int i = 0; i < 500 && !signal_was_seen(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    EXPECT_TRUE(signal_was_seen());
}

TEST(Messages, KeepEveryBit) {
    Message m{MessageKind::outcome, ~std::uint64_t{0}};
    m.outcome.verdicts = {{"a", {true, std::nextafter(3.0, 4.0), "caf\xc3\xa9 \xff"}}, {"b", {false, 1, ""}}};
    m.outcome.seconds = 1.0 / 3;
    m.outcome.begin = 1.7e9 + 1.0 / 7;
    m.outcome.worker = 5;
    const Message back = decode(encode(m));
    EXPECT_EQ(back.ticket, m.ticket);
    EXPECT_EQ(back.outcome.verdicts.at("a").score, m.outcome.verdicts.at("a").score);
    EXPECT_EQ(back.outcome.verdicts.at("a").reason, m.outcome.verdicts.at("a").reason);
    EXPECT_FALSE(back.outcome.verdicts.at("b").present);
    EXPECT_EQ(back.outcome.seconds, m.outcome.seconds);
    EXPECT_EQ(back.outcome.begin, m.outcome.begin);
    EXPECT_EQ(back.outcome.worker, 5);
    Message asked{MessageKind::request, 3};
    asked.request = request(9);
    const Request r = decode(encode(asked)).request;
    EXPECT_EQ(r.picture, asked.request.picture);
    EXPECT_EQ(*r.sources, *asked.request.sources);
    EXPECT_EQ(r.noise_key, asked.request.noise_key);
    EXPECT_EQ(r.attributes, asked.request.attributes);
    EXPECT_THROW(decode({std::byte{0xff}, std::byte{1}}), Error);
}

}  // namespace
}  // namespace atelier::reward
