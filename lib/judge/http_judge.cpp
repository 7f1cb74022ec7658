#include "judge/http_judge.hpp"

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <future>

#include "core/error.hpp"
#include "core/json.hpp"
#include "core/philox.hpp"
#include "io/image/png.hpp"
#include "judge/answer.hpp"
#include "model/processor/resize.hpp"

namespace atelier::judge {
namespace {

using Clock = CircuitBreaker::Clock;

/// Characters. A shorter key may be a word of an answer, such as the "none" of a score.
constexpr std::size_t least_key = 8;

/// Overload and time-outs that a server reports, beside its own errors.
bool is_passing(int status) {
    return status >= 500 || status == 408 || status == 409 || status == 425 || status == 429;
}

class HttpJudge final : public reward::Scorer {
  public:
    HttpJudge(const HttpJudgeConfig& config, std::map<std::string, std::vector<Template>> templates)
        : config_(config),
          templates_(std::move(templates)),
          client_(config.http),
          breaker_(config.breaker) {
        ATELIER_CHECK_USAGE(config.url.starts_with("http://") || config.url.starts_with("https://"),
                            "judge.url must begin with http:// or https://");
        ATELIER_CHECK_USAGE(config.url.find('@') == std::string::npos,
                            "judge.url holds a user or password: secrets come from the environment "
                            "only (judge.key_variable)");
        ATELIER_CHECK_USAGE(config.http.key.empty() || config.http.key.size() >= least_key,
                            "judge.key_variable: the key has fewer than {} characters; taken out of "
                            "answers it would take scores with it. Where the server asks for no key, "
                            "leave judge.key_variable empty",
                            least_key);
        url_ = config.url.substr(0, config.url.find_last_not_of('/') + 1) + "/chat/completions";
        for (const auto& [kind, list] : templates_)
            for (const Template& t : list) dimensions_[kind].push_back(t.dimension);
    }
    const std::vector<std::string>& dimensions(const std::string& kind) const override {
        const auto found = dimensions_.find(kind);
        ATELIER_CHECK_USAGE(found != dimensions_.end(), "the judge has no templates for {}", kind);
        return found->second;
    }
    reward::Verdicts score(const reward::Request& request, int) const override;
    bool retries_itself() const override { return true; }
    Bytes bytes(std::size_t workers, std::size_t picture_bytes) const override {
        std::size_t most = 0;
        for (const auto& [kind, list] : templates_) most = std::max(most, list.size());
        // A picture in base64 is about as long as its RGBA; the data URL stands in the list, the
        // question, its copy with the seed and the text that is sent.
        return workers * most * 4 * picture_bytes;
    }
    void interrupt() const noexcept override {
        {
            const std::lock_guard lock(mutex_);
            interrupted_ = true;
        }
        wake_.notify_all();
        client_.give_up();
    }

  private:
    /// One dimension's question: what it says but for the seed.
    struct Question {
        const Template* asked = nullptr;
        const reward::Request* request = nullptr;
        nlohmann::json body;
    };
    Question make_question(const Template& asked, const reward::Request& request,
                           const io::Image& picture,
                           const std::map<const io::Image*, std::string>& urls) const;
    reward::Verdict ask(const Question& question) const;
    reward::Verdict read(const Question& question, const HttpResponse& response) const;
    void wait_for_the_server(const std::string& last_failure) const;
    void wait(double seconds) const;
    /// No question goes out before: the server has asked for it.
    void leave_alone(double seconds) const;
    std::uint64_t draw(RandomUse use, const Question& question, int attempt) const;
    /// A text without the key, whoever wrote it in.
    std::string redacted(std::string text) const {
        const std::string& key = config_.http.key;
        if (key.empty()) return text;
        for (auto at = text.find(key); at != std::string::npos; at = text.find(key, at))
            text.replace(at, key.size(), "[key]");
        return text;
    }

    HttpJudgeConfig config_;
    std::string url_;
    std::map<std::string, std::vector<Template>> templates_;
    std::map<std::string, std::vector<std::string>> dimensions_;
    mutable HttpClient client_;
    mutable CircuitBreaker breaker_;
    mutable std::mutex mutex_;
    mutable std::condition_variable wake_;
    mutable bool interrupted_ = false;
    mutable Clock::time_point not_before_{};
};

reward::Verdicts HttpJudge::score(const reward::Request& request, int) const {
    static const std::vector<io::Image> none;
    const std::vector<io::Image>& sources = request.sources ? *request.sources : none;
    io::Image picture(static_cast<int>(request.width), static_cast<int>(request.height), 4);
    picture.pixels = request.picture;
    dimensions(request.kind);
    const std::vector<Template>& templates = templates_.at(request.kind);
    // Encoded once for all dimensions.
    std::map<const io::Image*, std::string> urls{{&picture, io::png_data_url(model::over_white(picture))}};
    if (std::any_of(templates.begin(), templates.end(),
                    [](const Template& t) { return t.shows_source; }))
        for (const io::Image& source : sources) urls[&source] = io::png_data_url(model::over_white(source));
    std::vector<std::future<reward::Verdict>> answers;
    for (const Template& asked : templates)
        answers.push_back(std::async(
            std::launch::async, [this, q = make_question(asked, request, picture, urls)] {
                return ask(q);
            }));
    reward::Verdicts verdicts;
    std::string failures;
    for (std::size_t i = 0; i < answers.size(); ++i) try {
            verdicts[templates[i].dimension] = answers[i].get();
        } catch (const Error& e) {
            failures += (failures.empty() ? "" : "; ") + e.message();
        }
    ATELIER_CHECK_KIND(ErrorKind::reward, failures.empty(), "{}", failures);
    return verdicts;
}

HttpJudge::Question HttpJudge::make_question(
    const Template& asked, const reward::Request& request, const io::Image& picture,
    const std::map<const io::Image*, std::string>& urls) const {
    using Json = nlohmann::json;
    static const std::vector<io::Image> none;
    const Conversation c = make_conversation(asked, request.prompt, picture,
                                             request.sources ? *request.sources : none);
    Json user = Json::array();
    for (const Part& part : c.user) {
        if (part.picture != nullptr)
            user.push_back({{"type", "image_url"}, {"image_url", {{"url", urls.at(part.picture)}}}});
        else
            user.push_back({{"type", "text"}, {"text", part.text}});
    }
    Question q{&asked, &request, {}};
    q.body = {{"model", config_.model},
              {"messages",
               {{{"role", "system"}, {"content", c.system}}, {{"role", "user"}, {"content", user}}}},
              {"temperature", config_.temperature},
              // The score's own line comes on top.
              {"max_tokens", asked.reasoning_tokens + 16}};
    if (config_.top_logprobs > 0) {
        q.body["logprobs"] = true;
        q.body["top_logprobs"] = config_.top_logprobs;
    }
    return q;
}

std::uint64_t HttpJudge::draw(RandomUse use, const Question& q, int attempt) const {
    std::uint64_t name = 0;
    for (const char c : q.asked->dimension) name = name * 31 + static_cast<unsigned char>(c);
    return Random(random_key(config_.seed, use, q.request->noise_key.low, q.request->noise_key.high,
                             name, static_cast<std::uint64_t>(attempt)))
        .next_u64();
}

reward::Verdict HttpJudge::ask(const Question& q) const {
    // Trials of a server that is out of order cost no attempt until the outage has lasted too long.
    std::string why;
    for (int attempt = 0, trials = 0;; ++attempt) {
        nlohmann::json body = q.body;
        body["seed"] = draw(RandomUse::judge_token, q, attempt) >> 33;  // fits every server's integer
        wait_for_the_server(why);
        const HttpResponse response = client_.post(url_, body.dump()).get();
        if (response.status == 0 || response.status >= 500) {
            const auto now = Clock::now();
            breaker_.failed(now);
            if (breaker_.is_open() && !breaker_.gives_up(now)) ++trials;
        } else {
            breaker_.succeeded();
        }
        double pause = std::min(std::ldexp(config_.backoff_seconds, attempt),
                                config_.longest_wait_seconds);
        pause *= 0.5 + std::ldexp(static_cast<double>(draw(RandomUse::retry_jitter, q, attempt) >> 11), -54);
        if (response.retry_after) {
            pause = std::max(pause, *response.retry_after);
            if (*response.retry_after <= config_.longest_wait_seconds) leave_alone(*response.retry_after);
        }
        const bool may_repeat =
            response.status == 0 || response.status == 200 || is_passing(response.status);
        try {
            return read(q, response);
        } catch (const Error& e) {
            why = redacted(e.message());
        }
        const bool is_short = pause <= config_.longest_wait_seconds;
        ATELIER_CHECK_KIND(ErrorKind::reward,
                           may_repeat && is_short && attempt - trials < config_.retries,
                           "{} (attempt {}{})", why, attempt + 1,
                           is_short ? ""
                                    : fmt::format("; the server asks to wait {} s, "
                                                  "judge.longest_wait allows {} s",
                                                  pause, config_.longest_wait_seconds));
        wait(pause);
    }
}

reward::Verdict HttpJudge::read(const Question& q, const HttpResponse& response) const {
    const std::string body = redacted(response.body);
    ATELIER_CHECK_KIND(ErrorKind::reward, response.error.empty(), "{}: no answer: {}",
                       q.asked->dimension, response.error);
    ATELIER_CHECK_KIND(ErrorKind::reward, response.status == 200, "{}: HTTP {}: {}",
                       q.asked->dimension, response.status, excerpt(body));
    nlohmann::json completion;
    try {
        completion = parse_json(body, "the server's answer");
    } catch (const Error& e) {
        ATELIER_FAIL(ErrorKind::reward, "{}: the server's answer is no JSON: {}: {}",
                     q.asked->dimension, e.message(), excerpt(body));
    }
    reward::Verdict verdict = read_completion(*q.asked, completion);
    verdict.reason = redacted(std::move(verdict.reason));
    return verdict;
}

void HttpJudge::leave_alone(double seconds) const {
    const std::lock_guard lock(mutex_);
    not_before_ = std::max(not_before_, Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds)));
}

void HttpJudge::wait_for_the_server(const std::string& last_failure) const {
    {
        std::unique_lock lock(mutex_);
        while (!interrupted_ && Clock::now() < not_before_) wake_.wait_until(lock, not_before_);
    }
    for (;;) {
        const auto advice = breaker_.advise(Clock::now());
        if (advice == CircuitBreaker::Advice::ask) return;
        ATELIER_CHECK_KIND(ErrorKind::reward, advice == CircuitBreaker::Advice::wait,
                           "the judge's server has been out of order for judge.outage = {} s{}{}",
                           config_.breaker.outage_seconds, last_failure.empty() ? "" : ": ",
                           last_failure);
        wait(std::clamp(config_.breaker.pause_seconds, 0.01, 0.1));
    }
}

void HttpJudge::wait(double seconds) const {
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return interrupted_; });
    ATELIER_CHECK_KIND(ErrorKind::reward, !interrupted_, "the question was given up");
}

}  // namespace

std::unique_ptr<reward::Scorer> make_http_judge(
    const HttpJudgeConfig& config, std::map<std::string, std::vector<Template>> templates) {
    return std::make_unique<HttpJudge>(config, std::move(templates));
}

}  // namespace atelier::judge
