#include <cstdlib>

#include "comm/communicator.hpp"

namespace atelier::comm {
namespace {

class Self final : public Communicator {
  public:
    int rank() const override { return 0; }
    int size() const override { return 1; }
    void barrier() override {}
    void broadcast(std::span<std::byte>, int) override {}
    void sum(std::span<float>) override {}
    void sum(std::span<double>) override {}
    std::size_t sum_bytes(std::size_t) const override { return 0; }
    double max(double value) override { return value; }
    std::vector<std::vector<std::byte>> gather(std::span<const std::byte> bytes) override {
        return {{bytes.begin(), bytes.end()}};
    }
    [[noreturn]] void abort(int exit_code) override { std::_Exit(exit_code); }
};

}  // namespace

std::unique_ptr<Communicator> make_self() { return std::make_unique<Self>(); }

#ifndef ATELIER_WITH_MPI
std::unique_ptr<Communicator> make_world(int*, char***) { return make_self(); }
#endif

}  // namespace atelier::comm
