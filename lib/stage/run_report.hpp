#pragma once

#include <string>

#include "stage/context.hpp"

namespace atelier::stage {

/// Publishes what there is to see of a run, finished or not: report/index.html, a page without scripts or anything from elsewhere but the run's
/// own contact sheets (a table of what is complete, curves, pictures of the newest rollouts, evaluations, where the time went), and tb/POLICY/,
/// event files for TensorBoard. Jobs that do it at the same time take turns. Reads manifests, metrics and a few shards; the same run gives the
/// same bytes. What cannot be read is said on the page in its place. Throws Error(input) for a damaged metrics.jsonl when the page is there, Error(io).
void publish_report(const RunDirectory& run);

}  // namespace atelier::stage
