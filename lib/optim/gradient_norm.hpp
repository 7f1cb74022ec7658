#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace atelier::optim {

/// Sum of squares in fp64 over fixed blocks, added in block order: the same bits at any number of
/// threads. Memory for the block sums is taken once, at construction.
class GradientNorm {
  public:
    /// For spans of at most `capacity` numbers.
    explicit GradientNorm(std::int64_t capacity);
    /// Infinity or NaN if and only if a number is (fp32 squares cannot overflow fp64). Add over
    /// parameter shards, then take the root.
    /// Where the calling thread's operations run on a device the numbers are in its memory; its blocks are added in another order.
    double sum_of_squares(std::span<const float> gradient);

  private:
    std::vector<double> blocks_;
};

/// min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_; 1 for max_norm <= 0 (no
/// clipping). Throws Error(numeric) for a norm that is not finite.
double clip_scale(double norm, double max_norm);

/// Index of the first NaN or infinity, -1 if there is none: for the error message.
std::int64_t first_non_finite(std::span<const float> values);

}  // namespace atelier::optim
