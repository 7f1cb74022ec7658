#pragma once

#include <functional>

#include "stage/context.hpp"

namespace atelier::stage {

/// Runs a stage that scores. With [reward] ranks = k the last k ranks of the world are judges: they sample nothing, and score what the
/// others send until those are done. The others run `stage` with a world of their own, in which the work is divided and every collective
/// is made, and with `judges` set; what the stage writes is the same for any number of either. A judge that fails ends the job like any
/// other rank. Returns what `stage` returns, on judges the largest of it. Throws Error(usage) where no rank would be left to sample.
int with_judge_ranks(const Context& context, const std::function<int(const Context&)>& stage);

/// Samples of one rank that samples which may be in work at once, among `ranks` of both kinds. Throws Error(usage) where none is left to
/// sample.
std::int64_t samples_in_work(const config::Config& config, int ranks);
/// Bytes of the largest picture that is drawn, RGBA.
std::size_t largest_picture_bytes(const config::Config& config);
/// Bytes of the pictures that a judge rank holds, each in its message and taken out of it, with its prompt's own where there are edits.
std::size_t judge_picture_bytes(const Context& context);

}  // namespace atelier::stage
