#include "server.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmath>
#include <stdexcept>

namespace atelier::testing {
namespace {

using Json = nlohmann::json;

std::vector<std::uint8_t> from_base64(std::string_view text) {
    std::vector<std::uint8_t> bytes;
    std::uint32_t word = 0;
    int bits = 0;
    for (const char c : text) {
        int value;
        if (c >= 'A' && c <= 'Z') value = c - 'A';
        else if (c >= 'a' && c <= 'z') value = c - 'a' + 26;
        else if (c >= '0' && c <= '9') value = c - '0' + 52;
        else if (c == '+') value = 62;
        else if (c == '/') value = 63;
        else break;
        word = word << 6 | static_cast<std::uint32_t>(value);
        if ((bits += 6) >= 8) bytes.push_back(static_cast<std::uint8_t>(word >> (bits -= 8)));
    }
    return bytes;
}

void send_all(int socket, const std::string& text) {
    for (std::size_t sent = 0; sent < text.size();) {
        const auto n = ::send(socket, text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
        if (n <= 0) return;
        sent += static_cast<std::size_t>(n);
    }
}

std::string header(const std::string& head, std::string name) {
    std::string lower = head;
    for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    const auto at = lower.find("\r\n" + name + ": ");
    if (at == std::string::npos) return {};
    const auto begin = at + name.size() + 4;
    return head.substr(begin, head.find("\r\n", begin) - begin);
}

}  // namespace

std::string Asked::text() const {
    std::string all;
    for (const Json& message : body.at("messages")) {
        const Json& content = message.at("content");
        if (content.is_string()) {
            all += content.get<std::string>() + "\n";
            continue;
        }
        for (const Json& part : content)
            if (part.at("type") == "text") all += part.at("text").get<std::string>() + "\n";
    }
    return all;
}

std::vector<std::vector<std::uint8_t>> Asked::pictures() const {
    const std::string prefix = "data:image/png;base64,";
    std::vector<std::vector<std::uint8_t>> found;
    for (const Json& message : body.at("messages")) {
        if (!message.at("content").is_array()) continue;
        for (const Json& part : message.at("content")) {
            if (part.at("type") != "image_url") continue;
            const auto url = part.at("image_url").at("url").get<std::string>();
            if (url.starts_with(prefix))
                found.push_back(from_base64(std::string_view(url).substr(prefix.size())));
        }
    }
    return found;
}

JudgeServer::JudgeServer(Behaviour behaviour) : behaviour_(std::move(behaviour)) {
    listener_ = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    auto* const plain = reinterpret_cast<sockaddr*>(&address);
    if (::bind(listener_, plain, size) != 0 || ::listen(listener_, 256) != 0 ||
        ::getsockname(listener_, plain, &size) != 0)
        throw std::runtime_error("no port to listen on");
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { accept_connections(); });
}

JudgeServer::~JudgeServer() {
    ends_ = true;
    ::shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    ::close(listener_);
    for (Connection& c : connections_) ::shutdown(c.socket, SHUT_RDWR);
    for (Connection& c : connections_) {
        c.thread.join();
        ::close(c.socket);
    }
}

void JudgeServer::accept_connections() {
    while (!ends_) {
        const int socket = ::accept(listener_, nullptr, nullptr);
        if (socket < 0) continue;
        connections_.push_back({socket, {}});
        connections_.back().thread = std::thread([this, socket] { serve(socket); });
    }
}

void JudgeServer::serve(int socket) {
    std::string buffer;
    char chunk[65536];
    const auto read_until = [&](auto&& done) {
        while (!done()) {
            const auto n = ::recv(socket, chunk, sizeof chunk, 0);
            if (n <= 0) return false;
            buffer.append(chunk, static_cast<std::size_t>(n));
        }
        return true;
    };
    for (;;) {
        std::size_t head_end = 0;
        if (!read_until([&] { return (head_end = buffer.find("\r\n\r\n")) != std::string::npos; }))
            return;
        const std::string head = buffer.substr(0, head_end + 2);
        const std::size_t length = std::stoul("0" + header(head, "content-length"));
        buffer.erase(0, head_end + 4);
        if (!read_until([&] { return buffer.size() >= length; })) return;
        Asked asked;
        asked.body = Json::parse(buffer.substr(0, length));
        buffer.erase(0, length);
        asked.authorization = header(head, "authorization");
        asked.number = requests_++;
        Json without_seed = asked.body;
        without_seed.erase("seed");
        {
            const std::lock_guard lock(mutex_);
            asked.repetition = seen_[without_seed.dump()]++;
        }
        const int now = ++running_;
        for (int seen = most_; now > seen && !most_.compare_exchange_weak(seen, now);) {
        }
        Reply reply = head.starts_with("POST /v1/chat/completions ")
                          ? behaviour_(asked)
                          : Reply{404, {}, "no such path", 0, false};
        for (double slept = 0; slept < reply.delay_seconds && !ends_; slept += 0.005)
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        --running_;
        std::string out = "HTTP/1.1 " + std::to_string(reply.status) + " Answer\r\nContent-Length: " +
                          std::to_string(reply.body.size()) + "\r\n";
        for (const std::string& line : reply.headers) out += line + "\r\n";
        out += "\r\n" + reply.body;
        if (reply.cut) {
            send_all(socket, out.substr(0, out.size() - (reply.body.size() + 1) / 2));
            ::shutdown(socket, SHUT_RDWR);
            return;
        }
        send_all(socket, out);
    }
}

Json completion(const std::string& text, const std::vector<double>& probabilities) {
    Json answer = {{"object", "chat.completion"},
                   {"choices",
                    {{{"index", 0},
                      {"message", {{"role", "assistant"}, {"content", text}}},
                      {"finish_reason", "stop"}}}}};
    if (probabilities.empty()) return answer;
    std::vector<std::string> tokens;
    for (const char c : text) {
        const bool digit = c >= '0' && c <= '9';
        const bool begins = tokens.empty() || c == ' ' || c == '\n' || digit ||
                            (tokens.back()[0] >= '0' && tokens.back()[0] <= '9');
        if (begins) tokens.emplace_back();
        tokens.back() += c;
    }
    const auto last_digit = text.find_last_of("0123456789");
    Json content = Json::array();
    for (std::size_t i = 0, end = 0; i < tokens.size(); ++i) {
        const std::size_t begin = end;
        end += tokens[i].size();
        Json top = {{{"token", tokens[i]}, {"logprob", -0.01}}};
        if (begin == last_digit) {
            top = {{{"token", "a"}, {"logprob", std::log(0.01)}}};
            for (std::size_t s = 0; s < probabilities.size(); ++s)
                if (probabilities[s] > 0)
                    top.push_back({{"token", std::to_string(s + 1)},
                                   {"logprob", std::log(probabilities[s])}});
        }
        content.push_back({{"token", tokens[i]}, {"logprob", -0.01}, {"top_logprobs", top}});
    }
    answer["choices"][0]["logprobs"] = {{"content", content}};
    return answer;
}

std::uint64_t hash_of(const void* data, std::size_t size) {
    std::uint64_t hash = 0xcbf29ce484222325ull;
    for (std::size_t i = 0; i < size; ++i)
        hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3ull;
    return hash;
}

}  // namespace atelier::testing
