#include "comm/on_device.hpp"

#include <cstdlib>

#include "comm/device_communicator.hpp"
#include "core/device.hpp"

namespace atelier::comm {
namespace {

class OnDevice final : public Communicator {
  public:
    OnDevice(Communicator& world, void* compute_stream) : world_(world) {
        if (world.size() > 1) device_ = make_device_communicator(world, compute_stream);
    }
    int rank() const override { return world_.rank(); }
    int size() const override { return world_.size(); }
    void barrier() override { world_.barrier(); }
    void broadcast(std::span<std::byte> bytes, int root) override { world_.broadcast(bytes, root); }
    void sum(std::span<float> values) override {
        if (device_ != nullptr) in_order([&] { device_->sum(values.data(), static_cast<std::int64_t>(values.size())); });
    }
    void sum(std::span<double> values) override { world_.sum(values); }
    void gather_shares(std::span<const std::byte> mine, std::span<std::byte> all) override {
        start_gather_shares(mine, all);
        finish_gather();
    }
    void start_gather_shares(std::span<const std::byte> mine, std::span<std::byte> all) override {
        if (device_ != nullptr) {
            device_->after_compute();
            device_->all_gather(mine.data(), all.data(), mine.size());
        } else if (mine.data() != all.data()) {
            device_memory().within(all.data(), mine.data(), mine.size());
        }
    }
    void finish_gather() override {
        if (device_ != nullptr) device_->gather_before_compute();
    }
    void sum_shares(std::span<const float> all, std::span<float> mine) override {
        if (device_ == nullptr) return device_memory().within(mine.data(), all.data(), all.size_bytes());
        in_order([&] { device_->reduce_scatter(all.data(), mine.data(), static_cast<std::int64_t>(mine.size())); });
    }
    void start_sum_shares(std::span<const float> all, std::span<float> mine) override {
        if (device_ == nullptr) return sum_shares(all, mine);
        device_->after_compute();
        device_->reduce_scatter(all.data(), mine.data(), static_cast<std::int64_t>(mine.size()));
    }
    void finish_sum_shares() override {
        if (device_ != nullptr) device_->sum_before_compute();
    }
    double max(double value) override { return world_.max(value); }
    std::vector<std::vector<std::byte>> gather(std::span<const std::byte> bytes) override { return world_.gather(bytes); }
    std::unique_ptr<Communicator> split(int colour) override { return world_.split(colour); }
    std::unique_ptr<Mailbox> mailbox() override { return world_.mailbox(); }
    [[noreturn]] void abort(int exit_code) override {
        world_.abort(exit_code);
        std::abort();  // not reached
    }

  private:
    /// A sum between what was computed before and what is computed after it.
    template <typename Sum>
    void in_order(Sum sum) {
        device_->after_compute();
        sum();
        device_->sum_before_compute();
    }
    Communicator& world_;
    std::unique_ptr<DeviceCommunicator> device_;  ///< null: one rank
};

}  // namespace

std::unique_ptr<Communicator> make_on_device(Communicator& world, void* compute_stream) {
    return std::make_unique<OnDevice>(world, compute_stream);
}

}  // namespace atelier::comm
