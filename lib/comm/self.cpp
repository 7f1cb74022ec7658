#include <algorithm>
#include <cstdlib>
#include <deque>

#include "comm/communicator.hpp"
#include "comm/sum_block.hpp"

namespace atelier::comm {
namespace {

class SelfMailbox final : public Mailbox {
  public:
    void send(int, std::vector<std::byte> bytes) override { messages_.push_back({0, std::move(bytes)}); }
    std::optional<Message> receive() override {
        if (messages_.empty()) return std::nullopt;
        Message first = std::move(messages_.front());
        messages_.pop_front();
        return first;
    }
    std::size_t sending() override { return 0; }

  private:
    std::deque<Message> messages_;
};

class Self final : public Communicator {
  public:
    int rank() const override { return 0; }
    int size() const override { return 1; }
    void barrier() override {}
    void broadcast(std::span<std::byte>, int) override {}
    void sum(std::span<float>) override {}
    void sum(std::span<double>) override {}
    void gather_shares(std::span<const std::byte> mine, std::span<std::byte> all) override {
        if (mine.data() != all.data()) std::copy(mine.begin(), mine.end(), all.begin());
    }
    void start_gather_shares(std::span<const std::byte> mine, std::span<std::byte> all) override { gather_shares(mine, all); }
    void finish_gather() override {}
    void sum_shares(std::span<const float> all, std::span<float> mine) override { std::copy(all.begin(), all.end(), mine.begin()); }
    double max(double value) override { return value; }
    std::vector<std::vector<std::byte>> gather(std::span<const std::byte> bytes) override {
        return {{bytes.begin(), bytes.end()}};
    }
    std::unique_ptr<Communicator> split(int) override { return std::make_unique<Self>(); }
    std::unique_ptr<Mailbox> mailbox() override { return std::make_unique<SelfMailbox>(); }
    [[noreturn]] void abort(int exit_code) override { std::_Exit(exit_code); }
};

}  // namespace

std::size_t sum_bytes(int ranks, std::size_t count) {
    return ranks == 1 ? 0 : 2 * sizeof(float) * std::min(sum_block, count);
}

std::unique_ptr<Communicator> make_self() { return std::make_unique<Self>(); }

#ifndef ATELIER_WITH_MPI
std::unique_ptr<Communicator> make_world(int*, char***) { return make_self(); }
#endif

}  // namespace atelier::comm
