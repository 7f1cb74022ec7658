#include "judge/http_client.hpp"

#include <curl/curl.h>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <ctime>
#include <vector>

#include "core/error.hpp"
#include "core/signals.hpp"

namespace atelier::judge {

struct HttpClient::Exchange {
    CURL* easy = nullptr;
    curl_slist* headers = nullptr;
    std::string url, body, header_retry_after;
    std::size_t largest = 0;
    bool too_large = false;
    HttpResponse response;
    std::promise<HttpResponse> promise;

    Exchange() = default;
    Exchange(const Exchange&) = delete;
    Exchange& operator=(const Exchange&) = delete;
    ~Exchange() {
        if (easy != nullptr) curl_easy_cleanup(easy);
        curl_slist_free_all(headers);
    }
    void answer() { promise.set_value(std::move(response)); }
    void fail(const std::string& why) {
        response.error = why;
        answer();
    }
    static std::size_t on_body(char* data, std::size_t, std::size_t n, void* self) {
        auto& e = *static_cast<Exchange*>(self);
        e.too_large = e.response.body.size() + n > e.largest;
        if (e.too_large) return 0;
        e.response.body.append(data, n);
        return n;
    }
    static std::size_t on_header(char* data, std::size_t, std::size_t n, void* self) {
        constexpr std::string_view name = "retry-after:";
        const std::string_view line(data, n);
        if (n > name.size() && std::equal(name.begin(), name.end(), line.begin(), [](char a, char b) {
                return a == std::tolower(static_cast<unsigned char>(b));
            }))
            static_cast<Exchange*>(self)->header_retry_after = line.substr(name.size());
        return n;
    }
};

HttpClient::HttpClient(const HttpConfig& config) : config_(config) {
    ATELIER_CHECK_USAGE(config.in_flight >= 1 && config.connect_seconds > 0 && config.total_seconds > 0,
                        "an HTTP client needs at least one request in flight and deadlines above 0");
    static const CURLcode ready = curl_global_init(CURL_GLOBAL_DEFAULT);
    multi_ = ready == CURLE_OK ? curl_multi_init() : nullptr;
    ATELIER_CHECK(multi_ != nullptr, "libcurl cannot be set up");
    curl_multi_setopt(static_cast<CURLM*>(multi_), CURLMOPT_MAXCONNECTS, static_cast<long>(config.in_flight));
    const SignalsBlocked blocked;
    thread_ = std::thread([this] { work(); });
}

HttpClient::~HttpClient() {
    {
        const std::lock_guard lock(mutex_);
        ends_ = gives_up_ = true;
    }
    curl_multi_wakeup(static_cast<CURLM*>(multi_));
    thread_.join();
    curl_multi_cleanup(static_cast<CURLM*>(multi_));
}

std::future<HttpResponse> HttpClient::post(const std::string& url, std::string body) {
    auto exchange = std::make_unique<Exchange>();
    exchange->url = url;
    exchange->body = std::move(body);
    auto future = exchange->promise.get_future();
    {
        const std::lock_guard lock(mutex_);
        waiting_.push_back(std::move(exchange));
    }
    curl_multi_wakeup(static_cast<CURLM*>(multi_));
    return future;
}

void HttpClient::give_up() {
    {
        const std::lock_guard lock(mutex_);
        gives_up_ = true;
    }
    curl_multi_wakeup(static_cast<CURLM*>(multi_));
}

void HttpClient::start(std::unique_ptr<Exchange> e) {
    e->easy = curl_easy_init();
    if (e->easy == nullptr) return e->fail("libcurl gives no handle");
    e->largest = config_.largest_answer;
    const auto set = [&](auto option, auto value) { curl_easy_setopt(e->easy, option, value); };
    e->headers = curl_slist_append(e->headers, "Content-Type: application/json");
    e->headers = curl_slist_append(e->headers, "Expect:");  // no round trip ahead of large bodies
    set(CURLOPT_URL, e->url.c_str());
    set(CURLOPT_PROTOCOLS_STR, "http,https");
    set(CURLOPT_FOLLOWLOCATION, 0L);
    set(CURLOPT_NOSIGNAL, 1L);
    set(CURLOPT_HTTPHEADER, e->headers);
    if (!config_.key.empty()) {
        set(CURLOPT_HTTPAUTH, static_cast<long>(CURLAUTH_BEARER));
        set(CURLOPT_XOAUTH2_BEARER, config_.key.c_str());
    }
    set(CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(e->body.size()));
    set(CURLOPT_POSTFIELDS, e->body.c_str());
    set(CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(std::ceil(config_.connect_seconds * 1000)));
    set(CURLOPT_TIMEOUT_MS, static_cast<long>(std::ceil(config_.total_seconds * 1000)));
    set(CURLOPT_WRITEFUNCTION, &Exchange::on_body);
    set(CURLOPT_WRITEDATA, static_cast<void*>(e.get()));
    set(CURLOPT_HEADERFUNCTION, &Exchange::on_header);
    set(CURLOPT_HEADERDATA, static_cast<void*>(e.get()));
    if (curl_multi_add_handle(static_cast<CURLM*>(multi_), e->easy) != CURLM_OK)
        return e->fail("libcurl refuses the request");
    void* const key = e->easy;
    running_.emplace(key, std::move(e));
}

void HttpClient::finish(void* easy, int result) {
    auto node = running_.extract(easy);
    Exchange& e = *node.mapped();
    curl_multi_remove_handle(static_cast<CURLM*>(multi_), e.easy);
    if (result != CURLE_OK)
        return e.fail(e.too_large
                          ? fmt::format("the answer is longer than {} bytes", config_.largest_answer)
                          : std::string(curl_easy_strerror(static_cast<CURLcode>(result))));
    long status = 0;
    curl_easy_getinfo(e.easy, CURLINFO_RESPONSE_CODE, &status);
    e.response.status = static_cast<int>(status);
    e.response.retry_after =
        parse_retry_after(e.header_retry_after, static_cast<double>(std::time(nullptr)));
    e.answer();
}

void HttpClient::work() {
    CURLM* const multi = static_cast<CURLM*>(multi_);
    for (;;) {
        std::vector<std::unique_ptr<Exchange>> next;
        bool gives_up, ends;
        {
            const std::lock_guard lock(mutex_);
            gives_up = gives_up_;
            ends = ends_;
            while (!waiting_.empty() &&
                   (gives_up || static_cast<int>(running_.size() + next.size()) < config_.in_flight)) {
                next.push_back(std::move(waiting_.front()));
                waiting_.pop_front();
            }
        }
        if (gives_up) {
            for (auto& exchange : next) exchange->fail("given up");
            while (!running_.empty()) {
                auto node = running_.extract(running_.begin());
                curl_multi_remove_handle(multi, node.mapped()->easy);
                node.mapped()->fail("given up");
            }
        } else {
            for (auto& exchange : next) start(std::move(exchange));
        }
        if (ends) return;
        int still_running = 0;
        curl_multi_perform(multi, &still_running);
        int left = 0;
        bool finished = false;
        while (const CURLMsg* message = curl_multi_info_read(multi, &left))
            if (message->msg == CURLMSG_DONE) {
                finish(message->easy_handle, message->data.result);
                finished = true;
            }
        if (!finished) curl_multi_poll(multi, nullptr, 0, 1000, nullptr);
    }
}

std::optional<double> parse_retry_after(const std::string& value, double now) {
    const auto begin = value.find_first_not_of(" \t\r\n");
    if (begin == std::string::npos) return {};
    const std::string text = value.substr(begin, value.find_last_not_of(" \t\r\n") - begin + 1);
    double seconds = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
    if (error == std::errc() && end == text.data() + text.size())
        return std::isfinite(seconds) && seconds >= 0 ? std::optional(seconds) : std::nullopt;
    const std::time_t date = curl_getdate(text.c_str(), nullptr);
    if (date == -1) return {};
    return std::max(0.0, static_cast<double>(date) - now);
}

}  // namespace atelier::judge
