#include "judge/native_judge.hpp"

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <future>
#include <list>
#include <mutex>
#include <optional>
#include <thread>

#include "core/device_turn.hpp"
#include "core/error.hpp"
#include "core/parallel.hpp"
#include "core/philox.hpp"
#include "core/signals.hpp"
#include "judge/answer.hpp"
#include "model/vlm/decoder.hpp"
#include "ops/backend.hpp"
#include "ops/rows.hpp"

namespace atelier::judge {
namespace {

// Between reason and score: a line end and the marker, however they are cut into tokens.
constexpr std::int64_t tokens_around_score = 32;
// Of further attempts, at least: the likeliest words failed already.
constexpr double retry_temperature = 0.7;

/// Index of the token drawn: the likeliest at temperature 0 (the first of equals).
std::int32_t pick(std::span<const float> logits, double temperature, Random random) {
    const auto top = std::max_element(logits.begin(), logits.end());
    if (temperature == 0) return static_cast<std::int32_t>(top - logits.begin());
    double sum = 0;
    for (const float v : logits) sum += std::exp((v - *top) / temperature);
    double left = random.uniform() * sum;
    for (std::size_t i = 0; i < logits.size(); ++i)
        if ((left -= std::exp((logits[i] - *top) / temperature)) < 0)
            return static_cast<std::int32_t>(i);
    return static_cast<std::int32_t>(top - logits.begin());
}

std::uint64_t number_of(const std::string& name) {
    std::uint64_t n = 0;
    for (const char c : name) n = n * 31 + static_cast<unsigned char>(c);
    return n;
}

using TemplatesByKind = std::map<std::string, std::vector<Template>>;

std::int64_t rubric_tokens(const QuestionMaker& model, const Template& t) {
    std::string text = t.rubric + t.answer;
    for (std::size_t i = 0; i < levels; ++i) text += t.score_tokens[i] + ": " + t.level[i] + "\n";
    return static_cast<std::int64_t>(model.tokenizer().encode(text).size());
}

/// What answers are written with: a pass over what their questions share, and a decoder for all of them.
struct AnswerBuffers {
    std::optional<vlm::Session> session;
    std::optional<vlm::Decoder> decoder;
    Tensor states;                ///< [answers, hidden]: a row for each answer, in the order of the lines
    Tensor read_states, logits;   ///< [answers, hidden], [answers, vocabulary]: of those whose next token is chosen
    Tensor read_rows;             ///< on a device: room for i32 [answers] there
    Tensor host_logits;           ///< [answers, vocabulary] in host memory

    AnswerBuffers(const QuestionMaker& model, const NativeJudgeConfig& config, const TemplatesByKind& templates, Arena& arena) {
        const vlm::Config& c = model.vlm().config();
        std::int64_t own_tokens = 0;
        for (const auto& [kind, list] : templates)
            for (const Template& t : list)
                own_tokens = std::max(own_tokens, rubric_tokens(model, t) + t.reasoning_tokens + tokens_around_score);
        session.emplace(model.vlm(), config.context, config.context * c.vision.merge * c.vision.merge, arena);
        // A prefix for each answer: no two dimensions need share one.
        decoder.emplace(model.vlm(), vlm::DecoderSize{config.answers, config.answers, config.context, own_tokens}, arena);
        const Device device = model.vlm().device();
        states = arena.take_f32({config.answers, c.text.hidden}, device);
        read_states = arena.take_f32({config.answers, c.text.hidden}, device);
        logits = arena.take_f32({config.answers, c.text.vocabulary}, device);
        host_logits = logits;
        if (device == Device::cpu) return;
        read_rows = arena.take(DType::i32, {config.answers}, device);
        host_logits = arena.take_f32({config.answers, c.text.vocabulary});
    }
};

/// Whether two dimensions are asked about the same pictures in the same words, up to their rubrics.
bool share_question(const Template& a, const Template& b) {
    return a.system == b.system && a.question == b.question && a.shows_source == b.shows_source;
}

/// Pictures of questions on their way: patches once for dimensions that share a question, of each picture three channels, two frames,
/// in fp32, where RGBA is four bytes; an edit's source beside the result where it is shown.
std::size_t question_bytes(const TemplatesByKind& templates, std::size_t workers, std::size_t picture_bytes) {
    std::size_t most = 0;
    for (const auto& [kind, list] : templates) {
        std::size_t pictures = 0;
        for (auto t = list.begin(); t != list.end(); ++t)
            if (std::none_of(list.begin(), t, [&](const Template& before) { return share_question(before, *t); })) pictures += t->shows_source ? 2 : 1;
        most = std::max(most, pictures);
    }
    return workers * most * 6 * picture_bytes;
}

}  // namespace

Bytes native_judge_bytes(const QuestionMaker& model, const NativeJudgeConfig& config, const TemplatesByKind& templates, std::size_t workers,
                         std::size_t picture_bytes) {
    const Bytes buffers = Workspace::measure([&](Arena& arena) { AnswerBuffers(model, config, templates, arena); });
    return model.weight_bytes() + buffers + question_bytes(templates, workers, picture_bytes);
}

void check_answers(const NativeJudgeConfig& config, const TemplatesByKind& templates) {
    for (const auto& [kind, list] : templates)
        ATELIER_CHECK_USAGE(static_cast<int>(list.size()) <= config.answers, "judge.answers = {}, but {} dimensions of {} are asked for",
                            config.answers, list.size(), kind);
}

class NativeJudge::Engine {
  public:
    Engine(const NativeJudgeConfig& config, TemplatesByKind templates)
        : config_(config), model_(config.directory, config.device, config.precision), templates_(std::move(templates)) {
        check_answers(config, templates_);
        for (const auto& [kind, list] : templates_)
            for (const Template& t : list) {
                dimensions_[kind].push_back(t.dimension);
                asked_[kind].push_back({t, model_.score_tokens(t)});
            }
        line_end_ = model_.tokenizer().encode("\n");
        const auto plan = [&](Arena& arena) { buffers_.emplace(model_, config_, templates_, arena); };
        arena_ = Arena("judge", Workspace::measure(plan));
        plan(arena_);
        for (int i = config_.answers; i > 0; --i) free_slots_.push_back(i - 1);
        prefix_users_.assign(static_cast<std::size_t>(config_.answers), 0);
        if (config_.device != Device::cpu) shared_.emplace();
        const SignalsBlocked blocked;
        thread_ = std::thread([this] { work(); });
    }
    /// Gives up what is in work. Before the end of its life, without a turn.
    void end() {
        interrupt();
        thread_.join();
    }
    Device device() const { return config_.device; }
    const std::vector<std::string>& dimensions(const std::string& kind) const {
        const auto found = dimensions_.find(kind);
        ATELIER_CHECK_USAGE(found != dimensions_.end(), "the judge has no templates for {}", kind);
        return found->second;
    }
    Bytes bytes(std::size_t workers, std::size_t picture_bytes) const {
        return model_.weight_bytes() + arena_.bytes() + question_bytes(templates_, workers, picture_bytes);
    }
    void interrupt() noexcept {
        {
            const std::lock_guard lock(mutex_);
            interrupted_ = true;
        }
        wake_.notify_all();
    }
    reward::Verdicts judge(const reward::Request& request, int attempt);

  private:
    struct Asked {
        const Template& text;
        ScoreTokens tokens;
    };
    /// Dimensions of a sample that share what comes before their rubrics.
    struct Shared {
        std::vector<const Asked*> asked;
        std::vector<Question> questions;
        std::size_t prefix = 0;  ///< tokens
    };
    struct Job {
        RandomKey noise_key;
        int attempt = 0;
        std::vector<Shared> shared;
        std::size_t open = 0;  ///< answers not finished
        reward::Verdicts verdicts;
        std::string failures;
        std::promise<reward::Verdicts> promise;
        std::size_t answers() const {
            std::size_t n = 0;
            for (const Shared& s : shared) n += s.asked.size();
            return n;
        }
    };
    /// One answer in the making.
    struct Line {
        Job* job = nullptr;
        const Asked* asked = nullptr;
        int slot = 0, prefix = 0;
        std::vector<std::int32_t> written;
        std::deque<std::int32_t> forced;  ///< go next
        bool scores = false;              ///< the reason is complete
        bool is_cut = false;              ///< by the template's budget
        std::size_t gap = 0;              ///< tokens of the gap that went
        std::string reason;
        std::optional<std::int32_t> next;  ///< the token that was chosen and is not in the answer's state yet
        bool draws() const { return forced.empty() && !scores; }  ///< its next token, by the logits
        bool needs_logits() const {
            if (!forced.empty()) return false;
            const ScoreTokens& t = asked->tokens;
            return !scores || gap == t.gap.size() || (t.absent >= 0 && gap == t.absent_at);
        }
    };

    void work();
    void admit(std::unique_ptr<Job> job);
    /// Puts the chosen tokens after their answers, and brings the logits that the next are chosen by.
    void advance();
    /// Chooses them; answers that are complete go.
    void choose();
    /// The token that an answer goes on with by its logits.
    std::int32_t draw(const Line& line, std::span<const float> logits) const;
    /// The token that goes next, the one `drawn` where the answer draws; or nothing: the answer is complete.
    std::optional<std::int32_t> next_token(Line& line, std::span<const float> logits, std::int32_t drawn);
    void finish(Line& line, const reward::Verdict* verdict, const std::string& failure);
    void fail_all(const std::string& why);

    NativeJudgeConfig config_;
    JudgeModel model_;
    TemplatesByKind templates_;
    std::map<std::string, std::vector<Asked>> asked_;
    std::map<std::string, std::vector<std::string>> dimensions_;
    std::vector<std::int32_t> line_end_;
    Arena arena_ = Arena::measuring("judge");
    std::optional<AnswerBuffers> buffers_;
    // The thread's own.
    std::list<Line> lines_;  ///< those that are new last
    std::vector<std::unique_ptr<Job>> jobs_;
    std::vector<int> free_slots_;
    std::vector<int> prefix_users_;  ///< answers that use each prefix

    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<std::unique_ptr<Job>> waiting_;
    bool interrupted_ = false;
    std::optional<SharedDevice> shared_;
    std::thread thread_;
};

reward::Verdicts NativeJudge::Engine::judge(const reward::Request& request, int attempt) {
    static const std::vector<io::Image> none;
    io::Image picture(static_cast<int>(request.width), static_cast<int>(request.height), 4);
    picture.pixels = request.picture;
    dimensions(request.kind);
    auto job = std::make_unique<Job>();
    job->noise_key = request.noise_key;
    job->attempt = attempt;
    for (const Asked& asked : asked_.at(request.kind)) {
        auto shared = std::find_if(job->shared.begin(), job->shared.end(),
                                   [&](const Shared& s) { return share_question(s.asked[0]->text, asked.text); });
        Question q = model_.make_question(make_conversation(asked.text, request.prompt, picture, request.sources ? *request.sources : none),
                                          shared == job->shared.end() ? nullptr : &shared->questions[0].vision);
        ATELIER_CHECK_KIND(ErrorKind::reward,
                           static_cast<std::int64_t>(q.ids.size()) <= config_.context,
                           "{}: a question of {} tokens, judge.context allows {}",
                           asked.text.dimension, q.ids.size(), config_.context);
        if (shared == job->shared.end()) {
            job->shared.emplace_back();
            shared = std::prev(job->shared.end());
        }
        // At least the last token is a question's own.
        shared->prefix = shared->questions.empty()
                             ? q.ids.size() - 1
                             : std::min(shared->prefix,
                                        common_prefix(shared->questions[0].ids, q.ids));
        shared->prefix = std::min(shared->prefix, q.ids.size() - 1);
        shared->asked.push_back(&asked);
        shared->questions.push_back(std::move(q));
    }
    job->open = job->answers();
    auto future = job->promise.get_future();
    {
        const std::lock_guard lock(mutex_);
        ATELIER_CHECK_KIND(ErrorKind::reward, !interrupted_, "the question was given up");
        waiting_.push_back(std::move(job));
    }
    wake_.notify_all();
    return future.get();
}

void NativeJudge::Engine::work() {
    for (;;) {
        std::vector<std::unique_ptr<Job>> coming;
        {
            std::unique_lock lock(mutex_);
            if (lines_.empty())
                wake_.wait(lock, [this] { return interrupted_ || !waiting_.empty(); });
            if (interrupted_) break;
            std::size_t room = free_slots_.size();
            while (!waiting_.empty() && waiting_.front()->answers() <= room) {
                room -= waiting_.front()->answers();
                coming.push_back(std::move(waiting_.front()));
                waiting_.pop_front();
            }
        }
        try {
            for (auto& job : coming) admit(std::move(job));
            advance();
            choose();
        } catch (const std::exception& e) {
            for (auto& job : coming)
                if (job) jobs_.push_back(std::move(job));  // they came behind the one that failed
            fail_all(e.what());
        }
    }
    fail_all("given up");
}

void NativeJudge::Engine::admit(std::unique_ptr<Job> owned) {
    jobs_.push_back(std::move(owned));
    Job& job = *jobs_.back();
    const DeviceTurn turn(config_.device);
    for (Shared& s : job.shared) {
        const Question& first = s.questions[0];
        const auto ids = std::span(first.ids);
        buffers_->session->encode(model_.weights(), ids.subspan(0, s.prefix), first.pixel_values(),
                         first.vision.image_grid_thw);
        const std::int64_t position = buffers_->session->next_position();
        const auto prefix = static_cast<int>(
            std::find(prefix_users_.begin(), prefix_users_.end(), 0) - prefix_users_.begin());
        buffers_->decoder->set_prefix(prefix, *buffers_->session);
        for (std::size_t i = 0; i < s.asked.size(); ++i) {
            buffers_->session->rewind(static_cast<std::int64_t>(s.prefix), position);
            const Tensor states = buffers_->session->extend(
                model_.weights(), std::span(s.questions[i].ids).subspan(s.prefix));
            const auto row = static_cast<std::int64_t>(lines_.size());
            Line& line = lines_.emplace_back();  // what it takes comes back with it when the next lines fail
            line.job = &job;
            line.asked = s.asked[i];
            line.prefix = prefix;
            line.slot = free_slots_.back();
            free_slots_.pop_back();
            ++prefix_users_[static_cast<std::size_t>(prefix)];
            buffers_->decoder->set_sequence(line.slot, prefix, *buffers_->session);
            transfer(states.slice(states.size(0) - 1, states.size(0)), buffers_->states.slice(row, row + 1));
        }
    }
    job.shared.clear();
}

void NativeJudge::Engine::advance() {
    const DeviceTurn turn(config_.device);
    const DeviceScope scope(config_.device);
    std::vector<int> slots;
    std::vector<std::int32_t> ids, read;
    std::int32_t row = 0;
    for (const Line& line : lines_) {
        if (line.next) {
            slots.push_back(line.slot);
            ids.push_back(*line.next);
        }
        if (line.needs_logits()) read.push_back(row);
        ++row;
    }
    if (!slots.empty()) {
        const Tensor states = buffers_->decoder->step(model_.weights(), slots, ids);
        transfer(states, buffers_->states.slice(0, states.size(0)));
    }
    const auto n = static_cast<std::int64_t>(read.size());
    if (n == 0) return;
    const Tensor rows = bring(config_.device, Tensor::of(read.data(), {n}), buffers_->read_rows);
    const Tensor states = buffers_->read_states.slice(0, n), logits = buffers_->logits.slice(0, n);
    ops::gather_rows(n, states.size(1), rows.as<std::int32_t>(), buffers_->states.f32(), nullptr, states.f32());
    buffers_->decoder->logits(model_.weights(), states, logits);
    transfer(logits, buffers_->host_logits.slice(0, n));
}

void NativeJudge::Engine::choose() {
    const auto vocabulary = static_cast<std::size_t>(buffers_->host_logits.size(1));
    const auto logits_of = [&](std::size_t row) { return std::span<const float>(buffers_->host_logits.f32() + row * vocabulary, vocabulary); };
    std::vector<const Line*> reading;
    for (const Line& line : lines_)
        if (line.needs_logits()) reading.push_back(&line);
    // A vocabulary of 150,000 for each answer.
    std::vector<std::int32_t> drawn(reading.size());
    parallel_for(std::ssize(reading), 1, [&](std::int64_t begin, std::int64_t end) {
        for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i)
            if (reading[i]->draws()) drawn[i] = draw(*reading[i], logits_of(i));
    });
    std::size_t row = 0;
    for (auto line = lines_.begin(); line != lines_.end();) {
        const bool reads = line->needs_logits();
        line->next = next_token(*line, reads ? logits_of(row) : std::span<const float>(), reads ? drawn[row] : 0);
        if (reads) ++row;
        line = line->next ? std::next(line) : lines_.erase(line);
    }
}

std::int32_t NativeJudge::Engine::draw(const Line& line, std::span<const float> logits) const {
    const double temperature = line.job->attempt == 0 ? config_.temperature : std::max(config_.temperature, retry_temperature);
    return pick(logits, temperature,
                Random(random_key(config_.seed, RandomUse::judge_token, line.job->noise_key.low, line.job->noise_key.high,
                                  number_of(line.asked->text.dimension), static_cast<std::uint64_t>(line.job->attempt) << 32 | line.written.size())));
}

std::optional<std::int32_t> NativeJudge::Engine::next_token(Line& line, std::span<const float> logits, std::int32_t drawn) {
    const Template& text = line.asked->text;
    const ScoreTokens& tokens = line.asked->tokens;
    if (line.draws()) {
        if (!model_.is_end(drawn) && std::ssize(line.written) < text.reasoning_tokens) {
            line.written.push_back(drawn);
            line.reason = model_.tokenizer().decode(line.written);
            line.scores = line.reason.ends_with(score_marker);
            return drawn;
        }
        line.scores = true;
        line.is_cut = !model_.is_end(drawn);
        if (!line.reason.ends_with("\n"))
            line.forced.insert(line.forced.end(), line_end_.begin(), line_end_.end());
        line.forced.insert(line.forced.end(), tokens.marker.begin(), tokens.marker.end());
    }
    if (!line.forced.empty()) {
        const std::int32_t id = line.forced.front();
        line.forced.pop_front();
        return id;
    }
    const bool at_end = line.gap == tokens.gap.size();
    bool applies = true;
    if (tokens.absent >= 0 && line.gap == tokens.absent_at) {
        const auto logit = [&](std::int32_t id) { return logits[static_cast<std::size_t>(id)]; };
        float other = -INFINITY;
        if (!at_end) other = logit(tokens.gap[line.gap]);
        else
            for (const std::int32_t id : tokens.candidates) other = std::max(other, logit(id));
        applies = logit(tokens.absent) <= other;
    }
    if (applies && !at_end) return tokens.gap[line.gap++];
    reward::Verdict verdict{applies, 1, {}};
    const auto marker = line.reason.rfind(score_marker);
    verdict.reason = std::string(trimmed(std::string_view(line.reason).substr(0, marker)));
    std::replace(verdict.reason.begin(), verdict.reason.end(), '\0', ' ');
    const bool has_reason = says_something(verdict.reason);  // what is appended is not the judge's
    if (line.is_cut) verdict.reason += std::string(" ") + cut_mark;
    if (applies) {
        const vlm::ScoreReading read = vlm::read_score(logits, tokens.candidates);
        verdict.score = read.expected_score;
        if (read.probability_of_candidates < least_score_mass) verdict.reason += std::string(" ") + unlikely_mark;
    }
    if (!has_reason)
        finish(line, nullptr, text.dimension + ": the judge gave no reason");
    else if (!std::isfinite(verdict.score))
        finish(line, nullptr, text.dimension + ": the judge's score is no number");
    else
        finish(line, &verdict, {});
    return {};
}

void NativeJudge::Engine::finish(Line& line, const reward::Verdict* verdict,
                                 const std::string& failure) {
    Job& job = *line.job;
    if (verdict != nullptr) job.verdicts[line.asked->text.dimension] = *verdict;
    else job.failures += (job.failures.empty() ? "" : "; ") + failure;
    free_slots_.push_back(line.slot);
    --prefix_users_[static_cast<std::size_t>(line.prefix)];
    if (--job.open > 0) return;
    try {
        ATELIER_CHECK_KIND(ErrorKind::reward, job.failures.empty(), "{}", job.failures);
        job.promise.set_value(std::move(job.verdicts));
    } catch (const Error&) {
        job.promise.set_exception(std::current_exception());
    }
    std::erase_if(jobs_, [&](const auto& each) { return each.get() == &job; });
}

void NativeJudge::Engine::fail_all(const std::string& why) {
    {
        const std::lock_guard lock(mutex_);
        std::move(waiting_.begin(), waiting_.end(), std::back_inserter(jobs_));
        waiting_.clear();
    }
    for (const Line& line : lines_) {
        free_slots_.push_back(line.slot);
        --prefix_users_[static_cast<std::size_t>(line.prefix)];
    }
    lines_.clear();
    for (auto& job : jobs_) try {
            ATELIER_FAIL(ErrorKind::reward, "the judge stopped: {}", why);
        } catch (const Error&) {
            job->promise.set_exception(std::current_exception());
        }
    jobs_.clear();
}

NativeJudge::NativeJudge(const NativeJudgeConfig& config,
                         std::map<std::string, std::vector<Template>> templates) {
    const DeviceTurn turn(config.device);
    if (config.device != Device::cpu) ops::load_backend().set_product_precision(config.precision);
    engine_ = std::make_unique<Engine>(config, std::move(templates));
}
NativeJudge::~NativeJudge() {
    engine_->end();
    const DeviceTurn turn(engine_->device());
    engine_.reset();
}
const std::vector<std::string>& NativeJudge::dimensions(const std::string& kind) const {
    return engine_->dimensions(kind);
}
reward::Verdicts NativeJudge::score(const reward::Request& request, int attempt) const {
    return engine_->judge(request, attempt);
}
void NativeJudge::interrupt() const noexcept { engine_->interrupt(); }
Bytes NativeJudge::bytes(std::size_t workers, std::size_t picture_bytes) const {
    return engine_->bytes(workers, picture_bytes);
}

}  // namespace atelier::judge
