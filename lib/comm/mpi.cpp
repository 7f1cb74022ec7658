#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <list>
#include <new>
#include <string_view>

#include "comm/communicator.hpp"
#include "comm/patience.hpp"
#include "comm/sum_block.hpp"
#include "core/error.hpp"
#include "core/process.hpp"

namespace atelier::comm {
namespace {

void check(int status, const char* what) {
    if (status == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING] = {};
    int length = 0;
    MPI_Error_string(status, text, &length);
    ATELIER_FAIL(ErrorKind::rank, "{} failed: {}", what, text);
}

class MpiMailbox final : public Mailbox {
  public:
    explicit MpiMailbox(MPI_Comm comm) : comm_(comm) {}
    ~MpiMailbox() override {
        // Only when the rank fails: MPI may still read what is being sent, until the job has ended.
        if (!sending_.empty()) new (std::nothrow) std::list<Sending>(std::move(sending_));
    }
    void send(int rank, std::vector<std::byte> bytes) override {
        ATELIER_CHECK(bytes.size() < (std::size_t{1} << 31), "a message of {} bytes", bytes.size());
        Sending& s = sending_.emplace_back(std::move(bytes), MPI_REQUEST_NULL);
        check(MPI_Isend(s.bytes.data(), static_cast<int>(s.bytes.size()), MPI_BYTE, rank, 0, comm_, &s.request), "MPI_Isend");
    }
    std::optional<Message> receive() override {
        int arrived = 0;
        MPI_Message message{};
        MPI_Status status{};
        check(MPI_Improbe(MPI_ANY_SOURCE, 0, comm_, &arrived, &message, &status), "MPI_Improbe");
        if (arrived == 0) return std::nullopt;
        int count = 0;
        check(MPI_Get_count(&status, MPI_BYTE, &count), "MPI_Get_count");
        Message received{status.MPI_SOURCE, std::vector<std::byte>(static_cast<std::size_t>(count))};
        check(MPI_Mrecv(received.bytes.data(), count, MPI_BYTE, &message, &status), "MPI_Mrecv");
        return received;
    }
    std::size_t sending() override {
        for (auto s = sending_.begin(); s != sending_.end();) {
            int gone = 0;
            check(MPI_Test(&s->request, &gone, MPI_STATUS_IGNORE), "MPI_Test");
            s = gone != 0 ? sending_.erase(s) : std::next(s);
        }
        return sending_.size();
    }

  private:
    struct Sending {
        std::vector<std::byte> bytes;
        MPI_Request request;
        Sending(std::vector<std::byte> b, MPI_Request r) : bytes(std::move(b)), request(r) {}
    };
    MPI_Comm comm_;
    std::list<Sending> sending_;
};

/// Communicators made on the way are freed by MPI_Finalize: freeing one is collective, and a rank that fails goes without the others.
class Mpi final : public Communicator {
  public:
    explicit Mpi(MPI_Comm comm) : comm_(comm) {
        MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
        check(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
        check(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
        if (comm_ != MPI_COMM_WORLD) return;
        process().rank = rank_;
        process().world_size = size_;
    }
    ~Mpi() override {
        if (comm_ == MPI_COMM_WORLD) MPI_Finalize();
    }
    std::unique_ptr<Communicator> split(int colour) override {
        MPI_Comm part = MPI_COMM_NULL;
        check(MPI_Comm_split(comm_, colour, rank_, &part), "MPI_Comm_split");
        return std::make_unique<Mpi>(part);
    }
    std::unique_ptr<Mailbox> mailbox() override {
        int level = 0;
        check(MPI_Query_thread(&level), "MPI_Query_thread");
        ATELIER_CHECK_KIND(ErrorKind::rank, level >= MPI_THREAD_MULTIPLE,
                           "this MPI cannot be called from several threads at once (level {}), which ranks that judge need: "
                           "reward.ranks = 0 judges without them", level);
        MPI_Comm own = MPI_COMM_NULL;
        check(MPI_Comm_dup(comm_, &own), "MPI_Comm_dup");
        MPI_Comm_set_errhandler(own, MPI_ERRORS_RETURN);
        return std::make_unique<MpiMailbox>(own);
    }
    int rank() const override { return rank_; }
    int size() const override { return size_; }
    void barrier() override { check(MPI_Barrier(comm_), "MPI_Barrier"); }
    void broadcast(std::span<std::byte> bytes, int root) override {
        constexpr std::size_t block = 1 << 30;  // MPI counts are ints
        for (std::size_t at = 0; at < bytes.size(); at += block)
            check(MPI_Bcast(bytes.data() + at, static_cast<int>(std::min(block, bytes.size() - at)), MPI_BYTE, root, comm_),
                  "MPI_Bcast");
    }
    void sum(std::span<float> values) override { ordered_sum(values, MPI_FLOAT, float_block_); }
    void sum(std::span<double> values) override { ordered_sum(values, MPI_DOUBLE, double_block_); }
    void gather_shares(std::span<const std::byte> mine, std::span<std::byte> all) override {
        start_gather_shares(mine, all);
        finish_gather();
    }
    void start_gather_shares(std::span<const std::byte> mine, std::span<std::byte> all) override {
        const bool in_fours = mine.size() % 4 == 0;  // MPI counts are ints
        const std::size_t count = in_fours ? mine.size() / 4 : mine.size();
        MPI_Datatype type = in_fours ? MPI_FLOAT : MPI_BYTE;
        ATELIER_CHECK(all.size() == mine.size() * static_cast<std::size_t>(size_) && count < (std::size_t{1} << 31),
                      "gathering {} bytes of each of {} ranks into {}", mine.size(), size_, all.size());
        ATELIER_CHECK(gather_ == MPI_REQUEST_NULL, "a gather was started before the last one was finished");
        const bool in_place = mine.data() == all.data() + static_cast<std::size_t>(rank_) * mine.size();
        check(MPI_Iallgather(in_place ? MPI_IN_PLACE : mine.data(), static_cast<int>(count), type, all.data(), static_cast<int>(count), type, comm_,
                             &gather_),
              "MPI_Iallgather");
    }
    void finish_gather() override { check(MPI_Wait(&gather_, MPI_STATUS_IGNORE), "MPI_Wait"); }
    void sum_shares(std::span<const float> all, std::span<float> mine) override {
        const auto ranks = static_cast<std::size_t>(size_), share = mine.size();
        ATELIER_CHECK(all.size() == share * ranks, "{} numbers are no shares of {} for {} ranks", all.size(), share, ranks);
        const std::size_t piece = std::max<std::size_t>(1, sum_block / ranks);
        for (std::size_t at = 0; at < share; at += piece) {
            const std::size_t n = std::min(piece, share - at);
            float_block_.resize(2 * n * ranks);
            float *sent = float_block_.data(), *received = sent + n * ranks;
            for (std::size_t r = 0; r < ranks; ++r) std::copy_n(all.data() + r * share + at, n, sent + r * n);
            check(MPI_Alltoall(sent, static_cast<int>(n), MPI_FLOAT, received, static_cast<int>(n), MPI_FLOAT, comm_),
                  "MPI_Alltoall");
            for (std::size_t r = 1; r < ranks; ++r)
                for (std::size_t i = 0; i < n; ++i) received[i] += received[r * n + i];
            std::copy_n(received, n, mine.data() + at);
        }
    }
    double max(double value) override {
        double result = 0;
        check(MPI_Allreduce(&value, &result, 1, MPI_DOUBLE, MPI_MAX, comm_), "MPI_Allreduce");
        return result;
    }
    std::vector<std::vector<std::byte>> gather(std::span<const std::byte> bytes) override {
        ATELIER_CHECK(bytes.size() < (std::size_t{1} << 31), "gathering {} bytes from one rank", bytes.size());
        const auto count = static_cast<int>(bytes.size());
        std::vector<int> counts(static_cast<std::size_t>(size_));
        check(MPI_Allgather(&count, 1, MPI_INT, counts.data(), 1, MPI_INT, comm_), "MPI_Allgather");
        std::vector<std::vector<std::byte>> all(static_cast<std::size_t>(size_));
        for (int r = 0; r < size_; ++r) {
            auto& part = all[static_cast<std::size_t>(r)];
            if (r == rank_) part.assign(bytes.begin(), bytes.end());
            part.resize(static_cast<std::size_t>(counts[static_cast<std::size_t>(r)]));
            broadcast(part, r);
        }
        return all;
    }
    [[noreturn]] void abort(int exit_code) override {
        MPI_Abort(MPI_COMM_WORLD, exit_code);
        std::_Exit(exit_code);
    }

  private:
    /// Each rank sums one share of the block over all ranks in rank order, then the shares are exchanged.
    template <typename T>
    void ordered_sum(std::span<T> values, MPI_Datatype type, std::vector<T>& buffer) {
        const auto ranks = static_cast<std::size_t>(size_);
        for (std::size_t at = 0; at < values.size(); at += sum_block) {
            const std::size_t n = std::min(sum_block, values.size() - at), share = (n + ranks - 1) / ranks;
            // Padded to equal shares, so that the exchange is regular.
            buffer.assign(2 * share * ranks, T(0));
            T *mine = buffer.data(), *theirs = buffer.data() + share * ranks;
            std::copy_n(values.data() + at, n, mine);
            check(MPI_Alltoall(mine, static_cast<int>(share), type, theirs, static_cast<int>(share), type, comm_),
                  "MPI_Alltoall");
            for (std::size_t r = 1; r < ranks; ++r)
                for (std::size_t i = 0; i < share; ++i) theirs[i] += theirs[r * share + i];
            check(MPI_Allgather(theirs, static_cast<int>(share), type, mine, static_cast<int>(share), type, comm_),
                  "MPI_Allgather");
            std::copy_n(mine, n, values.data() + at);
        }
    }
    MPI_Comm comm_;
    int rank_ = 0, size_ = 1;
    MPI_Request gather_ = MPI_REQUEST_NULL;
    std::vector<float> float_block_;
    std::vector<double> double_block_;
};

bool was_launched() {
    for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE"})
        if (std::getenv(name) != nullptr) return true;
    return false;
}

/// While it lives the process must not live longer than this: where a rank of another node is killed while it starts, Open MPI 4.1 can leave the others in
/// MPI_Init for ever, and its launcher with them.
class Deadline {
  public:
    Deadline() {
        std::signal(SIGALRM, [](int) {
            constexpr std::string_view text = "MPI did not start in time: a rank died while it started, or ATELIER_LAUNCHER_PATIENCE (seconds) is too short\n";
            [[maybe_unused]] const auto written = write(STDERR_FILENO, text.data(), text.size());
            _exit(static_cast<int>(ErrorKind::rank));
        });
        alarm(static_cast<unsigned>(launcher_patience().count()));
    }
    Deadline(const Deadline&) = delete;
    Deadline& operator=(const Deadline&) = delete;
    ~Deadline() {
        alarm(0);
        std::signal(SIGALRM, SIG_DFL);
    }
};

}  // namespace

std::unique_ptr<Communicator> make_world(int* argc, char*** argv) {
    if (!was_launched()) return make_self();
    const Deadline deadline;
    int provided = 0;
    ATELIER_CHECK_KIND(ErrorKind::rank, MPI_Init_thread(argc, argv, MPI_THREAD_MULTIPLE, &provided) == MPI_SUCCESS &&
                                            provided >= MPI_THREAD_FUNNELED,
                       "MPI did not start with funneled threads (level {})", provided);
    return std::make_unique<Mpi>(MPI_COMM_WORLD);
}

}  // namespace atelier::comm
