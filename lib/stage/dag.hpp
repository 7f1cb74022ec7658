#pragma once

#include <string>
#include <vector>

#include "stage/context.hpp"

namespace atelier::stage {

/// One job of the pipeline: a program with its arguments, and what must have succeeded before it.
struct Job {
    std::string name;   ///< "grpo-t2i-0007"
    std::string stage;  ///< program is atelier-<stage>; resources are slurm.<stage>.*
    std::vector<std::string> arguments;  ///< without --run
    std::vector<std::string> after;      ///< names of jobs
    std::string output;  ///< directory relative to the run whose manifest says that the job is done
};

/// Every job of a configuration, in an order in which each comes after what it needs. Throws Error(usage) where keys make no sense together, and
/// for texts of [slurm] that cannot be handed to sbatch.
std::vector<Job> pipeline_jobs(const Context& context);

/// The same as Graphviz.
std::string to_dot(const std::vector<Job>& jobs);
/// The same as lines of text: name, what it comes after.
std::string to_text(const std::vector<Job>& jobs);
/// pipeline.json: jobs with their resources.
std::string to_json(const std::vector<Job>& jobs, const config::Config& config);
/// pipeline.tsv, for the Slurm scripts: one line a job, fields separated by tabs: name, stage,
/// arguments (blanks between), after (commas between, "-": nothing), output, ranks, nodes, memory,
/// time, GPUs a node.
std::string to_tsv(const std::vector<Job>& jobs, const config::Config& config);
/// slurm.tsv: what all jobs share: where the programs are, partition, account, launcher, setup,
/// stop_early, threads and options, a line each; then the options of a stage's jobs alone ("option.<stage>").
std::string slurm_settings(const config::Config& config);

}  // namespace atelier::stage
