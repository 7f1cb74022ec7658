#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/bytes.hpp"
#include "core/philox.hpp"
#include "io/image/image.hpp"

namespace atelier::reward {

/// One sample to score. The picture is RGBA bytes [height, width, 4].
struct Request {
    std::uint64_t sample_id = 0;
    std::string kind;        ///< of the prompt's task: "t2i" or "edit"
    std::string attributes;  ///< of the prompt, JSON
    std::int64_t height = 0, width = 0;
    std::vector<std::uint8_t> picture;
    std::string prompt;  ///< what was asked for
    std::shared_ptr<const std::vector<io::Image>> sources;  ///< the prompt's pictures; null: none
    RandomKey noise_key;  ///< of the sample: what random choices about it are keyed by
};

/// One dimension's verdict on one sample.
struct Verdict {
    bool present = true;  ///< false: the dimension does not apply, or scoring failed
    double score = 1;     ///< [1, 5], read only if present
    std::string reason;
};
using Verdicts = std::map<std::string, Verdict>;

/// Scores samples pointwise on the 5-point scale. Called from several threads at once.
class Scorer {
  public:
    virtual ~Scorer() = default;
    /// Every dimension this scorer knows for a kind of prompt, lowest tier first.
    virtual const std::vector<std::string>& dimensions(const std::string& kind) const = 0;
    /// Verdicts by dimension. `attempt` counts from 0. Throws Error when the sample cannot be
    /// scored: the pool asks again.
    virtual Verdicts score(const Request& request, int attempt) const = 0;
    /// Attempts at the sample are up to the scorer itself: the pool does not ask again.
    virtual bool retries_itself() const { return false; }
    /// Memory that it holds while `workers` samples are scored at once, each picture of
    /// `picture_bytes` (RGBA).
    virtual Bytes bytes(std::size_t /*workers*/, std::size_t /*picture_bytes*/) const {
        return {};
    }
    /// Makes calls of score() that wait for something fail soon, now and from now on.
    virtual void interrupt() const noexcept {}
};

/// The measures of the procedural world (lib/world): exact, of the prompt's attributes. Pictures of
/// another size than the world's are scaled to its square first.
std::unique_ptr<Scorer> make_world_scorer();
/// Throws Error(input) for a prompt's attributes, JSON, that these measures cannot be taken by.
void check_world_attributes(const std::string& attributes);

/// Settings that make a scorer slow and unreliable, for tests and benchmarks of what surrounds it.
struct Faults {
    double delay_seconds = 0;  ///< added to every attempt
    double failure_share = 0;  ///< of attempts that fail, drawn by (seed, sample, attempt)
    std::uint64_t seed = 0;
};
std::unique_ptr<Scorer> make_faulty_scorer(std::unique_ptr<Scorer> inner, const Faults& faults);

}  // namespace atelier::reward
