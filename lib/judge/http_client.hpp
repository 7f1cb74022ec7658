#pragma once

#include <deque>
#include <future>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

namespace atelier::judge {

struct HttpConfig {
    int in_flight = 16;            ///< requests at once; others wait for their turn
    double connect_seconds = 5;    ///< at most, until connected
    double total_seconds = 120;    ///< at most, from connecting to the answer's last byte
    std::size_t largest_answer = std::size_t{16} << 20;  ///< bytes
    std::string key;               ///< sent as bearer token; empty: none. A secret.
};

/// What came back.
struct HttpResponse {
    int status = 0;     ///< 0: no answer
    std::string body;
    std::string error;  ///< why there is no (whole) answer
    std::optional<double> retry_after;  ///< seconds that the server asks to wait
};

/// Posts JSON over HTTP(S) on one thread of its own (libcurl's multi interface). Redirects are not
/// followed: the key goes to the configured host only.
class HttpClient {
  public:
    explicit HttpClient(const HttpConfig& config);
    /// Gives up what is under way.
    ~HttpClient();
    HttpClient(const HttpClient&) = delete;
    HttpClient& operator=(const HttpClient&) = delete;

    /// The future never holds an exception.
    std::future<HttpResponse> post(const std::string& url, std::string body);
    /// Ends everything under way and to come with an error. From any thread.
    void give_up();

  private:
    struct Exchange;
    void work();
    void start(std::unique_ptr<Exchange> exchange);
    void finish(void* easy, int result);

    HttpConfig config_;
    void* multi_ = nullptr;
    std::mutex mutex_;
    std::deque<std::unique_ptr<Exchange>> waiting_;
    bool gives_up_ = false, ends_ = false;
    std::map<void*, std::unique_ptr<Exchange>> running_;  ///< the thread's own
    std::thread thread_;
};

/// Seconds in a Retry-After header's value: a number, or a date (RFC 9110), seen from `now` (Unix
/// time). Nothing for another text.
std::optional<double> parse_retry_after(const std::string& value, double now);

}  // namespace atelier::judge
