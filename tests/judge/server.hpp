#pragma once

#include <atomic>
#include <functional>
#include <list>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

namespace atelier::testing {

/// What the server does with one request.
struct Reply {
    int status = 200;
    std::vector<std::string> headers;
    std::string body;
    double delay_seconds = 0;  ///< before it answers
    bool cut = false;          ///< the connection is closed in the middle of the answer
};

/// One request as it came in.
struct Asked {
    nlohmann::json body;
    std::string authorization;  ///< value of the header
    int number = 0;             ///< requests before it
    int repetition = 0;         ///< requests before it that said the same but for the seed
    std::string text() const;   ///< all text parts of all messages
    std::vector<std::vector<std::uint8_t>> pictures() const;  ///< PNG bytes of the data URLs
};

/// A server of the chat completions protocol on a free port of 127.0.0.1, that answers as it is
/// told: one thread a connection, HTTP/1.1 with keep-alive.
class JudgeServer {
  public:
    using Behaviour = std::function<Reply(const Asked&)>;
    explicit JudgeServer(Behaviour behaviour);
    ~JudgeServer();
    JudgeServer(const JudgeServer&) = delete;
    JudgeServer& operator=(const JudgeServer&) = delete;
    int port() const { return port_; }
    std::string url() const { return "http://127.0.0.1:" + std::to_string(port_) + "/v1"; }
    int requests() const { return requests_; }
    int most_at_once() const { return most_; }

  private:
    void accept_connections();
    void serve(int socket);
    Behaviour behaviour_;
    int listener_ = -1, port_ = 0;
    std::atomic<int> requests_{0}, running_{0}, most_{0};
    std::atomic<bool> ends_{false};
    std::mutex mutex_;
    std::map<std::string, int> seen_;
    struct Connection {
        int socket;
        std::thread thread;
    };
    std::list<Connection> connections_;
    std::thread acceptor_;
};

/// A chat completion: `text` cut into tokens (words with the space before them, line ends, digits),
/// with the probabilities of scores 1 to 5 at the last digit; empty: no logprobs.
nlohmann::json completion(const std::string& text, const std::vector<double>& probabilities = {});

/// FNV-1a.
std::uint64_t hash_of(const void* data, std::size_t size);

}  // namespace atelier::testing
