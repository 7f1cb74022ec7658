#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace atelier::comm {

/// Messages between ranks, beside everything else that they exchange. One thread at a time uses it, and it may be another than the one
/// that uses the communicator. Messages from one rank to another arrive in the order in which they were sent. Errors of the transport
/// are Error(rank).
class Mailbox {
  public:
    virtual ~Mailbox() = default;
    /// Starts to send; the bytes are kept until they are gone. At most 2 GiB.
    virtual void send(int rank, std::vector<std::byte> bytes) = 0;
    struct Message {
        int source = 0;
        std::vector<std::byte> bytes;
    };
    /// What has arrived, if anything has. Doesn't wait.
    virtual std::optional<Message> receive() = 0;
    /// Drives what is being sent; how many messages are still under way.
    virtual std::size_t sending() = 0;
};

/// The ranks of a stage. Every rank makes the same calls in the same order.
///
/// Sums are made in rank order: for one world size they have the same bits every time. Errors of the transport are
/// Error(rank).
class Communicator {
  public:
    virtual ~Communicator() = default;
    virtual int rank() const = 0;
    virtual int size() const = 0;
    virtual void barrier() = 0;
    virtual void broadcast(std::span<std::byte> bytes, int root) = 0;
    /// values[i] = sum over ranks 0, 1, … of values[i], on every rank.
    virtual void sum(std::span<float> values) = 0;
    virtual void sum(std::span<double> values) = 0;
    /// Shares of one size put one behind another in rank order: all = [rank 0's, rank 1's, …]. `mine` may be its place in `all`. Of more than
    /// 2 GiB they are a multiple of four bytes.
    virtual void gather_shares(std::span<const std::byte> mine, std::span<std::byte> all) = 0;
    /// The same, begun here and over at finish_gather(): it may go on while this rank computes. Until then nobody touches the spans.
    /// One at a time.
    virtual void start_gather_shares(std::span<const std::byte> mine, std::span<std::byte> all) = 0;
    virtual void finish_gather() = 0;
    /// mine[i] = sum over ranks 0, 1, … of their all[rank() * mine.size() + i]: each rank gets its share of the sum.
    virtual void sum_shares(std::span<const float> all, std::span<float> mine) = 0;
    /// The same, begun here and over at finish_sum_shares(); where it cannot go on beside this rank's work it is over at once. Until then
    /// nobody touches the spans. One at a time.
    virtual void start_sum_shares(std::span<const float> all, std::span<float> mine) { sum_shares(all, mine); }
    virtual void finish_sum_shares() {}
    virtual double max(double value) = 0;
    /// Every rank's bytes on every rank, in rank order.
    virtual std::vector<std::vector<std::byte>> gather(std::span<const std::byte> bytes) = 0;
    /// The ranks that give the same colour, in the order that they have here. All ranks call it; it must not outlive this one.
    virtual std::unique_ptr<Communicator> split(int colour) = 0;
    /// All ranks call it; it must not outlive this one. Throws Error(rank) where MPI cannot be called from several threads.
    virtual std::unique_ptr<Mailbox> mailbox() = 0;
    /// Ends all ranks, those of the communicator that this one was split from too, wherever they are. Does not return.
    [[noreturn]] virtual void abort(int exit_code) = 0;

    bool is_root() const { return rank() == 0; }
    /// True on every rank if it is true on any.
    bool any(bool value) { return max(value ? 1.0 : 0.0) > 0.5; }
};

/// Bytes of memory that summing so many numbers of four bytes over `ranks` takes (sum_shares: of all ranks' shares), held to the end.
std::size_t sum_bytes(int ranks, std::size_t count);

/// One rank: this process.
std::unique_ptr<Communicator> make_self();

/// The ranks that mpirun or srun started, or self where the program was started alone or built without MPI. Sets
/// core/process.hpp's record. Call once; MPI is finalised when the communicator goes.
std::unique_ptr<Communicator> make_world(int* argc, char*** argv);

}  // namespace atelier::comm
